"""The optimiser of the training tasks, AdamW with weight decay of matrices alone, and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from seqssm.errors import InputError

NO_DECAY = ("A_log", "D", "dt_bias")


def adamw(module: nn.Module, learning_rate: float, weight_decay: float, fused: bool) -> torch.optim.Optimizer:
    """Build the optimiser of the parameters that are trained.

    Args:
        module: module with the parameters.
        learning_rate: learning rate.
        weight_decay: weight decay of matrices; vectors, biases and the parameters `NO_DECAY` have none.
        fused: whether the fused implementation may be used; in mixed precision, its gradients cannot be clipped.
    """
    decay, rest = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or name.rsplit(".", 1)[-1] in NO_DECAY
            (rest if plain else decay).append(parameter)
    decayed = {"params": decay, "weight_decay": weight_decay}
    groups = [group for group in (decayed, {"params": rest, "weight_decay": 0.0}) if group["params"]]
    # the default loop costs a fifth of a small model's step on a CPU
    on_cpu = all(parameter.device.type == "cpu" for parameter in decay + rest)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True if on_cpu and fused else None)


def rate_factor(schedule: str, warmup: int, epoch: int, step: int, total: int) -> float:
    """Return the learning rate of an optimiser step, relative to the base rate.

    Args:
        schedule: ``"constant"``, ``"halving"`` or ``"cosine"``.
        warmup: number of steps of linear warm-up.
        epoch: index of the epoch.
        step: index of the step.
        total: number of steps of the whole run.
    """
    factor = 1.0
    if schedule == "halving":
        factor = 0.5 ** max(0, epoch - 1)
    elif schedule == "cosine":
        progress = max(0, step - warmup) / max(1, total - warmup)
        factor = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if step < warmup:
        factor *= (step + 1) / warmup
    return factor


def total_steps(trainer: Any, schedule: str) -> int:
    """Return the number of optimiser steps of the whole run, from the trainer's limits; 0 if there are none.

    Raises:
        InputError: the schedule requires a limit.
    """
    if trainer.max_steps != -1:
        return trainer.max_steps
    if trainer.max_epochs in (None, -1) or trainer.num_training_batches == float("inf"):
        if schedule == "cosine":
            raise InputError("--model.schedule cosine requires --trainer.max_epochs")
        return 0
    return trainer.max_epochs * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
