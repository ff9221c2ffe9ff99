"""A backbone with a head: logits of windows and records, probabilities and decisions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.dropout import Dropout
from seqssm.nn.etf import Classifying, Head, make_head
from seqssm.nn.selective_projector import POSITIONS, Branches, make_projector, segment_means
from seqssm_ecg.one_lead import mean_logits, separated


class Classifier(Classifying):
    """A backbone with one logit per class, and the thresholds and temperature fitted on validation records.

    Args:
        backbone: network whose `read` returns features (B, d_model) and tokens.
        classes: number m of classes.
        dropout: dropout probability before the head.
        per_class: whether each class has its own temperature.
        one_lead: whether the network was trained on single leads. Outside of training, each lead that is not constant
            is classified alone, and the probabilities are averaged.
        exclusive: whether a record has exactly one class: probabilities are a softmax instead of one sigmoid per class,
            and the most probable class is predicted.
        class_head: kind of the head, `seqssm.nn.etf.make_head`.
        max_classes: largest number of classes of the head ``"etf"``.
        projector: branches of the selective projector in front of the head.

    Raises:
        ValueError: more classes than the head can have.

    Attributes:
        thresholds: decision thresholds of the probabilities after temperature scaling, (m,); not used by exclusive
            classes.
        temperature: positive divisors of the logits, () or (m,).
    """

    thresholds: Tensor
    temperature: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        dropout: float = 0.0,
        per_class: bool = False,
        one_lead: bool = False,
        exclusive: bool = False,
        class_head: Head = "linear",
        max_classes: int | None = None,
        projector: Branches = "none",
    ) -> None:
        super().__init__()
        self.backbone, self.exclusive, self.one_lead = backbone, exclusive, one_lead
        self.dropout = Dropout(dropout)
        width: int = backbone.d_model  # type: ignore[assignment]
        self.head = make_head(width, classes, class_head, max_classes)
        self.projector = make_projector(width, projector)
        self.register_buffer("thresholds", torch.full((classes,), 0.5))
        self.register_buffer("temperature", torch.ones((classes,) if per_class else ()))

    @property
    def carries_state(self) -> bool:
        """Whether the command ``stream`` can carry the state of the network from second to second."""
        own = getattr(self.backbone, "carries_state", False)
        return bool(own) and not self.one_lead and self.projector is None

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute logits (B, m) of windows (B, leads, n)."""
        if self.one_lead and not self.training:
            return mean_logits(self.by_lead(x, lengths))
        return self.head(self.dropout(self._features(x, lengths)))

    def by_lead(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the logits of each lead alone, (B, leads, m), of windows (B, leads, n); NaN for constant leads."""
        parts, present = separated(x, lengths)
        logits = torch.cat([self.head(self.dropout(self._features(*part))) for part in parts])
        found = logits.new_full((*present.shape, logits.shape[-1]), torch.nan)
        found[present] = logits
        return found

    def features(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Compute the features in front of the head, (B, D), of windows (B, leads, n): with `one_lead`, the mean."""
        if not self.one_lead:
            return self._features(x, lengths)
        parts, present = separated(x, lengths)
        features = torch.cat([self._features(*part) for part in parts])
        rows = present.nonzero(as_tuple=True)[0]
        total = features.new_zeros(x.shape[0], features.shape[1]).index_add(0, rows, features)
        return total / present.sum(1, keepdim=True)

    def _features(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if self.projector is None:
            return self.backbone(x, lengths)
        return self.with_projector(*self.class_inputs(x, lengths))

    def class_inputs(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the features (B, D), and means over segments of the window (B, T, D) for the projector.

        Args:
            x: samples, (B, leads, n).
            lengths: number of valid samples, (B,).
        """
        pooled, tokens, mask = self.backbone.read(x, lengths)  # type: ignore[operator]
        return pooled, segment_means(tokens, POSITIONS, mask)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Convert logits (..., m) to probabilities, after temperature scaling, in the precision of the logits."""
        scaled = logits / self.temperature.to(logits)
        return scaled.softmax(-1) if self.exclusive else scaled.sigmoid()

    def decide(self, probabilities: Tensor) -> Tensor:
        """Decide which classes are predicted, (..., m) bool, from probabilities (..., m)."""
        if self.exclusive:
            return F.one_hot(probabilities.argmax(-1), probabilities.shape[-1]).bool()
        return probabilities >= self.thresholds.to(probabilities)


def pooled_logits(
    logits: Tensor, record_index: Tensor, records: int, aggregate: str, exclusive: bool = False
) -> Tensor:
    """Aggregate window logits to record logits: logit of the mean probability, or the maximum.

    Args:
        logits: window logits, (windows, m).
        record_index: ascending record index of each window, (windows,).
        records: number of records.
        aggregate: aggregation, ``"mean"`` or ``"max"``.
        exclusive: whether probabilities are a softmax over the classes.
    """
    if len(logits) == records:
        return logits
    if aggregate == "max":
        empty = logits.new_full((records, logits.shape[1]), -torch.inf)
        return empty.scatter_reduce(0, record_index[:, None].expand_as(logits), logits, "amax")
    single = logits.float().softmax(-1) if exclusive else logits.float().sigmoid()
    total = logits.new_zeros(records, logits.shape[1]).index_add(0, record_index, single.to(logits.dtype))
    mean = total / torch.bincount(record_index, minlength=records).to(logits.dtype)[:, None]
    return mean.clamp(min=1e-6).log() if exclusive else torch.logit(mean, eps=1e-6)
