"""Orders on grids and on coordinates in a plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from seqssm.orders.curves import generalised_hilbert, hilbert_key, morton_key
from seqssm.orders.geometry import Coordinates, Grid
from seqssm.orders.registry import Count, register, register_composite

PLANE = (Grid, Coordinates)
ROWS = Grid(3, 4)  # grid of most test vectors
Axes = tuple[int, ...]


def sorted_by(*keys: Tensor) -> Tensor:
    """Sort positions by the first key, ties by the next one, and so on; remaining ties keep their order.

    Args:
        keys: sort keys, tensors (N,), the most significant first.
    """
    order = torch.argsort(keys[-1], stable=True)
    for key in reversed(keys[:-1]):
        order = order[torch.argsort(key[order], stable=True)]
    return order


def _permuted(grid: Grid, axes: Axes | None) -> Axes:
    """Check `axes`; None for all axes of the grid."""
    if axes is None:
        return tuple(range(len(grid.shape)))
    if sorted(axes) != list(range(len(grid.shape))):
        raise ValueError(f"the axes of a grid of {len(grid.shape)} are its numbers from 0 in any order, not {axes}")
    return axes


def _with_resets(order: Tensor, segment: Tensor) -> Tensor:
    """Insert -2 (reset of the state) where the segment of consecutive positions changes."""
    own = segment[order]
    changes = (own[1:] != own[:-1]).nonzero().flatten()
    parts = torch.tensor_split(order, (changes + 1).tolist())
    reset = order.new_full((1,), -2)
    return torch.cat([piece for part in parts for piece in (reset, part)][1:])


@register("raster", on=Grid, example=({"raster": [1, 0]}, ROWS, [[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]]))
def raster(grid: Grid, axes: Axes | None = None) -> Tensor:
    """Line by line, for any order of the axes.

    Args:
        grid: the grid.
        axes: axes from 0, the slowest first: [1, 0] is column by column; None for their own order.
    """
    return torch.arange(grid.positions, device="cpu").view(grid.shape).permute(_permuted(grid, axes)).flatten()


@register("row", on=PLANE, axes=(2,), example=("row", ROWS, [list(range(12))]))
def row(plane: Grid | Coordinates) -> Tensor:
    """Row by row from the top, each from left to right.

    Args:
        plane: the grid or coordinates.
    """
    return sorted_by(*_axes(plane))


@register("column", on=PLANE, axes=(2,), example=("column", ROWS, [[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]]))
def column(plane: Grid | Coordinates) -> Tensor:
    """Column by column from the left, each from top to bottom.

    Args:
        plane: the grid or coordinates.
    """
    return sorted_by(*reversed(_axes(plane)))


def _axes(plane: Grid | Coordinates) -> tuple[Tensor, ...]:
    """Row and column without conversion to cells, which coordinates off a grid do not need."""
    return plane.columns() if isinstance(plane, Coordinates) else plane.cells()


@register_composite(
    "cross",
    example=(
        "cross",
        Grid(2, 3),
        [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]],
    ),
)
def cross() -> Sequence[object]:
    """Rows, columns, and both in reverse: the four routes of VMamba."""
    return ["row", "column", {"reverse": ["row", "column"]}]


@register("shear", on=Grid, axes=(2,), example=("shear", ROWS, [[0, 5, 10, 1, 6, 11, 2, 7, 8, 3, 4, 9]]))
def shear(grid: Grid, direction: Literal["down", "up"] = "down") -> Tensor:
    """Wrap-around diagonals, which leave the grid on one side and continue on the other.

    FER-YOLO-Mamba calls them diagonals.

    Args:
        grid: the grid, with W columns.
        direction: ``down``: cells (i, (s + i) mod W) for s = 0, 1, ..., W - 1; ``up``: cells (i, (s - i) mod W).
    """
    i, j = grid.cells()
    return sorted_by((j - i if direction == "down" else j + i) % grid.shape[1], i)


@register_composite(
    "sheared",
    example=(
        "sheared",
        Grid(2, 3),
        [
            *([0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]),
            *([0, 4, 1, 5, 2, 3], [0, 5, 1, 3, 2, 4], [3, 2, 5, 1, 4, 0], [4, 2, 3, 1, 5, 0]),
        ],
    ),
)
def sheared() -> Sequence[object]:
    """`cross`, both shears, and the shears in reverse: the eight routes of FER-YOLO-Mamba."""
    both = ["shear", {"shear": "up"}]
    return ["cross", *both, {"reverse": both}]


@register("zigzag", on=PLANE, axes=(2,), example=("zigzag", ROWS, [[0, 1, 4, 8, 5, 2, 3, 6, 9, 10, 7, 11]]))
def zigzag(plane: Grid | Coordinates) -> Tensor:
    """Diagonal by diagonal from the top left, alternating down and up, as in JPEG.

    Args:
        plane: the grid or coordinates.
    """
    i, j = plane.cells()
    return sorted_by(i + j, torch.where((i + j) % 2 == 1, i, -i))


@register("serpentine", on=PLANE, example=("serpentine", ROWS, [[0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11]]))
def serpentine(plane: Grid | Coordinates, axes: Axes | None = None, flip: Axes = ()) -> Tensor:
    """Line by line, every second one in reverse, so that consecutive positions are neighbours.

    The two orders of the axes and the four corners of a plane give the eight routes of ZigMa.

    Args:
        plane: the grid or coordinates. Lines without coordinates are skipped.
        axes: axes from 0, the slowest first; None for their own order.
        flip: axes to traverse from their end.
    """
    cells = plane.ranks() if isinstance(plane, Coordinates) else plane.cells()
    sizes = [int(cell.max()) + 1 if len(cell) else 1 for cell in cells]
    order = _permuted(Grid(*sizes), axes)
    if any(axis >= len(sizes) for axis in flip):
        raise ValueError(f"a plane of {len(sizes)} axes has no axis {max(flip)} to flip")
    step = torch.zeros_like(cells[0])
    for axis in order:
        cell = sizes[axis] - 1 - cells[axis] if axis in flip else cells[axis]
        step = step * sizes[axis] + torch.where(step % 2 == 1, sizes[axis] - 1 - cell, cell)
    return sorted_by(step)


@register("morton", on=PLANE, example=("morton", Grid(3, 3), [[0, 1, 3, 4, 2, 5, 6, 7, 8]]))
def morton(plane: Grid | Coordinates) -> Tensor:
    """Along the Z-order curve: by the interleaved bits of the cell's indices.

    Args:
        plane: the grid or coordinates.
    """
    return sorted_by(morton_key(plane.cells()))


@register(
    "hilbert",
    on=PLANE,
    axes=(2,),
    example=("hilbert", Grid(4, 4), [[0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3]]),
)
def hilbert(plane: Grid | Coordinates) -> Tensor:
    """Along the Hilbert curve from the top left; along its generalisation on rectangles.

    Args:
        plane: the grid, or coordinates, as cells of the smallest square of 2^k x 2^k cells that contains them.
    """
    if isinstance(plane, Coordinates) or (plane.shape[0] == plane.shape[1] and plane.shape[0].bit_count() == 1):
        return sorted_by(hilbert_key(*plane.cells()))
    return torch.tensor(generalised_hilbert(*plane.shape), device="cpu")


@register(
    "window",
    on=PLANE,
    example=({"window": 2}, Grid(4, 4), [[0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]]),
)
def window(plane: Grid | Coordinates, size: Count, separate: bool = False) -> Tensor:
    """Window after window, row by row inside each (LocalMamba).

    Args:
        plane: the grid or coordinates.
        size: window size along each axis, cells. Windows at the end are smaller if it does not divide the grid.
        separate: whether to reset the state at the start of each window.
    """
    cells = plane.cells()
    outer = [cell // size for cell in cells]
    order = sorted_by(*outer, *(cell % size for cell in cells))
    if not separate:
        return order
    sizes = [int(cell.max()) + 1 if len(cell) else 1 for cell in outer]
    return _with_resets(order, _number(outer, sizes))


def _number(cells: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """Number cells row by row."""
    number = torch.zeros_like(cells[0])
    for cell, size in zip(cells, sizes, strict=True):
        number = number * size + cell
    return number


@register(
    "phase",
    on=Grid,
    axes=(2,),
    example=({"phase": [1, 0], "size": 2}, Grid(3, 3), [[3, -1, 5, -1]]),
    needs_convolution=True,
)
def phase(grid: Grid, offset: Axes, size: Count) -> Tensor:
    """One phase of `atrous`: every `size`-th cell of every `size`-th row.

    As published, phases with an odd first row are traversed by column, the others by row.

    Args:
        grid: the grid, padded to multiples of `size`; padded cells are absent steps.
        offset: first row and column of the phase.
        size: distance between cells.
    """
    if len(offset) != 2 or max(offset) >= size:
        raise ValueError(f"the offset of a phase is two remainders below its size {size}, not {offset}")
    i, j = grid.cells()
    rows, columns = (-(-sides // size) for sides in grid.shape)
    table = torch.full((rows, columns), -1, device="cpu")
    own = (i % size == offset[0]) & (j % size == offset[1])
    table[i[own] // size, j[own] // size] = own.nonzero().flatten()
    return (table.T if offset[0] % 2 else table).flatten()


@register_composite(
    "atrous",
    example=({"atrous": 2}, Grid(3, 3), [[0, 2, 6, 8], [3, -1, 5, -1], [1, -1, 7, -1], [4, -1, -1, -1]]),
)
def atrous(size: Count) -> Sequence[object]:
    """size^2 disjoint routes, each over every `size`-th cell of every `size`-th row (EfficientVMamba); merge: union.

    The routes never exchange information: a network of such scans alone performs worse than predicting the mean.
    Therefore layers reject the order without an additional convolution over the grid.

    Args:
        size: distance between cells.
    """
    return [{"phase": [i, j], "size": size} for j in range(size) for i in range(size)]


@register_composite(
    "video",
    example=({"video": "time"}, Grid(2, 1, 3), [[0, 3, 1, 4, 2, 5], [5, 2, 4, 1, 3, 0]]),
)
def video(first: Literal["space", "time"] = "space") -> Sequence[object]:
    """A grid (time, height, width) in both directions (VideoMamba).

    Args:
        first: ``space``: frame by frame; ``time``: position by position, each through time.
    """
    return [{"bidirectional": {"raster": [0, 1, 2] if first == "space" else [1, 2, 0]}}]


@register(
    "subspace",
    on=Grid,
    example=({"subspace": [0, 2]}, Grid(2, 2, 2), [[0, 1, 4, 5, -2, 2, 3, 6, 7]]),
)
def subspace(grid: Grid, axes: Axes) -> Tensor:
    """Scans over some axes of a grid, one for each index along the others (MLFSR), with resets in between.

    Args:
        grid: the grid.
        axes: scanned axes from 0, the slowest first.
    """
    if not axes or len(set(axes)) < len(axes) or max(axes) >= len(grid.shape):
        raise ValueError(f"the axes of a subspace are some of those of {grid}, from 0, each once, not {axes}")
    rest = [axis for axis in range(len(grid.shape)) if axis not in axes]
    length = math.prod(grid.shape[axis] for axis in axes)
    order = raster(grid, (*rest, *axes))
    segment = torch.arange(len(order), device="cpu") // length
    return _with_resets(order, torch.empty_like(order).scatter_(0, order, segment))


@register_composite(
    "six_way",
    example=(
        "six_way",
        Grid(2, 2, 2),
        [
            *([0, 1, 2, 3, 4, 5, 6, 7], [0, 2, 4, 6, 1, 3, 5, 7], [0, 4, 1, 5, 2, 6, 3, 7]),
            *([7, 6, 5, 4, 3, 2, 1, 0], [7, 5, 3, 1, 6, 4, 2, 0], [7, 3, 6, 2, 5, 1, 4, 0]),
        ],
    ),
)
def six_way() -> Sequence[object]:
    """A grid of three axes with each axis fastest once, and the three orders in reverse."""
    three = [{"raster": axes} for axes in ([0, 1, 2], [2, 0, 1], [1, 2, 0])]
    return [*three, {"reverse": three}]
