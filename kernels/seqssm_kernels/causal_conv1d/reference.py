"""The causal depthwise convolution along a route as a plain loop over steps: its executable definition.

The window holds the last `W` visited positions of the route. Steps without a visit do not change it, a reset clears it.
Deliberately simple and slow; supports any float dtype and second derivatives. All other engines are tested against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqssm_kernels.contract.calls import ConvCall, state_dtype
from seqssm_kernels.contract.indexing import step_masks, to_places, to_steps


def forward(call: ConvCall) -> tuple[Tensor, Tensor]:
    """Slide the window step by step: `out[p] = bias + sum_k weight[k] * window[k]`, the newest position last.

    Returns:
        `out (B, L, R, E)` in the dtype of `x`, and the final window `(B or n, R, E, W - 1)` in float32 (float64 for
        float64).
    """
    x, weight, bias, order, cu_seqlens, state, silu = call
    acc = state_dtype(x.dtype)
    sizes = call.sizes()

    x_s = to_steps(x.to(acc), order, sizes.routes)
    masks = step_masks(order, trailing=2)
    bounds = [0, sizes.steps] if cu_seqlens is None else cu_seqlens.tolist()
    if state is None:
        state = x.new_zeros(sizes.state_shape, dtype=acc)
    starts = (state,) if cu_seqlens is None else state.split(1)

    weight = weight.to(acc)
    ys: list[Tensor] = []
    finals: list[Tensor] = []
    steps = x_s.unbind(1)
    for start, stop, past in zip(bounds, bounds[1:], starts):
        for s in range(start, stop):
            window = torch.cat([past, steps[s][..., None]], dim=-1)
            ys.append((window * weight).sum(-1))
            past_next = window[..., 1:]
            if masks is not None:
                visited, reset = masks
                past_next = torch.where(visited[s], past_next, past)
                past_next = torch.where(reset[s], torch.zeros_like(past), past_next)
            past = past_next
        finals.append(past)

    y = torch.stack(ys, dim=1) if ys else x_s[:, :0]
    if bias is not None:
        y = y + bias.to(acc)
    if silu:
        y = F.silu(y)
    if cu_seqlens is not None:  # steps after the last sequence are ignored
        y = F.pad(y, (0, 0, 0, 0, 0, sizes.steps - len(ys)))
    out = to_places(y, order, sizes.length).to(x.dtype)
    final_state = torch.cat(finals) if finals else state.clone()
    return out, final_state
