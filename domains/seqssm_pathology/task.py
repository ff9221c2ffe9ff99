"""Training task: cross-entropy or discrete-time survival likelihood, metrics, and the output of `test`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.domain import Bounds
from seqssm.errors import InputError
from seqssm.files.disk import atomic
from seqssm.metrics.gather import gathered
from seqssm.metrics.metric import evaluate
from seqssm.metrics.report import Report
from seqssm.training.task import Task
from seqssm_pathology.answers import Target
from seqssm_pathology.catalogue import LIMITS
from seqssm_pathology.manifest import Case
from seqssm_pathology.metrics import CLASSIFICATION, METRICS, SURVIVAL, Classified, Followed
from seqssm_pathology.model import NETWORKS, Output


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


def curve_names(edges: list[float]) -> list[str]:
    """Return the column names of the survival curve, ``S_<end of the bin>``, as short as uniqueness permits."""
    for digits in range(4, 17):
        names = [f"S_{edge:.{digits}g}" for edge in edges[1:]]
        if len(set(names)) == len(names) and not any("e+" in name for name in names):
            break
    return names


class PathologyTask(Task):
    """Train a multiple-instance network on bags.

    Args:
        target: prediction target; by default that of the data.
        bins: number of time bins of survival; by default that of the data.
        d_in: feature width of an instance; by default that of the data.
        num_classes: number of classes or time bins; by default that of the data.
        tokens: number of columns of a value table; by default that of the data.
        class_weights: class weights of the loss; ``balanced``: inverse class frequencies in the training split.
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
        self.weights: Tensor | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule
        if data.target == "classification" and data.num_classes < 2:
            only = f"every case has the {data.columns.label} {data.manifest.classes[0]}"
            raise InputError(f"{only}; at least two classes are needed", file=data.manifest.path)
        if (
            data.target == "classification"
            and not data.external
            and sum(count > 0 for count in data.class_counts()) < 2
        ):
            message = "the training split has a single class; at least two are needed"
            raise InputError(message, file=data.manifest.path)
        for name, value in {"d_in": data.width, "num_classes": data.num_classes, "tokens": data.tokens}.items():
            given = self.hparams[name]
            if given is not None and given != value:
                raise InputError(f"--model.{name} is {given}, the data has {value}")
            self.hparams[name] = value
        if self.hparams["class_weights"] == "balanced" and self.hparams["target"] == "classification":
            counts = torch.tensor(data.class_counts(), dtype=torch.float32).clamp(min=1)
            self.weights = counts.sum() / (len(counts) * counts)

    def build_model(self) -> nn.Module:
        if self.hparams["d_in"] is None or self.hparams["num_classes"] is None:
            raise InputError("the sizes of the data are not known: give data, or --model.d_in and --model.num_classes")
        return self.build_network()

    def forward(self, batch: dict[str, Any]) -> Output:
        return self.model(batch["features"], batch["cu_seqlens"], batch["lengths"], batch["order"])

    def step(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        logits = self(batch).logits
        if self.hparams["target"] == "survival":
            return survival_nll(logits, batch["bin"], batch["censored"], self.hparams["alpha"]), logits
        weights = None if self.weights is None else self.weights.to(logits.device)
        return F.cross_entropy(logits.float(), batch["label"], weight=weights), logits

    # -- validation and test -------------------------------------------------------------------------------------------

    def reset_metrics(self, stage: str) -> None:
        self.batches = []

    def update_metrics(self, batch: dict[str, Any], outputs: Tensor, stage: str) -> None:
        kept = {"index": batch["index"], "logits": outputs.detach().float()}
        kept |= {name: batch[name] for name in ("label", "time", "censored") if name in batch}
        self.batches.append({name: value.cpu() for name, value in kept.items()})

    def collected(self, found: dict[str, np.ndarray]) -> Classified | Followed:
        """Return the predictions of all records as input of the metrics."""
        logits = torch.from_numpy(found["logits"])
        if self.hparams["target"] == "classification":
            return Classified(found["label"], logits.softmax(1).numpy())
        data = self.trainer.datamodule
        return Followed(found["time"], found["censored"], curves_of(logits).numpy(), data.edges, data.follow_up())

    def decisions(self, outputs: Tensor) -> Tensor | None:
        """Return the predicted class (B,); None for survival."""
        return outputs.argmax(1) if self.hparams["target"] == "classification" else None

    def compute_metrics(self, stage: str) -> dict[str, float]:
        collected = self.collected(gathered(self.batches, self.trainer.world_size))
        table = CLASSIFICATION if isinstance(collected, Classified) else SURVIVAL
        return evaluate(table, collected, stage)

    def test_report(self) -> Report:
        """Report the scores next to those of the baselines; `figures/predictions.csv` has one row per record."""
        from seqssm_pathology import baselines

        found = gathered(self.batches, self.trainer.world_size)
        own = self.compute_metrics("test")
        data = self.trainer.datamodule
        rows = [{"model": self.hparams["network"], **own}]
        rows += [{"model": name, **scores} for name, scores in baselines.beside(data).items()]
        cases = [data.test_set.cases[number] for number in found["index"]]
        if self.trainer.is_global_zero:
            self._write(self.collected(found), cases)
        title = f"Test on {len(cases)} {data.manifest.level}s, "
        title += "external" if data.external else f"trained on {len(data.train_set)}"
        return Report(own, [(title, pd.DataFrame(rows))])

    def _write(self, collected: Classified | Followed, cases: list[Case]) -> None:
        """Write the predictions of all test records, and the figure of the survival risk groups."""
        from seqssm_pathology import figures

        data = self.trainer.datamodule
        folder = Path(self.trainer.default_root_dir) / "figures"
        table: dict[str, Any] = {f"{data.manifest.level}_id": [case.id for case in cases]}
        if data.manifest.level == "slide":
            table["case_id"] = [case.patient for case in cases]
        if isinstance(collected, Classified):
            names, p = data.manifest.classes, collected.probabilities
            table |= {"Y": [names[k] for k in collected.truth], "Y_hat": [names[k] for k in p.argmax(1)]}
            table |= {f"p_{name}": p[:, k] for k, name in enumerate(names)}
        else:
            time, censored, risk = collected.time, collected.censored, collected.risk
            table |= {"time": time, "censored": censored, "risk": risk}
            table |= {name: collected.curves[:, k] for k, name in enumerate(curve_names(data.edges))}
            figures.risk_groups(folder / "risk_groups.png", time, censored, risk, data.columns.time)
        with atomic(folder / "predictions.csv", "w") as file:
            pd.DataFrame(table).to_csv(file, index=False, lineterminator="\n")
