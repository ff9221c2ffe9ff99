"""Further members of an ensemble, without training."""

from __future__ import annotations

from pathlib import Path

import torch

from seqssm.training import checkpoint


def moved(run: Path, folder: Path, seed: int = 0, scale: float = 0.02) -> Path:
    """A copy of a run with slightly different weights."""
    content = torch.load(checkpoint.find_checkpoint(run), weights_only=True)
    generator = torch.Generator().manual_seed(seed)
    for name, value in content["state_dict"].items():
        if value.is_floating_point() and name.endswith(("weight", "bias")):
            content["state_dict"][name] = value + scale * torch.randn(value.shape, generator=generator)
    folder.mkdir(parents=True)
    torch.save(content, folder / "best.ckpt")
    return folder
