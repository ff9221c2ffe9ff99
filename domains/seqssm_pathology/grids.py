"""Grids of patch coordinates: spacing, patch size, rows of grids with different origins, covered area."""

from __future__ import annotations

import numpy as np

DEFAULT_SIDE = 256  # level-0 pixels, used if the patch size is unknown
TOLERANCE = 0.1  # maximum offset of the rows of one grid, as a fraction of the spacing


def spacing(coords: np.ndarray) -> int | None:
    """Find the most common distance between neighbours in a row, level-0 pixels.

    If no row has two patches, neighbours in a column are used.

    Args:
        coords: coordinates x and y, (N, 2) integers.

    Returns:
        The spacing, or None for patches without a neighbour in their row or column.
    """
    for along, across in ((0, 1), (1, 0)):
        order = np.lexsort((coords[:, along], coords[:, across]))
        steps = np.diff(coords[order], axis=0)
        gaps = steps[(steps[:, across] == 0) & (steps[:, along] > 0), along]
        if len(gaps):
            values, counts = np.unique(gaps, return_counts=True)
            return int(values[counts.argmax()])
    return None


def side_of(coords: np.ndarray, known: int | None) -> tuple[int, bool]:
    """Return (side length of a patch in level-0 pixels, whether it is known or determined by the spacing).

    Args:
        coords: coordinates, (N, 2).
        known: patch size stated by the file, or None.
    """
    if known is not None:
        return known, True
    step = spacing(coords)
    return (DEFAULT_SIDE, False) if step is None else (step, True)


def row_grids(coords: np.ndarray) -> list[np.ndarray]:
    """Group patches by grid, for tissue sections that were tiled on grids with separate rows.

    Rows closer than half the spacing belong to different grids; a row belongs to the grid whose last row is a multiple
    of the spacing above it.

    Args:
        coords: coordinates, (N, 2).

    Returns:
        Patch indices of each grid, starting with the grid of the highest row; one array for a single grid.
    """
    everything = np.arange(len(coords))
    step = spacing(coords)
    rows, row = np.unique(coords[:, 1], return_inverse=True)
    if step is None or len(rows) < 2 or np.diff(rows).min() >= step / 2:
        return [everything]
    last: list[int] = []  # y coordinate of the last row of each grid
    grid = np.empty(len(rows), dtype=np.int64)
    for position, y in enumerate(rows):
        off = [abs((y - before) / step - round((y - before) / step)) for before in last]
        fits = [number for number, one in enumerate(off) if one <= TOLERANCE and y - last[number] >= step / 2]
        if fits:
            own = min(fits, key=lambda number: (off[number], y - last[number]))
            last[own] = int(y)
        else:
            own = len(last)
            last.append(int(y))
        grid[position] = own
    return [everything[grid[row] == number] for number in range(len(last))]


def covered(coords: np.ndarray, side: int) -> float:
    """Compute the covered fraction of the patches' bounding box, counted in cells of a quarter of the patch size.

    Args:
        coords: coordinates, (N, 2).
        side: side length of a patch, level-0 pixels.
    """
    extent = coords.max(0) + side - coords.min(0)
    cell = max(side / 4, float(extent.max()) / 4000)  # bounds the memory
    size = np.maximum(1, np.ceil(extent / cell).astype(np.int64))
    seen = np.zeros(size[::-1], dtype=bool)
    first = np.floor((coords - coords.min(0)) / cell).astype(np.int64)
    many = max(1, round(side / cell))
    for dy in range(many):
        for dx in range(many):
            seen[np.minimum(first[:, 1] + dy, size[1] - 1), np.minimum(first[:, 0] + dx, size[0] - 1)] = True
    return float(seen.mean())
