"""Components of `fit`: learning rates, optimiser groups, batches as functions of (seed, epoch, step, rank)."""

from __future__ import annotations

import math
from itertools import chain

import pytest
import torch
from torch import nn

from seqssm.cli.main import main
from seqssm.training.adapters import train_only
from seqssm.training.data import EvalBatches, Loader, TrainBatches
from seqssm.training.seeds import derive_seed


@pytest.fixture
def task(toy):
    from seqssm_toy.task import ToyTask

    def make(**arguments):
        made = ToyTask(inputs=3, **arguments)
        made.configure_model()
        return made

    return make


def test_constant_rate_with_warmup(task):
    made = task(learning_rate=1.0, warmup_steps=4)
    assert [made.rate(0, step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_halving_keeps_the_base_rate_for_two_epochs(task):
    made = task(learning_rate=8.0, schedule="halving")
    assert [made.rate(epoch, 0, 0) for epoch in range(5)] == [8.0, 8.0, 4.0, 2.0, 1.0]


def test_cosine_ends_at_zero(task):
    made = task(learning_rate=2.0, schedule="cosine", warmup_steps=10)
    assert made.rate(0, 10, 110) == pytest.approx(2.0)
    assert made.rate(0, 60, 110) == pytest.approx(1.0)
    assert made.rate(0, 110, 110) == pytest.approx(0.0, abs=1e-12)
    assert made.rate(0, 35, 110) == pytest.approx(1 + math.cos(math.pi / 4))


def test_vectors_and_the_scans_own_parameters_have_no_weight_decay(task):
    made = task(weight_decay=0.1)
    made.model.A_log = nn.Parameter(torch.zeros(4, 2))
    made.model.D = nn.Parameter(torch.zeros(4, 2))
    made.model.dt_bias = nn.Parameter(torch.zeros(4, 2))
    decayed, rest = made.configure_optimizers().param_groups
    assert decayed["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0
    names = {id(parameter): name for name, parameter in made.model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {"backbone.0.weight", "head.weight"}
    assert {names[id(p)] for p in rest["params"]} == {"backbone.0.bias", "head.bias", "A_log", "D", "dt_bias"}


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_gradients_are_clipped_in_each_precision(toy, precision):
    fit = ["toy", "fit", "--config", "tiny", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
    fit += ["--trainer.precision", precision, "--trainer.gradient_clip_val", "0.5", "--output", "run"]
    assert main(fit) == 0


def test_a_seed_gives_the_same_initial_weights_on_every_device(toy):
    from seqssm_toy.task import ToyTask

    found = []
    for device in ("cpu", "cuda:0"):  # Lightning makes the device of the run the default
        made = ToyTask(inputs=3)
        torch.manual_seed(0)
        with torch.device(device):
            made.configure_model()
        found.append(made.model.parameters())
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_frozen_parameters_are_not_in_the_optimiser(task):
    made = task()
    assert train_only(made.model, made.is_head) == 2
    groups = made.configure_optimizers().param_groups
    assert sum(len(group["params"]) for group in groups) == 2


def test_a_model_without_a_head_cannot_be_frozen(toy, monkeypatch, capsys):
    from seqssm_toy.task import ToyTask

    monkeypatch.setattr(ToyTask, "head", ("decoder",))
    assert main(["toy", "fit", "--config", "tiny", "--model.freeze", "backbone", "--output", "run"]) == 2
    assert "--model.freeze backbone: this model has no module decoder to train" in capsys.readouterr().err


def test_statistics_of_frozen_norms_stay():
    """Batch norms of a frozen network went on with the statistics of the new records."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.BatchNorm1d(2))
    assert train_only(model, lambda name: name.startswith(("2.", "3."))) == 4
    before = model[1].running_mean.clone(), model[3].running_mean.clone()
    model(torch.randn(8, 3) + 1)
    assert torch.equal(model[1].running_mean, before[0])
    assert not torch.equal(model[3].running_mean, before[1])


def test_the_head_is_identified_by_whole_names(task):
    made = task()
    assert made.is_head("head.weight")
    assert made.is_head("head")
    assert not made.is_head("header.weight")
    assert not made.is_head("backbone.head.weight")


def drawn(**changes) -> list:
    arguments = {"count": 23, "batch_size": 4, "seed": 1, "rank": 0, "world": 1, "drop_last": False}
    epoch = changes.pop("epoch", 0)
    batches = TrainBatches(**{**arguments, **changes})
    batches.epoch = epoch
    return list(batches)


def test_batches_are_a_function_of_seed_and_epoch():
    assert drawn() == drawn()
    assert drawn() != drawn(seed=2)
    assert drawn() != drawn(epoch=1)
    assert [batch.seed for batch in drawn()] == [derive_seed(1, 0, step, 0, 1) for step in range(6)]
    seeds = [batch.seed for rank in (0, 1) for epoch in (0, 1) for batch in drawn(rank=rank, world=2, epoch=epoch)]
    assert len(set(seeds)) == len(seeds)


def test_an_epoch_holds_every_record_once():
    assert sorted(chain.from_iterable(drawn())) == list(range(23))
    assert [len(batch) for batch in drawn()] == [4, 4, 4, 4, 4, 3]
    assert [len(batch) for batch in drawn(drop_last=True)] == [4] * 5


@pytest.mark.parametrize("world", [2, 3])
def test_processes_divide_the_batches_of_one(world):
    """A batch is that of a single process, padded to a multiple of the number of processes."""
    whole = drawn(batch_size=4 * world)
    shares = [drawn(batch_size=4 * world, rank=rank, world=world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    for step, batch in enumerate(whole):
        together = [index for share in shares for index in share[step]]
        assert set(batch) <= set(together)
        assert len(together) - len(batch) < world
        assert len({len(share[step]) for share in shares}) == 1


def test_an_epoch_resumed_in_the_middle_is_its_remainder():
    batches = TrainBatches(23, 4, 1, 0, 1, False)
    whole = list(batches)
    batches.start = 4
    assert list(batches) == whole[4:]
    assert [batch.seed for batch in batches] == [batch.seed for batch in whole[4:]]


@pytest.mark.parametrize(("count", "world"), [(23, 1), (23, 2), (23, 5), (3, 4), (8, 3)])
def test_evaluation_covers_every_record_once_without_the_padding(count, world):
    parts = [EvalBatches(count, 4, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    real = [batch for part in parts for batch in list(part)[: part.real]]
    assert sorted(chain.from_iterable(real)) == list(range(count))
    whole = list(EvalBatches(count, 4, 0, 1))
    assert all(batch in whole for batch in real), "batches are those of one process: the same numbers are drawn"


class Draws:
    """Items that draw a random number when they are read."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.rand(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_the_same_in_any_process(workers):
    def epoch(num_workers, resume_at=0):
        loader = Loader(Draws(), TrainBatches(12, 3, 5, 0, 1, False), num_workers, None, lambda: 2)
        loader.load_state_dict({"served": resume_at})
        return [batch.flatten().tolist() for batch in loader]

    torch.manual_seed(3)
    state = torch.get_rng_state()
    whole = epoch(workers)
    if workers:
        assert torch.equal(torch.get_rng_state(), state), "the global generator is unchanged"
    assert whole == epoch(0)
    assert epoch(workers, resume_at=2) == whole[2:]
    assert epoch(workers, resume_at=4) == whole, "after a whole epoch, the next one begins"


def test_derived_seeds_depend_on_every_number():
    seeds = {derive_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125
    assert derive_seed(1, 2) == derive_seed(1, 2) < 2**63
    assert derive_seed(-1) == derive_seed(2**64 - 1)
