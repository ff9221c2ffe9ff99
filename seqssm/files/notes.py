"""Lines about the user's data, such as what was dropped: printed, and collected for the run folder and its report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

_open: list[list[str]] = []  # one list per active `collected`
_told: set[str] | None = None  # lines printed within `once`
_silent = False


def silence(silent: bool) -> None:
    """Print no lines from now on in this process, or print them again.

    The processes of a training read the same data, so the first one prints the lines of all.
    """
    global _silent
    _silent = silent


def note(line: str, file: IO[str] | None = None) -> None:
    """Print a line about the data, within `once` only the first time, and add it to every active collection.

    Args:
        line: what was dropped, merged, filled or read in another way.
        file: stream; standard output by default.
    """
    for lines in _open:
        if line not in lines:
            lines.append(line)
    if _told is not None:
        if line in _told:
            return
        _told.add(line)
    if not _silent:
        print(line, file=file or sys.stdout, flush=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Print no lines: what is read here will be read again."""
    before = _silent
    silence(True)
    try:
        yield
    finally:
        silence(before)


@contextmanager
def once() -> Iterator[None]:
    """Print each line once: a prediction reads its inputs twice, and so does every member of an ensemble."""
    global _told
    outer = _told
    _told = set() if outer is None else outer
    try:
        yield
    finally:
        _told = outer


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the lines that `note` prints in this process, each once."""
    lines: list[str] = []
    _open.append(lines)
    try:
        yield lines
    finally:
        _open.remove(lines)
