"""Orders of places that have coordinates or scores: row by row, serpentine, along a Hilbert curve, at random, by score.

Each function gives the places in the order of visit, ``(N,)`` int64: a table of one route once it has a first axis. To
walk any ordering of `seqssm.orders.orderings` over them instead of over 0, 1, 2, ..., put its table through `relabel`.
Coordinates need no full rectangle: tissue, a sparse mask, points off a grid all are sorted by a key. Ties keep the
order of the places.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Lattice = Literal["row", "column", "serpentine", "hilbert"]
CURVE_BITS = 20  # finest Hilbert grid a side: 2^20 cells


def by_lattice(coords: Tensor, name: Lattice) -> Tensor:
    """The order `name` of places with coordinates.

    Args:
        coords: (N, 2) integers, x and y of each place.
        name: ``"row"``, ``"column"``, ``"serpentine"`` or ``"hilbert"``.

    Raises:
        ValueError: another name, another shape.
    """
    found = {"row": row_major, "column": column_major, "serpentine": serpentine, "hilbert": hilbert}.get(name)
    if found is None:
        raise ValueError(f"unknown order {name!r}; there are row, column, serpentine, hilbert")
    return found(coords)


def row_major(coords: Tensor) -> Tensor:
    """From left to right, row after row from the top: sorted by (y, x)."""
    x, y = _columns(coords)
    return _sorted(y, x)


def column_major(coords: Tensor) -> Tensor:
    """From top to bottom, column after column from the left: sorted by (x, y)."""
    x, y = _columns(coords)
    return _sorted(x, y)


def serpentine(coords: Tensor) -> Tensor:
    """Row after row, every second row that has places from right to left: 3 x 4 gives 0 1 2 3 7 6 5 4 8 9 10 11."""
    x, y = _columns(coords)
    row = _rank(y)
    return _sorted(row, torch.where(row % 2 == 1, -x, x))


def hilbert(coords: Tensor) -> Tensor:
    """Along the Hilbert curve on the smallest grid of 2^k x 2^k cells that holds the places.

    The curve begins at the top left, its first half covers the upper left and lower left quarters: 4 x 4 gives
    0 1 5 4 8 12 13 9 10 14 15 11 7 6 2 3. A cell is one step of the coordinates' own grid (their greatest common
    divisor), so gaps between places count as cells.
    """
    x, y = _columns(coords)
    column, row = _cells(x), _cells(y)
    largest = int(torch.maximum(column.max(), row.max())) if len(x) else 0
    bits = max(1, largest.bit_length())
    if bits > CURVE_BITS:
        column, row, bits = column >> (bits - CURVE_BITS), row >> (bits - CURVE_BITS), CURVE_BITS
    return torch.argsort(_curve_index(column, row, bits), stable=True)


def _curve_index(column: Tensor, row: Tensor, bits: int) -> Tensor:
    """Index along the curve; each round looks at one bit of both coordinates, and turns the quarter that it enters."""
    # the recursion starts along one axis at even depth and along the other at odd depth: swapped, so that it is x
    x, y = (row, column) if bits % 2 == 1 else (column, row)
    index = torch.zeros_like(x)
    for bit in range(bits - 1, -1, -1):
        side = 1 << bit
        right, low = (x >> bit) & 1, (y >> bit) & 1
        index += side * side * ((3 * right) ^ low)
        x, y = x & (side - 1), y & (side - 1)
        mirrored = (low == 0) & (right == 1)
        x, y = torch.where(mirrored, side - 1 - x, x), torch.where(mirrored, side - 1 - y, y)
        x, y = torch.where(low == 0, y, x), torch.where(low == 0, x, y)
    return index


def random(length: int, seed: int) -> Tensor:
    """The places in an order that `seed` alone decides: the negative control of every other order."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed))


def by_score(scores: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """The places by increasing score, the highest last, so that it has seen all others.

    Args:
        scores: (..., N), of which the last axis is sorted. Not-a-number comes last.
        cu_seqlens: (n + 1,), starts and end of sequences that lie one behind the other; each is sorted in itself.

    Returns:
        int64 (..., N).
    """
    order = torch.argsort(scores, dim=-1, stable=True)
    if cu_seqlens is None:
        return order
    place = torch.arange(scores.shape[-1], device=scores.device)
    sequence = torch.bucketize(place, cu_seqlens[1:].to(place), right=True)
    again = torch.argsort(sequence[order], dim=-1, stable=True)
    return order.gather(-1, again)


def relabel(table: Tensor, order: Tensor) -> Tensor:
    """An ordering's table walked over `order` instead of over 0, 1, 2, ...: step s visits ``order[table[s]]``.

    Args:
        table: integer (R, S); negative ids stay as they are.
        order: (N,), the places in the order that counts as forward.

    Returns:
        int32 (R, S).
    """
    table = table.long()
    return torch.where(table >= 0, order[table.clamp(min=0)], table).to(torch.int32)


def _columns(coords: Tensor) -> tuple[Tensor, Tensor]:
    if coords.ndim != 2 or coords.shape[1] != 2:
        raise ValueError(f"coordinates have shape (places, 2), not {tuple(coords.shape)}")
    return coords[:, 0].long(), coords[:, 1].long()


def _sorted(major: Tensor, minor: Tensor) -> Tensor:
    """Places by (major, minor)."""
    inner = torch.argsort(minor, stable=True)
    return inner[torch.argsort(major[inner], stable=True)]


def _rank(values: Tensor) -> Tensor:
    """0, 1, 2, ... for the distinct values in ascending order."""
    return torch.unique(values, return_inverse=True)[1]


def _cells(values: Tensor) -> Tensor:
    """Cell numbers of coordinates on their own grid, from 0."""
    if len(values) == 0:
        return values
    offset = values - values.min()
    return offset // max(1, int(np.gcd.reduce(torch.unique(offset).cpu().numpy())))
