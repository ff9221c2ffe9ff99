"""Predictions of all processes, one per record, in the order of the records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def gathered(parts: Sequence[Mapping[str, Tensor]], world_size: int = 1) -> dict[str, np.ndarray]:
    """Join the batches of all processes.

    Args:
        parts: one mapping per batch of this process, name -> (records, ...) on the CPU; ``"index"`` holds the record
            indices.
        world_size: number of processes; if there are several, all of them must call this.

    Returns:
        The values of all records by name, sorted by ``"index"``, without duplicate records. Empty if there are none.
    """
    if world_size > 1:
        everyone: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(everyone, list(parts))
        parts = [part for own in everyone for part in own]
    if not parts:
        return {}
    joined = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    _, first = np.unique(joined["index"], return_index=True)
    return {name: value[first] for name, value in joined.items()}


def add_loss(total: Tensor, loss: Tensor, records: int) -> Tensor:
    """Add a batch's mean loss to (sum, count), on the device of the loss to avoid synchronisation."""
    loss = loss.detach()
    precise = torch.float32 if loss.device.type == "mps" else torch.float64
    count = torch.tensor(records, device=loss.device, dtype=precise)
    return total.to(loss.device, precise) + torch.stack([loss.to(precise) * records, count])
