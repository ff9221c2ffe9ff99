"""The SiLU of the convolution, in every engine; see `test_properties.py` for the rest."""

from __future__ import annotations

import pytest
import torch
from seqssm_kernels import causal_conv1d


@pytest.mark.parametrize("kind", ["none", "resets"])
def test_fused_silu_equals_silu_after_the_convolution(tools, engine, kind):
    call = tools.build(tools.conv, {"kind": kind, "length": 70, "routes": 2, "activation": "silu"})
    inside = call.run(engine)
    call.options["activation"] = None
    behind = dict(call.tensors)
    leaves = {name: behind[name].clone().requires_grad_() for name in tools.conv_floats}
    behind |= leaves
    out, final = causal_conv1d(**behind, return_final_state=True, engine=engine)
    out = torch.nn.functional.silu(out)
    weights = [((torch.arange(t.numel()) % 7 - 3) / 4).view(t.shape) for t in (out, final)]
    found = torch.autograd.grad((out, final), list(leaves.values()), weights)
    expected = {"out": out, "final_state": final} | {f"d{n}": g for n, g in zip(leaves, found)}
    tools.assert_close(inside, {name: t.detach() for name, t in expected.items()}, 1e-6)


def test_fused_silu_saves_no_further_tensors(tools, engine):
    call = tools.conv(2, 70, 1, 17)
    x, weight, bias = (call.tensors[name].requires_grad_() for name in ("x", "weight", "bias"))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        causal_conv1d(x, weight, bias, activation="silu", engine=engine)
    assert set(kept) == {t.data_ptr() for t in (x, weight, bias)}


def test_silu_of_large_values(tools, engine):
    x = torch.tensor([-1e30, -200.0, -90.0, 0.0, 90.0, 1e30]).view(1, 6, 1).requires_grad_()
    out = causal_conv1d(x, torch.ones(1, 1), activation="silu", engine=engine)
    (dx,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 0.0, 0.0, 0.0, 90.0, 1e30]))
    torch.testing.assert_close(dx.flatten(), torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0, 1.0]))
