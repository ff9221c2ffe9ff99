"""The selective scan of Mamba: the public functions.

`selective_scan` runs over whole sequences along one or more routes, `selective_scan_step` goes on by one step. Both
only check their arguments and add the route axis where it is absent; the engines do the work.
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
    """Selective scan along one or more routes over the places of a sequence.

    For each route, over the places `p` in the order of the route::

        h      <- exp(dt[p] * A) * h + dt[p] * B[p] * x[p]
        y[p]    = <C[p], h> + D * x[p]
        out[p]  = y[p] * silu(z[p])

    where `dt[p]` is `softplus(dt[p] + dt_bias)` if `dt_softplus`, else `dt[p] + dt_bias`. This is the recurrence of
    A. Gu and T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), section 3.2 and
    algorithm 2.

    Sizes: batch `B`, places `L`, routes `R`, channels of a route `E`, state size `N`, steps of an order `S`. Either
    every tensor has the route axis or none has. With it, any tensor may have size 1 there: it is read in place by
    all routes and its gradient, of size 1, is summed inside in a fixed order. `R` is the largest size, that of
    `order` included.

    Args:
        x: input `(B, L, R, E)` or `(B, L, E)`; float32, bfloat16, float16 or float64.
        dt: step size, as `x`; in the dtype of `x` or float32. Either sign.
        A: `(R, E, N)` or `(E, N)`, float32 (float64 with float64, as for all parameters and states). Either sign.
        B: `(B, L, R, N)` or `(B, L, N)`, in the dtype of `x` or float32.
        C: as `B`.
        D: skip weight `(R, E)` or `(E,)`.
        z: gate, as `x` and in its dtype.
        dt_bias: `(R, E)` or `(E,)`, added to `dt`.
        dt_softplus: whether softplus (the identity above 20) is applied to `dt + dt_bias`.
        order: integer place ids `(1 or R, S)` or `(B, 1 or R, S)`; without it each route runs over all places in
            their order. A route visits a place at most once. `-1`: no step, nothing is read or written. `-2`: the
            state is set to zero and nothing is visited. At unvisited places `out` and all gradients are exactly 0
            and no value of an input matters.
        cu_seqlens: int32 `(n + 1,)` on the same device, from 0 to the number of steps: `n` sequences packed into
            the steps of one batch element, alike for every route. The state starts anew in each. Zero-length
            sequences are legal.
        initial_state: `(B, R, E, N)` or `(B, E, N)`, packed `(n, R, E, N)` or `(n, E, N)`; zero if absent.
        return_final_state: whether to return the state after the last step of each route as well.
        engine: `triton`, `numba`, `torch` or `reference`; None takes the fastest that serves device and dtype.
            `reference` is the plain loop, the only one that can be differentiated twice.

    Returns:
        `out` in the shape of `x` with all `R` routes and in its dtype, or `(out, final_state)`. The final state has
        the shape of `initial_state`; gradients flow through both. With no step it is a copy of the initial state or
        zero.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, complex tensors, an engine that cannot serve
            the call, and on the CPU an id of `order` outside `[0, L)`, a place visited twice, or `cu_seqlens` that
            do not run from 0 to the number of steps.
        RuntimeError: when differentiated twice, or in forward mode, with an engine other than `reference`.
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
    """One step of `selective_scan`, for decoding: the same numbers as a whole run that goes on from `state`.

    Only forward orders can go on this way: the state that a reverse or other order needs next lies at a place that is
    already past. Such routes take whole sequences through `selective_scan`.

    Args:
        x: `(B, R, E)` or `(B, E)`.
        dt: as `x`.
        A: `(R, E, N)` or `(E, N)`.
        B: `(B, R, N)` or `(B, N)`.
        C: as `B`.
        state: `(B, R, E, N)` or `(B, E, N)`, float32 (float64 with float64).
        D: `(R, E)` or `(E,)`.
        z: as `x`.
        dt_bias: as `D`.
        dt_softplus: whether softplus is applied to `dt + dt_bias`.
        A_is_log: whether `A` is given as Mamba's parameter `A_log`, so that the scan's A is `-exp(A)`.
        engine: as for `selective_scan`.

    Returns:
        `out` in the shape of `x` and the next state; `state` itself is left as it is.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together.
    """
    if is_plain((x, dt, A, B, C, state, D, z, dt_bias)) and x.dim() in (2, 3) and x.dtype in FLOAT_DTYPES:
        step = getattr(engines.load("selective_scan", engine, x.device.type, x.dtype), "step", None)
        done = None if step is None else step(x, dt, A, B, C, state, D, z, dt_bias, dt_softplus, A_is_log)
        if done is not None:
            return done
    if A_is_log:
        A = -torch.exp(A)
    return _entry.step(ScanCall(x, dt, A, B, C, D, z, dt_bias, dt_softplus, None, None, state), engine)
