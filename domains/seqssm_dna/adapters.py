"""Low-rank adapters (LoRA, arXiv 2106.09685) on the projections of a network, by peft."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from seqssm.errors import InputError

PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj", "fc1", "fc2")
"""Names of the layers that get an adapter."""


def add_adapters(model: nn.Module, rank: int, trained: tuple[str, ...]) -> int:
    """Add a low-rank adapter to every projection and freeze all other parameters except `trained`, in place.

    The scale of the update is 1: W + B A.

    Args:
        model: the network.
        rank: rank of the matrices A and B.
        trained: names of modules of `model` that are trained fully (the head).

    Returns:
        The number of adapters.

    Raises:
        InputError: peft is missing, or the network has none of the `PROJECTIONS`.
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


def resized(weights: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Fit embeddings and heads to a vocabulary of another size.

    The tokens of bases come first in every vocabulary: rows of further tokens are dropped, new rows are the mean of the
    existing ones.

    Args:
        weights: tensors by name.
        rows: size of the vocabulary.
    """
    found = dict(weights)
    for name, value in weights.items():
        if re.search(r"(^|\.)(embedding|lm_head)\.weight$", name) and len(value) != rows:
            mean = value.float().mean(0, keepdim=True).to(value.dtype)
            found[name] = torch.cat([value[:rows], mean.expand(max(rows - len(value), 0), -1)])
    return found
