"""``seqssm compare``: the test scores of several runs in one table, with paired differences."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.domain import find_domain, resolve
from seqssm.errors import InputError
from seqssm.metrics.classes import class_list
from seqssm.metrics.metric import direction
from seqssm.metrics.records import DRAWS, TestRecords, paired_intervals
from seqssm.metrics.report import Report
from seqssm.metrics.summary import summarise
from seqssm.tools.report import Run, read_run, test_records
from seqssm.training import checkpoint, ensemble
from seqssm.training.external import read_split
from seqssm.training.run_folder import ABOUT, BEST, FOLDS, METRICS, RunFolder
from seqssm.training.unchanged import TARGETS


@dataclass
class Compared:
    """A run of a comparison.

    Attributes:
        name: row label, the shortest suffix of its path that is unique among the runs.
        run: the run, or the folder of its test on other data or of another checkpoint.
        values: its test scores.
        records: its test predictions; None if the domain stores none.
        ids: ids of its test records; None if unknown.
        changed: how the tested records differ from those at the training; empty if they do not.
    """

    name: str
    run: Run
    values: dict[str, float | None]
    records: TestRecords | None
    ids: set[str] | None
    changed: str = ""


def compare(paths: Sequence[str | Path]) -> Report:
    """Compare the tests of several runs of a domain, or several `kfold` studies.

    Args:
        paths: run folders, or folders of tests on other data (`RUN/test-NAME`); the other ones are compared with the
            first one.

    Returns:
        One table with a row per score and run: value, and difference from the first run if both tested the same
        records, with a 95 % interval by a paired bootstrap over the records if the domain stores predictions. For
        studies, the table of `kfold`, paired by fold and seed.

    Raises:
        InputError: fewer than two runs, different domains, or a run without a test.
    """
    if len({Path(path).resolve() for path in paths}) < max(2, len(paths)):
        raise InputError("compare needs two or more different runs")
    runs = [read_test(path) or _whole(read_run(path)) for path in paths]
    for run in runs[1:]:
        if run.domain.name != runs[0].domain.name:
            message = f"belongs to {run.domain.name}, but {runs[0].path} to {runs[0].domain.name}"
            raise InputError(f"{message}: only runs of one domain can be compared", file=run.path)
    studies = [(run.path / FOLDS).is_file() for run in runs]
    if any(studies):
        if not all(studies):
            raise InputError(
                "a kfold study can only be compared with other studies", file=runs[studies.index(False)].path
            )
        return of_studies(runs)
    for run in runs:
        if "test" not in run.metrics:
            raise InputError(f"has not been tested; run: seqssm {run.domain.name} test {run.path}", file=run.path)
    return of_runs([describe(name, run) for name, run in zip(labels([run.path for run in runs]), runs)])


def _whole(run: Run) -> Run:
    checkpoint.require_whole(run.entry, run.path / BEST)
    return run


def read_test(path: str | Path) -> Run | None:
    """Read the folder of a test on other data or of another checkpoint, with that checkpoint; None for other folders.

    Raises:
        InputError: the checkpoint is not there.
    """
    folder = Path(path)
    if not (folder / METRICS).is_file() or RunFolder(folder).holds_run():
        return None
    metrics = RunFolder(folder).read_json()
    tested = metrics.get("test", {})
    if not tested.get("checkpoint"):
        return None
    own = folder.resolve().parent / Path(tested["checkpoint"]).name  # of `RUN/test-NAME`, also where RUN was moved
    found = own if folder.resolve().name.startswith("test-") and own.is_file() else Path(tested["checkpoint"])
    if not found.is_file():
        raise InputError(f"is the test of a checkpoint that is not there: {found}", file=folder)
    entry = ensemble.read_tested(found)[0]["seqssm"]
    about = RunFolder(folder).read_json(ABOUT)
    return Run(RunFolder(folder), find_domain(entry["domain"], file=found), entry, about=about, metrics=metrics)


def labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest suffixes of the paths that are unique."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        found = ["/".join(one[-length:]) for one in parts]
        if len(set(found)) == len(found):
            return found
    return [str(path) for path in paths]


def describe(name: str, run: Run) -> Compared:
    records = test_records(run)
    rows = read_split(run.folder)
    ids = None if rows is None else {row["id"] for row in rows if row["split"] == "test"}
    test = run.metrics["test"]
    ids = set(records.ids) if records else ids or None
    return Compared(name, run, test["metrics"], records, ids, test.get("changed") or "")


def of_runs(runs: list[Compared]) -> Report:
    """The table of single runs."""
    first, metrics = runs[0], runs[0].run.scores
    names = list(dict.fromkeys(name for one in runs for name in one.values))
    spreads: dict[str, dict[str, tuple[float, float]]] = {}
    notes, paired = [], {}
    for one in runs[1:]:
        paired[one.name], why = same_records(first, one)
        if why:
            notes.append(f"{one.name}: {why}")
        if paired[one.name] and first.records and one.records:
            spreads[one.name] = paired_intervals(first.records, one.records, names)
    rows = []
    for metric in names:
        unit = next((m.unit for m in metrics if m.name == metric), "")
        words = {"max": "higher", "min": "lower", None: ""}[direction(metrics, metric)]
        for one in runs:
            row: dict[str, Any] = {"score": metric, "unit": unit, "better": words, "run": one.name}
            row["value"] = one.values.get(metric)
            here, there = first.values.get(metric), one.values.get(metric)
            if one is not first and paired[one.name] and here is not None and there is not None:
                row["difference"] = there - here
                low, high = spreads.get(one.name, {}).get(metric, (None, None))
                row |= {"2.5 %": low, "97.5 %": high}
            rows.append(row)
    frame = pd.DataFrame(rows, columns=["score", "unit", "better", "run", "value", "difference", "2.5 %", "97.5 %"])
    number = len(first.ids) if first.ids else 0
    how = f"; interval: paired bootstrap over the records, {DRAWS} draws" if spreads else ""
    title = f"Test scores; no differences from {first.name} (see below)"
    if any(paired.values()):
        title = f"Test scores; difference = run - {first.name}, on the same {number} records{how}"
    empty = [name for name in ("unit", "better") if not frame[name].any()]
    empty += [name for name in ("difference", "2.5 %", "97.5 %") if frame[name].isna().all()]
    tables = [(title, frame.drop(columns=empty))]
    if notes:
        tables.append(("Without differences", pd.DataFrame({"reason": notes})))
    return Report(tables=tables)


def same_records(first: Compared, other: Compared) -> tuple[bool, str]:
    """Whether two runs tested the same records in the same way, and if not, why."""
    for one in (first, other):
        if one.changed:
            return False, f"the test records of {one.name} have changed since its training ({one.changed})"
    if first.ids is None or other.ids is None:
        return False, "the test records are unknown (no split.csv)"
    if first.ids != other.ids:
        common = len(first.ids & other.ids)
        return (
            False,
            f"different test records ({common} in common, {len(other.ids)} here, {len(first.ids)} in {first.name})",
        )
    task = resolve(first.run.domain.task)
    for name in task.target_args:
        mine, theirs = (one.run.entry["hparams"].get(name) for one in (other, first))
        if mine != theirs:
            return False, f"different {name} ({mine}, not {theirs})"
    for name in task.unit_values:
        mine, theirs = (one.run.entry["data"].get(name) for one in (other, first))
        if not np.array_equal(np.asarray(mine), np.asarray(theirs)):
            return False, f"scores in other units ({name} of its training data differs)"
    why = different_labels(first, other)
    return not why, why


def different_labels(first: Compared, other: Compared) -> str:
    """Say how the classes of two runs, or the labels of their records, differ; empty if they do not, or are unknown."""
    mine, theirs = ({} if one.records is None else one.records.probabilities for one in (other, first))
    if not mine or not theirs:
        digests = {(one.run.about.get(TARGETS) or {}).get("test") for one in (first, other)} - {None}
        return "different targets of the same records" if len(digests) > 1 else ""
    assert first.records is not None
    assert other.records is not None
    if set(mine) != set(theirs):
        return f"different classes ({class_list(sorted(mine))}, not {class_list(sorted(theirs))})"
    place = {name: k for k, name in enumerate(other.records.ids)}
    order = np.array([place[name] for name in first.records.ids], dtype=np.int64)
    changed = np.zeros(len(order), dtype=bool)
    for name, (labels_of_class, _) in theirs.items():
        a, b = np.asarray(labels_of_class, dtype=float), np.asarray(mine[name][0], dtype=float)[order]
        changed |= (a != b) & ~(np.isnan(a) & np.isnan(b))  # NaN: unknown
    return f"different labels of {int(changed.sum())} of {len(order)} records" if changed.any() else ""


def of_studies(runs: list[Run]) -> Report:
    """The table of `kfold` studies, paired by fold and seed if they tested the same records; models are study/model."""
    names = labels([run.path for run in runs])
    studies = [read_folds(run) for run in runs]
    paired, others, notes = [], [], []
    for name, run, rows in zip(names, runs, studies):
        named = [{**row, "model": f"{name}/{row['model']}"} for row in rows]
        why = "" if run is runs[0] else unlike((names[0], runs[0], studies[0]), (name, run, rows))
        if why:
            notes.append(f"{name}: {why}")
            others.append((f"mean and standard deviation over the runs of {name}", named))
        else:
            paired += named
    title = "mean and standard deviation over the runs"
    if len({row["model"] for row in paired}) > 1:
        title += f"; difference = model - {paired[0]['model']} for the same fold and seed"
    tables = [(title, summarise(rows, runs[0].scores)) for title, rows in ((title, paired), *others)]
    if notes:
        tables.append(("Without differences", pd.DataFrame({"reason": notes})))
    return Report(tables=tables)


def read_folds(run: Run) -> list[dict[str, Any]]:
    """Read the rows of a study's `folds.csv`; scores are numbers or None."""
    with open(run.path / FOLDS, encoding="utf-8", newline="") as file:
        return [
            {key: value if key in KEYS else float(value) if value else None for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


Named = tuple[str, Run, list[dict[str, Any]]]
"""A study: its name in the table, its folder, and the rows of its `folds.csv`."""


def unlike(first: Named, other: Named) -> str:
    """Say how the records that two studies tested with the same fold and seed differ; empty if they do not."""
    pairs = [dict.fromkeys((row["fold"], row["seed"]) for row in rows) for _, _, rows in (first, other)]
    common = [one for one in pairs[0] if one in pairs[1]]
    if not common:
        return "no fold and seed in common"
    for pair in common:
        mine, theirs = (tested_cell(*study, *pair) for study in (first, other))
        if mine is None or theirs is None or (mine.ids is None and theirs.ids is None):
            continue
        same, why = same_records(mine, theirs)
        if not same:
            where = [f"{key} {value}" for key, value in zip(("fold", "seed"), pair) if value]
            return f"{why} (with {' and '.join(where)})"
    return ""


def tested_cell(name: str, run: Run, rows: list[dict[str, Any]], fold: str, seed: str) -> Compared | None:
    """Read the test of the first trained model of a study with a fold and a seed; None if there is none."""
    for row in rows:
        if (row["fold"], row["seed"]) == (fold, seed):
            folder = run.path / row["model"]
            for path in folder.glob(f"*-{fold}_seed-{seed}/{BEST}" if fold else f"seed-{seed}/{BEST}"):
                cell = read_run(path.parent)
                return describe(name, cell) if "test" in cell.metrics else None
    return None


KEYS = ("fold", "seed", "model")
