"""Studies over folds, seeds and models: fit and test every combination, and summarise the scores in one table."""

from __future__ import annotations

import contextlib
import csv
import io
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from seqssm.bounds import SEED
from seqssm.domain import Baseline, Domain, Option, resolve
from seqssm.environment import processes_announced
from seqssm.errors import ExitCode, InputError, flags_named, nearest
from seqssm.files.disk import require_writable
from seqssm.files.notes import quiet
from seqssm.files.splits import split_files
from seqssm.metrics.summary import summarise
from seqssm.training import origin
from seqssm.training import presets as configs
from seqssm.training import run as runs
from seqssm.training.arguments import given_values
from seqssm.training.cells import Cell, tested_before
from seqssm.training.networks import CHOICE
from seqssm.training.run_folder import CONFIG, FOLDS, LAST, PLAN, RunFolder
from seqssm.training.sizes import require_count

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_FOLDS = 10_000
PRESET = "preset"  # model name if no models are given: the one in the config
SEEDS = Option("--seeds", "seeds of the runs (default: the config's)", int, many=True, bounds=SEED)
MODELS = Option("--models", "models to compare; the first one is the reference", many=True, metavar="NAME")


@dataclass(frozen=True)
class Study:
    """The arguments of a study.

    Attributes:
        configs: presets or YAML files, as for `fit`.
        overrides: LightningCLI flags of every fit.
        folds: number of folds, or folder of split files ``*_0.csv, *_1.csv, ...``; None for data without folds.
        windows: number of windows of a rolling-origin cross-validation, in place of folds.
        seeds: seeds, as a list or comma-separated; None for the seed of the configs.
        models: names of `Domain.models` and baselines, likewise; None for the model of the configs.
        output: folder of all runs; by default ``runs/<domain>/<preset>-kfold``.
        resume: whether to continue without repeating finished runs.
        overwrite: whether to replace the runs in the folder.
        begun: whether the folder holds this study, so that it can be continued; set by `kfold`.
    """

    configs: list[str]
    overrides: list[str] = field(default_factory=list)
    folds: str | None = None
    windows: str | None = None
    seeds: str | list[int] | None = None
    models: str | list[str] | None = None
    output: str | None = None
    resume: bool = False
    overwrite: bool = False
    begun: threading.Event = field(default_factory=threading.Event, init=False, compare=False)


def kfold(domain: Domain, study: Study) -> RunFolder:
    """Fit and test every unfinished combination of `study`, and write the table."""
    typed = {"--data.folds": study.folds and "--folds", "--data.windows": study.windows and "--windows"}
    with flags_named({derived: flag for derived, flag in typed.items() if flag}):
        return run_study(domain, study)


def run_study(domain: Domain, study: Study) -> RunFolder:
    """Run `kfold` with messages that name the options of a fit."""
    if processes_announced() > 1:
        raise InputError("start kfold once, without torchrun; --trainer.devices N gives each fit N processes")
    if not study.configs:
        raise InputError(f"--config PRESET_OR_FILE is required (seqssm {domain.name} --help lists the presets)")
    if study.resume and study.overwrite:
        raise InputError("--resume and --overwrite exclude each other")
    sources = [configs.find_preset(domain, name) for name in study.configs]
    contents = configs.read_presets(sources, domain)
    texts = [configs.as_text(content) for content in contents]
    cells = plan(domain, study, contents)
    folder = RunFolder(study.output or Path("runs", domain.name, f"{sources[-1].name}-kfold"))
    if study.resume and folder.holds_run() and not (folder.path / PLAN).is_file():
        raise InputError("contains a run that is not a kfold study; choose another --output", file=folder.path)
    if not (study.resume and folder.holds_run()):
        folder.require_free(f"seqssm {domain.name} kfold", study.overwrite)
    require_writable(folder.path)
    require_models(domain, folder, cells, study)
    require_folds(domain, folder, cells, study)
    print(f"kfold: {len(cells)} run{'s' * (len(cells) != 1)}; each model is set up on the data first", flush=True)
    require_runs(domain, folder, cells, study)
    with folder.lock():
        content = {"config": texts, "overrides": study.overrides, "folds": study.folds, "windows": study.windows}
        moved = prepare(folder, content, study.resume, origin.flags_of_files(contents))
        study.begun.set()
        if study.resume:
            require_same_data(domain, folder, cells, study, moved)
            before = tested_before(folder, cells)
            if before:
                names = ", ".join(dict.fromkeys(cell.model for cell in before))
                print(f"{len(before)} further run{'s' * (len(before) != 1)} of the study, kept in its table ({names})")
            cells = [*cells, *before]
        rows: list[dict[str, Any]] = []
        for number, cell in enumerate(cells, 1):
            print(f"kfold {number} of {len(cells)}: {cell.place()}", flush=True)
            figures = run_cell(domain, folder, cell, study, moved)
            rows.append({"fold": cell.fold, "seed": cell.seed, "model": cell.model, **figures})
            folder.write_text(FOLDS, as_csv(rows))
        conclude(domain, folder, rows)
    return folder


def plan(domain: Domain, study: Study, contents: list[dict[str, Any]]) -> list[Cell]:
    """List the cells, folds outermost and models innermost, so that differences are available early."""
    models = [PRESET] if study.models is None else MODELS.listed(study.models)
    for name in models:
        known = [*domain.models, *(baseline.name for baseline in domain.baselines)]
        if study.models is not None and name not in known:
            raise InputError(f"--models {name}: no such model{nearest(name, known)}")
    require_choices(domain, models, study.overrides)
    seeds = [options_seed(contents)]
    if study.seeds is not None:
        seeds = SEEDS.listed(study.seeds)
        SEEDS.bounds.require("--seeds", seeds)
    for name, values in (("models", models), ("seeds", seeds)):
        if len(set(values)) < len(values):
            raise InputError(f"--{name}: duplicate value")
    folds: list[int | None] = [None]
    if study.folds is not None:
        if not domain.folds:
            raise InputError(f"--folds: {domain.name} does not support folds; use --seeds and --models")
        folds = list(fold_numbers(study.folds))
    if study.windows is not None:
        if not domain.windows or study.folds is not None:
            raise InputError(
                "--windows: use either --folds or --windows"
                if domain.windows
                else f"--windows: {domain.name} does not support rolling windows; use --folds"
            )
        if not study.windows.isdigit():
            raise InputError(f"--windows {study.windows}: expected a number")
        require_count("--windows", int(study.windows), 1, MOST_FOLDS, "the largest number of windows")
        folds = list(range(int(study.windows)))
    kind = "fold" if study.windows is None else "window"
    return [Cell(model, fold, seed, kind) for fold in folds for seed in seeds for model in models]


def require_choices(domain: Domain, models: list[str], overrides: Sequence[str]) -> None:
    """Reject options that replace what a model's name stands for: its rows would be those of another model.

    Numbers, such as a learning rate, are settings and may be replaced.

    Raises:
        InputError: an option gives another word than a model of ``--models``.
    """
    asked = given_values(overrides)
    for model in models:
        for flag, value in given_values(domain.models.get(model, ())).items():
            given = asked.get(flag, value)
            if yaml.safe_load(given) != yaml.safe_load(value) and not is_number(value):
                raise InputError(
                    f"{flag} {given} contradicts --models {model}, which is {flag} {value}; leave one of them out"
                )


def is_number(text: str) -> bool:
    """Whether a value of the command line is a number (YAML reads 1e-3 as text)."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def options_seed(contents: list[dict[str, Any]]) -> int:
    """Return the seed in the configs; 1 by default."""
    seeds = [content.get("seed_everything") for content in contents]
    return next((seed for seed in reversed(seeds) if type(seed) is int), 1)


def fold_numbers(folds: str) -> list[int]:
    """Return the fold indices: 0 .. K-1, or those of the split files in a folder."""
    if folds.isdigit():
        require_count("--folds", int(folds), 2, MOST_FOLDS, "the largest number of folds")
        return list(range(int(folds)))
    path = Path(folds)
    if not folds or not path.is_dir():
        raise InputError(f"--folds {folds}: expected a number or a folder")
    return list(split_files(path))


def require_models(domain: Domain, folder: RunFolder, cells: list[Cell], study: Study) -> None:
    """Build each model, its data module and its trainer once, unread and untrained.

    Raises:
        InputError: an option that one of the models rejects, a model whose choice its network does not use, or two
            models that are the same, before the others are trained for hours.
    """
    first: dict[str, str] = {}  # model of each complete configuration
    for cell in [*{cell.model: cell for cell in reversed(cells)}.values()][::-1]:
        with contextlib.redirect_stderr(io.StringIO()):  # what was dropped is reported when the model is trained
            built = build_cell(domain, RunFolder(folder.path / cell.place()), cell, study)
        if cell.model not in domain.models:
            continue  # a baseline, or the model of the configs
        kept = [flag.plain for flag in built.arguments.flags]
        for flag in given_values(domain.models[cell.model]):
            if flag not in kept:
                network = built.model.arguments[CHOICE]
                raise InputError(
                    f"--models {cell.model}: the network {network} has no {flag}; choose another --model.{CHOICE}"
                )
        other = first.setdefault(built.config_text(), cell.model)
        if other != cell.model:
            raise InputError(
                f"--models {other},{cell.model}: with these options they are the same model; leave one of them out"
            )


def require_folds(domain: Domain, folder: RunFolder, cells: list[Cell], study: Study) -> None:
    """Check the split of every fold that is not finished, without reading the records."""
    left = [
        cell for cell in cells if not (study.resume and RunFolder(folder.path / cell.place()).read_json().get("test"))
    ]
    folds = sorted({cell.fold for cell in left if cell.fold is not None and cell.kind == "fold"})
    if folds:
        with contextlib.redirect_stderr(io.StringIO()), quiet():  # printed when the first fold is trained
            built = build_cell(domain, RunFolder(folder.path / left[0].place()), left[0], study)
            built.datamodule.require_folds(folds)


def require_runs(domain: Domain, folder: RunFolder, cells: list[Cell], study: Study) -> None:
    """Rehearse the first run of each model that is not begun; models with equal options of the data read them once.

    Fits of several processes set up their models when they are started.

    Raises:
        InputError: a model cannot be trained or tested, before the others are trained for hours.
    """
    from seqssm.training.rehearsal import require_trainable

    several = needs_processes(study.configs, domain, study.overrides)
    seen: set[str] = set()
    read: dict[str, Any] = {}
    for cell in cells:
        run = RunFolder(folder.path / cell.place())
        if cell.model in seen or (study.resume and (run.read_json().get("test") or (run.path / LAST).is_file())):
            continue
        seen.add(cell.model)
        with contextlib.redirect_stderr(io.StringIO()):
            built = build_cell(domain, run, cell, study)
        data = read.setdefault(repr(sorted(built.datamodule.hparams.items())), built.datamodule)
        untrained = several or cell.model in [baseline.name for baseline in domain.baselines]
        require_trainable(built, data, trained=not untrained)


def require_same_data(domain: Domain, folder: RunFolder, cells: list[Cell], study: Study, moved: Sequence[str]) -> None:
    """Compare the data with those of the cells that are finished or begun, before the others are trained.

    Cells of one fold that differ in their seeds or models read the same data, which are read once.

    Args:
        domain: domain of the study.
        folder: folder of the study.
        cells: cells of the study.
        study: options of the study.
        moved: flags that name files at another path than those of the study, which needs recorded digests.

    Raises:
        InputError: records, splits or targets have changed, or cannot be read or compared.
    """
    from seqssm.training.unchanged import is_recorded, require_unchanged

    models, read = set(), set()
    for cell in cells:
        run = RunFolder(folder.path / cell.place())
        if (cell.model, cell.fold) in models or not (run.read_json().get("test") or (run.path / LAST).is_file()):
            continue
        if moved and not is_recorded(run):
            raise InputError(f"{moved[0]}: the run has another path, and no digests to compare the data", file=run.path)
        models.add((cell.model, cell.fold))
        with contextlib.redirect_stderr(io.StringIO()), quiet():  # printed when the next cell is trained
            data = build_cell(domain, run, cell, study).datamodule
            options = repr(sorted(data.hparams.items()))
            if options not in read:
                read.add(options)
                data.prepare_data()
                data.setup("fit")
                require_unchanged(run, data)


def flags_of(cell: Cell, study: Study) -> list[str]:
    """Return the flags of a cell in addition to those of its model and of the study."""
    flags = ["--seed_everything", str(cell.seed)]
    if cell.kind == "window":
        return [*flags, "--data.windows", str(study.windows), "--data.window", str(cell.fold)]
    return flags if cell.fold is None else [*flags, "--data.folds", str(study.folds), "--data.fold", str(cell.fold)]


def build_cell(domain: Domain, run: RunFolder, cell: Cell, study: Study) -> Any:
    """Build model, data module and trainer of a cell."""
    contents = configs.read_presets([configs.find_preset(domain, name) for name in study.configs], domain)
    flags = [*domain.models.get(cell.model, ()), *study.overrides, *flags_of(cell, study)]
    recorded = study.resume and (run.path.parents[1] / PLAN).is_file()
    return runs.build(domain, run.path, contents, runs.Options(flags, foreign="drop", fresh=True, recorded=recorded))


def prepare(folder: RunFolder, content: dict[str, Any], resume: bool, paths: list[str]) -> list[str]:
    """Clear the folder, or check that it is continued with the same configuration; more cells are allowed.

    Args:
        folder: folder of the study.
        content: the plan.
        resume: whether the study is continued.
        paths: flags that name files, which may be at another path.

    Returns:
        The flags of files at another path, as words.
    """
    moved: list[str] = []
    path = folder.path / PLAN
    if resume and path.is_file():
        kept = yaml.safe_load(path.read_text(encoding="utf-8"))
        base = origin.base_of(kept, folder.path) or Path()
        for name, value in content.items():
            if not origin.same(origin.words(value), origin.words(kept.get(name)), base):
                other = origin.moved_flags(value, kept.get(name) or [], base, paths) if name == "overrides" else None
                if other:
                    moved = other
                    continue
                what = {"config": "--config", "overrides": "options"}.get(name, f"--{name}")
                raise InputError(
                    f"--resume: the runs in this folder have different {what}; choose another --output",
                    file=folder.path,
                )
        return moved
    if path.is_file():  # a study, whose runs are replaced; other folders may hold runs with such names
        for cell in folder.path.glob("*/*seed-*"):
            RunFolder(cell).clear()
            shutil.rmtree(cell, ignore_errors=True)
    folder.clear()
    folder.write_text(PLAN, yaml.safe_dump({**content, **origin.entries(folder.path, Path.cwd())}, sort_keys=False))
    return moved


def run_cell(
    domain: Domain, folder: RunFolder, cell: Cell, study: Study, moved: Sequence[str] = ()
) -> dict[str, float | None]:
    """Return the test scores of a cell; compute them if necessary. A run that was begun takes the flags in `moved`."""
    run = RunFolder(folder.path / cell.place())
    kept = run.read_json().get("test")
    if kept is not None:
        print("  already finished")
        return kept["metrics"]
    baseline = next((one for one in domain.baselines if one.name == cell.model), None)
    if baseline is not None:
        untrained(run, baseline, build_cell(domain, run, cell, study).datamodule)
        return run.read_json()["test"]["metrics"]
    overrides = [*domain.models.get(cell.model, ()), *study.overrides, *flags_of(cell, study)]
    begun = (run.path / CONFIG).is_file()
    if needs_processes(study.configs, domain, study.overrides):
        chosen = [word for name in study.configs for word in ("--config", name)]
        fit = ["--resume", str(run.path), *moved] if begun else [*chosen, *overrides, "--output", str(run.path)]
        for command, words in (("fit", fit), ("test", [str(run.path)])):
            apart(domain, command, words)
    else:
        if begun:
            runs.resume(domain, run.path, runs.Options(moved))
        else:
            options = runs.Options(overrides, foreign="drop", recorded=study.resume)
            runs.fit(domain, study.configs, options, output=run.path)
        runs.evaluate(domain, "test", run.path)
    return run.read_json()["test"]["metrics"]


def untrained(run: RunFolder, baseline: Baseline, data: Any) -> None:
    """Test a baseline, a function of the data module."""
    from seqssm.metrics.report import Report
    from seqssm.training.unchanged import record

    data.prepare_data()
    data.setup("fit")
    record(run, data)
    data.setup("test")
    run.update_metrics("test", {"checkpoint": None, **Report(resolve(baseline.run)(data)).to_dict()})


def needs_processes(names: list[str], domain: Domain, overrides: list[str]) -> bool:
    """Whether a fit starts further processes, which repeat the whole command line and hence need their own one."""
    trainer: dict[str, Any] = {}
    for name in names:
        trainer |= configs.read_preset(configs.find_preset(domain, name), domain).get("trainer") or {}
    for flag, value in given_values(overrides).items():
        if flag.startswith("--trainer."):
            trainer[flag.removeprefix("--trainer.")] = value
    if str(trainer.get("devices", "auto")) == "1" and str(trainer.get("num_nodes", 1)) == "1":
        return False
    if "strategy" in trainer or "num_nodes" in trainer or str(trainer.get("devices", "auto")) != "auto":
        return True
    import torch

    return trainer.get("accelerator", "auto") != "cpu" and torch.cuda.device_count() > 1


def apart(domain: Domain, command: str, words: list[str]) -> None:
    """Run a command in a subprocess, which reports its own errors."""
    code = subprocess.run([sys.executable, "-m", "seqssm", domain.name, command, *words], check=False).returncode
    if code in (ExitCode.INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if code != 0:
        raise InputError(
            f"`seqssm {domain.name} {command} {' '.join(words)}` exited with code {code}; --resume continues here"
        )


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Write `folds.csv`: one row per fold, seed and model."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def conclude(domain: Domain, folder: RunFolder, rows: list[dict[str, Any]]) -> None:
    """Print the table and write it, with the means, to `metrics.json`."""
    from seqssm.metrics.report import Report

    table = summarise(rows, resolve(domain.metrics) if domain.metrics else ())
    means = {f"{row['model']}.{row['metric']}": row["mean"] for row in table.to_dict("records")}
    first = rows[0]["model"]
    title = f"mean and standard deviation over the runs; difference = model - {first} for the same fold and seed"
    tables = [(title, table)]
    if domain.kfold_tables is not None:
        tables += resolve(domain.kfold_tables)(folder.path, rows)
    print()
    print(Report(tables=tables).text())
    written = folder.update_metrics("kfold", Report(means, tables).to_dict())
    print(f"written: {folder.path / FOLDS}, {written}", file=sys.stderr)
