"""Simulated recordings, and a small model trained on them, shared by the tests of the ECG domain."""

from __future__ import annotations

import os

import pytest
from seqssm_ecg import simulate
from seqssm_ecg.files import write_wfdb

from .manifests import COUNT

SMALL = ["--model.d_model", "16", "--model.depth", "1", "--model.d_state", "4", "--data.window_s", "4"]
SMALL += ["--trainer.accelerator", "cpu", "--model.threads", "1", "--trainer.max_epochs", "2"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Applies to every test of this folder."""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in ("PL_GLOBAL_SEED", "SEQSSM_DATA"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)  # removes variables that a command sets


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder of 60 simulated records of 5 s at 250 Hz, with `manifest.csv`; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    simulate.folder(folder, 60, seed=3, seconds=5.0)
    return folder


@pytest.fixture(scope="session")
def trained(made, tmp_path_factory):
    """A run of the preset for own files on the simulated records; not to be changed."""
    from seqssm.cli.main import main

    run = tmp_path_factory.mktemp("runs") / "own"
    before = dict(os.environ)
    argv = ["ecg", "fit", "--config", "ecg_small", "--data.manifest", str(made / "manifest.csv"), "--output", str(run)]
    assert main([*argv, *SMALL]) == 0
    os.environ.clear()
    os.environ.update(before)
    return run


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """24 records of 2 s at 100 Hz."""
    folder = tmp_path_factory.mktemp("records")
    for number in range(COUNT):
        write_wfdb(folder, f"s{number:02d}", simulate.recording([], 2.0, 100.0, number), 100.0)
    return folder
