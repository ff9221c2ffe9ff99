"""The projections of a network: which layers can have integer or binary weights, and their role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn

from seqssm.errors import InputError
from seqssm.nn import quantized
from seqssm.nn.attention import Attention
from seqssm.nn.binary import BinaryLinear, PackedBinaryLinear
from seqssm.nn.mamba import Mamba
from seqssm.nn.mamba2 import Mamba2
from seqssm.nn.mlp import MLP
from seqssm.nn.routed import RoutedMixer

Role = Literal["in", "out", "select", "dt", "other"]
ROLES: dict[str, Role] = {"in_proj": "in", "out_proj": "out", "x_proj": "select", "dt_proj": "dt"}
"""Roles of the projections of a scan by the last part of their name; others are feed-forward layers and attention."""


@runtime_checkable
class Adapted(Protocol):
    """A layer with a low-rank adapter, as peft makes it."""

    base_layer: nn.Module

    def merge(self) -> None:
        """Add the adapter to the weights of `base_layer`."""


@dataclass(frozen=True)
class Target:
    """A linear layer to quantise.

    Attributes:
        name: name of the module in the network.
        module: the layer.
        role: the projection before (``in``) or after (``out``) a scan, to dt, B and C (``select``), to dt, or another
            layer of the block.
        mixer: name of the layer with the scan; None for other layers.
    """

    name: str
    module: nn.Linear
    role: Role
    mixer: str | None


def scans(network: nn.Module) -> dict[str, RoutedMixer]:
    """Return the layers with a scan by name.

    Args:
        network: the network.
    """
    return {name: module for name, module in network.named_modules() if isinstance(module, RoutedMixer)}


def rounded_scans(network: nn.Module) -> dict[str, Mamba | Mamba2]:
    """Return the scans whose inputs can be rounded: those of Mamba and Mamba-2.

    Args:
        network: the network.
    """
    return {name: module for name, module in scans(network).items() if isinstance(module, Mamba | Mamba2)}


def carried_scans(network: nn.Module) -> dict[str, Mamba | Mamba2]:
    """Return the scans of Mamba and Mamba-2 that continue from the state of an earlier call.

    Args:
        network: the network.
    """
    found = rounded_scans(network)
    return {name: mixer for name, mixer in found.items() if mixer.only_forward and not mixer.needs_whole_sequence}


def bytes_of_states(network: nn.Module) -> tuple[int, int]:
    """Return the bytes of the scan states that one record carries between calls, and those of float32.

    Args:
        network: the network.
    """
    now = floats = 0
    for mixer in carried_scans(network).values():
        state = mixer.new_state(1)["scan"]
        now += state.numel() * state.element_size()
        floats += state.numel() * 4
    return now, floats


def find_targets(network: nn.Module, what: str = "the model") -> list[Target]:
    """Find the linear layers of all scans, and of the blocks around them.

    A block is an element of a list of modules one of whose elements contains a scan: the attention and feed-forward
    layers of a hybrid are included; stem, embedding, pooling and head are not.

    Args:
        network: the network.
        what: name of the network, for the message.

    Raises:
        InputError: the network has no such layers.
    """
    mixers = scans(network)
    blocks = set(mixers)
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and any(other.startswith(f"{name}.") for other in mixers):
            blocks.add(name)
    blocks |= {name for name, module in network.named_modules() if mixers and isinstance(module, Attention | MLP)}
    found = []
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{block}.") or not block for block in blocks)
        if not inside or not _is_linear(module):
            continue
        owner = max((mixer for mixer in mixers if name.startswith(f"{mixer}.") or not mixer), key=len, default=None)
        role = ROLES.get(name.rpartition(".")[2], "other") if owner is not None else "other"
        found.append(Target(name, module, role, owner))  # type: ignore[arg-type]
    if not found:
        raise InputError(f"{what} has no layers with a scan (Mamba, Mamba-2, Mamba-3), so there is nothing to quantise")
    return found


def merge_adapters(network: nn.Module) -> int:
    """Merge low-rank adapters into the weights of their layers, in place.

    Args:
        network: the network.

    Returns:
        The number of adapters.
    """
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, Adapted)]
    for name, module in found:
        module.merge()
        quantized.replace(network, name, module.base_layer)
    return len(found)


def binarise(network: nn.Module) -> None:
    """Replace the projections by layers with weights of one bit, which approximate them, in place.

    Projections to dt, B and C stay in float, as do stem, embedding and head.

    Args:
        network: the network.

    Raises:
        InputError: the network has no projections.
    """
    for target in find_targets(network, "--model.binary true: the network"):
        if target.role not in ("select", "dt"):
            quantized.replace(network, target.name, BinaryLinear.of(target.module))


def pack_binary(network: nn.Module) -> list[str]:
    """Replace trained binary layers by packed ones, which give the same outputs, in place.

    Args:
        network: the network.

    Returns:
        The names of the layers.
    """
    found = binary_layers(network)
    for name in found:
        layer = network.get_submodule(name)
        if isinstance(layer, BinaryLinear):
            quantized.replace(network, name, PackedBinaryLinear.of(layer))
    return found


def binary_layers(network: nn.Module) -> list[str]:
    """Return the names of the layers with weights of one bit.

    Args:
        network: the network.
    """
    kinds = BinaryLinear | PackedBinaryLinear
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


def binary_share(network: nn.Module) -> tuple[int, int]:
    """Count the weights of one bit, and all parameters including these.

    Args:
        network: the network.
    """
    layers: list[Any] = [network.get_submodule(name) for name in binary_layers(network)]
    binary = sum(layer.in_features * layer.out_features for layer in layers)
    others = sum(one.numel() for one in network.parameters())
    packed = sum(
        layer.in_features * layer.out_features + layer.scale.numel() + layer.shift.numel()
        for layer in layers
        if isinstance(layer, PackedBinaryLinear)
    )
    return binary, others + packed


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a plain linear layer; subclasses may only differ in their initialisation."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
