"""Triton kernels of the causal convolution.

A program runs one route of one slot over BLOCK channels, step by step, with the window in registers. It looks up the
window before its slot through a table of links: for each step, the last step at or before it that visits a position or
resets. Slots are therefore independent at any length. The backward pass mirrors this: it runs through the slot in
reverse and holds the gradients of the next outputs instead.
"""

from __future__ import annotations

import triton
import triton.language as tl

from seqssm_kernels.gpu.blocks import ABSENT, RESET, bounds, place, program, sigmoid, wide

NUMBERS = [
    *("steps", "length", "channels", "routes", "per_row", "chunk", "x_b", "x_l", "x_r", "w_r", "w_e", "w_w", "bias_r"),
    *("order_b", "order_r", "links_b", "links_r", "state_s", "state_r", "state_e", "state_w"),
    *("dout_b", "dout_l", "dout_r"),
]
BACK_NUMBERS = [*NUMBERS, *("dfinal_s", "dfinal_r", "dfinal_e", "dfinal_w")]


@triton.jit(do_not_specialize=NUMBERS)
def conv_forward(
    x, weight, bias, order, links, cu_seqlens, row_of_slot, state, dout, out, final,
    steps, length, channels, routes, per_row, chunk,
    x_b, x_l, x_r, w_r, w_e, w_w, bias_r, order_b, order_r, links_b, links_r, state_s, state_r, state_e, state_w,
    dout_b, dout_l, dout_r,
    W: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr, UNIT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Slide the window over a slot, optionally followed by SiLU; or, given `dout`, compute the backward pass of SiLU.

    Args:
        dout: gradient of the SiLU's output, (B, L, R, E), or None. With it `out` is the gradient of its input,
            and `final` is not written.
        links: (1 or B, 1 or R, S), the last step at or before each that visits a position or resets, or -1; None if
            `order` is None.
        out: (B, L, R, E) contiguous.
        final: (rows, R, E, W - 1) contiguous, the window after the last step, or None.
        other names: those of `scan_forward`; strides over positions and `channels` in units of UNIT.
    """
    channels = channels * UNIT
    slot, route, block = program(tl.program_id(0), routes, tl.cdiv(channels, BLOCK))
    row, batch, start, stop, begin, end = bounds(slot, row_of_slot, cu_seqlens, steps, per_row, chunk)
    if start > end:
        return
    e = block * BLOCK + tl.arange(0, BLOCK)
    live = e < channels
    zero = tl.zeros([BLOCK], tl.float32)
    x += batch * wide(x_b, UNIT) + route * wide(x_r, UNIT)
    x_l = wide(x_l, UNIT)
    if dout is not None:
        dout += batch * wide(dout_b, UNIT) + route * wide(dout_r, UNIT)
        dout_l = wide(dout_l, UNIT)
    out += (batch * length * routes + route) * channels
    out_l = routes.to(tl.int64) * channels
    if order is not None:
        order += batch * order_b + route * order_r.to(tl.int64)
        links += batch * links_b + route * links_r.to(tl.int64)
    if state is not None:
        state += row.to(tl.int64) * state_s + route * state_r.to(tl.int64) + e.to(tl.int64) * state_e
    add = zero
    if bias is not None:
        add = tl.load(bias + route * bias_r + e, mask=live, other=0.0).to(tl.float32)
    weight += route * w_r.to(tl.int64) + e.to(tl.int64) * w_e
    taps = ()
    for k in tl.static_range(W):
        taps = taps + (tl.load(weight + k * w_w, mask=live, other=0.0).to(tl.float32),)

    # The window before the slot, newest position first: earlier visits up to a reset, then `state`.
    window = ()
    before = start - 1
    is_open = start >= begin
    from_state = start * 0
    for _ in tl.static_range(W - 1):
        if order is not None:
            before = tl.load(links + before, mask=before >= begin, other=-1)
            at = tl.load(order + before, mask=before >= begin, other=ABSENT)
            is_open = is_open & (at != RESET)
        else:
            at = before
        inside = before >= begin
        value = tl.load(x + tl.maximum(at, 0).to(tl.int64) * x_l + e, mask=live & is_open & inside, other=0.0)
        value = value.to(tl.float32)
        if state is not None:
            reads = is_open & (before < begin)
            value += tl.load(state + (W - 2 - from_state) * state_w, mask=live & reads, other=0.0)
            from_state += reads.to(tl.int32)
        window = (value,) + window
        before -= 1

    for s in range(start, stop, UNROLL):
        ps = ()
        qs = ()
        xs = ()
        dys = ()
        for u in tl.static_range(UNROLL):
            p = place(order, s + u, stop, length)
            q = tl.maximum(p, 0).to(tl.int64)
            ps = ps + (p,)
            qs = qs + (q,)
            xs = xs + (tl.load(x + q * x_l + e, mask=live & (p >= 0), other=0.0).to(tl.float32),)
            if dout is not None:
                dys = dys + (tl.load(dout + q * dout_l + e, mask=live & (p >= 0), other=0.0).to(tl.float32),)
        for u in tl.static_range(UNROLL):
            p = ps[u]
            y = add + taps[W - 1] * xs[u]
            new = ()
            for k in tl.static_range(W - 1):
                y += taps[k] * window[k]
                following = xs[u]
                if k < W - 2:
                    following = window[k + 1]
                new = new + (tl.where(p >= 0, following, tl.where(p == RESET, 0.0, window[k])),)
            window = new
            if SILU:
                gate = sigmoid(y)
                if dout is not None:
                    y = dys[u] * gate * (1.0 + y * (1.0 - gate))
                else:
                    y *= gate
            tl.store(out + qs[u] * out_l + e, y.to(out.dtype.element_ty), mask=live & (p >= 0))

    if final is not None:
        if (stop == end) & ((start < end) | (start == begin)):
            at_final = ((row.to(tl.int64) * routes + route) * channels + e) * (W - 1)
            for k in tl.static_range(W - 1):
                tl.store(final + at_final + k, window[k], mask=live)


@triton.jit(do_not_specialize=BACK_NUMBERS)
def conv_backward(
    x, weight, order, links, cu_seqlens, row_of_slot, state, dout, dfinal, dx, dweight, dbias, dstate,
    steps, length, channels, routes, per_row, chunk,
    x_b, x_l, x_r, w_r, w_e, w_w, bias_r, order_b, order_r, links_b, links_r, state_s, state_r, state_e, state_w,
    dout_b, dout_l, dout_r, dfinal_s, dfinal_r, dfinal_e, dfinal_w,
    W: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Gradients over a slot; every result may be None if it is not needed.

    Args:
        links: as for `conv_forward`, but the first step at or after each, or S.
        dfinal: gradient of the final windows, (rows, R, E, W - 1), or None.
        dx: (B, L, R, E) contiguous.
        dweight: (slots, R, W, E); dbias: (slots, R, E).
        dstate: (rows, R, E, W - 1) contiguous.
    """
    channels = channels * UNIT
    slot, route, block = program(tl.program_id(0), routes, tl.cdiv(channels, BLOCK))
    row, batch, start, stop, begin, end = bounds(slot, row_of_slot, cu_seqlens, steps, per_row, chunk)
    if start > end:
        return
    e = block * BLOCK + tl.arange(0, BLOCK)
    live = e < channels
    zero = tl.zeros([BLOCK], tl.float32)
    here = slot.to(tl.int64) * routes + route
    x += batch * wide(x_b, UNIT) + route * wide(x_r, UNIT)
    x_l = wide(x_l, UNIT)
    dout += batch * wide(dout_b, UNIT) + route * wide(dout_r, UNIT)
    dout_l = wide(dout_l, UNIT)
    of_route = (batch * length * routes + route) * channels
    grad_l = routes.to(tl.int64) * channels
    if order is not None:
        order += batch * order_b + route * order_r.to(tl.int64)
        links += batch * links_b + route * links_r.to(tl.int64)
    if dfinal is not None:
        dfinal += row.to(tl.int64) * dfinal_s + route * dfinal_r.to(tl.int64) + e.to(tl.int64) * dfinal_e
    weight += route * w_r.to(tl.int64) + e.to(tl.int64) * w_e
    taps = ()
    sums = ()
    for k in tl.static_range(W):
        taps = taps + (tl.load(weight + k * w_w, mask=live, other=0.0).to(tl.float32),)
        sums = sums + (zero,)
    sum_bias = zero

    # Gradients of the outputs after the slot, next one first, up to a reset; and the number of visits after a step,
    # which tells whether the final window still holds the step's position (W after a reset: it does not).
    coming = ()
    behind = start * 0
    after = stop
    is_open = start >= begin
    for _ in tl.static_range(W - 1):
        if order is not None:
            after = tl.load(links + after, mask=after < end, other=steps)
            at = tl.load(order + after, mask=after < end, other=ABSENT)
            is_open = is_open & (at != RESET)
        else:
            at = after
        visits = is_open & (after < end)
        value = tl.load(dout + tl.maximum(at, 0).to(tl.int64) * dout_l + e, mask=live & visits, other=0.0)
        coming = coming + (value.to(tl.float32),)
        behind += visits.to(tl.int32)
        after += 1
    behind = tl.where(is_open, behind, W)

    groups = tl.cdiv(stop - start, UNROLL)
    for i in range(groups):
        s = start + (groups - 1 - i) * UNROLL
        ps = ()
        qs = ()
        xs = ()
        dys = ()
        for u in tl.static_range(UNROLL):
            p = place(order, s + u, stop, length)
            q = tl.maximum(p, 0).to(tl.int64)
            ps = ps + (p,)
            qs = qs + (q,)
            xs = xs + (tl.load(x + q * x_l + e, mask=live & (p >= 0), other=0.0).to(tl.float32),)
            dys = dys + (tl.load(dout + q * dout_l + e, mask=live & (p >= 0), other=0.0).to(tl.float32),)
        for u in tl.static_range(UNROLL - 1, -1, -1):
            p = ps[u]
            grad = taps[W - 1] * dys[u]
            new = ()
            new_sums = ()
            for k in tl.static_range(W - 1):
                # The output j visits later used this position through tap W - 1 - j.
                new_sums = new_sums + (sums[k] + xs[u] * coming[W - 2 - k],)
                grad += taps[W - 2 - k] * coming[k]
                nearer = dys[u]
                if k > 0:
                    nearer = coming[k - 1]
                new = new + (tl.where(p >= 0, nearer, tl.where(p == RESET, 0.0, coming[k])),)
            sums = new_sums + (sums[W - 1] + xs[u] * dys[u],)
            coming = new
            sum_bias += dys[u]
            if dfinal is not None:
                held = (p >= 0) & (behind < W - 1)
                grad += tl.load(dfinal + (W - 2 - behind) * dfinal_w, mask=live & held, other=0.0).to(tl.float32)
            if dx is not None:
                tl.store(dx + of_route + qs[u] * grad_l + e, grad.to(dx.dtype.element_ty), mask=live & (p >= 0))
            behind = tl.where(p >= 0, tl.minimum(behind + 1, W), tl.where(p == RESET, W, behind))

    if start == begin:
        if state is not None:
            at_state = row.to(tl.int64) * state_s + route * state_r.to(tl.int64) + e.to(tl.int64) * state_e
            with_state = ()
            for k in tl.static_range(W):
                add = sums[k]
                for m in tl.static_range(k, W - 1):
                    add += tl.load(state + at_state + m * state_w, mask=live, other=0.0) * coming[m - k]
                with_state = with_state + (add,)
            sums = with_state
        if dstate is not None:
            at_dstate = ((row.to(tl.int64) * routes + route) * channels + e) * (W - 1)
            for m in tl.static_range(W - 1):
                to_state = zero
                for k in tl.static_range(m + 1):
                    to_state += taps[m - k] * coming[k]
                if dfinal is not None:
                    to_state += tl.load(dfinal + (m - behind) * dfinal_w, mask=live & (behind <= m), other=0.0)
                tl.store(dstate + at_dstate + m, to_state, mask=live)
    if dweight is not None:
        for k in tl.static_range(W):
            tl.store(dweight + (here * W + k) * channels + e, sums[k], mask=live)
    if dbias is not None:
        tl.store(dbias + here * channels + e, sum_bias, mask=live)
