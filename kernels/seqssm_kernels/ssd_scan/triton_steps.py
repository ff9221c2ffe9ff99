"""Device functions of the Mamba-2 scan: the steps of a chunk, the decays between them, matrix products.

A program works on one chunk of up to Q steps of one row (a batch element or a packed sequence), on one route and one
head, or one group of heads. Chunks are the slots of `gpu.blocks`. Where a step visits no position its dt is 0, so the
decay is exactly 1, and nothing is loaded. A reset starts a new segment of the chunk: nothing passes from one segment to
the next.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqssm_kernels.gpu.blocks import RESET, bounds, place, rate, softplus, wide

LIMIT = tl.constexpr(256.0)  # bound of the logarithm of a step's decay: 2^-256 is 0 in float32, 2^256 is inf
ROUND = tl.constexpr(49152.0)  # 1.5 2^15: adding and subtracting it rounds to a multiple of 2^-8


@triton.jit
def part(pid, blocks, heads, routes):
    """Slot, route, head and block of a program; neighbouring programs share B and C."""
    rest = pid // blocks
    return rest // heads // routes, (rest // heads % routes).to(tl.int64), rest % heads, pid % blocks


@triton.jit
def chunk(slot, route, row_of_slot, cu_seqlens, order, steps, length, per_row, order_b, order_r, Q: tl.constexpr):
    """Batch element of a slot, the positions (Q,) that its steps visit, ABSENT or RESET, and whether it is in use."""
    _row, batch, start, stop, _begin, end = bounds(slot, row_of_slot, cu_seqlens, steps, per_row, Q)
    if order is not None:
        order += batch * order_b + route * order_r
    return batch, place(order, start + tl.arange(0, Q), stop, length), start <= end


@triton.jit
def at(base, batch, route, index, of_batch, of_route, of_index, UNIT: tl.constexpr):
    """Address of one head's or group's values in a batch element and route; strides in units of UNIT."""
    offset = batch * wide(of_batch, UNIT) + route * wide(of_route, UNIT) + index * wide(of_index, UNIT)
    return base + offset


@triton.jit
def numbers(base, p, stride):
    """One number per step in float32, zero where a step visits no position."""
    return tl.load(base + tl.maximum(p, 0).to(tl.int64) * stride, mask=p >= 0, other=0.0).to(tl.float32)


@triton.jit
def tile(base, p, stride, there, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Columns `first` to `first + BLOCK` of the rows at positions `p`, zero where `there` is false and past WIDTH."""
    column = first + tl.arange(0, BLOCK)
    known = there[:, None]
    if WIDTH % BLOCK != 0:
        known = known & (column < WIDTH)[None, :]
    return tl.load(base + tl.maximum(p, 0).to(tl.int64)[:, None] * stride + column[None, :], mask=known, other=0.0)


@triton.jit
def scaled_tile(
    base, p, stride, there, first, WIDTH: tl.constexpr, BLOCK: tl.constexpr, scales, at
):  # fmt: skip
    """The values of `tile`; integers in float32, times their scales at `at`. `scales` is None for floats."""
    values = tile(base, p, stride, there, first, WIDTH, BLOCK)
    if scales is not None:
        column = first + tl.arange(0, BLOCK)
        scale = tl.load(scales + at + column, mask=column < WIDTH, other=0.0)
        values = values.to(tl.float32) * scale[None, :]
    return values


@triton.jit
def put(base, p, stride, first, values, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Store the values that `tile` loads, at the steps that visit a position."""
    column = first + tl.arange(0, BLOCK)
    known = (p >= 0)[:, None]
    if WIDTH % BLOCK != 0:
        known = known & (column < WIDTH)[None, :]
    at = base + tl.maximum(p, 0).to(tl.int64)[:, None] * stride + column[None, :]
    tl.store(at, values.to(base.dtype.element_ty), mask=known)


@triton.jit
def of_state(first_p, first_n, P: tl.constexpr, N: tl.constexpr, PB: tl.constexpr, NB: tl.constexpr):
    """Offsets and mask (PB, NB) of a block of a state (P, N)."""
    row = first_p + tl.arange(0, PB)
    column = first_n + tl.arange(0, NB)
    return row[:, None] * N + column[None, :], (row < P)[:, None] & (column < N)[None, :]


@triton.jit
def step_sizes(dt, w, dt_bias, p, dt_l, w_l, SOFTPLUS: tl.constexpr):
    """dt of a chunk's steps, zero where a step visits no position; its derivative; and the weight of the input."""
    d = numbers(dt, p, dt_l)
    slope = tl.zeros_like(d) + 1.0
    if dt_bias is not None:
        d += tl.load(dt_bias)
    if SOFTPLUS:
        d, slope = softplus(d)
    d = tl.where(p >= 0, d, 0.0)
    weight = d
    if w is not None:
        weight = numbers(w, p, w_l)
    return d, slope, weight


@triton.jit
def steps_of_head(
    dt, w, dt_bias, batch, route, head, p, dt_b, dt_l, dt_r, dt_h, w_b, w_l, w_r, w_h, bias_r, bias_h,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """`step_sizes` of one head in a batch element and route; strides in elements."""
    dt += batch * dt_b + route * dt_r + head * dt_h.to(tl.int64)
    if w is not None:
        w += batch * w_b + route * w_r + head * w_h.to(tl.int64)
    if dt_bias is not None:
        dt_bias += route * bias_r + head * bias_h
    return step_sizes(dt, w, dt_bias, p, dt_l, w_l, SOFTPLUS)


@triton.jit
def decays(d, a, order, p):
    """Sums that determine the decays of a chunk, from dt and A.

    Differences of one running sum of logarithms would cancel after a strong decay. Each logarithm is therefore split
    into a multiple of 2^-8, whose sums are exact, and a remainder below 2^-8.

    Returns:
        high, low: running sums (Q,) of log2 of the decays, `high` exact.
        segment: number of resets up to and including each step.
        start, end: decay from before the first step to after each step, and from after each step to the last; zero
            across a reset.
        whole: decay of the chunk, zero where it has a reset.
    """
    e = d * rate(a)
    e = tl.where(e < -LIMIT, -LIMIT, e)
    e = tl.where(e > LIMIT, LIMIT, e)
    coarse = (e + ROUND) - ROUND
    fine = e - coarse
    high = tl.cumsum(coarse, 0)
    low = tl.cumsum(fine, 0)
    all_high = tl.sum(coarse, 0)
    all_low = tl.sum(fine, 0)
    start = tl.exp2(high + low)
    end = tl.exp2((all_high - high) + (all_low - low))
    whole = tl.exp2(all_high + all_low)
    segment = p * 0
    if order is not None:
        segment = tl.cumsum((p == RESET).to(tl.int32), 0)
        last = tl.max(segment, 0)
        start = tl.where(segment == 0, start, 0.0)
        end = tl.where(segment == last, end, 0.0)
        whole = tl.where(last == 0, whole, 0.0)
    return high, low, segment, start, end, whole


@triton.jit
def reaches(order, segment, Q: tl.constexpr):
    """Whether step t (rows) depends on step s (columns): t >= s without a reset in between."""
    t = tl.arange(0, Q)
    there = t[:, None] >= t[None, :]
    if order is not None:
        there = there & (segment[:, None] == segment[None, :])
    return there


@triton.jit
def decayed(values, high, low, there):
    """`values` (t, s) times the decay from step s to step t; zero where t does not depend on s, even for inf or NaN."""
    between = tl.exp2((high[:, None] - high[None, :]) + (low[:, None] - low[None, :]))
    return tl.where(there, between * values, 0.0)


@triton.jit
def decayed_back(values, high, low, order, segment, Q: tl.constexpr):
    """The transpose of `decayed`, of transposed `values` (s, t)."""
    step = tl.arange(0, Q)
    there = step[:, None] <= step[None, :]
    if order is not None:
        there = there & (segment[:, None] == segment[None, :])
    between = tl.exp2((high[None, :] - high[:, None]) + (low[None, :] - low[:, None]))
    return tl.where(there, between * values, 0.0)


@triton.jit
def rounded(a, DROPPED: tl.constexpr):
    """`a` in float32 rounded to nearest without its last DROPPED bits."""
    bits = a.to(tl.float32).to(tl.int32, bitcast=True)
    bits += (1 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1)
    return (bits & -(1 << DROPPED)).to(tl.float32, bitcast=True)


@triton.jit
def product(a, b, total, PRECISION: tl.constexpr):
    """`total + a b` in float32.

    Args:
        PRECISION: `tf32x3`, as exact as float32; `tf32`, with the mantissa of float16 and the range of float32;
            `bf16`; for Triton's interpreter, which can neither multiply bfloat16 nor round to tf32, the number of bits
            to round off.
    """
    if PRECISION == "bf16":
        total = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
    elif PRECISION == "tf32" or PRECISION == "tf32x3":
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=PRECISION)
    else:
        total = tl.dot(rounded(a, PRECISION), rounded(b, PRECISION), total)
    return total
