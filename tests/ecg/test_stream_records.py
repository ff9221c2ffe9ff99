"""`seqssm ecg stream` on records that are corrupt, short, empty, noisy or of other leads and rates, and interrupted."""

from __future__ import annotations

import os
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
from seqssm_ecg import long, simulate
from seqssm_ecg.files import write_wfdb
from seqssm_ecg.streaming import Stream

import seqssm
from seqssm.cli.main import main


@pytest.fixture(scope="module")
def run(made, tmp_path_factory):
    """A causal run."""
    folder = tmp_path_factory.mktemp("stream") / "run"
    before = dict(os.environ)
    argv = ["ecg", "fit", "--config", "ecg_stream", "--data.manifest", str(made / "manifest.csv")]
    argv += ["--output", str(folder), "--model.d_model", "8", "--model.d_state", "4", "--data.window_s", "4"]
    assert main([*argv, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--model.threads", "1"]) == 0
    os.environ.clear()
    os.environ.update(before)
    return folder


@pytest.fixture(scope="module")
def good():
    """4.4 s of 12 leads at 250 Hz, mV by lead."""
    return simulate.recording([], 4.4, 250.0, 4)


@pytest.fixture
def stream(run, tmp_path, capsys):
    """Run the command on a record; gives (exit code, table or None, stderr)."""

    def go(path, *words, output=True):
        target = tmp_path / "out" / "s.csv"
        capsys.readouterr()
        code = main(["ecg", "stream", str(run), str(path), *(["--output", str(target)] if output else []), *words])
        printed = capsys.readouterr()
        table = pd.read_csv(target) if target.exists() else None
        left = sorted(os.listdir(target.parent)) if target.parent.exists() else []
        assert left in ([], ["s.csv"])
        return code, table, printed.err.strip()

    return go


def changed(good, change=None, rate_hz=250.0, leads=None):
    values = {lead: np.array(row) for lead, row in good.items() if leads is None or lead in leads}
    for lead in values:
        values[lead] = values[lead] if change is None else change(values[lead])
    return values, rate_hz


def truncated(folder):
    path = folder / "r.dat"
    path.write_bytes(path.read_bytes()[:-999])


def flipped(folder):
    path = folder / "r.dat"
    path.write_bytes(path.read_bytes()[:100] + bytes([path.read_bytes()[100] ^ 1]) + path.read_bytes()[101:])


def header(old, new):
    def edit(folder):
        path = folder / "r.hea"
        path.write_text(path.read_text().replace(old, new))

    return edit


@pytest.mark.parametrize(
    ("change", "damage", "words"),
    [
        (None, truncated, "r.dat: is truncated"),
        (None, flipped, "do not match the checksum"),
        (None, lambda folder: (folder / "r.dat").unlink(), "signal file r.dat is missing"),
        (None, lambda folder: (folder / "r.hea").unlink(), "r.hea"),
        (None, lambda folder: (folder / "r.hea").write_text(""), "r.hea"),
        (None, header("r 12 250", "r 12 1"), "sampling rate 1 Hz is not between"),
        (None, header("r 12 250", "r 12 nan"), "sampling rate"),
        (None, header("1000.0(0)/mV", "0/mV"), "gain"),
        (None, header(" 0 ", " 0 X"), "r.hea"),
        (lambda row: row[:240], None, "is shorter than a second (240 samples)"),
        (lambda row: row[:0], None, "has no samples"),
        (lambda row: np.full_like(row, np.nan), None, "has only missing samples"),
        (lambda row: 0 * row, None, "is implausible as an ECG: all leads flat; pass --accept-implausible"),
        (None, header("1000.0(0)", "1.0(0)"), "microvolts read as mV?"),
        (lambda row: np.random.default_rng(0).normal(0, 1, len(row)), None, "is implausible as an ECG: noise"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_streamed_is_one_line(stream, good, tmp_path, change, damage, words):
    values, rate_hz = changed(good, change)
    (tmp_path / "in").mkdir()
    if len(values["I"]):
        write_wfdb(tmp_path / "in", "r", values, rate_hz, suffix=".dat")
    else:
        write_wfdb(tmp_path / "in", "r", {lead: row[:1] for lead, row in good.items()}, rate_hz, suffix=".dat")
        header("250 1\n", "250\n")(tmp_path / "in")
        (tmp_path / "in" / "r.dat").write_bytes(b"")
    if damage is not None:
        damage(tmp_path / "in")
    code, table, printed = stream(tmp_path / "in" / "r.hea")
    assert (code, table) == (2, None)
    assert words in printed
    assert len(printed.splitlines()) == 1, printed


def test_leads_rates_and_gaps_that_can_be_streamed_are_noted(stream, good, tmp_path):
    write_wfdb(tmp_path, "whole", good, 250.0)
    code, whole, printed = stream(tmp_path / "whole.hea")
    assert (code, printed) == (0, "")
    assert whole["second"].tolist() == [1, 2, 3, 4]
    shuffled = {lead: good[lead] for lead in reversed(list(good))}
    write_wfdb(tmp_path, "shuffled", shuffled, 250.0)
    pd.testing.assert_frame_equal(stream(tmp_path / "shuffled", "--overwrite")[1], whole)
    write_wfdb(tmp_path, "slow", {lead: row[::2] for lead, row in good.items()}, 125.0)
    assert stream(tmp_path / "slow.hea", "--overwrite")[1]["second"].tolist() == [1, 2, 3, 4]
    gaps = {lead: np.where(np.arange(len(row)) // 100 == 3, np.nan, row) for lead, row in good.items()}
    write_wfdb(tmp_path, "gaps", gaps, 250.0)
    code, table, printed = stream(tmp_path / "gaps.hea", "--overwrite")
    assert code == 0
    assert np.isfinite(table.to_numpy()).all()
    assert f"{tmp_path / 'gaps.hea'}: gaps interpolated: I II" in printed
    few = {lead: good[lead] for lead in ("I", "II")}
    write_wfdb(tmp_path, "few", {**few, "RESP": good["V1"]}, 250.0)
    code, table, printed = stream(tmp_path / "few.hea", "--overwrite")
    assert (code, len(table)) == (0, 4)
    assert "unused signals: RESP" in printed
    assert "V6" in printed
    write_wfdb(tmp_path, "none", {"RESP": good["V1"]}, 250.0)
    code, table, printed = stream(tmp_path / "none.hea", "--overwrite")
    assert code == 2
    assert len(printed.splitlines()) == 1
    flat = {lead: 0 * row for lead, row in good.items()}
    write_wfdb(tmp_path, "flat", flat, 250.0)
    code, table, printed = stream(tmp_path / "flat.hea", "--overwrite", "--accept-implausible")
    assert (code, len(table)) == (0, 4)
    assert "is implausible as an ECG: all leads flat" in printed


def test_long_records_are_checked_as_short_ones(stream, good, tmp_path, monkeypatch):
    monkeypatch.setattr(long, "LONG_VALUES", 100)
    write_wfdb(tmp_path, "whole", good, 250.0)
    assert stream(tmp_path / "whole.hea")[1]["second"].tolist() == [1, 2, 3, 4]
    write_wfdb(tmp_path, "flat", {lead: 0 * row for lead, row in good.items()}, 250.0)
    code, _, printed = stream(tmp_path / "flat.hea", "--overwrite")
    assert (code, "all leads flat; pass --accept-implausible" in printed) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "{made}/manifest.csv"], "already exists; choose another --output or pass --overwrite"),
        (["--output", "{tmp}/s.parquet"], "--output must end in .csv"),
        (["--output", "{tmp}/folder.csv"], "is a folder; --output takes a file"),
        (["--output", "{tmp}/file/s.csv"], "part of the path is a file, not a folder"),
        (["--chunk-s", "0"], "--chunk-s"),
        (["--window-s", "0.5"], "--window-s"),
        (["--lead-map", "X"], "--lead-map X: expected NAME=LEAD"),
        (["--lead-map", "X=Y"], "Y"),
        (["{tmp}/r.hea"], "expected a model and a record"),
    ],
)
def test_wrong_flags_of_the_stream(run, made, good, tmp_path, capsys, words, message):
    record = write_wfdb(tmp_path, "r", good, 250.0)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("")
    words = [word.format(made=made, tmp=tmp_path) for word in words]
    capsys.readouterr()
    assert main(["ecg", "stream", str(run), str(record), *words]) == 2
    err = capsys.readouterr().err.strip()
    assert message in err
    assert len(err.splitlines()) == 1


def test_neither_the_record_nor_an_ensemble(run, good, tmp_path, capsys):
    pd.DataFrame(good).to_csv(tmp_path / "r.csv", index=False)
    before = (tmp_path / "r.csv").read_bytes()
    words = ["ecg", "stream", str(run), str(tmp_path / "r.csv"), "--array-rate-hz", "250", "--overwrite", "--output"]
    assert main([*words, str(tmp_path / "r.csv")]) == 2
    assert "is also an input; choose a different --output" in capsys.readouterr().err
    assert (tmp_path / "r.csv").read_bytes() == before
    for seed in (1, 2):
        shutil.copytree(run, tmp_path / "study" / f"seed-{seed}")
    (tmp_path / "study" / "folds.csv").write_text("")
    code = main(["ecg", "stream", str(tmp_path / "study"), *words[3:-1]])
    assert code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_ctrl_c_leaves_no_half_table(stream, good, tmp_path, monkeypatch):
    record = write_wfdb(tmp_path, "r", good, 250.0)
    assert stream(record)[0] == 0
    kept = (tmp_path / "out" / "s.csv").read_bytes()
    push, calls = Stream.push, []

    def interrupted(self, millivolts):
        calls.append(1)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return push(self, millivolts)

    monkeypatch.setattr(Stream, "push", interrupted)
    code, _, printed = stream(record, "--overwrite")
    assert (code, printed) == (130, "seqssm: interrupted")
    assert (tmp_path / "out" / "s.csv").read_bytes() == kept
    calls.clear()
    code, _, printed = stream(record, output=False)
    assert (code, printed) == (130, "seqssm: interrupted")


def test_the_rows_are_those_of_predict(run, good, tmp_path, stream):
    """The last second of a stream is the prediction of the record up to it."""
    record = write_wfdb(tmp_path, "r", {lead: row[:1000] for lead, row in good.items()}, 250.0)
    last = stream(record)[1].iloc[-1]
    predicted = seqssm.load(run, "cpu").predict(record).iloc[0]
    for name in simulate.CLASSES:
        assert last[f"p_{name}"] == pytest.approx(predicted[f"p_{name}"], abs=1e-4)
