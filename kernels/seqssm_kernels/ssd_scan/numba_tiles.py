"""The inner loop of the CPU engine's Mamba-2 scan, and the transposition of states.

One loop implements the forward pass and every part of the backward pass. With `c[t]` the product of the decays of a run
of steps, excluding its first step, up to `t`, the scaled states `g[t] = h[t] / c[t]` and their scaled gradients `k[t] =
c[t] G[t]` need no decay at all::

    y[t]   = c[t] sum_n C[t,n] g[t]      g[t] = g[t-1] + (u[t] / c[t]) B[t]^T       lanes over channels
    dC[t]  = sum_p (c[t] dy[t,p]) g[t]                                              lanes over states
    du[t]  = sum_n B[t,n] k[t] / c[t]    k[t] = k[t+1] + (c[t] dy[t]) C[t]^T        lanes over channels, in reverse
    dB[t]  = sum_p (u[t,p] / c[t]) k[t]                                             lanes over states, in reverse

All of them add the product of a vector and a scalar to a state, then the product of the state and another scalar to the
output. An update of 16 states therefore costs two multiply-adds in every case. A tile holds 4 scalars times one vector,
or times four where the processor has 32 vector registers of 16 lanes.

Rows are stored block by block: 16 lanes of all steps of a tile, then the next 16. The lines of a block are therefore
adjacent in the cache, and a row can be used as lanes of one sweep and as scalars of another.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu.tiles import at, loop, number

STEPS = 64
"""Steps of a tile, and between two states that the forward pass saves for the backward pass."""
BLOCK = (STEPS + 1) * v.ROW
"""Bytes from the rows of 16 lanes to those of the next 16.

One row more than a tile, because arrays at a distance of a multiple of 4096 bytes conflict in the cache.
"""
SCALARS = 4


def _sweep(width: int, down: bool) -> Any:
    """The tile of `width` vectors: `state` is multiplied by `before`, swept over, multiplied by `after` and stored."""

    def emit(builder, source, out, entering, leaving, state, row, steps, before, after):
        before, after = v.splat(builder, before), v.splat(builder, after)
        places = [
            at(builder, at(builder, state, builder.mul(row, number(n))), v.ROW * w)
            for n in range(SCALARS)
            for w in range(width)
        ]
        start = [builder.fmul(v.load_at(builder, place), before) for place in places]

        def body(t, states):
            line = builder.mul(t, number(v.ROW))
            into = at(builder, entering, line)
            from_ = at(builder, leaving, line)
            rows = [at(builder, at(builder, source, line), BLOCK * w) for w in range(width)]
            sums = [at(builder, at(builder, out, line), BLOCK * w) for w in range(width)]
            inputs = [v.load_at(builder, one) for one in rows]
            totals = [v.load_at(builder, one) for one in sums]
            result = []
            for n in range(SCALARS):
                b = v.splat_at(builder, at(builder, into, 4 * n))
                c = v.splat_at(builder, at(builder, from_, 4 * n))
                for w in range(width):
                    new = v.muladd(builder, b, inputs[w], states[n * width + w])
                    totals[w] = v.muladd(builder, c, new, totals[w])
                    result.append(new)
            for w in range(width):
                v.store_at(builder, totals[w], sums[w])
            return result

        for value, place in zip(loop(builder, steps, start, body, down=down), places):
            v.store_at(builder, builder.fmul(value, after), place)

    return v.operation(types.void, *[types.int64] * 7, types.float32, types.float32)(emit)


forward1, forward4 = _sweep(1, down=False), _sweep(4, down=False)
reverse1, reverse4 = _sweep(1, down=True), _sweep(4, down=True)


def _transpose() -> Any:
    """Store the transpose of a matrix of 16 rows of 16 lanes."""

    def emit(builder, source, source_row, target, target_row):
        rows = [v.load_at(builder, at(builder, source, builder.mul(source_row, number(i)))) for i in range(v.LANES)]
        half = 1
        while half < v.LANES:  # exchanges the off-diagonal parts of all 2 half x 2 half blocks
            mixed = list(rows)
            for i in range(v.LANES):
                if i & half:
                    continue
                low = [lane if not lane & half else v.LANES + lane - half for lane in range(v.LANES)]
                high = [lane + half if not lane & half else v.LANES + lane for lane in range(v.LANES)]
                for to, index in ((i, low), (i + half, high)):
                    mask = ir.Constant(v.VI, [ir.Constant(v.I32, k) for k in index])
                    mixed[to] = builder.shuffle_vector(rows[i], rows[i + half], mask)
            rows, half = mixed, 2 * half
        for i, row in enumerate(rows):
            v.store_at(builder, row, at(builder, target, builder.mul(target_row, number(i))))

    return v.operation(types.void, *[types.int64] * 4)(emit)


transpose16 = _transpose()
