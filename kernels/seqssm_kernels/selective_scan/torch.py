"""The selective scan in chunks of PyTorch operations, for every dtype and device.

Steps are processed in chunks of 64. Within a chunk the decays and inputs of all steps are computed at once, then the
recurrence takes one in-place multiply-add per step. The forward pass saves the state before every chunk; the backward
pass runs through the chunks in reverse, recomputes each chunk's states and runs the adjoint recurrence over them.
Memory in addition to inputs and outputs is that of one chunk and of the chunk states, never `(B, L, R, E, N)`.

Only element-wise operations and sums are used, whose dtype autocast does not change.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from seqssm_kernels.contract.calls import ScanCall, ScanSizes, state_dtype
from seqssm_kernels.contract.indexing import Piece, grad_like, sequences

CHUNK = 64


def _kept_shape(sizes: ScanSizes, packed: bool) -> tuple[int, ...]:
    """Shape of the saved states: one slot per possible chunk, independent of the sequence boundaries."""
    slots = sizes.steps // CHUNK + sizes.sequences if packed else (sizes.steps + CHUNK - 1) // CHUNK
    return slots, sizes.batch, sizes.routes, sizes.channels, sizes.d_state


def saved_size(sizes: ScanSizes, packed: bool) -> int:
    """Number of saved values."""
    return math.prod(_kept_shape(sizes, packed))


class _Chunk(NamedTuple):
    """One chunk: inputs by step `(B, T, R, *)`, and by state, time first: `a, h (T, B, R, E, N)`."""

    x: Tensor
    dt_raw: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    a: Tensor
    h: Tensor


def _run(call: ScanCall, piece: Piece, state: Tensor) -> _Chunk:
    """Run the recurrence `h = a * h + dt B x` over a chunk, from the state before it."""
    acc = state.dtype
    x, B, C = (piece.read(t, acc) for t in (call.x, call.B, call.C))
    dt_raw = piece.read(call.dt, acc)
    if call.dt_bias is not None:
        dt_raw = dt_raw + call.dt_bias
    dt = F.softplus(dt_raw, threshold=20.0) if call.dt_softplus else dt_raw
    if piece.absent is not None:
        dt = dt.masked_fill(piece.absent[..., None], 0)

    shape = (piece.stop - piece.start, *state.shape)
    a = torch.mul(_by_state(dt), call.A).exp_().expand(shape).contiguous()
    h = (_by_state(dt * x) * _by_channel(B)).expand(shape).contiguous()
    if piece.absent is not None:
        a.masked_fill_(_by_state(piece.absent[..., None]), 1)  # also if 0 * A is not 0
    reset = None if piece.reset is None else _by_state(piece.reset[..., None])
    for t in range(shape[0]):
        state = h[t].addcmul_(a[t], state)
        if t in piece.resets and reset is not None:
            state.masked_fill_(reset[t], 0)
    return _Chunk(x, dt_raw, dt, B, C, a, h)


def _by_state(t: Tensor) -> Tensor:
    """`(B, T, R, E)` as `(T, B, R, E, 1)`."""
    return t.transpose(0, 1).unsqueeze(-1)


def _by_channel(t: Tensor) -> Tensor:
    """`(B, T, R, N)` as `(T, B, R, 1, N)`."""
    return t.transpose(0, 1).unsqueeze(-2)


def _sum(t: Tensor, dim: int) -> Tensor:
    """Sum `(T, B, R, E, N)` over channels or states; the result is by step, `(B, T, R, *)`."""
    return t.sum(dim).transpose(0, 1)


def forward(call: ScanCall, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan; see `engines` for the contract."""
    x, D, z, order, cu_seqlens, initial_state = call.x, call.D, call.z, call.order, call.cu_seqlens, call.initial_state
    acc = state_dtype(x.dtype)
    sizes = call.sizes()
    everywhere = order is None and cu_seqlens is None  # unchecked cu_seqlens may end before L
    out = x.new_empty(sizes.out_shape) if everywhere else x.new_zeros(sizes.out_shape)
    final_state = x.new_zeros(sizes.state_shape, dtype=acc) if initial_state is None else initial_state.clone()
    final_state = final_state.contiguous()
    saved = x.new_zeros(saved_size(sizes, cu_seqlens is not None) if save else 0, dtype=acc)
    kept = saved.view(_kept_shape(sizes, cu_seqlens is not None)) if save else None

    slot = 0
    for first, last, rows in sequences(sizes.steps, sizes.batch, cu_seqlens):
        state = final_state[rows]
        for start in range(first, last, CHUNK):
            if kept is not None:
                kept[slot] = state
                slot += 1
            piece = Piece(order, start, min(start + CHUNK, last))
            chunk = _run(call, piece, state)
            state = chunk.h[-1].clone()
            y = _sum(chunk.h.mul_(_by_channel(chunk.C)), -1)
            if D is not None:
                y = y + D * chunk.x
            if z is not None:
                y = y * F.silu(piece.read(z, acc))
            piece.write(out, y)
        final_state[rows] = state
    return out, final_state, saved


def backward(
    dout: Tensor, dfinal: Tensor | None, call: ScanCall, saved: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the scan; see `engines` for the contract.

    With `G` the gradient of a state, the adjoint recurrence is `G[t] = dy[t] C[t] + a[t + 1] G[t + 1]`. Then
    `da = G h[t - 1]`; the other gradients follow from `a = exp(dt A)` and the input `dt B x` by the product rule.
    """
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, order, cu_seqlens, _ = call
    acc = state_dtype(x.dtype)
    sizes = call.sizes()
    need_x, need_dt, need_A, need_B, need_C, need_D, need_z, need_bias, need_initial = needs
    need_dt_raw = need_dt or need_bias
    routes = sizes.routes

    dx, ddt, dB, dC, dz = (
        None if t is None or not need else grad_like(t, routes, acc)
        for t, need in ((x, need_x), (dt, need_dt), (B, need_B), (C, need_C), (z, need_z))
    )
    dA = A.new_zeros((routes, *A.shape[1:]), dtype=acc) if need_A else None
    dD, dbias = (x.new_zeros((routes, sizes.channels), dtype=acc) if need else None for need in (need_D, need_bias))
    dinitial = x.new_zeros(sizes.state_shape, dtype=acc) if dfinal is None else dfinal.to(acc).contiguous().clone()

    kept = saved.view(_kept_shape(sizes, cu_seqlens is not None))
    slot = 0
    for first, last, rows in sequences(sizes.steps, sizes.batch, cu_seqlens):
        starts = range(first, last, CHUNK)
        carry = dinitial[rows]  # gradient of the state after the chunk
        for i in reversed(range(len(starts))):
            piece = Piece(order, starts[i], min(starts[i] + CHUNK, last))
            state = kept[slot + i]
            chunk = _run(call, piece, state)
            dy = piece.read(dout, acc)
            if z is not None:
                gate = piece.read(z, acc)
                sigmoid = torch.sigmoid(gate)
                if dz is not None:
                    y = _sum(chunk.h * _by_channel(chunk.C), -1)
                    y = y if D is None else y + D * chunk.x
                    piece.add(dz, dy * y * sigmoid * (1 + gate * (1 - sigmoid)))
                dy = dy * gate * sigmoid
            if dD is not None:
                dD += (dy * chunk.x).sum((0, 1))
            if dC is not None:
                piece.add(dC, _sum(_by_state(dy) * chunk.h, -2))

            G = (_by_state(dy) * _by_channel(chunk.C)).contiguous()
            carry = _run_adjoint(G, chunk.a, carry, piece)

            if dB is not None:
                piece.add(dB, _sum(_by_state(chunk.dt * chunk.x) * G, -2))
            if dx is not None or need_dt_raw:
                w = _sum(G * _by_channel(chunk.B), -1)
                if dx is not None:
                    piece.add(dx, chunk.dt * w if D is None else chunk.dt * w + D * dy)
            if dA is not None or need_dt_raw:
                q = chunk.a.mul_(G)  # gradient of dt * A: G h[t - 1] a[t]
                q[0].mul_(state)
                q[1:].mul_(chunk.h[:-1])
                if piece.absent is not None:
                    q.masked_fill_(_by_state(piece.absent[..., None]), 0)
                if need_dt_raw:
                    d = chunk.x * w + _sum(q * A, -1)
                    if dt_softplus:
                        d = torch.where(chunk.dt_raw > 20.0, d, d * torch.sigmoid(chunk.dt_raw))
                    if piece.absent is not None:
                        d = d.masked_fill(piece.absent[..., None], 0)
                    if ddt is not None:
                        piece.add(ddt, d)
                    if dbias is not None:
                        dbias += d.sum((0, 1))
                if dA is not None:
                    dA += q.mul_(_by_state(chunk.dt)).sum((0, 1))
        dinitial[rows] = carry
        slot += len(starts)

    def like(grad: Tensor | None, t: Tensor | None) -> Tensor | None:
        return None if grad is None or t is None else grad.to(t.dtype)

    def shared(grad: Tensor | None, t: Tensor | None) -> Tensor | None:
        if grad is None or t is None:
            return None
        return like(grad if t.shape[0] == routes else grad.sum(0, keepdim=True), t)

    return (
        like(dx, x),
        like(ddt, dt),
        shared(dA, A),
        like(dB, B),
        like(dC, C),
        shared(dD, D),
        like(dz, z),
        shared(dbias, dt_bias),
        dinitial if need_initial else None,
    )


def _run_adjoint(G: Tensor, a: Tensor, carry: Tensor, piece: Piece) -> Tensor:
    """Add the gradients from later steps to `G (T, B, R, E, N)`; return the gradient of the state before the chunk."""
    reset = None if piece.reset is None else _by_state(piece.reset[..., None])
    G[-1].add_(carry)
    for t in range(G.shape[0] - 1, -1, -1):
        if t in piece.resets and reset is not None:
            G[t].masked_fill_(reset[t], 0)  # the state after a reset has no predecessors
        if t > 0:
            G[t - 1].addcmul_(a[t], G[t])
    return a[0] * G[0]
