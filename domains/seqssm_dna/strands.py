"""Reverse complements of padded token sequences in torch; padding keeps its position."""

from __future__ import annotations

import torch
from torch import Tensor

from seqssm_dna.tokens import complement_ids


def complement_table(size: int) -> Tensor:
    """Return the complement of each token id, (size,) int64, for a buffer of a network.

    Args:
        size: size of the vocabulary.
    """
    return torch.from_numpy(complement_ids(size))


def turned(mask: Tensor) -> Tensor:
    """Return the permutation that reverses the real positions, (B, L) int64.

    Args:
        mask: mask, (B, L), True at real positions, with padding on either side; padding keeps its position.
    """
    mask = mask.bool()
    order = (~mask).to(torch.int8).argsort(dim=1, stable=True)  # real positions first, in order
    counts = mask.sum(1, keepdim=True)
    rank = torch.arange(mask.shape[1], device=mask.device).expand_as(order)
    source = torch.where(rank < counts, counts - 1 - rank, rank)
    return torch.empty_like(order).scatter_(1, order, order.gather(1, source))


def flip_positions(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Reverse the real positions.

    Args:
        x: tensor, (B, L) or (B, L, D).
        mask: mask, (B, L), True at real positions; None for no padding.
    """
    if mask is None:
        return x.flip(1)
    index = turned(mask)
    return x.gather(1, index if x.ndim == 2 else index.unsqueeze(-1).expand_as(x))


def reverse_complement(ids: Tensor, mask: Tensor | None = None, table: Tensor | None = None) -> Tensor:
    """Return the reverse complement of token ids, (B, L).

    Args:
        ids: token ids, (B, L); the real positions contain bases only, no special tokens.
        mask: mask, (B, L), True at real positions; None for no padding.
        table: result of `complement_table`; computed if None.
    """
    table = complement_table(max(12, int(ids.max()) + 1 if ids.numel() else 12)) if table is None else table
    return flip_positions(table.to(ids.device)[ids], mask).to(ids.dtype)


def compacted(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Move padding to the end; return (ids, number of real positions (B,)).

    Args:
        ids: token ids, (B, L).
        mask: mask, (B, L), True at real positions.
    """
    order = (~mask.bool()).to(torch.int8).argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.sum(1)
