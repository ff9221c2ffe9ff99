"""Networks for any one lead: each lead of a recording is classified alone, and the probabilities are averaged."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 256  # leads per forward pass; bounds memory


def keep_one(x: Tensor, present: Tensor) -> Tensor:
    """Keep one random lead of each window (B, leads, n), of those in `present` (B, leads); the others become zero.

    Draws from torch's global generator. Without a present lead, the first one is kept.
    """
    chances = torch.rand(present.shape).masked_fill(~present, -1)
    return x * torch.zeros_like(chances).scatter_(1, chances.argmax(1, keepdim=True), 1).unsqueeze(2)


def present_leads(x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Return which leads of windows (B, leads, n) are not constant, (B, leads) bool; the first one if all are.

    Args:
        x: windows.
        lengths: valid samples of each window, (B,); None for all.
    """
    moved = x != x[..., :1]
    if lengths is not None:
        moved = moved & (torch.arange(x.shape[-1], device=x.device) < lengths.to(x.device)[:, None]).unsqueeze(1)
    found = moved.any(-1)
    found[:, 0] |= ~found.any(1)
    return found


def separated(x: Tensor, lengths: Tensor | None = None) -> tuple[list[tuple[Tensor, Tensor | None]], Tensor]:
    """Separate the present leads of windows (B, leads, n).

    Args:
        x: windows.
        lengths: valid samples of each window, (B,); None for all.

    Returns:
        Pairs of windows (k, leads, n) in which one lead is not zero, and their lengths, k up to `AT_ONCE`; and which
        leads they are, (B, leads) bool, in the order of its nonzero entries.
    """
    present = present_leads(x, lengths)
    rows, leads = present.nonzero(as_tuple=True)
    parts: list[tuple[Tensor, Tensor | None]] = []
    for start in range(0, len(rows), AT_ONCE):
        row, lead = rows[start : start + AT_ONCE], leads[start : start + AT_ONCE]
        single = x.new_zeros(len(row), *x.shape[1:])
        single[torch.arange(len(row), device=x.device), lead] = x[row, lead]
        parts.append((single, None if lengths is None else lengths[row.to(lengths.device)]))
    return parts, present


def mean_logits(logits: Tensor) -> Tensor:
    """Return the logit of the mean probability over leads, (B, m), of logits (B, leads, m); NaN for absent leads."""
    return torch.logit(logits.sigmoid().nanmean(1), eps=1e-6)


def pairs(truth: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and logits of every present lead of every record, (k, m) each.

    Args:
        truth: labels, (n, m).
        logits: logits by lead, (n, leads, m); NaN for absent leads.
    """
    present = np.isfinite(logits).all(axis=2)
    return np.repeat(truth[:, None], logits.shape[1], axis=1)[present], logits[present]
