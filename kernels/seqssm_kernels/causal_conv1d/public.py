"""The causal depthwise convolution along a route: the public functions.

The convolution that precedes Mamba's scan, with the same routes, orders, packing and states as the scan, and optionally
the SiLU that follows it in Mamba.
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
    """Causal depthwise convolution over the positions that a route visits.

    With `p[0], p[1], ...` the visited positions of a route, `out[p[s]] = bias + sum_k weight[k] * x[p[s - (W - 1) +
    k]]`. Steps without a visit do not shift the window. Inputs before the first visit are taken from `state`, or are
    zero.

    Sizes: batch `B`, positions `L`, routes `R`, channels per route `E`, window width `W`, steps of an order `S`. Either
    all of `x`, `weight`, `bias` and `state` have the route axis, or none has. If present, the axis of `x`, `weight` and
    `bias` may have size 1: the tensor is then read in place by all routes, and its gradient, also of size 1, is summed
    over the routes in a fixed order.

    Args:
        x: input `(B, L, R, E)` or `(B, L, E)`; float32, bfloat16, float16 or float64.
        weight: filter taps `(R, E, W)` or `(E, W)`, in the dtype of `x` or float32; `weight[..., -1]` multiplies the
            current step.
        bias: bias `(R, E)` or `(E,)`, in the dtype of `x` or float32.
        order: integer position indices `(1 or R, S)` or `(B, 1 or R, S)`, as for `selective_scan`: `-1` is not a step,
            `-2` clears the window. At unvisited positions `out` and all gradients are exactly 0, and values of `x` are
            ignored.
        cu_seqlens: int32 boundaries `(n + 1,)` of packed sequences, as for `selective_scan`: the window is cleared at
            the start of each of the `n` sequences.
        state: the window before the first step, oldest input first, `(B, R, E, W - 1)` or `(B, E, W - 1)`, with `n` in
            place of `B` for packed sequences; float32 (float64 with float64).
        activation: `"silu"` replaces `out` by `out * sigmoid(out)` in the same pass; None applies no activation. Values
            before the activation are recomputed in the backward pass.
        return_final_state: whether to also return the window after the last step.
        engine: `triton`, `numba`, `torch` or `reference`; None selects the fastest that supports device and dtype.

    Returns:
        `out` in the shape of `x` with all `R` routes and in its dtype, or `(out, final_state)`; gradients flow
        through both.

    Raises:
        ValueError: inconsistent shapes, dtypes or devices, an engine that does not support the call, an unknown
            activation, and on the CPU an invalid `order` or `cu_seqlens`.
        RuntimeError: second derivatives or forward-mode differentiation with an engine other than `reference`.
    """
    if activation not in (None, "silu"):
        raise ValueError(f"activation must be 'silu' or None, got {activation!r}")
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
    """One step of `causal_conv1d`, for decoding; equal to a call on the whole sequence that continues from `state`.

    Only forward orders can be continued step by step, as for `selective_scan_step`.

    Args:
        x: input of the step `(B, R, E)` or `(B, E)`.
        weight: filter taps `(R, E, W)` or `(E, W)`.
        bias: bias `(R, E)` or `(E,)`.
        state: window before the step `(B, R, E, W - 1)` or `(B, E, W - 1)`, float32 (float64 with float64).
        activation: activation, as for `causal_conv1d`.
        engine: engine, as for `causal_conv1d`.

    Returns:
        `out` in the shape of `x`, and the next window; `state` is not modified.

    Raises:
        ValueError: inconsistent shapes, dtypes or devices.
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
        raise ValueError(f"activation must be 'silu' or None, got {activation!r}")
    return _entry.step(ConvCall(x, weight, bias, None, None, state, activation is not None), engine)
