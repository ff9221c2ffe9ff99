"""Shared parts of sampling and beam search: checked prompts, their state, and the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from seqssm.nn.chunks import prefill
from seqssm.nn.language_model import LanguageModel
from seqssm.nn.state import State

Prompts = Sequence[Sequence[int]] | Sequence[Tensor] | Tensor


@dataclass(frozen=True)
class Generated:
    """Continuation of one prompt.

    Args:
        ids: generated token ids, (n,) int64, including a stop token.
        log_probs: log-probability of each token given the preceding ones, (n,) float32, under the model restricted to
            the allowed tokens. Temperature, `top_k` and `top_p` do not change them.
        stopped: whether it ended with a stop token, rather than at the maximum length.
    """

    ids: Tensor
    log_probs: Tensor
    stopped: bool

    @property
    def log_prob(self) -> float:
        """Log-probability of the whole continuation."""
        return float(self.log_probs.double().sum())


@dataclass(frozen=True)
class Alphabet:
    """Tokens that may be generated.

    Args:
        tokens: allowed token ids, (A,) int64, ascending.
        stops: whether each of `tokens` ends a sequence, (A,) bool.
    """

    tokens: Tensor
    stops: Tensor

    def log_probs(self, logits: Tensor) -> Tensor:
        """Compute log-probabilities (..., A), float32 or wider, from logits (..., V).

        Args:
            logits: logits of the model.

        Raises:
            ValueError: NaN logits.
        """
        if len(self.tokens) < logits.shape[-1]:
            logits = logits[..., self.tokens]
        values = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
        if values.isnan().any():
            raise ValueError("the model gives NaN logits")
        return values


def alphabet(model: LanguageModel, allowed: Sequence[int] | None, stop_tokens: Sequence[int]) -> Alphabet:
    """Return the allowed tokens and whether each one ends a sequence.

    Args:
        model: model whose vocabulary and device are used.
        allowed: allowed token ids; None for the whole vocabulary.
        stop_tokens: ids of the stop tokens.

    Raises:
        ValueError: no allowed token, an id outside the vocabulary, or a stop token that is not allowed.
    """
    device = model.embedding.weight.device
    ids = range(model.vocab_size) if allowed is None else sorted({int(one) for one in allowed})
    if not ids:
        raise ValueError("allowed is empty")
    stops = {int(one) for one in stop_tokens}
    for name, values in (("allowed", ids), ("stop_tokens", stops)):
        for one in values if name == "stop_tokens" or allowed is not None else ():
            if not 0 <= one < model.vocab_size:
                raise ValueError(f"{name}: {one} is not in the vocabulary of {model.vocab_size} tokens")
    for one in sorted(stops - set(ids)):
        raise ValueError(f"stop_tokens: {one} is never generated, because it is not in allowed")
    tokens = torch.tensor(list(ids), device=device)
    return Alphabet(tokens, torch.isin(tokens, torch.tensor(sorted(stops), device=device, dtype=tokens.dtype)))


def read_prompts(model: LanguageModel, prompts: Prompts, piece_size: int) -> tuple[Tensor, State]:
    """Compute the logits (B, V) after each prompt, and the state; prompts are padded on the left and masked.

    Args:
        model: model with forward layers only.
        prompts: token ids, of any lengths.
        piece_size: number of positions processed at a time.

    Raises:
        ValueError: a layer that cannot continue from a state, no prompts or an empty one, or an id outside the
            vocabulary.
    """
    model.require_forward("generation")
    rows = [torch.as_tensor(prompt) for prompt in prompts]
    if not rows:
        raise ValueError("no prompts")
    for number, row in enumerate(rows):
        if row.ndim != 1 or not len(row):
            raise ValueError(f"prompt {number} has shape {tuple(row.shape)}; at least one token is needed, as a list")
        if row.is_floating_point() or row.dtype == torch.bool:
            raise ValueError(f"prompt {number} contains {row.dtype} values instead of integers")
        outside = row[(row < 0) | (row >= model.vocab_size)]
        if len(outside):
            raise ValueError(
                f"prompt {number}: {int(outside[0])} is not in the vocabulary of {model.vocab_size} tokens"
            )
    device = model.embedding.weight.device
    ids = torch.nn.utils.rnn.pad_sequence([row.long() for row in rows], batch_first=True, padding_side="left")
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(ids.shape[1]) >= ids.shape[1] - lengths.unsqueeze(1)
    return prefill(model, ids.to(device), piece_size, mask=None if mask.all() else mask.to(device))


@contextmanager
def evaluation(model: torch.nn.Module) -> Iterator[None]:
    """Disable gradients and dropout; the mode of each module is restored afterwards.

    Args:
        model: the module.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
