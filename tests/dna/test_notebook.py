"""The notebook's cells run, one after the other, in an empty folder."""

from __future__ import annotations

import pytest


@pytest.mark.long
def test_the_notebook_runs(run_notebook, capsys):
    names, shown = run_notebook("dna")
    assert shown == [b"\x89PNG\r\n\x1a\n"] * 2
    printed = capsys.readouterr().out
    assert "bits_per_base" in printed
    assert "markov" in printed
    assert names["rows"]["status"].eq("ok").all()
    assert (names["work"] / "genome.bedgraph").read_text().startswith("track type=bedGraph")
    assert names["effects"]["llr"].corr(names["effects"]["true_llr"]) > 0.2
    assert ">design3" in (names["work"] / "designs.fa").read_text()
