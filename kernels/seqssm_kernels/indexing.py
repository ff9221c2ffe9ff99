"""From places to steps and back: the gather and the scatter that define what an order means.

Both work on whole tensors, are differentiable twice, and serve the reference implementations. An extra row behind
the last place stands for "no place": steps without a visit read zeros there and write there what is then cut off.
So nothing that lies at an unvisited place, NaN included, can reach a result, and its gradient is exactly zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqssm_kernels.order import RESET


def _index(order: Tensor, length: int, shape: tuple[int, ...]) -> Tensor:
    """Row numbers `(B, S, R, *)` for gather and scatter; steps without a visit point at the extra row `length`."""
    rows = torch.where(order >= 0, order, length).to(torch.int64).transpose(1, 2)
    return rows.unsqueeze(-1).expand(shape)


def to_steps(x: Tensor, order: Tensor | None, routes: int) -> Tensor:
    """Reads `x (B, L, 1 or R, E)` along `order (1 or B, 1 or R, S)`: `(B, S, R, E)`, zeros at absent steps."""
    batch, length, _, width = x.shape
    x = x.expand(batch, length, routes, width)
    if order is None:
        return x
    padded = torch.cat([x, x.new_zeros(batch, 1, routes, width)], dim=1)
    return padded.gather(1, _index(order, length, (batch, order.shape[-1], routes, width)))


def to_places(y: Tensor, order: Tensor | None, length: int) -> Tensor:
    """Writes the steps `y (B, S, R, E)` to their places: `(B, L, R, E)`, zero at unvisited places."""
    if order is None:
        return y
    batch, _, routes, width = y.shape
    out = y.new_zeros(batch, length + 1, routes, width)
    return out.scatter(1, _index(order, length, tuple(y.shape)), y)[:, :length]


def step_masks(order: Tensor | None, trailing: int) -> tuple[list[Tensor], list[Tensor]] | None:
    """For every step, whether it visits a place and whether it resets: two lists of `(1 or B, 1 or R, 1, ...)` flags.

    Args:
        order: `(1 or B, 1 or R, S)`, or None, where every step visits: then the answer is None.
        trailing: how many axes of size 1 to append.
    """
    if order is None:
        return None
    flags = order[(..., *([None] * trailing))]
    return list((flags >= 0).unbind(2)), list((flags == RESET).unbind(2))
