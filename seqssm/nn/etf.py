"""A fixed classifier whose class directions form a simplex equiangular tight frame (ETF), and heads that can grow."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.selective_projector import DualProjector
from seqssm.nn.sizes import require_positive

SCALE = 16.0
"""Factor from cosines to logits. With it, the softmax of a feature that lies on its own direction is close to 1."""
SEED = 0  # of the rotation of the frame

Head = Literal["linear", "etf"]


def simplex_etf(width: int, classes: int, seed: int = SEED) -> Tensor:
    """Compute the directions of a simplex ETF, (classes, width) float32.

    M = sqrt(K / (K - 1)) U (I - 11^T / K), with K classes and U of orthonormal columns (Papyan et al. 2020): the rows
    have length 1, and the cosine of every pair is -1 / (K - 1).

    Args:
        width: width of the features, D.
        classes: number of classes, K.
        seed: seed of the rotation U.

    Raises:
        ValueError: fewer than two classes, or more than the width.
    """
    if not 2 <= classes <= width:
        raise ValueError(f"a simplex ETF of {classes} classes needs 2 to {width} classes, the width of the features")
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((width, classes)))
    centred = np.eye(classes) - 1 / classes
    return torch.from_numpy((np.sqrt(classes / (classes - 1)) * centred @ rotation.T).astype(np.float32))


class EtfHead(nn.Module):
    """Fixed classifier: logits are scaled cosines of the feature and the directions of a simplex ETF.

    The products with all directions are computed, and those of the classes in use returned. The logits of a class
    therefore do not depend on the number of classes in use.

    Args:
        width: width of the features, D.
        classes: number of classes in use.
        max_classes: number of directions, K.

    Raises:
        ValueError: more classes in use than directions, or more directions than the width.
    """

    directions: Tensor

    def __init__(self, width: int, classes: int, max_classes: int) -> None:
        super().__init__()
        require_positive(width=width, classes=classes)
        if classes > max_classes:
            raise ValueError(f"{classes} classes, but the head has {max_classes} directions")
        self.in_features, self.out_features, self.max_classes = width, classes, max_classes
        self.scale = SCALE
        self.register_buffer("directions", simplex_etf(width, max_classes))

    @property
    def weight(self) -> Tensor:
        """The directions, (K, D)."""
        return self.directions

    def reset_parameters(self) -> None:
        """Compute the directions again, e.g. after ``to_empty`` of a head built on the meta device."""
        self.directions.copy_(simplex_etf(self.in_features, self.max_classes))

    def extra_repr(self) -> str:
        return f"{self.in_features}, classes={self.out_features}, max_classes={self.max_classes}"

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits, (..., classes), of features (..., D)."""
        cosines = F.linear(F.normalize(x, dim=-1), self.directions.to(x.dtype))
        return (self.scale * cosines)[..., : self.out_features]


def make_head(width: int, classes: int, kind: Head = "linear", max_classes: int | None = None) -> nn.Linear | EtfHead:
    """Create a classifier of features.

    Args:
        width: width of the features.
        classes: number of classes.
        kind: ``"linear"``, or ``"etf"`` for an `EtfHead`.
        max_classes: number of directions of an ETF head; by default that of the classes.

    Raises:
        ValueError: as `EtfHead`.
    """
    if kind == "linear":
        return nn.Linear(width, classes)
    return EtfHead(width, classes, max_classes or max(2, classes))


class Classifying(nn.Module):
    """Base class of networks that map pooled features, and optionally `positions` tokens, to logits.

    A subclass sets `head` and `projector`, and defines `class_inputs`.
    """

    head: nn.Module
    projector: DualProjector | None

    def with_projector(self, pooled: Tensor, tokens: Tensor | None) -> Tensor:
        """Compute the features in front of the head, (B, D).

        Args:
            pooled: pooled features, (B, D).
            tokens: tokens of the projector, (B, T, D); not read without a projector.
        """
        if self.projector is None:
            return pooled
        if tokens is None:
            raise ValueError("the projector needs tokens")
        return self.projector(pooled, tokens)

    def classify(self, pooled: Tensor, tokens: Tensor | None) -> Tensor:
        """Compute logits (B, classes) of pooled features and tokens; arguments as for `with_projector`."""
        return self.head(self.with_projector(pooled, tokens))


def last_layer(head: nn.Module) -> nn.Linear | EtfHead:
    """Return the layer of a head that has one row per class.

    Args:
        head: a linear layer, an `EtfHead`, or a sequence that ends with one.
    """
    found = head[-1] if isinstance(head, nn.Sequential) else head
    if not isinstance(found, nn.Linear | EtfHead):
        raise TypeError(f"the head is a {type(found).__name__}")
    return found


def cosines_of(logits: Tensor, head: nn.Module) -> Tensor:
    """Convert the logits of an ETF head to cosines.

    Args:
        logits: logits, (..., C).
        head: the head.
    """
    last = last_layer(head)
    if not isinstance(last, EtfHead):
        raise TypeError("the head is not an EtfHead")
    return logits / torch.as_tensor(last.scale, dtype=logits.dtype, device=logits.device)
