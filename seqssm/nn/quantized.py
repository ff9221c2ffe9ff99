"""Layers with integer weights and activations, and their place in a network that was built with float ones.

They are for inference: a procedure of `seqssm.compress` makes them, a checkpoint holds their integers and scales as
plain tensors and describes them in its layout. Loading one needs this module only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from seqssm.errors import InputError
from seqssm.nn import integer
from seqssm.nn.binary import BITS, BinaryFormat, PackedBinaryLinear
from seqssm.nn.hadamard import has_hadamard, rotate
from seqssm.nn.rounded import IntegerState, RoundedValues, RoundingFormat, StateFormat

DIRECT = 32  # input channels; narrower layers are multiplied in float, where packing has nothing to gain


@dataclass(frozen=True)
class LinearFormat:
    """The format of a `QuantizedLinear`.

    Attributes:
        width: input channels.
        out: output channels.
        bits: bits of a weight, 8 or 4.
        groups: number of groups of neighbouring input channels with their own scale.
        static: whether activations are 8-bit integers of one calibrated scale.
        rotated: whether the input is rotated by a Hadamard matrix, whose inverse is contained in the weights.
        bias: whether there is a bias.
    """

    width: int
    out: int
    bits: int = 8
    groups: int = 1
    static: bool = False
    rotated: bool = False
    bias: bool = False

    def require_valid(self) -> None:
        """Raise ValueError for a format that no procedure writes."""
        sizes = (self.width, self.out, self.groups)
        if not all(type(size) is int and size > 0 for size in sizes) or self.bits not in (4, 8):
            raise ValueError("sizes")
        if self.width % self.groups or (self.rotated and not has_hadamard(self.width)):
            raise ValueError("widths that do not divide")
        if self.groups > 1 and self.bits == 8:
            raise ValueError("groups of 8-bit weights")

    @property
    def has_multiplier(self) -> bool:
        """Whether 4-bit weights are expanded to 8-bit ones by an integer per group, for integer activations."""
        return self.bits == 4 and self.static


class QuantizedLinear(nn.Module):
    """y = x W^T + b with W in 8 or 4 bits, for inference.

    8-bit weights have a scale per output channel; 4-bit ones one per group of input channels, or, with 8-bit
    activations, one per output channel and an integer factor per group. Two 4-bit weights are stored in a byte.

    The product is computed by the first route of `seqssm.nn.integer` that is right on this machine, chosen at the first
    call on a device.

    Args:
        format: sizes and kind.
    """

    def __init__(self, format: LinearFormat) -> None:
        super().__init__()
        format.require_valid()
        self.format = format
        self.in_features, self.out_features = format.width, format.out
        narrow = format.bits == 4
        columns = (format.width + 1) // 2 if narrow else format.width
        integers = torch.uint8 if narrow else torch.int8
        self.register_buffer("integers", torch.zeros(format.out, columns, dtype=integers))
        of_rows = 1 if format.has_multiplier else format.groups
        self.register_buffer("scale", torch.ones(format.out, of_rows, dtype=torch.bfloat16))
        factors = torch.ones(format.out, format.groups, dtype=torch.int8) if format.has_multiplier else None
        self.register_buffer("multiplier", factors)
        self.register_buffer("act_scale", torch.ones(()) if format.static else None)
        self.register_buffer("bias", torch.zeros(format.out) if format.bias else None)
        self._chosen: tuple[integer.Route, Any, integer.Weights] | None = None

    integers: Tensor
    scale: Tensor
    multiplier: Tensor | None
    act_scale: Tensor | None
    bias: Tensor | None

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self.format).items() if value is not False)

    def repack(self) -> None:
        """Choose the route again at the next call: the integers, the scales or the device have changed."""
        self._chosen = None

    @property
    def takes_integers(self) -> bool:
        """Whether the input may be the 8-bit integers of the activations instead of their values."""
        return self.format.static and not self.format.rotated

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move to a device; the dtypes stay."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor).device)

        self.repack()
        return super()._apply(moved, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.repack()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chosen": None}  # packed weights belong to a process

    def weights(self) -> integer.Weights:
        """Return the integers and scales."""
        return integer.Weights(
            self.integers,
            self.format.width,
            self.scale.float(),
            self.format.bits,
            self.multiplier,
            None if self.act_scale is None else float(self.act_scale),
        )

    @property
    def chosen(self) -> tuple[integer.Route, Any, integer.Weights]:
        """The route, its packed weights and the integers; chosen once per device."""
        if self._chosen is None:
            weights = self.weights()
            direct = self.format.width < DIRECT
            route, packed = (integer.ROUTES[-1], None) if direct else integer.choose(weights)
            self._chosen = route, packed, weights
        return self._chosen

    def forward(self, x: Tensor) -> Tensor:
        """Multiply (..., in) to (..., out), in the dtype of `x`; integers of the activations give float32."""
        route, packed, weights = self.chosen
        if x.dtype == torch.int8:
            y = route.apply(packed, weights, x.reshape(-1, x.shape[-1]))
            y = y if self.bias is None else y + self.bias
            return y.reshape(*x.shape[:-1], self.format.out)
        rows = rotate(x) if self.format.rotated else x
        if x.dtype == torch.float64:
            y = integer.exact(weights, rows.flatten(0, -2)) if x.ndim > 1 else integer.exact(weights, rows[None])
        else:
            with torch.autocast(x.device.type, enabled=False):
                y = route.apply(packed, weights, rows.float().reshape(-1, x.shape[-1]))
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.format.out)

    def packed_bytes(self) -> int:
        """Return the memory of the packed copy, which some routes keep beside the integers; 0 before the first call."""
        if self._chosen is None or self._chosen[1] is None:
            return 0
        packed = self._chosen[1]
        parts = packed if isinstance(packed, tuple) else (packed,)
        own = self.integers.data_ptr()
        return sum(part.numel() * part.element_size() for part in parts if part.is_mkldnn or part.data_ptr() != own)


# -- in a network ------------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[type, type[nn.Module]]] = {
    "linear": (LinearFormat, QuantizedLinear),
    "rounded": (RoundingFormat, RoundedValues),
    "state": (StateFormat, IntegerState),
    "binary": (BinaryFormat, PackedBinaryLinear),
}
"""Kinds of layers in a layout: their format and class."""


def layout_of(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Describe the integer layers of a network as plain values: name of the module -> kind and format.

    Args:
        network: the network.
    """
    kinds = {cls: kind for kind, (_, cls) in KINDS.items()}
    return {
        name: {"kind": kinds[type(module)], **asdict(module.format)}
        for name, module in network.named_modules()
        if type(module) in kinds
    }


def install(network: nn.Module, layout: Any) -> None:
    """Replace the modules of a float network by the integer layers of a layout, with weights still to be loaded.

    Args:
        network: the network, changed in place.
        layout: result of `layout_of`, from a checkpoint.

    Raises:
        InputError: the layout is corrupt, or does not fit the network.
    """
    if not isinstance(layout, Mapping):
        raise InputError(f"is corrupt: its layout of integer layers is a {type(layout).__name__}")
    for name, entry in layout.items():
        form, cls = read_format(name, entry)
        try:
            before = network.get_submodule(name)
        except AttributeError:
            raise InputError(f"is corrupt: its integer layer {name} is not a layer of the network") from None
        if type(before) is cls:
            continue
        _require_fit(network, name, form, before)  # before anything of these sizes is allocated
        replace(network, name, cls(form))


def _require_fit(network: nn.Module, name: str, form: Any, before: nn.Module) -> None:
    """Raise InputError if the module of a network cannot be replaced by an integer layer of this format."""
    if isinstance(form, LinearFormat | BinaryFormat):
        wanted: Any = form.width, form.out
        found: Any = getattr(before, "in_features", None), getattr(before, "out_features", None)
    elif isinstance(form, StateFormat):
        parent, _, own = name.rpartition(".")
        wanted = form.channels, form.states
        found = getattr(network.get_submodule(parent), "state_size", None) if own == "scan_state" else None
    else:
        wanted, found = True, isinstance(before, nn.Identity)
    if found is False:
        raise InputError(f"is corrupt: the network does not round values at {name}")
    if found != wanted:
        raise InputError(f"is corrupt: its integer layer {name} does not have the sizes of the network")


def read_format(name: str, entry: Any) -> tuple[Any, type[nn.Module]]:
    """Return the format and the class of one entry of a layout.

    Args:
        name: name of the module, for the message.
        entry: its kind and format.

    Raises:
        InputError: the entry is corrupt.
    """
    if not isinstance(entry, Mapping) or entry.get("kind") not in KINDS:
        raise InputError(f"is corrupt: its integer layer {name} has an unknown kind")
    form, cls = KINDS[entry["kind"]]
    known = {field.name for field in fields(form)}
    values = {key: value for key, value in entry.items() if key != "kind"}
    if not set(values) <= known:
        raise InputError(f"is corrupt: its integer layer {name} has an unknown property {min(set(values) - known)}")
    try:
        made = form(**values)
        made.require_valid()
    except (TypeError, ValueError) as error:
        raise InputError(f"is corrupt: its integer layer {name} has impossible sizes ({error})") from None
    return made, cls


def replace(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one called `name`, in the mode of the network.

    Args:
        network: the network.
        name: name of the present module.
        module: the new one.
    """
    parent, _, own = name.rpartition(".")
    module.train(network.training)
    setattr(network.get_submodule(parent), own, module)


def float_bytes(weights: Mapping[str, Tensor], layout: Mapping[str, Any]) -> int:
    """Return the size that the integer weights of a state dict have in float32, for bounds on what a file may allocate.

    Args:
        weights: state dict of the network.
        layout: its layout.
    """
    total = 0
    for name in layout:
        stored = weights.get(f"{name}.integers")
        if stored is not None:
            total += 4 * stored.numel() * (2 if stored.dtype == torch.uint8 else 1)
        packed = weights.get(f"{name}.bits")
        if packed is not None:
            total += 4 * BITS * packed.numel()
    return total


def memory(network: nn.Module) -> int:
    """Return the bytes that the weights of a network take in memory, packed copies included.

    Args:
        network: the network, after its first call.
    """
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*network.parameters(), *network.buffers())
    }
    with_copies = [one for one in network.modules() if isinstance(one, QuantizedLinear | PackedBinaryLinear)]
    packed = sum(module.packed_bytes() for module in with_copies)
    return sum(storages.values()) + packed


def routes_in_use(network: nn.Module) -> dict[str, int]:
    """Count the integer layers by the route that computes them on this machine.

    Args:
        network: the network.
    """
    found: dict[str, int] = {}
    for module in network.modules():
        if isinstance(module, QuantizedLinear):
            name = module.chosen[0].name
            found[name] = found.get(name, 0) + 1
    return found
