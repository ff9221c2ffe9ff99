"""The error type of a bad file, flag or checkpoint, the exit codes, and the nearest known name for a typo."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum
from pathlib import Path


class ExitCode(IntEnum):
    """How a command ends: the code and its meaning. ``seqssm --help`` prints this table."""

    meaning: str

    OK = 0, "all records are ok"
    BUG = 1, "a bug in seqssm; the traceback is in the file that is named"
    INPUT = 2, "a bad flag, config, file or environment; no result was produced"
    PARTIAL = 3, "finished, but some records are not ok; stderr has their number (`--allow-failed` makes it 0)"
    INTERRUPTED = 130, "interrupted; can be resumed"

    def __new__(cls, code: int, meaning: str) -> ExitCode:
        member = int.__new__(cls, code)
        member._value_, member.meaning = code, meaning
        return member


class InputError(ValueError):
    """A file, option or checkpoint that cannot be used.

    Args:
        message: what is wrong and what to do, in one line.
        file: the file it is in.
        place: where in the file, in the words of its format: ``"line 7, column OT"``, ``"record 12"``.

    ``str()`` gives ``file: place: message``, one line.
    """

    def __init__(self, message: str, *, file: str | Path | None = None, place: str | None = None) -> None:
        self.message, self.file, self.place = message, None if file is None else str(file), place
        parts = [part for part in (self.file, place, message) if part]
        super().__init__(": ".join(parts))

    def __reduce__(self) -> tuple:
        """Pickles by its parts, so that a loader's worker process can raise it."""
        return _rebuild, (type(self), self.message, self.file, self.place)


class NotApplicableError(InputError):
    """A model or figure that has no meaning for these data."""


def _rebuild(kind: type[InputError], message: str, file: str | None, place: str | None) -> InputError:
    return kind(message, file=file, place=place)


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` with the likeliest of `known`, or an empty string."""
    known = list(known)
    found = get_close_matches(name, known, n=1, cutoff=0.5)
    if not found and "." in name:  # the right group, a wrong name in it
        found = get_close_matches(name, [k for k in known if k.split(".")[0] == name.split(".")[0]], n=1, cutoff=0.3)
    return f"; did you mean {found[0]}?" if found else ""
