"""The scan of Mamba-2 as a plain loop over steps: its executable definition.

Supports any float dtype and second derivatives, checked by gradcheck; all other engines are tested against it. Steps
are split with `unbind` and joined with `stack`, because slicing inside the loop would make the backward pass quadratic
in the length.

Recurrence: T. Dao and A. Gu, "Transformers are SSMs" (2024), section 6 (SSD with heads and groups).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seqssm_kernels.contract.calls import SsdCall, state_dtype
from seqssm_kernels.contract.indexing import step_masks, to_places, to_steps


def forward(call: SsdCall) -> tuple[Tensor, Tensor]:
    """Run the recurrence step by step.

    Returns:
        `out (B, L, R, H, P)` in the dtype of `x`, and the final state `(B or n, R, H, P, N)` in float32 (float64 for
        float64).
    """
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, w, order, cu_seqlens, initial_state = call
    acc = state_dtype(x.dtype)
    sizes = call.sizes()

    def steps_of(t: Tensor) -> Tensor:
        """`(B, L, 1 or R, ...)` along the order: `(B, S, R, ...)`."""
        return to_steps(t.to(acc).flatten(3), order, sizes.routes).unflatten(3, t.shape[3:])

    x_s, dt_s = steps_of(x), steps_of(dt)
    B_s, C_s = (steps_of(t).repeat_interleave(sizes.heads // sizes.groups, 3) for t in (B, C))
    if dt_bias is not None:
        dt_s = dt_s + dt_bias.to(acc)
    if dt_softplus:
        dt_s = F.softplus(dt_s, threshold=20.0)
    w_s = dt_s if w is None else steps_of(w)
    masks = step_masks(order, trailing=3)

    # A packed call has several sequences in one batch element; otherwise all batch elements are one range of steps.
    bounds = [0, sizes.steps] if cu_seqlens is None else cu_seqlens.tolist()
    if initial_state is None:
        initial_state = x.new_zeros(sizes.state_shape, dtype=acc)
    starts = (initial_state,) if cu_seqlens is None else initial_state.split(1)

    ys: list[Tensor] = []
    finals: list[Tensor] = []
    decays = torch.exp(dt_s * A)[..., None, None].unbind(1)
    inputs, B_list, C_list = (w_s[..., None] * x_s).unbind(1), B_s.unbind(1), C_s.unbind(1)
    for start, stop, h in zip(bounds, bounds[1:], starts):
        for s in range(start, stop):
            h_next = decays[s] * h + inputs[s][..., :, None] * B_list[s][..., None, :]
            if masks is not None:
                visited, reset = masks
                h_next = torch.where(visited[s], h_next, h)
                h_next = torch.where(reset[s], torch.zeros_like(h), h_next)
            h = h_next
            ys.append((h * C_list[s][..., None, :]).sum(-1))
        finals.append(h)

    y = torch.stack(ys, dim=1) if ys else torch.zeros_like(x_s)
    if D is not None:
        y = y + (D if D.dim() == 3 else D[..., None]).to(acc) * x_s
    if z is not None:
        y = y * F.silu(steps_of(z))
    out = to_places(y.flatten(3), order, sizes.length).unflatten(3, y.shape[3:]).to(x.dtype)
    final_state = torch.cat(finals) if finals else initial_state.clone()
    return out, final_state
