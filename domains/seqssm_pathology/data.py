"""The data module of pathology: from manifest, splits and bags to its three parts, read and scaled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from seqssm import orders
from seqssm.errors import InputError
from seqssm.training.data import DataModule
from seqssm_pathology import manifest as tables
from seqssm_pathology.files import Bag, Invalid, join, list_bags, read_bag, say
from seqssm_pathology.fitted import Scaler, bin_of, cut
from seqssm_pathology.items import Cases, Order, instance_order, pack, stacked
from seqssm_pathology.manifest import Case, Columns, Manifest, Target
from seqssm_pathology.values import Values, by_family, read_values

CLIP_BEFORE = 4.0  # of value tables, in their own units: z-scores with outliers in the thousands


class BagData(DataModule):
    """Cases with bags of patch features, or with rows of a value table.

    Args:
        manifest: CSV of slides, cases and answers.
        features: folder of bags (``.h5``, ``.pt``, ``.npy``), or a value table (``.h5``, ``.csv``).
        dataset: a public data set by name instead of both (``seqssm data list``), found in `root` or the usual places.
        target: what is learned.
        folds: number of folds made by case and stratified, or a folder of CLAM split files.
        fold: which of them.
        inner: share of the training part that validates instead of the split's own validation part; 0 validates not at
            all and trains the fixed number of epochs. By default the split's part, or 0.1 where it has none. A split
            with ``train`` and ``val`` only is tested on ``val``, which then validates nothing.
        split_seed: of folds and shares that are made here.
        bins: time bins of survival.
        order: order of the instances that counts as forward; ``family`` is of value tables.
        families: CSV of gene families for ``order: family``.
        standardise: whether features are brought to mean 0 and deviation 1 of the training part.
        clip: largest magnitude of a scaled feature.
        max_instances: of a bag in training, drawn anew each epoch; all when not given.
        invalid: instances with NaN, rows without an answer: ``error``, or ``drop`` (counted and said).
        cache_gb: bags are kept in memory when the whole set is smaller than this.
        feature_key: name of the features in ``.h5`` files.
        slide_column, case_column, label_column, time_column, censor_column: names of the manifest's columns.
        event_column: a column in which 1 means event, instead of `censor_column`.
        covariate_column: a number a case, such as the age; the baseline ``covariate`` ranks by it.
        batch_size: cases per batch; in training the processes share a batch evenly.
        num_workers: loader processes.
        seed: of shuffling; the run's seed when not given.
        root: folder that holds the data set, instead of the usual places.
    """

    collate = staticmethod(pack)
    sources: ClassVar = (("manifest", "features"), ("dataset",))
    split_options: ClassVar = ("folds", "fold", "inner", "split_seed")
    fixed: ClassVar = ("target", "bins", "standardise", "clip")
    neutral: ClassVar = (*DataModule.neutral, "cache_gb", "max_instances")

    def __init__(
        self,
        manifest: str | None = None,
        features: str | None = None,
        dataset: str | None = None,
        target: Target = "classification",
        folds: int | str = 5,
        fold: int = 0,
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
        time_column: str = "survival_months",
        censor_column: str = "censorship",
        event_column: str | None = None,
        covariate_column: str | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int | None = None,
        root: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, root=root)
        if dataset is None and (manifest is None or features is None):
            raise InputError("give --data.manifest FILE and --data.features FOLDER, or --data.dataset NAME")
        if dataset is not None and (manifest is not None or features is not None):
            raise InputError("--data.dataset names manifest and features: drop --data.manifest and --data.features")
        for name, value in (
            ("batch_size", batch_size),
            ("bins", bins - 1),
            ("max_instances", 1 if max_instances is None else max_instances),
        ):
            if value < 1:
                raise InputError(f"--data.{name}: too small")
        if inner is not None and not 0 <= inner <= 0.5:
            raise InputError(f"--data.inner {inner}: must be in [0, 0.5]")
        if order == "family" and families is None and dataset != "gbmlgg":
            raise InputError("--data.order family needs --data.families FILE")
        self.manifest_file, self.features_place, self.dataset, self.target = manifest, features, dataset, target
        self.folds, self.fold, self.inner, self.split_seed, self.bins = folds, fold, inner, split_seed, bins
        self.order, self.families, self.standardise, self.clip = order, families, standardise, clip
        self.max_instances, self.invalid, self.cache_gb, self.feature_key = (
            max_instances,
            invalid,
            cache_gb,
            feature_key,
        )
        self.columns = Columns(
            slide_column, case_column, label_column, time_column, censor_column, event_column, covariate_column
        )
        self.manifest: Manifest | None = None
        self.values: Values | None = None
        self.scaler: Scaler | None = None
        self.cache: dict[str, tuple[Tensor, Tensor]] | None = {}
        self.fitted: Mapping[str, Any] | None = None
        self.external = self.is_reference = False
        self._reference: BagData | None = None

    def use_summary(self, summary: Mapping[str, Any], external: bool) -> None:
        self.fitted, self.external = summary, external

    def reference(self) -> BagData | None:
        """The data that the model was trained on: this, or in an external evaluation the run's own, where readable."""
        if self.trained_with is None:
            return self
        if self._reference is None:
            own = BagData(**self.trained_with)
            assert self.fitted is not None
            own.use_summary(self.fitted, external=False)
            own.is_reference = True
            try:
                own.setup()
            except InputError as error:
                say(f"the run's own data cannot be read, baselines are left out: {error}")
                return None
            self._reference = own
        return self._reference

    def identities(self, split: str) -> list[dict[str, str]]:
        """One row per slide: its case, the slide, and the patient where the case id is a TCGA barcode."""
        assert self.manifest is not None
        cases = [self.manifest.cases[case] for case in self.parts[split]]
        return [
            {"id": case.id, "slide": slide, "patient": tables.patient_of(case.id) or ""}
            for case in cases
            for slide in case.slides
        ]

    # -- reading -----------------------------------------------------------------------------------------------------

    def find(self) -> tuple[Path, Path, Path | None]:
        """(manifest, features, families)."""
        families = None if self.families is None else Path(self.families)
        if self.dataset is None:
            return Path(str(self.manifest_file)), Path(str(self.features_place)), families
        from seqssm.files.datasets import locate
        from seqssm_pathology import DOMAIN, PLACES

        if self.dataset not in PLACES:
            from seqssm.errors import nearest

            raise InputError(f"--data.dataset {self.dataset}: no such data set{nearest(self.dataset, PLACES)}")
        folder = locate(DOMAIN.name, self.dataset, self.root)
        if self.dataset == "gbmlgg" and families is None:
            families = folder / "gene_signatures.csv"
        return folder / "labels.csv", folder / PLACES[self.dataset], families

    def split_folder(self) -> str:
        """`folds`, or the data set's own split files where `folds` says ``published``."""
        if self.folds == "published":
            if self.dataset is None:
                raise InputError("--data.folds published is of the public data sets; give a number or a folder")
            return str(self.find()[0].parent / "splits")
        return str(self.folds)

    def setup(self, stage: str | None = None) -> None:
        """Reads manifest and splits, finds the bags, fits scaler and bins on the training part; once."""
        if self.manifest is not None:
            return
        path, place, families = self.find()
        classes = None if self.fitted is None else self.fitted["classes"]
        manifest = tables.read_manifest(path, self.target, self.columns, self.invalid, classes)
        self._find_bags(manifest, place, families)
        parts = self._split(manifest)
        self.parts = self._with_bags(parts, manifest)
        self.manifest = manifest
        train = [manifest.cases[case] for case in self.parts["train"]]
        self.edges: list[float] = []
        if self.fitted is not None:
            self._take(self.fitted)
        else:
            if self.target == "survival":
                self.edges = cut([(case.time, case.censored) for case in train], self.bins, path)
            self._learn(train)
        sets = {
            part: Cases(self, [manifest.cases[c] for c in ids], part == "train") for part, ids in self.parts.items()
        }
        self.train_set, self.val_set, self.test_set = sets["train"], sets["val"], sets["test"]
        self._say(train)

    def _split(self, manifest: Manifest) -> dict[str, list[str]]:
        """The case ids of each split; external cases are all tested."""
        if self.external:
            return {"train": [], "val": [], "test": list(manifest.cases)}
        folds = self.split_folder()
        if folds.isdigit():
            parts = tables.make_split(manifest, int(folds), self.fold, self.split_seed)
        else:
            files = tables.split_files(Path(folds))
            if not 0 <= self.fold < len(files):
                raise InputError(f"--data.fold {self.fold}: the folder holds {len(files)} split files", file=folds)
            parts = tables.read_split(files[self.fold], manifest)
        return self._validation(parts, manifest)

    def _take(self, fitted: Mapping[str, Any]) -> None:
        """Takes what a checkpoint has learned from its training split, in place of `_learn`."""
        self.without_coords = 0
        self.edges, self.width = list(fitted["edges"]), fitted["width"]
        self.scaler = None if fitted["scaler"] is None else Scaler(**fitted["scaler"])
        columns = fitted["columns"]
        if (columns is None) != (self.values is None):
            kind = "bags of patches" if columns is None else "value tables"
            raise InputError(f"the model was trained on {kind}", file=self.find()[1])
        if columns is not None and self.values is not None:
            self.values = self.values.select(columns)
            self.token_order = fitted["token_order"].numpy()

    def _find_bags(self, manifest: Manifest, place: Path, families: Path | None) -> None:
        """Where the features of each slide or case lie."""
        if place.is_file() and place.suffix.lower() in (".h5", ".hdf5", ".csv"):
            self.values = read_values(place)
            self.rows = {case: row for row, case in enumerate(self.values.cases)}
            self.token_order = np.arange(len(self.values.columns))
            if self.order == "family":
                self.token_order = by_family(self.values.columns, families)
            elif self.order == "random":
                self.token_order = orders.random(len(self.values.columns), self.split_seed).numpy()
            elif self.order not in ("file", "row"):
                raise InputError(f"--data.order {self.order}: a value table has file, random and family", file=place)
            return
        if self.order == "family":
            raise InputError("--data.order family is of value tables", file=place)
        self.bags = list_bags(place)
        size = sum(file.stat().st_size for file in self.bags.values())
        self.cache = {} if size < self.cache_gb * 1e9 else None
        used = {slide for case in manifest.cases.values() for slide in case.slides}
        extra = [slide for slide in self.bags if slide not in used]
        if extra:
            rank_zero_only(say)(
                f"{place}: {len(extra)} bags are in no row of the manifest, not used (first: {extra[0]})"
            )

    def _has_bag(self, case: Case) -> bool:
        if self.values is not None:
            return case.id in self.rows
        return any(slide in self.bags for slide in case.slides)

    def _validation(self, parts: dict[str, list[str]], manifest: Manifest) -> dict[str, list[str]]:
        """What is tested is never validated on; what validates is the split's own part or a share of train."""
        parts = {part: list(ids) for part, ids in parts.items()}
        if not parts["test"]:
            parts["test"], parts["val"] = parts["val"], []
        share = self.inner
        if share is None:
            share = None if parts["val"] else 0.1
        if share is not None:
            parts["train"] += parts["val"]
            parts["val"] = []
            if share > 0:
                parts["train"], parts["val"] = tables.inner_split(manifest, parts["train"], share, self.split_seed)
        tables.require_apart(parts, manifest.path)
        return parts

    def _with_bags(self, parts: dict[str, list[str]], manifest: Manifest) -> dict[str, list[str]]:
        """The parts without cases that have no bag, which are counted."""
        absent = [case for ids in parts.values() for case in ids if not self._has_bag(manifest.cases[case])]
        if absent:
            rank_zero_only(say)(
                f"{manifest.path}: {len(absent)} cases have no bag and are left out (first: {absent[0]})"
            )
        kept = {part: [case for case in ids if case not in set(absent)] for part, ids in parts.items()}
        needed = "test" if self.external else "train"
        if not kept[needed]:
            raise InputError(
                f"no case of the {needed} split has a bag; do the ids fit the file names?", file=manifest.path
            )
        if self.values is None:
            lost = [
                slide for ids in kept.values() for case in ids for slide in manifest.cases[case].slides
                if slide not in self.bags
            ]  # fmt: skip
            if lost:
                rank_zero_only(say)(
                    f"{manifest.path}: {len(lost)} slides of cases with several have no bag (first: {lost[0]})"
                )
        return kept

    def read(self, case: Case) -> Bag:
        """The bag of a case, unscaled."""
        if self.values is not None:
            row = self.values.values[self.rows[case.id]]
            return Bag(case.id, row[:, None])
        bags = [read_bag(self.bags[s], self.feature_key, self.invalid) for s in case.slides if s in self.bags]
        bag, slide = join(bags, case.id)
        if bag.coords is not None and len(bags) > 1:  # slides lie below one another, in the order of the manifest
            bag.coords = stacked(bag.coords, slide)
        width = getattr(self, "width", None)
        if width is not None and bag.features.shape[1] != width:
            others = "those of other bags" if self.fitted is None else "the model was trained on"
            raise InputError(f"features are {bag.features.shape[1]} wide, {others} {width}", file=bags[0].id)
        return bag

    def instances(self, case: Case) -> tuple[Tensor, Tensor]:
        """Scaled features (N, D) and order (N,) of a case, from memory where they are kept."""
        if self.cache is not None and case.id in self.cache:
            return self.cache[case.id]
        bag = self.read(case)
        features = bag.features
        if self.scaler is not None:
            features = self.scaler(features.T).T if self.values is not None else self.scaler(features)
        order = self.token_order if self.values is not None else instance_order(bag, self.order)
        found = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)), torch.from_numpy(order)
        if self.cache is not None:
            self.cache[case.id] = found
        return found

    def answer(self, case: Case) -> dict[str, Tensor]:
        """What is learned of a case, as tensors."""
        assert self.manifest is not None
        if self.target == "classification":
            return {"label": torch.tensor(self.manifest.classes.index(str(case.label)))}
        time, censored = float(case.time), int(case.censored)
        return {
            "time": torch.tensor(time),
            "censored": torch.tensor(censored),
            "bin": torch.tensor(bin_of(time, self.edges)),
        }

    # -- what is learned from the training part ----------------------------------------------------------------------

    def _learn(self, train: list[Case]) -> None:
        """One pass over the training bags: widths, coordinates, the scaler, no feature that is the label itself."""
        self.without_coords = 0
        self.lows: list[np.ndarray] = []
        self.highs: list[np.ndarray] = []
        if self.values is not None:
            self.width = 1
            rows = self.values.values[[self.rows[case.id] for case in train]]
            self.lows, self.highs = [rows], [rows]
            before = None if self.clip is None else CLIP_BEFORE
            scaler = Scaler.fit([rows], self.clip, before)
        else:
            scaler = Scaler.fit(self._watched(train), self.clip, None)
        self._refuse_label(train, np.vstack(self.lows), np.vstack(self.highs))
        self.scaler = scaler if self.standardise else None

    def _watched(self, train: list[Case]) -> Iterator[np.ndarray]:
        for case in train:
            bag = self.read(case)
            self.width = bag.features.shape[1]
            self.without_coords += bag.coords is None
            self.lows.append(bag.features.min(0))
            self.highs.append(bag.features.max(0))
            yield bag.features

    def _refuse_label(self, train: list[Case], lows: np.ndarray, highs: np.ndarray) -> None:
        """Some public copies of bag data carry the label as one more feature, and tables their answers."""
        assert self.manifest is not None
        names = self.columns
        if self.target == "classification":
            answers = {names.label: [self.manifest.classes.index(str(case.label)) for case in train]}
        else:
            flags = [case.censored for case in train]
            answers = {names.time: [case.time for case in train], names.event or names.censored: flags}
            answers[f"1 - {names.event or names.censored}"] = [1 - flag for flag in flags]
        for name, answer in answers.items():
            if len(answer) < 10 or len(set(answer)) < 2:
                continue
            codes = np.array(answer, dtype=np.float32)
            copies = np.flatnonzero(((lows == highs) & (lows == codes[:, None])).all(0))
            if len(copies):
                which = f"feature {copies[0]} (of {lows.shape[1]}, from 0)"
                if self.values is not None:
                    which = f"column {self.values.columns[copies[0]]}"
                raise InputError(f"{which} is a copy of the answer {name}: remove it", file=self.find()[1])

    @property
    def tokens(self) -> int | None:
        """Columns of a value table; None for bags of patches."""
        return None if self.values is None else len(self.values.columns)

    @property
    def outputs(self) -> int:
        """Classes, or time bins."""
        assert self.manifest is not None
        return len(self.manifest.classes) if self.target == "classification" else self.bins

    def class_counts(self) -> list[int]:
        """Cases of each class in the training part."""
        assert self.manifest is not None
        labels = [case.label for case in self.train_set.cases]
        return [labels.count(name) for name in self.manifest.classes]

    def summary(self) -> dict[str, Any]:
        assert self.manifest is not None
        return {
            "target": self.target,
            "classes": list(self.manifest.classes),
            "edges": list(self.edges),
            "time_column": self.columns.time,
            "order": self.order,
            "width": self.width,
            "columns": None if self.values is None else list(self.values.columns),
            "token_order": None if self.values is None else torch.from_numpy(np.array(self.token_order)),
            "scaler": None if self.scaler is None else self.scaler.summary(),
            "feature_key": self.feature_key,
            "slide_column": self.columns.slide,
            "case_column": self.columns.case,
        }

    @rank_zero_only
    def _say(self, train: list[Case]) -> None:
        if self.external:
            say(f"cases: {len(self.parts['test'])}, all tested with the checkpoint's fitted values")
            return
        counts = ", ".join(f"{len(ids)} {part}" for part, ids in self.parts.items())
        if self.is_reference:
            say(f"baselines are trained on the run's own data: {counts}")
            return
        what = f"{self.tokens} tokens a case" if self.values is not None else f"features of width {self.width}"
        if self.target == "classification":
            answer = ", ".join(f"{n} of class {c}" for n, c in zip(self.class_counts(), self.manifest.classes))
        else:
            events = sum(not case.censored for case in train)
            answer = f"{events} events; bins cut at {', '.join(f'{edge:.4g}' for edge in self.edges[1:-1])}"
        say(f"cases: {counts}; {what}; training part: {answer}")
        if self.without_coords and self.order not in ("file", "random"):
            say(f"{self.without_coords} of {len(train)} training bags have no coordinates: their order is the file's")
