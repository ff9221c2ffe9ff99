"""Device functions shared by the Triton kernels: steps of a program, channels of a warp, row sums over the lanes.

A scan program is one warp. It works on one *slot* of one route: a row of the state (a batch element, or a packed
sequence) or, where the length is split, a chunk of a row. The slots of a row are consecutive. A packed row `i` has its
first slot at `cu_seqlens[i] // chunk + i`. This leaves enough room for every row without a running sum over the rows,
and gives at least one slot to a row without steps.

Channels of a program are a (32, K) tensor: K neighbouring channels per lane. Sums over K therefore stay inside a
thread, and a value shared by all channels is a (32, 1) tensor.

Values per channel and state (states, rates, the gradient of A) are stored in tiles of TILE channels, (..., tiles, N,
TILE): the N rows of a program are at fixed distances, which needs no address registers.

Values per step and state (B, C and their gradients) are stored in *lines* of KEEP steps, (lines, N, 2, KEEP), B before
C: the steps of one state are consecutive, so that one 16-byte load reads four of them. Lines are numbered like slots.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
HUGE = tl.constexpr(1e38)
ABSENT = tl.constexpr(-1)
RESET = tl.constexpr(-2)
LANES = tl.constexpr(32)


@triton.jit
def wide(stride, UNIT: tl.constexpr):
    """Convert a stride in units of UNIT elements to a 64-bit number of elements with known divisibility."""
    return stride.to(tl.int64) * UNIT


@triton.jit
def channels_of(block, K: tl.constexpr):
    """Channels of a program, (32, K)."""
    lane = tl.arange(0, LANES)[:, None]
    return block * (LANES * K) + lane * K + tl.arange(0, K)[None, :]


@triton.jit
def program(pid, routes, blocks):
    """Slot, route and channel block of a program; neighbouring programs share their rows of B and C."""
    rest = pid // blocks
    return rest // routes, rest % routes, pid % blocks


@triton.jit
def tiled(line, channels, block, N: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Offset of the first channel of a block in a tensor (lines, tiles, N, TILE)."""
    first = block * BLOCK
    return tl.multiple_of((line * tl.cdiv(channels, TILE) + first // TILE) * (N * TILE) + first % TILE, BLOCK)


@triton.jit
def bounds(slot, row_of_slot, cu_seqlens, steps, per_row, chunk):
    """Row and batch element of a slot, its steps [start, stop), and the steps [begin, end) of its row.

    An unused slot gets start > end. Steps stay in bounds for any content of `cu_seqlens`.
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
            # Index of the slot in its row; past the row's last slot, a start that compares greater than every step.
            start = tl.minimum((slot - begin // chunk - row).to(tl.int64) * chunk + begin, steps + 1).to(tl.int32)
    stop = start + tl.maximum(tl.minimum(chunk, end - start), 0)
    return row, batch.to(tl.int64), start, stop, begin, end


@triton.jit
def first_slot(row, begin, cu_seqlens, per_row, chunk):
    """First slot of a row in a table with one slot per `chunk` steps."""
    if cu_seqlens is None:
        slot = row * per_row
    else:
        slot = begin // chunk + row
    return slot


@triton.jit
def place(order, s, stop, length):
    """Positions that steps `s`, a number or a tensor, visit, or ABSENT or RESET.

    Out-of-range indices and steps past the last one are ABSENT.
    """
    if order is None:
        p = tl.where(s < stop, s, ABSENT)
    else:
        p = tl.load(order + s, mask=s < stop, other=ABSENT)
        p = tl.where((p >= length) | (p < RESET), ABSENT, p)
    return p


@triton.jit
def row_of(order, base, s, u: tl.constexpr, p, stride):
    """Pointers to the row that step `s + u` visits at position `p`, in a tensor with that stride.

    A constant `u` saves instructions, because its product with the stride is kept, and costs registers.
    """
    if order is None:
        pointers = base + stride * s + stride * u
    else:
        pointers = base + tl.maximum(p, 0).to(tl.int64) * stride
    return pointers


@triton.jit
def fetch(pointers, PREFETCH: tl.constexpr):
    """Ask for the sectors of 32 bytes at `pointers` to be in the L1 cache soon; no effect on results."""
    if PREFETCH:
        tl.inline_asm_elementwise(
            "prefetch.global.L1 [$1]; mov.b32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def fetch_lines(line, N: tl.constexpr, KEEP: tl.constexpr, PREFETCH: tl.constexpr):
    """Fetch B and C of all states, eight steps from `line` on."""
    if PREFETCH:
        for first in tl.static_range(0, 2 * N, LANES):
            fetch(line + tl.minimum(first + tl.arange(0, LANES), 2 * N - 1) * KEEP, PREFETCH)


@triton.jit
def fetch_rows(base, positions, stride, channels, block, K: tl.constexpr, PREFETCH: tl.constexpr):
    """Fetch the channels of a block in the rows of `positions` (T,)."""
    if PREFETCH:
        OF_SECTOR: tl.constexpr = 256 // base.dtype.element_ty.primitive_bitwidth
        SECTORS: tl.constexpr = LANES * K // OF_SECTOR
        e = tl.minimum(block * (LANES * K) + tl.arange(0, SECTORS) * OF_SECTOR, channels - 1)
        fetch(base + tl.maximum(positions, 0).to(tl.int64)[:, None] * stride + e[None, :], PREFETCH)


@triton.jit
def take(pointers, there):
    """Load values in float32, zero where `there` is false."""
    return tl.load(pointers, mask=there, other=0.0).to(tl.float32)


@triton.jit
def scale_values(values, scales, index, there):
    """Multiply integers in float32 by their scales; `scales` is None for floats."""
    if scales is not None:
        values *= tl.load(scales + index, mask=there, other=0.0)
    return values


@triton.jit
def step_size(d, visits, bias, SOFTPLUS: tl.constexpr):
    """dt of a step from the given one, zero if it visits no position, and its derivative."""
    slope = 1.0
    if bias is not None:
        d += bias
    if SOFTPLUS:
        d, slope = softplus(d)
    if SOFTPLUS or bias is not None:
        d = tl.where(visits, d, 0.0)
    return d, slope


@triton.jit
def masked(value, bits):
    """`value` where all bits are set, 0 where none is; one instruction that also clears inf and NaN."""
    return (value.to(tl.int32, bitcast=True) & bits).to(tl.float32, bitcast=True)


@triton.jit
def quads():
    """Offsets of `spread`, the same for all lanes: (32, 1, 4)."""
    return tl.zeros([LANES, 1, 1], tl.int32) + tl.arange(0, 4)[None, None, :]


@triton.jit
def spread(base, index, T: tl.constexpr):
    """Load T consecutive values, the same for all lanes, as a tuple of T tensors (32, 1): one 16-byte load per four."""
    values = ()
    for i in tl.static_range(T // 4):
        four = tl.load(tl.multiple_of(base + 4 * i + index, (1, 1, 16)))
        even, odd = tl.split(four.reshape(LANES, 1, 2, 2))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        values = values + (first, second, third, fourth)
    return values


@triton.jit
def fold(values, V: tl.constexpr):
    """Sum V tensors (32,) over the lanes, V a power of two up to 32: lane i gets the sum of tensor i modulo V.

    Recursive halving: while a lane holds several tensors, it sends half of them to a partner and receives the other
    half. 32 tensors take 31 shuffles, compared with 160 for separate sums.
    """
    lane = tl.arange(0, LANES)
    for stage in tl.static_range(5):
        if (V >> stage) > 1:
            upper = (lane & (V >> (stage + 1))) != 0
            halved = ()
            for i in tl.static_range(V >> (stage + 1)):
                a = values[i]
                b = values[i + (V >> (stage + 1))]
                received = tl.gather(tl.where(upper, a, b), lane ^ (V >> (stage + 1)), 0)
                halved = halved + (tl.where(upper, b, a) + received,)
            values = halved
        else:
            values = (values[0] + tl.gather(values[0], lane ^ (1 << stage), 0),)
    return values[0]


@triton.jit
def _log1p_over(u):
    """log1p(u) / u on [0, 1], the polynomial of `cpu.lanes`: relative error 3.3e-8."""
    v = 0.005365422461181879 * u - 0.030068300664424896
    v = v * u + 0.07920882850885391
    v = v * u - 0.13754187524318695
    v = v * u + 0.1915384829044342
    v = v * u - 0.24857217073440552
    v = v * u + 0.33321329951286316
    v = v * u - 0.49999648332595825
    return v * u + 1.0


@triton.jit
def _logistic(v, u):
    """1 / (1 + exp(-v)) from u = exp(-|v|), by the polynomial of `cpu.lanes` for 1 / (1 + u): relative error 4.8e-8."""
    r = 0.14192304015159607 - 0.023774737492203712 * u
    r = r * u - 0.39109063148498535
    r = r * u + 0.6814138889312744
    r = r * u - 0.8852137923240662
    r = r * u + 0.973336935043335
    r = r * u - 0.9963485598564148
    r = r * u + 0.9997476935386658
    r = r * u - 0.9999938607215881
    r = r * u + 1.0
    return tl.where(v < 0.0, u * r, r)


@triton.jit
def softplus(v):
    """log(1 + exp(v)), the identity above 20, and its derivative; NaN for NaN.

    max(v, 0) + log1p(exp(-|v|)): above 20 the second term is below half a unit in the last place of the first.
    """
    u = tl.exp2(-tl.abs(v) * LOG2E)
    return tl.where(v < 0.0, 0.0, v) + u * _log1p_over(u), _logistic(v, u)


@triton.jit
def sigmoid(v):
    """1 / (1 + exp(-v)); NaN for NaN."""
    return _logistic(v, tl.exp2(-tl.abs(v) * LOG2E))


@triton.jit
def rate(a):
    """A log2(e), so that a decay is exp2(dt * rate); finite, because 0 * inf at a step without a visit would be NaN."""
    a = a * LOG2E
    a = tl.where(a < -HUGE, -HUGE, a)
    return tl.where(a > HUGE, HUGE, a)
