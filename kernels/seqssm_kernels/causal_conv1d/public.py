"""The causal depthwise convolution along a route: the public functions.

The convolution in front of Mamba's scan, with the same routes, orders, packing and states as the scan, and the SiLU
that Mamba puts behind it.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from seqssm_kernels.causal_conv1d import reference
from seqssm_kernels.contract import engines
from seqssm_kernels.contract.calls import ConvCall
from seqssm_kernels.contract.entry import Entry
from seqssm_kernels.contract.validation import FLOAT_DTYPES, is_plain

_entry = Entry("causal_conv1d", reference.forward)


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
    return _entry.whole(call, return_final_state, engine)


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
    if activation not in (None, "silu"):
        raise ValueError(f"activation is 'silu' or None, not {activation!r}")
    return _entry.step(ConvCall(x, weight, bias, None, None, state, activation is not None), engine)
