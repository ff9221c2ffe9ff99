"""The data module of labelled sequences: tables, one FASTA file per class, registered sets; splits and folds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from seqssm.bounds import COUNT, RATE, SEED, Bounds
from seqssm.errors import InputError
from seqssm.files.datasets import find_data_set
from seqssm.files.splits import BY_FILE, NO_COLUMN, require_fold
from seqssm.metrics.classes import class_list
from seqssm.training.data import IN_MEMORY, DataModule, whole_batch
from seqssm_dna.catalogue import LABELLED, NAME, LabelledSet, registered
from seqssm_dna.genomes import open_genome
from seqssm_dna.intervals import is_bed, read_bed
from seqssm_dna.items import Items
from seqssm_dna.labelled import (
    LabelColumns,
    Labelled,
    Target,
    labelled_intervals,
    labels_of,
    read_labelled,
    shared_sequences,
)
from seqssm_dna.labels import absent_classes, order_classes, require_variety
from seqssm_dna.lengths import encode_all
from seqssm_dna.records import SUFFIXES, suffix_of
from seqssm_dna.splits import by_position, require_folds, split_labelled

TARGETS: dict[str, Target] = {"class": "classification", "labels": "multilabel", "value": "regression"}
NO_SOURCE = "give --data.train FILE (or '{class: FASTA, ...}'), or --data.dataset NAME"
FLAGS = {
    "sequence": "--data.sequence_column",
    "label": "--data.label_column",
    "split": "--data.split_column",
    "group": "--data.group_column",
    "id": "--data.id_column",
    "invalid": "--data.invalid",
}

Source = str | dict[str, str | list[str]]


class SequenceData(DataModule):
    """Labelled sequences from the user's tables or FASTA files, or a registered data set.

    A random split keeps equal sequences, and the rows of a group, together.

    Args:
        train: the user's file (CSV, TSV, Excel, Parquet, BED) or ``{class: FASTA}``;
            with a column split, it has all splits.
        valid: validation file of the same form.
        test: test file of the same form.
        reference: sequence file of the intervals, if `train`, `valid` or `test` are BED files with a column label.
        dataset: registered data set: ecoli_promoters, arabidopsis_tata, splice, ctcf_chr20, yeast_random or
            yeast_native; ignored if `train` is given.
        target: class (one of several), labels (any number of them) or value (numbers).
        unit: unit of the values, for tables.
        sequence_column: name of the column of sequences; by default sequence, seq, dna, ...
        label_column: name of the column of labels; by default label, class, target, expression, ...
        label_columns: names of several columns of 0 and 1 (labels) or of numbers (value).
        split_column: name of the column with train, valid, test, none for a random split; by default split, if it
            exists.
        group_column: name of the column of groups (a gene, a family); the rows of a group are in one split.
        id_column: name of the column of identifiers.
        val_fraction: fraction of the training rows for validation, if there is no validation split.
        test_fraction: fraction of all rows for the test, if there are no splits.
        fold: index of the test fold; set by kfold.
        folds: number of folds, instead of the splits of the file; set by kfold.
        split_seed: seed of random splits and folds, independent of the run's seed.
        invalid: policy for rows without a usable sequence or label: error, or drop (counted).
        lower: policy for lower-case letters: upper (read as upper case) or mask (read as N).
        max_length: maximum length; longer sequences are truncated and counted; by default no limit.
        trim_n: whether to remove N from both ends of a sequence.
        reverse_complement: augmentation: whether to read training sequences from both strands.
        mutate: augmentation: fraction of training bases replaced by random ones.
        batch_size: records per batch; in training, a batch is divided evenly among the processes.
        num_workers: number of loader processes.
        seed: seed of shuffling and augmentation; by default the run's seed.
        root: folder to search for data sets instead of the default ones.

    Raises:
        InputError: an option is out of range.
    """

    collate = staticmethod(whole_batch)
    labelled_argument: ClassVar[str | None] = "train"
    paths: ClassVar = (*DataModule.paths, "train", "valid", "test", "reference")
    sources: ClassVar[tuple[tuple[str, ...], ...]] = (("train",), ("valid",), ("test",), ("dataset",))
    split_options: ClassVar[tuple[str, ...]] = (
        *("split_column", "val_fraction", "test_fraction", "fold", "folds", "split_seed"),
    )
    fixed: ClassVar[tuple[str, ...]] = ("target", "lower", "max_length", "trim_n")
    neutral: ClassVar[tuple[str, ...]] = (*DataModule.neutral, "reverse_complement", "mutate", "unit")
    limits: ClassVar[Mapping[str, Bounds]] = {
        "val_fraction": RATE,
        "test_fraction": RATE,
        "mutate": RATE,
        "fold": Bounds(0, 2**31 - 1),
        "folds": Bounds(2, 10_000),
        "split_seed": SEED,
        "max_length": COUNT,
    }

    def __init__(
        self,
        train: str | dict[str, str | list[str]] | None = None,
        valid: str | dict[str, str | list[str]] | None = None,
        test: str | dict[str, str | list[str]] | None = None,
        reference: str | None = None,
        dataset: str | None = None,
        target: Literal["class", "labels", "value"] = "class",
        unit: str = "",
        sequence_column: str | None = None,
        label_column: str | None = None,
        label_columns: list[str] | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        id_column: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        fold: int | None = None,
        folds: int | None = None,
        split_seed: int = 0,
        invalid: Literal["error", "drop"] = "error",
        lower: Literal["upper", "mask"] = "upper",
        max_length: int | None = None,
        trim_n: bool = False,
        reverse_complement: bool = False,
        mutate: float = 0.0,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
        root: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed, root=root)
        given = [name for name, value in (("train", train), ("valid", valid), ("test", test)) if value is not None]
        if given:
            dataset = None  # the user's own file replaces a preset's data set
        self.source: dict[str, Source | None] = {"train": train, "valid": valid, "test": test}
        if folds is not None and folds < 2:
            raise InputError(f"--data.folds {folds}: must be at least 2")
        require_fold(fold, folds)
        self.dataset, self.target = dataset, target
        self.frame: Any = None
        self.labelled: Labelled | None = None
        self.ids: list[np.ndarray] = []
        self.rows: dict[str, np.ndarray] = {}

    # -- reading -----------------------------------------------------------------------------------------------------

    def use_frame(self, frame: Any) -> None:
        """Use a table in memory instead of the training file."""
        self.frame, self.dataset = frame, None

    def use_summary(self, summary: Mapping[str, Any], external: bool) -> None:
        """Use the classes of a checkpoint.

        Args:
            summary: result of `summary` in training.
            external: whether to test all records.
        """
        self.fitted, self.external = summary, external

    def find(self) -> tuple[dict[str, Any], LabelledSet | None]:
        """Return (source by split, registered data set or None).

        Raises:
            InputError: no source is given, or the data set is unknown.
        """
        if self.frame is not None:
            return {"train": self.frame}, None
        own = {split: source for split, source in self.source.items() if source is not None}
        if own:
            if "train" not in own and not self.external and self.fitted is None:
                raise InputError("--data.valid and --data.test require --data.train")
            return own, None
        if self.dataset is None:
            raise InputError(NO_SOURCE)
        kept = registered(LABELLED, self.dataset)
        if isinstance(kept.source, str):
            return {"train": find_data_set(NAME, kept.source, self.root)}, kept
        return {"train": {name: str(find_data_set(NAME, path, self.root)) for name, path in kept.source.items()}}, kept

    def require_folds(self, folds: Sequence[int]) -> None:
        require_folds(self._read(*self.find()), self.hparams["folds"])

    def setup(self, stage: str | None = None) -> None:
        """Read the sequences, split and encode them; only once."""
        if self.labelled is not None:
            return
        h = self.hparams
        sources, registered = self.find()
        found = self._read(sources, registered)
        if registered is not None and registered.positions is not None and h["folds"] is None and not self.external:
            by_position(found, *registered.positions)
        before = found.notes
        if self.external:
            found.splits, how = ["test"] * len(found), "all records are tested"
        else:
            names = ("val_fraction", "test_fraction", "split_seed", "fold", "folds")
            how = split_labelled(found, *(h[name] for name in names), recorded=self.recorded or self.fitted is not None)
        notes = [note for note in before if "also occur in train" not in note and "of training ones" not in note]
        notes += shared_sequences(found)
        self.ids, said = encode_all(found, h["lower"], h["trim_n"], h["max_length"])
        notes += said
        self.labelled = found
        splits = np.array(found.splits)
        self.rows = {split: np.flatnonzero(splits == split) for split in ("train", "val", "test")}
        for split in ("test",) if self.external else ("train", "val"):
            if not len(self.rows[split]):
                raise InputError(f"the {split} split is empty ({how}; {len(found)} records)", file=found.path)
        self.val_set, self.test_set = self._items("val"), self._items("test")
        self.train_set = self._items("train", h["reverse_complement"], h["mutate"])
        if stage == "fit" or self.external:
            if self.target != "value":
                own = ("test",) if self.external else tuple(self.rows)
                notes += absent_classes(found.classes, {split: self.truth(split) for split in own})
            if not self.external and found.truth is not None:
                notes += require_variety(found.classes, found.truth[self.rows["train"]], found.path)
            self._say(found, how, notes)

    def _read(self, sources: Mapping[str, Any], registered: LabelledSet | None) -> Labelled:
        h = self.hparams
        group = h["group_column"] or (registered.group if registered is not None else None)
        split = NO_COLUMN if self.external else h["split_column"]
        columns = LabelColumns(
            h["sequence_column"],
            h["label_column"],
            tuple(h["label_columns"] or ()),
            BY_FILE if len(sources) > 1 and split != NO_COLUMN else split,
            group,
            h["id_column"],
        )
        classes = list(self.fitted["classes"]) if self.fitted is not None else None
        parts = []
        for split, source in sources.items():
            part = self._labelled(source, columns, classes)
            classes = part.classes
            if len(sources) > 1:
                part.splits = [{"valid": "val"}.get(split, split)] * len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else joined(parts)

    def _labelled(self, source: Any, columns: LabelColumns, classes: list[str] | None) -> Labelled:
        if isinstance(source, str | Path) and suffix_of(Path(source)) in SUFFIXES:
            message = (
                "has no labels; give a table of sequences and labels, or one such file per class: {class: FILE, ...}"
            )
            raise InputError(message, file=source)
        if not isinstance(source, str | Path) or not is_bed(Path(source)):
            return read_labelled(source, TARGETS[self.target], columns, classes, self.hparams["invalid"], flags=FLAGS)
        if self.hparams["reference"] is None:
            raise InputError("needs --data.reference FILE, the sequences that its intervals lie in", file=source)
        if self.target != "class":
            raise InputError(f"--data.target {self.target}: intervals of a BED file have classes", file=source)
        genome = open_genome(self.hparams["reference"])
        found = labelled_intervals(read_bed(source, genome), genome, source, classes)
        found.notes += genome.notes
        return found

    def _items(self, split: str, turn: bool = False, mutate: float = 0.0) -> Items:
        return Items([self.ids[row] for row in self.rows[split]], self.truth(split), turn, mutate)

    def augmented(self) -> Items | None:
        turn, mutate = self.hparams["reverse_complement"], self.hparams["mutate"]
        return self._items("test", turn, mutate) if turn or mutate else None

    def _say(self, found: Labelled, how: str, notes: list[str]) -> None:
        sizes = ", ".join(f"{len(rows)} {split}" for split, rows in self.rows.items() if len(rows))
        names = class_list(found.classes[:8]) + (", ..." if len(found.classes) > 8 else "")
        what = {"class": "classes", "labels": "labels", "value": "values"}[self.target]
        self.print_line(f"{found.path}: {sizes} records, {what} {names}; {how}")
        for line in dict.fromkeys(notes):
            self.print_line(f"  {line}")

    # -- for the task and for prediction -----------------------------------------------------------------------------

    def truth(self, split: str) -> np.ndarray:
        """Return the labels of a split: class indices, (n,), zeros and ones, (n, m), or numbers, (n, t) float32.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
        """
        assert self.labelled is not None
        assert self.labelled.truth is not None
        values = self.labelled.truth[self.rows[split]]
        return values if self.target == "class" else values.reshape(len(values), -1).astype(np.float32)

    def sequences(self, split: str) -> list[np.ndarray]:
        """Return the token ids of the records of a split, (L,) uint8 each.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
        """
        return [self.ids[row] for row in self.rows[split]]

    @property
    def classes(self) -> list[str]:
        """Names of the classes, labels or values, after `setup`."""
        assert self.labelled is not None
        return list(self.labelled.classes)

    @property
    def longest(self) -> int:
        """Length of the longest training sequence, letters, after `setup`."""
        return max(len(ids) for ids in self.sequences("train")) if len(self.rows["train"]) else 0

    def summary(self) -> dict[str, Any]:
        if self.fitted is not None:
            return dict(self.fitted)
        h = self.hparams
        return {
            "lower": h["lower"],
            "target": self.target,
            "classes": self.classes,
            "unit": h["unit"],
            "max_length": h["max_length"],
            "trim_n": h["trim_n"],
            "sequence_column": h["sequence_column"],
            "id_column": h["id_column"],
        }

    def class_names(self) -> list[str]:
        if self.target != "class":
            raise InputError(f"--data.target {self.target}: only models of classes can be extended")
        sources, _ = self.find()
        return order_classes(name for source in sources.values() for name in self._labels(source))

    def _labels(self, source: Any) -> list[str]:
        """Return the labels of a source, which may be a single class."""
        if isinstance(source, Mapping):
            return [str(name) for name in source]
        if is_bed(Path(source)):
            if self.hparams["reference"] is None:
                raise InputError("needs --data.reference FILE, the sequences that its intervals lie in", file=source)
            found = read_bed(source, open_genome(self.hparams["reference"]))
            return [one.label for one in found if one.label]
        return labels_of(source, self.hparams["label_column"], FLAGS)

    def plain_train_set(self) -> Items:
        return self._items("train")

    def identities(self, split: str) -> list[dict[str, str]]:
        """Return one row per record: id, group, and a hash of the sequence."""
        assert self.labelled is not None
        found = self.labelled
        return [
            {
                "id": found.ids[row],
                "group": found.groups[row] if found.groups else "",
                "sequence": hashlib.sha256(found.sequences[row].upper()).hexdigest()[:16],
            }
            for row in self.rows[split]
        ]

    def targets(self, split: str) -> list[Any]:
        assert self.labelled is not None
        if self.labelled.truth is None:
            return []
        key = "sequence" if self.labelled.numbered else "id"
        return list(zip((row[key] for row in self.identities(split)), self.truth(split).tolist()))

    @property
    def positional(self) -> tuple[str, ...]:
        return ("id",) if self.labelled is not None and self.labelled.numbered else ()

    def predict_words(self) -> list[str]:
        """Return the test file, or else the training file; for one FASTA file per class, the first file."""
        if self.frame is not None:
            return [IN_MEMORY]
        sources, _ = self.find()
        chosen = sources.get("test", sources.get("train"))
        if isinstance(chosen, Mapping):
            first = next(iter(chosen.values()))
            return [str(first if isinstance(first, str) else first[0])]
        more = ["--reference", str(self.hparams["reference"])] if is_bed(Path(str(chosen))) else []
        return [str(chosen), *more]


def joined(parts: Sequence[Labelled]) -> Labelled:
    """Concatenate labelled sequences.

    Args:
        parts: labelled sequences with the same classes, with splits.
    """
    first = parts[0]
    truth = np.concatenate([part.truth for part in parts])
    groups = [part.groups for part in parts]
    return Labelled(
        Path(", ".join(dict.fromkeys(part.path.name for part in parts))),
        first.target,
        [one for part in parts for one in part.ids],
        [one for part in parts for one in part.sequences],
        truth,
        first.classes,
        [one for part in parts for one in part.splits or []],
        None if None in groups else [one for own in groups for one in own or []],
        [one for part in parts for one in part.places],
        [note for part in parts for note in part.notes],
        numbered=any(part.numbered for part in parts),
    )
