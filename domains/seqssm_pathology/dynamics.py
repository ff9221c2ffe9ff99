"""Exclusion of the convergent regime of a scan (arXiv 2410.03292); see `seqssm.tools.regime` for the regimes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.mamba import Mamba
from seqssm.tools.regime import report

FLOOR = 0.7  # minimum of the diagonal that relates S_B to S_C, as in the released code


class PositiveProjection(nn.Module):
    """`x_proj` of a route that cannot be convergent: S_C = P, S_B = diag(softplus(d) + 0.7) P.

    P (d_state, E) is upper triangular with a unit diagonal, so that S_B S_C^T = diag(.) P P^T has the eigenvalues of a
    positive definite matrix.

    Args:
        width: number of channels of the scan, E.
        dt_rank: inner width of the dt projection.
        d_state: number of states, N, at most `width`.
    """

    def __init__(self, width: int, dt_rank: int, d_state: int) -> None:
        super().__init__()
        if d_state > width:
            raise ValueError(f"positive_definite requires d_state of at most {width} channels, not {d_state}")
        self.dt = nn.Linear(width, dt_rank, bias=False)
        self.free = nn.Parameter(torch.empty(d_state, width))
        self.diagonal = nn.Parameter(torch.zeros(d_state))
        self._reset_own()

    def reset_parameters(self) -> None:
        """Initialise all weights."""
        self.dt.reset_parameters()
        self._reset_own()

    @torch.no_grad()
    def _reset_own(self) -> None:
        bound = self.free.shape[1] ** -0.5
        nn.init.uniform_(self.free, -bound, bound)
        self.diagonal.zero_()

    def matrix(self) -> Tensor:
        """P."""
        return torch.triu(self.free, diagonal=1) + torch.eye(*self.free.shape, device=self.free.device)

    @property
    def weight(self) -> Tensor:
        """Rows of dt, B and C, as in a standard `x_proj`."""
        P = self.matrix()
        return torch.cat([self.dt.weight, (F.softplus(self.diagonal) + FLOOR).unsqueeze(1) * P, P])

    def forward(self, u: Tensor) -> Tensor:
        return F.linear(u, self.weight)


def exclude_convergence(layer: Mamba) -> None:
    """Replace the projections of a newly built layer by ones that exclude the convergent regime."""
    for branch in layer.branches:
        sizes = branch.settings
        branch.x_proj = PositiveProjection(sizes.width, sizes.dt_rank, sizes.d_state)


def regime_command(options: dict[str, Any]) -> int:
    """Run ``seqssm pathology regime MODEL.ckpt``: print the report of each checkpoint."""
    import pandas as pd

    from seqssm.errors import InputError
    from seqssm.metrics.report import Report
    from seqssm.prediction.model import load_single

    for name in options["inputs"]:
        model = load_single(name, "dynamics", "cpu")
        rows = report(model.network)
        if not rows:
            raise InputError("this model has no scan", file=name)
        print(Report(tables=[(f"{name}: eigenvalues of S_B S_C^T (real parts)", pd.DataFrame(rows))]).text())
    return 0
