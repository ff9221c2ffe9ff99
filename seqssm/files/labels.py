"""Cells with several labels: separators, and lists and dicts in the notation of Python, JSON, NumPy or YAML.

Vectors of numbers (``[1, 0]``, ``1 0``) have no names of classes and are refused, as are nested lists. Does not import
torch.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqssm.errors import InputError
from seqssm.files.numbers import MISSING
from seqssm.files.tables import Table

_OPEN, _CLOSE = "[{(", "]})"
_KINDS = ("[]", "{}", "()")
_QUOTED = r"""(?:'[^']*'|"[^"]*")"""
_ARRAY = re.compile(rf"\[\s*{_QUOTED}(?:\s+{_QUOTED})+\s*\]")  # of NumPy: a literal of Python would join the names
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_NUMBERS = re.compile(rf"[\[(]?\s*{_NUMBER}(?:\s+{_NUMBER})+\s*[\])]?")
_ONE = re.compile(rf"{_NUMBER}|true|false", re.IGNORECASE)
_SCALAR = re.compile(rf"\b(?:np|numpy)\.\w+\(({_QUOTED}|{_NUMBER}|True|False)\)")  # np.str_('a')
_CALL = re.compile(r"[A-Za-z_][\w.]*\(\s*(?=[\[{(])")  # frozenset({'a'}), array(['a'], dtype=object)
_REST = re.compile(r"\s*(?:,\s*\w+\s*=.*)?\)", re.DOTALL)  # of a call, after the list
_EMPTY = re.compile(r"(?:frozenset|set|list|tuple|dict)\(\)")
_BOUND = re.compile(r"[+-]?(?:\.?\d.*|inf(?:inity)?|∞)", re.IGNORECASE)  # of an interval
MARKS = r"[,;|]"
"""Separators of labels, as a regular expression."""
SHOWN = 40  # letters of a cell in a message


def parse_notation(text: str) -> list[Any] | dict[Any, Any] | None:
    """Parse a cell that is a list, tuple, set or dict; None for other text.

    Args:
        text: the cell, without surrounding blanks.

    Returns:
        The items of ``['a', 'b']``, ``("a", "b")``, ``["a", null]`` or NumPy's ``['a' 'b']`` and ``[1 0]``, or the dict
        of ``{"a": true}`` or ``{a: 1, b: 0}``. Of ``frozenset({'a'})``, ``array(['a'], dtype='<U4')`` and
        ``[np.str_('a')]``, as Python and its packages show them, the items inside.
    """
    text = _SCALAR.sub(r"\1", text)
    if _EMPTY.fullmatch(text):
        return []
    call = _CALL.match(text)
    if call:
        ends = [mark.end() for mark in re.finditer(r"[\]})]", text) if _REST.fullmatch(text, mark.end())]
        inner = (parse_notation(text[call.end() : end]) for end in ends)
        return next((one for one in inner if one is not None), None)
    if text[:1] not in _OPEN or text[-1:] not in _CLOSE or not text:
        return None
    if _ARRAY.fullmatch(text):
        return [one[1:-1] for one in re.findall(_QUOTED, text)]
    if _NUMBERS.fullmatch(text):
        return [float(one) for one in re.findall(_NUMBER, text)]
    for read in (ast.literal_eval, json.loads):  # JSON has true, false and null
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            made = read(text)
            if isinstance(made, dict):
                return made
            return list(made) if isinstance(made, list | tuple | set) else None
    pairs = [part.partition(":") for part in text[1:-1].split(",")]
    if text[0] == "{" and all(mark for _, mark, _ in pairs):
        return {_unquoted(name): _value(value.strip()) for name, _, value in pairs}
    return None


def split_names(text: str, marks: str = MARKS) -> list[str]:
    """Split a cell at separators outside brackets: ``AF (new, paroxysmal); LBBB`` has two names.

    Brackets around the whole cell are those of a list: ``[a, b]`` has two names, and so has ``(a, b)``.

    Args:
        text: the cell, without surrounding blanks.
        marks: regular expression of the separators.
    """
    pairs = _pairs(text)
    if pairs.get(0) == len(text) - 1 and text[0] + text[-1] in _KINDS:
        parts = _split_outside(text[1:-1], marks)
        if text[0] != "(" or (len(parts) > 1 and len(_split_outside(text[1:-1], ",")) > 1):
            return [_unquoted(part) for part in parts]
    return [_unquoted(part) for part in _split_outside(text, marks)]


def _split_outside(text: str, marks: str) -> list[str]:
    inside = bytearray(len(text))
    for first, last in sorted(_pairs(text).items()):
        if not inside[first]:
            inside[first:last] = bytes([1]) * (last - first)
    parts, start = [], 0
    for mark in re.finditer(marks, text):
        if not inside[mark.start()]:
            parts.append(text[start : mark.start()])
            start = mark.end()
    return [*parts, text[start:]]


def _pairs(text: str) -> dict[int, int]:
    """Places of the opening brackets and of their closing ones, also of another kind: ``(0, 5]`` is an interval."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for place, letter in enumerate(text):
        if letter in _OPEN:
            opened.append(place)
        elif letter in _CLOSE and opened:
            found[opened.pop()] = place
    return found


def _value(text: str) -> Any:
    """Return a number or a flag of a dict without quotes, else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    with contextlib.suppress(ValueError):
        return float(text)
    return text


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def read_label_cells(
    table: Table, column: str, marks: str = MARKS, whole: Collection[str] = ()
) -> tuple[list[list[str]], list[str]]:
    """Split the cells of a column with several labels per row.

    Lists have one label per item. Of dicts of 0 and 1, the keys with 1 are labels; of dicts with other values
    (likelihoods as in PTB-XL), every key is.

    Args:
        table: table with text columns.
        column: column of the labels.
        marks: regular expression of the separators outside lists.
        whole: known labels, which are not split.

    Returns:
        (The labels of each row, without duplicates, in the order of the cell; remarks for the user).

    Raises:
        InputError: cells are vectors of numbers, or nested.
    """
    texts = [str(cell).strip() for cell in table.frame[column]]
    made = {text: None if text in whole else parse_notation(text) for text in set(texts)}
    for row, text in enumerate(texts):
        _refuse_nested(made[text], text, table.path, table.place(row, column))
    values = [value for one in made.values() if isinstance(one, dict) for value in one.values()]
    flags = bool(values) and all(value in (0, 1) for value in values) and 1 in values
    notes = []
    if values:
        notes.append(
            "labels are dicts of 0 and 1: names with 0 are absent"
            if flags
            else "labels are dicts: every name counts, whatever its value (a likelihood)"
        )
    items = {text: _items(text, one, marks, flags, whole) for text, one in made.items()}
    vectors = {text: items[text] for text in items if not isinstance(made[text], dict)}
    _refuse_vectors(texts, vectors, table.path, lambda row: table.place(row, column))
    return [list(dict.fromkeys(filter(None, items[text]))) for text in texts], notes


def _items(text: str, made: Any, marks: str, flags: bool, whole: Collection[str]) -> list[str]:
    if isinstance(made, dict):
        return [str(name).strip() for name, value in made.items() if value or not flags]
    if isinstance(made, list):
        return [str(part).strip() for part in made if part is not None]
    if text in whole:
        return [text]
    return split_names(text, marks)


def _refuse_nested(made: Any, text: str, path: Path, place: str) -> None:
    if isinstance(made, list) and any(isinstance(part, list | dict | tuple | set) for part in made):
        message = f"{_shown(text)} is nested; expected one list of names of classes"
        raise InputError(message, file=path, place=place)
    if isinstance(made, list) and ... in made:
        raise InputError(f"{_shown(text)} is abbreviated; expected all names of classes", file=path, place=place)


def _refuse_vectors(
    texts: Sequence[str], items: Mapping[str, list[str]], path: Path, place: Callable[[int], str]
) -> None:
    """Raise InputError if all cells are vectors of flags or probabilities, one number per class without names."""
    found = {}
    for text, own in items.items():
        parts = re.findall(_NUMBER, text) if _NUMBERS.fullmatch(text) else [part for part in own if part]
        if parts and text.lower() not in MISSING:
            found[text] = parts
    sizes = {len(parts) for parts in found.values()}
    if len(sizes) != 1 or sizes <= {1}:
        return
    if all(_ONE.fullmatch(part) and 0 <= _number(part) <= 1 for parts in found.values() for part in parts):
        row = next(row for row, text in enumerate(texts) if text in found)
        message = (
            f"{_shown(texts[row])} is a vector of {sizes.pop()} numbers without names of classes; expected names, or "
            "one 0/1 column per class"
        )
        raise InputError(message, file=path, place=place(row))


def _number(text: str) -> float:
    return float(text.lower() == "true") if text.lower() in ("true", "false") else float(text)


def require_one_class(cells: Sequence[str], path: Path, place: Callable[[int], str], advice: str) -> None:
    """Check that cells with one class each are not lists, dicts or vectors, which would be a class per combination.

    Args:
        cells: the cells.
        path: path of the file.
        place: location of a cell, by its index, for messages.
        advice: how several labels per record are read, for the message.

    Raises:
        InputError: a cell is a list or a dict, or all cells are vectors of numbers.
    """
    texts = [str(cell).strip() for cell in cells]
    distinct = dict.fromkeys(texts)
    listed = next((text for text in distinct if parse_notation(text) is not None or _is_bare_list(text)), None)
    if listed is not None:
        message = f"{_shown(listed)} is a list of labels; expected the name of one class. {advice}"
        raise InputError(message, file=path, place=place(texts.index(listed)))
    _refuse_vectors(texts, {text: re.split(MARKS, text) for text in distinct}, path, place)


def _is_bare_list(text: str) -> bool:
    """Whether a cell is a list of names without quotes, ``[a, b]``; an interval such as ``(0, 5]`` is none."""
    if text[:1] + text[-1:] not in _KINDS or _pairs(text).get(0) != len(text) - 1:
        return False
    names = [name.strip() for name in split_names(text, "," if text[0] == "(" else MARKS)]
    return len(names) > 1 and all(names) and not all(_BOUND.fullmatch(name) for name in names)


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
