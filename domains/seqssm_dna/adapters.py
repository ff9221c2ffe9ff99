"""Low-rank adapters (LoRA, arXiv 2106.09685) on the projections of a network, by peft."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from seqssm.errors import InputError

PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj", "fc1", "fc2")
"""Names of the layers that get an adapter."""


def add_adapters(model: nn.Module, rank: int, trained: tuple[str, ...]) -> int:
    """Put an adapter of this rank on every projection, and train adapters and some modules only, in place.

    The scale of the update is 1: W + B A.

    Args:
        model: the network.
        rank: of A and B.
        trained: names of modules of `model` that are trained as a whole (the head).

    Returns:
        Number of adapters.

    Raises:
        InputError: peft is missing, or the network has no projection of these names.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("--model.lora needs peft: pip install 'seqssm[adapters]'") from None
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rsplit(".", 1)[-1] in PROJECTIONS
    ]
    if not names:
        raise InputError(f"--model.lora {rank}: this network has no projection named {', '.join(PROJECTIONS)}")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), model)
    for name, parameter in model.named_parameters():
        whole = any(name == own or name.startswith(own + ".") for own in trained)
        parameter.requires_grad_(whole or "lora_" in name)
    return len(names)


def merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network with adapters as those of one without: W + B A.

    Args:
        weights: by name; without adapters they are returned as they are.
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


def widened(weights: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Embeddings and heads of a smaller vocabulary with new rows, each the mean of the known ones.

    Args:
        weights: by name.
        rows: size of the vocabulary.
    """
    found = dict(weights)
    for name, value in weights.items():
        if re.search(r"(^|\.)(embedding|lm_head)\.weight$", name) and len(value) < rows:
            mean = value.float().mean(0, keepdim=True).to(value.dtype)
            found[name] = torch.cat([value, mean.expand(rows - len(value), -1)])
    return found
