"""Notation of lists and dicts in a cell: Python, JSON, NumPy, YAML or Java; and names between separators.

Does not import torch.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import tokenize
from functools import partial
from itertools import islice
from typing import Any

OPEN, CLOSE = "[{(", "]})"
KINDS = ("[]", "{}", "()")
MARKS = r"[,;|\n\t，；、]"
"""Separators of labels, as a regular expression: also line breaks of a cell, and those of Chinese and Japanese text."""
MAX_ENDS = 8  # brackets tried as the end of the list in a call
QUOTED = r"""(?:'[^']*'|"[^"]*")"""
NUMBER = r"[+-]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][+-]?\d++)?+"  # possessive: linear in cells of digits
FLAG = rf"(?:{NUMBER}|true|false|nan)"
ONE = re.compile(FLAG, re.IGNORECASE)
NUMBERS = re.compile(rf"[\[(]?\s*{FLAG}(?:\s+{FLAG})+\s*[\])]?", re.IGNORECASE)
CALL = re.compile(
    r"([A-Za-z_][\w.]*)\(\s*(?:(?:None|<[^,{}\[\]]*>)\s*,\s*)?(?=[\[{(])"
)  # frozenset({'a'}), array(['a'], dtype=object), defaultdict(<class 'int'>, {'a': 1})
_ITEM = rf"(?:{QUOTED}|nan|None)"
_ARRAY = re.compile(
    rf"(?=[^'\"]*['\"])[\[{{(]\s*{_ITEM}(?:\s+{_ITEM})+\s*[\]}})]"
)  # of NumPy: a literal of Python would join the names
_SCALAR = re.compile(rf"\b(?:np|numpy)\.\w+\(({QUOTED}|{NUMBER}|True|False)\)")  # np.str_('a')
_REST = re.compile(r"\s*(?:,\s*\w+\s*=.*)?\)", re.DOTALL)  # of a call, after the list
_EMPTY = re.compile(r"(?:\w+\.)?(?:frozenset|set|list|tuple|dict|Counter|OrderedDict)\(\)")
_PAIRS = ("OrderedDict", "dict_items")  # calls whose list of pairs is a dict
_EQUAL = re.compile(rf"\s*([^=:>]+)=>?\s*({FLAG})\s*", re.IGNORECASE)  # AF=1 of Java, AF => 1
_INVISIBLE = re.compile("[\ufeff\u200b-\u200d\u2060]")  # byte order mark, zero-width characters
_TYPOGRAPHIC = [
    (re.compile('[“”„‟«»]([^“”„‟«»"]*)[“”„‟«»]'), '"'),
    (re.compile("[‘’‚‛]([^‘’‚‛']*)[‘’‚‛]"), "'"),
]
BLANKS = " \u00a0\u202f"
_BESIDES = "“”„‟«»‘’‚‛\"',;|:=\n\r\t，；、"  # neighbours of a quoted name
_BEFORE, _AFTER = "[{(" + _BESIDES, "]})" + _BESIDES
_WIDE = {"［": "[", "］": "]", "【": "[", "】": "]", "｛": "{", "｝": "}", "（": "(", "）": ")"}
_BULLET = re.compile(r"\s*[-*•]\s+(?=\S)")  # of YAML and Markdown
_INNER = {mark: re.compile(rf"{mark}(?!\w)|(?<!\w){mark}") for mark in "'\""}  # no apostrophe
_BESIDE = re.compile(r"""['"]\s*[uUrRbBfF]{0,2}['"]""")


def plain(text: str) -> str:
    """Return a cell without invisible characters, typographic quotation marks and brackets, and NumPy's scalar types.

    Args:
        text: the cell.
    """
    text = _SCALAR.sub(r"\1", _INVISIBLE.sub("", text).strip())
    for pattern, mark in _TYPOGRAPHIC:
        text = pattern.sub(partial(_straight, mark), text)
    if len(text) > 1 and text[0] in _WIDE and text[-1] in _WIDE:
        text = _WIDE[text[0]] + text[1:-1] + _WIDE[text[-1]]
    lines = text.splitlines()
    if lines and all(_BULLET.match(line) for line in lines):
        text = "\n".join(_BULLET.sub("", line, count=1) for line in lines)
    return text


def _straight(mark: str, found: re.Match[str]) -> str:
    """Return a name in plain quotation marks; an apostrophe, and marks inside of a name, stay."""
    before, after = found.string[: found.start()].rstrip(BLANKS), found.string[found.end() :].lstrip(BLANKS)
    whole = (not before or before[-1] in _BEFORE) and (not after or after[0] in _AFTER)
    return f"{mark}{found[1]}{mark}" if whole else found[0]


def parse_notation(text: str) -> list[Any] | dict[Any, Any] | None:
    """Parse a cell that is a list, tuple, set or dict; None for other text.

    Args:
        text: the cell, without surrounding blanks.

    Returns:
        The items of ``['a', 'b']``, ``("a", "b")``, ``["a", null]`` or NumPy's ``['a' 'b']`` and ``[1 0]``, or the dict
        of ``{"a": true}`` or ``{a: 1, b: 0}``. Of ``frozenset({'a'})``, ``array(['a'], dtype='<U4')`` and
        ``[np.str_('a')]``, as Python and its packages show them, the items inside.
    """
    text = plain(text)
    if _EMPTY.fullmatch(text):
        return []
    call = CALL.match(text)
    if call:
        ends = (mark.end() for mark in re.finditer(r"[\]})]", text) if _REST.fullmatch(text, mark.end()))
        inner = (parse_notation(text[call.end() : end]) for end in islice(ends, MAX_ENDS))
        made = next((one for one in inner if one is not None), None)
        pairs = isinstance(made, list) and all(isinstance(one, tuple) and len(one) == 2 for one in made)
        return dict(made) if made and pairs and call[1].endswith(_PAIRS) else made
    if text[:1] not in OPEN or text[-1:] not in CLOSE or not text:
        return None
    if _ARRAY.fullmatch(text):
        return [one[1:-1] for one in re.findall(QUOTED, text)]
    if NUMBERS.fullmatch(text):
        return [_value(one, whole=True) for one in ONE.findall(text)]
    for read in (ast.literal_eval, json.loads):  # JSON has true, false and null
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            made = read(text)
            if isinstance(made, dict):
                return made
            if isinstance(made, str):  # in parentheses
                return [made]
            return list(made) if isinstance(made, list | tuple | set) else None
    return _parse_pairs(text[1:-1].split(",")) if text[0] == "{" else None


def _parse_pairs(parts: list[str]) -> dict[Any, Any] | None:
    """Parse ``a: 1`` (YAML), or ``a=1`` and ``a => 1`` with numbers or flags; None if a part is neither."""
    equal = [_EQUAL.fullmatch(part) for part in parts]
    if all(equal):
        return {_unquoted(one[1]): _value(one[2], whole=True) for one in equal if one}
    pairs = [part.partition(":") for part in parts]
    if not all(mark for _, mark, _ in pairs):
        return None
    return {_unquoted(name): _value(_unquoted(value), whole=True) for name, _, value in pairs}


def joins_strings(text: str) -> bool:
    """Whether a literal of Python has two strings side by side, which Python joins: ``['a' 'b', 'c']``.

    Args:
        text: the cell, as `plain` returns it.
    """
    if not _BESIDE.search(text):
        return False
    before = None
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.STRING == before:
                return True
            if token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
                before = token.type
    return False


def split_names(text: str, marks: str = MARKS) -> list[str]:
    """Split a cell at separators outside brackets: ``AF (new, paroxysmal); LBBB`` has two names.

    Brackets around the whole cell are those of a list: ``[a, b]`` has two names, and so has ``(a, b)``; ``(a)``
    has one.

    Args:
        text: the cell, without surrounding blanks.
        marks: regular expression of the separators.
    """
    pairs = brackets(text)
    if pairs.get(0) == len(text) - 1 and text[0] + text[-1] in KINDS:
        parts = split_outside(text[1:-1], marks)
        if text[0] != "(" or len(parts) == 1 or len(split_outside(text[1:-1], ",")) > 1:
            return [_unquoted(part) for part in parts]
    return [_unquoted(part) for part in split_outside(text, marks)]


def split_outside(text: str, marks: str = MARKS) -> list[str]:
    """Split a cell at separators outside brackets, which are kept.

    Args:
        text: the cell.
        marks: regular expression of the separators.
    """
    inside = bytearray(len(text))
    for first, last in sorted(brackets(text).items()):
        if not inside[first]:
            inside[first:last] = bytes([1]) * (last - first)
    parts, start = [], 0
    for mark in re.finditer(marks, text):
        if not inside[mark.start()]:
            parts.append(text[start : mark.start()])
            start = mark.end()
    return [*parts, text[start:]]


def brackets(text: str) -> dict[int, int]:
    """Return the places of the opening brackets and of their closing ones, also of another kind, as in ``(0, 5]``.

    Args:
        text: the cell.
    """
    found: dict[int, int] = {}
    opened: list[int] = []
    for place, letter in enumerate(text):
        if letter in OPEN:
            opened.append(place)
        elif letter in CLOSE and opened:
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
    whole = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1].strip() if whole and not _INNER[text[0]].search(text[1:-1]) else text
