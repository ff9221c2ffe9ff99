"""``extend``: from a checkpoint and a few labelled records to a checkpoint with more classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from seqssm.domain import Domain
from seqssm.errors import InputError, other_domain
from seqssm.files.disk import atomic
from seqssm.files.outputs import require_checkpoint
from seqssm.incremental import accuracy
from seqssm.incremental.accuracy import Judged, Row
from seqssm.incremental.controls import LinearProbe, nearest_mean
from seqssm.incremental.growth import SESSIONS, grown
from seqssm.incremental.learn import RECIPE, Recipe, imprint, learn
from seqssm.incremental.records import Reader, inputs_of, predicted
from seqssm.metrics.classes import class_list, class_name
from seqssm.nn.etf import EtfHead, last_layer
from seqssm.training import checkpoint
from seqssm.training.class_means import ENTRY, FEWEST, ClassInputs, ClassMeans, base_features, means_of
from seqssm.training.class_task import ClassTask
from seqssm.training.hints import listed, predict_lines
from seqssm.training.processes import choose_device


@dataclass(frozen=True)
class Request:
    """What to extend, and with what.

    Attributes:
        model: the checkpoint, or a run folder.
        support: labelled files with records of the new classes.
        output: checkpoint to write.
        base: labelled files with records of old classes, for those whose means are not in the checkpoint.
        evaluate: labelled files for the accuracy, in addition to the test split of the run.
        more_shots: whether records of existing classes are accepted.
        linear_head: whether a linear head gets new rows, or is refused.
        recipe: how the classes are learned.
        options: options of the data module, by name.
        accelerator: device type.
        overwrite: whether to replace the output.
    """

    model: Path
    support: Sequence[Path]
    output: Path
    base: Sequence[Path] = ()
    evaluate: Sequence[Path] = ()
    more_shots: bool = False
    linear_head: Literal["grow", "refuse"] = "grow"
    recipe: Recipe = RECIPE
    options: Mapping[str, Any] = field(default_factory=dict)
    accelerator: str = "auto"
    overwrite: bool = False


@dataclass(frozen=True)
class Extended:
    """The outcome of `extend`.

    Attributes:
        output: the checkpoint that was written.
        old: names of the old classes.
        new: names of the new classes.
        shots: number of support records by class.
        rows: accuracy by session; empty without test records.
        notes: remarks.
        next: the command that uses the model.
    """

    output: Path
    old: list[str]
    new: list[str]
    shots: dict[str, int]
    rows: list[Row]
    notes: list[str]
    next: str = ""


def extend(domain: Domain, request: Request) -> Extended:
    """Add the classes of the support records to a model, write it, and measure both on test records.

    Args:
        domain: the science.
        request: the model and the records.

    Raises:
        InputError: the model is no single-label classifier, a class exists already, the head is full, class means are
            missing, a file cannot be read, or the output exists.
    """
    path = checkpoint.find_checkpoint(request.model)
    content = checkpoint.read_checkpoint(path)
    entry = content["seqssm"]
    if entry["domain"] != domain.name:
        raise other_domain(entry["domain"], domain.name, path, "extend")
    require_checkpoint(request.output, request.overwrite, path)
    checkpoint.require_trainable(content, path)
    checkpoint.require_whole(entry, path)
    device = choose_device(request.accelerator, 0)
    task = _task(content, path, request, device)
    reader = Reader(path, entry, request.options)
    reader.require_options()
    old = list(entry["data"]["classes"])
    new = _new_classes(reader, request, old, path)
    names = [*old, *new]
    content_new, bigger = grown(content, path, reader.data_class, names)
    bigger.aggregate = task.aggregate
    bigger.to(device)
    shots, augmented = _shots(reader, request, task, names, device)
    _require_shots(shots, names, len(old), request.support[0])
    means = _old_means(entry, reader, task, request, old, path, device)
    added = means_of(task.model, [shots], names)
    first = len(content_new["seqssm"][SESSIONS][0])
    imprint(bigger.model.head, base_features(task.model, shots), shots.y, len(old))
    learn(bigger.model, means, shots, first, len(old), request.recipe, augmented)
    judged, notes = _judge(reader, request, task, bigger, means, shots, names, device)
    sessions = [list(one) for one in content_new["seqssm"][SESSIONS]] + ([new] if new else [])
    content_new["seqssm"][SESSIONS] = sessions
    _write(request, content_new, bigger, entry, means, added)
    counts = {name: int((shots.y == k).sum()) for k, name in enumerate(names) if bool((shots.y == k).any())}
    table = accuracy.table(judged, _numbers(sessions, names), len(old)) if judged is not None else []
    if not isinstance(last_layer(task.model.head), EtfHead):  # type: ignore[arg-type]
        notes.insert(0, f"linear head: the rows of {len(old)} classes are unchanged, {len(new)} added")
    few = [name for name, count in zip(added.names, added.counts) if count < FEWEST and name in new]
    if few:
        notes.append(f"no class mean is kept for {class_list(few)}: fewer than {FEWEST} records")
    following = listed(predict_lines(domain, bigger, reader.keep, request.output))
    return Extended(request.output, old, new, counts, table, notes, following)


def _task(content: dict[str, Any], path: Path, request: Request, device: Any) -> ClassTask:
    """Build the task of the checkpoint, and check that classes can be added to it."""
    task = checkpoint.build_task(content, path)
    if not isinstance(task, ClassTask) or not task.has_classes:
        raise InputError("is not a single-label classifier; only those can be extended", file=path)
    if request.linear_head == "refuse" and not isinstance(last_layer(task.model.head), EtfHead):  # type: ignore[arg-type]
        raise InputError("has a linear head; fit it with --model.head etf, or drop --linear-head refuse", file=path)
    task.aggregate = content["seqssm"]["data"].get("aggregate", task.aggregate)
    return task.to(device)


def _new_classes(reader: Reader, request: Request, old: Sequence[str], path: Path) -> list[str]:
    """Return the classes of the support records that the model does not have."""
    if not request.support:
        raise InputError("--support FILE is required: labelled records of the new classes")
    found: list[str] = []
    for file in request.support:
        for name in reader.class_names(file):
            if name in old and not request.more_shots:
                raise InputError(
                    f"the class {name} exists already; pass --more-shots to add records to it, or rename it", file=file
                )
            found.append(name)
    if not found:
        raise InputError("no record has a class", file=request.support[0])
    return [name for name in dict.fromkeys(found) if name not in old]


def _shots(
    reader: Reader, request: Request, task: ClassTask, names: Sequence[str], device: Any
) -> tuple[ClassInputs, ClassInputs | None]:
    """Read the support records as they are, and with the augmentation of the training, if it has one."""
    plain, further = [], []
    for file in request.support:
        plain.append(inputs_of(task, [reader.read(file, names, support=True)], device))
        if more := reader.augmented(request.recipe.copies, request.recipe.seed):
            further.append(inputs_of(task, more, device))
    return ClassInputs.joined(plain), ClassInputs.joined(further) if further else None


def _require_shots(shots: ClassInputs, names: Sequence[str], old: int, file: Path) -> None:
    lacking = [name for k, name in enumerate(names) if k >= old and not bool((shots.y == k).any())]
    if lacking:
        raise InputError(f"no usable record of the class {class_list(lacking)}", file=file)


def _old_means(
    entry: Mapping[str, Any],
    reader: Reader,
    task: ClassTask,
    request: Request,
    old: Sequence[str],
    path: Path,
    device: Any,
) -> ClassMeans:
    """Return the means of all old classes, from the checkpoint and the files of `base`."""
    kept = ClassMeans.from_dict(entry[ENTRY]).select(old) if entry.get(ENTRY) else None
    missing = [name for name in old if kept is None or name not in kept.names]
    if not missing:
        assert kept is not None
        return kept
    if not request.base:
        raise InputError(
            f"holds no class mean of {class_list(missing[:8])} (fewer than {FEWEST} training records, or left out); "
            "pass --base FILES with records of these classes",
            file=path,
        )
    inputs = inputs_of(task, [reader.read(file, old) for file in request.base], device)
    found = means_of(task.model, [inputs], old).select(missing)
    lacking = [name for name in missing if name not in found.names]
    if lacking:
        raise InputError(f"--base: no record of the class {class_list(lacking[:8])}")
    return (found if kept is None else kept.merged(found)).select(old)


def _judge(
    reader: Reader,
    request: Request,
    task: ClassTask,
    bigger: ClassTask,
    means: ClassMeans,
    shots: ClassInputs,
    names: Sequence[str],
    device: Any,
) -> tuple[Judged | None, list[str]]:
    """Decide on the test split of the run and on further files, with both models and the controls."""
    old, parts, notes = len(means), [], []
    controls = Controls(task, means, shots, len(names))
    files: list[Path | None] = [None, *request.evaluate]
    for file in files:
        try:
            loader = reader.read(file, names)
        except InputError as error:
            if file is not None or reader.sources:
                raise
            notes.append(f"the run's own test records cannot be read: {error}")
            continue
        inputs = inputs_of(task, [loader], device)
        features = base_features(task.model, inputs).cpu()
        before, after = controls.decide(features, False), controls.decide(features, True)
        before["model"], after["model"] = predicted(task, loader, device), predicted(bigger, loader, device)
        parts.append(Judged(inputs.y.cpu(), before, after))
    if not parts:
        return None, notes
    judged = Judged.joined(parts)
    absent = [name for k, name in enumerate(names) if k >= old and not bool((judged.truth == k).any())]
    if absent:
        notes.append(f"no test records of {class_list(absent)}: pass --evaluate FILE with labelled records")
    return judged, notes


class Controls:
    """Nearest class mean and a linear probe on the frozen features, without and with the new classes.

    Args:
        task: the task without the new classes.
        means: means of the old classes.
        shots: support records.
        classes: number of all classes.
    """

    def __init__(self, task: ClassTask, means: ClassMeans, shots: ClassInputs, classes: int) -> None:
        own, y = base_features(task.model, shots).cpu(), shots.y.cpu()
        old = len(means)
        rows = []
        for label in range(classes):
            mine = own[y == label]
            total = [means.features[label] * means.counts[label]] if label < old else []
            count = (means.counts[label] if label < old else 0) + len(mine)
            rows.append(torch.stack([*total, mine.sum(0)]).sum(0) / count)
        known = torch.arange(old)
        self.means = {False: means.features, True: torch.stack(rows)}
        grown = LinearProbe(torch.cat([means.features, own]), torch.cat([known, y]), classes)
        self.probes = {False: LinearProbe(means.features, known, old), True: grown}

    def decide(self, features: torch.Tensor, grown: bool) -> dict[str, torch.Tensor]:
        """Return the decisions of both controls.

        Args:
            features: features of the records, (n, D).
            grown: whether the support records are known.
        """
        return {
            "nearest mean": nearest_mean(features, self.means[grown]),
            "linear probe": self.probes[grown].predict(features),
        }


def _write(
    request: Request,
    content: dict[str, Any],
    bigger: ClassTask,
    entry: Mapping[str, Any],
    means: ClassMeans,
    added: ClassMeans,
) -> None:
    """Write the checkpoint: tensors and plain Python only."""
    new = content["seqssm"]
    if entry.get(ENTRY) is not None:  # left out at the fit: left out here
        new[ENTRY] = means.merged(added).kept().to_dict()
    checkpoint.require_plain(new, "checkpoint")
    weights = {name: value.detach().cpu().clone() for name, value in bigger.state_dict().items()}
    with atomic(request.output) as file:
        torch.save({**content, "state_dict": weights}, file)


def _numbers(sessions: Sequence[Sequence[str]], names: Sequence[str]) -> list[list[int]]:
    known = {name: number for number, name in enumerate(names)}
    return [[known[name] for name in one] for one in sessions]


def text(done: Extended) -> str:
    """Format the outcome for printing.

    Args:
        done: the outcome.
    """
    shots = ", ".join(f"{class_name(name)} ({count} records)" for name, count in done.shots.items())
    lines = [f"{len(done.old)} classes before, {len(done.old) + len(done.new)} now; learned from: {shots}"]
    if done.rows:
        lines += ["", accuracy.text(done.rows), ""]
        lines.append("Means over classes. Nearest mean and linear probe: the same records and frozen features.")
    return "\n".join([*lines, *done.notes])
