"""The forward kernel of the CPU engine's Mamba-2 scan: loops over sequences, routes, tiles and heads.

A task is one batch entry and some neighbouring heads, with all its routes in sequence. Tiles begin at multiples of 64
steps, where the state is saved for the backward pass, and end at resets.
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
def run_head(p, scratch, entry, route, places, steps, head, column, h, following):
    """Process a tile of one head, and prefetch the rows of the head `following`."""
    la, u, y = scratch + p[r.S_LA] + column, scratch + p[r.S_U], scratch + p[r.S_Y]
    vectors, rows = r.padded(p[r.HEAD_DIM]) // 64, (p[k.STATES] + 3) // 4 * 4
    runs = r.divide_into_runs(p, scratch, la, steps, 1e30, STEPS)
    r.prepare_inputs(p, scratch, entry, route, places, steps, head, scratch + p[r.S_W] + column)
    r.clear_blocks(y, vectors, steps)
    for run in range(runs):
        begin = v.int_at(scratch + p[r.S_RUNS] + 4 * run)
        end = v.int_at(scratch + p[r.S_RUNS] + 4 * run + 4)
        line = 64 * begin
        before, after = r.decay_of(la, begin), v.float_at(scratch + p[r.S_CUM] + 4 * (end - 1))
        for n in range(0, rows, 16):
            if run == 0:
                some, more = steps * n // rows, min(steps, steps * (n + 16) // rows)
                r.fetch_rows(p, k.X, entry, route, places, some, more, following)
                r.fetch_rows(p, k.OUT, entry, route, places, some, more, following)
                r.fetch_rows(p, k.Z, entry, route, places, some, more, following)
            b, c = scratch + p[r.S_B] + line + n // 16 * BLOCK, scratch + p[r.S_C] + line + n // 16 * BLOCK
            part, count = h + n * ROW * vectors, min(16, rows - n)
            r.sweep(u + line, y + line, b, c, part, count, vectors, end - begin, before, after, False)
    r.finish_outputs(p, scratch, entry, route, places, steps, head)


def make_forward(key: int) -> Any:
    """Return the forward kernel; `key` is the checksum of the sources and becomes part of numba's cache key."""

    def forward(p, begin, end, part, scratch):
        if key < 0:
            return
        scratch = k.align(scratch)
        places, spare = scratch + p[r.S_PLACES], scratch + p[r.S_SPARE]
        lanes_p, lanes_n = r.padded(p[r.HEAD_DIM]) // 4, r.padded(p[k.STATES]) // 4
        size, per_group = 4 * lanes_p * lanes_n, p[r.HEADS] // p[r.GROUPS]
        for task in range(begin, end):
            entry = task % p[k.BATCH]
            start, heads = r.heads_of_task(p, task // p[k.BATCH])
            for route in range(p[k.ROUTES]):
                order = p[k.ORDER] + entry * p[k.ORDER_BATCH] + route * p[k.ORDER_ROUTE]
                for sequence in range(p[k.SEQUENCES]):
                    first_step, last_step = k.span(p, sequence)
                    state = k.state_offset(p, entry, sequence, route)
                    for i in range(heads):
                        r.load_state(p, p[k.INITIAL] + state if p[k.INITIAL] != 0 else 0, start + i, spare)
                        r.transpose(spare, lanes_p, lanes_n, scratch + p[r.S_H] + i * size)
                    step = first_step
                    tile_end = step
                    while step < last_step:
                        if step == tile_end:
                            tile_end = min(last_step, (step // STEPS + 1) * STEPS)
                            if p[k.SAVED] != 0 and step != first_step:
                                kept = r.saved_state(p, entry, route, step, start)
                                k.copy_rows(scratch + p[r.S_H], kept, heads * size // 64)
                        steps, step, reset = k.visits(p, order, step, tile_end, places)
                        if steps > 0:
                            r.prepare_heads(p, scratch, entry, route, places, steps, start, heads)
                        group = -1
                        for i in range(heads if steps > 0 else 0):
                            if (start + i) // per_group != group:
                                group = (start + i) // per_group
                                r.gather_states(p, k.B, entry, route, places, steps, group, scratch + p[r.S_B])
                                r.gather_states(p, k.C, entry, route, places, steps, group, scratch + p[r.S_C])
                            h, following = scratch + p[r.S_H] + i * size, min(start + i + 1, start + heads - 1)
                            run_head(p, scratch, entry, route, places, steps, start + i, r.column(i), h, following)
                        if reset:
                            k.clear(scratch + p[r.S_H], heads * size // 64)
                    for i in range(heads):
                        r.transpose(scratch + p[r.S_H] + i * size, lanes_n, lanes_p, spare)
                        r.store_state(p, spare, p[k.FINAL] + state, start + i)

    return forward
