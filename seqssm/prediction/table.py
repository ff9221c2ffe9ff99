"""Prediction tables: typed batches, crash-safe part files, and the finished .csv or .parquet file.

A part file is a sequence of frames, one per batch: magic, batch index, length, CRC-32, then the batch as an Arrow
stream. A frame truncated by a kill fails its length or checksum test and counts as not written.
"""

from __future__ import annotations

import csv
import datetime
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqssm.errors import Status
from seqssm.files import disk
from seqssm.files.disk import atomic, encodable, writing
from seqssm.files.outputs import TABLES
from seqssm.prediction.record import Record, units_of

STATUS = ("status", "reason")
"""Columns after the domain's own; a frame of rows may already contain them."""
HEAD = struct.Struct("<8sQQI")  # magic, batch index, length of the payload, its CRC-32
MAGIC = b"seqssm1\n"
ROW_GROUP = 65_536  # rows held in memory while the final file is written


def require_suffix(path: Path) -> None:
    """Raise InputError unless `path` is named ``.csv`` or ``.parquet``."""
    disk.require_suffix(path, TABLES)


Rows: TypeAlias = list[dict[str, Any]] | pd.DataFrame
"""The rows of a record: dicts, or a frame if there are many."""


def tabulate(records: list[Record], rows: Sequence[Rows], columns: list[str]) -> pa.Table:
    """Build the table of a batch with ``index, id`` before and ``status, reason`` after; one row or more per record."""
    if any(isinstance(own, pd.DataFrame) for own in rows):
        parts = [
            _of_frame(record, own, columns) if isinstance(own, pd.DataFrame) else tabulate([record], [own], columns)
            for record, own in zip(records, rows, strict=True)
        ]
        schema = common_schema(part.schema for part in parts)
        return pa.concat_tables([conform(part, schema) for part in parts])
    flat = [(record, row) for record, own in zip(records, rows, strict=True) for row in _dicts(own)]
    data: dict[str, pa.Array] = {
        "index": pa.array([record.index for record, _ in flat], pa.int64()),
        "id": pa.array([encodable(record.id) for record, _ in flat], pa.string()),
    }
    for name in columns:
        data[name] = _column([row.get(name) for _, row in flat])
    data["status"] = pa.array([_status(record) for record, _ in flat], pa.string())
    data["reason"] = pa.array([encodable(record.reason or "") for record, _ in flat], pa.string())
    return pa.table(data)


def _status(record: Record) -> Status:
    return record.status if record.reason else Status.OK


def _dicts(own: Rows) -> list[dict[str, Any]]:
    assert isinstance(own, list)
    return own or [{}]


def _of_frame(record: Record, frame: pd.DataFrame, columns: list[str]) -> pa.Table:
    """Build the table of a record whose rows are a frame; absent columns are empty."""
    if not len(frame):
        return tabulate([record], [[]], columns)
    data: dict[str, pa.Array] = {
        "index": pa.array(np.full(len(frame), record.index), pa.int64()),
        "id": pa.array([encodable(record.id)] * len(frame), pa.string()),
    }
    for name in columns:
        data[name] = pa.array(frame[name], from_pandas=True) if name in frame else pa.nulls(len(frame))
    # a frame may have a status per row if parts of the record failed
    status = frame["status"] if "status" in frame else [_status(record)] * len(frame)
    unknown = set(status) - set(Status)
    if unknown:
        raise RuntimeError(f"status {unknown.pop()!r}: not in the table seqssm.errors.Status")
    reason = frame["reason"] if "reason" in frame else [record.reason or ""] * len(frame)
    data["status"] = pa.array(list(status), pa.string())
    data["reason"] = pa.array([encodable(one) for one in reason], pa.string())
    return pa.table(data)


def _column(values: list[Any]) -> pa.Array:
    values = [_value(value) for value in values]
    try:
        return pa.array(values)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):  # mixed types: as text
        return pa.array([None if value is None else str(value) for value in values], pa.string())


def _value(value: Any) -> Any:
    """Convert tensors to Python values for Arrow; NumPy scalars stay, so that a float32 is printed as one."""
    if value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, np.datetime64):
        return pd.Timestamp(value)
    if hasattr(value, "tolist") and not isinstance(value, np.generic):
        return value.tolist()
    return value


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Merge the schemas of all batches: null yields to any type, numbers widen, all other conflicts become text."""
    merged: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            merged[field.name] = _wider(merged.get(field.name, field.type), field.type)
    return pa.schema(merged)


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    numbers = [pa.types.is_integer(t) or pa.types.is_floating(t) for t in (one, other)]
    if all(numbers):
        if pa.types.is_integer(one) and pa.types.is_integer(other):
            return pa.int64()
        if pa.types.is_floating(one) and pa.types.is_floating(other):
            return max(one, other, key=lambda t: t.bit_width)
        return pa.float64()
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other) and one.tz == other.tz:
        return pa.timestamp("ns", one.tz)
    return pa.string()


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Cast `table` to the columns and types of `schema`."""
    columns = []
    for field in schema:
        column = table.column(field.name)
        if pa.types.is_string(field.type) and not pa.types.is_string(column.type):
            column = pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.string())
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=schema)


class PartWriter:
    """Appends batches to a part file; each is on disk when `write` returns.

    Args:
        path: a new file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            self.file: IO[bytes] = open(path, "xb")  # noqa: SIM115 - open as long as batches come

    def write(self, batch: int, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        payload = sink.getvalue().to_pybytes()
        with writing(self.path):
            self.file.write(HEAD.pack(MAGIC, batch, len(payload), zlib.crc32(payload)) + payload)
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self) -> None:
        with writing(self.path):
            self.file.close()


def scan(path: Path) -> Iterator[tuple[int, int, int]]:
    """Yield (batch index, offset, length) of the complete frames of a part file, up to the first broken one."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while True:
            head = file.read(HEAD.size)
            if len(head) < HEAD.size:
                return
            magic, batch, length, checksum = HEAD.unpack(head)
            offset = file.tell()
            # zeros after the magic, as a power failure leaves them, would pass the test of the sum
            whole = magic == MAGIC and 0 < length <= size - offset
            if not whole or zlib.crc32(file.read(length)) != checksum:
                return
            yield batch, offset, length


class Parts:
    """All part files of a prediction, readable by batch index.

    Args:
        folder: folder of the part files. Duplicate batches (left by a writer that outlived its job) are identical.
    """

    def __init__(self, folder: Path) -> None:
        self.places: dict[int, tuple[Path, int, int]] = {}
        for path in sorted(folder.glob("*.part")):
            for batch, offset, length in scan(path):
                self.places[batch] = (path, offset, length)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the batches in order."""
        opened: dict[Path, IO[bytes]] = {}
        try:
            for batch in sorted(self.places):
                path, offset, length = self.places[batch]
                if path not in opened:
                    opened[path] = open(path, "rb")  # noqa: SIM115 - closed below
                opened[path].seek(offset)
                with pa.ipc.open_stream(opened[path].read(length)) as stream:
                    yield stream.read_all()
        finally:
            for file in opened.values():
                file.close()

    def failures(self, most: int) -> list[str]:
        """Return the first rows that are not ok, as ``id: reason``, each once.

        Args:
            most: maximum number of them.
        """
        found: dict[str, None] = {}
        for table in self.tables():
            for name, status, reason in zip(*(table[column].to_pylist() for column in ("id", *STATUS))):
                if status != Status.OK:
                    found[f"{name}: {reason or status}"] = None
                if len(found) == most:
                    return list(found)
        return list(found)

    def write(
        self,
        output: Path,
        columns: list[str],
        records: int,
        units: Callable[[pa.Table], Iterable[tuple[Any, bool]]] = units_of,
        progress: Callable[[], None] = lambda: None,
        days: Sequence[str] = (),
    ) -> tuple[int, int]:
        """Merge all batches into `output`, which is created once complete.

        Args:
            output: ``.csv`` or ``.parquet``.
            columns: the predictor's columns, for a table without rows.
            records: expected number of records.
            units: unit counted in a batch (`Predictor.units`).
            progress: called for each batch.
            days: columns of timestamps that a .csv shows as dates (`Predictor.days`).

        Returns:
            (number of units, number of those that are not ok).
        """
        schemas, dates = [tabulate([], [], columns).schema], list(days)
        for table in self.tables():
            schemas.append(table.schema)
            dates = [name for name in dates if at_midnight(table[name])]
        schema = common_schema(schemas)
        seen = 0
        good: dict[Any, bool] = {}
        with atomic(output, "w" if output.suffix == ".csv" else "wb") as file:
            sink = CsvSink(file, schema, dates) if output.suffix == ".csv" else ParquetSink(file, schema)
            for table in self.tables():
                progress()
                last = -1
                for index in table["index"].to_pylist():
                    if index not in (seen, last):
                        raise RuntimeError(f"found record {index}, expected record {seen}")
                    if index != last:
                        seen, last = seen + 1, index
                for unit, ok in units(table):
                    good[unit] = good.get(unit, True) and ok
                sink.write(conform(table, schema))
            sink.close()
            if seen != records:
                raise RuntimeError(f"{seen} of {records} records were written")
        return len(good), sum(not ok for ok in good.values())


class CsvSink:
    """Writes tables as CSV: shortest digits that round-trip, empty cells for missing values.

    Args:
        file: the file.
        schema: columns of all tables.
        dates: columns of timestamps at midnight, written without the time of day.
    """

    def __init__(self, file: IO[str], schema: pa.Schema, dates: Sequence[str] = ()) -> None:
        self.dates = dates
        self.writer = csv.writer(file, lineterminator="\n")
        self.writer.writerow(schema.names)

    def write(self, table: pa.Table) -> None:
        columns = []
        for field, column in zip(table.schema, table.columns):
            if field.name in self.dates and pa.types.is_timestamp(field.type):
                column = column.cast(pa.date32())
            single = pa.types.is_float32(field.type) or pa.types.is_float16(field.type)
            columns.append([cell(np.float32(v) if single and v is not None else v) for v in column.to_pylist()])
        self.writer.writerows(zip(*columns))

    def close(self) -> None:
        """Do nothing: rows are not buffered."""


def at_midnight(column: pa.ChunkedArray) -> bool:
    """Return whether a column has timestamps without time zone, all of them at midnight, or no values at all."""
    if pa.types.is_null(column.type):
        return True
    if not pa.types.is_timestamp(column.type) or column.type.tz is not None:
        return False
    days = column.cast(pa.date32(), safe=False).cast(column.type)
    return bool(pc.all(pc.equal(days, column)).as_py() in (True, None))


def cell(value: Any) -> str:
    """Format `value` as a CSV cell."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return ""
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ")
    return str(value)


class ParquetSink:
    """Writes tables as Parquet, in row groups of `ROW_GROUP` rows."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        self.writer = pq.ParquetWriter(file, schema)
        self.schema = schema
        self.waiting: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        self.waiting.append(table)
        if sum(len(t) for t in self.waiting) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self.waiting:
            self.writer.write_table(pa.concat_tables(self.waiting), row_group_size=ROW_GROUP)
            self.waiting = []

    def close(self) -> None:
        self._flush()
        self.writer.close()
