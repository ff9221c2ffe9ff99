"""The methods and recipes of ``seqssm compress``. Imports no torch, because help pages read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """Bits of weights and activations.

    Attributes:
        name: name on the command line.
        bits: bits of the weights of most layers; projections to dt, B and C always have 8.
        static: whether activations are 8-bit integers.
        title: description.
    """

    name: str
    bits: int
    static: bool
    title: str


METHODS = {
    "w8a8": Method("w8a8", 8, True, "8-bit weights and activations"),
    "w4a8": Method("w4a8", 4, True, "4-bit weights, 8-bit activations"),
    "w4a16": Method("w4a16", 4, False, "4-bit weights, float activations"),
    "w8a16": Method("w8a16", 8, False, "8-bit weights, float activations"),
    "w1": Method("w1", 1, False, "weights of one bit, of a model trained with --model.binary true"),
}


@dataclass(frozen=True)
class Recipe:
    """The enabled steps of the procedure; all of them by default.

    Attributes:
        fold: whether norm weights are folded into the following projection.
        percentile: whether the scale of the scan's input is chosen among percentiles; otherwise by its largest value.
        rotate: whether the gated output of a scan is rotated by a Hadamard matrix.
        cluster: whether x of Mamba-2's scan has one scale per cluster of heads and channels, B and C one per group.
        gptq: whether 4-bit weights are corrected for the rounding of others; otherwise each is rounded to the nearest.
    """

    fold: bool = True
    percentile: bool = True
    rotate: bool = True
    cluster: bool = True
    gptq: bool = True


RECIPES = {
    "quamba": Recipe(),
    "naive": Recipe(fold=False, percentile=False, rotate=False, cluster=False, gptq=False),
}
"""Named recipes of the command line; ``naive`` is the baseline: scales of the largest values, nearest rounding."""

STATES = ("float", "int8")
"""Formats of the states of scans between calls."""
