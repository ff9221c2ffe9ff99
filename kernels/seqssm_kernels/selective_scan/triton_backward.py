"""Triton kernels of the scan's backward pass.

With `G` the gradient of the state after a step from all later steps, a step adds `dy C` to it and passes `a G` to the
previous step. dB, dC, dx, ddt and dA follow by the product rule (for the equations, see
`seqssm_kernels.selective_scan.torch.backward`). A program processes its slot in reverse, `KEEP` steps at a time: it
runs these forward once from the saved state and stores the states before every `BACK` steps, then processes them in
reverse. For one state n, all decays and states of `BACK` steps are in registers. The loop over n is an ordinary loop,
and values carried from one group of steps to the next are in memory that stays in the L1 cache.

dB and dC are sums over the channels: first inside a thread, then over the lanes by recursive halving (`fold`), which
leaves each sum in a separate lane, so that one store writes them all.

If the length is split, `scan_adjoint` computes the gradient before each chunk from zero after it, and `scan_carry`
converts it to the true one, before `scan_backward` runs once per chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqssm_kernels.gpu.blocks import (
    LANES,
    LN2,
    RESET,
    apart,
    bits_unless,
    bounds,
    channels_of,
    first_slot,
    fold,
    masked,
    place,
    program,
    rows,
    sigmoid,
    spread,
    spread_index,
    step_sizes,
    take,
    tiled,
    together,
    wide,
)

ADJOINT_NUMBERS = [
    *("steps", "length", "channels", "routes", "per_row", "kept_per_row", "lines", "chunk", "pairs_r", "rates_r"),
    *("dt_b", "dt_l", "dt_r", "z_b", "z_l", "z_r", "bias_r", "order_b", "order_r", "dout_b", "dout_l", "dout_r"),
]
BACKWARD_NUMBERS = [*ADJOINT_NUMBERS, "first_program", "x_b", "x_l", "x_r", "D_r", "s", "r", "e", "n"]


@triton.jit(do_not_specialize=ADJOINT_NUMBERS)
def scan_adjoint(
    dt, rates, pairs, z, dt_bias, order, cu_seqlens, row_of_slot, dout, ends, sums, resets,
    steps, length, channels, routes, per_row, kept_per_row, lines, chunk, pairs_r, rates_r,
    dt_b, dt_l, dt_r, z_b, z_l, z_r, bias_r, order_b, order_r, dout_b, dout_l, dout_r,
    N: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, UNROLL: tl.constexpr, KEEP: tl.constexpr,
    UNIT: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Gradient of the state before each slot from zero after it; results as those of `scan_forward` with ENDS.

    Args:
        ends: (slots, R, tiles, N, TILE), the gradient.
        other names: see `scan_forward` and `scan_backward`.
    """
    channels = channels * UNIT
    slot, route, block = program(tl.program_id(0), routes, tl.cdiv(channels, LANES * K))
    row, batch, start, stop, begin, end = bounds(slot, row_of_slot, cu_seqlens, steps, per_row, chunk)
    if start > end:
        return
    channel = channels_of(block, K)
    live = channel < channels
    inside = channels_of(0, K)
    zero = tl.zeros([LANES, K], tl.float32)
    here = slot.to(tl.int64) * routes + route
    dt += batch * wide(dt_b, UNIT) + route * wide(dt_r, UNIT) + channel
    dt_l = wide(dt_l, UNIT)
    dout += batch * wide(dout_b, UNIT) + route * wide(dout_r, UNIT) + channel
    dout_l = wide(dout_l, UNIT)
    z_l = wide(z_l, UNIT)
    if z is not None:
        z += batch * wide(z_b, UNIT) + route * wide(z_r, UNIT) + channel
    if order is not None:
        order += batch * order_b + route * order_r.to(tl.int64)
    bias = None
    if dt_bias is not None:
        bias = tl.load(dt_bias + route * bias_r + channel, mask=live, other=0.0)
    rates += tiled(route * rates_r.to(tl.int64), channels, block, N, LANES * K, TILE) + inside
    ends += tiled(here, channels, block, N, LANES * K, TILE) + inside
    first = (first_slot(row, begin, cu_seqlens, kept_per_row, KEEP) + (start - begin) // KEEP).to(tl.int64)
    pairs += (route * pairs_r.to(tl.int64) * lines + first) * (N * 2 * KEEP) + KEEP
    for n in range(N):
        tl.store(ends + n * TILE, zero)
    total = zero
    reset = start * 0
    index = spread_index(UNROLL)
    tl.debug_barrier()

    groups = tl.cdiv(stop - start, UNROLL)
    for i in range(groups):
        s = start + (groups - 1 - i) * UNROLL
        p = place(order, s + tl.arange(0, UNROLL), stop, length)
        visits = (p >= 0)[:, None, None]
        there = visits & live[None]
        d, _ = step_sizes(rows(order, dt, s, p, dt_l, UNROLL), there, visits, bias, SOFTPLUS)
        dy = take(rows(order, dout, s, p, dout_l, UNROLL), there)
        if z is not None:
            gate = take(rows(order, z, s, p, z_l, UNROLL), there)
            dy *= gate * sigmoid(gate)
        dts = apart(d, UNROLL)
        dys = apart(dy, UNROLL)
        total += tl.sum(d, 0)
        if order is not None:
            keeps = bits_unless(p == RESET, UNROLL)
            reset = tl.maximum(reset, tl.max((p == RESET).to(tl.int32), 0))
        line = pairs + ((s - start) // KEEP).to(tl.int64) * (N * 2 * KEEP) + (s - start) % KEEP
        rate_n = tl.load(rates)
        g = tl.load(ends)
        cs = spread(line, index, UNROLL)
        for n in tl.range(0, N, loop_unroll_factor=2):
            ahead = tl.minimum(n + 1, N - 1)
            next_rate = tl.load(rates + ahead * TILE)
            next_g = tl.load(ends + ahead * TILE)
            next_cs = spread(line + ahead * (2 * KEEP), index, UNROLL)
            for u in tl.static_range(UNROLL - 1, -1, -1):
                g = tl.exp2(dts[u] * rate_n) * (g + dys[u] * cs[u])
                if order is not None:
                    g = masked(g, keeps[u])
            tl.store(ends + n * TILE, g)
            rate_n = next_rate
            g = next_g
            cs = next_cs

    tl.store(sums + here * channels + channel, total, mask=live)
    if order is not None:
        tl.store(resets + here, reset)


@triton.jit(do_not_specialize=BACKWARD_NUMBERS)
def scan_backward(
    x, dt, rates, pairs, D, z, dt_bias, order, cu_seqlens, row_of_slot, dout, dfinal, carry, kept, scratch,
    dx, ddt, dz, dA, dpairs, dD, dbias, dinitial,
    steps, length, channels, routes, per_row, kept_per_row, lines, chunk, pairs_r, rates_r, first_program,
    x_b, x_l, x_r, dt_b, dt_l, dt_r, z_b, z_l, z_r, D_r, bias_r, order_b, order_r, dout_b, dout_l, dout_r, s, r, e, n,
    N: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, BACK: tl.constexpr, AGAIN: tl.constexpr, KEEP: tl.constexpr,
    UNIT: tl.constexpr, SOFTPLUS: tl.constexpr, SPLIT: tl.constexpr, NEEDS_B: tl.constexpr, NEEDS_C: tl.constexpr,
):  # fmt: skip
    """Gradients over a slot; every result may be None if it is not needed.

    Args:
        first_program: index of the first program of this launch.
        dfinal: gradient of the final states, strides `s, r, e, n`; None for zero. Not read with SPLIT.
        carry: (slots, R, tiles, N, TILE), with SPLIT the gradient of the state after each slot; overwritten.
        kept: states saved by `scan_forward`.
        scratch: (KEEP + AGAIN) / BACK states and 2 BACK rows of 32 K channels, for every program of this launch.
        dx, ddt, dz: (B, L, R, E) contiguous.
        dpairs: (blocks, R, lines, N, 2, KEEP), dB with NEEDS_B and dC with NEEDS_C, summed over a block's channels.
        dA: (slots, R, tiles, N, TILE); dD, dbias: (slots, R, E).
        dinitial: (rows, R, E, N), not written with SPLIT.
        AGAIN: steps that the second forward run takes at once, a multiple of BACK.
        other names: see `scan_forward`.
    """
    channels = channels * UNIT
    inside = channels_of(0, K)
    zero = tl.zeros([LANES, K], tl.float32)
    x_l = wide(x_l, UNIT)
    dt_l = wide(dt_l, UNIT)
    dout_l = wide(dout_l, UNIT)
    z_l = wide(z_l, UNIT)
    grad_l = routes.to(tl.int64) * channels
    STATES: tl.constexpr = N * LANES * K
    scratch += tl.program_id(0).to(tl.int64) * ((KEEP + AGAIN) // BACK * STATES + 2 * BACK * LANES * K) + inside
    # Factors of ddt and dz that are known when a group begins and needed when it ends.
    slopes = scratch + (KEEP + AGAIN) // BACK * STATES + tl.arange(0, BACK)[:, None, None] * (LANES * K)
    gates = slopes + BACK * LANES * K
    index = spread_index(BACK)
    again_index = spread_index(AGAIN)

    slot, route, block = program(tl.program_id(0) + first_program, routes, tl.cdiv(channels, LANES * K))
    row, batch, start, stop, begin, _end = bounds(slot, row_of_slot, cu_seqlens, steps, per_row, chunk)
    channel = channels_of(block, K)
    live = channel < channels
    here = slot.to(tl.int64) * routes + route
    from_here = tiled(here, channels, block, N, LANES * K, TILE) + inside
    carry_here = carry + from_here
    if dA is not None:
        dA_here = dA + from_here
        for i in range(N):
            tl.store(dA_here + i * TILE, zero)
    if not SPLIT:
        border = row.to(tl.int64) * s + route * r.to(tl.int64) + channel.to(tl.int64) * e
        for i in range(N):
            g = zero
            if dfinal is not None:
                g = tl.load(dfinal + border + i * n, mask=live, other=0.0).to(tl.float32)
            tl.store(carry_here + i * TILE, g)
    x_here = x + batch * wide(x_b, UNIT) + route * wide(x_r, UNIT) + channel
    dt_here = dt + batch * wide(dt_b, UNIT) + route * wide(dt_r, UNIT) + channel
    dout_here = dout + batch * wide(dout_b, UNIT) + route * wide(dout_r, UNIT) + channel
    if z is not None:
        z_here = z + batch * wide(z_b, UNIT) + route * wide(z_r, UNIT) + channel
    order_here = order
    if order is not None:
        order_here = order + batch * order_b + route * order_r.to(tl.int64)
    rates_here = rates + tiled(route * rates_r.to(tl.int64), channels, block, N, LANES * K, TILE) + inside
    of_route = (batch * length * routes + route) * channels + channel
    first = (first_slot(row, begin, cu_seqlens, kept_per_row, KEEP) + (start - begin) // KEEP).to(tl.int64)
    # Pointers of a stretch, starting with the last one: moving pointers take fewer registers than recomputing them.
    stretches = tl.cdiv(stop - start, KEEP)
    first += stretches - 1
    line = pairs + (route * pairs_r.to(tl.int64) * lines + first) * (N * 2 * KEEP)
    to_line = dpairs
    if dpairs is not None:
        to_line += ((block * routes + route).to(tl.int64) * lines + first) * (N * 2 * KEEP)
    kept_here = kept + tiled(first * routes + route, channels, block, N, LANES * K, TILE) + inside
    kept_l = routes.to(tl.int64) * tl.cdiv(channels, TILE) * (N * TILE)
    # Sums over the slot are in memory, like dA, and D and the bias are loaded at each use: kept in registers
    # throughout, they would be spilled.
    of_slot = here * channels + channel
    if dD is not None:
        tl.store(dD + of_slot, zero, mask=live)
    if dbias is not None:
        tl.store(dbias + of_slot, zero, mask=live)
    tl.debug_barrier()

    for i in range(stretches):
        s0 = start + (stretches - 1 - i) * KEEP
        count = tl.minimum(KEEP, stop - s0)

        # Forward over the stretch: the state before every group.
        for k in range(N):
            tl.store(scratch + k * (LANES * K), tl.load(kept_here + k * TILE, mask=live, other=0.0))
        for a in range(0, count - BACK, AGAIN):
            sa = s0 + a
            p = place(order_here, sa + tl.arange(0, AGAIN), stop, length)
            visits = (p >= 0)[:, None, None]
            there = visits & live[None]
            again_bias = None
            if dt_bias is not None:
                again_bias = tl.load(dt_bias + route * bias_r + channel, mask=live, other=0.0)
            d, _ = step_sizes(rows(order, dt_here, sa, p, dt_l, AGAIN), there, visits, again_bias, SOFTPLUS)
            dts = apart(d, AGAIN)
            puts = apart(d * take(rows(order, x_here, sa, p, x_l, AGAIN), there), AGAIN)
            if order is not None:
                keeps = bits_unless(p == RESET, AGAIN)
            for k in tl.range(0, N, loop_unroll_factor=2):
                rate_k = tl.load(rates_here + k * TILE)
                states = scratch + (a // BACK * N + k) * (LANES * K)
                h = tl.load(states)
                bs = spread(line + a + k * (2 * KEEP), again_index, AGAIN)
                for t in tl.static_range(AGAIN):
                    if order is not None:
                        h = masked(h, keeps[t])
                    h = tl.exp2(dts[t] * rate_k) * h + puts[t] * bs[t]
                    if (t + 1) % BACK == 0:
                        tl.store(states + ((t + 1) // BACK) * STATES, h)
        tl.debug_barrier()

        groups = tl.cdiv(count, BACK)
        for j in range(groups):
            group = groups - 1 - j
            sg = s0 + group * BACK
            p = place(order_here, sg + tl.arange(0, BACK), stop, length)
            visits = (p >= 0)[:, None, None]
            there = visits & live[None]
            bias = None
            if dt_bias is not None:
                bias = tl.load(dt_bias + route * bias_r + channel, mask=live, other=0.0)
            d, slope = step_sizes(rows(order, dt_here, sg, p, dt_l, BACK), there, visits, bias, SOFTPLUS)
            if SOFTPLUS:
                if ddt is not None or dbias is not None:
                    tl.store(slopes, slope)
            dy = take(rows(order, dout_here, sg, p, dout_l, BACK), there)
            if z is not None:
                gate = take(rows(order, z_here, sg, p, z_l, BACK), there)
                opened = sigmoid(gate)
                if dz is not None:
                    tl.store(gates, dy * opened * (1.0 + gate * (1.0 - opened)))
                dy *= gate * opened
            dts = apart(d, BACK)
            puts = apart(d * take(rows(order, x_here, sg, p, x_l, BACK), there), BACK)
            dys = apart(dy, BACK)
            if order is not None:
                keeps = bits_unless(p == RESET, BACK)
                visited = bits_unless(p < 0, BACK)
            ws = ()
            vs = ()
            ys = ()
            for _ in tl.static_range(BACK):
                ws = ws + (zero,)
                vs = vs + (zero,)
                ys = ys + (zero,)
            for k in range(N):
                rate_k = tl.load(rates_here + k * TILE)
                h = tl.load(scratch + (group * N + k) * (LANES * K))
                bs = spread(line + group * BACK + k * (2 * KEEP), index, BACK)
                cs = spread(line + group * BACK + k * (2 * KEEP) + KEEP, index, BACK)
                decays = ()
                before = ()
                of_C = ()
                new_ys = ()
                for t in tl.static_range(BACK):
                    a_t = tl.exp2(dts[t] * rate_k)
                    held = h
                    if order is not None:
                        held = masked(h, visited[t])
                        h = masked(h, keeps[t])
                    h = a_t * h + puts[t] * bs[t]
                    decays = decays + (a_t,)
                    before = before + (held,)
                    if NEEDS_C:
                        of_C = of_C + (tl.sum(dys[t] * h, 1),)
                    if dz is not None:
                        new_ys = new_ys + (ys[t] + h * cs[t],)
                if dz is not None:
                    ys = new_ys
                g = tl.load(carry_here + k * TILE)
                dA_k = zero
                of_B = ()
                new_ws = ()
                new_vs = ()
                for t in tl.static_range(BACK - 1, -1, -1):
                    f = g + dys[t] * cs[t]
                    if NEEDS_B:
                        of_B = (tl.sum(puts[t] * f, 1),) + of_B
                    g = decays[t] * f
                    if order is not None:
                        g = masked(g, keeps[t])
                    dlog = g * before[t]
                    new_ws = (ws[t] + f * bs[t],) + new_ws
                    new_vs = (vs[t] + dlog * rate_k,) + new_vs
                    dA_k += dlog * dts[t]
                ws = new_ws
                vs = new_vs
                tl.store(carry_here + k * TILE, g)
                if dA is not None:
                    tl.store(dA_here + k * TILE, dA_k + tl.load(dA_here + k * TILE))
                if dpairs is not None:
                    lane = tl.arange(0, LANES)
                    to = to_line + group * BACK + k * (2 * KEEP)
                    if NEEDS_B and NEEDS_C:
                        to += lane // BACK * KEEP + lane % BACK
                        tl.store(to, fold(of_B + of_C, 2 * BACK), mask=lane < 2 * BACK)
                    elif NEEDS_B:
                        tl.store(to + lane, fold(of_B, BACK), mask=lane < BACK)
                    else:
                        tl.store(to + KEEP + lane, fold(of_C, BACK), mask=lane < BACK)

            tl.debug_barrier()
            skip = zero
            if D is not None:
                skip = tl.load(D + route * D_r + channel, mask=live, other=0.0)
            x_t = take(rows(order, x_here, sg, p, x_l, BACK), there)
            w = together(ws, BACK)
            dy = together(dys, BACK)
            if dx is not None:
                dx_t = together(dts, BACK) * w + skip * dy
                tl.store(rows(order, dx + of_route, sg, p, grad_l, BACK), dx_t.to(dx.dtype.element_ty), mask=there)
            if dD is not None:
                sum_D = tl.load(dD + of_slot, mask=live, other=0.0) + tl.sum(dy * x_t, 0)
                tl.store(dD + of_slot, sum_D, mask=live)
            if ddt is not None or dbias is not None:
                ddt_t = x_t * w + together(vs, BACK) * LN2
                if SOFTPLUS:
                    ddt_t *= tl.load(slopes)
                if ddt is not None:
                    to_ddt = rows(order, ddt + of_route, sg, p, grad_l, BACK)
                    tl.store(to_ddt, ddt_t.to(ddt.dtype.element_ty), mask=there)
                if dbias is not None:
                    sum_bias = tl.load(dbias + of_slot, mask=live, other=0.0) + tl.sum(tl.where(visits, ddt_t, 0.0), 0)
                    tl.store(dbias + of_slot, sum_bias, mask=live)
            if dz is not None:
                dz_t = (together(ys, BACK) + skip * x_t) * tl.load(gates)
                tl.store(rows(order, dz + of_route, sg, p, grad_l, BACK), dz_t.to(dz.dtype.element_ty), mask=there)
            tl.debug_barrier()

        kept_here -= kept_l
        line -= N * 2 * KEEP
        if dpairs is not None:
            to_line -= N * 2 * KEEP

    if not SPLIT:
        if dinitial is not None:
            to_row = ((row.to(tl.int64) * routes + route) * channels + channel) * N
            for i in range(N):
                tl.store(dinitial + to_row + i, tl.load(carry_here + i * TILE), mask=live)
