"""Cells with several labels: separators, and lists and dicts in the notation of Python, JSON, NumPy or YAML.

Vectors of numbers (``[1, 0]``, ``1 0``) have no names of classes and are refused, as are nested lists. Does not import
torch.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqssm.errors import InputError
from seqssm.files.cells import (
    CALL,
    FLAG,
    KINDS,
    MARKS,
    NUMBERS,
    ONE,
    OPEN,
    QUOTED,
    brackets,
    joins_strings,
    parse_notation,
    plain,
    split_names,
    split_outside,
)
from seqssm.files.numbers import MISSING
from seqssm.files.splits import FLAGS, TRUE
from seqssm.files.tables import Table

_NESTED = re.compile(rf"[\[(]\s*+[\[(](?:[\[\](),\s]|{FLAG})*+", re.IGNORECASE)  # [[1. 0.] [0. 1.]] of NumPy
_BYTES = re.compile(rf"(?:^|[\[{{(,;|\s])[bB]{QUOTED}")
_PRINTED = re.compile(
    r"<(?:class|function|generator|tf\.Tensor|[\w.]+ object)\b.*>|(?:(?:np|numpy)\.\w+|tensor)\(.*\)|.*\bdtype: \w+\)?"
    r"|<[\w.]+: [^<>]+>|array\([\d.]*\)|.*\bCategories \(\d+, \w+\):.*",
    re.DOTALL,
)
_DOTS = re.compile(r"\[.*[\s,]\.\.\.[\s,].*\]", re.DOTALL)  # ['a' ... 'b'] of NumPy
_PAIR = re.compile(r"['\"]?[^\W\d][\w -]*+['\"]?\s*+(?:[:=]|=>)\s*+(?:[01]|true|false)", re.IGNORECASE)  # AF: 1
_GROUPS = re.compile(r"(?:\[[^\[\]]*+\][,;|\s]*+){2,}+")  # [a], [b]
_GROUP = r"(?:\{[^][{}()]*+\}|\([^][{}()]*+\))\s*+"
_OTHERS = re.compile(rf"(?:{_GROUP}[,;|]\s*+)++{_GROUP}")  # {a},{b} and (a), (b)
_APOSTROPHE = re.compile(r"['’‘][a-z]{1,2}[\s-]\s*\w[^'’‘]*")  # 't Hooft
_OBJECT = re.compile(
    r"""[A-Za-z_][\w.]*\(\s*(?:['"]|[A-Za-z_]\w*\s*=)|(?:Wrapped|Mutable)?(?:Array(?:Buffer|Seq)?|List|Set|Seq)\(.*\)"""
)  # c('a'), dict(a=1), List(a, b)
_WRAPPED = re.compile(r"""(?:[A-Za-z_][\w.]*\(|[\[{(])++\s*+['"]""")  # ['a'] in a list
_PREFIXED = re.compile(rf"[uUrRfF]{{1,2}}{QUOTED}")
_QUOTES, _CLOSING = "'\"`“”„‟«»‘‚‛", "'\"`“”„‟«»’‘‛"
_BOUND = re.compile(r"[+-]?(?:\.?\d.*|inf(?:inity)?|∞)", re.IGNORECASE)  # of an interval
NESTED = "is nested; expected one list of names of classes"
_LOST = MISSING - {"", "-", "--", "---", "none"}  # a dash or "none" can be a label
SHOWN = 40  # letters of a cell in a message


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
    texts = [text if (text := str(cell).strip()) in whole else plain(text) for cell in table.frame[column]]
    whole = {*whole, *_intervals(set(texts))}
    made = {text: None if text in whole else parse_notation(text) for text in set(texts)}
    checked = [text for text in made if text not in whole]
    damaged = {text: damage for text in checked if (damage := _damage(made[text], text, split_names(text, marks)))}
    for row, text in enumerate(texts):
        if text in damaged:
            raise InputError(damaged[text], file=table.path, place=table.place(row, column))
    dicts = {text: one for text, one in made.items() if isinstance(one, dict)}
    names, notes = _read_dicts(texts, dicts, table.path, lambda row: table.place(row, column))
    items = {text: names[text] if text in names else _items(text, one, marks, whole) for text, one in made.items()}
    vectors = {text: items[text] for text in items if not isinstance(made[text], dict)}
    _refuse_vectors(texts, vectors, table.path, lambda row: table.place(row, column))
    beside = set()
    for text in items:
        kept = items[text] if text in whole else _without_missing(items[text], text[:1] + text[-1:] in KINDS, whole)
        beside |= {text} if any(kept) and kept != items[text] else set()
        items[text] = kept
    if beside:
        row = next(row for row, text in enumerate(texts) if text in beside)
        count = sum(text in beside for text in texts)
        what = f"missing labels beside others are left out, in {count} cell{'s' if count > 1 else ''}"
        notes.append(f"{what} (first: {table.place(row, column)}, {_shown(texts[row])})")
    return [list(dict.fromkeys(filter(None, items[text]))) for text in texts], notes


def _without_missing(names: list[str], listed: bool, whole: Collection[str]) -> list[str]:
    """Drop placeholders for missing labels, except known labels; outside of lists, not if there is nothing else."""
    kept = [name for name in names if name in whole or not (name.lower() in _LOST or (listed and name == "None"))]
    if any(kept) or not listed:
        return kept if any(kept) else names
    return [name for name in names if name not in ("nan", "NaN", "None", "null", "<NA>")]


def is_missing(cell: str) -> bool:
    """Whether a cell has labels, all of which are missing: ``[None]``, ``{'AF': None}``, ``n/a`` or ``;``; not ``[]``.

    Args:
        cell: the cell.
    """
    text = plain(cell)
    made = parse_notation(text)
    parts = made.values() if isinstance(made, dict) else split_names(text) if made is None else made
    return bool(parts) and all(str(part).strip().lower() in MISSING for part in parts)


def lacks_value(cell: str) -> bool:
    """Whether a cell is a dict of labels in which some values are missing, which are neither 0 nor 1.

    Args:
        cell: the cell.
    """
    made = parse_notation(plain(cell)) if cell.lstrip()[:1] == "{" else None
    missing = [str(value).strip().lower() in MISSING for value in made.values()] if isinstance(made, dict) else []
    return any(missing) and not all(missing)


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


def _damage(made: Any, text: str, names: Sequence[str]) -> str | None:
    """What is wrong with a cell that is nested, abbreviated, not closed, or the text of an object without names.

    Args:
        made: what `parse_notation` returns.
        text: the cell, as `plain` returns it.
        names: its names, if it is not in a known notation.
    """
    message = None
    if isinstance(made, list) and any(isinstance(part, list | dict | tuple | set) for part in made):
        message = NESTED
    elif (isinstance(made, list) and ... in made) or _DOTS.fullmatch(text):
        message = "is abbreviated; expected all names of classes"
    elif _BYTES.search(text):
        message = "is a Python bytes object; decode the column before you write it (.str.decode('utf-8'))"
    elif made is not None and joins_strings(text) and not _is_array(made, text):
        message = "has two names without a separator between them; expected a comma between all names"
    elif made is not None:
        message = _damaged_name([str(name).strip() for name in made], text)
    elif _NESTED.fullmatch(text) and brackets(text).get(0) == len(text) - 1:
        message = NESTED
    elif _PRINTED.fullmatch(text) or any(_OBJECT.match(name) for name in names):
        message = "is the printed text of an object; expected names of classes, as in AF;NORM"
    elif _has_flags(text):
        message = "is a list of flags without braces; expected the names that are present, or {AF: 1, SR: 0}"
    elif _is_open(text):
        message = "is a list that is not closed, probably truncated; complete it, or remove the bracket"
    elif _is_nested(text) or any(_WRAPPED.match(name) for name in names):
        message = NESTED
    else:
        message = _damaged_name(names, text)
    return message and f"{_shown(text)} {message}"


def _is_array(made: Any, text: str) -> bool:
    """Whether a list is that of NumPy, whose items have no separators."""
    return isinstance(made, list) and len(made) == len(re.findall(QUOTED, text)) and "," not in re.sub(QUOTED, "", text)


def _has_flags(text: str) -> bool:
    """Whether a cell is ``AF: 1, SR: 0``, also in brackets."""
    listed = text[:1] + text[-1:] in KINDS
    parts = re.split(MARKS, text[1:-1] if listed else text)
    return (listed or len(parts) > 1) and all(_PAIR.fullmatch(part.strip()) for part in parts)


def _is_nested(text: str) -> bool:
    """Whether a cell of names without quotes is a list of lists: ``[[a], [b]]``, ``[a], [b]``."""
    if _GROUPS.fullmatch(text):
        return True
    if _OTHERS.fullmatch(text):
        return not all(_is_interval(part.strip()) for part in split_outside(text))
    if text[:1] + text[-1:] not in KINDS or brackets(text).get(0) != len(text) - 1:
        return False
    parts = [part.strip() for part in split_outside(text[1:-1])]
    return any(part[:1] + part[-1:] in KINDS and brackets(part).get(0) == len(part) - 1 for part in parts)


def _damaged_name(names: Sequence[str], text: str) -> str | None:
    """What is wrong with names in quotation marks, or with one of a list that is several numbers."""
    for name in names:
        if _APOSTROPHE.fullmatch(name):
            continue
        opened = name[:1] in _QUOTES and name
        if (opened and (name[-1] in _CLOSING or not set(name[1:]) & set(_CLOSING))) or _PREFIXED.fullmatch(name):
            return f"has quotation marks around {_shown(name)} or a part of it; expected names of classes without them"
        parts = re.split(rf"{MARKS}|\s", name)
        if name != text and len(parts) > 1 and all(ONE.fullmatch(part) for part in parts if part) and any(parts):
            return f"has the item {_shown(name)}, numbers without a name of a class"
    return None


def _is_open(text: str) -> bool:
    """Whether a bracket around the whole cell lacks its other end: ``['a', 'b'``, ``[a, b``, ``a, b]``."""
    pairs = brackets(text)
    if CALL.match(text) and text.index("(") not in pairs:
        return True
    if text[:1] in OPEN and text:
        quoted = text[1:].lstrip()[:1] in ("'", '"')
        return 0 not in pairs or (quoted and text[0] + text[pairs[0]] not in KINDS)
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
        vector = NUMBERS.fullmatch(text) is not None
        parts = ONE.findall(text) if vector else [part for part in own if part]
        if text.lower() in MISSING or not parts:
            continue
        named = named or not all(ONE.fullmatch(part) for part in parts)
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
    if not ONE.fullmatch(text):
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
    texts = [plain(str(cell)) for cell in cells]
    intervals = _intervals(set(texts))
    distinct = {text: parse_notation(text) for text in dict.fromkeys(texts) if text not in intervals}
    for text, made in distinct.items():
        if damage := _damage(made, text, split_names(text) if _is_bare_list(text) else [text]):
            raise InputError(damage, file=path, place=place(texts.index(text)))
    alone = {text.strip().lower() for text in distinct}
    listed = next(
        (text for text in distinct if distinct[text] is not None or _is_bare_list(text) or _lacks(text, alone)), None
    )
    if listed is not None:
        what = (
            "is a list of labels, or an interval that reads like one" if _is_interval(listed) else "is a list of labels"
        )
        hint = "; write the interval as '0 to 5'" if _is_interval(listed) else ""
        message = f"{_shown(listed)} {what}; expected the name of one class{hint}. {advice}"
        raise InputError(message, file=path, place=place(texts.index(listed)))
    _refuse_vectors(texts, {text: re.split(MARKS, text) for text in distinct}, path, place)


def _is_interval(text: str) -> bool:
    """Whether a cell is an interval in any brackets, ``(0, 5]``; ``(0, 5)`` may also be a list of two numbers."""
    bounds = [bound.strip() for bound in text[1:-1].split(",")]
    ends = text[:1] in ("[", "(") and text[-1:] in ("]", ")")
    return ends and len(bounds) == 2 and all(_BOUND.fullmatch(bound) for bound in bounds)


def _intervals(texts: Collection[str]) -> set[str]:
    """Return the cells that are intervals, as pandas writes them; none if all of them may be lists of two numbers."""
    found = {text for text in texts if _is_interval(text)}
    return found if any(text[0] + text[-1] not in KINDS for text in found) else set()


def _is_bare_list(text: str) -> bool:
    """Whether a cell is a list of names without quotes, ``[a, b]``; an interval such as ``(0, 5]`` is none."""
    if text[:1] + text[-1:] not in KINDS or brackets(text).get(0) != len(text) - 1:
        return False
    names = [name.strip() for name in split_names(text, "," if text[0] == "(" else MARKS)]
    return len(names) > 1 and all(names) and not all(_BOUND.fullmatch(name) for name in names)


def _lacks(text: str, alone: Collection[str]) -> bool:
    """Whether a cell is a label beside a placeholder for a missing one: ``a; n/a``, where ``a`` is a cell of its own.

    Otherwise names such as ``wt|null`` (a genotype) and ``Na;K`` (ions) are those of classes.
    """
    names = [name.strip() for name in split_names(text, "[;|]")]
    others = [name for name in names if name.lower() not in _LOST or name == "Na"]
    return len(others) < len(names) and any(name.lower() in alone for name in others)


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
