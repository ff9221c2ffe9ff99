"""Geometries of the positions of a sequence, on which orders are defined.

`Length` and `Grid` are hashable descriptions, and their tables are cached. `Coordinates`, `Degrees` and `Scores` hold
the tensors of one call, shared by the batch or separate per sample; nothing derived from them is cached.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Length:
    """A plain sequence.

    Args:
        positions: number of positions.
    """

    positions: int


@dataclass(frozen=True, init=False)
class Grid:
    """A full grid with any number of axes, stored row by row: the last axis varies fastest.

    Args:
        shape: sizes of the axes, each at least 1: ``Grid(height, width)``, ``Grid(time, height, width)``.

    Raises:
        ValueError: no axes, or a size that is not a positive integer.
    """

    shape: tuple[int, ...]

    def __init__(self, *shape: int) -> None:
        if not shape or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in shape):
            raise ValueError(f"the sizes of a grid must be positive integers, as in Grid(14, 14), not {shape}")
        object.__setattr__(self, "shape", shape)

    def __repr__(self) -> str:
        return f"Grid({', '.join(map(str, self.shape))})"

    @property
    def positions(self) -> int:
        """Number of cells."""
        return math.prod(self.shape)

    def cells(self) -> tuple[Tensor, ...]:
        """Index of each position along each axis: one int64 tensor (positions,) per axis, on the CPU."""
        position = torch.arange(self.positions, device="cpu")
        found: list[Tensor] = []
        for size in reversed(self.shape):
            found.append(position % size)
            position = position // size
        return tuple(reversed(found))


@dataclass(frozen=True, eq=False)
class _OfValues:
    """Base class of the geometries that hold tensors of one call."""

    values: Tensor
    axis: ClassVar[int] = -1  # the axis of the positions; a batch axis may precede it

    @property
    def positions(self) -> int:
        """Number of positions."""
        return self.values.shape[self.axis]

    @property
    def samples(self) -> int | None:
        """Size of the batch, or None if all samples share the values."""
        return self.values.shape[0] if self.values.ndim > -self.axis else None

    def sample(self, index: int) -> Self:
        """Geometry of one sample of the batch; the geometry itself if all samples share it."""
        return self._changed(lambda tensor: tensor[index] if tensor.ndim > -self.axis else tensor)

    def select(self, index: Tensor) -> Self:
        """Geometry of the positions `index` (integers (n,)) only."""
        return self._changed(lambda tensor: tensor.index_select(self.axis, index.to(tensor.device)))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items() if tensor is not None})


@dataclass(frozen=True, eq=False)
class Coordinates(_OfValues):
    """Positions with coordinates in a plane that need not fill a rectangle, e.g. tissue or a sparse mask.

    Args:
        values: x (to the right) and y (down) of each position, integers (N, 2), or (B, N, 2) with one set per sample.

    Raises:
        ValueError: a wrong shape.
    """

    axis: ClassVar[int] = -2

    def __post_init__(self) -> None:
        if self.values.ndim not in (2, 3) or self.values.shape[-1] != 2:
            raise ValueError(f"coordinates must have shape (positions, 2), not {tuple(self.values.shape)}")

    def columns(self) -> tuple[Tensor, Tensor]:
        """y and x of the positions of one sample, int64 (N,) each."""
        return self.values[:, 1].long(), self.values[:, 0].long()

    def cells(self) -> tuple[Tensor, Tensor]:
        """Row and column of each position on the grid of the coordinates, from 0.

        The cell size is the greatest common divisor of all distances along an axis, so that gaps between positions are
        cells.
        """
        y, x = self.columns()
        return _cells(y), _cells(x)

    def ranks(self) -> tuple[Tensor, Tensor]:
        """Rank of each position's y and x among the distinct values, from 0; rows without positions are not counted."""
        y, x = self.columns()
        return torch.unique(y, return_inverse=True)[1], torch.unique(x, return_inverse=True)[1]


@dataclass(frozen=True, eq=False)
class Degrees(_OfValues):
    """Nodes of a graph, ordered by degree.

    Args:
        values: degrees, (N,), or (B, N) with one graph per sample.
        ties: values (N,) or (B, N) that order nodes of equal degree, e.g. new random ones in each training step; None
            keeps the order of the nodes, or that of the order's seed.

    Raises:
        ValueError: a wrong shape, or `ties` that do not match.
    """

    ties: Tensor | None = None

    def __post_init__(self) -> None:
        _require_vector("degrees", self.values)
        if self.ties is not None and self.ties.shape != self.values.shape:
            raise ValueError(f"ties have shape {tuple(self.ties.shape)}, the degrees {tuple(self.values.shape)}")


@dataclass(frozen=True, eq=False)
class Scores(_OfValues):
    """Positions with a score each, learned or given.

    Args:
        values: scores, (N,), or (B, N) with one set per sample. The order is not differentiable.

    Raises:
        ValueError: a wrong shape.
    """

    def __post_init__(self) -> None:
        _require_vector("scores", self.values)


Geometry = Length | Grid | Coordinates | Degrees | Scores
DESCRIBED = (Length, Grid)
OF_VALUES = (Coordinates, Degrees, Scores)


def describe_geometry(geometry: Geometry) -> str:
    """Format a geometry for messages: ``"a length of 12"``, ``"Grid(3, 4)"``, ``"12 scores"``."""
    if isinstance(geometry, Grid):
        return repr(geometry)
    if isinstance(geometry, Length):
        return f"a length of {geometry.positions}"
    return f"{geometry.positions} {type(geometry).__name__.lower()}"


def _require_vector(name: str, values: Tensor) -> None:
    if values.ndim not in (1, 2):
        raise ValueError(f"{name} must have shape (positions,) or (batch, positions), not {tuple(values.shape)}")


def _cells(values: Tensor) -> Tensor:
    if len(values) == 0:
        return values
    offset = values - values.min()
    return offset // max(1, int(np.gcd.reduce(torch.unique(offset).cpu().numpy())))


# torch.export sees no tensors in the described geometries, and those inside the others; programs store the names
pytree.register_pytree_node(
    Length,
    lambda length: ([], [length.positions]),
    lambda _, sizes: Length(*sizes),
    serialized_type_name="seqssm.orders.Length",
    flatten_with_keys_fn=lambda length: ([], [length.positions]),
)
pytree.register_pytree_node(
    Grid,
    lambda grid: ([], list(grid.shape)),
    lambda _, sizes: Grid(*sizes),
    serialized_type_name="seqssm.orders.Grid",
    flatten_with_keys_fn=lambda grid: ([], list(grid.shape)),
)
for _of_values in OF_VALUES:
    pytree.register_dataclass(_of_values, serialized_type_name=f"seqssm.orders.{_of_values.__name__}")
torch.serialization.add_safe_globals([*DESCRIBED, *OF_VALUES])  # exported programs store their example inputs
