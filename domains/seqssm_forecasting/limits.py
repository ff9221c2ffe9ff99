"""Kinds of the outputs: non-negative and integer values, a log transform, and bounds per series in the file's units."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from seqssm.errors import InputError, nearest
from seqssm_forecasting.series import Series, listed

Kind = Literal["real", "nonnegative", "integer", "log1p"]
KINDS = ("real", "nonnegative", "integer", "log1p")


@dataclass(frozen=True)
class Limits:
    """Transform of the forecasts after scaling back; stored in checkpoints by its name and rules.

    Attributes:
        kind: ``real``; ``nonnegative``: at least 0; ``integer``: whole numbers (counts), at least 0; ``log1p``: the
            model reads and forecasts log(1 + value), so that forecasts are at least 0 and intervals are asymmetric.
        rules: bounds, ``LOW:HIGH`` for all series or ``NAME=LOW:HIGH``, either bound possibly empty; a rule with a name
            replaces the one for all series.

    Raises:
        InputError: an unknown kind, a rule that is not of this form, or two rules for one series.
    """

    kind: str = "real"
    rules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"--data.values {self.kind}: expected one of {', '.join(KINDS)}")
        names = [parse(rule)[0] for rule in self.rules]
        if twice := [name for name in names if names.count(name) > 1]:
            words = f"{twice[0]} has" if twice[0] is not None else "all series have"
            raise InputError(f"--clip: {words} two rules; join them to one, LOW:HIGH")

    @staticmethod
    def of(kept: dict[str, Any] | None, clip: str | Sequence[str] | None = None) -> Limits:
        """Make the limits of a checkpoint's entry, with the rules replaced by `clip` if given."""
        kept = kept or {}
        stored = {parse(rule)[0]: rule for rule in kept.get("clip") or []}  # earlier versions used the last of several
        rules = stored.values() if clip is None else [clip] if isinstance(clip, str) else clip
        return Limits(str(kept.get("values", "real")), tuple(str(rule) for rule in rules))

    def to_dict(self) -> dict[str, Any]:
        """Return the checkpoint's entry."""
        return {"values": self.kind, "clip": list(self.rules)}

    @property
    def inverse(self) -> Callable[[Tensor], Tensor] | None:
        """Function from the values of the model, unscaled, to the file's units; None if they are equal."""
        return torch.expm1 if self.kind == "log1p" else None

    def to_model(self, values: np.ndarray) -> np.ndarray:
        """Transform values in the file's units to those of the model, before scaling; NaN stays."""
        return np.log1p(values) if self.kind == "log1p" else values

    def to_units(self, values: np.ndarray) -> np.ndarray:
        """Invert `to_model`."""
        return np.expm1(values) if self.kind == "log1p" else values

    def transformed(self, series: Series) -> Series:
        """Transform a series to the values of the model.

        Raises:
            InputError: a logarithm of a negative value.
        """
        if self.kind != "log1p":
            return series
        negative = (series.values < 0).any(0)
        if negative.any():
            names = [name for name, one in zip(series.columns, negative) if one]
            row = int((series.values < 0).any(1).argmax())
            words = f"negative values in {listed(names)}; --data.values log1p needs values of at least 0"
            raise InputError(words, file=series.path, place=series.place(row))
        return replace(series, values=self.to_model(series.values))

    def within(self, values: np.ndarray, names: Sequence[str], known: Sequence[str]) -> np.ndarray:
        """Limit values of the model, unscaled, (windows, outputs, steps), to the bounds, without rounding.

        Args:
            values: the values.
            names: names of the outputs.
            known: names that the rules may have.
        """
        low, high = (self.to_model(bound)[:, None] for bound in self.bounds(names, known))
        return np.clip(values, low, high)

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
        """Transform values of the model, unscaled, to the file's units, and limit them.

        Args:
            values: (windows, parts, outputs, steps); NaN stays.
            names: names of the outputs.
            sides: of each part: -1 for a lower bound of an interval, 1 for an upper one, 0 for a forecast. Integers are
                rounded outwards, down or up, or to the nearest one.
            known: names that the rules may have.
        """
        low, high = self.bounds(names, known)
        if self.kind == "integer":  # whole numbers stay within the bounds
            low, high = np.ceil(low), np.floor(high)
        values = np.clip(self.to_units(values), low[:, None], high[:, None])
        return np.stack([self.rounded(values[:, part], side) for part, side in enumerate(sides)], 1)

    def rounded(self, values: np.ndarray, side: int) -> np.ndarray:
        """Round values in the file's units, if they are whole numbers.

        Args:
            values: forecasts, or bounds of intervals.
            side: as in `apply`.
        """
        if self.kind != "integer":
            return values
        return {-1: np.floor, 0: np.rint, 1: np.ceil}[side](values)

    def clamp(self, scaled: Tensor, names: Sequence[str], mean: Tensor, std: Tensor) -> Tensor:
        """Limit scaled values (B, N, T) or (B, N, T, Q) to the bounds, without rounding."""
        if self.kind == "real" and not self.rules:
            return scaled
        found = [(torch.from_numpy(self.to_model(bound)) - mean) / std for bound in self.bounds(names)]
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
