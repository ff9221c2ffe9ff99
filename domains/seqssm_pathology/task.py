"""The training task: cross-entropy or discrete-time survival likelihood, their scores, and what `test` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.errors import InputError
from seqssm.files.disk import atomic
from seqssm.metrics.report import Report
from seqssm.training.task import Task
from seqssm_pathology import metrics
from seqssm_pathology.answers import Target
from seqssm_pathology.model import Mil, Network, Output


def survival_nll(logits: Tensor, bins: Tensor, censored: Tensor, alpha: float = 0.0) -> Tensor:
    """Negative log-likelihood of discrete-time survival, the mean over cases.

    With hazards h_k = sigmoid(z_k) and S_k = prod_{j <= k} (1 - h_j): an event in bin Y costs -(log S_{Y-1} + log
    h_Y), a case censored in bin Y costs -log S_Y. log h = logsigmoid(z) and log(1 - h) = logsigmoid(-z) need no clamp.

    Args:
        logits: z, (n, K).
        bins: Y, (n,) integers.
        censored: (n,), 1 censored, 0 event.
        alpha: share by which events weigh more: (1 - alpha) NLL + alpha (NLL of the events).
    """
    logits = logits.float()
    log_survival = F.logsigmoid(-logits).cumsum(1)  # log S_k
    before = F.pad(log_survival, (1, 0))  # log S_{k - 1}
    place = bins.long().unsqueeze(1)
    event = before.gather(1, place) + F.logsigmoid(logits).gather(1, place)
    c = censored.to(logits).unsqueeze(1)
    of_events = -(1 - c) * event
    return (of_events - (1 - alpha) * c * log_survival.gather(1, place)).mean()


def curves_of(logits: Tensor) -> Tensor:
    """S at the end of each bin, (n, K), from the logits of the hazards."""
    return F.logsigmoid(-logits.float()).cumsum(1).exp()


def curve_names(edges: list[float]) -> list[str]:
    """Names of the survival curve's columns, ``S_<end of the bin>``: as short as they can be without two alike."""
    for digits in range(4, 17):
        names = [f"S_{edge:.{digits}g}" for edge in edges[1:]]
        if len(set(names)) == len(names) and not any("e+" in name for name in names):
            break
    return names


class PathologyTask(Task):
    """Trains a multiple-instance network on bags.

    Args:
        network: ``srmamba``, ``bimamba``, ``mamba``; ``abmil``, ``abmil_gated``, ``mean``, ``max``, ``transmil``.
        target: what is learned; `data.target` when not given.
        bins: time bins of survival; `data.bins` when not given.
        d_in: width of the features; the data's when not given.
        outputs: classes or time bins; the data's when not given.
        tokens: columns of a value table; the data's when not given.
        d_model: width of an instance inside.
        layers: blocks of the scans.
        rate: R of ``srmamba``: the second scan takes every R-th instance.
        d_state, d_conv, expand: of the scans.
        pool_width: inner width of the attention.
        heads: of ``transmil``.
        dropout: behind the projection.
        padding: ``published`` reproduces the zero rows that the released code puts inside the reordered sequence.
        importance: the scans go by a learned score of the instances instead of `data.order`.
        regime: ``positive`` excludes the convergent regime of the scans.
        piece: bags of more instances are scanned in pieces of this many, for memory.
        recompute: blocks are computed again in the backward pass, for memory.
        class_weights: ``balanced`` weighs classes by the inverse of their number in the training part.
        alpha: extra weight of events in survival.
        engine: engine of the scan; the best one for the device when not given.
        kwargs: of `seqssm.training.task.Task`.
    """

    domain = "pathology"
    metrics = metrics.METRICS
    linked_args: ClassVar[tuple[str, ...]] = ("target", "bins")
    inferred_args: ClassVar[tuple[str, ...]] = ("d_in", "outputs", "tokens")

    def __init__(
        self,
        network: Network = "srmamba",
        target: Target | None = None,
        bins: int | None = None,
        d_in: int | None = None,
        outputs: int | None = None,
        tokens: int | None = None,
        d_model: int = 512,
        layers: int = 2,
        rate: int = 5,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        pool_width: int = 128,
        heads: int = 8,
        dropout: float = 0.25,
        padding: Literal["free", "published"] = "free",
        importance: bool = False,
        regime: Literal["free", "positive"] = "free",
        piece: int = 4096,
        recompute: bool = False,
        class_weights: Literal["none", "balanced"] = "none",
        alpha: float = 0.0,
        engine: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = {"d_model": d_model, "layers": layers, "rate": rate, "d_state": d_state, "d_conv": d_conv}
        sizes |= {"pool_width": pool_width, "heads": heads, "piece": piece}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"--model.{name} {size}: must be at least 1")
        if not 0 <= dropout < 1:
            raise InputError(f"--model.dropout {dropout}: must be in [0, 1)")
        if not 0 <= alpha <= 1:
            raise InputError(f"--model.alpha {alpha}: must be in [0, 1]")
        if network == "transmil" and d_model % heads:
            raise InputError(f"--model.heads {heads} does not divide --model.d_model {d_model}")
        if importance and padding == "published":
            raise InputError("--model.importance true has an order of its own: padding published does not go with it")
        self.seen: list[dict[str, Tensor]] = []  # of the validation or test part
        self.weights: Tensor | None = None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule
        if data.target == "classification" and data.outputs < 2:
            only = f"every case has the {data.columns.label} {data.manifest.classes[0]}"
            raise InputError(f"{only}; at least two classes are needed", file=data.manifest.path)
        found = {"d_in": data.width, "outputs": data.outputs, "tokens": data.tokens}
        for name, value in found.items():
            given = self.hparams[name]
            if given is not None and given != value:
                raise InputError(f"--model.{name} is {given}, the data have {value}")
            self.hparams[name] = value
        if self.hparams["class_weights"] == "balanced" and self.hparams["target"] == "classification":
            counts = torch.tensor(data.class_counts(), dtype=torch.float32).clamp(min=1)
            self.weights = counts.sum() / (len(counts) * counts)

    def build_model(self) -> nn.Module:
        names = (
            "network",
            "d_model",
            "layers",
            "rate",
            "d_state",
            "d_conv",
            "expand",
            "pool_width",
            "heads",
            "dropout",
        )
        names += ("tokens", "padding", "importance", "regime", "piece", "engine", "recompute")
        if self.hparams["d_in"] is None or self.hparams["outputs"] is None:
            raise InputError("the width of the features is not known: give data, or --model.d_in and --model.outputs")
        try:
            return Mil(self.hparams["d_in"], self.hparams["outputs"], **{name: self.hparams[name] for name in names})
        except ValueError as error:
            raise InputError(f"--model: {error}") from None

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
        self.seen = []

    def update_metrics(self, batch: dict[str, Any], outputs: Tensor, stage: str) -> None:
        kept = {"index": batch["index"], "logits": outputs.detach().float()}
        kept |= {name: batch[name] for name in ("label", "time", "censored", "bin") if name in batch}
        self.seen.append({name: value.cpu() for name, value in kept.items()})

    def _gathered(self) -> dict[str, np.ndarray]:
        """What all processes saw, by number of the case."""
        parts = self.seen
        if self.trainer.world_size > 1:
            everyone: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everyone, parts)
            parts = [part for own in everyone for part in own]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        order = torch.argsort(joined["index"])
        return {name: value[order].numpy() for name, value in joined.items()}

    def compute_metrics(self, stage: str) -> dict[str, float]:
        found = self._gathered()
        logits = torch.from_numpy(found["logits"])
        if self.hparams["target"] == "classification":
            return metrics.classification(found["label"], logits.softmax(1).numpy())
        curves = curves_of(logits).numpy()
        own = found["time"], found["censored"]
        risk = -curves.sum(1)
        scores = {"c_index": metrics.c_index(*own, risk)}
        if stage == "test":
            data = self.trainer.datamodule
            scores["ibs"] = metrics.integrated_brier(data.follow_up(), own, curves, data.edges)
            scores["log_rank_p"] = metrics.log_rank(*own, risk > np.median(risk))
        return scores

    def test_report(self) -> Report:
        """The scores, beside those of the cheap baselines; `figures/predictions.csv` has one row per record."""
        from seqssm_pathology import baselines

        own = self.compute_metrics("test")
        found = self._gathered()
        data = self.trainer.datamodule
        rows = [{"model": self.hparams["network"], **own}]
        rows += [{"model": name, **scores} for name, scores in baselines.quick(data).items()]
        cases = [data.test_set.cases[number] for number in found["index"]]
        if self.trainer.is_global_zero:
            self._write(found, cases)
        title = f"Test on {len(cases)} {data.manifest.level}s, "
        title += "external" if data.external else f"trained on {len(data.train_set)}"
        return Report(own, [(title, pd.DataFrame(rows))])

    def _write(self, found: dict[str, np.ndarray], cases: list[Any]) -> None:
        from seqssm_pathology import figures

        data = self.trainer.datamodule
        folder = Path(self.trainer.default_root_dir) / "figures"
        logits = torch.from_numpy(found["logits"])
        table: dict[str, Any] = {f"{data.manifest.level}_id": [case.id for case in cases]}
        if data.manifest.level == "slide":
            table["case_id"] = [case.patient for case in cases]
        if self.hparams["target"] == "classification":
            probabilities = logits.softmax(1).numpy()
            names = data.manifest.classes
            table |= {"Y": [names[k] for k in found["label"]], "Y_hat": [names[k] for k in probabilities.argmax(1)]}
            table |= {f"p_{name}": probabilities[:, k] for k, name in enumerate(names)}
        else:
            curves = curves_of(logits).numpy()
            risk = -curves.sum(1)
            table |= {"time": found["time"], "censored": found["censored"], "risk": risk}
            table |= {name: curves[:, k] for k, name in enumerate(curve_names(data.edges))}
            figures.risk_groups(folder / "risk_groups.png", found["time"], found["censored"], risk, data.columns.time)
        with atomic(folder / "predictions.csv", "w") as file:
            pd.DataFrame(table).to_csv(file, index=False, lineterminator="\n")
