"""Values and states in 8 bits with calibrated scales: the input of a scan, and its state between calls."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqssm.nn import integer

MOST_SCALES = 2**20
MOST_GROUPS = 2**8  # of channels: their index is stored in a byte


def to_integers(x: Tensor, inverse: Tensor) -> Tensor:
    """Round x (..., E) times a factor per channel to int8, clipped to -128 to 127.

    Args:
        x: values.
        inverse: reciprocal scale of each channel, (E,).
    """
    return (x * inverse).round_().clamp_(integer.LOWEST, integer.HIGHEST).to(torch.int8)


class Calibrated(nn.Module):
    """Base of the modules with calibrated scales: their dtypes stay, and what was derived from them is not stored.

    Args:
        format: sizes, a dataclass with ``require_valid``.
    """

    def __init__(self, format: Any) -> None:
        super().__init__()
        format.require_valid()
        self.format = format
        self.chosen: tuple[Any, ...] | None = None

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self.format).items())

    def repack(self) -> None:
        """Compute derived values again at the next call: the scales or the device have changed."""
        self.chosen = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move to a device; the dtypes stay."""
        self.repack()
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.repack()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "chosen": None}


@dataclass(frozen=True)
class RoundingFormat:
    """The format of a `RoundedValues`.

    Attributes:
        scales: number of scales, each for neighbouring channels of the last axis; 1 for the whole tensor.
    """

    scales: int = 1

    def require_valid(self) -> None:
        """Raise ValueError for a format that no procedure writes."""
        if type(self.scales) is not int or not 1 <= self.scales <= MOST_SCALES:
            raise ValueError("number of scales")


class RoundedValues(Calibrated):
    """Values rounded to 8-bit integers times a calibrated scale: an input of the scan (Quamba, section 4.1).

    ``chosen`` belongs to `seqssm.nn.integer_scan`.

    Args:
        format: number of scales.
    """

    def __init__(self, format: RoundingFormat) -> None:
        super().__init__(format)
        self.register_buffer("scale", torch.ones(format.scales))

    scale: Tensor

    def scale_of_channels(self, width: int) -> Tensor:
        """Return the scale of each of `width` channels."""
        return self.scale.repeat_interleave(width // self.format.scales)

    def forward(self, x: Tensor) -> Tensor:
        """Round (..., E) to steps of the scale, clipped to -128 to 127 steps; the dtype of `x` stays."""
        scale = self.scale.to(torch.promote_types(x.dtype, torch.float32))
        if self.format.scales > 1:
            scale = scale.repeat_interleave(x.shape[-1] // self.format.scales)
        rounded = (x * scale.reciprocal()).round_().clamp_(integer.LOWEST, integer.HIGHEST)
        return rounded.mul_(scale).to(x.dtype)


@dataclass(frozen=True)
class StateFormat:
    """The format of an `IntegerState`.

    Attributes:
        channels: scanned channels of a route; those of all heads of Mamba-2.
        states: states per channel, N.
        groups: number of groups of channels that share their scales.
    """

    channels: int
    states: int
    groups: int = 1

    def require_valid(self) -> None:
        """Raise ValueError for a format that no procedure writes."""
        sizes = (self.channels, self.states, self.groups)
        if not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError("sizes")
        if self.groups > min(self.channels, MOST_GROUPS):
            raise ValueError("number of groups")


class IntegerState(Calibrated):
    """The state of a scan between two calls in 8 bits: integers times a scale per group of channels and state.

    Quamba2 (arXiv 2503.22879) keeps the states of Mamba-2 so. The scans compute in float32: a state is rounded when a
    call returns it, and nothing is rounded within a call. Routes share the scales.

    Args:
        format: sizes of the state, and number of groups.
    """

    format: StateFormat

    def __init__(self, format: StateFormat) -> None:
        super().__init__(format)
        self.register_buffer("scale", torch.ones(format.groups, format.states))
        self.register_buffer("group", torch.zeros(format.channels, dtype=torch.uint8))

    scale: Tensor  # (groups, states) float32
    group: Tensor  # (channels,) uint8, the group of each channel

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.group.is_meta:
            return
        known = bool((self.group.long() < self.format.groups).all())
        if not known or not bool(((self.scale > 0) & self.scale.isfinite()).all()):
            args[6].append(f"the scales of the state {args[1].rstrip('.')} are corrupt")  # messages of load_state_dict

    def _steps(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale of each element of a state, and its reciprocal, (E, N) or (H, P, N)."""
        sizes = values.shape[2:]
        if sizes.numel() != self.group.numel() * self.scale.shape[1] or sizes[-1] != self.scale.shape[1]:
            wanted = f"{self.format.channels} channels and {self.format.states} states"
            raise ValueError(f"the state of a scan has shape {tuple(values.shape)}, expected {wanted}")
        if self.chosen is None:
            scale = self.scale[self.group.long()]
            self.chosen = scale, scale.reciprocal()
        scale, inverse = self.chosen
        return scale.view(sizes), inverse.view(sizes)

    def encode(self, values: Tensor) -> Tensor:
        """Round a state to int8, clipped to -128 to 127 steps; no gradient passes.

        Args:
            values: (sequences, R, E, N), or (sequences, R, H, P, N) of Mamba-2, float32 or float64.

        Raises:
            ValueError: the sizes are not those of the format.
        """
        return to_integers(values.detach(), self._steps(values)[1])

    def decode(self, values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values of a state.

        Args:
            values: result of `encode`.
            dtype: dtype of the activations; the state is float64 for float64, else float32.

        Raises:
            ValueError: the sizes are not those of the format.
        """
        scale = self._steps(values)[0]
        return values * scale.to(torch.promote_types(dtype, torch.float32))
