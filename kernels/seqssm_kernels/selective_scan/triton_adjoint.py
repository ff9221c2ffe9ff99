"""Triton kernel of the gradient of the state before each chunk, for a backward pass that is split over the length."""

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
    row_of,
    sigmoid,
    spread,
    step_size,
    take,
    tiled,
    wide,
)

ADJOINT_NUMBERS = [
    *("steps", "length", "channels", "routes", "per_row", "kept_per_row", "lines", "chunk", "pairs_r", "rates_r"),
    *("dt_b", "dt_l", "dt_r", "z_b", "z_l", "z_r", "bias_r", "order_b", "order_r", "dout_b", "dout_l", "dout_r"),
]


@triton.jit(do_not_specialize=ADJOINT_NUMBERS)
def scan_adjoint(
    dt, rates, pairs, z, dt_bias, order, cu_seqlens, row_of_slot, dout, ends, sums, resets,
    steps, length, channels, routes, per_row, kept_per_row, lines, chunk, pairs_r, rates_r,
    dt_b, dt_l, dt_r, z_b, z_l, z_r, bias_r, order_b, order_r, dout_b, dout_l, dout_r,
    N: tl.constexpr, K: tl.constexpr, TILE: tl.constexpr, UNROLL: tl.constexpr, KEEP: tl.constexpr,
    UNIT: tl.constexpr, SOFTPLUS: tl.constexpr, PREFETCH: tl.constexpr,
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
    dt_rows = dt + batch * wide(dt_b, UNIT) + route * wide(dt_r, UNIT)
    dt = dt_rows + channel
    dt_l = wide(dt_l, UNIT)
    dout_rows = dout + batch * wide(dout_b, UNIT) + route * wide(dout_r, UNIT)
    dout = dout_rows + channel
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
    index = quads()
    tl.debug_barrier()

    groups = tl.cdiv(stop - start, UNROLL)
    coming = place(order, start + tl.maximum(groups - 2, 0) * UNROLL + tl.arange(0, UNROLL), stop, length)
    for i in range(groups):
        s = start + (groups - 1 - i) * UNROLL
        if PREFETCH:
            after = tl.maximum(groups - 2 - i, 0) * UNROLL
            fetch_lines(pairs + (after // KEEP).to(tl.int64) * (N * 2 * KEEP) + after % KEEP - KEEP, N, KEEP, PREFETCH)
            fetch_rows(dt_rows, coming, dt_l, channels, block, K, PREFETCH)
            fetch_rows(dout_rows, coming, dout_l, channels, block, K, PREFETCH)
            coming = place(order, start + tl.maximum(groups - 3 - i, 0) * UNROLL + tl.arange(0, UNROLL), stop, length)
        places = ()
        sizes = ()
        dys = ()
        for u in tl.static_range(UNROLL):
            p = place(order, s + u, stop, length)
            there = live & (p >= 0)
            places = places + (p,)
            sizes = sizes + (take(row_of(order, dt, s, u, p, dt_l), there),)
            dy = take(row_of(order, dout, s, u, p, dout_l), there)
            if z is not None:
                gate = take(row_of(order, z, s, u, p, z_l), there)
                dy *= gate * sigmoid(gate)
            dys = dys + (dy,)
        dts = ()
        keeps = ()
        for u in tl.static_range(UNROLL):
            d, _ = step_size(sizes[u], places[u] >= 0, bias, SOFTPLUS)
            dts = dts + (d,)
            total += d
            if order is not None:
                keeps = keeps + (tl.where(places[u] == RESET, 0, -1),)
                reset = tl.maximum(reset, (places[u] == RESET).to(tl.int32))
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
