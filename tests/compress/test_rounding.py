"""GPTQ: against its definition column by column, better than rounding to the nearest, deterministic."""

from __future__ import annotations

import pytest
import torch

from seqssm.compress import rounding


def problem(width, out=24, rows=600, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64) @ (mixing + 0.3)
    return torch.randn(out, width, generator=generator, dtype=torch.float64), x


def error(made, weight, x):
    wanted = x @ weight.T
    return float((x @ made.weights().dequantised(torch.float64).T - wanted).square().sum() / wanted.square().sum())


@pytest.mark.parametrize("width", [64, 256, 384])
@pytest.mark.parametrize("act_scale", [None, 0.1])
def test_the_error_of_the_output_is_smaller_than_that_of_rounding(width, act_scale):
    weight, x = problem(width)
    nearest = rounding.linear(weight, None, 4, act_scale)
    corrected = rounding.linear(weight, None, 4, act_scale, hessian=x.T @ x)
    assert error(corrected, weight, x) < 0.5 * error(nearest, weight, x)


def test_columns_are_corrected_one_after_the_other():
    """The definition: after each column, the others take the values that minimise the output's error (equation 2)."""
    weight, x = problem(32, out=3)
    made = rounding.linear(weight, None, 4, hessian=x.T @ x)
    h = x.T @ x
    h += rounding.DAMPING * h.diagonal().mean() * torch.eye(32, dtype=torch.float64)
    step = made.weights().scale.double()[:, 0]
    w = weight.clone()
    found = torch.zeros_like(w)
    for column in range(32):
        inverse = torch.linalg.inv(h[column:, column:])
        found[:, column] = (w[:, column] / step).round().clamp(-8, 7)
        change = (w[:, column] - found[:, column] * step) / inverse[0, 0]
        w[:, column:] -= change[:, None] * inverse[0]
    assert torch.equal(made.weights().values.double(), found)


def test_rounding_is_deterministic():
    weight, x = problem(256)
    first, second = (rounding.linear(weight, None, 4, hessian=x.T @ x) for _ in range(2))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_channels_that_are_always_zero_are_harmless():
    weight, x = problem(64)
    x[:, 5] = 0
    made = rounding.linear(weight, None, 4, hessian=x.T @ x)
    assert error(made, weight, x) < 0.05


def test_scales_are_rounded_up():
    largest = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 10
    for bits in (4, 8):
        scale = rounding.scale_of(largest, bits).double()
        assert (scale * rounding.LARGEST[bits] >= largest).all()
        assert (scale * rounding.LARGEST[bits] <= largest * (1 + 2**-7)).all()


@pytest.mark.parametrize(("width", "size"), [(512, 128), (384, 128), (64, 64), (96, 32), (20, 20), (192, 64)])
def test_groups_of_4_bit_weights(width, size):
    assert rounding.group_size(width) == size
