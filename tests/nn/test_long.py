"""Sequences of any length through a stack: memory of one chunk, result of one pass."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from seqssm import Backbone
from seqssm.nn.attention import Attention
from seqssm.nn.chunks import in_pieces, stream

SETTINGS = {
    "mamba2": {"d_state": 8, "head_dim": 16},
    "mamba": {"d_state": 8},
    "attention": {"n_heads": 2, "window": 256},
}
SCRIPT = """
import resource, sys, torch
from seqssm import Backbone
from seqssm.nn.chunks import stream

length, piece = int(sys.argv[1]), 8192
torch.manual_seed(0)
torch.set_num_threads(1)
stack = Backbone(16, "mMm*", mamba2={"d_state": 8, "head_dim": 16}, mamba={"d_state": 8},
                 attention={"n_heads": 2, "window": 256})
generator = torch.Generator().manual_seed(1)
pieces = (torch.randn(1, min(piece, length - start), 16, generator=generator) for start in range(0, length, piece))
total = places = 0
with torch.no_grad():
    for y, _ in stream(stack, pieces):
        total += y.double().sum().item()
        places += y.shape[1]
print(places, total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(length):
    """Peak memory of a process that streams `length` positions."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(length)], capture_output=True, text=True, check=True)
    places, total, kilobytes = done.stdout.split()
    assert int(places) == length
    assert torch.tensor(float(total)).isfinite()
    return int(kilobytes)


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
def test_memory_does_not_grow_with_the_length():
    assert peak(1_000_000) < 1.2 * peak(100_000)


@torch.no_grad()
def test_twenty_thousand_positions_equal_one_pass():
    torch.manual_seed(0)
    stack = Backbone(16, "mMm*", **SETTINGS)
    x = torch.randn(1, 20_000, 16)
    whole, final = stack(x, return_state=True)
    y, state = in_pieces(stack, x, 1000, return_state=True)
    assert ((y - whole).square().mean() / whole.square().mean()).sqrt() < 1e-5
    streamed = torch.cat([part for part, _ in stream(stack, x.split(777, dim=1))], 1)
    assert ((streamed - whole).square().mean() / whole.square().mean()).sqrt() < 1e-5
    torch.testing.assert_close(state["1"]["scan"], final["1"]["scan"], rtol=1e-4, atol=1e-5)


def test_attention_needs_no_square_mask():
    layer = Attention(16, n_heads=2, window=64)
    x = torch.randn(1, 20_000, 16)
    _, state = layer(x[:, :100], return_state=True)
    largest = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest.append(out.numel())
            return out

    with Watch(), torch.no_grad():
        layer(x, state)
    assert max(largest) < 4 * x.numel() * 4
