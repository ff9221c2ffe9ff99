"""What the Triton kernels share: which steps a program works on, which place a step visits, and softplus.

A program works on one *slot* of one route: a row of the state (a batch element, or a packed sequence) or, where the
length is split, a chunk of a row. Slots of a row lie behind each other. A packed row `i` has its first slot at
`cu_seqlens[i] // chunk + i`: enough room for every row without a running sum over the rows, and at least one slot
even for a row without steps.

What has a value for every channel and state (states between chunks, kept states, A, its gradient) lies in tiles of 128
channels, (..., tiles, N, 128): then the N rows that a program reads are at fixed distances, and no register holds them.
Channels behind the last one hold zeros there.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
HUGE = tl.constexpr(1e38)
ABSENT = tl.constexpr(-1)
RESET = tl.constexpr(-2)
TILE = tl.constexpr(128)


@triton.jit
def wide(stride, UNIT: tl.constexpr):
    """A stride given in units of UNIT elements, as a 64-bit number of elements whose divisibility the compiler sees."""
    return stride.to(tl.int64) * UNIT


@triton.jit
def program(routes, blocks):
    """Slot, route and channel block of this program; neighbours share their rows of B and C."""
    pid = tl.program_id(0)
    block = pid % blocks
    rest = pid // blocks
    return rest // routes, rest % routes, block


@triton.jit
def blocks_of(channels, BLOCK: tl.constexpr):
    """Programs that the channels take; whole tiles, so that their last channels are zero rather than unwritten."""
    return tl.cdiv(channels, TILE) * (TILE // BLOCK)


@triton.jit
def tiled(line, channels, block, N: tl.constexpr, BLOCK: tl.constexpr):
    """Where the channels of a block begin in a tensor (lines, tiles, N, TILE)."""
    first = block * BLOCK
    return tl.multiple_of((line * tl.cdiv(channels, TILE) + first // TILE) * (N * TILE) + first % TILE, BLOCK)


@triton.jit
def bounds(slot, row_of_slot, cu_seqlens, steps, per_row, chunk):
    """Row and batch element of a slot, its steps [start, stop), and the steps [begin, end) of its row.

    A slot that no row uses gets start > end: it has nothing to do. Whatever `cu_seqlens` holds, steps stay inside.
    """
    if cu_seqlens is None:
        row = slot // per_row
        batch = row
        begin = steps * 0
        end = steps
        start = (slot - row * per_row) * chunk
    else:
        if row_of_slot is None:
            row = slot
        else:
            row = tl.load(row_of_slot + slot)
        batch = row * 0
        begin = tl.minimum(tl.maximum(tl.load(cu_seqlens + row), 0), steps)
        end = tl.minimum(tl.maximum(tl.load(cu_seqlens + row + 1), begin), steps)
        if row_of_slot is None:
            start = begin
        else:
            # Number of the slot in its row; beyond the row's last one, a start that no comparison takes for a step.
            start = tl.minimum((slot - begin // chunk - row).to(tl.int64) * chunk + begin, steps + 1).to(tl.int32)
    stop = start + tl.maximum(tl.minimum(chunk, end - start), 0)
    return row, batch.to(tl.int64), start, stop, begin, end


@triton.jit
def first_slot(row, begin, cu_seqlens, per_row, chunk):
    """The first slot of a row in a table with a slot for every `chunk` steps."""
    if cu_seqlens is None:
        slot = row * per_row
    else:
        slot = begin // chunk + row
    return slot


@triton.jit
def place(order, s, stop, length):
    """The place that step `s` visits, or ABSENT or RESET; and a place that may be read in any case.

    Ids out of bounds and steps behind the last are ABSENT. Behind the last step without an order, the place to read is
    that of the last step, so that a NaN of another sequence is not even read.
    """
    if order is None:
        p = tl.where(s < stop, s, ABSENT)
        q = tl.minimum(s, stop - 1)
    else:
        p = tl.load(order + s, mask=s < stop, other=ABSENT)
        p = tl.where((p >= length) | (p < RESET), ABSENT, p)
        q = tl.maximum(p, 0)
    return p, q.to(tl.int64)


@triton.jit
def softplus(v):
    """log(1 + exp(v)), the identity above 20, and its derivative.

    1 + u loses the low digits of a small u; what is lost is added back to first order.
    """
    u = tl.exp2(tl.minimum(v, 20.0) * LOG2E)
    w = 1.0 + u
    value = tl.where(v > 20.0, v, tl.log(w) + (u - (w - 1.0)) / w)
    # A comparison with NaN is false and minimum may drop it: NaN in, NaN out.
    value = tl.where(v == v, value, v)
    return value, tl.where(v > 20.0, 1.0, u / w)


@triton.jit
def sigmoid(v):
    return 1.0 / (1.0 + tl.exp2(-v * LOG2E))


@triton.jit
def rate(a):
    """A log2(e), so that a decay is exp2(dt * rate); finite, because 0 * inf at a step without a visit would be NaN."""
    a = a * LOG2E
    a = tl.where(a < -HUGE, -HUGE, a)
    return tl.where(a > HUGE, HUGE, a)
