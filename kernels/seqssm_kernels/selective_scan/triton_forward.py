"""Triton kernels of the scan's forward pass.

`scan_forward` runs one route of one slot over 32 K channels, UNROLL steps at a time. dt, dt x and y of these steps are
in registers, the states in memory that stays in the L1 cache; the loop over the N states loads one state per channel,
runs it over the UNROLL steps and writes it back. Register use therefore does not depend on N, threads exchange no data,
and an update costs one exp2 and four operations.

If the length is split, the same kernel runs twice: first with ENDS over each chunk from a zero state, which gives the
state after the chunk and the sum of dt (the chunk's decay is exp2(sum * rate)); then, after `scan_carry`, from the true
state before the chunk.

`scan_step` handles calls of one step without a backward pass: no tables, one launch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqssm_kernels.gpu.blocks import (
    LANES,
    RESET,
    bounds,
    channels_of,
    fetch_lines,
    fetch_rows,
    first_slot,
    masked,
    place,
    program,
    quads,
    rate,
    row_of,
    scale_values,
    sigmoid,
    softplus,
    spread,
    step_size,
    take,
    tiled,
    wide,
)

SIZES = ["steps", "length", "channels", "routes", "per_row", "kept_per_row", "lines", "chunk", "pairs_r", "rates_r"]
STRIDES = ["x_b", "x_l", "x_r", "dt_b", "dt_l", "dt_r", "z_b", "z_l", "z_r", "D_r", "bias_r", "order_b", "order_r"]
SCALES = ["x_scale_r", "B_scale_r", "C_scale_r"]
STATE = ["h_s", "h_r", "h_e", "h_n"]


@triton.jit(do_not_specialize=[*SIZES, *STRIDES, *STATE, SCALES[0]])
def scan_forward(
    x, dt, rates, pairs, x_scale, D, z, dt_bias, order, cu_seqlens, row_of_slot, start_state,
    run, out, end_state, kept, sums, resets,
    steps, length, channels, routes, per_row, kept_per_row, lines, chunk, pairs_r, rates_r,
    x_b, x_l, x_r, dt_b, dt_l, dt_r, z_b, z_l, z_r, D_r, bias_r, order_b, order_r, h_s, h_r, h_e, h_n, x_scale_r,
    N: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, UNROLL: tl.constexpr, KEEP: tl.constexpr,
    UNIT: tl.constexpr, SOFTPLUS: tl.constexpr, SPLIT: tl.constexpr, ENDS: tl.constexpr,
    PREFETCH: tl.constexpr,
):  # fmt: skip
    """Run the recurrence over a slot.

    Args:
        rates: (1 or R, tiles, N, TILE), `rate` of A, zero past the last channel; `rates_r` is 0 or 1.
        pairs: (1 or R, lines, N, 2, KEEP), B and C in the order of the steps, zero where a step visits no position;
            `pairs_r` is 0 or 1.
        x_scale: scales of integer x, (1 or R, E); None for floats.
        start_state: state before each row, strides `h_*`; None for zero. Not read with SPLIT.
        run: the running state, (slots, R, tiles, N, TILE). With SPLIT alone it holds the state before each slot, with
            SPLIT and ENDS it receives the state after each slot from a zero state; scratch otherwise.
        out: (B, L, R, E) contiguous, not written with ENDS.
        end_state: state after each row, (rows, R, E, N); not written with SPLIT.
        kept: (lines, R, tiles, N, TILE), the state before every KEEP steps of a row; None to keep nothing.
        sums: with ENDS the sum of dt over the slot, (slots, R, E).
        resets: with ENDS and an order, whether the slot has a reset, (slots, R).
        per_row, kept_per_row: slots of a row, and lines of a row.
        chunk: steps of a slot.
        other names: strides in elements, those over positions and `channels` in units of UNIT.
    """
    channels = channels * UNIT
    slot, route, block = program(tl.program_id(0), routes, tl.cdiv(channels, LANES * K))
    row, batch, start, stop, begin, end = bounds(slot, row_of_slot, cu_seqlens, steps, per_row, chunk)
    if start > end:
        return
    e = channels_of(block, K)
    live = e < channels
    inside = channels_of(0, K)
    zero = tl.zeros([LANES, K], tl.float32)
    here = slot.to(tl.int64) * routes + route

    x += batch * wide(x_b, UNIT) + route * wide(x_r, UNIT)
    dt += batch * wide(dt_b, UNIT) + route * wide(dt_r, UNIT)
    x_rows = x
    dt_rows = dt
    x += e
    dt += e
    x_l = wide(x_l, UNIT)
    dt_l = wide(dt_l, UNIT)
    z_l = wide(z_l, UNIT)
    out += (batch * length * routes + route) * channels + e
    out_l = routes.to(tl.int64) * channels
    if z is not None:
        z += batch * wide(z_b, UNIT) + route * wide(z_r, UNIT) + e
    if order is not None:
        order += batch * order_b + route * order_r.to(tl.int64)
    skip = zero
    if D is not None:
        skip = tl.load(D + route * D_r + e, mask=live, other=0.0)
    bias = None
    if dt_bias is not None:
        bias = tl.load(dt_bias + route * bias_r + e, mask=live, other=0.0)
    if x_scale is not None:
        x_scale += route * x_scale_r
    rates += tiled(route * rates_r.to(tl.int64), channels, block, N, LANES * K, TILE) + inside
    run += tiled(here, channels, block, N, LANES * K, TILE) + inside
    first = (first_slot(row, begin, cu_seqlens, kept_per_row, KEEP) + (start - begin) // KEEP).to(tl.int64)
    pairs += (route * pairs_r.to(tl.int64) * lines + first) * (N * 2 * KEEP)
    if kept is not None:
        kept += tiled(first * routes + route, channels, block, N, LANES * K, TILE) + inside
        kept_l = routes.to(tl.int64) * tl.cdiv(channels, TILE) * (N * TILE)
    if not SPLIT:
        border = row.to(tl.int64) * h_s + route * h_r.to(tl.int64) + e.to(tl.int64) * h_e
    if ENDS or not SPLIT:
        for n in range(N):
            h = zero
            if start_state is not None:
                if not SPLIT:
                    h = tl.load(start_state + border + n * h_n, mask=live, other=0.0)
            tl.store(run + n * TILE, h)
    total = zero
    reset = start * 0
    index = quads()
    tl.debug_barrier()
    coming = place(order, start + UNROLL + tl.arange(0, UNROLL), stop, length)

    for s in range(start, stop, UNROLL):
        if PREFETCH:
            after = tl.minimum(s + UNROLL, stop - 1) - start
            fetch_lines(pairs + (after // KEEP).to(tl.int64) * (N * 2 * KEEP) + after % KEEP, N, KEEP, PREFETCH)
            fetch_rows(dt_rows, coming, dt_l, channels, block, K, PREFETCH)
            fetch_rows(x_rows, coming, x_l, channels, block, K, PREFETCH)
            coming = place(order, s + 2 * UNROLL + tl.arange(0, UNROLL), stop, length)
        if kept is not None:
            if (s - start) % KEEP == 0:
                for n in range(N):
                    tl.store(kept + n * TILE, tl.load(run + n * TILE))
                kept += kept_l
        # All loads before the first use; a tensor for each step, because a tensor over steps would be exchanged between
        # the threads by some releases of Triton.
        places = ()
        theres = ()
        sizes = ()
        values = ()
        for u in tl.static_range(UNROLL):
            p = place(order, s + u, stop, length)
            there = live & (p >= 0)
            places = places + (p,)
            theres = theres + (there,)
            sizes = sizes + (take(row_of(order, dt, s, u, p, dt_l), there),)
            values = values + (take(row_of(order, x, s, u, p, x_l), there),)
        dts = ()
        puts = ()
        ys = ()
        keeps = ()
        for u in tl.static_range(UNROLL):
            d, _ = step_size(sizes[u], places[u] >= 0, bias, SOFTPLUS)
            value = scale_values(values[u], x_scale, e, live)
            dts = dts + (d,)
            puts = puts + (d * value,)
            if ENDS:
                total += d
                if order is not None:
                    reset = tl.maximum(reset, (places[u] == RESET).to(tl.int32))
            else:
                ys = ys + (skip * value,)
            if order is not None:
                keeps = keeps + (tl.where(places[u] == RESET, 0, -1),)
        line = pairs + ((s - start) // KEEP).to(tl.int64) * (N * 2 * KEEP) + (s - start) % KEEP
        # Values of the next state are loaded before the store of this one, which a load may not overtake.
        rate_n = tl.load(rates)
        h = tl.load(run)
        bs = spread(line, index, UNROLL)
        cs = bs
        if not ENDS:
            cs = spread(line + KEEP, index, UNROLL)
        for n in tl.range(0, N, loop_unroll_factor=2):
            ahead = tl.minimum(n + 1, N - 1)
            next_rate = tl.load(rates + ahead * TILE)
            next_h = tl.load(run + ahead * TILE)
            next_bs = spread(line + ahead * (2 * KEEP), index, UNROLL)
            next_cs = next_bs
            if not ENDS:
                next_cs = spread(line + ahead * (2 * KEEP) + KEEP, index, UNROLL)
            new = ()
            for u in tl.static_range(UNROLL):
                if order is not None:
                    h = masked(h, keeps[u])
                h = tl.exp2(dts[u] * rate_n) * h + puts[u] * bs[u]
                if not ENDS:
                    new = new + (ys[u] + h * cs[u],)
            if not ENDS:
                ys = new
            tl.store(run + n * TILE, h)
            rate_n = next_rate
            h = next_h
            bs = next_bs
            cs = next_cs
        if not ENDS:
            gates = ()
            if z is not None:
                for u in tl.static_range(UNROLL):
                    gates = gates + (take(row_of(order, z, s, u, places[u], z_l), theres[u]),)
            for u in tl.static_range(UNROLL):
                y = ys[u]
                if z is not None:
                    y *= gates[u] * sigmoid(gates[u])
                to = row_of(order, out, s, u, places[u], out_l)
                tl.store(to, y.to(out.dtype.element_ty), mask=theres[u])

    if ENDS:
        tl.store(sums + here * channels + e, total, mask=live)
        if order is not None:
            tl.store(resets + here, reset)
    elif not SPLIT:
        end_state += ((row.to(tl.int64) * routes + route) * channels + e) * N
        for n in range(N):
            tl.store(end_state + n, tl.load(run + n * TILE), mask=live)


TABLES = ["B_b", "B_l", "B_r", "B_n", "C_b", "C_l", "C_r", "C_n", "A_r", "A_e", "A_n"]


@triton.jit(do_not_specialize=["length", "channels", "routes", *STRIDES, *TABLES, *STATE, *SCALES])
def scan_step(
    x, dt, A, B, C, x_scale, B_scale, C_scale, D, z, dt_bias, order, cu_seqlens, start_state, out, end_state,
    length, channels, routes,
    x_b, x_l, x_r, dt_b, dt_l, dt_r, z_b, z_l, z_r, D_r, bias_r, order_b, order_r,
    B_b, B_l, B_r, B_n, C_b, C_l, C_r, C_n, A_r, A_e, A_n, h_s, h_r, h_e, h_n, x_scale_r, B_scale_r, C_scale_r,
    N: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """One step of every row, over BLOCK channels and all states at once, WIDTH a power of two of at least N.

    Args:
        other names: those of `scan_forward` and `scan_tables`; strides in elements.
    """
    slot, route, block = program(tl.program_id(0), routes, tl.cdiv(channels, BLOCK))
    one = slot * 0 + 1
    row, batch, start, stop, _begin, _end = bounds(slot, None, cu_seqlens, one, 1, 1)
    row = row.to(tl.int64)
    route_wide = route.to(tl.int64)
    e = block * BLOCK + tl.arange(0, BLOCK)
    live = e < channels
    wide_e = e.to(tl.int64)
    n = tl.arange(0, WIDTH)
    both = live[:, None] & (n < N)[None, :]
    if order is not None:
        order += batch * order_b + route_wide * order_r
    p = place(order, start, stop, length)
    q = tl.maximum(p, 0).to(tl.int64)
    there = live & (p >= 0)
    known = (n < N) & (p >= 0)

    d = take(dt + batch * dt_b + route_wide * dt_r + q * dt_l + e, there)
    if dt_bias is not None:
        d += tl.load(dt_bias + route_wide * bias_r + e, mask=live, other=0.0)
    if SOFTPLUS:
        d, _ = softplus(d)
    d = tl.where(p >= 0, d, 0.0)
    value = take(x + batch * x_b + route_wide * x_r + q * x_l + e, there)
    value = scale_values(value, x_scale, route_wide * x_scale_r + e, live)
    b = take(B + batch * B_b + route_wide * B_r + q * B_l + n * B_n.to(tl.int64), known)
    c = take(C + batch * C_b + route_wide * C_r + q * C_l + n * C_n.to(tl.int64), known)
    b = scale_values(b, B_scale, route_wide * B_scale_r + n, known)
    c = scale_values(c, C_scale, route_wide * C_scale_r + n, known)
    a = take(A + route_wide * A_r + wide_e[:, None] * A_e + n[None, :] * A_n.to(tl.int64), both)
    h = tl.zeros([BLOCK, WIDTH], tl.float32)
    if start_state is not None:
        at = row * h_s + route_wide * h_r + wide_e[:, None] * h_e + n[None, :] * h_n.to(tl.int64)
        h = tl.load(start_state + at, mask=both, other=0.0)
    h = tl.where(p == RESET, 0.0, h)
    h = tl.exp2(d[:, None] * rate(a)) * h + (d * value)[:, None] * b[None, :]
    y = tl.sum(h * c[None, :], 1)
    if D is not None:
        y += value * tl.load(D + route_wide * D_r + e, mask=live, other=0.0)
    if z is not None:
        gate = take(z + batch * z_b + route_wide * z_r + q * z_l + e, there)
        y *= gate * sigmoid(gate)
    tl.store(out + ((batch * length + q) * routes + route) * channels + e, y.to(out.dtype.element_ty), mask=there)
    to_state = ((row * routes + route) * channels + wide_e) * N
    tl.store(end_state + to_state[:, None] + n[None, :], h, mask=both)
