"""Peers of the GPU scan, each measured in the same dtype and run, including the copies that it needs.

If nvcc is available, mamba-ssm is built from its source archive on the package index into the folder `.peers`. This is
a separate step (`python kernels/benchmarks/peers_gpu.py`), never part of an installation or a measurement.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[2] / ".peers" / "gpu"
REQUIREMENT = "mamba-ssm==2.3.2.post1"
Scan = Callable[..., Tensor]


def build() -> str | None:
    """Build mamba-ssm with its CUDA extension; return the reason if that fails."""
    if shutil.which("nvcc") is None and "CUDA_HOME" not in os.environ:
        return "nvcc not found: install the CUDA toolkit of this PyTorch's version"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    environment = os.environ | {"MAMBA_FORCE_BUILD": "TRUE"}
    done = subprocess.run([*command, "--target", str(FOLDER), REQUIREMENT], env=environment)
    if done.returncode:
        return f"pip could not build {REQUIREMENT}, see above"
    helper = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(FOLDER), "einops"]
    return None if subprocess.run(helper).returncode == 0 else "pip could not install einops, see above"


def _module(name: str) -> Any:
    """Import a module of the peer without its package's `__init__`, which requires a dozen other packages."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    if name.startswith("mamba_ssm.") and "mamba_ssm" not in sys.modules:
        found = importlib.util.find_spec("mamba_ssm")
        if found is None:
            raise ModuleNotFoundError("mamba_ssm is not installed")
        package = types.ModuleType("mamba_ssm")
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules["mamba_ssm"] = package
    return importlib.import_module(name)


def with_routes(scan: Scan) -> Scan:
    """Run a peer that supports one forward route over all routes: gathers steps, scatters outputs."""

    def run(order: Tensor | None = None, **call: Tensor) -> Tensor:
        if call["x"].dim() == 3:
            return scan(**call)
        outs = []
        for r in range(call["x"].shape[2]):
            one = {k: t[:, :, r] if k in ("x", "dt", "B", "C", "z") else t[r] for k, t in call.items()}
            if order is None:
                outs.append(scan(**one))
                continue
            steps = order[r].long()
            moved = {k: t[:, steps] if k in ("x", "dt", "B", "C", "z") else t for k, t in one.items()}
            out = scan(**moved)
            outs.append(torch.empty_like(out).index_copy(1, steps, out))
        return torch.stack(outs, 2)

    return run


def own_layout(call: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """A call in the layout of mamba-ssm's layer: one call per route, steps in order, (B, E, L) and (B, 1, N, L)."""
    by_place = ("x", "dt", "B", "C")
    call = dict(call)
    order = call.pop("order", None)
    calls = []
    for r in range(call["x"].shape[2] if call["x"].dim() == 4 else 1):
        one = call
        if call["x"].dim() == 4:
            one = {k: t[:, :, r] if k in by_place else t[r] for k, t in call.items()}
        if order is not None:
            one = {k: t[:, order[r].long()] if k in by_place else t for k, t in one.items()}
        laid_out = {k: t.transpose(1, 2).contiguous() if k in by_place else t for k, t in one.items()}
        calls.append({k: t.unsqueeze(1) if k in ("B", "C") else t for k, t in laid_out.items()})
    return calls


def mamba_cuda(own: bool = False) -> Scan | str:
    """mamba-ssm's CUDA scan, or the reason why it is unavailable.

    Args:
        own: whether it takes calls in `own_layout`. Otherwise it takes our layout and needs four transposing copies.
    """
    try:
        extension = _module("selective_scan_cuda")
    except Exception as error:  # a broken build may raise anything, and must not end the measurement
        return f"mamba-ssm's CUDA scan cannot be imported ({type(error).__name__}: {error})"

    class Function(torch.autograd.Function):
        """The peer's own interface to the extension, for B and C that vary along the sequence."""

        @staticmethod
        def forward(ctx: Any, *call: Tensor) -> Tensor:
            out, states, *_ = extension.fwd(*call, None, None, False)
            ctx.save_for_backward(*call, states, out)
            return out

        @staticmethod
        def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, ...]:
            *call, states, out = ctx.saved_tensors
            found = extension.bwd(*call, None, None, dout.contiguous(), states, out, None, False, False)
            return tuple(grad.to(t.dtype) for grad, t in zip(found[:6], call))

    def run(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        if own:
            return Function.apply(x, dt, A, B, C, D)
        x, dt, B, C = (t.transpose(1, 2).contiguous() for t in (x, dt, B, C))
        return Function.apply(x, dt, A, B.unsqueeze(1), C.unsqueeze(1), D).transpose(1, 2)

    return run if own else with_routes(run)


def mamba_ssd() -> Scan | str:
    """mamba-ssm's Triton SSD (Mamba-2) at equal state: dt and A shared by 64 channels, a different model."""
    try:
        scan = _module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    except Exception as error:
        return f"mamba-ssm's Triton SSD cannot be imported ({type(error).__name__}: {error})"

    def run(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        heads = x.unflatten(-1, (-1, 64))
        out = scan(heads, dt[..., ::64].contiguous(), A[::64, 0].contiguous(), B[:, :, None], C[:, :, None], 256)
        return out.flatten(2) + D.to(out.dtype) * x

    return with_routes(run)


def mamba2() -> Scan | str:
    """mamba-ssm's Triton SSD on the arguments of `ssd_scan`, without routes: the same model, in its chunks of 256."""
    try:
        scan = _module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    except Exception as error:
        return f"mamba-ssm's Triton SSD cannot be imported ({type(error).__name__}: {error})"

    def run(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return scan(x, dt, A, B, C, 256, D=D)

    return run


def associative_scan() -> Scan | str:
    """PyTorch's associative scan, compiled; forward only, and materialises (B, L, E, N)."""
    try:
        from torch._higher_order_ops.associative_scan import associative_scan as scan
    except ImportError as error:
        return f"this PyTorch has no associative scan ({error})"

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return left[0] * right[0], left[1] * right[0] + right[1]

    @torch.compile
    def run(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        step = dt.float()
        decay = torch.exp(step[..., None] * A)
        _, h = scan(combine, (decay, (step * x)[..., None] * B[:, :, None].float()), dim=1)
        return ((h * C[:, :, None].float()).sum(-1) + D * x).to(x.dtype)

    return with_routes(run)


if __name__ == "__main__":
    print(build() or f"{REQUIREMENT} is built in {FOLDER}")
