"""Language model: embedding, backbone and head; and what every causal model of tokens does with its features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.backbone import Backbone
from seqssm.nn.state import State


class CausalModel(nn.Module, ABC):
    """Logits, prompts and single steps of a causal model of tokens, from its features.

    A subclass implements `hidden`, `logits` and `new_state`, and has an ``embedding`` and a ``vocab_size``.
    """

    @property
    def only_forward(self) -> bool:
        """Whether the model can continue from a state."""
        return True

    @property
    def carries_state(self) -> bool:
        """Whether its commands carry a state between calls; networks without this property carry none."""
        return self.only_forward

    def require_forward(self, what: str) -> None:
        """Raise ValueError if a layer cannot continue from a state."""

    @abstractmethod
    def hidden(
        self, ids: Tensor, state: State | None = None, *, mask: Tensor | None = None, return_state: bool = False
    ) -> Any:
        """Compute the features (B, L, D) of each position, or (features, state); arguments as for `forward`."""

    @abstractmethod
    def logits(self, y: Tensor) -> Tensor:
        """Compute logits (..., V) from features (..., D)."""

    @abstractmethod
    def new_state(self, batch_size: int) -> State:
        """Return the state before the first token."""

    def forward(
        self,
        ids: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Compute the logits of the token after each position.

        Args:
            ids: token ids below `vocab_size`, (B, L); arbitrary at padded positions.
            state: state returned for an earlier chunk of the same sequences.
            mask: valid positions, (B, L) bool.
            cu_seqlens: start offsets of packed sequences (B = 1) and the total length, (n + 1,) int32, of models whose
                `hidden` takes them.
            return_state: whether to return the state after the last position as well.

        Returns:
            logits (B, L, V), or (logits, state).
        """
        packing = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
        y = self.hidden(ids, state, mask=mask, return_state=return_state, **packing)
        if return_state:
            return self.logits(y[0]), y[1]
        return self.logits(y)

    def prefill(self, ids: Tensor, state: State | None = None, *, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Compute the logits (B, V) after the last valid position of each prompt, and the state for generation.

        Args:
            ids: token ids, (B, L).
            state: state of an earlier chunk.
            mask: valid positions, (B, L) bool, at least one per sample.
        """
        y, state = self.hidden(ids, state, mask=mask, return_state=True)
        if mask is None:
            return self.logits(y[:, -1]), state
        place = torch.arange(ids.shape[1], device=ids.device)
        last = place.expand_as(mask).masked_fill(~mask.bool(), -1).amax(1).clamp(min=0)
        return self.logits(y[torch.arange(len(y), device=y.device), last]), state

    def step(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """Process one more token per sample.

        Args:
            ids: token ids, (B,).
            state: state after the preceding tokens.

        Returns:
            (logits (B, V), state).
        """
        y, state = self.hidden(ids.unsqueeze(1), state, return_state=True)
        return self.logits(y[:, 0]), state


class LanguageModel(CausalModel):
    """Language model that computes the logits of the next token from token ids.

    Args:
        vocab_size: number of tokens, V.
        backbone: stack of layers.
        tie: whether the head shares the weights of the embedding.
        initial_std: standard deviation of the normal initialisation of the embedding.

    Raises:
        ValueError: `vocab_size` is below 1.
    """

    def __init__(self, vocab_size: int, backbone: Backbone, *, tie: bool = True, initial_std: float = 0.02) -> None:
        super().__init__()
        if vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, not {vocab_size}")
        self.vocab_size, self.tie, self.initial_std = vocab_size, tie, initial_std
        self.embedding = nn.Embedding(vocab_size, backbone.d_model)
        self.backbone = backbone
        self.lm_head = None if tie else nn.Linear(backbone.d_model, vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.embedding.weight, std=self.initial_std)
        if self.lm_head is not None:
            self.lm_head.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all weights, e.g. after ``to_empty`` of a model built on the meta device."""
        self.backbone.reset_parameters()
        self._initialise()

    @property
    def only_forward(self) -> bool:
        return self.backbone.only_forward

    def require_forward(self, what: str) -> None:
        self.backbone.require_forward(what)

    def logits(self, y: Tensor) -> Tensor:
        return F.linear(y, self.embedding.weight) if self.lm_head is None else self.lm_head(y)

    def hidden(
        self,
        ids: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        return self.backbone(self.embedding(ids), state, mask=mask, cu_seqlens=cu_seqlens, return_state=return_state)

    def step(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.backbone.step(self.embedding(ids), state)
        return self.logits(y), state

    def new_state(self, batch_size: int) -> State:
        return self.backbone.new_state(batch_size)
