"""The gated MLP equals its equation."""

from __future__ import annotations

import torch

from seqssm.nn.mlp import MLP


def test_mlp_equals_its_equation():
    generator = torch.Generator().manual_seed(2)
    layer, x = MLP(6, hidden=5).double(), torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    value, gate = (x @ layer.fc1.weight.T).chunk(2, -1)
    expected = (value * gate * torch.sigmoid(gate)) @ layer.fc2.weight.T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)
    assert MLP(48).fc2.in_features == 128
