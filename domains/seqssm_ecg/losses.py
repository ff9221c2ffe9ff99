"""Losses of several labels: the asymmetric loss, and the challenge's score of probabilities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def asymmetric(
    logits: Tensor,
    y: Tensor,
    plus: float = 1.0,
    minus: float = 4.0,
    shift: float = 0.05,
    known: Tensor | None = None,
) -> Tensor:
    """Compute the asymmetric loss (Ridnik et al. 2021, equation 7), mean over the known labels.

    -y (1 - p)^plus log p - (1 - y) q^minus log(1 - q) with q = max(p - shift, 0).

    Args:
        logits: logits, (B, m).
        y: labels, (B, m).
        plus: exponent of positives.
        minus: exponent of negatives.
        shift: probability below which negatives are ignored.
        known: which labels are known, (B, m) bool; None for all.
    """
    p = logits.sigmoid()
    q = (p - shift).clamp(min=0)
    positive = y * (1 - p) ** plus * F.logsigmoid(logits)
    negative = (1 - y) * q**minus * torch.log1p(-q.clamp(max=1 - 1e-6))
    weights = shares(known)
    return -(positive + negative if weights is None else (positive + negative) * weights).mean()


def soft_challenge(p: Tensor, y: Tensor, weights: Tensor, sinus: int, known: Tensor | None = None) -> Tensor:
    """Compute the challenge's score of a batch with probabilities in place of decisions; differentiable.

    It equals the score for probabilities of 0 and 1. Like the score, it is 0 if the denominator is 0, and unknown
    labels are negative in truth and outputs.

    Args:
        p: probabilities, (B, m).
        y: labels, (B, m), 0 where unknown.
        weights: weights of the score, (m, m).
        sinus: column of sinus rhythm.
        known: which labels are known, (B, m) bool; None for all.
    """

    def scored(outputs: Tensor) -> Tensor:
        either = (y + outputs - y * outputs).sum(1).clamp(min=1)
        return (weights * ((y / either[:, None]).T @ outputs)).sum()

    normal = torch.zeros_like(y)
    normal[:, sinus] = 1
    if known is not None:
        p, normal = p * known, normal * known
    inactive, correct = scored(normal), scored(y)
    span = correct - inactive
    return torch.where(span.abs() > 1e-6, (scored(p) - inactive) / span.clamp(min=1e-6), torch.zeros_like(span))


def shares(known: Tensor | None) -> Tensor | None:
    """Weights (B, m) whose product with a loss has the mean of the loss over known labels as its mean; None for all."""
    return None if known is None else known * (known.numel() / known.sum().clamp(min=1))
