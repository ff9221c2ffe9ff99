"""Options of model and data that have no effect beside the others (`seqssm.domain.Effect`): given, they are refused."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seqssm.domain import Effect
from seqssm.errors import InputError

COMMON = (
    Effect("model.teacher_weight", needs=("model.teacher",)),
    Effect("model.teacher_temperature", needs=("model.teacher",)),
)
"""Effects of the options of every domain."""


def without_effect(effects: Sequence[Effect], given: Iterable[str], values: Mapping[str, Any]) -> list[str]:
    """Describe the given options that have no effect.

    Args:
        effects: declared effects of the domain; `COMMON` is added.
        given: names of the options that the user gave, ``"model.conv_kernel"``.
        values: values of all options of the chosen model and data, by such names.

    Returns:
        One sentence per option.
    """
    given, found = set(given), []
    for effect in (*COMMON, *effects):
        name = effect.name
        if name not in given or values.get(name) is None:
            continue
        if effect.needs and not any(_holds(need, values) for need in effect.needs):
            found.append(f"--{name} has no effect without {' or '.join(f'--{need}' for need in effect.needs)}")
        found += [f"--{name} has no effect with --{other}" for other in effect.without if _holds(other, values)]
    return found


def _holds(need: str, values: Mapping[str, Any]) -> bool:
    """Whether an option is on, or has one of the values after its name; unknown values of the data count as such."""
    name, _, wanted = need.partition(" ")
    value = values.get(name)
    if not wanted:
        return value not in (None, False, 0, "none", [], {}, "")
    return (value is None and name in values) or str(value) in wanted.split("|")


def require_effects(
    effects: Sequence[Effect], given: Iterable[str], values: Mapping[str, Any], refuse: bool = True
) -> None:
    """Raise InputError for a given option that has no effect, or print it.

    Args:
        effects: declared effects of the domain.
        given: names of the options that the user gave.
        values: values of all options, by name.
        refuse: whether it is an error; in a study of several models it is printed.
    """
    for message in without_effect(effects, given, values):
        if refuse:
            raise InputError(message)
        print(f"seqssm: study: {message}", file=sys.stderr)
