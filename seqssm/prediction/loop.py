"""From records to rows: batches in input order, read by loader processes; failures are isolated per record."""

from __future__ import annotations

import copy
import errno
import traceback
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset

from seqssm.environment import INTERRUPTS
from seqssm.errors import InputError
from seqssm.files.disk import loader_was_killed, refusal
from seqssm.prediction.predictor import Predictor, Record
from seqssm.prediction.table import STATUS, Rows

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # not specific to a record: the job stops
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass
class Outcome:
    """The result of a batch.

    Attributes:
        batch: index of the batch.
        records: the records, in input order.
        rows: the rows of each record.
        traces: tracebacks of internal errors.
    """

    batch: int
    records: list[Record]
    rows: list[Rows]
    traces: list[str] = field(default_factory=list)


def batched(records: Iterable[Record], size: int) -> Iterator[tuple[int, list[Record]]]:
    """Yield (index, records) of the batches, which do not depend on the number of processes.

    Raises:
        RuntimeError: a record's index is not its position, which is a bug in the domain's predictor.
    """
    number, batch = 0, []
    for place, record in enumerate(records):
        if record.index != place:
            raise RuntimeError(f"record {record.id} has index {record.index}, but its position is {place}")
        batch.append(record)
        if len(batch) == size:
            yield number, batch
            number, batch = number + 1, []
    if batch:
        yield number, batch


class _Prepared(Dataset):
    """Reads the records of a batch in a loader process; the network is not copied there."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = copy.copy(predictor)
        self.predictor.model = None  # type: ignore[assignment]

    def __getitem__(self, record: Record) -> tuple[Record, str | InputError | None]:
        """Read a record; also return the traceback of an internal error, or the error that must stop the job."""
        if record.reason is not None:
            return record, None
        try:
            return self.predictor.prepare(record), None
        except Exception as error:
            INTERRUPTS.check()
            record.item = None
            if not _of_a_record(error):
                return record, InputError(refusal(error) or str(error))
            return record, _blame(record, error)

    def __getitems__(self, batch: tuple[int, list[Record]]) -> tuple[int, list[tuple[Record, str | InputError | None]]]:
        return batch[0], [self[record] for record in batch[1]]


def _as_it_is(batch: Any) -> Any:
    return batch


def outcomes(
    predictor: Predictor,
    batches: Iterable[tuple[int, list[Record]]],
    num_workers: int = 0,
    precision: str = "32-true",
    figures: Path | None = None,
) -> Iterator[Outcome]:
    """Predict batch by batch, prefetching a few batches.

    Args:
        predictor: predictor of the domain.
        batches: batches from `batched`, or some of them.
        num_workers: number of loader processes for `Predictor.prepare`.
        precision: a key of `PRECISIONS`.
        figures: folder for the records' figures, or None.
    """
    loader = DataLoader(
        _Prepared(predictor),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_as_it_is,
        generator=torch.Generator(),
    )
    for number, prepared in loader:
        outcome = Outcome(number, [record for record, _ in prepared], [[] for _ in prepared])
        for _, trouble in prepared:
            if isinstance(trouble, InputError):
                raise trouble
            if trouble:
                outcome.traces.append(trouble)
        _predict(predictor, outcome, precision)
        INTERRUPTS.check()
        if figures is not None:
            for record, rows in zip(outcome.records, outcome.rows):
                if record.reason is None:
                    _draw(predictor, record, rows, figures, outcome)
                    INTERRUPTS.check()
        yield outcome


def _predict(predictor: Predictor, outcome: Outcome, precision: str) -> None:
    """Predict the rows of a batch."""
    todo = [place for place, record in enumerate(outcome.records) if record.reason is None]
    if _attempt(predictor, outcome, todo, precision) is not None:
        for place in todo:  # a record made the batch fail: predict them one by one
            outcome.records[place].reason = None
            error = _attempt(predictor, outcome, [place], precision)
            if error is not None and (trace := _blame(outcome.records[place], error)):
                outcome.traces.append(trace)
    for place, record in enumerate(outcome.records):
        if record.reason is not None:
            try:
                outcome.rows[place] = checked(predictor, predictor.failed(record))
            except Exception:
                outcome.traces.append(traceback.format_exc())
                outcome.rows[place] = [{}]


def _attempt(predictor: Predictor, outcome: Outcome, places: list[int], precision: str) -> Exception | None:
    """Predict the records at `places`; return the error if one of them failed."""
    if not places:
        return None
    records = [outcome.records[place] for place in places]
    name = type(predictor).__name__
    try:
        with torch.inference_mode(), _cast(predictor, precision):
            found = predictor.predict(records)
        if len(found) != len(records):
            raise RuntimeError(f"{name}.predict returned rows for {len(found)} records, expected {len(records)}")
        for place, rows in zip(places, found):
            outcome.rows[place] = checked(predictor, rows)
    except Exception as error:
        INTERRUPTS.check()
        if not _of_a_record(error):
            raise
        return error
    return None


def _cast(predictor: Predictor, precision: str) -> AbstractContextManager:
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(predictor.device.type, dtype=dtype)


def checked(predictor: Predictor, rows: Rows) -> Rows:
    """Check that the names in `rows` are columns of the predictor."""
    for row in [rows] if isinstance(rows, pd.DataFrame) else rows:
        for name in row:
            if name not in predictor.columns and not (name in STATUS and isinstance(rows, pd.DataFrame)):
                raise RuntimeError(f"{type(predictor).__name__} returned a value {name!r}, which is not in its columns")
    return rows


def _draw(predictor: Predictor, record: Record, rows: Rows, folder: Path, outcome: Outcome) -> None:
    try:
        predictor.figures(record, rows, folder)
    except Exception as error:  # the prediction itself is valid and kept
        if not _of_a_record(error):
            raise
        outcome.traces.append(f"figure of record {record.index} ({record.id})\n{traceback.format_exc()}")


def _blame(record: Record, error: Exception) -> str | None:
    """Set the reason of `record`; return the traceback of an internal error."""
    if isinstance(error, InputError):
        record.reason = str(error)
        return None
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        record.reason = "out of memory"
        return None
    text = " ".join(str(error).split())[:200]
    record.reason = f"internal error ({type(error).__name__}: {text})"
    return f"record {record.index} ({record.id})\n{''.join(traceback.format_exception(error))}"


def _of_a_record(error: BaseException | None) -> bool:
    """Whether a single record may have caused an error, unlike a full disk, a failed device or a killed loader."""
    if loader_was_killed(error):
        return False
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return False
        if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
            return False
        error = error.__cause__ or error.__context__
    return True
