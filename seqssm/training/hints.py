"""Commands that use a trained model, printed after a training."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqssm.domain import Domain


def next_lines(domain: Domain, task: Any, data: Any, tested: Path, model: Path) -> str:
    """Return the commands that test a trained model, if a command can read its test records, and use it.

    Args:
        domain: domain of the model.
        task: its task.
        data: the data module that it was trained on.
        tested: what is tested: the run folder, or a checkpoint.
        model: the checkpoint.
    """
    known = data.frame is None and data.test_set is not None and len(data.test_set) > 0
    test = [f"seqssm {domain.name} test {shlex.quote(str(tested))}"] if known else []
    return listed([*test, *predict_lines(domain, task, data, model)])


def predict_lines(domain: Domain, task: Any, data: Any, model: Path) -> list[str]:
    """Return the commands that use a trained model.

    Args:
        domain: domain of the model.
        task: its task.
        data: a data module that has read records of it.
        model: the checkpoint.
    """
    inputs = shlex.join(data.predict_words()) or domain.example_input
    inputs = " ".join([inputs, *map(shlex.quote, task.predict_words())])
    return task.usage(str(model)) or [f"seqssm predict {shlex.quote(str(model))} {inputs} --output predictions.csv"]


def listed(commands: Sequence[str]) -> str:
    """Format commands as the last lines of another command's output."""
    return "next: " + "\n      ".join(commands)
