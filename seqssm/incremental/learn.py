"""Learning classes from a few records: the new branch of the projector, and new rows of a linear head.

The network is frozen, and what its projector and head read is computed once. Old classes are present by one mean each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from seqssm.nn.etf import EtfHead, cosines_of, last_layer
from seqssm.training.class_losses import dot_regression, separation, suppression
from seqssm.training.class_means import ClassInputs

MIX = 0.5  # weight of both samples of a mixture


@dataclass(frozen=True)
class Recipe:
    """How classes are learned.

    Attributes:
        steps: number of optimiser steps.
        learning_rate: base rate of Adam; linear warm-up over a tenth of the steps, then cosine decay to zero.
        batch_size: samples per step, half of them old means and half records.
        mixing: probability that the samples of a step are mixed in pairs.
        on_base: weight of the suppression loss on means of the first session's classes.
        on_novel: weight of its counterpart on records of later classes.
        separate: weight of the separation loss.
        seed: seed of batches and mixtures.
        branch: the branch that is trained; ``"base"`` is for comparison only.
    """

    steps: int = 200
    learning_rate: float = 5e-3
    batch_size: int = 64
    mixing: float = 0.5
    on_base: float = 0.25
    on_novel: float = 1e-5
    separate: float = 1e-3
    seed: int = 0
    branch: Literal["new", "base"] = "new"


RECIPE = Recipe()


def imprint(head: nn.Module, features: Tensor, y: Tensor, old: int) -> None:
    """Initialise the new rows of a linear head: the mean feature of the class, with the mean length of the old rows.

    Args:
        head: the head, of which the last layer has one row per class.
        features: inputs of the head, (n, D).
        y: their class indices, (n,).
        old: number of old classes.
    """
    last = last_layer(head)
    if isinstance(last, EtfHead):
        return
    with torch.no_grad():
        front = head[:-1](features) if isinstance(head, nn.Sequential) else features
        length = last.weight[:old].norm(dim=1).mean()
        for row in range(old, len(last.weight)):
            own = front[y == row]
            if len(own):
                last.weight[row] = nn.functional.normalize(own.mean(0), dim=0) * length
            last.bias[row] = last.bias[:old].mean()


def learn(network: Any, old: ClassInputs, shots: ClassInputs, first: int, kept: int, recipe: Recipe = RECIPE) -> float:
    """Train the new branch of the projector, and the rows of a linear head from `kept` on, in place.

    Args:
        network: a `seqssm.nn.etf.Classifying` network with a new branch.
        old: means of the old classes, one row per class.
        shots: records of the classes to learn.
        first: number of classes of the first session.
        kept: number of classes whose rows of a linear head stay as they are.
        recipe: how.

    Returns:
        The loss of the last step.
    """
    network.eval()
    branch, last = getattr(network.projector, recipe.branch), last_layer(network.head)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    trained = [*branch.parameters(), *([] if isinstance(last, EtfHead) else last.parameters())]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(trained, lr=recipe.learning_rate)
    generator = torch.Generator().manual_seed(recipe.seed)
    every = ClassInputs.joined([old, shots]) if len(old) else shots
    novel = every.y >= first
    value = 0.0
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _factor(step, recipe.steps)
        rows = _batch(len(old), len(shots), recipe.batch_size, generator)
        partner, mixed = _partners(len(rows), recipe.mixing, generator)
        loss = _loss(network, every, rows.to(every.y.device), partner.to(every.y.device), mixed)
        loss = loss + _of_gates(branch, every, novel, recipe)
        optimizer.zero_grad()
        loss.backward()
        if not isinstance(last, EtfHead):
            for parameter in last.parameters():
                parameter.grad[:kept] = 0  # type: ignore[index]  # rows of old classes: Adam leaves them unchanged
        optimizer.step()
        value = float(loss.detach())
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return value


def _factor(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _batch(old: int, shots: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw rows: half old means (from 0), half records (from `old`)."""
    if not old:
        return torch.randint(shots, (size,), generator=generator)
    half = size // 2
    rows = torch.randint(old, (half,), generator=generator)
    return torch.cat([rows, old + torch.randint(shots, (size - half,), generator=generator)])


def _partners(count: int, probability: float, generator: torch.Generator) -> tuple[Tensor, bool]:
    mixed = float(torch.rand((), generator=generator)) < probability
    return torch.randperm(count, generator=generator), mixed


def _loss(network: Any, every: ClassInputs, rows: Tensor, partner: Tensor, mixed: bool) -> Tensor:
    own = every.rows(rows)
    if not mixed:
        return _of_classes(network, own.pooled, own.tokens, own.y)
    other = own.rows(partner)
    pooled = MIX * own.pooled + (1 - MIX) * other.pooled
    tokens = MIX * own.tokens + (1 - MIX) * other.tokens
    logits = network.classify(pooled, tokens)
    return MIX * _criterion(network, logits, own.y) + (1 - MIX) * _criterion(network, logits, other.y)


def _of_classes(network: Any, pooled: Tensor, tokens: Tensor, y: Tensor) -> Tensor:
    return _criterion(network, network.classify(pooled, tokens), y)


def _criterion(network: Any, logits: Tensor, y: Tensor) -> Tensor:
    if isinstance(last_layer(network.head), EtfHead):
        return dot_regression(cosines_of(logits, network.head), y)
    return nn.functional.cross_entropy(logits, y)


def _of_gates(branch: Any, every: ClassInputs, novel: Tensor, recipe: Recipe) -> Tensor:
    """Compute the suppression and separation losses over all means and records."""
    zero = every.pooled.new_zeros(())
    if not (recipe.on_base or recipe.on_novel or recipe.separate) or bool(novel.all()) or not bool(novel.any()):
        return zero
    base, later = branch.select(every.tokens[~novel]), branch.select(every.tokens[novel])
    total = suppression(base.gate, later.gate, recipe.on_base, recipe.on_novel)
    return total + recipe.separate * separation(base, later) if recipe.separate else total
