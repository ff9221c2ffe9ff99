"""The backward kernel of the CPU scan: the tiles of the forward pass in reverse.

Each tile's states and decays are recomputed from the saved state before it, then its steps are processed in reverse.
States are the outer loop and the blocks of a group the inner one, so that dB and dC are summed over the channels of the
group in scratch memory. Gradients of A, D and dt_bias are summed over the batch entries of a group that a thread
processes.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu import rows as k
from seqssm_kernels.cpu import tiles
from seqssm_kernels.cpu.lanes import ROW
from seqssm_kernels.cpu.tiles import STEPS
from seqssm_kernels.selective_scan import numba_rows as r


@njit
def begin_group(p, scratch, group, unroll):
    """Load A of a group and clear the sums over its batch entries."""
    start, blocks = k.group_blocks(p, group)
    r.load_rates(p, scratch, start, blocks, unroll)
    k.clear(scratch + p[r.S_DA], p[k.A_ROUTES] * blocks * p[k.STATES])
    k.clear(scratch + p[r.S_DD], p[k.D_ROUTES] * blocks)
    k.clear(scratch + p[r.S_DBIAS], p[k.BIAS_ROUTES] * blocks)


@njit
def end_group(p, scratch, group, chunk):
    """Write the sums of a group into this thread's partial dA, dD and gradient of dt_bias."""
    start, blocks = k.group_blocks(p, group)
    channels, states = p[k.CHANNELS], p[k.STATES]
    if p[k.D_A] != 0:
        for route in range(p[k.A_ROUTES]):
            target = p[k.D_A] + 4 * (chunk * p[k.A_ROUTES] + route) * channels * states
            r.store_states(p, scratch + p[r.S_DA] + route * blocks * states * ROW, start, blocks, target)
    for sums, result, routes in (
        (p[r.S_DD], p[k.D_D], p[k.D_ROUTES]),
        (p[r.S_DBIAS], p[k.D_BIAS], p[k.BIAS_ROUTES]),
    ):
        for route in range(routes if result != 0 else 0):
            for block in range(blocks):
                first, count = k.block_channels(p, start, block)
                row = v.load32(scratch + sums + (route * blocks + block) * ROW)
                v.store(result + 4 * ((chunk * routes + route) * channels + first), 0, count, row)


@njit
def last_reset(p, order, begin, end):
    """Step after the last reset in [begin, end), or -1 if there is none."""
    if p[k.ORDER] != 0:
        for step in range(end - 1, begin - 1, -1):
            if v.int_at(order + 4 * step) == -2:
                return step + 1
    return -1


@njit
def prepare_blocks(p, scratch, entry, route, places, steps, start, blocks):
    """Compute the rows of dt, dt x, D x and dy of a tile; clear those of ddt and d(dt x)."""
    for block in range(blocks):
        first, count = k.block_channels(p, start, block)
        line = scratch + block * STEPS * ROW
        dt_bound, negative = r.prepare(
            p, entry, route, places, steps, first, count, line + p[r.S_DT], line + p[r.S_DU], line + p[r.S_Y]
        )
        v.set_float(scratch + p[r.S_DT_BOUNDS] + 8 * block, dt_bound)
        v.set_int(scratch + p[r.S_DT_BOUNDS] + 8 * block + 4, 1 if negative else 0)
        r.prepare_backward(p, entry, route, places, steps, first, count, line + p[r.S_DY])
        k.clear(line + p[r.S_DDT], steps)
        k.clear(line + p[r.S_DDU], steps)
    r.gather_states(p, k.B, entry, route, places, steps, scratch + p[r.S_B])
    r.gather_states(p, k.C, entry, route, places, steps, scratch + p[r.S_C])


@njit
def finish_blocks(p, scratch, entry, route, places, steps, start, blocks):
    """Compute dx, ddt and dz of a tile, and its contribution to the gradients of D and dt_bias."""
    d_row = scratch + p[r.S_DD] + min(route, p[k.D_ROUTES] - 1) * blocks * ROW
    bias_row = scratch + p[r.S_DBIAS] + min(route, p[k.BIAS_ROUTES] - 1) * blocks * ROW
    for block in range(blocks):
        first, count = k.block_channels(p, start, block)
        line = scratch + block * STEPS * ROW
        r.finish_backward(
            p, entry, route, places, steps, first, count, line + p[r.S_DT], line + p[r.S_DY], line + p[r.S_DDT],
            line + p[r.S_DDU], d_row + block * ROW, bias_row + block * ROW,
        )  # fmt: skip
        if p[k.DZ] != 0:
            r.gate_gradient(p, entry, route, places, steps, first, count, line + p[r.S_Y])


@njit
def fetch_previous(p, entry, route, order, step, first_step, n, unroll, first):
    """Prefetch a subset of the rows that a block needs in the tile before `step`."""
    begin = max(first_step, step - STEPS + STEPS * n // p[k.STATES])
    end = max(first_step, step - STEPS + STEPS * (n + unroll) // p[k.STATES])
    k.fetch_ahead(p, k.X, entry, route, order, begin, end, first)
    k.fetch_ahead(p, k.DT, entry, route, order, begin, end, first)
    k.fetch_ahead(p, k.DOUT, entry, route, order, begin, end, first)
    if p[k.DX] != 0:
        k.fetch_ahead(p, k.DX, entry, route, order, begin, end, first)
    if p[k.DDT] != 0:
        k.fetch_ahead(p, k.DDT, entry, route, order, begin, end, first)


def make_backward(unroll: int, key: int) -> Any:
    """Return the backward kernel for tiles of `unroll` states; `key` is the checksum of the sources."""

    def backward(p, begin, end, chunk, scratch):
        if key < 0:
            return
        states = p[k.STATES]
        scratch = k.align(scratch)
        h, dh, places = scratch + p[r.S_H], scratch + p[r.S_DH], scratch + p[r.S_PLACES]
        hs, decays, db, dc = scratch + p[r.S_HS], scratch + p[r.S_DECAYS], scratch + p[r.S_DB], scratch + p[r.S_DC]
        sums = scratch + p[r.S_SUMS]
        current = -1
        for task in range(begin, end):
            group, entry = task // p[k.BATCH], task % p[k.BATCH]
            start, blocks = k.group_blocks(p, group)
            if group != current:
                if current >= 0:
                    end_group(p, scratch, current, chunk)
                begin_group(p, scratch, group, unroll)
                current = group
            partial = group * p[k.BATCH] + entry  # dB and dC have one row of sums per group
            for route in range(p[k.ROUTES]):
                order = p[k.ORDER] + entry * p[k.ORDER_BATCH] + route * p[k.ORDER_ROUTE]
                rates = min(route, p[k.A_ROUTES] - 1) * blocks * states
                for sequence in range(p[k.SEQUENCES]):
                    first_step, last_step = k.span(p, sequence)
                    state = k.state_offset(p, entry, sequence, route)
                    r.load_states(p, p[k.D_FINAL] + state if p[k.D_FINAL] != 0 else 0, start, blocks, dh)
                    stop = last_step
                    while stop > first_step:
                        # a segment of a tile: the steps before `stop`, back to a reset or to the start of the tile
                        tile_start = max(first_step, (stop - 1) // STEPS * STEPS)
                        after_reset = last_reset(p, order, tile_start, stop)
                        reset = after_reset >= 0
                        piece_start = after_reset if reset else tile_start
                        steps = k.visits(p, order, piece_start, stop, places)[0]
                        if steps > 0:
                            if reset:
                                k.clear(h, blocks * states)
                            elif tile_start == first_step:
                                r.load_states(p, p[k.INITIAL] + state if p[k.INITIAL] != 0 else 0, start, blocks, h)
                            else:
                                k.copy_rows(r.saved_state(p, entry, route, tile_start, start), h, blocks * states)
                            prepare_blocks(p, scratch, entry, route, places, steps, start, blocks)
                        for n in range(0, states if steps > 0 else 0, unroll):
                            k.clear(db, steps * unroll)
                            k.clear(dc, steps * unroll)
                            for block in range(blocks):
                                first = start + block * 16
                                fetch_previous(p, entry, route, order, piece_start, first_step, n, unroll, first)
                                rate = rates + block * states + n
                                line = scratch + block * STEPS * ROW
                                bound = scratch + p[r.S_DT_BOUNDS] + 8 * block
                                dt_bound, negative = v.float_at(bound), v.int_at(bound + 4) != 0
                                again = (
                                    line + p[r.S_DT],
                                    line + p[r.S_DU],
                                    scratch + p[r.S_B] + 4 * n,
                                    scratch + p[r.S_C] + 4 * n,
                                    4 * states,
                                    scratch + p[r.S_A2] + rate * ROW,
                                    h + (block * states + n) * ROW,
                                    line + p[r.S_Y],
                                    hs,
                                    decays,
                                    p[k.TABLE],
                                    steps,
                                    r.choose_path(scratch + p[r.S_BOUNDS] + 4 * rate, dt_bound, negative),
                                )
                                back = (
                                    line + p[r.S_DT],
                                    line + p[r.S_DU],
                                    line + p[r.S_DY],
                                    scratch + p[r.S_B] + 4 * n,
                                    scratch + p[r.S_C] + 4 * n,
                                    4 * states,
                                    scratch + p[r.S_A] + rate * ROW,
                                    dh + (block * states + n) * ROW,
                                    scratch + p[r.S_DA] + rate * ROW,
                                    hs,
                                    decays,
                                    line + p[r.S_DDT],
                                    line + p[r.S_DDU],
                                    db,
                                    dc,
                                    steps,
                                )
                                if unroll == 4:
                                    if p[k.DZ] != 0:
                                        tiles.gated_recompute4(*again)
                                    else:
                                        tiles.recompute4(*again)
                                    tiles.backward4(*back)
                                elif unroll == 2:
                                    if p[k.DZ] != 0:
                                        tiles.gated_recompute2(*again)
                                    else:
                                        tiles.recompute2(*again)
                                    tiles.backward2(*back)
                                else:
                                    if p[k.DZ] != 0:
                                        tiles.gated_recompute1(*again)
                                    else:
                                        tiles.recompute1(*again)
                                    tiles.backward1(*back)
                            if p[k.DB] != 0:
                                r.add_states(
                                    p, k.DB, partial, route, places, steps, n, unroll, db, sums, p[k.ADD_B] != 0
                                )
                            if p[k.DC] != 0:
                                r.add_states(
                                    p, k.DC, partial, route, places, steps, n, unroll, dc, sums, p[k.ADD_C] != 0
                                )
                        if steps > 0:
                            finish_blocks(p, scratch, entry, route, places, steps, start, blocks)
                        if reset:
                            k.clear(dh, blocks * states)
                            stop = piece_start - 1
                        else:
                            stop = tile_start
                    if p[k.D_INITIAL] != 0:
                        r.store_states(p, dh, start, blocks, p[k.D_INITIAL] + state)
        if current >= 0:
            end_group(p, scratch, current, chunk)

    return backward
