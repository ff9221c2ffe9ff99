"""Names of orders in configs and in Python, and their routes.

A name is a string (``"hilbert"``), a mapping from the order's name to its first argument, with further arguments as
further keys (``{"stride": 5}``, ``{"stride": 5, "pads": True}``, ``{"reverse": "hilbert"}``), or a list of names, whose
routes are concatenated (``["forward", {"stride": 5}]`` is SR-Mamba of MambaMIL).
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from seqssm.errors import InputError, nearest
from seqssm.orders.registry import ENTRIES, Argument, Entry, Order, Orders

Spec = str | Mapping[str, Any] | Order | Sequence[Any]
"""Name of an ordering; `routes` returns its tuple of `Order`, which is also accepted as a name."""


def routes(spec: Spec) -> Orders:
    """Parse a name into its routes.

    Args:
        spec: a string, a mapping, an `Order`, or a list of those.

    Raises:
        InputError: an unknown name, with the nearest one, or a missing, unknown or invalid argument.
    """
    if isinstance(spec, Order):
        return (spec,)
    if isinstance(spec, str):
        return _expand(_entry(spec), {})
    if isinstance(spec, Mapping) and spec:
        entry = _named(spec)
        given = {key: value for key, value in spec.items() if key != entry.name}
        return _expand(entry, given, spec[entry.name])
    if isinstance(spec, Sequence) and spec:
        return tuple(route for part in spec for route in routes(part))
    raise InputError(f"an ordering must be a name, a mapping like {{'stride': 5}} or a list of those, not {spec!r}")


def format_orders(parsed: Orders) -> str:
    """Format routes for messages: ``"forward, stride(5), reverse(hilbert)"``."""
    return ", ".join(_word(order) for order in parsed)


def _word(order: Order) -> str:
    values = [
        (argument, value)
        for argument, (_, value) in zip(order.entry.arguments, order.arguments, strict=True)
        if argument.required or value != argument.default
    ]
    first = order.entry.arguments[0] if order.entry.arguments else None
    shown = [str(value) if argument is first else f"{argument.name}={value}" for argument, value in values]
    word = f"{order.name}({', '.join(shown)})" if shown else order.name
    if order.along is not None:
        word += f" along {_word(order.along)}"
    if not order.backward:
        return word
    return "reverse" if word == "forward" else f"reverse({word})"


def _named(spec: Mapping[str, Any]) -> Entry:
    """Return the entry of the only key that names an order; the other keys are its arguments."""
    found = [key for key in spec if key in ENTRIES]
    if len(found) > 1:
        raise InputError(f"{dict(spec)!r} names the orders {' and '.join(found)}: write a list of two mappings")
    known = {argument.name for entry in ENTRIES.values() for argument in entry.arguments}
    likely = [key for key in spec if key not in known] or list(spec)
    return ENTRIES[found[0]] if found else _entry(likely[0])


def _entry(name: Any) -> Entry:
    if name in ENTRIES:
        return ENTRIES[name]
    raise InputError(f"unknown ordering {name!r}{nearest(str(name), ENTRIES) or '; there are ' + ', '.join(ENTRIES)}")


def _expand(entry: Entry, given: Mapping[str, Any], first: Any = None) -> Orders:
    """Return the routes of an entry with the first argument `first` (None: its default) and the others `given`."""
    if first is not None and not entry.arguments:
        raise InputError(f"the ordering {entry.name} takes no arguments: write it as {entry.name!r}")
    others = [argument.name for argument in entry.arguments[1:]]
    wrong = [key for key in given if key not in others]
    if wrong:
        takes = ", ".join(others) or "no further arguments"
        raise InputError(f"the ordering {entry.name} takes {takes}, not {wrong[0]!r}")
    values = dict(given) if first is None else {entry.arguments[0].name: first, **given}
    checked = {argument.name: _value(entry, argument, values) for argument in entry.arguments}
    if entry.routes is None:
        return (Order(entry.name, tuple(checked.items())),)
    try:
        return routes(entry.routes(**checked))
    except ValueError as error:
        raise InputError(f"the ordering {entry.name}: {error}") from error


def _value(entry: Entry, argument: Argument, values: Mapping[str, Any]) -> Any:
    """Check the value of one argument, and return it in hashable form."""
    orders = argument.kind == Orders
    if argument.name not in values:
        if argument.required:
            example = json.dumps(entry.example.spec)
            raise InputError(f"the ordering {entry.name} needs its {argument.name}, as in {example}")
        return routes(argument.default) if orders else argument.default
    value = values[argument.name]
    if orders:
        return routes(value)
    accepted = [_accept(kind, value) for kind in _kinds(argument.kind)]
    if True in accepted:
        return tuple(value) if isinstance(value, list) else value
    wanted = " or ".join(_wanted(kind) for kind in _kinds(argument.kind))
    raise InputError(f"{argument.name} of {entry.name} must be {wanted}, not {value!r}")


def _kinds(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _accept(kind: Any, value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is type(None):
        return value is None
    if kind is bool:
        return isinstance(value, bool)
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if origin is typing.Annotated:  # Count, Seed
        return whole and value >= typing.get_args(kind)[1]
    if origin is tuple:  # axes
        return isinstance(value, list | tuple) and all(_accept(typing.Annotated[int, 0], one) for one in value)
    return isinstance(value, kind)


def _wanted(kind: Any) -> str:
    if kind is type(None):
        return "null"
    if kind is bool:
        return "true or false"
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    if origin is typing.Annotated:
        minimum = typing.get_args(kind)[1]
        return "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
    return "a list of axes, from 0" if origin is tuple else f"of type {kind.__name__}"
