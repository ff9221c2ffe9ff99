"""The CPU scan's kernels: they walk sequences, routes and tiles, gather rows by order, and call the tiles.

A task is one batch entry and one group of up to 128 channels, all its routes one after another, so that it alone writes
its rows of every gradient. Tasks are numbered group by group; a thread gets a range of them and keeps what belongs to the
group (A, the sums for its gradient) between batch entries.

A kernel sees the call as one array of int64: per tensor an address, an element kind and the byte strides of batch, place
and route (zero where the tensor is shared), then sizes and flags. `selective_scan_numba` fills it.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from seqssm_kernels import lanes as v
from seqssm_kernels import selective_scan_tiles as tiles
from seqssm_kernels.selective_scan_tiles import STEPS

ROW = 64
LOG2_E = 1.4426950408889634

# tensors: five numbers each
X, DT, B, C, Z, OUT, DOUT, DX, DDT, DZ, DB, DC = range(0, 60, 5)
# single numbers
(ORDER, ORDER_BATCH, ORDER_ROUTE, CU_SEQLENS, A, A_ROUTE, A_CHANNEL, A_STATE, D, D_ROUTE, BIAS, BIAS_ROUTE) = range(60, 72)
(INITIAL, FINAL, SAVED, D_INITIAL, D_FINAL, D_A, D_D, D_BIAS) = range(72, 80)
(BATCH, STEP_COUNT, ROUTES, CHANNELS, STATES, SEQUENCES, WIDTH, SOFTPLUS) = range(80, 88)
(A_ROUTES, D_ROUTES, BIAS_ROUTES, ADD_X, ADD_DT, ADD_Z, ADD_B, ADD_C) = range(88, 96)
TABLE = 96
LENGTH = 97


def scratch_bytes(routes: int, width: int, states: int, unroll: int, backward: bool) -> int:
    """Bytes of scratch that one thread needs."""
    blocks = width // v.LANES
    rows = 4 * STEPS * states + ROW
    total = 4 * STEPS + 2 * rows + routes * blocks * states * (2 * ROW + 4) + blocks * states * ROW + 3 * STEPS * ROW
    if backward:
        total += blocks * (6 * STEPS * ROW + 8) + (2 * STEPS + 1) * unroll * ROW + 2 * (STEPS * unroll * ROW + 16 * ROW)
        total += 2 * (STEPS * unroll * 4 + ROW) + (1 + routes) * blocks * states * ROW + 2 * routes * blocks * ROW
    return total + 32 * ROW


@njit
def align(address):
    return (address + 63) // 64 * 64


@njit
def clear(address, rows):
    zero = v.broadcast(0.0)
    for i in range(rows):
        v.store32(address + ROW * i, zero)


@njit
def load_rates(p, group_start, blocks, unroll, a, a2, bounds):
    """A of a group as rows [route][block][state] of 16 channels, times log2 e too; the largest |A2| of each tile,
    with a minus sign where some A is positive."""
    states, channels = p[STATES], p[CHANNELS]
    for route in range(p[A_ROUTES]):
        for block in range(blocks):
            first = group_start + block * 16
            count = min(16, channels - first)
            base = (route * blocks + block) * states
            for n in range(states):
                source = p[A] + route * p[A_ROUTE] + first * p[A_CHANNEL] + n * p[A_STATE]
                row = a + (base + n) * ROW
                clear(row, 1)
                for lane in range(count):
                    v.set_float(row + 4 * lane, v.float_at(source + lane * p[A_CHANNEL]))
                v.store32(a2 + (base + n) * ROW, v.multiply(v.load32(row), v.broadcast(LOG2_E)))
            for first_state in range(0, states, unroll):
                largest, rising = v.broadcast(0.0), False
                for n in range(first_state, first_state + unroll):
                    rate = v.load32(a2 + (base + n) * ROW)
                    largest = v.larger_bits(largest, v.magnitude(rate))
                    rising |= v.any_negative(v.subtract(v.broadcast(0.0), rate))
                bound = v.largest_bits(largest)
                v.set_float(bounds + 4 * (base + first_state), -bound if rising else bound)


@njit
def choose_path(rate_bound, dt_bound, dt_negative):
    """Which exponential serves a tile: by the largest |A2| and |dt|, and whether both have their usual sign."""
    largest = abs(rate_bound) * dt_bound
    if rate_bound >= 0.0 and not dt_negative:
        if largest <= 1.0:
            return tiles.UNIT
        if largest <= 2.0:
            return tiles.DOUBLE
    if largest <= 125.0:
        return tiles.WIDE
    return tiles.ANY


@njit
def visits(p, order, begin, end, places):
    """The places visited in steps [begin, end), up to the first reset; returns (their number, next step, reset)."""
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
def gather_states(p, tensor, b, route, places, count, target):
    """Rows of B or C as float32, one after another."""
    states, kind, stride, base = p[STATES], p[tensor + 1], p[tensor + 3], base_of(p, tensor, b, route, 0)
    size = 4 if kind == 0 else 2
    for t in range(count):
        source = base + v.int_at(places + 4 * t) * stride
        for n in range(0, states, 16):
            lanes = min(16, states - n)
            v.store(target + 4 * (t * states + n), 0, lanes, v.load(source + size * n, kind, lanes))


@njit
def load_state(p, address, first, count, target):
    """A state (channels, N) as rows [state] of 16 channels; zero where `address` is 0."""
    states = p[STATES]
    clear(target, states)
    if address != 0:
        for lane in range(count):
            source = address + 4 * (first + lane) * states
            for n in range(states):
                v.set_float(target + ROW * n + 4 * lane, v.float_at(source + 4 * n))


@njit
def store_state(p, source, first, count, address):
    states = p[STATES]
    for lane in range(count):
        target = address + 4 * (first + lane) * states
        for n in range(states):
            v.set_float(target + 4 * n, v.float_at(source + ROW * n + 4 * lane))


@njit
def copy_rows(source, target, rows):
    for i in range(rows):
        v.store32(target + ROW * i, v.load32(source + ROW * i))


@njit
def base_of(p, tensor, b, route, first):
    """Address of channel `first` at place 0. The row loops below take it, the stride and the kind as plain numbers:
    read from `p` inside a loop, they would be fetched again after every store."""
    size = 4 if p[tensor + 1] == 0 else 2
    return p[tensor] + b * p[tensor + 2] + route * p[tensor + 4] + size * first


@njit
def fetch_ahead(p, tensor, b, route, order, begin, end, first):
    """Asks for the rows of one block at steps [begin, end): neighbouring steps lie too far apart in memory, and in any
    order, for the processor to guess them. Called between the tiles of a block, a few rows at a time: a processor
    waits for no more than about a dozen lines at once."""
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
    """Channels of D or dt_bias; zero where it is absent."""
    if address == 0:
        return v.broadcast(0.0)
    return v.load(address + route * route_stride + 4 * first, 0, count)


@njit
def prepare(p, b, route, places, steps, first, count, dt_rows, du_rows, y_rows):
    """dt, dt x and D x (the start of y) of a tile's block into scratch; returns the largest |dt| and whether any dt is
    negative."""
    x, x_stride, x_kind = base_of(p, X, b, route, first), p[X + 3], p[X + 1]
    raw, raw_stride, raw_kind = base_of(p, DT, b, route, first), p[DT + 3], p[DT + 1]
    has_bias, has_skip, softplus = p[BIAS] != 0, p[D] != 0, p[SOFTPLUS] != 0
    bias = vector_of(p[BIAS], route, p[BIAS_ROUTE], first, count)
    skip = vector_of(p[D], route, p[D_ROUTE], first, count)
    largest = v.broadcast(0.0)
    signs = v.broadcast(0.0)
    for t in range(steps):
        place = v.int_at(places + 4 * t)
        dt = v.load(raw + place * raw_stride, raw_kind, count)
        if has_bias:
            dt = v.add(dt, bias)
        if softplus:
            dt = v.softplus(dt)
        x_t = v.load(x + place * x_stride, x_kind, count)
        v.store32(dt_rows + ROW * t, dt)
        v.store32(du_rows + ROW * t, v.multiply(dt, x_t))
        v.store32(y_rows + ROW * t, v.multiply(skip, x_t) if has_skip else v.broadcast(0.0))
        largest = v.larger_bits(largest, v.magnitude(dt))
        signs = v.either_bits(signs, dt)
    return v.largest_bits(largest), v.any_negative(signs)


@njit
def finish(p, b, route, places, steps, first, count, y_rows):
    """The rows of `out`: y, gated."""
    z, z_stride, z_kind, gated = base_of(p, Z, b, route, first), p[Z + 3], p[Z + 1], p[Z] != 0
    out, out_stride, out_kind = base_of(p, OUT, b, route, first), p[OUT + 3], p[OUT + 1]
    for t in range(steps):
        place = v.int_at(places + 4 * t)
        y = v.load32(y_rows + ROW * t)
        if gated:
            gate = v.load(z + place * z_stride, z_kind, count)
            y = v.multiply(y, v.multiply(gate, v.sigmoid(gate)))
        v.store(out + place * out_stride, out_kind, count, y)


@njit
def prepare_backward(p, b, route, places, steps, first, count, dy_rows):
    """The gradient of y of a tile's block: dout, times the gate."""
    z, z_stride, z_kind, gated = base_of(p, Z, b, route, first), p[Z + 3], p[Z + 1], p[Z] != 0
    dout, dout_stride, dout_kind = base_of(p, DOUT, b, route, first), p[DOUT + 3], p[DOUT + 1]
    for t in range(steps):
        place = v.int_at(places + 4 * t)
        dy = v.load(dout + place * dout_stride, dout_kind, count)
        if gated:
            gate = v.load(z + place * z_stride, z_kind, count)
            dy = v.multiply(dy, v.multiply(gate, v.sigmoid(gate)))
        v.store32(dy_rows + ROW * t, dy)


@njit
def finish_backward(p, b, route, places, steps, first, count, dt_rows, dy_rows, ddt_rows, ddu_rows, dd, dbias):
    """dx and ddt of a tile's block, and its part of the gradients of D and dt_bias."""
    one = v.broadcast(1.0)
    skip = vector_of(p[D], route, p[D_ROUTE], first, count)
    bias = vector_of(p[BIAS], route, p[BIAS_ROUTE], first, count)
    x, x_stride, x_kind = base_of(p, X, b, route, first), p[X + 3], p[X + 1]
    raw, raw_stride, raw_kind = base_of(p, DT, b, route, first), p[DT + 3], p[DT + 1]
    dx, dx_stride, dx_kind = base_of(p, DX, b, route, first), p[DX + 3], p[DX + 1]
    ddt, ddt_stride, ddt_kind = base_of(p, DDT, b, route, first), p[DDT + 3], p[DDT + 1]
    softplus, wants_x, wants_dt, add_x, add_dt = p[SOFTPLUS] != 0, p[DX] != 0, p[DDT] != 0, p[ADD_X] != 0, p[ADD_DT] != 0
    d_sum, bias_sum = v.load32(dd), v.load32(dbias)
    for t in range(steps):
        place = v.int_at(places + 4 * t)
        x_t = v.load(x + place * x_stride, x_kind, count)
        dy = v.load32(dy_rows + ROW * t)
        ddu = v.load32(ddu_rows + ROW * t)
        ddt_t = v.multiply_add(ddu, x_t, v.load32(ddt_rows + ROW * t))
        if softplus:
            raw_t = v.add(v.load(raw + place * raw_stride, raw_kind, count), bias)
            ddt_t = v.multiply(ddt_t, v.where_greater(raw_t, v.broadcast(20.0), one, v.sigmoid(raw_t)))
        d_sum = v.multiply_add(dy, x_t, d_sum)
        bias_sum = v.add(bias_sum, ddt_t)
        if wants_x:
            dx_t = v.multiply_add(ddu, v.load32(dt_rows + ROW * t), v.multiply(skip, dy))
            put_row(dx + place * dx_stride, dx_kind, count, dx_t, add_x)
        if wants_dt:
            put_row(ddt + place * ddt_stride, ddt_kind, count, ddt_t, add_dt)
    v.store32(dd, d_sum)
    v.store32(dbias, bias_sum)


@njit
def gate_gradient(p, b, route, places, steps, first, count, y_rows):
    """dz of a tile's block: dout y (silu)'(z)."""
    one = v.broadcast(1.0)
    z, z_stride, z_kind = base_of(p, Z, b, route, first), p[Z + 3], p[Z + 1]
    dz, dz_stride, dz_kind, add_z = base_of(p, DZ, b, route, first), p[DZ + 3], p[DZ + 1], p[ADD_Z] != 0
    dout, dout_stride, dout_kind = base_of(p, DOUT, b, route, first), p[DOUT + 3], p[DOUT + 1]
    for t in range(steps):
        place = v.int_at(places + 4 * t)
        z_t = v.load(z + place * z_stride, z_kind, count)
        gate = v.sigmoid(z_t)
        slope = v.multiply(gate, v.multiply_add(z_t, v.subtract(one, gate), one))
        dy = v.load(dout + place * dout_stride, dout_kind, count)
        put_row(dz + place * dz_stride, dz_kind, count, v.multiply(dy, v.multiply(v.load32(y_rows + ROW * t), slope)), add_z)


@njit
def add_states(p, tensor, b, route, places, steps, n, unroll, vectors, sums, accumulate):
    """Adds the lane sums of `vectors` [t][unroll] to states n.. of the rows of dB or dC."""
    rows, stride, base = steps * unroll, p[tensor + 3], base_of(p, tensor, b, route, n)
    for i in range(0, rows, 16):
        tiles.sum_lanes(vectors + ROW * i, sums + 4 * i)
    for t in range(steps):
        target = base + v.int_at(places + 4 * t) * stride
        for i in range(unroll):
            value = v.float_at(sums + 4 * (t * unroll + i))
            if accumulate:
                value += v.float_at(target + 4 * i)
            v.set_float(target + 4 * i, value)


@njit
def span(p, b, sequence):
    """First and one past the last step of a sequence."""
    if p[CU_SEQLENS] == 0:
        return 0, p[STEP_COUNT]
    return v.int_at(p[CU_SEQLENS] + 4 * sequence), v.int_at(p[CU_SEQLENS] + 4 * sequence + 4)


def make_forward(unroll: int, key: int) -> Any:
    """The forward kernel for tiles of `unroll` states; `key` stands for the sources and enters numba's cache key."""

    def forward(p, begin, end, chunk, scratch):
        if key < 0:
            return
        states, routes, channels, width = p[STATES], p[ROUTES], p[CHANNELS], p[WIDTH]
        all_blocks = (channels + 15) // 16
        saved_tiles = (p[STEP_COUNT] + STEPS - 1) // STEPS
        places = align(scratch)
        b_rows = align(places + 4 * STEPS)
        c_rows = align(b_rows + 4 * STEPS * states)
        a = align(c_rows + 4 * STEPS * states)
        a2 = a + p[A_ROUTES] * (width // 16) * states * ROW
        bounds = a2 + p[A_ROUTES] * (width // 16) * states * ROW
        h = align(bounds + 4 * p[A_ROUTES] * (width // 16) * states)
        dt_rows = h + (width // 16) * states * ROW
        du_rows = dt_rows + STEPS * ROW
        y_rows = du_rows + STEPS * ROW
        current = -1
        for task in range(begin, end):
            group, entry = task // p[BATCH], task % p[BATCH]
            start = group * width
            blocks = (min(channels - start, width) + 15) // 16
            if group != current:
                load_rates(p, start, blocks, unroll, a, a2, bounds)
                current = group
            for route in range(routes):
                order = p[ORDER] + entry * p[ORDER_BATCH] + route * p[ORDER_ROUTE]
                rates = min(route, p[A_ROUTES] - 1) * blocks * states
                for sequence in range(p[SEQUENCES]):
                    first_step, last_step = span(p, entry, sequence)
                    slot = sequence if p[CU_SEQLENS] != 0 else entry
                    state = 4 * (slot * routes + route) * channels * states
                    initial = p[INITIAL] + state if p[INITIAL] != 0 else 0
                    for block in range(blocks):
                        first = start + block * 16
                        load_state(p, initial, first, min(16, channels - first), h + block * states * ROW)
                    step = first_step
                    while step < last_step:
                        tile_end = min(last_step, (step // STEPS + 1) * STEPS)
                        if p[SAVED] != 0 and step != first_step:
                            kept = ((entry * routes + route) * saved_tiles + step // STEPS) * all_blocks + start // 16
                            copy_rows(h, p[SAVED] + kept * states * ROW, blocks * states)
                        while step < tile_end:
                            steps, step, reset = visits(p, order, step, tile_end, places)
                            if steps > 0:
                                gather_states(p, B, entry, route, places, steps, b_rows)
                                gather_states(p, C, entry, route, places, steps, c_rows)
                                for block in range(blocks):
                                    first = start + block * 16
                                    count = min(16, channels - first)
                                    dt_bound, negative = prepare(
                                        p, entry, route, places, steps, first, count, dt_rows, du_rows, y_rows
                                    )
                                    for n in range(0, states, unroll):
                                        ahead = min(last_step, step + STEPS * n // states)
                                        until = min(last_step, step + STEPS * (n + unroll) // states)
                                        fetch_ahead(p, X, entry, route, order, ahead, until, first)
                                        fetch_ahead(p, DT, entry, route, order, ahead, until, first)
                                        fetch_ahead(p, OUT, entry, route, order, ahead, until, first)
                                        base = rates + block * states + n
                                        path = choose_path(v.float_at(bounds + 4 * base), dt_bound, negative)
                                        b_n, c_n, a_n = b_rows + 4 * n, c_rows + 4 * n, a2 + ROW * base
                                        h_n = h + (block * states + n) * ROW
                                        if unroll == 4:
                                            tiles.forward4(
                                                dt_rows, du_rows, b_n, c_n, 4 * states, a_n, h_n, y_rows, 0, 0, p[TABLE], steps, path
                                            )
                                        elif unroll == 2:
                                            tiles.forward2(
                                                dt_rows, du_rows, b_n, c_n, 4 * states, a_n, h_n, y_rows, 0, 0, p[TABLE], steps, path
                                            )
                                        else:
                                            tiles.forward1(
                                                dt_rows, du_rows, b_n, c_n, 4 * states, a_n, h_n, y_rows, 0, 0, p[TABLE], steps, path
                                            )
                                    finish(p, entry, route, places, steps, first, count, y_rows)
                            if reset:
                                clear(h, blocks * states)
                    for block in range(blocks):
                        first = start + block * 16
                        store_state(p, h + block * states * ROW, first, min(16, channels - first), p[FINAL] + state)

    return forward


def make_backward(unroll: int, key: int) -> Any:
    """The backward kernel for tiles of `unroll` states."""

    def backward(p, begin, end, chunk, scratch):
        if key < 0:
            return
        states, routes, channels, width = p[STATES], p[ROUTES], p[CHANNELS], p[WIDTH]
        all_blocks = (channels + 15) // 16
        most = width // 16
        saved_tiles = (p[STEP_COUNT] + STEPS - 1) // STEPS
        places = align(scratch)
        b_rows = align(places + 4 * STEPS)
        c_rows = align(b_rows + 4 * STEPS * states)
        a = align(c_rows + 4 * STEPS * states)
        a2 = a + p[A_ROUTES] * most * states * ROW
        bounds = a2 + p[A_ROUTES] * most * states * ROW
        h = align(bounds + 4 * p[A_ROUTES] * most * states)
        dt_rows = h + most * states * ROW
        du_rows = dt_rows + most * STEPS * ROW
        dy_rows = du_rows + most * STEPS * ROW
        y_rows = dy_rows + most * STEPS * ROW
        ddt_rows = y_rows + most * STEPS * ROW
        ddu_rows = ddt_rows + most * STEPS * ROW
        dt_bounds = ddu_rows + most * STEPS * ROW
        hs = align(dt_bounds + 8 * most)
        decays = hs + (STEPS + 1) * unroll * ROW
        db = decays + STEPS * unroll * ROW
        dc = db + (STEPS * unroll + 16) * ROW
        sums = dc + (STEPS * unroll + 16) * ROW
        dh = align(sums + 4 * STEPS * unroll + ROW)
        da = dh + most * states * ROW
        dd = da + p[A_ROUTES] * most * states * ROW
        dbias = dd + p[D_ROUTES] * most * ROW
        current = -1
        for task in range(begin, end + 1):
            group = task // p[BATCH] if task < end else -1
            if group != current:
                if current >= 0:  # write what was summed over the batch entries of the group before
                    start = current * width
                    blocks = (min(channels - start, width) + 15) // 16
                    for block in range(blocks):
                        first = start + block * 16
                        count = min(16, channels - first)
                        if p[D_A] != 0:
                            for route in range(p[A_ROUTES]):
                                target = p[D_A] + 4 * (chunk * p[A_ROUTES] + route) * channels * states
                                store_state(p, da + (route * blocks + block) * states * ROW, first, count, target)
                        if p[D_D] != 0:
                            for route in range(p[D_ROUTES]):
                                target = p[D_D] + 4 * ((chunk * p[D_ROUTES] + route) * channels + first)
                                v.store(target, 0, count, v.load32(dd + (route * blocks + block) * ROW))
                        if p[D_BIAS] != 0:
                            for route in range(p[BIAS_ROUTES]):
                                target = p[D_BIAS] + 4 * ((chunk * p[BIAS_ROUTES] + route) * channels + first)
                                v.store(target, 0, count, v.load32(dbias + (route * blocks + block) * ROW))
                if group < 0:
                    return
                start = group * width
                blocks = (min(channels - start, width) + 15) // 16
                load_rates(p, start, blocks, unroll, a, a2, bounds)
                clear(da, p[A_ROUTES] * blocks * states)
                clear(dd, p[D_ROUTES] * blocks)
                clear(dbias, p[BIAS_ROUTES] * blocks)
                current = group
            entry = task % p[BATCH]
            start = group * width
            blocks = (min(channels - start, width) + 15) // 16
            partial = group * p[BATCH] + entry  # of dB and dC: one for each group
            for route in range(routes):
                order = p[ORDER] + entry * p[ORDER_BATCH] + route * p[ORDER_ROUTE]
                rates = min(route, p[A_ROUTES] - 1) * blocks * states
                d_row = dd + min(route, p[D_ROUTES] - 1) * blocks * ROW
                bias_row = dbias + min(route, p[BIAS_ROUTES] - 1) * blocks * ROW
                for sequence in range(p[SEQUENCES]):
                    first_step, last_step = span(p, entry, sequence)
                    slot = sequence if p[CU_SEQLENS] != 0 else entry
                    state = 4 * (slot * routes + route) * channels * states
                    initial = p[INITIAL] + state if p[INITIAL] != 0 else 0
                    d_final = p[D_FINAL] + state if p[D_FINAL] != 0 else 0
                    for block in range(blocks):
                        first = start + block * 16
                        load_state(p, d_final, first, min(16, channels - first), dh + block * states * ROW)
                    tile_end = last_step
                    while tile_end > first_step:
                        tile_start = max(first_step, (tile_end - 1) // STEPS * STEPS)
                        stop = tile_end
                        while stop > tile_start:
                            # the steps since the last reset before `stop`
                            from_step, reset = tile_start, False
                            if p[ORDER] != 0:
                                for k in range(stop - 1, tile_start - 1, -1):
                                    if v.int_at(order + 4 * k) == -2:
                                        from_step, reset = k + 1, True
                                        break
                            steps = visits(p, order, from_step, stop, places)[0]
                            if steps > 0:
                                for block in range(blocks):
                                    first = start + block * 16
                                    count = min(16, channels - first)
                                    target = h + block * states * ROW
                                    if reset:
                                        clear(target, states)
                                    elif tile_start == first_step:
                                        load_state(p, initial, first, count, target)
                                    else:
                                        kept = (entry * routes + route) * saved_tiles + tile_start // STEPS
                                        kept = kept * all_blocks + start // 16 + block
                                        copy_rows(p[SAVED] + kept * states * ROW, target, states)
                                    line = block * STEPS * ROW
                                    dt_bound, negative = prepare(
                                        p, entry, route, places, steps, first, count, dt_rows + line,
                                        du_rows + line, y_rows + line,
                                    )  # fmt: skip
                                    v.set_float(dt_bounds + 8 * block, dt_bound)
                                    v.set_int(dt_bounds + 8 * block + 4, 1 if negative else 0)
                                    prepare_backward(p, entry, route, places, steps, first, count, dy_rows + line)
                                    clear(ddt_rows + line, steps)
                                    clear(ddu_rows + line, steps)
                                gather_states(p, B, entry, route, places, steps, b_rows)
                                gather_states(p, C, entry, route, places, steps, c_rows)
                                for n in range(0, states, unroll):
                                    clear(db, steps * unroll)
                                    clear(dc, steps * unroll)
                                    for block in range(blocks):
                                        ahead = max(first_step, from_step - STEPS + STEPS * n // states)
                                        until = max(first_step, from_step - STEPS + STEPS * (n + unroll) // states)
                                        first = start + block * 16
                                        fetch_ahead(p, X, entry, route, order, ahead, until, first)
                                        fetch_ahead(p, DT, entry, route, order, ahead, until, first)
                                        fetch_ahead(p, DOUT, entry, route, order, ahead, until, first)
                                        if p[DX] != 0:
                                            fetch_ahead(p, DX, entry, route, order, ahead, until, first)
                                        if p[DDT] != 0:
                                            fetch_ahead(p, DDT, entry, route, order, ahead, until, first)
                                        base = rates + block * states + n
                                        path = choose_path(
                                            v.float_at(bounds + 4 * base),
                                            v.float_at(dt_bounds + 8 * block),
                                            v.int_at(dt_bounds + 8 * block + 4) != 0,
                                        )
                                        line, at = block * STEPS * ROW, (block * states + n) * ROW
                                        dt_b, du_b, dy_b, y_b = dt_rows + line, du_rows + line, dy_rows + line, y_rows + line
                                        ddt_b, ddu_b = ddt_rows + line, ddu_rows + line
                                        b_n, c_n, row = b_rows + 4 * n, c_rows + 4 * n, 4 * states
                                        a_n, a2_n, da_n = a + ROW * base, a2 + ROW * base, da + ROW * base
                                        if unroll == 4:
                                            if p[DZ] != 0:
                                                tiles.gated_recompute4(
                                                    dt_b, du_b, b_n, c_n, row, a2_n, h + at, y_b, hs, decays, p[TABLE], steps, path
                                                )
                                            else:
                                                tiles.recompute4(
                                                    dt_b, du_b, b_n, c_n, row, a2_n, h + at, y_b, hs, decays, p[TABLE], steps, path
                                                )
                                            tiles.backward4(
                                                dt_b, du_b, dy_b, b_n, c_n, row, a_n, dh + at, da_n, hs, decays, ddt_b,
                                                ddu_b, db, dc, steps
                                            )  # fmt: skip
                                        elif unroll == 2:
                                            if p[DZ] != 0:
                                                tiles.gated_recompute2(
                                                    dt_b, du_b, b_n, c_n, row, a2_n, h + at, y_b, hs, decays, p[TABLE], steps, path
                                                )
                                            else:
                                                tiles.recompute2(
                                                    dt_b, du_b, b_n, c_n, row, a2_n, h + at, y_b, hs, decays, p[TABLE], steps, path
                                                )
                                            tiles.backward2(
                                                dt_b, du_b, dy_b, b_n, c_n, row, a_n, dh + at, da_n, hs, decays, ddt_b,
                                                ddu_b, db, dc, steps
                                            )  # fmt: skip
                                        else:
                                            if p[DZ] != 0:
                                                tiles.gated_recompute1(
                                                    dt_b, du_b, b_n, c_n, row, a2_n, h + at, y_b, hs, decays, p[TABLE], steps, path
                                                )
                                            else:
                                                tiles.recompute1(
                                                    dt_b, du_b, b_n, c_n, row, a2_n, h + at, y_b, hs, decays, p[TABLE], steps, path
                                                )
                                            tiles.backward1(
                                                dt_b, du_b, dy_b, b_n, c_n, row, a_n, dh + at, da_n, hs, decays, ddt_b,
                                                ddu_b, db, dc, steps
                                            )  # fmt: skip
                                    if p[DB] != 0:
                                        add_states(
                                            p, DB, partial, route, places, steps, n, unroll, db, sums, p[ADD_B] != 0
                                        )
                                    if p[DC] != 0:
                                        add_states(
                                            p, DC, partial, route, places, steps, n, unroll, dc, sums, p[ADD_C] != 0
                                        )
                                for block in range(blocks):
                                    first = start + block * 16
                                    count = min(16, channels - first)
                                    line = block * STEPS * ROW
                                    finish_backward(
                                        p, entry, route, places, steps, first, count, dt_rows + line, dy_rows + line,
                                        ddt_rows + line, ddu_rows + line, d_row + block * ROW, bias_row + block * ROW,
                                    )  # fmt: skip
                                    if p[DZ] != 0:
                                        gate_gradient(
                                            p, entry, route, places, steps, first, count, y_rows + line
                                        )
                            if reset:
                                clear(dh, blocks * states)
                                stop = from_step - 1
                            else:
                                stop = tile_start
                        tile_end = tile_start
                    if p[D_INITIAL] != 0:
                        for block in range(blocks):
                            first = start + block * 16
                            source = dh + block * states * ROW
                            store_state(p, source, first, min(16, channels - first), p[D_INITIAL] + state)

    return backward
