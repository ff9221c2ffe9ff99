"""Limits of the outputs: non-negative and integer values, and bounds per series, in the file's units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from seqssm.errors import InputError, nearest

Kind = Literal["real", "nonnegative", "integer"]
KINDS = ("real", "nonnegative", "integer")


@dataclass(frozen=True)
class Limits:
    """Transform of the forecasts after scaling back; stored in checkpoints by its name and rules.

    Attributes:
        kind: ``real``; ``nonnegative``: at least 0; ``integer``: whole numbers (counts), at least 0.
        rules: bounds, ``LOW:HIGH`` for all series or ``NAME=LOW:HIGH``, either bound possibly empty; a rule with a name
            replaces the one for all series.

    Raises:
        InputError: an unknown kind, or a rule that is not of this form.
    """

    kind: str = "real"
    rules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"--data.values {self.kind}: expected one of {', '.join(KINDS)}")
        for rule in self.rules:
            parse(rule)

    @staticmethod
    def of(kept: dict[str, Any] | None, clip: str | Sequence[str] | None = None) -> Limits:
        """Make the limits of a checkpoint's entry, with the rules replaced by `clip` if given."""
        kept = kept or {}
        rules = kept.get("clip") or [] if clip is None else [clip] if isinstance(clip, str) else clip
        return Limits(str(kept.get("values", "real")), tuple(str(rule) for rule in rules))

    def to_dict(self) -> dict[str, Any]:
        """Return the checkpoint's entry."""
        return {"values": self.kind, "clip": list(self.rules)}

    def bounds(self, names: Sequence[str], known: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and upper bound of each series, (N,) each, infinite where there is none.

        Args:
            names: names of the series.
            known: all names that a rule may have; `names` by default.

        Raises:
            InputError: a rule names another series.
        """
        parsed = [parse(rule) for rule in self.rules]
        for name, _, _ in parsed:
            if name is not None and name not in (known or names):
                raise InputError(f"--clip {name}: no such series{nearest(name, known or names)}")
        floor = -math.inf if self.kind == "real" else 0.0
        low, high = np.full(len(names), floor), np.full(len(names), math.inf)
        for name, least, most in sorted(parsed, key=lambda rule: rule[0] is not None):
            for position, own in enumerate(names):
                if name in (None, own):
                    low[position], high[position] = max(floor, least), most
        return low, high

    def apply(self, values: np.ndarray, names: Sequence[str], sides: Sequence[int], known: Sequence[str]) -> np.ndarray:
        """Limit values in the file's units.

        Args:
            values: (windows, parts, outputs, steps); NaN stays.
            names: names of the outputs.
            sides: of each part: -1 for a lower bound of an interval, 1 for an upper one, 0 for a forecast. Integers are
                rounded outwards, down or up, or to the nearest one.
            known: names that the rules may have.
        """
        low, high = self.bounds(names, known)
        values = np.clip(values, low[:, None], high[:, None])
        if self.kind != "integer":
            return values
        rounded = {-1: np.floor, 0: np.rint, 1: np.ceil}
        return np.stack([rounded[side](values[:, part]) for part, side in enumerate(sides)], 1)

    def clamp(self, scaled: Tensor, names: Sequence[str], mean: Tensor, std: Tensor) -> Tensor:
        """Limit scaled values (B, N, T) or (B, N, T, Q) to the bounds, without rounding."""
        if self.kind == "real" and not self.rules:
            return scaled
        found = [(torch.from_numpy(bound) - mean) / std for bound in self.bounds(names)]
        shape = (-1, *[1] * (scaled.ndim - 2))
        low, high = (bound.to(scaled.dtype).to(scaled.device).reshape(shape) for bound in found)
        return scaled.clamp(low, high)


def parse(rule: str) -> tuple[str | None, float, float]:
    """Parse ``LOW:HIGH`` or ``NAME=LOW:HIGH``: (name or None, low, high)."""
    name, equals, span = str(rule).rpartition("=")
    low, colon, high = span.partition(":")
    try:
        least = float(low) if low.strip() else -math.inf
        most = float(high) if high.strip() else math.inf
    except ValueError:
        least = most = math.nan
    if not colon or not least < most:
        raise InputError(f"--clip {rule}: expected LOW:HIGH or NAME=LOW:HIGH, e.g. 0: or load=0:100")
    return (name if equals else None), least, most
