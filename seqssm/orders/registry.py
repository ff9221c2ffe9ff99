"""Registry of orders: one entry per order, created by a decorator on its formula.

An entry declares the geometries of an order, its arguments (the signature of the formula), its formula and a test
vector. All else is derived from it: the name in configs, whole, padded, packed, chunked and relabelled use in all
layers, and the property tests. There are three kinds of formulas:

- `register`: geometry -> positions in order of visit. The general kind.
- `register_step`: position, length -> step of the visit, in closed form. For orders on a plain length; lengths may be
  tensors, so that all sequences of a batch are computed at once without waiting for the device.
- `register_composite`: other orders -> a list of orders. For reversal, repetition and named sets of routes.
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
        backward: whether it is walked from the last step to the first.
        along: order whose steps are walked instead of the positions 0, 1, 2, ...
    """

    name: str
    arguments: tuple[tuple[str, Any], ...] = ()
    backward: bool = False
    along: Order | None = None

    @property
    def entry(self) -> Entry:
        """Entry of the order in the registry."""
        return ENTRIES[self.name]

    @property
    def is_forward(self) -> bool:
        """Whether positions are visited from first to last for every geometry, so that states can be continued."""
        return not self.backward and self.along is None and self.entry.forward(**dict(self.arguments))

    @property
    def closed_form(self) -> bool:
        """Whether the step of a position depends on the position and the length only."""
        return self.along is None and self.entry.step is not None

    def reversed(self) -> Order:
        """Return the order walked backward; applied twice, it is the order itself."""
        return replace(self, backward=not self.backward)

    def to_plain(self) -> tuple[Any, ...]:
        """Convert the order to nested tuples of plain values."""
        return self.name, self.arguments, self.backward, None if self.along is None else self.along.to_plain()

    @classmethod
    def from_plain(cls, plain: tuple[Any, ...]) -> Order:
        """Restore an order from the output of `to_plain`."""
        name, arguments, backward, along = plain
        return cls(name, arguments, backward, None if along is None else cls.from_plain(along))

    def walked_along(self, base: Order) -> Order:
        """Return this order walked over the steps of `base`."""
        if self.along is None and self.entry.forward(**dict(self.arguments)):
            return base.reversed() if self.backward else base
        return replace(self, along=base if self.along is None else self.along.walked_along(base))


REQUIRED = inspect.Parameter.empty
Orders = tuple[Order, ...]
Count = Annotated[int, 1]  # the annotation is the minimum
Seed = Annotated[int, 0]


@dataclass(frozen=True)
class Argument:
    """Argument of an order, from the signature of its formula.

    Attributes:
        name: name in the signature; in a mapping, the order's own name is the key of the first argument.
        kind: type: ``Count``, ``Seed``, ``bool``, a ``Literal``, ``tuple[int, ...]``, ``Orders``, or the union of one
            of them with None.
        default: default value, or `REQUIRED`.
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
    """Test vector of an order.

    Attributes:
        spec: the order as named in a config.
        geometry: geometry over which the order is built.
        rows: rows of the table, one per route.
    """

    spec: Any
    geometry: Geometry
    rows: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Entry:
    """Registered order.

    Attributes:
        name: name in configs.
        on: geometries that it is defined on. An order on `Length` is valid for all geometries.
        axes: numbers of axes of a `Grid` that it is defined on; empty for any number.
        arguments: arguments of its formula.
        example: test vector.
        visit: geometry of one sample, arguments -> int64 (S,), positions in order of visit, -1 and -2 as in a table.
        step: position, length, arguments -> step, for orders in closed form.
        routes: arguments -> orders or names of orders, for composites.
        forward: arguments -> whether positions are visited from first to last.
        pointwise: whether the order of a subset of the positions is the restriction of the order of all of them.
        needs_convolution: whether routes of this order never exchange information, so that a layer must have an
            additional convolution over the grid.
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
        """Return the geometry to pass to the formula.

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

    The formula takes the geometry of one sample and returns an int64 tensor (S,), in which -1 is an absent step and -2
    resets the state. It visits each position at most once.

    Args:
        name: name of the order in configs.
        on: geometries that it is defined on.
        example: test vector: name in a config, geometry, rows of the table.
        axes: numbers of axes of a grid that it is defined on; empty for any number.
        pointwise: whether the order of a subset of the positions is the restriction of the order of all of them.
        needs_convolution: whether its routes never exchange information; layers reject it without a convolution.

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
        example: test vector: name in a config, geometry, rows of the table.
        forward: arguments -> whether positions are visited in sequence, so that states can be continued.
        visit: formula of the table of a whole sequence, if it contains more than the closed form gives (absent steps).

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
    """Register a name for several routes, or for an order composed of others: arguments -> list of orders or names.

    Args:
        name: name of the order in configs.
        example: test vector: name in a config, geometry, rows of the table.

    Raises:
        ValueError: `name` is taken.
    """

    def decorate(formula: Formula) -> Formula:
        _add(formula, 0, name=name, on=(), axes=(), example=Example(*example), routes=formula)
        return formula

    return decorate


def _add(formula: Callable[..., Any], skipped: int, *, name: str, **parts: Any) -> None:
    """Add an entry; arguments are read from the formula's signature after the first `skipped` parameters."""
    if name in ENTRIES:
        raise ValueError(f"an order named {name!r} is already registered")
    hints: Mapping[str, Any] = typing.get_type_hints(formula, include_extras=True)
    parameters = list(inspect.signature(formula).parameters.values())[skipped:]
    arguments = tuple(Argument(one.name, hints.get(one.name, Any), one.default) for one in parameters)
    summary = (inspect.getdoc(formula) or "").split("\n", 1)[0]
    ENTRIES[name] = Entry(name=name, arguments=arguments, summary=summary, **parts)
