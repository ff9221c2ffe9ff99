"""One step of the Mamba-2 scan in one compiled call, for decoding: no tables, no checks beyond shapes, no gradient.

A task is up to 4 heads of one route and one batch entry. Lanes run over the states of a channel, 16 at a time, without
transposing the state. Values that depend only on shapes, dtypes and strides are computed once and cached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from seqssm_kernels.contract.calls import Scales
from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu import tiles
from seqssm_kernels.cpu.lanes import ROW
from seqssm_kernels.cpu.plan import KINDS, WITH_INTEGERS
from seqssm_kernels.cpu.rows import align, load_values, size_of
from seqssm_kernels.cpu.steps import StepPlan, StepPlans, plan_of

LOG2_E = 1.4426950408889634
HEADS_OF_TASK = 4

TENSORS = 7
(X, DT, B, C, Z, W, OUT) = range(TENSORS)  # addresses, followed by those of A, D, ...
(A, D, BIAS, STATE, NEXT, X_SCALE, B_SCALE, C_SCALE) = range(TENSORS, 15)  # scales of integer x, B, C, else 0
ADDRESSES = 15
KIND, BATCH_STRIDE, ROUTE_STRIDE = (ADDRESSES + i * TENSORS for i in range(3))  # of x, then of the other tensors
(BATCH, ROUTES, HEADS, HEAD_DIM, GROUPS, STATES, SOFTPLUS, A_IS_LOG, D_SIZE) = range(
    ADDRESSES + 3 * TENSORS, ADDRESSES + 3 * TENSORS + 9
)


def scratch_bytes(states: int) -> int:
    """B and C as rows of 16 states; decays, input weights, inputs and y; a row of products for each of 16 channels."""
    return ROW * (2 * -(-states // v.LANES) + 4 + v.LANES + 1)


@njit
def row_of(p, tensor, entry, route):
    return p[tensor] + entry * p[BATCH_STRIDE + tensor] + route * p[ROUTE_STRIDE + tensor]


@njit
def scale_at(scales, offset, count):
    """Up to 16 scales; zero for floats."""
    return v.load(scales + offset, 0, count) if scales != 0 else v.broadcast(0.0)


@njit
def decays_and_weights(p, entry, route, first, count, decays, weights):
    """exp(dt A) and w of up to 16 heads."""
    of_route, dt_kind, w_kind = 4 * (route * p[HEADS] + first), p[KIND + DT], p[KIND + W]
    dt = v.load(row_of(p, DT, entry, route) + size_of(dt_kind) * first, dt_kind, count)
    if p[BIAS] != 0:
        dt = v.add(dt, v.load(p[BIAS] + of_route, 0, count))
    if p[SOFTPLUS] != 0:
        dt = v.softplus(dt)
    rate, log2_e = v.load(p[A] + of_route, 0, count), v.broadcast(LOG2_E)
    if p[A_IS_LOG] != 0:
        rate = v.subtract(v.broadcast(0.0), v.exp2(v.multiply(rate, log2_e)))
    v.store32(decays, v.exp2(v.multiply(v.multiply(dt, rate), log2_e)))
    if p[W] != 0:
        dt = v.load(row_of(p, W, entry, route) + size_of(w_kind) * first, w_kind, count)
    v.store32(weights, dt)


@njit
def advance(old, new, decay, inputs, b_rows, c_rows, products, count, states):
    """The next states of up to 16 channels of a head, and the products C h, accumulated over blocks of 16 states."""
    a, whole = v.broadcast(decay), states // 16 * 16
    for lane in range(count):
        u, total, offset = v.broadcast(v.float_at(inputs + 4 * lane)), v.broadcast(0.0), 4 * lane * states
        for n in range(0, whole, 16):
            h = v.multiply_add(a, v.load32(old + offset + 4 * n), v.multiply(u, v.load32(b_rows + 4 * n)))
            v.store32(new + offset + 4 * n, h)
            total = v.multiply_add(h, v.load32(c_rows + 4 * n), total)
        if whole < states:
            part, at = states - whole, offset + 4 * whole
            h = v.multiply_add(a, v.load(old + at, 0, part), v.multiply(u, v.load32(b_rows + 4 * whole)))
            v.store(new + at, 0, part, h)
            total = v.multiply_add(h, v.load32(c_rows + 4 * whole), total)
        v.store32(products + ROW * lane, total)


def make_step(key: int) -> Any:
    """Return the kernel; `key` is the checksum of the sources and becomes part of numba's cache key."""

    def step(p, begin, end, part, scratch):
        if key < 0:
            return
        states, channels, heads, routes, batch = p[STATES], p[HEAD_DIM], p[HEADS], p[ROUTES], p[BATCH]
        x_kind, out_kind, per_group, gated = p[KIND + X], p[KIND + OUT], heads // p[GROUPS], p[Z] != 0
        x_size, size, rows = size_of(x_kind), size_of(out_kind), (states + 15) // 16  # z is like out
        b_rows = align(scratch)
        c_rows = b_rows + ROW * rows
        decays = c_rows + ROW * rows
        weights, inputs, y_row, products = decays + ROW, decays + 2 * ROW, decays + 3 * ROW, decays + 4 * ROW
        for task in range(begin, end):
            place, entry = task // batch, task % batch
            share, route = place // routes, place % routes
            start = share * HEADS_OF_TASK
            last, gathered = min(heads, start + HEADS_OF_TASK), -1
            decays_and_weights(p, entry, route, start, last - start, decays, weights)
            x, z, out = row_of(p, X, entry, route), row_of(p, Z, entry, route), row_of(p, OUT, entry, route)
            for head in range(start, last):
                group = head // per_group
                for n in range(0, states if group != gathered else 0, 16):
                    count = min(16, states - n)
                    at = 4 * ((route * p[GROUPS] + group) * states + n)
                    for tensor, target, scales in ((B, b_rows, B_SCALE), (C, c_rows, C_SCALE)):
                        kind = p[KIND + tensor]
                        source = row_of(p, tensor, entry, route) + size_of(kind) * (group * states + n)
                        v.store32(target + 4 * n, load_values(source, kind, count, scale_at(p[scales], at, count)))
                gathered = group
                decay, weight = v.float_at(decays + 4 * (head - start)), v.float_at(weights + 4 * (head - start))
                for first in range(0, channels, 16):
                    count, channel = min(16, channels - first), head * channels + first
                    scale = scale_at(p[X_SCALE], 4 * (route * heads * channels + channel), count)
                    value = load_values(x + x_size * channel, x_kind, count, scale)
                    v.store32(inputs, v.multiply(value, v.broadcast(weight)))
                    offset = 4 * ((entry * routes + route) * heads * channels + channel) * states
                    advance(p[STATE] + offset, p[NEXT] + offset, decay, inputs, b_rows, c_rows, products, count, states)
                    tiles.sum_lanes(products, y_row)
                    y = v.load32(y_row)
                    if p[D] != 0:
                        skip = p[D] + 4 * route * heads * p[D_SIZE]
                        if p[D_SIZE] == 1:
                            d = v.broadcast(v.float_at(skip + 4 * head))
                        else:
                            d = v.load(skip + 4 * channel, 0, count)
                        y = v.multiply_add(d, value, y)
                    if gated:
                        gate = v.load(z + size * channel, out_kind, count)
                        y = v.multiply(y, v.multiply(gate, v.sigmoid(gate)))
                    v.store(out + size * channel, out_kind, count, y)

    return step


def run_step(
    call: tuple[Any, ...], kernel: Callable[[], Any], scales: Scales | None = None
) -> tuple[Tensor, Tensor] | None:
    """Run a step; return None for unsupported shapes, dtypes or layouts.

    Args:
        call: arguments `x, dt, A, B, C, state, D, z, dt_bias, dt_softplus, w, A_is_log` of `ssd_step`.
        kernel: function that returns the compiled kernel.
        scales: scales of integer x, B and C.
    """
    x, dt, A, B, C, state, D, z, dt_bias, dt_softplus, w, A_is_log = call
    key = (  # unrolled: a loop takes 1.5 times as long
        dt_softplus, A_is_log, x.shape, x.stride(), x.dtype, x.is_cpu, dt.shape, dt.stride(), dt.dtype, dt.is_cpu,
        A.shape, A.stride(), A.dtype, A.is_cpu, B.shape, B.stride(), B.dtype, B.is_cpu,
        C.shape, C.stride(), C.dtype, C.is_cpu, state.shape, state.stride(), state.dtype, state.is_cpu,
        None if D is None else (D.shape, D.stride(), D.dtype, D.is_cpu),
        None if z is None else (z.shape, z.stride(), z.dtype, z.is_cpu),
        None if dt_bias is None else (dt_bias.shape, dt_bias.stride(), dt_bias.dtype, dt_bias.is_cpu),
        None if w is None else (w.shape, w.stride(), w.dtype, w.is_cpu),
        None if scales is None else tuple((t.shape, t.dtype, t.is_cpu, t.is_contiguous()) for t in scales),
    )  # fmt: skip
    plan = _plans.find(key, call if scales is None else (*call, scales))
    if plan is None:
        return None
    params, out, following = plan.begin(x, state)
    params[:ADDRESSES] = (
        x.data_ptr(), dt.data_ptr(), B.data_ptr(), C.data_ptr(), 0 if z is None else z.data_ptr(),
        0 if w is None else w.data_ptr(), out.data_ptr(), A.data_ptr(), 0 if D is None else D.data_ptr(),
        0 if dt_bias is None else dt_bias.data_ptr(), state.data_ptr(), following.data_ptr(),
        *((0, 0, 0) if scales is None else [t.data_ptr() for t in scales]),
    )  # fmt: skip
    plan.launch(kernel(), params, (call, scales, out, following))
    return out, following


def _make_plan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, w: Tensor | None, A_is_log: bool, scales: Scales | None = None,
) -> StepPlan | None:  # fmt: skip
    shape, per_head = tuple(x.shape), tuple(x.shape[:-1])
    batch, heads, channels = shape[0], shape[-2], shape[-1]
    routes = 1 if len(shape) == 3 else shape[1]
    if B.dim() != len(shape):
        return None
    groups, states = B.shape[-2:]
    per_group = (*shape[:-2], groups, states)
    # the output is like x, or with integers like dt
    like, kinds = (x, KINDS) if scales is None else (dt, WITH_INTEGERS)
    if scales is not None and {x.dtype, B.dtype, C.dtype} != {torch.int8}:
        return None
    of_steps = [(x, shape), (dt, per_head), (B, per_group), (C, per_group), (z, shape), (w, per_head)]
    for t, wanted in of_steps:
        if t is None:
            continue
        if tuple(t.shape) != wanted or t.dtype not in kinds or not t.is_cpu or not _is_dense(t, wanted == per_head):
            return None
    if like.dtype not in KINDS or (z is not None and z.dtype != like.dtype):
        return None
    skips = per_head[1:] if D is None or D.dim() < len(shape) - 1 else shape[1:]
    constants = [(A, per_head[1:]), (D, skips), (dt_bias, per_head[1:]), (state, (*shape, states))]
    constants += zip(scales or (), (shape[1:], per_group[1:], per_group[1:]))
    for one, wanted in constants:
        if one is not None and not (
            tuple(one.shape) == wanted and one.dtype == torch.float32 and one.is_cpu and one.is_contiguous()
        ):
            return None
    if not x.numel() or not states or not groups or heads % groups:
        return None
    params = np.zeros(D_SIZE + 1, np.int64)
    out = torch.empty(shape, dtype=like.dtype, device="meta")
    for i, t in enumerate((x, dt, B, C, z, w, out)):
        if t is not None:
            size = t.element_size()
            params[KIND + i], params[BATCH_STRIDE + i] = kinds[t.dtype], size * t.stride(0)
            params[ROUTE_STRIDE + i] = size * t.stride(1) if len(shape) == 4 else 0
    params[BATCH:] = (
        batch, routes, heads, channels, groups, states, dt_softplus, A_is_log, channels if skips == shape[1:] else 1
    )  # fmt: skip
    tasks, work = batch * routes * -(-heads // HEADS_OF_TASK), state.numel()
    return plan_of(x, state, out, params, tasks, work, scratch_bytes(states))


def _is_dense(t: Tensor, per_head: bool) -> bool:
    """Whether the last axis (and the second to last, if any) is contiguous in memory."""
    return t.stride(-1) == 1 and (per_head or t.stride(-2) == t.shape[-1])


_plans = StepPlans(_make_plan)
