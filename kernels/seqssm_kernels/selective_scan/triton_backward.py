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
    bounds,
    channels_of,
    fetch,
    fetch_lines,
    fetch_rows,
    first_slot,
    fold,
    masked,
    place,
    program,
    quads,
    row_of,
    sigmoid,
    spread,
    step_size,
    take,
    tiled,
    wide,
)
from seqssm_kernels.selective_scan.triton_adjoint import ADJOINT_NUMBERS

BACKWARD_NUMBERS = [*ADJOINT_NUMBERS, "first_program", "x_b", "x_l", "x_r", "D_r", "s", "r", "e", "n"]


@triton.jit(do_not_specialize=BACKWARD_NUMBERS)
def scan_backward(
    x, dt, rates, pairs, D, z, dt_bias, order, cu_seqlens, row_of_slot, dout, dfinal, carry, kept, scratch,
    dx, ddt, dz, dA, dpairs, dD, dbias, dinitial,
    steps, length, channels, routes, per_row, kept_per_row, lines, chunk, pairs_r, rates_r, first_program,
    x_b, x_l, x_r, dt_b, dt_l, dt_r, z_b, z_l, z_r, D_r, bias_r, order_b, order_r, dout_b, dout_l, dout_r, s, r, e, n,
    N: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, BACK: tl.constexpr, AGAIN: tl.constexpr, KEEP: tl.constexpr,
    UNIT: tl.constexpr, SOFTPLUS: tl.constexpr, SPLIT: tl.constexpr, NEEDS_B: tl.constexpr, NEEDS_C: tl.constexpr,
    PREFETCH: tl.constexpr,
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
    scratch += tl.program_id(0).to(tl.int64) * ((KEEP + AGAIN) // BACK * STATES + 2 * BACK * LANES * K)
    sectors = scratch + tl.arange(0, LANES) * 8
    scratch += inside
    # Factors of ddt and dz that are known when a group begins and needed when it ends.
    slopes = scratch + (KEEP + AGAIN) // BACK * STATES
    gates = slopes + BACK * LANES * K
    index = quads()

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
    x_rows = x + batch * wide(x_b, UNIT) + route * wide(x_r, UNIT)
    x_here = x_rows + channel
    dt_rows = dt + batch * wide(dt_b, UNIT) + route * wide(dt_r, UNIT)
    dt_here = dt_rows + channel
    dout_rows = dout + batch * wide(dout_b, UNIT) + route * wide(dout_r, UNIT)
    dout_here = dout_rows + channel
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
            if PREFETCH:
                after = tl.minimum(a + AGAIN, KEEP - AGAIN)
                fetch_lines(line + after, N, KEEP, PREFETCH)
                if order is None:
                    coming = place(order, s0 + after + tl.arange(0, AGAIN), stop, length)
                    fetch_rows(dt_rows, coming, dt_l, channels, block, K, PREFETCH)
                    fetch_rows(x_rows, coming, x_l, channels, block, K, PREFETCH)
            places = ()
            sizes = ()
            values = ()
            for t in tl.static_range(AGAIN):
                p = place(order_here, sa + t, stop, length)
                there = live & (p >= 0)
                places = places + (p,)
                sizes = sizes + (take(row_of(order, dt_here, sa + t, 0, p, dt_l), there),)
                values = values + (take(row_of(order, x_here, sa + t, 0, p, x_l), there),)
            again_bias = None
            if dt_bias is not None:
                again_bias = tl.load(dt_bias + route * bias_r + channel, mask=live, other=0.0)
            dts = ()
            puts = ()
            keeps = ()
            for t in tl.static_range(AGAIN):
                d, _ = step_size(sizes[t], places[t] >= 0, again_bias, SOFTPLUS)
                dts = dts + (d,)
                puts = puts + (d * values[t],)
                if order is not None:
                    keeps = keeps + (tl.where(places[t] == RESET, 0, -1),)
            rate_k = tl.load(rates_here)
            h = tl.load(scratch + a // BACK * STATES)
            bs = spread(line + a, index, AGAIN)
            for k in tl.range(0, N, loop_unroll_factor=2):
                states = scratch + (a // BACK * N + k) * (LANES * K)
                ahead = tl.minimum(k + 1, N - 1)
                next_rate = tl.load(rates_here + ahead * TILE)
                next_h = tl.load(scratch + (a // BACK * N + ahead) * (LANES * K))
                next_bs = spread(line + a + ahead * (2 * KEEP), index, AGAIN)
                for t in tl.static_range(AGAIN):
                    if order is not None:
                        h = masked(h, keeps[t])
                    h = tl.exp2(dts[t] * rate_k) * h + puts[t] * bs[t]
                    if (t + 1) % BACK == 0:
                        tl.store(states + ((t + 1) // BACK) * STATES, h)
                rate_k = next_rate
                h = next_h
                bs = next_bs
        tl.debug_barrier()

        groups = tl.cdiv(count, BACK)
        for j in range(groups):
            group = groups - 1 - j
            sg = s0 + group * BACK
            if PREFETCH:
                after_group = tl.maximum(group - 1, 0)
                fetch_lines(line + after_group * BACK, N, KEEP, PREFETCH)
                for part in tl.static_range(N * K // 8):
                    fetch(sectors + after_group * STATES + part * (8 * LANES), PREFETCH)
                if order is None:
                    to_come = place(order, s0 + after_group * BACK + tl.arange(0, BACK), stop, length)
                    fetch_rows(dout_rows, to_come, dout_l, channels, block, K, PREFETCH)
                    fetch_rows(dt_rows, to_come, dt_l, channels, block, K, PREFETCH)
                    fetch_rows(x_rows, to_come, x_l, channels, block, K, PREFETCH)
            places = ()
            sizes = ()
            values = ()
            dys = ()
            for t in tl.static_range(BACK):
                p = place(order_here, sg + t, stop, length)
                there = live & (p >= 0)
                places = places + (p,)
                sizes = sizes + (take(row_of(order, dt_here, sg, t, p, dt_l), there),)
                values = values + (take(row_of(order, x_here, sg, t, p, x_l), there),)
                dys = dys + (take(row_of(order, dout_here, sg, t, p, dout_l), there),)
            bias = None
            if dt_bias is not None:
                bias = tl.load(dt_bias + route * bias_r + channel, mask=live, other=0.0)
            if z is not None:
                gated = ()
                for t in tl.static_range(BACK):
                    p = places[t]
                    gate = take(row_of(order, z_here, sg, t, p, z_l), live & (p >= 0))
                    opened = sigmoid(gate)
                    if dz is not None:
                        tl.store(gates + t * (LANES * K), dys[t] * opened * (1.0 + gate * (1.0 - opened)))
                    gated = gated + (dys[t] * gate * opened,)
                dys = gated
            dts = ()
            puts = ()
            keeps = ()
            visited = ()
            for t in tl.static_range(BACK):
                d, slope = step_size(sizes[t], places[t] >= 0, bias, SOFTPLUS)
                dts = dts + (d,)
                puts = puts + (d * values[t],)
                if SOFTPLUS:
                    if ddt is not None or dbias is not None:
                        tl.store(slopes + t * (LANES * K), slope)
                if order is not None:
                    keeps = keeps + (tl.where(places[t] == RESET, 0, -1),)
                    visited = visited + (tl.where(places[t] < 0, 0, -1),)
            ws = ()
            vs = ()
            ys = ()
            for _ in tl.static_range(BACK):
                ws = ws + (zero,)
                vs = vs + (zero,)
                ys = ys + (zero,)
            for k in range(N):
                # All loads before the first use: the registers allow no load ahead of the next state.
                bs = spread(line + group * BACK + k * (2 * KEEP), index, BACK)
                rate_k = tl.load(rates_here + k * TILE)
                h = tl.load(scratch + (group * N + k) * (LANES * K))
                g = tl.load(carry_here + k * TILE)
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
                dA_k = zero
                if dA is not None:
                    dA_k = tl.load(dA_here + k * TILE)
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
                    tl.store(dA_here + k * TILE, dA_k)
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
            sum_D = zero
            sum_bias = zero
            for t in tl.static_range(BACK):
                p = place(order_here, sg + t, stop, length)
                there = live & (p >= 0)
                x_t = take(row_of(order, x_here, sg + t, 0, p, x_l), there)
                if dx is not None:
                    dx_t = dts[t] * ws[t] + skip * dys[t]
                    to_dx = row_of(order, dx + of_route, sg + t, 0, p, grad_l)
                    tl.store(to_dx, dx_t.to(dx.dtype.element_ty), mask=there)
                if dD is not None:
                    sum_D += dys[t] * x_t
                if ddt is not None or dbias is not None:
                    ddt_t = x_t * ws[t] + vs[t] * LN2
                    if SOFTPLUS:
                        ddt_t *= tl.load(slopes + t * (LANES * K))
                    if ddt is not None:
                        to_ddt = row_of(order, ddt + of_route, sg + t, 0, p, grad_l)
                        tl.store(to_ddt, ddt_t.to(ddt.dtype.element_ty), mask=there)
                    if dbias is not None:
                        sum_bias += tl.where(p >= 0, ddt_t, 0.0)
                if dz is not None:
                    dz_t = (ys[t] + skip * x_t) * tl.load(gates + t * (LANES * K))
                    to_dz = row_of(order, dz + of_route, sg + t, 0, p, grad_l)
                    tl.store(to_dz, dz_t.to(dz.dtype.element_ty), mask=there)
            if dD is not None:
                tl.store(dD + of_slot, tl.load(dD + of_slot, mask=live, other=0.0) + sum_D, mask=live)
            if dbias is not None:
                tl.store(dbias + of_slot, tl.load(dbias + of_slot, mask=live, other=0.0) + sum_bias, mask=live)
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
