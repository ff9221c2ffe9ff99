"""Dropout with the random numbers of PyTorch: the same masks, gradients and following random numbers."""

from __future__ import annotations

import threading

import pytest
import torch
from seqssm_kernels import dropout
from seqssm_kernels.cpu import dropout as module
from torch.nn import functional as F


@pytest.fixture(autouse=True)
def _fewest(monkeypatch):
    monkeypatch.setattr(module, "FEWEST", 1)
    with torch.random.fork_rng(devices=[]):
        yield


def both(x, p, *, drawn=0):
    """The outputs of PyTorch and of the kernel from the same state, each with the random numbers that follow."""
    found = []
    for apply in (F.dropout, dropout):
        torch.manual_seed(7)
        torch.rand(drawn), torch.randn(3)  # randn keeps half a pair of normal values in the state
        found.append((apply(x, p, True), torch.randn(2), torch.rand(3)))
    return found


def test_this_version_of_pytorch_has_the_random_numbers_of_the_kernel():
    assert module._as_pytorch()


@pytest.mark.parametrize("drawn", [0, 1, 619, 620, 621, 622, 623])
@pytest.mark.parametrize("shape", [(1,), (2, 3), (311,), (312,), (624,), (5, 7, 100)])
def test_masks_and_all_later_random_numbers_are_those_of_pytorch(shape, drawn):
    for p in (0.1, 1 / 3, 0.5, 0.999):
        expected, found = both(torch.randn(shape), p, drawn=drawn)
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a, b), p


def test_the_gradient_is_that_of_pytorch():
    x = torch.randn(40, 30, requires_grad=True)
    (expected, *_), (found, *_) = both(x, 0.2)
    ahead = torch.randn(40, 30)
    assert torch.equal(torch.autograd.grad(found, x, ahead)[0], torch.autograd.grad(expected, x, ahead)[0])


@pytest.mark.parametrize(
    "x",
    [torch.randn(4, 5).t(), torch.randn(9).bfloat16(), torch.randn(9).double(), torch.randn(0), torch.randn(())],
    ids=["transposed", "bfloat16", "float64", "empty", "scalar"],
)
def test_other_tensors_are_left_to_pytorch(x):
    for expected, found in zip(*both(x, 0.4), strict=True):
        assert torch.equal(expected, found)
        assert found.dtype == expected.dtype


def test_threads_draw_different_masks():
    masks = []
    threads = [threading.Thread(target=lambda: masks.append(dropout(torch.ones(20_000), 0.5))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(mask[:64].tolist()) for mask in masks}) == 8


def test_nothing_is_drawn_without_training_or_probability():
    x = torch.randn(100)
    before = torch.get_rng_state()
    assert torch.equal(dropout(x, 0.5, False), x)
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(dropout(x, 1.0), torch.zeros(100))
    with pytest.raises(ValueError, match="dropout probability"):
        dropout(x, 1.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_traced_as_pytorch_traces_its_own():
    x = torch.randn(64)
    graph = torch.export.export(torch.nn.Sequential(_Dropped()), (x,)).graph
    assert any("dropout" in str(node.target) for node in graph.nodes)
    assert dropout(x.to("meta"), 0.5).shape == (64,)
    mapped = torch.func.vmap(lambda row: dropout(row, 0.5), randomness="different")(torch.ones(3, 50))
    assert set(mapped.unique().tolist()) == {0.0, 2.0}


class _Dropped(torch.nn.Module):
    def forward(self, x):
        return dropout(x, 0.5, self.training)
