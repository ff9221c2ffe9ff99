"""Lines about the user's data, such as what was dropped: printed, and collected for the run folder and its report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

_open: list[list[str]] = []  # one list per active `collected`


def note(line: str, file: IO[str] | None = None) -> None:
    """Print a line about the data, and add it to every active collection.

    Args:
        line: what was dropped, merged, filled or read in another way.
        file: stream; standard output by default.
    """
    for lines in _open:
        if line not in lines:
            lines.append(line)
    print(line, file=file or sys.stdout, flush=True)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Collect the lines that `note` prints in this process, each once."""
    lines: list[str] = []
    _open.append(lines)
    try:
        yield lines
    finally:
        _open.remove(lines)
