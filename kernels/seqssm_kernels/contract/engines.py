"""The table of engines and operations: which engine runs a call, which one is the default, and why.

An engine is a module `<operation>.<engine>`. It receives a validated call object of `contract.calls` in canonical form,
with its tables as contiguous int32, and implements::

    forward(call, save) -> out, final_state, saved
    backward(dout, dfinal or None, call, saved, needs)
        -> one gradient per entry of `call.inputs()`, in its shape and dtype, None where `needs` is False
    saved_size(sizes, packed) -> number of values in `saved`, a function of sizes alone

`saved` has shape `(size,)` and dtype float32 (float64 for float64 inputs), and is empty unless `save`. It has a single
axis because with more, one could have size 1 at the length used for `torch.export`, which would specialise the exported
program to such lengths.

For an operation that saves nothing (`Operation.saves` is False)::

    forward(call) -> out, final_state
    backward(dout, dfinal or None, call, needs) -> one gradient per entry of `call.inputs()`

For an operation for inference only (`Operation.differentiable` is False) the same `forward`, without `backward`.

An engine may also implement a decoding step without gradients, which returns None for calls that it does not support::

    step(arguments of the public step function, in order) -> (out, state) or None

An engine of `selective_scan` may also implement the step of a Mamba layer between its outer projections, likewise::

    layer_step(xz, weights, window, state) -> (out, window, state) or None

An engine that compiles its kernels on first use may list them, for `seqssm_kernels.warmup`::

    kernels() -> {title: function that compiles or loads it}

The `reference` engine only has `forward(call) -> out, final_state`. It is differentiated by autograd and called
directly, without a custom operator.

A new engine is one `Engine` in `ENGINES` and one module per operation that lists it; a new operation is one
`Operation` in `OPERATIONS`, its call object and its folder. There is no silent fallback: if an engine does not support
a call, the error names one that does.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from types import ModuleType
from typing import NamedTuple

import torch

from seqssm_kernels.contract.calls import ConvCall, ScanCall, ScanInt8Call, SsdCall, SsdInt8Call

_COMPILED = (torch.float32, torch.bfloat16, torch.float16)
_ALL = (*_COMPILED, torch.float64)

_log = logging.getLogger(__name__)


class EngineError(ValueError):
    """The requested engine does not exist or does not support the call."""


class Engine(NamedTuple):
    """One way to compute an operation.

    Attributes:
        name: value of `engine=`, and module name in the operation's folder.
        platforms: `cpu`, `cuda` (NVIDIA), `rocm`, `mps`, ...; empty for every platform.
        dtypes: dtypes of the output.
        default: whether it may be chosen if the caller requests no engine.
        how: short description for `seqssm info`.
        package: required package besides PyTorch, or empty.
        install: command that installs the package.
    """

    name: str
    platforms: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    default: bool
    how: str
    package: str = ""
    install: str = ""

    def serves(self, platform: str, dtype: torch.dtype) -> bool:
        """Whether the engine supports tensors of this dtype on a platform."""
        return dtype in self.dtypes and self.runs_on(platform)

    def runs_on(self, platform: str) -> bool:
        """Whether the engine runs on a platform."""
        return not self.platforms or platform in self.platforms or (platform == "cpu" and self._interpreted())

    def _interpreted(self) -> bool:
        """Whether Triton runs in interpreter mode, on CPU tensors: for tests only, never a default."""
        return self.package == "triton" and os.environ.get("TRITON_INTERPRET") == "1"


# In order of preference: the first default engine that supports a call is the default for it.
ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "triton", ("cuda",), _COMPILED, True, "kernels compiled for this GPU on first use",
            "triton", "pip install 'seqssm[gpu]'",
        ),
        Engine(
            "numba", ("cpu",), _COMPILED, True, "kernels compiled for this processor on first use",
            "numba", "pip install numba",
        ),
        Engine("torch", (), _ALL, True, "PyTorch operations on chunks of the sequence"),
        Engine("reference", (), _ALL, False, "a plain loop over the steps, differentiable twice"),
    )
}  # fmt: skip


class Operation(NamedTuple):
    """One operation.

    Attributes:
        name: folder in this package; the custom operator is `seqssm::<name>_v<version>`.
        version: version in the operator's name, which exported programs store.
        call: call object, whose fields are the operator's arguments.
        saves: whether the forward pass saves values for the backward pass.
        engines: engines that implement it, as in `ENGINES`.
        differentiable: whether it has gradients; otherwise it is for inference only.
    """

    name: str
    version: int
    call: type
    saves: bool
    engines: tuple[str, ...]
    differentiable: bool = True


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("selective_scan", 1, ScanCall, True, tuple(ENGINES)),
        Operation("causal_conv1d", 1, ConvCall, False, tuple(ENGINES)),
        Operation("ssd_scan", 1, SsdCall, True, tuple(ENGINES)),
        Operation("selective_scan_int8", 1, ScanInt8Call, False, tuple(ENGINES), differentiable=False),
        Operation("ssd_scan_int8", 1, SsdInt8Call, False, tuple(ENGINES), differentiable=False),
    )
}


class Service(NamedTuple):
    """One entry of `describe_engines`: a default engine, and why it is the default.

    Attributes:
        operations: names of the operations, comma-separated.
        device: device type: `cpu`, `cuda`, ...
        dtypes: dtypes of `x`, comma-separated.
        engine: name of the default engine.
        why: reason, as one phrase.
    """

    operations: str
    device: str
    dtypes: str
    engine: str
    why: str


def platform(device_type: str) -> str:
    """The platform of a PyTorch device type: the type itself, except `rocm` for `cuda` in a build for AMD GPUs."""
    return "rocm" if device_type == "cuda" and torch.version.hip else device_type


def describe_engines() -> list[Service]:
    """The default engine for each device and dtype of this machine, and why."""
    devices = ["cpu"]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        devices.append(accelerator.type)
    found: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for device in devices:
        for operation in OPERATIONS.values():
            by_engine: dict[str, list[str]] = {}
            for dtype in _ALL:
                by_engine.setdefault(choose_engine(operation.name, None, device, dtype), []).append(_name(dtype))
            for engine, dtypes in by_engine.items():
                found.setdefault((device, engine, ", ".join(dtypes)), {}).setdefault("names", []).append(operation.name)
    return [
        Service(", ".join(names["names"]), device, dtypes, engine, _why(names["names"][0], engine, device))
        for (device, engine, dtypes), names in found.items()
    ]


def _why(operation: str, name: str, device_type: str) -> str:
    """How the engine works, and why earlier engines of the table are not the default."""
    why = ENGINES[name].how
    for other in OPERATIONS[operation].engines:
        engine = ENGINES[other]
        if other == name:
            break
        if engine.default and platform(device_type) in engine.platforms:
            why += f"; {other} has no {' or '.join(_name(t) for t in _ALL if t not in engine.dtypes)}"
    if ENGINES[name].package and importlib.util.find_spec(ENGINES[name].package) is None:
        why += f"; missing: {ENGINES[name].install}"
    return why


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_name(engine: str | None) -> None:
    """Raise EngineError unless `engine` is the name of an engine or None (the default)."""
    if engine is not None and engine not in ENGINES:
        names = ", ".join(ENGINES)
        raise EngineError(
            f"unknown engine {engine!r}: use one of {names}, or None for the fastest that supports the call"
        )


@functools.cache
def module(operation: str, engine: str) -> ModuleType:
    """Return the module of an engine, imported on first use.

    Args:
        operation: name in `OPERATIONS`.
        engine: name in `ENGINES`.

    Raises:
        RuntimeError: a package required by the engine is missing.
    """
    try:
        return importlib.import_module(f"seqssm_kernels.{operation}.{engine}")
    except ImportError as error:
        install = ENGINES[engine].install or "install the package"
        raise RuntimeError(
            f"engine {engine!r} cannot be loaded ({error}): {install}, or use engine='torch', which needs only PyTorch"
        ) from error


def choose_engine(operation: str, engine: str | None, device_type: str, dtype: torch.dtype) -> str:
    """Return the name of the engine that runs a call.

    Args:
        operation: name in `OPERATIONS`.
        engine: engine that the caller requests, or None for the default.
        device_type: device type of `x`: `cpu`, `cuda`, ...
        dtype: dtype of `x`.

    Raises:
        EngineError: an unknown engine, or one that does not support this operation, device or dtype.
    """
    here = platform(device_type)
    if engine is None:
        return _default(operation, here, dtype)
    check_name(engine)
    asked, names = ENGINES[engine], OPERATIONS[operation].engines
    if engine not in names:
        raise EngineError(f"engine {engine!r} does not implement {operation}: use one of {', '.join(names)}")
    if not asked.serves(here, dtype):
        given = _name(dtype) if asked.runs_on(here) else f"{here} tensors"
        dtypes = ", ".join([_name(one) for one in asked.dtypes])
        raise EngineError(
            f"engine {engine!r} supports {dtypes} on {' and '.join(asked.platforms)}, got {given}: "
            f"use engine={_default(operation, here, dtype)!r}"
        )
    return engine


def _default(operation: str, here: str, dtype: torch.dtype) -> str:
    for name in OPERATIONS[operation].engines:
        engine = ENGINES[name]
        if engine.default and dtype in engine.dtypes and (here in engine.platforms or not engine.platforms):
            return name
    raise EngineError(f"no engine supports {operation} with {_name(dtype)} on {here}")


@functools.cache
def load(operation: str, engine: str | None, device_type: str, dtype: torch.dtype) -> ModuleType:
    """Return the module of the engine that runs a call; see `choose_engine` and `module` for arguments and errors.

    Results are cached, so the warning is logged once per device and dtype.
    """
    name = choose_engine(operation, engine, device_type, dtype)
    if engine is None and name == "torch" and device_type not in ("cpu", "meta"):
        _log.warning("%s of %s tensors runs with engine 'torch'", operation, platform(device_type))
    return module(operation, name)
