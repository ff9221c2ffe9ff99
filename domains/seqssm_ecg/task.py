"""The training task: losses of multilabel diagnosis, thresholds and temperature from validation, the test's report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.errors import InputError
from seqssm.files.disk import atomic
from seqssm.metrics.report import Report
from seqssm.training.task import Task
from seqssm_ecg import baselines, metrics, thresholds
from seqssm_ecg.model import Classifier, Direction, EcgCnn, EcgMamba, Pool, Stem, pooled_logits

LARGEST_WEIGHT = 20.0  # of a positive in the weighted loss; a rarer class is weighted as if it were this rare


class EcgTask(Task):
    """Trains a classifier of recordings; chooses thresholds and a temperature on the validation records.

    Args:
        network: ``mamba``, or ``cnn``: a small residual network.
        classes: names of the classes; those of the data when not given.
        lead_set, window_s, sampling_rate_hz: of the input; the data's when not given.
        d_model: width of the tokens; of the CNN: of its first stage.
        depth: Mamba blocks.
        d_state: states a channel.
        d_conv: steps of the convolution inside a block.
        expand: channels of the scan are expand * d_model.
        stem: ``short`` (a token every 4 samples), ``deep`` (every 8) or ``ecg_mamba`` (every 12).
        pool: place of the class token, or ``mean``.
        direction: ``bidirectional`` or ``forward``.
        merge: how the two directions are joined.
        positions: learned positions.
        causal: a causal stem, for streams.
        dropout: in the blocks and before the head.
        drop_path: of the last block.
        loss: binary cross-entropy; weighted by negatives / positives of each class; or asymmetric (Ridnik et al. 2021:
            focusing 1 and 4, probability shift 0.05).
        challenge_term: weight of the differentiable challenge score in the loss; 0 leaves it out.
        label_smoothing: labels become s / 2 and 1 - s / 2.
        thresholds: what they are chosen by: F1, Youden's index, or the challenge's score.
        engine: engine of the scan; the best one for the device when not given.
        kwargs: of `seqssm.training.task.Task`.
    """

    domain = "ecg"
    monitor: ClassVar[str] = "val_auroc"
    metrics = metrics.METRICS
    linked_args: ClassVar[tuple[str, ...]] = ("lead_set", "window_s", "sampling_rate_hz")
    inferred_args: ClassVar[tuple[str, ...]] = ("classes",)

    def __init__(
        self,
        network: Literal["mamba", "cnn"] = "mamba",
        classes: list[str] | None = None,
        lead_set: int | None = None,
        window_s: float | None = None,
        sampling_rate_hz: float | None = None,
        d_model: int = 64,
        depth: int = 2,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        stem: Stem = "short",
        pool: Pool = "middle",
        direction: Direction = "bidirectional",
        merge: Literal["sum", "mean"] = "mean",
        positions: bool = True,
        causal: bool = False,
        dropout: float = 0.1,
        drop_path: float = 0.1,
        loss: Literal["bce", "weighted_bce", "asymmetric"] = "bce",
        challenge_term: float = 0.0,
        label_smoothing: float = 0.0,
        thresholds: thresholds.Criterion = "f1",
        engine: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = {"d_model": d_model, "depth": depth, "d_state": d_state, "d_conv": d_conv, "expand": expand}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"--model.{name} {size}: must be at least 1")
        for name, share in (("dropout", dropout), ("drop_path", drop_path), ("label_smoothing", label_smoothing)):
            if not 0 <= share < 1:
                raise InputError(f"--model.{name} {share}: must be in [0, 1)")
        self.seen: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"val": [], "test": []}
        self.positive_weight: Tensor | None = None
        self.challenge: tuple[np.ndarray, int] | None = None

    def build_model(self) -> nn.Module:
        h = self.hparams
        if h["classes"] is None:
            raise InputError("--model.classes is not known: they come from the data")
        backbone: nn.Module
        if h["network"] == "cnn":
            backbone = EcgCnn(h["lead_set"], h["d_model"], h["dropout"])
        else:
            names = ("d_model", "depth", "d_state", "d_conv", "expand", "stem", "pool", "direction", "merge")
            names += ("positions", "causal", "dropout", "drop_path", "engine")
            window = max(1, round(h["window_s"] * h["sampling_rate_hz"]))
            backbone = EcgMamba(h["lead_set"], window, **{name: h[name] for name in names})
        return Classifier(backbone, len(h["classes"]), h["dropout"])

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule
        if self.hparams["classes"] is None:
            self.hparams["classes"] = list(data.classes.names)
        elif list(self.hparams["classes"]) != list(data.classes.names):
            raise InputError(
                f"the classes are {', '.join(self.hparams['classes'][:6])}, ..., and the data has "
                f"{', '.join(data.classes.names[:6])}, ...: take the data of the run, with its labels"
            )
        self.challenge = data.challenge
        if self.challenge is None and (self.hparams["challenge_term"] or self.hparams["thresholds"] == "challenge"):
            raise InputError(
                "--model.challenge_term and --model.thresholds challenge need --data.labels cinc2020|cinc2021"
            )
        count = len(data.split["train"])
        self.positive_weight = ((count - data.counts) / data.counts.clamp(min=1)).clamp(max=LARGEST_WEIGHT)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Logits of the records of a batch, (B, m)."""
        if "record_index" not in batch:
            return self.model(batch["x"], batch["lengths"])
        found: list[Tensor | None] = [None] * len(batch["index"])
        aggregate = self.trainer.datamodule.aggregate
        if len(batch["x"]):
            short, owners = batch["record_index"].unique(return_inverse=True)
            logits = pooled_logits(self.model(batch["x"], batch["lengths"]), owners, len(short), aggregate)
            for place, row in zip(short.tolist(), logits):
                found[place] = row
        for place, windows in batch["long"]:
            found[place] = self.of_long(windows, aggregate)
        return torch.stack([row for row in found if row is not None])

    def of_long(self, windows: Iterable[Tensor], aggregate: str) -> Tensor:
        """Logits (m,) of one long record, whose windows come a few at a time."""
        rows = [self.model(x.to(self.device), torch.full((len(x),), x.shape[-1])) for x in windows]
        logits = torch.cat(rows)
        return pooled_logits(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device), 1, aggregate)[0]

    # -- loss --------------------------------------------------------------------------------------------------------

    def step(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        logits = self(batch).float()
        return self.criterion(logits, batch["y"].float()), logits

    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits (B, m) against labels (B, m)."""
        h = self.hparams
        smooth = y * (1 - h["label_smoothing"]) + h["label_smoothing"] / 2 if h["label_smoothing"] else y
        if h["loss"] == "asymmetric":
            value = asymmetric(logits, smooth)
        else:
            weight = self.positive_weight if h["loss"] == "weighted_bce" else None
            weight = None if weight is None else weight.to(logits.device)
            value = F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weight)
        if h["challenge_term"]:
            assert self.challenge is not None
            weights, sinus = self.challenge
            table = torch.as_tensor(np.nan_to_num(weights), dtype=logits.dtype, device=logits.device)
            value = value - h["challenge_term"] * soft_challenge(logits.sigmoid(), y, table, sinus)
        return value

    # -- metrics -----------------------------------------------------------------------------------------------------

    def reset_metrics(self, stage: str) -> None:
        self.seen[stage] = []

    def update_metrics(self, batch: dict[str, Any], outputs: Tensor, stage: str) -> None:
        self.seen[stage].append((batch["index"].cpu(), outputs.cpu(), batch["y"].cpu()))

    def collected(self, stage: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(index, logits, truth) of the records of all processes, in the order of the records."""
        seen = self.seen[stage]
        if self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, seen)
            seen = [one for part in parts for one in part]
        index, logits, truth = (torch.cat(column).numpy() for column in zip(*seen))
        _, first = np.unique(index, return_index=True)
        return index[first], logits[first].astype(np.float64), truth[first]

    def compute_metrics(self, stage: str) -> dict[str, float]:
        _, logits, truth = self.collected(stage)
        if stage == "val" and self.trainer.state.fn == TrainerFn.FITTING:
            self._decide(truth, logits)
        scores, outputs = self.decisions(logits)
        weights, sinus = self.challenge or (None, None)
        values = metrics.summary(truth, scores, outputs, weights, sinus)
        if stage == "val":
            values = {name: values[name] for name in ("auroc", "auprc", "f1", "challenge") if name in values}
        return values

    def _decide(self, truth: np.ndarray, logits: np.ndarray) -> None:
        """Sets the network's temperature, and then its thresholds, by the validation records."""
        temperature = thresholds.temperature(truth, logits)
        weights, sinus = self.challenge or (None, None)
        scores = 1 / (1 + np.exp(-logits / temperature))
        chosen = thresholds.choose(truth, scores, self.hparams["thresholds"], weights, sinus)
        self.model.temperature.fill_(temperature)
        self.model.thresholds.copy_(torch.as_tensor(chosen))

    def on_fit_end(self) -> None:
        """Says which thresholds could not be chosen."""
        data = self.trainer.datamodule
        found = data.val_set.y.sum(0)
        lost = [name for name, count in zip(self.hparams["classes"], found) if count == 0 or count == len(data.val_set)]
        if lost and self.trainer.is_global_zero:
            print(f"threshold {thresholds.DEFAULT} for want of validation records of both kinds: {', '.join(lost)}")

    def decisions(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(probabilities, decisions) of logits (n, m), as in prediction."""
        scores = 1 / (1 + np.exp(-logits / float(self.model.temperature)))
        return scores, scores >= self.model.thresholds.cpu().double().numpy()

    # -- test --------------------------------------------------------------------------------------------------------

    def test_report(self) -> Report:
        """One table of the model and the baselines, then by class and by source, with 5-95 % intervals over records."""
        data = self.trainer.datamodule
        index, logits, truth = self.collected("test")
        scores, outputs = self.decisions(logits)
        weights, sinus = self.challenge or (None, None)
        own = metrics.summary(truth, scores, outputs, weights, sinus)
        spread = metrics.intervals(truth, scores, outputs, weights, sinus)
        rows = []
        for name, (other_scores, other_outputs) in {
            self.hparams["network"]: (scores, outputs),
            **baselines.predictions(data),
        }.items():
            rows.append({"model": name, **metrics.summary(truth, other_scores, other_outputs, weights, sinus)})
        names = list(own)
        interval = pd.DataFrame(
            {
                "figure": names,
                "value": [own[name] for name in names],
                "5 %": [spread[name][0] for name in names],
                "95 %": [spread[name][1] for name in names],
            }
        )
        classes = self.by_class(truth, scores, outputs)
        tables = [
            (f"Test, {len(truth)} records", pd.DataFrame(rows)),
            (f"{self.hparams['network']}, bootstrap over the records", interval),
            (f"By class ({int(np.isfinite(classes['auroc']).sum())} of {len(classes)} have an AUROC)", classes),
        ]
        places = [data.split["test"][number] for number in index]
        groups = np.array([data.labelled[place].source for place in places])
        if len(set(groups)) > 1:
            tables.append(("By source", self.by_source(groups, truth, scores, outputs)))
        if self.trainer.is_global_zero:
            ids = [data.labelled[place].id for place in places]
            self._write(ids, truth, scores, outputs)
        return Report(own, tables)

    def by_class(self, truth: np.ndarray, scores: np.ndarray, outputs: np.ndarray) -> pd.DataFrame:
        """A row a class."""
        low, high = [], []
        for k in range(truth.shape[1]):
            y, s = truth[:, k : k + 1], scores[:, k : k + 1]
            ends = metrics.bootstrap(len(y), lambda i, y=y, s=s: metrics.auroc(y[i], s[i])[0])
            low.append(ends[0])
            high.append(ends[1])
        f2, g2 = metrics.f2_g2(truth, outputs)
        return pd.DataFrame(
            {
                "class": self.hparams["classes"],
                "positives": truth.sum(0).astype(int),
                "auroc": metrics.auroc(truth, scores),
                "5 %": low,
                "95 %": high,
                "auprc": metrics.auprc(truth, scores),
                "f1": metrics.f_measure(truth, outputs),
                "f2": f2,
                "g2": g2,
                "brier": metrics.brier(truth, scores),
                "threshold": self.model.thresholds.cpu().double().numpy(),
            }
        )

    def by_source(self, groups: np.ndarray, truth: np.ndarray, scores: np.ndarray, outputs: np.ndarray) -> pd.DataFrame:
        """A row a source."""
        weights, sinus = self.challenge or (None, None)
        rows = []
        for source in sorted(set(groups)):
            own = groups == source
            found = metrics.summary(truth[own], scores[own], outputs[own], weights, sinus)
            rows.append({"source": source, "records": int(own.sum()), **found})
        return pd.DataFrame(rows)

    def _write(self, ids: list[str], truth: np.ndarray, scores: np.ndarray, outputs: np.ndarray) -> None:
        """`figures/`: every test record with truth and probability, ROC and PR curves, reliability, thresholds."""
        from seqssm_ecg.curves import curves_figure

        folder = Path(self.trainer.default_root_dir) / "figures"
        classes = self.hparams["classes"]
        table = pd.DataFrame({"id": ids})
        for k, name in enumerate(classes):
            table[name], table[f"{name}_truth"] = scores[:, k], truth[:, k].astype(int)
        with atomic(folder / "test_records.csv", "w") as file:
            table.to_csv(file, index=False, lineterminator="\n", float_format="%.6f")
        limits = self.model.thresholds.cpu().double().numpy()
        curves_figure(folder / "curves.png", classes, truth, scores, limits)


def asymmetric(logits: Tensor, y: Tensor, plus: float = 1.0, minus: float = 4.0, shift: float = 0.05) -> Tensor:
    """Asymmetric loss (Ridnik et al. 2021, equation 7), mean over records and classes.

    -y (1 - p)^plus log p - (1 - y) q^minus log(1 - q) with q = max(p - shift, 0).
    """
    p = logits.sigmoid()
    q = (p - shift).clamp(min=0)
    positive = y * (1 - p) ** plus * F.logsigmoid(logits)
    negative = (1 - y) * q**minus * torch.log1p(-q.clamp(max=1 - 1e-6))
    return -(positive + negative).mean()


def soft_challenge(p: Tensor, y: Tensor, weights: Tensor, sinus: int) -> Tensor:
    """The challenge's score with probabilities for decisions: equal to it where they are 0 or 1. Of one batch.

    A batch whose records score the same as "all sinus rhythm" gives 0, as the score does.
    """

    def scored(outputs: Tensor) -> Tensor:
        either = (y + outputs - y * outputs).sum(1).clamp(min=1)
        return (weights * ((y / either[:, None]).T @ outputs)).sum()

    normal = torch.zeros_like(y)
    normal[:, sinus] = 1
    inactive, correct = scored(normal), scored(y)
    span = correct - inactive
    return torch.where(span.abs() > 1e-6, (scored(p) - inactive) / span.clamp(min=1e-6), torch.zeros_like(span))
