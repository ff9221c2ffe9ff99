"""The data module of ECG: from a source of recordings to its three parts, with their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from seqssm.errors import InputError
from seqssm.training.data import DataModule
from seqssm_ecg import sources
from seqssm_ecg.augment import Augment
from seqssm_ecg.files import ArraySpec
from seqssm_ecg.labels import (
    CINC_YEARS,
    PTBXL_TASKS,
    SINUS,
    Classes,
    frequent,
    ptbxl_classes,
    ptbxl_statements,
    read_weights,
)
from seqssm_ecg.leads import LEAD_SETS, check_lead_map
from seqssm_ecg.preprocess import Preprocess
from seqssm_ecg.records import Records, TrainWindows, WholeRecords, whole_batch
from seqssm_ecg.sources import Entry

Labels = Literal["superclass", "subclass", "diagnostic", "form", "rhythm", "all", "cinc2020", "cinc2021", "codes"]


class EcgData(DataModule):
    """Recordings with labels, from a PTB-XL tree, a challenge folder, or the user's own manifest.

    Args:
        manifest: the user's own table (`.csv`, `.parquet`): ``path``, and ``labels`` or a column a class.
        folder: a PTB-XL tree (it holds ``ptbxl_database.csv``) or a folder of challenge records.
        dataset: a folder by its name in the usual places, ``ptbxl`` or ``cinc2021``; `manifest` or `folder` goes first,
            so that a preset's data set can be replaced by one's own.
        labels: of PTB-XL (superclass, subclass, diagnostic, form, rhythm, all), of a challenge (cinc2020, cinc2021: its
            scored classes), or all codes that occur (codes); by the source when not given.
        weights: ``weights.csv`` of the challenge; that of `labels` in the usual places when not given.
        least: classes with fewer positives in the training part are left out.
        sampling_rate_hz: of the network's input.
        window_s: length of a window, seconds.
        stride_s: between the windows of a whole record; half a window when not given.
        aggregate: a record's probability is the mean or the largest of its windows'.
        lead_set: 12, 6 (limb), 4 (I II III V2), 3 (I II V2) or 2 (I II).
        missing_leads: leads that are not there and cannot be computed become zero, or the record is refused.
        lead_map: names in the files -> standard names, ``{MLII: II}``.
        band_hz: [low, high] of a band-pass, either may be null.
        causal_filter: the band-pass runs forward only, as a stream needs it.
        normalise: each lead to mean 0 and deviation 1 (lead), all by two numbers of the training records (global), or
            millivolts (none).
        checksums: check: samples that do not fit the header's checksum make a record unusable.
        array_rate_hz, array_leads, array_unit: of `.npy` and `.csv` records.
        gain, wander, noise, lead_drop, time_mask, mix_up: augmentation of training windows, see
            `seqssm_ecg.augment.Augment`.
        val_fold, test_fold: of the table's folds; the last two when not given.
        fold, folds: fold k of K instead; set by kfold.
        deduplicate: of records with equal samples only the first is kept (not for PTB-XL, which has none).
        cache: memory: records are decoded once; none: each time, for sets larger than memory (a record that cannot be
            read then stops the run when its turn comes).
        batch_size: records a batch and process.
        num_workers: loader processes.
        seed: of shuffling and augmentation; the run's seed when not given.
        root: folder that holds the data sets, instead of the usual places.
    """

    collate = staticmethod(whole_batch)

    def __init__(
        self,
        manifest: str | None = None,
        folder: str | None = None,
        dataset: Literal["ptbxl", "cinc2021"] | None = None,
        labels: Labels | None = None,
        weights: str | None = None,
        least: int = 1,
        sampling_rate_hz: float = 100.0,
        window_s: float = 10.0,
        stride_s: float | None = None,
        aggregate: Literal["mean", "max"] = "mean",
        lead_set: Literal[12, 6, 4, 3, 2] = 12,
        missing_leads: Literal["zero", "refuse"] = "zero",
        lead_map: dict[str, str] | None = None,
        band_hz: list[float | None] | None = None,
        causal_filter: bool = False,
        normalise: Literal["lead", "global", "none"] = "lead",
        checksums: Literal["check", "ignore"] = "check",
        array_rate_hz: float | None = None,
        array_leads: list[str] | None = None,
        array_unit: Literal["mV", "uV", "V"] = "mV",
        gain: float = 0.0,
        wander: float = 0.0,
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
        if (manifest is not None and folder is not None) or (manifest or folder or dataset) is None:
            raise InputError("give one of --data.manifest FILE, --data.folder DIR, --data.dataset NAME")
        if manifest is not None or folder is not None:
            dataset = None  # a preset's data set gives way to the user's own
        for name, value in (("window_s", window_s), ("sampling_rate_hz", sampling_rate_hz), ("stride_s", stride_s)):
            if value is not None and not value > 0:
                raise InputError(f"--data.{name} {value}: must be positive")
        for name, value in (("batch_size", batch_size), ("least", least)):
            if value < 1:
                raise InputError(f"--data.{name} {value}: must be at least 1")
        for name, value in (("lead_drop", lead_drop), ("time_mask", time_mask)):
            if not 0 <= value < 1:
                raise InputError(f"--data.{name} {value}: must be in [0, 1)")
        if band_hz is not None:
            _check_band(band_hz, sampling_rate_hz)
        if lead_set not in LEAD_SETS:
            raise InputError(f"--data.lead_set {lead_set}: one of {', '.join(map(str, LEAD_SETS))}")
        if folds is not None and (fold is None or not 0 <= fold < folds):
            raise InputError(f"--data.fold {fold}: must be between 0 and {folds - 1}")
        check_lead_map(lead_map)
        self.manifest, self.folder, self.dataset, self.labels = manifest, folder, dataset, labels
        self.weights, self.least, self.aggregate = weights, least, aggregate
        self.rate_hz = sampling_rate_hz
        self.window = max(1, round(window_s * sampling_rate_hz))
        self.stride = max(1, round(stride_s * sampling_rate_hz)) if stride_s is not None else max(1, self.window // 2)
        self.checksums, self.deduplicate, self.cache = checksums == "check", deduplicate, cache
        self.array = ArraySpec(array_rate_hz, tuple(array_leads) if array_leads else None, array_unit)
        self.augment = Augment(gain, wander, noise, lead_drop, time_mask, mix_up)
        self.val_fold, self.test_fold, self.fold, self.folds = val_fold, test_fold, fold, folds
        band = None if band_hz is None else (band_hz[0], band_hz[1])
        self.preprocess = Preprocess(
            sampling_rate_hz, lead_set, missing_leads, band, causal_filter, normalise, lead_map=dict(lead_map or {})
        )
        self.classes: Classes | None = None

    # -- reading -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Lists the records, decodes them (with ``cache: memory``) and makes the three sets; once."""
        if self.classes is not None:
            return
        self.said: list[str] = []
        self.bad: list[str] = []
        entries, classes = self._listed()
        entries, y = self._labelled(entries, classes)
        if self.deduplicate and not self.is_ptbxl:
            entries, dropped = sources.without_duplicates(entries)
            if dropped:
                self.said.append(
                    f"{len(dropped)} records have the samples of another one and are left out: "
                    + ", ".join(f"{twin} (= {first})" for twin, first in dropped[:5])
                )
                y = np.stack([classes.vector(entry.codes or []) for entry in entries])
        split = sources.parts(entries, self.val_fold, self.test_fold, self.fold, self.folds)
        for name in ("train", "val"):
            if not split[name]:
                groups = len({entry.group for entry in entries})
                raise InputError(
                    f"no record falls to the {name} part: {len(entries)} records of {groups} patients",
                    file=self.place_name,
                )
        kept = frequent(list(y[split["train"]]), classes, self.least)
        if len(kept.names) < len(classes.names):
            lost = [name for name in classes.names if name not in kept.names]
            own = self.labels == "codes" or (self.manifest is not None and self.labels is None)
            if own or self.least > 1:  # the classes of a benchmark stay, so that models can be compared
                self.said.append(
                    f"{len(lost)} classes have fewer than {self.least} records in training, and are left out"
                )
                y = y[:, [classes.names.index(name) for name in kept.names]]
                classes = kept
            else:
                self.said.append(f"without a training record: {', '.join(lost)}")
        if not classes.names:
            raise InputError("no class has a training record", file=self.place_name)
        self.records = Records(entries, self.preprocess, self.checksums, self.cache == "memory")
        split = self._usable(split)
        for name in ("train", "val"):
            if not split[name]:
                first = f", the first: {self.bad[0]}" if self.bad else ""
                raise InputError(f"no record of the {name} part can be used{first}", file=self.place_name)
        self.entries, self.split = entries, split
        labels = torch.from_numpy(y)
        self.counts = labels[split["train"]].sum(0)
        train, val, test = split["train"], split["val"], split["test"]
        self.train_set = TrainWindows(self.records, train, labels[train], self.window, self.augment, self.rate_hz)
        self.val_set = WholeRecords(self.records, val, labels[val], self.window, self.stride)
        self.test_set = WholeRecords(self.records, test, labels[test], self.window, self.stride)
        self.classes = classes
        if stage == "fit":
            self._say()

    @property
    def place_name(self) -> str:
        return str(self.manifest or self.folder or self.dataset)

    @property
    def is_ptbxl(self) -> bool:
        return self.manifest is None and (self._folder() / "ptbxl_database.csv").is_file()

    def _folder(self) -> Path:
        if self.folder is not None:
            folder = Path(self.folder)
            if not folder.is_dir():
                raise InputError("no such folder", file=folder)
            return folder
        from seqssm.files.datasets import locate

        return locate("ecg", str(self.dataset), self.root)

    def _listed(self) -> tuple[list[Entry], Classes]:
        """Every record that the source names, and the classes of the task."""
        if self.manifest is not None:
            entries, names = sources.manifest(Path(self.manifest), self.array)
            if self.labels in CINC_YEARS:
                return entries, self._challenge_classes()
            if self.labels not in (None, "codes"):
                raise InputError(f"--data.labels {self.labels}: a manifest has its own, or cinc2020 or cinc2021")
            return entries, sources.by_name(names)
        folder = self._folder()
        if self.is_ptbxl:
            task = self.labels or "superclass"
            if task not in PTBXL_TASKS:
                raise InputError(f"--data.labels {task}: a PTB-XL tree has {', '.join(PTBXL_TASKS)}")
            entries = sources.ptbxl(folder, self.rate_hz)
            return entries, ptbxl_classes(ptbxl_statements(folder / "scp_statements.csv"), task)
        entries, bad = sources.challenge(folder)
        if bad:
            self.said.append(f"{len(bad)} headers cannot be read and are left out, the first: {bad[0]}")
        if self.labels in PTBXL_TASKS:
            raise InputError(f"--data.labels {self.labels} needs ptbxl_database.csv in the folder", file=folder)
        if self.labels == "codes":
            return entries, sources.by_name(sorted({code for entry in entries for code in entry.codes or []}))
        return entries, self._challenge_classes()

    def _challenge_classes(self) -> Classes:
        """The scored classes of the challenge in `labels` (2021 when none is named)."""
        name = self.labels or "cinc2021"
        year = CINC_YEARS[name]
        if self.weights is not None:
            path = Path(self.weights)
        else:
            from seqssm.files.datasets import locate

            path = locate("ecg", f"cinc_tables/{year}/weights.csv", self.root)
        return read_weights(path)

    def _labelled(self, entries: list[Entry], classes: Classes) -> tuple[list[Entry], np.ndarray]:
        """The records that say what they have, and their labels (n, m)."""
        known = [entry for entry in entries if entry.codes is not None]
        if len(known) < len(entries):
            self.said.append(f"{len(entries) - len(known)} records have no Dx line and are left out")
        if not known:
            raise InputError("no record says what it has (#Dx: in the header)", file=self.place_name)
        y = np.stack([classes.vector(entry.codes or []) for entry in known])
        if self.is_ptbxl:  # as its benchmark: a record without a label in the task is not part of it
            any_label = y.any(axis=1)
            if not any_label.all():
                self.said.append(f"{int((~any_label).sum())} records have no label in this task and are left out")
            known, y = [entry for entry, keep in zip(known, any_label) if keep], y[any_label]
        elif classes.other:
            self.said.append(f"codes that no class counts: {len(classes.other)} different ones")
        return known, y

    def _usable(self, split: dict[str, list[int]]) -> dict[str, list[int]]:
        """The parts without the records that cannot be read, which are counted; sets mean and std of the train part."""
        bad: list[str] = []
        if self.preprocess.normalise == "global":
            self._measure(split["train"], bad)
        if self.cache == "none":
            return split
        found: dict[str, list[int]] = {}
        for name, places in split.items():
            found[name] = []
            for place in places:
                try:
                    self.records[place]
                except InputError as error:
                    bad.append(str(error))
                else:
                    found[name].append(place)
        if bad:
            self.bad = bad = list(dict.fromkeys(bad))
            self.said.append(f"{len(bad)} records cannot be used and are left out, the first: {bad[0]}")
        return found

    def _measure(self, places: list[int], bad: list[str]) -> None:
        """Mean and deviation over all leads and samples of the training records, after the band-pass."""
        total = square = count = 0.0
        for place in places:
            try:
                table = self.records.millivolts(place)
            except InputError as error:
                bad.append(str(error))
                continue
            if self.preprocess.band_hz is not None:
                table = self.preprocess.filtered(table)
            total += float(table.sum(dtype=np.float64))
            square += float((table.astype(np.float64) ** 2).sum())
            count += table.size
        if count:
            self.preprocess.mean = total / count
            self.preprocess.std = max(1e-6, (square / count - self.preprocess.mean**2) ** 0.5)

    @rank_zero_only
    def _say(self) -> None:
        """What was read, and what was done to it."""
        assert self.classes is not None
        split = self.split
        sizes = ", ".join(
            f"{len(split[n])} {word}" for n, word in (("train", "train"), ("val", "validation"), ("test", "test"))
        )
        print(f"{self.place_name}: {sizes} records, {len(self.classes.names)} classes")
        for line in self.said:
            print(f"  {line}")

    # -- for the task and for prediction -----------------------------------------------------------------------------

    @property
    def challenge(self) -> tuple[np.ndarray, int] | None:
        """(weights, column of sinus rhythm) where the classes are those of a challenge; else None."""
        classes = self.classes
        if classes is None or classes.weights is None:
            return None
        column = next((k for k, group in enumerate(classes.codes) if SINUS in group), None)
        return None if column is None else (classes.weights, column)

    def summary(self) -> dict[str, Any]:
        """Everything that a prediction from new files needs."""
        assert self.classes is not None
        return {
            "classes": list(self.classes.names),
            "codes": [list(group) for group in self.classes.codes],
            "preprocess": self.preprocess.plain(),
            "window": self.window,
            "stride": self.stride,
            "aggregate": self.aggregate,
        }


def _check_band(band: list[float | None], rate_hz: float) -> None:
    if len(band) != 2:
        raise InputError(f"--data.band_hz {band}: two numbers, [low, high]")
    low, high = band
    if (low is not None and not 0 < low < rate_hz / 2) or (high is not None and not high > (low or 0)):
        raise InputError(f"--data.band_hz {band}: 0 < low < high, and low below half the sampling rate")
