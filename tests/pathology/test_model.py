"""Networks over packed bags: packed = one by one, orders, the published padding, long bags, invariance."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from seqssm_pathology.base import MILNetwork, ValueTokens
from seqssm_pathology.export import Bags
from seqssm_pathology.heads import ClassHead
from seqssm_pathology.mixers import ImportanceMamba
from seqssm_pathology.model import NETWORKS, ForwardMambaMIL, MambaMIL
from seqssm_pathology.pooling import AttentionPool, MixedPool, bag_of, bag_softmax, last_of
from torch.nn import functional as F

from seqssm import orders
from seqssm.nn.mamba import Mamba
from seqssm.tools.export import Graph, compare, program_of
from seqssm.training.networks import parameters

LENGTHS = [5, 1, 7, 12]
STARTS = [0, 5, 6, 13, 25]
SCANS = [name for name, cls in NETWORKS.items() if issubclass(cls, ForwardMambaMIL)]
SCAN_OPTIONS = [{}, {"importance": True}, {"positive_definite": True}, {"recompute": True}]
CASES = [(name, {}) for name in NETWORKS if name not in SCANS] + [(n, o) for n in SCANS for o in SCAN_OPTIONS]
CASES += [("srmamba", {"pad_to_stride": True}), ("srmamba", {"shuffles": 3}), ("srmamba", {"pool": "mixed"})]
CASES += [("abmil_gated", {"pool": "mixed"})]
CASES += [("dtfd", {"distillation": name}) for name in ("maxs", "maxmins", "mas")]


def network(name: str, **options) -> MILNetwork:
    torch.manual_seed(0)
    sizes = {"stride": 3, "d_state": 4, "pool_width": 8, "heads": 2}
    mine = parameters(NETWORKS[name])
    sizes = {key: value for key, value in sizes.items() if key in mine}
    return NETWORKS[name](7, 3, d_model=16, dropout=0.0, **sizes, **options)


@pytest.fixture
def bags():
    torch.manual_seed(1)
    order = torch.cat([torch.randperm(n) + start for n, start in zip(LENGTHS, STARTS)])
    return torch.randn(25, 7), torch.tensor(STARTS, dtype=torch.int32), LENGTHS, order


def alone(model: MILNetwork, features, order):
    """Each bag in a separate call."""
    outs = []
    for start, n in zip(STARTS, LENGTHS):
        own = slice(start, start + n)
        outs.append(model(features[own], torch.tensor([0, n], dtype=torch.int32), [n], order[own] - start))
    return outs


@pytest.mark.parametrize(("name", "options"), CASES)
def test_packed_bags_equal_bags_one_by_one(name, options, bags):
    model = network(name, **options).eval()
    features, _, _, order = bags
    packed = model(*bags)
    single = alone(model, features, order)
    torch.testing.assert_close(packed.logits, torch.cat([out.logits for out in single]), atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.attention, torch.cat([out.attention for out in single]), atol=1e-5, rtol=0)
    for start, end in pairwise(STARTS):
        total = packed.attention[start:end].sum(0)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [(n, o) for n, o in CASES if n in SCANS and not o.keys() & {"importance", "shuffles"}],
)
def test_long_bags_in_chunks_give_the_same_result(name, options, bags):
    model = network(name, **options)
    whole = model(*bags)
    whole.logits.square().sum().backward()
    grads = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for block in model.blocks:
        block.chunk_size = 4
    chunks = model(*bags)
    chunks.logits.square().sum().backward()
    torch.testing.assert_close(chunks.logits, whole.logits, atol=1e-5, rtol=0)
    for key, p in model.named_parameters():
        if key in grads:
            torch.testing.assert_close(p.grad, grads[key], atol=1e-5, rtol=1e-4, msg=key)
    with torch.no_grad():
        torch.testing.assert_close(model(*bags).logits, whole.logits, atol=1e-5, rtol=0)


def test_recomputing_gives_the_same_gradients(bags):
    grads = []
    for recompute in (False, True):
        model = network("srmamba", recompute=recompute)
        model(*bags).logits.square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["abmil", "abmil_gated", "mean", "max", "clam_sb", "clam_mb", "dsmil"])
def test_a_permuted_bag_does_not_change_order_free_models(name, bags):
    model = network(name)
    features = bags[0]
    a = model(features[13:], torch.tensor([0, 12]), [12]).logits
    permuted = features[13:][torch.randperm(12)]
    torch.testing.assert_close(model(permuted, torch.tensor([0, 12]), [12]).logits, a, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SCANS)
def test_a_permuted_bag_changes_scans_unless_the_order_is_permuted_too(name, bags):
    model = network(name)
    features, cu = bags[0][13:], torch.tensor([0, 12], dtype=torch.int32)
    coords = torch.stack([torch.arange(12) % 4, torch.arange(12) // 4], 1)
    shuffle = torch.randperm(12)
    plain = model(features, cu, [12], orders.row_major(coords)).logits
    followed = model(features[shuffle], cu, [12], orders.row_major(coords[shuffle])).logits
    ignored = model(features[shuffle], cu, [12]).logits
    torch.testing.assert_close(followed, plain, atol=1e-5, rtol=0)
    assert (ignored - plain).abs().max() > 1e-4


@pytest.mark.parametrize("rate", [1, 12, 40])
def test_rate_one_is_two_forward_branches(rate, bags):
    torch.manual_seed(0)
    sr, two = (Mamba(8, d_state=4, ordering=spec) for spec in (["forward", {"stride": rate}], ["forward", "forward"]))
    two.load_state_dict(sr.state_dict())
    x = torch.randn(1, 12, 8)
    torch.testing.assert_close(sr(x), two(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 10, 23])
@pytest.mark.parametrize("rate", [1, 2, 5, 30])
def test_restoring_undoes_reordering(length, rate):
    table = orders.stride(length, rate)[0].long()
    values = torch.randn(length)
    restored = torch.empty(length)
    restored[table] = values[table]
    assert torch.equal(restored, values)
    assert sorted(table.tolist()) == list(range(length))


def published(layer: Mamba, x: torch.Tensor, rate: int) -> torch.Tensor:
    """The published block step by step: pad, view, transpose, scan, undo (float64)."""
    length, width = x.shape[0], layer.width
    xz = layer.in_proj(x).T  # (2 e, n)
    rows = -(-length // rate)
    padded = F.pad(xz, (0, rows * rate - length))
    reordered = padded.view(2 * width, rows, rate).transpose(1, 2).reshape(2 * width, rows * rate)
    total = 0
    for route, sequence, back in zip(layer.branches, (xz, reordered), (False, True)):
        u, z = sequence[:width], sequence[width:]
        u = F.silu(F.conv1d(u[None], route.conv1d.weight, route.conv1d.bias, padding=3, groups=width))
        u = u[0, :, : sequence.shape[1]].T  # (s, e)
        low, B, C = route.x_proj(u).split([layer.settings.dt_rank, layer.settings.d_state, layer.settings.d_state], -1)
        dt, A = F.softplus(route.dt_proj(low)), -route.A_log.exp()
        state, ys = torch.zeros(width, layer.settings.d_state, dtype=x.dtype), []
        for step in range(len(u)):
            state = (dt[step, :, None] * A).exp() * state + dt[step, :, None] * B[step] * u[step, :, None]
            ys.append(state @ C[step] + route.D * u[step])
        y = (torch.stack(ys) * F.silu(z.T)).T
        if back:
            y = y.view(width, rate, rows).transpose(1, 2).reshape(width, -1)[:, :length]
        total = total + y
    return layer.out_proj(total.T)


@pytest.mark.parametrize(("length", "rate", "differs"), [(7, 3, True), (12, 5, True), (1, 4, False), (6, 3, False)])
def test_the_published_padding_exactly(length, rate, differs):
    torch.manual_seed(2)
    model = MambaMIL(4, 2, rate, pad_to_stride=True, d_model=8, layers=1, d_state=4, engine="reference")
    block = model.blocks[0].double()
    h = torch.randn(length, 8, dtype=torch.float64)
    cu = torch.tensor([0, length], dtype=torch.int32)
    expected = h + published(block.mixer, block.norm(h), rate)
    torch.testing.assert_close(block(h, cu, [length], None), expected, atol=1e-10, rtol=0)
    block.pads = 1
    free = block(h, cu, [length], None)
    assert ((free - expected).abs().max() > 1e-10) == differs  # pads matter if positions follow them


def test_importance_orders_by_score_and_its_vector_learns(bags):
    torch.manual_seed(0)
    layer = ImportanceMamba(8, d_state=4, ordering=["forward", {"stride": 3}])
    x = torch.randn(1, 25, 8)
    seen = {}
    arrange = layer.arrange

    def watch(u, dt, order, cu_seqlens):
        u, table = arrange(u, dt, order, cu_seqlens)
        seen["scores"], seen["table"] = (dt * layer.score).sum(-1)[0].T, table
        return u, table

    layer.arrange = watch
    layer(x, cu_seqlens=bags[1]).sum().backward()
    for scores, table in zip(seen["scores"], seen["table"].long()):
        for start, end in pairwise(STARTS):
            own = table[start:end]
            assert sorted(own.tolist()) == list(range(start, end))
            assert (scores[own].diff() >= 0).all()
    assert layer.score.grad.abs().max() > 0


def test_softmax_of_large_scores_and_by_bag():
    bag = bag_of(torch.tensor([0, 2, 5]), 5)
    assert bag.tolist() == [0, 0, 1, 1, 1]
    found = bag_softmax(torch.tensor([1000.0, 0, -1000, -1000, -1000]), bag, 2)
    torch.testing.assert_close(found, torch.tensor([1.0, 0, 1 / 3, 1 / 3, 1 / 3]))


def test_attention_pooling_equals_the_weighted_sum():
    torch.manual_seed(0)
    pool = AttentionPool(4, 3, gated=True)
    h = torch.randn(6, 4)
    pooled, scores, attention = pool(h, torch.zeros(6, dtype=torch.long), 1)
    expected = pool.w(torch.tanh(pool.V(h)) * torch.sigmoid(pool.U(h)))[:, 0]
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(attention, expected.softmax(0))
    torch.testing.assert_close(pooled[0], expected.softmax(0) @ h)


def test_mixed_pooling_equals_the_mean_of_attention_and_maximum():
    torch.manual_seed(0)
    pool = MixedPool(4, 3, gated=False)
    h = torch.randn(6, 4)
    pooled, scores, attention = pool(h, torch.zeros(6, dtype=torch.long), 1)
    plain, expected, weights = AttentionPool.forward(pool, h, torch.zeros(6, dtype=torch.long), 1)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(pooled[0], (plain[0] + h.amax(0)) / 2)
    fraction = torch.bincount(h.argmax(0), minlength=6) / 4
    torch.testing.assert_close(attention, (weights + fraction) / 2)


def test_the_largest_instance_of_each_bag():
    values = torch.tensor([3.0, 1.0, 2.0, 5.0, -1.0, 0.0])
    assert last_of(values, torch.tensor([1, 0, 1, 0, 2, 2]), 3).tolist() == [3, 0, 5]


def test_shuffled_orders_are_redrawn_in_training_and_averaged_otherwise(bags):
    model = network("srmamba", shuffles=4)
    torch.manual_seed(5)
    first, second = model(*bags).logits, model(*bags).logits
    assert (first - second).abs().max() > 1e-5
    torch.manual_seed(5)
    torch.testing.assert_close(model(*bags).logits, first)  # a function of the seed
    model.eval()
    averaged = model(*bags)
    torch.testing.assert_close(model(bags[0], bags[1], bags[2]).logits, averaged.logits)  # the data's order is not used
    plain = network("srmamba").eval()
    plain.load_state_dict(model.state_dict())
    drawn = [torch.cat([orders.random(n, k) + s for n, s in zip(LENGTHS, STARTS)]) for k in range(4)]
    expected = torch.stack([plain(*bags[:3], order).logits for order in drawn]).mean(0)
    torch.testing.assert_close(averaged.logits, expected, atol=1e-6, rtol=0)


def test_value_tokens_equal_the_formula():
    tokens = ValueTokens(3, 4)
    values = torch.randn(2, 3)
    expected = F.gelu(tokens.norm(values[..., None] * tokens.E + tokens.b))
    torch.testing.assert_close(tokens(values.reshape(6, 1)).view(2, 3, 4), expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in NETWORKS if name not in ("transmil", "clam_mb", "dsmil", "dtfd")]
    + [("srmamba", {"pool": "mixed"})],
)
def test_a_network_is_a_graph_for_any_number_of_instances(name, options, tmp_path):
    """Mean pooling was traced for the number of instances of the example."""

    def bags(batch: int, length: int):
        return {"features": torch.randn(batch, length, 7, generator=torch.Generator().manual_seed(length))}

    axes = {"features": {0: "batch", 1: "instances"}}
    module = Bags(network(name, **options).eval(), [ClassHead("label", classes=("a", "b", "c"))])
    graph = Graph(module, bags, axes, ("probabilities", "attention"), {}, (23, 7, 64))
    _, run = program_of(graph)
    assert len(compare(graph, run, tmp_path / "graph")) == 3
