"""Merge rules for the outputs of several routes, and the check that they match the coverage of the routes."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from seqssm.orders.geometry import Coordinates, Degrees, Geometry, Grid, Length, Scores
from seqssm.orders.registry import Orders
from seqssm.orders.spec import format_orders
from seqssm.orders.tables import build

Merge = Literal["sum", "mean", "concat", "union", "gate"]
MERGES = ("sum", "mean", "concat", "union", "gate")


def coverage(table: Tensor, length: int) -> Tensor:
    """Count the routes that visit each position.

    Args:
        table: order table, integers (R, S).
        length: number of positions.

    Returns:
        Number of routes per position, int64 (length,).
    """
    visited = table[table >= 0].long()
    return torch.zeros(length, dtype=torch.int64, device=table.device).index_add_(0, visited, torch.ones_like(visited))


@lru_cache(maxsize=256)
def require_coverage(parsed: Orders, merge: Merge) -> None:
    """Reject a merge that does not match the routes; checked once per ordering, on small geometries.

    ``union`` requires each position to be visited by exactly one route, ``mean``, ``concat`` and ``gate`` by every
    route, and ``sum`` by at least one.

    Args:
        parsed: routes of the ordering.
        merge: rule that combines their outputs.

    Raises:
        ValueError: a coverage that does not match, an unknown merge, or orders without a common geometry.
    """
    if merge not in MERGES:
        raise ValueError(f"merge must be one of {', '.join(MERGES)}, not {merge!r}")
    fitting, refusal = [], None
    with _disable_current_modes():  # the layer may be built with fake tensors
        for geometry in _probes():
            try:
                table = build(parsed, geometry, "cpu")
            except ValueError as error:
                refusal = error
                continue
            fitting.append(geometry)
            if table is not None:
                _require(parsed, merge, coverage(table, geometry.positions))
    if not fitting:
        raise ValueError(f"no geometry is valid for all of the orders {format_orders(parsed)}: {refusal}")


def _require(parsed: Orders, merge: Merge, count: Tensor) -> None:
    least, most, routes = int(count.min()), int(count.max()), len(parsed)
    if merge == "union":
        fits, needed = least == most == 1, "exactly one route"
    elif merge == "sum":
        fits, needed = least >= 1, "at least one route"
    else:
        fits, needed = least == most == routes, "every route"
    if not fits:
        raise ValueError(
            f"merge {merge} needs every position visited by {needed}; of the {routes} routes {format_orders(parsed)}, "
            f"{least if least == most else f'{least} to {most}'} visit a position"
        )


def _probes() -> list[Geometry]:
    """Small geometries of all kinds and numbers of axes, with sizes that are not multiples of one another."""
    values = torch.arange(12, device="cpu") * 5 % 12
    return [
        Length(12),
        Grid(5, 7),
        Grid(2, 3, 5),
        Grid(2, 3, 2, 3),
        Coordinates(torch.stack([values, values % 5], dim=1)),
        Degrees(values),
        Scores(values),
    ]
