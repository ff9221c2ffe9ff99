"""Character language model with weights of one bit: float, signs after training, and two ways to train the signs.

A stack of Mamba-2 layers reads a text character by character. Four models are compared by their bits per character on
the last part of the text, at equal numbers of training steps:

- float;
- sign after training: the weights of the float model's projections are replaced by their signs, with a factor and an
  offset per column;
- one bit from scratch: the same signs, trained with the text;
- one bit, distilled: trained with the probabilities of the float model instead of the text (Bi-Mamba,
  arXiv 2411.11843).

Run it with a text file of yours, plain or gzip::

    python examples/char_lm.py --text tinyshakespeare.txt --steps 2000 --seeds 1,2,3
"""

from __future__ import annotations

import argparse
import copy
import gzip
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.backbone import Backbone
from seqssm.nn.language_model import LanguageModel
from seqssm.nn.projections import binarise, binary_layers, binary_share, pack_binary
from seqssm.training.soft_losses import of_classes

SMALL = "the quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs. " * 40
"""Used without ``--text``, to try the script."""
ARMS = ("float", "sign after training", "one bit from scratch", "one bit, distilled")


@dataclass(frozen=True)
class Settings:
    """Sizes and training.

    Attributes:
        steps: optimiser steps of each training.
        d_model, layers, d_state: size of the model.
        length, batch: characters of a training sequence, and sequences of a batch.
        learning_rate: base rate of AdamW, after 1/20 of warm-up, with cosine decay to a tenth.
    """

    steps: int = 1000
    d_model: int = 128
    layers: int = 4
    d_state: int = 64
    length: int = 128
    batch: int = 16
    learning_rate: float = 3e-3


def read(path: Path | None) -> str:
    """Return the text of a file, plain or gzip; the small built-in one without a file."""
    if path is None:
        return SMALL
    content = path.read_bytes()
    return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8")


def encoded(text: str) -> tuple[Tensor, int]:
    """Return the characters as integers, and the number of different ones."""
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    return torch.tensor([letters[letter] for letter in text]), len(letters)


def build(letters: int, settings: Settings) -> LanguageModel:
    """Return a float model."""
    options = {"d_state": settings.d_state, "head_dim": min(64, 2 * settings.d_model)}
    return LanguageModel(letters, Backbone(settings.d_model, "M" * settings.layers, mamba2=options))


def train(model: nn.Module, ids: Tensor, settings: Settings, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Train on random parts of `ids`; `loss` is called with (logits, inputs, next characters)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    warm = max(1, settings.steps // 20)
    model.train()
    for step in range(settings.steps):
        progress = max(0, step - warm) / max(1, settings.steps - warm)
        rate = (step + 1) / warm if step < warm else 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
        optimizer.param_groups[0]["lr"] = settings.learning_rate * rate
        starts = torch.randint(len(ids) - settings.length, (settings.batch,))
        rows = torch.stack([ids[start : start + settings.length + 1] for start in starts.tolist()])
        optimizer.zero_grad()
        loss(model(rows[:, :-1]), rows[:, :-1], rows[:, 1:]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def of_text(logits: Tensor, inputs: Tensor, wanted: Tensor) -> Tensor:
    """Return the cross-entropy of the next characters."""
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())


@torch.no_grad()
def bits(model: nn.Module, ids: Tensor, settings: Settings) -> float:
    """Return the bits per character of `ids`, which are read once, with carried state."""
    state, total = None, 0.0
    for start in range(0, len(ids) - 1, 4096):
        part = ids[start : start + 4097]
        logits, state = model(part[None, :-1], state, return_state=True)
        total += float(F.cross_entropy(logits[0], part[1:], reduction="sum"))
    return total / (len(ids) - 1) / math.log(2)


def compare(text: str, settings: Settings, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Train and test all four models with one seed.

    Returns:
        (bits per character by model, sizes: fraction of binary parameters, bytes of their projections).
    """
    ids, letters = encoded(text)
    train_ids, test_ids = ids[: len(ids) * 9 // 10], ids[len(ids) * 19 // 20 :]
    torch.manual_seed(seed)
    model = build(letters, settings)
    start = copy.deepcopy(model)
    train(model, train_ids, settings, of_text)
    found = {"float": bits(model, test_ids, settings)}
    signs = copy.deepcopy(model)
    binarise(signs)
    found["sign after training"] = bits(signs, test_ids, settings)

    def of_teacher(logits: Tensor, inputs: Tensor, _: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = model(inputs)
        return of_classes(logits, wanted)

    for name, loss in (("one bit from scratch", of_text), ("one bit, distilled", of_teacher)):
        torch.manual_seed(seed + 1)
        binary = copy.deepcopy(start)
        binarise(binary)
        train(binary, train_ids, settings, loss)
        found[name] = bits(binary, test_ids, settings)
    share = binary_share(binary)
    layers = [binary.get_submodule(name) for name in binary_layers(binary)]
    floats = sum(4 * layer.in_features * layer.out_features for layer in layers)
    pack_binary(binary)
    packed = [binary.get_submodule(name).state_dict().values() for name in binary_layers(binary)]
    size = sum(value.numel() * value.element_size() for values in packed for value in values)
    return found, {"binary": share[0] / share[1], "float32": floats, "packed": size}


def main(argv: list[str] | None = None) -> None:
    """Print the table.

    Args:
        argv: the arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(description="Character language models with weights of one bit.")
    defaults = Settings()
    parser.add_argument("--text", type=Path, help="text file, UTF-8, plain or gzip")
    parser.add_argument("--seeds", default="1", help="comma-separated seeds (default 1)")
    for name, value in vars(defaults).items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(value), default=value, help=f"(default {value})")
    given = parser.parse_args(argv)
    settings = Settings(**{name: getattr(given, name) for name in vars(defaults)})
    text = read(given.text)
    runs = [compare(text, settings, int(seed)) for seed in given.seeds.split(",")]
    print(f"{len(text):,} characters, {settings.steps} steps, seeds {given.seeds}")
    print(f"{'model':<22}{'bits per character':>20}{'over float':>12}")
    base = statistics.mean(found["float"] for found, _ in runs)
    for name in ARMS:
        values = [found[name] for found, _ in runs]
        spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        print(f"{name:<22}{statistics.mean(values):>10.3f}{spread:<10}{statistics.mean(values) / base:>11.2f}x")
    sizes = runs[0][1]
    print(f"binary: {100 * sizes['binary']:.1f} % of the parameters")
    print(f"projections: {sizes['float32']:,} bytes in float32, {sizes['packed']:,} packed")
    print(f"that is {sizes['float32'] / sizes['packed']:.1f}x smaller")


if __name__ == "__main__":
    main()
