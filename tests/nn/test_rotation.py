"""Rotation of B and C: against the formula written out, with gradients."""

from __future__ import annotations

import pytest
import torch

from seqssm.nn.rotation import rotate, rotated


@pytest.fixture
def operands():
    generator = torch.Generator().manual_seed(0)

    def make(states, angles, dtype=torch.float64):
        shapes = ((2, 5, 1, 3, states), (2, 5, 1, 3, states), (2, 5, 1, 3, angles))
        return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]

    return make


@pytest.mark.parametrize(("states", "angles"), [(8, 4), (8, 2), (8, 1), (6, 3), (7, 2), (7, 3), (4, 0)])
def test_rotation_is_the_formula(operands, states, angles):
    B, C, angle = operands(states, angles)
    found, expected = rotate(B, C, angle), [rotated(one, angle.cos(), angle.sin()) for one in (B, C)]
    weights = torch.randn_like(B), torch.randn_like(B)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)
    wanted = torch.autograd.grad(sum((w * one).sum() for w, one in zip(weights, expected)), [B, C, angle])
    given = torch.autograd.grad(
        sum((w * one).sum() for w, one in zip(weights, found)), [B, C, angle], allow_unused=angles == 0
    )
    for one, other in zip(given, wanted):
        torch.testing.assert_close(torch.zeros_like(other) if one is None else one, other, rtol=0, atol=1e-14)


def test_one_result_is_used(operands):
    B, C, angle = operands(8, 3)
    assert torch.autograd.gradcheck(lambda *given: rotate(*given)[1], (B, C, angle))


def test_values_of_a_view_are_rotated(operands):
    B, C, angle = operands(8, 3, torch.float32)
    turned = rotate(B.transpose(0, 1), C.transpose(0, 1), angle.transpose(0, 1))
    torch.testing.assert_close(turned[0], rotate(B, C, angle)[0].transpose(0, 1))


def test_products_of_equally_rotated_values_stay(operands):
    """B . C does not depend on a common angle."""
    B, C, angle = operands(8, 4)
    left, right = rotate(B, C, angle)
    torch.testing.assert_close((left * right).sum(-1), (B * C).sum(-1))
