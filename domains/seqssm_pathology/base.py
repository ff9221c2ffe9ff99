"""Base of the multiple-instance networks: projection, tokens of value tables, outputs, and the loss of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.dropout import Dropout
from seqssm.training.sizes import require_rates, require_sizes
from seqssm_pathology.pooling import bag_of

Criterion = Callable[[Tensor, Tensor | None], Tensor]
"""Loss of logits (n, num_classes) whose rows belong to the bags (n,) int64; None for one row per bag."""


class Output(NamedTuple):
    """Outputs of a network for packed bags.

    Attributes:
        logits: logits of the bags, (bags, num_classes).
        scores: scores before the softmax, used to rank instances, (total,), or (total, num_classes) if the network
            attends to each class separately.
        attention: attention weights, of the shape of `scores`; they sum to 1 in each bag.
        inner: further tensors that the network's `loss` needs; None if there are none.
    """

    logits: Tensor
    scores: Tensor
    attention: Tensor
    inner: Mapping[str, Tensor] | None = None


class ValueTokens(nn.Module):
    """One token per column of a value table: GELU(LayerNorm(value * E_column + b_column)).

    Args:
        tokens: number of columns.
        d_model: width of a token.
    """

    def __init__(self, tokens: int, d_model: int) -> None:
        super().__init__()
        self.E = nn.Parameter(torch.randn(tokens, d_model) * d_model**-0.5)
        self.b = nn.Parameter(torch.randn(tokens, d_model) * d_model**-0.5)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, values: Tensor) -> Tensor:
        """Map values (cases * tokens, 1), the columns of each case in table order, to (cases * tokens, D)."""
        tokens = values.view(-1, len(self.E), 1) * self.E + self.b
        return F.gelu(self.norm(tokens)).flatten(0, 1)


class MILNetwork(nn.Module):
    """Base class of the networks: projection and dropout.

    Subclasses define `head`, and either `pool` and optionally `mix`, or `represent`, or all of `forward`.

    Args:
        d_in: feature width of an instance.
        num_classes: number of classes or time bins.
        d_model: width of an instance after the projection.
        dropout: dropout probability after the projection.
        tokens: number of columns of a value table; None for bags of patches.
    """

    pool: nn.Module
    head: nn.Module

    def __init__(self, d_in: int, num_classes: int, d_model: int, dropout: float, tokens: int | None) -> None:
        super().__init__()
        require_sizes(d_in=d_in, num_classes=num_classes, d_model=d_model)
        require_rates(dropout=dropout)
        if tokens is None:
            self.project: nn.Module = nn.Sequential(nn.Linear(d_in, d_model), nn.GELU())
        else:
            self.project = ValueTokens(tokens, d_model)
        self.dropout = Dropout(dropout)

    def mix(self, h: Tensor, cu_seqlens: Tensor, lengths: list[int], order: Tensor | None) -> Tensor:
        """Mix the instances, (total, D) to (total, D); the identity by default."""
        return h

    def forward(self, features: Tensor, cu_seqlens: Tensor, lengths: list[int], order: Tensor | None = None) -> Output:
        """Compute the outputs of a batch of packed bags.

        Args:
            features: features of all bags, concatenated, (total, d_in).
            cu_seqlens: start offsets of the bags and the total, (bags + 1,) int32.
            lengths: sizes of the bags, positive, on the host.
            order: scan order of the instances, bag by bag, (total,) int64; None for their order in `features`.
        """
        h = self.dropout(self.project(features))
        pooled, scores, attention = self.represent(h, cu_seqlens, lengths, order)
        return Output(self.head(pooled), scores, attention)

    def represent(
        self, h: Tensor, cu_seqlens: Tensor, lengths: list[int], order: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map projected instances (total, D) to (input of the head, one row per bag; scores; attention)."""
        h = self.mix(h, cu_seqlens, lengths, order)
        return self.pool(h, bag_of(cu_seqlens, len(h)), len(lengths))

    def loss(self, out: Output, criterion: Criterion, labels: Tensor | None) -> Tensor:
        """Compute the training loss of a batch; by default that of the logits.

        Args:
            out: outputs of the batch.
            criterion: loss of logits, mean over the bags.
            labels: class indices of the bags, (bags,); None if the target is not one class per bag.
        """
        return criterion(out.logits, None)
