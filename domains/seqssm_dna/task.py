"""Pretraining of genome networks on the next base or on masked bases; common base of the domain's tasks."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.bounds import COUNT, Bounds
from seqssm.domain import resolve
from seqssm.errors import InputError, NotApplicableError
from seqssm.metrics.columns import write_test_records
from seqssm.metrics.gather import gathered
from seqssm.metrics.metric import Metric, evaluate
from seqssm.metrics.report import Report
from seqssm.training.seeds import derive_seed
from seqssm.training.soft_losses import of_classes
from seqssm.training.task import Task
from seqssm_dna import metrics
from seqssm_dna.catalogue import BASELINES
from seqssm_dna.metrics import BaseScores
from seqssm_dna.model import GenomeEncoder, GenomeLM
from seqssm_dna.resizing import resized
from seqssm_dna.rivals import CausalCnn, GruLM
from seqssm_dna.tokens import BASE_COUNT, BOS, FIRST_BASE, MASK, PAD, Vocabulary

BETAS = (0.9, 0.95)  # betas of AdamW
TOKENS = 1 << 15  # tokens per forward pass; long segments are scored in pieces
Window = int | Literal["context"] | None


class GenomeTask(Task):
    """Common base of the domain's tasks: schedule, adapters, and the checkpoint summary for prediction.

    Args:
        schedule: learning-rate schedule: ``"constant"``; ``"halving"`` from the third epoch; ``"cosine"`` to zero at
            the end; or ``"trapezoid"``: constant, then linear to zero over the last `decay_fraction`.
        decay_fraction: fraction of the steps in which the trapezoid decays.
        context: length of a training sequence, letters; by default that of the data.
        attn_window: window of attention, tokens: a number, ``"context"`` (the training context), or null for all
            preceding tokens; prediction then rejects records longer than the training context.
        **kwargs: arguments of the network and of `seqssm.training.task.Task`.
    """

    domain = "dna"
    head: ClassVar[tuple[str, ...]] = ("lm_head",)
    derived: ClassVar[tuple[str, ...]] = ("attn_window", "n_labels")
    linked_args: ClassVar[tuple[str, ...]] = ("context",)
    limits: ClassVar[Mapping[str, Bounds]] = {
        "decay_fraction": Bounds(0, 1, above=True),
        "context": COUNT,
        "attn_window": COUNT,
    }
    objective: ClassVar[str] = ""
    """Kind of the task, for prediction."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Baselines included in the table of `test`."""

    def __init__(
        self,
        schedule: Literal["constant", "halving", "cosine", "trapezoid"] = "constant",
        decay_fraction: float = 0.22,
        context: int | None = None,
        attn_window: int | Literal["context"] | None = "context",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.seen: dict[str, list[dict[str, Tensor]]] = {"val": [], "test": []}

    # -- the network -------------------------------------------------------------------------------------------------

    @property
    def window(self) -> int | None:
        """Window of attention, tokens; None for all."""
        given = self.hparams["attn_window"]
        return self.hparams["context"] if given == "context" else given

    @property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the network."""
        return Vocabulary()

    def derive(self) -> dict[str, Any]:
        """Return the window of attention and the number of prefix tokens."""
        return {"attn_window": self.window, "n_labels": len(self.vocabulary.prefixes)}

    def adapt_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Merge adapters, extract the network of a classifier, and fit the vocabulary.

        Args:
            weights: weights of the checkpoint's network, by name.
        """
        own = {name.removeprefix("network."): value for name, value in super().adapt_weights(weights).items()}
        return resized(own, len(self.vocabulary))

    def describe(self) -> dict[str, Any]:
        """Return the information for prediction in addition to the data's summary, as plain values."""
        attends = bool(getattr(getattr(self.model, "network", self.model), "has_attention", False))
        return {
            "objective": self.objective,
            "vocabulary": self.vocabulary.to_dict(),
            "context": self.hparams["context"],
            "attn_window": self.window if attends else None,
            "has_attention": attends,
            "average_strands": False,
            "properties": [],
            "bins": None,
            "edges": [],
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["seqssm"]["data"].update(self.describe())

    def soft_loss(self, outputs: dict[str, Tensor], wanted: dict[str, Tensor], temperature: float) -> Tensor:
        kept = outputs["counted"] > 0
        return of_classes(outputs["logits"][kept], wanted["logits"][kept], temperature)

    # -- optimiser ---------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = super().configure_optimizers()
        for group in optimizer.param_groups:
            group["betas"] = BETAS
        return optimizer

    def rate(self, epoch: int, step: int, total: int) -> float:
        """Return the learning rate of optimiser step `step`; see the argument `schedule`."""
        if self.hparams["schedule"] != "trapezoid":
            return super().rate(epoch, step, total)
        if not total:
            raise InputError("--model.schedule trapezoid requires --trainer.max_steps or --trainer.max_epochs")
        left = (total - step) / max(1.0, total * self.hparams["decay_fraction"])
        warm = (step + 1) / max(1, self.hparams["warmup_steps"])
        return self.hparams["learning_rate"] * max(0.0, min(1.0, left, warm))

    # -- metrics -----------------------------------------------------------------------------------------------------

    def reset_metrics(self, stage: str) -> None:
        self.seen[stage] = []

    def update_metrics(self, batch: dict[str, Any], outputs: dict[str, Tensor], stage: str) -> None:
        found = {name: value.detach().cpu() for name, value in outputs.items()}
        self.seen[stage].append({"index": batch["index"].cpu(), **found})

    @abstractmethod
    def collected(self, stage: str) -> Any:
        """Return the predictions of all processes in record order, as an object of `seqssm_dna.metrics`."""

    @property
    def table(self) -> tuple[Metric, ...]:
        """Metrics of this task."""
        return self.metrics

    def compute_metrics(self, stage: str) -> dict[str, float]:
        return evaluate(self.table, self.collected(stage), stage)

    def compared(self, own: dict[str, float]) -> pd.DataFrame:
        """Return one row for the network and one for each applicable baseline.

        Args:
            own: scores of the network.
        """
        data = self.trainer.datamodule
        rows: list[dict[str, Any]] = [{"model": self.hparams["network"], **own}]
        for baseline in (one for one in BASELINES if one.name in self.beside):
            try:
                rows.append({"model": baseline.name, **resolve(baseline.run)(data)})
            except NotApplicableError:
                continue
        return pd.DataFrame(rows)

    def intervals(self, found: Any, own: dict[str, float], groups: Any = None) -> pd.DataFrame:
        """Return bootstrap intervals of the scores over records or groups of records.

        Args:
            found: predictions.
            own: scores of the network.
            groups: group of each record.
        """
        spread = metrics.intervals(self.table, found, draws=200, groups=groups)
        columns = {"figure": list(own), "value": list(own.values())}
        for side, title in enumerate(("2.5 %", "97.5 %")):
            columns[title] = [spread.get(name, (math.nan, math.nan))[side] for name in own]
        return pd.DataFrame(columns)

    def write_rows(self, frame: pd.DataFrame) -> None:
        """Write `figures/test_records.csv`, one row per test record, in rank 0.

        Args:
            frame: rows to write.
        """
        if self.trainer.is_global_zero:
            write_test_records(Path(self.trainer.default_root_dir), frame)


class LanguageTask(GenomeTask):
    """Common base of pretraining tasks: scores of bases by record."""

    metrics = metrics.LANGUAGE
    monitor: ClassVar[str] = "val_bits_per_base"
    self_supervised: ClassVar[bool] = True

    def collected(self, stage: str) -> BaseScores:
        found = gathered(self.seen[stage], self.trainer.world_size)
        if not found:
            return BaseScores(np.zeros(0), np.zeros(0), np.zeros(0))
        return BaseScores(*(found[name].astype(np.float64) for name in ("nll", "correct", "scored")))

    def test_report(self) -> Report:
        """Report the scores of the network and the k-mer Markov model, and intervals over the segments."""
        found = self.collected("test")
        own = evaluate(self.table, found, "test")
        tables = [(f"Test, {int(found.scored.sum()):,} bases", self.compared(own))]
        if len(found) > 1:
            tables.append((f"Bootstrap over {len(found)} segments", self.intervals(found, own)))
        return Report(own, tables)


def is_base(ids: Tensor) -> Tensor:
    """Return whether ids are A, C, G or T.

    Args:
        ids: token ids of any shape.
    """
    return (ids >= FIRST_BASE) & (ids < FIRST_BASE + BASE_COUNT)


def sums(nll: Tensor, logits: Tensor, targets: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """Compute sums by record for `BaseScores`, float64.

    Args:
        nll: negative log-likelihoods, nats, (B, L).
        logits: logits, (B, L, V).
        targets: token ids, (B, L).
        counted: mask of scored positions, (B, L) bool.
    """
    best = logits[..., FIRST_BASE : FIRST_BASE + BASE_COUNT].argmax(-1) + FIRST_BASE
    return {
        "nll": (nll.double() * counted).sum(1),
        "correct": ((best == targets) & counted).sum(1).double(),
        "scored": counted.sum(1).double(),
    }


def next_token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the cross-entropy of each target, nats, (B, L).

    Args:
        logits: logits, (B, L, V).
        targets: token ids below V, (B, L).
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)


class CausalPretraining(LanguageTask):
    """Trains a causal language model on the next base; N and padding are never targets."""

    networks: ClassVar[Mapping[str, type[nn.Module]]] = {"hybrid": GenomeLM, "gru": GruLM, "cnn": CausalCnn}
    objective: ClassVar[str] = "causal"
    beside: ClassVar[tuple[str, ...]] = ("markov",)

    def step(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.model.training:
            return self.scored(batch)
        targets, weight = batch["ids"], batch.get("weight")
        length = self.trainer.datamodule.length_at(self.current_epoch)
        if (
            length < targets.shape[1] and targets.shape[1] % length == 0
        ):  # warm-up: shorter sequences, same number of letters
            targets = targets.reshape(-1, length)
            weight = None if weight is None else weight.reshape(-1, length)
        inputs = F.pad(targets[:, :-1], (1, 0), value=BOS)
        logits = self.model(inputs)
        nll = next_token_nll(logits, targets)
        counted = is_base(targets).to(nll.dtype)
        counted = counted if weight is None else counted * weight
        return (nll * counted).sum() / counted.sum().clamp(min=1e-6), {"logits": logits, "counted": counted}

    def scored(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute loss and sums by record of long segments, in pieces with carried state.

        Without an attention window, each training context is scored separately.

        Args:
            batch: batch of segments.
        """
        targets = batch["ids"]
        inputs = F.pad(targets[:, :-1], (1, 0), value=BOS)
        described = self.describe()
        apart = described["has_attention"] and described["attn_window"] is None  # otherwise the time is quadratic
        size = self.hparams["context"] if apart else max(64, TOKENS // len(targets))
        state, total = None, None
        for start in range(0, targets.shape[1], size):
            part = targets[:, start : start + size]
            given = F.pad(part[:, :-1], (1, 0), value=BOS) if apart else inputs[:, start : start + size]
            logits, after = self.model(given, state, return_state=True)
            state = None if apart else after
            found = sums(next_token_nll(logits, part), logits, part, is_base(part))
            total = found if total is None else {name: total[name] + value for name, value in found.items()}
        assert total is not None
        return (total["nll"].sum() / total["scored"].sum().clamp(min=1)).float(), total


class MaskedPretraining(LanguageTask):
    """Trains a bidirectional encoder on masked bases; N is never masked and never a target.

    Of the selected bases, 80 % are replaced by ``[MASK]``, 10 % by another base, and 10 % are kept. Scores are those of
    the selected bases given both sides, and not comparable with the next-base scores of causal models.

    Args:
        mask_fraction: fraction of the bases that are selected.
        **kwargs: arguments of the network and of `GenomeTask`.
    """

    networks: ClassVar[Mapping[str, type[nn.Module]]] = {"encoder": GenomeEncoder}
    objective: ClassVar[str] = "masked"
    limits: ClassVar[Mapping[str, Bounds]] = {
        **GenomeTask.limits,
        "mask_fraction": Bounds(0, 1, above=True, below=True),
    }

    def __init__(self, mask_fraction: float = 0.15, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def step(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.model.training:
            return self.scored(batch)
        targets, mask = batch["ids"], batch["mask"]
        hidden, inputs = self.hide(targets)
        logits = self.model(inputs, mask=None if bool(mask.all()) else mask)
        nll = next_token_nll(logits, targets)
        counted = hidden.to(nll.dtype)
        counted = counted * batch["weight"] if "weight" in batch else counted
        return (nll * counted).sum() / counted.sum().clamp(min=1e-6), {"logits": logits, "counted": counted}

    def hide(self, ids: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Select and mask bases; return (selected (B, L) bool, inputs (B, L)).

        Args:
            ids: token ids, (B, L).
            generator: random number generator on the CPU; None for the global one, which training seeds for every step.
        """
        draws = torch.rand((3, *ids.shape), generator=generator).to(ids.device)
        chosen = is_base(ids) & (draws[0] < self.hparams["mask_fraction"])
        other = FIRST_BASE + (draws[2] * BASE_COUNT).long().clamp(max=BASE_COUNT - 1)
        inputs = torch.where(chosen & (draws[1] < 0.8), torch.full_like(ids, MASK), ids)
        inputs = torch.where(chosen & (draws[1] >= 0.8) & (draws[1] < 0.9), other, inputs)
        return chosen, inputs

    def scored(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute loss and sums by record of long segments, in windows of the training context.

        Args:
            batch: batch of segments; the masked bases depend only on their indices.
        """
        context = self.hparams["context"] or batch["ids"].shape[1]
        rows = []
        for index, ids, mask in zip(batch["index"].tolist(), batch["ids"], batch["mask"]):
            own = ids[mask].unsqueeze(0)
            hidden, inputs = self.hide(own, torch.Generator().manual_seed(derive_seed(index, 11)))
            rows.append(self._stretch(own, inputs, hidden, context))
        total = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return (total["nll"].sum() / total["scored"].sum().clamp(min=1)).float(), total

    def _stretch(self, targets: Tensor, inputs: Tensor, hidden: Tensor, context: int) -> dict[str, Tensor]:
        extra = -targets.shape[1] % context
        real = F.pad(torch.ones_like(hidden), (0, extra), value=False).reshape(-1, context)
        inputs, targets = (F.pad(one, (0, extra), value=PAD).reshape(-1, context) for one in (inputs, targets))
        hidden = F.pad(hidden, (0, extra), value=False).reshape(-1, context)
        total: dict[str, Tensor] = {}
        for start in range(0, len(inputs), max(1, TOKENS // context)):
            rows = slice(start, start + max(1, TOKENS // context))
            mask = None if bool(real[rows].all()) else real[rows]
            logits = self.model(inputs[rows], mask=mask)
            found = sums(next_token_nll(logits, targets[rows]), logits, targets[rows], hidden[rows])
            for name, value in found.items():
                total[name] = total.get(name, 0) + value.sum(0, keepdim=True)
        return total
