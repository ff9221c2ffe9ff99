"""The exception for bad files, flags and checkpoints, the exit codes, and suggestions for misspelt names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import SequenceMatcher, get_close_matches
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

SHOWN = 12  # maximum number of columns in a message
SIMILAR = 4  # maximum number of names that a message suggests


class ExitCode(IntEnum):
    """Exit codes and their meanings, as printed by ``seqssm --help``."""

    meaning: str

    OK = 0, "all records are ok"
    BUG = 1, "a bug in seqssm; the message names the file with the traceback"
    INPUT = 2, "a bad flag, config, file or environment; no result was produced"
    PARTIAL = 3, "finished, but some records failed; stderr reports how many (`--allow-failed` turns it into 0)"
    INTERRUPTED = 130, "interrupted; can be resumed"

    def __new__(cls, code: int, meaning: str) -> ExitCode:
        member = int.__new__(cls, code)
        member._value_, member.meaning = code, meaning
        return member


class Status(StrEnum):
    """The outcome of a record: the values of the column ``status`` in every table of predictions.

    A domain with an additional kind of failure (e.g. a sequence that is too long) adds a member here.
    """

    meaning: str

    OK = "ok", "predicted"
    FAILED = "failed", "not predicted; the column reason says why"
    EMPTY = "empty", "the sequence has no letters"
    TOO_LONG = "too_long", "longer than the model, its attention or the window allows"
    ALL_N = "all_n", "the sequence has no A, C, G or T"
    SYMBOLIC_ALLELE = "symbolic_allele", "the ALT allele has no sequence: <DEL>, a breakend, or *"
    REFERENCE_BLOCK = "reference_block", "a block of a gVCF without a variant"
    NO_ALTERNATE = "no_alternate", "the ALT allele is missing"
    INVALID_ALLELE = "invalid_allele", "an allele is not a sequence of nucleotides, or both are equal"
    UNKNOWN_CONTIG = "unknown_contig", "no contig, or several, of that name in the reference"
    BEYOND_END = "beyond_end", "the position is outside of the contig"
    REF_MISMATCH = "ref_mismatch", "REF differs from the reference"

    def __new__(cls, value: str, meaning: str) -> Status:
        member = str.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member


class InputError(ValueError):
    """Raised for a file, option or checkpoint that cannot be used.

    Args:
        message: one-line message: the problem and how to fix it.
        file: the file concerned.
        place: location in the file, in terms of its format: ``"line 7, column OT"``, ``"record 12"``.

    ``str()`` returns ``file: place: message`` on one line.
    """

    def __init__(self, message: str, *, file: str | Path | None = None, place: str | None = None) -> None:
        self.message, self.file, self.place = message, None if file is None else str(file), place
        parts = [part for part in (self.file, place, message) if part]
        super().__init__(": ".join(parts))

    def __reduce__(self) -> tuple:
        """Pickle the parts, because loader worker processes raise it too."""
        return _rebuild, (type(self), self.message, self.file, self.place)


class NotApplicableError(InputError):
    """A model or score is undefined for the data."""


def _rebuild(kind: type[InputError], message: str, file: str | None, place: str | None) -> InputError:
    return kind(message, file=file, place=place)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` with the most similar names in `known` (several if equally similar), or ``""``."""
    known = list(dict.fromkeys(known))
    found = _similar(name, known, 0.5)
    if not found and "." in name:  # right group, wrong name
        found = _similar(name, [k for k in known if k.split(".")[0] == name.split(".")[0]], 0.3)
    if not found:
        return ""
    return f"; did you mean {', '.join(found[:-1])}{' or ' if len(found) > 1 else ''}{found[-1]}?"


def _similar(name: str, known: list[str], cutoff: float) -> list[str]:
    """Return the most similar name, with those that are as similar, in the order of `known`; case counts last."""
    same = [one for one in known if one.casefold() == name.casefold()]
    if same:
        return same
    found = get_close_matches(name, known, n=SIMILAR, cutoff=cutoff)
    ratios = {one: SequenceMatcher(None, one, name).ratio() for one in found}
    best = max(ratios.values(), default=0.0)
    return [one for one in known if ratios.get(one) == best]


@contextmanager
def flags_named(names: Mapping[str, str]) -> Iterator[None]:
    """Name options as the user has typed them, in the messages of every InputError.

    Args:
        names: what the user has typed, by the option that a command derives from it.
    """
    try:
        yield
    except InputError as error:
        message = error.message
        for derived, typed in names.items():
            message = re.sub(rf"{re.escape(derived)}(?![\w.])", typed, message)
        if message == error.message:
            raise
        raise type(error)(message, file=error.file, place=error.place) from None


def require_type(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> None:
    """Check an argument of a Python function.

    Args:
        name: the argument.
        value: its value; None is accepted.
        kinds: accepted types.
        expected: description of the accepted values, for the message.

    Raises:
        InputError: the value has another type.
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    stray = isinstance(value, bool) and bool not in kinds  # True is an int, but not a size
    if value is not None and (stray or not isinstance(value, kinds)):
        shown = f"{value!r:.60} " if isinstance(value, str | int | float) else ""
        kind = f"({type(value).__name__})" if shown else type(value).__name__
        raise InputError(f"{name}: expected {expected}, not {shown}{kind}")


def no_column(
    name: str, columns: Iterable[object], *, option: str = "", advice: str = "", file: str | Path, place: str = ""
) -> InputError:
    """Return the error for a table without a column.

    Args:
        name: the missing column, or several as they are listed in messages.
        columns: the columns of the table.
        option: option that names the column, or what the column is for; shown in parentheses.
        advice: what to do, after the columns.
        file: the table.
        place: location of the header in it.
    """
    found = [str(column) for column in columns]
    listed = ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
    hint = nearest(name, found) or f"; it has {listed or 'none'}"
    message = f"has no column {name}{f' ({option})' if option else ''}{hint}"
    if advice:
        message += f" {advice}" if message.endswith("?") else f"; {advice}"
    return InputError(message, file=file, place=place or None)


def no_such_file(path: str | Path) -> InputError:
    """Return the error for an input that does not exist."""
    return InputError("no such file or folder", file=path)


def no_such_model(path: str | Path) -> InputError:
    """Return the error for a run or checkpoint that does not exist."""
    return InputError("no such run or checkpoint; expected the folder of a run or a file *.ckpt", file=path)


def other_domain(found: str, wanted: str, file: str | Path, command: str = "") -> InputError:
    """Return the error for a checkpoint or run of another domain.

    Args:
        found: domain of the checkpoint.
        wanted: domain that the command is for.
        file: the checkpoint.
        command: name of the command, which the other domain has too; empty if it has not.
    """
    advice = f": use seqssm {found} {command}" if command else ""
    return InputError(f"belongs to the domain {found}, not {wanted}{advice}", file=file)


def unknown_output(flag: str, value: str, known: Iterable[str], more: str = "") -> InputError:
    """Return the error for a class, label or other output that the model does not have.

    Args:
        flag: the option.
        value: the name.
        known: outputs of the model.
        more: what else the option takes.
    """
    known = list(known)
    listed = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    also = f"; {more}" if more else ""
    return InputError(f"{flag} {value}: the model has {listed}{also}{nearest(value, known)}")
