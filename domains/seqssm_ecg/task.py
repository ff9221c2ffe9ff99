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

from seqssm.bounds import RATE, Bounds
from seqssm.domain import resolve
from seqssm.errors import InputError, NotApplicableError
from seqssm.metrics.classes import class_list
from seqssm.metrics.columns import ID, write_test_records
from seqssm.metrics.gather import gathered
from seqssm.metrics.report import Report
from seqssm.training.class_task import ClassTask
from seqssm.training.output_names import Outputs, missing_classes
from seqssm.training.soft_losses import of_classes, of_labels
from seqssm_ecg import DOMAIN, limits, metrics, thresholds
from seqssm_ecg.baselines import TITLES
from seqssm_ecg.classifier import Classifier, pooled_logits
from seqssm_ecg.losses import asymmetric, shares, soft_challenge
from seqssm_ecg.metrics import Predictions
from seqssm_ecg.model import EcgMamba, ResidualCnn
from seqssm_ecg.one_lead import mean_logits, pairs
from seqssm_ecg.tested import output_columns

LARGEST_WEIGHT = 20.0  # maximum weight of a positive in the weighted loss


class EcgTask(ClassTask):
    """Train a classifier of recordings, and fit thresholds and a temperature on the validation records.

    Args:
        classes: class names; by default those of the data.
        lead_set: number of leads; by default that of the data.
        window_s: length of a window, seconds; by default that of the data.
        sampling_rate_hz: sampling rate of the input; by default that of the data.
        one_lead: whether the network is trained on single leads; by default as the data.
        loss: loss function: binary cross-entropy; the same weighted by negatives / positives of each class; asymmetric
            (Ridnik et al. 2021, focusing 1 and 4, probability shift 0.05); or cross_entropy over classes that exclude
            each other, for records with one class each (``--data.single_label true``).
        challenge_term: weight of the differentiable challenge score in the loss; 0 disables it.
        label_smoothing: label smoothing s: labels become s / 2 and 1 - s / 2.
        thresholds: criterion for fitting thresholds: F1, Youden's index, or the challenge's score.
        temperature: temperature scaling of the probabilities, fitted on the validation records: one temperature for all
            classes, or one per class. A class with fewer than 5 known positives or negatives keeps the common one.
        kwargs: arguments of `seqssm.training.class_task.ClassTask`.
    """

    domain = "ecg"
    networks: ClassVar[Mapping[str, type[nn.Module]]] = {"mamba": EcgMamba, "cnn": ResidualCnn}
    derived: ClassVar[tuple[str, ...]] = ("leads", "window")
    monitor: ClassVar[str] = "val_auroc"
    metrics = metrics.METRICS
    linked_args: ClassVar[tuple[str, ...]] = ("lead_set", "window_s", "sampling_rate_hz", "one_lead")
    inferred_args: ClassVar[tuple[str, ...]] = ("classes",)
    limits: ClassVar[Mapping[str, Bounds]] = {
        **ClassTask.limits,
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
        loss: Literal["bce", "weighted_bce", "asymmetric", "cross_entropy"] = "bce",
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
        return Classifier(
            self.build_network(),
            len(h["classes"]),
            h["dropout"],
            per_class=h["temperature"] == "per_class",
            one_lead=bool(h["one_lead"]),
            exclusive=self.has_classes,
            **self.head_options,
        )

    @property
    def has_classes(self) -> bool:
        """Whether each record has exactly one class."""
        return self.hparams["loss"] == "cross_entropy"

    @classmethod
    def named_outputs(cls, hparams: Mapping[str, Any], summary: Mapping[str, Any]) -> Outputs:
        kind = "exclusive classes" if hparams.get("loss") == "cross_entropy" else "classes"
        return Outputs(kind, tuple(hparams.get("classes") or ()))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule
        if self.hparams["classes"] is None:
            self.hparams["classes"] = list(data.classes.names)
        elif list(self.hparams["classes"]) != list(data.classes.names):
            advice = missing_classes(self.hparams["classes"], data.classes.names)
            raise InputError(
                f"the classes are {class_list(self.hparams['classes'][:6])}, ..., and the data has "
                f"{class_list(data.classes.names[:6])}, ...{advice or '; use the data and labels of the run'}"
            )
        self.challenge = data.challenge
        if self.has_classes and not data.single_label:
            raise InputError(
                "--model.loss cross_entropy: requires records with exactly one class; pass --data.single_label true"
            )
        if self.has_classes and self.hparams["challenge_term"]:
            raise InputError("--model.challenge_term: scores several labels; it does not apply to cross_entropy")
        if self.has_classes and self.hparams["temperature"] == "per_class":
            raise InputError("--model.temperature per_class: applies to several labels, not to cross_entropy")
        if self.has_classes and self.hparams["one_lead"]:
            raise InputError("--model.loss cross_entropy: does not apply to single leads (--data.one_lead)")
        if self.challenge is None and (self.hparams["challenge_term"] or self.hparams["thresholds"] == "challenge"):
            raise InputError(
                "--model.challenge_term and --model.thresholds challenge need --data.labels cinc2020|cinc2021"
            )
        self.has_unknown = data.has_unknown
        self.positive_weight = ((data.known - data.counts) / data.counts.clamp(min=1)).clamp(max=LARGEST_WEIGHT)

    def forward(self, batch: dict[str, Any], aggregate: str | None = None) -> Tensor:
        """Compute the logits of the records of a batch, (B, m); of single leads, those of each lead beside them.

        Args:
            batch: batch of the data module.
            aggregate: combination of the windows of a record; by default that of the data module.
        """
        if "record_index" not in batch:
            return self.model(batch["x"], batch["lengths"])
        found: list[Tensor | None] = [None] * len(batch["index"])
        aggregate = aggregate or self.trainer.datamodule.aggregate
        exclusive = self.has_classes
        if len(batch["x"]):
            short, owners = batch["record_index"].unique(return_inverse=True)
            single = self.by_window(batch["x"], batch["lengths"])
            logits = pooled_logits(single, owners, len(short), aggregate, exclusive)
            for place, row in zip(short.tolist(), logits):
                found[place] = row
        for place, windows in batch["long"]:
            found[place] = self.of_long(windows, aggregate)
        return torch.stack([row for row in found if row is not None])

    def of_long(self, windows: Iterable[Tensor], aggregate: str) -> Tensor:
        """Compute the logits (m,) of a long record, a bounded number of windows at a time."""
        rows = [self.by_window(x.to(self.device), torch.full((len(x),), x.shape[-1])) for x in windows]
        logits = torch.cat(rows)
        owners = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return pooled_logits(logits, owners, 1, aggregate, self.has_classes)[0]

    # -- classes that are learned later --------------------------------------------------------------------------------

    def class_inputs(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Compute what projector and head read, the mean over the windows of each record."""
        model: Any = self.model
        count = len(batch["index"])
        parts: list[tuple[Tensor, Tensor] | None] = [None] * count
        if len(batch["x"]):
            pooled, tokens = model.class_inputs(batch["x"], batch["lengths"])
            owners = batch.get("record_index", torch.arange(count, device=pooled.device))
            for place in owners.unique().tolist():
                parts[place] = (pooled[owners == place].mean(0), tokens[owners == place].mean(0))
        for place, windows in batch.get("long", []):
            rows = [model.class_inputs(x.to(self.device), torch.full((len(x),), x.shape[-1])) for x in windows]
            parts[place] = (torch.cat([a for a, _ in rows]).mean(0), torch.cat([b for _, b in rows]).mean(0))
        known = [part for part in parts if part is not None]
        return torch.stack([a for a, _ in known]), torch.stack([b for _, b in known])

    def class_labels(self, batch: dict[str, Any]) -> Tensor:
        return batch["y"].argmax(1)

    def class_scores(self, batch: dict[str, Any]) -> Tensor:
        model: Any = self.model
        return model.probabilities(self(batch, self.aggregate).double())

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
        if h["loss"] == "cross_entropy":
            return self.class_loss(logits, y, smoothing=h["label_smoothing"])
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
        return (of_classes if self.has_classes else of_labels)(outputs, wanted, temperature)

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
        model: Any = self.model
        return model.decide(model.probabilities(self.of_records(outputs).double()))

    def predictions(self, truth: np.ndarray, logits: np.ndarray) -> Predictions:
        """Convert logits (n, m) to probabilities and decisions as in prediction, and add the labels."""
        model: Any = self.model
        probabilities = model.probabilities(torch.from_numpy(logits))
        decisions = model.decide(probabilities).numpy()
        return Predictions(truth, probabilities.numpy(), decisions, *(self.challenge or (None, None)))

    def _decide(self, truth: np.ndarray, logits: np.ndarray) -> None:
        """Fit the network's temperature or temperatures, then its thresholds, on the validation records."""
        if self.has_classes:
            self.model.temperature.fill_(thresholds.exclusive_temperature(truth, logits))
            return
        fit = thresholds.temperatures if self.hparams["temperature"] == "per_class" else thresholds.temperature
        temperature = fit(truth, logits)
        weights, sinus = self.challenge or (None, None)
        scores = 1 / (1 + np.exp(-logits / temperature))
        chosen = thresholds.fit_thresholds(truth, scores, self.hparams["thresholds"], weights, sinus)
        self.model.temperature.copy_(torch.as_tensor(temperature))
        self.model.thresholds.copy_(torch.as_tensor(chosen))

    def on_fit_end(self) -> None:
        """Report the thresholds and temperatures that could not be fitted."""
        super().on_fit_end()
        if self.has_classes:
            return
        data = self.trainer.datamodule
        y = data.val_set.y
        single = ((y > 0).sum(0) == 0) | ((y == 0).sum(0) == 0)
        lost = [name for name, one in zip(self.hparams["classes"], single) if one]
        if lost and self.trainer.is_global_zero:
            print(
                f"kept the default threshold {thresholds.DEFAULT} (validation set has a single class) for: "
                f"{class_list(lost)}"
            )
        if self.hparams["temperature"] == "per_class" and not self.hparams["one_lead"] and self.trainer.is_global_zero:
            few = [name for name, one in zip(self.hparams["classes"], ~thresholds.enough(y.numpy())) if one]
            if few:
                print(f"kept the common temperature (fewer than {thresholds.ENOUGH} positives or negatives in the "
                      f"validation set) for: {class_list(few)}")  # fmt: skip

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
        outputs, limits = output_columns(self.hparams), self.model.thresholds.cpu().double().numpy()
        truth = found.truth.argmax(1) if self.has_classes else found.truth
        table = outputs.table(truth, found.scores, limits)
        write_test_records(folder.parent, pd.concat([pd.DataFrame({ID: ids}), table], axis=1))
        curves_figure(folder / "curves.png", classes, found.truth, found.scores, limits)
