"""Integrated gradients (Sundararajan et al. 2017): contribution of each sample of each lead to the logit of a class."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

STEPS = 32
AT_ONCE = 8  # points of the path per forward pass


def integrated_gradients(network: nn.Module, x: Tensor, column: int, steps: int = STEPS) -> Tensor:
    """Attribute the logit of a class (leads, n) along the straight path from a flat recording (zeros) to `x`.

    The attributions sum to the logit of `x` minus that of a flat recording, up to the error of the midpoint rule.

    Args:
        network: module in eval mode that maps (B, leads, n) to logits (B, m).
        x: input of the network, (leads, n).
        column: index of the class.
        steps: number of points on the path.
    """
    total = torch.zeros_like(x)
    points = (torch.arange(steps, dtype=x.dtype, device=x.device) + 0.5) / steps
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone()
        for part in points.split(AT_ONCE):
            path = (part[:, None, None] * x).requires_grad_()
            logit = network(path)[:, column].sum()
            total = total + torch.autograd.grad(logit, path)[0].sum(0)
    return (x * total / steps).detach()


def by_lead(attribution: np.ndarray) -> np.ndarray:
    """Return the (leads,) fraction of each lead in the sum of absolute attributions; zeros if the sum is zero."""
    size = np.abs(attribution).sum(1)
    return size / size.sum() if size.sum() > 0 else size


def smooth(attribution: np.ndarray, samples: int) -> np.ndarray:
    """Smooth the (leads, n) absolute attribution by a moving mean over `samples`, for display."""
    width = max(1, min(samples, attribution.shape[1]))
    kernel = np.ones(width) / width
    return np.stack([np.convolve(row, kernel, mode="same") for row in np.abs(attribution)])
