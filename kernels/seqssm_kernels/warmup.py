"""Compiles every kernel that this machine can use, ahead of the first call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from seqssm_kernels.causal_conv1d.public import causal_conv1d
from seqssm_kernels.contract import engines
from seqssm_kernels.cpu.dropout import mask_kernel
from seqssm_kernels.selective_scan.public import selective_scan


class Kernel(NamedTuple):
    """A kernel that an engine compiles on first use.

    Attributes:
        engine: name of the engine.
        title: name of the kernel.
        make: function that compiles it or loads it from the cache.
    """

    engine: str
    title: str
    make: Callable[[], Any]

    def compile(self) -> float:
        """Compile it or load it from the cache; return the elapsed seconds."""
        start = time.perf_counter()
        self.make()
        return time.perf_counter() - start


def kernels() -> Iterator[Kernel]:
    """Kernels that the default engines of this machine compile on first use.

    On the CPU these are all kernels. On a GPU, where kernels depend on dtypes and sizes, they are those of a Mamba
    layer of the usual sizes (16 states, 4 taps) in float32 and bfloat16.

    Raises:
        RuntimeError: a package required by an engine is missing.
    """
    services = engines.describe_engines()
    for operation, engine in dict.fromkeys((o, s.engine) for s in services for o in s.operations.split(", ")):
        of_module = getattr(engines.module(operation, engine), "kernels", dict)
        for title, make in of_module().items():
            yield Kernel(engine, f"{operation} {title}", make)
    if any(s.engine == "numba" for s in services):
        yield Kernel("numba", "dropout", mask_kernel)
    for service in services:
        for name in service.dtypes.split(", "):
            if service.device == "cuda" and name in ("float32", "bfloat16"):
                run = partial(_run_on_gpu, torch.device(service.device), getattr(torch, name))
                yield Kernel(service.engine, f"a Mamba layer in {name}", run)


def _run_on_gpu(device: torch.device, dtype: torch.dtype) -> None:
    run_layer(device, dtype)
    torch.accelerator.synchronize()


def run_layer(device: torch.device, dtype: torch.dtype, channels: int = 256, d_state: int = 16, taps: int = 4) -> None:
    """Run the convolution and the scan of a Mamba layer on random data, forward and backward.

    Args:
        device: device of all tensors.
        dtype: dtype of activations and weights; A and D are float32.
        channels: channels of the scan.
        d_state: states per channel.
        taps: width of the convolution.
    """

    def random(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.rand(shape, dtype=dtype, device=device).requires_grad_()

    with torch.enable_grad():
        u, z, dt = (random(1, 256, channels) for _ in range(3))
        B, C = random(1, 256, d_state), random(1, 256, d_state)
        A, D = random(channels, d_state, dtype=torch.float32), random(channels, dtype=torch.float32)
        convolved = causal_conv1d(u, random(channels, taps), random(channels), activation="silu")
        assert isinstance(convolved, torch.Tensor)
        out = selective_scan(convolved, dt, -A, B, C, D=D, z=z, dt_softplus=True)
        assert isinstance(out, torch.Tensor)
        out.sum().backward()
