"""Comparison networks with the interfaces of `seqssm_dna.model`: causal and bidirectional GRUs and convolutions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from seqssm_kernels import dropout
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from seqssm.nn.language_model import CausalModel
from seqssm.nn.state import State
from seqssm.training.sizes import require_rates, require_sizes
from seqssm_dna.model import OneStrand
from seqssm_dna.stem import Letters
from seqssm_dna.strands import compacted
from seqssm_dna.tokens import FIXED, PAD


class _Causal(OneStrand, CausalModel):
    """A causal network with a head of its own, which implements `hidden` and `new_state`."""

    causal: ClassVar[bool] = True
    has_attention: ClassVar[bool] = False
    attn_window: int | None = None

    def _begin(self, d_model: int, n_labels: int) -> None:
        if n_labels < 0:
            raise ValueError(f"n_labels {n_labels}: must be at least 0")
        self.width, self.vocab_size = d_model, len(FIXED) + n_labels
        self.embedding = nn.Embedding(self.vocab_size, d_model)
        self.lm_head = nn.Linear(d_model, self.vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def logits(self, y: Tensor) -> Tensor:
        return self.lm_head(y)


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return (permutation that moves real positions to the front, its inverse), (B, L) each."""
    order = (~mask.bool()).to(torch.int8).argsort(dim=1, stable=True)
    return order, order.argsort(dim=1)


class GruLM(_Causal):
    """A causal GRU language model.

    Args:
        d_model: D, width of the embedding and the hidden state.
        n_layers: number of layers.
        dropout: dropout between the layers.
        n_labels: number of additional prefix tokens, with ids from 12.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, d_model: int = 128, n_layers: int = 2, dropout: float = 0.0, n_labels: int = 0) -> None:
        super().__init__()
        require_sizes(d_model=d_model, n_layers=n_layers)
        require_rates(dropout=dropout)
        self._begin(d_model, n_labels)
        self.gru = nn.GRU(d_model, d_model, n_layers, batch_first=True, dropout=dropout if n_layers > 1 else 0.0)

    def hidden(
        self, ids: Tensor, state: State | None = None, *, mask: Tensor | None = None, return_state: bool = False
    ) -> Any:
        """Compute features after each token, (B, L, D), or (features, state); arguments as for `forward`.

        Args:
            ids: token ids, (B, L).
            state: state after the preceding piece.
            mask: mask, (B, L), True at real positions.
            return_state: whether to also return the state.
        """
        state = self.new_state(ids.shape[0]) if state is None else state
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
        """Return the state before the first token: zeros.

        Args:
            batch_size: number of samples.
        """
        weight = self.embedding.weight
        return State(gru=weight.new_zeros(batch_size, self.gru.num_layers, self.gru.hidden_size))


class CausalCnn(_Causal):
    """A causal stack of dilated convolutions (WaveNet without gates), a model with a fixed context.

    Args:
        d_model: D, number of channels.
        n_layers: number of residual layers; the dilation doubles with each layer.
        kernel: kernel size of the convolutions, letters.
        dropout: dropout on the output of every layer.
        n_labels: number of additional prefix tokens, with ids from 12.

    Attributes:
        memory: number of preceding tokens in the receptive field.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(
        self, d_model: int = 128, n_layers: int = 4, kernel: int = 4, dropout: float = 0.0, n_labels: int = 0
    ) -> None:
        super().__init__()
        require_sizes(d_model=d_model, n_layers=n_layers, kernel=kernel)
        require_rates(dropout=dropout)
        self._begin(d_model, n_labels)
        self.dropout = dropout
        self.convs = nn.ModuleList(nn.Conv1d(d_model, d_model, kernel, dilation=2**k) for k in range(n_layers))
        self.norms = nn.ModuleList(nn.RMSNorm(d_model, eps=1e-5) for _ in range(n_layers + 1))
        self.memory = (kernel - 1) * (2**n_layers - 1)

    def hidden(
        self, ids: Tensor, state: State | None = None, *, mask: Tensor | None = None, return_state: bool = False
    ) -> Any:
        """Compute features after each token, (B, L, D), or (features, state); arguments as for `forward`.

        Args:
            ids: token ids, (B, L).
            state: state after the preceding piece.
            mask: mask, (B, L), True at real positions.
            return_state: whether to also return the state.
        """
        state = self.new_state(ids.shape[0]) if state is None else state
        inverse = None
        if mask is not None:
            order, inverse = _places(mask)
            ids = ids.gather(1, order)
        seen = torch.cat([state["ids"], ids], dim=1)
        x = self.embedding(seen)
        for conv, norm in zip(self.convs, self.norms):
            y = conv(norm(x).transpose(1, 2)).transpose(1, 2)
            x = x[:, x.shape[1] - y.shape[1] :] + dropout(F.gelu(y), self.dropout, self.training)
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
        """Return the state before the first token: padding.

        Args:
            batch_size: number of samples.
        """
        return State(ids=torch.full((batch_size, self.memory), PAD, device=self.embedding.weight.device))


class SmallCnn(OneStrand, nn.Module):
    """A small convolutional encoder: a wide first convolution, then narrow ones, with batch normalisation.

    Args:
        d_model: D, number of channels.
        n_layers: number of convolutions.
        stem_width: kernel size of the first convolution, letters, odd.
        kernel: kernel size of the other convolutions, letters, odd.
        positions: number of positions with a learned vector, for aligned sequences; 0 for none.
        dropout: dropout on the output of every layer.

    Raises:
        ValueError: a size is out of range.
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
        require_sizes(n_layers=n_layers, kernel=kernel)
        require_rates(dropout=dropout)
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel}: must be odd")
        self.width, self.dropout = d_model, dropout
        self.stem = Letters(d_model, stem_width, positions)
        self.convs = nn.ModuleList(
            nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2) for _ in range(n_layers - 1)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(d_model) for _ in range(n_layers))

    def hidden(self, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Compute features, (B, L, D).

        Args:
            ids: token ids of bases, (B, L).
            mask: mask, (B, L), True at real positions.
        """
        real = None if mask is None else mask.unsqueeze(1).to(self.stem.conv.weight.dtype)
        x = self.stem(ids, mask).transpose(1, 2)
        for number, norm in enumerate(self.norms):
            x = F.relu(norm(x if number == 0 else self.convs[number - 1](x)))
            x = dropout(x, self.dropout, self.training)
            x = x if real is None else x * real
        return x.transpose(1, 2)


class GruEncoder(OneStrand, nn.Module):
    """A bidirectional GRU encoder.

    Args:
        d_model: D, width of the features, half of it per direction.
        n_layers: number of layers.
        dropout: dropout between the layers.

    Raises:
        ValueError: the width is odd or too small.
    """

    causal: ClassVar[bool] = False

    def __init__(self, d_model: int = 64, n_layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        require_sizes(d_model=d_model, n_layers=n_layers)
        require_rates(dropout=dropout)
        if d_model % 2:
            raise ValueError(f"d_model {d_model}: must be even, half of it for each direction")
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
        """Compute features, (B, L, D).

        Args:
            ids: token ids of bases, (B, L).
            mask: mask, (B, L), True at real positions.
        """
        if mask is None:
            return self.gru(self.embedding(ids))[0]
        front, counts = compacted(ids, mask)
        packed = pack_padded_sequence(
            self.embedding(front), counts.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        y, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=ids.shape[1])
        return y.gather(1, _places(mask)[1].unsqueeze(-1).expand_as(y))
