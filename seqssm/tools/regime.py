"""Regime of a trained scan, convergent or divergent (arXiv 2410.03292, ICLR 2025).

Without norm, convolution and gate, and with depth as time, the tokens x_1 ... x_L of a scan obey

    dx_l/dt = sum_{j <= l} (S_C x_l . S_B x_j) D(x_j) exp(-a sum_{k = j+1 .. l} D(x_k)) x_j,   D(u) = softplus(S_D u).

In one dimension the sign of mu = S_C S_B decides: for mu < 0 all tokens converge to 0, for mu > 0 they diverge, in
finite time if S_D x > 0. In higher dimensions the eigenvalues of S_C^T S_B decide: the scan is convergent if all of
them are negative. The nonzero ones are the eigenvalues of the small matrix S_B S_C^T, (d_state, d_state).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seqssm.nn.branch import ScanBranch
from seqssm.nn.mamba import Mamba


def eigenvalues(branch: ScanBranch) -> Tensor:
    """Compute the eigenvalues of S_B S_C^T of a branch, (d_state,) complex128, in descending order of the real part."""
    weight = branch.x_proj.weight.detach().double().cpu()
    _, B, C = weight.split([branch.settings.dt_rank, branch.settings.d_state, branch.settings.d_state])
    values = torch.linalg.eigvals(B @ C.T)
    return values[torch.argsort(values.real, descending=True)]


def regime(values: Tensor) -> str:
    """Return ``"convergent"`` if all real parts are negative, else ``"divergent"``."""
    return "convergent" if bool((values.real < 0).all()) else "divergent"


def report(model: nn.Module) -> list[dict[str, Any]]:
    """Report signs and range of the eigenvalues and the regime, with one row per layer and route."""
    rows = []
    for number, layer in enumerate(module for module in model.modules() if isinstance(module, Mamba)):
        for place, branch in enumerate(layer.branches):
            values = eigenvalues(branch)
            rows.append(
                {
                    "layer": number,
                    "route": place,
                    "positive": int((values.real > 0).sum()),
                    "negative": int((values.real < 0).sum()),
                    "largest": float(values.real.max()),
                    "smallest": float(values.real.min()),
                    "regime": regime(values),
                }
            )
    return rows


def integrate(x: np.ndarray, mu: float, s_delta: float, decay: float, until: float, steps: int) -> np.ndarray:
    """Integrate the one-dimensional equation by the classical Runge-Kutta method.

    Args:
        x: tokens at time 0, (L,).
        mu: product S_C S_B.
        s_delta: weight S_D of the step size.
        decay: decay rate a, positive.
        until: end time.
        steps: number of equal steps; integration stops once a token exceeds 1e6.

    Returns:
        Tokens at the end, (L,).
    """

    def slope(x: np.ndarray) -> np.ndarray:
        delta = np.logaddexp(0, s_delta * x)
        passed = np.cumsum(delta)
        weight = np.tril(np.exp(-decay * np.clip(passed[:, None] - passed[None], 0, None)))
        return (weight * (mu * x[:, None] * x[None]) * (delta * x)[None]).sum(1)

    h = until / steps
    with np.errstate(over="ignore", invalid="ignore"):  # blow-up in finite time
        for _ in range(steps):
            a = slope(x)
            b = slope(x + h / 2 * a)
            c = slope(x + h / 2 * b)
            d = slope(x + h * c)
            after = x + h / 6 * (a + 2 * b + 2 * c + d)
            if not np.isfinite(after).all() or np.abs(after).max() > 1e6:
                return np.where(np.isfinite(after), after, np.copysign(np.inf, x))
            x = after
    return x
