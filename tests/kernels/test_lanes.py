"""The 16-lane vector type: conversions, partial rows, and the elementary functions at every kind of argument."""

from __future__ import annotations

import pytest
import torch
from numba import njit
from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu import tiles
from seqssm_kernels.cpu.lanes import BFLOAT16, FLOAT16, FLOAT32

KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}


@njit
def _apply(source, target, count, function):
    for i in range(0, count, 16):
        part = min(16, count - i)
        value = v.load(source + 4 * i, 0, part)
        if function == 0:
            value = v.exp2(value)
        elif function == 1:
            value = v.softplus(value)
        else:
            value = v.sigmoid(value)
        v.store(target + 4 * i, 0, part, value)


@njit
def _convert(source, target, count, from_kind, to_kind, from_size, to_size):
    for i in range(0, count, 16):
        part = min(16, count - i)
        v.store(target + to_size * i, to_kind, part, v.load(source + from_size * i, from_kind, part))


@njit
def _sum_lanes(source, target):
    tiles.sum_lanes(source, target)


@pytest.mark.parametrize(
    ("number", "oracle", "worst"),
    [(0, torch.exp2, 3e-7), (1, torch.nn.functional.softplus, 2e-6), (2, torch.sigmoid, 2e-6)],
    ids=["exp2", "softplus", "sigmoid"],
)
def test_elementary_functions_have_small_relative_error(number, oracle, worst):
    x = torch.cat(
        [torch.linspace(-87, 127, 40001), torch.linspace(-2, 2, 10001), torch.tensor([0.0, -0.0, 20.0, 1e-30])]
    )
    y = torch.full_like(x, torch.nan)
    _apply(x.data_ptr(), y.data_ptr(), x.numel(), number)
    expected = oracle(x.double())
    seen = expected > 1e-37
    assert ((y.double() - expected) / expected)[seen].abs().max() < worst


def test_special_arguments():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([nan, inf, -inf, 128.0, 127.75, -126.0, -1000.0, 0.0])
    y = torch.empty_like(x)
    _apply(x.data_ptr(), y.data_ptr(), x.numel(), 0)
    assert y[0].isnan()
    assert y[1] == y[3] == inf
    assert 2.8e38 < y[4] < 2.9e38
    assert (y[[2, 5, 6]] == 2.0**-126).all()
    assert y[7] == 1.0
    payload = torch.tensor([0x7F800001, -4194303], dtype=torch.int32).view(torch.float32)  # NaNs with low bits set
    _apply(payload.data_ptr(), y.data_ptr(), 2, 0)
    assert y[:2].isnan().all()
    _apply(x.data_ptr(), y.data_ptr(), 3, 1)
    assert y[0].isnan()
    assert y[1] == inf
    assert y[2] == 0
    _apply(x.data_ptr(), y.data_ptr(), 3, 2)
    assert y[0].isnan()
    assert y[1:3].tolist() == [1, 0]
    _apply(payload.data_ptr(), y.data_ptr(), 2, 2)
    assert y[:2].isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 15, 16, 17, 1000])
def test_half_kinds_round_as_torch_does(dtype, count):
    x = torch.randn(count, generator=torch.Generator().manual_seed(count)) * 3
    x[0] = float("nan")
    half = torch.full((count + 16,), 7.0, dtype=dtype)
    _convert(x.data_ptr(), half.data_ptr(), count, FLOAT32, KINDS[dtype], 4, 2)
    assert torch.equal(half[1:count].view(torch.int16), x[1:].to(dtype).view(torch.int16))
    assert half[0].isnan()
    assert (half[count:] == 7.0).all()  # nothing is written beyond the last element
    back = torch.empty(count)
    _convert(half.data_ptr(), back.data_ptr(), count, KINDS[dtype], FLOAT32, 2, 4)
    assert torch.equal(back[1:], half[1:count].float())


def test_sum_of_lanes():
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    y = torch.empty(16)
    _sum_lanes(x.data_ptr(), y.data_ptr())
    torch.testing.assert_close(y, x.sum(1))
