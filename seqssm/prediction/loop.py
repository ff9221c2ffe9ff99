"""From records to rows: batches in input order, reading in loader processes, no record lost to another's failure."""

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

from seqssm.errors import InputError
from seqssm.files.disk import loader_was_killed, refusal
from seqssm.prediction.predictor import Predictor, Record
from seqssm.prediction.table import STATUS, Rows

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of no record's making: the whole job stops
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass
class Outcome:
    """What came of a batch.

    Attributes:
        batch: its number.
        records: its records, in input order.
        rows: the rows of each.
        traces: tracebacks of failures that no user can help.
    """

    batch: int
    records: list[Record]
    rows: list[Rows]
    traces: list[str] = field(default_factory=list)


def batched(records: Iterable[Record], size: int) -> Iterator[tuple[int, list[Record]]]:
    """(number, records) of the batches: always the same ones, whatever the number of processes.

    Raises:
        RuntimeError: a record's index is not its place; the domain's predictor is wrong.
    """
    number, batch = 0, []
    for place, record in enumerate(records):
        if record.index != place:
            raise RuntimeError(f"record {record.id} has the index {record.index}, and is number {place}")
        batch.append(record)
        if len(batch) == size:
            yield number, batch
            number, batch = number + 1, []
    if batch:
        yield number, batch


class _Prepared(Dataset):
    """Reads the records of a batch, in whichever process the loader runs it; the network stays at home."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = copy.copy(predictor)
        self.predictor.model = None  # type: ignore[assignment]

    def __getitem__(self, record: Record) -> tuple[Record, str | InputError | None]:
        """The record read; with the traceback of our own failure, or with what must stop the whole job."""
        if record.reason is not None:
            return record, None
        try:
            return self.predictor.prepare(record), None
        except Exception as error:
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
    """Predicts batch by batch; a few batches are read ahead, none is kept.

    Args:
        predictor: of the domain.
        batches: from `batched`, or some of them.
        num_workers: loader processes for `Predictor.prepare`.
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
        if figures is not None:
            for record, rows in zip(outcome.records, outcome.rows):
                if record.reason is None:
                    _draw(predictor, record, rows, figures, outcome)
        yield outcome


def _predict(predictor: Predictor, outcome: Outcome, precision: str) -> None:
    """Fills in the rows of a batch."""
    todo = [place for place, record in enumerate(outcome.records) if record.reason is None]
    if _attempt(predictor, outcome, todo, precision) is not None:
        for place in todo:  # one of them spoilt it for all: each on its own
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
    """Predicts the records at `places`; what went wrong with one of them, if anything did."""
    if not places:
        return None
    records = [outcome.records[place] for place in places]
    name = type(predictor).__name__
    try:
        with torch.inference_mode(), _cast(predictor, precision):
            found = predictor.predict(records)
        if len(found) != len(records):
            raise RuntimeError(f"{name}.predict gave the rows of {len(found)} records for {len(records)}")
        for place, rows in zip(places, found):
            outcome.rows[place] = checked(predictor, rows)
    except Exception as error:
        if not _of_a_record(error):
            raise
        return error
    return None


def _cast(predictor: Predictor, precision: str) -> AbstractContextManager:
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(predictor.device.type, dtype=dtype)


def checked(predictor: Predictor, rows: Rows) -> Rows:
    """`rows`, when all their names are columns of the predictor."""
    for row in [rows] if isinstance(rows, pd.DataFrame) else rows:
        for name in row:
            if name not in predictor.columns and not (name in STATUS and isinstance(rows, pd.DataFrame)):
                raise RuntimeError(f"{type(predictor).__name__} gave a value {name!r} that is not in its columns")
    return rows


def _draw(predictor: Predictor, record: Record, rows: Rows, folder: Path, outcome: Outcome) -> None:
    try:
        predictor.figures(record, rows, folder)
    except Exception as error:  # the prediction itself is fine, and stays
        if not _of_a_record(error):
            raise
        outcome.traces.append(f"figure of record {record.index} ({record.id})\n{traceback.format_exc()}")


def _blame(record: Record, error: Exception) -> str | None:
    """Gives `record` its reason; the traceback when the fault is not the input's."""
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
    """Whether an error may be a single record's fault: not a full disk, a failed device, a killed reading process."""
    if loader_was_killed(error):
        return False
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return False
        if isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError):
            return False
        error = error.__cause__ or error.__context__
    return True
