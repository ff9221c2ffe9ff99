"""Statistics of the activations of a float network on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from seqssm.errors import InputError
from seqssm.nn.hadamard import has_hadamard, rotate
from seqssm.nn.projections import Target, rounded_scans

PERCENTILES = (1.0, 0.99999, 0.9999, 0.999)
"""Candidates for the fraction of the scan's input that is not clipped."""
MOMENTUM = 0.01  # of the moving average of percentiles over samples (Quamba)


@dataclass
class Statistics:
    """Statistics of one activation tensor.

    Attributes:
        largest: largest absolute value.
        rotated: largest absolute value after the Hadamard rotation; None without such a matrix or request.
        channels: largest absolute value per channel of the last axis.
        means: per channel, the largest mean absolute value of a sample.
        percentiles: candidate -> moving average of the quantile of a sample's absolute values; if requested.
        moments: second moments sum x x^T of the inputs, (in, in) float64; if requested.
        samples: number of samples (first axis).
        finite: whether all values were finite.
    """

    largest: float = 0.0
    rotated: float | None = None
    channels: Tensor | None = None
    means: Tensor | None = None
    percentiles: dict[float, float] = field(default_factory=dict)
    moments: Tensor | None = None
    samples: int = 0
    finite: bool = True

    def update(self, x: Tensor, rotation: bool, percentiles: Sequence[float], moments: bool) -> None:
        """Add the values of one call, (B, ..., channels); the other arguments select the statistics."""
        if x.numel() == 0:
            return
        size = x.detach().float().abs()
        flat = size.flatten(0, -2)
        self.samples += len(x)
        self.finite = self.finite and bool(torch.isfinite(flat).all())
        self.channels = _larger(self.channels, flat.amax(0))
        self.means = _larger(self.means, size.flatten(1, -2).mean(1).amax(0) if x.ndim > 2 else flat.amax(0))
        self.largest = max(self.largest, float(flat.max()))
        if rotation and has_hadamard(x.shape[-1]):
            self.rotated = max(self.rotated or 0.0, float(rotate(x.detach().float()).abs().max()))
        for sample in size.flatten(1) if percentiles else ():
            for p in percentiles:
                rank = min(max(int(p * sample.numel() + 0.999999), 1), sample.numel())
                value = float(sample.kthvalue(rank).values)
                before = self.percentiles.get(p)
                self.percentiles[p] = value if before is None else before + MOMENTUM * (value - before)
        if moments:
            rows = x.detach().flatten(0, -2).double()
            product = rows.T @ rows
            self.moments = product if self.moments is None else self.moments + product


def _larger(before: Tensor | None, now: Tensor) -> Tensor:
    return now.clone() if before is None else torch.maximum(before, now)


def observe(
    network: nn.Module, targets: Iterable[Target], run: Callable[[], Any], rotation: bool, moments: bool
) -> dict[str, Statistics]:
    """Run a network and collect statistics of the inputs of linear layers and of the inputs of scans.

    Args:
        network: the float network.
        targets: linear layers.
        run: runs the network over the calibration data.
        rotation: whether inputs of the last projection of a scan are also measured after rotation.
        moments: whether second moments of the inputs are collected.

    Returns:
        Statistics by the name of the module whose input they describe; ``<scan>.scan_x``, ``scan_b`` and ``scan_c`` for
        the inputs of scans. Modules that were not called are absent.

    Raises:
        InputError: a value is not finite.
    """
    found: dict[str, Statistics] = {}
    handles = []

    def watch(name: str, module: nn.Module, rotation: bool, percentiles: Sequence[float], moments: bool) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found.setdefault(name, Statistics()).update(inputs[0], rotation, percentiles, moments)

        handles.append(module.register_forward_pre_hook(hook))

    for target in targets:
        watch(target.name, target.module, rotation and target.role == "out", (), moments and target.role != "dt")
    for name, mixer in rounded_scans(network).items():
        prefix = f"{name}." if name else ""
        watch(f"{prefix}scan_x", mixer.scan_x, False, PERCENTILES, False)
        watch(f"{prefix}scan_b", mixer.scan_b, False, (), False)
        watch(f"{prefix}scan_c", mixer.scan_c, False, (), False)
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if not all(one.finite for one in found.values()):
        raise InputError(
            "calibration: the network overflows on a record, whose values are too large or not finite; leave it out "
            "(seqssm predict reports such records)"
        )
    return found
