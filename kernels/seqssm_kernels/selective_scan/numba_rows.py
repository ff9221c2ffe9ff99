"""Code shared by the two kernels of the CPU scan: scratch memory, and the loops that prepare and finish a tile.

A block is 16 channels; a row is their 64 bytes of float32. The array `p` of a call is that of `cpu.rows`.
"""

from __future__ import annotations

from functools import cache

from numba import njit

from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu import rows as k
from seqssm_kernels.cpu import tiles
from seqssm_kernels.cpu.lanes import ROW
from seqssm_kernels.cpu.tiles import STEPS

LOG2_E = 1.4426950408889634

# Byte offsets into scratch memory. Rows of B, C; A, A log2 e and its bounds [route][block][state]; states
# [block][state]; rows [block][step]; rows of a tile [step][state]; sums over the batch.
(S_PLACES, S_B, S_C, S_A, S_A2, S_BOUNDS, S_H, S_DT, S_DU, S_Y) = range(k.OFFSETS, k.OFFSETS + 10)
(S_DY, S_DDT, S_DDU, S_DT_BOUNDS, S_HS, S_DECAYS, S_DB, S_DC, S_SUMS, S_DH, S_DA, S_DD, S_DBIAS) = range(
    k.OFFSETS + 10, k.OFFSETS + 23
)


@cache
def scratch_layout(
    width: int, states: int, a_routes: int, d_routes: int, bias_routes: int, unroll: int, backward: bool
) -> tuple[list[int], int]:
    """Offsets into a thread's scratch memory, for a call's array from S_PLACES on, and its size in bytes."""
    blocks = width // v.LANES
    rates = a_routes * blocks * states
    tile = STEPS * unroll
    sizes = {S_PLACES: 4 * STEPS, S_B: 4 * STEPS * states, S_C: 4 * STEPS * states}
    sizes |= {S_A: rates * ROW, S_A2: rates * ROW, S_BOUNDS: 4 * rates, S_H: blocks * states * ROW}
    sizes |= dict.fromkeys((S_DT, S_DU, S_Y), (blocks if backward else 1) * STEPS * ROW)
    if backward:
        sizes |= dict.fromkeys((S_DY, S_DDT, S_DDU), blocks * STEPS * ROW)
        sizes |= {S_DT_BOUNDS: 8 * blocks, S_HS: (tile + unroll) * ROW, S_DECAYS: tile * ROW}
        sizes |= {S_DB: (tile + v.LANES) * ROW, S_DC: (tile + v.LANES) * ROW, S_SUMS: 4 * tile + ROW}
        sizes |= {S_DH: blocks * states * ROW, S_DA: rates * ROW}
        sizes |= {S_DD: d_routes * blocks * ROW, S_DBIAS: bias_routes * blocks * ROW}
    offsets, end = [0] * (k.LENGTH - S_PLACES), 0
    for part, size in sizes.items():
        offsets[part - S_PLACES] = end
        end += -(-size // ROW) * ROW
    return offsets, end + ROW  # padding to align the first rows


@njit
def load_rates(p, scratch, group_start, blocks, unroll):
    """Load A of a group as rows [route][block][state] of 16 channels, and times log2 e.

    And the largest |A2| of each tile, negated if some A is positive.
    """
    states, channels = p[k.STATES], p[k.CHANNELS]
    a, a2, bounds = scratch + p[S_A], scratch + p[S_A2], scratch + p[S_BOUNDS]
    for route in range(p[k.A_ROUTES]):
        for block in range(blocks):
            first = group_start + block * 16
            count = min(16, channels - first)
            base = (route * blocks + block) * states
            for n in range(states):
                source = p[k.A] + route * p[k.A_ROUTE] + first * p[k.A_CHANNEL] + n * p[k.A_STATE]
                row = a + (base + n) * ROW
                k.clear(row, 1)
                for lane in range(count):
                    v.set_float(row + 4 * lane, v.float_at(source + lane * p[k.A_CHANNEL]))
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
def choose_path(bound, dt_bound, dt_negative):
    """Select the exponential for a tile by its largest |A2| (at the address `bound`) and |dt|, and by their signs."""
    rate_bound = v.float_at(bound)
    largest = abs(rate_bound) * dt_bound
    if rate_bound >= 0.0 and not dt_negative:
        if largest <= 1.0:
            return tiles.UNIT
        if largest <= 2.0:
            return tiles.DOUBLE
        if largest <= 3.0:
            return tiles.TRIPLE
    if largest <= 125.0:
        return tiles.WIDE
    return tiles.ANY


@njit
def gather_states(p, tensor, b, route, places, count, target):
    """Load consecutive rows of B or C as float32."""
    states, kind, stride, base = p[k.STATES], p[tensor + 1], p[tensor + 3], k.base_of(p, tensor, b, route, 0)
    size, scales = k.size_of(kind), k.B_SCALE if tensor == k.B else k.C_SCALE
    for n in range(0, states, 16):
        lanes = min(16, states - n)
        scale = k.vector_of(p[scales], route, p[scales + 1], n, lanes)
        for t in range(count):
            source = base + v.int_at(places + 4 * t) * stride + size * n
            v.store(target + 4 * (t * states + n), 0, lanes, k.load_values(source, kind, lanes, scale))


@njit
def load_state(p, address, first, count, target):
    """Load a state (channels, N) as rows [state] of 16 channels; zero if `address` is 0."""
    states = p[k.STATES]
    k.clear(target, states)
    if address != 0:
        for lane in range(count):
            source = address + 4 * (first + lane) * states
            for n in range(states):
                v.set_float(target + ROW * n + 4 * lane, v.float_at(source + 4 * n))


@njit
def store_state(p, source, first, count, address):
    states = p[k.STATES]
    for lane in range(count):
        target = address + 4 * (first + lane) * states
        for n in range(states):
            v.set_float(target + 4 * n, v.float_at(source + ROW * n + 4 * lane))


@njit
def prepare(p, b, route, places, steps, first, count, dt_rows, du_rows, y_rows):
    """Write dt, dt x and D x (the initial y) of a tile's block to scratch.

    Return the largest |dt| and whether any dt is negative.
    """
    x, x_stride, x_kind = k.base_of(p, k.X, b, route, first), p[k.X + 3], p[k.X + 1]
    raw, raw_stride, raw_kind = k.base_of(p, k.DT, b, route, first), p[k.DT + 3], p[k.DT + 1]
    has_bias, has_skip, softplus = p[k.BIAS] != 0, p[k.D] != 0, p[k.SOFTPLUS] != 0
    bias = k.vector_of(p[k.BIAS], route, p[k.BIAS_ROUTE], first, count)
    skip = k.vector_of(p[k.D], route, p[k.D_ROUTE], first, count)
    scale = k.vector_of(p[k.X_SCALE], route, p[k.X_SCALE_ROUTE], first, count)
    largest = v.broadcast(0.0)
    signs = v.broadcast(0.0)
    for t in range(steps):
        place = v.int_at(places + 4 * t)
        dt = v.load(raw + place * raw_stride, raw_kind, count)
        if has_bias:
            dt = v.add(dt, bias)
        if softplus:
            dt = v.softplus(dt)
        x_t = k.load_values(x + place * x_stride, x_kind, count, scale)
        v.store32(dt_rows + ROW * t, dt)
        v.store32(du_rows + ROW * t, v.multiply(dt, x_t))
        v.store32(y_rows + ROW * t, v.multiply(skip, x_t) if has_skip else v.broadcast(0.0))
        largest = v.larger_bits(largest, v.magnitude(dt))
        signs = v.either_bits(signs, dt)
    return v.largest_bits(largest), v.any_negative(signs)


@njit
def finish(p, b, route, places, steps, first, count, y_rows):
    """Write the rows of `out`: y with the gate applied."""
    z, z_stride, z_kind, gated = k.base_of(p, k.Z, b, route, first), p[k.Z + 3], p[k.Z + 1], p[k.Z] != 0
    out, out_stride, out_kind = k.base_of(p, k.OUT, b, route, first), p[k.OUT + 3], p[k.OUT + 1]
    for t in range(steps):
        place = v.int_at(places + 4 * t)
        y = v.load32(y_rows + ROW * t)
        if gated:
            gate = v.load(z + place * z_stride, z_kind, count)
            y = v.multiply(y, v.multiply(gate, v.sigmoid(gate)))
        v.store(out + place * out_stride, out_kind, count, y)


@njit
def prepare_backward(p, b, route, places, steps, first, count, dy_rows):
    """Compute the gradient of y of a tile's block: dout times the gate."""
    z, z_stride, z_kind, gated = k.base_of(p, k.Z, b, route, first), p[k.Z + 3], p[k.Z + 1], p[k.Z] != 0
    dout, dout_stride, dout_kind = k.base_of(p, k.DOUT, b, route, first), p[k.DOUT + 3], p[k.DOUT + 1]
    for t in range(steps):
        place = v.int_at(places + 4 * t)
        dy = v.load(dout + place * dout_stride, dout_kind, count)
        if gated:
            gate = v.load(z + place * z_stride, z_kind, count)
            dy = v.multiply(dy, v.multiply(gate, v.sigmoid(gate)))
        v.store32(dy_rows + ROW * t, dy)


@njit
def finish_backward(p, b, route, places, steps, first, count, dt_rows, dy_rows, ddt_rows, ddu_rows, dd, dbias):
    """Compute dx and ddt of a tile's block, and its contribution to the gradients of D and dt_bias."""
    skip = k.vector_of(p[k.D], route, p[k.D_ROUTE], first, count)
    bias = k.vector_of(p[k.BIAS], route, p[k.BIAS_ROUTE], first, count)
    x, x_stride, x_kind = k.base_of(p, k.X, b, route, first), p[k.X + 3], p[k.X + 1]
    raw, raw_stride, raw_kind = k.base_of(p, k.DT, b, route, first), p[k.DT + 3], p[k.DT + 1]
    dx, dx_stride, dx_kind = k.base_of(p, k.DX, b, route, first), p[k.DX + 3], p[k.DX + 1]
    ddt, ddt_stride, ddt_kind = k.base_of(p, k.DDT, b, route, first), p[k.DDT + 3], p[k.DDT + 1]
    softplus, wants_x, wants_dt, add_x, add_dt = (
        p[k.SOFTPLUS] != 0,
        p[k.DX] != 0,
        p[k.DDT] != 0,
        p[k.ADD_X] != 0,
        p[k.ADD_DT] != 0,
    )
    d_sum, bias_sum = v.load32(dd), v.load32(dbias)
    for t in range(steps):
        place = v.int_at(places + 4 * t)
        x_t = v.load(x + place * x_stride, x_kind, count)
        dy = v.load32(dy_rows + ROW * t)
        ddu = v.load32(ddu_rows + ROW * t)
        ddt_t = v.multiply_add(ddu, x_t, v.load32(ddt_rows + ROW * t))
        if softplus:
            raw_t = v.add(v.load(raw + place * raw_stride, raw_kind, count), bias)
            ddt_t = v.multiply(ddt_t, v.sigmoid(raw_t))
        d_sum = v.multiply_add(dy, x_t, d_sum)
        bias_sum = v.add(bias_sum, ddt_t)
        if wants_x:
            dx_t = v.multiply_add(ddu, v.load32(dt_rows + ROW * t), v.multiply(skip, dy))
            k.put_row(dx + place * dx_stride, dx_kind, count, dx_t, add_x)
        if wants_dt:
            k.put_row(ddt + place * ddt_stride, ddt_kind, count, ddt_t, add_dt)
    v.store32(dd, d_sum)
    v.store32(dbias, bias_sum)


@njit
def gate_gradient(p, b, route, places, steps, first, count, y_rows):
    """Compute dz of a tile's block: dout y (silu)'(z)."""
    one = v.broadcast(1.0)
    z, z_stride, z_kind = k.base_of(p, k.Z, b, route, first), p[k.Z + 3], p[k.Z + 1]
    dz, dz_stride, dz_kind, add_z = k.base_of(p, k.DZ, b, route, first), p[k.DZ + 3], p[k.DZ + 1], p[k.ADD_Z] != 0
    dout, dout_stride, dout_kind = k.base_of(p, k.DOUT, b, route, first), p[k.DOUT + 3], p[k.DOUT + 1]
    for t in range(steps):
        place = v.int_at(places + 4 * t)
        z_t = v.load(z + place * z_stride, z_kind, count)
        gate = v.sigmoid(z_t)
        slope = v.multiply(gate, v.multiply_add(z_t, v.subtract(one, gate), one))
        dy = v.load(dout + place * dout_stride, dout_kind, count)
        k.put_row(
            dz + place * dz_stride, dz_kind, count, v.multiply(dy, v.multiply(v.load32(y_rows + ROW * t), slope)), add_z
        )


@njit
def add_states(p, tensor, b, route, places, steps, n, unroll, vectors, sums, accumulate):
    """Add the lane sums of `vectors` [t][unroll] to states n.. of the rows of dB or dC."""
    rows, stride, base = steps * unroll, p[tensor + 3], k.base_of(p, tensor, b, route, n)
    for i in range(0, rows, 16):
        tiles.sum_lanes(vectors + ROW * i, sums + 4 * i)
    for t in range(steps):
        target = base + v.int_at(places + 4 * t) * stride
        if unroll == 4:
            if accumulate:
                tiles.add_four(sums + 16 * t, target)
            else:
                tiles.set_four(sums + 16 * t, target)
            continue
        for i in range(unroll):
            value = v.float_at(sums + 4 * (t * unroll + i))
            if accumulate:
                value += v.float_at(target + 4 * i)
            v.set_float(target + 4 * i, value)


@njit
def load_states(p, address, group_start, blocks, target):
    """Load the states of a group, (channels, N), as rows [block][state]; zero if `address` is 0."""
    for block in range(blocks):
        first, count = k.block_channels(p, group_start, block)
        load_state(p, address, first, count, target + block * p[k.STATES] * ROW)


@njit
def store_states(p, source, group_start, blocks, address):
    for block in range(blocks):
        first, count = k.block_channels(p, group_start, block)
        store_state(p, source + block * p[k.STATES] * ROW, first, count, address)


@njit
def saved_state(p, entry, route, step, group_start):
    """Address of the saved states [block][state] of a group before `step`."""
    tiles_kept = (p[k.STEP_COUNT] + STEPS - 1) // STEPS
    kept = ((entry * p[k.ROUTES] + route) * tiles_kept + step // STEPS) * ((p[k.CHANNELS] + 15) // 16)
    return p[k.SAVED] + (kept + group_start // 16) * p[k.STATES] * ROW
