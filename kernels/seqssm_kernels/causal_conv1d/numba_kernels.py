"""CPU kernels of the convolution. They iterate over sequences, routes and tiles like the scan kernels, with the same
plan.

A task is one batch entry and one group of up to 128 channels, with all its routes in sequence. For each block of 16
channels a line of rows holds the last `W - 1` visited inputs, followed by those of the tile. The window of the tile's
step `t` is then the rows `t` to `t + W - 1`.

The backward kernel also runs forward in time. A row of the line's gradient is complete after `W` more steps, or at the
end of its sequence or segment. It is then written to the origin of the row: a position, or a row of the initial state.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu import rows as k
from seqssm_kernels.cpu.lanes import ROW
from seqssm_kernels.cpu.rows import align, base_of, clear, copy_rows, put_row, span, visits
from seqssm_kernels.cpu.tiles import STEPS

# The plan has the entries of the scan. Entries that the convolution does not have in common are reused as listed here.
WEIGHT, WEIGHT_ROUTE, D_WEIGHT = k.A, k.A_ROUTE, k.D_A  # (1 or R, W, E) float32
SILU = k.SOFTPLUS  # whether SiLU is applied to the values
TAPS = k.STATES  # window width W

NOWHERE = -1  # origin of the zero rows before the start of a sequence


def scratch_bytes(width: int, taps: int, backward: bool) -> int:
    """Bytes of scratch that one thread needs for groups of `width` channels."""
    blocks = width // v.LANES
    line = (taps - 1 + STEPS) * ROW
    total = 4 * STEPS + blocks * line + STEPS * ROW
    if backward:
        total += blocks * (line + (taps + 1) * ROW) + 4 * (taps - 1 + STEPS)
    return total + 8 * ROW


@njit
def vector_row(address, row, channels, first, count):
    """Channels of row `row` of a float32 (rows, E) table; zero if the table is absent."""
    if address == 0:
        return v.broadcast(0.0)
    return v.load(address + 4 * (row * channels + first), 0, count)


@njit
def load_past(address, past, channels, first, count, line):
    for j in range(past):
        v.store32(line + ROW * j, vector_row(address, j, channels, first, count))


@njit
def load_tile(p, b, route, places, steps, first, count, rows):
    """Load the inputs of a tile's visited steps as float32 rows."""
    x, stride, kind = base_of(p, k.X, b, route, first), p[k.X + 3], p[k.X + 1]
    for t in range(steps):
        v.store32(rows + ROW * t, v.load(x + v.int_at(places + 4 * t) * stride, kind, count))


@njit
def convolve(p, route, steps, first, count, line, rows):
    """Compute the values of a tile's block, before any activation, as float32 rows."""
    taps, channels = p[TAPS], p[k.CHANNELS]
    weight = p[WEIGHT] + route * p[WEIGHT_ROUTE]
    bias = v.broadcast(0.0)
    if p[k.BIAS] != 0:
        bias = v.load(p[k.BIAS] + route * p[k.BIAS_ROUTE] + 4 * first, 0, count)
    if taps == 4:  # the usual width: weights stay in registers
        w0, w1 = vector_row(weight, 0, channels, first, count), vector_row(weight, 1, channels, first, count)
        w2, w3 = vector_row(weight, 2, channels, first, count), vector_row(weight, 3, channels, first, count)
        for t in range(steps):
            row = line + ROW * t
            y = v.multiply_add(w0, v.load32(row), bias)
            y = v.multiply_add(w1, v.load32(row + ROW), y)
            y = v.multiply_add(w2, v.load32(row + 2 * ROW), y)
            y = v.multiply_add(w3, v.load32(row + 3 * ROW), y)
            v.store32(rows + ROW * t, y)
        return
    for t in range(steps):
        y = bias
        for tap in range(taps):
            y = v.multiply_add(vector_row(weight, tap, channels, first, count), v.load32(line + ROW * (t + tap)), y)
        v.store32(rows + ROW * t, y)


@njit
def put_values(p, b, route, places, steps, first, count, rows):
    """Write a tile's block of `out` from its values."""
    out, stride, kind = base_of(p, k.OUT, b, route, first), p[k.OUT + 3], p[k.OUT + 1]
    silu = p[SILU] != 0
    for t in range(steps):
        y = v.load32(rows + ROW * t)
        if silu:
            y = v.multiply(y, v.sigmoid(y))
        v.store(out + v.int_at(places + 4 * t) * stride, kind, count, y)


@njit
def load_gradients(p, b, route, places, steps, first, count, line, rows):
    """Load the gradients of a tile's values as float32 rows: `dout` times the derivative of SiLU at the values."""
    dout, stride, kind = base_of(p, k.DOUT, b, route, first), p[k.DOUT + 3], p[k.DOUT + 1]
    silu, one = p[SILU] != 0, v.broadcast(1.0)
    if silu:
        convolve(p, route, steps, first, count, line, rows)
    for t in range(steps):
        dy = v.load(dout + v.int_at(places + 4 * t) * stride, kind, count)
        if silu:
            y = v.load32(rows + ROW * t)
            gate = v.sigmoid(y)
            dy = v.multiply(dy, v.multiply(gate, v.multiply_add(y, v.subtract(one, gate), one)))
        v.store32(rows + ROW * t, dy)


@njit
def spread(p, route, steps, first, count, line, dline, dy_rows, dweight):
    """Accumulate a tile's block into the gradients of the line, the weights and (in the row after them) the bias."""
    taps, channels = p[TAPS], p[k.CHANNELS]
    weight = p[WEIGHT] + route * p[WEIGHT_ROUTE]
    clear(dline + ROW * (taps - 1), steps)
    total = v.broadcast(0.0)
    for t in range(steps):
        total = v.add(total, v.load32(dy_rows + ROW * t))
    v.store32(dweight + ROW * taps, v.add(v.load32(dweight + ROW * taps), total))
    for tap in range(taps):
        w = vector_row(weight, tap, channels, first, count)
        total = v.broadcast(0.0)
        for t in range(steps):
            dy = v.load32(dy_rows + ROW * t)
            target = dline + ROW * (t + tap)
            v.store32(target, v.multiply_add(w, dy, v.load32(target)))
            total = v.multiply_add(dy, v.load32(line + ROW * (t + tap)), total)
        v.store32(dweight + ROW * tap, v.add(v.load32(dweight + ROW * tap), total))


@njit
def deliver(p, b, route, state, origins, rows, first, count, dline):
    """Write the first rows of the line's gradient to the origins of these rows."""
    channels, past = p[k.CHANNELS], p[TAPS] - 1
    dx, stride, kind, add = base_of(p, k.DX, b, route, first), p[k.DX + 3], p[k.DX + 1], p[k.ADD_X] != 0
    for j in range(rows):
        origin = v.int_at(origins + 4 * j)
        value = v.load32(dline + ROW * j)
        if origin >= 0:
            if p[k.DX] != 0:
                put_row(dx + origin * stride, kind, count, value, add)
        elif origin < NOWHERE and p[k.D_INITIAL] != 0:
            row = state * past + NOWHERE - 1 - origin
            v.store(p[k.D_INITIAL] + 4 * (row * channels + first), 0, count, value)


@njit
def add_vector(address, row, channels, first, count, value):
    target = address + 4 * (row * channels + first)
    v.store(target, 0, count, v.add(v.load(target, 0, count), value))


def make_forward(key: int) -> Any:
    """Return the forward kernel; `key` is the checksum of the sources and becomes part of numba's cache key."""

    def forward(p, begin, end, part, scratch):
        if key < 0:
            return
        past, routes, channels, width = p[TAPS] - 1, p[k.ROUTES], p[k.CHANNELS], p[k.WIDTH]
        line_bytes = (past + STEPS) * ROW
        places = align(scratch)
        lines = align(places + 4 * STEPS)
        rows = lines + (width // 16) * line_bytes
        for task in range(begin, end):
            group, entry = task // p[k.BATCH], task % p[k.BATCH]
            start = group * width
            blocks = (min(channels - start, width) + 15) // 16
            for route in range(routes):
                order = p[k.ORDER] + entry * p[k.ORDER_BATCH] + route * p[k.ORDER_ROUTE]
                for sequence in range(p[k.SEQUENCES]):
                    step, last_step = span(p, sequence)
                    state = (sequence if p[k.CU_SEQLENS] != 0 else entry) * routes + route
                    state_bytes = 4 * state * past * channels
                    initial = p[k.INITIAL] + state_bytes if p[k.INITIAL] != 0 else 0
                    for block in range(blocks):
                        first = start + block * 16
                        load_past(initial, past, channels, first, min(16, channels - first), lines + block * line_bytes)
                    while step < last_step:
                        steps, step, reset = visits(p, order, step, min(last_step, step + STEPS), places)
                        for block in range(blocks):
                            first, line = start + block * 16, lines + block * line_bytes
                            count = min(16, channels - first)
                            load_tile(p, entry, route, places, steps, first, count, line + past * ROW)
                            convolve(p, route, steps, first, count, line, rows)
                            put_values(p, entry, route, places, steps, first, count, rows)
                            if reset:
                                clear(line, past)
                            else:
                                copy_rows(line + ROW * steps, line, past)
                    for block in range(blocks):
                        first = start + block * 16
                        count = min(16, channels - first)
                        for j in range(past):
                            target = p[k.FINAL] + state_bytes + 4 * (j * channels + first)
                            v.store(target, 0, count, v.load32(lines + block * line_bytes + ROW * j))

    return forward


def make_backward(key: int) -> Any:
    """Return the backward kernel."""

    def backward(p, begin, end, part, scratch):
        if key < 0:
            return
        taps, routes, channels, width = p[TAPS], p[k.ROUTES], p[k.CHANNELS], p[k.WIDTH]
        past = taps - 1
        line_bytes = (past + STEPS) * ROW
        places = align(scratch)
        lines = align(places + 4 * STEPS)
        dlines = lines + (width // 16) * line_bytes
        dy_rows = dlines + (width // 16) * line_bytes
        dweights = dy_rows + STEPS * ROW
        origins = dweights + (width // 16) * (taps + 1) * ROW
        for task in range(begin, end):
            group, entry = task // p[k.BATCH], task % p[k.BATCH]
            start = group * width
            blocks = (min(channels - start, width) + 15) // 16
            for route in range(routes):
                order = p[k.ORDER] + entry * p[k.ORDER_BATCH] + route * p[k.ORDER_ROUTE]
                clear(dweights, blocks * (taps + 1))
                for sequence in range(p[k.SEQUENCES]):
                    step, last_step = span(p, sequence)
                    state = (sequence if p[k.CU_SEQLENS] != 0 else entry) * routes + route
                    state_bytes = 4 * state * past * channels
                    initial = p[k.INITIAL] + state_bytes if p[k.INITIAL] != 0 else 0
                    for j in range(past):
                        v.set_int(origins + 4 * j, NOWHERE - 1 - j)
                    for block in range(blocks):
                        first, line = start + block * 16, lines + block * line_bytes
                        load_past(initial, past, channels, first, min(16, channels - first), line)
                        clear(dlines + block * line_bytes, past)
                    while step < last_step:
                        steps, step, reset = visits(p, order, step, min(last_step, step + STEPS), places)
                        for t in range(steps):
                            v.set_int(origins + 4 * (past + t), v.int_at(places + 4 * t))
                        for block in range(blocks):
                            first, line, dline = (
                                start + block * 16,
                                lines + block * line_bytes,
                                dlines + block * line_bytes,
                            )
                            count = min(16, channels - first)
                            load_tile(p, entry, route, places, steps, first, count, line + past * ROW)
                            dweight = dweights + block * (taps + 1) * ROW
                            load_gradients(p, entry, route, places, steps, first, count, line, dy_rows)
                            spread(p, route, steps, first, count, line, dline, dy_rows, dweight)
                            if reset:
                                deliver(p, entry, route, state, origins, past + steps, first, count, dline)
                                clear(line, past)
                                clear(dline, past)
                            else:
                                deliver(p, entry, route, state, origins, steps, first, count, dline)
                                copy_rows(line + ROW * steps, line, past)
                                copy_rows(dline + ROW * steps, dline, past)
                        for j in range(past):
                            v.set_int(origins + 4 * j, NOWHERE if reset else v.int_at(origins + 4 * (steps + j)))
                    final = p[k.D_FINAL] + state_bytes if p[k.D_FINAL] != 0 else 0
                    for block in range(blocks):
                        first, dline = start + block * 16, dlines + block * line_bytes
                        count = min(16, channels - first)
                        for j in range(past):
                            row = dline + ROW * j
                            v.store32(row, v.add(v.load32(row), vector_row(final, j, channels, first, count)))
                        deliver(p, entry, route, state, origins, past, first, count, dline)
                for block in range(blocks):
                    first, dweight = start + block * 16, dweights + block * (taps + 1) * ROW
                    count = min(16, channels - first)
                    if p[D_WEIGHT] != 0:
                        for tap in range(taps):
                            row = (part * routes + route) * taps + tap
                            add_vector(p[D_WEIGHT], row, channels, first, count, v.load32(dweight + ROW * tap))
                    if p[k.D_BIAS] != 0:
                        row = part * routes + route
                        add_vector(p[k.D_BIAS], row, channels, first, count, v.load32(dweight + ROW * taps))

    return backward
