"""Classification and regression of sequences, from scratch or on a pretrained network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.bounds import RATE, Bounds
from seqssm.errors import InputError
from seqssm.metrics.classes import class_list
from seqssm.metrics.columns import ID
from seqssm.metrics.gather import gathered
from seqssm.metrics.metric import Metric, evaluate
from seqssm.metrics.report import Report
from seqssm.training.class_task import ClassTask
from seqssm.training.output_names import Outputs, missing_classes
from seqssm.training.soft_losses import of_classes, of_labels, of_values
from seqssm_dna import metrics
from seqssm_dna.classifier import GenomeClassifier
from seqssm_dna.metrics import Classified, MultiLabelled, Regressed
from seqssm_dna.model import GenomeEncoder, GenomeLM
from seqssm_dna.predict import output_columns
from seqssm_dna.resizing import resized
from seqssm_dna.rivals import GruEncoder, SmallCnn
from seqssm_dna.stem import StemEncoder
from seqssm_dna.task import GenomeTask


class SequenceLabels(ClassTask, GenomeTask):
    """Trains a network on labels or numbers of sequences.

    Args:
        target: class (one of several), labels (any number of them) or value (numbers); by default that of the data.
        classes: names of the classes, labels or values; by default those of the data.
        pool: pooling over the positions of a sequence.
        echo: for causal networks: same reads the sequence twice and pools the second copy; reverse_complement reads the
            reverse complement first; none reads the sequence once.
        echo_separator: whether a token separates the copies.
        head_hidden: hidden width of the head; 0 for a linear head.
        head_dropout: dropout before the head.
        average_strands: whether to average predictions over both strands; not for targets on one strand, such as
            aligned promoters and splice junctions.
        class_weights: ``balanced`` weights classes by their inverse frequency in the training split.
        label_smoothing: label smoothing of classes.
        **kwargs: arguments of the network, of `GenomeTask` and of `seqssm.training.class_task.ClassTask`.
    """

    networks: ClassVar[Mapping[str, type[nn.Module]]] = {
        "hybrid": GenomeLM,
        "encoder": GenomeEncoder,
        "stem": StemEncoder,
        "cnn": SmallCnn,
        "gru": GruEncoder,
    }
    only_with: ClassVar[Mapping[str, Callable[[Any], bool]]] = {"echo": lambda network: network.causal}
    metrics = (*metrics.CLASSES, *metrics.REGRESSION)
    head: ClassVar[tuple[str, ...]] = ("head",)
    fitted: ClassVar[tuple[str, ...]] = ("center", "scale")
    linked_args: ClassVar[tuple[str, ...]] = ("context", "target")
    target_args: ClassVar[tuple[str, ...]] = ("target",)
    inferred_args: ClassVar[tuple[str, ...]] = ("classes", "context")
    objective: ClassVar[str] = "labels"
    limits: ClassVar[Mapping[str, Bounds]] = {
        **GenomeTask.limits,
        **ClassTask.limits,
        "head_dropout": RATE,
        "label_smoothing": RATE,
        "head_hidden": Bounds(0, 1_000_000),
    }
    beside: ClassVar[tuple[str, ...]] = ("kmers",)

    def __init__(
        self,
        target: Literal["class", "labels", "value"] | None = None,
        classes: list[str] | None = None,
        pool: Literal["mean", "max", "last"] = "mean",
        echo: Literal["none", "same", "reverse_complement"] = "none",
        echo_separator: bool = False,
        head_hidden: int = 0,
        head_dropout: float = 0.0,
        average_strands: bool = False,
        class_weights: Literal["none", "balanced"] = "none",
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        network = self.hparams["network"]
        causal = [name for name, one in self.networks.items() if one.causal]  # type: ignore[attr-defined]
        if echo != "none" and network not in causal:
            raise InputError(
                f"--model.echo {echo}: only for the causal network {' or '.join(causal)}; {network} sees the whole "
                "sequence anyway: pass --model.echo none"
            )
        self.weights: Tensor | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data, h = self.trainer.datamodule, self.hparams
        if h["classes"] is None:
            h["classes"] = list(data.classes)
        elif list(h["classes"]) != list(data.classes):
            own, given = class_list(h["classes"][:8]), class_list(data.classes[:8])
            advice = missing_classes(h["classes"], data.classes)
            raise InputError(f"the model's classes are {own}, the data's {given}{advice}")
        if h["context"] is None and data.longest:
            h["context"] = data.longest
        if h["class_weights"] == "balanced" and h["target"] == "class":
            counts = np.bincount(data.truth("train"), minlength=len(h["classes"])).clip(1)
            self.weights = torch.from_numpy(counts.sum() / (len(counts) * counts)).float()

    @classmethod
    def named_outputs(cls, hparams: Mapping[str, Any], summary: Mapping[str, Any]) -> Outputs:
        kinds = {"labels": "labels", "value": "values"}
        return Outputs(kinds.get(hparams.get("target") or "", "classes"), tuple(hparams.get("classes") or ()))

    @property
    def window(self) -> int | None:
        """Window of attention, tokens; with ``"context"``, all tokens of a training sequence."""
        window = super().window
        if window is None or self.hparams["attn_window"] != "context":
            return window
        return window + 1 if self.hparams["echo"] == "none" else 2 * window + 2

    def build_model(self) -> nn.Module:
        """Build the network with its head."""
        h = self.hparams
        if h["classes"] is None:
            raise InputError("the classes are unknown: give data, or --model.classes")
        network = self.build_network()
        try:
            return GenomeClassifier(
                network,
                len(h["classes"]),
                h["target"] or "class",
                pool=h["pool"],
                echo=h["echo"],
                echo_separator=h["echo_separator"],
                head_hidden=h["head_hidden"],
                dropout=h["head_dropout"],
                average_strands=h["average_strands"],
                **self.head_options,
            )
        except ValueError as error:
            raise InputError(f"--model.{error}") from None

    def adapt_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map the weights of a pretrained network to those of the classifier.

        Args:
            weights: weights of the checkpoint's network, by name.
        """
        own = ("network.", "head.")
        plain = resized(super().adapt_weights(weights), len(self.vocabulary))
        kept = {name: value for name, value in plain.items() if name not in self.fitted}
        return {name if name.startswith(own) else f"network.{name}": value for name, value in kept.items()}

    def on_fit_start(self) -> None:
        """Fit mean and scale of the numbers to the training split."""
        if self.hparams["target"] == "value":
            truth = torch.from_numpy(self.trainer.datamodule.truth("train")).double()
            scale = truth.std(0, correction=0) if len(truth) > 1 else torch.ones(truth.shape[1])
            self.model.center.copy_(truth.mean(0))
            self.model.scale.copy_(torch.where(scale > 1e-9, scale, 1.0))

    # -- loss and metrics ----------------------------------------------------------------------------------------------

    def step(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        ids, mask, y = batch["ids"], batch["mask"], batch["y"]
        mask = None if bool(mask.all()) else mask
        model: Any = self.model
        raw = model(ids, mask, standardised=True).float()
        loss = self.criterion(raw, y)
        if model.training:
            return loss, {"logits": raw}
        found = model.predict(ids, mask) if model.average_strands else model.activated(raw * model.scale + model.center)
        return loss, {"found": found.float(), "truth": y}

    def criterion(self, raw: Tensor, y: Tensor) -> Tensor:
        """Compute the loss: cross-entropy, binary cross-entropy, or mean squared error.

        Args:
            raw: output of the head, (B, n); standardised for numbers.
            y: class indices, (B,), zeros and ones, (B, n), or numbers, (B, n).
        """
        h = self.hparams
        if h["target"] == "value":
            return F.mse_loss(raw, (y - self.model.center) / self.model.scale)
        if h["target"] == "labels":
            return F.binary_cross_entropy_with_logits(raw, y)
        weights = None if self.weights is None else self.weights.to(raw.device)
        return self.class_loss(raw, y, weights, h["label_smoothing"])

    # -- classes that are learned later --------------------------------------------------------------------------------

    @property
    def has_classes(self) -> bool:
        return (self.hparams["target"] or "class") == "class"

    def class_inputs(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        model: Any = self.model
        return model.class_inputs(batch["ids"], None if bool(batch["mask"].all()) else batch["mask"])

    def class_labels(self, batch: dict[str, Any]) -> Tensor:
        return batch["y"]

    def class_scores(self, batch: dict[str, Any]) -> Tensor:
        model: Any = self.model
        return model.predict(batch["ids"], None if bool(batch["mask"].all()) else batch["mask"])

    def from_teacher(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.hparams["target"] != "value" or "logits" not in outputs:  # the numbers of a test have units
            return outputs
        assert self.teacher is not None
        other, own = self.teacher.network, self.model  # each standardises by its own training records
        theirs = (outputs["logits"] * other.scale + other.center - own.center) / own.scale  # type: ignore[operator]
        return {**outputs, "logits": theirs}

    def soft_loss(self, outputs: dict[str, Tensor], wanted: dict[str, Tensor], temperature: float) -> Tensor:
        kinds = {"labels": of_labels, "value": of_values}
        loss = kinds.get(self.hparams["target"], of_classes)
        return loss(outputs["logits"], wanted["logits"], temperature)

    @property
    def table(self) -> tuple[Metric, ...]:
        return metrics.REGRESSION if self.hparams["target"] == "value" else metrics.CLASSES

    def collected(self, stage: str) -> Classified | MultiLabelled | Regressed:
        found = gathered(self.seen[stage], self.trainer.world_size)
        kinds = {"class": Classified, "labels": MultiLabelled, "value": Regressed}
        kind = kinds[self.hparams["target"] or "class"]
        if not found:
            return kind(np.zeros(0, dtype=np.int64), np.zeros((0, len(self.hparams["classes"]))))
        return kind(found["truth"], found["found"].astype(np.float64))

    def decisions(self, outputs: dict[str, Tensor]) -> Tensor | None:
        """The predicted class (B,) or labels (B, n); None for numbers.

        Args:
            outputs: second result of `step`.
        """
        kind = self.hparams["target"] or "class"
        if kind == "value":
            return None
        return outputs["found"].argmax(1) if kind == "class" else outputs["found"] >= 0.5

    def test_report(self) -> Report:
        """Report the scores of the network and the k-mer baseline, intervals, and the confusion table."""
        found = self.collected("test")
        own = evaluate(self.table, found, "test")
        data = self.trainer.datamodule
        rows = data.rows["test"]
        groups = None if data.labelled.groups is None else [data.labelled.groups[row] for row in rows]
        over = "records" if groups is None else "groups"
        tables = [
            (f"Test, {len(rows)} records", self.compared(own)),
            (f"{self.hparams['network']}, bootstrap over {over}", self.intervals(found, own, groups)),
        ]
        if isinstance(found, Classified):
            tables.append(("Truth by predicted class", self.confusion(found)))
        self.write_rows(self.records(found, [data.labelled.ids[row] for row in rows]))
        return Report(own, tables)

    def confusion(self, found: Classified) -> pd.DataFrame:
        """Return the confusion table, one row per true class.

        Args:
            found: predictions.
        """
        names = self.hparams["classes"]
        return pd.DataFrame(found.confusion, columns=names).assign(truth=names)[["truth", *names]]

    def records(self, found: Classified | MultiLabelled | Regressed, ids: list[str]) -> pd.DataFrame:
        """Return one row per test record: id, labels, estimates and decisions.

        Args:
            found: predictions.
            ids: ids of the records.
        """
        values = found.predictions if isinstance(found, Regressed) else found.probabilities
        table = output_columns(self.hparams).table(found.truth, values)
        return pd.concat([pd.DataFrame({ID: ids}), table], axis=1)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "average_strands": bool(self.hparams["average_strands"])}
