"""From places to steps and back: the gather and the scatter that define what an order means.

Both work on whole tensors, are differentiable twice, and serve the reference implementations. An extra row behind
the last place stands for "no place": steps without a visit read zeros there and write there what is then cut off.
So nothing that lies at an unvisited place, NaN included, can reach a result, and its gradient is exactly zero.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from seqssm_kernels.contract.order import RESET


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


class Piece:
    """A run of steps, read from and written to the places that an order gives them.

    What the chunked engines work with: unlike `to_steps` and `to_places` it touches only the places of its own steps.

    Attributes:
        start: first step.
        stop: the step behind the last.
        absent: `(1 or B, T, 1 or R)`, true at steps that visit nothing; None where every step visits a place.
        resets: the steps, counted from `start`, at which some route is reset.
        reset: `(1 or B, T, 1 or R)`, true at resets; None where there are none.
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
        """The steps of `x (B, L, 1 or R, W)` as `(B, T, 1 or R, W)` in `dtype`, zeros at absent steps.

        The answer has one route where neither `x` nor the order has more.
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
        """Writes `steps (B, T, R, W)` to their places in `out (B, L, R, W)`."""
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
        """Adds `steps (B, T, R, W)` into `grad (B, L, 1 or R, W)`, summed over the routes where `grad` has only one.

        Routes are added one after another, in a fixed order: no two of them meet at one place at the same time.
        """
        if grad.shape[2] == steps.shape[2]:
            self.write(grad, steps)  # a route visits a place once: nothing is there yet
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
    """Zeros in the shape of `x (B, L, 1 or R, W)` for `Piece.add`; in `dtype` where routes are summed."""
    return x.new_zeros(x.shape, dtype=dtype if x.shape[2] != routes else x.dtype)


def sequences(steps: int, batch: int, cu_seqlens: Tensor | None) -> list[tuple[int, int, slice]]:
    """The ranges of steps over which a state lives, `(start, stop, rows of the state)`.

    A packed call is a row of sequences in one batch element, each with its own row of the state; any other call is
    one range for all batch elements.
    """
    if cu_seqlens is None:
        return [(0, steps, slice(0, batch))]
    bounds = cu_seqlens.tolist()
    return [(start, stop, slice(i, i + 1)) for i, (start, stop) in enumerate(itertools.pairwise(bounds))]
