"""Mean features of every class, kept in a checkpoint so that classes can be added without the training records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seqssm.errors import InputError

ENTRY = "class_means"  # entry of a checkpoint
FEWEST = 5
"""Records of a class without which its mean is not kept: a mean of fewer says too much about each of them."""


@dataclass
class ClassInputs:
    """What the projector and the head of a network read, for some records.

    Attributes:
        pooled: pooled features, (n, D) float32.
        tokens: tokens of the projector, (n, T, D) float32.
        y: class indices, (n,) int64.
    """

    pooled: Tensor
    tokens: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, which: Tensor) -> ClassInputs:
        """Select records by indices or a mask."""
        return ClassInputs(self.pooled[which], self.tokens[which], self.y[which])

    @staticmethod
    def joined(parts: Sequence[ClassInputs]) -> ClassInputs:
        """Concatenate parts, at least one."""
        return ClassInputs(
            torch.cat([one.pooled for one in parts]),
            torch.cat([one.tokens for one in parts]),
            torch.cat([one.y for one in parts]),
        )


@dataclass
class ClassMeans:
    """Means over the records of each class.

    Attributes:
        names: names of the classes.
        counts: number of records of each.
        pooled: means of the pooled features, (C, D) float32.
        tokens: means of the tokens, (C, T, D) float32.
        features: means of the features in front of the head without the new branch, (C, D) float32.
    """

    names: list[str]
    counts: list[int]
    pooled: Tensor
    tokens: Tensor
    features: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Convert to tensors and plain Python."""
        return {name: getattr(self, name) for name in ("names", "counts", "pooled", "tokens", "features")}

    @staticmethod
    def from_dict(entry: Mapping[str, Any]) -> ClassMeans:
        """Read the entry of a checkpoint.

        Raises:
            InputError: the entry is damaged.
        """
        try:
            found = ClassMeans(
                [str(name) for name in entry["names"]],
                [int(count) for count in entry["counts"]],
                *(entry[name].float() for name in ("pooled", "tokens", "features")),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(f"is damaged: its {ENTRY} entry is not complete") from None
        sizes = {len(one) for one in (found.names, found.counts, found.pooled, found.tokens, found.features)}
        if len(sizes) != 1 or found.pooled.ndim != 2 or found.tokens.ndim != 3:
            raise InputError(f"is damaged: its {ENTRY} entry is not consistent")
        return found

    def select(self, names: Iterable[str]) -> ClassMeans:
        """Select classes by name; those that are absent are omitted."""
        rows = [self.names.index(name) for name in names if name in self.names]
        index = torch.tensor(rows, dtype=torch.int64)
        return ClassMeans(
            [self.names[row] for row in rows],
            [self.counts[row] for row in rows],
            self.pooled[index],
            self.tokens[index],
            self.features[index],
        )

    def merged(self, other: ClassMeans) -> ClassMeans:
        """Add the records of other means: weighted by the counts where both have a class, appended otherwise."""
        names = [*self.names, *(name for name in other.names if name not in self.names)]
        counts, values = [], []
        for name in names:
            parts = [(own, own.names.index(name)) for own in (self, other) if name in own.names]
            total = sum(own.counts[row] for own, row in parts)
            counts.append(total)
            values.append(
                [
                    torch.stack([getattr(own, key)[row].double() * own.counts[row] / total for own, row in parts]).sum(
                        0
                    )
                    for key in ("pooled", "tokens", "features")
                ]
            )
        stacked = [torch.stack([one[k] for one in values]).float() for k in range(3)]
        return ClassMeans(names, counts, *stacked)

    def kept(self) -> ClassMeans:
        """Return the classes with at least `FEWEST` records."""
        return self.select([name for name, count in zip(self.names, self.counts) if count >= FEWEST])


@torch.no_grad()
def base_features(network: Any, inputs: ClassInputs) -> Tensor:
    """Compute the features in front of the head without the new branch, (n, D).

    Args:
        network: a `seqssm.nn.etf.Classifying` network.
        inputs: what it reads.
    """
    if network.projector is None:
        return inputs.pooled
    return network.projector.of_base(inputs.pooled, inputs.tokens)


@torch.no_grad()
def means_of(network: Any, parts: Iterable[ClassInputs], names: Sequence[str]) -> ClassMeans:
    """Compute the means of the classes that occur, in float64, whatever their number of records.

    Args:
        network: the network, in eval mode.
        parts: its inputs, batch by batch.
        names: names of the classes by index.
    """
    sums: dict[int, list[Tensor]] = {}
    counts: dict[int, int] = {}
    for part in parts:
        values = (part.pooled, part.tokens, base_features(network, part))
        for label in part.y.unique().tolist():
            own = part.y == label
            total = [value[own].double().sum(0).cpu() for value in values]
            sums[label] = [a + b for a, b in zip(sums[label], total)] if label in sums else total
            counts[label] = counts.get(label, 0) + int(own.sum())
    order = sorted(sums)
    if not order:
        raise InputError("no record has a class")
    stacked = [torch.stack([sums[label][k] / counts[label] for label in order]).float() for k in range(3)]
    return ClassMeans([names[label] for label in order], [counts[label] for label in order], *stacked)
