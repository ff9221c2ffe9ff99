"""Value tables, e.g. of gene expression: cases by columns, read as one bag per case with one token per column.

Formats are CSV, Excel and Parquet with the case id in the first column, and the ``genomics.h5`` layout: the dataset
``case_id``, and matrices (cases, columns) with their column names in ``<matrix>_genes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqssm.errors import InputError, no_such_file
from seqssm.files.dialect import TableOptions
from seqssm.files.numbers import numbers
from seqssm.files.tables import read_table
from seqssm_pathology.files import say, slide_id
from seqssm_pathology.formats import INFLATION, short, unreadable

MATRICES = ("rnaseq", "cnv", "mut")  # matrices of genomics.h5 in this order; others follow, sorted by name
TEXT = (".csv", ".xlsx", ".parquet")


@dataclass
class Values:
    """A value table.

    Attributes:
        cases: case ids, one per row.
        columns: column names; ``"<matrix>:<gene>"`` for ``genomics.h5``.
        values: values, (cases, columns) float32.
        path: path of the file.
    """

    cases: list[str]
    columns: list[str]
    values: np.ndarray
    path: Path

    def select(self, columns: list[str]) -> Values:
        """Select the columns of a model by name, in the order of the model.

        Raises:
            InputError: a column is missing.
        """
        position = {name: number for number, name in enumerate(self.columns)}
        missing = [name for name in columns if name not in position]
        if missing:
            raise InputError(f"lacks {len(missing)} of the model's columns (first: {missing[0]})", file=self.path)
        order = [position[name] for name in columns]
        return Values(self.cases, list(columns), self.values[:, order], self.path)


def read_values(path: Path) -> Values:
    """Read a table of cases by columns.

    Args:
        path: path of the table, ``.h5``, ``.csv``, ``.xlsx`` or ``.parquet``.

    Raises:
        InputError: the file is missing, corrupt or of another layout; a case or column is duplicated; a cell is not a
            number.
    """
    if not path.is_file():
        raise no_such_file(path)
    if path.suffix.lower() in (".h5", ".hdf5"):
        table = _read_h5(path)
    elif path.suffix.lower() in TEXT:
        table = _read_text(path)
    else:
        raise InputError("is not a value table (.h5, .csv, .xlsx or .parquet)", file=path)
    for what, names in (("case", table.cases), ("column", table.columns)):
        if len(set(names)) < len(names):
            twice = next(name for name in dict.fromkeys(names) if names.count(name) > 1)
            raise InputError(f"duplicate {what} {twice}", file=path)
    if table.values.size == 0:
        raise InputError("contains no values", file=path)
    bad = np.argwhere(~np.isfinite(table.values))
    if len(bad):
        place = f"case {table.cases[bad[0][0]]}, column {table.columns[bad[0][1]]}"
        raise InputError(f"{len(bad)} cells are empty or not finite", file=path, place=place)
    return table


def _read_text(path: Path) -> Values:
    table = read_table(path, TableOptions(pad_rows=True))
    if len(table.columns) < 2:
        raise InputError("expected the case id first, then one column per value", file=path)
    first, *columns = table.columns
    empty = [row for row, cell in enumerate(table.frame[first]) if not cell]
    if empty:
        raise InputError("has no case id", file=path, place=table.place(empty[0]))
    values, notes = numbers(table, columns)
    for note in notes:
        say(f"{path}: {note}")
    cases = [slide_id(str(name)) for name in table.frame[first]]  # as in a manifest
    return Values(cases, columns, values.astype(np.float32), path)


def _read_h5(path: Path) -> Values:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            matrices = [name for name in file if f"{name}_genes" in file]
            matrices.sort(key=lambda name: (MATRICES.index(name) if name in MATRICES else len(MATRICES), name))
            if not matrices or "case_id" not in file:
                raise InputError("expected case_id and matrices, each with its <name>_genes", file=path)
            for name in ["case_id", *matrices, *(f"{name}_genes" for name in matrices)]:
                plain = isinstance(file.get(name, getlink=True), h5py.HardLink)
                if not plain or not isinstance(file[name], h5py.Dataset):
                    raise InputError(f"{name} is not a plain dataset of this file", file=path)
                if file[name].nbytes > INFLATION * path.stat().st_size:
                    raise InputError(f"is corrupt: it declares {file[name].nbytes} bytes of {name}", file=path)
            cases = [slide_id(_text(value).strip()) for value in file["case_id"][()]]
            columns, parts = [], []
            for name in matrices:
                genes, part = [_text(value) for value in file[f"{name}_genes"][()]], np.asarray(file[name][()])
                if part.shape != (len(cases), len(genes)):
                    raise InputError(f"{name} has shape {part.shape}, not {(len(cases), len(genes))}", file=path)
                columns += [f"{name}:{gene}" for gene in genes]
                parts.append(part.astype(np.float32))
            return Values(cases, columns, np.concatenate(parts, axis=1), path)
    except InputError:
        raise
    except Exception as error:  # damaged files raise many kinds of exceptions in h5py
        known = unreadable(error, path)
        raise known or InputError(f"is not an HDF5 table, or it is corrupt ({short(error)})", file=path) from None


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def by_family(columns: list[str], families: Path) -> np.ndarray:
    """Sort columns (stable) by the first family that lists their gene; genes without a family come last.

    Args:
        columns: column names; a prefix before ``:`` is not part of the gene name.
        families: CSV file with one column of genes per family.

    Returns:
        Column indices in the new order, (columns,) int64.
    """
    table = read_table(families, TableOptions(pad_rows=True))
    family: dict[str, int] = {}
    for number, name in enumerate(table.columns):
        for gene in table.frame[name]:
            if gene:
                family.setdefault(gene, number)
    known = [family.get(name.split(":", 1)[-1], len(table.columns)) for name in columns]
    if min(known) == len(table.columns):
        raise InputError("lists none of the columns' genes", file=families)
    return np.argsort(known, kind="stable")
