"""The backward kernel of the CPU engine's Mamba-2 scan: the tiles of the forward pass in reverse.

For each head of a tile, from the saved state before it: a sweep with lanes over states gives the head's dC, and a
second one with lanes over channels gives y if the gate needs it; then two sweeps in reverse give dB and du. With dl the
gradient of dt A, `dl[t] = dl[t+1] + y[t] dy[t] - u[t] du[t]`, where y dy = C dC of the head. At both ends of each run
of steps dl is the product of the state there and that state's gradient. Differences are therefore accumulated over
short runs only, and the residual at the end is distributed over the run.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu import rows as k
from seqssm_kernels.cpu.lanes import ROW
from seqssm_kernels.ssd_scan import numba_rows as r
from seqssm_kernels.ssd_scan.numba_tiles import BLOCK, STEPS


@njit
def last_reset(p, order, begin, end):
    """Step after the last reset in [begin, end), or -1 if there is none."""
    if p[k.ORDER] != 0:
        for step in range(end - 1, begin - 1, -1):
            if v.int_at(order + 4 * step) == -2:
                return step + 1
    return -1


@njit
def prepare_gradients(p, scratch, entry, route, places, steps, head):
    """Compute the rows c dy of a head, where dy is the gradient of y: dout times the gate."""
    channels, cum = p[r.HEAD_DIM], scratch + p[r.S_CUM]
    z, z_stride, z_kind = k.base_of(p, k.Z, entry, route, head * channels), p[k.Z + 3], p[k.Z + 1]
    dout, stride, kind = k.base_of(p, k.DOUT, entry, route, head * channels), p[k.DOUT + 3], p[k.DOUT + 1]
    size, gated = 4 if kind == 0 else 2, p[k.Z] != 0
    for first in range(0, channels, 16):
        count, rows = min(16, channels - first), scratch + p[r.S_V] + first // 16 * BLOCK
        for t in range(steps):
            place = v.int_at(places + 4 * t)
            dy = v.load(dout + place * stride + size * first, kind, count)
            if gated:
                gate = v.load(z + place * z_stride + size * first, z_kind, count)
                dy = v.multiply(dy, v.multiply(gate, v.sigmoid(gate)))
            v.store32(rows + ROW * t, v.multiply(dy, v.broadcast(v.float_at(cum + 4 * t))))


@njit
def dot(a, b, rows):
    """Inner product of two states."""
    total = v.broadcast(0.0)
    for i in range(rows):
        total = v.multiply_add(v.load32(a + ROW * i), v.load32(b + ROW * i), total)
    return v.lane_sum(total)


@njit
def add_float(address, value):
    v.set_float(address, v.float_at(address) + value)


@njit
def add_products(rows, others, blocks, steps, products, sign):
    """Add the products of rows, by step and lane."""
    for t in range(steps):
        total = v.load32(products + ROW * t)
        for block in range(blocks):
            offset = block * BLOCK + ROW * t
            total = v.multiply_add(v.multiply(v.load32(rows + offset), sign), v.load32(others + offset), total)
        v.store32(products + ROW * t, total)


@njit
def finish_inputs(p, scratch, entry, route, places, steps, head, w, part):
    """Compute dx of a head, its contribution to dD, and the rows of x du summed over the blocks of channels."""
    channels = p[r.HEAD_DIM]
    x, x_stride, x_kind = k.base_of(p, k.X, entry, route, head * channels), p[k.X + 3], p[k.X + 1]
    dx, dx_stride, dx_kind = k.base_of(p, k.DX, entry, route, head * channels), p[k.DX + 3], p[k.DX + 1]
    x_size, dx_size, wanted, add = 4 if x_kind == 0 else 2, 4 if dx_kind == 0 else 2, p[k.DX] != 0, p[k.ADD_X] != 0
    inverse, products, has_skip = scratch + p[r.S_INVERSE], scratch + p[r.S_PRODUCTS], p[k.D_D] != 0
    skips = p[k.D_D] + 4 * ((part * p[k.D_ROUTES] + min(route, p[k.D_ROUTES] - 1)) * p[r.HEADS] + head) * p[r.D_SIZE]
    k.clear(products, steps)
    for first in range(0, channels, 16):
        count, block = min(16, channels - first), first // 16 * BLOCK
        dus, dys = scratch + p[r.S_DU] + block, scratch + p[r.S_V] + block
        skip, dskip = r.skip_of(p, route, head, first, count), v.broadcast(0.0)
        for t in range(steps):
            place, scale = v.int_at(places + 4 * t), v.broadcast(v.float_at(inverse + 4 * t))
            x_t = v.load(x + place * x_stride + x_size * first, x_kind, count)
            du, dy = v.multiply(v.load32(dus + ROW * t), scale), v.multiply(v.load32(dys + ROW * t), scale)
            v.store32(products + ROW * t, v.multiply_add(x_t, du, v.load32(products + ROW * t)))
            dskip = v.multiply_add(x_t, dy, dskip)
            if wanted:
                dx_t = v.multiply_add(du, v.broadcast(v.float_at(w + ROW * t)), v.multiply(skip, dy))
                k.put_row(dx + place * dx_stride + dx_size * first, dx_kind, count, dx_t, add)
        if has_skip:
            if p[r.D_SIZE] == 1:
                add_float(skips, v.lane_sum(dskip))
            else:
                k.put_row(skips + 4 * first, 0, count, dskip, True)


@njit
def gate_gradient(p, scratch, entry, route, places, steps, head):
    """Compute dz of a head: dout y (silu)'(z)."""
    channels, one, cum = p[r.HEAD_DIM], v.broadcast(1.0), scratch + p[r.S_CUM]
    x, x_stride, x_kind = k.base_of(p, k.X, entry, route, head * channels), p[k.X + 3], p[k.X + 1]
    z, z_stride = k.base_of(p, k.Z, entry, route, head * channels), p[k.Z + 3]
    dz, dz_stride, dz_kind = k.base_of(p, k.DZ, entry, route, head * channels), p[k.DZ + 3], p[k.DZ + 1]
    dout, stride = k.base_of(p, k.DOUT, entry, route, head * channels), p[k.DOUT + 3]
    size, dz_size, add = 4 if x_kind == 0 else 2, 4 if dz_kind == 0 else 2, p[k.ADD_Z] != 0
    for first in range(0, channels, 16):
        count, rows = min(16, channels - first), scratch + p[r.S_Y] + first // 16 * BLOCK
        skip = r.skip_of(p, route, head, first, count)
        for t in range(steps):
            place = v.int_at(places + 4 * t)
            x_t = v.load(x + place * x_stride + size * first, x_kind, count)
            y = v.multiply(v.load32(rows + ROW * t), v.broadcast(v.float_at(cum + 4 * t)))
            y = v.multiply_add(skip, x_t, y)
            z_t = v.load(z + place * z_stride + size * first, x_kind, count)
            gate = v.sigmoid(z_t)
            slope = v.multiply(gate, v.multiply_add(z_t, v.subtract(one, gate), one))
            dy = v.load(dout + place * stride + size * first, x_kind, count)
            k.put_row(
                dz + place * dz_stride + dz_size * first, dz_kind, count, v.multiply(v.multiply(dy, y), slope), add
            )


@njit
def finish_decays(p, scratch, route, head, column, runs, part):
    """Compute ddt (before softplus) and dw of a head, and its contribution to dA."""
    products, sums, dt = scratch + p[r.S_SUMS], scratch + p[r.S_FRACTION], scratch + p[r.S_DT] + column
    ddt, dw, starts = scratch + p[r.S_DDT] + column, scratch + p[r.S_DW] + column, scratch + p[r.S_RUNS]
    rate, total = v.float_at(p[k.A] + route * p[k.A_ROUTE] + 4 * head), 0.0
    weighted = p[r.W] != 0
    for run in range(runs):
        begin, end = v.int_at(starts + 4 * run), v.int_at(starts + 4 * run + 4)
        at_end, size = v.float_at(scratch + p[r.S_ENDS] + 4 * run) * 1.0, 0.0
        missing = v.float_at(scratch + p[r.S_WHOLE] + 4 * run) - at_end
        for t in range(begin, end):
            change = v.float_at(sums + 4 * t)
            missing -= change
            size += abs(change)
        # rounding errors are in proportion to the summands, so zeros stay exactly zero
        correction, of_decay = missing / size if size > 0.0 else 0.0, at_end
        for t in range(end - 1, begin - 1, -1):
            change = v.float_at(sums + 4 * t)
            of_decay += change + correction * abs(change)
            total += of_decay * v.float_at(dt + ROW * t)
            of_input = v.float_at(products + 4 * t)
            v.set_float(dw + ROW * t, of_input)
            v.set_float(ddt + ROW * t, rate * of_decay + (0.0 if weighted else of_input))
    if p[k.D_A] != 0:
        route = min(route, p[k.A_ROUTES] - 1)
        add_float(p[k.D_A] + 4 * ((part * p[k.A_ROUTES] + route) * p[r.HEADS] + head), total)


@njit
def finish_heads(p, scratch, entry, route, places, steps, start, heads, part):
    """Write the rows of ddt and dw of the heads of a task, and add their contribution to the gradient of dt_bias."""
    raw, raw_stride, raw_kind = k.base_of(p, k.DT, entry, route, start), p[k.DT + 3], p[k.DT + 1]
    ddt, ddt_stride, ddt_kind = k.base_of(p, k.DDT, entry, route, start), p[k.DDT + 3], p[k.DDT + 1]
    dw, dw_stride, dw_kind = k.base_of(p, r.DW, entry, route, start), p[r.DW + 3], p[r.DW + 1]
    raw_size, ddt_size, dw_size = 4 if raw_kind == 0 else 2, 4 if ddt_kind == 0 else 2, 4 if dw_kind == 0 else 2
    softplus, wants_dt, wants_w = p[k.SOFTPLUS] != 0, p[k.DDT] != 0, p[r.DW] != 0
    add_dt, add_w, of_bias = p[k.ADD_DT] != 0, p[r.ADD_W] != 0, min(route, p[k.BIAS_ROUTES] - 1)
    for first in range(0, heads, 16):
        count, block = min(16, heads - first), first // 16 * BLOCK
        bias, total = k.vector_of(p[k.BIAS], route, p[k.BIAS_ROUTE], start + first, count), v.broadcast(0.0)
        for t in range(steps):
            place = v.int_at(places + 4 * t)
            grad = v.load32(scratch + p[r.S_DDT] + block + ROW * t)
            if softplus:
                dt = v.load(raw + place * raw_stride + raw_size * first, raw_kind, count)
                grad = v.multiply(grad, v.sigmoid(v.add(dt, bias)))
            total = v.add(total, grad)
            if wants_dt:
                k.put_row(ddt + place * ddt_stride + ddt_size * first, ddt_kind, count, grad, add_dt)
            if wants_w:
                grad = v.load32(scratch + p[r.S_DW] + block + ROW * t)
                k.put_row(dw + place * dw_stride + dw_size * first, dw_kind, count, grad, add_w)
        if p[k.D_BIAS] != 0:
            target = p[k.D_BIAS] + 4 * ((part * p[k.BIAS_ROUTES] + of_bias) * p[r.HEADS] + start + first)
            k.put_row(target, 0, count, total, True)


@njit
def put_group(p, tensor, partial, route, places, steps, group, rows, add):
    """Write rows of dB or dC of a group."""
    states, stride = p[k.STATES], p[tensor + 3]
    base = k.base_of(p, tensor, partial, route, group * states)
    for n in range(0, states, 16):
        count, block = min(16, states - n), rows + n // 16 * BLOCK
        for t in range(steps):
            target = base + v.int_at(places + 4 * t) * stride + 4 * n
            k.put_row(target, 0, count, v.load32(block + ROW * t), add)


@njit
def sweep_forward(p, scratch, la, runs, state_size):
    """Compute dC of a head, y if the gate needs it, and the states at the starts of runs, from those in HT and H."""
    of_channels, of_states = r.padded(p[r.HEAD_DIM]) // 64, r.padded(p[k.STATES]) // 64
    p_rows, n_rows = (p[r.HEAD_DIM] + 3) // 4 * 4, (p[k.STATES] + 3) // 4 * 4
    ht, h = scratch + p[r.S_HT], scratch + p[r.S_H]
    for run in range(runs):
        begin = v.int_at(scratch + p[r.S_RUNS] + 4 * run)
        end = v.int_at(scratch + p[r.S_RUNS] + 4 * run + 4)
        line, steps = scratch + ROW * begin, end - begin
        before, after = r.decay_of(la, begin), v.float_at(scratch + p[r.S_CUM] + 4 * (end - 1))
        k.copy_rows(ht, scratch + p[r.S_MARKS] + run * state_size, state_size // 64)
        u, y, b, c = line + p[r.S_U], line + p[r.S_Y], line + p[r.S_B], line + p[r.S_C]
        r.sweep(b, line + p[r.S_DCH], u, line + p[r.S_V], ht, p_rows, of_states, steps, before, after, False)
        if p[k.DZ] != 0:
            r.sweep(u, y, b, c, h, n_rows, of_channels, steps, before, after, False)


@njit
def sweep_back(p, scratch, la, runs, kn, kp, state_size):
    """Compute dB and du of a head, and the gradient of the decay at the starts of runs."""
    of_channels, of_states = r.padded(p[r.HEAD_DIM]) // 64, r.padded(p[k.STATES]) // 64
    p_rows, n_rows = (p[r.HEAD_DIM] + 3) // 4 * 4, (p[k.STATES] + 3) // 4 * 4
    for run in range(runs - 1, -1, -1):
        begin = v.int_at(scratch + p[r.S_RUNS] + 4 * run)
        end = v.int_at(scratch + p[r.S_RUNS] + 4 * run + 4)
        line, steps = scratch + ROW * begin, end - begin
        before, after = v.float_at(scratch + p[r.S_CUM] + 4 * (end - 1)), r.decay_of(la, begin)
        u, gradient, b, c = line + p[r.S_U], line + p[r.S_V], line + p[r.S_B], line + p[r.S_C]
        behind = scratch + (p[r.S_HT] if run == runs - 1 else p[r.S_MARKS] + (run + 1) * state_size)
        v.set_float(scratch + p[r.S_ENDS] + 4 * run, dot(kn, behind, p_rows * of_states))
        r.sweep(c, line + p[r.S_DB], gradient, u, kn, p_rows, of_states, steps, before, after, True)
        r.sweep(gradient, line + p[r.S_DU], c, b, kp, n_rows, of_channels, steps, before, after, True)
        product = dot(kn, scratch + p[r.S_MARKS] + run * state_size, p_rows * of_states)
        v.set_float(scratch + p[r.S_WHOLE] + 4 * run, product)


@njit
def run_head(p, scratch, entry, route, places, steps, head, column, kn, kp, state_size, part):
    """Process a tile of one head in reverse; the state before the tile is in HT."""
    la, w = scratch + p[r.S_LA] + column, scratch + p[r.S_W] + column
    of_channels, of_states = r.padded(p[r.HEAD_DIM]) // 64, r.padded(p[k.STATES]) // 64
    runs = r.divide_into_runs(p, scratch, la, steps, r.STRONG, r.LONGEST)
    r.prepare_inputs(p, scratch, entry, route, places, steps, head, w)
    prepare_gradients(p, scratch, entry, route, places, steps, head)
    r.clear_blocks(scratch + p[r.S_DU], of_channels, steps)
    r.clear_blocks(scratch + p[r.S_DCH], of_states, steps)
    if p[k.DZ] != 0:
        r.clear_blocks(scratch + p[r.S_Y], of_channels, steps)
        r.transpose(scratch + p[r.S_HT], 16 * of_channels, 16 * of_states, scratch + p[r.S_H])
    sweep_forward(p, scratch, la, runs, state_size)
    sweep_back(p, scratch, la, runs, kn, kp, state_size)

    products, one = scratch + p[r.S_PRODUCTS], v.broadcast(1.0)
    k.clear(products, steps)
    add_products(scratch + p[r.S_C], scratch + p[r.S_DCH], of_states, steps, products, one)
    add_products(
        scratch + p[r.S_U], scratch + p[r.S_DU], of_channels, steps, products, v.subtract(v.broadcast(0.0), one)
    )
    r.sum_rows(products, steps, scratch + p[r.S_FRACTION])
    for block in range(of_states):
        for t in range(steps):
            offset = block * BLOCK + ROW * t
            total = v.add(v.load32(scratch + p[r.S_DC] + offset), v.load32(scratch + p[r.S_DCH] + offset))
            v.store32(scratch + p[r.S_DC] + offset, total)
    finish_inputs(p, scratch, entry, route, places, steps, head, w, part)
    r.sum_rows(products, steps, scratch + p[r.S_SUMS])
    finish_decays(p, scratch, route, head, column, runs, part)
    if p[k.DZ] != 0:
        gate_gradient(p, scratch, entry, route, places, steps, head)


@njit
def run_tile(p, scratch, entry, route, places, steps, start, heads, kept, initial, partial, part):
    """Process a tile of the heads of a task; `kept` or `initial` is the address of the states before it."""
    lanes_p, lanes_n = r.padded(p[r.HEAD_DIM]) // 4, r.padded(p[k.STATES]) // 4
    size, per_group = 4 * lanes_p * lanes_n, p[r.HEADS] // p[r.GROUPS]
    r.prepare_heads(p, scratch, entry, route, places, steps, start, heads)
    for i in range(heads):
        head, ht = start + i, scratch + p[r.S_HT]
        group = head // per_group
        if i == 0 or head % per_group == 0:
            r.gather_states(p, k.B, entry, route, places, steps, group, scratch + p[r.S_B])
            r.gather_states(p, k.C, entry, route, places, steps, group, scratch + p[r.S_C])
            r.clear_blocks(scratch + p[r.S_DB], lanes_n // 16, steps)
            r.clear_blocks(scratch + p[r.S_DC], lanes_n // 16, steps)
        if kept != 0:
            r.transpose(kept + i * size, lanes_n, lanes_p, ht)
        else:
            r.load_state(p, initial, head, ht)
        kn, kp = scratch + p[r.S_KN] + i * size, scratch + p[r.S_KP] + i * size
        run_head(p, scratch, entry, route, places, steps, head, r.column(i), kn, kp, size, part)
        if i == heads - 1 or (head + 1) % per_group == 0:
            if p[k.DB] != 0:
                put_group(p, k.DB, partial, route, places, steps, group, scratch + p[r.S_DB], p[k.ADD_B] != 0)
            if p[k.DC] != 0:
                put_group(p, k.DC, partial, route, places, steps, group, scratch + p[r.S_DC], p[k.ADD_C] != 0)
    finish_heads(p, scratch, entry, route, places, steps, start, heads, part)


def make_backward(key: int) -> Any:
    """Return the backward kernel; `key` is the checksum of the sources and becomes part of numba's cache key."""

    def backward(p, begin, end, part, scratch):
        if key < 0:
            return
        scratch = k.align(scratch)
        places = scratch + p[r.S_PLACES]
        lanes_p, lanes_n = r.padded(p[r.HEAD_DIM]) // 4, r.padded(p[k.STATES]) // 4
        size, per_group = 4 * lanes_p * lanes_n, p[r.HEADS] // p[r.GROUPS]
        for task in range(begin, end):
            entry = task % p[k.BATCH]
            start, heads = r.heads_of_task(p, task // p[k.BATCH])
            # if the heads of a group are divided among tasks, each task has its own sums for dB and dC
            partial = start % per_group // p[r.HEADS_OF_TASK] * p[k.BATCH] + entry
            for route in range(p[k.ROUTES]):
                order = p[k.ORDER] + entry * p[k.ORDER_BATCH] + route * p[k.ORDER_ROUTE]
                for sequence in range(p[k.SEQUENCES]):
                    first_step, last_step = k.span(p, sequence)
                    state = k.state_offset(p, entry, sequence, route)
                    for i in range(heads):
                        kn = scratch + p[r.S_KN] + i * size
                        r.load_state(p, p[k.D_FINAL] + state if p[k.D_FINAL] != 0 else 0, start + i, kn)
                        r.transpose(kn, lanes_p, lanes_n, scratch + p[r.S_KP] + i * size)
                    stop = last_step
                    while stop > first_step:
                        # a segment of a tile: the steps before `stop`, back to a reset or to the start of the tile
                        tile_start = max(first_step, (stop - 1) // STEPS * STEPS)
                        after_reset = last_reset(p, order, tile_start, stop)
                        reset = after_reset >= 0
                        piece_start = after_reset if reset else tile_start
                        steps = k.visits(p, order, piece_start, stop, places)[0]
                        kept, initial = 0, 0
                        if not reset and tile_start != first_step:
                            kept = r.saved_state(p, entry, route, tile_start, start)
                        elif not reset and p[k.INITIAL] != 0:
                            initial = p[k.INITIAL] + state
                        if steps > 0:
                            run_tile(
                                p, scratch, entry, route, places, steps, start, heads, kept, initial, partial, part
                            )
                        if reset:
                            k.clear(scratch + p[r.S_KN], heads * size // 64)
                            k.clear(scratch + p[r.S_KP], heads * size // 64)
                            stop = piece_start - 1
                        else:
                            stop = tile_start
                    if p[k.D_INITIAL] != 0:
                        for i in range(heads):
                            r.store_state(p, scratch + p[r.S_KN] + i * size, p[k.D_INITIAL] + state, start + i)

    return backward
