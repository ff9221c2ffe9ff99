"""Keys of space-filling curves: Hilbert index, generalised Hilbert curve on any rectangle, Morton codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HILBERT_BITS = 20  # finest Hilbert grid: 2^20 cells per side
KEY_BITS = 62  # bits of an int64 key


def hilbert_key(row: Tensor, column: Tensor) -> Tensor:
    """Index along the Hilbert curve on the smallest grid of 2^k x 2^k cells that contains the given cells.

    Each iteration processes one bit of both coordinates, and rotates the quadrant.

    Args:
        row: row indices, integers (N,), from 0.
        column: column indices, integers (N,), from 0.
    """
    largest = int(torch.maximum(column.max(), row.max())) if len(row) else 0
    bits = max(1, largest.bit_length())
    if bits > HILBERT_BITS:
        column, row, bits = column >> (bits - HILBERT_BITS), row >> (bits - HILBERT_BITS), HILBERT_BITS
    # the recursion starts along one axis at even depth and along the other at odd depth; swapped to start along x
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


def morton_key(cells: Sequence[Tensor]) -> Tensor:
    """Interleave the bits of the cell indices; the last axis has the lowest bit.

    Args:
        cells: one integer tensor (N,) per axis, from 0. The lowest bits are dropped if they do not fit in an int64.
    """
    largest = max((int(axis.max()) for axis in cells if len(axis)), default=0)
    bits = max(1, largest.bit_length())
    dropped = max(0, bits - KEY_BITS // len(cells))
    key = torch.zeros_like(cells[0])
    for bit in range(bits - dropped):
        for place, axis in enumerate(reversed(cells)):
            key |= ((axis >> (bit + dropped)) & 1) << (bit * len(cells) + place)
    return key


def generalised_hilbert(height: int, width: int) -> list[int]:
    """Cells of a rectangle, numbered row by row, in the order of the generalised Hilbert curve.

    This is the published recursion (J. Cerveny's gilbert), along the longer side first. Consecutive cells are
    neighbours, except for one diagonal step if the longer side is odd and the shorter one is even and at least 4.

    Args:
        height: number of rows.
        width: number of columns.
    """
    a, b = ((width, 0), (0, height)) if width >= height else ((0, height), (width, 0))
    pending, path = [((0, 0), a, b)], []
    while pending:  # rectangles in path order: start, main direction a, other direction b
        (x, y), a, b = pending.pop()
        pieces = _halves((x, y), a, b)
        if pieces:
            pending += reversed(pieces)
            continue
        along, across = abs(sum(a)), abs(sum(b))
        dx, dy = (_sign(a[0]), _sign(a[1])) if across == 1 else (_sign(b[0]), _sign(b[1]))
        for step in range(along if across == 1 else across):
            path.append((y + step * dy) * width + x + step * dx)
    return path


Vector = tuple[int, int]


def _halves(start: Vector, a: Vector, b: Vector) -> list[tuple[Vector, Vector, Vector]]:
    """Split a rectangle into the next smaller ones; none for a line."""
    (x, y), (ax, ay), (bx, by) = start, a, b
    along, across = abs(ax + ay), abs(bx + by)
    if along == 1 or across == 1:
        return []
    da, db = (_sign(ax), _sign(ay)), (_sign(bx), _sign(by))
    ha, hb = (ax // 2, ay // 2), (bx // 2, by // 2)
    if 2 * along > 3 * across:  # long: two rectangles, one after the other
        if abs(sum(ha)) % 2 and along > 2:  # even lengths keep the steps between rectangles straight
            ha = (ha[0] + da[0], ha[1] + da[1])
        return [(start, ha, b), ((x + ha[0], y + ha[1]), (ax - ha[0], ay - ha[1]), b)]
    if abs(sum(hb)) % 2 and across > 2:
        hb = (hb[0] + db[0], hb[1] + db[1])
    end = (x + (ax - da[0]) + (hb[0] - db[0]), y + (ay - da[1]) + (hb[1] - db[1]))
    return [
        (start, hb, ha),
        ((x + hb[0], y + hb[1]), a, (bx - hb[0], by - hb[1])),
        (end, (-hb[0], -hb[1]), (-(ax - ha[0]), -(ay - ha[1]))),
    ]


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
