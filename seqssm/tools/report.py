"""``seqssm report``: the contents of a run folder as one self-contained page."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from seqssm.domain import Domain, domains, find_domain, resolve
from seqssm.errors import InputError, no_such_model
from seqssm.files.disk import require_writable
from seqssm.files.outputs import STUDENTS
from seqssm.metrics.metric import Metric
from seqssm.metrics.records import TestRecords, reliability
from seqssm.plot.curves import COLORS, learning_curves, reliability_diagram
from seqssm.tools.page import Chapter, Section, picture, write_page
from seqssm.training import checkpoint
from seqssm.training.external import read_split
from seqssm.training.kfold import PRESET
from seqssm.training.run_folder import (
    ABOUT,
    BEST,
    CONFIG,
    FIGURES,
    FOLDS,
    LOG,
    METRICS,
    PLAN,
    REPORT,
    STAGE,
    RunFolder,
)
from seqssm.version import __version__

MOST_FIGURES = 24  # on a page


@dataclass
class Run:
    """The contents of a run folder.

    Attributes:
        folder: the run folder.
        domain: domain of the run.
        entry: the ``"seqssm"`` entry of the checkpoint; empty for a study or a baseline.
        epoch: epoch of `best.ckpt`; None if there is none.
        config, about, metrics: contents of `config.yaml`, `about.json` and `metrics.json`.
    """

    folder: RunFolder
    domain: Domain
    entry: dict[str, Any] = field(default_factory=dict)
    epoch: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def scores(self) -> tuple[Metric, ...]:
        """The declared scores of the domain."""
        return tuple(resolve(self.domain.metrics)) if self.domain.metrics else ()


def read_run(path: str | Path) -> Run:
    """Read a run folder, or that of a checkpoint.

    Raises:
        InputError: there is no run, or one of its files cannot be read.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".ckpt":
        if (path.with_suffix("") / STUDENTS).is_file():
            raise InputError("is a set of students, which has no report; test prints its scores", file=path)
        path = path.parent
    if not path.exists():
        raise no_such_model(path)
    folder = RunFolder(path)
    if not folder.holds_run():
        if "test" in folder.read_json():
            raise InputError("is a test, which the report of its run contains", file=path)
        raise InputError("contains no run (best.ckpt, last.ckpt, log.csv or folds.csv)", file=path)
    content: dict[str, Any] = {}
    if (path / PLAN).is_file() and not (path / FOLDS).is_file():
        raise InputError("is a kfold study without a finished run; kfold --resume continues it", file=path)
    if not (path / PLAN).is_file():
        content = checkpoint.read_checkpoint(path)
    entry = content.get("seqssm", {})
    domain = find_domain(entry["domain"], file=path) if entry else domain_of_study(path)
    return Run(
        folder,
        domain,
        entry,
        content.get("epoch") if (path / BEST).is_file() else None,
        read_yaml(path / CONFIG),
        folder.read_json(ABOUT),
        folder.read_json(METRICS),
    )


def domain_of_study(path: Path) -> Domain:
    """Find the domain of a study from a checkpoint of its runs, or from the classes in its configs."""
    for found in sorted(path.glob(f"*/*/{BEST}")):
        return find_domain(checkpoint.read_checkpoint(found)["seqssm"]["domain"], file=found)
    text = (path / PLAN).read_text(encoding="utf-8") if (path / PLAN).is_file() else ""
    for domain in domains().values():
        if domain.package in text:
            return domain
    raise InputError("contains no checkpoint that names its domain", file=path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping; a missing file gives an empty one."""
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError):
        raise InputError("is not valid YAML", file=path) from None
    if not isinstance(content, dict):
        raise InputError("is damaged: expected a mapping", file=path)
    return content


def read_rows(path: Path, numbers: tuple[str, ...], names: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read a table of a run.

    Args:
        path: a CSV file.
        numbers: required columns of numbers.
        names: other required columns.

    Raises:
        InputError: the file cannot be read, has no rows, or lacks a column.
    """
    try:
        frame = pd.read_csv(path)
    except ValueError:  # of pandas, for anything that is not a table
        raise InputError("is damaged: it is not a table", file=path) from None
    bad = [name for name in (*numbers, *names) if name not in frame]
    bad += [name for name in numbers if name in frame and not pd.api.types.is_numeric_dtype(frame[name])]
    if bad or frame[list(numbers)].isna().any(axis=None) or not len(frame):
        what = f"it has no valid column {bad[0]}" if bad else "it has empty cells or no rows"
        raise InputError(f"is damaged: {what}", file=path)
    return frame


def write_report(run: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a run, or of a `kfold` study.

    Args:
        run: run folder, or a checkpoint in one.
        output: the HTML file; by default `report.html` in the run folder.

    Returns:
        Path of the page.

    Raises:
        InputError: there is no run, one of its files cannot be read, or the page cannot be written.
    """
    found = read_run(run)
    path = Path(output) if output is not None else found.path / REPORT
    if path.is_dir():
        raise InputError("is a folder; --output takes an HTML file", file=path)
    try:
        require_writable(path.parent)
    except InputError as error:
        raise InputError(f"{error.message.partition(';')[0]}; name another file with --output", file=path) from None
    chapters = [*results(found), *(study(found) if FOLDS in listed(found.path) else [])]
    if found.entry:
        chapters += [*calibration(found), training(found), data(found), configuration(found)]
    chapters += [*environment(found), repeat(found)]
    network = found.entry.get("hparams", {}).get("network", "")
    lead = f"{found.domain.title}{f', network {network}' if network else ''}. Written by seqssm {__version__}."
    write_page(path, f"{found.domain.name}: {found.path.resolve().name}", lead, chapters)
    return path


def listed(path: Path) -> set[str]:
    return {one.name for one in path.iterdir()}


# -- results -----------------------------------------------------------------------------------------------------------


def results(run: Run) -> list[Chapter]:
    """The chapters of the test, of the validation, and of tests on other data."""
    found = [
        chapter(run, title, run.path, run.metrics[section])
        for section, title in (("test", "Test"), ("validate", "Validation"))
        if section in run.metrics
    ]
    for path in sorted(run.path.glob(f"test-*/{METRICS}")):
        content = RunFolder(path.parent).read_json()
        if "test" in content:
            what = "on other data" if content["test"].get("data") else "of another checkpoint"
            found.append(chapter(run, f"Test {what}: {path.parent.name[5:]}", path.parent, content["test"]))
    if "test" not in run.metrics and run.entry:
        stage, tested, text = run.entry.get(STAGE), str(run.path), "This run has not been tested yet. Test it with:"
        if stage:
            tested = checkpoint.set_of(run.path / BEST)
            text = (
                f"Student {stage} of a set. Its outputs are added to those of the students before it, and the scores "
                "of the validation are those of the sum. Test the set with:"
            )
        code = shlex.join(["seqssm", run.domain.name, "test", tested])
        found.insert(0, Chapter("Test", [Section("", text, code=code)]))
    return found


def chapter(run: Run, title: str, folder: Path, content: dict[str, Any]) -> Chapter:
    """The scores, tables and figures of one test."""
    units = {metric.name: metric.unit for metric in run.scores if metric.unit}
    scores = Section("Scores", provenance(content), [("Scores", score_table(run, content["metrics"]))])
    tables = [(one["title"], pd.DataFrame(one["rows"])) for one in content["tables"]]
    sections = [scores, *(Section("", tables=[(caption, frame)]) for caption, frame in tables if len(frame))]
    drawn = sorted((folder / FIGURES).glob("*.png"))
    if drawn:
        more = len(drawn) - MOST_FIGURES
        note = f"{more} further figures are in {folder / FIGURES}." if more > 0 else ""
        sections.append(Section("Figures", note, figures=drawn[:MOST_FIGURES]))
    return Chapter(title, sections, units)


def provenance(content: dict[str, Any]) -> str:
    """Describe the checkpoint and the data of a test."""
    lines = [f"- Checkpoint: `{content['checkpoint']}`"] if content.get("checkpoint") else []
    lines += [f"- `--data.{name} {value}`" for name, value in (content.get("data") or {}).items()]
    if content.get("changed"):
        lines.append(f"- The data have changed since the training: {content['changed']}")
    if content.get("training_changed"):
        lines.append(f"- The baselines were trained on changed data: {content['training_changed']}")
    for split, count in (content.get("overlap") or {}).items():
        lines.append(f"- {count} of the tested records are in the run's {split} split")
    lines += [f"- {line.strip()}" for line in content.get("notes", [])]
    return "\n".join(lines)


def score_table(run: Run, values: dict[str, float | None]) -> pd.DataFrame:
    """One row per score: value, unit and direction, as declared by the domain."""
    declared = {metric.name: metric for metric in run.scores}
    rows = []
    for name, value in values.items():
        metric = declared.get(name.removeprefix("val_"))
        words = {"max": "higher is better", "min": "lower is better", None: ""}
        rows.append(
            {
                "score": name,
                "value": value,
                "unit": metric.unit if metric else "",
                "direction": words[metric.better] if metric else "",
                "meaning": metric.title if metric else "",
            }
        )
    frame = pd.DataFrame(rows, columns=["score", "value", "unit", "direction", "meaning"])
    empty = [name for name in frame.columns if name != "value" and not frame[name].any()]
    return frame.drop(columns=empty)


def study(run: Run) -> list[Chapter]:
    """The chapters of a `kfold` study: its table, and the scores of every fold, seed and model."""
    frame = read_rows(run.path / FOLDS, ("seed",), ("model",))
    tables = [(one["title"], pd.DataFrame(one["rows"])) for one in run.metrics.get("kfold", {}).get("tables", [])]
    text = "" if tables else "The study is not finished; `kfold --resume` continues it."
    sections = [Section("", text, tables), Section("Every run", tables=[("One row per fold, seed and model", frame)])]
    return [Chapter("Study", sections, {metric.name: metric.unit for metric in run.scores if metric.unit})]


# -- calibration -------------------------------------------------------------------------------------------------------


def test_records(run: Run) -> TestRecords | None:
    """Read the predictions of a run's test; None if the domain stores none, or the run was not tested."""
    if run.domain.test_records is None or "test" not in run.metrics or not run.entry:
        return None
    return resolve(run.domain.test_records)(run.path, run.entry)


test_records.__test__ = False  # type: ignore[attr-defined]  # not a test of pytest


def calibration(run: Run) -> list[Chapter]:
    """Predicted and observed frequencies of the classes, or the coverage of prediction intervals."""
    found = test_records(run)
    curves = [] if found is None else [reliability(name, *pair) for name, pair in found.probabilities.items()]
    if curves:
        shown = sorted(curves, key=lambda one: -float((one.observed * one.count).sum()))[: len(COLORS)]
        figure = reliability_diagram(shown, "predicted probability", "observed fraction")
        text = (
            "Records are sorted into ten bins by the predicted probability of a class. A calibrated model lies on the "
            "diagonal: of the records with a probability near 0.8, 80 % belong to the class. Vertical lines are Wilson "
            "95 % intervals; the error is the mean distance from the diagonal, weighted by the number of records."
        )
        errors = [
            {"class": one.name, "records": int(one.count.sum()), "calibration error": one.error} for one in curves
        ]
        rows = [
            {"class": one.name, "records": int(n), "predicted": p, "observed": o, "2.5 %": low, "97.5 %": high}
            for one in shown
            for n, p, o, low, high in zip(one.count, one.predicted, one.observed, one.low, one.high)
        ]
        sections = [
            Section("Reliability", text, [("By class", pd.DataFrame(errors))], [picture(figure)]),
            Section("All bins", tables=[("Fractions of 1", pd.DataFrame(rows))], folded=True),
        ]
        return [Chapter("Calibration", sections)]
    tables = run.metrics.get("test", {}).get("tables", [])
    levels = [one for one in tables if one["rows"] and {"level", "coverage"} <= set(one["rows"][0])]
    return [Chapter("Calibration", [coverage(one) for one in levels])] if levels else []


def coverage(one: dict[str, Any]) -> Section:
    """The coverage of prediction intervals compared with their levels, from a table in percent."""
    frame = pd.DataFrame(one["rows"])[["level", "coverage"]]
    frame["difference"] = frame["coverage"] - frame["level"]
    text = (
        "A calibrated 80 % interval contains 80 % of the actual values. Percentage points above zero mean that the "
        "intervals are wider than necessary, below zero that they are too narrow."
    )
    return Section("Prediction intervals", text, [(f"{one['title']}: percent, percentage points", frame)])


# -- training ----------------------------------------------------------------------------------------------------------


def training(run: Run) -> Chapter:
    """Learning curves, and the rows of the best and the last epoch."""
    if not (run.path / LOG).is_file():
        return Chapter("Training", [Section("", "The folder has no log.csv.")])
    log = read_rows(run.path / LOG, ("epoch", "step", "seconds"))
    steps, seconds = int(log["step"].iloc[-1]), log["seconds"].sum()
    lines = [f"- Epochs: {len(log)}, optimiser steps: {steps:,}, time: {seconds:.0f} s"]
    if run.epoch is not None:
        lines.append(f"- `best.ckpt` is from epoch {run.epoch}")
    if run.about.get("parameters"):
        lines.append(f"- {run.about['parameters']:,} parameters, {run.about['trained_parameters']:,} of them trained")
    if run.about.get("device"):
        lines.append(f"- Device {run.about['device']}, {run.about['processes']} process(es), {run.about['precision']}")
    chosen = {"best": run.epoch, "last": int(log["epoch"].iloc[-1])}
    rows = [
        {"row": name, **log[log["epoch"] == epoch].iloc[-1]}
        for name, epoch in chosen.items()
        if epoch in set(log["epoch"])
    ]
    table = pd.DataFrame(rows)
    for name in ("epoch", "step"):
        table[name] = table[name].astype(int)
    curves = picture(learning_curves(log, run.epoch))
    units = {"seconds": "s", "cpu_seconds": "s"}
    return Chapter("Training", [Section("", "\n".join(lines), [("Epochs", table)], [curves])], units)


# -- data, configuration, environment ----------------------------------------------------------------------------------


def data(run: Run) -> Chapter:
    """The records of each split, and what was dropped, merged or filled when the data were read."""
    rows = read_split(run.folder) or []
    sizes = Counter(split for split, _ in {(row["split"], row["id"]) for row in rows})
    tables = (
        [("Records by split", pd.DataFrame({"split": list(sizes), "records": list(sizes.values())}))] if sizes else []
    )
    notes = run.about.get("notes")
    if notes:
        text = "Reported while the data were read:\n\n" + "\n".join(f"- {line.strip()}" for line in notes)
    elif notes is not None:
        text = "Nothing was dropped, merged or filled."
    else:
        text = "The run was trained by a version that stored no notes about the data."
    return Chapter("Data", [Section("", text, tables)])


def configuration(run: Run) -> Chapter:
    """The options of model and data, and the complete configuration, folded."""
    tables = []
    for title, values in (("Model", run.entry.get("hparams", {})), ("Data", run.entry.get("data_hparams", {}))):
        chosen = {name: json.dumps(value, default=str) for name, value in values.items() if value is not None}
        shown = [value if len(value) < 200 else f"{value[:199]}…" for value in chosen.values()]
        tables.append((title, pd.DataFrame({"option": list(chosen), "value": [v.strip('"') for v in shown]})))
    text = "Options without a value are omitted."
    sections = [Section("", text, tables)]
    if run.config:
        sections.append(Section("config.yaml", code=(run.path / CONFIG).read_text(encoding="utf-8"), folded=True))
    return Chapter("Configuration", sections)


def environment(run: Run) -> list[Chapter]:
    """Versions and machine of the training."""
    found = run.about.get("environment")
    if not found:
        return []
    frame = pd.DataFrame({"name": list(found), "value": list(found.values())})
    text = f"Training started {run.about['started']} (UTC)." if run.about.get("started") else ""
    return [Chapter("Environment", [Section("", text, [("Versions and machine", frame)])])]


def repeat(run: Run) -> Chapter:
    """The commands that train and test the same model again."""
    name, again = run.domain.name, f"{run.path}-again"
    sections = []
    typed = run.about.get("command")
    if typed:
        resumed = [line or "(from Python)" for line in run.about.get("resumed", [])]
        sections.append(Section("As typed", "", code="\n".join([typed, *resumed])))
    if run.config and not run.entry.get(STAGE):
        lines = [
            ["seqssm", name, "fit", "--config", str(run.path / CONFIG), "--output", again],
            ["seqssm", name, "test", again],
            ["seqssm", "compare", str(run.path), again],
        ]
        text = (
            "`config.yaml` contains every option, including the seed. On the same machine, with the same versions and "
            "number of threads, weights trained on a CPU are bit-identical."
        )
        sections.append(Section("Repeat the run", text, code="\n".join(shlex.join(words) for words in lines)))
    elif (run.path / PLAN).is_file():
        sections += _repeat_study(run, again)
    return Chapter("Repeat", sections)


def _repeat_study(run: Run, again: str) -> list[Section]:
    """The configuration of a kfold study, and the command that repeats it with this file."""
    plan = read_yaml(run.path / PLAN)
    if not {"config", "overrides"} <= plan.keys():
        raise InputError("is damaged: it lacks the configuration of the study", file=run.path / PLAN)
    names = [f"study-{k}.yaml" for k in range(1, len(plan["config"]) + 1)]
    words = ["seqssm", run.domain.name, "kfold"]
    for name in names:
        words += ["--config", name]
    for option in ("folds", "windows"):
        words += [] if plan.get(option) is None else [f"--{option}", str(plan[option])]
    table = read_rows(run.path / FOLDS, ("seed",), ("model",)).astype({"seed": str, "model": str})
    models = [name for name in dict.fromkeys(table.model) if name != PRESET]
    words += ["--seeds", ",".join(dict.fromkeys(table.seed))]
    words += ["--models", ",".join(models)] if models else []
    words += [*plan["overrides"], "--output", again]
    return [
        Section(f"Save as {name}", code=text.rstrip("\n")) for name, text in zip(names, plan["config"], strict=True)
    ] + [Section("Repeat the study", code=shlex.join(words))]
