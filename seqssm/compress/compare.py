"""Two checkpoints of one model on the same test records: scores with paired intervals, changed decisions, CPU time."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from seqssm.domain import Domain
from seqssm.errors import InputError
from seqssm.metrics.metric import direction
from seqssm.training import origin, run
from seqssm.training.callbacks import InterruptCheck
from seqssm.training.external import flagged
from seqssm.training.supervision import supervised
from seqssm.training.task import Recorded, Task

GROUPS = 20  # groups of records, each left out once
QUANTILE = 2.093  # of Student's t with 19 degrees of freedom, 97.5 %
BATCH = 16  # maximum number of records; a group consists of whole batches


@dataclass(frozen=True)
class Score:
    """A score of both models.

    Attributes:
        name: name of the score.
        before, after: its values.
        low, high: ends of the 95 % interval of ``after - before``; NaN with fewer than two groups of records.
        better: direction of improvement, or None.
    """

    name: str
    before: float
    after: float
    low: float
    high: float
    better: str | None


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        records: number of test records.
        scores: one entry per score that has a direction of improvement.
        changed: records whose decision differs; None if the models predict numbers only.
        difference: root mean square of the difference of the outputs relative to their standard deviation.
        cpu_ms: CPU time per record before and after, milliseconds, without the first batch.
    """

    records: int
    scores: list[Score]
    changed: int | None
    difference: float
    cpu_ms: tuple[float, float]


def compare(domain: Domain, before: Path, after: Path, overrides: Sequence[str] = ()) -> Comparison:
    """Test two checkpoints on the same records.

    The intervals are those of the delete-a-group jackknife with 20 groups of consecutive records: both models are
    scored without each group, and the variance of the difference follows from these 20 differences.

    Args:
        domain: domain of the models.
        before: checkpoint of the first model.
        after: checkpoint of the second model.
        overrides: LightningCLI flags that select other test data.

    Raises:
        InputError: the data cannot be found, or have no test split.
    """
    flags = [*overrides, "--trainer.accelerator=cpu"]  # the device of the integer routes, and of the times
    tasks = [record(domain, path, flags) for path in (before, after)]
    first, second = ([*task.recorded] for task in tasks)  # type: ignore[misc]
    whole = [scores(task, task.recorded) for task in tasks]  # type: ignore[arg-type]
    names = [name for name in whole[0] if direction(tasks[0].metrics, name) is not None] or list(whole[0])
    parts = np.array_split(np.arange(len(first)), min(GROUPS, len(first)))
    left = [
        [scores(task, [one for k, one in enumerate(found) if k not in set(part)]) for part in parts]
        for task, found in zip(tasks, (first, second))
    ]
    found = []
    for name in names:
        differences = [b.get(name, math.nan) - a.get(name, math.nan) for a, b in zip(*left)]
        low, high = interval(whole[1][name] - whole[0][name], differences)
        found.append(Score(name, whole[0][name], whole[1][name], low, high, direction(tasks[0].metrics, name)))
    return Comparison(
        sum(len(one.batch["index"]) for one in first),
        found,
        _changed(tasks[0], tasks[1], first, second),
        _difference(first, second),
        (_cpu_ms(first), _cpu_ms(second)),
    )


class _Batches(Callback):
    """Chooses the batch size so that there are enough batches for the groups."""

    def setup(self, trainer: Any, task: Any, stage: str) -> None:
        data = trainer.datamodule
        if data.test_set is not None:
            data.batch_size = max(1, min(data.batch_size, BATCH, len(data.test_set) // GROUPS))


def record(domain: Domain, path: Path, overrides: Sequence[str] = (), stages: Sequence[nn.Module] = ()) -> Task:
    """Run the test of a checkpoint without baselines and reports, and keep its batches.

    Args:
        domain: domain of the model.
        path: the checkpoint.
        overrides: LightningCLI flags of the data.
        stages: networks whose outputs are added to those of the checkpoint's.

    Returns:
        The task, still attached to its trainer, with ``recorded`` batches.
    """
    with tempfile.TemporaryDirectory(prefix="seqssm-") as folder:
        flags = [*overrides, "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
        cli, _, _ = run.prepare_evaluation(domain, "test", path, flags, output=folder, stages=stages)
        cli.trainer.callbacks += [_Batches(), InterruptCheck()]  # type: ignore[attr-defined]
        task = cli.model
        task.recorded = []
        try:
            with supervised(cli.trainer):
                cli.trainer.test(task, datamodule=cli.datamodule, ckpt_path=path, verbose=False, weights_only=True)
        except InputError as error:
            own = {name: value for name, value in cli.datamodule.hparams.items() if name not in flagged(overrides)}
            raise origin.with_option(error, own) from None
    if not task.recorded:
        raise InputError("the data set has no test split")
    return task


@torch.no_grad()
def scores(task: Task, recorded: Sequence[Recorded]) -> dict[str, float]:
    """Compute the test scores of some recorded batches.

    Args:
        task: the task that recorded them.
        recorded: the batches.
    """
    task.reset_metrics("test")
    for one in recorded:
        task.update_metrics(one.batch, one.outputs, "test")
    return {name: float(value) for name, value in task.compute_metrics("test").items()}


def interval(difference: float, left: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a difference from the differences without each group of records.

    Args:
        difference: the difference on all records.
        left: the differences without each group.
    """
    known = np.array([value for value in left if math.isfinite(value)])
    if len(known) < 2:
        return math.nan, math.nan
    groups = len(known)
    error = math.sqrt((groups - 1) / groups * float(np.square(known - known.mean()).sum()))
    quantile = QUANTILE if groups == GROUPS else _student(groups - 1)
    return difference - quantile * error, difference + quantile * error


def _student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t; expansion of Abramowitz and Stegun 26.7.5, exact for 1 and 2."""
    if freedom == 1:
        return 12.706
    if freedom == 2:
        return 4.303
    z = 1.959964
    n = float(freedom)
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def _changed(first: Task, second: Task, before: Sequence[Recorded], after: Sequence[Recorded]) -> int | None:
    total = 0
    for a, b in zip(before, after):
        made, then = first.decisions(a.outputs), second.decisions(b.outputs)
        if made is None or then is None:
            return None
        total += int((made != then).flatten(1).any(1).sum()) if made.ndim > 1 else int((made != then).sum())
    return total


def _difference(before: Sequence[Recorded], after: Sequence[Recorded]) -> float:
    a, b = (torch.cat([_flat(one.outputs) for one in found]) for found in (before, after))
    return float((a - b).square().mean().sqrt() / a.std(correction=0).clamp(min=1e-30))


def _flat(outputs: Any) -> Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return torch.nan_to_num(torch.cat([leaf.detach().double().cpu().flatten() for leaf in leaves]))


def _cpu_ms(recorded: Sequence[Recorded]) -> float:
    timed = recorded[1:] or recorded  # kernels are compiled, and weights packed, in the first batch
    return 1000 * sum(one.cpu_s for one in timed) / sum(len(one.batch["index"]) for one in timed)
