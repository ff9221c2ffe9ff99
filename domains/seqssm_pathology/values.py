"""Value bags: a table of cases by columns (gene expression, say) as one bag a case with one token a column.

Tables are CSV (the case id first) or the ``genomics.h5`` layout: matrices (cases, columns), each with the names of its
columns in ``<matrix>_genes``, and ``case_id``.
"""

from __future__ import annotations

import csv
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm_pathology.files import INFLATION, short, slide_id
from seqssm_pathology.text import read_text, separator

MATRICES = ("rnaseq", "cnv", "mut")  # of genomics.h5, in this order; others follow by name


@dataclass
class Values:
    """A table.

    Attributes:
        cases: ids, one a row.
        columns: ``"<matrix>:<gene>"`` or the CSV's own names.
        values: (cases, columns) float32.
        path: the file.
    """

    cases: list[str]
    columns: list[str]
    values: np.ndarray
    path: Path

    def select(self, columns: list[str]) -> Values:
        """The same table with the columns of a model, found by name, in its order.

        Raises:
            InputError: some are missing.
        """
        position = {name: number for number, name in enumerate(self.columns)}
        missing = [name for name in columns if name not in position]
        if missing:
            raise InputError(f"lacks {len(missing)} of the model's columns (first: {missing[0]})", file=self.path)
        order = [position[name] for name in columns]
        return Values(self.cases, list(columns), self.values[:, order], self.path)


def read_values(path: Path) -> Values:
    """Reads a table of cases by columns.

    Raises:
        InputError: missing, damaged, no such layout, a case or column twice, a cell that is no number.
    """
    if not path.is_file():
        raise InputError("no such file", file=path)
    if path.suffix.lower() in (".h5", ".hdf5"):
        table = _read_h5(path)
    elif path.suffix.lower() == ".csv":
        table = _read_csv(path)
    else:
        raise InputError("is no table of values (.h5 or .csv)", file=path)
    for what, names in (("case", table.cases), ("column", table.columns)):
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1] if len(set(names)) < len(names) else []
        if twice:
            raise InputError(f"the {what} {twice[0]} is there twice", file=path)
    if table.values.size == 0:
        raise InputError("holds no values", file=path)
    bad = np.argwhere(~np.isfinite(table.values))
    if len(bad):
        place = f"case {table.cases[bad[0][0]]}, column {table.columns[bad[0][1]]}"
        raise InputError(f"{len(bad)} cells are empty or not finite", file=path, place=place)
    return table


def _read_csv(path: Path) -> Values:
    import pandas as pd

    text = read_text(path)
    sign = separator(text)
    try:
        names = next((row for row in csv.reader(io.StringIO(text, newline=""), delimiter=sign) if row), [])
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header would lose values
            frame = pd.read_csv(io.StringIO(text), sep=sign, dtype={0: str}, index_col=False, low_memory=False)
    except pd.errors.ParserWarning:
        raise InputError("its rows have more cells than the header", file=path) from None
    except (ValueError, csv.Error, pd.errors.ParserError) as error:
        raise InputError(f"is not a CSV ({short(error)})", file=path) from None
    if frame.shape[1] < 2:
        raise InputError("needs the case id first, then one column a value", file=path)
    text = [name for name in frame.columns[1:] if frame[name].dtype.kind not in "fiub"]
    if text:
        raise InputError(f"column {text[0]} holds something else than numbers", file=path)
    if frame.iloc[:, 0].isna().any():
        row = int(np.flatnonzero(frame.iloc[:, 0].isna())[0])
        raise InputError(f"row {row + 1} below the header has no case id", file=path)
    cases = [slide_id(str(name).strip()) for name in frame.iloc[:, 0]]  # as a manifest's
    columns = [name.strip() for name in names[1 : frame.shape[1]]]  # pandas would number those that are there twice
    return Values(cases, columns, frame.iloc[:, 1:].to_numpy(np.float32), path)


def _read_h5(path: Path) -> Values:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            matrices = [name for name in file if f"{name}_genes" in file]
            matrices.sort(key=lambda name: (MATRICES.index(name) if name in MATRICES else len(MATRICES), name))
            if not matrices or "case_id" not in file:
                raise InputError("needs case_id and matrices, each with its <name>_genes", file=path)
            for name in ["case_id", *matrices, *(f"{name}_genes" for name in matrices)]:
                if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(
                    file[name], h5py.Dataset
                ):
                    raise InputError(f"{name} is not a plain dataset of this file", file=path)
                if file[name].nbytes > INFLATION * path.stat().st_size:
                    raise InputError(f"is damaged: it promises {file[name].nbytes} bytes of {name}", file=path)
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
    except Exception as error:  # a damaged file can raise anything that HDF5 and h5py have
        raise InputError(f"is no HDF5 table, or it is damaged ({short(error)})", file=path) from None


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def by_family(columns: list[str], families: Path) -> np.ndarray:
    """The columns sorted by the first family that lists their gene; genes of none come last. Stable.

    Args:
        columns: names, a part before ``:`` is not of the gene.
        families: CSV with one column a family, its genes below.

    Returns:
        int64 (columns,), the places in this order.
    """
    import pandas as pd

    try:
        table = pd.read_csv(families, dtype=str, encoding="utf-8-sig")
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise InputError(f"is no CSV of gene families ({short(error)})", file=families) from None
    family: dict[str, int] = {}
    for number, name in enumerate(table.columns):
        for gene in table[name].dropna():
            family.setdefault(gene.strip(), number)
    known = [family.get(name.split(":", 1)[-1], len(table.columns)) for name in columns]
    if min(known) == len(table.columns):
        raise InputError("lists none of the columns' genes", file=families)
    return np.argsort(known, kind="stable")
