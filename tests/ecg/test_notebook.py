"""The notebook's cells run, one after the other, in an empty folder."""

from __future__ import annotations


def test_the_notebook_runs(run_notebook, capsys):
    names, shown = run_notebook("ecg")
    pages = 3 if "real" in names else 2  # the third is of a real recording, where there is one
    assert shown == [b"\x89PNG\r\n\x1a\n"] * pages
    assert "auroc" in capsys.readouterr().out
    assert names["challenge_score"](names["weights"], names["truth"], names["truth"], 2) == 1
