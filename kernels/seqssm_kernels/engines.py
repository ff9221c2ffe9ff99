"""Which engine serves a call, and why. Nothing falls back silently: an error names the engine that can serve."""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import torch

ENGINES = ("numba", "torch", "reference")

_log = logging.getLogger(__name__)


@functools.cache
def module(operation: str, engine: str) -> ModuleType:
    """The module that holds `forward` and `backward` of an operation, imported on first use.

    Args:
        operation: `selective_scan` or `causal_conv1d`.
        engine: a name of `ENGINES`.
    """
    return importlib.import_module(f"seqssm_kernels.{operation}_{engine}")


@functools.cache
def _exists(operation: str, engine: str) -> bool:
    try:
        module(operation, engine)
    except ImportError:
        return False
    return True


@functools.cache
def choose(operation: str, engine: str | None, device_type: str, dtype: torch.dtype) -> str:
    """The engine that serves a call.

    Args:
        operation: `selective_scan` or `causal_conv1d`.
        engine: the user's wish, or None for the fastest that serves.
        device_type: `cpu`, `cuda`, ...
        dtype: dtype of `x`.

    Raises:
        ValueError: an unknown engine, or one that cannot serve this device or dtype.
    """
    serves_numba = device_type == "cpu" and dtype != torch.float64
    if engine is None:
        if serves_numba and _exists(operation, "numba"):
            return "numba"
        if device_type not in ("cpu", "meta"):
            _log.warning("%s runs on %s tensors with engine 'torch'", operation, device_type)
        return "torch" if _exists(operation, "torch") else "reference"
    if engine not in ENGINES:
        raise ValueError(
            f"unknown engine {engine!r}: choose one of {', '.join(ENGINES)}, or None for the fastest that serves"
        )
    if engine == "numba" and not serves_numba:
        given = f"{device_type} tensors" if device_type != "cpu" else "float64"
        raise ValueError(
            f"engine 'numba' serves float32, bfloat16 and float16 on the CPU, this call has {given}: use engine='torch'"
        )
    return engine
