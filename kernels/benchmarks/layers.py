"""Benchmark of the Mamba-2 layer against the CPU path of transformers with the same weights; Mamba-3 beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import peers
import torch
from output import show
from torch import Tensor

SHAPE = {"d_model": 256, "length": 4096, "head_dim": 64}


def layers(repeats: int, peer: bool, states: tuple[int, ...] = (64, 128)) -> list[dict[str, Any]]:
    """CPU milliseconds of forward, and of forward + backward with gradients of the input and all weights, alternating.

    Args:
        repeats: number of runs of each.
        peer: whether to compare with transformers.
        states: `d_state` of each row.
    """
    from seqssm.nn.mamba2 import Mamba2
    from seqssm.nn.mamba3 import Mamba3

    rows = []
    for d_state in states:
        torch.manual_seed(0)
        layer = Mamba2(SHAPE["d_model"], d_state=d_state, head_dim=SHAPE["head_dim"])
        x = torch.randn(1, SHAPE["length"], SHAPE["d_model"])
        modules: dict[str, torch.nn.Module] = {"ours": layer}
        other = peers.mamba2_layer(layer) if peer else None
        if other is not None:
            modules["transformers"] = other
            with torch.no_grad():
                difference = (layer(x) - other(x)).square().mean().sqrt() / other(x).square().mean().sqrt()
            if difference > 1e-4:
                raise RuntimeError(f"the layers differ by {difference:.1e} of the output")
        modules["mamba3"] = Mamba3(SHAPE["d_model"], d_state=d_state, head_dim=SHAPE["head_dim"])
        row: dict[str, Any] = {"d_state": d_state, **SHAPE}
        for mode, run in (("forward", _forward), ("both", _both)):
            seconds: dict[str, list[float]] = {name: [] for name in modules}
            for _ in range(repeats):
                for name, module in modules.items():
                    seconds[name].append(_timed(run, module, x))
            row |= {f"{mode}_{name}_ms": 1e3 * median(values) for name, values in seconds.items()}
            row[f"{mode}_mamba3_by_mamba2"] = row[f"{mode}_mamba3_ms"] / row[f"{mode}_ours_ms"]
            if other is not None:
                row[f"{mode}_times_transformers"] = row[f"{mode}_transformers_ms"] / row[f"{mode}_ours_ms"]
        rows.append(row)
        show(row)
    return rows


def _timed(run: Callable[[torch.nn.Module, Tensor], None], module: torch.nn.Module, x: Tensor) -> float:
    start = time.process_time()
    run(module, x)
    return time.process_time() - start


@torch.no_grad()
def _forward(module: torch.nn.Module, x: Tensor) -> None:
    module(x)


def _both(module: torch.nn.Module, x: Tensor) -> None:
    x = x.detach().requires_grad_()
    y = module(x)
    torch.autograd.grad(y, [x, *module.parameters()], torch.ones_like(y))
