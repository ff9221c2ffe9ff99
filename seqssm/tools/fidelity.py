"""How much of an earlier token, or of another layer, a linear decoder recovers from a state.

The measures are ours, after those that MemMamba (arXiv 2510.03279) describes: ETMF across time, ECLMF across layers.
Decoders are ridge regressions fitted on one half of the samples and measured on the other one. The penalty is chosen on
the first half by generalised cross-validation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PENALTIES = tuple(10.0**power for power in range(-6, 4))  # relative to the mean square of a sample's features
MINIMUM = 16  # samples
SKETCH = 64  # width of the random projection of a target state


def decoded(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Decode targets from features of held-out samples.

    Args:
        features: (n, F), in the order of the records; the first half is used to fit.
        targets: (n, D).

    Returns:
        (decoded targets, true targets) of the second half, both minus the mean of the first half, float64.

    Raises:
        ValueError: fewer than `MINIMUM` samples.
    """
    count = len(features)
    if count < MINIMUM:
        raise ValueError(f"{count} samples; a decoder needs at least {MINIMUM}")
    half = count // 2
    x, y = features.double(), targets.double()
    mean, target_mean = x[:half].mean(0), y[:half].mean(0)
    x, y = x - mean, y - target_mean
    gram = x[:half] @ x[:half].T
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=0)
    rotated = vectors.T @ y[:half]
    scale = float(values.mean()) or 1.0
    best, chosen = None, PENALTIES[-1] * scale
    for penalty in (one * scale for one in PENALTIES):
        kept = penalty / (values + penalty)  # fraction of each component that is not explained
        error = float((kept.unsqueeze(1) * rotated).square().sum() / kept.sum().square().clamp(min=1e-300))
        if best is None or error < best:
            best, chosen = error, penalty
    weights = vectors @ (rotated / (values + chosen).unsqueeze(1))
    return x[half:] @ (x[:half].T @ weights), y[half:]


def etmf(states: Tensor, tokens: Tensor) -> float:
    """Compute the mean cosine between earlier tokens and their reconstruction from the state: 1 kept, 0 lost.

    Args:
        states: state of each sample, (n, F).
        tokens: the earlier token of each sample, (n, D). The mean token is subtracted.
    """
    found, wanted = decoded(states, tokens)
    return float(F.cosine_similarity(found, wanted, dim=1).mean())


def eclmf(states: Tensor, later: Tensor) -> float:
    """Compute the fraction of the variance of a layer's state that the state of a later layer explains, in [0, 1].

    Args:
        states: states of the layer, (n, F); their random projection to `SKETCH` numbers is decoded, which keeps
            squared distances in expectation.
        later: states of the later layer at the same positions, (n, G).
    """
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn(states.shape[1], SKETCH, generator=generator, dtype=torch.float64)
    found, wanted = decoded(later, states.double() @ sketch)
    total = float(wanted.square().sum())
    return max(0.0, 1 - float((found - wanted).square().sum()) / total) if total > 0 else 0.0
