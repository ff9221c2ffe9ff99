"""The package to compare with, mambapy from the package index, in a folder of its own, no part of an installation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / ".peers"
REQUIREMENT = "mambapy==1.2.0"


def mambapy() -> Any:
    """mambapy's parallel scan, installed on first use; None where it cannot be had, with the reason printed."""
    if not (FOLDER / "mambapy").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(FOLDER), REQUIREMENT]
        if subprocess.run(command).returncode:
            print(f"{REQUIREMENT} could not be installed: no comparison with it")
            return None
    sys.path.append(str(FOLDER))
    try:
        from mambapy.pscan import pscan
    except ImportError as error:
        print(f"mambapy cannot be imported ({error}): no comparison with it")
        return None
    return pscan


def mambapy_scan(pscan: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan around `pscan`: it takes decays and inputs of all steps, (B, L, E, N)."""
    decay = torch.exp(dt[..., None] * A)
    h = pscan(decay, dt[..., None] * B[:, :, None] * x[..., None])
    return (h @ C[..., None]).squeeze(-1) + D * x
