"""Causal dilated convolutions in front of the mixers of a language model."""

from __future__ import annotations

from typing import Any

import torch
from seqssm_kernels import dropout
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.bounds import Bounds
from seqssm.nn.padding import Rows
from seqssm.nn.state import State
from seqssm.training.sizes import require_rates, require_sizes

LAYERS = Bounds(0, 16)  # the dilation of the last layer is then at most 32,768


class CausalConvolutions(nn.Module):
    """Residual causal convolutions, x + gelu(conv(norm(x))), whose dilation doubles with each layer.

    The state of a layer is its last (kernel - 1) * dilation normalised inputs, zeros at the start.

    Args:
        d_model: D, number of channels.
        n_layers: number of layers.
        kernel: kernel size, positions.
        dropout: dropout on the output of every layer, in training.

    Raises:
        InputError: a size or a rate is out of range.
    """

    def __init__(self, d_model: int, n_layers: int, kernel: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        LAYERS.require("--model.conv_layers", n_layers)
        require_sizes(d_model=d_model, conv_kernel=kernel)
        require_rates(dropout=dropout)
        self.dropout = dropout
        self.norms = nn.ModuleList(nn.RMSNorm(d_model, eps=1e-5) for _ in range(n_layers))
        self.convs = nn.ModuleList(nn.Conv1d(d_model, d_model, kernel, dilation=2**k) for k in range(n_layers))

    def reset_parameters(self) -> None:
        """Initialise all weights."""
        for layer in (*self.norms, *self.convs):
            layer.reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Apply all layers to a sequence.

        Args:
            x: input, (B, L, D).
            state: state returned for an earlier chunk of the same sequences.
            mask: valid positions, (B, L) bool; the output at padded positions is undefined.
            cu_seqlens: start offsets of packed sequences (B = 1) and the total length, (n + 1,) int32.
            return_state: whether to return the state after the last position as well.

        Returns:
            y (B, L, D), or (y, state) with the inputs (B, memory, D) of each layer, named ``"0"``, ``"1"``, ...
        """
        rows = Rows(x, mask, cu_seqlens)
        y = rows.split(x)
        state = self.new_state(y.shape[0]) if state is None else state
        after = State()
        for number, (norm, conv) in enumerate(zip(self.norms, self.convs)):
            before = state[str(number)]
            read = torch.cat([before.to(y.dtype), norm(y)], dim=1)
            if return_state:
                after[str(number)] = _last(read, before.shape[1], rows.lengths)
            added = F.gelu(conv(read.transpose(1, 2)).transpose(1, 2))
            y = y + dropout(added, self.dropout, self.training).to(y.dtype)
        y = rows.join(y)
        return (y, after) if return_state else y

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Process one more position.

        Args:
            x: input, (B, D).
            state: state after the preceding positions.

        Returns:
            (y (B, D), state after this position).
        """
        y, state = self(x.unsqueeze(1), state, return_state=True)
        return y.squeeze(1), state

    def new_state(self, batch_size: int) -> State:
        """Return the state before the first position.

        Args:
            batch_size: number of samples, or of packed sequences with `cu_seqlens`.
        """
        state = State()
        for number, conv in enumerate(self.convs):
            assert isinstance(conv, nn.Conv1d)
            memory = (conv.kernel_size[0] - 1) * conv.dilation[0]
            state[str(number)] = conv.weight.new_zeros(batch_size, memory, conv.in_channels)
        return state


def _last(read: Tensor, memory: int, lengths: Tensor | None) -> Tensor:
    """Return the last `memory` valid positions of each row of the state and input of a layer, (B, memory, D).

    Args:
        read: state and input, (B, memory + L, D).
        memory: length of the state.
        lengths: number of valid positions of the input, (B,); None for all.
    """
    if lengths is None:
        return read[:, read.shape[1] - memory :]
    places = lengths.unsqueeze(1) + torch.arange(memory, device=read.device)
    return read.gather(1, places.unsqueeze(-1).expand(-1, -1, read.shape[-1]))
