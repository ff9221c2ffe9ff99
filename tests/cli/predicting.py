"""Shared by the tests of `predict`: the command, its table and its partial results."""

from __future__ import annotations

import csv
from pathlib import Path

from seqssm.cli.main import main

MIXED = {
    2: "marked bad 0 0",
    3: "words unreadable 0 0",
    5: "no refused 0 0",
    6: "late unusable 0 0",
    8: "bug bug 0 0",
    9: "bug2 prepare-bug 0 0",
}
"""Records of the toy domain that fail in different ways, by index."""


def predict(*argv) -> int:
    return main(["predict", *map(str, argv)])


def rows(path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def parts(output: Path) -> Path:
    return output.with_name(f".{output.name}.parts")
