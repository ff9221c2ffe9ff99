"""The selective scan as a plain loop over steps: its executable definition.

Deliberately simple and slow: one line of Python per line of the formula, any float dtype, second derivatives, checked
by gradcheck. All other engines are tested against it. Steps are split with `unbind` and joined with `stack`: slicing
`x[:, s]` inside the loop would make the backward pass quadratic in the length.

Recurrence: A. Gu and T. Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", section 3.2, with the
discretisation of section 3.6 (zero-order hold for A, Euler for B).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seqssm_kernels.contract.calls import ScanCall, state_dtype
from seqssm_kernels.contract.indexing import step_masks, to_places, to_steps


def forward(call: ScanCall) -> tuple[Tensor, Tensor]:
    """Run the recurrence step by step.

    Returns:
        `out (B, L, R, E)` in the dtype of `x`, and the final state `(B or n, R, E, N)` in float32 (float64 for
        float64).
    """
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, order, cu_seqlens, initial_state = call
    acc = state_dtype(x.dtype)
    sizes = call.sizes()
    routes = sizes.routes

    # A packed call has several sequences in one batch element; otherwise all batch elements are one range of steps.
    # Steps after the last sequence are ignored.
    bounds = [0, sizes.steps] if cu_seqlens is None else cu_seqlens.tolist()
    end = None if cu_seqlens is None else bounds[-1]
    x_s, dt_s, B_s, C_s = (to_steps(t.to(acc), order, routes)[:, :end] for t in (x, dt, B, C))
    if dt_bias is not None:
        dt_s = dt_s + dt_bias.to(acc)
    if dt_softplus:
        dt_s = F.softplus(dt_s, threshold=20.0)
    masks = step_masks(order, trailing=2)

    if initial_state is None:
        initial_state = x.new_zeros(sizes.state_shape, dtype=acc)
    starts = (initial_state,) if cu_seqlens is None else initial_state.split(1)

    ys: list[Tensor] = []
    finals: list[Tensor] = []
    dt_list, B_list, C_list = dt_s.unbind(1), B_s.unbind(1), C_s.unbind(1)
    dtx_list = (dt_s * x_s).unbind(1)
    for start, stop, h in zip(bounds, bounds[1:], starts):
        for s in range(start, stop):
            h_next = torch.exp(dt_list[s][..., None] * A) * h + dtx_list[s][..., None] * B_list[s][..., None, :]
            if masks is not None:
                visited, reset = masks
                h_next = torch.where(visited[s], h_next, h)
                h_next = torch.where(reset[s], torch.zeros_like(h), h_next)
            h = h_next
            ys.append((h * C_list[s][..., None, :]).sum(-1))
        finals.append(h)

    y = torch.stack(ys, dim=1) if ys else torch.zeros_like(x_s)
    if D is not None:
        y = y + D.to(acc) * x_s
    if z is not None:
        y = y * F.silu(to_steps(z.to(acc), order, routes)[:, :end])
    if end is not None:
        y = F.pad(y, (0, 0, 0, 0, 0, sizes.steps - end))
    out = to_places(y, order, sizes.length).to(x.dtype)
    final_state = torch.cat(finals) if finals else initial_state.clone()
    return out, final_state
