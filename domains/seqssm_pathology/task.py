"""Training task: the losses of the targets, metrics, and the output of `test`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from seqssm.bounds import Bounds
from seqssm.errors import InputError
from seqssm.metrics.bootstrap import LEVEL, Part, bootstrap, ends
from seqssm.metrics.columns import ID, PATIENT, write_test_records
from seqssm.metrics.gather import gathered
from seqssm.metrics.report import Report
from seqssm.training.output_names import Outputs
from seqssm.training.task import Task
from seqssm_pathology import fitting, outcomes
from seqssm_pathology.answers import Target
from seqssm_pathology.base import Output
from seqssm_pathology.catalogue import LIMITS
from seqssm_pathology.files import say
from seqssm_pathology.heads import Head, SurvivalHead, heads_of, named_logits, split_logits
from seqssm_pathology.items import INPUTS
from seqssm_pathology.manifest import Case
from seqssm_pathology.metrics import METRICS
from seqssm_pathology.model import NETWORKS
from seqssm_pathology.outcomes import Collected
from seqssm_pathology.ranges import UNUSUAL
from seqssm_pathology.soft import converted
from seqssm_pathology.survival import Followed, risk_groups

ENDS = (f"{(100 - LEVEL) / 2:g} %", f"{(100 + LEVEL) / 2:g} %")


class PathologyTask(Task):
    """Train a multiple-instance network on bags.

    Args:
        target: prediction target; by default that of the data.
        bins: number of time bins of survival; by default that of the data.
        d_in: feature width of an instance; by default that of the data.
        num_classes: number of outputs (classes, time bins, labels); by default that of the data.
        tokens: number of columns of a value table; by default that of the data.
        class_weights: class weights of the loss; ``balanced``: inverse class frequencies in the training split. For
            labels, the weight of the positives.
        alpha: extra weight of events in survival, from 0 to 1.
        **kwargs: arguments of the network, and of `seqssm.training.task.Task`.
    """

    domain = "pathology"
    networks = NETWORKS
    metrics = METRICS
    linked_args: ClassVar[tuple[str, ...]] = ("target", "bins")
    target_args: ClassVar[tuple[str, ...]] = ("target",)
    inferred_args: ClassVar[tuple[str, ...]] = ("d_in", "num_classes", "tokens")
    assumed: ClassVar[Mapping[str, Any]] = {"d_in": 1, "num_classes": 1}
    limits: ClassVar[Mapping[str, Bounds]] = {"alpha": Bounds(0, 1), "bins": LIMITS["bins"]}

    def __init__(
        self,
        target: Target | None = None,
        bins: int | None = None,
        d_in: int | None = None,
        num_classes: int | None = None,
        tokens: int | None = None,
        class_weights: Literal["none", "balanced"] = "none",
        alpha: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batches: list[dict[str, Tensor]] = []  # of the validation or test split
        self.heads: list[Head] = []

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule
        for name, value in {"d_in": data.width, "num_classes": data.num_classes, "tokens": data.tokens}.items():
            given = self.hparams[name]
            if given is not None and given != value:
                raise InputError(f"--model.{name} is {given}, the data has {value}")
            self.hparams[name] = value
        heads = data.heads
        if self.hparams["class_weights"] == "balanced" and not data.external:
            heads = fitting.weighted(heads, data.train_set.cases)
        alpha = self.hparams["alpha"]
        self.heads = [replace(head, alpha=alpha) if isinstance(head, SurvivalHead) else head for head in heads]

    @classmethod
    def named_outputs(cls, hparams: Mapping[str, Any], summary: Mapping[str, Any]) -> Outputs:
        return named_logits(summary) if summary else Outputs()

    def build_model(self) -> nn.Module:
        if self.hparams["d_in"] is None or self.hparams["num_classes"] is None:
            raise InputError("the sizes of the data are not known: give data, or --model.d_in and --model.num_classes")
        return self.build_network()

    def forward(self, batch: dict[str, Any]) -> Output:
        return self.model(batch["features"], batch["cu_seqlens"], batch["lengths"], batch["order"])

    def step(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        out = self(batch)
        truth = {name: value for name, value in batch.items() if name not in INPUTS}

        def criterion(logits: Tensor, bags: Tensor | None) -> Tensor:
            own = truth if bags is None else {name: value[bags] for name, value in truth.items()}
            return self.criterion(logits, own)

        return self.model.loss(out, criterion, batch.get("label")), out.logits

    def criterion(self, logits: Tensor, truth: Mapping[str, Tensor]) -> Tensor:
        """Compute the loss of logits (n, num_classes) and the targets of the same n rows, mean over the targets."""
        losses = [head.loss(own, truth) for head, own in zip(self.heads, split_logits(self.heads, logits))]
        return sum(losses[1:], losses[0]) / len(losses)

    def from_teacher(self, outputs: Tensor) -> Tensor:
        assert self.teacher is not None
        others = heads_of(self.teacher.summary)
        parts = zip(split_logits(others, outputs), others, self.heads)
        return torch.cat([converted(theirs, other, head) for theirs, other, head in parts], 1)

    def soft_loss(self, outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        parts = zip(self.heads, split_logits(self.heads, outputs), split_logits(self.heads, wanted))
        losses = [head.soft_loss(own, theirs, temperature) for head, own, theirs in parts]
        return sum(losses[1:], losses[0]) / len(losses)

    # -- validation and test -------------------------------------------------------------------------------------------

    def reset_metrics(self, stage: str) -> None:
        self.batches = []

    def update_metrics(self, batch: dict[str, Any], outputs: Tensor, stage: str) -> None:
        kept = {"index": batch["index"], "unusual": batch["unusual"], "logits": outputs.detach().float()}
        kept |= {name: value for name, value in batch.items() if name not in INPUTS}
        self.batches.append({name: value.cpu() for name, value in kept.items()})

    def collected(self, found: dict[str, np.ndarray]) -> list[tuple[Head, np.ndarray, Collected]]:
        """Return, for each target, its head, the rows whose target is known, and the input of the metrics."""
        data = self.trainer.datamodule
        result = []
        places = np.cumsum([head.size for head in self.heads])[:-1]
        for head, logits in zip(self.heads, np.split(found["logits"], places, axis=1)):
            rows = np.flatnonzero(outcomes.known_rows(head, found))
            own = {name: value[rows] for name, value in found.items()}
            follow_up = data.follow_up(head) if isinstance(head, SurvivalHead) else None
            result.append((head, rows, outcomes.collect(head, logits[rows], own, follow_up)))
        return result

    def decisions(self, outputs: Tensor) -> Tensor | None:
        """Return the predicted class (B,); None for survival."""
        return outputs.argmax(1) if self.hparams["target"] == "classification" else None

    def compute_metrics(self, stage: str) -> dict[str, float]:
        found = gathered(self.batches, self.trainer.world_size)
        return outcomes.scores(self.collected(found), stage)

    def test_report(self) -> Report:
        """Report the scores next to those of the baselines, and bootstrap intervals over the patients.

        `figures/test_records.csv` has one row per record.
        """
        from seqssm_pathology import baselines

        found = gathered(self.batches, self.trainer.world_size)
        collected = self.collected(found)
        own = outcomes.scores(collected, "test")
        data = self.trainer.datamodule
        rows = [{"model": self.hparams["network"], **own}]
        rows += [{"model": name, **scores} for name, scores in baselines.beside(data).items()]
        cases = [data.test_set.cases[number] for number in found["index"]]
        if self.trainer.is_global_zero:
            self._write(collected, cases)
            if count := int(found["unusual"].sum()):
                say(f"warning: {count} of {len(cases)} test {data.manifest.level}s have {UNUSUAL}")
        title = f"Test on {len(cases)} {data.manifest.level}s, "
        title += "external" if data.external else f"trained on {len(data.train_set)}"
        tables = [(title, pd.DataFrame(rows)), self._intervals(collected, cases, own)]
        for head, known, one in collected:
            if isinstance(one, Followed) and len(known):
                title = f"{outcomes.axis(head)}: median survival of the halves by predicted risk (Kaplan-Meier)"
                tables.append((title, risk_groups(one.time, one.censored, one.risk)))
        return Report(own, tables)

    def _intervals(
        self, collected: list[tuple[Head, np.ndarray, Collected]], cases: list[Case], own: Mapping[str, float]
    ) -> tuple[str, pd.DataFrame]:
        """Return the table of intervals and its title."""
        patients = [case.patient for case in cases]
        part = Part(patients, lambda index: outcomes.scores(collected, "interval", index))
        draws = bootstrap([part])
        rows = [{"metric": name, "value": own[name], **dict(zip(ENDS, ends(values)))} for name, values in draws.items()]
        title = f"{self.hparams['network']}: {LEVEL:g} % intervals, bootstrap over {len(set(patients))} patients"
        return title, pd.DataFrame(rows, columns=["metric", "value", *ENDS])

    def _write(self, collected: list[tuple[Head, np.ndarray, Collected]], cases: list[Case]) -> None:
        """Write the predictions of all test records, and the figures of the survival risk groups."""
        from seqssm_pathology import figures

        data = self.trainer.datamodule
        folder = Path(self.trainer.default_root_dir) / "figures"
        table = pd.DataFrame({ID: [case.id for case in cases]})
        if data.manifest.level == "slide" or data.manifest.barcodes:
            table[PATIENT] = [case.patient for case in cases]
        for head, rows, one in collected:
            own = outcomes.as_table(head, one).set_index(rows)
            table = table.join(own)
            if isinstance(one, Followed) and len(rows):
                name = f"{head.name}_risk_groups.png" if head.tag else "risk_groups.png"
                figures.risk_groups(folder / name, one.time, one.censored, one.risk, outcomes.axis(head))
        write_test_records(folder.parent, table)
