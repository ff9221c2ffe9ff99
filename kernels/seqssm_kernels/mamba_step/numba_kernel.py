"""Convolution, projections and scan of one step in one kernel, for small batches; intermediate rows stay in scratch.

The steps of the convolution and of the scan are the kernels of their operations, with parameter arrays of their own
inside `p`. The projections are products of a matrix and a vector per batch entry.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from seqssm_kernels.causal_conv1d import numba_step as conv
from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu import tiles
from seqssm_kernels.cpu.lanes import ROW
from seqssm_kernels.cpu.rows import align
from seqssm_kernels.selective_scan import numba_step as scan

CONV, SCAN = 0, conv.LENGTH  # parameters of the two steps
OWN = SCAN + scan.LENGTH
(SELECT, DT, RANK) = range(OWN, OWN + 3)  # addresses of the two weights; rank of dt
LENGTH = OWN + 3

# global: numba's key of a cached kernel contains its closure, in which functions of numba differ between processes
convolve, advance = njit(conv.make_step(0)), njit(scan.make_step(0))


def selected_row(rank: int, states: int) -> int:
    """Bytes of a row of dt at low rank, B and C."""
    return -(-4 * (rank + 2 * states) // ROW) * ROW


def scratch_bytes(batch: int, channels: int, taps: int, rank: int, states: int) -> int:
    """Rows of u, dt and the selected values of all entries, products of 16 outputs, and scratch of the two steps."""
    inner = max(conv.scratch_bytes(taps), scan.scratch_bytes(states))
    return ROW + batch * (8 * channels + selected_row(rank, states)) + 17 * ROW + inner + ROW


@njit
def project(weight, outputs, inputs, source, source_bytes, target, target_bytes, batch, products):
    """target[b] = weight (outputs, inputs) times source[b]; rows of target are written in blocks of 16 values."""
    for first in range(0, outputs, 16):
        count = min(16, outputs - first)
        rows = weight + 4 * first * inputs
        for b in range(batch):
            x = source + b * source_bytes
            for four in range(0, count, 4):
                some = min(4, count - four)
                one = rows + 4 * four * inputs
                two, three, last = one, one, one  # repeats the first row past the last one
                if some > 1:
                    two = one + 4 * inputs
                if some > 2:
                    three = two + 4 * inputs
                if some > 3:
                    last = three + 4 * inputs
                a = v.broadcast(0.0)
                c, d, e = a, a, a
                full = inputs // 16 * 16
                for i in range(0, full, 16):
                    value = v.load32(x + 4 * i)
                    a = v.multiply_add(value, v.load32(one + 4 * i), a)
                    c = v.multiply_add(value, v.load32(two + 4 * i), c)
                    d = v.multiply_add(value, v.load32(three + 4 * i), d)
                    e = v.multiply_add(value, v.load32(last + 4 * i), e)
                if full < inputs:
                    left, at = inputs - full, 4 * full
                    value = v.load(x + at, 0, left)
                    a = v.multiply_add(value, v.load(one + at, 0, left), a)
                    c = v.multiply_add(value, v.load(two + at, 0, left), c)
                    d = v.multiply_add(value, v.load(three + at, 0, left), d)
                    e = v.multiply_add(value, v.load(last + at, 0, left), e)
                place = products + ROW * four
                v.store32(place, a)
                v.store32(place + ROW, c)
                v.store32(place + 2 * ROW, d)
                v.store32(place + 3 * ROW, e)
            sums = products + 16 * ROW
            tiles.sum_lanes(products, sums)
            v.store(target + b * target_bytes + 4 * first, 0, count, v.load32(sums))


def make_step(key: int) -> Any:
    """Return the kernel; `key` is the checksum of the sources and becomes part of numba's cache key."""

    def step(p, begin, end, part, scratch):
        if key < 0:
            return
        c, s = p[CONV:SCAN], p[SCAN:OWN]
        batch, channels, states, rank = s[scan.BATCH], s[scan.CHANNELS], s[scan.STATES], p[RANK]
        row, narrow = 4 * channels, s[scan.BATCH_STRIDE + scan.B]  # bytes of a row of u or dt, and of selected values
        selected = align(scratch)
        products = selected + batch * narrow
        u = products + 17 * ROW
        dt = u + batch * row
        inner = dt + batch * row
        groups = (channels + conv.CHANNELS_OF_TASK - 1) // conv.CHANNELS_OF_TASK
        c[conv.OUT] = u
        convolve(c, 0, batch * groups, 0, inner)
        project(p[SELECT], rank + 2 * states, channels, u, row, selected, narrow, batch, products)
        project(p[DT], channels, rank, selected, narrow, dt, row, batch, products)
        s[scan.X], s[scan.DT] = u, dt
        s[scan.B], s[scan.C] = selected + 4 * rank, selected + 4 * (rank + states)
        groups = (channels + scan.CHANNELS_OF_TASK - 1) // scan.CHANNELS_OF_TASK
        advance(s, 0, batch * groups, 0, inner)

    return step
