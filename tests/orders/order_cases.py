"""Every registered order over geometries of its kind: square or not, prime, of size 1, no multiple of a block."""

from __future__ import annotations

import torch

from seqssm.orders import ENTRIES, Coordinates, Grid, Length, build, forward

LENGTHS = (1, 2, 7, 12, 23)
SHAPES = {
    2: ((1, 1), (1, 7), (5, 1), (4, 4), (7, 7), (3, 5), (6, 2)),
    3: ((1, 1, 1), (2, 3, 4), (3, 1, 5)),
}


def values(count: int) -> torch.Tensor:
    """Unsorted numbers with ties."""
    return (torch.arange(count) * 5 + 3) % max(2, count // 2)


def like(geometry, size) -> object:
    """A geometry of the same kind as an example's, with another length or shape."""
    if isinstance(geometry, Length):
        return Length(size)
    if isinstance(geometry, Grid):
        return Grid(*size)
    if isinstance(geometry, Coordinates):
        return Coordinates(torch.stack([values(size), torch.arange(size) % 3], dim=1))
    return type(geometry)(values(size))


def geometries(name: str) -> list[object]:
    """Geometries for the property tests of an order."""
    example = ENTRIES[name].example.geometry
    sizes = SHAPES[len(example.shape)] if isinstance(example, Grid) else LENGTHS
    found = [like(example, size) for size in sizes]
    if Coordinates in ENTRIES[name].on:
        found += [like(Coordinates(torch.zeros(1, 2)), size) for size in (1, 7, 12)]
    return found


def odd_one(name: str) -> object:
    """One geometry that is not square, for the costlier tests."""
    example = ENTRIES[name].example.geometry
    if isinstance(example, Grid):
        return Grid(3, 5) if len(example.shape) == 2 else Grid(2, 3, 2)
    return like(example, 11)


def table(spec, geometry) -> torch.Tensor:
    """The full table, plain `forward` included; int64 (R, S)."""
    found = build(spec, geometry)
    return (forward(geometry.positions) if found is None else found).long()


def spec_of(name: str):
    """The order with the arguments of its example."""
    return ENTRIES[name].example.spec


NAMES = list(ENTRIES)
CASES = [(name, geometry) for name in NAMES for geometry in geometries(name)]
WHOLE = [name for name in NAMES if name != "phase"]  # a phase alone leaves positions out
