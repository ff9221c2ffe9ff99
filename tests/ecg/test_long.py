"""Long recordings in blocks: results equal those of the whole recording, and memory does not grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seqssm_ecg import blocks, long, simulate
from seqssm_ecg.files import Recording
from seqssm_ecg.long import LongRecording
from seqssm_ecg.preprocess import Preprocess, rate_ratio, resample, windows


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Blocks of 600 samples, so that a minute has many."""
    monkeypatch.setattr(long, "BLOCK", 600)


def recording(rate_hz=250.0, seconds=64.0, leads=("I", "II", "V2"), gaps=True, offset=0.0):
    values = simulate.recording(["PVC"], seconds, rate_hz, seed=4)
    values = {lead: values[lead] + offset for lead in leads}
    if gaps:
        values["I"][:7] = np.nan
        values["II"][500:700] = np.nan  # over the edge of a block
        values["V2"][1100:4000] = np.nan  # whole blocks
        values["II"][-3:] = np.nan
    return Recording.of_arrays(Path("r.hea"), rate_hz, values)


@pytest.mark.parametrize("rate_hz", [100.0, 128.0, 250.0, 257.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"band_hz": (0.5, 40.0)},
        {"band_hz": (None, 30.0), "normalise": "global", "mean": 0.1, "std": 0.4},
        {"band_hz": (0.5, 40.0), "causal": True, "normalise": "none"},
        {"normalise": "none", "lead_set": 3},
    ],
)
def test_blocks_equal_the_whole(rate_hz, options):
    process = Preprocess(100.0, **options)
    one = recording(rate_hz, offset=5.0)
    whole, notes = process(one)
    found = LongRecording(one, process)
    table = np.concatenate(list(found.scaled()), axis=1)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, whole, atol=5e-5)
    assert found.samples == whole.shape[1]
    assert found.notes == notes
    made = np.concatenate(list(found.windows(400, 150, 5)))
    starts = windows(whole.shape[1], 400, 150)
    np.testing.assert_array_equal(made, np.stack([table[:, s : s + 400] for s in starts]))


def test_quality_is_that_of_the_whole(monkeypatch):
    from seqssm_ecg import quality

    one = recording(gaps=False)
    values = {lead: row.copy() for lead, row in one.values.items()}
    values["V2"][:] = np.random.default_rng(0).normal(0, 1, len(values["V2"]))
    values["I"] = np.clip(values["I"], -0.05, 0.1)
    one = Recording.of_arrays(Path("r.hea"), 250.0, values)
    whole = quality.assess(one, ("I", "II", "V2"))
    assert whole.notes == ["clipped: I", "noise: V2"]
    assert LongRecording(one, Preprocess(100.0)).quality == whole


@pytest.mark.parametrize("size", [30, 600, 5000])
@pytest.mark.parametrize(("old", "new"), [(250.0, 100.0), (257.0, 500.0), (100.0, 128.0), (1000.0, 100.0)])
def test_resampling_in_blocks(old, new, size):
    table = simulate.recording([], 9.0, old, 1)
    table = np.stack([table["II"] + 3, table["V1"]])
    pieces = [table[:, s : s + 77] for s in range(0, table.shape[1], 77)]
    ratio = rate_ratio(old, new)
    made = np.concatenate(
        list(blocks.resampled(iter(pieces), (table[:, 0], table[:, -1]), table.shape[1], ratio, size)), axis=1
    )
    np.testing.assert_allclose(made, resample(table, old, new), atol=2e-5)


def test_moments():
    table = np.random.default_rng(0).normal(300, 2, (3, 5000)).astype(np.float32)
    mean, std, count = blocks.moments(iter(np.split(table, [7, 100, 3000], axis=1)))
    np.testing.assert_allclose(mean[:, 0], table.mean(1, dtype=np.float64))
    np.testing.assert_allclose(std[:, 0], table.std(1, dtype=np.float64), rtol=1e-6)
    assert count == 5000


@pytest.mark.long
def test_memory_does_not_grow_with_the_length(tmp_path):
    """Reading, filtering and cutting windows of 4 hours takes no more memory than of 1 hour."""
    import tracemalloc

    from seqssm_ecg.files import open_recording, write_wfdb

    piece = simulate.recording([], 600.0, 128.0, 1)
    peaks = []
    for hours in (1, 4):
        name = f"h{hours}"
        write_wfdb(
            tmp_path, name, {lead: np.tile(piece[lead], 6 * hours) for lead in ("I", "II")}, 128.0, suffix=".dat"
        )
        tracemalloc.start()
        found = LongRecording(open_recording(tmp_path / f"{name}.hea"), Preprocess(100.0, band_hz=(0.5, 40.0)))
        assert sum(len(x) for x in found.windows(1000, 500, 64)) == hours * 720 - 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_long_records_are_trained_on_and_tested_from_disk(tmp_path, monkeypatch):
    """With a limit so low that every record is long, a run gives the figures of records in memory."""
    import pandas as pd
    from seqssm_ecg.data import EcgData

    simulate.folder(tmp_path, 12, 1, 30.0)
    table = pd.read_csv(tmp_path / "manifest.csv").assign(split=["train"] * 6 + ["val"] * 3 + ["test"] * 3)
    table.to_csv(tmp_path / "manifest.csv", index=False)
    made = []
    for limit in (1 << 19, 1000):
        monkeypatch.setattr(long, "LONG_VALUES", limit)
        data = EcgData(manifest=str(tmp_path / "manifest.csv"), window_s=4, band_hz=[0.5, 40.0])
        data.setup("fit")
        made.append([data.records[k] for k in range(12)])
        batch = data.val_set.__getitems__([0, 1, 2])
        assert (len(batch["long"]), len(batch["x"])) == ((0, 42) if limit > 1000 else (3, 0))
        if limit == 1000:
            assert sum(len(x) for x in batch["long"][0][1]) == 14
    for whole, stored in zip(*made, strict=True):
        np.testing.assert_allclose(stored[:, : stored.shape[1]], whole, atol=5e-5)
        np.testing.assert_allclose(stored[:, 100:300], whole[:, 100:300], atol=5e-5)
    monkeypatch.setattr(long, "LONG_VALUES", 1000)
    from lightning.pytorch import Trainer
    from seqssm_ecg.task import EcgTask

    data = EcgData(manifest=str(tmp_path / "manifest.csv"), window_s=4)
    task = EcgTask(d_model=8, depth=1, threads=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(task, datamodule=data)


@pytest.mark.slow
def test_a_day_needs_less_than_a_gigabyte(trained, tmp_path):
    """Peak memory of the whole process of `seqssm predict`, for one day of two leads and for two of them."""
    import subprocess
    import sys

    from seqssm_ecg.files import write_wfdb

    piece = simulate.recording([], 600.0, 250.0, 1)
    write_wfdb(tmp_path, "day", {lead: np.tile(piece[lead], 144) for lead in ("I", "II")}, 250.0, suffix=".dat")
    (tmp_path / "again.hea").write_text((tmp_path / "day.hea").read_text().replace("day 2", "again 2"))
    peaks = []
    for inputs in (["day"], ["day", "again"]):
        # the peak that `resource` reports includes the parent's, from before the program was started
        code = "import sys; from seqssm.cli.main import main; main(sys.argv[1:])"
        code += "; print(open('/proc/self/status').read())"
        argv = [sys.executable, "-c", code, "predict", str(trained), *(str(tmp_path / one) for one in inputs)]
        argv += ["--output", str(tmp_path / f"{len(inputs)}.csv"), "--accelerator", "cpu"]
        status = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        peaks.append(int(status.split("VmHWM:")[1].split()[0]) / 1024)
    print(f"peak memory: {peaks[0]:.0f} MB for one day, {peaks[1]:.0f} MB for two")
    assert len(pd.read_csv(tmp_path / "2.csv")) == 2
    assert peaks[1] < 1000
    assert peaks[1] < peaks[0] + 50
