"""A GPU simulated on the CPU, which raises where a GPU would: a mixture of devices, or a tensor read by NumPy.

Its tensors have the device `sim:0` and hold a tensor of the CPU, on which every operation is computed. Random
numbers of the device have a state of their own, as on a GPU.

    python tests/gpu/simulated.py COMMAND...           a command of seqssm with it as the GPU of this machine
    PYTHONPATH=tests/gpu pytest -p simulated FILE...   tests with it; those of exact numbers may fail
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._contextlib import _DecoratorContextManager
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

BETWEEN = ("aten._to_copy", "aten.copy_", "aten._copy_from_and_resize")  # take tensors of two devices


class Random(_DummyBackendModule):
    """What `torch.manual_seed` and Lightning require of a device: the state of its random numbers."""

    def is_available(self) -> bool:
        """Say no, which keeps the device out of `torch.accelerator` for other tests in the same process."""
        return False

    def __init__(self) -> None:
        self.state = torch.get_rng_state()

    def manual_seed_all(self, seed: int) -> None:
        self.state = torch.Generator().manual_seed(seed ^ 0x5EED).get_state()

    def manual_seed(self, seed: int) -> None:
        self.manual_seed_all(seed)

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return self.state.clone()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        self.state = state.clone()

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [self.state.clone()]

    def set_rng_state_all(self, states: list[torch.Tensor]) -> None:
        self.state = states[0].clone()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Draw from the state of the device, which the process's other random numbers do not see."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(before)


RANDOM = Random()
_setup_privateuseone_for_python_backend("sim", backend_module=RANDOM)
DEVICE = torch.device("sim", 0)
torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor creates on the CPU, and copies
LIBRARY = torch.library.Library("_", "IMPL")
LIBRARY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # autocast changes no dtype


class OnDevice(torch.Tensor):
    """A tensor of the simulated device.

    Args:
        held: the tensor of the CPU that has its values.
    """

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, requires_grad: bool = False) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE, requires_grad=requires_grad,
        )  # fmt: skip
        made.held = held.detach()
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"on {DEVICE}: {self.held}"

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.held.numpy(force=True)
        raise TypeError("can't convert sim:0 device type tensor to numpy: use Tensor.cpu() first")

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            made = OnDevice(self.held.clone(), self.requires_grad)
            memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if is_parameter(self) else made
        return memo[id(self)]

    @property
    def data(self) -> Any:
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        if not isinstance(value, OnDevice):
            raise RuntimeError(f"data of the device {value.device} for a tensor of {DEVICE}")
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held


def is_parameter(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter)


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the held tensors; its results are on the device unless it copies to another."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with Simulated():  # seen whole in inference mode only
            return func.decompose(*args, **kwargs)
    leaves = pytree.tree_leaves((args, kwargs))
    device = kwargs.get("device")
    require_one_device(func, args, leaves)
    args, kwargs = pytree.tree_map(lambda x: x.held if isinstance(x, OnDevice) else x, (args, kwargs))
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    random = torch.Tag.nondeterministic_seeded in func.tags and not any(isinstance(x, torch.Generator) for x in leaves)
    with RANDOM.own() if random else contextlib.nullcontext():
        out = func(*args, **kwargs)
    if str(func).startswith("aten._to_copy") and device is not None and torch.device(device).type != "sim":
        return out
    return pytree.tree_map(lambda x: OnDevice(x) if isinstance(x, torch.Tensor) else x, out)


def require_one_device(func: Any, args: Any, leaves: list[Any]) -> None:
    """Raise what a GPU raises: tensors of the CPU are for copies, indices and numbers only."""
    name = str(func)
    if name.startswith(BETWEEN):
        return
    if name.startswith(("aten.index.Tensor", "aten.index_put", "aten._unsafe_index", "aten._index_put_impl")):
        indexed = isinstance(args[0], OnDevice)
        leaves = [x for x in pytree.tree_leaves(args) if isinstance(x, OnDevice) or not indexed]
        leaves += [x for x in args[2:3] if isinstance(x, torch.Tensor)]
    plain = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice) and x.ndim > 0]
    if plain and any(isinstance(x, OnDevice) for x in leaves):
        raise RuntimeError(f"{name}: tensors on sim:0 and on cpu {[tuple(x.shape) for x in plain]}")
    if any(isinstance(x, torch.Generator) for x in leaves):
        raise RuntimeError(f"{name}: a generator of the CPU for a tensor on sim:0")


ATEN = torch.library.Library("aten", "IMPL")  # for tensors moved while all modes are off


def empty(function: Any) -> Any:
    return lambda *args, **kwargs: OnDevice(function(*args, **{**kwargs, "device": torch.device("cpu")}))


ATEN.impl("empty_strided", empty(torch.ops.aten.empty_strided.default), "PrivateUse1")
ATEN.impl("empty.memory_format", empty(torch.ops.aten.empty.memory_format), "PrivateUse1")


class Simulated(TorchDispatchMode):
    """While active, tensors may be created on and moved to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        wanted = device is not None and torch.device(device).type == "sim"
        if wanted or any(isinstance(x, OnDevice) for x in pytree.tree_leaves((args, kwargs))):
            return compute(func, args, kwargs)
        return func(*args, **kwargs)


class NoGrad(_DecoratorContextManager):
    """In place of `torch.inference_mode`, which tensors like these do not support."""

    def __init__(self, mode: bool = True) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(self.before and not self.mode)

    def __exit__(self, *error: Any) -> None:
        torch.set_grad_enabled(self.before)


def use_in_lightning() -> None:
    """Make the device the GPU of Lightning and of `--accelerator auto` and `gpu`."""
    from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
    from lightning.pytorch.strategies import SingleDeviceStrategy
    from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector as Connector

    class SimulatedAccelerator(Accelerator):
        setup_device = teardown = lambda self, *_: None
        get_device_stats = lambda self, device: {}  # noqa: E731
        parse_devices = staticmethod(lambda devices: 1)
        get_parallel_devices = staticmethod(lambda devices: [DEVICE])
        auto_device_count = staticmethod(lambda: 1)
        is_available = staticmethod(lambda: True)
        name = staticmethod(lambda: "sim")

    AcceleratorRegistry.register("sim", SimulatedAccelerator)
    choose = Connector._choose_strategy
    Connector._choose_gpu_accelerator_backend = staticmethod(lambda: "sim")  # type: ignore[method-assign]
    Connector._choose_auto_accelerator = staticmethod(lambda: "sim")  # type: ignore[method-assign]
    Connector._choose_strategy = (  # type: ignore[method-assign]
        lambda self: SingleDeviceStrategy(DEVICE) if self._accelerator_flag == "sim" else choose(self)
    )


def use_in_seqssm() -> None:
    from seqssm.incremental import procedure
    from seqssm.prediction import job, model
    from seqssm.training import processes

    choose = processes.choose_device
    for module in (processes, procedure, job, model):
        module.choose_device = (  # type: ignore[attr-defined]
            lambda accelerator, rank: DEVICE if accelerator in ("auto", "gpu") else choose(accelerator, rank)
        )


def activate() -> None:
    torch.inference_mode = NoGrad  # type: ignore[misc, assignment]
    use_in_lightning()
    use_in_seqssm()
    Simulated().__enter__()


def pytest_configure() -> None:
    activate()


def main(argv: list[str]) -> int:
    activate()
    from seqssm.cli.main import main as command

    return command(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
