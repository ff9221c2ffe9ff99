"""Synthetic tasks that test the abilities of a sequence model: recall of many pairs, copying, and state tracking.

Each task generates batches of token ids and targets, and `train` is a small trainer for them. All batches are
determined by a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100  # target of positions without loss, as in torch's cross-entropy


@dataclass(frozen=True)
class Recall:
    """Multi-query associative recall (Zoology, arXiv 2312.04927): key-value pairs, then all keys in another order.

    ``k1 v1 k2 v2 ... kn vn | k3 k1 ...``: the target at a queried key is its value. Keys and values are sampled
    from separate halves of the vocabulary; keys are not repeated.

    Args:
        pairs: number of pairs per sequence, n.
        keys: number of possible keys, at least `pairs`, and of possible values.
    """

    pairs: int
    keys: int = 64

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary: keys, then values."""
        return 2 * self.keys

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Generate token ids and targets, (size, 3 pairs) each."""
        drawn = torch.rand(size, self.keys, generator=generator).argsort(1)[:, : self.pairs]
        values = torch.randint(self.keys, (size, self.pairs), generator=generator) + self.keys
        order = torch.rand(size, self.pairs, generator=generator).argsort(1)
        shown = torch.stack([drawn, values], dim=2).flatten(1)
        ids = torch.cat([shown, drawn.gather(1, order)], 1)
        targets = torch.cat([torch.full_like(shown, IGNORED), values.gather(1, order)], 1)
        return ids, targets


@dataclass(frozen=True)
class Copying:
    """A random string, a separator, and the string again.

    Args:
        length: length of the string.
        symbols: number of symbols of the alphabet.
    """

    length: int
    symbols: int = 16

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary: symbols and separator."""
        return self.symbols + 1

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Generate token ids and targets, (size, 2 length) each; targets start at the separator."""
        text = torch.randint(self.symbols, (size, self.length), generator=generator)
        mark = torch.full((size, 1), self.symbols)
        ids = torch.cat([text, mark, text[:, :-1]], 1)
        return ids, torch.cat([torch.full_like(text, IGNORED), text], 1)


@dataclass(frozen=True)
class ModularSum:
    """A start symbol, then symbols; the target at every position is the sum so far, modulo `modulus`.

    Modulus 2 is parity. The start symbol marks the initial state 0.

    Args:
        length: number of symbols after the start symbol.
        modulus: number of symbols and of states.
    """

    length: int
    modulus: int = 2

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary: symbols, which are also the targets, and the start symbol."""
        return self.modulus + 1

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Generate token ids and targets, (size, 1 + length) each; the start symbol has no target."""
        symbols = torch.randint(self.modulus, (size, self.length), generator=generator)
        ids = F.pad(symbols, (1, 0), value=self.modulus)
        return ids, F.pad(symbols.cumsum(1) % self.modulus, (1, 0), value=IGNORED)


@dataclass(frozen=True)
class Passkey:
    """Keys with their values hidden at random places in noise, then all keys in another order.

    ``~ ~ k2 v2 ~ ~ k1 v1 ~ ... | k1 k2``: the target at a queried key is its value. One pair is passkey retrieval,
    several are multi-key retrieval. The number of pairs and the distance are independent.

    Args:
        pairs: number of pairs per sequence, n.
        length: number of positions, queries included; at least 3 pairs.
        keys: number of possible keys, at least `pairs`, and of possible values.
        noise: number of noise symbols.

    Raises:
        ValueError: a length that does not hold the pairs and queries, or more pairs than keys.
    """

    pairs: int
    length: int
    keys: int = 16
    noise: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.pairs <= self.keys:
            raise ValueError(f"pairs must be in [1, keys], not {self.pairs} with {self.keys} keys")
        if (self.length - self.pairs) // 2 < self.pairs:
            raise ValueError(f"length {self.length} does not hold {self.pairs} pairs and as many queries")

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary: keys, values, noise."""
        return 2 * self.keys + self.noise

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Generate token ids and targets, (size, length) each."""
        before = self.length - self.pairs
        ids = torch.randint(self.noise, (size, before), generator=generator) + 2 * self.keys
        drawn = torch.rand(size, self.keys, generator=generator).argsort(1)[:, : self.pairs]
        values = torch.randint(self.keys, (size, self.pairs), generator=generator) + self.keys
        places = 2 * torch.rand(size, before // 2, generator=generator).argsort(1)[:, : self.pairs]
        ids = ids.scatter(1, places, drawn).scatter(1, places + 1, values)
        order = torch.rand(size, self.pairs, generator=generator).argsort(1)
        targets = torch.cat([torch.full_like(ids, IGNORED), values.gather(1, order)], 1)
        return torch.cat([ids, drawn.gather(1, order)], 1), targets


Task = Recall | Copying | ModularSum | Passkey


@dataclass(frozen=True)
class Schedule:
    """Hyper-parameters of `train`.

    Args:
        steps: number of batches.
        batch_size: sequences per batch.
        lr: maximum learning rate, with linear warm-up over the first tenth of the steps and cosine decay to zero.
        weight_decay: weight decay of matrices.
        clip: maximum norm of the gradient.
        beta2: decay rate of AdamW's squared gradients. A lower value forgets large early gradients, so that small late
            gradients still move the weights.
        label_smoothing: label smoothing of the cross-entropy, which keeps a gradient when all predictions are correct.
        seed: random seed of the batches; the initialisation of the model is seeded by the caller.
    """

    steps: int = 1000
    batch_size: int = 32
    lr: float = 3e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    beta2: float = 0.999
    label_smoothing: float = 0.0
    seed: int = 0
    report: Callable[[int, float], None] | None = field(default=None, compare=False)


def train(model: nn.Module, task: Callable[[float], Task] | Task, schedule: Schedule) -> float:
    """Trains a model of token ids on a task.

    Args:
        model: model that maps (B, L) ids to (B, L, V) logits, V at least the task's vocabulary.
        task: the task, or a function from the fraction of the training that is over (0 to 1) to the task: a curriculum.
        schedule: steps, sizes and rates.

    Returns:
        The mean loss of the last tenth of the steps, nats per answer, label smoothing included.
    """
    generator = torch.Generator().manual_seed(schedule.seed)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, schedule.beta2), fused=True)
    warm = max(1, schedule.steps // 10)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: (
            min(1.0, (step + 1) / warm)
            * 0.5
            * (1 + torch.cos(torch.tensor(torch.pi * max(0, step - warm) / max(1, schedule.steps - warm))).item())
        ),
    )
    losses: list[float] = []
    model.train()
    for step in range(schedule.steps):
        now = task(step / schedule.steps) if callable(task) else task
        ids, targets = now.batch(schedule.batch_size, generator)
        logits = model(ids).flatten(0, 1)
        loss = F.cross_entropy(
            logits, targets.flatten(), ignore_index=IGNORED, label_smoothing=schedule.label_smoothing
        )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimiser.step()
        rate.step()
        losses.append(loss.item())
        if schedule.report is not None:
            schedule.report(step, losses[-1])
    last = losses[-max(1, schedule.steps // 10) :]
    return sum(last) / len(last)


@torch.no_grad()
def accuracy(model: nn.Module, task: Task, batches: int = 8, batch_size: int = 64, seed: int = 1_000_003) -> float:
    """Return the fraction of correct predictions on new sequences.

    Args:
        model: trained model.
        task: the task.
        batches: number of batches.
        batch_size: sequences per batch.
        seed: random seed of the batches; must differ from that of training.
    """
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    right = total = 0
    for ids, targets in _batches(task, batches, batch_size, generator):
        counted = targets != IGNORED
        right += int((model(ids).argmax(-1) == targets)[counted].sum())
        total += int(counted.sum())
    return right / total


def _batches(task: Task, count: int, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(count):
        yield task.batch(size, generator)
