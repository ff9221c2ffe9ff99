"""A record of the user's input, and what counts as one in a table of predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seqssm.errors import Status

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class Record:
    """One record of the user's input: a series file, a FASTA record, a WFDB record, a case.

    Attributes:
        index: position in input order, from 0.
        id: the user's name for the record.
        item: input of `Predictor.predict`; should be small until `Predictor.prepare` has read the record.
        reason: why the record cannot be predicted; it keeps its row, with this reason. None otherwise.
        status: kind of the reason; counts only where there is one.
    """

    index: int
    id: str
    item: Any = None
    reason: str | None = None
    status: Status = Status.FAILED


def units_of(table: pa.Table, column: str | None = None) -> Iterator[tuple[Any, bool]]:
    """Yield (unit, whether the row is ok) of every row; a unit is a record, or a value of `column` in a record."""
    own = table[column] if column is not None and column in table.column_names else table["index"]
    for index, name, status in zip(table["index"].to_pylist(), own.to_pylist(), table["status"].to_pylist()):
        yield (index, name), status == Status.OK
