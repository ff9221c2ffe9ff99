"""One step of the convolution in one compiled call, for decoding. A task is one batch entry, one route, 64 channels."""

from __future__ import annotations

from typing import Any

from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu.lanes import ROW
from seqssm_kernels.cpu.rows import align

CHANNELS_OF_TASK = 64

(X, OUT, WEIGHT, BIAS, STATE, NEXT) = range(6)  # addresses
ADDRESSES = 6
(X_KIND, X_BATCH, X_ROUTE, WEIGHT_KIND, BIAS_KIND, ROUTES, CHANNELS, TAPS, SILU, PER_ROUTE) = range(ADDRESSES, 16)
LENGTH = 16


def scratch_bytes(taps: int) -> int:
    """The weights of 16 channels as they lie in memory, and rows of x and y."""
    return ROW * (taps + 3)


def make_step(key: int) -> Any:
    """The kernel; `key` stands for the sources and enters numba's cache key."""

    def step(p, begin, end, part, scratch):
        if key < 0:
            return
        taps, channels, routes = p[TAPS], p[CHANNELS], p[ROUTES]
        past = taps - 1
        x_row = align(scratch)
        y_row, weights = x_row + ROW, x_row + 2 * ROW
        x_size = 4 if p[X_KIND] == 0 else 2
        weight_size, bias_size = 4 if p[WEIGHT_KIND] == 0 else 2, 4 if p[BIAS_KIND] == 0 else 2
        for task in range(begin, end):
            group, rest = task % p[PER_ROUTE], task // p[PER_ROUTE]
            route, entry = rest % routes, rest // routes
            x = p[X] + entry * p[X_BATCH] + route * p[X_ROUTE]
            out = p[OUT] + x_size * (entry * routes + route) * channels
            last = min(channels, (group + 1) * CHANNELS_OF_TASK)
            for first in range(group * CHANNELS_OF_TASK, last, 16):
                count, channel = min(16, last - first), route * channels + first
                value = v.load(x + x_size * first, p[X_KIND], count)
                v.store32(x_row, value)
                for i in range(0, count * taps, 16):
                    row = p[WEIGHT] + weight_size * (channel * taps + i)
                    v.store32(weights + 4 * i, v.load(row, p[WEIGHT_KIND], min(16, count * taps - i)))
                state = 4 * ((entry * routes + route) * channels + first) * past
                for lane in range(count):
                    window, next_window = p[STATE] + state + 4 * lane * past, p[NEXT] + state + 4 * lane * past
                    weight, newest = weights + 4 * lane * taps, v.float_at(x_row + 4 * lane)
                    total = v.float_at(weight + 4 * past) * newest
                    for j in range(past):
                        old = v.float_at(window + 4 * j)
                        total += v.float_at(weight + 4 * j) * old
                        if j > 0:
                            v.set_float(next_window + 4 * (j - 1), old)
                    if past > 0:
                        v.set_float(next_window + 4 * (past - 1), newest)
                    v.set_float(y_row + 4 * lane, total)
                y = v.load32(y_row)
                if p[BIAS] != 0:
                    y = v.add(y, v.load(p[BIAS] + bias_size * channel, p[BIAS_KIND], count))
                if p[SILU] != 0:
                    y = v.multiply(y, v.sigmoid(y))
                v.store(out + x_size * first, p[X_KIND], count, y)

    return step
