"""The ECG data module: labelled recordings in three splits."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch

from seqssm.bounds import Bounds
from seqssm.errors import InputError
from seqssm.files.splits import require_fold
from seqssm.metrics.classes import class_counts, class_list, rare_classes
from seqssm.training.data import DataModule, whole_batch
from seqssm_ecg import limits
from seqssm_ecg.augment import Augment
from seqssm_ecg.duplicates import content_hash
from seqssm_ecg.extensible import Extensible
from seqssm_ecg.labels import OWN_CLASSES, SINUS, Classes, frequent
from seqssm_ecg.leads import LEAD_SETS, check_lead_map
from seqssm_ecg.listing import Listed, Source
from seqssm_ecg.preprocess import Preprocess, require_band
from seqssm_ecg.recording import ArraySpec
from seqssm_ecg.records import Records, TrainWindows, WholeRecords
from seqssm_ecg.single import chosen, with_one_class
from seqssm_ecg.sources import LabelledRecord, predict_words
from seqssm_ecg.splits import SplitOptions, require_folds, split_records

Labels = Literal["superclass", "subclass", "diagnostic", "form", "rhythm", "all", "cinc2020", "cinc2021", "codes"]


class EcgData(Extensible):
    """Recordings with labels, from a PTB-XL tree, a challenge folder, or the user's own manifest.

    Args:
        manifest: the user's own table (CSV, Excel, Parquet): ``path``, and ``labels`` or one column per class.
        folder: a PTB-XL tree (with ``ptbxl_database.csv``) or a folder of challenge records.
        dataset: name of a public data set, ``ptbxl`` or ``cinc2021``; replaced by `manifest` or `folder`.
        labels: task of PTB-XL (superclass, subclass, diagnostic, form, rhythm, all), scored classes of a challenge
            (cinc2020, cinc2021), or all codes that occur (codes); the default depends on the source.
        label_columns: class columns of a manifest with additional columns.
        split_column: column of splits (train, val, test; flags if it is called test or is_test) or folds of a manifest,
            none for a random split; by default split, else fold.
        only_classes: classes to keep, of those of the source; by default all of them.
        single_label: whether to keep only records with exactly one class (counted over all classes of the source), for
            ``--model.loss cross_entropy``; classes without a training record are then dropped.
        weights: path of the challenge's ``weights.csv``; by default that of `labels`, located like a data set.
        min_positives: minimum number of training positives; classes with fewer are dropped.
        sampling_rate_hz: sampling rate of the network's input.
        window_s: length of a window, seconds.
        stride_s: seconds between the windows of a record; by default half a window.
        aggregate: how window probabilities are combined into that of the record: mean or maximum.
        lead_set: number of input leads: 12, 6 (limb), 4 (I II III V2), 3 (I II V2) or 2 (I II).
        one_lead: whether each training window keeps one random lead and the others are zero. In validation, test and
            prediction, each lead of a record is then classified alone; the probabilities are averaged over them.
        missing_leads: treatment of missing leads that cannot be computed: zero, or refuse the record.
        lead_map: mapping from lead names in the files to standard names, ``{MLII: II}``.
        band_hz: cutoff frequencies [low, high] of a band-pass filter, hertz; either may be null.
        causal_filter: whether the band-pass filter runs forward only, as streaming requires.
        normalise: normalisation: each lead to mean 0 and standard deviation 1 (lead), all leads by mean and standard
            deviation of the training records (global), or millivolts (none).
        checksums: treatment of records whose samples do not match the header's checksum: check (unusable) or ignore.
        wfdb_defaults: whether to assume WFDB's 200 per mV and 250 Hz if a header has no gain or sampling rate.
        implausible: treatment of recordings that are implausible as an ECG: leave_out (they are counted) or keep.
        array_rate_hz: sampling rate of `.npy` and `.csv` records.
        array_leads: leads of `.npy` and `.csv` records, in their order.
        array_unit: unit of `.npy` and `.csv` records.
        gain: augmentation: standard deviation of the log of a random amplitude factor.
        baseline_wander: augmentation: amplitude of baseline wander.
        noise: augmentation: standard deviation of white noise.
        lead_drop: augmentation: probability that a lead is set to zero.
        time_mask: augmentation: largest fraction of a window that is set to zero.
        mix_up: augmentation: parameter of the Beta distribution for mixing pairs of records.
        val_fold: validation fold, a value of the table's fold column; by default the second to last.
        test_fold: test fold, a value of the table's fold column; by default the last one.
        fold: index of the cross-validation fold, in place of the two above; set by kfold.
        folds: number of cross-validation folds; set by kfold.
        deduplicate: whether to keep only the first of several records with equal samples (PTB-XL has none and is not
            checked).
        cache: where decoded records are kept: memory, or none, which decodes them each time, for data larger than
            memory. Long records (Holters) are decoded once into temporary files in both cases.
        batch_size: records per batch; in training, a batch is divided evenly among the processes.
        num_workers: number of loader processes.
        seed: random seed of shuffling and augmentation; by default that of the run.
        root: folder to search for data sets instead of the default ones.
    """

    collate = staticmethod(whole_batch)
    sources: ClassVar[tuple[tuple[str, ...], ...]] = (("manifest",), ("folder",), ("dataset",))
    split_options: ClassVar[tuple[str, ...]] = ("split_column", "val_fold", "test_fold", "fold", "folds")
    fixed: ClassVar[tuple[str, ...]] = (
        *("sampling_rate_hz", "window_s", "stride_s", "aggregate", "lead_set", "one_lead", "missing_leads"),
        *("band_hz", "causal_filter", "normalise", "min_positives", "only_classes", "single_label"),
    )
    limits: ClassVar[Mapping[str, Bounds]] = limits.DATA
    neutral: ClassVar[tuple[str, ...]] = (
        *DataModule.neutral,
        "cache",
        *("gain", "baseline_wander", "noise", "lead_drop", "time_mask", "mix_up"),
    )

    def __init__(
        self,
        manifest: str | None = None,
        folder: str | None = None,
        dataset: Literal["ptbxl", "cinc2021"] | None = None,
        labels: Labels | None = None,
        label_columns: list[str] | None = None,
        split_column: str | None = None,
        only_classes: list[str] | None = None,
        single_label: bool = False,
        weights: str | None = None,
        min_positives: int = 1,
        sampling_rate_hz: float = 100.0,
        window_s: float = 10.0,
        stride_s: float | None = None,
        aggregate: Literal["mean", "max"] = "mean",
        lead_set: Literal[12, 6, 4, 3, 2] = 12,
        one_lead: bool = False,
        missing_leads: Literal["zero", "refuse"] = "zero",
        lead_map: dict[str, str] | None = None,
        band_hz: list[float | None] | None = None,
        causal_filter: bool = False,
        normalise: Literal["lead", "global", "none"] = "lead",
        checksums: Literal["check", "ignore"] = "check",
        wfdb_defaults: bool = False,
        implausible: Literal["leave_out", "keep"] = "leave_out",
        array_rate_hz: float | None = None,
        array_leads: list[str] | None = None,
        array_unit: Literal["mV", "uV", "V"] = "mV",
        gain: float = 0.0,
        baseline_wander: float = 0.0,
        noise: float = 0.0,
        lead_drop: float = 0.0,
        time_mask: float = 0.0,
        mix_up: float = 0.0,
        val_fold: int | None = None,
        test_fold: int | None = None,
        fold: int | None = None,
        folds: int | None = None,
        deduplicate: bool = True,
        cache: Literal["memory", "none"] = "memory",
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
        root: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, root=root)
        if manifest is not None and folder is not None:
            raise InputError("--data.manifest and --data.folder exclude each other; give one of them")
        if manifest is not None or folder is not None:
            dataset = None  # the user's own data replaces a preset's data set
        self._check(locals())
        check_lead_map(lead_map)
        self.source = Source(
            manifest=manifest,
            folder=folder,
            dataset=dataset,
            labels=labels,
            label_columns=label_columns,
            split_column=split_column,
            weights=weights,
            root=root,
            array=ArraySpec(array_rate_hz, tuple(array_leads) if array_leads else None, array_unit),
            rate_hz=sampling_rate_hz,
        )
        self.min_positives, self.aggregate, self.one_lead = min_positives, aggregate, one_lead
        self.only_classes, self.single_label = only_classes, single_label
        self.rate_hz = sampling_rate_hz
        self.window = max(1, round(window_s * sampling_rate_hz))
        self.stride = max(1, round(stride_s * sampling_rate_hz)) if stride_s is not None else max(1, self.window // 2)
        self.reading = {"checksums": checksums == "check", "wfdb_defaults": wfdb_defaults}
        self.deduplicate, self.cache, self.implausible = deduplicate, cache, implausible == "keep"
        self.augment = Augment(gain, baseline_wander, noise, lead_drop, time_mask, mix_up)
        self.split_by = SplitOptions(val_fold, test_fold, fold, folds, split_column or "split")
        band = None if band_hz is None else (band_hz[0], band_hz[1])
        self.preprocess = Preprocess(
            sampling_rate_hz, lead_set, missing_leads, band, causal_filter, normalise, lead_map=dict(lead_map or {})
        )
        self.classes: Classes | None = None
        self.messages: list[str] = []
        self.bad: list[str] = []

    @staticmethod
    def _check(values: Mapping[str, Any]) -> None:
        """Raise InputError if an option is out of range."""
        if values["band_hz"] is not None:
            require_band(values["band_hz"], values["sampling_rate_hz"])
        if values["lead_set"] not in LEAD_SETS:
            raise InputError(f"--data.lead_set {values['lead_set']}: expected one of {', '.join(map(str, LEAD_SETS))}")
        require_fold(values["fold"], values["folds"])

    def use_frame(self, frame: pd.DataFrame) -> None:
        """Use an in-memory manifest; its paths are relative to the current folder."""
        self.frame = self.source.frame = frame

    def predict_words(self) -> list[str]:
        first = next((self.labelled[k] for name in ("test", "val") for k in self.split[name]), self.labelled[0])
        return predict_words(self.labelled, first, self.hparams)

    # -- reading -----------------------------------------------------------------------------------------------------

    def use_summary(self, summary: Mapping[str, Any], external: bool) -> None:
        """Take classes, preprocessing and windows from a checkpoint.

        Args:
            summary: return value of `summary` at training.
            external: whether all labelled records are test records, without splitting or fitting.
        """
        given = dict(self.preprocess.lead_map)
        self.fitted, self.external = summary, external
        self.preprocess = Preprocess.from_dict(summary["preprocess"])
        self.preprocess.lead_map = {**self.preprocess.lead_map, **given}
        self.window, self.stride, self.aggregate = summary["window"], summary["stride"], summary["aggregate"]
        self.single_label = bool(summary["single_label"])

    def setup(self, stage: str | None = None) -> None:
        """List the records, decode them (with ``cache: memory``) and create the three data sets; runs once."""
        if self.classes is not None:
            return
        self.messages, self.bad = [], []
        self.temporary = tempfile.TemporaryDirectory(prefix="seqssm-ecg-")
        listed = self._listed()
        self.messages += listed.notes
        if self.fitted is None:
            classes = chosen(listed.classes, self.only_classes, self.source.name)
        else:
            classes = listed.fitted_classes(self.fitted, self.external)
        labelled, y = self._labelled(listed.records, classes)
        if self.single_label:
            labelled, y = with_one_class(labelled, y, listed.classes, self.source.name, self.messages)
        if self.deduplicate and not self.source.is_ptbxl:
            kept = self._without_duplicates(labelled)
            labelled, y = [labelled[k] for k in kept], y[kept]
        if self.external:
            split, how = {"train": [], "val": [], "test": list(range(len(labelled)))}, "all labelled records are tested"
        else:
            split, how = split_records(labelled, self.split_by, self.source.name)
            self._require_parts(split, labelled)
        self.messages.append(f"split: {how}")
        self._report_classes(classes, y)
        if self.fitted is None:
            classes, y = self._trainable(classes, y, split["train"])
        if self.single_label:  # a class that was dropped leaves records without a class
            split = {name: [k for k in places if y[k].any()] for name, places in split.items()}
        folder = Path(self.temporary.name)
        self.records = Records(labelled, self.preprocess, self.reading, self.cache == "memory", folder)
        split = self._usable(split)
        self._require_parts(split, labelled)
        self.split = split
        labels = torch.from_numpy(y)
        self.counts = labels[split["train"]].nansum(0)
        self.known = labels[split["train"]].isfinite().sum(0)
        self.has_unknown = bool(labels.isnan().any())
        train, val, test = split["train"], split["val"], split["test"]
        self.train_set = TrainWindows(
            self.records, train, labels[train], self.window, self.augment, self.rate_hz, self.one_lead
        )
        self.val_set = WholeRecords(self.records, val, labels[val], self.window, self.stride)
        self.test_set = WholeRecords(self.records, test, labels[test], self.window, self.stride)
        self.classes = classes
        if stage == "fit" or self.external:
            self._say()

    def require_folds(self, folds: Sequence[int]) -> None:
        listed = self._listed()
        labelled, _ = self._labelled(listed.records, listed.classes)
        require_folds(labelled, self.split_by, self.source.name, folds)

    @property
    def labelled(self) -> list[LabelledRecord]:
        """Records in memory or on disk, available after `setup`."""
        return self.records.labelled

    def _listed(self) -> Listed:
        """List the records and classes of the source."""
        return self.source.listed(self.external)

    def _labelled(self, records: list[LabelledRecord], classes: Classes) -> tuple[list[LabelledRecord], np.ndarray]:
        """Return the records with known labels, and their labels (n, m); NaN where one of them is unknown."""
        known = [record for record in records if record.codes is not None]
        if len(known) < len(records):
            what = "a Dx line" if self.source.is_tree else "a known label"
            self.messages.append(f"{len(records) - len(known)} records without {what} dropped")
        if not known:
            where = "a #Dx: line in the header" if self.source.is_tree else "all label cells are empty"
            raise InputError(f"no record has labels ({where})", file=self.source.name)
        y = np.stack([classes.vector(record.codes or [], record.unknown) for record in known])
        if self.source.is_ptbxl:  # its benchmark excludes records without a label in the task
            any_label = y.any(axis=1)
            if not any_label.all():
                self.messages.append(f"{int((~any_label).sum())} records without a label in this task dropped")
            known, y = [record for record, keep in zip(known, any_label) if keep], y[any_label]
        elif classes.other:
            self.messages.append(f"labels that belong to no class: {class_counts(classes.other)}")
        if self.fitted is not None and not (y > 0).any():
            raise InputError(classes.described("no record has a label of the model's classes"), file=self.source.name)
        return known, y

    def _without_duplicates(self, labelled: list[LabelledRecord]) -> list[int]:
        """Return the indices of records whose samples do not occur in an earlier record."""
        kept, dropped, unlike = [], [], 0
        first: dict[str, LabelledRecord] = {}
        records = Records(labelled, self.preprocess, self.reading, False, Path(self.temporary.name))
        for position, record in enumerate(labelled):
            try:
                record.content = content_hash(records.open(position))
            except InputError:  # reported when the record is read
                kept.append(position)
                continue
            twin = first.setdefault(record.content, record)
            if twin is record:
                kept.append(position)
            else:
                dropped.append(f"{record.id} (= {twin.id})")
                unlike += record.labels != twin.labels
        if dropped:
            other = f", {unlike} of them with other labels" if unlike else ""
            self.messages.append(f"{len(dropped)} duplicate records dropped{other}: {', '.join(dropped[:5])}")
        return kept

    def _require_parts(self, split: dict[str, list[int]], labelled: list[LabelledRecord]) -> None:
        """Raise InputError if a split is empty."""
        for name in ("test",) if self.external else ("train", "val"):
            if split[name]:
                continue
            if self.bad:
                raise InputError(f"no record of the {name} split can be used; first error: {self.bad[0]}")
            groups = len({record.group for record in labelled})
            raise InputError(
                f"the {name} split is empty: {len(labelled)} records of {groups} patients; a split at random, or by "
                "another column: --data.split_column none, --data.split_column COLUMN",
                file=self.source.name,
            )

    def _trainable(self, classes: Classes, y: np.ndarray, train: list[int]) -> tuple[Classes, np.ndarray]:
        """Return the classes that have enough training records, and their labels."""
        kept = frequent(list(y[train]), classes, self.min_positives)
        if not kept.names:
            raise InputError(classes.described("no class has a training record", OWN_CLASSES), file=self.source.name)
        lost = [name for name in classes.names if name not in kept.names]
        own = self.source.own_classes or self.single_label
        if lost and not own and self.min_positives == 1:  # the classes of a benchmark are kept for comparability
            self.messages.append(f"without a training record: {class_list(lost)}")
            return classes, y
        if lost:
            self.messages.append(
                f"{len(lost)} classes have fewer than {self.min_positives} training records and are dropped: "
                f"{class_list(lost[:8])}"
            )
        return kept, y[:, [classes.names.index(name) for name in kept.names]]

    def _report_classes(self, classes: Classes, y: np.ndarray) -> None:
        self.messages.append(f"classes: {class_counts(dict(zip(classes.names, np.nansum(y, axis=0))))}")
        if self.external:  # the names are those of the model, of which a file may have a few only
            return
        rare = rare_classes(dict(zip(classes.names, np.nansum(y, axis=0).astype(int))), self.source.own_classes)
        if rare:
            self.messages.append(f"warning: {rare}")

    def _usable(self, split: dict[str, list[int]]) -> dict[str, list[int]]:
        """Drop unreadable records, count them, and set mean and std of the training records."""
        bad: list[str] = []
        if self.preprocess.normalise == "global" and self.fitted is None:
            self._measure(split["train"], bad)
        found: dict[str, list[int]] = {}
        notes: Counter[str] = Counter()
        for name, positions in split.items():
            found[name] = []
            for position in positions:
                try:
                    notes.update(self.records.require(position, self.implausible))
                except InputError as error:
                    bad.append(str(error))
                else:
                    found[name].append(position)
        if bad:
            self.bad = bad = list(dict.fromkeys(bad))
            self.messages.append(f"{len(bad)} unusable records dropped, first: {bad[0]}")
        self.messages += [f"{count} records: {note}" for note, count in notes.most_common(6)]
        if len(notes) > 6:
            self.messages.append(f"{len(notes) - 6} other notes on records")
        return found

    def _measure(self, positions: list[int], bad: list[str]) -> None:
        """Compute mean and standard deviation over all leads and samples of the band-passed training records."""
        total = square = count = 0.0
        for position in positions:
            try:
                for table in self.records.filtered(position):
                    total += float(table.sum(dtype=np.float64))
                    square += float((table.astype(np.float64) ** 2).sum())
                    count += table.size
            except InputError as error:
                bad.append(str(error))
        if count:
            self.preprocess.mean = total / count
            self.preprocess.std = max(1e-6, (square / count - self.preprocess.mean**2) ** 0.5)

    def _say(self) -> None:
        """Print a description of the data."""
        assert self.classes is not None
        parts = (("train", "train"), ("val", "validation"), ("test", "test"))
        sizes = ", ".join(f"{len(self.split[name])} {word}" for name, word in parts if self.split[name])
        classes = f", {len(self.classes.names)} classes" if self.classes.names else ""
        self.print_line(f"{self.source.name}: {sizes} records{classes}")
        for line in self.messages:
            self.print_line(f"  {line}")

    # -- for the task and for prediction -----------------------------------------------------------------------------

    def identities(self, split: str) -> list[dict[str, str]]:
        """Return the identity of each record of a split: id, patient, and a hash of the samples if computed."""
        found = (self.labelled[position] for position in self.split[split])
        return [{"id": record.id, "patient": record.patient, "samples": record.content} for record in found]

    def targets(self, split: str) -> list[Any]:
        return [(one.id, sorted(one.codes or ()), one.unknown) for one in (self.labelled[k] for k in self.split[split])]

    @property
    def challenge(self) -> tuple[np.ndarray, int] | None:
        """Return (weights, column of sinus rhythm) if the classes are those of a challenge, else None."""
        classes = self.classes
        if classes is None or classes.weights is None:
            return None
        column = next((k for k, group in enumerate(classes.codes) if SINUS in group), None)
        return None if column is None else (classes.weights, column)

    def summary(self) -> dict[str, Any]:
        """Return everything needed to predict from new files."""
        assert self.classes is not None
        return {
            "classes": list(self.classes.names),
            "codes": [list(group) for group in self.classes.codes],
            "preprocess": self.preprocess.to_dict(),
            "window": self.window,
            "stride": self.stride,
            "aggregate": self.aggregate,
            "single_label": self.single_label,
        }
