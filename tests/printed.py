"""The commands printed after a fit, run as printed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd

from seqssm.cli.main import main


def commands(printed: str) -> list[list[str]]:
    """Return the commands of the last ``next:`` in a printed text, as lists of words."""
    lines = printed[printed.rindex("next: ") :].removeprefix("next: ").splitlines()
    return [shlex.split(line)[1:] for line in lines]


def run_printed(printed: str, file: Path | str = "") -> pd.DataFrame:
    """Run the commands printed after a fit in the current folder; each must succeed.

    Args:
        printed: output of the fit.
        file: the file for the word FILE, which stands for data in memory.

    Returns:
        The table of predictions.
    """
    for words in commands(printed):
        assert main([str(file) if word == "FILE" else word for word in words]) == 0, words
    found = pd.read_csv("predictions.csv")
    Path("predictions.csv").unlink()
    return found
