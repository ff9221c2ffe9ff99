"""The grid behind the coordinates of patches: spacing, sides, rows of grids with different origins, covered area."""

from __future__ import annotations

import numpy as np

DEFAULT_SIDE = 256  # level-0 pixels, where nothing tells the side of a patch
TOLERANCE = 0.1  # of the spacing, by which the rows of one grid may be off


def spacing(coords: np.ndarray) -> int | None:
    """The commonest distance between neighbours in a row, level-0 pixels.

    Neighbours in a column decide where no row has two patches.

    Args:
        coords: coordinates, (N, 2) integers, x and y.

    Returns:
        None for patches without a neighbour in their row or column.
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
    """(Side of a patch in level-0 pixels, whether it is known or follows from the spacing).

    Args:
        coords: coordinates, (N, 2).
        known: patch size stated by the file, or None.
    """
    if known is not None:
        return known, True
    step = spacing(coords)
    return (DEFAULT_SIDE, False) if step is None else (step, True)


def row_grids(coords: np.ndarray) -> list[np.ndarray]:
    """The patches of each grid, where tissue pieces were cut on grids with rows of their own.

    Rows closer together than half the spacing are of different grids; a row belongs to the grid whose last row is a
    multiple of the spacing above it.

    Args:
        coords: coordinates, (N, 2).

    Returns:
        Positions of the patches of each grid, the grid with the highest row first; one array for a single grid.
    """
    everything = np.arange(len(coords))
    step = spacing(coords)
    rows, row = np.unique(coords[:, 1], return_inverse=True)
    if step is None or len(rows) < 2 or np.diff(rows).min() >= step / 2:
        return [everything]
    last: list[int] = []  # y of the last row of each grid
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
    """The fraction of the patches' bounding box that they cover, counted in cells of a quarter of a side.

    Args:
        coords: coordinates, (N, 2).
        side: side length of a patch, level-0 pixels.
    """
    extent = coords.max(0) + side - coords.min(0)
    cell = max(side / 4, float(extent.max()) / 4000)  # bounded memory
    size = np.maximum(1, np.ceil(extent / cell).astype(np.int64))
    seen = np.zeros(size[::-1], dtype=bool)
    first = np.floor((coords - coords.min(0)) / cell).astype(np.int64)
    many = max(1, round(side / cell))
    for dy in range(many):
        for dx in range(many):
            seen[np.minimum(first[:, 1] + dy, size[1] - 1), np.minimum(first[:, 0] + dx, size[0] - 1)] = True
    return float(seen.mean())
