"""The scan of Mamba-2 (SSD): the public functions.

`ssd_scan` runs over whole sequences along one or more routes, `ssd_step` continues by one step. Both validate their
arguments, add the route axis if it is absent, and call an engine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqssm_kernels.contract import engines
from seqssm_kernels.contract.calls import SsdCall
from seqssm_kernels.contract.entry import Entry
from seqssm_kernels.contract.validation import FLOAT_DTYPES, is_plain
from seqssm_kernels.ssd_scan import reference

_entry = Entry("ssd_scan", reference.forward)


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    w: Tensor | None = None,
    order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    engine: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """State-space scan with one scalar decay per head (Mamba-2) along one or more routes.

    For each route and head, over the positions `p` in the order of the route, with the group's `B[p]` and `C[p]`::

        h      <- exp(dt[p] * A) * h + w[p] * x[p] B[p]^T
        y[p]    = h C[p] + D * x[p]
        out[p]  = y[p] * silu(z[p])

    where `dt[p]` is `softplus(dt[p] + dt_bias)` if `dt_softplus`, else `dt[p] + dt_bias`, and `w[p]` is that `dt[p]`
    unless `w` is given. This is the recurrence of T. Dao and A. Gu, "Transformers are SSMs: Generalized Models and
    Efficient Algorithms Through Structured State Space Duality" (2024), section 6.

    Sizes: batch `B`, positions `L`, routes `R`, heads per route `H`, channels per head `P`, groups `G`, state size `N`,
    steps of an order `S`. `G` divides `H`; head `h` uses group `h // (H / G)`. Either all tensors have the route axis
    or none has. If present, the axis may have size 1: the tensor is then read in place by all routes, and its gradient,
    also of size 1, is summed over the routes in a fixed order. `R` is the largest size of the axis over all tensors,
    including `order`.

    Args:
        x: input `(B, L, R, H, P)` or `(B, L, H, P)`; float32, bfloat16, float16 or float64.
        dt: step size `(B, L, R, H)` or `(B, L, H)`; in the dtype of `x` or float32. May have either sign.
        A: decay rate `(R, H)` or `(H,)`, float32 (float64 with float64, as for all parameters and states). May have
            either sign.
        B: input projection `(B, L, R, G, N)` or `(B, L, G, N)`, in the dtype of `x` or float32.
        C: output projection, in the shape of `B`.
        D: skip weight `(R, H)` or `(R, H, P)`; without the route axis `(H,)` or `(H, P)`.
        z: gate, in the shape and dtype of `x`.
        dt_bias: bias added to `dt`, in the shape of `A`.
        dt_softplus: whether softplus (the identity above 20) is applied to `dt + dt_bias`.
        w: input weight in the shape of `dt` and in the dtype of `x` or float32; replaces `dt` in the input term, the
            decay stays `exp(dt * A)`. Neither `dt_bias` nor softplus is applied to it.
        order: integer position indices `(1 or R, S)` or `(B, 1 or R, S)`; None runs each route over all positions in
            their order. A route visits a position at most once. `-1` is not a step: nothing is read or written. `-2`
            sets the state to zero without a visit. At unvisited positions `out` and all gradients are exactly 0, and
            input values are ignored.
        cu_seqlens: int32 boundaries `(n + 1,)` on the same device, from 0 to the number of steps: `n` sequences packed
            into the steps of one batch element, the same for every route. The state is reset at the start of each.
            Zero-length sequences are allowed.
        initial_state: state before the first step, `(B, R, H, P, N)` or `(B, H, P, N)`, packed `(n, ...)`; zero if
            absent.
        return_final_state: whether to also return the state after the last step of each route.
        engine: `triton`, `numba`, `torch` or `reference`; None selects the fastest that supports device and dtype. Only
            `reference`, the plain loop, supports second derivatives.

    Returns:
        `out` in the shape of `x` with all `R` routes and in its dtype, or `(out, final_state)`. The final state has
        the shape of `initial_state`; gradients flow through both. Without any steps it is a copy of the initial state,
        or zero.

    Raises:
        ValueError: inconsistent shapes, dtypes or devices, complex tensors, an engine that does not support the call,
            and on the CPU an index of `order` outside `[0, L)`, a position visited twice, or `cu_seqlens` that do not
            run from 0 to the number of steps.
        RuntimeError: second derivatives or forward-mode differentiation with an engine other than `reference`.
    """
    call = SsdCall(x, dt, A, B, C, D, z, dt_bias, dt_softplus, w, order, cu_seqlens, initial_state)
    return _entry.whole(call, return_final_state, engine)


def ssd_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    w: Tensor | None = None,
    A_is_log: bool = False,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of `ssd_scan`, for decoding; equal to a call on the whole sequence that continues from `state`.

    Only forward orders can be continued step by step; see `selective_scan_step`.

    Args:
        x: input of the step `(B, R, H, P)` or `(B, H, P)`.
        dt: step size `(B, R, H)` or `(B, H)`.
        A: decay rate `(R, H)` or `(H,)`.
        B: input projection `(B, R, G, N)` or `(B, G, N)`.
        C: output projection, in the shape of `B`.
        state: state before the step `(B, R, H, P, N)` or `(B, H, P, N)`, float32 (float64 with float64).
        D: skip weight in the shape of `A`, or `(R, H, P)` or `(H, P)`.
        z: gate, in the shape of `x`.
        dt_bias: bias added to `dt`, in the shape of `A`.
        dt_softplus: whether softplus is applied to `dt + dt_bias`.
        w: input weight in place of `dt`, in the shape of `dt`.
        A_is_log: whether `A` is Mamba-2's parameter `A_log`; the scan then uses `-exp(A)`.
        engine: engine, as for `ssd_scan`.

    Returns:
        `out` in the shape of `x`, and the next state; `state` is not modified.

    Raises:
        ValueError: inconsistent shapes, dtypes or devices.
    """
    if is_plain((x, dt, A, B, C, state, D, z, dt_bias, w)) and x.dim() in (3, 4) and x.dtype in FLOAT_DTYPES:
        step = getattr(engines.load("ssd_scan", engine, x.device.type, x.dtype), "step", None)
        done = None if step is None else step(x, dt, A, B, C, state, D, z, dt_bias, dt_softplus, w, A_is_log)
        if done is not None:
            return done
    if A_is_log:
        A = -torch.exp(A)
    return _entry.step(SsdCall(x, dt, A, B, C, D, z, dt_bias, dt_softplus, w, None, None, state), engine)
