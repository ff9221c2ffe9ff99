"""Training on means and records: which samples are drawn, and that records scatter around the means."""

from __future__ import annotations

import torch

from seqssm.incremental import learn as learning
from seqssm.incremental.learn import Recipe, _deviations, _scattered, learn
from seqssm.nn.etf import Classifying, make_head
from seqssm.nn.selective_projector import make_projector
from seqssm.training.class_means import ClassInputs, base_features, means_of


def inputs(y):
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(len(y), 8, generator=generator)
    return ClassInputs(pooled, torch.randn(len(y), 4, 8, generator=generator), torch.tensor(y))


def test_deviations_have_mean_zero_in_each_class():
    records = inputs([3, 3, 3, 5, 5, 6])
    found = _deviations(records)
    for label in (3, 5, 6):
        own = records.y == label
        torch.testing.assert_close(found.pooled[own].mean(0), torch.zeros(8), rtol=0, atol=1e-6)
        torch.testing.assert_close(
            found.tokens[own], records.tokens[own] - records.tokens[own].mean(0), rtol=0, atol=1e-6
        )
    assert not found.pooled[records.y == 6].any()


def test_means_are_scattered_and_records_are_not():
    samples, scatter = inputs([0, 1, 2, 2]), _deviations(inputs([2, 2, 2]))
    means = torch.tensor([True, True, False, False])
    found = _scattered(samples, means, scatter, 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(found.pooled[2:], samples.pooled[2:])
    assert torch.equal(found.tokens[2:], samples.tokens[2:])
    for added, tokens in zip(found.pooled[:2] - samples.pooled[:2], found.tokens[:2] - samples.tokens[:2], strict=True):
        rows = [k for k in range(3) if torch.allclose(added, 0.5 * scatter.pooled[k], atol=1e-6)]
        assert len(rows) == 1
        torch.testing.assert_close(tokens, 0.5 * scatter.tokens[rows[0]], rtol=0, atol=1e-6)


class Network(Classifying):
    """Projector and head alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = make_head(8, 3, "etf", 4)
        self.projector = make_projector(8, "dual", 4, d_state=2)


def test_only_the_named_branch_is_trained():
    for branch, other in (("new", "base"), ("base", "new")):
        network, records = Network(), inputs([0, 0, 1, 1])
        means, shots = means_of(network, [records], ["a", "b", "c"]), inputs([2] * 5)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        old = base_features(network, shots)
        learn(network, means, shots, 2, 2, Recipe(steps=3, branch=branch))
        after = network.state_dict()
        changed = {name.split(".")[1] for name in after if not torch.equal(before[name], after[name])}
        assert changed == {branch}, other
        assert torch.equal(old, base_features(network, shots)) == (branch == "new")


def test_learning_moves_records_to_the_direction_of_their_class():
    network, shots = Network(), inputs([2] * 5)
    means = means_of(network, [inputs([0, 0, 1, 1])], ["a", "b", "c"])
    with torch.no_grad():
        before = network.classify(shots.pooled, shots.tokens)[:, 2].mean()
        learn(network, means, shots, 2, 2, Recipe(steps=0))
        assert torch.equal(network.classify(shots.pooled, shots.tokens)[:, 2].mean(), before)
    learn(network, means, shots, 2, 2, Recipe(steps=40, learning_rate=0.02))
    with torch.no_grad():
        assert network.classify(shots.pooled, shots.tokens)[:, 2].mean() > before + 2


def test_augmented_records_are_learned_with_twice_the_steps(monkeypatch):
    """Both numbers were chosen on spare characters of Omniglot; means of old classes are not augmented."""
    drawn = []
    monkeypatch.setattr(learning, "_loss", lambda network, own, *rest: drawn.append(own) or own.pooled.sum() * 0)
    shots, more = inputs([2] * 5), inputs([2] * 40)
    network = Network()
    means = means_of(network, [inputs([0, 0, 1, 1])], ["a", "b", "c"])
    for augmented, steps in ((None, learning.STEPS), (more, learning.AUGMENTED_STEPS)):
        drawn.clear()
        learn(network, means, shots, 2, 2, augmented=augmented)
        assert len(drawn) == steps
    learn(network, means, shots, 2, 2, Recipe(steps=7, spread=0.0), more)
    seen = torch.cat([own.tokens[own.y == 2] for own in drawn[-7:]]).flatten(1)
    assert len(seen.unique(dim=0)) > 5, "augmented records are drawn too"
