"""From a checkpoint to one with more classes: arguments, weights, and the summary of the data."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqssm.errors import InputError
from seqssm.training import checkpoint
from seqssm.training.class_task import EXTENDED

SESSIONS = "sessions"  # entry of a checkpoint: the classes of the fit and of every extension
UNUSED = ("optimizer_states", "lr_schedulers", "callbacks", "loops")  # of a checkpoint that is not trained further


def grown(content: Mapping[str, Any], path: Path, data_class: Any, names: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """Return a checkpoint with the classes `names` and a new branch, and its task.

    Weights that have one row per class get further rows; a branch that exists already is kept.

    Args:
        content: the checkpoint.
        path: its file, for messages.
        data_class: class of its data module.
        names: all classes; those of the checkpoint come first.

    Raises:
        InputError: the head cannot have so many classes.
    """
    new = {name: copy.deepcopy(value) for name, value in content.items() if name not in (*UNUSED, "state_dict")}
    entry, old = new["seqssm"], content["seqssm"]
    before = list(old["data"]["classes"])
    entry["data"] = data_class.grown_summary(old["data"], names)
    h = entry["hparams"]
    h["classes"] = list(names) if isinstance(h["classes"], list | tuple) else len(names)
    if h["projector"] not in EXTENDED:
        h["projector"] = "new" if h["projector"] == "none" else "dual"
    if SESSIONS not in entry:
        entry[SESSIONS] = [before]
    most = h["max_classes"]
    if most is not None and len(names) > most:
        raise InputError(
            f"its head has {most} directions (--model.max_classes), and there would be {len(names)} classes; train a "
            "model with more",
            file=path,
        )
    cls = checkpoint.resolve_class(entry["task"], entry["domain"], path)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the new branch
        task = cls(**h)
        task.configure_model()
    weights = task.state_dict()
    for name, value in content["state_dict"].items():
        if name not in weights:
            raise InputError(f"is damaged: unknown weight {name}", file=path)
        weights[name] = _with_more_rows(name, value, weights[name], path)
    task.load_state_dict(weights)
    return new, task.eval()


def _with_more_rows(name: str, old: Tensor, new: Tensor, path: Path) -> Tensor:
    """Return `old`, with the further rows of `new`."""
    if old.shape == new.shape:
        return old.clone()
    if old.shape[1:] != new.shape[1:] or len(old) > len(new):
        raise InputError(f"its weight {name} has shape {tuple(old.shape)}, not {tuple(new.shape)}", file=path)
    return torch.cat([old, new[len(old) :].to(old.dtype)])
