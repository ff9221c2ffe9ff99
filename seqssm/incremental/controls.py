"""Cheap ways to add a class, on the same frozen features: nearest class mean, and a linear probe."""

from __future__ import annotations

import torch
from torch import Tensor

PENALTY = 1e-2  # of the squared weights of the probe, for standardised features
ITERATIONS = 100


def nearest_mean(features: Tensor, means: Tensor) -> Tensor:
    """Return the index of the nearest mean in Euclidean distance, (n,).

    Args:
        features: features, (n, D).
        means: class means, (C, D).
    """
    return torch.cdist(features.double(), means.double()).argmin(1)


class LinearProbe:
    """Multinomial logistic regression, in which every class has the same weight.

    Features are standardised by the training samples. The fit is that of L-BFGS in float64 from zero weights; nothing
    is random.

    Args:
        features: features of the training samples, (n, D).
        y: their class indices, (n,).
        classes: number of classes.
    """

    def __init__(self, features: Tensor, y: Tensor, classes: int) -> None:
        x = features.double()
        self.mean, self.scale = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
        counts = torch.bincount(y, minlength=classes).clamp(min=1).double()
        weights = 1 / counts[y]
        weights = weights / weights.sum()
        x = self._standard(features)
        self.weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
        self.bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [self.weight, self.bias], max_iter=ITERATIONS, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            nll = torch.nn.functional.cross_entropy(x @ self.weight.T + self.bias, y, reduction="none")
            loss = (weights * nll).sum() + PENALTY * self.weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]

    def _standard(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) / self.scale

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """Return class indices (n,) of features (n, D)."""
        return (self._standard(features) @ self.weight.T + self.bias).argmax(1)
