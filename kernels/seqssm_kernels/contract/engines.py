"""Which engine serves a call, and why. Nothing falls back silently: an error names the engine that can serve.

An engine is a module `<operation>.<engine>`. It is given a `ScanCall` or `ConvCall` of `shapes`, in canonical form and
checked, its tables contiguous int32. For the scan it has two functions and a shape::

    forward(call, save) -> out (B, L, R, E), final_state (B or n, R, E, N), saved
    backward(dout, dfinal or None, call, saved, needs)
        -> a gradient for each of `call.inputs()`, in its shape and dtype, None where `needs` has False
    saved_size(sizes, packed) -> number of values in `saved`, a function of sizes alone

`saved` is `(size,)` in float32 (float64 with float64), empty unless `save`: with more axes, one of them could have
size 1 at the length that a program is exported with, and tie the program to such lengths.

For the convolution, with nothing saved::

    forward(call) -> out (B, L, R, E), final_state (B or n, R, E, W - 1)
    backward(dout, dfinal or None, call, needs) -> a gradient for each of `call.inputs()`

The `reference` engine has a `forward(call)` alone, differentiated by autograd and called without an operator around it.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from types import ModuleType
from typing import NamedTuple

import torch

ENGINES = ("triton", "numba", "torch", "reference")

_COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_log = logging.getLogger(__name__)


class Service(NamedTuple):
    """One line of `describe`: what runs where, and why.

    Attributes:
        device: `cpu`, `cuda`, ...
        dtypes: dtypes of `x`, in words.
        engine: the engine that is taken when the user names none.
        why: the reason, in words.
    """

    device: str
    dtypes: str
    engine: str
    why: str


def describe() -> list[Service]:
    """Which engine serves which device and dtype of this machine, and why."""
    half = "float32, bfloat16, float16"
    services = [
        Service("cpu", half, "numba", "compiled for this processor on first use, 16 channels at a time"),
        Service("cpu", "float64", "torch", "the compiled engine has vectors of float32; chunks of PyTorch operations"),
    ]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        if accelerator.type == "cuda":
            services.append(Service("cuda", half, "triton", "kernels compiled for this card on first use"))
            services.append(
                Service("cuda", "float64", "torch", "the kernels sum in float32; chunks of PyTorch operations")
            )
        else:
            services.append(Service(accelerator.type, f"{half}, float64", "torch", "chunks of PyTorch operations"))
    return services


@functools.cache
def module(operation: str, engine: str) -> ModuleType:
    """The module of an engine, imported on first use.

    Args:
        operation: `selective_scan` or `causal_conv1d`.
        engine: a name of `ENGINES`.

    Raises:
        RuntimeError: a package that the engine needs is not there.
    """
    try:
        return importlib.import_module(f"seqssm_kernels.{operation}.{engine}")
    except ImportError as error:
        package = "pip install 'seqssm[gpu]'" if engine == "triton" else "install the package"
        raise RuntimeError(
            f"engine {engine!r} cannot be loaded ({error}): {package}, or use engine='torch', which needs PyTorch only"
        ) from error


def choose(operation: str, engine: str | None, device_type: str, dtype: torch.dtype) -> str:
    """The name of the engine that serves a call.

    Args:
        operation: `selective_scan` or `causal_conv1d`.
        engine: the user's wish, or None for the fastest that serves.
        device_type: `cpu`, `cuda`, ...
        dtype: dtype of `x`.

    Raises:
        ValueError: an unknown engine, or one that cannot serve this device or dtype.
    """
    numba_serves = device_type == "cpu" and dtype in _COMPILED_DTYPES
    on_gpu = device_type == "cuda" or (device_type == "cpu" and _interpreted())
    triton_serves = on_gpu and dtype in _COMPILED_DTYPES
    if engine is None:
        if triton_serves and device_type == "cuda":
            return "triton"
        return "numba" if numba_serves else "torch"
    if engine not in ENGINES:
        names = ", ".join(ENGINES)
        raise ValueError(f"unknown engine {engine!r}: use one of {names}, or None for the fastest that serves")
    if engine == "numba" and not numba_serves:
        given = "float64" if device_type == "cpu" else f"{device_type} tensors"
        raise ValueError(
            f"engine 'numba' serves float32, bfloat16 and float16 on the CPU, this call has {given}: use engine='torch'"
        )
    if engine == "triton" and not triton_serves:
        given = f"{device_type} tensors" if not on_gpu else str(dtype).removeprefix("torch.")
        others = "numba" if numba_serves else "torch"
        raise ValueError(
            "engine 'triton' serves float32, bfloat16 and float16 on an NVIDIA GPU, "
            f"this call has {given}: use engine={others!r}"
        )
    return engine


def _interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on CPU tensors: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def load(operation: str, engine: str | None, device_type: str, dtype: torch.dtype) -> ModuleType:
    """The module of the engine that serves a call; arguments and errors as for `choose`, and those of `module`.

    The answer is kept, so what is said here is said once for each device and dtype.
    """
    name = choose(operation, engine, device_type, dtype)
    if engine is None and name == "torch" and device_type not in ("cpu", "meta"):
        _log.warning("%s of %s tensors runs with engine 'torch'", operation, device_type)
    return module(operation, name)
