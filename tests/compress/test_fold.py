"""Folding of norms, reordering of Mamba-2 and the rotation: the output of a float network does not change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from seqssm.compress import clusters, fold
from seqssm.compress.observe import Statistics
from seqssm.nn.backbone import Backbone
from seqssm.nn.hadamard import matrix, rotate
from seqssm.nn.mamba import Mamba
from seqssm.nn.mamba2 import Mamba2

OPTIONS = {"mamba2": {"d_state": 4, "head_dim": 8, "n_groups": 2}, "mamba": {"d_state": 4}, "mlp": {"hidden": 24}}


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stack(dtype=torch.float64):
    torch.manual_seed(3)
    network = Backbone(16, "Mm-", **OPTIONS).to(dtype).eval()
    for name, parameter in network.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@torch.no_grad()
def test_folding_changes_nothing(dtype, tolerance):
    network = stack(dtype)
    x = drawn(2, 11, 16, dtype=dtype)
    good, bad = fold.exact_folds(network, lambda: network(x).double().flatten())
    assert [one.norm for one in good] == ["layers.0.norm", "layers.1.norm", "layers.2.norm"]
    assert [one.linear.rpartition(".")[2] for one in good] == ["in_proj", "in_proj", "fc1"]
    assert bad == []
    made = fold.folded(network, good)
    assert all(bool((made.get_submodule(one.norm).weight == 1).all()) for one in good)
    wanted = network(x)
    assert (made(x) - wanted).abs().max() <= tolerance * wanted.abs().max()


class LayerNormed(nn.Module):
    """A pre-norm block with LayerNorm, whose bias moves into the projection."""

    def __init__(self, post: bool) -> None:
        super().__init__()
        self.norm, self.mixer, self.post = nn.LayerNorm(16), Mamba(16, d_state=4), post
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        if self.post:  # the residual reads the norm as well
            x = self.norm(x)
            return x + self.mixer(x)
        return x + self.mixer(self.norm(x))


@torch.no_grad()
def test_the_bias_of_a_layer_norm_becomes_that_of_the_projection():
    torch.manual_seed(0)
    block = LayerNormed(post=False).double().eval()
    x = drawn(2, 9, 16)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    good, _ = fold.exact_folds(block, lambda: block(x).flatten())
    assert len(good) == 1
    assert block.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())  # as it was
    made = fold.folded(block, good)
    assert made.mixer.in_proj.bias is not None
    assert not made.norm.bias.any()
    assert (made(x) - block(x)).abs().max() <= 1e-12 * block(x).abs().max()


@torch.no_grad()
def test_a_norm_with_other_readers_is_not_folded():
    """Even if its weights are 1, so that the wrong fold would show no difference."""
    torch.manual_seed(0)
    block = LayerNormed(post=True).double().eval()
    nn.init.ones_(block.norm.weight)
    nn.init.zeros_(block.norm.bias)
    x = drawn(2, 9, 16)
    good, bad = fold.exact_folds(block, lambda: block(x).flatten())
    assert good == []
    assert [(one.norm, reason) for one, reason in bad] == [("norm", "the output of the norm has other readers")]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("ordering", ["forward", "bidirectional"])
@torch.no_grad()
def test_reordering_changes_nothing(ordering, dtype, tolerance):
    torch.manual_seed(1)
    layer = Mamba2(16, d_state=4, head_dim=4, n_groups=2, ordering=ordering, bias=True).to(dtype).eval()
    nn.init.uniform_(layer.norm.weight, 0.5, 1.5)
    x = drawn(2, 13, 16, dtype=dtype)
    wanted = layer(x)
    heads, positions, cluster = clusters.orders(layer, drawn(32).abs())
    assert sorted(heads.tolist()) == list(range(8))
    assert all(head // 4 == k // 4 for k, head in enumerate(heads.tolist()))  # within its group
    assert sorted(positions.tolist()) == list(range(32))
    assert positions.tolist() != list(range(32))
    assert (cluster.diff() < 0).sum() <= 8  # ascending inside a head
    made = copy.deepcopy(layer)
    clusters.reorder(made, heads, positions)
    assert (made(x) - wanted).abs().max() <= tolerance * wanted.abs().max()
    assert not torch.equal(made.in_proj.weight, layer.in_proj.weight)


def test_layers_that_cannot_be_reordered():
    layer = Mamba2(16, d_state=4, head_dim=4, n_groups=1, norm_groups=2)
    with pytest.raises(ValueError, match="within groups"):
        clusters.reorder(layer, torch.arange(8), torch.arange(32))


def test_cluster_scales_hold_all_values_and_are_few():
    layer = Mamba2(64, d_state=4, head_dim=16, n_groups=2)  # 8 heads
    found = Statistics()
    x = drawn(5, 20, 128, seed=2) * torch.linspace(0.1, 4, 128)
    found.update(x, False, (), False)
    scales = clusters.channel_scales(layer, found)
    assert (scales >= x.abs().amax((0, 1)).float() * (1 - 1e-6)).all()
    assert len(scales.unique()) <= 2 * clusters.HEAD_CLUSTERS * clusters.CHANNEL_CLUSTERS
    assert scales.min() < scales.max() / 3  # one scale for all would waste most of the range of small channels


def test_ward_finds_separate_clusters():
    points = torch.tensor([[0.0], [10.0], [0.1], [10.1], [20.0]], dtype=torch.float64)
    assert clusters.ward(points, 3) == [0, 1, 0, 1, 2]
    assert clusters.ward(points, 9) == [0, 1, 2, 3, 4]


def test_contiguous_clusters_are_the_best_ones():
    table = torch.tensor([[0.0, 0.1, 5.0, 5.1, 5.2, 9.0]], dtype=torch.float64)
    assert clusters.contiguous(table, 3) == [0, 2, 5, 6]
    assert clusters.contiguous(table, 1) == [0, 6]
    assert clusters.contiguous(table[:, :2], 4) == [0, 1, 2]


@torch.no_grad()
def test_the_rotation_folded_into_the_weights_changes_nothing():
    linear = nn.Linear(96, 10).double()
    x = drawn(7, 96)
    turn = matrix(96)
    found = nn.functional.linear(rotate(x), linear.weight @ turn.T, linear.bias)
    assert (found - linear(x)).abs().max() <= 1e-12 * linear(x).abs().max()
