"""Formulas of operations against PyTorch's counter, and the counter of whole networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from seqssm.nn.attention import Attention
from seqssm.nn.backbone import Backbone
from seqssm.nn.binary import BinaryLinear
from seqssm.nn.flops import count_flops, layer_flops, scan_flops
from seqssm.nn.language_model import LanguageModel
from seqssm.nn.mamba import Mamba
from seqssm.nn.mamba2 import Mamba2
from seqssm.nn.mamba3 import Mamba3
from seqssm.nn.mlp import MLP

LAYERS = {
    "linear": lambda: nn.Linear(16, 5),
    "binary": lambda: BinaryLinear(16, 5, bias=False),
    "mlp": lambda: MLP(16, hidden=24),
    "attention": lambda: Attention(16, n_heads=4, n_kv_heads=2),
    "mamba": lambda: Mamba(16, d_state=4),
    "routes": lambda: Mamba(16, d_state=4, ordering=["forward", {"stride": 3}, "reverse"], merge="mean"),
    "groups": lambda: Mamba(16, d_state=4, ordering="bidirectional", merge="concat"),
    "mamba2": lambda: Mamba2(16, d_state=8, head_dim=8, n_groups=2),
    "mamba3": lambda: Mamba3(16, d_state=8, head_dim=8),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_formula_of_a_layer(kind):
    layer, x = LAYERS[kind](), torch.randn(3, 20, 16)
    assert count_flops(layer, lambda: layer(x)) == layer_flops(layer, 3, 20)


@pytest.mark.parametrize("kind", ["routes", "mamba2", "mamba3"])
def test_the_rest_of_a_layer_is_what_the_counter_of_pytorch_finds(kind):
    layer, x = LAYERS[kind](), torch.randn(2, 33, 16)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == layer_flops(layer, 2, 33) - scan_flops(layer, 66)


def test_scans_by_hand():
    assert scan_flops(Mamba(16, d_state=4, d_conv=3), 10) == 10 * 32 * (6 + 36 + 2)
    layer = Mamba2(16, d_state=8, head_dim=8, n_groups=2)
    assert scan_flops(layer, 10) == 10 * (8 * (32 + 32) + 32 * (40 + 3))
    assert scan_flops(Mamba3(16, d_state=8, head_dim=8, ordering="bidirectional"), 10) == 20 * 32 * 43


def test_a_network():
    options = {"mamba2": {"d_state": 8, "head_dim": 8}, "attention": {"n_heads": 2}, "mlp": {"hidden": 8}}
    network = LanguageModel(11, Backbone(16, "M*-", **options))
    ids = torch.zeros(2, 9, dtype=torch.int64)
    layers = sum(layer_flops(block.mixer, 2, 9) for block in network.backbone.blocks)
    assert count_flops(network, lambda: network(ids)) == layers + 2 * 18 * 16 * 11  # and the tied head


def test_other_layers_have_no_formula():
    with pytest.raises(TypeError, match="no formula for GRU"):
        layer_flops(nn.GRU(3, 3), 1, 1)
