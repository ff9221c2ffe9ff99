"""The average of weights: its values, where it is used, and resumed runs."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from seqssm.cli.main import main
from seqssm.domain import domains
from seqssm.training.averaging import TRAINED, averaged_tensors
from seqssm.training.checkpoint import read_checkpoint

DECAY = 0.8
STEPS = 8  # per epoch
FIT = ["toy", "fit", "--config", "tiny", "--data.rows", "120", "--model.averaging", str(DECAY)]


def load(name):
    return torch.load(name, weights_only=True)


def require_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.fixture
def steps(monkeypatch):
    """The weights after each step of the optimiser, filled by a fit."""
    from seqssm_toy.task import ToyTask

    found = []

    def on_before_zero_grad(task, optimizer):  # of the next step: the weights of the step before
        found.append({name: one.detach().clone() for name, one in task.state_dict().items()})

    monkeypatch.setattr(ToyTask, "on_before_zero_grad", on_before_zero_grad, raising=False)
    return found


def test_the_checkpoint_has_the_weighted_mean_of_the_steps(toy, steps):
    assert main([*FIT, "--output", "run", "--data.validation", "false"]) == 0
    last = load("run/last.ckpt")
    trained = [*steps[1:], last["seqssm"][TRAINED]]
    assert len(trained) == last["global_step"]
    shares = torch.tensor([DECAY**age for age in reversed(range(len(trained)))], dtype=torch.float64)
    for name, value in last["state_dict"].items():
        mean = sum(share * step[name] for share, step in zip(shares / shares.sum(), trained))
        torch.testing.assert_close(value, mean.to(value.dtype), rtol=1e-5, atol=1e-7)
    best = load("run/best.ckpt")
    require_same(best["state_dict"], last["state_dict"])  # without validation, the last epoch is the best one
    assert TRAINED not in best["seqssm"]


def test_the_average_is_validated_and_the_training_goes_on_without_it(toy, capsys):
    assert main([*FIT, "--output", "run"]) == 0
    assert main([*FIT[:-2], "--output", "plain"]) == 0
    with open("run/log.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with open("plain/log.csv", newline="", encoding="utf-8") as file:
        plain = list(csv.DictReader(file))
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in plain]
    assert [row["val_loss"] for row in rows] != [row["val_loss"] for row in plain]
    require_same(load("run/last.ckpt")["seqssm"][TRAINED], load("plain/last.ckpt")["state_dict"])
    capsys.readouterr()
    assert main(["toy", "validate", "run/last.ckpt"]) == 0
    assert f"{float(rows[-1]['val_loss']):.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("step", "more"),
    [
        (2, []),
        (STEPS + 3, []),
        (STEPS + 6, ["--trainer.accumulate_grad_batches", "3", "--data.validation", "false"]),
        (2 * STEPS, ["--model.schedule", "cosine", "--model.warmup_steps", "3"]),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_average(toy, monkeypatch, step, more):
    from seqssm_toy.task import ToyTask

    assert main([*FIT, "--output", "whole", *more]) == 0
    monkeypatch.setenv("SEQSSM_CHECKPOINT_SECONDS", "0")
    original, seen = ToyTask.training_step, []

    def training_step(task, batch, batch_idx):
        seen.append(batch_idx)
        if len(seen) == step:
            raise OSError("power cut")
        return original(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ToyTask, "training_step", training_step)
        assert main([*FIT, "--output", "run", *more]) == 1
    assert main(["toy", "fit", "--resume", "run"]) == 0
    for name in ("best.ckpt", "last.ckpt"):
        whole, run = load(f"whole/{name}"), load(f"run/{name}")
        require_same(whole["state_dict"], run["state_dict"])
        require_same(whole["seqssm"].get(TRAINED, {}), run["seqssm"].get(TRAINED, {}))


def test_only_what_is_trained_is_averaged(toy):
    assert main(["toy", "fit", "--config", "tiny", "--output", "first"]) == 0
    assert main([*FIT, "--output", "run", "--model.init_from", "first", "--model.freeze", "backbone"]) == 0
    assert set(load("run/last.ckpt")["seqssm"][TRAINED]) == {"model.head.weight", "model.head.bias"}
    frozen = [name for name in load("run/last.ckpt")["state_dict"] if "backbone" in name]
    first, run = load("first/best.ckpt")["state_dict"], load("run/best.ckpt")["state_dict"]
    require_same({name: first[name] for name in frozen}, {name: run[name] for name in frozen})


def test_the_statistics_of_batch_normalisation_are_averaged():
    net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3))
    net[0].weight.requires_grad = False
    names = [name for name, _ in averaged_tensors(net)]
    assert names == ["0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]


def test_the_model_in_memory_has_the_average_after_a_fit(toy):
    from seqssm.training import run
    from seqssm.training.run import Options

    finished = run.fit(domains()["toy"], ["tiny"], Options(overrides=FIT[4:]), output="run")
    own = {name: one for name, one in finished.cli.model.state_dict().items() if name.startswith("model.")}
    require_same(own, load("run/last.ckpt")["state_dict"])


PLAIN = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


def make(averaging=DECAY):
    from seqssm_toy.data import ToyData
    from seqssm_toy.task import ToyTask

    torch.manual_seed(3)
    return ToyTask(averaging=averaging, learning_rate=0.01), ToyData(rows=120, batch_size=8)


def test_a_fit_of_plain_lightning_continues_from_its_checkpoint(toy):
    """`save_checkpoint` after the fit: the weights of the optimiser were lost, and the average was continued."""
    for name, epochs, before in (("whole", 4, None), ("half", 2, None), ("again", 4, "half")):
        task, data = make()
        trainer = Trainer(max_epochs=epochs, **PLAIN)
        trainer.fit(task, datamodule=data, ckpt_path=before)
        trainer.save_checkpoint(name)
    require_same(load("whole")["state_dict"], load("again")["state_dict"])
    require_same(load("whole")["seqssm"][TRAINED], load("again")["seqssm"][TRAINED])


@pytest.mark.parametrize("averaging", [0.0, DECAY])
def test_a_task_is_validated_between_fits(toy, averaging):
    task, data = make(averaging)
    for fn in ("validate", "fit", "validate", "test", "fit"):
        before = {name: one.clone() for name, one in task.state_dict().items()}
        getattr(Trainer(max_epochs=1, enable_model_summary=False, **PLAIN), fn)(task, datamodule=data)
        if before and fn != "fit":
            require_same(before, task.state_dict())


def test_a_fit_after_one_that_was_interrupted_in_a_validation(toy):
    """The average and the weights of the optimiser were exchanged from then on."""
    task, data = make()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "on_validation_epoch_end", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Trainer(max_epochs=1, num_sanity_val_steps=0, **PLAIN).fit(task, datamodule=data)
    trainer = Trainer(max_epochs=1, **PLAIN)
    trainer.fit(task, datamodule=data)
    own = {name: one.clone() for name, one in task.state_dict().items()}
    trainer.save_checkpoint("after")
    require_same(own, load("after")["state_dict"])
    assert not torch.equal(own["model.head.weight"], load("after")["seqssm"][TRAINED]["model.head.weight"])


def test_other_uses_of_a_checkpoint_do_not_see_the_weights_of_the_optimiser(toy):
    assert main([*FIT, "--output", "run"]) == 0
    assert TRAINED in load("run/last.ckpt")["seqssm"]
    assert TRAINED not in read_checkpoint("run/last.ckpt")["seqssm"]


@pytest.mark.parametrize("value", ["1", "-0.1", ".nan"])
def test_a_decay_is_at_least_0_and_below_1(toy, capsys, value):
    assert main([*FIT[:-1], value]) == 2
    assert "--model.averaging" in capsys.readouterr().err


@pytest.mark.long
def test_two_processes(toy, capsys):
    both = [*FIT, "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    for name, decay in (("run", DECAY), ("plain", 0.0)):
        words = [*both, "--output", name, "--model.averaging", str(decay)]
        subprocess.run([sys.executable, "-m", "seqssm", *words], check=True, timeout=300)
    require_same(load("run/last.ckpt")["seqssm"][TRAINED], load("plain/last.ckpt")["state_dict"])
    one = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    assert main(["toy", "validate", "run/last.ckpt", *one]) == 0
    with open("run/log.csv", newline="", encoding="utf-8") as file:
        assert f"{float(list(csv.DictReader(file))[-1]['val_loss']):.4f}" in capsys.readouterr().out
