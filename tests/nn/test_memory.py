"""The memory layer: which summaries it keeps, when they are seen, and what it costs."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from seqssm import Backbone, LanguageModel
from seqssm.nn.chunks import in_pieces, stream
from seqssm.nn.memory import Memory

from .mixers import close, same_state, sequences
from .oracles import memory_by_the_equations

D = 8
MAMBA = {"d_state": 4, "dt_min": 0.1, "dt_max": 1.0}
OPTIONS = {
    "priority": {"pool_size": 4, "summary_dim": 6, "interval": 3},
    "fifo": {"pool_size": 4, "summary_dim": 6, "interval": 3, "replacement": "fifo"},
    "soft": {"pool_size": 5, "summary_dim": 6, "interval": 4, "gate": "soft", "n_heads": 3},
    "block larger than the pool": {"pool_size": 2, "summary_dim": 6, "interval": 7, "replacement": "fifo"},
}


def make(options, pattern="NmNNmN", seed=1):
    torch.manual_seed(seed)
    own = options | {"cross_layer_every": 2}
    stack = Backbone(D, pattern, mamba=MAMBA if "m" in pattern else None, memory=own).double()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return stack


def by_hand(scores, **options):
    """A layer whose importance before the sigmoid is the first channel, and whose summary is the second one."""
    layer = Memory(2, summary_dim=1, **options).double()
    with torch.no_grad():
        layer.scores.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        layer.scores.bias.copy_(torch.tensor([0.0, 5.0]))
        layer.in_proj.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]]))  # query, fusion, summary
        layer.out_proj.weight.copy_(torch.tensor([[2.0], [0.0]]))
    x = torch.tensor([[score, float(number)] for number, score in enumerate(scores, 1)], dtype=torch.float64)
    return layer, x.unsqueeze(0)


def kept(state):
    """Summaries in the pool, in ascending order."""
    return sorted(state["summary"][0, state["score"][0] > -math.inf].flatten().tolist())


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_a_stack_with_cross_layer_attention_is_its_equations(name):
    stack, x = make(OPTIONS[name]), sequences(1, 29, D)
    residual, histories = x[0], []
    for layer in stack.blocks:
        normed = residual / (residual.square().mean(-1, keepdim=True) + layer.norm.eps).sqrt() * layer.norm.weight
        if isinstance(layer.mixer, Memory):
            history = []
            residual = residual + memory_by_the_equations(layer.mixer, normed, histories, history)
            histories.append(history)
        else:
            residual = residual + layer.mixer(normed.unsqueeze(0))[0]
    assert [layer.mixer.across for layer in stack.blocks if isinstance(layer.mixer, Memory)] == [0, 1, 0, 2]
    close(stack(x)[0], stack.norm_f(residual))
    sizes = [len(pool) for history in histories for pool in history]
    assert max(sizes) == OPTIONS[name]["pool_size"]


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_any_cut_continues(name):
    stack, x = make(OPTIONS[name]), sequences(2, 40, D)
    whole, final = stack(x, return_state=True)
    draw = random.Random(3)
    for _ in range(5):
        cuts = sorted(draw.sample(range(41), 6))
        pieces = [x[:, a:b] for a, b in zip([0, *cuts], [*cuts, 40], strict=True)]
        outputs, state = [], None
        for y, after in stream(stack, pieces):
            outputs.append(y)
            state = after
        close(torch.cat(outputs, 1), whole)
        same_state(state, final)
        _, state = stack(x[:, : cuts[0]], return_state=True)
        for place in range(cuts[0], 40):
            y, state = stack.step(x[:, place], state)
            close(y, whole[:, place])
        same_state(state, final)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_future_is_never_read(name):
    """The published trap: a pool that is filled from the whole sequence before it is read."""
    stack, x = make(OPTIONS[name]), sequences(2, 30, D).requires_grad_()
    y = stack(x)
    reached = 0
    for place in (0, 2, 3, 8, 13, 29):
        gradient = torch.autograd.grad(y[:, place].sum(), x, retain_graph=True)[0]
        assert (gradient[:, place + 1 :] == 0).all()
        reached += int((gradient[:, :place] != 0).any())
    assert reached >= 4
    changed = x.detach().clone()
    changed[:, 17:] *= -100  # more important than everything before
    assert torch.equal(stack(changed)[:, :17], y[:, :17])


def test_priority_keeps_the_most_important():
    layer, x = by_hand([1, 5, -1, 4, 2, 5, 6, -2, 9], pool_size=3, interval=2)
    seen = []
    state = layer.new_state(1)
    for place in x.unbind(1):
        _, state = layer.step(place, state)
        seen.append(kept(state))
    assert seen[:4] == [[], [1, 2], [1, 2], [1, 2, 4]]
    assert seen[5] == [2, 4, 6]  # 2 and 6 are equally important
    assert seen[7] == [2, 6, 7]
    assert seen[8] == seen[7]  # position 9 waits
    assert state["pending"][0].flatten().tolist() == [9, 0]
    assert state["length"].tolist() == [9]
    layer, x = by_hand([3, 3, 3, 3], pool_size=2, interval=2)
    assert kept(layer(x, return_state=True)[1]) == [1, 2]  # the older one of equals stays


def test_fifo_keeps_the_latest():
    layer, x = by_hand([1, 5, -1, 4, 2, 5, 6, -2, 9], pool_size=3, interval=2, replacement="fifo")
    assert kept(layer(x, return_state=True)[1]) == [5, 6, 7]
    assert kept(layer(x[:, :6], return_state=True)[1]) == [4, 5, 6]
    layer, x = by_hand([1] * 9, pool_size=2, interval=9, replacement="fifo")
    assert kept(layer(x, return_state=True)[1]) == [8, 9]


def test_thresholds_decide_who_enters_and_who_reads():
    scores = [2.0, 0.5, -0.5, -2.0, 1.0, 0.0]
    for threshold in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9):
        layer, x = by_hand(scores, pool_size=6, interval=1, token_threshold=threshold)
        wanted = [n for n, score in enumerate(scores, 1) if 1 / (1 + math.exp(-score)) > threshold]
        assert kept(layer(x, return_state=True)[1]) == wanted
    layer, x = by_hand(scores, pool_size=6, interval=1, state_threshold=0.85)
    with torch.no_grad():
        layer.scores.weight[1] = torch.tensor([2.0, 0.0])
        layer.scores.bias[1] = 0.0
    y = layer(x)[0, :, 0]  # zero query: the mean of the pool and a zero; fusion gate 1/2, projection 2
    assert y[[1, 2, 3, 5]].tolist() == [0, 0, 0, 0]  # score sigmoid(2 * channel) of at most 0.73
    assert y[0] == 0  # the pool is empty
    close(y[4], torch.tensor(1.0, dtype=torch.float64))
    close(Memory(2, pool_size=1, token_threshold=0).double()(x).isfinite().all().double(), torch.ones(()).double())


def test_gates_have_gradients():
    for gate in ("straight_through", "soft"):
        layer, x = by_hand([1.0, 2.0, 0.3, 0.4], pool_size=4, interval=2, gate=gate)
        with torch.no_grad():
            layer.in_proj.weight[0, 1] = 0.5
        layer(x).square().sum().backward()
        assert layer.scores.weight.grad.abs().amax(1).min() > 1e-4
    layer, x = by_hand([1.0, -1.0], pool_size=4, interval=1)
    y = layer(x)
    hard = torch.autograd.grad(y[0, 1, 0], layer.scores.bias)[0][1]
    score = torch.sigmoid(torch.tensor(5.0 - math.log(0.3 / 0.7), dtype=torch.float64))
    close(hard, score * (1 - score) / 2)  # of sigmoid(score - logit(threshold)), times what was read: 1/2


def test_an_unimportant_or_broken_position_leaves_nothing():
    layer, x = by_hand([3.0, float("nan"), -4.0, 1.0], pool_size=4, interval=1)
    _, state = layer(x, return_state=True)
    assert kept(state) == [1, 4]
    assert state["summary"].isfinite().all()
    assert (state["summary"][state["score"] == -math.inf] == 0).all()


def test_the_state_has_one_size_and_is_plain(tmp_path):
    stack = make(OPTIONS["priority"]).float()

    def size(state):
        return sum(size(v) if isinstance(v, dict) else v.numel() * v.element_size() for v in state.values())

    sizes = set()
    with torch.no_grad():
        for length in (1, 5, 64, 700):
            y, state = in_pieces(stack, torch.randn(2, length, D), 100, return_state=True)
            assert y.isfinite().all()
            sizes.add(size(state))
    assert sizes == {size(stack.new_state(2))}
    torch.save(state, tmp_path / "state.pt")
    torch.save(stack.state_dict(), tmp_path / "weights.pt")
    again = make(OPTIONS["priority"], seed=9).float()
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    read = torch.load(tmp_path / "state.pt", weights_only=True)
    x = torch.randn(2, 11, D)
    assert torch.equal(again(x, read), stack(x, state))
    swapped = stack(x, state.reorder(torch.tensor([1, 0])))
    alone = again(x[:1], read.reorder(torch.tensor([1])))
    torch.testing.assert_close(alone, swapped[:1])  # not to the bit: matrix products depend on the batch size


@torch.no_grad()
def test_operations_are_linear_in_the_length():
    layer, rounds = Memory(D, pool_size=8, summary_dim=8, interval=64), []

    def counted(length):
        count = 0
        sort = torch.argsort

        def argsort(*args, **kwargs):
            nonlocal count
            count += args[0].shape[-1]
            return sort(*args, **kwargs)

        torch.argsort = argsort
        try:
            with FlopCounterMode(display=False) as counter:
                layer(torch.randn(1, length, D))
        finally:
            torch.argsort = sort
        rounds.append(count)
        return counter.get_total_flops()

    operations = [counted(1000 * 4**power) for power in range(4)]  # 1k to 64k
    for values in (operations, rounds):
        for power in range(1, 4):
            assert values[power] / values[0] == pytest.approx(4**power, rel=0.15)


def test_a_model_learns_what_to_keep():
    """A symbol at the start, many others, a query at the end: the pool keeps the symbol over any distance."""
    torch.manual_seed(0)
    backbone = Backbone(16, "Nm", mamba={"d_state": 4}, memory={"pool_size": 4, "summary_dim": 8, "interval": 8})
    model = LanguageModel(10, backbone, tie=False, initial_std=1.0)
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def batch(size, length):
        ids = torch.randint(4, 9, (size, length), generator=generator)
        ids[:, 0], ids[:, -1] = torch.randint(4, (size,), generator=generator), 9
        return ids, ids[:, 0]

    for _ in range(100):
        ids, target = batch(16, 24)
        optimiser.zero_grad()
        F.cross_entropy(model(ids)[:, -1, :4], target).backward()
        optimiser.step()
    ids, target = batch(64, 600)

    def right():
        with torch.no_grad():
            return (model(ids)[:, -1, :4].argmax(-1) == target).double().mean()

    assert right() > 0.6  # chance is 1/4; 25 times the training length
    backbone.layers[0].mixer.token_threshold = 0.999999
    assert right() < 0.4
