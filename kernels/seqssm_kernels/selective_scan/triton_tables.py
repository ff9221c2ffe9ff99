"""Triton kernels around the scan: its tables, the carry over chunks, and the gradients of B and C.

`scan_tables` writes B and C in the order of the steps, and the rates, so that the scan reads consecutive values indexed
by step only; `scan_collect` does the reverse for the gradients of B and C. `scan_carry` computes the states before the
chunks of a row from the states that they give from zero.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqssm_kernels.gpu.blocks import bounds, first_slot, place, rate, scale_values, take

SCALES = ["B_scale_r", "C_scale_r"]
STRIDES = ["B_b", "B_l", "B_r", "B_n", "C_b", "C_l", "C_r", "C_n", "A_r", "A_e", "A_n", "order_b", "order_r"]
STATES = tl.constexpr(16)  # states of a program


@triton.jit(
    do_not_specialize=["steps", "length", "channels", "lines", "kept_per_row", "line_programs", *STRIDES, *SCALES]
)
def scan_tables(
    A, B, C, B_scale, C_scale, order, cu_seqlens, row_of_line, rates, pairs,
    steps, length, channels, lines, kept_per_row, line_programs,
    B_b, B_l, B_r, B_n, C_b, C_l, C_r, C_n, A_r, A_e, A_n, order_b, order_r, B_scale_r, C_scale_r,
    N: tl.constexpr, TILE: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Write up to 16 states of one line of B and C, or of one tile of rates.

    Args:
        rates: (1 or R, tiles, N, TILE): A log2(e), zero past the last channel.
        pairs: (1 or R, lines, N, 2, KEEP): B and C of the steps of a line, zero where they visit no position.
        B_scale, C_scale: scales of integer B and C, (1 or R, N); None for floats.
        row_of_line: the row of each line of packed rows.
        line_programs: programs that write lines; the others write rates.
        other names: strides in elements.
    """
    parts: tl.constexpr = (N + 15) // 16
    pid = tl.program_id(0)
    n = pid % parts * STATES + tl.arange(0, STATES)
    wide_n = n.to(tl.int64)
    known = n < N
    # Separate names in each branch, because a name has one type.
    if pid < line_programs:
        line = pid // parts % lines
        line_route = (pid // parts // lines).to(tl.int64)
        _row, batch, start, stop, _, _ = bounds(line, row_of_line, cu_seqlens, steps, kept_per_row, KEEP)
        row_order = order
        if order is not None:
            row_order = order + batch * order_b + line_route * order_r
        p = place(row_order, start + tl.arange(0, KEEP), stop, length)
        visited = (p >= 0)[:, None] & known[None, :]
        q = tl.maximum(p, 0).to(tl.int64)
        to_line = pairs + (line_route * lines + line) * (N * 2 * KEEP)
        to_line += n[None, :] * (2 * KEEP) + tl.arange(0, KEEP)[:, None]
        b = take(B + batch * B_b + line_route * B_r + q[:, None] * B_l + wide_n[None, :] * B_n, visited)
        b = scale_values(b, B_scale, line_route * B_scale_r + wide_n[None, :], known[None, :])
        tl.store(to_line, b, mask=known[None, :])
        c = take(C + batch * C_b + line_route * C_r + q[:, None] * C_l + wide_n[None, :] * C_n, visited)
        c = scale_values(c, C_scale, line_route * C_scale_r + wide_n[None, :], known[None, :])
        tl.store(to_line + KEEP, c, mask=known[None, :])
    else:
        tiles = tl.cdiv(channels, TILE)
        tile = (pid - line_programs) // parts % tiles
        route = ((pid - line_programs) // parts // tiles).to(tl.int64)
        e = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)
        there = (e < channels)[:, None] & known[None, :]
        a = take(A + route * A_r + e[:, None] * A_e + wide_n[None, :] * A_n, there)
        to = rates + (route * tiles + tile) * (N * TILE) + n[None, :] * TILE + tl.arange(0, TILE)[:, None]
        tl.store(to, rate(a), mask=known[None, :])


@triton.jit(do_not_specialize=["steps", "length", "routes", "lines", "kept_per_row", "parts", "part", *STRIDES[-2:]])
def scan_collect(
    dpairs, order, cu_seqlens, row_of_line, dB, dC,
    steps, length, routes, lines, kept_per_row, parts, part, order_b, order_r,
    N: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Sum the gradients of B and C over channel blocks in a fixed order, and write them by position.

    Args:
        dpairs: (parts, routes, lines, N, 2, KEEP); `part` is the distance between parts in lines.
        dB, dC: (B, L, routes, N) contiguous; not written at unvisited positions. None if not needed.
        routes: routes of the results; if all routes share B or C and the order, the parts include the routes.
    """
    STATE_PARTS: tl.constexpr = (N + 15) // 16
    pid = tl.program_id(0)
    n = pid % STATE_PARTS * STATES + tl.arange(0, STATES)
    known = n < N
    line = pid // STATE_PARTS % lines
    route = (pid // STATE_PARTS // lines).to(tl.int64)
    _row, batch, start, stop, _, end = bounds(line, row_of_line, cu_seqlens, steps, kept_per_row, KEEP)
    if start >= end:
        return
    if order is not None:
        order += batch * order_b + route * order_r
    p = place(order, start + tl.arange(0, KEEP), stop, length)
    there = (p >= 0)[:, None] & known[None, :]
    dpairs += (route * lines + line) * (N * 2 * KEEP) + n[None, :] * (2 * KEEP) + tl.arange(0, KEEP)[:, None]
    to = ((batch * length + tl.maximum(p, 0))[:, None] * routes + route) * N + n[None, :]
    step = part.to(tl.int64) * (N * 2 * KEEP)
    zero = tl.zeros([KEEP, STATES], tl.float32)
    b = zero
    c = zero
    for _ in range(parts):
        if dB is not None:
            b += tl.load(dpairs, mask=there, other=0.0)
        if dC is not None:
            c += tl.load(dpairs + KEEP, mask=there, other=0.0)
        dpairs += step
    if dB is not None:
        tl.store(dB + to, b.to(dB.dtype.element_ty), mask=there)
    if dC is not None:
        tl.store(dC + to, c.to(dC.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["steps", "channels", "routes", "per_row", "chunk", "rates_r", *"srne"])
def scan_carry(
    rates, cu_seqlens, ends, sums, resets, border, last,
    steps, channels, routes, per_row, chunk, rates_r, s, r, e, n,
    N: tl.constexpr, TILE: tl.constexpr, GROUPS: tl.constexpr, AHEAD: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Carry states over the chunks of a row: replaces the state after each chunk from zero by the state before it.

    The chunks of a row are divided into GROUPS runs, one per warp. Each warp processes its run from zero, the warps
    exchange the decays and states of their runs, and each processes its run again from the true state. AHEAD chunks are
    loaded at once to hide the memory latency.

    Args:
        rates: as for `scan_forward`.
        ends: (slots, R, tiles, N, TILE), state after each chunk from a zero state; replaced by the true state before
            it. With BACK all this in the other direction, for the gradient of the state.
        sums, resets: of each chunk, see `scan_forward`.
        border: state before the rows (with BACK, its gradient after them), strides `s, r, e, n`; None for zero.
        last: (rows, R, E, N), the state after the rows (with BACK, its gradient before them).
    """
    pid = tl.program_id(0)
    blocks = tl.cdiv(channels, 32)
    block = pid % blocks
    pid = pid // blocks
    state = pid % N
    pid = pid // N
    route = pid % routes
    row = pid // routes
    channel = block * 32 + tl.arange(0, 32)[None, :]
    live = channel < channels
    group = tl.arange(0, GROUPS)[:, None]
    tiles = tl.cdiv(channels, TILE)
    inside = (block * 32 // TILE * N + state) * TILE + block * 32 % TILE + tl.arange(0, 32)[None, :]
    rate_here = tl.load(rates + route * rates_r.to(tl.int64) * tiles * (N * TILE) + inside)
    if cu_seqlens is None:
        begin = steps * 0
        end = steps
    else:
        begin = tl.minimum(tl.maximum(tl.load(cu_seqlens + row), 0), steps)
        end = tl.minimum(tl.maximum(tl.load(cu_seqlens + row + 1), begin), steps)
    first = first_slot(row, begin, cu_seqlens, per_row, chunk)
    count = tl.cdiv(end - begin, chunk)
    run = tl.cdiv(tl.cdiv(count, GROUPS), AHEAD) * AHEAD
    h = tl.zeros([GROUPS, 32], tl.float32)
    if border is not None:
        at = row.to(tl.int64) * s + route * r.to(tl.int64) + channel.to(tl.int64) * e + state * n
        h += tl.load(border + at, mask=live, other=0.0).to(tl.float32)

    for phase in tl.static_range(0 if GROUPS > 1 else 1, 2):
        if phase == 0:
            f = tl.zeros([GROUPS, 32], tl.float32)
            total = tl.zeros([GROUPS, 32], tl.float32)
            forgotten = tl.zeros([GROUPS, 32], tl.int32)
        for i in range(0, run, AHEAD):
            heres = ()
            theres = ()
            addeds = ()
            sizes = ()
            forgets = ()
            for u in tl.static_range(AHEAD):
                index = group * run + i + u
                there = index < count
                slot = first + index
                if BACK:
                    slot = first + count - 1 - index
                here = tl.where(there, slot, 0).to(tl.int64) * routes + route
                heres = heres + (here,)
                theres = theres + (there,)
                addeds = addeds + (tl.load(ends + here * tiles * (N * TILE) + inside, mask=there & live, other=0.0),)
                sizes = sizes + (tl.load(sums + here * channels + channel, mask=there & live, other=0.0),)
                if resets is not None:
                    forgets = forgets + (tl.load(resets + here, mask=there, other=0),)
            for u in tl.static_range(AHEAD):
                decay = tl.exp2(sizes[u] * rate_here)
                # 0 stays 0 on overflow: the decay of a chunk may be inf even if that of every step is finite.
                if phase == 0:
                    f = tl.where(f == 0.0, 0.0, decay * f)
                    total += sizes[u]
                    if resets is not None:
                        f = tl.where(forgets[u] != 0, 0.0, f)
                        forgotten = forgotten | forgets[u]
                    f += addeds[u]
                else:
                    tl.store(ends + heres[u] * tiles * (N * TILE) + inside, h, mask=theres[u] & live)
                    h = tl.where(h == 0.0, 0.0, decay * h)
                    if resets is not None:
                        h = tl.where(forgets[u] != 0, 0.0, h)
                    h += addeds[u]
        if phase == 0:
            # The state before each run, from the runs before it: run k passes on decay * state + f, or f alone.
            decay = tl.exp2(total * rate_here)
            for k in tl.static_range(GROUPS - 1):
                mine = group == k
                passed = tl.where(h == 0.0, 0.0, tl.sum(tl.where(mine, decay, 0.0), 0)[None, :] * h)
                if resets is not None:
                    passed = tl.where(tl.sum(tl.where(mine, forgotten, 0), 0)[None, :] != 0, 0.0, passed)
                h = tl.where(group > k, passed + tl.sum(tl.where(mine, f, 0.0), 0)[None, :], h)
    to = last + ((row.to(tl.int64) * routes + route) * channels + channel.to(tl.int64)) * N + state
    tl.store(to + group * 0, h, mask=live & (group == GROUPS - 1))
