"""The gated feed-forward layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.sizes import require_positive
from seqssm.nn.state import State

MULTIPLE = 128  # the hidden width is rounded up to it: matrix products like round sizes


class MLP(nn.Module):
    """fc2(v * silu(g)) with (v, g) = fc1(x): the gated linear unit with SiLU (arXiv 2002.05202).

    A mixer without memory: it takes and returns an empty state, so that a stack treats all its layers in one way.

    Args:
        d_model: D, width of the sequence.
        hidden: width inside; None: 8/3 d_model, rounded up to a multiple of 128.
        bias: whether the projections have a bias.

    Raises:
        ValueError: a size below 1.
    """

    only_forward = True

    def __init__(self, d_model: int, *, hidden: int | None = None, bias: bool = False) -> None:
        super().__init__()
        hidden = -(-(8 * d_model // 3) // MULTIPLE) * MULTIPLE if hidden is None else hidden
        require_positive(d_model=d_model, hidden=hidden)
        self.fc1 = nn.Linear(d_model, 2 * hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, d_model, bias=bias)

    def reset_parameters(self) -> None:
        """Initialises all weights anew."""
        self.fc1.reset_parameters()
        self.fc2.reset_parameters()

    def require_forward(self, what: str) -> None:
        """Never raises: positions are independent."""

    def forward(self, x: Tensor, state: State | None = None, *, return_state: bool = False) -> Any:
        """Apply the network to each position.

        Args:
            x: input, (..., D).
            state: nothing is read from it.
            return_state: return an empty state too.

        Returns:
            y (..., D), or (y, state).
        """
        value, gate = self.fc1(x).chunk(2, dim=-1)
        y = self.fc2(value * F.silu(gate))
        return (y, State()) if return_state else y

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position: x (B, D) to (y (B, D), an empty state)."""
        return self(x), State()

    def new_state(self, batch_size: int) -> State:
        """An empty state."""
        return State()
