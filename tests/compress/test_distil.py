"""`seqssm distill`: what it prints."""

from __future__ import annotations

import sys

import pytest
from seqssm_pathology import simulate as slides

import seqssm
from seqssm.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ["--students", "2", "--budget", "0.9", "--trainer.max_epochs", "2"]


def test_the_data_are_described_once(tmp_path, monkeypatch, capsys):
    """The line was printed again by the test of each student, above the line that names the next one."""
    monkeypatch.chdir(tmp_path)
    slides.cohort(tmp_path / "slides", cases=14, seed=8, width=6)
    data = {"manifest": "slides/manifest.csv", "features": "slides"}
    seqssm.fit("pathology", data=data, model={"d_model": 16}, trainer={"max_epochs": 1}, output="run")
    capsys.readouterr()
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    assert main(["distill", "run", "--output", "set.ckpt", "--no-control", *QUICK]) == 0
    printed = capsys.readouterr().out
    assert printed.count("features of width") == 1
    assert printed.index("features of width") < printed.index("student 1 of 2")
