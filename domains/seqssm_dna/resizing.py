"""Weights for a vocabulary of another size."""

from __future__ import annotations

import re

import torch
from torch import Tensor


def resized(weights: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Fit embeddings and heads to a vocabulary of another size.

    The tokens of bases come first in every vocabulary: rows of further tokens are dropped, new rows are the mean of the
    existing ones.

    Args:
        weights: tensors by name.
        rows: size of the vocabulary.
    """
    found = dict(weights)
    for name, value in weights.items():
        if re.search(r"(^|\.)(embedding|lm_head)\.weight$", name) and len(value) != rows:
            mean = value.float().mean(0, keepdim=True).to(value.dtype)
            found[name] = torch.cat([value[:rows], mean.expand(max(rows - len(value), 0), -1)])
    return found
