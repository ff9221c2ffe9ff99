"""Measurements: intervals of recordings with known truth, R peaks, signal quality, long recordings, the command."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seqssm_ecg import simulate
from seqssm_ecg.beats import RATE_HZ, detect_beats
from seqssm_ecg.files import write_wfdb
from seqssm_ecg.leads import LEADS
from seqssm_ecg.measure import INTERVALS, Measurements, column_names, combined, measure, measure_recording, parts
from seqssm_ecg.recording import Recording
from seqssm_ecg.simulate_intervals import Timing, timed_recording

from seqssm.cli.main import main

GRID = [
    Timing(rate, pr, qrs, 400 * (60 / rate) ** (1 / 3) + 0.6 * (qrs - 90))
    for rate, pr, qrs in itertools.product((50, 75, 110), (130, 170, 210), (85, 115, 150))
    if pr + 400 * (60 / rate) ** (1 / 3) + 0.6 * (qrs - 90) < 0.93 * 60_000 / rate
]

P = [f"p_{name}" for name in simulate.CLASSES]


@pytest.mark.parametrize("rate_hz", [100.0, 250.0, 500.0])
def test_intervals_of_known_truth(rate_hz):
    """Bias below 6 ms; standard deviations within the tolerances of the CSE working party (1985) for each boundary."""
    errors = {name: [] for name in ("heart_rate_bpm", "pr_ms", "qrs_ms", "qt_ms")}
    for seed, timing in enumerate(GRID):
        noise = (0.01, 0.03)[seed % 2]
        found = measure(timed_recording(timing, 10.0, rate_hz, seed, noise)[0], rate_hz).values
        for name, known in errors.items():
            known.append(np.nan if found[name] is None else found[name] - getattr(timing, name))
    for name, limit in (("heart_rate_bpm", 1), ("pr_ms", 10.2), ("qrs_ms", 11.6), ("qt_ms", 30.6)):
        known = np.array(errors[name])
        assert np.isnan(known).sum() <= 1, name
        assert abs(np.nanmean(known)) < 6, name
        assert np.nanstd(known) < limit, name


def test_corrected_qt_is_bazetts_and_fridericias():
    found = measure(timed_recording(Timing(100.0, 140.0, 90.0, 330.0), 10.0, 500.0, irregular=0.0)[0], 500.0).values
    rr = 60 / found["heart_rate_bpm"]
    assert found["heart_rate_bpm"] == pytest.approx(100, abs=0.5)
    assert found["qtcb_ms"] == pytest.approx(found["qt_ms"] / np.sqrt(rr))
    assert found["qtcf_ms"] == pytest.approx(found["qt_ms"] / np.cbrt(rr))


@pytest.mark.parametrize("kind", [[], ["AF"], ["STach"], ["PVC"]])  # xqrs finds no beat of LBBB
def test_every_beat_is_found_once(kind):
    """Against wfdb's xqrs on one lead."""
    from wfdb import processing

    values = simulate.recording(kind, 30.0, RATE_HZ, seed=8)
    table = np.stack(list(values.values()))
    peaks = detect_beats(table)
    theirs = processing.XQRS(sig=values["II"].astype(float), fs=RATE_HZ)
    theirs.detect(verbose=False)
    inner = theirs.qrs_inds[(theirs.qrs_inds > 250) & (theirs.qrs_inds < len(table[0]) - 250)]
    nearest = np.abs(peaks[:, None] - inner[None, :]).min(axis=0)
    assert (nearest < 0.1 * RATE_HZ).mean() > 0.95
    assert abs(len(peaks) - len(theirs.qrs_inds)) <= 2
    assert np.diff(peaks).min() > 0.22 * RATE_HZ


def test_times_of_the_beats():
    values, onsets = timed_recording(Timing(), 20.0, 250.0, seed=2)
    peaks = measure(values, 250.0).peaks_s
    inner = onsets[(onsets > 0.3) & (onsets < 19.7)]
    lag = np.array([peaks[np.argmin(np.abs(peaks - at))] - at for at in inner])
    assert len(lag) >= 22
    assert lag.std() < 0.006
    assert 0.02 < lag.mean() < 0.06


def test_without_p_waves_there_is_no_pr():
    found = [measure(simulate.recording(["AF"], 10.0, 250.0, seed), 250.0).values["pr_ms"] for seed in range(8)]
    assert sum(value is None for value in found) >= 6
    found = [measure(timed_recording(Timing(pr_ms=None), 10.0, 250.0, s)[0], 250.0).values["pr_ms"] for s in range(4)]
    assert found == [None] * 4


def test_quality_by_lead():
    values, _ = timed_recording(Timing(), 10.0, 250.0)
    random = np.random.default_rng(0)
    values["V1"] = np.zeros_like(values["V1"])
    values["V2"] = random.normal(0, 1, len(values["V2"])).astype(np.float32)
    values["V3"] = values["V3"] + random.normal(0, 0.3, len(values["V3"])).astype(np.float32)
    values["V4"] = np.full_like(values["V4"], np.nan)
    values["aVF"] = values["aVF"].copy()
    values["aVF"][300:400] = np.nan
    found = measure(values, 250.0)
    assert found.quality["V1"] == found.quality["V4"] == 0
    assert found.quality["V2"] < 0.5
    assert found.quality["V3"] < found.quality["V5"]
    assert min(found.quality[lead] for lead in ("I", "II", "aVF", "V5", "V6")) > 0.8
    clean = measure(timed_recording(Timing(), 10.0, 250.0)[0], 250.0)
    for name in INTERVALS:  # leads without beats do not disturb the others
        assert found.values[name] == pytest.approx(clean.values[name], abs=12)


@pytest.mark.parametrize(
    "values",
    [
        {"II": np.zeros(2500, np.float32)},
        {"II": np.full(2500, np.nan, np.float32)},
        {"II": np.ones(100, np.float32)},
        {lead: np.random.default_rng(5).normal(0, 0.3, 2500).astype(np.float32) for lead in ("I", "II")},
        {"II": np.arange(2500, dtype=np.float32)},
    ],
)
def test_what_is_not_an_ecg_has_no_intervals(values):
    found = measure(values, 250.0)
    assert all(found.values[name] is None for name in INTERVALS if name != "heart_rate_bpm")
    assert set(found.columns()) == set(column_names())


def test_one_lead_is_enough():
    values, _ = timed_recording(Timing(), 20.0, 250.0, 3)
    found = measure({"II": values["II"]}, 250.0)
    for name, truth, tolerance in (("pr_ms", 160, 20), ("qrs_ms", 92, 20), ("qt_ms", 390, 30)):
        assert found.values[name] == pytest.approx(truth, abs=tolerance)
    assert list(found.quality) == ["II"]


def test_long_recordings_are_measured_in_parts():
    values, _ = timed_recording(Timing(), 127.0, 100.0, 1)
    recording = Recording.of_arrays(Path("r"), 100.0, values)
    pieces = list(parts(recording, 10.0))
    assert [len(piece["I"]) for piece in pieces] == [1000] * 13
    np.testing.assert_array_equal(pieces[-1]["V6"], values["V6"][-1000:])
    found = measure_recording(recording)
    assert found.values["qt_ms"] == pytest.approx(390, abs=12)
    assert found.values["heart_rate_bpm"] == pytest.approx(72, abs=1)
    empty = combined([])
    assert isinstance(empty, Measurements)
    assert empty.values == dict.fromkeys(INTERVALS)


def test_parts_need_constant_memory(tmp_path):
    import tracemalloc

    from seqssm_ecg.files import open_recording

    piece = simulate.recording([], 600.0, 128.0, 1)
    peaks = []
    for hours in (1, 4):
        name = f"h{hours}"
        rows = {lead: np.tile(piece[lead], 6 * hours) for lead in ("I", "II")}
        write_wfdb(tmp_path, name, rows, 128.0, suffix=".dat")
        tracemalloc.start()
        assert sum(1 for _ in parts(open_recording(tmp_path / f"{name}.hea"), 10.0)) == 360 * hours
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


# -- as a user does it -----------------------------------------------------------------------------------------------


def predict(trained, inputs, output, *more):
    argv = ["predict", str(trained), *map(str, inputs), "--output", str(output), "--accelerator", "cpu"]
    assert main([*argv, *map(str, more)]) == 0
    return pd.read_csv(output)


def test_predict_measures(trained, tmp_path):
    values, _ = timed_recording(Timing(60.0, 180.0, 100.0, 420.0), 10.0, 250.0, 4)
    write_wfdb(tmp_path / "in", "a", values, 250.0)
    write_wfdb(tmp_path / "in", "b", {lead: values[lead] for lead in ("I", "II")}, 250.0)
    table = predict(trained, [tmp_path / "in"], tmp_path / "p.csv", "--measure", "--figures", tmp_path / "pages")
    assert list(table)[-len(column_names()) - 2 : -2] == column_names()
    for name, truth in (("heart_rate_bpm", 60), ("pr_ms", 180), ("qrs_ms", 100), ("qt_ms", 420), ("qtcf_ms", 420)):
        assert table[name][0] == pytest.approx(truth, abs=15), name
    assert table["beats"][0] in (9, 10, 11)
    assert table["quality_V3"].isna().tolist() == [False, True]
    assert table.loc[0, [f"quality_{lead}" for lead in LEADS]].min() > 0.7
    assert len(list((tmp_path / "pages").glob("*.png"))) == 2


def test_predict_per_window(trained, tmp_path, monkeypatch):
    """Rows of windows equal the network on these seconds; blocks, for long recordings, give the same."""
    import torch
    from seqssm_ecg import long
    from seqssm_ecg.files import read_recording
    from seqssm_ecg.preprocess import Preprocess

    import seqssm

    values = simulate.recording(["PVC"], 34.0, 250.0, 6)
    path = write_wfdb(tmp_path, "r", values, 250.0)
    short = write_wfdb(tmp_path, "s", {lead: row[:750] for lead, row in values.items()}, 250.0)
    table = predict(trained, [path, short], tmp_path / "p.csv", "--window-s", 4, "--measure")
    assert table["start_s"].tolist() == [0, 4, 8, 12, 16, 20, 24, 28, 30, 0]
    assert table["end_s"].tolist() == [4, 8, 12, 16, 20, 24, 28, 32, 34, 3]
    assert table["id"].tolist() == ["r"] * 9 + ["s"]
    assert table["heart_rate_bpm"].notna().all()
    model = seqssm.load(trained, "cpu")
    x = torch.from_numpy(Preprocess.from_dict(model.summary["preprocess"])(read_recording(path))[0])
    with torch.no_grad():
        parts_ = torch.stack([x[:, int(100 * s) : int(100 * s) + 400] for s in table["start_s"][:9]])
        scores = (model.network(parts_) / model.network.temperature).sigmoid().numpy()
    np.testing.assert_allclose(table.loc[:8, P], scores, atol=1e-4)
    coarse = predict(trained, [path], tmp_path / "q.csv", "--window-s", 10)
    assert coarse["start_s"].tolist() == [0, 10, 20, 24]
    monkeypatch.setattr(long, "LONG_VALUES", 1000)
    for seconds, whole in ((4, table[:9]), (10, coarse)):
        blocks = predict(trained, [path], tmp_path / f"b{seconds}.csv", "--window-s", seconds)
        np.testing.assert_allclose(blocks[P], whole[P], atol=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--window-s", "0.5"], "--window-s 0.5: must be in [1, "),
        (["--window-s", "10", "--format", "challenge"], "one row per"),
    ],
)
def test_wrong_options_are_one_line(trained, made, tmp_path, capsys, more, message):
    assert main(["predict", str(trained), str(made / "M00000"), "--output", str(tmp_path / "p.csv"), *more]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
