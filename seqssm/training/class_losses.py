"""Losses of classes that are learned later (Mamba-FSCIL, arXiv 2407.06136, and the ETF classifier of FSCIL)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seqssm.nn.selective_projector import Selected

DOT_WEIGHT = 10.0


def dot_regression(cosines: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """Compute the dot-regression loss, w / 2 mean((cos - 1)^2) with w = 10, over the cosines to the own direction.

    Args:
        cosines: cosines of features and class directions, (B, C).
        y: class indices, (B,), or probabilities, (B, C), of which the expected loss is computed.
        weights: weights of the classes, (C,); the mean is then weighted.
    """
    if y.ndim == 1:
        y = F.one_hot(y, cosines.shape[1]).to(cosines.dtype)
    error = (y * (cosines - 1).square()).sum(1)
    if weights is None:
        return DOT_WEIGHT / 2 * error.mean()
    own = y @ weights
    return DOT_WEIGHT / 2 * (own * error).sum() / own.sum()


def gate_size(gate: Tensor) -> Tensor:
    """Compute the size of a gate before its SiLU: its root mean square.

    The paper divides the Euclidean norm by the number of elements instead of its square root, so that the effect of a
    weight depends on the numbers of samples, tokens and channels; its weight 100 for 64 samples of 4 tokens and 640
    channels is 0.25 here.

    Args:
        gate: gate of some samples, (B, T, D).
    """
    return torch.linalg.vector_norm(gate) / max(1, gate.numel()) ** 0.5


def suppression(base: Tensor, novel: Tensor, on_base: float, on_novel: float) -> Tensor:
    """Compute the suppression loss: the gate is pushed towards 0 for base samples, and away from it for novel ones.

    Args:
        base: gates of base samples, (B, T, D).
        novel: gates of novel samples, (B', T, D).
        on_base: weight of the base samples.
        on_novel: weight of the novel samples.
    """
    return on_base * gate_size(base) - on_novel * gate_size(novel)


def separation(base: Selected, novel: Selected) -> Tensor:
    """Compute the separation loss: the mean dt, B and C of base and novel samples should be orthogonal.

    For each of the three, the means over samples and tokens are normalised, and the loss is the mean of |I - S| over
    their 2 x 2 matrix S of cosines; the three losses are added.

    Args:
        base: selective parameters of base samples.
        novel: selective parameters of novel samples.
    """
    total = base.dt.new_zeros(())
    for name in ("dt", "B", "C"):
        means = torch.stack([getattr(one, name).flatten(0, 1).mean(0) for one in (base, novel)])
        means = F.normalize(means, dim=-1)
        total = total + (torch.eye(2, dtype=means.dtype, device=means.device) - means @ means.T).abs().mean()
    return total
