"""A convex combination of the trained network, DLinear and the last value, weighted by their validation errors.

With the errors ``e_k = f_k - y`` of the members, the mean squared error of ``sum_k w_k f_k`` with ``sum_k w_k = 1`` is
``w' E w`` with ``E_kl = mean(e_k e_l)``. The weights minimise it on the validation split subject to ``w >= 0``, for
each step ahead (Bates and Granger 1969, "The combination of forecasts", generalised to correlated errors).
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from seqssm_forecasting.baselines import last_value
from seqssm_forecasting.model import DLinear


class Blend(nn.Module):
    """The network, DLinear and the last value, combined with one weight per member and step.

    The members beside the network have no trainable parameters: DLinear is fitted before the training starts, the
    weights after each validation. In the beginning, the network has all the weight.

    Args:
        network: the trained network, ``(B, N, L)`` to ``(B, N, T)``.
        horizon: T, steps.
        linear: DLinear, or None if `network` is one.
    """

    def __init__(self, network: nn.Module, horizon: int, linear: DLinear | None) -> None:
        super().__init__()
        self.network = network
        self.linear = None if linear is None else linear.requires_grad_(False)
        self.horizon = horizon
        weights = torch.zeros(2 if linear is None else 3, horizon)
        weights[0] = 1.0
        self.weights: Tensor
        self.register_buffer("weights", weights)

    @property
    def head(self) -> nn.Module:
        """The head of the network, whose input is the embedding."""
        return self.network.head  # type: ignore[return-value]

    @property
    def use_norm(self) -> bool:
        """Whether the network normalises each window."""
        return bool(getattr(self.network, "use_norm", False))

    def others(self, x: Tensor) -> list[Tensor]:
        """Return the forecasts (B, N, T) of DLinear, if it is a member, and of the last value, from ``x (B, N, L)``."""
        found = [last_value(x, self.horizon)]
        return found if self.linear is None else [self.linear(x), *found]

    def combine(self, forecasts: list[Tensor]) -> Tensor:
        """Return the weighted sum of the members' forecasts, (B, N, T) each."""
        weights = self.weights.to(forecasts[0].dtype)
        return torch.stack([w * f for w, f in zip(weights, forecasts)]).sum(0)

    def forward(self, x: Tensor, marks: Tensor | None = None, **rest: Any) -> Tensor:
        return self.combine([self.network(x, marks, **rest), *self.others(x)])


class ErrorProducts:
    """Sums of the products of the members' errors, from which the weights follow.

    Attributes:
        sums: (T, M, M) float64 for M members.
    """

    def __init__(self, members: int, horizon: int) -> None:
        self.sums = torch.zeros(horizon, members, members, dtype=torch.float64)

    def update(self, forecasts: list[Tensor], y: Tensor, target_mask: Tensor | None) -> None:
        """Add a batch.

        Args:
            forecasts: forecast of each member, (B, N, T).
            y: actual values, (B, N, T).
            target_mask: mask, (B, N, T), False for missing targets; or None.
        """
        precise = torch.float32 if y.device.type == "mps" else torch.float64
        errors = torch.stack([forecast.detach() - y for forecast in forecasts]).to(precise)
        if target_mask is not None:
            errors = errors.masked_fill(~target_mask, 0.0)
        flat = errors.flatten(1, 2).permute(2, 0, 1)  # (T, M, B N)
        self.sums = self.sums.to(flat.device, precise) + flat @ flat.transpose(1, 2)

    def weights(self) -> Tensor:
        """Return the weights (M, T) that minimise the error, float32 on the CPU."""
        return torch.stack([convex_weights(one) for one in self.sums.double().cpu()], 1).float()


def convex_weights(products: Tensor) -> Tensor:
    """Minimise ``w' E w`` over ``w >= 0, sum(w) = 1``.

    The minimum on the face of the members in a set S is at ``w_S ~ inverse(E_S) 1``. All faces are tried; three members
    have seven.

    Args:
        products: E, (M, M) float64, positive semidefinite.

    Returns:
        The weights, (M,). Without any errors, the first member has all the weight.
    """
    members = len(products)
    best, least = torch.eye(members, dtype=products.dtype)[0], float(products[0, 0])
    for size in range(1, members + 1):
        for chosen in combinations(range(members), size):
            own = products[list(chosen)][:, list(chosen)]
            # equal members have a singular matrix, for which any split of their weight is optimal
            own = own + 1e-9 * own.diagonal().mean() * torch.eye(size, dtype=own.dtype)
            solved = torch.linalg.lstsq(own, torch.ones(size, 1, dtype=own.dtype)).solution[:, 0]
            weights = torch.zeros(members, dtype=products.dtype)
            weights[list(chosen)] = solved / solved.sum()
            error = float(weights @ products @ weights)
            if weights.isfinite().all() and weights.min() >= 0 and error < least:
                best, least = weights, error
    return best
