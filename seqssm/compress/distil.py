"""``distill``: from a trained model to a sequence of small ones whose outputs are summed (progressive distillation).

Each student is trained on what the sum of the earlier ones leaves, with the labels and the outputs of the teacher
(after Mamba base PKD, arXiv 2503.01727). The first students alone are a smaller model: prediction can stop early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from seqssm.compress.compare import record, scores
from seqssm.compress.students import Row, State, flags_of
from seqssm.domain import Domain, find_domain
from seqssm.errors import InputError
from seqssm.files import fingerprint, notes
from seqssm.files.disk import Begun
from seqssm.files.outputs import STUDENTS, require_students
from seqssm.metrics.metric import direction
from seqssm.metrics.report import number
from seqssm.nn.flops import count_flops
from seqssm.nn.projections import merge_adapters
from seqssm.nn.stages import heads_of
from seqssm.training import checkpoint, ensemble, external, origin, own_data, run
from seqssm.training import presets as configs
from seqssm.training.class_task import EXTENDED
from seqssm.training.hints import next_lines
from seqssm.training.networks import parameters
from seqssm.training.run_folder import BEST, CONFIG, LAST, RunFolder
from seqssm.training.supervision import supervised
from seqssm.training.task import Task
from seqssm.training.teacher import Teacher, in_place_of, load

GROWTH = 1.5  # of the operations from one student to the next
WIDTH = "d_model"  # argument of a network with its width
DEPTHS = ("n_layers", "layers", "depth")  # arguments with its number of layers
MULTIPLE = 4  # of the widths that are tried, for teachers of at least 16 channels


@dataclass(frozen=True)
class Request:
    """What to distil, and how.

    Attributes:
        teacher: checkpoint, or a run folder.
        output: file of the set, ``.ckpt``; the students' runs are kept in a folder beside it.
        students: number of students.
        budget: operations of all students together, as a fraction of the teacher's.
        soft: weight of the teacher's outputs in the loss; the rest is that of the labels.
        temperature: temperature of the soft targets.
        alone: fraction of the training records, chosen at random, for which the earlier students are left out.
        control: whether to train one student of the same operations for comparison.
        overwrite: whether to replace the output.
        overrides: LightningCLI flags for the data and the trainer of the students.
        resume: whether to continue an interrupted distillation, if there is one.
        command: the command line as typed, without ``--resume`` and ``--overwrite``.
    """

    teacher: Path
    output: Path
    students: int = 5
    budget: float = 0.6
    soft: float = 0.5
    temperature: float = 2.0
    alone: float = 0.0
    control: bool = True
    overwrite: bool = False
    overrides: Sequence[str] = ()
    resume: bool = False
    command: str = "seqssm distill ..."

    @property
    def again(self) -> str:
        """The command that continues an interrupted distillation."""
        return f"{self.command} --resume"

    @property
    def options(self) -> dict[str, list[str]]:
        """The words of the options that a continued distillation must repeat, by flag."""
        numbers = {name: [str(getattr(self, name))] for name in ("students", "budget", "soft", "temperature", "alone")}
        own = {f"--{name}": words for name, words in numbers.items()}
        return {**own, **({} if self.control else {"--no-control": []}), **flags_of(self.overrides)}


@dataclass
class Distilled:
    """The outcome of `distil`.

    Attributes:
        output: the file of the set.
        rows: teacher, the sums of the first k students, and the control.
        flops: operations of the teacher per record.
        names: the scores with a direction of improvement.
        next: commands that test and use the set.
    """

    output: Path
    rows: list[Row] = field(default_factory=list)
    flops: int = 0
    names: list[str] = field(default_factory=list)
    next: str = ""


class Sizes:
    """Finds the size of a student for a number of operations.

    Args:
        task: the teacher's task with recorded test batches; its low-rank adapters are merged.
        path: its checkpoint, for messages.

    Raises:
        InputError: the network cannot be made smaller, or has no head whose outputs can be added.
    """

    def __init__(self, task: Task, path: Path) -> None:
        self.task, self.arguments = task, checkpoint.public(task.hparams)
        network = task.networks[self.arguments["network"]] if task.networks else type(task)
        known = parameters(network)
        depth = next((name for name in DEPTHS if name in known), None)
        if WIDTH not in known or depth is None:
            raise InputError(
                f"its network has no arguments {WIDTH} and {' or '.join(DEPTHS)}, so there are no smaller ones of it",
                file=path,
            )
        self.depth_name = depth
        try:
            heads_of(task.model, task.head)
        except ValueError as error:
            raise InputError(f"the outputs of its network cannot be added: {error}", file=path) from None
        assert task.recorded
        self.batch = task.recorded[0].batch
        self.records = len(self.batch["index"])
        self.width, self.depth = int(self.arguments[WIDTH]), int(self.arguments[depth])
        self.known: dict[tuple[int, int], float | None] = {}
        merge_adapters(task.model)
        self.teacher = count_flops(task.model, lambda: task.step(self.batch))

    def hparams(self, width: int, depth: int) -> dict[str, Any]:
        """Return the arguments of a student."""
        new: dict[str, Any] = {"init_from": None, "freeze": None, "lora": 0}  # all of a student is trained
        if "projector" in self.arguments:  # of a model that `extend` has made
            new["projector"] = EXTENDED.get(self.arguments["projector"], self.arguments["projector"])
        return {**self.arguments, WIDTH: width, self.depth_name: depth, **new}

    def flops(self, width: int, depth: int) -> float | None:
        """Return the operations of a student as a fraction of the teacher's; None if there is no such network."""
        if (width, depth) not in self.known:
            try:
                small = type(self.task)(**self.hparams(width, depth))
                small.configure_model()
            except (InputError, ValueError):
                self.known[width, depth] = None
            else:
                network = small.model.eval()
                with in_place_of(self.task, network):
                    found = count_flops(network, lambda: self.task.step(self.batch))
                self.known[width, depth] = found / self.teacher
        return self.known[width, depth]

    def largest(self, target: float) -> tuple[int, int, float]:
        """Return (width, depth, operations) of the largest student within `target`, a fraction of the teacher's.

        Raises:
            InputError: the smallest one has more operations.
        """
        step = MULTIPLE if self.width >= 4 * MULTIPLE else 1
        widths = list(range(step, self.width + 1, step))
        best: tuple[float, int, int] | None = None
        for depth in range(1, self.depth + 1):
            low, high = 0, len(widths)  # widths[:low] fit
            while low < high:
                middle = (low + high) // 2
                found = self.flops(widths[middle], depth)
                if found is not None and found > target:
                    high = middle
                else:
                    low = middle + 1
            for width in reversed(widths[:low]):
                found = self.flops(width, depth)
                if found is not None and found <= target:
                    best = max(best or (0.0, 0, 0), (found, width, depth))
                    break
        if best is None or best[0] == 0:
            least = min(value for value in self.known.values() if value is not None)
            raise InputError(
                f"--budget: a student would have {100 * target:.2g} % of the teacher's operations, the smallest "
                f"network has {100 * least:.2g} %; use fewer students or a larger budget"
            )
        return best[1], best[2], best[0]


@notes.once()
def distil(request: Request, progress: Callable[[str], None] = print) -> Distilled:
    """Train the students, write the set, and test its first k students, the teacher and the control.

    Args:
        request: the teacher and the options.
        progress: called with a line before each training.

    Raises:
        InputError: the teacher is not usable, cannot be made smaller, the output exists, or an interrupted distillation
            had other options.
        KeyboardInterrupt: interrupted; its text is the command that continues, if a student has been begun.
    """
    path = checkpoint.find_checkpoint(request.teacher)
    entry = checkpoint.read_checkpoint(path)["seqssm"]
    checkpoint.require_whole(entry, path)
    domain = find_domain(entry["domain"], file=path)
    folder = require_students(request.output, request.overwrite, path, request.resume)
    paths = checkpoint.resolve_class(entry["data_class"], domain.name, path).paths if entry["data_class"] else ()
    state = State(folder, path, request.options, request.resume, [f"--data.{name}" for name in paths])
    begun = Begun(folder / STUDENTS, state.continued)
    try:
        return _distil(request, domain, path, state, progress)
    except KeyboardInterrupt:
        state.replace()
        raise KeyboardInterrupt(request.again if begun else "") from None
    except SystemExit:  # of a callback of the user
        state.replace()
        raise
    except Exception:
        if begun and not state.continued and not (folder / "student-1" / LAST).exists():
            state.restore()  # no student can be trained
        raise


def _distil(request: Request, domain: Domain, path: Path, state: State, progress: Callable[[str], None]) -> Distilled:
    flags = _of_data(request.overrides)
    unsplit = _of_whole_data(flags, domain, path)
    if state.moved and "sum of 1" in state.rows:
        _require_own_data(domain, state, unsplit)
    teacher = record(domain, path, unsplit)
    sizes = Sizes(teacher, path)
    planned, spent = _plan(sizes, request), 0.0
    inferred = {"classes": None} if getattr(teacher, "has_classes", False) else {}  # in the order of the data
    state.begin(request.output)
    data = teacher.trainer.datamodule  # type: ignore[attr-defined]
    if "teacher" not in state.rows and not data.external and unsplit == flags:
        state.keep(Row("teacher", sizes.width, sizes.depth, 1.0, scores(teacher, teacher.recorded or [])))

    def finish(name: str, title: str, size: tuple[int, int], flops: float, stages: Sequence[nn.Module]) -> Path:
        """Train and test a model, unless an earlier command has; return its checkpoint."""
        best = state.folder / name / BEST
        if title in state.rows and best.is_file():
            if state.rows[title].digest != fingerprint.of_files([best]):
                words = "has changed since it was tested in the set; start again with --overwrite"
                raise InputError(f"--resume: {words}", file=best)
            progress("  already finished")
            return best
        hparams = {**sizes.hparams(*size), **inferred}
        _train(domain, request, path, state.folder / name, hparams, stages, state.moved)
        found = record(domain, best, flags, stages)
        row = Row(title, *size, flops, scores(found, found.recorded or []), fingerprint.of_files([best]))
        if "teacher" not in state.rows:  # the test split of other data is known once a student has them
            state.keep(Row("teacher", sizes.width, sizes.depth, 1.0, _scores_of(path, found)))
        state.keep(row)
        return best

    stages: list[nn.Module] = []
    members: list[Path] = []
    for place, (width, depth, cost) in enumerate(planned, 1):
        progress(f"student {place} of {request.students}: {WIDTH} {width}, {sizes.depth_name} {depth}")
        spent += cost
        best = finish(f"student-{place}", f"sum of {place}", (width, depth), spent, stages)
        state.replace()
        members.append(best)
        stages = [*stages, checkpoint.build_task(checkpoint.read_checkpoint(best), best).model]
    ensemble.combine_sum(members, request.output, teacher.head, [cost for _, _, cost in planned], str(path))
    if request.control:
        width, depth, cost = sizes.largest(request.budget)
        progress(f"control, one student: {WIDTH} {width}, {sizes.depth_name} {depth}")
        finish("control", "one student", (width, depth), cost, [])
    whole = state.rows["teacher"].scores
    names = [name for name in whole if direction(teacher.metrics, name) is not None] or list(whole)
    following = next_lines(domain, teacher, data, request.output, request.output)
    return Distilled(request.output, list(state.rows.values()), sizes.teacher // sizes.records, names, following)


def _of_data(overrides: Sequence[str], without: Collection[str] = ()) -> list[str]:
    """Return the flags of the data, with their values, except for some options."""
    kept, mine = [], False
    for word in overrides:
        if word.startswith("--"):
            mine = word.startswith("--data") and not external.flagged([word]).intersection(without)
        kept += [word] if mine else []
    return kept


def _require_own_data(domain: Domain, state: State, flags: Sequence[str]) -> None:
    """Require that the files at another path than before hold the data of the students, which may all be finished."""
    _, where, _ = run.prepare_evaluation(domain, "test", state.folder / "student-1" / BEST, flags)
    if where.external:
        raise InputError(
            f"--resume: {' '.join(state.moved)}: the data are not those of this run; give the same data, or choose "
            "another --output",
            file=state.folder,
        )


def _of_whole_data(flags: Sequence[str], domain: Domain, teacher: Path) -> list[str]:
    """Return the flags of the data, if they name a source without those of its split: the teacher is sized on it all.

    Args:
        flags: flags of the data, with their values.
        domain: domain of the teacher.
        teacher: its checkpoint.
    """
    entry, given = checkpoint.read_checkpoint(teacher)["seqssm"], external.flagged(flags)
    if not entry["data_class"]:
        return list(flags)
    data = checkpoint.resolve_class(entry["data_class"], domain.name, teacher)
    return _of_data(flags, without=data.split_options if given & set().union(*data.sources) else ())


def _scores_of(teacher: Path, task: Task) -> dict[str, float]:
    """Compute the scores of a teacher on the test records of a student.

    Args:
        teacher: checkpoint of the teacher.
        task: the task of the student, attached to its trainer; its recorded batches are replaced.
    """
    network, summary = load(task, teacher.absolute())  # as in the fit, so that its notes are equal
    task.teacher, task.recorded = Teacher(network, summary, 1, 1), []
    trainer: Any = task.trainer
    with in_place_of(task, network):
        with supervised(trainer):
            trainer.test(task, datamodule=trainer.datamodule, verbose=False)
        return scores(task, [replace(one, outputs=task.from_teacher(one.outputs)) for one in task.recorded])


def _plan(sizes: Sizes, request: Request) -> list[tuple[int, int, float]]:
    """Choose the sizes of the students: each has `GROWTH` times the operations of the one before, as far as possible.

    What a student leaves of its part of the budget, because sizes are whole numbers, goes to the next one.
    """
    parts = [GROWTH**place for place in range(request.students)]
    planned, left = [], 0.0
    for part in parts:
        target = request.budget * part / sum(parts) + left
        width, depth, cost = sizes.largest(target)
        left = max(0.0, target - cost)
        planned.append((width, depth, cost))
    return planned


def _train(
    domain: Domain,
    request: Request,
    teacher: Path,
    folder: Path,
    hparams: dict[str, Any],
    stages: Sequence[nn.Module],
    moved: Sequence[str],
) -> None:
    """Train a student with the data and the trainer of the teacher's run, or continue its training.

    A run that is continued takes the flags in `moved`, of files at another path.
    """
    first = RunFolder(folder.with_name("student-1"))
    options = run.Options(
        list(request.overrides),
        command=request.again if (folder / CONFIG).is_file() else request.command,
        stages=stages,
        alone=request.alone,
        like=first if request.resume and first.holds_run() else None,
        again=request.again,
        hints=False,
        recorded=True,
    )
    if (folder / CONFIG).is_file():
        run.resume(domain, folder, replace(options, overrides=moved))
        return
    source = folder.with_suffix(".yaml")
    content = _config(domain, request, teacher, hparams)
    source.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    try:
        run.fit(domain, [source], options, output=folder)
    except InputError as error:
        raise origin.with_option(error, content["data"]["init_args"]) from None


def _config(domain: Domain, request: Request, teacher: Path, hparams: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a student."""
    entry = checkpoint.read_checkpoint(teacher)["seqssm"]
    kept = configs.read_beside(teacher, domain)
    data_class = checkpoint.resolve_class(entry["data_class"], domain.name, teacher)
    data_options = own_data.data_options(entry, teacher, kept, data_class)
    learned = {
        "teacher": str(teacher.absolute()),
        "teacher_weight": request.soft,
        "teacher_temperature": request.temperature,
    }
    content = {name: kept[name] for name in ("seed_everything", "trainer", "early_stopping") if name in kept}
    return content | {
        "model": {"class_path": entry["task"].replace(":", "."), "init_args": {**hparams, **learned}},
        "data": {
            "class_path": entry["data_class"].replace(":", "."),
            "init_args": external.inherited(data_options, data_class, request.overrides),
        },
    }


# -- the report --------------------------------------------------------------------------------------------------------


def text(done: Distilled) -> str:
    """Format the outcome as a table.

    Args:
        done: the outcome.
    """
    rows = [("", "size", "operations", *done.names)]
    for row in done.rows:
        values = [number(row.scores[name]) if math.isfinite(row.scores[name]) else "-" for name in done.names]
        rows.append((row.name, f"{row.width} x {row.depth}", f"{100 * row.flops:.1f} %", *values))
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines += ["", "size: width x layers of the model, in a sum that of the last student"]
    lines.append(f"operations: of the teacher's {done.flops:,} per record of the first test batch")
    return "\n".join(lines)
