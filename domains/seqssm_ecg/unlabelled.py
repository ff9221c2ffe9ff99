"""The data module of pretraining: recordings in three splits, without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg import files
from seqssm_ecg.data import EcgData
from seqssm_ecg.labels import Classes
from seqssm_ecg.listing import NO_SOURCE, Listed
from seqssm_ecg.sources import LabelledRecord, ptbxl, read_manifest


class EcgRecordings(EcgData):
    """Recordings without labels: a folder of files of any format, a table of paths, or a PTB-XL tree with its folds.

    Labels are not read. In a folder, each recording counts as a patient of its own; a table may have the columns
    ``patient``, ``split`` or ``fold``. Of a PTB-XL tree, folds 1-8 are trained on, as in the benchmark.
    """

    def _listed(self) -> Listed:
        source = self.source
        if self.one_lead:
            raise InputError(
                "--data.one_lead: pretraining uses all leads; give the option to the classifier that follows"
            )
        if source.frame is not None or source.manifest is not None:
            table = source.frame if source.frame is not None else Path(str(source.manifest))
            found = read_manifest(table, source.array, labelled=False, splits=source.split_column)
            found.require_split(source.name)
            return Listed(source.name, found.records, Classes([], []), found.notes)
        if source.folder is None and source.dataset is None:
            raise InputError(NO_SOURCE)
        folder = source.path()
        if source.is_ptbxl:
            return Listed(source.name, ptbxl(folder, source.rate_hz), Classes([], []))
        return Listed(source.name, self._in_folder(folder), Classes([], []))

    def _in_folder(self, folder: Path) -> list[LabelledRecord]:
        """List the recordings below a folder, named by their path within it."""
        records = []
        for path in files.inputs([folder]):
            name = path.relative_to(folder).as_posix()
            array = None if path.suffix.lower() == ".hea" else self.source.array
            records.append(LabelledRecord(path, name, [], name, array=array))
        return records

    def _labelled(self, records: list[LabelledRecord], classes: Classes) -> tuple[list[LabelledRecord], np.ndarray]:
        """Return all records, with labels of no class, (n, 0)."""
        return records, np.zeros((len(records), 0), np.float32)

    def _trainable(self, classes: Classes, y: np.ndarray, train: list[int]) -> tuple[Classes, Any]:
        return classes, y

    def _report_classes(self, classes: Classes, y: np.ndarray) -> None:
        """Report nothing: there are no classes."""
