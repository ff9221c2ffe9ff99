"""The causal depthwise convolution along a route: the public functions.

The convolution in front of Mamba's scan, with the same routes, orders, packing and states as the scan, and the SiLU
that Mamba puts behind it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from seqssm_kernels.causal_conv1d import reference
from seqssm_kernels.contract import engines
from seqssm_kernels.contract.calls import ConvCall, state_dtype
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

_operator = OPERATORS["causal_conv1d"]
_seen = Seen()


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    state: Tensor | None = None,
    activation: Literal["silu"] | None = None,
    return_final_state: bool = False,
    engine: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal depthwise convolution over the places that a route visits.

    With `p[0], p[1], ...` the visited places of a route, `out[p[s]] = bias + sum_k weight[k] * x[p[s - (W - 1) +
    k]]`: steps without a visit do not shift the window, and what lies before the first visit is `state`, or zero.

    Sizes: batch `B`, places `L`, routes `R`, channels of a route `E`, width of the window `W`, steps of an order
    `S`. Either `x`, `weight`, `bias` and `state` all have the route axis or none has. With it, `x`, `weight` and
    `bias` may have size 1 there: read in place by all routes, the gradient, of size 1, summed inside in a fixed
    order.

    Args:
        x: `(B, L, R, E)` or `(B, L, E)`; float32, bfloat16, float16 or float64.
        weight: `(R, E, W)` or `(E, W)`, in the dtype of `x` or float32; `weight[..., -1]` multiplies the current step.
        bias: `(R, E)` or `(E,)`, as `weight`.
        order: integer place ids `(1 or R, S)` or `(B, 1 or R, S)`, as for `selective_scan`: `-1` is no step, `-2`
            empties the window. At unvisited places `out` and all gradients are exactly 0 and no value of `x`
            matters.
        cu_seqlens: int32 `(n + 1,)`, as for `selective_scan`: the window starts anew in each of the `n` packed
            sequences.
        state: the window before the first step, oldest first, `(B, R, E, W - 1)` or `(B, E, W - 1)`, packed `n`
            instead of `B`; float32 (float64 with float64).
        activation: `"silu"` gives `out * sigmoid(out)` in its place, computed in the same pass. What stands before the
            activation is not kept for the gradient: it is computed anew. None applies nothing.
        return_final_state: whether to return the window after the last step as well.
        engine: `triton`, `numba`, `torch` or `reference`; None takes the fastest that serves device and dtype.

    Returns:
        `out` in the shape of `x` with all `R` routes and in its dtype, or `(out, final_state)`; gradients flow
        through both.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, an engine that cannot serve the call,
            another activation, and on the CPU an illegal `order` or `cu_seqlens`.
        RuntimeError: when differentiated twice, or in forward mode, with an engine other than `reference`.
    """
    if activation not in (None, "silu"):
        raise ValueError(f"activation is 'silu' or None, not {activation!r}")
    call = ConvCall(x, weight, bias, order, cu_seqlens, state, activation is not None)
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
        with below_autograd(any_requires_grad(call)):
            out, final_state = _operator(*call, engine or "")
    if not route_axis:
        out = out.squeeze(2)
    if not return_final_state:
        return out
    return out, final_state if route_axis else final_state.squeeze(1)


def causal_conv1d_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    *,
    activation: Literal["silu"] | None = None,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of `causal_conv1d`, for decoding: the same numbers as a whole run that goes on from `state`.

    Only forward orders can go on this way, as for `selective_scan_step`.

    Args:
        x: `(B, R, E)` or `(B, E)`.
        weight: `(R, E, W)` or `(E, W)`.
        bias: `(R, E)` or `(E,)`.
        state: `(B, R, E, W - 1)` or `(B, E, W - 1)`, float32 (float64 with float64).
        activation: as for `causal_conv1d`.
        engine: as for `causal_conv1d`.

    Returns:
        `out` in the shape of `x` and the next window; `state` itself is left as it is.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together.
    """
    if (
        is_plain((x, weight, bias, state))
        and x.dim() in (2, 3)
        and x.dtype in FLOAT_DTYPES
        and activation in (None, "silu")
    ):
        step = getattr(engines.load("causal_conv1d", engine, x.device.type, x.dtype), "step", None)
        done = None if step is None else step(x, weight, bias, state, activation is not None)
        if done is not None:
            return done
    check_kind("x", x, (2, 3), "(B, R, E) or (B, E)")
    check_kind("state", state, (x.dim() + 1,), "(B, R, E, W - 1) or (B, E, W - 1)")
    out, state = causal_conv1d(
        x.unsqueeze(1), weight, bias, state=state, activation=activation, return_final_state=True, engine=engine
    )
    return out.squeeze(1), state


def _canonical(call: ConvCall) -> ConvCall:
    """`call` with the route axis in every tensor and the batch axis in the order."""
    x, weight, bias, order, cu_seqlens, state, silu = call
    if x.dim() == 4 and (order is None or order.dim() == 3):
        return call
    if x.dim() == 3:
        x, weight = x.unsqueeze(2), weight.unsqueeze(0)
        bias = None if bias is None else bias.unsqueeze(0)
        state = None if state is None else state.unsqueeze(1)
    if order is not None and order.dim() == 2:
        order = order.unsqueeze(0)
    return ConvCall(x, weight, bias, order, cu_seqlens, state, silu)


def _check(call: ConvCall, engine: str | None) -> tuple[bool, str]:
    """Checks kinds, dtypes, shapes and devices; answers whether the tensors have the route axis, and the engine."""
    x = call.x
    check_kind("x", x, (3, 4), "(B, L, R, E) or (B, L, E)")
    check_float("causal_conv1d", x)
    route_axis = x.dim() == 4
    with_axis = "with the route axis, like x" if route_axis else "without the route axis, like x"
    optional = (("bias", call.bias, 2), ("state", call.state, 4))
    given: list[tuple[str, Tensor, int]] = [("weight", call.weight, 3)]
    given += [(name, t, axes) for name, t, axes in optional if t is not None]
    for name, t, axes in given:
        check_kind(name, t, (axes - (not route_axis),), f"of {axes - (not route_axis)} axes ({with_axis})")
        check_dtype(name, t, (state_dtype(x.dtype),) if name == "state" else (x.dtype, torch.float32), x)
        check_device(name, t, x)

    check_axes_of_tables(call.order, call.cu_seqlens)
    call = _canonical(call)
    x, weight, bias, order, cu_seqlens, state, _ = call
    sizes = call.sizes()
    if order is not None and not route_axis and order.shape[1] != 1:
        raise ValueError(f"order has {order.shape[1]} routes, but the tensors have no route axis: give them one")
    r, e, w = sizes.routes, sizes.channels, sizes.width
    if min(r, e, w) < 1:
        raise ValueError(f"routes, channels and window must be at least 1, got R = {r}, E = {e}, W = {w}")
    check_sizes(sizes.length, sizes.steps)
    check_shape("x", x, (sizes.batch, sizes.length, None, e), r, "B, L, R, E", route_axis)
    check_shape("weight", weight, (None, e, w), r, "R, E, W", route_axis)
    if bias is not None:
        check_shape("bias", bias, (None, e), r, "R, E", route_axis)
    check_tables(order, cu_seqlens, x, r)
    if state is not None:
        layout = "B, R, E, W - 1" if cu_seqlens is None else "n, R, E, W - 1"
        check_shape("state", state, (sizes.sequences, r, e, w - 1), r, layout, route_axis)
    return route_axis, engines.choose("causal_conv1d", engine, x.device.type, x.dtype)
