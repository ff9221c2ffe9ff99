"""Export and compilation of layers and stacks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seqssm.nn.attention import Attention
from seqssm.nn.backbone import Backbone
from seqssm.nn.mamba2 import Mamba2
from seqssm.nn.mamba3 import Mamba3

from .mixers import ATTENTION, M2, M3, STACK, D, close, make, same_state, sequences

EXPORTED = {
    "mamba2": lambda: Mamba2(D, ordering="bidirectional", **M2),
    "mamba3": lambda: Mamba3(D, ordering="bidirectional", **M3),
    "attention": lambda: Attention(D, **ATTENTION),
    "windowed attention": lambda: Attention(D, **ATTENTION | {"window": 5}),
    "bidirectional windows": lambda: Attention(D, **ATTENTION | {"window": 5, "causal": False}),
    "stack": lambda: Backbone(
        D, "Mm3*-", **{k: v for k, v in STACK.items() if k != "memory"} | {"attention": ATTENTION}
    ),
}
SHORT = ("stack", "windowed attention", "bidirectional windows")


@pytest.mark.parametrize(
    "name", [*(pytest.param(one, marks=pytest.mark.long) for one in EXPORTED if one not in SHORT), *SHORT]
)
@torch.no_grad()
def test_layers_export_with_any_length(name):
    torch.manual_seed(1)
    layer = EXPORTED[name]().double()
    exported = torch.export.export(
        layer, (sequences(2, 9, D),), dynamic_shapes={"x": dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)}
    )
    for longer in (sequences(2, 3, D), sequences(1, 10, D), sequences(3, 17, D), sequences(2, 301, D)):
        close(exported.module()(longer), layer(longer))


@pytest.mark.long
def test_a_stack_compiles_in_one_graph_and_its_step_is_exported():
    layer, x = make("stack"), sequences(2, 9, D)
    y, state = torch.compile(layer, fullgraph=True, backend="aot_eager")(x, return_state=True)
    expected, expected_state = layer(x, return_state=True)
    close(y, expected)
    same_state(state, expected_state)

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, state):
            return self.layer.step(x, state)

    with torch.no_grad():
        exported = torch.export.export(Step(), (x[:, 0], state)).module()
        found, wanted = exported(x[:, 1], state), layer.step(x[:, 1], state)
    close(found[0], wanted[0])
    same_state(found[1], wanted[1])
