"""Networks to compare with, under the interfaces of `seqssm_dna.model`: GRU and convolutions, causal and not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqssm.nn.state import State
from seqssm_dna.stem import Letters
from seqssm_dna.strands import compacted
from seqssm_dna.tokens import FIXED, PAD


class _Causal(nn.Module, ABC):
    """Head, prompts and steps of a causal network that implements `hidden` and `new_state`."""

    causal: ClassVar[bool] = True
    has_attention: ClassVar[bool] = False
    only_forward: ClassVar[bool] = True
    attn_window: int | None = None
    embedding: nn.Embedding
    lm_head: nn.Linear

    def _begin(self, d_model: int, n_labels: int) -> None:
        self.width, self.vocab_size = d_model, len(FIXED) + n_labels
        self.embedding = nn.Embedding(self.vocab_size, d_model)
        self.lm_head = nn.Linear(d_model, self.vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def require_forward(self, what: str) -> None:
        """Never raises: the network continues from a state."""

    @abstractmethod
    def hidden(
        self, ids: Tensor, state: State | None = None, *, mask: Tensor | None = None, return_state: bool = False
    ) -> Any:
        """Features (B, L, D), or (features, state); arguments as for `forward`."""

    def halves(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """What is pooled: the features themselves."""
        return (hidden,)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of features (..., D)."""
        return self.lm_head(hidden)

    def forward(
        self, ids: Tensor, state: State | None = None, *, mask: Tensor | None = None, return_state: bool = False
    ) -> Any:
        """Logits (B, L, V) of the token after each position, or (logits, state).

        Args:
            ids: (B, L).
            state: what an earlier piece of the same sequences returned.
            mask: (B, L), true at real positions, which come first or, with an empty state, last.
            return_state: return the state behind the last real position too.
        """
        y = self.hidden(ids, state, mask=mask, return_state=return_state)
        return (self.lm_head(y[0]), y[1]) if return_state else self.lm_head(y)

    def prefill(self, ids: Tensor, state: State | None = None, *, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Logits (B, V) behind each sample's last real position, and the state.

        Args:
            ids: (B, L).
            state: of an earlier piece.
            mask: (B, L), true at real positions.
        """
        y, state = self.hidden(ids, state, mask=mask, return_state=True)
        last = torch.full((len(ids),), ids.shape[1] - 1, device=ids.device)
        if mask is not None:
            place = torch.arange(ids.shape[1], device=ids.device)
            last = place.expand_as(mask).masked_fill(~mask.bool(), -1).amax(1).clamp(min=0)
        return self.lm_head(y[torch.arange(len(y), device=y.device), last]), state

    def step(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """One more token of each sample: ids (B,) to (logits (B, V), state).

        Args:
            ids: (B,).
            state: of the tokens before.
        """
        y, state = self.hidden(ids.unsqueeze(1), state, return_state=True)
        return self.lm_head(y[:, 0]), state

    @abstractmethod
    def new_state(self, batch_size: int) -> State:
        """The state before the first token.

        Args:
            batch_size: number of sequences.
        """


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(order that moves real positions to the front, its inverse), (B, L) each."""
    order = (~mask.bool()).to(torch.int8).argsort(dim=1, stable=True)
    return order, order.argsort(dim=1)


class GruLM(_Causal):
    """A causal GRU language model.

    Args:
        d_model: D, width of the embedding and the hidden state.
        n_layers: layers.
        dropout: between the layers, in training.
        n_labels: additional prefix tokens, with ids from 12 on.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, d_model: int = 128, n_layers: int = 2, dropout: float = 0.0, n_labels: int = 0) -> None:
        super().__init__()
        if min(d_model, n_layers) < 1:
            raise ValueError(f"d_model {d_model}, n_layers {n_layers}: must be at least 1")
        self._begin(d_model, n_labels)
        self.gru = nn.GRU(d_model, d_model, n_layers, batch_first=True, dropout=dropout if n_layers > 1 else 0.0)

    def hidden(
        self, ids: Tensor, state: State | None = None, *, mask: Tensor | None = None, return_state: bool = False
    ) -> Any:
        """Features (B, L, D) behind each token, or (features, state). Arguments as in `forward`.

        Args:
            ids: (B, L).
            state: of an earlier piece.
            mask: (B, L), true at real positions.
            return_state: return the state too.
        """
        state = self.new_state(len(ids)) if state is None else state
        before = state["gru"].transpose(0, 1).contiguous()
        if mask is None:
            y, after = self.gru(self.embedding(ids), before)
        else:
            order, inverse = _places(mask)
            counts = mask.sum(1).clamp(min=1).cpu()
            packed = pack_padded_sequence(
                self.embedding(ids.gather(1, order)), counts, batch_first=True, enforce_sorted=False
            )
            packed, after = self.gru(packed, before)
            y, _ = pad_packed_sequence(packed, batch_first=True, total_length=ids.shape[1])
            y = y.gather(1, inverse.unsqueeze(-1).expand_as(y))
            empty = ~mask.bool().any(1)
            after = torch.where(empty[None, :, None], before, after)
        return (y, State(gru=after.transpose(0, 1))) if return_state else y

    def new_state(self, batch_size: int) -> State:
        """The state before the first token: zeros.

        Args:
            batch_size: samples.
        """
        weight = self.embedding.weight
        return State(gru=weight.new_zeros(batch_size, self.gru.num_layers, self.gru.hidden_size))


class CausalCnn(_Causal):
    """A causal stack of dilated convolutions (WaveNet without gates): what a fixed context can give.

    Args:
        d_model: D, channels.
        n_layers: residual layers, the dilation doubling from one to the next.
        kernel: letters that a convolution sees.
        dropout: on every layer's output, in training.
        n_labels: additional prefix tokens, with ids from 12 on.

    Attributes:
        memory: tokens before a position that it sees.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self, d_model: int = 128, n_layers: int = 4, kernel: int = 4, dropout: float = 0.0, n_labels: int = 0
    ) -> None:
        super().__init__()
        if min(d_model, n_layers, kernel) < 1:
            raise ValueError(f"d_model {d_model}, n_layers {n_layers}, kernel {kernel}: must be at least 1")
        self._begin(d_model, n_labels)
        self.dropout = dropout
        self.convs = nn.ModuleList(nn.Conv1d(d_model, d_model, kernel, dilation=2**k) for k in range(n_layers))
        self.norms = nn.ModuleList(nn.RMSNorm(d_model, eps=1e-5) for _ in range(n_layers + 1))
        self.memory = (kernel - 1) * (2**n_layers - 1)

    def hidden(
        self, ids: Tensor, state: State | None = None, *, mask: Tensor | None = None, return_state: bool = False
    ) -> Any:
        """Features (B, L, D) behind each token, or (features, state). Arguments as in `forward`.

        Args:
            ids: (B, L).
            state: of an earlier piece.
            mask: (B, L), true at real positions.
            return_state: return the state too.
        """
        state = self.new_state(len(ids)) if state is None else state
        inverse = None
        if mask is not None:
            order, inverse = _places(mask)
            ids = ids.gather(1, order)
        seen = torch.cat([state["ids"], ids], dim=1)
        x = self.embedding(seen)
        for conv, norm in zip(self.convs, self.norms):
            y = conv(norm(x).transpose(1, 2)).transpose(1, 2)
            x = x[:, x.shape[1] - y.shape[1] :] + F.dropout(F.gelu(y), self.dropout, self.training)
        y = self.norms[-1](x)
        if inverse is not None:
            y = y.gather(1, inverse.unsqueeze(-1).expand_as(y))
        if not return_state:
            return y
        if mask is None:
            return y, State(ids=seen[:, seen.shape[1] - self.memory :])
        places = mask.sum(1, keepdim=True) + torch.arange(self.memory, device=ids.device)
        return y, State(ids=seen.gather(1, places))

    def new_state(self, batch_size: int) -> State:
        """The state before the first token: padding.

        Args:
            batch_size: samples.
        """
        return State(ids=torch.full((batch_size, self.memory), PAD, device=self.embedding.weight.device))


class SmallCnn(nn.Module):
    """A small convolutional encoder: a wide first convolution, then narrow ones, with batch normalisation.

    Args:
        d_model: D, channels.
        n_layers: convolutions.
        stem_width: letters that the first one sees, odd.
        kernel: letters that the others see, odd.
        positions: learned vectors for the first so many positions, for sequences that are aligned; 0: none.
        dropout: on every layer's output, in training.

    Raises:
        ValueError: a size out of range.
    """

    causal: ClassVar[bool] = False

    def __init__(
        self,
        d_model: int = 64,
        n_layers: int = 2,
        stem_width: int = 19,
        kernel: int = 5,
        positions: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if n_layers < 1 or kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"n_layers {n_layers}, kernel {kernel}: at least 1, and kernel odd")
        self.width, self.dropout = d_model, dropout
        self.stem = Letters(d_model, stem_width, positions)
        self.convs = nn.ModuleList(
            nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2) for _ in range(n_layers - 1)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(d_model) for _ in range(n_layers))

    def hidden(self, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Features (B, L, D).

        Args:
            ids: (B, L), bases.
            mask: (B, L), true at real positions.
        """
        real = None if mask is None else mask.unsqueeze(1).to(self.stem.conv.weight.dtype)
        x = self.stem(ids, mask).transpose(1, 2)
        for number, norm in enumerate(self.norms):
            x = F.relu(norm(x if number == 0 else self.convs[number - 1](x)))
            x = F.dropout(x, self.dropout, self.training)
            x = x if real is None else x * real
        return x.transpose(1, 2)

    def halves(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """What is pooled: the features themselves."""
        return (hidden,)


class GruEncoder(nn.Module):
    """A bidirectional GRU encoder.

    Args:
        d_model: D, width of the features: each direction has half of it.
        n_layers: layers.
        dropout: between the layers, in training.

    Raises:
        ValueError: an odd or too small width.
    """

    causal: ClassVar[bool] = False

    def __init__(self, d_model: int = 64, n_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        if d_model < 2 or d_model % 2 or n_layers < 1:
            raise ValueError(f"d_model {d_model}, n_layers {n_layers}: an even width, and at least one layer")
        self.width = d_model
        self.embedding = nn.Embedding(len(FIXED), d_model)
        self.gru = nn.GRU(
            d_model,
            d_model // 2,
            n_layers,
            batch_first=True,
            bidirectional=True,
            dropout=dropout if n_layers > 1 else 0.0,
        )

    def hidden(self, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Features (B, L, D).

        Args:
            ids: (B, L), bases.
            mask: (B, L), true at real positions.
        """
        if mask is None:
            return self.gru(self.embedding(ids))[0]
        front, counts = compacted(ids, mask)
        packed = pack_padded_sequence(
            self.embedding(front), counts.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        y, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=ids.shape[1])
        return y.gather(1, _places(mask)[1].unsqueeze(-1).expand_as(y))

    def halves(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """What is pooled: the features themselves."""
        return (hidden,)
