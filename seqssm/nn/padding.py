"""Padded and packed sequences as rows whose valid positions come first."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Rows:
    """The sequences of a call, one per row, with the valid positions of each at its start.

    Args:
        x: input of the layer, (B, L, ...).
        mask: valid positions, (B, L) bool; None if all are valid.
        cu_seqlens: start offsets of packed sequences (B = 1) and the total length, (n + 1,) int32. Read on the host.

    Attributes:
        lengths: number of valid positions of each row, (rows,) int64; None: all of them.

    Raises:
        ValueError: `mask` with `cu_seqlens`, or wrong shapes.
    """

    def __init__(self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> None:
        if mask is not None and cu_seqlens is not None:
            raise ValueError("packed sequences have no padding: give mask or cu_seqlens, not both")
        if mask is not None and mask.shape != x.shape[:2]:
            raise ValueError(f"mask has shape {tuple(mask.shape)}, the sequences {tuple(x.shape[:2])}")
        self.mask = None if mask is None else mask.bool()
        self.sizes: list[int] | None = None
        self.length = x.shape[1]
        self.lengths: Tensor | None = None
        if self.mask is not None:
            self.lengths = self.mask.sum(1)
            self.places = torch.argsort((~self.mask).to(torch.uint8), dim=1, stable=True).unsqueeze(-1)
        if cu_seqlens is not None:
            if x.shape[0] != 1:
                raise ValueError(f"packed sequences must be in one batch element, not in {x.shape[0]}")
            ends = cu_seqlens.tolist()
            if len(ends) < 1 or ends[0] != 0 or ends[-1] > x.shape[1] or any(a > b for a, b in pairwise(ends)):
                raise ValueError(f"cu_seqlens must rise from 0 to at most L = {x.shape[1]}, got {ends[:8]}")
            self.sizes = [b - a for a, b in pairwise(ends)]
            self.lengths = cu_seqlens.diff().to(x.device).long()

    def split(self, values: Tensor) -> Tensor:
        """Return the rows of values (B, L, K), (rows, longest, K)."""
        if self.mask is not None:
            return values.gather(1, self.places.expand_as(values))
        if self.sizes is None:
            return values
        if not self.sizes:
            return values.new_zeros(0, 0, values.shape[-1])
        pieces = list(values[0, : sum(self.sizes)].split(self.sizes))
        return nn.utils.rnn.pad_sequence(pieces, batch_first=True)

    def join(self, values: Tensor) -> Tensor:
        """Return values of rows (rows, longest, K) at their positions, (B, L, K); 0 where there is no valid one."""
        if self.mask is not None:
            back = torch.zeros_like(values).scatter(1, self.places.expand_as(values), values)
            return back.masked_fill(~self.mask.unsqueeze(-1), 0)
        if self.sizes is None:
            return values
        if not self.sizes:
            return values.new_zeros(1, self.length, values.shape[-1])
        real = torch.cat([row[:size] for row, size in zip(values, self.sizes)])
        return F.pad(real, (0, 0, 0, self.length - len(real))).unsqueeze(0)
