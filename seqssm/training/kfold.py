"""Several folds, seeds and models: fits and tests every combination, and puts the figures into one table."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from seqssm.domain import Baseline, Domain, resolve
from seqssm.environment import processes_announced
from seqssm.errors import ExitCode, InputError, nearest
from seqssm.metrics.metric import direction
from seqssm.training import presets as configs
from seqssm.training import run as runs
from seqssm.training.run_folder import CONFIG, FOLDS, PLAN, RunFolder
from seqssm.training.sizes import require_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from seqssm.metrics.metric import Metric

MOST_FOLDS = 10_000
PRESET = "preset"  # the name of the model when none is named: what the config says


@dataclass(frozen=True)
class Cell:
    """One fit and test: `fold` is None where the data has no folds."""

    model: str
    fold: int | None
    seed: int

    def place(self) -> Path:
        fold = "" if self.fold is None else f"fold-{self.fold}_"
        return Path(self.model, f"{fold}seed-{self.seed}")


@dataclass(frozen=True)
class Study:
    """What is fitted and tested.

    Attributes:
        configs: presets or YAML files, as for `fit`.
        overrides: LightningCLI flags of every fit.
        folds: number of folds, or a folder of split files ``*_0.csv, *_1.csv, ...``; None for data without folds.
        seeds: comma-separated seeds; None takes that of the configs.
        models: comma-separated names of `Domain.models`; None fits what the configs say.
        output: folder of all runs; ``runs/<domain>/<preset>-kfold`` when not given.
        resume: continue; finished runs are not repeated.
        overwrite: replace the runs in the folder.
    """

    configs: list[str]
    overrides: list[str] = field(default_factory=list)
    folds: str | None = None
    seeds: str | None = None
    models: str | None = None
    output: str | None = None
    resume: bool = False
    overwrite: bool = False


def kfold(domain: Domain, study: Study) -> RunFolder:
    """Fits and tests every combination of `study` that is not finished, and writes the table."""
    if processes_announced() > 1:
        raise InputError("kfold is started once, not by torchrun; --trainer.devices N gives each fit N processes")
    if not study.configs:
        raise InputError(f"--config PRESET_OR_FILE is needed (seqssm {domain.name} --help lists the presets)")
    if study.resume and study.overwrite:
        raise InputError("--resume continues and --overwrite starts anew: give one of them")
    sources = [configs.locate(domain, name) for name in study.configs]
    contents = [configs.read(source, domain) for source in sources]
    texts = [configs.as_text(content) for content in contents]
    cells = plan(domain, study, contents)
    folder = RunFolder(study.output or Path("runs", domain.name, f"{sources[-1].name}-kfold"))
    if not study.resume and not study.overwrite:
        folder.require_free(f"seqssm {domain.name} kfold")
    with folder.lock():
        prepare(folder, {"config": texts, "overrides": study.overrides, "folds": study.folds}, study.resume)
        rows: list[dict[str, Any]] = []
        for number, cell in enumerate(cells, 1):
            print(f"kfold {number} of {len(cells)}: {cell.place()}", flush=True)
            figures = run_cell(domain, folder, cell, study)
            rows.append({"fold": cell.fold, "seed": cell.seed, "model": cell.model, **figures})
            folder.write_text(FOLDS, as_csv(rows))
        conclude(domain, folder, rows)
    return folder


def plan(domain: Domain, study: Study, contents: list[dict[str, Any]]) -> list[Cell]:
    """The cells, folds outermost and models innermost, so that differences are there early."""
    models = [PRESET] if study.models is None else study.models.split(",")
    for name in models:
        known = [*domain.models, *(baseline.name for baseline in domain.baselines)]
        if study.models is not None and name not in known:
            raise InputError(f"--models {name}: no such model{nearest(name, known)}")
    seeds = [options_seed(contents)]
    if study.seeds is not None:
        if not re.fullmatch(r"\d+(,\d+)*", study.seeds):
            raise InputError(f"--seeds {study.seeds}: expected comma-separated integers, e.g. 1,2,3")
        seeds = [int(seed) for seed in study.seeds.split(",")]
    for name, values in (("models", models), ("seeds", seeds)):
        if len(set(values)) < len(values):
            raise InputError(f"--{name}: duplicate value")
    folds: list[int | None] = [None]
    if study.folds is not None:
        if not domain.folds:
            raise InputError(f"--folds: the data of {domain.name} has no folds, only --seeds and --models")
        folds = list(fold_numbers(study.folds))
    return [Cell(model, fold, seed) for fold in folds for seed in seeds for model in models]


def options_seed(contents: list[dict[str, Any]]) -> int:
    """The seed that the configs give; 1 when they give none."""
    seeds = [content.get("seed_everything") for content in contents]
    return next((seed for seed in reversed(seeds) if type(seed) is int), 1)


def fold_numbers(folds: str) -> list[int]:
    """The numbers of the folds: 0 .. K-1, or those in the names of a folder's split files.

    Files with two numbers (``*_<repeat>_<fold>.csv``) are counted through: 0 .. files - 1, in the order of the numbers.
    """
    if folds.isdigit():
        require_count("--folds", int(folds), 2, MOST_FOLDS, "the largest number of folds")
        return list(range(int(folds)))
    path = Path(folds)
    if not path.is_dir():
        raise InputError(f"--folds {folds}: neither a number nor a folder")
    found = [re.search(r"((?:(?:^|_)\d+)+)\.csv$", file.name) for file in path.iterdir()]
    numbers = [[int(number) for number in match[1].strip("_").split("_")] for match in found if match]
    if not numbers:
        raise InputError("holds no split files *_0.csv, *_1.csv, ...", file=path)
    if any(len(own) > 1 for own in numbers):
        return list(range(len(numbers)))
    return sorted(own[0] for own in numbers)


def prepare(folder: RunFolder, content: dict[str, Any], resume: bool) -> None:
    """Clears the folder, or makes sure that it is continued with the same configuration; more cells are fine."""
    path = folder.path / PLAN
    if resume and path.is_file():
        kept = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, value in content.items():
            if kept.get(name) != value:
                what = {"config": "--config", "overrides": "options", "folds": "--folds"}[name]
                raise InputError(f"--resume: these runs have other {what}; choose another --output", file=folder.path)
        return
    for cell in folder.path.glob("*/*seed-*"):
        RunFolder(cell).clear()
        shutil.rmtree(cell, ignore_errors=True)
    folder.clear()
    folder.write_text(PLAN, yaml.safe_dump(content, sort_keys=False))


def run_cell(domain: Domain, folder: RunFolder, cell: Cell, study: Study) -> dict[str, float | None]:
    """The test figures of a cell, computed now unless they are there."""
    run = RunFolder(folder.path / cell.place())
    kept = run.read_json().get("test")
    if kept is not None:
        print("  finished before")
        return kept["metrics"]
    own = list(domain.models.get(cell.model, ()))
    flags = ["--seed_everything", str(cell.seed)]
    if cell.fold is not None:
        flags += ["--data.folds", str(study.folds), "--data.fold", str(cell.fold)]
    baseline = next((one for one in domain.baselines if one.name == cell.model), None)
    if baseline is not None:
        untrained(domain, run, baseline, study.configs, [*study.overrides, *flags])
        return run.read_json()["test"]["metrics"]
    overrides = [*own, *study.overrides, *flags]
    begun = (run.path / CONFIG).is_file()
    if needs_processes(study.configs, domain, study.overrides):
        chosen = [word for name in study.configs for word in ("--config", name)]
        fit = ["--resume", str(run.path)] if begun else [*chosen, *overrides, "--output", str(run.path)]
        for verb, words in (("fit", fit), ("test", [str(run.path)])):
            apart(domain, verb, words)
    else:
        if begun:
            runs.resume(domain, run.path)
        else:
            runs.fit(domain, study.configs, runs.Options(overrides, foreign="drop"), output=run.path)
        runs.evaluate(domain, "test", run.path)
    return run.read_json()["test"]["metrics"]


def untrained(domain: Domain, run: RunFolder, baseline: Baseline, names: list[str], flags: list[str]) -> None:
    """Tests a baseline, which is a function of the data module."""
    from seqssm.metrics.report import Report

    contents = [configs.read(configs.locate(domain, name), domain) for name in names]
    data = runs.build(domain, run.path, contents, runs.Options(flags, foreign="drop")).datamodule
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    run.update_metrics("test", {"checkpoint": None, **Report(resolve(baseline.run)(data)).plain()})


def needs_processes(names: list[str], domain: Domain, overrides: list[str]) -> bool:
    """Whether a fit starts further processes, which run the whole command line again: then it needs one of its own."""
    trainer: dict[str, Any] = {}
    for name in names:
        trainer |= configs.read(configs.locate(domain, name), domain).get("trainer") or {}
    words = [part for word in overrides for part in word.split("=", 1)]
    for flag, value in pairwise(words):
        if flag.startswith("--trainer."):
            trainer[flag.removeprefix("--trainer.")] = value
    if str(trainer.get("devices", "auto")) == "1" and str(trainer.get("num_nodes", 1)) == "1":
        return False
    if "strategy" in trainer or "num_nodes" in trainer or str(trainer.get("devices", "auto")) != "auto":
        return True
    import torch

    return trainer.get("accelerator", "auto") != "cpu" and torch.cuda.device_count() > 1


def apart(domain: Domain, verb: str, words: list[str]) -> None:
    """Runs a command in a process of its own; it has said itself what is wrong."""
    code = subprocess.run([sys.executable, "-m", "seqssm", domain.name, verb, *words], check=False).returncode
    if code in (ExitCode.INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if code != 0:
        raise InputError(
            f"`seqssm {domain.name} {verb} {' '.join(words)}` ended with code {code}; --resume goes on here"
        )


def as_csv(rows: list[dict[str, Any]]) -> str:
    """`folds.csv`: a row a fold, seed and model."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def conclude(domain: Domain, folder: RunFolder, rows: list[dict[str, Any]]) -> None:
    """Prints the table and writes it, with the means, into `metrics.json`."""
    from seqssm.metrics.report import Report

    table = summarise(rows, resolve(domain.metrics) if domain.metrics else ())
    means = {f"{row['model']}.{row['metric']}": row["mean"] for row in table.to_dict("records")}
    first = rows[0]["model"]
    title = f"mean and deviation over the runs; difference = model - {first} in the same fold and seed"
    print()
    print(Report(tables=[(title, table)]).text())
    written = folder.update_metrics("kfold", Report(means, [(title, table)]).plain())
    print(f"written: {folder.path / FOLDS}, {written}", file=sys.stderr)


def summarise(rows: list[dict[str, Any]], metrics: Sequence[Metric] = ()) -> pd.DataFrame:
    """One row a metric and model.

    Args:
        rows: as in `folds.csv`; a figure may be None.
        metrics: the declared scores. Wins are counted for those that declare a direction, and for no other figure.

    Returns:
        Columns ``metric, model, runs, mean, deviation`` (of the sample, none for one run), and against the first model,
        over the runs that both have: ``difference`` (mean), ``difference_deviation``, ``wins`` ("2 of 3").
    """
    import pandas as pd

    models = list(dict.fromkeys(row["model"] for row in rows))
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in ("fold", "seed", "model")]
    table = []
    for metric in names:
        values = {
            model: {
                (row["fold"], row["seed"]): float(row[metric])
                for row in rows
                if row["model"] == model and row.get(metric) is not None and math.isfinite(row[metric])
            }
            for model in models
        }
        for model in models:
            own, first = values[model], values[models[0]]
            line: dict[str, Any] = {"metric": metric, "model": model, "runs": len(own)}
            line |= dict(zip(("mean", "deviation"), mean_and_deviation(list(own.values()))))
            if model != models[0]:
                differences = [own[pair] - first[pair] for pair in own if pair in first]
                line |= dict(zip(("difference", "difference_deviation"), mean_and_deviation(differences)))
                better = direction(metrics, metric)
                if better is not None:
                    won = sum(d > 0 if better == "max" else d < 0 for d in differences)
                    line["wins"] = f"{won} of {len(differences)}"
            table.append(line)
    frame = pd.DataFrame(table)
    return frame.fillna({"wins": ""}) if "wins" in frame else frame


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample deviation; not a number where there are too few values."""
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan
