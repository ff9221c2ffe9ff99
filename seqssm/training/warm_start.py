"""Warm starts: weights of a checkpoint that fit a model by name and shape, and what keeps the others from fitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from seqssm.errors import InputError
from seqssm.files.notes import note
from seqssm.training import networks
from seqssm.training.checkpoint import read_checkpoint, require_trainable
from seqssm.training.leakage import report_seen
from seqssm.training.output_names import Outputs

SHOWN = 8  # maximum number of names in a line
FEW = 0.5  # fraction of loaded parameters below which a warning is printed


def warm_start(task: Any, path: str | Path) -> None:
    """Load the weights of a checkpoint that fit `task.model` by name and shape, and print a summary.

    Args:
        task: task whose model is built.
        path: checkpoint or run folder.

    Raises:
        InputError: no weight fits; the message names the options of the network that differ.
    """
    from lightning.pytorch.utilities import rank_zero_only

    content = read_checkpoint(path)
    require_trainable(content, path)
    source = {
        name.removeprefix("model."): value for name, value in content["state_dict"].items() if name.startswith("model.")
    }
    source = task.adapt_weights(source)
    whole = task.model.state_dict()
    computed = [name for name in whole if any(name == one or name.startswith(one + ".") for one in task.fitted)]
    target = {name: value for name, value in whole.items() if name not in computed}
    fitting = {name: value for name, value in source.items() if name in target and value.shape == target[name].shape}
    entry = content["seqssm"]
    other = differing(task, entry["hparams"])
    if not fitting:
        why = f"; options that differ: {', '.join(other)}" if other else ""
        raise InputError(f"contains no weight that fits this model by name and shape{why}", file=path)
    task.model.load_state_dict(fitting, strict=False)
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        for line in summary(path, source, target, fitting, other, computed):
            print(line)
    if entry["domain"] == task.domain and any(task.trains(name) for name in fitting):
        data = None if task._trainer is None else task._trainer.datamodule
        mine = task.named_outputs(task.hparams, {} if data is None else data.summary())
        for line in renamed(mine, task.named_outputs(entry["hparams"], entry["data"])):
            note(line)
    report_seen(task, "--model.init_from", path, entry)


def summary(
    path: str | Path,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    fitting: Mapping[str, Tensor],
    other: Sequence[str],
    computed: Sequence[str] = (),
) -> list[str]:
    """Return the lines about a warm start.

    Args:
        path: the checkpoint.
        source: weights of the checkpoint, by name.
        target: weights of the model, without those in `computed`.
        fitting: weights that are loaded.
        other: result of `differing`.
        computed: names of the model's weights that the fit sets from its data.
    """
    lines = [f"warm start from {path}"]
    for title, names in (
        ("loaded", list(fitting)),
        ("new", [name for name in target if name not in fitting]),
        ("unused", [name for name in source if name not in fitting]),
        *([("set by the fit", computed)] if computed else []),
    ):
        listed = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        lines.append(f"  {title}: {len(names)}" + (f" ({listed})" if names else ""))
    if other:
        lines.append(f"  options that differ: {', '.join(other)}")
    share = sum(value.numel() for value in fitting.values()) / max(sum(value.numel() for value in target.values()), 1)
    if share < FEW:
        lines.append(f"  warning: only {100 * share:.2g} % of the model's parameters are loaded, the others are new")
    return lines


def differing(task: Any, there: Mapping[str, Any]) -> list[str]:
    """Return the options of the network whose values differ from a checkpoint's: ``--model.d_model 256 (there 64)``.

    Args:
        task: task with the chosen network.
        there: arguments in the checkpoint.
    """
    own = task.hparams
    chosen = task.networks.get(own.get(networks.CHOICE)) if task.networks else None
    names = [networks.CHOICE, *(networks.parameters(chosen) if chosen is not None else ())]
    return [
        f"--model.{name} {_shown(own[name])} (there {_shown(there[name])})"
        for name in names
        if name in own and name in there and own[name] != there[name]
    ]


def renamed(mine: Outputs, there: Outputs) -> list[str]:
    """Return the warning about outputs of other names, whose weights fit by shape; empty if there are none.

    Args:
        mine: outputs of the model.
        there: those of the checkpoint.
    """
    if len(mine.names) != len(there.names) or not mine.renamed(there):
        return []
    names = f"there {there.listed(mine)}; here {mine.listed(there)}"
    return [f"  warning: other {mine.kind} ({names}); each starts from the weights in its position"]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
