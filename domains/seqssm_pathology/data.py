"""The pathology data module: manifest, splits and bags, read and scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from seqssm.errors import InputError, nearest
from seqssm.files.datasets import find_data_set
from seqssm.files.numbers import Decimal
from seqssm.training.data import IN_MEMORY, DataModule
from seqssm_pathology import fitting, splits
from seqssm_pathology.answers import Columns, Kind, Target
from seqssm_pathology.catalogue import LIMITS, NAME, PLACES
from seqssm_pathology.features import BagFolder, TokenTable, open_source
from seqssm_pathology.files import Invalid, say
from seqssm_pathology.fitted import Scaler
from seqssm_pathology.fitting import Unit
from seqssm_pathology.frames import read_frame
from seqssm_pathology.heads import ClassHead, Head, SurvivalHead, heads_of
from seqssm_pathology.items import Cases, Order, pack
from seqssm_pathology.manifest import Case, Level, Manifest, read_manifest
from seqssm_pathology.patients import barcode_of
from seqssm_pathology.ranges import Ranges

SOURCES = "specify --data.manifest FILE and --data.features FOLDER, or --data.dataset NAME"


class BagData(DataModule):
    """Cases with bags of patch features, or with rows of a value table.

    Args:
        manifest: table of slides, cases and labels (CSV or .xlsx), or a data frame.
        features: folder of bags (``.h5``, ``.pt``, ``.npy``), or a value table (``.h5``, ``.csv``). A data frame may
            name its bags instead (`seqssm_pathology.frames`).
        dataset: name of a public data set (``seqssm data list``); replaced by `manifest` and `features`.
        target: prediction target: ``classification``, ``survival``, ``regression`` (a number), ``labels`` (several
            labels that are present or absent), or ``several`` targets at once.
        level: whether a record is a case or a slide; ``auto``: a slide if the labels of many cases differ between
            their slides, else a case.
        folds: number of folds (those of the manifest if it has a column of folds, otherwise stratified ones by
            patient), a folder of CLAM split files, or a column of splits (``split``, ``is_train``).
        split_column: column of folds or splits, for a number of folds; ``none``: folds are generated although the
            manifest has some.
        fold: index of the test fold.
        inner: fraction of the training split used for validation instead of the split's own validation records; 0
            disables validation and trains the fixed number of epochs. By default the split's own records, or 0.1 if it
            has none. A split with only ``train`` and ``val`` uses ``val`` for testing, and not for validation.
        split_seed: random seed of generated folds and fractions.
        bins: number of time bins of survival.
        order: scan order of the instances; ``family`` is for value tables.
        families: CSV file of gene families for ``order: family``.
        standardise: whether features are scaled to mean 0 and standard deviation 1 of the training split.
        clip: maximum magnitude of a scaled feature.
        max_instances: maximum number of instances per bag in training, resampled each epoch; by default all.
        invalid: treatment of unusable bags, instances with NaN and rows without a label: ``error``, or ``drop``
            (counted and reported).
        cache_gb: maximum size of a data set whose bags are kept in memory, GB.
        feature_key: name of the features in ``.h5`` files.
        slide_column: column of slide ids.
        case_column: column of case ids.
        label_column: column of class labels; for regression, of the numbers.
        label_columns: columns of the labels for ``target: labels``, with 1/0, yes/no or positive/negative. Empty cells
            are unknown and do not take part in the loss.
        targets: kind of each target for ``target: several``, by column: ``classification``, ``regression``,
            ``survival`` (times, with `censor_column` or `event_column`) or ``label``. Empty cells are unknown.
        time_column: column of survival times.
        time_unit: unit of the survival times and of all outputs; by default the one in the name of their column. Times
            of another cohort are converted to the unit of the model.
        censor_column: column of censoring flags (1 = censored).
        event_column: column of event flags (1 = event), instead of `censor_column`.
        covariate_column: numeric column per case, such as the age, for the baseline ``covariate``.
        decimal: decimal mark of numbers in the manifest; by default inferred from the cells.
        batch_size: cases per batch; in training, a batch is divided evenly among the processes.
        num_workers: number of loader processes.
        seed: random seed of shuffling; by default that of the run.
        root: folder to search for the data set instead of the default ones.
    """

    collate = staticmethod(pack)
    paths: ClassVar = (*DataModule.paths, "manifest", "features", "families", "folds")
    sources: ClassVar = (("manifest", "features"), ("dataset",))
    alternatives: ClassVar = (("censor_column", "event_column"),)
    split_options: ClassVar = ("folds", "fold", "split_column", "inner", "split_seed")
    fixed: ClassVar = ("target", "bins", "standardise", "clip")
    neutral: ClassVar = (*DataModule.neutral, "cache_gb", "max_instances")
    limits: ClassVar = LIMITS

    def __init__(
        self,
        manifest: str | None = None,
        features: str | None = None,
        dataset: str | None = None,
        target: Target = "classification",
        level: Level = "auto",
        folds: int | str = 5,
        fold: int = 0,
        split_column: str | None = None,
        inner: float | None = None,
        split_seed: int = 1,
        bins: int = 4,
        order: Order = "row",
        families: str | None = None,
        standardise: bool = True,
        clip: float | None = None,
        max_instances: int | None = None,
        invalid: Invalid = "error",
        cache_gb: float = 1.0,
        feature_key: str = "features",
        slide_column: str = "slide_id",
        case_column: str = "case_id",
        label_column: str = "label",
        label_columns: list[str] | None = None,
        targets: dict[str, Kind] | None = None,
        time_column: str = "survival_months",
        time_unit: Unit | None = None,
        censor_column: str = "censorship",
        event_column: str | None = None,
        covariate_column: str | None = None,
        decimal: Decimal = "auto",
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int | None = None,
        root: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, root=root)
        self.frame = manifest if isinstance(manifest, pd.DataFrame) else None
        if self.frame is not None:  # checkpoints store plain values only
            manifest = self.hparams["manifest"] = None
        if manifest is not None and features is None:
            raise InputError(SOURCES)
        own = features is not None or self.frame is not None
        self.dataset = dataset = None if own else dataset  # the user's own files replace a preset's data set
        if order == "family" and families is None and dataset != "gbmlgg":
            raise InputError("--data.order family requires --data.families FILE")
        for name, needed in (("label_columns", "labels"), ("targets", "several")):
            if (target == needed) != bool(self.hparams[name]):
                raise InputError(f"--data.target {needed} and --data.{name} belong together; one of them is missing")
        self.target, self.bins, self.invalid = target, bins, invalid
        self.columns = Columns(
            slide_column, case_column, label_column, time_column, censor_column, event_column, covariate_column,
            tuple(label_columns or ()), tuple((targets or {}).items()), split_column,
        )  # fmt: skip
        self.manifest: Manifest | None = None
        self.source: BagFolder | TokenTable | None = None
        self.scaler: Scaler | None = None
        self.ranges: Ranges | None = None
        self.heads: list[Head] = []
        self.cache: dict[str, tuple[Tensor, Tensor, bool]] | None = {}

    # -- evaluation on other data --------------------------------------------------------------------------------------

    def use_summary(self, summary: Mapping[str, Any], external: bool) -> None:
        self.fitted, self.external = summary, external

    def identities(self, split: str) -> list[dict[str, str]]:
        """List record, slide and patient (by barcode if the ids are barcodes) of each slide."""
        assert self.manifest is not None
        cases = [self.manifest.cases[case] for case in self.parts[split]]
        return [
            {"id": case.id, "slide": slide, "patient": barcode_of(case.patient) or case.patient}
            for case in cases
            for slide in case.slides
        ]

    def targets(self, split: str) -> list[Any]:
        assert self.manifest is not None
        cases = [self.manifest.cases[case] for case in self.parts[split]]
        return [(one.id, one.label, one.time, one.censored, one.value, one.labels, one.targets) for one in cases]

    def inputs(self, split: str) -> str:
        """Return a digest of the bags, or of the rows of a value table."""
        assert self.manifest is not None
        assert self.source is not None
        return self.source.digest([self.manifest.cases[case] for case in self.parts[split]])

    # -- reading -----------------------------------------------------------------------------------------------------

    def use_frame(self, frame: pd.DataFrame) -> None:
        """Use a manifest in memory; its paths are relative to the current folder."""
        self.frame, self.dataset = frame, None

    def find(self) -> tuple[Path, Path, Path | None]:
        """Return the paths (manifest, features, families)."""
        h = self.hparams
        families = None if h["families"] is None else Path(h["families"])
        name = self.dataset
        if self.frame is not None:
            return Path("DataFrame"), Path(h["features"] or "DataFrame"), families
        if name is None:
            if h["manifest"] is None or h["features"] is None:
                raise InputError(SOURCES)
            return Path(h["manifest"]), Path(h["features"]), families
        if name not in PLACES:
            raise InputError(f"--data.dataset {name}: no such data set{nearest(name, PLACES)}")
        folder = find_data_set(NAME, name, self.root)
        if name == "gbmlgg" and families is None:
            families = folder / "gene_signatures.csv"
        return folder / "labels.csv", folder / PLACES[name], families

    def predict_words(self) -> list[str]:
        manifest, features, _ = self.find()
        own = [IN_MEMORY] if self.frame is not None else [str(features), "--manifest", str(manifest)]
        own += ["--invalid", "drop"] if self.invalid == "drop" else []
        return own if self.tokens is None else [str(features)]

    def setup(self, stage: str | None = None) -> None:
        """Read manifest and splits, find the bags, and fit scaler and bins on the training split; runs once."""
        if self.manifest is not None:
            return
        h = self.hparams
        path, place, families = self.find()
        manifest, bags = self._read(path)
        if h["features"] is None and self.frame is not None:
            if bags is None:
                raise InputError("does not specify bags: add a column path, or pass features", file=path)
            self.source = BagFolder(place, h["feature_key"], self.invalid, h["order"], bags)
        else:
            self.source = open_source(place, h["feature_key"], self.invalid, h["order"], families, h["split_seed"])
        if self.fitted is not None:
            self._take(self.fitted, self.source)
            fitting.convert_times(manifest, self.heads, self.columns.time, h["time_unit"])
        self.parts = self._with_features(self._split(manifest, h["fold"]), manifest, self.source)
        self.manifest = manifest
        train = [manifest.cases[case] for case in self.parts["train"]]
        if self.fitted is None:
            self.heads = fitting.make_heads(manifest, train, self.target, self.columns, self.bins, h["time_unit"])
            self._learn(train, self.source)
        limit = h["max_instances"]
        sets = {
            name: Cases(
                self.instances, self.answer, [manifest.cases[c] for c in ids], limit if name == "train" else None
            )
            for name, ids in self.parts.items()
        }
        self.train_set, self.val_set, self.test_set = sets["train"], sets["val"], sets["test"]
        self._report(manifest, train)

    def _read(self, path: Path) -> tuple[Manifest, dict[str, Path] | None]:
        """Return the manifest, and the bags that a frame names."""
        classes, level = None, self.hparams["level"]
        if self.fitted is not None:
            self.heads = heads_of(self.fitted)
            classes, level = self.fitted["classes"], self.fitted.get("level", "case")
            if self.target == "several":
                classes = {head.name: head.classes for head in self.heads if isinstance(head, ClassHead)}
        table, bags = (path, None) if self.frame is None else read_frame(self.frame, self.columns)
        columns = replace(self.columns, split=None) if self.external else self.columns
        decimal = self.hparams["decimal"]
        return read_manifest(table, self.target, columns, self.invalid, classes, level, decimal), bags

    def require_folds(self, folds: Sequence[int]) -> None:
        manifest, _ = self._read(self.find()[0])
        for fold in folds:
            splits.require_tested(self._split(manifest, fold), str(self.hparams["folds"]), fold, manifest.path)

    def _take(self, fitted: Mapping[str, Any], source: BagFolder | TokenTable) -> None:
        """Use the values that a checkpoint fitted on its training split, in place of `_learn`."""
        self.scaler = None if fitted["scaler"] is None else Scaler.of_summary(fitted["scaler"])
        self.ranges = Ranges.of_summary(fitted.get("ranges"))
        if (fitted["columns"] is None) != isinstance(source, BagFolder):
            kind = "bags of patches" if fitted["columns"] is None else "value tables"
            raise InputError(f"the model was trained on {kind}", file=source.path)
        if isinstance(source, TokenTable):
            source.take(fitted["columns"], fitted["token_order"])
        else:
            source.expected = fitted["width"]

    # -- splits --------------------------------------------------------------------------------------------------------

    def _split(self, manifest: Manifest, fold: int) -> dict[str, list[str]]:
        """Return the record ids of each split; all external records are test records."""
        h = self.hparams
        if self.external:
            return {"train": [], "val": [], "test": list(manifest.cases)}
        folds, tell = str(h["folds"]), rank_zero_only(say)
        if folds == "published":
            if self.dataset is None:
                raise InputError(splits.no_published(manifest), file=manifest.path)
            folds, tell = str(self.find()[0].parent / "splits"), lambda line: None
        parts = splits.split_of(manifest, folds, fold, h["split_seed"], tell, h["split_column"])
        if h["inner"] == 0 and parts["val"] and parts["test"] and self.dataset is None:
            tell(f"{manifest.path}: {len(parts['val'])} validation records are training records (--data.inner 0)")
        return self._validation(parts, manifest)

    def _validation(self, parts: dict[str, list[str]], manifest: Manifest) -> dict[str, list[str]]:
        """Test records are never used for validation; that uses the split's own records, else a fraction of train."""
        if not parts["test"]:
            parts["test"], parts["val"] = parts["val"], []
        fraction = self.hparams["inner"]
        if fraction is None:
            fraction = None if parts["val"] else 0.1
        if fraction is not None:
            train = parts["train"] + parts["val"]
            parts["train"], parts["val"] = train, []
            if fraction > 0:
                parts["train"], parts["val"] = splits.inner_split(manifest, train, fraction, self.hparams["split_seed"])
        return parts

    def _with_features(
        self, parts: dict[str, list[str]], manifest: Manifest, source: BagFolder | TokenTable
    ) -> dict[str, list[str]]:
        """Drop records without features from the splits, and report their number."""
        path, unit = manifest.path, f"{manifest.level}s"
        tell = rank_zero_only(say)
        if isinstance(source, BagFolder):
            self.cache = {} if source.bytes < self.hparams["cache_gb"] * 1e9 else None
            used = {slide for case in manifest.cases.values() for slide in case.slides}
            extra = [slide for slide in source.bags if slide not in used]
            if extra:
                tell(f"{source.path}: {len(extra)} bags without a row in the manifest ignored (first: {extra[0]})")
            bad = source.require_readable(manifest.cases[case] for ids in parts.values() for case in ids)
            if bad:
                tell(f"{source.path}: {len(bad)} unusable bags dropped (first: {bad[0][1]})")
        absent = {case: None for ids in parts.values() for case in ids if not source.has(manifest.cases[case])}
        if absent:
            tell(f"{path}: {len(absent)} {unit} without a bag dropped (first: {next(iter(absent))})")
        kept = {name: [case for case in ids if case not in absent] for name, ids in parts.items()}
        needed = "test" if self.external else "train"
        if not kept[needed]:
            raise InputError(
                f"no {manifest.level} of the {needed} split has a bag; check that ids and file names match", file=path
            )
        if isinstance(source, BagFolder):
            slides = [slide for ids in kept.values() for case in ids for slide in manifest.cases[case].slides]
            lost = [slide for slide in slides if slide not in source.bags]
            if lost:
                tell(f"{path}: {len(lost)} slides of cases with several slides have no bag (first: {lost[0]})")
        return kept

    # -- records -------------------------------------------------------------------------------------------------------

    def instances(self, case: Case) -> tuple[Tensor, Tensor, bool]:
        """Return scaled features (N, D), order (N,) of a case, and whether it is unusual; cached if possible."""
        if self.cache is not None and case.id in self.cache:
            return self.cache[case.id]
        assert self.source is not None
        bag = self.source.read(case)
        features = bag.features if self.scaler is None else self.source.scale(self.scaler, bag.features)
        found = (
            torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)),
            torch.from_numpy(self.source.order(bag)),
            self.ranges is not None and bool(self.ranges.remark(self.source.profile(bag))),
        )
        if self.cache is not None:
            self.cache[case.id] = found
        return found

    def answer(self, case: Case) -> dict[str, Tensor]:
        """Return the targets of a case as tensors."""
        return fitting.truths(self.heads, case)

    def follow_up(self, head: Head | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return (times, censored) for estimating the censoring distribution in scores.

        Args:
            head: the target, one of survival; by default the first one.

        These are the training and validation records, or the test records in an external evaluation, because the
        follow-up differs between cohorts.
        """
        cases = self.test_set.cases if self.external else self.train_set.cases + self.val_set.cases
        known = [one for case in cases if (one := fitting.target_of(head or self.heads[0], case)) is not None]
        return np.array([time for time, _ in known]), np.array([censored for _, censored in known])

    # -- fitted on the training split ----------------------------------------------------------------------------------

    def _learn(self, train: list[Case], source: BagFolder | TokenTable) -> None:
        """Fit the scaler in one pass over the training records, and reject features that duplicate the target."""
        scaler, self.ranges, lows, highs = source.fit(train, self.hparams["clip"])
        self._refuse_label(train, lows, highs, source)
        self.scaler = scaler if self.hparams["standardise"] else None

    def _refuse_label(
        self, train: list[Case], lows: np.ndarray, highs: np.ndarray, source: BagFolder | TokenTable
    ) -> None:
        """Raise InputError if a feature duplicates the target, as in some public copies of bag data."""
        answers: dict[str, list] = {}
        for head in self.heads:
            answers |= fitting.columns_of(head, train, self.columns)
        for name, answer in answers.items():
            if len(answer) < 10 or len(set(answer)) < 2:
                continue
            codes = np.array(answer, dtype=np.float32)
            copies = np.flatnonzero(((lows == highs) & (lows == codes[:, None])).all(0))
            if len(copies):
                which = source.name_of(int(copies[0]))
                raise InputError(f"{which} duplicates the answer {name}: remove it", file=source.path)

    @property
    def width(self) -> int:
        """Feature width of an instance."""
        assert self.source is not None
        return self.source.width

    @property
    def tokens(self) -> int | None:
        """Number of columns of a value table; None for bags of patches."""
        return len(self.source.columns) if isinstance(self.source, TokenTable) else None

    @property
    def num_classes(self) -> int:
        """Number of outputs: classes, time bins, numbers and labels."""
        return sum(head.size for head in self.heads)

    def summary(self) -> dict[str, Any]:
        assert self.manifest is not None
        table = self.source if isinstance(self.source, TokenTable) else None
        return {
            "target": self.target,
            "classes": list(self.manifest.classes),
            "edges": list(next((head.edges for head in self.heads if isinstance(head, SurvivalHead)), ())),
            "heads": fitting.described(self.heads),
            "level": self.manifest.level,
            "time_column": self.columns.time,
            "order": self.hparams["order"],
            "width": self.width,
            "columns": None if table is None else list(table.columns),
            "token_order": None if table is None else torch.from_numpy(np.array(table.token_order)),
            "scaler": None if self.scaler is None else self.scaler.summary(),
            "ranges": None if self.ranges is None else self.ranges.summary(),
            "feature_key": self.hparams["feature_key"],
            "slide_column": self.columns.slide,
            "case_column": self.columns.case,
        }

    @rank_zero_only
    def _report(self, manifest: Manifest, train: list[Case]) -> None:
        unit = f"{manifest.level}s"
        if self.external:
            say(f"{unit}: {len(self.parts['test'])}, all tested with the checkpoint's fitted values")
            return
        counts = ", ".join(f"{len(ids)} {name}" for name, ids in self.parts.items())
        if self.is_reference:
            say(f"baselines are trained on the run's own data: {counts}")
            return
        what = f"features of width {self.width}" if self.tokens is None else f"{self.tokens} tokens per case"
        answer = "; ".join(fitting.reported(head, train, manifest.level) for head in self.heads)
        say(f"{unit}: {counts}; {what}; training split: {answer}")
        without = 0 if self.source is None else self.source.without_coords
        if without and self.hparams["order"] not in ("file", "random"):
            say(f"{without} of {len(train)} training bags have no coordinates and are scanned in file order")
