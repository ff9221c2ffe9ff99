"""The synthetic tasks: their targets, and that a capable model learns them."""

from __future__ import annotations

import pytest
import torch

from seqssm import Backbone, LanguageModel
from seqssm.tools.synthetic import IGNORED, Copying, ModularSum, Passkey, Recall, Schedule, accuracy, train


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_recall_asks_for_the_value_of_each_key():
    ids, targets = Recall(pairs=5, keys=7).batch(50, generator())
    assert ids.shape == targets.shape == (50, 15)
    for row, wanted in zip(ids.tolist(), targets.tolist(), strict=True):
        values = dict(zip(row[0:10:2], row[1:10:2], strict=True))
        assert len(values) == 5
        assert all(key < 7 <= value < 14 for key, value in values.items())
        assert wanted[:10] == [IGNORED] * 10
        assert sorted(row[10:]) == sorted(values)
        assert wanted[10:] == [values[key] for key in row[10:]]


def test_passkeys_are_hidden_in_noise():
    for pairs, length in ((1, 3), (3, 40), (5, 15)):
        ids, targets = Passkey(pairs, length, keys=7, noise=4).batch(50, generator())
        assert ids.shape == targets.shape == (50, length)
        assert ids.max() < Passkey(pairs, length, keys=7, noise=4).vocab_size == 18
        starts = set()
        for row, wanted in zip(ids.tolist(), targets.tolist(), strict=True):
            hidden, queries = row[:-pairs], row[-pairs:]
            places = [place for place, symbol in enumerate(hidden) if symbol < 7]
            values = {hidden[place]: hidden[place + 1] for place in places}
            assert len(values) == pairs
            assert all(7 <= value < 14 for value in values.values())
            assert sum(symbol >= 14 for symbol in hidden) == len(hidden) - 2 * pairs
            assert sorted(queries) == sorted(values)
            assert wanted == [IGNORED] * len(hidden) + [values[key] for key in queries]
            starts.add(tuple(places))
        assert len(starts) > 10 or length < 40
    for pairs, length in ((8, 100), (0, 9), (3, 8)):
        with pytest.raises(ValueError, match=r"pairs|does not hold"):
            Passkey(pairs, length, keys=7)


def test_copying_asks_for_the_string_again():
    ids, targets = Copying(length=4, symbols=3).batch(20, generator())
    assert ids.shape == targets.shape == (20, 8)
    assert (ids[:, 4] == 3).all()
    assert torch.equal(targets[:, 4:], ids[:, :4])
    assert torch.equal(ids[:, 5:], ids[:, :3])
    assert (targets[:, :4] == IGNORED).all()


def test_sums_are_modular():
    ids, targets = ModularSum(length=9, modulus=5).batch(20, generator())
    assert ids.shape == targets.shape == (20, 10)
    assert (ids[:, 0] == 5).all()
    assert (targets[:, 0] == IGNORED).all()
    state = 0
    for symbol, wanted in zip(ids[3, 1:].tolist(), targets[3, 1:].tolist(), strict=True):
        state = (state + symbol) % 5
        assert wanted == state


def test_batches_follow_their_seed():
    for task in (Recall(3, 5), Copying(3), ModularSum(3), Passkey(2, 12)):
        first, second, other = (task.batch(4, generator(seed))[0] for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)


class Machine(torch.nn.Module):
    """The right answer to parity."""

    def forward(self, ids):
        state = (ids * (ids < 2)).cumsum(1) % 2
        return torch.nn.functional.one_hot(state, 2).float()


def test_accuracy_counts_right_answers():
    assert accuracy(Machine(), ModularSum(30), batches=2) == 1.0
    wrong = accuracy(lambda_module(lambda ids: -Machine()(ids)), ModularSum(30), batches=2)
    assert wrong == 0.0


def lambda_module(function):
    module = torch.nn.Module()
    module.forward = function
    return module


def test_the_trainer_trains(one_thread):
    torch.manual_seed(0)
    task = Recall(pairs=2, keys=4)
    model = LanguageModel(task.vocab_size, Backbone(16, "m*", mamba={"d_state": 4}, attention={"n_heads": 2}))
    before = accuracy(model, task)
    loss = train(model, task, Schedule(steps=150, lr=2e-2))
    assert before < 0.5
    assert accuracy(model, task) > 0.95
    assert loss < 0.5


def small_model():
    torch.manual_seed(0)
    return LanguageModel(3, Backbone(8, "m", mamba={"d_state": 2}), tie=False, initial_std=1.0)


def test_the_loss_of_the_trainer_is_smoothed():
    task, model = ModularSum(6), small_model()
    ids, targets = task.batch(5, generator(3))
    logits = model(ids).flatten(0, 1)
    for smoothing in (0.0, 0.3):
        wanted = torch.nn.functional.cross_entropy(
            logits, targets.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
        )
        loss = train(small_model(), task, Schedule(steps=1, batch_size=5, seed=3, label_smoothing=smoothing))
        torch.testing.assert_close(loss, wanted.item())


def test_beta2_is_that_of_the_optimiser():
    moved = []
    for beta2 in (0.5, 0.999):
        model = torch.nn.Embedding(3, 3)
        torch.nn.init.zeros_(model.weight)
        train(model, ModularSum(6), Schedule(steps=20, batch_size=5, lr=0.1, weight_decay=0.0, beta2=beta2))
        moved.append(model.weight.detach().clone())
    assert not torch.allclose(moved[0], moved[1], atol=1e-3)
