"""What `extend` and `fit --resume` ask of the data module: classes, a larger summary, whole records, a digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from seqssm.files.fingerprint import of_parts, spread
from seqssm.training.data import DataModule
from seqssm_ecg.duplicates import first_samples
from seqssm_ecg.listing import Source
from seqssm_ecg.preprocess import Preprocess
from seqssm_ecg.records import Records, WholeRecords
from seqssm_ecg.single import require_rate

RECORDS = 64  # of a split, whose signals are compared


class Extensible(DataModule):
    """Base of `seqssm_ecg.data.EcgData`."""

    paths: ClassVar = (*DataModule.paths, "manifest", "folder", "weights")
    labelled_argument: ClassVar[str | None] = "manifest"
    source: Source
    records: Records
    preprocess: Preprocess
    split: dict[str, list[int]]
    window: int
    stride: int

    def class_names(self) -> list[str]:
        return list(self.source.listed(external=True).classes.names)

    @classmethod
    def grown_summary(cls, summary: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        known = dict(zip(summary["classes"], summary["codes"]))
        return {**summary, "classes": list(names), "codes": [list(known.get(name, [name])) for name in names]}

    def plain_train_set(self) -> WholeRecords:
        return WholeRecords(self.records, self.train_set.positions, self.train_set.y, self.window, self.stride)

    def require_support(self) -> None:
        require_rate((self.records.open(position) for position in self.split["test"]), self.preprocess.rate_hz)

    def inputs(self, split: str) -> str:
        """Return a digest of signals in mV: the first samples of at most 64 records."""
        positions = sorted(self.split[split], key=lambda position: self.records.labelled[position].id)
        chosen = (positions[index] for index, _ in spread([1] * len(positions), RECORDS))
        return of_parts(part for position in chosen for part in first_samples(self.records.open(position)))
