"""The scan under the name and in the layout that existing Mamba code calls: `selective_scan_fn`, `(B, D, L)`."""

from __future__ import annotations

import torch
from torch import Tensor

from seqssm_kernels.contract.calls import state_dtype
from seqssm_kernels.selective_scan.public import selective_scan


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan of channels-first tensors, a drop-in for code written against Mamba's own function.

    `u`, `delta` and `z` are copied once into the channel-last layout; `B` and `C` with groups become routes,
    without further copies. Code that can choose its layout saves the copies by calling `selective_scan`.

    Args:
        u: `(B, D, L)`; float32, bfloat16, float16 or float64.
        delta: `(B, D, L)`.
        A: `(D, N)`, real.
        B: `(B, N, L)`, or `(B, G, N, L)` with `G` groups of `D / G` neighbouring channels.
        C: as `B`.
        D: `(D,)`.
        z: `(B, D, L)`.
        delta_bias: `(D,)`.
        delta_softplus: whether softplus is applied to `delta + delta_bias`.
        return_last_state: whether to return the state after the last step as well.

    Returns:
        `out (B, D, L)` in the dtype of `u`, or `(out, last_state)` with `last_state (B, D, N)`; both are
        differentiable.

    Raises:
        ValueError: complex parameters, `B` or `C` constant in time, or shapes that do not fit together.
    """
    if u.dim() != 3:
        raise ValueError(f"u must be (B, D, L), got shape {tuple(u.shape)}")
    if A.is_complex() or B.is_complex() or C.is_complex():
        raise ValueError("complex A, B and C (S4-style) are not supported: the scan is real")
    for name, t in (("B", B), ("C", C)):
        if t.dim() == 2:
            raise ValueError(
                f"{name} is constant in time, (D, N): linear time-invariant systems are not served, "
                f"give {name} as (B, N, L) or (B, G, N, L)"
            )
        if t.dim() not in (3, 4):
            raise ValueError(f"{name} must be (B, N, L) or (B, G, N, L), got shape {tuple(t.shape)}")
    batch, channels, length = u.shape
    of_states = [t.unsqueeze(1) if t.dim() == 3 else t for t in (B, C)]
    groups = max(t.shape[1] for t in of_states)
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels cannot be divided into the {groups} groups of B and C")
    for name, like_u in (("delta", delta), ("z", z)):
        if like_u is not None and like_u.shape != u.shape:
            raise ValueError(f"{name} has shape {tuple(like_u.shape)}, expected that of u, {tuple(u.shape)}")
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A has shape {tuple(A.shape)}, expected (D, N) with D = {channels}")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None and vector.shape != (channels,):
            raise ValueError(f"{name} has shape {tuple(vector.shape)}, expected ({channels},)")

    def by_route(t: Tensor) -> Tensor:
        return t.reshape(batch, groups, channels // groups, length).permute(0, 3, 1, 2).contiguous()

    def of_channels(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(state_dtype(u.dtype)).reshape(groups, -1)

    result = selective_scan(
        by_route(u),
        by_route(delta),
        A.reshape(groups, channels // groups, A.shape[1]),
        *(t.permute(0, 3, 1, 2).contiguous() for t in of_states),
        D=of_channels(D),
        z=None if z is None else by_route(z),
        dt_bias=of_channels(delta_bias),
        dt_softplus=delta_softplus,
        return_final_state=True,
    )
    out, last_state = result
    out = out.permute(0, 2, 3, 1).reshape(batch, channels, length)
    if not return_last_state:
        return out
    return out, torch.flatten(last_state, 1, 2)
