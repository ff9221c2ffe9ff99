"""The scan of Mamba-2 (SSD): the public functions.

`ssd_scan` runs over whole sequences along one or more routes, `ssd_step` continues by one step. Both only check their
arguments and add the route axis where it is absent; the engines do the work.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqssm_kernels.contract import engines
from seqssm_kernels.contract.calls import SsdCall, SsdSizes, state_dtype
from seqssm_kernels.contract.operators import OPERATORS, below_autograd, refuse_forward_mode
from seqssm_kernels.contract.order import check_sizes, prepare
from seqssm_kernels.contract.validation import (
    FLOAT_DTYPES,
    Seen,
    Shape,
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
from seqssm_kernels.ssd_scan import reference

_operator = OPERATORS["ssd_scan"]
_seen = Seen()


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

    Sizes: batch `B`, positions `L`, routes `R`, heads of a route `H`, channels of a head `P`, groups `G`, state size
    `N`, steps of an order `S`. `G` divides `H`; head `h` uses group `h // (H / G)`. Either every tensor has the route
    axis or none has. With it, any tensor may have size 1 there: it is read in place by all routes, and its gradient, of
    size 1, is summed inside in a fixed order. `R` is the largest size, that of `order` included.

    Args:
        x: input `(B, L, R, H, P)` or `(B, L, H, P)`; float32, bfloat16, float16 or float64.
        dt: step size `(B, L, R, H)` or `(B, L, H)`; in the dtype of `x` or float32. Either sign.
        A: `(R, H)` or `(H,)`, float32 (float64 with float64, as for all parameters and states). Either sign.
        B: `(B, L, R, G, N)` or `(B, L, G, N)`, in the dtype of `x` or float32.
        C: as `B`.
        D: skip weight `(R, H)` or `(R, H, P)`; without the route axis `(H,)` or `(H, P)`.
        z: gate, as `x` and in its dtype.
        dt_bias: as `A`, added to `dt`.
        dt_softplus: whether softplus (the identity above 20) is applied to `dt + dt_bias`.
        w: input weight in the shape of `dt` and in the dtype of `x` or float32; replaces `dt` in the input term, the
            decay stays `exp(dt * A)`. Neither `dt_bias` nor softplus is applied to it.
        order: integer position ids `(1 or R, S)` or `(B, 1 or R, S)`; without it each route runs over all positions in
            their order. A route visits a position at most once. `-1`: no step, nothing is read or written. `-2`: the
            state is set to zero and nothing is visited. At unvisited positions `out` and all gradients are exactly 0
            and no value of an input matters.
        cu_seqlens: int32 `(n + 1,)` on the same device, from 0 to the number of steps: `n` sequences packed into the
            steps of one batch element, alike for every route. The state starts anew in each. Zero-length sequences
            are legal.
        initial_state: `(B, R, H, P, N)` or `(B, H, P, N)`, packed `(n, ...)`; zero if absent.
        return_final_state: whether to return the state after the last step of each route as well.
        engine: `triton`, `numba`, `torch` or `reference`; None takes the fastest that serves device and dtype.
            `reference` is the plain loop, the only one that can be differentiated twice.

    Returns:
        `out` in the shape of `x` with all `R` routes and in its dtype, or `(out, final_state)`. The final state has
        the shape of `initial_state`; gradients flow through both. With no step it is a copy of the initial state or
        zero.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, complex tensors, an engine that cannot serve
            the call, and on the CPU an id of `order` outside `[0, L)`, a position visited twice, or `cu_seqlens` that
            do not run from 0 to the number of steps.
        RuntimeError: when differentiated twice, or in forward mode, with an engine other than `reference`.
    """
    call = SsdCall(x, dt, A, B, C, D, z, dt_bias, dt_softplus, w, order, cu_seqlens, initial_state)
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
    """One step of `ssd_scan`, for decoding: the same numbers as a whole run that continues from `state`.

    Only forward orders can continue this way; see `selective_scan_step`.

    Args:
        x: `(B, R, H, P)` or `(B, H, P)`.
        dt: `(B, R, H)` or `(B, H)`.
        A: `(R, H)` or `(H,)`.
        B: `(B, R, G, N)` or `(B, G, N)`.
        C: as `B`.
        state: `(B, R, H, P, N)` or `(B, H, P, N)`, float32 (float64 with float64).
        D: as `A`, or `(R, H, P)` or `(H, P)`.
        z: as `x`.
        dt_bias: as `A`.
        dt_softplus: whether softplus is applied to `dt + dt_bias`.
        w: input weight in place of `dt`, as `dt`.
        A_is_log: whether `A` is given as Mamba-2's parameter `A_log`, so that the scan's A is `-exp(A)`.
        engine: as for `ssd_scan`.

    Returns:
        `out` in the shape of `x` and the next state; `state` itself is left as it is.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together.
    """
    if is_plain((x, dt, A, B, C, state, D, z, dt_bias, w)) and x.dim() in (3, 4) and x.dtype in FLOAT_DTYPES:
        step = getattr(engines.load("ssd_scan", engine, x.device.type, x.dtype), "step", None)
        done = None if step is None else step(x, dt, A, B, C, state, D, z, dt_bias, dt_softplus, w, A_is_log)
        if done is not None:
            return done
    if A_is_log:
        A = -torch.exp(A)
    check_kind("x", x, (3, 4), "(B, R, H, P) or (B, H, P)")
    for name, t, axes in (("dt", dt, -1), ("B", B, 0), ("C", C, 0), ("z", z, 0), ("w", w, -1)):
        if t is not None or name in ("dt", "B", "C"):
            check_kind(name, t, (x.dim() + axes,), f"of {x.dim() + axes} axes, one step like x")
    check_kind("state", state, (x.dim() + 1,), "(B, R, H, P, N) or (B, H, P, N)")
    out, state = ssd_scan(
        x.unsqueeze(1),
        dt.unsqueeze(1),
        A,
        B.unsqueeze(1),
        C.unsqueeze(1),
        D=D,
        z=None if z is None else z.unsqueeze(1),
        dt_bias=dt_bias,
        dt_softplus=dt_softplus,
        w=None if w is None else w.unsqueeze(1),
        initial_state=state,
        return_final_state=True,
        engine=engine,
    )
    return out.squeeze(1), state


def _canonical(call: SsdCall) -> SsdCall:
    """`call` with the route axis in every tensor and the batch axis in the order."""
    order = call.order
    if call.x.dim() == 5 and (order is None or order.dim() == 3):
        return call
    if call.x.dim() == 4:
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, w, _, cu_seqlens, initial_state = call
        call = SsdCall(
            x.unsqueeze(2), dt.unsqueeze(2), A.unsqueeze(0), B.unsqueeze(2), C.unsqueeze(2),
            None if D is None else D.unsqueeze(0), None if z is None else z.unsqueeze(2),
            None if dt_bias is None else dt_bias.unsqueeze(0), dt_softplus, None if w is None else w.unsqueeze(2),
            order, cu_seqlens, None if initial_state is None else initial_state.unsqueeze(1),
        )  # fmt: skip
    if order is not None and order.dim() == 2:
        call = call._replace(order=order.unsqueeze(0))
    return call


_AXES = {
    "dt": (4,), "B": (5,), "C": (5,), "z": (5,), "w": (4,),
    "A": (2,), "D": (2, 3), "dt_bias": (2,), "initial_state": (5,),
}  # fmt: skip
"""Numbers of axes, the route axis included."""


def _check(call: SsdCall, engine: str | None) -> tuple[bool, str]:
    """Checks kinds, dtypes, shapes and devices; returns whether the tensors have the route axis, and the engine."""
    x = call.x
    check_kind("x", x, (4, 5), "(B, L, R, H, P) or (B, L, H, P)")
    check_float("ssd_scan", x)
    route_axis = x.dim() == 5
    with_axis = "with the route axis, like x" if route_axis else "without the route axis, like x"
    tensors = {name: getattr(call, name) for name in _AXES}
    for name, axes in _AXES.items():
        if tensors[name] is None and name not in ("dt", "A", "B", "C"):
            continue
        here = tuple(n - (not route_axis) for n in axes)
        check_kind(name, tensors[name], here, f"of {' or '.join(map(str, here))} axes ({with_axis})")

    same_or_float32 = (x.dtype, torch.float32)
    state = (state_dtype(x.dtype),)
    allowed = dict.fromkeys(("dt", "B", "C", "w"), same_or_float32) | {"z": (x.dtype,)}
    for name, t in tensors.items():
        if t is not None:
            check_dtype(name, t, allowed.get(name, state), x)
            check_device(name, t, x)

    check_axes_of_tables(call.order, call.cu_seqlens)
    call = _canonical(call)
    sizes, order = call.sizes(), call.order
    if order is not None and not route_axis and order.shape[1] != 1:
        raise ValueError(f"order has {order.shape[1]} routes, but the tensors have no route axis: give them one")
    _check_shapes(call, sizes, route_axis)
    check_tables(order, call.cu_seqlens, call.x, sizes.routes)
    return route_axis, engines.choose("ssd_scan", engine, x.device.type, x.dtype)


def _check_shapes(call: SsdCall, sizes: SsdSizes, route_axis: bool) -> None:
    """Checks every shape of a call in canonical form."""
    b, length, r, h, p, g, n = (
        sizes.batch, sizes.length, sizes.routes, sizes.heads, sizes.head_dim, sizes.groups, sizes.d_state
    )  # fmt: skip
    if min(r, h, p, g, n) < 1:
        raise ValueError(
            "routes, heads, channels of a head, groups and state size must be at least 1, "
            f"got R = {r}, H = {h}, P = {p}, G = {g}, N = {n}"
        )
    if h % g:
        raise ValueError(f"the number of groups must divide the number of heads, got G = {g} and H = {h}")
    check_sizes(length, sizes.steps)
    shapes: dict[str, tuple[Shape, str]] = {
        "x": ((b, length, None, h, p), "B, L, R, H, P"),
        "dt": ((b, length, None, h), "B, L, R, H"),
        "A": ((None, h), "R, H"),
        "B": ((b, length, None, g, n), "B, L, R, G, N"),
        "C": ((b, length, None, g, n), "B, L, R, G, N"),
        "D": ((None, h), "R, H"),
        "z": ((b, length, None, h, p), "B, L, R, H, P"),
        "dt_bias": ((None, h), "R, H"),
        "w": ((b, length, None, h), "B, L, R, H"),
        "initial_state": (sizes.state_shape, f"{'B' if call.cu_seqlens is None else 'n'}, R, H, P, N"),
    }
    if call.D is not None and call.D.dim() == 3:
        shapes["D"] = ((None, h, p), "R, H, P")
    for name, (shape, layout) in shapes.items():
        t = getattr(call, name)
        if t is not None:
            check_shape(name, t, shape, r, layout, route_axis)
