"""The scan of Mamba-2 of 8-bit integers: the public functions, for inference."""

from __future__ import annotations

import torch
from torch import Tensor

from seqssm_kernels.contract import engines
from seqssm_kernels.contract.calls import Scales, SsdInt8Call
from seqssm_kernels.contract.entry import Entry
from seqssm_kernels.contract.validation import FLOAT_DTYPES, is_plain
from seqssm_kernels.ssd_scan_int8 import reference

_entry = Entry("ssd_scan_int8", reference.forward)


def ssd_scan_int8(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    x_scale: Tensor,
    B_scale: Tensor,
    C_scale: Tensor,
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
    """Scan of Mamba-2 whose x, B and C are 8-bit integers times scales; states and sums are float32.

    Equal to `ssd_scan` of `x * x_scale`, `B * B_scale` and `C * C_scale`, which are never stored. For inference: there
    are no gradients. This is the scan of H.-Y. Chiang et al., "Quamba2: A Robust and Scalable Post-training
    Quantization Framework for Selective State Space Models" (2025), section 3.

    Args:
        x: int8 input `(B, L, R, H, P)` or `(B, L, H, P)`.
        dt: step size `(B, L, R, H)` or `(B, L, H)`; float32, bfloat16, float16 or float64. The output has its dtype.
        A: decay rate `(R, H)` or `(H,)`, float32 (float64 with float64, as for all parameters and states).
        B: int8 input projection `(B, L, R, G, N)` or `(B, L, G, N)`.
        C: int8 output projection, in the shape of `B`.
        x_scale: scale of each channel, `(1 or R, H, P)` or `(H, P)`.
        B_scale: scale of B of each group and state, `(1 or R, G, N)` or `(G, N)`.
        C_scale: scale of C, in the shape of `B_scale`.
        D: skip weight, as in `ssd_scan`.
        z: gate, in the shape of `x` and the dtype of `dt`.
        dt_bias: bias added to `dt`.
        dt_softplus: whether softplus is applied to `dt + dt_bias`.
        order: order table, as in `ssd_scan`.
        cu_seqlens: boundaries of packed sequences, as in `ssd_scan`.
        initial_state: state before the first step.
        return_final_state: whether to also return the state after the last step of each route.
        engine: engine, as for `ssd_scan`.

    Returns:
        `out` in the shape of `x` with all routes and in the dtype of `dt`, or `(out, final_state)`.

    Raises:
        ValueError: inconsistent shapes, dtypes or devices, or an engine that does not support the call.
        RuntimeError: a gradient is computed.
    """
    call = SsdInt8Call(
        x, dt, A, B, C, x_scale, B_scale, C_scale, D, z, dt_bias, dt_softplus, order, cu_seqlens, initial_state
    )
    return _entry.whole(call, return_final_state, engine)


def ssd_int8_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    *,
    x_scale: Tensor,
    B_scale: Tensor,
    C_scale: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    A_is_log: bool = False,
    engine: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of `ssd_scan_int8`, for decoding.

    Args:
        x: int8 input of the step `(B, R, H, P)` or `(B, H, P)`.
        dt: step size `(B, R, H)` or `(B, H)`.
        A: decay rate `(R, H)` or `(H,)`.
        B: int8 input projection `(B, R, G, N)` or `(B, G, N)`.
        C: int8 output projection, in the shape of `B`.
        state: state before the step `(B, R, H, P, N)` or `(B, H, P, N)`, float32 (float64 with float64).
        x_scale: scale of each channel, `(R, H, P)` or `(H, P)`.
        B_scale: scale of B of each group and state, `(R, G, N)` or `(G, N)`.
        C_scale: scale of C, in the shape of `B_scale`.
        D: skip weight in the shape of `A`, or `(R, H, P)` or `(H, P)`.
        z: gate, in the shape of `x`.
        dt_bias: bias added to `dt`, in the shape of `A`.
        dt_softplus: whether softplus is applied to `dt + dt_bias`.
        A_is_log: whether `A` is Mamba-2's parameter `A_log`; the scan then uses `-exp(A)`.
        engine: engine, as for `ssd_scan`.

    Returns:
        `out` in the shape of `x` and the dtype of `dt`, and the next state; `state` is not modified.

    Raises:
        ValueError: inconsistent shapes, dtypes or devices.
    """
    scales = Scales(x_scale, B_scale, C_scale)
    plain = is_plain((x, dt, A, B, C, state, D, z, dt_bias, *scales))
    if plain and x.dim() in (3, 4) and dt.dtype in FLOAT_DTYPES:
        step = getattr(engines.load("ssd_scan_int8", engine, x.device.type, dt.dtype), "step", None)
        call = (x, dt, A, B, C, state, D, z, dt_bias, dt_softplus, None, A_is_log)
        done = None if step is None else step(call, scales)
        if done is not None:
            return done
    if A_is_log:
        A = -torch.exp(A)
    return _entry.step(SsdInt8Call(x, dt, A, B, C, *scales, D, z, dt_bias, dt_softplus, None, None, state), engine)
