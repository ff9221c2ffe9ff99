"""The commands printed after a fit of own recordings, run as printed."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from seqssm_ecg import simulate
from seqssm_ecg.files import write_wfdb

from seqssm.cli.main import main
from tests.printed import commands, run_printed

SMALL = ["--model.d_model", "8", "--model.depth", "1", "--model.d_state", "4", "--model.threads", "1"]
SMALL += ["--data.window_s", "1", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
COUNT = 24


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def manifest(paths, **columns):
    """A manifest beside the records, with a split whose parts have both classes."""
    splits = (["train"] * 4 + ["val"] * 4 + ["test"] * 4) * 2
    table = pd.DataFrame({"path": paths, "labels": ["NSR", "AF"] * (COUNT // 2), "split": splits, **columns})
    table.to_csv("manifest.csv", index=False)


def fit(*words):
    argv = ["ecg", "fit", "--config", "ecg_small", "--data.manifest", "manifest.csv", "--output", "run", *SMALL]
    assert main([*argv, "--early_stopping.monitor", "val_loss", *words]) == 0


def samples(number, rate=100.0):
    return simulate.recording(["AF"] if number % 2 else [], 2.0, rate, number)


def test_a_csv_recording_is_named_as_a_folder_does_not_show_it(capsys):
    """The folder was printed, in which predict found no recordings."""
    for n in range(COUNT):
        frame = pd.DataFrame(samples(n)).rename(columns={"I": "first", "II": "second"})
        frame.to_csv(f"r{n}.csv", index=False)
    manifest([f"r{n}.csv" for n in range(COUNT)])
    fit("--data.array_rate_hz", "100", "--data.lead_map", "{first: I, second: II}")
    assert run_printed(capsys.readouterr().out)["id"].tolist() == ["r8"], "the first test record"


def test_recordings_of_several_rates_need_an_option_each(capsys):
    """No rate was printed, without which every record failed."""
    rates = [100.0, 200.0] * (COUNT // 2)
    for n, rate in enumerate(rates):
        np.save(f"r{n}.npy", np.stack(list(samples(n, rate).values())))
    manifest([f"r{n}.npy" for n in range(COUNT)], rate_hz=rates)
    fit()
    assert run_printed(capsys.readouterr().out)["seconds"].tolist() == [2.0]


def test_options_that_accept_recordings_are_printed(capsys, tmp_path):
    """Records that a fit had accepted were refused by the command printed after it."""
    for n in range(COUNT):
        flat = {lead: 0 * values for lead, values in samples(n).items()} if n == 8 else samples(n)
        write_wfdb(tmp_path, f"r{n}", flat, 100.0)
    header = tmp_path / "r9.hea"
    header.write_text(re.sub(r" -?\d+ 0 I$", " 1 0 I", header.read_text(), flags=re.MULTILINE))
    manifest([f"r{n}.hea" for n in range(COUNT)])
    fit("--data.checksums", "ignore", "--data.wfdb_defaults", "true", "--data.implausible", "keep")
    printed = capsys.readouterr().out
    assert commands(printed)[1][-5:-2] == ["--ignore-checksums", "--wfdb-defaults", "--accept-implausible"]
    assert len(run_printed(printed)) == COUNT
