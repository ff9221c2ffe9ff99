"""Which options were given, also with their default values, and options that have no effect. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from seqssm.domain import Option, plain_name
from seqssm.errors import InputError


class Values(dict[str, Any]):
    """Values of all options by name, of which some were given on the command line.

    Args:
        values: values by name.
        given: names of the options that were given.
    """

    def __init__(self, values: Mapping[str, Any], given: Iterable[str]) -> None:
        super().__init__(values)
        self.given = frozenset(given)


def given_names(values: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the options that were given; of a plain mapping, all that are not None or False.

    Args:
        values: values by name.
    """
    named = values.given if isinstance(values, Values) else values
    return frozenset(name for name in named if values.get(name) is not None and values[name] is not False)


def select(values: Mapping[str, Any], names: Iterable[str]) -> Values:
    """Return some of the values.

    Args:
        values: values by name.
        names: names of the options to keep.
    """
    names = list(names)
    return Values({name: values[name] for name in names}, given_names(values).intersection(names))


def require_needs(options: Iterable[Option], values: Mapping[str, Any]) -> None:
    """Raise InputError for an option that is given and has no effect, because the one that it needs is not given.

    Args:
        options: declared options.
        values: values of all options, by name; those that are not listed were not asked for.
    """
    known, given = {option.flag: option for option in options}, given_names(values)
    for option in known.values():
        for need in option.needs if option.name in given else ():
            flag, _, wanted = need.partition(" ")
            if plain_name(flag) not in values:  # a parser without the other option
                continue
            value = values[plain_name(flag)]
            other = known.get(flag)
            has = str(value) == wanted if wanted else other.is_given(value) if other else value not in (None, False)
            if not has:
                raise InputError(f"{option.flag} has no effect without {need}")


def require_models(options: Iterable[Option], values: Mapping[str, Any], kinds: Iterable[str]) -> None:
    """Raise InputError for an option that is given and has no effect on this kind of model.

    Args:
        options: declared options.
        values: values by name.
        kinds: kinds of the model.
    """
    kinds, given = tuple(kinds), given_names(values)
    for option in options:
        if option.models and option.models not in kinds and option.name in given:
            raise InputError(f"{option.flag} has an effect on {option.models} only; this model is not one of them")
