"""Values of list options among the flags of `fit`: ``a,b`` and ``a b`` in addition to YAML's ``[a, b]``."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
import yaml

from seqssm.domain import split_list
from seqssm.errors import InputError, require_type
from seqssm.training.networks import parameters

NOTHING = ("null", "~")


def option_types(cls: Any) -> dict[str, Any]:
    """Return the annotations of the options of a task or data module, by name, including those of its bases.

    Args:
        cls: the class.
    """
    if hasattr(cls, "own_arguments"):
        declared = {**cls.own_arguments, **cls.network_arguments}
        return {name: parameter.annotation for name, parameter in declared.items()}
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base) and base is not object:
            for name, parameter in parameters(base).items():
                found.setdefault(name, parameter.annotation)
    return found


def item_type(kind: Any) -> Any:
    """Return the annotation of the items of a list option; None for an option that takes no list of plain values.

    Args:
        kind: annotation of the option, ``list[str] | None``.
    """
    for one in _members(kind):
        if get_origin(one) is list and get_origin(get_args(one)[0]) is not list:
            return get_args(one)[0]
    return None


def list_value(flag: str, words: Sequence[str], kind: Any) -> str:
    """Return the words of a list option as one YAML value.

    A single word in YAML's notation, and a single value of an option that also takes one without a list, are returned
    as they are. Otherwise words are split at their commas, except in double quotes; the name of an existing file is one
    value.

    Args:
        flag: the option, for messages.
        words: its words on the command line, at least one.
        kind: its annotation; `item_type` is not None.

    Raises:
        InputError: a value is empty, or both notations are mixed.
    """
    item = item_type(kind)
    if len(words) == 1 and (words[0] in NOTHING or words[0].lstrip().startswith(("[", "{"))):
        return words[0]
    values: list[str] = []
    for word in words:
        if word.lstrip().startswith("["):
            raise InputError(f"{flag} {word}: give one list, as in A,B or A B or [A, B]")
        whole = str in _members(item) and _exists(word)
        values += [word] if whole else split_list(word)
    if not all(values):
        raise InputError(f"{flag} {shlex.join(words)}: expected values, as in A,B or A B")
    mapping = str in _members(item) and values[-1].endswith(":")  # bounds such as `0:` are one to YAML
    if values == list(words) and len(values) == 1 and _takes_one(kind) and not mapping:
        return words[0]
    if str in _members(item):
        return yaml.safe_dump(values, default_flow_style=True, allow_unicode=True, width=10**9).strip()
    return f"[{', '.join(values)}]"


def require_no_blanks(prefix: str, cls: Any, values: Mapping[str, Any]) -> None:
    """Raise InputError for an empty value in a list option that comes from a config or from Python.

    Args:
        prefix: beginning of the flags, ``--data.``.
        cls: the task or data module.
        values: its options, by name.
    """
    kinds = option_types(cls)
    for name, value in values.items():
        given = value if isinstance(value, list | tuple) else [value]
        if item_type(kinds.get(name)) is not None and any(isinstance(one, str) and not one.strip() for one in given):
            raise InputError(f"{prefix}{name} {value!r}: a value is empty; expected values, as in A,B or A B")


def require_distinct(prefix: str, cls: Any, values: Mapping[str, Any]) -> None:
    """Raise InputError for a name that a list option has twice: the label, series or file would be read twice.

    Args:
        prefix: beginning of the flags, ``--data.``.
        cls: the data module.
        values: its options, by name.
    """
    kinds = option_types(cls)
    for name, value in values.items():
        if str in _members(item_type(kinds.get(name))) and isinstance(value, list | tuple):
            twice = next((one for one, count in Counter(map(str, value)).items() if count > 1), None)
            if twice is not None:
                raise InputError(f"{prefix}{name}: {twice} appears twice")


def plain_options(section: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert options given in Python to the values of a config: paths, tuples, NumPy's numbers.

    Args:
        section: what the options belong to, for messages.
        options: values by name.

    Raises:
        InputError: these are no options by name, or an option is an object that a config cannot hold.
    """
    require_type(section, options, Mapping, "a dict of options")

    def plain(name: str, value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, list | tuple):
            return [plain(name, one) for one in value]
        if isinstance(value, Mapping):
            return {key: plain(name, one) for key, one in value.items()}
        if isinstance(value, np.generic):
            return value.item()
        if value is not None and not isinstance(value, str | int | float | bool | date):
            raise InputError(f"{section}: the option {name} cannot be of the type {type(value).__name__}")
        return value

    return {name: plain(name, value) for name, value in options.items()}


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _takes_one(kind: Any) -> bool:
    return any(one is not type(None) and get_origin(one) is not list for one in _members(kind))


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):  # too long for a name
        return False
