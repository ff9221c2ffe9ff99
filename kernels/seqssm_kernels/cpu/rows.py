"""Code shared by the CPU kernels of all operations: the array that describes a call, and the loops that move rows.

A kernel receives a call as one array `p` of int64: for each tensor an address, an element kind and the byte strides of
batch, position and route (zero if the tensor is shared), then addresses of small tensors, sizes, flags, and the entries
of the operation. `cpu.plan` fills it. A block is 16 channels; a row is their 64 bytes of float32.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu.lanes import ROW

# tensors: five numbers each
X, DT, B, C, Z, OUT, DOUT, DX, DDT, DZ, DB, DC = range(0, 60, 5)
# single tensors: addresses, and strides in bytes
(ORDER, ORDER_BATCH, ORDER_ROUTE, CU_SEQLENS) = range(60, 64)
(A, A_ROUTE, A_CHANNEL, A_STATE, D, D_ROUTE, BIAS, BIAS_ROUTE) = range(64, 72)
(INITIAL, FINAL, SAVED, D_INITIAL, D_FINAL, D_A, D_D, D_BIAS) = range(72, 80)
# sizes and flags; WIDTH: channels of a group
(BATCH, STEP_COUNT, ROUTES, CHANNELS, STATES, SEQUENCES, WIDTH, SOFTPLUS) = range(80, 88)
(A_ROUTES, D_ROUTES, BIAS_ROUTES, ADD_X, ADD_DT, ADD_Z, ADD_B, ADD_C) = range(88, 96)
TABLE = 96
# scales of integer x, B and C: addresses, and byte strides of the routes
(X_SCALE, X_SCALE_ROUTE, B_SCALE, B_SCALE_ROUTE, C_SCALE, C_SCALE_ROUTE) = range(97, 103)
OFFSETS = 103
"""Start of the entries specific to an operation, such as offsets into its scratch memory."""
LENGTH = 156


@njit
def align(address):
    return (address + 63) // 64 * 64


@njit
def size_of(kind):
    """Bytes of an element."""
    if kind == v.INT8:
        return 1
    return 4 if kind == v.FLOAT32 else 2


@njit
def load_values(address, kind, count, scale):
    """Load up to 16 floats, or integers times their scales, as float32 lanes."""
    if kind == v.INT8:
        return v.multiply(v.load8(address, count), scale)
    return v.load(address, kind, count)


@njit
def clear(address, rows):
    zero = v.broadcast(0.0)
    for i in range(rows):
        v.store32(address + ROW * i, zero)


@njit
def visits(p, order, begin, end, places):
    """Collect the positions visited in steps [begin, end), up to the first reset; return (count, next step, reset)."""
    count = 0
    if p[ORDER] == 0:
        for k in range(begin, end):
            v.set_int(places + 4 * (k - begin), k)
        return end - begin, end, False
    k = begin
    while k < end:
        place = v.int_at(order + 4 * k)
        k += 1
        if place >= 0:
            v.set_int(places + 4 * count, place)
            count += 1
        elif place == -2:
            return count, k, True
    return count, k, False


@njit
def copy_rows(source, target, rows):
    for i in range(rows):
        v.store32(target + ROW * i, v.load32(source + ROW * i))


@njit
def base_of(p, tensor, b, route, first):
    """Address of channel `first` at position 0.

    The row loops below take the address, stride and kind as scalars: values read from `p` inside a loop would be
    reloaded after every store.
    """
    size = size_of(p[tensor + 1])
    return p[tensor] + b * p[tensor + 2] + route * p[tensor + 4] + size * first


@njit
def fetch_ahead(p, tensor, b, route, order, begin, end, first):
    """Prefetch the rows of one block at steps [begin, end).

    Neighbouring steps are too far apart in memory, and in arbitrary order, for the hardware prefetcher. Called between
    the tiles of a block, a few rows at a time, because a processor has about a dozen outstanding cache misses.
    """
    base, stride = base_of(p, tensor, b, route, first), p[tensor + 3]
    if p[ORDER] == 0:
        for place in range(begin, end):
            v.prefetch(base + place * stride)
        return
    for step in range(begin, end):
        place = v.int_at(order + 4 * step)
        if place >= 0:
            v.prefetch(base + place * stride)


@njit
def put_row(target, kind, count, value, accumulate):
    if accumulate:
        value = v.add(value, v.load(target, kind, count))
    v.store(target, kind, count, value)


@njit
def vector_of(address, route, route_stride, first, count):
    """Channels of D, dt_bias or scales; zero if absent."""
    if address == 0:
        return v.broadcast(0.0)
    return v.load(address + route * route_stride + 4 * first, 0, count)


@njit
def span(p, sequence):
    """First step and end (exclusive) of a sequence."""
    if p[CU_SEQLENS] == 0:
        return 0, p[STEP_COUNT]
    return v.int_at(p[CU_SEQLENS] + 4 * sequence), v.int_at(p[CU_SEQLENS] + 4 * sequence + 4)


@njit
def state_offset(p, entry, sequence, route):
    """Byte offset of a state (channels, N) in the initial or final states."""
    slot = sequence if p[CU_SEQLENS] != 0 else entry
    return 4 * (slot * p[ROUTES] + route) * p[CHANNELS] * p[STATES]


@njit
def block_channels(p, group_start, block):
    """First channel of a block and the number of its channels."""
    first = group_start + block * 16
    return first, min(16, p[CHANNELS] - first)


@njit
def group_blocks(p, group):
    """First channel of a group of channels and the number of its blocks."""
    start = group * p[WIDTH]
    return start, (min(p[CHANNELS] - start, p[WIDTH]) + 15) // 16


def make_adder(key: int) -> Any:
    """Return the kernel that adds `parts` consecutive arrays of `count` float32; `key` as for the scan kernels."""

    def add_parts(source, parts, count, target):
        if key < 0:
            return
        for i in range(0, count, 16):
            lanes = min(16, count - i)
            total = v.load(source + 4 * i, 0, lanes)
            for part in range(1, parts):
                total = v.add(total, v.load(source + 4 * (part * count + i), 0, lanes))
            v.store(target + 4 * i, 0, lanes, total)

    return add_parts
