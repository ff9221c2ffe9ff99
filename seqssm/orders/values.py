"""Orders by a value per position: degrees of nodes, scores. Values are passed per call, optionally per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from seqssm.orders.geometry import Degrees, Scores
from seqssm.orders.registry import Seed, register


@register(
    "degree",
    on=Degrees,
    example=("degree", Degrees(torch.tensor([3, 1, 2, 1, 9], device="cpu")), [[1, 3, 2, 0, 4]]),
)
def degree(geometry: Degrees, seed: Seed | None = None) -> Tensor:
    """By ascending degree: hubs come last, with all others in their state (Graph-Mamba).

    Args:
        geometry: degrees of one graph. Nodes of equal degree are ordered by its `ties`, if it has any.
        seed: random seed for shuffling nodes of equal degree if the geometry has no `ties`; None keeps their order.
    """
    ties = geometry.ties
    if ties is None and seed is not None:
        generator = torch.Generator("cpu").manual_seed(seed)
        ties = torch.randperm(geometry.positions, generator=generator, device="cpu").to(geometry.values.device)
    if ties is None:
        return torch.argsort(geometry.values, stable=True)
    inner = torch.argsort(ties, stable=True)
    return inner[torch.argsort(geometry.values[inner], stable=True)]


@register(
    "importance",
    on=Scores,
    example=("importance", Scores(torch.tensor([0.5, -1.0, 0.5, 0.1], device="cpu")), [[1, 3, 0, 2]]),
    pointwise=True,
)
def importance(geometry: Scores) -> Tensor:
    """By ascending score: the highest comes last.

    Args:
        geometry: scores. Ties keep their order, NaN comes last.
    """
    return torch.argsort(geometry.values, stable=True)
