"""A convolution of the width of a motif followed by bidirectional Mamba layers, for labels of sequences."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from seqssm_kernels import dropout
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.backbone import Backbone
from seqssm.training.sizes import require_rates, require_sizes
from seqssm_dna.model import Bidirectional, OneStrand, build_backbone
from seqssm_dna.tokens import FIXED, A, C, G, T


class StemEncoder(OneStrand, nn.Module):
    """A convolution of the width of a motif over the letters, then bidirectional Mamba layers, for labels of sequences.

    Args:
        d_model: D, number of channels.
        n_layers: number of Mamba layers; 0 for the convolution only.
        stem_width: kernel size of the convolution, letters, odd.
        mixer: mixer of the layers.
        merge: merge of the two directions of a layer.
        positions: number of positions with a learned vector, for sequences that are aligned (to a start site, a
            junction); 0 for none.
        dropout: dropout on the output of the convolution and of every layer.
        d_state: states per channel of the scans; by default that of the mixer.
        head_dim: channels per head of Mamba-2 and Mamba-3.
        engine: engine of the scans.

    Raises:
        ValueError: a size is out of range.
    """

    causal: ClassVar[bool] = False

    def __init__(
        self,
        d_model: int = 64,
        n_layers: int = 1,
        stem_width: int = 19,
        mixer: Bidirectional = "mamba",
        merge: Literal["sum", "mean", "concat", "gate"] = "sum",
        positions: int = 0,
        dropout: float = 0.0,
        d_state: int | None = None,
        head_dim: int | None = None,
        engine: str | None = None,
    ) -> None:
        super().__init__()
        require_rates(dropout=dropout)
        self.width, self.dropout = d_model, dropout
        self.stem = Letters(d_model, stem_width, positions)
        self.backbone: Backbone | None = None
        if n_layers:
            self.backbone = build_backbone(
                d_model,
                n_layers,
                mixer,
                dropout=dropout,
                d_state=d_state,
                head_dim=head_dim,
                engine=engine,
                merge=merge,
            )

    def hidden(self, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Compute features, (B, L, D).

        Args:
            ids: token ids of bases, (B, L).
            mask: mask, (B, L), True at real positions.
        """
        x = dropout(F.gelu(self.stem(ids, mask)), self.dropout, self.training)
        return x if self.backbone is None else self.backbone(x, mask=mask)


class Letters(nn.Module):
    """A convolution over one-hot letters: N and padding are zeros.

    Args:
        channels: D, number of channels.
        width: kernel size, letters, odd.
        positions: number of positions with a learned vector; 0 for none.

    Raises:
        ValueError: the width is even, or a size is out of range.
    """

    def __init__(self, channels: int, width: int, positions: int = 0) -> None:
        super().__init__()
        require_sizes(d_model=channels, stem_width=width)
        if width % 2 == 0:
            raise ValueError(f"stem_width {width}: must be odd")
        if positions < 0:
            raise ValueError(f"positions {positions}: must be at least 0")
        table = torch.zeros(len(FIXED), 4)
        table[[A, C, G, T]] = torch.eye(4)
        self.register_buffer("table", table, persistent=False)
        self.conv = nn.Conv1d(4, channels, width, padding=width // 2)
        self.positions = nn.Parameter(torch.zeros(positions, channels)) if positions else None

    table: Tensor

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed ids, (B, L), to (B, L, D); zeros at padded positions."""
        x = self.table[ids]
        x = x if mask is None else x * mask.unsqueeze(-1).to(x.dtype)
        y = self.conv(x.transpose(1, 2)).transpose(1, 2)
        if self.positions is not None:
            count = min(len(self.positions), y.shape[1])
            y = y + F.pad(self.positions[:count], (0, 0, 0, y.shape[1] - count))
        return y if mask is None else y * mask.unsqueeze(-1).to(y.dtype)
