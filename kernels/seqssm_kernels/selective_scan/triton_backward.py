"""Triton kernels of the scan's backward pass.

With `G` the gradient of the state behind a step, seen from all later steps, a step adds `dy C` to it and hands
`a G` on to the step before; dB, dC, dx, ddt and dA follow by the product rule (the equations are those of
`torch.backward`). A program goes through its slot in reverse, `KEEP` steps at a time: it runs these
forward once from the kept state and writes down the states in front of every `BACK` steps, then goes through them in
reverse. Of `BACK` steps all decays and states of one n are in registers, n is an ordinary loop, and what is handed on
from one group of steps to the next lies in memory, where it stays in the first-level cache.

Split over the length, `scan_adjoint` gives the gradient in front of each chunk from zero behind it, and `scan_carry`
makes the true one of that, before `scan_backward` runs once for each chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqssm_kernels.gpu.blocks import (
    LN2,
    RESET,
    TILE,
    blocks_of,
    bounds,
    first_slot,
    place,
    program,
    sigmoid,
    softplus,
    tiled,
    wide,
)


@triton.jit
def _read(base, p, q, stride, e, live):
    """Channels `e` of a place in float32, zero where the step visits none."""
    return tl.load(base + q * stride + e, mask=live & (p >= 0), other=0.0).to(tl.float32)


@triton.jit
def _step_size(base, p, q, stride, e, live, bias, SOFTPLUS: tl.constexpr):
    """dt of the step, zero where it visits no place, and its derivative by what was given."""
    d = _read(base, p, q, stride, e, live) + bias
    slope = d * 0.0 + 1.0
    if SOFTPLUS:
        d, slope = softplus(d)
    return tl.where(p >= 0, d, 0.0), slope


@triton.jit
def _gated(dout, z, p, q, dout_l, z_l, e, live):
    """Gradient of the output in front of the gate."""
    dy = _read(dout, p, q, dout_l, e, live)
    if z is not None:
        gate = _read(z, p, q, z_l, e, live)
        dy *= gate * sigmoid(gate)
    return dy


ADJOINT_NUMBERS = [
    *("steps", "length", "channels", "routes", "per_row", "chunk", "dt_b", "dt_l", "dt_r", "z_b", "z_l", "z_r"),
    *("C_r", "shared_rates", "bias_r", "order_b", "order_r", "dout_b", "dout_l", "dout_r"),
]
BACKWARD_NUMBERS = [
    *ADJOINT_NUMBERS,
    *("kept_per_row", "batches", "nil", "x_b", "x_l", "x_r", "B_r", "D_r", "s", "r", "e", "n"),
]


@triton.jit(do_not_specialize=ADJOINT_NUMBERS)
def scan_adjoint(
    dt, rates, C, z, dt_bias, order, cu_seqlens, row_of_slot, dout, ends, sums, resets,
    steps, length, channels, routes, per_row, chunk,
    dt_b, dt_l, dt_r, z_b, z_l, z_r, C_r, shared_rates, bias_r, order_b, order_r, dout_b, dout_l, dout_r,
    N: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr, UNIT: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Gradient of the state in front of each slot from zero behind it; results as those of `scan_forward` with ENDS.

    Args:
        rates: (1 or R, tiles, N, TILE), `rate` of A; so elsewhere too in the backward pass.
        shared_rates: 0 where all routes share them, else 1.
        other names: see `scan_forward` and `scan_backward`.
    """
    channels = channels * UNIT
    slot, route, block = program(routes, blocks_of(channels, BLOCK))
    _row, batch, start, stop, _begin, end = bounds(slot, row_of_slot, cu_seqlens, steps, per_row, chunk)
    if start > end:
        return
    lane = tl.arange(0, BLOCK)
    e = block * BLOCK + lane
    live = e < channels
    zero = tl.zeros([BLOCK], tl.float32)
    dt += batch * wide(dt_b, UNIT) + route * wide(dt_r, UNIT)
    dt_l = wide(dt_l, UNIT)
    dout += batch * wide(dout_b, UNIT) + route * wide(dout_r, UNIT)
    dout_l = wide(dout_l, UNIT)
    z_l = wide(z_l, UNIT)
    if z is not None:
        z += batch * wide(z_b, UNIT) + route * wide(z_r, UNIT)
    C += route * C_r.to(tl.int64) + batch * length * N
    if order is not None:
        order += batch * order_b + route * order_r.to(tl.int64)
    bias = zero
    if dt_bias is not None:
        bias = tl.load(dt_bias + route * bias_r + e, mask=live, other=0.0)
    rates += tiled(route * shared_rates.to(tl.int64), channels, block, N, BLOCK) + lane
    a2 = ()
    g = ()
    for n in tl.static_range(N):
        a2 = a2 + (tl.load(rates + n * TILE),)
        g = g + (zero,)
    total = zero
    reset = start * 0

    groups = tl.cdiv(stop - start, UNROLL)
    for i in range(groups):
        s = start + (groups - 1 - i) * UNROLL
        ps = ()
        qs = ()
        dts = ()
        dys = ()
        for u in tl.static_range(UNROLL):
            p, q = place(order, s + u, stop, length)
            d, _ = _step_size(dt, p, q, dt_l, e, live, bias, SOFTPLUS)
            ps = ps + (p,)
            qs = qs + (q,)
            dts = dts + (d,)
            dys = dys + (_gated(dout, z, p, q, dout_l, z_l, e, live),)
        for u in tl.static_range(UNROLL - 1, -1, -1):
            p = ps[u]
            new = ()
            for n in tl.static_range(N):
                f = tl.exp2(dts[u] * a2[n]) * (g[n] + dys[u] * tl.load(C + qs[u] * N + n))
                if order is not None:
                    f = tl.where(p >= 0, f, tl.where(p == RESET, 0.0, g[n]))
                new = new + (f,)
            g = new
            total += dts[u]
            if order is not None:
                reset = tl.where(p == RESET, 1, reset)

    here = slot.to(tl.int64) * routes + route
    tl.store(sums + here * channels + e, total, mask=live)
    if order is not None:
        tl.store(resets + here, reset)
    ends += tiled(here, channels, block, N, BLOCK) + lane
    for n in tl.static_range(N):
        tl.store(ends + n * TILE, g[n])


@triton.jit(do_not_specialize=BACKWARD_NUMBERS)
def scan_backward(
    x, dt, rates, B, C, D, z, dt_bias, order, cu_seqlens, row_of_slot, dout, dfinal, carry, kept, scratch,
    dx, ddt, dz, dA, dB, dC, dD, dbias, dinitial,
    steps, length, channels, routes, per_row, kept_per_row, chunk, batches, nil,
    x_b, x_l, x_r, dt_b, dt_l, dt_r, z_b, z_l, z_r, B_r, C_r,
    shared_rates, D_r, bias_r, order_b, order_r, dout_b, dout_l, dout_r, s, r, e, n,
    N: tl.constexpr, BLOCK: tl.constexpr, BACK: tl.constexpr, KEEP: tl.constexpr, UNIT: tl.constexpr,
    SOFTPLUS: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Gradients over a slot; every result may be None where nobody needs it.

    Args:
        dfinal: gradient of the final states, strides `s, r, e, n`; None for zero. Not read with SPLIT.
        carry: (slots, R, tiles, N, TILE), with SPLIT the gradient of the state behind each slot; overwritten.
        kept: what `scan_forward` kept.
        scratch: room for (programs, KEEP / BACK, N, BLOCK) states.
        dx, ddt, dz: (B, L, R, E) contiguous.
        dB, dC: (blocks, R, B, L, N), summed over the channels of each block.
        dA: (slots, R, tiles, N, TILE); dD, dbias: (slots, R, E).
        dinitial: (rows, R, E, N), not written with SPLIT.
    """
    channels = channels * UNIT
    slot, route, block = program(routes, blocks_of(channels, BLOCK))
    row, batch, start, stop, begin, _end = bounds(slot, row_of_slot, cu_seqlens, steps, per_row, chunk)
    lane = tl.arange(0, BLOCK)
    channel = block * BLOCK + lane
    live = channel < channels
    zero = tl.zeros([BLOCK], tl.float32)
    here = slot.to(tl.int64) * routes + route
    from_here = tiled(here, channels, block, N, BLOCK) + lane
    carry += from_here
    if dA is not None:
        dA += from_here
        for i in range(N):
            tl.store(dA + i * TILE, zero)
    if not SPLIT:
        border = row.to(tl.int64) * s + route * r.to(tl.int64) + channel.to(tl.int64) * e
        for i in range(N):
            g = zero
            if dfinal is not None:
                g = tl.load(dfinal + border + i * n, mask=live, other=0.0).to(tl.float32)
            tl.store(carry + i * TILE, g)

    x += batch * wide(x_b, UNIT) + route * wide(x_r, UNIT)
    x_l = wide(x_l, UNIT)
    dt += batch * wide(dt_b, UNIT) + route * wide(dt_r, UNIT)
    dt_l = wide(dt_l, UNIT)
    dout += batch * wide(dout_b, UNIT) + route * wide(dout_r, UNIT)
    dout_l = wide(dout_l, UNIT)
    z_l = wide(z_l, UNIT)
    if z is not None:
        z += batch * wide(z_b, UNIT) + route * wide(z_r, UNIT)
    B += route * B_r.to(tl.int64) + batch * length * N
    C += route * C_r.to(tl.int64) + batch * length * N
    rates += tiled(route * shared_rates.to(tl.int64), channels, block, N, BLOCK) + lane
    if order is not None:
        order += batch * order_b + route * order_r.to(tl.int64)
    skip = zero
    if D is not None:
        skip = tl.load(D + route * D_r + channel, mask=live, other=0.0)
    bias = zero
    if dt_bias is not None:
        bias = tl.load(dt_bias + route * bias_r + channel, mask=live, other=0.0)
    of_block = ((block.to(tl.int64) * routes + route) * batches + batch) * length * N
    if dB is not None:
        dB += of_block
    if dC is not None:
        dC += of_block
    of_route = (batch * length * routes + route) * channels
    grad_l = routes.to(tl.int64) * channels
    GROUPS: tl.constexpr = KEEP // BACK
    scratch += tl.program_id(0).to(tl.int64) * (GROUPS * N * BLOCK) + lane
    first = first_slot(row, begin, cu_seqlens, kept_per_row, KEEP) + (start - begin) // KEEP
    # Sums over the slot lie in memory, like dA: held in registers over all this they would be spilled.
    if dD is not None:
        dD += here * channels + channel
        tl.store(dD, zero, mask=live)
    if dbias is not None:
        dbias += here * channels + channel
        tl.store(dbias, zero, mask=live)

    stretches = tl.cdiv(stop - start, KEEP)
    for i in range(stretches):
        stretch = stretches - 1 - i
        s0 = start + stretch * KEEP
        line = (first + stretch).to(tl.int64) * routes + route
        kept_here = kept + tiled(line, channels, block, N, BLOCK) + lane
        groups = tl.cdiv(tl.minimum(KEEP, stop - s0), BACK)

        # Forward over the stretch: the state in front of every group.
        h = ()
        a2 = ()
        for k in tl.static_range(N):
            h = h + (tl.load(kept_here + k * TILE),)
            a2 = a2 + (tl.load(rates + k * TILE),)
        for j in range(groups):
            for k in tl.static_range(N):
                tl.store(scratch + (j * N + k) * BLOCK, h[k])
            for u in range(BACK):
                p, q = place(order, s0 + j * BACK + u, stop, length)
                d, _ = _step_size(dt, p, q, dt_l, channel, live, bias, SOFTPLUS)
                put = d * _read(x, p, q, x_l, channel, live)
                new = ()
                for k in tl.static_range(N):
                    f = tl.exp2(d * a2[k]) * h[k] + put * tl.load(B + q * N + k)
                    if order is not None:
                        f = tl.where(p >= 0, f, tl.where(p == RESET, 0.0, h[k]))
                    new = new + (f,)
                h = new
        tl.debug_barrier()  # what is written above and below is read by other threads where layouts differ

        for j in range(groups):
            group = groups - 1 - j
            ps = ()
            qs = ()
            puts = ()
            dts = ()
            dys = ()
            ws = ()
            vs = ()
            ys = ()
            for t in tl.static_range(BACK):
                p, q = place(order, s0 + group * BACK + t, stop, length)
                d, _ = _step_size(dt, p, q, dt_l, channel, live, bias, SOFTPLUS)
                ps = ps + (p,)
                qs = qs + (q * N,)
                puts = puts + (d * _read(x, p, q, x_l, channel, live),)
                dts = dts + (d,)
                dys = dys + (_gated(dout, z, p, q, dout_l, z_l, channel, live),)
                ws = ws + (zero,)
                vs = vs + (zero,)
                ys = ys + (zero,)
            for counter in range(N):
                # An address of every row for each of B, C, dB and dC would be kept over the loop, 64 registers, if the
                # compiler saw that m counts. So it does not: `nil` is 0, which only the host knows.
                m = counter ^ nil
                rate_m = tl.load(rates + m * TILE)
                state = tl.load(scratch + (group * N + m) * BLOCK)
                B_m = B + m
                C_m = C + m
                if dB is not None:
                    dB_m = dB + m
                if dC is not None:
                    dC_m = dC + m
                decays = ()
                before = ()
                new_ys = ()
                for t in tl.static_range(BACK):
                    p = ps[t]
                    b = tl.load(B_m + qs[t])
                    a = tl.exp2(dts[t] * rate_m)
                    f = a * state + puts[t] * b
                    if order is not None:
                        f = tl.where(p >= 0, f, tl.where(p == RESET, 0.0, state))
                    decays = decays + (a,)
                    before = before + (state,)
                    state = f
                    if dC is not None:
                        tl.store(dC_m + qs[t], tl.sum(dys[t] * state, 0), mask=p >= 0)
                    y = ys[t]
                    if dz is not None:
                        y += state * tl.load(C_m + qs[t])
                    new_ys = new_ys + (y,)
                ys = new_ys

                g = tl.load(carry + m * TILE)
                dA_m = zero
                new_ws = ()
                new_vs = ()
                for t in tl.static_range(BACK - 1, -1, -1):
                    p = ps[t]
                    b = tl.load(B_m + qs[t])
                    c = tl.load(C_m + qs[t])
                    f = g + dys[t] * c
                    if dB is not None:
                        tl.store(dB_m + qs[t], tl.sum(puts[t] * f, 0), mask=p >= 0)
                    ag = decays[t] * f
                    dlog = ag * before[t]
                    if order is not None:
                        dlog = tl.where(p >= 0, dlog, 0.0)
                        ag = tl.where(p >= 0, ag, tl.where(p == RESET, 0.0, g))
                    new_ws = (ws[t] + f * b,) + new_ws
                    new_vs = (vs[t] + dlog * rate_m,) + new_vs
                    dA_m += dlog * dts[t]
                    g = ag
                ws = new_ws
                vs = new_vs
                tl.store(carry + m * TILE, g)
                if dA is not None:
                    dA_m += tl.load(dA + m * TILE)
                    tl.store(dA + m * TILE, dA_m)
            sum_D = zero
            sum_bias = zero
            for t in tl.static_range(BACK):
                p, q = place(order, s0 + group * BACK + t, stop, length)
                there = live & (p >= 0)
                at = of_route + q * grad_l + channel
                x_t = _read(x, p, q, x_l, channel, live)
                if dx is not None:
                    tl.store(dx + at, (dts[t] * ws[t] + skip * dys[t]).to(dx.dtype.element_ty), mask=there)
                if dD is not None:
                    sum_D += dys[t] * x_t
                if ddt is not None or dbias is not None:
                    _, slope = _step_size(dt, p, q, dt_l, channel, live, bias, SOFTPLUS)
                    ddt_t = tl.where(p >= 0, (x_t * ws[t] + vs[t] * LN2) * slope, 0.0)
                    if ddt is not None:
                        tl.store(ddt + at, ddt_t.to(ddt.dtype.element_ty), mask=there)
                    sum_bias += ddt_t
                if dz is not None:
                    gate = _read(z, p, q, z_l, channel, live)
                    s_t = sigmoid(gate)
                    y = (ys[t] + skip * x_t) * _read(dout, p, q, dout_l, channel, live)
                    tl.store(dz + at, (y * s_t * (1.0 + gate * (1.0 - s_t))).to(dz.dtype.element_ty), mask=there)
            if dD is not None:
                tl.store(dD, tl.load(dD, mask=live, other=0.0) + sum_D, mask=live)
            if dbias is not None:
                tl.store(dbias, tl.load(dbias, mask=live, other=0.0) + sum_bias, mask=live)
            tl.debug_barrier()

    if not SPLIT:
        if dinitial is not None:
            dinitial += ((row.to(tl.int64) * routes + route) * channels + channel) * N
            for i in range(N):
                tl.store(dinitial + i, tl.load(carry + i * TILE), mask=live)
