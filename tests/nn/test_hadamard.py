"""Hadamard matrices of every supported order, and the rotation by them."""

from __future__ import annotations

import pytest
import torch

from seqssm.nn.hadamard import factors, has_hadamard, matrix, rotate

SIZES = [1, 2, 4, 64, 128, 256, 1024, 12, 24, 96, 20, 160, 28, 224, 40, 80, 384, 2560]


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_orthogonal_signs(size):
    whole = torch.ones(1, 1)
    for part in factors(size):
        assert set(part.unique().tolist()) <= {-1.0, 1.0}
        whole = torch.kron(whole, part)
    assert whole.shape == (size, size)
    assert torch.equal(whole @ whole.T, size * torch.eye(size))


@pytest.mark.parametrize("size", [1, 2, 12, 40, 56, 128, 384])
def test_the_rotation_equals_the_product_with_the_matrix(size):
    x = torch.randn(3, 5, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    torch.testing.assert_close(rotate(x), x @ matrix(size).T, rtol=0, atol=1e-12)
    torch.testing.assert_close(rotate(x).square().sum(-1), x.square().sum(-1))


def test_an_outlier_is_spread():
    x = torch.zeros(128)
    x[17] = 8.0
    assert rotate(x).abs().max() == pytest.approx(8 / 128**0.5)


@pytest.mark.parametrize("size", [0, 3, 36, 44, 100, 192 + 1])
def test_other_sizes_have_none(size):
    assert not has_hadamard(size)
    with pytest.raises(ValueError, match="expected 2\\^k"):
        factors(size)
