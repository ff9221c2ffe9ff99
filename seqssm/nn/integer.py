"""Products with integer weights: the kernels of PyTorch that can be used, and which of them is right on this machine.

Some kernels give wrong results on some processors without an error: sums of two products of 8-bit numbers saturate at
16 bits where there are no instructions for neural networks (VNNI). Every kernel is therefore compared with exact
arithmetic on extreme values before it is used, and the next one is taken if it differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SMALL_BATCH = 16  # rows up to which kernels for integer weights beat an ordinary product
LOWEST, HIGHEST = -128, 127
PACKED_GROUPS = (32, 64, 128, 256)  # group sizes of PyTorch's kernel for 4-bit weights


@dataclass
class Weights:
    """The integers of a linear layer.

    Attributes:
        stored: (out, in) int8, or (out, ceil(in / 2)) uint8 with two 4-bit numbers a byte, see `pack_nibbles`.
        width: number of columns, in.
        scale: (out, groups) float32, each for in / groups neighbouring columns.
        bits: 8 or 4, bits of a stored number.
        multiplier: (out, groups) int8 for 4-bit weights that become 8-bit ones: each group's factor; else None.
        act_scale: scale of 8-bit activations; None for float activations.
    """

    stored: Tensor
    width: int
    scale: Tensor
    bits: int = 8
    multiplier: Tensor | None = None
    act_scale: float | None = None

    @property
    def values(self) -> Tensor:
        """Integers of the product, (out, in) int8; unpacked at each call where they are stored in 4 bits."""
        if self.bits == 8:
            return self.stored
        values = unpack_nibbles(self.stored, self.width)
        if self.multiplier is None:
            return values
        grouped = values.unflatten(1, (self.multiplier.shape[1], -1))
        return (grouped * self.multiplier.unsqueeze(-1)).flatten(1)

    @property
    def group(self) -> int:
        """Number of columns that share a scale."""
        return self.width // self.scale.shape[1]

    def dequantised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weights, (out, in).

        Args:
            dtype: dtype of the result.
        """
        grouped = self.values.to(dtype).unflatten(1, (self.scale.shape[1], -1))
        return (grouped * self.scale.to(dtype).unsqueeze(-1)).flatten(1)


def pack_nibbles(values: Tensor) -> Tensor:
    """Store integers from -8 to 7 in 4 bits each: column 2 i in the low half of byte i, column 2 i + 1 in the high one.

    Args:
        values: (out, in) integers.

    Returns:
        (out, ceil(in / 2)) uint8.
    """
    shifted = F.pad((values.to(torch.int16) + 8), (0, values.shape[1] % 2)).to(torch.uint8)
    return shifted[:, ::2] | (shifted[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor, width: int) -> Tensor:
    """Undo `pack_nibbles`.

    Args:
        packed: (out, ceil(width / 2)) uint8.
        width: number of columns.

    Returns:
        (out, width) int8.
    """
    both = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)[:, :width]
    return both.to(torch.int8) - 8


def quantise(x: Tensor, scale: float) -> Tensor:
    """Round x / scale to integers from -128 to 127, in the dtype of `x`.

    Args:
        x: values of any shape; or these integers, int8, which are returned in float32.
        scale: size of a step.
    """
    if x.dtype == torch.int8:
        return x.float()
    return x.mul(1 / scale).round_().clamp_(LOWEST, HIGHEST)


def exact(weights: Weights, x: Tensor) -> Tensor:
    """Compute the product in float64 without rounding: what every route has to give.

    Args:
        weights: integers of the layer.
        x: activations, (M, in).

    Returns:
        (M, out) float64.
    """
    values = x.double()
    if weights.act_scale is not None:
        values = quantise(values, weights.act_scale) * weights.act_scale
    return F.linear(values, weights.dequantised(torch.float64))


@dataclass(frozen=True)
class Route:
    """One way to compute the product.

    Attributes:
        name: short name, shown by ``seqssm info``.
        title: description, shown by ``seqssm info``.
        serves: whether the route takes these weights on this device.
        pack: prepares the weights once.
        apply: (packed, weights, x (M, in) float32, or the int8 integers of static activations) to (M, out) float32.
        tolerance: largest error relative to the largest output: rounding of the output.
    """

    name: str
    title: str
    serves: Callable[[Weights], bool]
    pack: Callable[[Weights], Any]
    apply: Callable[[Any, Weights, Tensor], Tensor]
    tolerance: float


# -- the routes --------------------------------------------------------------------------------------------------------


def _on_cpu(weights: Weights) -> bool:
    return weights.stored.device.type == "cpu"


def _is_static(weights: Weights) -> bool:
    return weights.act_scale is not None and weights.scale.shape[1] == 1


def _pack_onednn(weights: Weights) -> Tensor:
    return torch.ops.onednn.qlinear_prepack(weights.values.contiguous(), None)


def _apply_onednn(packed: Tensor, weights: Weights, x: Tensor) -> Tensor:
    assert weights.act_scale is not None
    if x.dtype == torch.int8:
        shifted = x.view(torch.uint8) ^ 128  # x + 128
    else:
        shifted = quantise(x, weights.act_scale).add_(128).to(torch.uint8)
    out, scale = len(weights.scale), weights.scale.flatten()
    return torch.ops.onednn.qlinear_pointwise(
        shifted,
        weights.act_scale,
        128,
        packed,
        scale,
        torch.zeros(out, dtype=torch.int8),
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )


def _apply_int_mm(packed: Tensor, weights: Weights, x: Tensor) -> Tensor:
    assert weights.act_scale is not None
    sums = torch._int_mm(quantise(x, weights.act_scale).to(torch.int8), packed)
    return sums * (weights.scale.T * weights.act_scale)


def _pack_int8(weights: Weights) -> tuple[Tensor, Tensor]:
    return weights.values.contiguous(), weights.scale.flatten().bfloat16()


def _apply_int8pack(packed: tuple[Tensor, Tensor], weights: Weights, x: Tensor) -> Tensor:
    """Integers up to 256 are exact in bfloat16, so that 8-bit activations lose nothing before the sum."""
    if len(x) >= SMALL_BATCH:
        return _apply_float(None, weights, x)
    if weights.act_scale is None:
        return torch._weight_int8pack_mm(x.bfloat16(), *packed).float()
    taken = quantise(x, weights.act_scale).bfloat16()
    return torch._weight_int8pack_mm(taken, *packed).float() * weights.act_scale


def _pack_int4(weights: Weights) -> tuple[Tensor, Tensor]:
    shifted = (weights.values.int() + 8).contiguous()  # 0..15; the kernel subtracts 8
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(shifted, 1)
    scale = weights.scale.T.bfloat16()
    return packed, torch.stack([scale, torch.zeros_like(scale)], dim=-1).contiguous()


def _apply_int4pack(packed: tuple[Tensor, Tensor], weights: Weights, x: Tensor) -> Tensor:
    if len(x) >= SMALL_BATCH:
        return _apply_float(None, weights, x)
    rows, scales = packed
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x.bfloat16(), rows, weights.group, scales).float()


def _apply_float(packed: Any, weights: Weights, x: Tensor) -> Tensor:
    """Multiply in float32, in which sums of 8-bit products up to 2^24 are exact."""
    if weights.act_scale is None:
        return F.linear(x, weights.dequantised())
    taken = quantise(x, weights.act_scale)
    if weights.scale.shape[1] == 1:
        return F.linear(taken, weights.values.float()) * (weights.scale.T * weights.act_scale)
    return F.linear(taken * weights.act_scale, weights.dequantised())


ROUTES = (
    Route(
        "onednn-u8",
        "oneDNN integer product with unsigned 8-bit activations",
        lambda weights: _on_cpu(weights) and _is_static(weights),
        _pack_onednn,
        _apply_onednn,
        1e-5,
    ),
    Route(
        "int8-weights",
        "8-bit weights, bfloat16 kernel for up to 15 rows; float32 for more",
        lambda weights: _on_cpu(weights) and weights.scale.shape[1] == 1 and weights.width % 16 == 0,
        _pack_int8,
        _apply_int8pack,
        2.0**-7,
    ),
    Route(
        "int4-weights",
        "4-bit weights in groups, bfloat16 kernel for up to 15 rows; float32 for more",
        lambda weights: (
            _on_cpu(weights)
            and weights.act_scale is None
            and weights.bits == 4
            and weights.group in PACKED_GROUPS
            and len(weights.stored) % 16 == 0
        ),
        _pack_int4,
        _apply_int4pack,
        2.0**-6,
    ),
    Route("float32", "float32 product with the same integers", lambda _: True, lambda _: None, _apply_float, 1e-5),
)
"""In order of preference; the last one always works."""


# -- the choice --------------------------------------------------------------------------------------------------------


def agrees(route: Route, weights: Weights, packed: Any, x: Tensor) -> bool:
    """Whether a route gives the exact product within its rounding.

    Args:
        route: the route.
        weights: integers of a layer.
        packed: result of the route's `pack`.
        x: activations, (M, in) float32.
    """
    try:
        found = route.apply(packed, weights, x)
    except (RuntimeError, NotImplementedError, AttributeError):
        return False  # a kernel that this build or processor lacks
    wanted = exact(weights, x)
    return bool((found.double() - wanted).abs().max() <= route.tolerance * wanted.abs().max().clamp(min=1e-30))


def extreme_inputs(weights: Weights) -> Tensor:
    """Make activations with the largest sums: both ends of the range with the signs of the largest rows, and a ramp.

    Args:
        weights: integers of a layer.

    Returns:
        (5, in) float32.
    """
    scale = 1.0 if weights.act_scale is None else weights.act_scale
    values = weights.values
    rows = values[values.float().abs().sum(1).topk(min(2, len(values))).indices].float()
    signs = torch.where(rows[[0, -1]] >= 0, 1.0, -1.0)
    high = torch.where(signs > 0, float(HIGHEST), float(LOWEST))
    low = torch.where(signs > 0, float(LOWEST), float(HIGHEST))
    ramp = torch.linspace(LOWEST, HIGHEST, weights.width, device=values.device).round().unsqueeze(0)
    return torch.cat([high, low, ramp]) * scale


@cache
def is_sound(name: str, bits: int, static: bool, device: str) -> bool:
    """Whether a route is exact on this machine for a layer of extreme weights; determined once per process.

    Args:
        name: the route.
        bits: bits of a weight.
        static: whether activations are 8-bit integers.
        device: type of the device.
    """
    route = next(route for route in ROUTES if route.name == name)
    top = 127 if bits == 8 or static else 7
    values = torch.full((32, 128), top, dtype=torch.int8, device=device)
    values[1::2] = -top
    values[2::4, ::2] = -top
    nibbles = bits == 4 and not static
    scale = torch.full((32, 4 if nibbles else 1), 2.0**-7, device=device)
    stored = pack_nibbles(values) if nibbles else values
    weights = Weights(stored, 128, scale, 4 if nibbles else 8, None, 2.0**-5 if static else None)
    if not route.serves(weights):
        return True
    try:
        packed = route.pack(weights)
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    few = extreme_inputs(weights)
    return all(agrees(route, weights, packed, x) for x in (few[:1], few, few.repeat(5, 1)))


def choose(weights: Weights) -> tuple[Route, Any]:
    """Return the first route that is right on this machine and for these weights, and its packed weights.

    Args:
        weights: integers of a layer.
    """
    device, static = weights.stored.device.type, weights.act_scale is not None
    inputs = extreme_inputs(weights)
    for route in ROUTES[:-1]:
        if route.serves(weights) and is_sound(route.name, weights.bits, static, device):
            packed = route.pack(weights)
            if agrees(route, weights, packed, inputs):
                return route, packed
    return ROUTES[-1], None
