"""Folding of norm weights into the following projection, which leaves the network's output unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqssm.nn.attention import Attention
from seqssm.nn.mlp import MLP
from seqssm.nn.routed import RoutedMixer

UNCHANGED = 1e-4  # largest relative change of the output, float32; a norm with another reader changes it much more


@dataclass(frozen=True)
class Fold:
    """A norm whose output is the input of a layer.

    Attributes:
        norm: name of the norm.
        linear: names of the projections that read the layer's input: one, or ``fc1`` of an MLP.
    """

    norm: str
    linear: str


def candidates(network: nn.Module, run: Callable[[], Any]) -> list[Fold]:
    """Find norms whose output is the unchanged input of a layer; the norm may have other readers as well.

    Args:
        network: the network.
        run: function that runs it on a few records.
    """
    produced: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that no address is used twice
    found: dict[Fold, None] = {}
    handles = []

    def keep(name: str) -> Callable[..., None]:
        return lambda _, __, output: produced.update({output.data_ptr(): (name, output)})

    def match(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            norm, made = produced.get(inputs[0].data_ptr(), (None, None)) if inputs else (None, None)
            if norm is not None and made is not None and made.numel() == inputs[0].numel():
                found[Fold(norm, name)] = None

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.RMSNorm | nn.LayerNorm) and module.weight is not None:
            handles.append(module.register_forward_hook(keep(name)))
        elif isinstance(module, RoutedMixer | Attention | MLP):
            first = "fc1" if isinstance(module, MLP) else "in_proj"
            if isinstance(getattr(module, first), nn.Linear):
                handles.append(module.register_forward_pre_hook(match(f"{name}.{first}" if name else first)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return list(found)


@torch.no_grad()
def apply(network: nn.Module, fold: Fold) -> None:
    """Multiply the norm's weight, and its bias, into the projection, and reset the norm to 1 and 0.

    Args:
        network: the network, changed in place.
        fold: the norm and the projection.
    """
    norm: Any = network.get_submodule(fold.norm)
    linear: Any = network.get_submodule(fold.linear)
    wide = linear.weight.double()
    shift = getattr(norm, "bias", None)
    if shift is not None:
        extra = wide @ shift.double()
        before = 0 if linear.bias is None else linear.bias.double()
        linear.bias = nn.Parameter((extra + before).to(linear.weight.dtype), requires_grad=False)
        shift.zero_()
    linear.weight.copy_(wide * norm.weight.double())
    norm.weight.fill_(1.0)


def exact_folds(
    network: nn.Module, outputs: Callable[[], Tensor], seed: int = 0
) -> tuple[list[Fold], list[tuple[Fold, str]]]:
    """Determine which folds leave the output unchanged, by trying them with random norm weights.

    The norm's own weights are close to 1, so that an incorrect fold could pass with them.

    Args:
        network: the network; its weights are restored.
        outputs: function that runs the network on a few records and returns its outputs.
        seed: seed of the random weights.

    Returns:
        (folds that are exact, the others with the reason).
    """
    found = candidates(network, outputs)
    saved = {name: value.detach().clone() for name, value in network.state_dict().items()}
    biases = {fold.linear: getattr(network.get_submodule(fold.linear), "bias", None) for fold in found}
    generator = torch.Generator().manual_seed(seed)

    def disturb() -> None:
        for name in dict.fromkeys(fold.norm for fold in found):
            norm: Any = network.get_submodule(name)
            for parameter, low in ((norm.weight, 0.5), (getattr(norm, "bias", None), -0.5)):
                if parameter is not None:
                    drawn = torch.rand(parameter.shape, generator=generator) + low
                    parameter.data.copy_(drawn)

    def restore(state: dict[str, Tensor]) -> None:
        for fold in found:
            setattr(network.get_submodule(fold.linear), "bias", biases[fold.linear])  # noqa: B010
        network.load_state_dict(state)

    try:
        disturb()
        disturbed = {name: value.detach().clone() for name, value in network.state_dict().items()}
        wanted = outputs()

        def unchanged(folds: list[Fold]) -> bool:
            for fold in folds:
                apply(network, fold)
            change = (outputs() - wanted).abs().max()
            restore(disturbed)
            return bool(change <= UNCHANGED * wanted.abs().max())

        readers = [fold.norm for fold in found]
        single = [fold for fold in found if readers.count(fold.norm) == 1]
        good = single if unchanged(single) else [fold for fold in single if unchanged([fold])]
    finally:
        restore(saved)
    reason = "the output of the norm has other readers"
    return good, [(fold, reason) for fold in found if fold not in good]


def folded(network: nn.Module, folds: list[Fold]) -> nn.Module:
    """Return a copy of a network with folded norms.

    Args:
        network: the network.
        folds: exact folds.
    """
    copied = copy.deepcopy(network)
    for fold in folds:
        apply(copied, fold)
    return copied
