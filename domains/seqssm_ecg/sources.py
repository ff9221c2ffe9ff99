"""What there is to train on: the records of a PTB-XL tree, a challenge folder or a manifest, with their labels."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg.files import ARRAYS, ArraySpec, find_recordings, header_of
from seqssm_ecg.headers import parse_age, parse_sex, read_header
from seqssm_ecg.labels import Classes, parse_scp_codes

KNOWN_COLUMNS = ("path", "labels", "patient", "fold", "split", "source", "age", "sex", "rate_hz")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass
class Entry:
    """A record to train on or to test.

    Attributes:
        path: header or array.
        id: name in tables.
        codes: its labels; None where nothing says what it has.
        group: records of one group are never parted (a patient).
        source: for scores by source.
        fold: of the table, or None.
        split: "train", "val" or "test" of the table, or None.
        array: what an array does not say itself.
    """

    path: Path
    id: str
    codes: list[str] | None
    group: str
    source: str = ""
    fold: int | None = None
    split: str | None = None
    array: ArraySpec | None = None


def ptbxl(folder: Path, rate_hz: float) -> list[Entry]:
    """The records of a PTB-XL tree, by ``ptbxl_database.csv``: the 100 Hz files up to 100 Hz, else those of 500 Hz.

    Raises:
        InputError: the table lacks a column, or a cell in it is wrong.
    """
    path = folder / "ptbxl_database.csv"
    column = "filename_lr" if rate_hz <= 100 else "filename_hr"
    entries = []
    for line, row in _rows(path, ("ecg_id", "patient_id", "scp_codes", "strat_fold", column)):
        try:
            fold = int(float(row["strat_fold"]))
        except ValueError:
            raise InputError(
                f"strat_fold {row['strat_fold']!r} is no number", file=path, place=f"line {line}"
            ) from None
        codes = parse_scp_codes(row["scp_codes"], path, line)
        record = header_of(folder / row[column])
        entries.append(Entry(record, row["ecg_id"], codes, row["patient_id"] or row["ecg_id"], "ptb-xl", fold))
    if not any(entry.path.is_file() for entry in entries[:1000]):
        raise InputError(
            f"the files of the column {column} are not there: for {rate_hz:g} Hz this tree needs its "
            f"{'100' if column == 'filename_lr' else '500'} Hz records",
            file=path,
        )
    return entries


def challenge(folder: Path) -> tuple[list[Entry], list[str]]:
    """The records below a challenge folder, labelled by their Dx lines, and the headers that cannot be read.

    The source is the folder that a record lies in. There are no patient numbers: records of equal source, age, sex and
    labels make a group (a guess on the safe side).
    """
    entries, bad = [], []
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
        entries.append(Entry(path, path.stem, header.codes, group, source))
    if not entries:
        raise InputError(bad[0] if bad else "holds no WFDB records (.hea with .mat or .dat)", file=folder)
    return entries, bad


def manifest(path: Path, default: ArraySpec) -> tuple[list[Entry], list[str]]:
    """The records of the user's own table (`.csv` or `.parquet`), and the names of its classes.

    Columns: ``path`` (relative to the table), then either ``labels`` (parted by ``;``, ``|`` or blanks) or one column
    of zeros and ones a class; optional ``patient, fold, split, source, rate_hz`` (of arrays). Other columns whose cells
    are not all 0 or 1 are an error that names them.

    Raises:
        InputError: a column or a cell is wrong.
    """
    rows = list(_rows(path, ("path",)))
    if not rows:
        raise InputError("has no rows", file=path)
    columns = list(rows[0][1])
    classes: list[str] = []
    if "labels" not in columns:
        classes = [name for name in columns if name not in KNOWN_COLUMNS]
        if not classes:
            raise InputError(
                "has no labels: a column `labels`, or a column of 0 and 1 for each class", file=path, place="line 1"
            )
        for name in classes:
            for line, row in rows:
                if row[name] not in ("0", "1", "0.0", "1.0"):
                    raise InputError(
                        f"{row[name]!r} in the column {name} is neither 0 nor 1 (a class), and {name} is none of "
                        f"{', '.join(KNOWN_COLUMNS)}",
                        file=path,
                        place=f"line {line}",
                    )
    entries = []
    for line, row in rows:
        place = f"line {line}"
        if not row["path"]:
            raise InputError("has no path", file=path, place=place)
        record = path.parent / row["path"]  # an absolute one stays as it is
        if "labels" in columns:
            codes = [part for part in re.split(r"[;|\s]+", row["labels"]) if part]
        else:
            codes = [name for name in classes if float(row[name]) == 1]
        array = None
        if record.suffix.lower() in ARRAYS:
            rate = _number(row.get("rate_hz", ""), path, place, "rate_hz")
            array = ArraySpec(default.rate_hz if rate is None else rate, default.leads, default.unit)
        fold = _number(row.get("fold", ""), path, place, "fold")
        split = row.get("split", "").casefold() or None
        if split is not None and split not in SPLITS:
            raise InputError(f"the split {row['split']!r} is none of train, val, test", file=path, place=place)
        entries.append(
            Entry(
                record if record.suffix.lower() in ARRAYS else header_of(record),
                row["path"],
                codes,
                row.get("patient", "") or row["path"],
                row.get("source", ""),
                None if fold is None else int(fold),
                SPLITS[split] if split else None,
                array,
            )
        )
    names = classes or sorted({code for entry in entries for code in entry.codes or []})
    if not names:
        raise InputError("no row has a label", file=path)
    return entries, names


def by_name(names: Iterable[str]) -> Classes:
    """Classes whose codes are their names."""
    names = list(names)
    return Classes(names, [(name,) for name in names])


def demographics(entry: Entry) -> tuple[float | None, str | None]:
    """(age, sex) of a WFDB record's header."""
    comments = read_header(entry.path).comments
    return parse_age(comments.get("age", "")), parse_sex(comments.get("sex", ""))


def without_duplicates(entries: list[Entry]) -> tuple[list[Entry], list[tuple[str, str]]]:
    """The entries whose samples no earlier one has, and (dropped, kept) names; compared by the signal files' bytes."""
    kept: list[Entry] = []
    seen: dict[str, str] = {}
    dropped = []
    for entry in entries:
        key = content_hash(entry.path)
        if key is not None and key in seen:
            dropped.append((entry.id, seen[key]))
            continue
        if key is not None:
            seen[key] = entry.id
        kept.append(entry)
    return kept, dropped


def content_hash(path: Path) -> str | None:
    """A hash of a record's signal files, None where they cannot be read (reading them will say why)."""
    digest = hashlib.sha256()
    try:
        names = [path.name]
        if path.suffix.lower() == ".hea":
            names = list(dict.fromkeys(signal.file for signal in read_header(path).signals))
        for name in names:
            digest.update(path.with_name(name).read_bytes())
    except (OSError, InputError):
        return None
    return digest.hexdigest()


def parts(
    entries: list[Entry], val_fold: int | None, test_fold: int | None, fold: int | None, folds: int | None
) -> dict[str, list[int]]:
    """Numbers of the train, val and test entries; a group is never parted.

    In this order: fold k of `folds` (test k, validation the next one); the table's `split`; the table's `fold` with
    `val_fold` and `test_fold` (by default the last two); else 80, 10 and 10 % of the records, by a hash of the group.
    """
    made: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    if folds is not None and fold is not None:
        known = {entry.fold for entry in entries}
        given = None not in known and len(known) == folds
        ranks = {value: rank for rank, value in enumerate(sorted(k for k in known if k is not None))}
        for place, entry in enumerate(entries):
            own = ranks[entry.fold] if given else _number_of(entry.group) % folds
            made["test" if own == fold else "val" if own == (fold + 1) % folds else "train"].append(place)
        return made
    if all(entry.split for entry in entries):
        for place, entry in enumerate(entries):
            made[str(entry.split)].append(place)
        return made
    numbers = sorted({entry.fold for entry in entries if entry.fold is not None})
    if len(numbers) >= 3 and all(entry.fold is not None for entry in entries):
        test = numbers[-1] if test_fold is None else test_fold
        val = [n for n in numbers if n != test][-1] if val_fold is None else val_fold
        for place, entry in enumerate(entries):
            made["test" if entry.fold == test else "val" if entry.fold == val else "train"].append(place)
        return made
    groups: dict[str, list[int]] = {}
    for place, entry in enumerate(entries):
        groups.setdefault(entry.group, []).append(place)
    for group in sorted(groups, key=_number_of):
        for name, share in (("test", 0.1), ("val", 0.1), ("train", 1.0)):
            if len(made[name]) < share * len(entries):
                made[name] += groups[group]
                break
    return {name: sorted(places) for name, places in made.items()}


def _number_of(group: str) -> int:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big")


def _number(text: str, path: Path, place: str, column: str) -> float | None:
    if text == "":
        return None
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"{text!r} in the column {column} is not a number", file=path, place=place)
    return value


def _rows(path: Path, needed: tuple[str, ...]) -> Iterable[tuple[int, dict[str, str]]]:
    """(line, row) of a table; cells are text without blanks around, missing ones are ""."""
    try:
        if path.suffix == ".parquet":
            import pandas as pd

            frame = pd.read_parquet(path)
            names = [str(name) for name in frame.columns]
            table = [
                (n, {name: _cell(value) for name, value in zip(names, row)})
                for n, row in enumerate(frame.itertuples(index=False), 1)
            ]
        else:
            with open(path, newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                names = list(reader.fieldnames or [])
                table = [(reader.line_num, {name: (row[name] or "").strip() for name in names}) for row in reader]
    except FileNotFoundError:
        raise InputError("no such file", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None
    except (ValueError, csv.Error) as error:
        raise InputError(f"is no table: {' '.join(str(error).split())[:100]}", file=path) from None
    for column in needed:
        if column not in names:
            raise InputError(f"has no column {column}", file=path, place="line 1")
    return table


def _cell(value: object) -> str:
    return "" if value is None or value != value else str(value).strip()
