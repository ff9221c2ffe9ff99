"""One step of the scan in one compiled call, for decoding: no tables, no checks beyond shapes, no gradient.

A task is up to 64 channels of one route and one batch entry. Batch entries of the same channels are consecutive, so
that their rates are prepared once. Lanes run over the states of a channel, 16 at a time, without transposing the state.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu import tiles
from seqssm_kernels.cpu.lanes import ROW
from seqssm_kernels.cpu.rows import align, load_values, size_of

LOG2_E = 1.4426950408889634
CHANNELS_OF_TASK = 64

TENSORS = 6  # of positions: x, dt, B, C, z, out
(X, DT, B, C, Z, OUT) = range(TENSORS)  # addresses, followed by those of A, D, ...
(A, D, BIAS, STATE, NEXT, X_SCALE, B_SCALE, C_SCALE) = range(TENSORS, 14)  # scales of integer x, B, C, else 0
ADDRESSES = 14
KIND, BATCH_STRIDE, ROUTE_STRIDE = (ADDRESSES + i * TENSORS for i in range(3))  # of x, then of the other tensors
(BATCH, ROUTES, CHANNELS, STATES, SOFTPLUS, A_IS_LOG) = range(ADDRESSES + 3 * TENSORS, ADDRESSES + 3 * TENSORS + 6)
LENGTH = A_IS_LOG + 1


def scratch_bytes(states: int) -> int:
    """B and C as rows of 16 states, dt, dt x, y, a row of products for each of 16 channels, and the rates of a task."""
    rates = 4 * CHANNELS_OF_TASK * states
    return ROW * (2 * -(-states // v.LANES) + 3 + v.LANES + CHANNELS_OF_TASK // v.LANES + 2) + rates


@njit
def prepare_rates(source, is_log, count, states, rates, bounds):
    """A log2(e) of a task's channels, from A or from log(-A), and the largest of each block of 16 channels."""
    log2_e = v.broadcast(LOG2_E)
    for first in range(0, count, 16):
        largest = v.broadcast(0.0)
        end = min(16, count - first) * states
        for i in range(0, end, 16):
            offset, some = 4 * (first * states + i), min(16, end - i)
            rate = v.load(source + offset, 0, some)
            if is_log:
                rate = v.subtract(v.broadcast(0.0), v.exp2(v.multiply(rate, log2_e)))
            rate = v.multiply(rate, log2_e)
            v.store(rates + offset, 0, some, rate)
            if some < 16:  # lanes past the last one do not hold rates
                rate = v.load(rates + offset, 0, some)
            largest = v.larger_bits(largest, v.magnitude(rate))
        v.set_float(bounds + 4 * (first // 16), v.largest_bits(largest))


@njit
def row_of(p, tensor, entry, route):
    return p[tensor] + entry * p[BATCH_STRIDE + tensor] + route * p[ROUTE_STRIDE + tensor]


@njit
def scale_at(scales, offset, count):
    """Up to 16 scales; zero for floats."""
    return v.load(scales + offset, 0, count) if scales != 0 else v.broadcast(0.0)


@njit
def advance16(rate, old, new, b_rows, c_rows, dt_row, du_row, products, count):
    """The usual case of `advance`, with all values shared by its channels in registers."""
    b, c = v.load32(b_rows), v.load32(c_rows)
    for lane in range(count):
        dt = v.broadcast(v.float_at(dt_row + 4 * lane))
        decay = v.exp2_narrow(v.multiply(dt, v.load32(rate + ROW * lane)))
        h = v.multiply(v.broadcast(v.float_at(du_row + 4 * lane)), b)
        h = v.multiply_add(decay, v.load32(old + ROW * lane), h)
        v.store32(new + ROW * lane, h)
        v.store32(products + ROW * lane, v.multiply(h, c))


@njit
def advance(rate, old, new, b_rows, c_rows, dt_row, du_row, products, count, states, narrow):
    """The next states of `count` channels, and the products C h, accumulated over blocks of 16 states."""
    for lane in range(count):
        dt = v.broadcast(v.float_at(dt_row + 4 * lane))
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
    """Return the kernel; `key` is the checksum of the sources and becomes part of numba's cache key."""

    def step(p, begin, end, part, scratch):
        if key < 0:
            return
        states, channels, routes, batch = p[STATES], p[CHANNELS], p[ROUTES], p[BATCH]
        x_kind, dt_kind, b_kind, c_kind = p[KIND + X], p[KIND + DT], p[KIND + B], p[KIND + C]
        out_kind, out_size = p[KIND + OUT], size_of(p[KIND + OUT])  # also those of z
        x_size, dt_size, b_size, c_size = size_of(x_kind), size_of(dt_kind), size_of(b_kind), size_of(c_kind)
        skip, bias, old_states, new_states = p[D], p[BIAS], p[STATE], p[NEXT]
        softplus, gated = p[SOFTPLUS] != 0, p[Z] != 0
        rows_of_states = (states + 15) // 16
        b_rows = align(scratch)
        c_rows = b_rows + ROW * rows_of_states
        dt_row = c_rows + ROW * rows_of_states
        du_row, y_row, products = dt_row + ROW, dt_row + 2 * ROW, dt_row + 3 * ROW
        bounds = products + 16 * ROW
        rates = bounds + ROW
        prepared = -1
        for task in range(begin, end):
            place, entry = task // batch, task % batch
            group, route = place // routes, place % routes
            start = group * CHANNELS_OF_TASK
            last = min(channels, start + CHANNELS_OF_TASK)
            if place != prepared:
                source = p[A] + 4 * (route * channels + start) * states
                prepare_rates(source, p[A_IS_LOG] != 0, last - start, states, rates, bounds)
                prepared = place
            b, c = row_of(p, B, entry, route), row_of(p, C, entry, route)
            for i in range(rows_of_states):
                count, at = min(16, states - 16 * i), 4 * (route * states + 16 * i)
                b_scale, c_scale = scale_at(p[B_SCALE], at, count), scale_at(p[C_SCALE], at, count)
                v.store32(b_rows + ROW * i, load_values(b + 16 * b_size * i, b_kind, count, b_scale))
                v.store32(c_rows + ROW * i, load_values(c + 16 * c_size * i, c_kind, count, c_scale))
            x, raw, z = row_of(p, X, entry, route), row_of(p, DT, entry, route), row_of(p, Z, entry, route)
            out = row_of(p, OUT, entry, route)
            for first in range(start, last, 16):
                count, of_route = min(16, last - first), 4 * (route * channels + first)
                dt = v.load(raw + dt_size * first, dt_kind, count)
                if bias != 0:
                    dt = v.add(dt, v.load(bias + of_route, 0, count))
                if softplus:
                    dt = v.softplus(dt)
                value = load_values(x + x_size * first, x_kind, count, scale_at(p[X_SCALE], of_route, count))
                v.store32(dt_row, dt)
                v.store32(du_row, v.multiply(dt, value))
                bound = v.float_at(bounds + 4 * ((first - start) // 16)) * v.largest_bits(v.magnitude(dt))
                rate = rates + 4 * (first - start) * states
                offset = 4 * ((entry * routes + route) * channels + first) * states
                old, new = old_states + offset, new_states + offset
                if states == 16 and bound <= 125.0:
                    advance16(rate, old, new, b_rows, c_rows, dt_row, du_row, products, count)
                else:
                    narrow = bound <= 125.0
                    advance(rate, old, new, b_rows, c_rows, dt_row, du_row, products, count, states, narrow)
                tiles.sum_lanes(products, y_row)
                y = v.load32(y_row)
                if skip != 0:
                    y = v.multiply_add(v.load(skip + of_route, 0, count), value, y)
                if gated:
                    gate = v.load(z + out_size * first, out_kind, count)
                    y = v.multiply(y, v.multiply(gate, v.sigmoid(gate)))
                v.store(out + out_size * first, out_kind, count, y)

    return step
