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
from seqssm.training.class_means import ClassInputs, ClassMeans, base_features

MIX = 0.5  # weight of both samples of a mixture
STEPS, AUGMENTED_STEPS = 50, 100


@dataclass(frozen=True)
class Recipe:
    """How classes are learned.

    Attributes:
        steps: number of optimiser steps; None for `STEPS`, or `AUGMENTED_STEPS` with augmented records.
        learning_rate: base rate of Adam; linear warm-up over a tenth of the steps, then cosine decay to zero.
        batch_size: samples per step, old means and records; every class is drawn equally often.
        mixing: probability that the samples of a step are mixed in pairs.
        copies: number of times that the support records are read with the augmentation of the training, if it has one.
        spread: factor of the deviations of records from their class mean that are added to the means of old classes.
        on_base: weight of the suppression loss on means of the first session's classes.
        on_novel: weight of its counterpart on records of later classes.
        separate: weight of the separation loss.
        seed: seed of batches and mixtures.
        branch: the branch that is trained; ``"base"`` is for comparison only.
    """

    steps: int | None = None
    learning_rate: float = 5e-3
    batch_size: int = 64
    mixing: float = 0.0
    copies: int = 8
    spread: float = 1.0
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


def learn(
    network: Any,
    old: ClassMeans,
    shots: ClassInputs,
    first: int,
    kept: int,
    recipe: Recipe = RECIPE,
    augmented: ClassInputs | None = None,
) -> float:
    """Train the new branch of the projector, and the rows of a linear head from `kept` on, in place.

    Args:
        network: a `seqssm.nn.etf.Classifying` network with a new branch.
        old: means of the old classes, in the order of their indices.
        shots: records of the classes to learn.
        first: number of classes of the first session.
        kept: number of classes whose rows of a linear head stay as they are.
        recipe: how.
        augmented: the same records with the augmentation of the training, drawn several times.

    Returns:
        The loss of the last step.
    """
    steps = recipe.steps
    if steps is None:
        steps = STEPS if augmented is None else AUGMENTED_STEPS
    shots = shots if augmented is None else ClassInputs.joined([shots, augmented])
    network.eval()
    branch, last = getattr(network.projector, recipe.branch), last_layer(network.head)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    trained = [*branch.parameters(), *([] if isinstance(last, EtfHead) else last.parameters())]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(trained, lr=recipe.learning_rate)
    generator = torch.Generator().manual_seed(recipe.seed)
    every = _joined(network, old, shots, recipe.branch)
    novel = every.y >= first
    scatter = _deviations(every.rows(torch.arange(len(old), len(every), device=every.y.device)))
    weights = 1 / torch.bincount(every.y)[every.y].float().cpu()  # every class is drawn equally often
    value = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _factor(step, steps)
        rows = torch.multinomial(weights, recipe.batch_size, replacement=True, generator=generator)
        partner, mixed = _partners(len(rows), recipe.mixing, generator)
        own = every.rows(rows.to(every.y.device))
        if recipe.spread:
            own = _scattered(own, rows < len(old), scatter, recipe.spread, generator)
        loss = _loss(network, own, own.rows(partner.to(every.y.device)) if mixed else None, recipe.branch)
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


def _joined(network: Any, old: ClassMeans, shots: ClassInputs, branch: str) -> ClassInputs:
    """Join the means and the records; ``pooled`` includes the output of the base branch where that is frozen."""
    device = shots.y.device
    frozen = branch == "new"
    pooled = base_features(network, shots) if frozen else shots.pooled
    rows = torch.arange(len(old), device=device)
    means = ClassInputs((old.features if frozen else old.pooled).to(device), old.tokens.to(device), rows)
    return ClassInputs.joined([means, ClassInputs(pooled, shots.tokens, shots.y)])


def _deviations(records: ClassInputs) -> ClassInputs:
    """Compute the deviations of records from the means of their classes."""
    same = (records.y[:, None] == records.y).float()
    weights = same / same.sum(1, keepdim=True)
    tokens = (weights @ records.tokens.flatten(1)).view_as(records.tokens)
    return ClassInputs(records.pooled - weights @ records.pooled, records.tokens - tokens, records.y)


def _scattered(
    own: ClassInputs, means: Tensor, scatter: ClassInputs, factor: float, generator: torch.Generator
) -> ClassInputs:
    """Add deviations of randomly chosen records to the samples that are means: records of a class differ."""
    drawn = scatter.rows(torch.randint(len(scatter), (len(own),), generator=generator).to(own.y.device))
    added = factor * means.to(own.pooled.device, own.pooled.dtype)
    pooled = own.pooled + added[:, None] * drawn.pooled
    return ClassInputs(pooled, own.tokens + added[:, None, None] * drawn.tokens, own.y)


def _partners(count: int, probability: float, generator: torch.Generator) -> tuple[Tensor, bool]:
    mixed = float(torch.rand((), generator=generator)) < probability
    return torch.randperm(count, generator=generator), mixed


def _loss(network: Any, own: ClassInputs, other: ClassInputs | None, branch: str) -> Tensor:
    """Compute the loss of samples, mixed with others if there are any."""
    mix = 1.0 if other is None else MIX
    features, tokens = own.pooled, own.tokens
    if other is not None:
        features, tokens = (
            mix * features + (1 - mix) * other.pooled,
            mix * tokens + (1 - mix) * other.tokens,
        )
    if branch == "new":
        logits = network.head(features + network.projector.new(tokens))
    else:
        logits = network.classify(features, tokens)
    loss = _criterion(network, logits, own.y)
    return loss if other is None else mix * loss + (1 - mix) * _criterion(network, logits, other.y)


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
