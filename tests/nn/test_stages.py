"""Sums of networks at their heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seqssm.nn.stages import attach


class Net(nn.Module):
    """A head that is called once per row of the input; a scale behind it, as the temperature of a classifier."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.scale = 10.0**-seed

    def forward(self, x, double=False):
        rows = [self.head(self.body(row).tanh()) for row in x]
        return torch.stack(rows) * (2 if double else 1) * self.scale


def logits(net, x):
    return net.head(net.body(x).tanh())


def test_the_outputs_of_the_heads_are_added_call_by_call():
    nets = [Net(seed).eval() for seed in range(3)]
    x = torch.randn(5, 3)
    alone = [net(x) for net in nets]
    wanted = sum(logits(net, x) for net in nets) * nets[2].scale
    hooks = attach(nets[2], nets[:2], ("head",))
    for _ in range(2):
        torch.testing.assert_close(nets[2](x), wanted)
    torch.testing.assert_close(nets[2](x, double=True), 2 * wanted)
    assert torch.equal(nets[0](x), alone[0])
    assert list(nets[2].state_dict()) == list(Net(0).state_dict())
    hooks.remove()
    assert torch.equal(nets[2](x), alone[2])


def test_a_sum_of_one_network_is_the_network():
    net, x = Net(0).eval(), torch.randn(2, 3)
    wanted = net(x)
    attach(net, [], ("head",))
    assert torch.equal(net(x), wanted)


def test_in_training_a_fraction_of_the_records_is_without_the_stages():
    first, last, x = Net(0).eval(), Net(1), torch.randn(400, 1, 3)
    with torch.no_grad():
        alone = last(x)
        attach(last, [first], ("head",), alone=0.5)
        found = last(x)
    same = sum(torch.equal(a, b) for a, b in zip(found, alone))
    assert 140 < same < 260
    torch.manual_seed(3)
    one = last(x[:8])
    torch.manual_seed(3)
    assert torch.equal(one, last(x[:8]))


def test_only_the_last_one_gets_gradients():
    first, last = Net(0).eval(), Net(1)
    attach(last, [first], ("head",))
    last(torch.randn(2, 3)).sum().backward()
    assert all(one.grad is not None for one in last.parameters())
    assert all(one.grad is None for one in first.parameters())


def test_a_network_without_the_head_is_refused():
    with pytest.raises(ValueError, match="no module lm_head or out"):
        attach(Net(0), [Net(1)], ("lm_head", "out"))
