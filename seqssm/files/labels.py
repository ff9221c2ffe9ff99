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
from itertools import islice
from pathlib import Path
from typing import Any

from seqssm.errors import InputError
from seqssm.files.numbers import MISSING
from seqssm.files.splits import FLAGS, TRUE
from seqssm.files.tables import Table

_OPEN, _CLOSE = "[{(", "]})"
_KINDS = ("[]", "{}", "()")
_QUOTED = r"""(?:'[^']*'|"[^"]*")"""
_ITEM = rf"(?:{_QUOTED}|nan|None)"
_ARRAY = re.compile(
    rf"(?=[^'\"]*['\"])[\[{{(]\s*{_ITEM}(?:\s+{_ITEM})+\s*[\]}})]"
)  # of NumPy: a literal of Python would join the names
_NUMBER = r"[+-]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d++)?+"  # possessive: linear in cells of digits
_FLAG = rf"(?:{_NUMBER}|true|false|nan)"
_NUMBERS = re.compile(rf"[\[(]?\s*{_FLAG}(?:\s+{_FLAG})+\s*[\])]?", re.IGNORECASE)
_ONE = re.compile(_FLAG, re.IGNORECASE)
_SCALAR = re.compile(rf"\b(?:np|numpy)\.\w+\(({_QUOTED}|{_NUMBER}|True|False)\)")  # np.str_('a')
_NESTED = re.compile(rf"[\[(]\s*+[\[(](?:[\[\](),\s]|{_FLAG})*+", re.IGNORECASE)  # [[1. 0.] [0. 1.]] of NumPy
_BYTES = re.compile(rf"(?:^|[\[{{(,;|\s])[bB]{_QUOTED}")
_PRINTED = re.compile(
    r"<(?:class|function|generator|tf\.Tensor|[\w.]+ object)\b.*>|(?:(?:np|numpy)\.\w+|tensor)\(.*\)|.*\bdtype: \w+\)?"
    r"|<[\w.]+: [^<>]+>|array\([\d.]*\)|.*\bCategories \(\d+, \w+\):.*",
    re.DOTALL,
)
_DOTS = re.compile(r"\[.*[\s,]\.\.\.[\s,].*\]", re.DOTALL)  # ['a' ... 'b'] of NumPy
_PAIR = re.compile(r"[^\W\d][\w -]*[:=]\s*(?:[01]|true|false)", re.IGNORECASE)  # AF: 1
_CALL = re.compile(r"[A-Za-z_][\w.]*\(\s*(?=[\[{(])")  # frozenset({'a'}), array(['a'], dtype=object)
_REST = re.compile(r"\s*(?:,\s*\w+\s*=.*)?\)", re.DOTALL)  # of a call, after the list
_EMPTY = re.compile(r"(?:frozenset|set|list|tuple|dict)\(\)")
_BOUND = re.compile(r"[+-]?(?:\.?\d.*|inf(?:inity)?|∞)", re.IGNORECASE)  # of an interval
MARKS = r"[,;|\n，；、]"
"""Separators of labels, as a regular expression: also line breaks of a cell, and those of Chinese and Japanese text."""
_INVISIBLE = re.compile("[\ufeff\u200b-\u200d\u2060]")  # byte order mark, zero-width characters
SHOWN = 40  # letters of a cell in a message
MAX_ENDS = 8  # brackets tried as the end of the list in a call


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
        ends = (mark.end() for mark in re.finditer(r"[\]})]", text) if _REST.fullmatch(text, mark.end()))
        inner = (parse_notation(text[call.end() : end]) for end in islice(ends, MAX_ENDS))
        return next((one for one in inner if one is not None), None)
    if text[:1] not in _OPEN or text[-1:] not in _CLOSE or not text:
        return None
    if _ARRAY.fullmatch(text):
        return [one[1:-1] for one in re.findall(_QUOTED, text)]
    if _NUMBERS.fullmatch(text):
        return [_value(one, whole=True) for one in _ONE.findall(text)]
    for read in (ast.literal_eval, json.loads):  # JSON has true, false and null
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            made = read(text)
            if isinstance(made, dict):
                return made
            return list(made) if isinstance(made, list | tuple | set) else None
    pairs = [part.partition(":") for part in text[1:-1].split(",")]
    if text[0] == "{" and all(mark for _, mark, _ in pairs):
        return {_unquoted(name): _value(_unquoted(value), whole=True) for name, _, value in pairs}
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


def _value(text: str, whole: bool = False) -> Any:
    """Return a number or a flag without quotes, else the text; `whole` keeps integers."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if whole and re.fullmatch(r"[+-]?\d{1,4000}", text):  # Python refuses longer ones
        return int(text)
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

    Lists have one label per item. Of dicts of 0 and 1, the keys with 1 are labels; of dicts of likelihoods in percent
    (PTB-XL), every key is. Keys with missing values are not.

    Args:
        table: table with text columns.
        column: column of the labels.
        marks: regular expression of the separators outside lists.
        whole: known labels, which are not split.

    Returns:
        (The labels of each row, without duplicates, in the order of the cell; remarks for the user).

    Raises:
        InputError: cells are vectors of numbers, nested, not closed, or printed objects, or dicts with unusual values.
    """
    texts = [_INVISIBLE.sub("", str(cell)).strip() for cell in table.frame[column]]
    made = {text: None if text in whole else parse_notation(text) for text in set(texts)}
    damaged = {text: damage for text in made if text not in whole and (damage := _damage(made[text], text))}
    for row, text in enumerate(texts):
        if text in damaged:
            raise InputError(damaged[text], file=table.path, place=table.place(row, column))
    dicts = {text: one for text, one in made.items() if isinstance(one, dict)}
    names, notes = _read_dicts(texts, dicts, table.path, lambda row: table.place(row, column))
    items = {text: names[text] if text in names else _items(text, one, marks, whole) for text, one in made.items()}
    vectors = {text: items[text] for text in items if not isinstance(made[text], dict)}
    _refuse_vectors(texts, vectors, table.path, lambda row: table.place(row, column))
    for text in items:
        if text not in whole and text[:1] + text[-1:] in _KINDS:
            items[text] = [name for name in items[text] if name not in ("nan", "NaN", "None", "null", "<NA>")]
    return [list(dict.fromkeys(filter(None, items[text]))) for text in texts], notes


def _read_dicts(
    texts: Sequence[str], dicts: Mapping[str, dict[Any, Any]], path: Path, place: Callable[[int], str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Labels of the dicts of a column, and a note: names with 1 of flags, every name of likelihoods.

    Likelihoods are numbers from 0 to 100, more of them above 1 than equal to 1 and one at least 10, or zeros written
    as 0.0. Other columns are flags: a value that is neither 0 nor 1 is an error. Names with missing values are absent.
    """
    parts = [value for one in dicts.values() for value in one.values()]
    if not parts:
        return {text: [] for text in dicts}, []
    every = "labels are dicts: every name counts, whatever its value (a likelihood)"
    if all(isinstance(value, dict | list | tuple) for value in parts):
        return {text: [str(name).strip() for name in one] for text, one in dicts.items()}, [every]
    levels = {text: {name: _level(value) for name, value in one.items()} for text, one in dicts.items()}
    found = [level for text in texts for level in levels.get(text, {}).values() if level is not None]
    percent = [level for level in found if 1 < level <= 100]
    likely = len(percent) > sum(level == 1 for level in found) and max(percent) >= 10
    zeros = bool(found) and not any(found) and any(isinstance(value, float) and value == 0 for value in parts)
    for row, text in enumerate(texts):
        wrong = [
            name
            for name, level in levels.get(text, {}).items()
            if level is not None and not (0 <= level <= 100 if likely else level in (0, 1))
        ]
        if wrong:
            expected = "a likelihood from 0 to 100" if likely else "0 or 1 in every row, or likelihoods in percent"
            message = f"{_shown(text)} has the value {dicts[text][wrong[0]]!r} for {wrong[0]!r}; expected {expected}"
            raise InputError(message, file=path, place=place(row))
    counts = likely or zeros
    names = {
        text: [str(name).strip() for name, level in one.items() if level is not None and (level or counts)]
        for text, one in levels.items()
    }
    return names, [every if counts else "labels are dicts of 0 and 1: names with 0 are absent"]


def _level(value: Any) -> float | None:
    """Number or flag of a name in a dict; None where it is missing, NaN for other text."""
    word = str(value).strip().lower()
    if word in MISSING:
        return None
    if word in FLAGS:
        return float(word in TRUE)
    with contextlib.suppress(ValueError):
        return float(word)
    return float("nan")


def _items(text: str, made: Any, marks: str, whole: Collection[str]) -> list[str]:
    if isinstance(made, list):
        return [str(part).strip() for part in made if part is not None]
    if text in whole:
        return [text]
    return split_names(text, marks)


def _damage(made: Any, text: str) -> str | None:
    """What is wrong with a cell that is nested, abbreviated, not closed, or the text of an object without names."""
    message = None
    if isinstance(made, list) and any(isinstance(part, list | dict | tuple | set) for part in made):
        message = "is nested; expected one list of names of classes"
    elif (isinstance(made, list) and ... in made) or _DOTS.fullmatch(text):
        message = "is abbreviated; expected all names of classes"
    elif _BYTES.search(text):
        message = "is a Python bytes object; decode the column before you write it (.str.decode('utf-8'))"
    elif made is not None:
        return None
    elif _NESTED.fullmatch(text) and _pairs(text).get(0) == len(text) - 1:
        message = "is nested; expected one list of names of classes"
    elif _PRINTED.fullmatch(text):
        message = "is the text of a Python object; expected names of classes, as in AF;NORM"
    elif len(parts := re.split(MARKS, text)) > 1 and all(_PAIR.fullmatch(part.strip()) for part in parts):
        message = "is a list of flags without braces; expected the names that are present, or {AF: 1, SR: 0}"
    elif _is_open(text):
        message = "is a list that is not closed, probably truncated; complete it, or remove the bracket"
    return message and f"{_shown(text)} {message}"


def _is_open(text: str) -> bool:
    """Whether a bracket around the whole cell lacks its other end: ``['a', 'b'``, ``[a, b``, ``a, b]``."""
    pairs = _pairs(text)
    if _CALL.match(text) and text.index("(") not in pairs:
        return True
    if text[:1] in _OPEN and text:
        quoted = text[1:].lstrip()[:1] in ("'", '"')
        return 0 not in pairs or (quoted and text[0] + text[pairs[0]] not in _KINDS)
    return text[-1:] in ("]", "}") and len(text) - 1 not in pairs.values()


def _refuse_vectors(
    texts: Sequence[str], items: Mapping[str, list[str]], path: Path, place: Callable[[int], str]
) -> None:
    """Raise InputError for vectors of flags or probabilities, one number per class without names.

    A cell is one by itself if its numbers have fractions or repeat, or beside cells with names. Integers that differ,
    ``[1, 0]``, may be the names of classes, except where all cells are 0 and 1 and of one length.
    """
    found, named = {}, False
    for text, own in items.items():
        vector = _NUMBERS.fullmatch(text) is not None
        parts = _ONE.findall(text) if vector else [part for part in own if part]
        if text.lower() in MISSING or not parts:
            continue
        named = named or not all(_ONE.fullmatch(part) for part in parts)
        found[text] = (parts, vector or parse_notation(text) is not None)
    within = {text for text, (parts, _) in found.items() if all(_is_fraction(part) for part in parts)}
    sizes = {len(parts) for parts, _ in found.values()}
    every = len(sizes) == 1 and sizes != {1} and within == set(found)
    for row, text in enumerate(texts):
        if text not in within or len(found[text][0]) < 2:
            continue
        parts, listed = found[text]
        alone = any(not part.isdecimal() for part in parts) or len(set(parts)) < len(parts)
        if every or (listed and (named or alone)):
            message = (
                f"{_shown(text)} is a vector of {len(parts)} numbers without names of classes; expected names, or "
                "one 0/1 column per class"
            )
            raise InputError(message, file=path, place=place(row))


def _is_fraction(text: str) -> bool:
    """Whether the text is a flag or a number from 0 to 1, or NaN."""
    if not _ONE.fullmatch(text):
        return False
    return text.lower() in ("true", "false", "nan") or 0 <= float(text) <= 1


def require_one_class(cells: Sequence[str], path: Path, place: Callable[[int], str], advice: str) -> None:
    """Check that cells with one class each are not lists, dicts, vectors or printed objects: a class per combination.

    Args:
        cells: the cells.
        path: path of the file.
        place: location of a cell, by its index, for messages.
        advice: how several labels per record are read, for the message.

    Raises:
        InputError: a cell is a list or a dict, not closed, the text of an object, or a vector of numbers.
    """
    texts = [str(cell).strip() for cell in cells]
    distinct = {text: parse_notation(text) for text in dict.fromkeys(texts)}
    for text, made in distinct.items():
        if damage := _damage(made, text):
            raise InputError(damage, file=path, place=place(texts.index(text)))
    listed = next((text for text, made in distinct.items() if made is not None or _is_bare_list(text)), None)
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
