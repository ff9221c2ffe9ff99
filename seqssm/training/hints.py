"""Commands that use a trained model, printed after a training."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from seqssm.domain import Domain


def next_lines(domain: Domain, task: Any, data: Any, tested: Path, model: Path, in_memory: bool = False) -> str:
    """Return the commands that test and use a trained model.

    Args:
        domain: domain of the model.
        task: its task.
        data: the data module that it was trained on.
        tested: what is tested: the run folder, or a checkpoint.
        model: the checkpoint.
        in_memory: whether it was trained on data in memory, which no file of the example has.
    """
    inputs = shlex.join(data.predict_words()) or ("FILE" if in_memory else domain.example_input)
    inputs = " ".join([inputs, *map(shlex.quote, task.predict_words())])
    commands = task.usage(str(model)) or [f"seqssm predict {shlex.quote(str(model))} {inputs} --output predictions.csv"]
    first = f"next: seqssm {domain.name} test {shlex.quote(str(tested))}"
    return "\n".join([first, *(f"      {line}" for line in commands)])
