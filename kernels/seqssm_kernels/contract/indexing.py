"""Gather from positions to steps and scatter back, which define the semantics of an order.

Both work on whole tensors and are differentiable twice; the reference implementations use them. Steps without a visit
read from an extra row of zeros after the last position and write to an extra row that is then dropped. Values at
unvisited positions, NaN included, therefore never reach a result, and their gradients are exactly zero.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from seqssm_kernels.contract.order import RESET


def _index(order: Tensor, length: int, shape: tuple[int, ...]) -> Tensor:
    """Row indices `(B, S, R, *)` for gather and scatter; steps without a visit point to the extra row `length`."""
    rows = torch.where(order >= 0, order, length).to(torch.int64).transpose(1, 2)
    return rows.unsqueeze(-1).expand(shape)


def to_steps(x: Tensor, order: Tensor | None, routes: int) -> Tensor:
    """Gather `x (B, L, 1 or R, E)` along `order (1 or B, 1 or R, S)`: `(B, S, R, E)`, zeros at absent steps."""
    batch, length, _, width = x.shape
    x = x.expand(batch, length, routes, width)
    if order is None:
        return x
    padded = torch.cat([x, x.new_zeros(batch, 1, routes, width)], dim=1)
    return padded.gather(1, _index(order, length, (batch, order.shape[-1], routes, width)))


def to_places(y: Tensor, order: Tensor | None, length: int) -> Tensor:
    """Scatter the steps `y (B, S, R, E)` to their positions: `(B, L, R, E)`, zero at unvisited positions."""
    if order is None:
        return y
    batch, _, routes, width = y.shape
    out = y.new_zeros(batch, length + 1, routes, width)
    return out.scatter(1, _index(order, length, tuple(y.shape)), y)[:, :length]


def step_masks(order: Tensor | None, trailing: int) -> tuple[list[Tensor], list[Tensor]] | None:
    """Whether each step visits a position and whether it resets: two lists of `(1 or B, 1 or R, 1, ...)` flags.

    Args:
        order: order table `(1 or B, 1 or R, S)`. None means that every step visits; the result is then None.
        trailing: number of axes of size 1 to append.
    """
    if order is None:
        return None
    flags = order[(..., *([None] * trailing))]
    return list((flags >= 0).unbind(2)), list((flags == RESET).unbind(2))


class Piece:
    """A range of steps, read from and written to their positions in an order.

    Used by the chunked engines. Unlike `to_steps` and `to_places`, it accesses only the positions of its own steps.

    Attributes:
        start: first step.
        stop: end of the range, exclusive.
        absent: mask `(1 or B, T, 1 or R)`, true at steps without a visit; None if every step visits a position.
        resets: steps, relative to `start`, at which some route is reset.
        reset: mask `(1 or B, T, 1 or R)`, true at resets; None if there are none.
    """

    def __init__(self, order: Tensor | None, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self.absent: Tensor | None = None
        self.reset: Tensor | None = None
        self.resets: list[int] = []
        self._ids: Tensor | None = None
        if order is None:
            return
        ids = order[:, :, start:stop].to(torch.int64).transpose(1, 2)
        absent = ids < 0
        if bool(absent.any()):
            self.absent = absent
            reset = ids == RESET
            self.resets = reset.any(dim=2).any(dim=0).nonzero().flatten().tolist()
            self.reset = reset if self.resets else None
            ids = ids.clamp(min=0)
        self._ids = ids

    def read(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Gather the steps of `x (B, L, 1 or R, W)` as `(B, T, 1 or R, W)` in `dtype`, zeros at absent steps.

        The result has one route if both `x` and the order have one.
        """
        if self._ids is None:
            return x[:, self.start : self.stop].to(dtype)
        batch, length, routes, width = x.shape
        if length == 0:
            return x.new_zeros((batch, self.stop - self.start, max(routes, self._ids.shape[2]), width), dtype=dtype)
        b = torch.arange(batch, device=x.device)[:, None, None]
        r = torch.arange(routes, device=x.device)
        steps = x[b, self._ids, r].to(dtype)
        return steps if self.absent is None else steps.masked_fill_(self.absent[..., None], 0)

    def write(self, out: Tensor, steps: Tensor) -> None:
        """Scatter `steps (B, T, R, W)` to their positions in `out (B, L, R, W)`."""
        if self._ids is None:
            out[:, self.start : self.stop] = steps
            return
        shape = steps.shape[:3]
        if self.absent is None:
            b = torch.arange(shape[0], device=out.device)[:, None, None]
            r = torch.arange(shape[2], device=out.device)
            out[b, self._ids, r] = steps.to(out.dtype)
        else:
            b, t, r = (~self.absent).expand(shape).nonzero(as_tuple=True)
            out[b, self._ids.expand(shape)[b, t, r], r] = steps[b, t, r].to(out.dtype)

    def add(self, grad: Tensor, steps: Tensor) -> None:
        """Add `steps (B, T, R, W)` into `grad (B, L, 1 or R, W)`, summed over the routes if `grad` has only one.

        Routes are added one after another in a fixed order, because two routes may visit the same position.
        """
        if grad.shape[2] == steps.shape[2]:
            self.write(grad, steps)  # a route visits a position at most once, so nothing is overwritten
        elif self._ids is None or self._ids.shape[2] == 1:
            self.write(grad, steps.sum(2, keepdim=True))
        else:
            for r in range(steps.shape[2]):
                route = self._route(r)
                route.write(grad, route.read(grad, steps.dtype) + steps[:, :, r : r + 1])

    def _route(self, r: int) -> Piece:
        one = Piece(None, self.start, self.stop)
        assert self._ids is not None
        one._ids = self._ids[:, :, r : r + 1]
        one.absent = None if self.absent is None else self.absent[:, :, r : r + 1]
        return one


def grad_like(x: Tensor, routes: int, dtype: torch.dtype) -> Tensor:
    """Zeros in the shape of `x (B, L, 1 or R, W)` for `Piece.add`; in `dtype` if routes are summed."""
    return x.new_zeros(x.shape, dtype=dtype if x.shape[2] != routes else x.dtype)


def sequences(steps: int, batch: int, cu_seqlens: Tensor | None) -> list[tuple[int, int, slice]]:
    """Ranges of steps with a common state, `(start, stop, rows of the state)`.

    A packed call has one range per sequence, each with its own row of the state. Any other call has one range for all
    batch elements.
    """
    if cu_seqlens is None:
        return [(0, steps, slice(0, batch))]
    bounds = cu_seqlens.tolist()
    return [(start, stop, slice(i, i + 1)) for i, (start, stop) in enumerate(itertools.pairwise(bounds))]
