"""Decoding step of a Mamba layer without its outer projections: convolution, selection of dt, B and C, and scan."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import linear

from seqssm_kernels.causal_conv1d.public import causal_conv1d_step
from seqssm_kernels.contract import engines
from seqssm_kernels.contract.validation import is_plain
from seqssm_kernels.selective_scan.public import selective_scan_step


class MambaWeights(NamedTuple):
    """Weights of a Mamba layer with one route, between `in_proj` and `out_proj`.

    Sizes: channels `E`, states `N`, taps `W`, rank of dt `K`.

    Attributes:
        conv: filter taps `(E, W)`, or `(E, 1, W)` as `torch.nn.Conv1d` has them.
        conv_bias: bias of the convolution `(E,)`, or None.
        select: weight of `x_proj` `(K + 2 N, E)`, whose rows give dt at low rank, B and C.
        dt: weight of `dt_proj` `(E, K)`.
        dt_bias: bias of `dt_proj` `(E,)`, or None.
        A_log: log of -A, `(E, N)`.
        D: skip weight `(E,)`.
    """

    conv: Tensor
    conv_bias: Tensor | None
    select: Tensor
    dt: Tensor
    dt_bias: Tensor | None
    A_log: Tensor
    D: Tensor


def mamba_step(
    xz: Tensor, weights: MambaWeights, window: Tensor, state: Tensor, *, engine: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of a Mamba layer between `in_proj` and `out_proj` (arXiv 2312.00752, figure 3).

    Equal, up to rounding, to `causal_conv1d_step` with SiLU, the two projections and `selective_scan_step` with
    softplus of dt. With the `numba` engine, float32 and a small batch all of this is one compiled call without
    gradient; otherwise these functions are called one after the other.

    Args:
        xz: output of `in_proj` `(B, 2 E)`: the channels, then the gate.
        weights: weights of the layer.
        window: window of the convolution before the step `(B, E, W - 1)` or `(B, 1, E, W - 1)`.
        state: state of the scan before the step `(B, E, N)` or `(B, 1, E, N)`.
        engine: engine, as for `selective_scan`.

    Returns:
        the gated output `(B, E)`, the next window and the next state in the shapes of those before, which are not
        modified.

    Raises:
        ValueError: inconsistent shapes, dtypes or devices.
    """
    if is_plain((xz, *weights, window, state)):
        layer_step = getattr(engines.load("selective_scan", engine, xz.device.type, xz.dtype), "layer_step", None)
        done = None if layer_step is None else layer_step(xz, weights, window, state)
        if done is not None:
            return done
    u, z = xz.chunk(2, dim=-1)
    taps = weights.conv if weights.conv.dim() == 2 else weights.conv.squeeze(1)
    before = [t.squeeze(1) if t.dim() == 4 else t for t in (window, state)]
    u, new_window = causal_conv1d_step(u, taps, weights.conv_bias, before[0], activation="silu", engine=engine)
    states = weights.A_log.shape[-1]
    low, B, C = linear(u, weights.select).split([weights.dt.shape[-1], states, states], dim=-1)
    dt = linear(low, weights.dt, weights.dt_bias)
    shared = {"D": weights.D, "z": z, "dt_softplus": True, "A_is_log": True, "engine": engine}
    y, new_state = selective_scan_step(u, dt, weights.A_log, B, C, before[1], **shared)  # type: ignore[arg-type]
    return y, new_window.view(window.shape), new_state.view(state.shape)
