"""The notebook's cells run, one after the other, in an empty folder."""

from __future__ import annotations

import pytest


@pytest.mark.long
def test_the_notebook_runs(run_notebook, capsys):
    names, shown = run_notebook("pathology")
    assert shown == [b"\x89PNG\r\n\x1a\n"] * 4
    printed = capsys.readouterr().out
    assert "difference = model - srmamba" in printed
    assert "c_index" in printed
    assert sorted(set(names["table"]["model"])) == ["abmil", "logistic", "srmamba"]
