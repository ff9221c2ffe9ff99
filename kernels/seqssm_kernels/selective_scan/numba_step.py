"""One step of the scan in one compiled call, for decoding: no tables, no checks beyond shapes, no gradient.

A task is one batch entry, one route and up to 64 channels. Lanes run over the states of a channel, 16 at a time, so
that states and A are read and written in place.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu import tiles
from seqssm_kernels.cpu.lanes import ROW
from seqssm_kernels.cpu.rows import align

LOG2_E = 1.4426950408889634
CHANNELS_OF_TASK = 64

# Five numbers for each tensor of positions: address, kind, byte strides of batch and route, and one that is unused.
X, DT, B, C, Z, OUT = range(0, 30, 5)
(A, D, BIAS, STATE, NEXT, ROUTES, CHANNELS, STATES, SOFTPLUS, PER_ROUTE) = range(30, 40)
LENGTH = 40


def scratch_bytes(states: int) -> int:
    """B and C as rows of 16 states, dt, dt x, y, and a row of products for each of 16 channels."""
    return ROW * (2 * -(-states // v.LANES) + 3 + v.LANES + 1)


@njit
def bound_of(address, count, states, dt):
    """The largest |dt A| log2(e) of a block of channels, NaN or inf if there is one."""
    largest = v.broadcast(0.0)
    for i in range(0, count * states, 16):
        largest = v.larger_bits(largest, v.magnitude(v.load(address + 4 * i, 0, min(16, count * states - i))))
    return v.largest_bits(largest) * v.largest_bits(v.magnitude(dt)) * LOG2_E


@njit
def advance16(rate, old, new, b_rows, c_rows, dt_row, du_row, products, count):
    """The usual case of `advance`, with everything that its channels share in registers."""
    b, c, log2_e = v.load32(b_rows), v.load32(c_rows), v.broadcast(LOG2_E)
    for lane in range(count):
        dt = v.multiply(v.broadcast(v.float_at(dt_row + 4 * lane)), log2_e)
        decay = v.exp2_narrow(v.multiply(dt, v.load32(rate + ROW * lane)))
        h = v.multiply(v.broadcast(v.float_at(du_row + 4 * lane)), b)
        h = v.multiply_add(decay, v.load32(old + ROW * lane), h)
        v.store32(new + ROW * lane, h)
        v.store32(products + ROW * lane, v.multiply(h, c))


@njit
def advance(rate, old, new, b_rows, c_rows, dt_row, du_row, products, count, states, narrow):
    """The next states of `count` channels, and the products C h, 16 states summed onto one another."""
    log2_e = v.broadcast(LOG2_E)
    for lane in range(count):
        dt = v.multiply(v.broadcast(v.float_at(dt_row + 4 * lane)), log2_e)
        du = v.broadcast(v.float_at(du_row + 4 * lane))
        total = v.broadcast(0.0)
        for i in range((states + 15) // 16):
            some, offset = min(16, states - 16 * i), 4 * (lane * states + 16 * i)
            t = v.multiply(dt, v.load(rate + offset, 0, some))
            decay = v.exp2_narrow(t) if narrow else v.exp2(t)
            h = v.multiply_add(decay, v.load(old + offset, 0, some), v.multiply(du, v.load32(b_rows + ROW * i)))
            v.store(new + offset, 0, some, h)
            total = v.multiply_add(h, v.load32(c_rows + ROW * i), total)
        v.store32(products + ROW * lane, total)


def make_step(key: int) -> Any:
    """The kernel; `key` stands for the sources and enters numba's cache key."""

    def step(p, begin, end, part, scratch):
        if key < 0:
            return
        states, channels, routes = p[STATES], p[CHANNELS], p[ROUTES]
        rows_of_states = (states + 15) // 16
        b_rows = align(scratch)
        c_rows = b_rows + ROW * rows_of_states
        dt_row = c_rows + ROW * rows_of_states
        du_row, y_row = dt_row + ROW, dt_row + 2 * ROW
        products = dt_row + 3 * ROW
        rates, old_states, new_states = p[A], p[STATE], p[NEXT]
        for task in range(begin, end):
            group, rest = task % p[PER_ROUTE], task // p[PER_ROUTE]
            route, entry = rest % routes, rest // routes
            for i in range(rows_of_states):
                count = min(16, states - 16 * i)
                for tensor, rows in ((B, b_rows), (C, c_rows)):
                    size = 4 if p[tensor + 1] == 0 else 2
                    row = p[tensor] + entry * p[tensor + 2] + route * p[tensor + 3] + 16 * size * i
                    v.store32(rows + ROW * i, v.load(row, p[tensor + 1], count))
            x = p[X] + entry * p[X + 2] + route * p[X + 3]
            raw = p[DT] + entry * p[DT + 2] + route * p[DT + 3]
            z = p[Z] + entry * p[Z + 2] + route * p[Z + 3]
            out = p[OUT] + entry * p[OUT + 2] + route * p[OUT + 3]
            x_size, raw_size = 4 if p[X + 1] == 0 else 2, 4 if p[DT + 1] == 0 else 2
            last = min(channels, (group + 1) * CHANNELS_OF_TASK)
            for first in range(group * CHANNELS_OF_TASK, last, 16):
                count = min(16, last - first)
                dt = v.load(raw + raw_size * first, p[DT + 1], count)
                if p[BIAS] != 0:
                    dt = v.add(dt, v.load(p[BIAS] + 4 * (route * channels + first), 0, count))
                if p[SOFTPLUS] != 0:
                    dt = v.softplus(dt)
                value = v.load(x + x_size * first, p[X + 1], count)
                v.store32(dt_row, dt)
                v.store32(du_row, v.multiply(dt, value))
                rate = rates + 4 * (route * channels + first) * states
                narrow = bound_of(rate, count, states, dt) <= 125.0
                offset = 4 * ((entry * routes + route) * channels + first) * states
                old, new = old_states + offset, new_states + offset
                if states == 16 and narrow:
                    advance16(rate, old, new, b_rows, c_rows, dt_row, du_row, products, count)
                else:
                    advance(rate, old, new, b_rows, c_rows, dt_row, du_row, products, count, states, narrow)
                tiles.sum_lanes(products, y_row)
                y = v.load32(y_row)
                if p[D] != 0:
                    y = v.multiply_add(v.load(p[D] + 4 * (route * channels + first), 0, count), value, y)
                if p[Z] != 0:
                    gate = v.load(z + x_size * first, p[X + 1], count)
                    y = v.multiply(y, v.multiply(gate, v.sigmoid(gate)))
                v.store(out + x_size * first, p[X + 1], count, y)

    return step
