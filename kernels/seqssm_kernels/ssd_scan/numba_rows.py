"""Code shared by the CPU engine's kernels of the Mamba-2 scan: scratch memory, and the loops around the sweeps.

The array `p` of a call is that of `cpu.rows`, with CHANNELS = H P. Scratch memory holds rows of 16 lanes in blocks (see
`numba_tiles`): heads are padded to 16, channels of a head and states to 16 each, padding is zero. A state is a matrix
of rows without gaps, (N, P) with lanes over channels or (P, N) with lanes over states.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from numba import njit

from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu import rows as k
from seqssm_kernels.cpu import tiles
from seqssm_kernels.cpu.compile import wide_vectors
from seqssm_kernels.cpu.lanes import ROW
from seqssm_kernels.ssd_scan import numba_tiles as s
from seqssm_kernels.ssd_scan.numba_tiles import BLOCK, STEPS

LOG2_E = 1.4426950408889634
LARGEST = 30.0
"""Bound of the absolute sum of dt A after the first step of a run: scaled states stay within e^30."""
STRONG, LONGEST = 4.0, 32
"""The backward pass starts a run at each |dt A| above 4, where a difference would not resolve the gradient of dt A,
and after 32 steps, to limit its rounding errors."""

# tensors: five numbers each; then numbers. HEADS_OF_TASK: heads of a task; D_SIZE: values of D per head
W, DW = k.OFFSETS, k.OFFSETS + 5
(HEADS, HEAD_DIM, GROUPS, HEADS_OF_TASK, D_SIZE, ADD_W, PARTIALS) = range(k.OFFSETS + 10, k.OFFSETS + 17)
# Byte offsets into scratch memory. One for each of: positions; dt, dt A and w of the heads; B and C; a head's c, 1 / c,
# and their exponents; starts of runs; rows u / c and y; states of all heads; one more state, for changes of layout.
(S_PLACES, S_DT, S_LA, S_W, S_B, S_C, S_CUM, S_INVERSE, S_FRACTION, S_WHOLE, S_RUNS, S_U, S_Y, S_H, S_SPARE) = range(
    k.OFFSETS + 17, k.OFFSETS + 32
)
# Backward: rows c dy, du, dC of a head; dB, dC of a group; ddt and dw of the heads; products by step and their sums;
# gradients of decays at the ends of runs; a state with lanes over states, its gradient in both layouts, and states at
# the starts of runs.
(S_V, S_DU, S_DCH, S_DB, S_DC, S_DDT, S_DW, S_PRODUCTS, S_SUMS, S_ENDS, S_HT, S_KN, S_KP, S_MARKS) = range(
    k.OFFSETS + 32, k.OFFSETS + 46
)


@cache
def scratch_layout(heads: int, head_dim: int, d_state: int, backward: bool) -> tuple[list[int], int]:
    """Offsets into a thread's scratch memory, for a call's array from S_PLACES on, and its size in bytes."""
    of_heads, of_channels, of_states = (-(-n // v.LANES) * BLOCK for n in (heads, head_dim, d_state))
    state = 4 * (of_channels // BLOCK * v.LANES) * (of_states // BLOCK * v.LANES)
    line = 4 * STEPS
    sizes = {S_PLACES: line, S_DT: of_heads, S_LA: of_heads, S_W: of_heads, S_B: of_states, S_C: of_states}
    sizes |= dict.fromkeys((S_CUM, S_INVERSE, S_FRACTION, S_WHOLE), line) | {S_RUNS: line + 4}
    sizes |= {S_U: of_channels, S_Y: of_channels, S_H: heads * state if not backward else state, S_SPARE: state}
    if backward:
        sizes |= {S_V: of_channels, S_DU: of_channels, S_DCH: of_states, S_DB: of_states, S_DC: of_states}
        sizes |= {S_DDT: of_heads, S_DW: of_heads, S_PRODUCTS: BLOCK, S_SUMS: line + ROW, S_ENDS: line}
        sizes |= {S_HT: state, S_KN: heads * state, S_KP: heads * state, S_MARKS: STEPS * state}
    offsets, end = [0] * (k.LENGTH - S_PLACES), 0
    for part, size in sizes.items():
        offsets[part - S_PLACES] = end
        end += -(-size // ROW) * ROW
    return offsets, end + ROW  # padding to align the first rows


@njit
def padded(size):
    """Bytes of a row of `size` numbers, padded to whole vectors."""
    return (size + 15) // 16 * ROW


@njit
def prepare_heads(p, scratch, entry, route, places, steps, start, heads):
    """Compute dt, dt A and w of a tile for the heads of a task."""
    raw, raw_stride, raw_kind = k.base_of(p, k.DT, entry, route, start), p[k.DT + 3], p[k.DT + 1]
    w, w_stride, w_kind, weighted = k.base_of(p, W, entry, route, start), p[W + 3], p[W + 1], p[W] != 0
    softplus = p[k.SOFTPLUS] != 0
    raw_size, w_size = 4 if raw_kind == 0 else 2, 4 if w_kind == 0 else 2
    for first in range(0, heads, 16):
        count, block = min(16, heads - first), first // 16 * BLOCK
        rate = k.vector_of(p[k.A], route, p[k.A_ROUTE], start + first, count)
        bias = k.vector_of(p[k.BIAS], route, p[k.BIAS_ROUTE], start + first, count)
        for t in range(steps):
            place = v.int_at(places + 4 * t)
            dt = v.add(v.load(raw + place * raw_stride + raw_size * first, raw_kind, count), bias)
            if softplus:
                dt = v.softplus(dt)
            v.store32(scratch + p[S_DT] + block + ROW * t, dt)
            v.store32(scratch + p[S_LA] + block + ROW * t, v.multiply(dt, rate))
            if weighted:
                dt = v.load(w + place * w_stride + w_size * first, w_kind, count)
            v.store32(scratch + p[S_W] + block + ROW * t, dt)


@njit
def column(head):
    """Offset of a head's values in rows of heads."""
    return head // 16 * BLOCK + 4 * (head % 16)


@njit
def divide_into_runs(p, scratch, la, steps, strongest, longest):
    """Divide a tile into runs of steps in which products of decays, excluding the first, are within bounds.

    Writes c[t] and 1 / c[t], which are 1 at the first step of a run, and the starts of runs followed by the end;
    returns the number of runs. Sums are float64, and the exponential takes integer and fractional part separately, so
    that a product of a few decays close to 1 does not inherit the rounding error of a large sum.
    """
    fraction, whole, runs = scratch + p[S_FRACTION], scratch + p[S_WHOLE], scratch + p[S_RUNS]
    count, total = 0, 0.0
    for t in range(steps):
        step = v.float_at(la + ROW * t) * 1.0
        following = total + step
        if t > 0 and abs(following) <= LARGEST and abs(step) <= strongest and t % longest:
            total = following
        else:  # including NaN and infinity
            total = 0.0
            v.set_int(runs + 4 * count, t)
            count += 1
        power = total * LOG2_E
        nearest = math.floor(power + 0.5)
        v.set_float(fraction + 4 * t, power - nearest)
        v.set_float(whole + 4 * t, nearest)
    v.set_int(runs + 4 * count, steps)
    zero = v.broadcast(0.0)
    for t in range(0, steps, 16):  # values past the last step are never read
        offset = 4 * t
        part, number = v.load32(fraction + offset), v.load32(whole + offset)
        v.store32(scratch + p[S_CUM] + offset, v.multiply(v.exp2_narrow(part), v.exp2_narrow(number)))
        v.store32(
            scratch + p[S_INVERSE] + offset,
            v.multiply(v.exp2_narrow(v.subtract(zero, part)), v.exp2_narrow(v.subtract(zero, number))),
        )
    return count


@njit
def gather_states(p, tensor, entry, route, places, steps, group, target):
    """Load rows of B or C of a group as float32 blocks."""
    states, kind, stride = p[k.STATES], p[tensor + 1], p[tensor + 3]
    base, size = k.base_of(p, tensor, entry, route, group * states), k.size_of(kind)
    scales = k.B_SCALE if tensor == k.B else k.C_SCALE
    for n in range(0, states, 16):
        count, block = min(16, states - n), target + n // 16 * BLOCK
        scale = k.vector_of(p[scales], route, p[scales + 1], group * states + n, count)
        for t in range(steps):
            source = base + v.int_at(places + 4 * t) * stride + size * n
            v.store32(block + ROW * t, k.load_values(source, kind, count, scale))


@njit
def clear_blocks(target, blocks, steps):
    for block in range(blocks):
        k.clear(target + block * BLOCK, steps)


@njit
def skip_of(p, route, head, channel, count):
    """D of up to 16 channels of a head; zero if absent."""
    if p[k.D] == 0:
        return v.broadcast(0.0)
    row = p[k.D] + route * p[k.D_ROUTE]
    if p[D_SIZE] == 1:
        return v.broadcast(v.float_at(row + 4 * head))
    return v.load(row + 4 * (head * p[HEAD_DIM] + channel), 0, count)


@njit
def scale_of(p, route, head, channel, count):
    """Scales of up to 16 integer channels of a head; zero if x is not integer."""
    return k.vector_of(p[k.X_SCALE], route, p[k.X_SCALE_ROUTE], head * p[HEAD_DIM] + channel, count)


@njit
def prepare_inputs(p, scratch, entry, route, places, steps, head, w):
    """Compute the rows u / c of a head; `w` is the column of its input weights."""
    x, x_stride, x_kind = k.base_of(p, k.X, entry, route, head * p[HEAD_DIM]), p[k.X + 3], p[k.X + 1]
    size, inverse = k.size_of(x_kind), scratch + p[S_INVERSE]
    for first in range(0, p[HEAD_DIM], 16):
        count, rows = min(16, p[HEAD_DIM] - first), scratch + p[S_U] + first // 16 * BLOCK
        scale = scale_of(p, route, head, first, count)
        for t in range(steps):
            x_t = k.load_values(x + v.int_at(places + 4 * t) * x_stride + size * first, x_kind, count, scale)
            weight = v.float_at(w + ROW * t) * v.float_at(inverse + 4 * t)
            v.store32(rows + ROW * t, v.multiply(x_t, v.broadcast(weight)))


@njit
def finish_outputs(p, scratch, entry, route, places, steps, head):
    """Write the rows of `out` of a head: c times the sums of the sweep, plus the skip, times the gate."""
    channels = p[HEAD_DIM]
    x, x_stride, x_kind = k.base_of(p, k.X, entry, route, head * channels), p[k.X + 3], p[k.X + 1]
    z, z_stride, z_kind = k.base_of(p, k.Z, entry, route, head * channels), p[k.Z + 3], p[k.Z + 1]
    out, out_stride, out_kind = k.base_of(p, k.OUT, entry, route, head * channels), p[k.OUT + 3], p[k.OUT + 1]
    size, x_size, gated, skipped = k.size_of(out_kind), k.size_of(x_kind), p[k.Z] != 0, p[k.D] != 0
    cum = scratch + p[S_CUM]
    for first in range(0, channels, 16):
        count, rows = min(16, channels - first), scratch + p[S_Y] + first // 16 * BLOCK
        skip, scale = skip_of(p, route, head, first, count), scale_of(p, route, head, first, count)
        for t in range(steps):
            place = v.int_at(places + 4 * t)
            y = v.multiply(v.load32(rows + ROW * t), v.broadcast(v.float_at(cum + 4 * t)))
            if skipped:
                x_t = k.load_values(x + place * x_stride + x_size * first, x_kind, count, scale)
                y = v.multiply_add(skip, x_t, y)
            if gated:
                gate = v.load(z + place * z_stride + size * first, z_kind, count)
                y = v.multiply(y, v.multiply(gate, v.sigmoid(gate)))
            v.store(out + place * out_stride + size * first, out_kind, count, y)


@njit
def decay_of(la, t):
    """Decay of one step, flushed to zero if denormal, because denormal arithmetic is slow."""
    decay = math.exp(v.float_at(la + ROW * t) * 1.0)
    return decay if not decay < 1.2e-38 else 0.0


def _make_sweep(wide: bool) -> Any:
    """Create the sweep over a head's whole state for a run of steps; `wide` uses tiles of four vectors if they fit.

    Its arguments: first rows of the lanes' input and output and of the two scalars; the state, its number of rows and
    of vectors per row; the steps; the factors before and after; whether it goes in reverse.
    """

    @njit
    def sweep(source, out, entering, leaving, state, rows, vectors, steps, before, after, down):
        row = ROW * vectors
        for n in range(0, rows, 4):
            scalars = n // 16 * BLOCK + 4 * (n % 16)
            b, c, block = entering + scalars, leaving + scalars, 0
            if wide:
                while block + 4 <= vectors:
                    where, at = block * BLOCK, state + n * row + block * ROW
                    if down:
                        s.reverse4(source + where, out + where, b, c, at, row, steps, before, after)
                    else:
                        s.forward4(source + where, out + where, b, c, at, row, steps, before, after)
                    block += 4
            while block < vectors:
                where, at = block * BLOCK, state + n * row + block * ROW
                if down:
                    s.reverse1(source + where, out + where, b, c, at, row, steps, before, after)
                else:
                    s.forward1(source + where, out + where, b, c, at, row, steps, before, after)
                block += 1

    return sweep


# a global, not in a kernel's closure: numba cannot find a cached kernel again whose closure holds another function
sweep = _make_sweep(wide_vectors())


@njit
def fetch_rows(p, tensor, entry, route, places, begin, end, head):
    """Prefetch a head's rows of a tensor at some visits of a tile: a few at a time, between sections of a sweep."""
    if p[tensor] == 0:
        return
    base, stride = k.base_of(p, tensor, entry, route, head * p[HEAD_DIM]), p[tensor + 3]
    width = k.size_of(p[tensor + 1]) * p[HEAD_DIM]
    for t in range(begin, end):
        row = base + v.int_at(places + 4 * t) * stride
        for offset in range(0, width, 64):
            v.prefetch(row + offset)


# -- states -----------------------------------------------------------------------------------------------------------


@njit
def transpose(source, rows, columns, target):
    """Transpose a state of padded `rows` x `columns` (multiples of 16)."""
    for i in range(0, rows, 16):
        for j in range(0, columns, 16):
            s.transpose16(source + 4 * (i * columns + j), 4 * columns, target + 4 * (j * rows + i), 4 * rows)


@njit
def load_state(p, address, head, target):
    """Load the state of a head, (P, N), with lanes over states; zero if `address` is 0."""
    channels, states = p[HEAD_DIM], p[k.STATES]
    row = padded(states)
    k.clear(target, padded(channels) // 4 * (row // ROW))
    if address != 0:
        for channel in range(channels):
            source = address + 4 * (head * channels + channel) * states
            for n in range(0, states, 16):
                v.store32(target + channel * row + 4 * n, v.load(source + 4 * n, 0, min(16, states - n)))


@njit
def store_state(p, source, address, head):
    """Store a head's state with lanes over states."""
    channels, states = p[HEAD_DIM], p[k.STATES]
    row = padded(states)
    for channel in range(channels):
        target = address + 4 * (head * channels + channel) * states
        for n in range(0, states, 16):
            v.store(target + 4 * n, 0, min(16, states - n), v.load32(source + channel * row + 4 * n))


@njit
def saved_state(p, entry, route, step, head):
    """Address of the state of a head before `step`, with lanes over channels."""
    tiles_kept = (p[k.STEP_COUNT] + STEPS - 1) // STEPS
    kept = ((entry * p[k.ROUTES] + route) * tiles_kept + step // STEPS) * p[HEADS] + head
    return p[k.SAVED] + kept * (padded(p[HEAD_DIM]) * padded(p[k.STATES]) // 4)


@njit
def heads_of_task(p, task):
    """First head and number of heads of a task."""
    start = task * p[HEADS_OF_TASK]
    return start, min(p[HEADS_OF_TASK], p[HEADS] - start)


@njit
def sum_rows(products, steps, sums):
    """Compute the lane sums of rows."""
    for t in range(0, steps, 16):
        tiles.sum_lanes(products + ROW * t, sums + 4 * t)
