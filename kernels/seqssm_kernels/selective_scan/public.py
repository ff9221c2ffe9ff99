"""The selective scan of Mamba: the public functions.

`selective_scan` runs over whole sequences along one or more routes, `selective_scan_step` goes on by one step. Both
only check their arguments and add the route axis where it is absent; the engines do the work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqssm_kernels.contract import engines
from seqssm_kernels.contract.calls import ScanCall, state_dtype
from seqssm_kernels.contract.operators import OPERATORS, below_autograd, refuse_forward_mode
from seqssm_kernels.contract.order import check_sizes, prepare
from seqssm_kernels.contract.validation import (
    FLOAT_DTYPES,
    Seen,
    any_requires_grad,
    check_axes_of_tables,
    check_device,
    check_dtype,
    check_float,
    check_kind,
    check_shape,
    check_tables,
    is_plain,
    signature_of,
)
from seqssm_kernels.selective_scan import reference

_operator = OPERATORS["selective_scan"]
_seen = Seen()


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
    known = None
    compiling = torch.compiler.is_compiling()
    if not compiling:
        signature = signature_of(engine, call)
        known = _seen.get(signature)
    if known is None:
        known = _check(call, engine)
        if not compiling:
            _seen.put(signature, known)
    route_axis, chosen = known

    call = _canonical(call)
    if chosen == "reference":
        out, final_state = reference.forward(prepare(call))
    else:
        refuse_forward_mode(call)
        save = any_requires_grad(call)
        with below_autograd(save):
            out, final_state, _ = _operator(*call, save, engine or "")
    if not route_axis:
        out = out.squeeze(2)
    if not return_final_state:
        return out
    return out, final_state if route_axis else final_state.squeeze(1)


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
    check_kind("x", x, (2, 3), "(B, R, E) or (B, E)")
    tensors = {"dt": dt, "B": B, "C": C} if z is None else {"dt": dt, "B": B, "C": C, "z": z}
    for name, t in tensors.items():
        check_kind(name, t, (x.dim(),), f"of {x.dim()} axes like x")
    check_kind("state", state, (x.dim() + 1,), "(B, R, E, N) or (B, E, N)")
    out, state = selective_scan(
        x.unsqueeze(1),
        dt.unsqueeze(1),
        A,
        B.unsqueeze(1),
        C.unsqueeze(1),
        D=D,
        z=None if z is None else z.unsqueeze(1),
        dt_bias=dt_bias,
        dt_softplus=dt_softplus,
        initial_state=state,
        return_final_state=True,
        engine=engine,
    )
    return out.squeeze(1), state


def _canonical(call: ScanCall) -> ScanCall:
    """`call` with the route axis in every tensor and the batch axis in the order."""
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, order, cu_seqlens, initial_state = call
    if x.dim() == 4 and (order is None or order.dim() == 3):
        return call
    if x.dim() == 3:
        x, dt, A, B, C = x.unsqueeze(2), dt.unsqueeze(2), A.unsqueeze(0), B.unsqueeze(2), C.unsqueeze(2)
        D = None if D is None else D.unsqueeze(0)
        z = None if z is None else z.unsqueeze(2)
        dt_bias = None if dt_bias is None else dt_bias.unsqueeze(0)
        initial_state = None if initial_state is None else initial_state.unsqueeze(1)
    if order is not None and order.dim() == 2:
        order = order.unsqueeze(0)
    return ScanCall(x, dt, A, B, C, D, z, dt_bias, dt_softplus, order, cu_seqlens, initial_state)


def _check(call: ScanCall, engine: str | None) -> tuple[bool, str]:
    """Checks kinds, dtypes, shapes and devices; answers whether the tensors have the route axis, and the engine."""
    x = call.x
    check_kind("x", x, (3, 4), "(B, L, R, E) or (B, L, E)")
    check_float("selective_scan", x)
    route_axis = x.dim() == 4
    with_axis = "with the route axis, like x" if route_axis else "without the route axis, like x"
    of_places = {"dt": call.dt, "B": call.B, "C": call.C, "z": call.z}
    of_channels = {"D": call.D, "dt_bias": call.dt_bias}
    tensors = {**of_places, "A": call.A, **of_channels, "initial_state": call.initial_state}
    for name, t in tensors.items():
        if t is None and name in ("z", "D", "dt_bias", "initial_state"):
            continue
        axes = 2 if name in of_channels else 3 if name == "A" else 4
        check_kind(name, t, (axes - (not route_axis),), f"of {axes - (not route_axis)} axes ({with_axis})")

    same_or_float32 = (x.dtype, torch.float32)
    state = (state_dtype(x.dtype),)
    allowed = {"dt": same_or_float32, "B": same_or_float32, "C": same_or_float32, "z": (x.dtype,)}
    for name, t in tensors.items():
        if t is not None:
            check_dtype(name, t, allowed.get(name, state), x)
            check_device(name, t, x)

    check_axes_of_tables(call.order, call.cu_seqlens)
    call = _canonical(call)
    x, dt, A, B, C, D, z, dt_bias, _, order, cu_seqlens, initial_state = call
    sizes = call.sizes()
    if order is not None and not route_axis and order.shape[1] != 1:
        raise ValueError(f"order has {order.shape[1]} routes, but the tensors have no route axis: give them one")
    b, length, r, e, n = sizes.batch, sizes.length, sizes.routes, sizes.channels, sizes.d_state
    if min(r, e, n) < 1:
        raise ValueError(f"routes, channels and state size must be at least 1, got R = {r}, E = {e}, N = {n}")
    check_sizes(length, sizes.steps)
    check_shape("x", x, (b, length, None, e), r, "B, L, R, E", route_axis)
    check_shape("dt", dt, (b, length, None, e), r, "B, L, R, E", route_axis)
    check_shape("A", A, (None, e, n), r, "R, E, N", route_axis)
    check_shape("B", B, (b, length, None, n), r, "B, L, R, N", route_axis)
    check_shape("C", C, (b, length, None, n), r, "B, L, R, N", route_axis)
    if D is not None:
        check_shape("D", D, (None, e), r, "R, E", route_axis)
    if z is not None:
        check_shape("z", z, (b, length, None, e), r, "B, L, R, E", route_axis)
    if dt_bias is not None:
        check_shape("dt_bias", dt_bias, (None, e), r, "R, E", route_axis)
    check_tables(order, cu_seqlens, x, r)
    if initial_state is not None:
        rows = "B" if cu_seqlens is None else "n"
        layout = f"{rows}, R, E, N"
        check_shape("initial_state", initial_state, (sizes.sequences, r, e, n), r, layout, route_axis)
    return route_axis, engines.choose("selective_scan", engine, x.device.type, x.dtype)
