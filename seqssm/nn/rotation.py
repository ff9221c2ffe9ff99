"""Rotation of pairs of states by angles, for the B and C of Mamba-3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotate(B: Tensor, C: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the first pairs (2i, 2i + 1) of the states of B and C by the same angles.

    The pairs are multiplied as complex numbers; gradients are computed from the results, so that B and C are not kept.

    Args:
        B: values (..., N), float32 or float64.
        C: likewise.
        angle: angles (..., S) in radians, 2 S <= N, of the dtype of B.

    Returns:
        The rotated B and C.
    """
    if angle.shape[-1] == 0:
        return B, C
    graph = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    if graph or B.shape[-1] % 2:  # complex numbers are not exported, nor views of rows of odd length
        cos, sin = torch.cos(angle), torch.sin(angle)
        return rotated(B, cos, sin), rotated(C, cos, sin)
    return _Rotation.apply(B, C, angle)


def rotated(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first pairs of (..., N), written out.

    Args:
        values: values (..., N).
        cos: cosines (..., S) of the angles.
        sin: sines likewise.
    """
    turning = 2 * cos.shape[-1]
    first, second = values[..., 0:turning:2], values[..., 1:turning:2]
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)
    return torch.cat([turned, values[..., turning:]], dim=-1)


def _pairs(values: Tensor, count: int) -> Tensor:
    """The first `count` pairs of (..., N) as a view of complex numbers (..., count)."""
    return torch.view_as_complex(values[..., : 2 * count].unflatten(-1, (count, 2)))


def _turned(values: Tensor, factor: Tensor) -> Tensor:
    """Multiply the first pairs of (..., N) by complex factors (..., S)."""
    count = factor.shape[-1]
    out = torch.empty_like(values, memory_format=torch.contiguous_format)
    torch.mul(_pairs(values, count), factor, out=_pairs(out, count))
    out[..., 2 * count :] = values[..., 2 * count :]
    return out


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, B: Tensor, C: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        factor = torch.complex(torch.cos(angle), torch.sin(angle))
        results = _turned(B.contiguous(), factor), _turned(C.contiguous(), factor)
        ctx.save_for_backward(factor, *results)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor, *results = ctx.saved_tensors
        count = factor.shape[-1]
        back = torch.conj_physical(factor)
        found: list[Tensor | None] = []
        turning = torch.zeros_like(factor.real)  # d out / d angle = i out
        for result, gradient in zip(results, gradients):
            gradient = gradient.contiguous()
            found.append(_turned(gradient, back))
            turning.addcmul_(result[..., 0 : 2 * count : 2], gradient[..., 1 : 2 * count : 2])
            turning.addcmul_(result[..., 1 : 2 * count : 2], gradient[..., 0 : 2 * count : 2], value=-1)
        return *found, turning
