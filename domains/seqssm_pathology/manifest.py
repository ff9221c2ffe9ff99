"""The table of slides, cases and answers, and the splits of it: CLAM files, or folds made by case.

One row a slide (``slide_id, case_id, label`` or a time and a flag); a table without slides has one row a case.
Slides of a case are one record, and never on two sides of a split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from seqssm.errors import InputError, nearest
from seqssm_pathology.files import Invalid, say, slide_id
from seqssm_pathology.text import MISSING, read_table

Target = Literal["classification", "survival"]
PARTS = ("train", "val", "test")
SUSPICIOUS = 0.35  # of (event, censored) pairs in which the censored one is longer; real follow-up has more


@dataclass(frozen=True)
class Columns:
    """Names of the manifest's columns.

    Attributes:
        slide, case: ids; either may be absent, then it is the other.
        label: class, text or number.
        time: survival time, in any unit.
        censored: 1 = censored, 0 = event seen.
        event: 1 = event seen, instead of `censored`.
        covariate: a number a case that a baseline ranks by, such as the age.
    """

    slide: str = "slide_id"
    case: str = "case_id"
    label: str = "label"
    time: str = "survival_months"
    censored: str = "censorship"
    event: str | None = None
    covariate: str | None = None


@dataclass
class Case:
    """A record: the slides of a patient and what is known of it."""

    id: str
    slides: list[str]
    label: str | None = None
    time: float | None = None
    censored: int | None = None
    covariate: float | None = None


@dataclass
class Manifest:
    """The cases, in the order of the file.

    Attributes:
        cases: by id.
        path: the file.
        classes: the labels in order: numbers ascending, else text ascending.
    """

    cases: dict[str, Case]
    path: Path
    classes: list[str] = field(default_factory=list)

    def case_of(self) -> dict[str, str]:
        """Slide id or case id -> case id; of a name that is both, the slide's."""
        own = {name: name for name in self.cases}
        return own | {slide: case.id for case in self.cases.values() for slide in case.slides}


def read_manifest(
    path: Path,
    target: Target | None,
    columns: Columns | None = None,
    invalid: Invalid = "error",
    classes: Sequence[str] | None = None,
) -> Manifest:
    """Reads a manifest.

    Args:
        path: CSV.
        target: what answers are needed; None needs none (prediction).
        columns: names of the columns.
        invalid: rows without a usable answer: ``"error"``, or ``"drop"`` and say so.
        classes: the classes of a trained model, in order; other labels are refused.

    Raises:
        InputError: no CSV, a missing column, a bad value, rows that contradict each other.
    """
    columns = columns or Columns()
    frame = read_table(path)
    _require_columns(frame, path, target, columns)
    for name in (columns.slide, columns.case):
        empty = [row for row, cell in frame.get(name, pd.Series()).items() if cell is None or cell.lower() in MISSING]
        if empty:
            raise InputError(f"empty {name}", file=path, place=f"line {empty[0]}")
    if target == "survival":
        _warn_of_name(columns, path)
    manifest = _collect(frame, path, target, columns, invalid)
    if target == "classification":
        _set_classes(manifest, frame, columns, classes)
    if target == "survival":
        _warn_of_values(manifest)
    return manifest


def _set_classes(manifest: Manifest, frame: pd.DataFrame, columns: Columns, known: Sequence[str] | None) -> None:
    """Sets the classes: those of the labels, or `known` ones, which the labels must be among."""
    labels = [case.label for case in manifest.cases.values() if case.label is not None]
    if known is None:
        manifest.classes = order_classes(set(labels))
        if len(manifest.classes) > max(2, len(labels) / 2):
            classes = f"{len(manifest.classes)} classes in {len(labels)} cases"
            say(f"{manifest.path}: warning: {classes}; is {columns.label} a class at all?")
        return
    other = list(dict.fromkeys(label for label in labels if label not in known))
    if other:
        count = sum(label in other for label in labels)
        line = next(row for row, cell in frame[columns.label].items() if cell is not None and _label(cell) in other)
        names = ", ".join(other[:5])
        message = f"{count} cases have classes that the model does not know: {names}; it knows {', '.join(known)}"
        raise InputError(f"{message}{nearest(other[0], known)}", file=manifest.path, place=f"line {line}")
    manifest.classes = list(known)


def _label(cell: str) -> str:
    return re.sub(r"^(-?\d+)\.0+$", r"\1", cell)  # 1.0 of a column that once had gaps is class 1


def _require_columns(frame: pd.DataFrame, path: Path, target: Target | None, columns: Columns) -> None:
    """Refuses a manifest without a column that is needed or was named; says when slides have no cases."""
    options = {"label_column": columns.label, "time_column": columns.time, "censor_column": columns.censored}
    options |= {"event_column": columns.event, "covariate_column": columns.covariate}
    has = f"it has {_names(frame)}"
    if columns.slide not in frame and columns.case not in frame:
        how = "" if target is None else "; --data.slide_column and --data.case_column name others"
        raise InputError(f"has neither {columns.slide} nor {columns.case}; {has}{how}", file=path)
    needed: list[str] = []
    if target is not None:
        censored = "event_column" if columns.event is not None else "censor_column"
        needed = ["label_column"] if target == "classification" else ["time_column", censored]
    if columns.covariate is not None:
        needed.append("covariate_column")
    for option in needed:
        if options[option] not in frame:
            raise InputError(f"has no column {options[option]}; {has}; --data.{option} names another", file=path)
    for option, name, usual in (
        ("slide_column", columns.slide, Columns.slide),
        ("case_column", columns.case, Columns.case),
    ):
        if name not in frame and name != usual:  # a slip here would put the slides of a patient on two sides
            whose = "of the model's training" if target is None else f"of --data.{option}"
            raise InputError(f"has no column {name}, the one {whose}; {has}", file=path)
    if columns.case not in frame:
        say(f"{path}: no column {columns.case}: every slide is taken as a case of its own")


def _names(frame: pd.DataFrame) -> str:
    return ", ".join(str(name) for name in frame.columns[:12])


def _collect(frame: pd.DataFrame, path: Path, target: Target | None, columns: Columns, invalid: Invalid) -> Manifest:
    cases: dict[str, Case] = {}
    first_row: dict[str, int] = {}
    repeated = dropped = 0
    by_slide: dict[str, str] = {}
    for row, values in zip(frame.index, frame.to_dict("records")):
        raw_slide, raw_case = values.get(columns.slide), values.get(columns.case)
        slide = slide_id(str(raw_slide if raw_slide is not None else raw_case))
        case = slide_id(str(raw_case)) if raw_case is not None else slide
        try:
            answer = _answer(values, target, columns)
        except ValueError as error:
            if invalid == "error":
                hint = "; --data.invalid drop leaves such rows out"
                raise InputError(f"{error}{hint}", file=path, place=f"line {row}") from None
            dropped += 1
            continue
        if by_slide.setdefault(slide, case) != case:
            raise InputError(f"slide {slide} is of two cases, {by_slide[slide]} and {case}", file=path)
        known = cases.get(case)
        if known is None:
            cases[case] = Case(case, [slide], **answer)
            first_row[case] = row
            continue
        kept = {name: getattr(known, name) for name in answer}
        if kept != answer:
            name = next(name for name in answer if answer[name] != kept[name])
            place = f"lines {first_row[case]} and {row}"
            raise InputError(
                f"case {case} has two values of {name}: {kept[name]}, {answer[name]}", file=path, place=place
            )
        if slide in known.slides:
            repeated += 1
        else:
            known.slides.append(slide)
    if dropped:
        say(f"{path}: {dropped} rows without a usable answer left out")
    if repeated:
        say(f"{path}: {repeated} repeated rows merged")
    if not cases:
        raise InputError("no row is usable", file=path)
    return Manifest(cases, path)


def order_classes(labels: set[str]) -> list[str]:
    """Numbers by size, else text by the alphabet."""
    numeric = all(re.fullmatch(r"-?\d+(\.0+)?", label) for label in labels)
    return sorted(labels, key=float) if numeric else sorted(labels)


def _answer(values: Mapping[str, Any], target: Target | None, columns: Columns) -> dict[str, Any]:
    """The fields of `Case` that a row gives."""
    found: dict[str, Any] = {}
    if target == "classification":
        label = _cell(values, columns.label)
        if label is None:
            raise ValueError(f"empty {columns.label}")
        if label.lower() in MISSING:
            raise ValueError(f"{columns.label} is {label}, which says that it is missing")
        found["label"] = _label(label)
    elif target == "survival":
        time = _number(values, columns.time)
        if time <= 0:
            raise ValueError(f"{columns.time} is {time:g}; a time is greater than 0")
        name = columns.event or columns.censored
        flag = _number(values, name)
        if flag not in (0, 1):
            raise ValueError(f"{name} is {flag:g}; 0 or 1 is needed")
        found |= {"time": time, "censored": int(flag) if columns.event is None else 1 - int(flag)}
    if columns.covariate is not None:
        found["covariate"] = _number(values, columns.covariate)
    return found


def _cell(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    return value if isinstance(value, str) and value else None


def _number(values: Mapping[str, Any], name: str) -> float:
    cell = _cell(values, name)
    if cell is None:
        raise ValueError(f"empty {name}")
    try:
        number = float(cell)
    except ValueError:
        raise ValueError(f"{name} is {cell!r}, not a number") from None
    if not np.isfinite(number):
        raise ValueError(f"{name} is {cell}, not a number")
    return number


def _warn_of_name(columns: Columns, path: Path) -> None:
    name = columns.event or columns.censored
    looks_censored = "cens" in name.lower()
    looks_event = bool(re.search(r"event|death|dead|status|vital", name.lower()))
    if columns.event is None and looks_event and not looks_censored:
        say(f"{path}: warning: the column {name} sounds like 1 = event, is read as 1 = censored (--data.event_column)")
    if columns.event is not None and looks_censored:
        say(f"{path}: warning: the column {name} sounds like 1 = censored, and is read as 1 = event")


def _warn_of_values(manifest: Manifest) -> None:
    """Patients whose end was not seen were followed up about as long as the others, often longer."""
    times = np.array([case.time for case in manifest.cases.values()])
    censored = np.array([case.censored for case in manifest.cases.values()], dtype=bool)
    if censored.sum() < 5 or (~censored).sum() < 5:
        return
    gaps = times[censored][:, None] - times[~censored][None]
    longer = (gaps > 0).mean() + (gaps == 0).mean() / 2
    if longer < SUSPICIOUS:
        say(
            f"{manifest.path}: warning: censored cases have far shorter times than those with an event; is the flag "
            "inverted? 1 must mean censored (--data.event_column names a column in which 1 means event)"
        )


def patient_of(name: str) -> str | None:
    """The patient in a TCGA barcode: ``"TCGA-02-0001-01Z-00-DX1"`` is of ``"TCGA-02-0001"``; None for other names."""
    match = re.match(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?=$|[-.])", name, re.IGNORECASE)
    return match[0].upper() if match else None


# -- splits ----------------------------------------------------------------------------------------------------------


def split_files(folder: Path) -> list[Path]:
    """The split files of a folder by their numbers: ``splits_0.csv``, ... or ``splits_<repeat>_<fold>.csv``.

    CLAM's ``splits_k_bool.csv`` and ``splits_k_descriptor.csv`` are no splits and left out.
    """
    if not folder.is_dir():
        raise InputError("--data.folds: neither a number nor a folder", file=folder)
    found = {}
    for file in folder.iterdir():
        match = re.fullmatch(r"[A-Za-z-]+((?:_\d+)+)\.csv", file.name)
        if match:
            found[tuple(int(number) for number in match[1][1:].split("_"))] = file
    if not found:
        raise InputError("holds no split files splits_0.csv, splits_1.csv, ...", file=folder)
    return [found[key] for key in sorted(found)]


def read_split(path: Path, manifest: Manifest) -> dict[str, list[str]]:
    """The case ids of ``train``, ``val`` and ``test`` from a CLAM split file; parts that are absent or empty are [].

    Raises:
        InputError: an id that the manifest has not, a case on two sides, no training part.
    """
    frame = read_table(path)
    known = manifest.case_of()
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    if "train" not in frame:
        raise InputError(f"has no column train; it has {_names(frame)}", file=path)
    for part in PARTS:
        if part not in frame:
            continue
        for row, name in frame[part].dropna().items():
            plain, place = slide_id(name), f"line {row}"
            if plain not in known:
                if plain.lower() in MISSING:
                    continue
                raise InputError(f"{part} id {name} is not in {manifest.path.name}", file=path, place=place)
            if plain in manifest.cases and known[plain] != plain:
                message = f"{part} id {name} is a case and also a slide of case {known[plain]}"
                raise InputError(f"{message}; rename one in {manifest.path.name}", file=path, place=place)
            if known[plain] not in parts[part]:
                parts[part].append(known[plain])
    require_apart(parts, path)
    if not parts["train"]:
        raise InputError("the training part is empty", file=path)
    return parts


def require_apart(parts: Mapping[str, Sequence[str]], path: Path) -> None:
    """Refuses a case that stands in two parts: it would be learned and tested."""
    seen: dict[str, str] = {}
    for part, ids in parts.items():
        for case in ids:
            if seen.setdefault(case, part) != part:
                raise InputError(f"case {case} stands in {seen[case]} and in {part}; a case is in one part", file=path)


def make_split(manifest: Manifest, count: int, fold: int, seed: int) -> dict[str, list[str]]:
    """Fold `fold` of `count` made by case, stratified by class or event: that one tests, the next one validates.

    Raises:
        InputError: fewer cases than folds, or no such fold.
    """
    if not 3 <= count <= len(manifest.cases):
        raise InputError(f"--data.folds {count}: 3 to {len(manifest.cases)} are possible", file=manifest.path)
    if not 0 <= fold < count:
        raise InputError(f"--data.fold {fold}: there are 0 to {count - 1}")
    number = deal(manifest, list(manifest.cases), count, seed)
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for case, own in number.items():
        part = "test" if own == fold else "val" if own == (fold + 1) % count else "train"
        parts[part].append(case)
    return parts


def inner_split(manifest: Manifest, cases: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """(train, val): `share` of the cases taken out, stratified; at least one case each."""
    count = max(2, round(1 / share))
    number = deal(manifest, cases, count, seed)
    return [case for case in cases if number[case] != 0], [case for case in cases if number[case] == 0]


def deal(manifest: Manifest, cases: list[str], count: int, seed: int) -> dict[str, int]:
    """Deals cases to `count` heaps like cards, stratum by stratum, so that heaps and strata differ by at most one."""
    strata: dict[str, list[str]] = {}
    for case in sorted(cases):  # the order of the manifest's rows does not matter
        known = manifest.cases[case]
        strata.setdefault(str(known.label if known.label is not None else known.censored), []).append(case)
    generator = np.random.default_rng(seed)
    dealt: dict[str, int] = {}
    turn = 0
    for name in sorted(strata):
        for position in generator.permutation(len(strata[name])):
            dealt[strata[name][position]] = turn % count
            turn += 1
    return dealt
