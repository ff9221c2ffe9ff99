"""One step of the convolution in one compiled call, for decoding; a task is one batch entry, one route, 64 channels."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types

from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu.lanes import ROW
from seqssm_kernels.cpu.rows import align

CHANNELS_OF_TASK = 64

(X, OUT, WEIGHT, BIAS, STATE, NEXT) = range(6)  # addresses
ADDRESSES = 6
(X_KIND, X_BATCH, X_ROUTE, WEIGHT_KIND, BIAS_KIND, ROUTES, CHANNELS, TAPS, SILU, BATCH) = range(ADDRESSES, 16)
LENGTH = 16


def scratch_bytes(taps: int) -> int:
    """Bytes for the rows of x and y, and for the weights of a task, both as rows and in their memory layout."""
    return ROW * (3 + 2 * taps * (CHANNELS_OF_TASK // v.LANES) + 1)


def _window_of_four() -> Any:
    """One step of 16 channels with four taps: the value, and the next window [step 1, step 2, x].

    The windows of 16 channels are 48 numbers, three consecutive ones per channel; LLVM compiles this to a few shuffles.
    """
    many, past = ir.VectorType(v.F32, 48), 3

    def indices(numbers: list[int]) -> ir.Constant:
        return ir.Constant(ir.VectorType(v.I32, len(numbers)), [ir.Constant(v.I32, n) for n in numbers])

    def emit(builder, old, new, x, weights):
        line = builder.load(v.pointer(builder, old), align=4, typ=many)
        none = ir.Constant(many, ir.Undefined)
        steps = [builder.shuffle_vector(line, none, indices([past * i + j for i in range(16)])) for j in range(past)]
        rows = [v.load_at(builder, builder.add(weights, ir.Constant(v.I64, ROW * j))) for j in range(past + 1)]
        total = builder.fmul(rows[past], x)
        for step, row in zip(steps, rows):
            total = v.muladd(builder, row, step, total)
        first = builder.shuffle_vector(steps[1], steps[2], indices(list(range(32))))
        second = builder.shuffle_vector(x, ir.Constant(v.VF, ir.Undefined), indices(list(range(16)) + [0] * 16))
        order = [16 * j + i for i in range(16) for j in range(past)]
        builder.store(builder.shuffle_vector(first, second, indices(order)), v.pointer(builder, new), align=4)
        return total

    return v.operation(v.lanes, types.int64, types.int64, v.lanes, types.int64)(emit)


window_of_four = _window_of_four()


@njit
def window_of_any(old, new, x_row, y_row, weights, count, taps):
    """As `window_of_four`, for up to 16 channels and any number of taps; writes row `y_row`; weights are rows [tap]."""
    past = taps - 1
    for lane in range(count):
        newest = v.float_at(x_row + 4 * lane)
        total = v.float_at(weights + ROW * past + 4 * lane) * newest
        for j in range(past):
            value = v.float_at(old + 4 * (lane * past + j))
            total += v.float_at(weights + ROW * j + 4 * lane) * value
            if j > 0:
                v.set_float(new + 4 * (lane * past + j - 1), value)
        if past > 0:
            v.set_float(new + 4 * (lane * past + past - 1), newest)
        v.set_float(y_row + 4 * lane, total)


@njit
def prepare_weights(source, kind, count, taps, line, rows):
    """Convert the weights of a task, (count, taps) in memory, to float32 rows [block of 16 channels][tap]."""
    size = 4 if kind == 0 else 2
    for i in range(0, count * taps, 16):
        v.store32(line + 4 * i, v.load(source + size * i, kind, min(16, count * taps - i)))
    for channel in range(count):
        for j in range(taps):
            row = rows + ROW * ((channel // 16) * taps + j)
            v.set_float(row + 4 * (channel % 16), v.float_at(line + 4 * (channel * taps + j)))


def make_step(key: int) -> Any:
    """Return the kernel; `key` is the checksum of the sources and becomes part of numba's cache key."""

    def step(p, begin, end, part, scratch):
        if key < 0:
            return
        taps, channels, routes, batch, x_kind = p[TAPS], p[CHANNELS], p[ROUTES], p[BATCH], p[X_KIND]
        past = taps - 1
        x_row = align(scratch)
        y_row, weights = x_row + ROW, x_row + 2 * ROW
        line = weights + ROW * taps * (CHANNELS_OF_TASK // 16)
        old_states, new_states, bias, bias_kind, silu = p[STATE], p[NEXT], p[BIAS], p[BIAS_KIND], p[SILU] != 0
        x_size, bias_size = 4 if x_kind == 0 else 2, 4 if bias_kind == 0 else 2
        prepared = -1
        for task in range(begin, end):
            place, entry = task // batch, task % batch
            group, route = place // routes, place % routes
            start = group * CHANNELS_OF_TASK
            last = min(channels, start + CHANNELS_OF_TASK)
            if place != prepared:
                size = 4 if p[WEIGHT_KIND] == 0 else 2
                source = p[WEIGHT] + size * (route * channels + start) * taps
                prepare_weights(source, p[WEIGHT_KIND], last - start, taps, line, weights)
                prepared = place
            x = p[X] + entry * p[X_BATCH] + route * p[X_ROUTE]
            out = p[OUT] + x_size * (entry * routes + route) * channels
            for first in range(start, last, 16):
                count, channel = min(16, last - first), route * channels + first
                value = v.load(x + x_size * first, x_kind, count)
                offset = 4 * ((entry * routes + route) * channels + first) * past
                rows = weights + ROW * taps * ((first - start) // 16)
                if taps == 4 and count == 16:
                    y = window_of_four(old_states + offset, new_states + offset, value, rows)
                else:
                    v.store32(x_row, value)
                    window_of_any(old_states + offset, new_states + offset, x_row, y_row, rows, count, taps)
                    y = v.load32(y_row)
                if bias != 0:
                    y = v.add(y, v.load(bias + bias_size * channel, bias_kind, count))
                if silu:
                    y = v.multiply(y, v.sigmoid(y))
                v.store(out + x_size * first, x_kind, count, y)

    return step
