"""The dual selective projector of Mamba-FSCIL (arXiv 2407.06136): selective scans over the tokens of a feature map.

Two branches of one form are added to the pooled features: the base branch is trained with the network, the new branch
with classes that are learned later. The gate half of the new branch's input projection starts at zero, and with it the
branch's output, exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from seqssm_kernels import causal_conv1d, selective_scan
from torch import Tensor, nn

from seqssm.nn.branch import BranchSettings, ScanBranch
from seqssm.nn.sizes import require_positive
from seqssm.orders import Geometry, Spec, routes, walk

POSITIONS = 16
"""Tokens to which sequences of any length are averaged for a projector."""
Branches = Literal["none", "base", "new", "dual"]


@dataclass(frozen=True)
class Selected:
    """Selective parameters of a branch.

    Attributes:
        gate: gate before its SiLU, summed over the R scans, (B, T, D).
        dt: low-rank step sizes of the first scan, before their projection, (B, T, rank).
        B: input weights of the first scan, (B, T, N).
        C: output weights of the first scan, (B, T, N).
    """

    gate: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor


class SelectiveBranch(nn.Module):
    """One branch: mixing of channels, gated selective scans along several routes with shared weights, mean.

    Tokens (B, T, D) are widened to 2 D, normalised over tokens and channels, passed through LeakyReLU(0.1), narrowed to
    D, and get learned positions. The scans are those of a Mamba block with expansion factor 1 and without output
    projection; their outputs are summed over the routes and averaged over the tokens.

    Args:
        width: width of the tokens and of the output, D.
        positions: number of tokens, T.
        ordering: scan orders of the routes.
        geometry: geometry of the tokens, for orders on a grid.
        d_state: number of states per channel.
        d_conv: kernel size of the causal convolution.
        closed: whether the gate half of ``in_proj`` starts at zero, so that the output is exactly 0.
        engine: engine of the kernels; None for the best one for the device.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(
        self,
        width: int,
        positions: int = POSITIONS,
        *,
        ordering: Spec = "bidirectional",
        geometry: Geometry | None = None,
        d_state: int = 16,
        d_conv: int = 4,
        closed: bool = False,
        engine: str | None = None,
    ) -> None:
        super().__init__()
        require_positive(width=width, positions=positions, d_state=d_state, d_conv=d_conv)
        self.width, self.ordering, self.geometry = width, routes(ordering), geometry
        self.closed, self.engine = closed, engine
        self.settings = BranchSettings(width, d_state, d_conv, max(1, math.ceil(width / 4)), True, 1e-3, 0.1, 1e-4)
        self.widen = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm((positions, 2 * width))
        self.narrow = nn.Linear(2 * width, width, bias=False)
        self.positions = nn.Parameter(torch.zeros(1, positions, width))
        self.in_proj = nn.Linear(width, 2 * width, bias=False)
        ScanBranch(self, self.settings).build()
        self._reset_own()

    @torch.no_grad()
    def _reset_own(self) -> None:
        nn.init.trunc_normal_(self.positions, std=0.02)
        if self.closed:
            self.in_proj.weight[self.width :].zero_()

    def reset_parameters(self) -> None:
        """Initialise all weights."""
        for module in (self.widen, self.norm, self.narrow, self.in_proj):
            module.reset_parameters()
        ScanBranch(self, self.settings).reset_parameters()
        self._reset_own()

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute the output (B, D) of tokens (B, T, D)."""
        u, z, order = self._projected(tokens)
        branch = ScanBranch(self, self.settings)
        dt, selected = branch.select(u)
        B, C = selected[..., self.settings.dt_rank :].chunk(2, dim=-1)
        A, D = branch.constants(u.dtype)
        scanned = selective_scan(
            u,
            dt,
            A.unsqueeze(0),
            B,
            C,
            D=D.unsqueeze(0),
            z=z,
            dt_softplus=True,
            order=order,
            engine=self.engine,
        )
        y = scanned[0] if isinstance(scanned, tuple) else scanned
        return y.sum(-2).mean(1)

    def select(self, tokens: Tensor) -> Selected:
        """Compute the selective parameters, without the scans.

        Args:
            tokens: tokens, (B, T, D).
        """
        u, z, _ = self._projected(tokens)
        selected = ScanBranch(self, self.settings).select(u)[1]
        low, B, C = selected.split([self.settings.dt_rank, self.settings.d_state, self.settings.d_state], dim=-1)
        return Selected(z.squeeze(-2) * len(self.ordering), low[..., 0, :], B[..., 0, :], C[..., 0, :])

    def _projected(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Compute the inputs of the scans (B, T, R, D), the gate (B, T, 1, D), and the order."""
        x = nn.functional.leaky_relu(self.norm(self.widen(tokens)), 0.1)
        x = self.narrow(x) + self.positions
        u, z = self.in_proj(x).unsqueeze(-2).chunk(2, dim=-1)  # (B, T, 1, D): read in place by all routes
        order, _ = walk(self.ordering, tokens.shape[1], geometry=self.geometry, device=tokens.device)
        conv = ScanBranch(self, self.settings).conv1d
        convolved = causal_conv1d(
            u,
            conv.weight.transpose(0, 1),
            conv.bias.unsqueeze(0),
            order=order,
            activation="silu",
            engine=self.engine,
        )
        return (convolved[0] if isinstance(convolved, tuple) else convolved), z, order


class DualProjector(nn.Module):
    """Adds the outputs of up to two selective branches to the pooled features.

    Args:
        width: width of the features, D.
        branches: ``"base"``, ``"new"`` or ``"dual"`` (both).
        positions: number of tokens, T.
        ordering: scan orders of the routes.
        geometry: geometry of the tokens, for orders on a grid.
        d_state: number of states per channel.
        engine: engine of the kernels.
    """

    def __init__(
        self,
        width: int,
        branches: Branches,
        positions: int = POSITIONS,
        *,
        ordering: Spec = "bidirectional",
        geometry: Geometry | None = None,
        d_state: int = 16,
        engine: str | None = None,
    ) -> None:
        super().__init__()

        def branch(closed: bool) -> SelectiveBranch:
            return SelectiveBranch(
                width,
                positions,
                ordering=ordering,
                geometry=geometry,
                d_state=d_state,
                closed=closed,
                engine=engine,
            )

        self.base = branch(False) if branches in ("base", "dual") else None
        self.new = branch(True) if branches in ("new", "dual") else None

    def of_base(self, pooled: Tensor, tokens: Tensor) -> Tensor:
        """Compute the features without the new branch, (B, D); arguments as for `forward`."""
        return pooled if self.base is None else pooled + self.base(tokens)

    def forward(self, pooled: Tensor, tokens: Tensor) -> Tensor:
        """Compute the features in front of the head, (B, D).

        Args:
            pooled: pooled features, (B, D).
            tokens: tokens, (B, T, D).
        """
        features = self.of_base(pooled, tokens)
        return features if self.new is None else features + self.new(tokens)


def make_projector(
    width: int, branches: Branches, positions: int = POSITIONS, **options: object
) -> DualProjector | None:
    """Create the projector of a network; None for ``"none"``.

    Args:
        width: width of the features.
        branches: a value of `Branches`.
        positions: number of tokens.
        **options: further arguments of `DualProjector`.
    """
    return None if branches == "none" else DualProjector(width, branches, positions, **options)  # type: ignore[arg-type]


def segment_means(x: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
    """Average the valid positions of sequences over `count` segments of equal length, (B, count, D).

    Segment j of n positions covers floor(j n / count) to ceil((j + 1) n / count), as in adaptive pooling: the segments
    of a sequence with fewer positions than segments share them.

    Args:
        x: features, (B, L, D).
        count: number of segments.
        mask: valid positions, (B, L) bool, of which each sequence has at least one; None for all.
    """
    real = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    rank = real.cumsum(1) - 1
    total = real.sum(1, keepdim=True)
    place = torch.arange(count, device=x.device)
    first = place * total // count  # (B, count)
    last = -(-(place + 1) * total // count)
    inside = (rank[:, None] >= first[..., None]) & (rank[:, None] < last[..., None]) & real[:, None]
    weights = inside.to(x.dtype) / (last - first).clamp(min=1)[..., None].to(x.dtype)
    return weights @ x.masked_fill(~real.unsqueeze(-1), 0)
