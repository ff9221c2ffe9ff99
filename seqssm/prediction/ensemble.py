"""Prediction with an ensemble: every member predicts every record, and their estimates are averaged."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import nn

from seqssm.errors import InputError, Status
from seqssm.prediction.predictor import Predictor, Record

if TYPE_CHECKING:
    import pyarrow as pa

SPREAD = "_std"
"""Suffix of the columns with the standard deviation over the members."""


class EnsemblePredictor(Predictor):
    """The mean of the members' `Predictor.estimates`, and their sample standard deviation in further columns.

    Columns that follow from estimates (a class, a decision) are derived from the means. A record that a member cannot
    predict has the reason of the first such member.

    Args:
        members: predictors of the same domain with the same columns.
        names: names of the members, for messages.

    Raises:
        InputError: the members have different columns, or an option is not available for ensembles.
    """

    def __init__(self, members: Sequence[Predictor], names: Sequence[str]) -> None:
        first = members[0]
        super().__init__(nn.ModuleList([member.model for member in members]), first.summary, first.options)
        self.members, self.names, self.unit = list(members), list(names), first.unit
        self.days, self.keys = first.days, first.keys
        if not first.estimates:
            raise InputError(
                f"{type(first).__name__} does not support ensembles (no `estimates`); predict with one of the members"
            )
        if first.single() is not None:
            raise InputError(f"{first.single()}: not available for an ensemble; predict with one of its members")
        converted = first.unify(self.members)
        for what, value in first.in_common().items():
            for member, name in zip(self.members, self.names):
                if member.in_common().get(what) != value:
                    here = f"{names[0]}: {value}; {name}: {member.in_common().get(what)}"
                    raise InputError(f"the members of the ensemble differ in their {what} ({here})")
        self._require_equal_columns()
        for line in converted:
            print(line, file=sys.stderr)

    def _require_equal_columns(self) -> None:
        first = self.members[0]
        for member, name in zip(self.members, self.names):
            if member.columns == first.columns:
                continue
            both = f"{self.names[0]} and {name}"
            if sorted(member.columns) == sorted(first.columns):
                raise InputError(f"the members of the ensemble have their outputs in different orders ({both})")
            other = min(set(first.columns) ^ set(member.columns), key=[*first.columns, *member.columns].index)
            raise InputError(f"the members of the ensemble have different outputs ({both}: {other})")

    @property
    def estimates(self) -> list[str]:  # type: ignore[override]
        return list(self.members[0].estimates)

    @property
    def columns(self) -> list[str]:  # type: ignore[override]
        """The columns of a member; each estimate is followed by its standard deviation."""
        averaged = set(self.estimates)
        own = [[name, f"{name}{SPREAD}"] if name in averaged else [name] for name in self.members[0].columns]
        return [name for names in own for name in names]

    def units(self, table: pa.Table) -> Iterable[tuple[Any, bool]]:
        return self.members[0].units(table)

    # -- records -------------------------------------------------------------------------------------------------------

    def records(self, inputs: list[Path]) -> Iterator[Record]:
        yield from self._joined([member.records(inputs) for member in self.members])
        self._require_equal_columns()

    def records_of(self, data: Any) -> Iterator[Record]:
        yield from self._joined([member.records_of(data) for member in self.members])

    def _joined(self, sources: list[Iterator[Record]]) -> Iterator[Record]:
        """Join the members' records, which differ in what the members have prepared."""
        for own in zip(*sources, strict=True):
            bad = next((record for record in own if record.reason is not None), own[0])
            yield replace(own[0], item=list(own), reason=bad.reason, status=bad.status)

    def prepare(self, record: Record) -> Record:
        if isinstance(record.item, list):
            record.item = [member.prepare(own) for member, own in zip(self.members, record.item)]
            self._take_reason(record)
        return record

    @staticmethod
    def _take_reason(record: Record) -> bool:
        """Give the record the reason of the first member that cannot predict it; return whether there is one."""
        bad = next((own for own in record.item if own.reason is not None), None)
        if bad is not None:
            record.reason, record.status = bad.reason, bad.status
        return bad is not None

    # -- rows ----------------------------------------------------------------------------------------------------------

    def predict(self, records: list[Record]) -> list[list[dict[str, Any]] | pd.DataFrame]:
        found = [
            member.predict([record.item[number] for record in records]) for number, member in enumerate(self.members)
        ]
        rows: list[list[dict[str, Any]] | pd.DataFrame] = []
        for index, record in enumerate(records):
            failed = self._take_reason(record)
            rows.append(self.failed(record) if failed else self._average([own[index] for own in found]))
        return rows

    def _average(self, found: list[Any]) -> list[dict[str, Any]] | pd.DataFrame:
        """Average the rows of one record."""
        if isinstance(found[0], pd.DataFrame):
            return self._average_frames(found)
        first, averaged = self.members[0], []
        if len({len(rows) for rows in found}) > 1:
            raise InputError(
                f"the members have different numbers of rows ({', '.join(str(len(rows)) for rows in found)})"
            )
        for rows in zip(*found):
            row = dict(rows[0])
            for key in self.keys:
                if len({own.get(key) for own in rows}) > 1:
                    raise InputError(f"the members have rows of different {key}")
            for name in [name for name in self.estimates if row.get(name) is not None]:
                mean, std = _mean_and_std([np.float64(own[name]) for own in rows])
                row[name], row[f"{name}{SPREAD}"] = float(first.settle(name, mean)), float(std)
            averaged.append({**row, **first.derive(row, self.members)})
        return averaged

    def _average_frames(self, found: list[pd.DataFrame]) -> pd.DataFrame:
        """Average tables whose rows are those with the same `keys`, in any order."""
        first = self.members[0]
        table, places = _aligned(found, [name for name in self.keys if name in found[0]])
        for name in [name for name in self.estimates if name in table]:
            values = [_taken(rows[name].to_numpy(float), place, np.nan) for rows, place in zip(found, places)]
            mean, table[f"{name}{SPREAD}"] = _mean_and_std(values)
            table[name] = first.settle(name, mean)
        reasons = [self._reason(own) for own in zip(*map(_reasons, found, places))]
        if any(reasons):
            table["status"] = [Status.FAILED if reason else Status.OK for reason in reasons]
            table["reason"] = reasons
        derived = [first.derive(row, self.members) for row in table.to_dict("records")]
        return table.assign(**pd.DataFrame(derived, index=table.index)) if any(derived) else table

    def _reason(self, own: tuple[str, ...]) -> str:
        """Return the reason of a row from those of the members: the first one, with the member if they differ."""
        bad = [f"{name}: {reason}" for name, reason in zip(self.names, own) if reason]
        return "" if not bad else own[0] if len(set(own)) == 1 else bad[0]

    def failed(self, record: Record) -> list[dict[str, Any]]:
        own = record.item[0] if isinstance(record.item, list) else record
        return self.members[0].failed(own)

    # -- files ---------------------------------------------------------------------------------------------------------

    def finish(self, tables: Iterator[pa.Table]) -> list[Path]:
        first = self.members[0]
        first.output, first.work = self.output, self.work
        return first.finish(tables)

    def figures(self, record: Record, rows: Any, folder: Path) -> list[Path]:
        own = [one.item for one in record.item]
        merged = replace(record.item[0], item=self.members[0].merge(own))
        return self.members[0].figures(merged, rows, folder)


def _aligned(found: Sequence[pd.DataFrame], keys: list[str]) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Match the rows of several tables.

    Args:
        found: the tables.
        keys: columns by whose values rows are matched; rows with equal values are matched in order.

    Returns:
        (All rows: those of the first table, then those that only another one has; the position of each of them in every
        table, -1 where a table lacks it.)
    """
    indices = []
    for rows in found:
        number = rows.groupby(keys, sort=False, dropna=False).cumcount() if keys else range(len(rows))
        indices.append(pd.MultiIndex.from_arrays([*(rows[key] for key in keys), number]))
    table, index = found[0].copy(), indices[0]
    for rows, own in zip(found[1:], indices[1:]):
        more = ~own.isin(index)
        if more.any():
            table, index = pd.concat([table, rows[more]], ignore_index=True), index.append(own[more])
    return table, [own.get_indexer(index) for own in indices]


def _taken(values: np.ndarray, place: np.ndarray, absent: Any) -> np.ndarray:
    """Return the values at positions, `absent` at those below 0."""
    found = values[place]
    found[place < 0] = absent
    return found


def _reasons(rows: pd.DataFrame, place: np.ndarray) -> np.ndarray:
    """Return the reasons of a member's rows at positions; ``""`` for rows that are ok."""
    own = rows["reason"].to_numpy(object) if "reason" in rows else np.full(len(rows), "", dtype=object)
    return _taken(own, place, "the model has no such row")


def _mean_and_std(values: list[Any]) -> tuple[Any, Any]:
    """Return the elementwise mean and sample standard deviation of the members' values."""
    table = np.stack(values)
    return table[0] + (table - table[0]).mean(0), table.std(0, ddof=1)  # the mean of equal values is that value
