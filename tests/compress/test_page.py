"""The commands of docs/compress.md, as written, on simulated series."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from seqssm_forecasting import simulate

from seqssm.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "compress.md"


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    simulate.series(240, seed=1).to_csv("series.csv", index=False)
    commands = [
        line
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
        if not language
    ]
    assert len(commands) == 5
    printed = {}
    for command in commands:
        name, *argv = shlex.split(command)
        assert name == "seqssm"
        assert main(argv) == 0, capsys.readouterr().err
        printed[argv[0]] = capsys.readouterr().out
    lines = {re.split(r"\s{2,}", line)[0]: line for line in printed["compress"].splitlines()}
    ratio = float(re.search(r"([\d.]+)x smaller", lines["quantised projections"])[1])
    assert ratio > 3.8
    assert float(re.search(r"([\d.]+)x smaller", lines["file"])[1]) > 2
    before, after = (float(value) for value in lines["mse"].split()[1:3])
    assert abs(after - before) < 0.02 * before
    assert "w8a8" in printed["info"]
    assert (tmp_path / "forecast.csv").stat().st_size > 100
