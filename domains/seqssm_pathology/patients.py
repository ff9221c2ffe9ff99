"""Patients of a manifest's cases: barcodes of TCGA and CPTAC, and a column of patients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PureWindowsPath

from seqssm.files import splits
from seqssm.files.tables import Table
from seqssm_pathology.answers import MISSING, Columns
from seqssm_pathology.files import say

BARCODES = r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}|C3[LN]-\d{5}"

STAMP_SLIDE = "FILENAME"  # column of slides in the tables of STAMP


def barcode_of(name: str) -> str | None:
    """Patient of a TCGA or CPTAC barcode: ``TCGA-02-0001`` from ``TCGA-02-0001-01Z-00-DX1``; else None."""
    match = re.match(rf"(?:{BARCODES})(?=$|[-._])", name, re.IGNORECASE)
    return match[0].upper() if match else None


def patient_column(table: Table, columns: Columns) -> str | None:
    """Return the column of patients; None if there is none, or it has another meaning.

    Raises:
        InputError: several columns group the rows in different ways.
    """
    return splits.patient_column(table, [name for name in table.columns if name not in columns.used])


def as_cases(table: Table, columns: Columns) -> None:
    """Use a column of patients as cases where the usual column of cases is missing, and report it.

    Every slide would be a case of its own, and the slides of a patient in several splits.
    """
    column = patient_column(table, columns)
    if column is None or columns.case in table.frame or columns.case != Columns.case:
        return
    if any(not cell or cell.lower() in MISSING for cell in table.frame[column]):
        return
    table.frame = table.frame.rename(columns={column: columns.case})
    say(f"{table.path}: column {column} read as {columns.case}")


def as_slides(table: Table, columns: Columns) -> None:
    """Use STAMP's column ``FILENAME`` as slides where there is no column of slides or cases, and report it."""
    if STAMP_SLIDE not in table.frame or columns.slide in table.frame or columns.slide != Columns.slide:
        return
    if STAMP_SLIDE in columns.used or columns.case in table.frame:
        return
    names = [PureWindowsPath(cell).name.removesuffix(".h5") for cell in table.frame[STAMP_SLIDE]]
    table.frame = table.frame.rename(columns={STAMP_SLIDE: columns.slide}).assign(**{columns.slide: names})
    say(f"{table.path}: column {STAMP_SLIDE} read as {columns.slide}")


def patients_of(table: Table, positions: Sequence[int], columns: Columns) -> dict[int, str]:
    """Return the patients of rows, by position; rows with an empty cell are left out.

    Args:
        table: the manifest.
        positions: positions of the rows.
        columns: names of its columns.
    """
    column = patient_column(table, columns)
    if column is None:
        return {}
    cells = {row: str(table.frame[column].iloc[row]).strip() for row in positions}
    known = {row: cell for row, cell in cells.items() if cell and cell.lower() not in MISSING}
    alone = len(cells) - len(known)
    if known and alone:
        say(
            f"{table.path}: warning: {alone} rows without a {column}: the case of each is treated as a separate patient"
        )
    return known
