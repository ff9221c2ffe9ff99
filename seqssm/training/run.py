"""Runs: fit, resume, validate and test from a configuration, in a run folder.

`fit`, `resume` and `evaluate` are called by the commands and by `seqssm.fit`.
"""

from __future__ import annotations

import copy
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from seqssm.domain import Domain, resolve
from seqssm.environment import drop_stray_ranks, launch
from seqssm.errors import InputError, other_domain
from seqssm.files import notes
from seqssm.files.disk import Begun, require_named, require_writable
from seqssm.files.outputs import STUDENTS
from seqssm.metrics.report import Report
from seqssm.training import migration, origin, subnormals
from seqssm.training import presets as configs
from seqssm.training.about import About
from seqssm.training.arguments import Arguments, split_flags
from seqssm.training.hints import next_lines
from seqssm.training.processes import TIMEOUT
from seqssm.training.run_folder import BEST, CONFIG, LAST, PLAN, STAGE, RunFolder
from seqssm.training.supervision import set_timeout, supervised

if TYPE_CHECKING:
    from torch import nn

    from seqssm.training.data import DataModule
    from seqssm.training.external import Destination
    from seqssm.training.lightning_cli import TrainingCLI
    from seqssm.training.task import Task


@dataclass
class Options:
    """Flags and objects of a run, in addition to its configs.

    Attributes:
        overrides: LightningCLI flags, ``["--model.d_model", "64"]``.
        sections: an additional config, ``{"model": {...}, "data": {...}, "trainer": {...}}``.
        task, data: objects that replace the sections ``model`` and ``data``.
        foreign: treatment of flags of networks that are not chosen: ``"refuse"`` or ``"drop"``.
        fresh: whether the configs are those of the user, in which own records replace the data set of a preset.
        timeout: seconds to wait for another process.
        command: the command line as typed, for the record of the run.
        stages: networks whose outputs are added to those of the new one (`seqssm.training.teacher.add_stages`).
        alone: fraction of the training records without them.
        like: a run on whose records the model must be trained, too.
        again: command that continues the run; by default ``fit --resume``.
        hints: whether to print what can be done next.
        recorded: whether the data and their split are those of a run or study that exists.
    """

    overrides: Sequence[str] = ()
    sections: dict[str, Any] = field(default_factory=dict)
    task: Task | None = None
    data: DataModule | None = None
    frame: Any = None
    foreign: Literal["refuse", "drop"] = "refuse"
    fresh: bool = False
    timeout: float = TIMEOUT
    command: str | None = None
    stages: Sequence[Any] = ()
    alone: float = 0.0
    like: RunFolder | None = None
    again: str | None = None
    hints: bool = True
    recorded: bool = False


@dataclass
class Finished:
    """A finished run: its folder and its objects in memory."""

    folder: RunFolder
    cli: TrainingCLI


def fit(
    domain: Domain,
    configs_given: Sequence[str | Path],
    options: Options | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
) -> Finished:
    """Train a model and write the run folder.

    Args:
        domain: domain of the run.
        configs_given: presets or YAML files; later ones override earlier ones key by key.
        options: flags and objects that override the configs.
        output: run folder; by default ``runs/<domain>/<preset>``.
        overwrite: whether to replace a run in that folder.

    Raises:
        InputError: no such preset, an unknown option, or a folder that contains a run.
    """
    options = options or Options()
    if not configs_given and options.task is None:
        raise InputError(f"--config PRESET_OR_FILE is required (seqssm {domain.name} --help lists the presets)")
    require_named(output)
    sources = [configs.find_preset(domain, name) for name in configs_given]
    name = sources[-1].name if sources else domain.name
    folder = RunFolder(output or Path("runs", domain.name, name))
    contents = configs.read_presets(sources, domain)
    if _starts_the_others():
        folder.require_free(f"seqssm {domain.name} fit", overwrite)  # at once; checked again under the lock
        require_writable(folder.path)
    files = [source.path for source in sources]
    fresh = replace(options, fresh=True)
    return _train(domain, folder, contents, fresh, resume=False, files=files, overwrite=overwrite)


def resume(domain: Domain, run: str | Path, options: Options | None = None) -> Finished:
    """Continue the run in a folder as if it had never been interrupted.

    Args:
        domain: domain of the run.
        run: the run folder.
        options: flags that may change (see `seqssm.training.resuming.KEPT_ON_RESUME`).
    """
    if Path(run).is_file():
        raise InputError("is a file; --resume takes the folder of a run", file=run)
    folder = RunFolder(run)
    file = folder.path / CONFIG
    if not file.is_file():
        if (folder.path / PLAN).is_file():
            command = f"seqssm {domain.name} kfold ... --output {shlex.quote(str(folder.path))} --resume"
            raise InputError(f"is a kfold study: continue it with {command}", file=folder.path)
        if (folder.path / STUDENTS).is_file():
            command = f"seqssm distill ... --output {shlex.quote(f'{folder.path}.ckpt')} --resume"
            raise InputError(f"is the folder of a set of students: continue it with {command}", file=folder.path)
        raise InputError("contains no run to resume (no config.yaml)", file=folder.path)
    from seqssm.training import resuming

    resuming.require_domain(domain, folder)
    if not (options and options.stages):
        resuming.require_no_stages(folder)
    content = configs.read_preset(configs.Source(file, folder.path.name), domain)
    base = origin.folder_of(folder)
    kept: dict[str, dict[str, Any]] = {}
    for section in ("model", "data"):  # options that did not exist when the run was started
        if part := content.get(section):
            cls = part["class_path"]
            part["init_args"] = migration.options(domain, section, part["init_args"], stored=True, cls=cls)
            kept[section] = part["init_args"]
            names = resolve(":".join(cls.rsplit(".", 1))).paths
            part["init_args"] = origin.located(part["init_args"], names, base)
    try:
        return _train(domain, folder, [content], options or Options(), resume=True, files=[file], kept=kept)
    except InputError as error:
        raise origin.with_option(error, (content.get("data") or {}).get("init_args") or {}) from None


def _starts_the_others() -> bool:
    """Whether this is rank 0, as far as is known without a trainer."""
    found = launch()
    return found is None or found.rank == 0


@subnormals.flushed()
def _train(
    domain: Domain,
    folder: RunFolder,
    contents: list[dict[str, Any]],
    options: Options,
    resume: bool,
    files: list[Path],
    overwrite: bool = True,
    kept: Mapping[str, Mapping[str, Any]] | None = None,
) -> Finished:
    from seqssm.training import resuming

    cli = build(domain, folder.path, contents, replace(options, recorded=options.recorded or resume), files)
    for section, own in (kept or {}).items():
        one: Any = cli.model if section == "model" else cli.datamodule
        base = origin.folder_of(folder)
        one.kept_paths = origin.recorded(one.hparams, own, one.paths, base)
        if section == "data":  # the digests of the records decide whether they are those of the run
            one.kept_paths |= origin.moved(one.hparams, own, one.paths, base)
    cli.datamodule.require_divisible(cli.trainer.world_size)
    first = cli.trainer.global_rank == 0
    lock = folder.lock() if first else None
    try:
        checkpoint = folder.path / LAST if resume and (folder.path / LAST).is_file() else None
        if checkpoint is not None:
            resuming.require_continuable(cli, checkpoint)
        elif resume and first:
            folder.require_restartable()
            print("no checkpoint yet: starting from the beginning")
        begun = Begun(folder.path / CONFIG, resume)
        again = options.again or f"seqssm {domain.name} fit --resume {shlex.quote(str(folder.path))}"
        release = lock.release if lock else lambda: None
        with supervised(cli.trainer, lambda: again if begun else "", release), notes.collected() as lines:
            about = About(folder, options.command, resume, lines)
            about.content |= {STAGE: len(options.stages) + 1} if options.stages else {}
            keeper = _run_fit(cli, folder, checkpoint, resume, overwrite, about, options.like)
            if first:
                cli.model.after_fit(folder.path / BEST, cli.datamodule, cli.trainer.strategy.root_device)
    finally:
        if lock is not None:
            lock.release()
    if first:
        best = "" if keeper.best is None else f", {keeper.monitor} {keeper.best:.4f}"
        print(f"best: epoch {keeper.best_epoch}{best}")
    if first and options.hints:
        print(f"run: {folder.path}")
        print(next_lines(domain, cli.model, cli.datamodule, folder.path, folder.path / BEST))
    return Finished(folder, cli)


def _run_fit(
    cli: TrainingCLI,
    folder: RunFolder,
    checkpoint: Path | None,
    resume: bool,
    overwrite: bool,
    about: About,
    like: RunFolder | None,
) -> Any:
    from seqssm.training import external
    from seqssm.training.callbacks import CheckpointCallback, EpochLog, OnFitStart, mode_of
    from seqssm.training.unchanged import digests, require_unchanged

    stopping = cli.config_init["early_stopping"]
    monitor = stopping.monitor or cli.model.monitor
    keeper = CheckpointCallback(folder.path, monitor, stopping.mode or mode_of(cli.model, monitor), stopping.patience)

    def begin() -> None:
        if like is not None:
            require_unchanged(like, cli.datamodule)
        if checkpoint is not None:
            require_unchanged(folder, cli.datamodule)
        elif not resume:
            # no locks on this file system, or another run started meanwhile
            folder.require_free(f"seqssm {cli.model.domain} fit", overwrite)
            folder.clear()
        folder.write_text(CONFIG, cli.config_text())
        external.write_split(folder, cli.datamodule)
        about.content |= digests(cli.datamodule)
        about.begin(cli.trainer, cli.model.model)

    trainer: Any = cli.trainer
    # with max_steps, Lightning takes a finished epoch for an unfinished one, and counts and logs it again
    trainer.fit_loop._iteration_based_training = lambda: False
    trainer.ckpt_path = checkpoint  # set early, so that the task skips the warm start when it is built
    trainer.callbacks = [OnFitStart(begin), *trainer.callbacks, EpochLog(folder.path), keeper]
    trainer.fit(cli.model, datamodule=cli.datamodule, weights_only=True)
    if trainer.is_global_zero:
        about.write()
    if keeper.best_epoch is None and not trainer.fast_dev_run:
        raise InputError("nothing was trained: no epochs left, or fewer training records than a batch")
    return keeper


def flag_value(value: Any) -> str:
    """Format a value for a flag (one line of YAML)."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**9).removesuffix("\n").removesuffix("\n...")


def build(
    domain: Domain,
    folder: Path | Callable[[DataModule], Path],
    contents: list[dict[str, Any]],
    options: Options | None = None,
    files: list[Path] | None = None,
) -> TrainingCLI:
    """Build model, data and trainer of a run from its configs and options; `files` are the sources of the configs."""
    for variable in drop_stray_ranks():
        print(f"seqssm: {variable} ignored: no launcher started this process", file=sys.stderr, flush=True)
    from seqssm.training.lightning_cli import TrainingCLI, quiet
    from seqssm.training.processes import require_engine, require_launched, use_float32_convolutions
    from seqssm.training.teacher import add_stages

    quiet()
    options = options or Options()
    names = {"model": domain.task, "data": domain.data}
    classes = {section: {"class_path": path.replace(":", ".")} for section, path in names.items()}
    extra = configs.normalised(options.sections, domain, before=contents)
    try:
        given = frozenset(f"{one}.{name}" for one in names for name in (extra.get(one) or {}).get("init_args") or {})
        presets = {source.path for source in configs.presets(domain).values()}
        packaged = frozenset(place for place, path in enumerate(files or [], 1) if path in presets)
        sections = copy.deepcopy([classes, *contents, extra])
        arguments = Arguments(domain, sections, split_flags(options.overrides), given, packaged)
        arguments.require_one_source()
        if options.fresh:
            arguments.drop_data_set(in_memory=options.frame is not None)
        cli = TrainingCLI(arguments, folder, options.task, options.data, options.foreign)
    except InputError as error:
        if files and error.file is None and error.message.startswith("config: "):
            raise configs.blamed(error, contents, files, extra) from None
        raise
    if options.stages:
        add_stages(cli.model, options.stages, options.alone)
    if options.frame is not None:
        cli.datamodule.use_frame(options.frame)
    cli.datamodule.recorded = options.recorded
    require_launched(cli.trainer)
    set_timeout(cli.trainer, options.timeout)
    use_float32_convolutions()
    require_engine(cli.model.hparams.get("engine"), cli.trainer.strategy.root_device)
    return cli


def prepare_evaluation(
    domain: Domain,
    command: Literal["test", "validate"],
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    output: str | Path | None = None,
    data: DataModule | None = None,
    timeout: float = TIMEOUT,
    stages: Sequence[nn.Module] = (),
) -> tuple[TrainingCLI, Destination, Path]:
    """Build what an evaluation needs.

    Args:
        domain: domain of the run.
        command: ``"validate"`` or ``"test"``.
        run: a run folder, a checkpoint or a set of students.
        overrides: LightningCLI flags of data and trainer.
        output: results folder, as for `evaluate`.
        data: the data module that the model was trained on.
        timeout: seconds to wait for another process.
        stages: networks whose outputs are added to those of the checkpoint's; by default those in a set of students.

    Returns:
        (model, data and trainer; where the results go; the checkpoint, still to be loaded).
    """
    if output is not None:  # importing PyTorch takes seconds
        require_named(output)
        require_writable(RunFolder(output).path)
    from seqssm.training import checkpoint, ensemble, external, own_data, resuming

    path = checkpoint.find_checkpoint(run)
    content, before, trained = ensemble.read_tested(path)
    entry = content["seqssm"]
    if not (stages or before):
        checkpoint.require_whole(entry, path)
    if entry["domain"] != domain.name:
        raise other_domain(entry["domain"], domain.name, path, command)
    if not entry["data_class"]:
        raise InputError("was saved without a data module and can only be used for predict", file=path)
    checkpoint.build_task(content, path)  # raises a one-line error if something does not fit
    stages = [*stages, *(checkpoint.build_task(one, path).model for one in before)]
    data_class = checkpoint.resolve_class(entry["data_class"], domain.name, path)
    kept = configs.read_beside(trained, domain)
    entry["data_hparams"] = own_data.data_options(entry, trained, kept, data_class)
    trainer = {
        name: value for name, value in (kept.get("trainer") or {}).items() if name not in ("callbacks", "logger")
    }
    data_options = external.inherited(entry["data_hparams"], data_class, overrides)
    text = {
        **({"seed_everything": kept["seed_everything"]} if "seed_everything" in kept else {}),
        "trainer": {name: value for name, value in trainer.items() if name != "default_root_dir"},
        "model": {"class_path": entry["task"].replace(":", "."), "init_args": entry["hparams"]},
        "data": {"class_path": entry["data_class"].replace(":", "."), "init_args": data_options},
    }
    result = Path(run).is_dir() or path.name == BEST
    where = external.Destination(path, entry, overrides, output, result, trained)
    folder: Any = where.folder.path
    if data is None:
        folder = lambda one: where.choose_folder(one, own_data.moved_sources(one, entry, trained, command))  # noqa: E731
    cli = build(domain, folder, [text], Options(overrides, data=data, timeout=timeout, stages=stages))
    resuming.require_same(cli, entry, path, given=True)
    external.require_own_data(where, command)
    return cli, where, path


def evaluate(
    domain: Domain,
    command: Literal["test", "validate"],
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    output: str | Path | None = None,
    data: DataModule | None = None,
    timeout: float = TIMEOUT,
) -> Report:
    """Evaluate a trained model on the validation or test data; print the report and write it to `metrics.json`.

    Args:
        domain: domain of the run.
        command: ``"validate"`` or ``"test"``.
        run: a run folder (its best.ckpt is used), a checkpoint or a set of students.
        overrides: LightningCLI flags of data and trainer. Flags that select other data (`DataModule.sources`) test all
            of its labelled records with the checkpoint's fitted values.
        output: results folder; by default the run folder, or ``RUN/test-<name>`` for other data.
        data: the data module that the model was trained on, instead of a new one with the same options.
        timeout: seconds to wait for another process.
    """
    cli, where, path = prepare_evaluation(domain, command, run, overrides, output=output, data=data, timeout=timeout)
    lock = where.lock() if cli.trainer.global_rank == 0 else None
    try:
        with supervised(cli.trainer, release=lock.release if lock else lambda: None), notes.collected() as lines:
            return _run_evaluate(cli, command, path, where, lines)
    except InputError as error:
        own = {name: value for name, value in cli.datamodule.hparams.items() if name not in where.given}
        raise origin.with_option(error, own) from None
    finally:
        if lock is not None:
            lock.release()


@subnormals.flushed()
def _run_evaluate(cli: TrainingCLI, command: str, path: Path, where: Destination, lines: list[str]) -> Report:
    from seqssm.training.callbacks import InterruptCheck
    from seqssm.training.external import OverlapCheck
    from seqssm.training.unchanged import ChangeCheck, record

    run = cli.trainer.test if command == "test" else cli.trainer.validate
    check, change = OverlapCheck(where.trained), ChangeCheck(where.trained)
    cli.trainer.callbacks.append(InterruptCheck())  # type: ignore[attr-defined]
    if where.differing:
        cli.trainer.callbacks.append(check)  # type: ignore[attr-defined]
    else:
        cli.trainer.callbacks.append(change)  # type: ignore[attr-defined]
    run(cli.model, datamodule=cli.datamodule, ckpt_path=path, verbose=False, weights_only=True)
    report = (
        cli.model.report
        if command == "test"
        else Report({k: float(v) for k, v in cli.trainer.callback_metrics.items()})
    )
    if not cli.trainer.is_global_zero:
        return report or Report()
    if report is None or not report.metrics:
        raise InputError(f"the data set has no {'test' if command == 'test' else 'validation'} part")
    print(report.text())
    if command == "test" and where.takes_records:
        record(where.folder, cli.datamodule, ("test",))
    content = {**where.record(check.counts, change.changed, change.training), **report.to_dict(), "notes": lines}
    print(f"written: {where.folder.update_metrics(command, content)}", file=sys.stderr)
    if command == "test" and where.run.holds_run():
        print(f"next: seqssm report {shlex.quote(str(where.run.path))}")
    return report
