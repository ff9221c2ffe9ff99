"""Pooling of packed bags to one vector per bag: attention, mean, maximum, and attention between instances."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def bag_of(cu_seqlens: Tensor, total: int) -> Tensor:
    """Return the bag index of each instance, (total,) int64."""
    position = torch.arange(total, device=cu_seqlens.device)
    return torch.bucketize(position, cu_seqlens[1:].long(), right=True)


def sums(values: Tensor, bag: Tensor, count: int) -> Tensor:
    """Sum over the instances of each bag, (total, ...) to (count, ...)."""
    return values.new_zeros(count, *values.shape[1:]).index_add(0, bag, values)


def last_of(values: Tensor, bag: Tensor, count: int) -> Tensor:
    """Return the index of the instance with the largest value in each bag, (total,) to (count,) int64."""
    order = torch.argsort(values.detach(), stable=True)
    order = order[torch.argsort(bag[order], stable=True)]
    return order[torch.bincount(bag, minlength=count).cumsum(0) - 1]


def bag_softmax(scores: Tensor, bag: Tensor, count: int) -> Tensor:
    """Softmax over the instances of each bag, (total, ...)."""
    index = bag.view(-1, *[1] * (scores.ndim - 1)).expand_as(scores)
    top = scores.detach().new_full((count, *scores.shape[1:]), -torch.inf)
    top = top.scatter_reduce(0, index, scores.detach(), "amax")
    weight = torch.exp(scores - top[bag])
    return weight / sums(weight, bag, count)[bag]


class AttentionPool(nn.Module):
    """Attention pooling (Ilse et al., ICML 2018).

    The weights are a_n ~ exp(w . tanh(V h_n)), or exp(w . (tanh(V h_n) sigm(U h_n))) with the gate.

    Args:
        d_model: width of an instance.
        width: inner width of the attention.
        gated: whether the attention is gated.
    """

    def __init__(self, d_model: int, width: int, gated: bool) -> None:
        super().__init__()
        self.V = nn.Linear(d_model, width)
        self.U = nn.Linear(d_model, width) if gated else None
        self.w = nn.Linear(width, 1)

    def forward(self, h: Tensor, bag: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pool h (total, D) to (pooled (count, D), scores (total,) before softmax, attention (total,))."""
        inner = torch.tanh(self.V(h))
        if self.U is not None:
            inner = inner * torch.sigmoid(self.U(h))
        scores = self.w(inner).squeeze(-1)
        attention = bag_softmax(scores.float(), bag, count)
        return sums(attention.to(h.dtype).unsqueeze(-1) * h, bag, count), scores, attention


class MixedPool(AttentionPool):
    """Mean of attention pooling and of the channel maxima; the weights are those of `AttentionPool`.

    Scores are those of the attention. The attention of an instance is the mean of its attention weight and of its
    fraction of the maxima, which is its part in the pooled vector.
    """

    def forward(self, h: Tensor, bag: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        pooled, scores, attention = super().forward(h, bag, count)
        highest, _, fraction = MaxPool()(h, bag, count)
        return (pooled + highest) / 2, scores, (attention + fraction) / 2


class MeanPool(nn.Module):
    """Mean of the instances. All have the same attention; scores are 0."""

    def forward(self, h: Tensor, bag: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        size = sums(torch.ones_like(bag, dtype=h.dtype), bag, count)
        attention = (1 / size)[bag]
        return sums(h * attention.unsqueeze(-1), bag, count), torch.zeros_like(attention), attention


class MaxPool(nn.Module):
    """Maximum of each channel. Score and attention of an instance are its fraction of the channel maxima."""

    def forward(self, h: Tensor, bag: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        index = bag.unsqueeze(-1).expand_as(h)
        pooled = h.new_full((count, h.shape[1]), -torch.inf).scatter_reduce(0, index, h, "amax")
        wins = (h == pooled[bag]).float()
        attention = (wins / sums(wins, bag, count)[bag]).mean(-1).detach()
        return pooled, attention, attention


class SelfAttention(nn.Module):
    """h + attention(LayerNorm(h)) between all instances of a bag; time is quadratic in the number of instances.

    Args:
        d_model: width of an instance, a multiple of `heads`.
        heads: number of attention heads.
    """

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, D) to ((n, D), logits of the first token's attention to all tokens, averaged over heads, (n,))."""
        n, d = h.shape
        q, k, v = self.qkv(self.norm(h)).view(n, 3, self.heads, d // self.heads).permute(1, 2, 0, 3)
        mixed = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        logits = (q[:, :1] * k).sum(-1).mean(0) * (d // self.heads) ** -0.5
        return h + self.out(mixed.transpose(0, 1).reshape(n, d)), logits


class PositionPyramid(nn.Module):
    """Position generator of TransMIL: three depthwise convolutions over the instances arranged as a square image."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(d_model, d_model, k, padding=k // 2, groups=d_model) for k in (7, 5, 3))

    def forward(self, h: Tensor) -> Tensor:
        """Map (n, D) to (n, D); the image is filled up with the first instances."""
        n, d = h.shape
        side = max(1, int((n - 1) ** 0.5) + 1) if n else 1
        filled = h[torch.arange(side * side, device=h.device) % n]
        image = filled.T.reshape(1, d, side, side)
        image = image + sum(conv(image) for conv in self.convs)
        return image.reshape(d, side * side).T[:n]


class TransMILPooling(nn.Module):
    """Attention between instances in the style of TransMIL (NeurIPS 2021): class token, two layers, position pyramid.

    The published model approximates the attention by landmarks (Nystrom); here it is exact.
    """

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, d_model) * 0.02)
        self.first, self.second = SelfAttention(d_model, heads), SelfAttention(d_model, heads)
        self.position = PositionPyramid(d_model)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, h: Tensor, bag: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        pooled, scores = [], []
        for own in h.split(torch.bincount(bag, minlength=count).tolist()):
            x, _ = self.first(torch.cat([self.token.to(own.dtype), own]))
            x = torch.cat([x[:1], self.position(x[1:])])
            x, logits = self.second(x)
            pooled.append(self.norm(x[:1]))
            scores.append(logits[1:])
        score = torch.cat(scores)
        return torch.cat(pooled), score, bag_softmax(score.detach().float(), bag, count)
