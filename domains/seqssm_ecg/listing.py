"""Lists labelled records and the classes of the task, from the options of the data module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from seqssm.errors import InputError
from seqssm.files.datasets import find_data_set
from seqssm.files.splits import NO_COLUMN
from seqssm.metrics.classes import class_counts, class_list
from seqssm_ecg.labels import CINC_YEARS, Classes, ptbxl_classes, ptbxl_statements, read_weights
from seqssm_ecg.limits import PTBXL_TASKS
from seqssm_ecg.recording import ArraySpec
from seqssm_ecg.sources import LabelledRecord, by_name, challenge, ptbxl, read_manifest

NO_SOURCE = "specify --data.manifest FILE, --data.folder DIR or --data.dataset NAME"


@dataclass
class Listed:
    """Listed records of a source.

    Attributes:
        name: name of the source in messages.
        records: the records, with or without labels.
        classes: classes of the task.
        notes: remarks for the user on merged and ignored records, columns and classes.
        named: whether the labels are class names of the source, as opposed to codes of which most are not classes.
        one_hot: whether the labels are 0/1 columns.
    """

    name: str
    records: list[LabelledRecord]
    classes: Classes
    notes: list[str] = field(default_factory=list)
    named: bool = False
    one_hot: bool = False

    def fitted_classes(self, summary: Mapping[str, Any], external: bool) -> Classes:
        """Return the classes of a checkpoint after checking that the labels of this source belong to them.

        Args:
            summary: summary of the checkpoint, with ``classes`` and ``codes``.
            external: whether the source differs from that of the training.

        Raises:
            InputError: the source has different classes.
        """
        names, codes = list(summary["classes"]), [tuple(group) for group in summary["codes"]]
        known = {*names, *(code for group in codes for code in group)}
        strange = [name for name in self.classes.names if name not in known] if self.named else []
        if strange and (external or len(strange) == len(self.classes.names)):
            raise InputError(
                f"has classes unknown to the model, {class_list(strange[:6])}; the classes of the model are "
                f"{class_list(names[:12])}",
                file=self.name,
            )
        absent = [name for name in names if name not in self.classes.names]
        if absent and self.one_hot and not summary["single_label"]:
            raise InputError(f"has no column for the class {class_list(absent)}", file=self.name)
        weights = self.classes.weights if self.classes.names == names else None
        return Classes(names, codes, weights, self.classes.year)


@dataclass
class Source:
    """Source of the records; the attributes are options of `seqssm_ecg.data.EcgData`."""

    manifest: str | None
    folder: str | None
    dataset: str | None
    labels: str | None
    label_columns: list[str] | None
    split_column: str | None
    weights: str | None
    root: str | None
    array: ArraySpec
    rate_hz: float
    frame: pd.DataFrame | None = None

    @property
    def name(self) -> str:
        """Name of the source used in messages."""
        return "DataFrame" if self.frame is not None else str(self.manifest or self.folder or self.dataset)

    @property
    def is_ptbxl(self) -> bool:
        """Whether the source is a PTB-XL tree."""
        return self.manifest is None and self.frame is None and (self.path() / "ptbxl_database.csv").is_file()

    @property
    def own_classes(self) -> bool:
        """Whether the classes are those that occur, as opposed to those of a benchmark."""
        return self.labels == "codes" or (not self.is_tree and self.labels is None)

    def listed(self, external: bool = False) -> Listed:
        """List every record.

        Args:
            external: whether `labels` belongs to a different source, in which case a manifest uses its own labels.

        Raises:
            InputError: the source cannot be read, or `labels` does not apply to it.
        """
        if self.is_tree and self.folder is None and self.dataset is None:
            raise InputError(NO_SOURCE)
        if not self.is_tree:
            return self._of_manifest(external)
        if self.split_column is not None:
            raise InputError(f"--data.split_column {self.split_column}: only a manifest has columns of splits")
        folder = self.path()
        if self.is_ptbxl:
            task = self.labels or "superclass"
            if task not in PTBXL_TASKS:
                raise InputError(f"--data.labels {task}: expected one of {', '.join(PTBXL_TASKS)} for a PTB-XL tree")
            classes = ptbxl_classes(ptbxl_statements(folder / "scp_statements.csv"), task)
            return Listed(self.name, ptbxl(folder, self.rate_hz), classes, named=True)
        records, bad = challenge(folder)
        notes = [f"{len(bad)} unreadable headers skipped, first: {bad[0]}"] if bad else []
        if self.labels in PTBXL_TASKS:
            raise InputError(f"--data.labels {self.labels} requires ptbxl_database.csv in the folder", file=folder)
        if self.labels == "codes":
            names = sorted({code for record in records for code in record.codes or []})
            return Listed(self.name, records, by_name(names), notes)
        return Listed(self.name, records, self._challenge_classes(), notes)

    @property
    def is_tree(self) -> bool:
        """Whether the source is a folder without a manifest."""
        return self.manifest is None and self.frame is None

    def _of_manifest(self, external: bool) -> Listed:
        table = Path(str(self.manifest)) if self.frame is None else self.frame
        splits = NO_COLUMN if external else self.split_column
        found = read_manifest(table, self.array, self.label_columns, splits=splits)
        if not external:
            found.require_split(self.name)
        if self.labels in CINC_YEARS:
            classes = self._challenge_classes()
            absent, notes = classes.without_columns(found.names) if found.one_hot else [], list(found.notes)
            if absent:
                names = [name for name, group in zip(classes.names, classes.codes) if group[0] in absent]
                how = "their labels are unknown" if external else "no record has them"
                notes.append(f"no column for the classes {class_list(names)}: {how}")
            unknown = absent if external else []
            records = [
                replace(
                    one,
                    codes=None if one.codes is None else classes.translated(one.codes),
                    unknown=type(one.unknown)([*classes.translated(one.unknown), *unknown]),
                )
                for one in found.records
            ]
            strange = classes.unrecognised(code for one in records for code in one.codes or [])
            if strange:
                named = class_counts(strange)
                notes.append(
                    f"warning: neither a class of {self.labels} nor a SNOMED code, counted as negative: {named}"
                )
            return Listed(self.name, records, classes, notes)
        if self.labels not in (None, "codes") and not external:
            raise InputError(
                f"--data.labels {self.labels}: a manifest supports only its own labels, cinc2020 and cinc2021"
            )
        return Listed(self.name, found.records, by_name(found.names), found.notes, named=True, one_hot=found.one_hot)

    def path(self) -> Path:
        """Folder of a source without a manifest.

        Raises:
            InputError: it does not exist.
        """
        if self.folder is None:
            return find_data_set("ecg", str(self.dataset), self.root)
        folder = Path(self.folder)
        if not folder.is_dir():
            raise InputError("no such folder", file=folder)
        return folder

    def _challenge_classes(self) -> Classes:
        """Return the scored classes of the challenge in `labels` (2021 if it names none)."""
        year = CINC_YEARS[self.labels or "cinc2021"]
        return read_weights(
            Path(self.weights) if self.weights else find_data_set("ecg", f"cinc_tables/{year}/weights.csv", self.root)
        )
