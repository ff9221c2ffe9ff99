"""Both strands of token sequences in torch: reverse complements that leave padding where it is."""

from __future__ import annotations

import torch
from torch import Tensor

from seqssm_dna.tokens import complement_ids


def complement_table(size: int) -> Tensor:
    """(size,) int64: id -> id of the complement, as a buffer of a network.

    Args:
        size: of the vocabulary.
    """
    return torch.from_numpy(complement_ids(size))


def turned(mask: Tensor) -> Tensor:
    """(B, L) int64: for each position the one that it changes places with when the real positions are reversed.

    Args:
        mask: (B, L), true at real positions, on any side; padding stays where it is.
    """
    mask = mask.bool()
    order = (~mask).to(torch.int8).argsort(dim=1, stable=True)  # real positions first, in order
    counts = mask.sum(1, keepdim=True)
    rank = torch.arange(mask.shape[1], device=mask.device).expand_as(order)
    source = torch.where(rank < counts, counts - 1 - rank, rank)
    return torch.empty_like(order).scatter_(1, order, order.gather(1, source))


def flip_positions(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Real positions in reverse.

    Args:
        x: (B, L) or (B, L, D).
        mask: (B, L), true at real positions; None: all.
    """
    if mask is None:
        return x.flip(1)
    index = turned(mask)
    return x.gather(1, index if x.ndim == 2 else index.unsqueeze(-1).expand_as(x))


def reverse_complement(ids: Tensor, mask: Tensor | None = None, table: Tensor | None = None) -> Tensor:
    """The opposite strand, read in its own direction: (B, L) to (B, L).

    Args:
        ids: (B, L) integers: bases only, without special tokens among the real positions.
        mask: (B, L), true at real positions; None: all.
        table: of `complement_table`; None makes it.
    """
    table = complement_table(max(12, int(ids.max()) + 1 if ids.numel() else 12)) if table is None else table
    return flip_positions(table.to(ids.device)[ids], mask).to(ids.dtype)


def compacted(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Padding moved behind the real positions: (ids, counts (B,)).

    Args:
        ids: (B, L).
        mask: (B, L), true at real positions.
    """
    order = (~mask.bool()).to(torch.int8).argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.sum(1)
