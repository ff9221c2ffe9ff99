"""Seeds of the random numbers of a step."""

from __future__ import annotations

import numpy as np
import torch


def derive_seed(*numbers: int) -> int:
    """Derive a 63-bit seed from several integers; neighbouring inputs give unrelated seeds."""
    state = np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed PyTorch's random numbers on the CPU and on `device`.

    `torch.manual_seed` also stores the seed for the accelerators that are not there, each with a formatted stack trace,
    and takes longer than small layers.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
