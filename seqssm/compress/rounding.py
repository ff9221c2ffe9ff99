"""From float weights to integers: rounding to the nearest, and GPTQ (arXiv 2210.17323), which minimises the error of
the layer's output."""

from __future__ import annotations

import torch
from torch import Tensor

from seqssm.nn.integer import pack_nibbles
from seqssm.nn.quantized import LinearFormat, QuantizedLinear

LARGEST = {8: 127, 4: 7}
SMALLEST = {8: -128, 4: -8}
LARGEST_FACTOR = 15  # of 4-bit weights: 15 * 8 is within 8 bits
GROUPS = (128, 64, 32)  # columns that share a scale of 4-bit weights, if they divide the width
DAMPING = 0.01
BLOCK = 128  # columns of GPTQ whose errors are propagated together


def group_size(width: int) -> int:
    """Return the number of columns that share a scale of 4-bit weights: 128, 64, 32, or all.

    Args:
        width: number of columns.
    """
    return next((size for size in GROUPS if width % size == 0), width)


def scale_of(largest: Tensor, bits: int) -> Tensor:
    """Return the smallest bfloat16 scale that does not clip `largest`; 1 where all weights are 0.

    Args:
        largest: largest absolute weights, float64.
        bits: bits of a weight.
    """
    wanted = largest / LARGEST[bits]
    scale = wanted.to(torch.bfloat16)
    low = scale.double() < wanted
    scale = torch.where(low, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
    return torch.where(largest > 0, scale, torch.ones_like(scale))


def linear(
    weight: Tensor,
    bias: Tensor | None,
    bits: int,
    act_scale: float | None = None,
    rotated: bool = False,
    hessian: Tensor | None = None,
) -> QuantizedLinear:
    """Make a layer with integer weights.

    Args:
        weight: float weights, (out, in); for the rotated input if `rotated`.
        bias: (out,), or None.
        bits: bits of a weight: 8, with a scale per output channel, or 4, with one per group.
        act_scale: scale of 8-bit activations, or None.
        rotated: whether the layer rotates its input.
        hessian: second moments of the inputs, (in, in) float64, for GPTQ; None rounds to the nearest.
    """
    out, width = weight.shape
    groups = width // group_size(width) if bits == 4 else 1
    form = LinearFormat(width, out, bits, groups, act_scale is not None, rotated, bias is not None)
    layer = QuantizedLinear(form)
    values, scale, multiplier = integers(weight, form, hessian)
    layer.integers.copy_(pack_nibbles(values) if bits == 4 else values)
    layer.scale.copy_(scale)
    if layer.multiplier is not None and multiplier is not None:
        layer.multiplier.copy_(multiplier)
    if layer.act_scale is not None and act_scale is not None:
        layer.act_scale.fill_(act_scale)
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(bias.detach())
    return layer.eval()


def integers(weight: Tensor, form: LinearFormat, hessian: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round the weights of a layer.

    Args:
        weight: (out, in).
        form: bits and groups.
        hessian: second moments of the inputs, or None.

    Returns:
        integers (out, in) int8, scales (out, groups or 1) bfloat16, factors of the groups (out, groups) int8 or None.
    """
    w = weight.detach().cpu().double().clone()  # GPTQ changes it
    grouped = w.unflatten(1, (form.groups, -1))
    if form.has_multiplier:
        scale = scale_of(grouped.abs().amax((1, 2), keepdim=True).squeeze(2) / LARGEST_FACTOR, 4)
    else:
        scale = scale_of(grouped.abs().amax(2), form.bits)
    upper = None if hessian is None else inverse_factor(hessian)
    found = torch.zeros_like(w)
    factors = torch.ones(len(w), form.groups, dtype=torch.int8)
    size = form.width // form.groups
    for group in range(form.groups):
        columns = slice(group * size, (group + 1) * size)
        if form.has_multiplier:  # the errors of earlier columns have changed the weights
            needed = (w[:, columns].abs().amax(1) / (LARGEST[4] * scale[:, 0].double())).ceil()
            factors[:, group] = needed.clamp(1, LARGEST_FACTOR).to(torch.int8)
            step = scale[:, 0].double() * factors[:, group]
        else:
            if form.groups > 1:
                scale[:, group] = scale_of(w[:, columns].abs().amax(1), form.bits)
            step = scale[:, group].double()
        for start in range(columns.start, columns.stop, BLOCK):
            _round_block(w, found, step, slice(start, min(start + BLOCK, columns.stop)), upper, form.bits)
    return found.to(torch.int8), scale, factors if form.has_multiplier else None


def _round_block(w: Tensor, found: Tensor, step: Tensor, block: slice, upper: Tensor | None, bits: int) -> None:
    """Round the columns of a block; with GPTQ, correct the following columns for the error (equations 2 and 3)."""
    if upper is None:
        found[:, block] = (w[:, block] / step.unsqueeze(1)).round().clamp(SMALLEST[bits], LARGEST[bits])
        return
    errors = torch.zeros_like(w[:, block])
    for column in range(block.start, block.stop):
        q = (w[:, column] / step).round().clamp(SMALLEST[bits], LARGEST[bits])
        found[:, column] = q
        error = (w[:, column] - q * step) / upper[column, column]
        w[:, column + 1 : block.stop] -= error.unsqueeze(1) * upper[column, column + 1 : block.stop]
        errors[:, column - block.start] = error
    w[:, block.stop :] -= errors @ upper[block, block.stop :]


def inverse_factor(hessian: Tensor) -> Tensor:
    """Return the upper Cholesky factor U of the inverse of the damped second moments, H^-1 = U^T U (section 3.3).

    Channels that are always 0 get a unit diagonal: their weights do not matter.

    Args:
        hessian: (in, in) float64.
    """
    h = hessian.double().clone()
    diagonal = h.diagonal()
    dead = diagonal <= 0
    diagonal[dead] = 1
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True)
