"""What a fit trains of a network: all of it, the head, or low-rank adapters (LoRA, arXiv 2106.09685, by peft)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seqssm.errors import InputError

PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj", "fc1", "fc2", "query", "key", "value", "out", "qkv")
"""Names of the layers that get an adapter."""


def train_only(model: nn.Module, trained: Callable[[str], bool]) -> int:
    """Freeze all parameters but some, and the statistics of frozen batch norms, in place.

    Args:
        model: the network.
        trained: whether a parameter is trained, by its name.

    Returns:
        The number of trained parameters.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(one.requires_grad for one in module.parameters()):
            module.eval()  # kept by Lightning, which restores the mode of each module after a validation
    return sum(parameter.requires_grad for parameter in model.parameters())


def add_adapters(model: nn.Module, rank: int, trained: Callable[[str], bool]) -> int:
    """Add a low-rank adapter to every projection and freeze all other parameters, in place.

    The scale of the update is 1: W + B A.

    Args:
        model: the network.
        rank: rank of the matrices A and B.
        trained: whether a parameter is trained beside the adapters (the head), by its name.

    Returns:
        The number of adapters.

    Raises:
        InputError: peft is missing, or the network has none of the `PROJECTIONS`.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("low-rank adapters (--model.lora) need peft: pip install 'seqssm[adapters]'") from None
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in PROJECTIONS
    ]
    if not names:
        raise InputError(f"--model.lora {rank}: this network has no projection named {', '.join(PROJECTIONS)}")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), model)
    train_only(model, lambda name: "lora_" in name or trained(name))
    return len(names)


def merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merge adapters into the weights of their projections: W + B A.

    Args:
        weights: tensors by name; returned unchanged if there are no adapters.
    """
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        stem = name.removesuffix(".base_layer.weight")
        if stem != name:
            a, b = (weights.get(f"{stem}.lora_{one}.default.weight") for one in "AB")
            if a is not None and b is not None:
                value = (value.float() + torch.mm(b.float(), a.float())).to(value.dtype)
        found[plain] = value
    return found
