"""Gated feed-forward layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.sizes import require_positive
from seqssm.nn.state import State

MULTIPLE = 128  # the hidden width is rounded up to a multiple of this, for efficient matrix products


class MLP(nn.Module):
    """Gated linear unit with SiLU (arXiv 2002.05202): fc2(v * silu(g)) with (v, g) = fc1(x).

    It takes and returns an empty state, like a mixer, so that a stack can treat all layers alike.

    Args:
        d_model: width of the sequence, D.
        hidden: inner width; None for 8/3 d_model, rounded up to a multiple of 128.
        bias: whether the projections have a bias.

    Raises:
        ValueError: a size is below 1.
    """

    only_forward = True

    def __init__(self, d_model: int, *, hidden: int | None = None, bias: bool = False) -> None:
        super().__init__()
        hidden = -(-(8 * d_model // 3) // MULTIPLE) * MULTIPLE if hidden is None else hidden
        require_positive(d_model=d_model, hidden=hidden)
        self.fc1 = nn.Linear(d_model, 2 * hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, d_model, bias=bias)

    def reset_parameters(self) -> None:
        """Initialise all weights."""
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()

    def require_forward(self, what: str) -> None:
        """Do nothing, because positions are independent."""

    def forward(self, x: Tensor, state: State | None = None, *, return_state: bool = False) -> Any:
        """Apply the network to each position.

        Args:
            x: input, (..., D).
            state: ignored.
            return_state: whether to return an empty state as well.

        Returns:
            y (..., D), or (y, state).
        """
        value, gate = self.fc1(x).chunk(2, dim=-1)
        y = self.fc2(value * F.silu(gate))
        return (y, State()) if return_state else y

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Process one position: x (B, D) to (y (B, D), an empty state)."""
        return self(x), State()

    def new_state(self, batch_size: int) -> State:
        """Return an empty state."""
        return State()
