"""Multiple-instance networks: projection, scans over the instances (or none), pooling, head."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from seqssm_pathology.mixers import Block
from seqssm_pathology.pooling import AttentionPool, MaxPool, MeanPool, TransPool, bag_of

Network = Literal["srmamba", "bimamba", "mamba", "abmil", "abmil_gated", "mean", "max", "transmil"]
SCANS = ("srmamba", "bimamba", "mamba")


class Output(NamedTuple):
    """What a network says of packed bags.

    Attributes:
        logits: (bags, outputs).
        scores: (total,), before softmax; what instances are ranked by.
        attention: (total,), adds up to 1 in each bag.
    """

    logits: Tensor
    scores: Tensor
    attention: Tensor


class ValueTokens(nn.Module):
    """A token a column of a value table: GELU(LayerNorm(value * E_column + b_column)).

    Args:
        tokens: columns.
        d_model: width of a token.
    """

    def __init__(self, tokens: int, d_model: int) -> None:
        super().__init__()
        self.E = nn.Parameter(torch.randn(tokens, d_model) * d_model**-0.5)
        self.b = nn.Parameter(torch.randn(tokens, d_model) * d_model**-0.5)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, values: Tensor) -> Tensor:
        """(cases * tokens, 1), the columns of each case in the table's order, to (cases * tokens, D)."""
        tokens = values.view(-1, len(self.E), 1) * self.E + self.b
        return F.gelu(self.norm(tokens)).flatten(0, 1)


class Mil(nn.Module):
    """MambaMIL (arXiv 2403.06800) and its peers over packed bags.

    Linear(D_in -> D), GELU, dropout; blocks of scans (``srmamba``, ``bimamba``, ``mamba``) and a LayerNorm, or nothing;
    attention pooling (``mean``, ``max`` and ``transmil`` have their own); Linear(D -> outputs).

    Args:
        d_in: width of the features.
        outputs: classes or time bins.
        network: which one.
        d_model: D.
        layers: blocks.
        rate: R of ``srmamba``.
        d_state, d_conv, expand: of the scans.
        pool_width: inner width of the attention.
        heads: of ``transmil``.
        dropout: behind the projection and before the head.
        tokens: columns of a value table; None for patch features.
        padding, importance, regime, piece, engine: of the scans, see `mixers.Block`.
        recompute: whether the blocks are computed again in the backward pass, for memory.
    """

    def __init__(
        self,
        d_in: int,
        outputs: int,
        network: Network = "srmamba",
        d_model: int = 512,
        layers: int = 2,
        rate: int = 5,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        pool_width: int = 128,
        heads: int = 8,
        dropout: float = 0.25,
        tokens: int | None = None,
        padding: Literal["free", "published"] = "free",
        importance: bool = False,
        regime: Literal["free", "positive"] = "free",
        piece: int = 4096,
        engine: str | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        if tokens is None:
            self.project: nn.Module = nn.Sequential(nn.Linear(d_in, d_model), nn.GELU())
        else:
            self.project = ValueTokens(tokens, d_model)
        self.dropout = nn.Dropout(dropout)
        scans = network in SCANS
        self.blocks = nn.ModuleList(
            Block(network, d_model, d_state, d_conv, expand, rate, padding, importance, regime, piece, engine)
            for _ in range(layers if scans else 0)
        )
        self.norm = nn.LayerNorm(d_model) if scans else nn.Identity()
        pools = {"mean": MeanPool, "max": MaxPool}
        if network in pools:
            self.pool: nn.Module = pools[network]()
        elif network == "transmil":
            self.pool = TransPool(d_model, heads)
        else:
            self.pool = AttentionPool(d_model, pool_width, gated=network == "abmil_gated")
        self.head = nn.Linear(d_model, outputs)

    def forward(self, features: Tensor, cu_seqlens: Tensor, lengths: list[int], order: Tensor | None = None) -> Output:
        """All bags of a batch.

        Args:
            features: (total, D_in), bag behind bag.
            cu_seqlens: (bags + 1,) int32, their starts and the end.
            lengths: the bags' sizes, on the host; none may be 0.
            order: (total,) int64, places in the order that the scans call forward, bag by bag; None: as they lie.
        """
        h = self.dropout(self.project(features))
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                h = checkpoint(block, h, cu_seqlens, lengths, order, use_reentrant=False)
            else:
                h = block(h, cu_seqlens, lengths, order)
        h = self.norm(h)
        pooled, scores, attention = self.pool(h, bag_of(cu_seqlens, len(h)), len(lengths))
        return Output(self.head(pooled), scores, attention)
