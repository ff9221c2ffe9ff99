"""The registry of orders: one entry per order, made by a decorator on its formula.

An entry says on what an order is defined, its arguments (the signature of the formula), its formula and a test vector.
Everything else follows from the entry: its name in configs, whole, padded, packed, chunked and relabelled use in every
layer, and the property tests. There are three kinds of formulas:

- `register`: geometry -> positions in order of visit. The general one.
- `register_step`: position, length -> step at which it is visited, in closed form. For orders on a plain length;
  lengths may be tensors, so that all sequences of a batch are done at once and no device is waited for.
- `register_composite`: other orders -> a list of orders. Reversal, repetition and named sets of routes.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from torch import Tensor

from seqssm.orders.geometry import Degrees, Geometry, Grid, Length, Scores, describe_geometry


@dataclass(frozen=True)
class Order:
    """One route: a registered order with its arguments.

    Attributes:
        name: name of the entry.
        arguments: (name, value) of every argument, in the order of the formula's signature.
        backward: walked from the last step to the first.
        along: the order whose steps are walked in place of the positions 0, 1, 2, ...
    """

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()
    backward: bool = False
    along: Order | None = None

    @property
    def entry(self) -> Entry:
        """The order's entry in the registry."""
        return ENTRIES[self.name]

    @property
    def is_forward(self) -> bool:
        """Whether positions are visited from the first to the last whatever the geometry, so that states carry on."""
        return not self.backward and self.along is None and self.entry.forward(**dict(self.arguments))

    @property
    def closed_form(self) -> bool:
        """Whether the step of a position follows from the position and the length alone."""
        return self.along is None and self.entry.step is not None

    def reversed(self) -> Order:
        """The same order walked backward; twice is the order itself."""
        return replace(self, backward=not self.backward)

    def to_plain(self) -> tuple[Any, ...]:
        """The order as nested tuples of plain values."""
        return self.name, self.arguments, self.backward, None if self.along is None else self.along.to_plain()

    @classmethod
    def from_plain(cls, plain: tuple[Any, ...]) -> Order:
        """The order that `to_plain` gave."""
        name, arguments, backward, along = plain
        return cls(name, arguments, backward, None if along is None else cls.from_plain(along))

    def walked_along(self, base: Order) -> Order:
        """This order over the steps of `base`."""
        if self.along is None and self.entry.forward(**dict(self.arguments)):
            return base.reversed() if self.backward else base
        return replace(self, along=base if self.along is None else self.along.walked_along(base))


REQUIRED = inspect.Parameter.empty
Orders = tuple[Order, ...]
Count = Annotated[int, 1]  # the number is the minimum
Seed = Annotated[int, 0]


@dataclass(frozen=True)
class Argument:
    """An argument of an order, as its formula's signature declares it.

    Attributes:
        name: name in the signature; the value of the first argument stands under the order's own name in a mapping.
        kind: its type: ``Count``, ``Seed``, ``bool``, a ``Literal``, ``tuple[int, ...]``, ``Orders``, or one of them
            or None.
        default: its default, or `REQUIRED`.
    """

    name: str
    kind: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether the argument has no default."""
        return self.default is REQUIRED


@dataclass(frozen=True)
class Example:
    """A test vector.

    Attributes:
        spec: the order as a config names it.
        geometry: geometry over which the order is built.
        rows: the table, one row per route.
    """

    spec: Any
    geometry: Geometry
    rows: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Entry:
    """One order.

    Attributes:
        name: name in configs.
        on: geometries that it is defined on. An order on `Length` serves every geometry.
        axes: numbers of axes of a `Grid` that it is defined on; empty: any number.
        arguments: arguments of its formula.
        example: its test vector.
        visit: geometry of one sample, arguments -> int64 (S,), positions in order of visit, -1 and -2 as in a table.
        step: position, length, arguments -> step, for orders in closed form.
        routes: arguments -> orders or names of orders, for composites.
        forward: arguments -> whether positions are visited from the first to the last.
        pointwise: whether the order of a subset of the positions is the order of all of them, restricted.
        needs_convolution: whether routes of this order never exchange information, so that a layer must have a
            convolution over the grid beside them.
        summary: first line of the formula's docstring.
    """

    name: str
    on: tuple[type, ...]
    axes: tuple[int, ...]
    arguments: tuple[Argument, ...]
    example: Example
    visit: Callable[..., Tensor] | None = None
    step: Callable[..., Tensor] | None = None
    routes: Callable[..., Sequence[Any]] | None = None
    forward: Callable[..., bool] = lambda **arguments: False
    pointwise: bool = False
    needs_convolution: bool = False
    summary: str = ""

    def require(self, geometry: Geometry) -> Geometry:
        """The geometry that the formula is given.

        Raises:
            ValueError: the order is not defined on `geometry`; the message lists what it requires.
        """
        if Length in self.on:
            return geometry if isinstance(geometry, Length) else Length(geometry.positions)
        fits = isinstance(geometry, self.on)
        if fits and isinstance(geometry, Grid) and self.axes:
            fits = len(geometry.shape) in self.axes
        if fits:
            return geometry
        raise ValueError(
            f"the order {self.name} needs {self._needed()}, not {describe_geometry(geometry)}: "
            f"call the layer with geometry={self._call()}"
        )

    def _needed(self) -> str:
        words = {Grid: "a grid", Degrees: "degrees", Scores: "scores"}
        if self.axes:
            words[Grid] = f"a grid of {' or '.join(map(str, self.axes))} axes"
        return " or ".join(words.get(kind, kind.__name__.lower()) for kind in self.on)

    def _call(self) -> str:
        if Grid in self.on:
            return "Grid(time, height, width)" if self.axes == (3,) else "Grid(height, width)"
        return f"{self.on[0].__name__}(...)"


ENTRIES: dict[str, Entry] = {}
"""All orders by name."""

Formula = typing.TypeVar("Formula", bound=Callable[..., Any])


def register(
    name: str,
    *,
    on: type | tuple[type, ...],
    example: tuple[Any, Geometry, Sequence[Sequence[int]]],
    axes: tuple[int, ...] = (),
    pointwise: bool = False,
    needs_convolution: bool = False,
) -> Callable[[Formula], Formula]:
    """Register a formula: geometry, arguments -> positions in order of visit.

    The formula is given one sample's geometry and returns an int64 tensor (S,), in which -1 is a step that does not
    happen and -2 resets the state. It visits a position at most once.

    Args:
        name: name of the order in configs.
        on: the geometries it is defined on.
        example: its test vector: how a config names it, the geometry, the table's rows.
        axes: numbers of axes of a grid that it is defined on; empty: any number.
        pointwise: the order of a subset of the positions is the order of all of them, restricted.
        needs_convolution: routes of this order never exchange information: layers refuse it without a convolution.

    Raises:
        ValueError: `name` is taken.
    """

    def decorate(formula: Formula) -> Formula:
        kinds = on if isinstance(on, tuple) else (on,)
        flags = {"pointwise": pointwise, "needs_convolution": needs_convolution}
        _add(formula, 1, name=name, on=kinds, axes=axes, example=Example(*example), visit=formula, **flags)
        return formula

    return decorate


def register_step(
    name: str,
    *,
    example: tuple[Any, Geometry, Sequence[Sequence[int]]],
    forward: Callable[..., bool] = lambda **arguments: False,
    visit: Callable[..., Tensor] | None = None,
) -> Callable[[Formula], Formula]:
    """Register a formula in closed form: position, length, arguments -> step.

    Args:
        name: name of the order in configs.
        example: its test vector: how a config names it, the geometry, the table's rows.
        forward: arguments -> whether every position is visited in its own turn, so that states carry on.
        visit: gives the table of a whole sequence where it holds more than the formula says (steps that do not
            happen).

    Raises:
        ValueError: `name` is taken.
    """

    def decorate(formula: Formula) -> Formula:
        parts = {"step": formula, "visit": visit, "forward": forward}
        _add(formula, 2, name=name, on=(Length,), axes=(), example=Example(*example), **parts)
        return formula

    return decorate


def register_composite(
    name: str, *, example: tuple[Any, Geometry, Sequence[Sequence[int]]]
) -> Callable[[Formula], Formula]:
    """Register a name for several routes, or for an order made from others: arguments -> list of orders or names.

    Args:
        name: name of the order in configs.
        example: its test vector: how a config names it, the geometry, the table's rows.

    Raises:
        ValueError: `name` is taken.
    """

    def decorate(formula: Formula) -> Formula:
        _add(formula, 0, name=name, on=(), axes=(), example=Example(*example), routes=formula)
        return formula

    return decorate


def _add(formula: Callable[..., Any], skipped: int, *, name: str, **parts: Any) -> None:
    """Add an entry; the arguments are read from the formula's signature behind the first `skipped` parameters."""
    if name in ENTRIES:
        raise ValueError(f"an order named {name!r} is registered already")
    hints: Mapping[str, Any] = typing.get_type_hints(formula, include_extras=True)
    parameters = list(inspect.signature(formula).parameters.values())[skipped:]
    arguments = tuple(Argument(one.name, hints.get(one.name, Any), one.default) for one in parameters)
    summary = (inspect.getdoc(formula) or "").split("\n", 1)[0]
    ENTRIES[name] = Entry(name=name, arguments=arguments, summary=summary, **parts)
