"""Migration of options, values and class paths of earlier versions, by one table per domain (`Domain.migrations`).

The table applies to flags, YAML files, and the arguments and class paths stored in checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from seqssm.domain import Added, Domain, Moved, Renamed

SHARED = (
    Added("model.averaging", 0.0),
    Added("model.binary", False),
    Added("model.lora", 0),
    Added("model.teacher_weight", 1.0),
    Added("model.teacher_temperature", 1.0),
)
"""Options of `seqssm.training.task.Task` that earlier versions did not have."""


def option(domain: Domain, section: str, name: str, value: Any) -> tuple[str, Any]:
    """Return the current name and value of an option.

    Args:
        domain: domain of the options.
        section: ``"model"``, ``"data"`` or ``"summary"``.
        name: old name, without the section.
        value: old value.
    """
    for entry in domain.migrations:
        if isinstance(entry, Renamed) and entry.old == f"{section}.{name}":
            name = entry.new.removeprefix(f"{section}.")
            if entry.values is not None and _hashable(value):
                value = entry.values.get(value, value)
    return name, value


def _hashable(value: Any) -> bool:
    return not isinstance(value, dict | list)


def options(
    domain: Domain, section: str, values: Mapping[str, Any], *, stored: bool = False, cls: str = ""
) -> dict[str, Any]:
    """Return the current names and values of a section's options.

    Args:
        domain: domain of the options.
        section: ``"model"``, ``"data"`` or ``"summary"``.
        values: old options. If both the old and the current name are given, the current one wins.
        stored: whether these are all arguments of a checkpoint; options that did not exist when it was written then get
            the value that the code implied at that time (`seqssm.domain.Added`).
        cls: path of the class that has the options, for entries of one class only.
    """
    result: dict[str, Any] = {}
    for old, value in values.items():
        name, new = option(domain, section, old, value)
        if name == old or name not in values:
            result[name] = new
    if stored:
        own = re.split(r"[:.]", cls)[-1]
        for entry in (*domain.migrations, *SHARED):
            if isinstance(entry, Added) and entry.name.startswith(f"{section}.") and entry.of in ("", own):
                result.setdefault(entry.name.removeprefix(f"{section}."), entry.value)
    return result


def class_path(domain: Domain, path: str) -> str:
    """Return the current path of a class, in the form of `path` (``module:Class`` or ``module.Class``)."""
    separator = ":" if ":" in path else "."
    for entry in domain.migrations:
        if isinstance(entry, Moved) and entry.old.replace(":", separator) == path:
            path = entry.new.replace(":", separator)
    return path
