"""Packages to compare with, installed from the package index into a separate folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / ".peers"
MAMBAPY, TRANSFORMERS = "mambapy==1.2.0", "transformers==5.24.0"


def _installed(package: str, requirement: str, *options: str) -> bool:
    """Whether a package is available: from this installation, or from the folder, where it is installed on first use.

    If it is not, the reason is printed.
    """
    if find_spec(package) is not None:
        return True
    if not (FOLDER / package).is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", *options, "--target", str(FOLDER), requirement]
        if subprocess.run(command).returncode:
            print(f"{requirement} could not be installed; it is not compared")
            return False
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # last: what is installed comes first
    return True


def mambapy() -> Any:
    """mambapy's parallel scan; None if it is unavailable, with the reason printed."""
    if not _installed("mambapy", MAMBAPY, "--no-deps"):
        return None
    try:
        from mambapy.pscan import pscan
    except ImportError as error:
        print(f"mambapy cannot be imported ({error}); it is not compared")
        return None
    return pscan


def cached_step(width: int, states: int, batch: int) -> Callable[[], Any] | None:
    """One step of transformers' Mamba layer with its cache, after five positions; None if it is unavailable.

    Args:
        width: model width `d_model`.
        states: state size `d_state`.
        batch: batch size `B`.
    """
    if not _installed("transformers", TRANSFORMERS):
        return None
    try:
        from transformers import MambaConfig
        from transformers.cache_utils import DynamicCache
        from transformers.models.mamba.modeling_mamba import MambaModel
        from transformers.utils import logging
    except ImportError as error:
        print(f"transformers cannot be imported ({error}); it is not compared")
        return None
    logging.set_verbosity_error()
    config = MambaConfig(hidden_size=width, state_size=states, num_hidden_layers=1, vocab_size=32)
    mixer, cache = MambaModel(config).eval().layers[0].mixer, DynamicCache(config=config)
    x = torch.randn(batch, 5, width)
    mixer(x, cache_params=cache)
    return lambda: mixer(x[:, :1], cache_params=cache)


def mamba2_layer(layer: Any) -> torch.nn.Module | None:
    """transformers' Mamba-2 layer with the weights of one of ours; None if it is unavailable.

    Args:
        layer: `seqssm.Mamba2` layer with one forward route.
    """
    if not _installed("transformers", TRANSFORMERS):
        return None
    try:
        from transformers import Mamba2Config
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
        from transformers.utils import logging
    except ImportError as error:
        print(f"transformers cannot be imported ({error}); it is not compared")
        return None
    logging.set_verbosity_error()
    config = Mamba2Config(
        hidden_size=layer.d_model,
        state_size=layer.d_state,
        num_heads=layer.heads,
        head_dim=layer.head_dim,
        n_groups=layer.n_groups,
        conv_kernel=layer.d_conv,
        expand=layer.width // layer.d_model,
        num_hidden_layers=1,
        vocab_size=32,
        use_bias=False,
    )
    mixer = Mamba2Mixer(config, 0)
    mixer.load_state_dict(layer.state_dict())
    return mixer


def mambapy_scan(pscan: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The selective scan with `pscan`, which takes decays and inputs of all steps, (B, L, E, N)."""
    decay = torch.exp(dt[..., None] * A)
    h = pscan(decay, dt[..., None] * B[:, :, None] * x[..., None])
    return (h @ C[..., None]).squeeze(-1) + D * x


def chunked_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
    """The Mamba-2 scan as usually implemented in PyTorch: matrix products on chunks, differentiated by autograd.

    Args:
        x: input `(B, L, H, P)`, L a multiple of `chunk`.
        dt: step size `(B, L, H)`.
        A: decay rate `(H,)`.
        B: input projection `(B, L, 1, N)`; `C` has the same shape.
        chunk: steps of a chunk.
    """
    batch, length, heads, channels = x.shape
    chunks, states = length // chunk, B.shape[-1]
    log_decay = (dt * A).view(batch, chunks, chunk, heads).permute(0, 3, 1, 2).cumsum(-1)
    u = (x * dt[..., None]).view(batch, chunks, chunk, heads, channels).permute(0, 3, 1, 2, 4)
    B, C = B.view(batch, 1, chunks, chunk, states), C.view(batch, 1, chunks, chunk, states)
    future = torch.ones(chunk, chunk, dtype=torch.bool).triu(1)
    between = (log_decay[..., :, None] - log_decay[..., None, :]).masked_fill(future, -torch.inf).exp()
    y = (between * (C @ B.transpose(-1, -2))) @ u
    to_end = torch.exp(log_decay[..., -1:] - log_decay)
    added, kept = (u * to_end[..., None]).transpose(-1, -2) @ B, log_decay[..., -1].exp()
    h = x.new_zeros(batch, heads, channels, states)
    before = []
    for i in range(chunks):
        before.append(h)
        h = kept[:, :, i, None, None] * h + added[:, :, i]
    y = y + log_decay.exp()[..., None] * (C @ torch.stack(before, 2).transpose(-1, -2))
    return y.permute(0, 2, 3, 1, 4).reshape(x.shape)
