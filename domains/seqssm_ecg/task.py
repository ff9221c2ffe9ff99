"""Training task of multilabel diagnosis: losses, thresholds and temperature from validation, test report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.domain import RATE, Bounds, resolve
from seqssm.errors import InputError, NotApplicableError
from seqssm.files.disk import atomic
from seqssm.metrics.gather import gathered
from seqssm.metrics.report import Report
from seqssm.training.soft_losses import of_labels
from seqssm.training.task import Task
from seqssm_ecg import DOMAIN, limits, metrics, thresholds
from seqssm_ecg.baselines import TITLES
from seqssm_ecg.metrics import Predictions
from seqssm_ecg.model import Classifier, EcgMamba, ResidualCnn, pooled_logits
from seqssm_ecg.one_lead import mean_logits, pairs

LARGEST_WEIGHT = 20.0  # maximum weight of a positive in the weighted loss


class EcgTask(Task):
    """Train a classifier of recordings, and fit thresholds and a temperature on the validation records.

    Args:
        classes: class names; by default those of the data.
        lead_set: number of leads; by default that of the data.
        window_s: length of a window, seconds; by default that of the data.
        sampling_rate_hz: sampling rate of the input; by default that of the data.
        one_lead: whether the network is trained on single leads; by default as the data.
        loss: loss function: binary cross-entropy; the same weighted by negatives / positives of each class; or
            asymmetric
        (Ridnik et al. 2021, focusing 1 and 4, probability shift 0.05).
        challenge_term: weight of the differentiable challenge score in the loss; 0 disables it.
        label_smoothing: label smoothing s: labels become s / 2 and 1 - s / 2.
        thresholds: criterion for fitting thresholds: F1, Youden's index, or the challenge's score.
        temperature: temperature scaling of the probabilities, fitted on the validation records: one temperature for all
            classes, or one per class. A class with fewer than 5 known positives or negatives keeps the common one.
        kwargs: arguments of `seqssm.training.task.Task`.
    """

    domain = "ecg"
    networks: ClassVar[Mapping[str, type[nn.Module]]] = {"mamba": EcgMamba, "cnn": ResidualCnn}
    derived: ClassVar[tuple[str, ...]] = ("leads", "window")
    monitor: ClassVar[str] = "val_auroc"
    metrics = metrics.METRICS
    linked_args: ClassVar[tuple[str, ...]] = ("lead_set", "window_s", "sampling_rate_hz", "one_lead")
    inferred_args: ClassVar[tuple[str, ...]] = ("classes",)
    limits: ClassVar[Mapping[str, Bounds]] = {
        "challenge_term": Bounds(0, 1000),
        "label_smoothing": RATE,
        "lead_set": Bounds(2, 12),
        "window_s": limits.SECONDS,
        "sampling_rate_hz": limits.DATA["sampling_rate_hz"],
    }

    def __init__(
        self,
        classes: list[str] | None = None,
        lead_set: int | None = None,
        window_s: float | None = None,
        sampling_rate_hz: float | None = None,
        one_lead: bool | None = None,
        loss: Literal["bce", "weighted_bce", "asymmetric"] = "bce",
        challenge_term: float = 0.0,
        label_smoothing: float = 0.0,
        thresholds: thresholds.Criterion = "f1",
        temperature: Literal["single", "per_class"] = "single",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.batches: dict[str, list[dict[str, Tensor]]] = {"val": [], "test": []}
        self.positive_weight: Tensor | None = None
        self.has_unknown = True  # whether labels may be NaN; set from the data, which spares a look at every batch
        self.challenge: tuple[np.ndarray, int] | None = None
        self.of_leads: np.ndarray | None = None  # logits (n, leads, m) of the last validation or test, with one_lead

    def derive(self) -> dict[str, Any]:
        """Return arguments of the network: input channels and samples per window."""
        h = self.hparams
        return {"leads": h["lead_set"], "window": max(1, round(h["window_s"] * h["sampling_rate_hz"]))}

    def build_model(self) -> nn.Module:
        """Build the network with one logit per class."""
        if self.hparams["classes"] is None:
            raise InputError("--model.classes is set from the data and cannot be given")
        h = self.hparams
        own = h["temperature"] == "per_class"
        return Classifier(self.build_network(), len(h["classes"]), h["dropout"], own, bool(h["one_lead"]))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule
        if self.hparams["classes"] is None:
            self.hparams["classes"] = list(data.classes.names)
        elif list(self.hparams["classes"]) != list(data.classes.names):
            raise InputError(
                f"the classes are {', '.join(self.hparams['classes'][:6])}, ..., and the data has "
                f"{', '.join(data.classes.names[:6])}, ...; use the data and labels of the run"
            )
        self.challenge = data.challenge
        if self.challenge is None and (self.hparams["challenge_term"] or self.hparams["thresholds"] == "challenge"):
            raise InputError(
                "--model.challenge_term and --model.thresholds challenge need --data.labels cinc2020|cinc2021"
            )
        self.has_unknown = data.has_unknown
        self.positive_weight = ((data.known - data.counts) / data.counts.clamp(min=1)).clamp(max=LARGEST_WEIGHT)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Compute the logits of the records of a batch, (B, m); of single leads, those of each lead beside them."""
        if "record_index" not in batch:
            return self.model(batch["x"], batch["lengths"])
        found: list[Tensor | None] = [None] * len(batch["index"])
        aggregate = self.trainer.datamodule.aggregate
        if len(batch["x"]):
            short, owners = batch["record_index"].unique(return_inverse=True)
            logits = pooled_logits(self.by_window(batch["x"], batch["lengths"]), owners, len(short), aggregate)
            for place, row in zip(short.tolist(), logits):
                found[place] = row
        for place, windows in batch["long"]:
            found[place] = self.of_long(windows, aggregate)
        return torch.stack([row for row in found if row is not None])

    def of_long(self, windows: Iterable[Tensor], aggregate: str) -> Tensor:
        """Compute the logits (m,) of a long record, a bounded number of windows at a time."""
        rows = [self.by_window(x.to(self.device), torch.full((len(x),), x.shape[-1])) for x in windows]
        logits = torch.cat(rows)
        return pooled_logits(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device), 1, aggregate)[0]

    def by_window(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Compute logits (windows, m); of single leads (windows, m + leads * m): their mean, then each lead."""
        if not self.model.one_lead:
            return self.model(x, lengths)
        found = self.model.by_lead(x, lengths)
        return torch.cat([mean_logits(found), found.flatten(1)], dim=1)

    # -- loss --------------------------------------------------------------------------------------------------------

    def step(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        outputs = self(batch).float()
        return self.criterion(self.of_records(outputs), batch["y"].float()), outputs

    def of_records(self, outputs: Tensor) -> Tensor:
        """Return the columns of `forward` that are the logits of the records, (B, m)."""
        return outputs[:, : len(self.hparams["classes"])]

    def criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of logits (B, m) for labels (B, m): the mean over the known ones, those that are not NaN."""
        h = self.hparams
        known = y.isfinite() if self.has_unknown else None
        if known is not None and bool(known.all()):
            known = None
        y = y if known is None else y.masked_fill(~known, 0)
        smooth = y * (1 - h["label_smoothing"]) + h["label_smoothing"] / 2 if h["label_smoothing"] else y
        if h["loss"] == "asymmetric":
            value = asymmetric(logits, smooth, known=known)
        else:
            weight = self.positive_weight if h["loss"] == "weighted_bce" else None
            weight = None if weight is None else weight.to(logits.device)
            value = F.binary_cross_entropy_with_logits(logits, smooth, shares(known), pos_weight=weight)
        if h["challenge_term"]:
            assert self.challenge is not None
            weights, sinus = self.challenge
            table = torch.as_tensor(np.nan_to_num(weights), dtype=logits.dtype, device=logits.device)
            value = value - h["challenge_term"] * soft_challenge(logits.sigmoid(), y, table, sinus, known)
        return value

    def soft_loss(self, outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        return of_labels(outputs, wanted, temperature)

    # -- metrics -----------------------------------------------------------------------------------------------------

    def reset_metrics(self, stage: str) -> None:
        self.batches[stage] = []

    def update_metrics(self, batch: dict[str, Any], outputs: Tensor, stage: str) -> None:
        logits = self.of_records(outputs)
        row = {"index": batch["index"].cpu(), "logits": logits.cpu(), "truth": batch["y"].cpu()}
        self.batches[stage].append({**row, "leads": outputs[:, logits.shape[1] :].cpu()})

    def collected(self, stage: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Gather (index, logits, truth) of all processes, in the order of the records."""
        found = gathered(self.batches[stage], self.trainer.world_size)
        n, m = found["logits"].shape
        self.of_leads = found["leads"].astype(np.float64).reshape(n, -1, m) if self.hparams["one_lead"] else None
        return found["index"], found["logits"].astype(np.float64), found["truth"]

    def compute_metrics(self, stage: str) -> dict[str, float]:
        _, logits, truth = self.collected(stage)
        if self.of_leads is not None:  # thresholds and temperature are for one lead
            truth, logits = pairs(truth, self.of_leads)
        if stage == "val" and self.trainer.state.fn == TrainerFn.FITTING:
            self._decide(truth, logits)
        return metrics.summary(self.predictions(truth, logits), stage)

    def decisions(self, outputs: Tensor) -> Tensor:
        """Return which classes are positive, (B, m) bool, as in prediction."""
        outputs = self.of_records(outputs)
        return (outputs.double() / self.model.temperature.double()).sigmoid() >= self.model.thresholds.double()

    def predictions(self, truth: np.ndarray, logits: np.ndarray) -> Predictions:
        """Convert logits (n, m) to probabilities and decisions as in prediction, and add the labels."""
        scores = 1 / (1 + np.exp(-logits / self.model.temperature.cpu().double().numpy()))
        decisions = scores >= self.model.thresholds.cpu().double().numpy()
        return Predictions(truth, scores, decisions, *(self.challenge or (None, None)))

    def _decide(self, truth: np.ndarray, logits: np.ndarray) -> None:
        """Fit the network's temperature or temperatures, then its thresholds, on the validation records."""
        fit = thresholds.temperatures if self.hparams["temperature"] == "per_class" else thresholds.temperature
        temperature = fit(truth, logits)
        weights, sinus = self.challenge or (None, None)
        scores = 1 / (1 + np.exp(-logits / temperature))
        chosen = thresholds.fit_thresholds(truth, scores, self.hparams["thresholds"], weights, sinus)
        self.model.temperature.copy_(torch.as_tensor(temperature))
        self.model.thresholds.copy_(torch.as_tensor(chosen))

    def on_fit_end(self) -> None:
        """Report the thresholds and temperatures that could not be fitted."""
        data = self.trainer.datamodule
        y = data.val_set.y
        single = ((y > 0).sum(0) == 0) | ((y == 0).sum(0) == 0)
        lost = [name for name, one in zip(self.hparams["classes"], single) if one]
        if lost and self.trainer.is_global_zero:
            print(
                f"kept the default threshold {thresholds.DEFAULT} (validation set has a single class) for: "
                f"{', '.join(lost)}"
            )
        if self.hparams["temperature"] == "per_class" and not self.hparams["one_lead"] and self.trainer.is_global_zero:
            few = [name for name, one in zip(self.hparams["classes"], ~thresholds.enough(y.numpy())) if one]
            if few:
                print(f"kept the common temperature (fewer than {thresholds.ENOUGH} positives or negatives in the "
                      f"validation set) for: {', '.join(few)}")  # fmt: skip

    # -- test --------------------------------------------------------------------------------------------------------

    def test_report(self) -> Report:
        """Report model and baselines in one table, then by class and by source, with 5-95 % intervals over records."""
        data = self.trainer.datamodule
        index, logits, truth = self.collected("test")
        found = self.predictions(truth, logits)
        own = metrics.summary(found)
        leads = self.by_lead(truth)
        spread = metrics.intervals(found)
        rows = [{"model": self.hparams["network"], **own}]
        for baseline in DOMAIN.baselines:
            try:
                rows.append({"model": TITLES.get(baseline.name, baseline.name), **resolve(baseline.run)(data)})
            except NotApplicableError as error:
                data.print_line(f"baseline {baseline.name} skipped: {error}")
        interval = pd.DataFrame(
            {
                "figure": list(own),
                "value": list(own.values()),
                "5 %": [spread[name][0] for name in own],
                "95 %": [spread[name][1] for name in own],
            }
        )
        classes = self.by_class(found)
        tables = [
            (f"Test, {len(truth)} records", pd.DataFrame(rows)),
            (f"{self.hparams['network']}, bootstrap over the records", interval),
            (f"By class ({int(np.isfinite(classes['auroc']).sum())} of {len(classes)} have an AUROC)", classes),
        ]
        if leads is not None:
            tables.insert(0, ("Each lead alone; all other tables: mean probability over the leads of a record", leads))
            own = {**own, "one_lead_auroc": float(leads["auroc"].mean())}
        records = [data.labelled[data.split["test"][number]] for number in index]
        groups = np.array([record.source for record in records])
        if len(set(groups)) > 1:
            tables.append(("By source", pd.DataFrame(metrics.rows_by_source(groups, found))))
        if self.trainer.is_global_zero:
            self._write([record.id for record in records], found)
        return Report(own, tables)

    def by_lead(self, truth: np.ndarray) -> pd.DataFrame | None:
        """Return one row per lead, each classified alone; None unless the network is one of single leads."""
        if self.of_leads is None:
            return None
        rows = []
        for number, lead in enumerate(self.trainer.datamodule.preprocess.leads):
            present = np.isfinite(self.of_leads[:, number]).all(axis=1)
            if present.any():
                found = self.predictions(truth[present], self.of_leads[present, number])
                rows.append({"lead": lead, "records": int(present.sum()), **metrics.summary(found)})
        return pd.DataFrame(rows)

    def by_class(self, found: Predictions) -> pd.DataFrame:
        """Return one row per class."""
        low, high = [], []
        for k in range(found.truth.shape[1]):
            y, s = found.truth[:, k : k + 1], found.scores[:, k : k + 1]
            ends = metrics.bootstrap(len(y), lambda i, y=y, s=s: metrics.auroc(y[i], s[i])[0])
            low.append(ends[0])
            high.append(ends[1])
        values = metrics.table_by_class(found)
        table = {"class": self.hparams["classes"], "positives": np.nansum(found.truth, axis=0).astype(int)}
        if np.isnan(found.truth).any():
            table["labelled"] = (~np.isnan(found.truth)).sum(0)
        table |= {"auroc": values.pop("auroc"), "5 %": low, "95 %": high, **values}
        table["threshold"] = self.model.thresholds.cpu().double().numpy()
        if self.hparams["temperature"] == "per_class":
            table["temperature"] = self.model.temperature.cpu().double().numpy()
        return pd.DataFrame(table)

    def _write(self, ids: list[str], found: Predictions) -> None:
        """Write `figures/`: labels and probabilities of all test records, and the curves."""
        from seqssm_ecg.curves import curves_figure

        folder = Path(self.trainer.default_root_dir) / "figures"
        classes = self.hparams["classes"]
        table = pd.DataFrame({"id": ids})
        for k, name in enumerate(classes):
            table[name], table[f"{name}_truth"] = found.scores[:, k], pd.array(found.truth[:, k]).astype("Int64")
        with atomic(folder / "test_records.csv", "w") as file:
            table.to_csv(file, index=False, lineterminator="\n", float_format="%.6f")
        limits = self.model.thresholds.cpu().double().numpy()
        curves_figure(folder / "curves.png", classes, found.truth, found.scores, limits)


def shares(known: Tensor | None) -> Tensor | None:
    """Weights (B, m) whose product with a loss has the mean of the loss over known labels as its mean; None for all."""
    return None if known is None else known * (known.numel() / known.sum().clamp(min=1))


def asymmetric(
    logits: Tensor,
    y: Tensor,
    plus: float = 1.0,
    minus: float = 4.0,
    shift: float = 0.05,
    known: Tensor | None = None,
) -> Tensor:
    """Compute the asymmetric loss (Ridnik et al. 2021, equation 7), mean over the known labels.

    -y (1 - p)^plus log p - (1 - y) q^minus log(1 - q) with q = max(p - shift, 0).

    Args:
        logits: logits, (B, m).
        y: labels, (B, m).
        plus: exponent of positives.
        minus: exponent of negatives.
        shift: probability below which negatives are ignored.
        known: which labels are known, (B, m) bool; None for all.
    """
    p = logits.sigmoid()
    q = (p - shift).clamp(min=0)
    positive = y * (1 - p) ** plus * F.logsigmoid(logits)
    negative = (1 - y) * q**minus * torch.log1p(-q.clamp(max=1 - 1e-6))
    weights = shares(known)
    return -(positive + negative if weights is None else (positive + negative) * weights).mean()


def soft_challenge(p: Tensor, y: Tensor, weights: Tensor, sinus: int, known: Tensor | None = None) -> Tensor:
    """Compute the challenge's score of a batch with probabilities in place of decisions; differentiable.

    It equals the score for probabilities of 0 and 1. Like the score, it is 0 if the denominator is 0, and unknown
    labels are negative in truth and outputs.

    Args:
        p: probabilities, (B, m).
        y: labels, (B, m), 0 where unknown.
        weights: weights of the score, (m, m).
        sinus: column of sinus rhythm.
        known: which labels are known, (B, m) bool; None for all.
    """

    def scored(outputs: Tensor) -> Tensor:
        either = (y + outputs - y * outputs).sum(1).clamp(min=1)
        return (weights * ((y / either[:, None]).T @ outputs)).sum()

    normal = torch.zeros_like(y)
    normal[:, sinus] = 1
    if known is not None:
        p, normal = p * known, normal * known
    inactive, correct = scored(normal), scored(y)
    span = correct - inactive
    return torch.where(span.abs() > 1e-6, (scored(p) - inactive) / span.clamp(min=1e-6), torch.zeros_like(span))
