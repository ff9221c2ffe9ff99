"""Triton kernels of the Mamba-2 scan's forward pass.

Three launches: `ssd_states` gives the state after each chunk from a zero state, a matrix product; `ssd_pass` carries
the states over the chunks of each row; `ssd_output` gives the outputs of each chunk from the state before it, with the
decay-masked products of C and B. The first two run in the backward pass too, for the gradients of the states.

`ssd_one` handles calls of one step without a backward pass.

Formulation: T. Dao and A. Gu, "Transformers are SSMs" (2024), section 6.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqssm_kernels.gpu.blocks import RESET, bounds, first_slot, place, rate, scale_values, sigmoid, softplus, wide
from seqssm_kernels.ssd_scan.triton_steps import (
    at,
    chunk,
    decayed,
    decays,
    of_state,
    part,
    product,
    put,
    reaches,
    scaled_tile,
    steps_of_head,
    tile,
)

SIZES = ["steps", "length", "routes", "heads", "per_group", "per_row"]
OF_HEADS = ["dt_b", "dt_l", "dt_r", "dt_h", "w_b", "w_l", "w_r", "w_h", "A_r", "A_h", "bias_r", "bias_h"]
TABLE = ["order_b", "order_r"]
Z = ["z_b", "z_l", "z_r", "z_h"]
X = ["x_b", "x_l", "x_r", "x_h"]
B_C = ["B_b", "B_l", "B_r", "B_g", "C_b", "C_l", "C_r", "C_g"]
D_SKIP = ["D_r", "D_h", "D_p"]
DOUT = ["o_b", "o_l", "o_r", "o_h"]
LOOPS = ["channels", "d_state"]
SCALES = ["x_scale_r", "x_scale_h", "B_scale_r", "B_scale_g", "C_scale_r", "C_scale_g"]


@triton.jit(do_not_specialize=[*SIZES, *OF_HEADS, *TABLE, "v_b", "v_l", "v_r", "v_h", "m_b", "m_l", "m_r", "m_g",
                               *SCALES[:4]])  # fmt: skip
def ssd_states(
    values, lines, x_scale, B_scale, dt, A, dt_bias, w, order, cu_seqlens, row_of_slot, states, whole_decays,
    steps, length, routes, heads, per_group, per_row,
    v_b, v_l, v_r, v_h, m_b, m_l, m_r, m_g,
    dt_b, dt_l, dt_r, dt_h, w_b, w_l, w_r, w_h, A_r, A_h, bias_r, bias_h, order_b, order_r,
    x_scale_r, x_scale_h, B_scale_r, B_scale_g,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, PB: tl.constexpr, NB: tl.constexpr, UNIT: tl.constexpr,
    SOFTPLUS: tl.constexpr, PRECISION: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """The state after each chunk from a zero state; with BACK the gradient of the state before it from its outputs.

    Args:
        values: x, or with BACK the gradient of y; strides `v_*` in units of UNIT.
        lines: B, or with BACK C; strides `m_*` in units of UNIT.
        x_scale, B_scale: scales of integer x (1 or R, H, P) and B (1 or R, G, N); None for floats.
        states: (slots, R, H, P, N), written.
        whole_decays: (slots, R, H), the decay of each chunk, zero where it has a reset; written.
        per_group: heads of a group.
        per_row: slots of a row.
        other names: those of the call, strides in elements.
    """
    blocks: tl.constexpr = ((P + PB - 1) // PB) * ((N + NB - 1) // NB)
    of_n: tl.constexpr = (N + NB - 1) // NB
    slot, route, head, block = part(tl.program_id(0), blocks, heads, routes)
    batch, p, used = chunk(
        slot, route, row_of_slot, cu_seqlens, order, steps, length, per_row, order_b, order_r, Q
    )  # fmt: skip
    if not used:
        return
    first_p = block // of_n * PB
    first_n = block % of_n * NB
    d, _, weight = steps_of_head(
        dt, w, dt_bias, batch, route, head, p, dt_b, dt_l, dt_r, dt_h, w_b, w_l, w_r, w_h, bias_r, bias_h, SOFTPLUS
    )  # fmt: skip
    _, _, _, start, end, whole = decays(d, tl.load(A + route * A_r + head * A_h), order, p)
    scale = start
    if not BACK:
        scale = end
    there = (p >= 0) & (scale != 0.0)
    values = at(values, batch, route, head, v_b, v_r, v_h, UNIT)
    scales_at = route * x_scale_r + head * x_scale_h
    a = scaled_tile(values, p, wide(v_l, UNIT), there, first_p, P, PB, x_scale, scales_at).to(tl.float32)
    if not BACK:
        scale *= weight
    a *= tl.where(there, scale, 0.0)[:, None]
    lines = at(lines, batch, route, head // per_group, m_b, m_r, m_g, UNIT)
    scales_at = route * B_scale_r + head // per_group * B_scale_g
    b = scaled_tile(lines, p, wide(m_l, UNIT), there, first_n, N, NB, B_scale, scales_at)
    found = product(tl.trans(a), b, tl.zeros([PB, NB], tl.float32), PRECISION)
    here = (slot.to(tl.int64) * routes + route) * heads + head
    offsets, known = of_state(first_p, first_n, P, N, PB, NB)
    tl.store(states + here * (P * N) + offsets, found, mask=known)
    if block == 0:
        tl.store(whole_decays + here, whole)


@triton.jit(do_not_specialize=["steps", "routes", "heads", "per_row", "h_s", "h_r", "h_h", "h_p", "h_n"])
def ssd_pass(
    states, whole_decays, border, last, cu_seqlens,
    steps, routes, heads, per_row, h_s, h_r, h_h, h_p, h_n,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Replace the states after the chunks of a row, each from zero, by the true states before the chunks.

    With BACK it runs through the chunks in reverse, and replaces the contribution of each chunk's outputs to the
    gradient of the state before it by the gradient of the state after it.

    Args:
        states: (slots, R, H, P, N).
        whole_decays: (slots, R, H).
        border: the state before each row, or with BACK the gradient of the state after it; strides `h_*`; None for
            zero.
        last: the state after each row, or the gradient of that before it, (rows, R, H, P, N).
    """
    blocks: tl.constexpr = (P * N + BLOCK - 1) // BLOCK
    row, route, head, block = part(tl.program_id(0), blocks, heads, routes)
    _row, _batch, _start, _stop, begin, end = bounds(row, None, cu_seqlens, steps, 1, steps)
    first = first_slot(row, begin, cu_seqlens, per_row, Q).to(tl.int64)
    count = tl.cdiv(end - begin, Q)
    i = block * BLOCK + tl.arange(0, BLOCK)
    known = i < P * N
    h = tl.zeros([BLOCK], tl.float32)
    if border is not None:
        at = row.to(tl.int64) * h_s + route * h_r + head * h_h.to(tl.int64)
        h = tl.load(border + at + (i // N).to(tl.int64) * h_p + (i % N).to(tl.int64) * h_n, mask=known, other=0.0)
    for c in range(0, count, AHEAD):
        added = ()
        factors = ()
        for j in tl.static_range(AHEAD):
            k = c + j
            if BACK:
                k = count - 1 - k
            there = c + j < count
            here = ((first + k) * routes + route) * heads + head
            state = tl.load(states + here * (P * N) + i, mask=known & there, other=0.0)
            added = added + (state,)  # type: ignore[assignment]
            factors = factors + (tl.load(whole_decays + here, mask=there, other=1.0),)  # type: ignore[assignment]
        for j in tl.static_range(AHEAD):
            k = c + j
            if BACK:
                k = count - 1 - k
            here = ((first + k) * routes + route) * heads + head
            tl.store(states + here * (P * N) + i, h, mask=known & (c + j < count))
            h = tl.where(factors[j] == 0.0, 0.0, factors[j] * h) + added[j]
    here = (row.to(tl.int64) * routes + route) * heads + head
    tl.store(last + here * (P * N) + i, h, mask=known)


@triton.jit(do_not_specialize=[*SIZES, *LOOPS, *OF_HEADS, *TABLE, *X, *Z, *B_C, *D_SKIP, *DOUT, *SCALES])
def ssd_output(
    x, dt, A, B, C, x_scale, B_scale, C_scale, D, z, dt_bias, w, order, cu_seqlens, row_of_slot, states, dout, out,
    steps, length, routes, heads, per_group, per_row, channels, d_state, o_b, o_l, o_r, o_h,
    x_b, x_l, x_r, x_h, z_b, z_l, z_r, z_h, B_b, B_l, B_r, B_g, C_b, C_l, C_r, C_g, D_r, D_h, D_p,
    dt_b, dt_l, dt_r, dt_h, w_b, w_l, w_r, w_h, A_r, A_h, bias_r, bias_h, order_b, order_r,
    x_scale_r, x_scale_h, B_scale_r, B_scale_g, C_scale_r, C_scale_g,
    P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr, PB: tl.constexpr, NB: tl.constexpr, UNIT: tl.constexpr,
    SOFTPLUS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The outputs of a chunk from the state before it.

    A matrix product would spread an infinity or a NaN of x to the steps before it and across resets. Such steps are
    excluded, and the outputs that depend on them are set to NaN.

    Args:
        x_scale, B_scale, C_scale: scales of integer x (1 or R, H, P), B and C (1 or R, G, N); None for floats.
        states: (slots, R, H, P, N), the state before each chunk.
        dout: the gradient of the output, strides `o_*`; given, the gradient of z is written instead.
        out: (B, L, R, H, P) contiguous.
        channels, d_state: P and N again: loops over them are not unrolled.
        other names: those of the call; strides of x, z, B, C and dout in units of UNIT, others in elements.
    """
    blocks: tl.constexpr = (P + PB - 1) // PB
    slot, route, head, block = part(tl.program_id(0), blocks, heads, routes)
    batch, p, used = chunk(
        slot, route, row_of_slot, cu_seqlens, order, steps, length, per_row, order_b, order_r, Q
    )  # fmt: skip
    if not used:
        return
    first_p = block * PB
    visits = p >= 0
    group = head // per_group
    B = at(B, batch, route, group, B_b, B_r, B_g, UNIT)
    C = at(C, batch, route, group, C_b, C_r, C_g, UNIT)
    states += ((slot.to(tl.int64) * routes + route) * heads + head) * (P * N)
    pairs = tl.zeros([Q, Q], tl.float32)
    y = tl.zeros([Q, PB], tl.float32)
    for first_n in range(0, d_state, NB):
        c = scaled_tile(
            C, p, wide(C_l, UNIT), visits, first_n, N, NB, C_scale, route * C_scale_r + group * C_scale_g
        )  # fmt: skip
        b = scaled_tile(
            B, p, wide(B_l, UNIT), visits, first_n, N, NB, B_scale, route * B_scale_r + group * B_scale_g
        )  # fmt: skip
        pairs = product(c, tl.trans(b), pairs, PRECISION)
        offsets, known = of_state(first_p, first_n, P, N, PB, NB)
        y = product(c, tl.trans(tl.load(states + offsets, mask=known, other=0.0)), y, PRECISION)

    d, _, weight = steps_of_head(
        dt, w, dt_bias, batch, route, head, p, dt_b, dt_l, dt_r, dt_h, w_b, w_l, w_r, w_h, bias_r, bias_h, SOFTPLUS
    )  # fmt: skip
    high, low, segment, start, _, _ = decays(d, tl.load(A + route * A_r + head * A_h), order, p)
    there = reaches(order, segment, Q)
    y = tl.where((start != 0.0)[:, None], start[:, None] * y, 0.0)
    x = at(x, batch, route, head, x_b, x_r, x_h, UNIT)
    scales_at = route * x_scale_r + head * x_scale_h
    value = scaled_tile(x, p, wide(x_l, UNIT), visits, first_p, P, PB, x_scale, scales_at).to(tl.float32)
    u = weight[:, None] * value
    finite = tl.abs(u) < float("inf")
    y = product(decayed(pairs, high, low, there), tl.where(finite, u, 0.0), y, PRECISION)
    bad = tl.max(tl.where(finite, 0, 1), 1)
    if tl.max(bad, 0) > 0:
        hit = tl.max(tl.where(there, bad[None, :], 0), 1)
        y = tl.where((hit > 0)[:, None], float("nan"), y)
    if D is not None:
        column = first_p + tl.arange(0, PB)
        skip = tl.load(D + route * D_r + head * D_h + column * D_p, mask=column < P, other=0.0)
        y += skip[None, :] * value
    if z is not None:
        z = at(z, batch, route, head, z_b, z_r, z_h, UNIT)
        gate = tile(z, p, wide(z_l, UNIT), visits, first_p, P, PB).to(tl.float32)
        share = sigmoid(gate)
        if dout is None:
            y *= gate * share
        else:
            dout = at(dout, batch, route, head, o_b, o_r, o_h, UNIT)
            y *= share * (1.0 + gate * (1.0 - share))
            y *= tile(dout, p, wide(o_l, UNIT), visits, first_p, P, PB).to(tl.float32)
    out += (batch * length * routes + route) * heads * P + head * P
    put(out, p, routes.to(tl.int64) * heads * P, first_p, y, P, PB)


@triton.jit(do_not_specialize=["length", "routes", "heads", "per_group", *OF_HEADS, *TABLE, *X, *Z, *B_C, *D_SKIP,
                               "h_s", "h_r", "h_h", "h_p", "h_n", *SCALES])  # fmt: skip
def ssd_one(
    x, dt, A, B, C, x_scale, B_scale, C_scale, D, z, dt_bias, w, order, cu_seqlens, start_state, out, end_state,
    length, routes, heads, per_group,
    x_b, x_l, x_r, x_h, z_b, z_l, z_r, z_h, B_b, B_l, B_r, B_g, C_b, C_l, C_r, C_g, D_r, D_h, D_p,
    dt_b, dt_l, dt_r, dt_h, w_b, w_l, w_r, w_h, A_r, A_h, bias_r, bias_h, order_b, order_r, h_s, h_r, h_h, h_p, h_n,
    x_scale_r, x_scale_h, B_scale_r, B_scale_g, C_scale_r, C_scale_g,
    P: tl.constexpr, N: tl.constexpr, PB: tl.constexpr, NB: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """One step of every row, over PB channels of a head and all states, NB a power of two of at least N.

    Args:
        start_state: the state before the step, strides `h_*`; None for zero.
        end_state: (rows, R, H, P, N).
        other names: those of the call; strides in elements.
    """
    blocks: tl.constexpr = (P + PB - 1) // PB
    row, route, head, block = part(tl.program_id(0), blocks, heads, routes)
    head = head.to(tl.int64)
    _row, batch, step, stop, _begin, _end = bounds(row, None, cu_seqlens, row * 0 + 1, 1, 1)
    if order is not None:
        order += batch * order_b + route * order_r
    p = place(order, step, stop, length)
    visits = p >= 0
    q = tl.maximum(p, 0).to(tl.int64)
    i = (block * PB + tl.arange(0, PB)).to(tl.int64)
    n = tl.arange(0, NB)
    live = i < P
    d = tl.load(dt + batch * dt_b + route * dt_r + q * dt_l + head * dt_h, mask=visits, other=0.0).to(tl.float32)
    if dt_bias is not None:
        d += tl.load(dt_bias + route * bias_r + head * bias_h)
    if SOFTPLUS:
        d, _ = softplus(d)
    d = tl.where(visits, d, 0.0)
    weight = d
    if w is not None:
        weight = tl.load(w + batch * w_b + route * w_r + q * w_l + head * w_h, mask=visits, other=0.0).to(tl.float32)
    a = tl.exp2(d * rate(tl.load(A + route * A_r + head * A_h)))
    at = x + batch * x_b + route * x_r + q * x_l + head * x_h + i
    value = tl.load(at, mask=live & visits, other=0.0).to(tl.float32)
    value = scale_values(value, x_scale, route * x_scale_r + head * x_scale_h + i, live)
    known = (n < N) & visits
    group = head // per_group
    b = tl.load(B + batch * B_b + route * B_r + q * B_l + group * B_g + n, mask=known, other=0.0).to(tl.float32)
    c = tl.load(C + batch * C_b + route * C_r + q * C_l + group * C_g + n, mask=known, other=0.0).to(tl.float32)
    b = scale_values(b, B_scale, route * B_scale_r + group * B_scale_g + n, known)
    c = scale_values(c, C_scale, route * C_scale_r + group * C_scale_g + n, known)
    both = live[:, None] & (n < N)[None, :]
    h = tl.zeros([PB, NB], tl.float32)
    if start_state is not None:
        at_state = row.to(tl.int64) * h_s + route * h_r + head * h_h + i[:, None] * h_p + n[None, :] * h_n.to(tl.int64)
        h = tl.load(start_state + at_state, mask=both, other=0.0)
    h = tl.where(p == RESET, 0.0, h)
    h = a * h + (weight * value)[:, None] * b[None, :]
    y = tl.sum(h * c[None, :], 1)
    if D is not None:
        y += value * tl.load(D + route * D_r + head * D_h + i * D_p, mask=live, other=0.0)
    if z is not None:
        at_gate = z + batch * z_b + route * z_r + q * z_l + head * z_h + i
        gate = tl.load(at_gate, mask=live & visits, other=0.0).to(tl.float32)
        y *= gate * sigmoid(gate)
    to_out = (((batch * length + q) * routes + route) * heads + head) * P + i
    tl.store(out + to_out, y.to(out.dtype.element_ty), mask=live & visits)
    to_state = (((row.to(tl.int64) * routes + route) * heads + head) * P + i) * N
    tl.store(end_state + to_state[:, None] + n[None, :], h, mask=both)
