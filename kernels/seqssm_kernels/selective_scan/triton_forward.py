"""Triton kernels of the scan's forward pass.

One program runs one route of one slot over BLOCK channels. The state is a tuple of N vectors, one for each n, not a
matrix: then nothing is exchanged between threads, B[n] and C[n] are scalars, and an update costs one exp2 and four
operations. UNROLL steps are read before the first of them is computed, so that one wait serves all.

Split over the length, the same kernel runs twice: first with ENDS over each chunk from a zero state, which gives the
state behind the chunk and the sum of dt (the chunk's decay is exp2(sum * rate)); then, after `scan_carry` has gone
over the chunks, from the true state in front of the chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqssm_kernels.gpu.blocks import (
    RESET,
    TILE,
    blocks_of,
    bounds,
    first_slot,
    place,
    program,
    rate,
    sigmoid,
    softplus,
    tiled,
    wide,
)

SIZES = ["steps", "length", "channels", "routes", "per_row", "kept_per_row", "chunk"]
STRIDES = [
    *("x_b", "x_l", "x_r", "dt_b", "dt_l", "dt_r", "z_b", "z_l", "z_r", "B_r", "C_r"),
    *("A_r", "A_e", "A_n", "D_r", "bias_r", "order_b", "order_r"),
]


@triton.jit(do_not_specialize=[*SIZES, *STRIDES, "h_s", "h_r", "h_e", "h_n"])
def scan_forward(
    x, dt, A, B, C, D, z, dt_bias, order, cu_seqlens, row_of_slot, start_state,
    out, end_state, kept, sums, resets,
    steps, length, channels, routes, per_row, kept_per_row, chunk,
    x_b, x_l, x_r, dt_b, dt_l, dt_r, z_b, z_l, z_r, B_r, C_r,
    A_r, A_e, A_n, D_r, bias_r, order_b, order_r, h_s, h_r, h_e, h_n,
    N: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr, KEEP: tl.constexpr, UNIT: tl.constexpr,
    SOFTPLUS: tl.constexpr, SPLIT: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """Runs the recurrence over a slot.

    Args:
        B, C: (1 or R, B, L, N), float32, contiguous but for the stride of the routes, which may be 0.
        start_state: state in front of each row by the strides `h_*`, or with SPLIT of each slot, (slots, R, tiles, N,
            TILE); None for zero.
        out: (B, L, R, E) contiguous, not written with ENDS.
        end_state: state behind each row, (rows, R, E, N); with ENDS behind each slot, in tiles; not written
            with SPLIT alone.
        kept: (kept slots, R, tiles, N, TILE), the state in front of every KEEP steps of a row; None to keep nothing.
        sums: with ENDS the sum of dt over the slot, (slots, R, E).
        resets: with ENDS and an order, whether the slot has a reset, (slots, R).
        per_row, kept_per_row: slots of a row, and of a row in `kept`.
        chunk: steps of a slot.
        other names: strides in elements, those over places and `channels` in units of UNIT.
    """
    channels = channels * UNIT
    slot, route, block = program(routes, blocks_of(channels, BLOCK))
    row, batch, start, stop, begin, end = bounds(slot, row_of_slot, cu_seqlens, steps, per_row, chunk)
    if start > end:
        return
    lane = tl.arange(0, BLOCK)
    e = block * BLOCK + lane
    live = e < channels
    zero = tl.zeros([BLOCK], tl.float32)
    here = slot.to(tl.int64) * routes + route

    x += batch * wide(x_b, UNIT) + route * wide(x_r, UNIT)
    dt += batch * wide(dt_b, UNIT) + route * wide(dt_r, UNIT)
    B += route * B_r.to(tl.int64) + batch * length * N
    C += route * C_r.to(tl.int64) + batch * length * N
    x_l = wide(x_l, UNIT)
    dt_l = wide(dt_l, UNIT)
    out += (batch * length * routes + route) * channels
    out_l = routes.to(tl.int64) * channels
    if z is not None:
        z += batch * wide(z_b, UNIT) + route * wide(z_r, UNIT)
        z_l = wide(z_l, UNIT)
    if order is not None:
        order += batch * order_b + route * order_r.to(tl.int64)
    skip = zero
    if D is not None:
        skip = tl.load(D + route * D_r + e, mask=live, other=0.0)
    bias = zero
    if dt_bias is not None:
        bias = tl.load(dt_bias + route * bias_r + e, mask=live, other=0.0)

    a2 = ()
    h = ()
    A += route * A_r.to(tl.int64) + e.to(tl.int64) * A_e
    if start_state is not None:
        if SPLIT:
            start_state += tiled(here, channels, block, N, BLOCK) + lane
        else:
            start_state += row.to(tl.int64) * h_s + route * h_r.to(tl.int64) + e.to(tl.int64) * h_e
    for n in tl.static_range(N):
        a2 = a2 + (rate(tl.load(A + n * A_n, mask=live, other=0.0)),)
        if start_state is None:
            h = h + (zero,)
        elif SPLIT:
            h = h + (tl.load(start_state + n * TILE),)
        else:
            h = h + (tl.load(start_state + n * h_n, mask=live, other=0.0),)
    if kept is not None:
        first = first_slot(row, begin, cu_seqlens, kept_per_row, KEEP) + (start - begin) // KEEP
        kept += tiled(first.to(tl.int64) * routes + route, channels, block, N, BLOCK) + lane
        kept_l = routes.to(tl.int64) * tl.cdiv(channels, TILE) * (N * TILE)
    total = zero
    reset = start * 0

    for s in range(start, stop, UNROLL):
        if kept is not None:
            if (s - start) % KEEP == 0:
                for n in tl.static_range(N):
                    tl.store(kept + n * TILE, h[n])
                kept += kept_l
        ps = ()
        qs = ()
        xs = ()
        dts = ()
        gates = ()
        for u in tl.static_range(UNROLL):
            p, q = place(order, s + u, stop, length)
            there = live & (p >= 0)
            d = tl.load(dt + q * dt_l + e, mask=there, other=0.0).to(tl.float32) + bias
            if SOFTPLUS:
                d, _ = softplus(d)
            ps = ps + (p,)
            qs = qs + (q,)
            dts = dts + (tl.where(p >= 0, d, 0.0),)
            xs = xs + (tl.load(x + q * x_l + e, mask=there, other=0.0).to(tl.float32),)
            if z is not None:
                if not ENDS:
                    gates = gates + (tl.load(z + q * z_l + e, mask=there, other=0.0).to(tl.float32),)
        ys = ()
        for u in tl.static_range(UNROLL):
            p = ps[u]
            row_q = qs[u] * N
            put = dts[u] * xs[u]
            y = skip * xs[u]
            new = ()
            for n in tl.static_range(N):
                g = tl.exp2(dts[u] * a2[n]) * h[n] + put * tl.load(B + row_q + n)
                if order is not None:
                    g = tl.where(p >= 0, g, tl.where(p == RESET, 0.0, h[n]))
                new = new + (g,)
                if not ENDS:
                    y += g * tl.load(C + row_q + n)
            h = new
            ys = ys + (y,)
            if ENDS:
                total += dts[u]
                if order is not None:
                    reset = tl.where(p == RESET, 1, reset)
        if not ENDS:
            for u in tl.static_range(UNROLL):
                y = ys[u]
                if z is not None:
                    y *= gates[u] * sigmoid(gates[u])
                tl.store(out + qs[u] * out_l + e, y.to(out.dtype.element_ty), mask=live & (ps[u] >= 0))

    if ENDS:
        tl.store(sums + here * channels + e, total, mask=live)
        if order is not None:
            tl.store(resets + here, reset)
        end_state += tiled(here, channels, block, N, BLOCK) + lane
        for n in tl.static_range(N):
            tl.store(end_state + n * TILE, h[n])
    elif not SPLIT:
        end_state += ((row.to(tl.int64) * routes + route) * channels + e) * N
        for n in tl.static_range(N):
            tl.store(end_state + n, h[n], mask=live)


@triton.jit(do_not_specialize=["steps", "channels", "routes", "per_row", "chunk", "A_r", "A_e", "A_n", *"srne"])
def scan_carry(
    A, cu_seqlens, ends, sums, resets, border, last,
    steps, channels, routes, per_row, chunk, A_r, A_e, A_n, s, r, e, n,
    N: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Carries states over the chunks of a row: in place, what came out of a chunk from zero becomes what goes in.

    Args:
        ends: (slots, R, tiles, N, TILE), state behind each chunk from a zero one in front of it; after, the true one in
            front. With BACK all this in the other direction, for the gradient of the state.
        sums, resets: of each chunk, see `scan_forward`.
        border: state in front of the rows (with BACK, its gradient behind them), strides `s, r, e, n`; None for zero.
        last: (rows, R, E, N), what comes out of the rows.
    """
    pid = tl.program_id(0)
    tiles = tl.cdiv(channels, TILE)
    tile = pid % tiles
    pid = pid // tiles
    state = pid % N
    pid = pid // N
    route = pid % routes
    row = pid // routes
    lane = tl.arange(0, TILE)
    channel = tile * TILE + lane
    live = channel < channels
    wide_channel = channel.to(tl.int64)
    a2 = rate(tl.load(A + route * A_r.to(tl.int64) + wide_channel * A_e + state * A_n, mask=live, other=0.0))
    h = tl.zeros([TILE], tl.float32)
    if border is not None:
        at = row.to(tl.int64) * s + route * r.to(tl.int64) + wide_channel * e + state * n
        h = tl.load(border + at, mask=live, other=0.0).to(tl.float32)
    if cu_seqlens is None:
        begin = steps * 0
        end = steps
    else:
        begin = tl.minimum(tl.maximum(tl.load(cu_seqlens + row), 0), steps)
        end = tl.minimum(tl.maximum(tl.load(cu_seqlens + row + 1), begin), steps)
    first = first_slot(row, begin, cu_seqlens, per_row, chunk)
    count = tl.cdiv(end - begin, chunk)
    for i in range(count):
        slot = first + i
        if BACK:
            slot = first + count - 1 - i
        here = slot.to(tl.int64) * routes + route
        at = ((here * tiles + tile) * N + state) * TILE + lane
        end_from_zero = tl.load(ends + at)
        decayed = tl.exp2(tl.load(sums + here * channels + channel, mask=live, other=0.0) * a2) * h
        if resets is not None:
            decayed = tl.where(tl.load(resets + here) != 0, 0.0, decayed)
        tl.store(ends + at, h)
        h = decayed + end_from_zero
    tl.store(last + ((row.to(tl.int64) * routes + route) * channels + wide_channel) * N + state, h, mask=live)
