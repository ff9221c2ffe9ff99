"""The inner loops of the CPU scan: one tile is up to 24 steps of 16 channels and a few states, all in registers.

A tile operates on float32 scratch rows of 64 bytes (one vector of 16 channels per step); the surrounding kernel
gathers, converts and scatters. `n` runs over the states of the tile (4, 2 or 1, unrolled):

    forward     a = 2^(dt A2[n]);  h[n] = a h[n] + B[n] du;  y += C[n] h[n]          (A2 = A log2 e, du = dt x)
    backward    dh[n] += C[n] dy;  dC[n] += h[n] dy;  dB[n] += dh[n] du;  ddu += B[n] dh[n];  dh[n] <- a dh[n]
                (with that dh and the state before the step)  ddt += dh[n] h[n] A[n];  dA[n] += dh[n] h[n] dt

An element costs three vector operations plus those of its exponential. If all exponents of a tile are in [-1, 0], [-2,
0] or [-3, 0], as in a newly initialised model, no range reduction is needed; `path` selects the case.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from seqssm_kernels.cpu import lanes as v

STEPS = 24
"""Steps of a tile, and between two states that the forward pass saves for the backward pass."""
UNIT, DOUBLE, TRIPLE, WIDE, ANY = 0, 1, 2, 3, 4
"""Paths: exponents in [-1, 0], in [-2, 0], in [-3, 0], in [-126, 126], any."""


def number(value: int) -> ir.Constant:
    return ir.Constant(v.I64, value)


def at(builder: ir.IRBuilder, base: ir.Value, offset: ir.Value | int) -> ir.Value:
    return builder.add(base, number(offset) if isinstance(offset, int) else offset)


def loop(builder: ir.IRBuilder, count: ir.Value, carried: list[ir.Value], body: Any, down: bool = False) -> list:
    """``for t in range(count)`` (or in reverse) with carried values; `body(t, values)` returns the new ones."""
    before = builder.block
    head, end = builder.append_basic_block("head"), builder.append_basic_block("end")
    builder.branch(head)
    builder.position_at_end(head)
    step = builder.phi(v.I64)
    step.add_incoming(number(0), before)
    values = [builder.phi(value.type) for value in carried]
    for phi, value in zip(values, carried):
        phi.add_incoming(value, before)
    t = builder.sub(builder.sub(count, number(1)), step) if down else step
    result = body(t, values)
    following = builder.add(step, number(1))
    step.add_incoming(following, builder.block)
    for phi, value in zip(values, result):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), head, end)
    builder.position_at_end(end)
    return result


_CONSTANTS = (*v.EXP2_UNIT, *v.EXP2_DOUBLE, *v.EXP2_TRIPLE, *v.EXP2_CENTRED, v.ROUNDER)
TABLE = np.repeat(np.array(_CONSTANTS, np.float32), v.LANES)
"""Constants of the exponentials, one row of 16 lanes each.

Tiles load them before their loop: constants in the code would be loaded in each step again, with the instructions that
compute their addresses.
"""
_ROWS = {UNIT: (0, 6), DOUBLE: (6, 13), TRIPLE: (13, 21), WIDE: (21, 28), ANY: (0, 0)}


def _exponential(builder: ir.IRBuilder, path: int, dt: ir.Value, a2: ir.Value, table: list[ir.Value]) -> ir.Value:
    if path == ANY:
        return v.exp2_any(builder, builder.fmul(dt, a2))
    if path != WIDE:
        return v.polynomial(builder, builder.fmul(dt, a2), table)
    *coefficients, rounder = table
    rounded = v.muladd(builder, dt, a2, rounder)
    whole = builder.fsub(rounded, rounder)
    rest = v.muladd(builder, dt, a2, builder.fneg(whole))
    power = builder.bitcast(v.polynomial(builder, rest, coefficients), v.VI)
    exponent = builder.shl(builder.bitcast(rounded, v.VI), v.ints(23))
    return builder.bitcast(builder.add(power, exponent), v.VF)


def _forward(states: int, keep: bool, output: bool) -> Any:
    """Forward tile of `states` states; `keep` stores each step's state and decay, `output` adds to y."""

    def emit(builder, dt, du, b, c, row, a2, h, y, hs, decays, table, steps, path):
        paths = [builder.append_basic_block(f"path{i}") for i in range(5)]
        end = builder.append_basic_block("done")
        choose = builder.switch(path, paths[ANY])
        for kind in (UNIT, DOUBLE, TRIPLE, WIDE):
            choose.add_case(number(kind), paths[kind])
        for kind, block in enumerate(paths):
            builder.position_at_end(block)
            rates = [v.load_at(builder, at(builder, a2, v.ROW * n)) for n in range(states)]
            start = [v.load_at(builder, at(builder, h, v.ROW * n)) for n in range(states)]
            constants = [v.load_at(builder, at(builder, table, v.ROW * i)) for i in range(*_ROWS[kind])]
            if keep:
                for n in range(states):
                    v.store_at(builder, start[n], at(builder, hs, v.ROW * n))

            def body(t, state, kind=kind, rates=rates, constants=constants):
                line = builder.mul(t, number(v.ROW))
                tile = builder.mul(t, number(v.ROW * states))
                across = builder.mul(t, row)
                dt_t = v.load_at(builder, at(builder, dt, line))
                du_t = v.load_at(builder, at(builder, du, line))
                y_t = v.load_at(builder, at(builder, y, line)) if output else None
                result = []
                for n in range(states):
                    decay = _exponential(builder, kind, dt_t, rates[n], constants)
                    b_n = v.splat_at(builder, at(builder, at(builder, b, across), 4 * n))
                    new = v.muladd(builder, decay, state[n], builder.fmul(b_n, du_t))
                    if output:
                        c_n = v.splat_at(builder, at(builder, at(builder, c, across), 4 * n))
                        y_t = v.muladd(builder, c_n, new, y_t)
                    if keep:
                        v.store_at(builder, decay, at(builder, at(builder, decays, tile), v.ROW * n))
                        v.store_at(builder, new, at(builder, at(builder, hs, tile), v.ROW * (states + n)))
                    result.append(new)
                if output:
                    v.store_at(builder, y_t, at(builder, y, line))
                return result

            final = loop(builder, steps, start, body)
            for n in range(states):
                v.store_at(builder, final[n], at(builder, h, v.ROW * n))
            builder.branch(end)
        builder.position_at_end(end)

    return v.operation(types.void, *[types.int64] * 13)(emit)


def _backward(states: int) -> Any:
    """Backward tile: `dh` and `da` (rows of `states` vectors) are updated, ddu and ddt are set or added to."""

    def emit(builder, dt, du, dy, b, c, row, a, dh, da, hs, decays, ddt, ddu, db, dc, steps):
        rates = [v.load_at(builder, at(builder, a, v.ROW * n)) for n in range(states)]
        start = [v.load_at(builder, at(builder, dh, v.ROW * n)) for n in range(states)]
        start += [v.load_at(builder, at(builder, da, v.ROW * n)) for n in range(states)]
        last = builder.mul(steps, number(v.ROW * states))
        start += [v.load_at(builder, at(builder, at(builder, hs, last), v.ROW * n)) for n in range(states)]

        def body(t, carried):
            grads, sums, current = (carried[i * states : (i + 1) * states] for i in range(3))
            line = builder.mul(t, number(v.ROW))
            tile = builder.mul(t, number(v.ROW * states))
            across = builder.mul(t, row)
            dt_t, du_t, dy_t = (v.load_at(builder, at(builder, rows, line)) for rows in (dt, du, dy))
            ddt_t, ddu_t = (v.load_at(builder, at(builder, rows, line)) for rows in (ddt, ddu))
            before, new_grads, new_sums = [], [], []
            for n in range(states):
                c_n = v.splat_at(builder, at(builder, at(builder, c, across), 4 * n))
                b_n = v.splat_at(builder, at(builder, at(builder, b, across), 4 * n))
                grad = v.muladd(builder, c_n, dy_t, grads[n])
                for sums_at, factor, by in ((dc, current[n], dy_t), (db, grad, du_t)):
                    place = at(builder, at(builder, sums_at, tile), v.ROW * n)
                    v.store_at(builder, v.muladd(builder, factor, by, v.load_at(builder, place)), place)
                ddu_t = v.muladd(builder, b_n, grad, ddu_t)
                grad = builder.fmul(grad, v.load_at(builder, at(builder, at(builder, decays, tile), v.ROW * n)))
                old = v.load_at(builder, at(builder, at(builder, hs, tile), v.ROW * n))
                product = builder.fmul(grad, old)
                ddt_t = v.muladd(builder, product, rates[n], ddt_t)
                new_sums.append(v.muladd(builder, product, dt_t, sums[n]))
                new_grads.append(grad)
                before.append(old)
            v.store_at(builder, ddt_t, at(builder, ddt, line))
            v.store_at(builder, ddu_t, at(builder, ddu, line))
            return [*new_grads, *new_sums, *before]

        final = loop(builder, steps, start, body, down=True)
        for n in range(states):
            v.store_at(builder, final[n], at(builder, dh, v.ROW * n))
            v.store_at(builder, final[states + n], at(builder, da, v.ROW * n))

    return v.operation(types.void, *[types.int64] * 16)(emit)


forward4, forward2, forward1 = (_forward(n, keep=False, output=True) for n in (4, 2, 1))
recompute4, recompute2, recompute1 = (_forward(n, keep=True, output=False) for n in (4, 2, 1))
gated_recompute4, gated_recompute2, gated_recompute1 = (_forward(n, keep=True, output=True) for n in (4, 2, 1))
backward4, backward2, backward1 = (_backward(n) for n in (4, 2, 1))


def _sum_lanes() -> Any:
    """Reduce 16 vectors to the vector of their lane sums by recursive halving: 15 additions instead of 16 x 4."""

    def emit(builder, source, target):
        vectors = [v.load_at(builder, at(builder, source, v.ROW * i)) for i in range(v.LANES)]
        width = v.LANES // 2
        while width:  # each vector holds LANES / (2 width) partial sums of 2 width lanes; join and halve neighbours
            joined = []
            for first, second in zip(vectors[::2], vectors[1::2]):
                groups = range(0, v.LANES, 2 * width)
                low = [g + i for g in groups for i in range(width)]
                high = [g + width + i for g in groups for i in range(width)]
                parts = [
                    builder.shuffle_vector(first, second, ir.Constant(v.VI, [ir.Constant(v.I32, i) for i in index]))
                    for index in (low + [v.LANES + i for i in low], high + [v.LANES + i for i in high])
                ]
                joined.append(builder.fadd(*parts))
            vectors, width = joined, width // 2
        v.store_at(builder, vectors[0], target)

    return v.operation(types.void, types.int64, types.int64)(emit)


sum_lanes = _sum_lanes()


def _put_four(accumulate: bool) -> Any:
    """Store four consecutive floats, or add them to the stored ones."""

    def emit(builder, source, target):
        four = ir.VectorType(v.F32, 4)
        source, target = v.pointer(builder, source), v.pointer(builder, target)
        value = builder.load(source, align=4, typ=four)
        if accumulate:
            value = builder.fadd(value, builder.load(target, align=4, typ=four))
        builder.store(value, target, align=4)

    return v.operation(types.void, types.int64, types.int64)(emit)


set_four, add_four = _put_four(False), _put_four(True)
