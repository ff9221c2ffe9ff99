"""Layers and stacks for the tests of every mixer, and the comparison of their states."""

from __future__ import annotations

import torch

from seqssm.nn.attention import Attention
from seqssm.nn.backbone import Backbone
from seqssm.nn.mamba2 import Mamba2
from seqssm.nn.mamba3 import Mamba3
from seqssm.nn.memory import Memory
from seqssm.nn.state import State

D = 8
M2 = {"d_state": 4, "d_conv": 3, "head_dim": 4, "n_groups": 2, "dt_min": 0.1, "dt_max": 1.0}
M3 = {"d_state": 8, "head_dim": 4, "n_groups": 2, "dt_min": 0.1, "dt_max": 1.0}
M1 = {"d_state": 4, "d_conv": 3, "dt_min": 0.1, "dt_max": 1.0}
ATTENTION = {"n_heads": 4, "n_kv_heads": 2}
MEMORY = {"pool_size": 3, "summary_dim": 6, "interval": 2, "n_heads": 2, "token_threshold": 0.4}
STACK = {"mamba2": M2, "mamba3": M3, "mamba": M1, "attention": ATTENTION | {"window": 4}, "mlp": {"hidden": 8}}
STACK |= {"memory": MEMORY}

FORWARD = {
    "mamba2": lambda: Mamba2(D, **M2),
    "mamba2 limited": lambda: Mamba2(D, dt_limit=(0.2, 0.8), conv_bias=False, bias=True, **M2 | {"n_groups": 1}),
    "mamba2 two routes": lambda: Mamba2(D, ordering=["forward", {"stride": 1}], merge="gate", **M2),
    "mamba2 concat": lambda: Mamba2(D, ordering=["forward", "forward"], merge="concat", **M2),
    "mamba3": lambda: Mamba3(D, **M3),
    "mamba3 all angles": lambda: Mamba3(D, rope_fraction=1.0, out_norm=True, bias=True, **M3 | {"n_groups": 1}),
    "mamba3 no angles": lambda: Mamba3(D, rope_fraction=0.0, ordering=["forward", "forward"], merge="mean", **M3),
    "attention": lambda: Attention(D, **ATTENTION),
    "attention window": lambda: Attention(D, window=3, n_heads=2, bias=True),
    "attention window 1": lambda: Attention(D, window=1, n_heads=2, n_kv_heads=1, head_dim=3),
    "attention wide window": lambda: Attention(D, window=50, **ATTENTION),
    "memory": lambda: Memory(D, **MEMORY),
    "memory fifo": lambda: Memory(D, replacement="fifo", bias=True, **MEMORY | {"interval": 1, "n_heads": 1}),
    "memory soft": lambda: Memory(D, gate="soft", **MEMORY | {"interval": 3, "pool_size": 2}),
    "memory open": lambda: Memory(D, **MEMORY | {"token_threshold": 0.0, "state_threshold": 0.0}),
    "stack": lambda: Backbone(D, "Mm3*N-", **STACK),
    "stack of memories": lambda: Backbone(D, "NmNN", mamba=M1, memory=MEMORY | {"cross_layer_every": 2}),
}
STACKS = ("stack", "stack of memories")
WITHOUT_ROUTES = (*STACKS, *(name for name in FORWARD if name.startswith(("attention", "memory"))))
OTHERS = {
    "mamba2 both ways": lambda: Mamba2(D, ordering="bidirectional", **M2),
    "mamba2 groups": lambda: Mamba2(D, ordering="bidirectional", merge="concat", **M2),
    "mamba2 stride": lambda: Mamba2(D, ordering=["reverse", {"stride": 3}], merge="mean", **M2),
    "mamba3 both ways": lambda: Mamba3(D, ordering="bidirectional", **M3),
    "mamba3 stride": lambda: Mamba3(D, ordering=["reverse", {"stride": 3}], merge="gate", out_norm=True, **M3),
    "attention both sides": lambda: Attention(D, causal=False, **ATTENTION),
    "attention window, both sides": lambda: Attention(D, causal=False, window=3, n_heads=2),
}
ALL = FORWARD | OTHERS


def make(name, seed=1):
    """A layer in float64 with weights that all differ."""
    torch.manual_seed(seed)
    layer = ALL[name]().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


def sequences(*shape, seed=2):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(value, expected, tolerance=1e-10):
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


def same_state(one, other, tolerance=1e-10):
    """Require equal states; in a cache, only positions with a key are compared."""
    assert one.keys() == other.keys()
    if "key" in one:
        assert torch.equal(one["length"], other["length"])
        for name in ("key", "value"):
            for a, b, length in zip(one[name], other[name], one["length"].tolist(), strict=True):
                close(a[:, :length], b[:, :length], tolerance)
        return
    for name in one:
        if isinstance(one[name], State):
            same_state(one[name], other[name], tolerance)
        else:
            close(one[name], other[name], tolerance)
