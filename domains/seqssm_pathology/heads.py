"""What the logits of a network mean: one head per target, with its loss, its columns and what a map can explain.

A model has one head, or several side by side on one network. The heads of a trained model are rebuilt from the summary
in its checkpoint (`heads_of`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from seqssm.metrics.columns import OutputColumns
from seqssm.training.output_names import Outputs, interval_names
from seqssm.training.soft_losses import of_classes, of_labels, of_values
from seqssm_pathology.survival import median_time, survival_at


def survival_nll(logits: Tensor, bins: Tensor, censored: Tensor, alpha: float = 0.0) -> Tensor:
    """Compute the negative log-likelihood of discrete-time survival, mean over cases.

    With hazards h_k = sigmoid(z_k) and S_k = prod_{j <= k} (1 - h_j): an event in bin Y costs -(log S_{Y-1} + log
    h_Y), a case censored in bin Y costs -log S_Y. log h = logsigmoid(z) and log(1 - h) = logsigmoid(-z) need no clamp.

    Args:
        logits: z, (n, K).
        bins: Y, (n,) integers.
        censored: censoring flags, (n,): 1 censored, 0 event.
        alpha: extra weight of events: (1 - alpha) NLL + alpha (NLL of the events).
    """
    logits = logits.float()
    log_survival = F.logsigmoid(-logits).cumsum(1)  # log S_k
    before = F.pad(log_survival, (1, 0))  # log S_{k - 1}
    index = bins.long().unsqueeze(1)
    event = before.gather(1, index) + F.logsigmoid(logits).gather(1, index)
    c = censored.to(logits).unsqueeze(1)
    of_events = -(1 - c) * event
    return (of_events - (1 - alpha) * c * log_survival.gather(1, index)).mean()


def curves_of(logits: Tensor) -> Tensor:
    """Compute S at the end of each bin, (n, K), from the logits of the hazards."""
    return F.logsigmoid(-logits.float()).cumsum(1).exp()


def curve_names(edges: Sequence[float], unit: str | None = None) -> list[str]:
    """Return the column names of the survival curve, ``S_<end of the bin>``, as short as uniqueness permits.

    Args:
        edges: edges of the bins, K + 1 values.
        unit: unit of time appended to the names (``S_12.5_months``); None for no unit.
    """
    for digits in range(4, 17):
        names = [f"S_{edge:.{digits}g}" for edge in edges[1:]]
        if len(set(names)) == len(names) and not any("e+" in name for name in names):
            break
    return [f"{name}_{unit}" for name in names] if unit else names


def known_mean(losses: Tensor, known: Tensor) -> Tensor:
    """Mean of `losses` over the entries that are known; 0 without any, with a gradient of 0."""
    return torch.where(known, losses, torch.zeros_like(losses)).sum() / known.sum().clamp_min(1)


@dataclass(frozen=True)
class Head(ABC):
    """A target of a model.

    Attributes:
        name: column of the target in the manifest.
        tag: prefix of its columns and scores, ``""`` if it is the only target of the model.
        place: its number among the targets.
    """

    name: str
    tag: str = ""
    place: int = 0

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of logits."""

    @abstractmethod
    def loss(self, logits: Tensor, truth: Mapping[str, Tensor]) -> Tensor:
        """Compute the mean loss over the records whose target is known, from logits (n, size)."""

    soft_loss: ClassVar[Any]
    """Loss for the logits of a teacher, of `seqssm.training.teacher`."""

    @property
    def written(self) -> OutputColumns | None:
        """Columns of classes, labels and numbers; None for survival, whose columns have names of their own."""
        return None

    @property
    def columns(self) -> list[str]:
        """Columns of the prediction table."""
        assert self.written is not None
        return self.written.columns

    @abstractmethod
    def row(self, logits: Tensor) -> dict[str, Any]:
        """Values of the columns for one record, from logits (size,)."""

    @property
    @abstractmethod
    def outputs(self) -> list[str]:
        """Names of the outputs that a map can explain."""

    @abstractmethod
    def output(self, row: Mapping[str, Any]) -> str:
        """Return the output that a map explains unless another one is chosen."""

    @abstractmethod
    def evidence(self, logits: Tensor, output: str) -> Tensor:
        """Return the quantity that a gradient map explains, (n,), from logits (n, size)."""

    @abstractmethod
    def answer(self, row: Mapping[str, Any]) -> str:
        """Format the prediction for the title of a figure."""

    @property
    def derived(self) -> tuple[str, ...]:
        """Columns that follow from the others, which an ensemble averages."""
        return () if self.written is None else tuple(self.written.decisions)

    @property
    def estimates(self) -> list[str]:
        """Columns that an ensemble averages."""
        return [name for name in self.columns if name not in self.derived]

    def derive(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the columns in `derived` from the others.

        Args:
            row: values of `estimates`.
        """
        return {} if self.written is None else self.written.decide(row)

    def key(self, name: str) -> str:
        """Name of a tensor of this target in a batch."""
        return name if not self.tag else f"{name}_{self.place}"

    def branch(self, output: str) -> int | None:
        """Return the column of per-class attention that belongs to an output; None for the mean of all."""
        return None


@dataclass(frozen=True)
class ClassHead(Head):
    """One class per record: softmax and cross-entropy.

    Attributes:
        classes: class names.
        weights: class weights of the loss; None for equal ones.
    """

    classes: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None

    soft_loss = staticmethod(of_classes)

    @property
    def size(self) -> int:
        return len(self.classes)

    def loss(self, logits: Tensor, truth: Mapping[str, Tensor]) -> Tensor:
        labels = truth[self.key("label")]
        weights = None if self.weights is None else logits.new_tensor(self.weights, dtype=torch.float32)
        if not self.tag:
            return F.cross_entropy(logits.float(), labels, weight=weights)
        found = F.cross_entropy(logits.float(), labels.clamp_min(0), weight=weights, reduction="none")
        return known_mean(found, labels >= 0)

    @property
    def written(self) -> OutputColumns:
        return OutputColumns(self.classes, "class", self.tag)

    def row(self, logits: Tensor) -> dict[str, Any]:
        return self.written.row(logits.softmax(0).tolist())

    @property
    def outputs(self) -> list[str]:
        return list(self.classes)

    def output(self, row: Mapping[str, Any]) -> str:
        return str(row[self.written.decisions[0]])

    def evidence(self, logits: Tensor, output: str) -> Tensor:
        """Log odds of the class against all others."""
        own = self.classes.index(output)
        others = torch.cat([logits[:, :own], logits[:, own + 1 :]], dim=1)
        return logits[:, own] - torch.logsumexp(others, 1)

    def branch(self, output: str) -> int | None:
        return self.classes.index(output)

    def answer(self, row: Mapping[str, Any]) -> str:
        predicted = self.output(row)
        return f"predicted {predicted}, p = {row[self.written.estimate(predicted)]:.2f}"


@dataclass(frozen=True)
class SurvivalHead(Head):
    """Discrete-time survival: one hazard per time bin.

    Attributes:
        edges: edges of the time bins, in `unit`.
        unit: unit of time; None if it is not declared.
        alpha: extra weight of events in the loss.
        written_edges: times at which the survival curve is written in place of `edges`, between which it is linear, in
            an ensemble of models with different bins.
    """

    edges: tuple[float, ...] = ()
    unit: str | None = None
    alpha: float = 0.0
    written_edges: tuple[float, ...] | None = None

    soft_loss = staticmethod(of_labels)

    @property
    def size(self) -> int:
        return len(self.edges) - 1

    def loss(self, logits: Tensor, truth: Mapping[str, Tensor]) -> Tensor:
        bins, censored = truth[self.key("bin")], truth[self.key("censored")]
        known = bins >= 0
        if not self.tag or bool(known.all()):
            return survival_nll(logits, bins, censored, self.alpha)
        if not bool(known.any()):
            return 0 * logits.float().sum()
        return survival_nll(logits[known], bins[known], censored[known], self.alpha)

    @property
    def curve(self) -> list[str]:
        """Columns of the survival curve."""
        return [f"{self.tag}{name}" for name in curve_names(self.written_edges or self.edges, self.unit)]

    @property
    def median_column(self) -> str:
        """Column of the median survival time."""
        return f"{self.tag}median_survival" + (f"_{self.unit}" if self.unit else "")

    @property
    def columns(self) -> list[str]:
        return [f"{self.tag}risk", *self.curve, self.median_column]

    def row(self, logits: Tensor) -> dict[str, Any]:
        curves = curves_of(logits[None])
        if self.written_edges is None:
            curve = curves[0].tolist()
        else:
            curve = survival_at(curves.numpy(), list(self.edges), np.array(self.written_edges[1:]))[0].tolist()
        row = {f"{self.tag}risk": -sum(curve), **dict(zip(self.curve, curve))}
        return {**row, **self.derive(row)}

    @property
    def derived(self) -> tuple[str, ...]:
        return (self.median_column,)

    def derive(self, row: Mapping[str, Any]) -> dict[str, Any]:
        curve = np.array([[row[name] for name in self.curve]])
        median = float(median_time(curve, self.written_edges or self.edges)[0])
        return {self.median_column: median if np.isfinite(median) else None}

    @property
    def outputs(self) -> list[str]:
        return ["risk"]

    def output(self, row: Mapping[str, Any]) -> str:
        return "risk"

    def evidence(self, logits: Tensor, output: str) -> Tensor:
        """Risk: minus the sum of the survival curve."""
        return -curves_of(logits).sum(1)

    def answer(self, row: Mapping[str, Any]) -> str:
        return f"predicted risk {row[f'{self.tag}risk']:.3f}"


@dataclass(frozen=True)
class NumberHead(Head):
    """A number: squared error of the standardised value.

    Attributes:
        mean: mean of the training records, in the unit of the column.
        scale: standard deviation of the training records.
    """

    mean: float = 0.0
    scale: float = 1.0

    soft_loss = staticmethod(of_values)

    @property
    def size(self) -> int:
        return 1

    def values(self, logits: Tensor) -> Tensor:
        """Return predictions in the unit of the column, (n,)."""
        return logits[:, 0].double() * self.scale + self.mean

    def loss(self, logits: Tensor, truth: Mapping[str, Tensor]) -> Tensor:
        value = truth[self.key("value")].to(logits.device)
        known = torch.isfinite(value)
        wanted = (torch.where(known, value, torch.zeros_like(value)) - self.mean) / self.scale
        return known_mean((logits[:, 0].float() - wanted.float()).square(), known)

    @property
    def written(self) -> OutputColumns:
        return OutputColumns((self.name,), "value", self.tag)

    def row(self, logits: Tensor) -> dict[str, Any]:
        return self.written.row(self.values(logits[None]).tolist())

    @property
    def outputs(self) -> list[str]:
        return [self.name]

    def output(self, row: Mapping[str, Any]) -> str:
        return self.name

    def evidence(self, logits: Tensor, output: str) -> Tensor:
        """The predicted value, in the unit of the column."""
        return logits[:, 0] * self.scale + self.mean

    def branch(self, output: str) -> int | None:
        return 0

    def answer(self, row: Mapping[str, Any]) -> str:
        return f"predicted {self.name} {row[self.written.estimate(self.name)]:.4g}"


@dataclass(frozen=True)
class LabelsHead(Head):
    """Several labels, each present or absent: one logit and a binary cross-entropy per label; unknown ones are masked.

    Attributes:
        labels: names of the labels, which are columns of the manifest.
        weights: weights of the positives in the loss, one per label; None for 1.
    """

    labels: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None

    soft_loss = staticmethod(of_labels)

    @property
    def size(self) -> int:
        return len(self.labels)

    def loss(self, logits: Tensor, truth: Mapping[str, Tensor]) -> Tensor:
        y = truth[self.key("labels")].to(logits.device).float()
        known = torch.isfinite(y)
        weight = None if self.weights is None else logits.new_tensor(self.weights, dtype=torch.float32)
        wanted = torch.where(known, y, torch.zeros_like(y))
        found = F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none", pos_weight=weight)
        return known_mean(found, known)

    @property
    def written(self) -> OutputColumns:
        return OutputColumns(self.labels, "labels", self.tag)

    def row(self, logits: Tensor) -> dict[str, Any]:
        return self.written.row(torch.sigmoid(logits).tolist())

    @property
    def outputs(self) -> list[str]:
        return list(self.labels)

    def output(self, row: Mapping[str, Any]) -> str:
        return max(self.labels, key=lambda name: row[self.written.estimate(name)])

    def evidence(self, logits: Tensor, output: str) -> Tensor:
        """Log odds of the label."""
        return logits[:, self.labels.index(output)]

    def branch(self, output: str) -> int | None:
        return self.labels.index(output)

    def answer(self, row: Mapping[str, Any]) -> str:
        shown = self.output(row)
        present = ";".join(compress(self.labels, self.written.decided(row)))
        return f"{present or 'no label'} predicted, p of {shown} = {row[self.written.estimate(shown)]:.2f}"


def split_logits(heads: Sequence[Head], logits: Tensor) -> list[Tensor]:
    """Divide logits (n, total) into those of each head."""
    return list(logits.split([head.size for head in heads], dim=1))


CLASSES: dict[str, type[Head]] = {
    "classification": ClassHead,
    "survival": SurvivalHead,
    "regression": NumberHead,
    "labels": LabelsHead,
}


def heads_of(summary: Mapping[str, Any]) -> list[Head]:
    """Rebuild the heads of a trained model from the summary in its checkpoint.

    Checkpoints of earlier versions have one target, classes or survival in an undeclared unit of time.
    """
    if summary.get("heads"):
        return [_rebuilt(dict(one)) for one in summary["heads"]]
    if summary["target"] == "classification":
        return [ClassHead("label", classes=tuple(summary["classes"]))]
    return [SurvivalHead(summary["time_column"], edges=tuple(summary["edges"]))]


NAMED: dict[type[Head], tuple[str, str]] = {
    ClassHead: ("classes", "{target}={output}"),
    SurvivalHead: ("time bins", "{target} {output}"),
    NumberHead: ("values", "{output}"),
    LabelsHead: ("labels", "{output} present"),
}
"""What the logits of a head are, and the name of one beside those of other heads."""


def named_logits(summary: Mapping[str, Any]) -> Outputs:
    """Return what the logits of a model mean; time bins are named by their inner edges.

    Args:
        summary: summary of the data in its checkpoint.
    """
    heads, names, units = heads_of(summary), list[str](), list[str]()
    for head in heads:
        if isinstance(head, SurvivalHead):
            own = interval_names(head.edges[1:-1])
            units.append(head.unit or "")
        else:
            own = head.outputs
        names += [NAMED[type(head)][1].format(target=head.name, output=one) for one in own] if head.tag else own
    kind = "targets" if heads[0].tag else NAMED[type(heads[0])][0]
    return Outputs(kind, tuple(names), "/".join(units) if all(units) else "", convertible=kind == "time bins")


def _rebuilt(values: dict[str, Any]) -> Head:
    kind = CLASSES[values.pop("kind")]
    return kind(**{name: tuple(one) if isinstance(one, list) else one for name, one in values.items()})
