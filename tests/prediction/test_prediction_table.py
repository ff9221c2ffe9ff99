"""Typed batches, part files that survive truncation, and the finished table."""

from __future__ import annotations

import datetime
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from seqssm.prediction.predictor import Record
from seqssm.prediction.table import Parts, PartWriter, cell, common_schema, conform, scan, tabulate

COLUMNS = ["a", "b"]


def batch(first: int, rows: list[list[dict]], reasons: dict[int, str] | None = None) -> pa.Table:
    records = [Record(first + n, f"id{first + n}", None, (reasons or {}).get(n)) for n in range(len(rows))]
    return tabulate(records, rows, COLUMNS)


def write(folder, *tables) -> None:
    parts = PartWriter(folder / f"{len(list(folder.iterdir()))}.part")
    for number, table in tables:
        parts.write(number, table)
    parts.close()


def test_order_types_and_empty_cells(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder, (2, batch(3, [[{"a": "text", "b": None}]])), (1, batch(2, [[{"a": 1, "b": np.float32(0.1)}]])))
    write(folder, (0, batch(0, [[], [{"a": 2, "b": 1}, {"a": 3, "b": math.nan}]], {0: 'why, "so"'})))
    assert Parts(folder).write(tmp_path / "t.csv", COLUMNS, 4) == (4, 1)
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == (
        "index,id,a,b,status,reason\n"
        '0,id0,,,failed,"why, ""so"""\n'
        "1,id1,2,1.0,ok,\n"
        "1,id1,3,,ok,\n"
        "2,id2,1,0.10000000149011612,ok,\n"
        "3,id3,text,,ok,\n"
    )


def test_parquet_row_groups_and_types(tmp_path, monkeypatch):
    monkeypatch.setattr("seqssm.prediction.table.ROW_GROUP", 3)
    folder = tmp_path / "parts"
    folder.mkdir()
    day = pd.Timestamp("2020-02-03 04:05")
    write(folder, *((n, batch(n, [[{"a": day, "b": np.float32(n)}]])) for n in range(7)))
    Parts(folder).write(tmp_path / "t.parquet", COLUMNS, 7)
    frame = pd.read_parquet(tmp_path / "t.parquet")
    assert frame["a"].tolist() == [day] * 7
    assert frame["b"].dtype == np.float32
    assert pa.parquet.ParquetFile(tmp_path / "t.parquet").num_row_groups == 3


@pytest.mark.parametrize("cut", [1, 20, 40, 200])
def test_a_truncated_frame_counts_as_not_written(tmp_path, cut):
    path = tmp_path / "0.part"
    parts = PartWriter(path)
    for number in range(3):
        parts.write(number, batch(number, [[{"a": 1, "b": 2}]]))
    parts.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert [number for number, *_ in scan(path)] == [0, 1]
    damaged = bytearray(whole)
    damaged[-cut] ^= 255
    path.write_bytes(damaged)
    assert [number for number, *_ in scan(path)] == [0, 1]


def test_a_frame_of_zeros_counts_as_not_written(tmp_path):
    """After a power failure a file may end in zeros: length 0 and the CRC-32 of nothing."""
    path = tmp_path / "0.part"
    writer = PartWriter(path)
    writer.write(0, batch(0, [[{"a": 1}]]))
    writer.close()
    path.write_bytes(path.read_bytes() + b"seqssm1\n" + bytes(40))
    assert [number for number, *_ in scan(path)] == [0]
    assert len(list(Parts(tmp_path).tables())) == 1


def test_a_batch_written_twice_counts_once(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    table = batch(0, [[{"a": 1, "b": 2}]])
    write(folder, (0, table))
    write(folder, (0, table))
    assert Parts(folder).write(tmp_path / "t.csv", COLUMNS, 1) == (1, 0)


def test_a_missing_record_is_an_error(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder, (0, batch(0, [[{}]])), (2, batch(2, [[{}]])))
    with pytest.raises(RuntimeError, match="found record 2, expected record 1"):
        Parts(folder).write(tmp_path / "t.csv", COLUMNS, 3)
    with pytest.raises(RuntimeError):
        Parts(folder).write(tmp_path / "t.csv", COLUMNS, 2)
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(
    ("types", "common"),
    [
        ((pa.null(), pa.float32()), pa.float32()),
        ((pa.float32(), pa.null()), pa.float32()),
        ((pa.float32(), pa.float64()), pa.float64()),
        ((pa.int64(), pa.float32()), pa.float64()),
        ((pa.int64(), pa.int32()), pa.int64()),
        ((pa.string(), pa.float32()), pa.string()),
        ((pa.bool_(), pa.int64()), pa.string()),
        ((pa.timestamp("us"), pa.timestamp("ns")), pa.timestamp("ns")),
        ((pa.null(), pa.null()), pa.null()),
    ],
)
def test_common_types(types, common):
    assert common_schema(pa.schema({"x": kind}) for kind in types).field("x").type == common
    table = pa.table({"x": pa.nulls(1, types[0])})
    assert conform(table, pa.schema({"x": common})).schema.field("x").type == common


def test_values_of_torch_and_pandas():
    values = [torch.tensor(1.5), np.array(2.5), pd.NaT, pd.NA, None]
    column = batch(0, [[{"a": value}] for value in values])["a"]
    assert column.to_pylist() == [1.5, 2.5, None, None, None]
    assert batch(0, [[{"a": np.datetime64("2020-01-01")}]])["a"].to_pylist() == [datetime.datetime(2020, 1, 1)]
    assert batch(0, [[{"a": 2**70}], [{"a": 1}]])["a"].to_pylist() == [str(2**70), "1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (math.nan, ""),
        (math.inf, "inf"),
        (0.1, "0.1"),
        (np.float32(0.1), "0.1"),
        (1e-30, "1e-30"),
        (True, "True"),
        (datetime.datetime(2018, 6, 26, 20), "2018-06-26 20:00:00"),
        (pd.Timestamp("2018-06-26 20:00:00.000000001"), "2018-06-26 20:00:00.000000001"),
    ],
)
def test_cells(value, text):
    assert cell(value) == text


def test_file_names_that_are_not_utf8_are_written_escaped():
    name = b"b\xff.fa".decode("utf-8", "surrogateescape")
    record = Record(0, name, None)
    flat = tabulate([record], [[{"value": name}]], ["value"])
    assert flat["value"].to_pylist() == flat["id"].to_pylist() == ["b\\udcff.fa"]
