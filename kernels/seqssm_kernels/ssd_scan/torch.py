"""The scan of Mamba-2 in chunks of matrix products, for every dtype and device.

Within a chunk of 64 steps, with `l[t] = dt[t] A` and `u[t] = w[t] x[t]`, all steps are computed at once::

    y = (exp(segsum l) * C B^T) u + exp(cumsum l) * C h^T        h' = exp(sum l) h + (exp(sum of later l) * u)^T B

The forward pass saves the state before every chunk; the backward pass runs through the chunks in reverse and recomputes
each chunk's matrices. Memory in addition to inputs and outputs is that of one chunk and of the chunk states. Chunks are
split at resets. Matrix products would spread an infinity or a NaN to all steps of a chunk, including earlier ones; a
chunk whose result is not finite is computed step by step instead.

Formulation: T. Dao and A. Gu, "Transformers are SSMs" (2024), section 6 and listing 1.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from seqssm_kernels.contract.calls import SsdCall, SsdSizes, state_dtype
from seqssm_kernels.contract.indexing import Piece, grad_like, sequences
from seqssm_kernels.contract.order import RESET

CHUNK = 64


def _kept_shape(sizes: SsdSizes, packed: bool) -> tuple[int, ...]:
    """Shape of the saved states: one slot per possible chunk, independent of the sequence boundaries."""
    slots = sizes.steps // CHUNK + sizes.sequences if packed else (sizes.steps + CHUNK - 1) // CHUNK
    return slots, sizes.batch, sizes.routes, sizes.heads, sizes.head_dim, sizes.d_state


def saved_size(sizes: SsdSizes, packed: bool) -> int:
    """Number of saved values."""
    return math.prod(_kept_shape(sizes, packed))


class _Steps(NamedTuple):
    """The inputs of some steps without a reset among them; J = H / G heads share a group.

    Attributes:
        piece: the steps, and how to read and write them.
        x: `(B, R, G, J, T, P)`.
        dt_raw: `(B, R, G, J, T)`, before softplus; as `dt`, `w` and `decay`.
        decay: `dt A`, the logarithm of the decay.
        u: `w x`.
        B: `(B, R, G, T, N)`, as `C`.
    """

    piece: Piece
    x: Tensor
    dt_raw: Tensor
    dt: Tensor
    w: Tensor
    decay: Tensor
    u: Tensor
    B: Tensor
    C: Tensor


class _Layout:
    """Conversion between the shapes of a call and those of `_Steps`."""

    def __init__(self, sizes: SsdSizes, acc: torch.dtype) -> None:
        self.sizes, self.acc = sizes, acc
        self.heads = (sizes.groups, sizes.heads // sizes.groups)

    def per_channel(self, t: Tensor, piece: Piece) -> Tensor:
        """Steps of `(B, L, 1 or R, H, P)` as `(B, R, G, J, T, P)`."""
        steps = piece.read(t.flatten(3), self.acc).unflatten(3, (*self.heads, t.shape[4]))
        return self._routes(steps).permute(0, 2, 3, 4, 1, 5)

    def per_head(self, t: Tensor, piece: Piece) -> Tensor:
        """Steps of `(B, L, 1 or R, H)` as `(B, R, G, J, T)`."""
        return self._routes(piece.read(t, self.acc).unflatten(3, self.heads)).permute(0, 2, 3, 4, 1)

    def per_group(self, t: Tensor, piece: Piece) -> Tensor:
        """Steps of `(B, L, 1 or R, G, N)` as `(B, R, G, T, N)`."""
        steps = piece.read(t.flatten(3), self.acc).unflatten(3, t.shape[3:])
        return self._routes(steps).permute(0, 2, 3, 1, 4)

    def _routes(self, steps: Tensor) -> Tensor:
        """Expand to all routes, because matrix products do not reduce broadcast gradients."""
        return steps.expand(steps.shape[0], steps.shape[1], self.sizes.routes, *steps.shape[3:])

    def parameter(self, t: Tensor) -> Tensor:
        """`(1 or R, H, ...)` as `(1, 1 or R, G, J, 1, ...)`."""
        t = t.unflatten(1, self.heads)
        return t[None, :, :, :, None]

    def absent(self, piece: Piece) -> Tensor | None:
        """`(1 or B, 1 or R, 1, 1, T)`, true at steps that visit nothing."""
        return None if piece.absent is None else piece.absent.transpose(1, 2)[:, :, None, None]

    def state(self, t: Tensor) -> Tensor:
        """`(B, R, H, P, N)` as `(B, R, G, J, P, N)`."""
        return t.unflatten(2, self.heads)

    def add(self, grad: Tensor | None, t: Tensor, piece: Piece) -> None:
        """Add steps in a shape of `_Steps`, with time on the second axis, into a gradient `(B, L, 1 or R, ...)`."""
        if grad is not None:
            piece.add(grad.flatten(3), t.flatten(3))  # a view, because gradients are contiguous


def _steps(call: SsdCall, piece: Piece, layout: _Layout) -> _Steps:
    dt_raw = layout.per_head(call.dt, piece)
    if call.dt_bias is not None:
        dt_raw = dt_raw + layout.parameter(call.dt_bias)
    dt = F.softplus(dt_raw, threshold=20.0) if call.dt_softplus else dt_raw
    absent = layout.absent(piece)
    if absent is not None:
        dt = dt.masked_fill(absent, 0)
    decay = dt * layout.parameter(call.A)
    if absent is not None:
        decay = decay.masked_fill(absent, 0)  # also if 0 * A is not 0
    w = dt if call.w is None else layout.per_head(call.w, piece)
    x, B, C = layout.per_channel(call.x, piece), layout.per_group(call.B, piece), layout.per_group(call.C, piece)
    return _Steps(piece, x, dt_raw, dt, w, decay, w[..., None] * x, B, C)


class _Decays(NamedTuple):
    """Products of decays inside a chunk: between two steps `(.., T, T)`, from the start, to the end `(.., T)`."""

    between: Tensor
    start: Tensor
    end: Tensor


def _decays(decay: Tensor) -> _Decays:
    """Sum logarithms between two steps directly: differences of one running sum would cancel."""
    length = decay.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=decay.device).tril(-1)
    sums = decay[..., :, None].expand(*decay.shape, length).masked_fill(~later, 0).cumsum(-2)
    between = sums.exp().masked_fill(later.transpose(0, 1), 0)
    return _Decays(between, decay.cumsum(-1).exp(), between[..., -1, :])


def _run(steps: _Steps, h: Tensor) -> tuple[Tensor, Tensor]:
    """y `(B, R, G, J, T, P)` without skip and gate, and the state after the steps, from the state before them."""
    decays = _decays(steps.decay)
    B, C = steps.B.unsqueeze(3), steps.C.unsqueeze(3)
    y = (decays.between * (C @ B.transpose(-1, -2))) @ steps.u
    y = y + decays.start[..., None] * (C @ h.transpose(-1, -2))
    after = decays.start[..., -1, None, None] * h + (decays.end[..., None] * steps.u).transpose(-1, -2) @ B
    if not bool(torch.isfinite(after).all() & torch.isfinite(y).all()):
        ys, states = _run_singly(steps, h)
        return torch.stack(ys, -2), states[-1]
    return y, after


def _run_singly(steps: _Steps, h: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """y of each step, and the states: that before the first step, then that after each step."""
    ys, states = [], [h]
    of_heads = (t.unsqueeze(3).unbind(-2) for t in (steps.B, steps.C))
    for a, u, B, C in zip(steps.decay.exp().unbind(-1), steps.u.unbind(-2), *of_heads):
        h = a[..., None, None] * h + u[..., None] * B[..., None, :]
        ys.append((h * C[..., None, :]).sum(-1))
        states.append(h)
    return ys, states


class _Adjoint(NamedTuple):
    """Gradients of the inputs of some steps, shaped as in `_Steps`, and of the state before them."""

    decay: Tensor
    u: Tensor
    B: Tensor
    C: Tensor
    h: Tensor


def _adjoint(steps: _Steps, h: Tensor, dy: Tensor, dh: Tensor) -> _Adjoint:
    """Gradients of `_run`, given those of y and of the state after the steps."""
    decays = _decays(steps.decay)
    B, C, u = steps.B.unsqueeze(3), steps.C.unsqueeze(3), steps.u
    start, end = decays.start[..., None], decays.end[..., None]
    mixing = decays.between * (C @ B.transpose(-1, -2))
    of_end = B @ dh.transpose(-1, -2)  # gradient with respect to u, without the decay to the end
    du = mixing.transpose(-1, -2) @ dy + end * of_end
    dmixing = dy @ u.transpose(-1, -2)
    of_products = (dmixing * decays.between).sum(3)
    dC = of_products @ steps.B + ((start * dy) @ h).sum(3)
    dB = of_products.transpose(-1, -2) @ steps.C + ((end * u) @ dh).sum(3)
    dh_before = start[..., -1:, :] * dh + (start * dy).transpose(-1, -2) @ C

    # The decay of step k lies between all s < k and t >= k, between the start and all t >= k, between all s < k and
    # the end, and between start and end. Each sum begins with its smallest terms.
    pairs = (dmixing * mixing).cumsum(-1).tril(-1).sum(-2)
    from_start = (start * dy * (C @ h.transpose(-1, -2))).sum(-1)
    to_end = (end * u * of_end).sum(-1).cumsum(-1)
    through = (start[..., -1:, :] * h * dh).sum((-1, -2))
    ddecay = from_start.flip(-1).cumsum(-1).flip(-1) + through[..., None]
    ddecay[..., 1:] += pairs[..., :-1] + to_end[..., :-1]
    found = _Adjoint(ddecay, du, dB, dC, dh_before)
    if not bool(torch.stack([torch.isfinite(t).all() for t in found]).all()):
        return _adjoint_singly(steps, h, dy, dh)
    return found


def _adjoint_singly(steps: _Steps, h: Tensor, dy: Tensor, dh: Tensor) -> _Adjoint:
    """The adjoint recurrence: with G the gradient of a state, `G[t] = dy[t] C[t]^T + a[t + 1] G[t + 1]`."""
    _, states = _run_singly(steps, h)
    a = steps.decay.exp()
    ddecay, du, dB, dC = (torch.empty_like(t) for t in (steps.decay, steps.u, steps.B, steps.C))
    for t in range(steps.decay.shape[-1] - 1, -1, -1):
        B, C = steps.B[..., None, t, None, :], steps.C[..., None, t, None, :]
        dC[..., t, :] = (dy[..., t, :, None] * states[t + 1]).sum((-3, -2))
        dh = dh + dy[..., t, :, None] * C
        du[..., t, :] = (dh * B).sum(-1)
        dB[..., t, :] = (dh * steps.u[..., t, :, None]).sum((-3, -2))
        dh = a[..., t, None, None] * dh
        ddecay[..., t] = (dh * states[t]).sum((-2, -1))
    return _Adjoint(ddecay, du, dB, dC, dh)


def _plain_products(x: Tensor) -> contextlib.AbstractContextManager:
    """Disable autocast, which would compute the matrix products in half precision."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def _cuts(order: Tensor | None) -> list[int]:
    """Steps before which a chunk is split: those at which some route is reset."""
    if order is None:
        return []
    return (order == RESET).flatten(0, 1).any(0).nonzero().flatten().tolist()


def _parts(start: int, stop: int, cuts: list[int]) -> list[tuple[int, int]]:
    """Ranges of the steps of a chunk, split before resets."""
    bounds = [start, *[cut for cut in cuts if start < cut < stop], stop]
    return list(itertools.pairwise(bounds))


def _without_reset(h: Tensor, order: Tensor | None, step: int, cuts: list[int]) -> Tensor:
    """A state `(B, R, G, J, P, N)` or its gradient, set to zero where `step` is a reset."""
    if order is None or step not in cuts:
        return h
    return h.masked_fill((order[:, :, step] == RESET)[:, :, None, None, None, None], 0)


def forward(call: SsdCall, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan; see `engines` for the contract."""
    with _plain_products(call.x):
        return _forward(call, save)


def _forward(call: SsdCall, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    x, order, initial_state, packed = call.x, call.order, call.initial_state, call.cu_seqlens is not None
    acc, sizes = state_dtype(x.dtype), call.sizes()
    layout = _Layout(sizes, acc)
    out = x.new_empty(sizes.out_shape) if order is None else x.new_zeros(sizes.out_shape)
    final_state = x.new_zeros(sizes.state_shape, dtype=acc) if initial_state is None else initial_state.clone()
    final_state = final_state.contiguous()
    saved = x.new_zeros(saved_size(sizes, packed) if save else 0, dtype=acc)
    kept = saved.view(_kept_shape(sizes, packed)) if save else None
    cuts = _cuts(order)

    slot = 0
    for first, last, rows in sequences(sizes.steps, sizes.batch, call.cu_seqlens):
        h = layout.state(final_state[rows])
        for chunk in range(first, last, CHUNK):
            if kept is not None:
                kept[slot] = h.flatten(2, 3)
                slot += 1
            for start, stop in _parts(chunk, min(chunk + CHUNK, last), cuts):
                steps = _steps(call, Piece(order, start, stop), layout)
                y, h = _run(steps, _without_reset(h, order, start, cuts))
                if call.D is not None:
                    y = y + _skip(call.D, layout) * steps.x
                if call.z is not None:
                    y = y * F.silu(layout.per_channel(call.z, steps.piece))
                steps.piece.write(out.flatten(3), y.permute(0, 4, 1, 2, 3, 5).flatten(3))
        final_state[rows] = h.flatten(2, 3)
    return out, final_state, saved


def _skip(D: Tensor, layout: _Layout) -> Tensor:
    """D as `(1, 1 or R, G, J, 1, 1 or P)`."""
    return layout.parameter(D if D.dim() == 3 else D[..., None])


class _Gradients:
    """Accumulators of the backward pass, in the shapes of the arguments with all routes."""

    def __init__(self, call: SsdCall, needs: tuple[bool, ...], sizes: SsdSizes, acc: torch.dtype) -> None:
        wanted = dict(zip(("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "w", "initial_state"), needs))
        self.routes = sizes.routes
        self.of: dict[str, Tensor | None] = {}
        for name in ("x", "dt", "B", "C", "z", "w"):
            t = getattr(call, name)
            self.of[name] = None if t is None or not wanted[name] else grad_like(t, sizes.routes, acc)
        for name in ("A", "D", "dt_bias"):
            t = getattr(call, name)
            self.of[name] = t.new_zeros((sizes.routes, *t.shape[1:])) if t is not None and wanted[name] else None

    def result(self, name: str, t: Tensor | None) -> Tensor | None:
        """The gradient in the shape and dtype of an argument."""
        grad = self.of[name]
        if grad is None or t is None:
            return None
        if name in ("A", "D", "dt_bias") and t.shape[0] != self.routes:
            grad = grad.sum(0, keepdim=True)
        return grad.to(t.dtype)


def backward(
    dout: Tensor, dfinal: Tensor | None, call: SsdCall, saved: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the scan; see `engines` for the contract."""
    with _plain_products(call.x):
        return _backward(dout, dfinal, call, saved, needs)


def _backward(
    dout: Tensor, dfinal: Tensor | None, call: SsdCall, saved: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    acc, sizes, order, packed = state_dtype(call.x.dtype), call.sizes(), call.order, call.cu_seqlens is not None
    layout, grads = _Layout(sizes, acc), _Gradients(call, needs, sizes, acc)
    shape = sizes.state_shape
    dinitial = call.x.new_zeros(shape, dtype=acc) if dfinal is None else dfinal.to(acc).contiguous().clone()
    kept, cuts = saved.view(_kept_shape(sizes, packed)), _cuts(order)

    slot = 0
    for first, last, rows in sequences(sizes.steps, sizes.batch, call.cu_seqlens):
        chunks = range(first, last, CHUNK)
        dh = layout.state(dinitial[rows])
        for i in reversed(range(len(chunks))):
            h, parts = layout.state(kept[slot + i]), []
            bounds = _parts(chunks[i], min(chunks[i] + CHUNK, last), cuts)
            for start, stop in bounds:
                h = _without_reset(h, order, start, cuts)
                steps = _steps(call, Piece(order, start, stop), layout)
                parts.append((steps, h))
                if stop < bounds[-1][1]:
                    _, h = _run(steps, h)
            for steps, h in reversed(parts):
                dh = _step_back(call, steps, h, dout, dh, layout, grads)
                dh = _without_reset(dh, order, steps.piece.start, cuts)
        dinitial[rows] = dh.flatten(2, 3)
        slot += len(chunks)

    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "w")
    return *[grads.result(name, getattr(call, name)) for name in names], dinitial if needs[-1] else None


def _step_back(
    call: SsdCall, steps: _Steps, h: Tensor, dout: Tensor, dh: Tensor, layout: _Layout, grads: _Gradients
) -> Tensor:
    """Add the gradients of some steps, given that of the state after them; return that of the state before them."""
    piece, of = steps.piece, grads.of
    dy = layout.per_channel(dout, piece)
    skip = None if call.D is None else _skip(call.D, layout)
    if call.z is not None:
        gate = layout.per_channel(call.z, piece)
        sigmoid = torch.sigmoid(gate)
        if of["z"] is not None:
            y, _ = _run(steps, h)
            y = y if skip is None else y + skip * steps.x
            layout.add(of["z"], _time_first(dy * y * sigmoid * (1 + gate * (1 - sigmoid))), piece)
        dy = dy * gate * sigmoid
    if call.D is not None and of["D"] is not None:
        of["D"] += (dy * steps.x).sum((0, 4) if call.D.dim() == 3 else (0, 4, 5)).flatten(1, 2)

    found = _adjoint(steps, h, dy, dh)
    layout.add(of["B"], found.B.permute(0, 3, 1, 2, 4), piece)
    layout.add(of["C"], found.C.permute(0, 3, 1, 2, 4), piece)
    if of["x"] is not None:
        dx = steps.w[..., None] * found.u
        layout.add(of["x"], _time_first(dx if skip is None else dx + skip * dy), piece)
    dw = (steps.x * found.u).sum(-1)
    if of["w"] is not None:
        layout.add(of["w"], _time_first(dw), piece)
    absent = layout.absent(piece)
    ddecay = found.decay if absent is None else found.decay.masked_fill(absent, 0)
    if of["A"] is not None:
        of["A"] += (ddecay * steps.dt).sum((0, 4)).flatten(1, 2)
    if of["dt"] is not None or of["dt_bias"] is not None:
        ddt = ddecay * layout.parameter(call.A)
        if call.w is None:
            ddt = ddt + dw
        if call.dt_softplus:
            ddt = torch.where(steps.dt_raw > 20.0, ddt, ddt * torch.sigmoid(steps.dt_raw))
        if absent is not None:
            ddt = ddt.masked_fill(absent, 0)
        layout.add(of["dt"], _time_first(ddt), piece)
        if of["dt_bias"] is not None:
            of["dt_bias"] += ddt.sum((0, 4)).flatten(1, 2)
    return found.h


def _time_first(t: Tensor) -> Tensor:
    """`(B, R, G, J, T, ...)` as `(B, T, R, G, J, ...)`."""
    return t.movedim(4, 1)
