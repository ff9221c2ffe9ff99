"""Single-label tasks: the chosen classes, the records with exactly one class, and records of a new class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from seqssm.errors import InputError, nearest
from seqssm.metrics.classes import class_list
from seqssm_ecg.labels import Classes
from seqssm_ecg.recording import Recording
from seqssm_ecg.sources import LabelledRecord


def chosen(classes: Classes, names: Sequence[str] | None, source: str) -> Classes:
    """Return some of the classes, in the order of the source.

    Args:
        classes: all classes of the source.
        names: names of those to keep; None for all.
        source: name of the source, for messages.

    Raises:
        InputError: a name is not a class.
    """
    if names is None:
        return classes
    for name in names:
        if name not in classes.names:
            hint = nearest(name, classes.names) or f" (there are {class_list(classes.names[:12])})"
            raise InputError(f"--data.only_classes {name}: no such class{hint}", file=source)
    return classes.only([name in names for name in classes.names])


def with_one_class(
    records: Sequence[LabelledRecord], y: np.ndarray, every: Classes, source: str, notes: list[str]
) -> tuple[list[LabelledRecord], np.ndarray]:
    """Keep the records that have exactly one class of the source, if it is one of the task's.

    Args:
        records: labelled records.
        y: their labels, (n, m); NaN where unknown.
        every: all classes of the source, of which the task may use some.
        source: name of the source, for messages.
        notes: list to which a note on the dropped records is appended.

    Raises:
        InputError: no record has exactly one class.
    """
    known = {code for group in every.codes for code in group}
    rows = [every.vector(known & set(record.codes or []), record.unknown) for record in records]
    counts = np.array([row.sum() for row in rows])  # NaN with an unknown label, which is not exactly one class
    keep = (y.sum(1) == 1) & (counts <= 1)
    if not keep.any():
        raise InputError("no record has exactly one class", file=source)
    if not keep.all():
        none, unknown = int((y.sum(1) == 0).sum()), int((np.isnan(counts) | np.isnan(y.sum(1))).sum())
        several = int((~keep).sum()) - none - unknown
        found = [f"{none} with none of the task", f"{several} with several"]
        found += [f"{unknown} with unknown labels"] if unknown else []
        notes.append(f"records without exactly one class dropped: {', '.join(found)}")
    return [record for record, kept in zip(records, keep) if kept], y[keep]


def require_rate(recordings: Iterable[Recording], rate_hz: float) -> None:
    """Check that recordings have at least the sampling rate of the model.

    Args:
        recordings: opened recordings.
        rate_hz: sampling rate of the network's input.

    Raises:
        InputError: a recording has a lower rate.
    """
    for recording in recordings:
        if recording.rate_hz < rate_hz:
            raise InputError(
                f"is sampled at {recording.rate_hz:g} Hz, and the model reads {rate_hz:g} Hz; records of a new class "
                "need at least that rate",
                file=recording.path,
            )
