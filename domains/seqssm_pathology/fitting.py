"""Targets of a data set: heads fitted on the training split, targets of cases as tensors, and predictions to score."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from seqssm.errors import InputError
from seqssm.metrics.classes import class_list, class_name
from seqssm_pathology.answers import LABELS, Columns, Target
from seqssm_pathology.files import say
from seqssm_pathology.fitted import bin_of, cut
from seqssm_pathology.heads import ClassHead, Head, LabelsHead, NumberHead, SurvivalHead
from seqssm_pathology.manifest import Case, Manifest

Unit = Literal["days", "months", "years"]
UNITS = {"days": 1.0, "months": 365.25 / 12, "years": 365.25}
"""Units of survival time, in days."""
LONGEST_YEARS = 100  # survival times beyond it are reported


def unit_of(column: str, declared: str | None) -> str | None:
    """Return the unit of a column of times: the declared one, else the one in its name; None if there is none."""
    found = re.search(r"(day|month|year)s?(?![a-z])", column.lower())
    return declared or (f"{found[1]}s" if found else None)


def warn_of_unit(times: Sequence[float], column: str, unit: str | None, path: Path) -> None:
    """Report survival times that are longer than a life in their unit: the unit is probably another one.

    Args:
        times: the times.
        column: their column.
        unit: their unit; None if unknown.
        path: the manifest.
    """
    if unit is not None and len(times) and max(times) * UNITS[unit] > LONGEST_YEARS * UNITS["years"]:
        say(
            f"{path}: warning: {column} is up to {max(times):.4g} {unit}, more than {LONGEST_YEARS} years; is the unit "
            "another one (--data.time_unit)?"
        )


def kinds_of(target: Target, columns: Columns) -> list[tuple[str, str]]:
    """List the (name, kind) of the targets; labels among several targets are one target."""
    if target == "several":
        found = [(name, str(kind)) for name, kind in columns.several if kind != "label"]
        return [*found, (LABELS, "labels")] if len(found) < len(columns.several) else found
    names = {"survival": columns.time, "labels": LABELS}
    return [(names.get(target, columns.label), target)]


def make_heads(
    manifest: Manifest,
    train: Sequence[Case],
    target: Target,
    columns: Columns,
    bins: int,
    unit: str | None,
) -> list[Head]:
    """Fit the heads on the training records.

    Args:
        manifest: all records.
        train: training records.
        target: prediction target.
        columns: names of the columns.
        bins: number of time bins of survival.
        unit: declared unit of the survival times.

    Raises:
        InputError: a target has no known or only equal values in the training split.
    """
    heads: list[Head] = []
    several = target == "several"
    for place, (name, kind) in enumerate(kinds_of(target, columns)):
        plain = NumberHead(name, f"{name}." if several else "", place)
        known = [answer for case in train if (answer := answer_of(plain, kind, case)) is not None]
        if not known:
            raise InputError(f"{name} is not known in the training split", file=manifest.path)
        common = (name, plain.tag, place)
        if kind == "classification":
            classes = manifest.names[name] if several else manifest.classes
            _require_two(known, classes, name, manifest.path)
            heads.append(ClassHead(*common, classes=tuple(classes)))
        elif kind == "survival":
            edges = cut([tuple(one) for one in known], bins, manifest.path)
            heads.append(SurvivalHead(*common, edges=tuple(edges), unit=unit_of(name, unit)))
            everyone = [answer_of(plain, kind, case) for case in manifest.cases.values()]
            warn_of_unit([one[0] for one in everyone if one is not None], name, unit_of(name, unit), manifest.path)
        elif kind == "regression":
            heads.append(_number(common, np.array(known, dtype=np.float64), manifest.path))
        else:
            labels = columns.labels
            if several:
                labels = tuple(name for name, one in columns.several if one == "label")
            heads.append(_labels(common, known, labels, manifest.path))
    return heads


def _require_two(labels: Sequence[str], classes: Sequence[str], name: str, path: Path) -> None:
    if len(classes) < 2:
        raise InputError(f"every case has the {name} {classes[0]}; at least two classes are needed", file=path)
    if len(set(labels)) < 2:
        raise InputError("the training split has a single class; at least two are needed", file=path)


def _number(common: tuple[str, str, int], values: np.ndarray, path: Path) -> NumberHead:
    mean, scale = float(values.mean()), float(values.std())
    if not scale > 1e-9 * max(1.0, abs(mean)):
        raise InputError(f"every training case has the same {common[0]} ({mean:g}): nothing to learn", file=path)
    return NumberHead(*common, mean=mean, scale=scale)


def _labels(
    common: tuple[str, str, int], known: Sequence[Sequence[float | None]], labels: tuple[str, ...], path: Path
) -> LabelsHead:
    for number, name in enumerate(labels):
        found = {row[number] for row in known} - {None}
        if len(found) < 2:
            kind = {0.0: "absent", 1.0: "present"}.get(next(iter(found), None), "unknown")  # type: ignore[arg-type]
            raise InputError(f"label {name} is {kind} in every training case: nothing to learn", file=path)
    return LabelsHead(*common, labels=labels)


def answer_of(head: Head, kind: str, case: Case) -> Any:
    """Return the target of a case: class, (time, censored), number or labels; None if it is unknown."""
    if head.tag:
        return case.targets.get(head.name)
    if kind == "survival":
        return None if case.time is None else (case.time, case.censored)
    return {"classification": case.label, "regression": case.value, "labels": case.labels}[kind]


KINDS: dict[type[Head], str] = {
    ClassHead: "classification",
    SurvivalHead: "survival",
    NumberHead: "regression",
    LabelsHead: "labels",
}


def target_of(head: Head, case: Case) -> Any:
    """`answer_of` by the type of the head."""
    return answer_of(head, KINDS[type(head)], case)


def truths(heads: Sequence[Head], case: Case) -> dict[str, Tensor]:
    """Return the targets of a case as tensors: unknown classes and bins are -1, unknown numbers and labels NaN."""
    found: dict[str, Tensor] = {}
    for head in heads:
        answer = target_of(head, case)
        if isinstance(head, ClassHead):
            found[head.key("label")] = torch.tensor(-1 if answer is None else head.classes.index(str(answer)))
        elif isinstance(head, SurvivalHead):
            time, censored = (float("nan"), 1) if answer is None else answer
            found[head.key("time")] = torch.tensor(float(time))
            found[head.key("censored")] = torch.tensor(int(censored))
            found[head.key("bin")] = torch.tensor(-1 if answer is None else bin_of(time, list(head.edges)))
        elif isinstance(head, LabelsHead):
            row = [None] * head.size if answer is None else answer
            found[head.key("labels")] = torch.tensor([float("nan") if one is None else float(one) for one in row])
        else:
            value = float("nan") if answer is None else float(answer)
            found[head.key("value")] = torch.tensor(value, dtype=torch.float64)
    return found


def weighted(heads: Sequence[Head], train: Sequence[Case]) -> list[Head]:
    """Return the heads with class weights from the inverse frequencies in the training split."""
    found: list[Head] = []
    for head in heads:
        known = [answer for case in train if (answer := target_of(head, case)) is not None]
        if isinstance(head, ClassHead):
            counts = Counter(known)
            sizes = np.maximum([counts[name] for name in head.classes], 1)
            head = replace(head, weights=tuple((sizes.sum() / (len(sizes) * sizes)).tolist()))
        elif isinstance(head, LabelsHead):
            columns = [[one for one in column if one is not None] for column in zip(*known)]
            head = replace(head, weights=tuple((len(one) - sum(one)) / max(1.0, sum(one)) for one in columns))
        found.append(head)
    return found


def columns_of(head: Head, cases: Sequence[Case], columns: Columns) -> dict[str, list[float]]:
    """Return the target as columns of numbers, without those that are unknown for a case, by name.

    Args:
        head: the target.
        cases: the cases.
        columns: names of the manifest's columns.
    """
    known = [target_of(head, case) for case in cases]
    if any(one is None for one in known):
        return {}
    if isinstance(head, ClassHead):
        return {columns.label if not head.tag else head.name: [head.classes.index(str(one)) for one in known]}
    if isinstance(head, SurvivalHead):
        flags = [float(censored) for _, censored in known]
        found = {head.name: [time for time, _ in known], columns.flag: flags}
        return {**found, f"1 - {columns.flag}": [1 - flag for flag in flags]}
    if isinstance(head, LabelsHead):
        found = {name: [row[number] for row in known] for number, name in enumerate(head.labels)}
        return {name: column for name, column in found.items() if None not in column}
    return {head.name: list(known)}


def reported(head: Head, train: Sequence[Case], level: str) -> str:
    """Describe a target of the training split for the log, and warn of classes without a case.

    Args:
        head: the target.
        train: training records.
        level: what a record is.
    """
    known = [answer for case in train if (answer := target_of(head, case)) is not None]
    if isinstance(head, ClassHead):
        counts = Counter(known)
        absent = [name for name in head.classes if not counts[name]]
        if absent:
            say(f"warning: no training {level} of class {class_list(absent)}: never predicted")
        return ", ".join(f"{counts[name]} of class {class_name(name)}" for name in head.classes)
    if isinstance(head, SurvivalHead):
        events = sum(not censored for _, censored in known)
        unit = f" {head.unit}" if head.unit else ""
        return f"{events} events; bins cut at {', '.join(f'{edge:.4g}' for edge in head.edges[1:-1])}{unit}"
    if isinstance(head, LabelsHead):
        columns = [[one for one in column if one is not None] for column in zip(*known)]
        return ", ".join(f"{class_name(name)} {sum(one):g} of {len(one)}" for name, one in zip(head.labels, columns))
    assert isinstance(head, NumberHead)
    return f"{head.name} of {len(known)} cases, mean {head.mean:.4g}, standard deviation {head.scale:.4g}"


def described(heads: Sequence[Head]) -> list[dict[str, Any]]:
    """Describe the heads by plain values, for a checkpoint; without the options of the loss and of ensembles."""
    return [
        {
            "kind": KINDS[type(head)],
            **{
                one.name: list(value) if isinstance(value := getattr(head, one.name), tuple) else value
                for one in fields(head)
                if one.name not in ("weights", "alpha", "written_edges")
            },
        }
        for head in heads
    ]


def convert_times(manifest: Manifest, heads: Sequence[Head], column: str, declared: str | None) -> None:
    """Convert survival times from the unit of the manifest to that of a trained model, in place.

    Args:
        manifest: the manifest of another cohort.
        heads: heads of the model.
        column: column of times in the manifest, for a single target.
        declared: declared unit of the manifest's times.
    """
    for head in heads:
        if not isinstance(head, SurvivalHead) or head.unit is None:
            continue
        name = head.name if head.tag else column
        own = unit_of(name, declared)
        answers = [case.targets.get(head.name) or (None,) for case in manifest.cases.values()]
        found = [one[0] for one in answers] if head.tag else [case.time for case in manifest.cases.values()]
        warn_of_unit([time for time in found if time is not None], name, own or head.unit, manifest.path)
        if own is None:
            say(
                f"{manifest.path}: {name} is read as {head.unit}, the unit of the model (--data.time_unit: another one)"
            )
        if own is None or own == head.unit:
            continue
        factor = UNITS[own] / UNITS[head.unit]
        for case in manifest.cases.values():
            if head.tag:
                if case.targets.get(head.name) is not None:
                    time, censored = case.targets[head.name]
                    case.targets[head.name] = (time * factor, censored)
            elif case.time is not None:
                case.time *= factor
        say(f"{manifest.path}: times converted from {own} to {head.unit}, the unit of the model")
