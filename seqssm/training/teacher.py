"""Distillation: soft targets of a teacher, and stages that learn what the sum of earlier models leaves.

The teacher is run through the same `Task.step` as the model, on the same batch and with the same random numbers
(positions that are masked, for instance), with its network in the place of the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seqssm.errors import InputError, other_domain
from seqssm.files.notes import note
from seqssm.nn.projections import binary_share
from seqssm.nn.stages import attach
from seqssm.training.checkpoint import build_task, class_name, find_checkpoint, read_checkpoint, require_whole
from seqssm.training.leakage import report_seen
from seqssm.training.origin import folder_of, other_options
from seqssm.training.output_names import missing_classes
from seqssm.training.run_folder import RunFolder


class Teacher:
    """A trained network whose outputs a task learns.

    Args:
        network: the network.
        summary: summary of its data, which says what its outputs mean.
        weight: weight of the soft targets in the loss, from 0 to 1; the task's own loss has the rest.
        temperature: softens the probabilities of both.
    """

    def __init__(self, network: nn.Module, summary: Mapping[str, Any], weight: float, temperature: float) -> None:
        self.network, self.summary = network.requires_grad_(False), summary
        self.weight, self.temperature = weight, temperature

    def loss(self, task: Any, batch: dict[str, Any], own: tuple[Tensor, Any], state: Tensor) -> Tensor:
        """Compute the loss of a training batch.

        Args:
            task: the task that learns.
            batch: the batch.
            own: what the task's `step` returned for it.
            state: state of the random number generator before this step.
        """
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        try:
            with torch.no_grad(), in_place_of(task, evaluating(self.network.to(task.device))):
                _, wanted = task.step(batch)
        finally:
            torch.set_rng_state(after)
        hard, outputs = own
        soft = task.soft_loss(outputs, task.from_teacher(wanted), self.temperature)
        return soft if self.weight == 1 else self.weight * soft + (1 - self.weight) * hard


def evaluating(network: nn.Module) -> nn.Module:
    """Put all layers into eval mode, without dropout; the network itself stays in training mode for `Task.step`.

    Args:
        network: the network.
    """
    network.eval()
    network.training = True
    return network


@contextmanager
def in_place_of(task: Any, network: nn.Module) -> Iterator[None]:
    """Run a task with another network.

    Args:
        task: the task.
        network: the network.
    """
    kept = task._modules["model"]
    task._modules["model"] = network
    try:
        yield
    finally:
        task._modules["model"] = kept


def load(task: Any, path: str | Path) -> tuple[nn.Module, Mapping[str, Any]]:
    """Return the network of a teacher, and the summary of its data.

    Args:
        task: the task that learns.
        path: checkpoint of the teacher, or its run folder.

    Raises:
        InputError: the teacher was trained for another task, for other outputs, or with other inputs.
    """
    if not task.distils:
        raise InputError(f"--model.teacher: {type(task).__name__} cannot learn from a teacher")
    content = read_checkpoint(path)
    entry = content["seqssm"]
    if entry["domain"] != task.domain:
        raise other_domain(entry["domain"], task.domain, path)
    require_whole(entry, find_checkpoint(path))
    if entry["task"] != class_name(type(task)):
        raise InputError(f"--model.teacher: is from {entry['task']}, not {class_name(type(task))}", file=path)
    teacher = build_task(content, path)
    data = None if task._trainer is None else task._trainer.datamodule
    if data is not None and entry["data_class"] == class_name(type(data)):  # first: it names the options
        _require_inputs(entry["data_hparams"], data, folder_of(RunFolder(find_checkpoint(path).parent)))
    order = _require_outputs(task, data, teacher, entry)
    if order:
        teacher.model.register_forward_hook(lambda module, inputs, logits: logits[..., order])
    report_seen(task, "--model.teacher", path, entry)
    return teacher.model, entry["data"]


def _require_outputs(task: Any, data: Any, teacher: Any, entry: Mapping[str, Any]) -> list[int]:
    """Check that the outputs of a teacher mean what those of the task mean.

    Exclusive classes may be in another order, as after `extend`.

    Args:
        task: the task that learns.
        data: its data module, or None.
        teacher: the task of the teacher.
        entry: the ``"seqssm"`` entry of the teacher's checkpoint.

    Returns:
        The positions of the task's classes among those of the teacher; empty if they are the same.

    Raises:
        InputError: other classes, labels, time bins, quantiles, ..., or another order of them.
    """
    theirs = task.named_outputs(teacher.hparams, entry["data"])
    ours = task.named_outputs(task.hparams, {} if data is None else data.summary())
    known = bool(theirs.names and ours.names)
    converted = ours.convertible and len(theirs.names) == len(ours.names) and not theirs.other_unit(ours)
    exclusive = known and theirs.kind == ours.kind and getattr(task, "has_classes", False)
    ordered = exclusive and sorted(theirs.names) == sorted(ours.names)
    if (known and theirs.kind != ours.kind) or (theirs.renamed(ours) and not (converted or ordered)):
        kind = "" if ours.kind == theirs.kind else f" {ours.kind}"
        advice = missing_classes(theirs.names, ours.names) if exclusive else ""
        raise InputError(
            f"--model.teacher: its {theirs.kind} are {theirs.listed(ours)}; the model's{kind} are "
            f"{ours.listed(theirs)}{advice}"
        )
    for name in task.target_args:
        one, other = teacher.hparams.get(name), task.hparams.get(name)
        if one is not None and other is not None and one != other:
            raise InputError(f"--model.teacher: its {name} is {one}, the model's {other}")
    return [theirs.names.index(name) for name in ours.names] if ordered and theirs.names != ours.names else []


def _require_inputs(theirs: Mapping[str, Any], data: Any, base: Path) -> None:
    """Check that a teacher reads the batches of a data module.

    Args:
        theirs: options of the teacher's data module.
        data: the data module of the model that learns.
        base: the folder that the teacher's paths are relative to.

    Raises:
        InputError: an option differs that the data module calls `fixed`. Other differences are printed.
    """
    ours, differing = data.hparams, other_options(theirs, data, base)
    for name in (name for name in differing if name in data.fixed):
        raise InputError(f"--model.teacher: was trained with --data.{name} {theirs[name]}, not {ours[name]}")
    if differing:
        words = ", ".join(f"{name} {theirs[name]} (here {ours[name]})" for name in differing)
        note(f"--model.teacher: was trained with other data options: {words}")


def prepare(task: Any) -> None:
    """Prepare a fit: load the teacher, and print the fraction of binary parameters.

    Args:
        task: the task, with its network.
    """
    h = task.hparams
    if h["teacher"]:
        task.teacher = Teacher(*load(task, h["teacher"]), h["teacher_weight"], h["teacher_temperature"])
    if h["binary"] and task.trainer.is_global_zero:
        binary, total = binary_share(task.model)
        print(f"binary: {binary:,} of {total:,} parameters ({100 * binary / total:.1f} %)")


def add_stages(task: Any, stages: Sequence[nn.Module], alone: float = 0.0) -> None:
    """Let a task train what the sum of earlier models leaves; they are not part of its checkpoint.

    Args:
        task: the task, whose network is built later.
        stages: networks of the earlier models, which stay as they are.
        alone: fraction of the training records for which they are left out.
    """
    task.alone = alone
    task.stages = [stage.eval().requires_grad_(False) for stage in stages]


def join_stages(task: Any) -> None:
    """Add the outputs of the earlier models to those of the task's network."""
    if task.stages:
        attach(task.model, task.stages, task.head, task.alone)
