"""Integrated gradients (Sundararajan et al. 2017): contribution of each instance of a bag to an output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqssm_pathology.base import MILNetwork

STEPS = 16


def integrated_gradients(
    network: MILNetwork,
    features: Tensor,
    order: Tensor,
    output: Callable[[Tensor], Tensor],
    steps: int = STEPS,
) -> Tensor:
    """Attribute an output to the instances of a bag, along the straight path from all-zero features to `features`.

    Standardised features are zero at the mean of the training instances. The attributions of all instances sum to the
    output of the bag minus that of a bag of such mean instances, up to the error of the midpoint rule.

    Args:
        network: the network, in eval mode.
        features: scaled features, (N, D).
        order: scan order of the instances, (N,) int64.
        output: function from logits (1, K) to the explained quantity, (1,).
        steps: number of points on the path.

    Returns:
        Attributions, (N,), in the unit of the output.
    """
    count = len(order)
    cu_seqlens = torch.tensor([0, count], dtype=torch.int32, device=features.device)
    total = torch.zeros_like(features)
    with torch.inference_mode(False), torch.enable_grad():
        features, order = features.clone(), order.clone()
        for step in range(steps):
            point = ((step + 0.5) / steps * features).requires_grad_()
            value = output(network(point, cu_seqlens, [count], order).logits.float())
            total = total + torch.autograd.grad(value.sum(), point)[0]
    return (features * total / steps).sum(1).detach()
