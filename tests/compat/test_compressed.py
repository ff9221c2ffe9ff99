"""`seqssm compress` accepts checkpoints of every domain, and every command accepts its output."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.nn import quantized

from .old_runs import HERE, RUNS, predictions, read_expected, stream, write_data

WITH_SCANS = ("forecasting_smamba", "ecg_stream", "pathology_srmamba")
WITHOUT = ("forecasting_dlinear", "pathology_survival")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data of all runs, and a copy of the runs."""
    place = tmp_path_factory.mktemp("compressed")
    write_data(place / "data")
    shutil.copytree(HERE / "runs", place / "runs")
    return place


@pytest.fixture(autouse=True)
def _inside(folder, monkeypatch, one_thread):
    monkeypatch.chdir(folder)


@pytest.fixture
def compressed(folder, capsys):
    """Compress a run; return the checkpoint and the printed text. Each combination is compressed once."""

    def make(name: str, method: str, *more: str) -> tuple[Path, str]:
        output = folder / f"{name}-{method}{'-'.join(more)[:40].replace('/', '_')}.ckpt"
        message = output.with_suffix(".txt")
        if name.startswith("pathology") and "--calibration" not in more:  # 6 validation cases are too few
            more = (*more, "--calibration", *(f"data/slides/h5_files/s{number:02d}.h5" for number in range(10)))
        if not output.exists():
            argv = ["compress", str(folder / "runs" / name), "--method", method, "--output", str(output), *more]
            capsys.readouterr()
            assert main(argv) == 0, capsys.readouterr().err
            message.write_text(capsys.readouterr().out, encoding="utf-8")
        return output, message.read_text(encoding="utf-8")

    return make


PAIRS = (
    ("forecasting_smamba", "w8a8"),
    pytest.param("forecasting_smamba", "w4a16", marks=pytest.mark.long),
    ("ecg_mamba", "w4a8"),
    ("ecg_stream", "w8a8"),
    ("pathology_srmamba", "w8a8"),
    pytest.param("pathology_srmamba", "w8a16", marks=pytest.mark.long),
)


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_a_checkpoint_of_every_domain(name, method, compressed, folder, capsys):
    output, printed = compressed(name, method)
    header, *rows = printed.splitlines()
    assert header.split() == ["before", "after", "change", "95", "%", "interval"]
    assert {"file", "weights in memory", "quantised projections", "CPU time per record, ms"} <= {
        re.split(r"\s{2,}", row)[0] for row in rows
    }
    scores = {"forecasting": ("mse", "mae"), "ecg": ("auroc",), "pathology": ("auroc",)}[RUNS[name].domain]
    for score in scores:
        row = next(row for row in rows if row.startswith(f"{score} "))
        assert re.search(r" [+-]\S+ to [+-]\S+$", row), row  # a paired interval
    decided = RUNS[name].domain != "forecasting"
    assert ("predictions changed" in printed) is decided
    assert "calibrated on" in printed
    content = torch.load(output, weights_only=True)
    assert "optimizer_states" not in content
    layers = [one for one in seqssm.load(output).network.modules() if isinstance(one, quantized.QuantizedLinear)]
    assert layers
    assert main(["info", str(output)]) == 0
    described = capsys.readouterr().out
    assert re.search(rf"method +{method}", described)
    assert re.search(rf"integer layers +{len(layers)}\n", described)


@pytest.mark.parametrize("name", WITH_SCANS)
def test_predictions_stay_close(name, compressed, tmp_path):
    output, _ = compressed(name, "w8a8")
    table, loaded = predictions(name, output, tmp_path)
    before = read_expected(name)
    assert list(table.columns) == list(before.columns)
    assert (table["status"] == before["status"]).all()
    numbers = before.select_dtypes("number").dropna(axis=1, how="all").columns
    assert len(numbers) > 1
    for column in numbers:
        spread = before[column].abs().max()
        assert (table[column] - before[column]).abs().max() <= 0.1 * spread + 1e-9, column
        assert (loaded[column] - table[column]).abs().max() <= 1e-4 * spread + 1e-9, column
    assert not table[numbers].equals(before[numbers])  # something was compressed


def test_a_stream_is_read_with_integers(compressed, tmp_path):
    output, _ = compressed("ecg_stream", "w8a8")
    assert len(stream("ecg_stream", output, tmp_path)) == len(read_expected("ecg_stream_stream"))


def test_the_state_of_a_stream_in_8_bits(compressed, capsys, tmp_path):
    """The stream carries the state from second to second; predictions of whole windows carry none."""
    floats, before = compressed("ecg_stream", "w8a8")
    output, printed = compressed("ecg_stream", "w8a8", "--state", "int8")
    rows = {re.split(r"\s{2,}", row)[0]: row for row in printed.splitlines()}
    assert re.search(r" 32 B +8 B +4.00x smaller$", rows["scan states per record"])
    assert "scan states per record" not in before
    assert "in float between calls: windows of convolutions" in rows
    error = re.search(r"state rounded 8 times .* of the outputs (\S+) \((\S+) with float states\)", printed)
    assert float(error[1]) <= float(error[2]) + 1e-3
    content = torch.load(output, weights_only=True)
    assert content["seqssm"]["compression"]["state"] == "int8"
    kept = [name for name, one in content["seqssm"]["compression"]["layers"].items() if one["kind"] == "state"]
    assert len(kept) == 1
    assert main(["info", str(output)]) == 0
    assert re.search(r"scan states +8 bits: [\d,]+ bytes per record \([\d,]+ in float32\)", capsys.readouterr().out)
    assert main(["info", str(floats)]) == 0
    assert "scan states" not in capsys.readouterr().out
    for part in ("float", "int8"):
        (tmp_path / part).mkdir()
    wanted = stream("ecg_stream", floats, tmp_path / "float")
    found = stream("ecg_stream", output, tmp_path / "int8")
    numbers = found.columns[1:]
    assert (found[numbers] - wanted[numbers]).abs().max().max() < 2e-3
    records = RUNS["ecg_stream"].inputs
    first, second = (seqssm.load(path).predict(list(records)) for path in (floats, output))
    pd.testing.assert_frame_equal(first, second)


def test_states_that_are_not_carried(folder, capsys):
    for name in ("forecasting_smamba", "ecg_mamba", "pathology_srmamba"):
        message = refused(capsys, f"runs/{name}", "--state", "int8", "--output", "small.ckpt")
        assert "reads whole records and carries no state between calls: --state int8 has nothing to do" in message
    assert "invalid choice: 'int4'" in refused(capsys, "runs/ecg_stream", "--state", "int4", "--output", "small.ckpt")
    message = refused(capsys, "runs/ecg_stream", "--state", "int8", "--method", "w1", "--output", "small.ckpt")
    assert "--state int8: not available with --method w1" in message
    assert not Path("small.ckpt").exists()


def test_the_test_command_gives_the_scores_of_the_table(compressed, folder, capsys):
    import json

    output, printed = compressed("pathology_srmamba", "w8a8")
    alone = folder / "alone"
    alone.mkdir(exist_ok=True)
    shutil.copy(output, alone / "small.ckpt")
    assert main(["pathology", "test", str(alone / "small.ckpt")]) == 0
    found = json.loads((alone / "test-small" / "metrics.json").read_text())["test"]["metrics"]
    row = next(row for row in printed.splitlines() if row.startswith("auroc "))
    assert float(row.split()[2]) == pytest.approx(found["auroc"], abs=6e-5)


def test_compression_is_deterministic(compressed):
    first, _ = compressed("ecg_mamba", "w4a8")
    second, _ = compressed("ecg_mamba", "w4a8", "--records", "128")
    a, b = (torch.load(path, weights_only=True)["state_dict"] for path in (first, second))
    assert a.keys() == b.keys()
    assert [name for name, value in a.items() if not torch.equal(value, b[name])] == []


def test_calibration_on_files(compressed):
    files = [f"data/ecg/r{number:02d}.hea" for number in range(20, 32)]
    small, printed = compressed("ecg_mamba", "w8a8", "--calibration", *files)
    assert "calibrated on 12 records (24 windows) of r20.hea, r21.hea, r22.hea, ...;" in printed
    tables = [seqssm.load(path, accelerator="cpu").predict(files) for path in ("runs/ecg_mamba", small)]
    wanted, found = (table.filter(regex="^p_") for table in tables)
    error = (((found - wanted) / wanted.std(ddof=0)) ** 2).to_numpy().mean()
    # the durations in the table, of much larger variance, had made it a thousandth
    assert float(printed.partition("outputs on these data ")[2].split()[0]) == pytest.approx(error, rel=0.05)


def test_few_records_for_the_calibration_have_an_advice(capsys):
    words = ["--calibration", "data/series.csv", "--future-missing", "forward", "--output", "small.ckpt"]
    assert main(["compress", "runs/forecasting_smamba", *words]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.endswith("at least 8 are required; --backtest N predicts N windows of each series")


def test_calibration_counts_unreadable_records_and_refuses_absurd_ones(compressed, folder, capsys):
    """Three unreadable bags were not mentioned, and a bag of 1e30 gave worse weights and "nan" in the table."""
    import h5py

    names = [f"data/slides/h5_files/s{number:02d}.h5" for number in range(9)]
    for name, value in (("nan", np.nan), ("huge", 1e30)):
        shutil.copy(folder / names[0], folder / f"{name}.h5")
        with h5py.File(folder / f"{name}.h5", "r+") as file:
            file["features"][...] = file["features"][...] * 0 + value
    _, printed = compressed("pathology_srmamba", "w8a8", "--calibration", *names, "nan.h5")
    assert "calibrated on 9 records of " in printed
    assert "(without 1 that cannot be predicted; first: nan: " in printed
    run = folder / "runs" / "pathology_srmamba"
    words = ["compress", str(run), "--calibration", *names, "huge.h5", "--output", "huge.ckpt"]
    capsys.readouterr()
    assert main(words) == 2
    assert "calibration: the network overflows on a record" in capsys.readouterr().err


def test_calibration_on_windows_of_a_series(compressed):
    _, printed = compressed("forecasting_smamba", "w8a8", "--calibration", "data/series.csv", "--backtest", "12")
    assert re.search(r"calibrated on 1 records \(\d\d+ windows\) of series.csv", printed)


def refused(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert main(["compress", *argv]) == 2
    *notes, message = capsys.readouterr().err.strip().splitlines()
    assert all(note.startswith(("cases: ", "seqssm: runs/")) for note in notes)  # notes about the data and the run
    assert message.startswith("seqssm: ")
    return message


@pytest.mark.parametrize("name", WITHOUT)
def test_nothing_to_quantise(name, capsys):
    message = refused(capsys, f"runs/{name}", "--output", "small.ckpt")
    assert "has no layers with a scan (Mamba, Mamba-2, Mamba-3), so there is nothing to quantise" in message
    assert not Path("small.ckpt").exists()


def test_a_run_with_few_validation_records_needs_files(capsys):
    message = refused(capsys, "runs/pathology_srmamba", "--output", "small.ckpt")
    assert "the validation records of the run cannot be used for calibration" in message
    assert "6 records or windows for calibration; at least 8 are required" in message
    assert message.endswith("pass --calibration FILES")


def test_refusals(compressed, capsys):
    output, _ = compressed("ecg_stream", "w8a8")
    run = "runs/ecg_mamba"
    assert "is already compressed (w8a8)" in refused(capsys, str(output), "--output", "again.ckpt")
    assert "invalid choice: 'w3a3'" in refused(capsys, run, "--method", "w3a3", "--output", "small.ckpt")
    few = ["--calibration", "data/ecg/r20.hea", "data/ecg/r21.hea"]
    assert "4 records or windows for calibration; at least 8 are required" in refused(
        capsys, run, *few, "--output", "small.ckpt"
    )
    other = refused(capsys, run, "--calibration", "data/slides/h5_files/s01.h5", "--output", "small.ckpt")
    assert "s01.h5" in other
    assert "no such file" in refused(capsys, run, "--calibration", "nowhere.hea", "--output", "small.ckpt")
    assert "already exists; choose another --output" in refused(capsys, run, "--output", str(output))
    assert "is also an input" in refused(capsys, run, "--output", f"{run}/best.ckpt")
    assert "ends with .ckpt" in refused(capsys, run, "--output", "small.pt")
    assert "--output FILE is required" in refused(capsys, run)
    assert "MODEL.ckpt" in refused(capsys, "--output", "small.ckpt")
    assert "--top-k is an option of the domain pathology" in refused(capsys, run, "--top-k", "3", "--output", "x.ckpt")
    assert "no such file" in refused(capsys, run, "--test-data", "nowhere.csv", "--output", "small.ckpt")


def test_a_failed_test_leaves_the_previous_file(tmp_path, capsys, monkeypatch):
    """The output gets its name after it was loaded and tested."""

    def fail(*_):
        raise InputError("line 3: no number")

    monkeypatch.setattr("seqssm.compress.procedure.compare", fail)
    (tmp_path / "small.ckpt").write_bytes(b"earlier")
    (tmp_path / "labelled.csv").write_text("x")
    argv = ["compress", "runs/forecasting_smamba", "--output", str(tmp_path / "small.ckpt")]
    argv += ["--test-data", str(tmp_path / "labelled.csv"), "--overwrite"]
    assert main(argv) == 2
    assert capsys.readouterr().err.endswith("seqssm: line 3: no number\n")
    assert {one.name for one in tmp_path.iterdir()} == {"small.ckpt", "labelled.csv"}
    assert (tmp_path / "small.ckpt").read_bytes() == b"earlier"


def test_a_compressed_model_is_not_trained(compressed, capsys):
    output, _ = compressed("ecg_stream", "w8a8")
    argv = ["ecg", "fit", "--config", "runs/ecg_mamba/config.yaml", "--output", "warm"]
    capsys.readouterr()
    assert main([*argv, "--model.init_from", str(output)]) == 2
    assert "is compressed and cannot be trained further" in capsys.readouterr().err


def test_a_damaged_layout_is_one_line(compressed, capsys, tmp_path):
    output, _ = compressed("ecg_stream", "w8a8")
    content = torch.load(output, weights_only=True)
    layers = content["seqssm"]["compression"]["layers"]
    layers[next(iter(layers))] = {"kind": "linear", "width": 10**9, "out": 10**9}
    torch.save(content, tmp_path / "bad.ckpt")
    capsys.readouterr()
    assert main(["info", str(tmp_path / "bad.ckpt")]) == 2
    message = capsys.readouterr().err
    assert "bad.ckpt: is corrupt" in message
    assert len(message.strip().splitlines()) == 1
