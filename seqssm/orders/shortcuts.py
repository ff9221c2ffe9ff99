"""Single orders as functions: tables on a length, and positions of coordinates and scores in order of visit."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from seqssm.orders.geometry import Coordinates, Length, Scores
from seqssm.orders.registry import ENTRIES, Order
from seqssm.orders.spec import Spec, routes
from seqssm.orders.tables import build, pack_steps, visit

PlaneOrder = Literal["row", "column", "serpentine", "hilbert"]


def forward(length: int, device: torch.device | str | None = None) -> Tensor:
    """(1, length): positions from the first to the last."""
    return torch.arange(length, dtype=torch.int32, device=device).unsqueeze(0)


def reverse(length: int, device: torch.device | str | None = None) -> Tensor:
    """(1, length): positions from the last to the first."""
    return _built("reverse", length, device)


def bidirectional(length: int, device: torch.device | str | None = None) -> Tensor:
    """(2, length): forward, and reverse."""
    return _built("bidirectional", length, device)


def stride(length: int, rate: int, pads: bool = False, device: torch.device | str | None = None) -> Tensor:
    """(1, S): every `rate`-th position from the first, then every `rate`-th from the second, and so on.

    This is MambaMIL's reordering (arXiv 2403.06800; in its code: pad, view as rows of `rate`, transpose,
    flatten). Length 7 at rate 2 gives 0 2 4 6 1 3 5.

    Args:
        length: number of positions.
        rate: distance between consecutive steps; 1 is `forward`.
        pads: whether to keep the padded positions of the published sequence as absent steps, 0 2 4 6 1 3 5 -1, with
            S = ceil(length / rate) * rate. An absent step does not change the state or the result of the scan.
        device: device of the table.

    Raises:
        ValueError: `rate` is not a positive integer.
    """
    return _built({"stride": rate, "pads": pads}, length, device)


def _built(spec: Spec, length: int, device: torch.device | str | None) -> Tensor:
    table = build(spec, length, device)
    return forward(length, device) if table is None else table


def positions(spec: Spec, coords: Tensor) -> Tensor:
    """Positions of one set of coordinates in the order of a single route.

    Args:
        spec: name of an order on coordinates.
        coords: coordinates, (N, 2) integers, x and y of each position.

    Returns:
        Positions in order of visit, int64 (N,).

    Raises:
        ValueError: an unknown name, an ordering with several routes, or a wrong shape.
    """
    parsed = routes(spec)
    if len(parsed) != 1:
        raise ValueError(f"the ordering {spec!r} has {len(parsed)} routes, expected one")
    return visit(parsed[0], Coordinates(coords))


def by_lattice(coords: Tensor, name: PlaneOrder) -> Tensor:
    """Positions with coordinates in the order `name`, (N,) int64; see `positions`.

    Args:
        coords: coordinates, (N, 2) integers, x and y of each position.
        name: ``"row"``, ``"column"``, ``"serpentine"``, ``"hilbert"``, or another order on coordinates.

    Raises:
        ValueError: an unknown name, or a wrong shape.
    """
    plane = [key for key, entry in ENTRIES.items() if Coordinates in entry.on]
    if name not in plane:
        raise ValueError(f"unknown order {name!r}; there are {', '.join(plane)}")
    return positions(name, coords)


def row_major(coords: Tensor) -> Tensor:
    """(N,): from left to right, row after row from the top: sorted by (y, x) of the coordinates (N, 2)."""
    return positions("row", coords)


def column_major(coords: Tensor) -> Tensor:
    """(N,): from top to bottom, column after column from the left: sorted by (x, y) of the coordinates (N, 2)."""
    return positions("column", coords)


def serpentine(coords: Tensor) -> Tensor:
    """(N,): row after row, every second row that has positions from right to left, of coordinates (N, 2)."""
    return positions("serpentine", coords)


def hilbert(coords: Tensor) -> Tensor:
    """(N,): along the Hilbert curve on the smallest grid of 2^k x 2^k cells that contains the coordinates (N, 2).

    The curve starts at the top left: 4 x 4 gives 0 1 5 4 8 12 13 9 10 14 15 11 7 6 2 3. The cell size is the greatest
    common divisor of the coordinates' distances, so that gaps between positions are cells.
    """
    return positions("hilbert", coords)


def random(length: int, seed: int) -> Tensor:
    """(length,): a random permutation of the positions determined by `seed`."""
    return visit(Order("random", (("seed", seed),)), Length(length))


def by_score(scores: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """Positions in ascending order of score: the highest comes last, with all others in its state.

    Args:
        scores: scores, (..., N), sorted along the last axis; NaN comes last.
        cu_seqlens: start offsets of packed sequences and the total length, (n + 1,); each sequence is sorted
            separately.

    Returns:
        Positions in order of visit, int64 (..., N).
    """
    flat = scores.flatten(0, -2) if scores.ndim > 1 else scores.unsqueeze(0)
    if cu_seqlens is None:
        return visit(Order("importance"), Scores(flat)).view(scores.shape)
    ends = cu_seqlens.to(scores.device)
    rows = [pack_steps(ends, flat.shape[1], "importance", Scores(row)).order for row in flat]
    return torch.stack(rows).long().view(scores.shape)  # type: ignore[arg-type]
