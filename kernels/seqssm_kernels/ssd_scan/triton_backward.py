"""Triton kernels of the Mamba-2 scan's backward pass, from the states before the chunks that the forward pass saves.

`ssd_states` and `ssd_pass` of the forward pass give the gradients of the states after the chunks. Then chunks are
independent: `ssd_output` gives the gradient of z; `ssd_backward_decays` and `ssd_backward_inputs` those of x, dt and w
and partial sums of those of A, D and dt_bias, for one head (one kernel for both would spill registers);
`ssd_backward_group` that of B or C, summed over the heads of a group. Decays, products and outputs are recomputed.
There are no atomics.

With `weights` (t, s) the contribution of step s to the output of step t, the decay of step k lies between every s < k
and every t >= k: the gradient of its logarithm is the sum of that rectangle of `weights` times their gradients.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqssm_kernels.gpu.blocks import wide
from seqssm_kernels.ssd_scan.triton_forward import B_C, D_SKIP, LOOPS, OF_HEADS, SIZES, TABLE, X
from seqssm_kernels.ssd_scan.triton_steps import (
    at,
    chunk,
    decayed,
    decayed_back,
    decays,
    of_state,
    part,
    product,
    put,
    reaches,
    step_sizes,
    steps_of_head,
    tile,
)

DYS = ["g_b", "g_l", "g_r", "g_h"]


@triton.jit(do_not_specialize=[*SIZES, *LOOPS, *OF_HEADS, *TABLE, *X, *B_C, *DYS])
def ssd_backward_decays(
    x, dt, A, B, C, dt_bias, w, order, cu_seqlens, row_of_slot, dys, states, dD, flows,
    steps, length, routes, heads, per_group, per_row, channels, d_state,
    x_b, x_l, x_r, x_h, g_b, g_l, g_r, g_h, B_b, B_l, B_r, B_g, C_b, C_l, C_r, C_g,
    dt_b, dt_l, dt_r, dt_h, w_b, w_l, w_r, w_h, A_r, A_h, bias_r, bias_h, order_b, order_r,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, PB: tl.constexpr, NB: tl.constexpr, UNIT: tl.constexpr,
    SOFTPLUS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients from the outputs of one head of a chunk: that of D, and a part of those of the decays.

    Args:
        dys: gradient of y, that of `out` where there is no gate; strides `g_*` in units of UNIT.
        states: (slots, R, H, P, N), the state before each chunk.
        dD: (slots, R, H, P), the part of each chunk; None where not needed.
        flows: (slots, R, H, Q): the gradient of the logarithm of each decay as far as it comes through outputs of
            the chunk.
        other names: those of `ssd_output`.
    """
    slot, route, head, _block = part(tl.program_id(0), 1, heads, routes)
    batch, p, used = chunk(
        slot, route, row_of_slot, cu_seqlens, order, steps, length, per_row, order_b, order_r, Q
    )  # fmt: skip
    if not used:
        return
    visits = p >= 0
    group = head // per_group
    B = at(B, batch, route, group, B_b, B_r, B_g, UNIT)
    C = at(C, batch, route, group, C_b, C_r, C_g, UNIT)
    x = at(x, batch, route, head, x_b, x_r, x_h, UNIT)
    dys = at(dys, batch, route, head, g_b, g_r, g_h, UNIT)
    here = (slot.to(tl.int64) * routes + route) * heads + head
    states += here * (P * N)

    pairs = tl.zeros([Q, Q], tl.float32)
    for first_n in range(0, d_state, NB):
        c = tile(C, p, wide(C_l, UNIT), visits, first_n, N, NB)
        b = tile(B, p, wide(B_l, UNIT), visits, first_n, N, NB)
        pairs = product(c, tl.trans(b), pairs, PRECISION)
    d, _, weight = steps_of_head(
        dt, w, dt_bias, batch, route, head, p, dt_b, dt_l, dt_r, dt_h, w_b, w_l, w_r, w_h, bias_r, bias_h, SOFTPLUS
    )  # fmt: skip
    high, low, segment, start, _, _ = decays(d, tl.load(A + route * A_r + head * A_h), order, p)
    weights = decayed(pairs, high, low, reaches(order, segment, Q))

    t = tl.arange(0, Q)
    dweights = tl.zeros([Q, Q], tl.float32)
    flow = tl.zeros([Q], tl.float32)
    for first_p in range(0, channels, PB):
        column = first_p + tl.arange(0, PB)
        y = tl.zeros([Q, PB], tl.float32)
        for first_n in range(0, d_state, NB):
            offsets, known = of_state(first_p, first_n, P, N, PB, NB)
            h = tl.load(states + offsets, mask=known, other=0.0)
            c = tile(C, p, wide(C_l, UNIT), visits, first_n, N, NB)
            y = product(c, tl.trans(h), y, PRECISION)
        y = tl.where((start != 0.0)[:, None], start[:, None] * y, 0.0)
        value = tile(x, p, wide(x_l, UNIT), visits, first_p, P, PB).to(tl.float32)
        dy = tile(dys, p, wide(g_l, UNIT), visits, first_p, P, PB).to(tl.float32)
        u = weight[:, None] * value
        flow += tl.sum(dy * y, 1)
        if dD is not None:
            tl.store(dD + here * P + column, tl.sum(dy * value, 0), mask=column < P)
        dweights = product(dy, tl.trans(u), dweights, PRECISION)
    # Separate sums for each step: differences of sums would cancel if a strong decay is between weak ones.
    strictly = t[:, None] > t[None, :]
    between = tl.cumsum(tl.where(strictly, dweights * weights, 0.0), 0, reverse=True)
    flow = tl.cumsum(flow, 0, reverse=True) + tl.sum(tl.where(strictly, between, 0.0), 1)
    tl.store(flows + here * Q + t, flow)


@triton.jit(do_not_specialize=[*SIZES, *LOOPS, *OF_HEADS, *TABLE, *X, *B_C, *D_SKIP, *DYS])
def ssd_backward_inputs(
    x, dt, A, B, C, D, dt_bias, w, order, cu_seqlens, row_of_slot, dys, states, dstates, flows,
    dx, ddt, dw, dA, dbias,
    steps, length, routes, heads, per_group, per_row, channels, d_state,
    x_b, x_l, x_r, x_h, g_b, g_l, g_r, g_h, B_b, B_l, B_r, B_g, C_b, C_l, C_r, C_g, D_r, D_h, D_p,
    dt_b, dt_l, dt_r, dt_h, w_b, w_l, w_r, w_h, A_r, A_h, bias_r, bias_h, order_b, order_r,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, PB: tl.constexpr, NB: tl.constexpr, UNIT: tl.constexpr,
    SOFTPLUS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of x, dt, w, A and dt_bias of one head of a chunk.

    Args:
        dstates: (slots, R, H, P, N), the gradient of the state after each chunk.
        flows: those of `ssd_backward_decays`; None where only dx or dw is needed.
        dx: (B, L, R, H, P); None where not needed, as all gradients.
        ddt, dw: (B, L, R, H).
        dA, dbias: (slots, R, H), the part of each chunk.
        other names: those of `ssd_backward_decays`.
    """
    slot, route, head, _block = part(tl.program_id(0), 1, heads, routes)
    batch, p, used = chunk(
        slot, route, row_of_slot, cu_seqlens, order, steps, length, per_row, order_b, order_r, Q
    )  # fmt: skip
    if not used:
        return
    visits = p >= 0
    # not `steps_of_head`: computed so late, these addresses would spill on sm_120
    dt += batch * dt_b + route * dt_r + head * dt_h.to(tl.int64)
    if w is not None:
        w += batch * w_b + route * w_r + head * w_h.to(tl.int64)
    if dt_bias is not None:
        dt_bias += route * bias_r + head * bias_h
    group = head // per_group
    B = at(B, batch, route, group, B_b, B_r, B_g, UNIT)
    C = at(C, batch, route, group, C_b, C_r, C_g, UNIT)
    x = at(x, batch, route, head, x_b, x_r, x_h, UNIT)
    dys = at(dys, batch, route, head, g_b, g_r, g_h, UNIT)
    here = (slot.to(tl.int64) * routes + route) * heads + head
    states += here * (P * N)
    dstates += here * (P * N)
    to_head = (batch * length * routes + route) * heads + head
    row_l = routes.to(tl.int64) * heads

    pairs = tl.zeros([Q, Q], tl.float32)
    for first_n in range(0, d_state, NB):
        c = tile(C, p, wide(C_l, UNIT), visits, first_n, N, NB)
        b = tile(B, p, wide(B_l, UNIT), visits, first_n, N, NB)
        pairs = product(b, tl.trans(c), pairs, PRECISION)
    a = tl.load(A + route * A_r + head * A_h)
    d, slope, weight = step_sizes(dt, w, dt_bias, p, dt_l, w_l, SOFTPLUS)
    high, low, segment, _, end, whole = decays(d, a, order, p)
    weights = decayed_back(pairs, high, low, order, segment, Q)

    of_end = tl.zeros([Q], tl.float32)
    dweight = tl.zeros([Q], tl.float32)
    kept = 0.0
    for first_p in tl.range(0, channels, PB, disable_licm=True):  # `weights` as an operand takes many registers
        du = tl.zeros([Q, PB], tl.float32)
        for first_n in range(0, d_state, NB):
            offsets, known = of_state(first_p, first_n, P, N, PB, NB)
            g = tl.load(dstates + offsets, mask=known, other=0.0)
            if flows is not None:
                kept += tl.sum(tl.sum(tl.load(states + offsets, mask=known, other=0.0) * g, 1), 0)
            b = tile(B, p, wide(B_l, UNIT), visits, first_n, N, NB)
            du = product(b, tl.trans(g), du, PRECISION)
        du = tl.where((end != 0.0)[:, None], end[:, None] * du, 0.0)
        value = tile(x, p, wide(x_l, UNIT), visits, first_p, P, PB).to(tl.float32)
        of_end += tl.sum(value * du, 1)
        dy = tile(dys, p, wide(g_l, UNIT), visits, first_p, P, PB).to(tl.float32)
        du = product(weights, dy, du, PRECISION)
        dweight += tl.sum(value * du, 1)
        if dx is not None:
            du *= weight[:, None]
            if D is not None:
                column = first_p + tl.arange(0, PB)
                skip = tl.load(D + route * D_r + head * D_h + column * D_p, mask=column < P, other=0.0)
                du += skip[None, :] * dy
            put(dx + to_head * P, p, row_l * P, first_p, du, P, PB)

    q = tl.maximum(p, 0).to(tl.int64)
    if dw is not None:
        tl.store(dw + to_head + q * row_l, dweight.to(dw.dtype.element_ty), mask=visits)
    if flows is not None:
        t = tl.arange(0, Q)
        dlog = tl.load(flows + here * Q + t)
        before = tl.gather(tl.cumsum(of_end * weight, 0), tl.maximum(t - 1, 0), 0)
        dlog += tl.where(t > 0, before, 0.0)
        dlog += tl.where(whole == 0.0, 0.0, whole * kept)
        dlog = tl.where(visits, dlog, 0.0)
        if dA is not None:
            tl.store(dA + here, tl.sum(dlog * d, 0))
        found = dlog * a
        if w is None:
            found += dweight
        found = tl.where(visits, found * slope, 0.0)
        if ddt is not None:
            tl.store(ddt + to_head + q * row_l, found.to(ddt.dtype.element_ty), mask=visits)
        if dbias is not None:
            tl.store(dbias + here, tl.sum(found, 0))


@triton.jit(do_not_specialize=[*SIZES, *LOOPS, *OF_HEADS, *TABLE, *X, *B_C, *DYS, "per_part", "rows_of_part"])
def ssd_backward_group(
    x, dt, A, B, C, dt_bias, w, order, cu_seqlens, row_of_slot, dys, states, found,
    steps, length, routes, heads, per_group, per_row, channels, d_state, per_part, rows_of_part,
    x_b, x_l, x_r, x_h, g_b, g_l, g_r, g_h, B_b, B_l, B_r, B_g, C_b, C_l, C_r, C_g,
    dt_b, dt_l, dt_r, dt_h, w_b, w_l, w_r, w_h, A_r, A_h, bias_r, bias_h, order_b, order_r,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, PB: tl.constexpr, NB: tl.constexpr, UNIT: tl.constexpr,
    SOFTPLUS: tl.constexpr, PRECISION: tl.constexpr, OF_B: tl.constexpr,
):  # fmt: skip
    """The gradient of B or of C of a chunk, one group and NB states, summed over the heads of a part of the group.

    Args:
        states: for C the state before each chunk, for B the gradient of the state after it, (slots, R, H, P, N).
        found: (parts, B, L, R, G, N), written.
        per_part: heads of a part; parts of a group are consecutive.
        rows_of_part: rows (of N values) from one part of `found` to the next.
        other names: those of `ssd_backward_inputs`.
    """
    of_n: tl.constexpr = (N + NB - 1) // NB
    parts = tl.cdiv(per_group, per_part)
    groups = heads // per_group
    slot, route, group_part, block = part(tl.program_id(0), of_n, groups * parts, routes)
    group = group_part // parts
    number = group_part % parts
    batch, p, used = chunk(
        slot, route, row_of_slot, cu_seqlens, order, steps, length, per_row, order_b, order_r, Q
    )  # fmt: skip
    if not used:
        return
    visits = p >= 0
    first_n = block * NB
    dt += batch * dt_b + route * dt_r
    if w is not None:
        w += batch * w_b + route * w_r
    if dt_bias is not None:
        dt_bias += route * bias_r
    A += route * A_r
    x += batch * wide(x_b, UNIT) + route * wide(x_r, UNIT)
    dys += batch * wide(g_b, UNIT) + route * wide(g_r, UNIT)
    states += (slot.to(tl.int64) * routes + route) * heads * (P * N)

    total = tl.zeros([Q, NB], tl.float32)
    dpairs = tl.zeros([Q, Q], tl.float32)
    for i in range(number * per_part, tl.minimum((number + 1) * per_part, per_group)):
        head = (group * per_group + i).to(tl.int64)
        w_head = w
        bias_head = dt_bias
        if w is not None:
            w_head = w + head * w_h
        if dt_bias is not None:
            bias_head = dt_bias + head * bias_h
        d, _, weight = step_sizes(dt + head * dt_h, w_head, bias_head, p, dt_l, w_l, SOFTPLUS)
        high, low, segment, start, end, _ = decays(d, tl.load(A + head * A_h), order, p)
        dweights = tl.zeros([Q, Q], tl.float32)
        for first_p in tl.range(0, channels, PB, disable_licm=True):
            u = tile(x + head * wide(x_h, UNIT), p, wide(x_l, UNIT), visits, first_p, P, PB).to(tl.float32)
            u *= weight[:, None]
            dy = tile(dys + head * wide(g_h, UNIT), p, wide(g_l, UNIT), visits, first_p, P, PB).to(tl.float32)
            offsets, known = of_state(first_p, first_n, P, N, PB, NB)
            h = tl.load(states + head * (P * N) + offsets, mask=known, other=0.0)
            if OF_B:
                dweights = product(u, tl.trans(dy), dweights, PRECISION)
                u = tl.where((end != 0.0)[:, None], end[:, None] * u, 0.0)
                total = product(u, h, total, PRECISION)
            else:
                dweights = product(dy, tl.trans(u), dweights, PRECISION)
                dy = tl.where((start != 0.0)[:, None], start[:, None] * dy, 0.0)
                total = product(dy, h, total, PRECISION)
        if OF_B:
            dpairs += decayed_back(dweights, high, low, order, segment, Q)
        else:
            dpairs += decayed(dweights, high, low, reaches(order, segment, Q))
    if OF_B:
        C = at(C, batch, route, group, C_b, C_r, C_g, UNIT)
        other = tile(C, p, wide(C_l, UNIT), visits, first_n, N, NB)
    else:
        B = at(B, batch, route, group, B_b, B_r, B_g, UNIT)
        other = tile(B, p, wide(B_l, UNIT), visits, first_n, N, NB)
    total = product(dpairs, other, total, PRECISION)
    to_row = number.to(tl.int64) * rows_of_part + (batch * length * routes + route) * groups + group
    put(found + to_row * N, p, routes.to(tl.int64) * groups * N, first_n, total, N, NB)
