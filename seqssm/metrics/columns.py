"""Columns of the outputs of a model, the same in every domain's tables of predictions and of test records.

One target of a model has one of three kinds:

========  ====================  ====================================  ==================  ==================
kind      a record has          estimates                             decisions           labels (test only)
========  ====================  ====================================  ==================  ==================
class     exactly one class     ``p_<CLASS>``                         ``prediction``      ``label``
labels    any number of labels  ``p_<LABEL>``                         ``positive_<LABEL>``  ``label_<LABEL>``
value     one number            ``prediction``                        none                ``label``
          several numbers       ``prediction_<NAME>``                 none                ``label_<NAME>``
========  ====================  ====================================  ==================  ==================

Records are identified by ``id``. The prefixes keep the user's names apart from ``status`` and other columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.files.disk import atomic

Kind = Literal["class", "labels", "value"]
ID = "id"
PATIENT = "patient"
RECORDS = Path("figures", "test_records.csv")
"""Table of the test records in a run folder."""
EARLIER_RECORDS = Path("figures", "predictions.csv")
"""Its name in pathology runs of earlier versions."""


@dataclass(frozen=True)
class OutputColumns:
    """The columns of one target.

    Attributes:
        names: names of the classes, labels or numbers.
        kind: what a record has.
        tag: prefix of all columns; a model with several targets has one per target.
    """

    names: tuple[str, ...]
    kind: Kind = "class"
    tag: str = ""

    def _each(self, prefix: str) -> list[str]:
        return [f"{self.tag}{prefix}_{name}" for name in self.names]

    @property
    def estimates(self) -> list[str]:
        """Columns of the numbers computed by the network, one per name."""
        if self.kind != "value":
            return self._each("p")
        return self._each("prediction") if len(self.names) > 1 else [f"{self.tag}prediction"]

    @property
    def decisions(self) -> list[str]:
        """Columns that follow from the estimates."""
        if self.kind == "class":
            return [f"{self.tag}prediction"]
        return self._each("positive") if self.kind == "labels" else []

    @property
    def labels(self) -> list[str]:
        """Columns of the true values."""
        single = self.kind == "class" or (self.kind == "value" and len(self.names) == 1)
        return [f"{self.tag}label"] if single else self._each("label")

    @property
    def columns(self) -> list[str]:
        """Columns of a prediction, in order."""
        return self.estimates + self.decisions

    def estimate(self, name: str) -> str:
        """Column of the estimate of a class, label or number."""
        return self.estimates[self.names.index(name)]

    def decide(self, row: Mapping[str, Any], limits: Sequence[float] | None = None) -> dict[str, Any]:
        """Return the decisions that follow from the estimates in a row; none from incomplete estimates.

        Args:
            row: the estimates, by column.
            limits: thresholds of the labels; 0.5 by default.
        """
        values = [np.nan if row.get(name) is None else row[name] for name in self.estimates]
        if not np.isfinite(values).all():
            return {}
        if self.kind == "class":
            return {self.decisions[0]: self.names[int(np.argmax(values))]}
        limits = [0.5] * len(values) if limits is None else limits
        return {name: int(value >= limit) for name, value, limit in zip(self.decisions, values, limits)}

    def decided(self, row: Mapping[str, Any]) -> list[bool]:
        """Return whether each class or label is predicted, from the decisions in a row."""
        if self.kind == "class":
            return [row[self.decisions[0]] == name for name in self.names]
        return [bool(row[name]) for name in self.decisions]

    def row(self, values: Sequence[float], limits: Sequence[float] | None = None) -> dict[str, Any]:
        """Return estimates and decisions of one record.

        Args:
            values: estimates, one per name.
            limits: as in `decide`.
        """
        row = {name: float(value) for name, value in zip(self.estimates, values, strict=True)}
        return {**row, **self.decide(row, limits)}

    # -- tables of test records ------------------------------------------------------------------------------------

    def table(self, truth: np.ndarray, values: np.ndarray, limits: Sequence[float] | None = None) -> pd.DataFrame:
        """Return the labels, estimates and decisions of test records.

        Args:
            truth: index of the class, (n,); labels of 0, 1 or NaN (unknown), (n, m); or numbers, (n, m).
            values: estimates, (n, m).
            limits: as in `decide`.
        """
        found: dict[str, Any] = {}
        if self.kind == "class":
            found[self.labels[0]] = [self.names[k] for k in truth]
        else:
            for name, column in zip(self.labels, np.reshape(truth, values.shape).T):
                found[name] = pd.array(column).astype("Int64") if self.kind == "labels" else column
        found |= dict(zip(self.estimates, values.T))
        if self.kind == "class":
            found[self.decisions[0]] = [self.names[k] for k in values.argmax(1)]
        elif self.kind == "labels":
            above = values >= np.broadcast_to(0.5 if limits is None else np.asarray(limits), len(self.names))
            found |= {name: pd.array(own, dtype="Int64") for name, own in zip(self.decisions, above.T.astype(int))}
        return pd.DataFrame(found)

    def read(self, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Return truth and estimates of test records, as given to `table`; the records have known classes.

        Args:
            table: from `read_test_records`.
        """
        values = table[self.estimates].to_numpy(np.float64)
        if self.kind == "class":
            index = {name: number for number, name in enumerate(self.names)}
            return np.array([index[str(name)] for name in table[self.labels[0]]], dtype=np.int64), values
        return table[self.labels].to_numpy(np.float64), values

    def earlier(self) -> dict[str, list[str]]:
        """Return the names that columns of test records had in earlier versions: new name -> old ones."""
        found: dict[str, list[str]] = {}
        if self.kind == "class":
            found |= {self.labels[0]: ["truth", f"{self.tag}Y"], self.decisions[0]: [f"{self.tag}Y_hat"]}
            return found | {new: [new, name] for new, name in zip(self.estimates, self.names)}
        for name, label, estimate in zip(self.names, self.labels, self.estimates):
            found[label] = [f"{name}_truth", f"{name}_true", f"{self.tag}Y_{name}"]
            found[estimate] = [estimate, name, f"{name}_predicted"]
        return found


def write_test_records(run: Path, table: pd.DataFrame) -> None:
    """Write the test records of a run.

    Args:
        run: the run folder.
        table: columns ``id``, ``patient`` where the domain has one, and those of `OutputColumns.table`.
    """
    with atomic(run / RECORDS, "w") as file:
        table.to_csv(file, index=False, lineterminator="\n", float_format="%.9g")


def find_test_records(run: Path) -> Path | None:
    """Return the table of test records in a run folder; None if it has none."""
    return next((run / name for name in (RECORDS, EARLIER_RECORDS) if (run / name).is_file()), None)


def read_test_records(run: Path, targets: Sequence[OutputColumns]) -> pd.DataFrame | None:
    """Read the test records of a run, with today's column names; None if the run has none.

    Args:
        run: the run folder.
        targets: the model's targets; other columns keep their names.

    Raises:
        InputError: a column is missing.
    """
    path = find_test_records(run)
    if path is None:
        return None
    text = [name for one in targets if one.kind == "class" for name in (*one.labels, *one.decisions)]
    text += [old for one in targets if one.kind == "class" for name in text for old in one.earlier().get(name, [])]
    text += [ID, PATIENT, "case_id", "slide_id"]
    table = pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""])
    if ID not in table:  # pathology of earlier versions: case_id, patient; or slide_id, case_id
        table = table.rename(columns={table.columns[0]: ID})
        table = table if PATIENT in table else table.rename(columns={"case_id": PATIENT})
    needed = [name for one in targets for name in (*one.labels, *one.estimates)]
    if not set(needed) <= set(table):
        table = _translated(table, targets)
    missing = [name for name in needed if name not in table]
    if missing:
        raise InputError(f"has no column {missing[0]}; repeat seqssm test", file=path)
    return table


def _translated(table: pd.DataFrame, targets: Sequence[OutputColumns]) -> pd.DataFrame:
    """Give the columns of an earlier version today's names."""
    renames = {}
    for one in targets:
        for new, old in one.earlier().items():
            known = next((name for name in old if name in table), None)
            if known is not None:
                renames[known] = new
    table = table.rename(columns=renames)
    for one in targets:  # ECG had one column of labels per class, also where a record has exactly one
        truth = [f"{name}_truth" for name in one.names]
        if one.kind == "class" and one.labels[0] not in table and set(truth) <= set(table):
            table[one.labels[0]] = [one.names[k] for k in table[truth].to_numpy(np.float64).argmax(1)]
    return table
