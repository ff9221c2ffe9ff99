"""The forward kernel of the CPU scan: loops over sequences, routes and tiles.

A task is one batch entry and one group of up to 128 channels, with all its routes in sequence. Tasks are ordered by
group; a thread processes a range of them and keeps A of the group between batch entries. Tiles begin at multiples of 24
steps, where the state is saved for the backward pass, and end at resets.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from seqssm_kernels.cpu import rows as k
from seqssm_kernels.cpu import tiles
from seqssm_kernels.cpu.lanes import ROW
from seqssm_kernels.cpu.tiles import STEPS
from seqssm_kernels.selective_scan import numba_rows as r


@njit
def fetch_next(p, entry, route, order, step, last_step, n, unroll, first):
    """Prefetch rows that a block needs in the next tile, in proportion to the fraction of the states in tile `n`."""
    begin = min(last_step, step + STEPS * n // p[k.STATES])
    end = min(last_step, step + STEPS * (n + unroll) // p[k.STATES])
    k.fetch_ahead(p, k.X, entry, route, order, begin, end, first)
    k.fetch_ahead(p, k.DT, entry, route, order, begin, end, first)
    k.fetch_ahead(p, k.OUT, entry, route, order, begin, end, first)


def make_forward(unroll: int, key: int) -> Any:
    """Return the forward kernel for tiles of `unroll` states; `key` is the checksum of the sources."""

    def forward(p, begin, end, chunk, scratch):
        if key < 0:
            return
        states = p[k.STATES]
        scratch = k.align(scratch)
        h, places = scratch + p[r.S_H], scratch + p[r.S_PLACES]
        dt_rows, du_rows, y_rows = scratch + p[r.S_DT], scratch + p[r.S_DU], scratch + p[r.S_Y]
        current = -1
        for task in range(begin, end):
            group, entry = task // p[k.BATCH], task % p[k.BATCH]
            start, blocks = k.group_blocks(p, group)
            if group != current:
                r.load_rates(p, scratch, start, blocks, unroll)
                current = group
            for route in range(p[k.ROUTES]):
                order = p[k.ORDER] + entry * p[k.ORDER_BATCH] + route * p[k.ORDER_ROUTE]
                rates = min(route, p[k.A_ROUTES] - 1) * blocks * states
                for sequence in range(p[k.SEQUENCES]):
                    first_step, last_step = k.span(p, sequence)
                    state = k.state_offset(p, entry, sequence, route)
                    r.load_states(p, p[k.INITIAL] + state if p[k.INITIAL] != 0 else 0, start, blocks, h)
                    step = first_step
                    tile_end = step
                    while step < last_step:
                        if step == tile_end:
                            tile_end = min(last_step, (step // STEPS + 1) * STEPS)
                            if p[k.SAVED] != 0 and step != first_step:
                                k.copy_rows(h, r.saved_state(p, entry, route, step, start), blocks * states)
                        steps, step, reset = k.visits(p, order, step, tile_end, places)
                        if steps > 0:
                            r.gather_states(p, k.B, entry, route, places, steps, scratch + p[r.S_B])
                            r.gather_states(p, k.C, entry, route, places, steps, scratch + p[r.S_C])
                        for block in range(blocks if steps > 0 else 0):
                            first, count = k.block_channels(p, start, block)
                            dt_bound, negative = r.prepare(
                                p, entry, route, places, steps, first, count, dt_rows, du_rows, y_rows
                            )
                            for n in range(0, states, unroll):
                                fetch_next(p, entry, route, order, step, last_step, n, unroll, first)
                                rate = rates + block * states + n
                                args = (
                                    dt_rows,
                                    du_rows,
                                    scratch + p[r.S_B] + 4 * n,
                                    scratch + p[r.S_C] + 4 * n,
                                    4 * states,
                                    scratch + p[r.S_A2] + rate * ROW,
                                    h + (block * states + n) * ROW,
                                    y_rows,
                                    0,
                                    0,
                                    p[k.TABLE],
                                    steps,
                                    r.choose_path(scratch + p[r.S_BOUNDS] + 4 * rate, dt_bound, negative),
                                )
                                if unroll == 4:
                                    tiles.forward4(*args)
                                elif unroll == 2:
                                    tiles.forward2(*args)
                                else:
                                    tiles.forward1(*args)
                            r.finish(p, entry, route, places, steps, first, count, y_rows)
                        if reset:
                            k.clear(h, blocks * states)
                    r.store_states(p, h, start, blocks, p[k.FINAL] + state)

    return forward
