"""The selective scan of Mamba: the public functions.

`selective_scan` runs over whole sequences along one or more routes, `selective_scan_step` advances by one step. Both
validate their arguments, add the route axis if it is absent, and call an engine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqssm_kernels.contract import engines
from seqssm_kernels.contract.calls import ScanCall
from seqssm_kernels.contract.entry import Entry
from seqssm_kernels.contract.validation import FLOAT_DTYPES, is_plain
from seqssm_kernels.selective_scan import reference

_entry = Entry("selective_scan", reference.forward)


def selective_scan(
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
    order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
    engine: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan along one or more routes over the positions of a sequence.

    For each route, over the positions `p` in the order of the route::

        h      <- exp(dt[p] * A) * h + dt[p] * B[p] * x[p]
        y[p]    = <C[p], h> + D * x[p]
        out[p]  = y[p] * silu(z[p])

    where `dt[p]` is `softplus(dt[p] + dt_bias)` if `dt_softplus`, else `dt[p] + dt_bias`. This is the recurrence of
    A. Gu and T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), section 3.2 and
    algorithm 2.

    Sizes: batch `B`, positions `L`, routes `R`, channels per route `E`, state size `N`, steps of an order `S`. Either
    all tensors have the route axis or none has. If present, the axis may have size 1: the tensor is then read in place
    by all routes, and its gradient, also of size 1, is summed over the routes in a fixed order. `R` is the largest size
    of the axis over all tensors, including `order`.

    Args:
        x: input `(B, L, R, E)` or `(B, L, E)`; float32, bfloat16, float16 or float64.
        dt: step size in the shape of `x`; in the dtype of `x` or float32. May have either sign.
        A: state matrix `(R, E, N)` or `(E, N)`, float32 (float64 with float64, as for all parameters and states). May
            have either sign.
        B: input projection `(B, L, R, N)` or `(B, L, N)`, in the dtype of `x` or float32.
        C: output projection, in the shape of `B`.
        D: skip weight `(R, E)` or `(E,)`.
        z: gate, in the shape and dtype of `x`.
        dt_bias: bias added to `dt`, `(R, E)` or `(E,)`.
        dt_softplus: whether softplus (the identity above 20) is applied to `dt + dt_bias`.
        order: integer position indices `(1 or R, S)` or `(B, 1 or R, S)`; None runs each route over all positions in
            their order. A route visits a position at most once. `-1` is not a step: nothing is read or written. `-2`
            sets the state to zero without a visit. At unvisited positions `out` and all gradients are exactly 0, and
            input values are ignored.
        cu_seqlens: int32 boundaries `(n + 1,)` on the same device, from 0 to the number of steps: `n` sequences packed
            into the steps of one batch element, the same for every route. The state is reset at the start of each.
            Zero-length sequences are allowed.
        initial_state: state before the first step, `(B, R, E, N)` or `(B, E, N)`, packed `(n, R, E, N)` or `(n, E, N)`;
            zero if absent.
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
    call = ScanCall(x, dt, A, B, C, D, z, dt_bias, dt_softplus, order, cu_seqlens, initial_state)
    return _entry.whole(call, return_final_state, engine)


def selective_scan_step(
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
    A_is_log: bool = False,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of `selective_scan`, for decoding; equal to a call on the whole sequence that continues from `state`.

    Only forward orders can be continued step by step: other orders visit earlier positions after later ones. Such
    routes require `selective_scan` on whole sequences.

    Args:
        x: input of the step `(B, R, E)` or `(B, E)`.
        dt: step size, in the shape of `x`.
        A: state matrix `(R, E, N)` or `(E, N)`.
        B: input projection `(B, R, N)` or `(B, N)`.
        C: output projection, in the shape of `B`.
        state: state before the step `(B, R, E, N)` or `(B, E, N)`, float32 (float64 with float64).
        D: skip weight `(R, E)` or `(E,)`.
        z: gate, in the shape of `x`.
        dt_bias: bias added to `dt`, in the shape of `D`.
        dt_softplus: whether softplus is applied to `dt + dt_bias`.
        A_is_log: whether `A` is Mamba's parameter `A_log`; the scan then uses `-exp(A)`.
        engine: engine, as for `selective_scan`.

    Returns:
        `out` in the shape of `x`, and the next state; `state` is not modified.

    Raises:
        ValueError: inconsistent shapes, dtypes or devices.
    """
    if is_plain((x, dt, A, B, C, state, D, z, dt_bias)) and x.dim() in (2, 3) and x.dtype in FLOAT_DTYPES:
        step = getattr(engines.load("selective_scan", engine, x.device.type, x.dtype), "step", None)
        done = None if step is None else step(x, dt, A, B, C, state, D, z, dt_bias, dt_softplus, A_is_log)
        if done is not None:
            return done
    if A_is_log:
        A = -torch.exp(A)
    return _entry.step(ScanCall(x, dt, A, B, C, D, z, dt_bias, dt_softplus, None, None, state), engine)
