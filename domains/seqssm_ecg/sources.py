"""Sources of labelled records: a PTB-XL tree, a folder of challenge records, the user's manifest."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError, no_column
from seqssm.files.folds import fold_columns, unused_folds
from seqssm.files.labels import is_missing, lacks_value, read_label_cells
from seqssm.files.numbers import NO_WORD
from seqssm.files.splits import NO_COLUMN, SPLIT_NAMES, split_of_flag
from seqssm.files.tables import Table, read_table, table_of_frame
from seqssm.metrics.classes import class_counts, class_list, unknown_classes
from seqssm_ecg.columns import COLUMNS, OTHER_FOLD, UNKNOWN, choose_split, ignored_split, number_folds, rename
from seqssm_ecg.files import check_local, find_recordings, header_of, in_folders, located
from seqssm_ecg.headers import read_header
from seqssm_ecg.labels import Classes, parse_scp_codes
from seqssm_ecg.recording import ArraySpec

YES, NO = ("1", "1.0", "true"), ("0", "0.0", "false")


@dataclass
class LabelledRecord:
    """A labelled record.

    Attributes:
        path: path of the header, or of another format's file.
        id: record name in tables.
        codes: labels; None if none of them is known.
        group: group that must not be divided between splits: the patient, or the record itself if the patient is
            unknown.
        patient: patient as given in the table; ``""`` if absent.
        source: origin of the record, for scores by source.
        fold: fold given in the table, or None.
        split: ``"train"``, ``"val"`` or ``"test"`` as given in the table, or None.
        array: sampling rate, leads and unit of an array; None for a WFDB record.
        place: location in the table for messages: ``"line 7"``.
        content: hash of the samples; ``""`` if not computed.
        unknown: classes whose label is unknown.
        fold_name: name of the fold in the table.
    """

    path: Path
    id: str
    codes: list[str] | None
    group: str
    patient: str = ""
    source: str = ""
    fold: int | None = None
    split: str | None = None
    array: ArraySpec | None = None
    place: str = ""
    content: str = ""
    unknown: tuple[str, ...] = ()
    fold_name: str = ""

    @property
    def labels(self) -> tuple[frozenset[str], frozenset[str]]:
        """Labels and unknown classes, for comparisons."""
        return frozenset(self.codes or []), frozenset(self.unknown)


def ptbxl(folder: Path, rate_hz: float) -> list[LabelledRecord]:
    """List the records of ``ptbxl_database.csv``, using the 100 Hz files for rates up to 100 Hz, else those of 500 Hz.

    Raises:
        InputError: the table lacks a column, or a cell is invalid.
    """
    path = folder / "ptbxl_database.csv"
    column = "filename_lr" if rate_hz <= 100 else "filename_hr"
    table = read_table(path)
    _require(table, ("ecg_id", "patient_id", "scp_codes", "strat_fold", column))
    records = []
    for number, row in enumerate(table.frame.to_dict("records")):
        place = table.place(number)
        fold = _integer(row["strat_fold"], path, table.place(number, "strat_fold"))
        codes = parse_scp_codes(row["scp_codes"], path, place)
        name, patient = row["ecg_id"], row["patient_id"]
        record = header_of(folder / row[column])
        records.append(LabelledRecord(record, name, codes, patient or name, patient, "ptb-xl", fold, place=place))
    if not any(record.path.is_file() for record in records[:1000]):
        raise InputError(
            f"the files of the column {column} are missing: for {rate_hz:g} Hz this tree needs its "
            f"{'100' if column == 'filename_lr' else '500'} Hz records",
            file=path,
        )
    return records


def challenge(folder: Path) -> tuple[list[LabelledRecord], list[str]]:
    """List the records below a challenge folder with the labels of their Dx lines, and the unreadable headers.

    The source of a record is its folder. There are no patient ids; records with equal source, age, sex and labels form
    a group. Such groups are larger than necessary, which is safe.
    """
    records, bad = [], []
    for path in find_recordings(folder):
        try:
            header = read_header(path)
        except InputError as error:
            bad.append(str(error))
            continue
        source = path.parent.name
        group = f"{source} {header.age} {header.sex} {sorted(header.codes or [])}"
        if header.age is None:
            group += f" {path.stem}"
        records.append(LabelledRecord(path, path.stem, header.codes, group, source=source))
    if not records:
        raise InputError(bad[0] if bad else "has no WFDB records (.hea with .mat or .dat)", file=folder)
    return records, bad


def common_folder(paths: Iterable[Path]) -> Path:
    """Return the innermost folder that contains all `paths`; the first one's if they share none."""
    folders = sorted({path.parent for path in paths})
    try:
        return Path(os.path.commonpath(folders) or ".")
    except ValueError:  # several drives, or relative and absolute paths
        return folders[0]


def predict_words(records: Sequence[LabelledRecord], first: LabelledRecord, options: Mapping[str, Any]) -> list[str]:
    """Return inputs and options with which ``seqssm predict`` reads records.

    The input is their folder, or one record if `predict` does not find all of them in a folder, or would need several
    sampling rates.

    Args:
        records: the records.
        first: the one to predict if only one can be.
        options: options of the data module.
    """

    def rates(chosen: Sequence[LabelledRecord]) -> set[float]:
        return {one.array.rate_hz for one in chosen if one.array is not None and one.array.rate_hz is not None}

    together = len(rates(records)) < 2 and all(in_folders(record.path) for record in records)
    words = [str(common_folder(record.path for record in records) if together else first.path)]
    words += [word for rate in rates(records if together else [first]) for word in ("--array-rate-hz", f"{rate:g}")]
    words += ["--array-leads", *options["array_leads"]] if options["array_leads"] else []
    words += [] if options["array_unit"] == ArraySpec.unit else ["--array-unit", options["array_unit"]]
    words += ["--ignore-checksums"] if options["checksums"] == "ignore" else []
    words += ["--wfdb-defaults"] if options["wfdb_defaults"] else []
    return words + (["--accept-implausible"] if options["implausible"] == "keep" else [])


@dataclass
class Manifest:
    """Content of a manifest.

    Attributes:
        records: labelled records.
        names: class names.
        notes: remarks for the user.
        one_hot: whether the labels are 0/1 columns.
        ignored: why the records cannot be split as a column that is not read says; ``""`` if there is no such column.
        header: location of the column names, for messages.
    """

    records: list[LabelledRecord]
    names: list[str]
    notes: list[str]
    one_hot: bool
    ignored: str = ""
    header: str = ""

    def require_split(self, path: Path | str) -> None:
        """Raise InputError if the splits are in a column that is not read: the records would be split at random.

        Args:
            path: path for the message.
        """
        if self.ignored:
            raise InputError(self.ignored, file=path, place=self.header)


def read_manifest(
    path: Path | pd.DataFrame,
    default: ArraySpec,
    label_columns: Sequence[str] | None = None,
    labelled: bool = True,
    splits: str | None = None,
) -> Manifest:
    """Read the user's own table (CSV, Excel or Parquet).

    Columns: ``path`` (relative to the table), and either ``labels``, separated by ``,`` ``;`` or ``|``, or one 0/1
    column per class; optional ``patient, fold, split, source, rate_hz`` (for arrays). An empty cell is an unknown
    label; in the column ``labels``, all labels of the row are unknown, and ``[]`` is a record without any class.

    Args:
        path: path of the table, or a DataFrame, whose paths are relative to the current folder.
        default: default sampling rate, leads and unit of arrays.
        label_columns: class columns, if the table has further columns.
        labelled: whether to read labels; without, only the column ``path`` is required.
        splits: column of splits or folds, `NO_COLUMN` for none; by default ``split`` and ``fold``.

    Raises:
        InputError: a column or a cell is invalid.
    """
    table = read_table(path) if isinstance(path, Path) else table_of_frame(path, text=True)
    path = table.path
    if splits is not None:
        choose_split(table, splits)
    rename(table, label_columns or ())
    folds = number_folds(table)
    _require(table, ("path",))
    columns, notes = table.columns, list(table.notes)
    rows = table.frame.to_dict("records")
    if not labelled:
        table.frame["labels"] = "[]"
        rows = table.frame.to_dict("records")
    listed = not labelled or ("labels" in columns and label_columns is None)
    codes: list[list[str]] = [[] for _ in rows]
    if listed and labelled:
        found, remarks = read_label_cells(table, "labels")
        _refuse_unknown(table, found)
        codes, notes = [_codes(one) for one in found], notes + remarks
    classes = [] if listed else _class_columns(table, label_columns)
    ignored = [name for name in columns if name not in COLUMNS and name not in classes]
    if ignored:
        notes.append(f"columns ignored: {', '.join(ignored)}")
    if splits is None:
        notes += unused_folds(fold_columns(table.frame[ignored]).values(), "--data.split_column {column} uses them")
    records = [
        _record(table, number, row, classes, codes[number], default, folds[number]) for number, row in enumerate(rows)
    ]
    _require_one_row(records, path)
    names = classes or sorted({code for record in records for code in record.codes or []})
    if not names and labelled:
        raise InputError("no row has a label", file=path)
    named = [name for name in names if name.casefold() == "none"]
    notes += [f"{name} is a class; records without any class are written as []" for name in named if not classes]
    unknown = [] if classes else unknown_classes(names)
    if unknown:
        notes.append(f"warning: read as a class: {class_list(unknown)}; cells of unknown labels are left empty")
    if set(names) <= {"0", "1"} and listed and labelled:
        notes.append("the labels are 0 and 1; for one class that is present or absent, --data.label_columns labels")
    notes += _unknown_notes(records, classes)
    alone = sum(not record.patient for record in records)
    if 0 < alone < len(records):
        notes.append(f"{alone} rows without a patient: each is treated as a separate patient")
    unread = ignored_split(table, ignored) if splits is None else ""
    return Manifest(records, names, notes, bool(classes), unread, table.header)


def _unknown_notes(records: Sequence[LabelledRecord], classes: Sequence[str]) -> list[str]:
    """Describe unknown labels; rows without any label are counted by the data module."""
    notes = []
    if not classes and any(record.codes is None for record in records):
        notes.append("an empty cell in the column labels means unknown; write [] for a record without any class")
    counts = Counter(name for record in records if record.codes is not None for name in record.unknown)
    if counts:
        listed = class_counts({name: counts[name] for name in classes if name in counts})
        notes.append(f"unknown labels (empty cells), left out of the loss and of all scores: {listed}")
    return notes


def _codes(labels: Sequence[str]) -> list[str]:
    """Drop placeholders such as ``nan``; restore codes that were converted to numbers (``426783006.0``)."""
    names = (re.sub(r"^(\d+)\.0$", r"\1", name) for name in labels)
    return list(dict.fromkeys(name for name in names if name.casefold() not in UNKNOWN))


def _refuse_unknown(table: Table, found: Sequence[Sequence[str]]) -> None:
    """Raise InputError for a dash, which may stand for unknown labels or for none, for unknown values in dicts, and for
    codes that a spreadsheet wrote as ``4.26783E+08``."""
    for row, (cell, names) in enumerate(zip(table.frame["labels"].astype(str), found)):
        if lacks_value(cell):
            message = "a value of the dict is missing: leave its name out if the label is absent; unknown labels of a "
            message += "record need one 0/1 column per class, with empty cells"
            raise InputError(message, file=table.path, place=table.place(row, "labels"))
        damaged = next((name for name in names if re.fullmatch(r"\d+(\.\d+)?[eE]\+\d+", name)), None)
        if damaged is not None:
            message = f"{damaged!r} is a code whose digits a spreadsheet has lost; write it anew, in a column of text"
            raise InputError(message, file=table.path, place=table.place(row, "labels"))
        dash = next((name for name in names if name in NO_WORD - UNKNOWN), None)
        if dash is not None:
            message = (
                f"{dash!r} is no class: leave the cell empty if the labels are unknown, or write [] without any class"
            )
            raise InputError(message, file=table.path, place=table.place(row, "labels"))


def _require_one_row(records: Sequence[LabelledRecord], path: Path) -> None:
    """Raise InputError if a record has several rows with different labels, of which only the first would be used."""
    first: dict[Path, LabelledRecord] = {}
    for record in records:
        twin = first.setdefault(record.path, record)
        if twin.labels != record.labels:
            raise InputError(
                f"the record {record.id} is also on {twin.place} with other labels; give all "
                "labels of a record on one row",
                file=path,
                place=record.place,
            )


def _class_columns(table: Table, chosen: Sequence[str] | None) -> list[str]:
    """Return the 0/1 columns."""
    if chosen is not None:
        _require(table, tuple(chosen))
        classes = list(chosen)
    else:
        classes = [name for name in table.columns if name not in COLUMNS]
        for name in classes:
            if split_of_flag(name) is not None:  # a 0/1 column that says in which split a row is
                raise InputError(
                    f"column {name} is the name of a split, not of a class: --data.split_column {shlex.quote(name)} "
                    "splits by it; otherwise list the class columns with --data.label_columns",
                    file=table.path,
                    place=table.header,
                )
    if not classes:
        raise InputError(
            "has no labels: expected a column `labels`, or one 0/1 column per class",
            file=table.path,
            place=table.header,
        )
    for name in classes:
        for number, cell in enumerate(table.frame[name]):
            if cell.casefold() not in YES + NO and cell.strip().casefold() not in UNKNOWN:
                raise InputError(
                    f"{cell!r} is neither 0, 1 nor empty (unknown); if {name} is not a class, list the class columns "
                    "with --data.label_columns; a column with the names of classes must be called labels",
                    file=table.path,
                    place=table.place(number, name),
                )
    return classes


def _record(
    table: Table,
    number: int,
    row: dict[str, str],
    classes: Sequence[str],
    listed: list[str],
    default: ArraySpec,
    fold_name: str,
) -> LabelledRecord:
    path, place = table.path, table.place(number)
    if not row["path"]:
        raise InputError("has no path", file=path, place=place)
    check_local(Path(row["path"]))
    record = path.parent / row["path"]  # an absolute path stays unchanged
    if "\\" in row["path"] and not record.exists():  # written on Windows
        record = path.parent / row["path"].replace("\\", "/")
    codes: list[str] | None
    if classes:
        codes = [name for name in classes if row[name].casefold() in YES]
        unknown = tuple(name for name in classes if row[name].strip().casefold() in UNKNOWN)
        codes = None if len(unknown) == len(classes) else codes
    else:
        codes, unknown = listed, ()
        codes = None if not codes and is_missing(row["labels"]) else codes
    file = located(record)
    array = None
    if file.suffix.lower() != ".hea":
        rate = _number(row.get("rate_hz", ""), path, table.place(number, "rate_hz"))
        array = ArraySpec(default.rate_hz if rate is None else rate, default.leads, default.unit)
    split = row.get("split", "").casefold()
    if split and split not in SPLIT_NAMES:
        raise InputError(
            f"split {row['split']!r}: expected train, val or test; --data.split_column names another column, or "
            f"{NO_COLUMN} for a random split",
            file=path,
            place=table.place(number, "split"),
        )
    fold = row.get("fold", "")
    patient = re.sub(r"^(\d+)\.0$", r"\1", row.get("patient", ""))  # a number of a column with empty cells
    return LabelledRecord(
        file,
        row["path"],
        codes,
        patient or row["path"],
        patient,
        row.get("source", ""),
        _integer(fold, path, table.place(number, "fold"), OTHER_FOLD) if fold else None,
        SPLIT_NAMES[split] if split else None,
        array,
        place,
        unknown=unknown,
        fold_name=fold_name,
    )


def by_name(names: Iterable[str]) -> Classes:
    """Create classes whose codes are their names."""
    names = list(names)
    return Classes(names, [(name,) for name in names])


def _require(table: Table, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in table.columns:
            raise no_column(name, table.columns, file=table.path, place=table.header)


def _integer(text: str, path: Path, place: str, advice: str = "") -> int:
    value = _number(text, path, place, advice)
    if value is None or value != round(value):
        raise InputError(f"{text!r} is not an integer{advice}", file=path, place=place)
    return round(value)


def _number(text: str, path: Path, place: str, advice: str = "") -> float | None:
    if text == "":
        return None
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"{text!r} is not a number{advice}", file=path, place=place)
    return value
