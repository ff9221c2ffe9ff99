"""A resumed fit equals an uninterrupted one in weights and log, whatever stopped it and where."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from seqssm.cli.main import main

FIT = ["toy", "fit", "--config", "tiny", "--data.rows", "120", "--model.weight_decay", "0.1"]  # 8 steps per epoch
STEPS = 8


def last(run) -> dict:
    return torch.load(Path(run) / "last.ckpt", weights_only=True)


def log(run) -> list[dict[str, str]]:
    with open(Path(run) / "log.csv", newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in csv.DictReader(file)]


def require_equal(one, other) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (torch.load(Path(run) / name, weights_only=True) for run in (one, other))
        for key, value in a["state_dict"].items():
            assert torch.equal(value, b["state_dict"][key]), (name, key)
        assert a["global_step"] == b["global_step"]
    assert log(one) == log(other)


@pytest.fixture
def undisturbed(toy):
    """The run that every resumed one must equal; also with further arguments."""

    def fit(*more) -> str:
        assert main([*FIT, "--output", "whole", *more]) == 0
        return "whole"

    return fit


class Power:
    """Calls `cut` in training step `step` (from 1)."""

    def __init__(self, monkeypatch, step: int, cut) -> None:
        from seqssm_toy.task import ToyTask

        loss = ToyTask.training_step

        def training_step(task, batch, batch_idx):
            self.seen += 1
            if self.seen == step:
                cut()
            return loss(task, batch, batch_idx)

        self.seen = 0
        monkeypatch.setattr(ToyTask, "training_step", training_step)


def power_cut():
    raise OSError("power cut")


@pytest.mark.parametrize(
    ("step", "more"),
    [
        (2, []),
        (STEPS, []),
        (STEPS + 1, ["--model.schedule", "cosine", "--model.warmup_steps", "5"]),
        (STEPS + 6, ["--trainer.accumulate_grad_batches", "3"]),
        (STEPS + 4, ["--data.num_workers", "1", "--data.validation", "false", "--model.schedule", "halving"]),
    ],
)
def test_a_crash_at_any_step_resumes_to_equal_weights(undisturbed, monkeypatch, step, more):
    whole = undisturbed(*more)
    monkeypatch.setenv("SEQSSM_CHECKPOINT_SECONDS", "0")
    with monkeypatch.context() as patch:
        Power(patch, step, power_cut)
        assert main([*FIT, "--output", "run", *more]) == 1
    assert last("run")["global_step"] < 3 * STEPS
    assert main(["toy", "fit", "--resume", "run"]) == 0
    require_equal(whole, "run")


@pytest.mark.parametrize("step", [4, 5, STEPS + 4])
@pytest.mark.parametrize("stop", ["power cut after the step", "SIGTERM"])
def test_validations_within_an_epoch(undisturbed, monkeypatch, step, stop):
    """A run that was stopped at the batch before a validation did not validate, and its log lacked the one before."""
    more = ["--trainer.val_check_interval", "4", "--model.averaging", "0.9"]
    whole = undisturbed(*more)
    monkeypatch.setenv("SEQSSM_CHECKPOINT_SECONDS", "0")
    with monkeypatch.context() as patch:
        if stop == "SIGTERM":
            Power(patch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
            assert main([*FIT, "--output", "run", *more]) == 130
        else:
            Power(patch, step + 1, power_cut)
            assert main([*FIT, "--output", "run", *more]) == 1
    assert last("run")["global_step"] == step
    assert main(["toy", "fit", "--resume", "run"]) == 0
    require_equal(whole, "run")


@pytest.mark.parametrize(("steps", "more"), [(4, []), (5, []), (4, ["--data.validation", "false"])])
def test_the_last_step_is_before_a_validation(undisturbed, steps, more):
    more = ["--trainer.val_check_interval", "4", *more]
    whole = undisturbed(*more)
    assert main([*FIT, "--output", "run", *more, "--trainer.max_steps", str(steps)]) == 0
    assert last("run")["global_step"] == steps
    assert main(["toy", "fit", "--resume", "run", "--trainer.max_steps", "-1"]) == 0
    require_equal(whole, "run")


@pytest.mark.long
def test_a_run_may_be_interrupted_again_and_again(undisturbed, monkeypatch):
    whole = undisturbed()
    monkeypatch.setenv("SEQSSM_CHECKPOINT_SECONDS", "0")
    fit = [*FIT, "--output", "run"]
    for step in (3, 4, 9):
        with monkeypatch.context() as patch:
            Power(patch, step, power_cut)
            assert main(fit) == 1
        fit = ["toy", "fit", "--resume", "run"]
    assert main(fit) == 0
    require_equal(whole, "run")


def test_an_argument_inferred_from_the_data_need_not_be_given_again(run, capsys, monkeypatch):
    """`Task.inferred_args`: the configuration has null, the checkpoint the inferred value."""
    from seqssm_toy.task import ToyTask

    resume = ["toy", "fit", "--resume", str(run), "--trainer.max_epochs", "4"]
    assert "inputs: null" in (run / "config.yaml").read_text(encoding="utf-8")
    assert main([*resume, "--model.inputs", "2"]) == 2
    assert "--model.inputs: the checkpoint has 3, not 2; drop the option" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(ToyTask, "inferred_args", ())
        assert main(resume) == 2
    assert "--model.inputs: the checkpoint has 3, not None" in capsys.readouterr().err
    assert len(log(run)) == 3
    assert main(resume) == 0
    assert len(log(run)) == 4
    assert main([*resume[:-1], "5", "--model.inputs", "3"]) == 0
    assert main(["toy", "test", str(run)]) == 0
    assert main(["toy", "test", str(run), "--model.inputs", "2"]) == 2
    assert "--model.inputs" in capsys.readouterr().err


def test_without_a_checkpoint_it_starts_from_the_beginning(undisturbed, monkeypatch, capsys):
    whole = undisturbed()
    with monkeypatch.context() as patch:
        Power(patch, 3, power_cut)
        assert main([*FIT, "--output", "run"]) == 1
    assert not Path("run/last.ckpt").exists()
    assert main(["toy", "fit", "--resume", "run"]) == 0
    assert "no checkpoint yet" in capsys.readouterr().out
    require_equal(whole, "run")


def test_a_run_that_lost_its_last_checkpoint_is_not_started_again(undisturbed, capsys):
    run = Path(undisturbed())
    (run / "last.ckpt").unlink()
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert main(["toy", "fit", "--resume", str(run)]) == 2
    assert "last.ckpt: is missing, but the run has finished epochs" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_with_130(undisturbed, monkeypatch, capsys, number):
    whole = undisturbed()
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        with monkeypatch.context() as patch:
            Power(patch, STEPS + 3, lambda: os.kill(os.getpid(), number))
            assert main([*FIT, "--output", "run"]) == 130
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    assert "interrupted; continue with: seqssm toy fit --resume run" in capsys.readouterr().err
    assert last("run")["global_step"] == STEPS + 3, "the current batch is finished and saved"
    assert not Path("run/.lock").exists()
    assert main(["toy", "fit", "--resume", "run"]) == 0
    require_equal(whole, "run")


def test_early_stopping_counts_on(undisturbed, monkeypatch):
    more = ["--early_stopping.patience", "2", "--model.learning_rate", "0.3", "--trainer.max_epochs", "40"]
    whole = undisturbed(*more)
    epochs = len(log(whole))
    assert epochs < 40, "the preset should stop early"
    monkeypatch.setenv("SEQSSM_CHECKPOINT_SECONDS", "0")
    with monkeypatch.context() as patch:
        Power(patch, (epochs - 1) * STEPS + 2, power_cut)
        assert main([*FIT, "--output", "run", *more]) == 1
    assert main(["toy", "fit", "--resume", "run"]) == 0
    require_equal(whole, "run")
    assert main(["toy", "fit", "--resume", "run"]) == 0, "a stopped run stays stopped"
    require_equal(whole, "run")


def test_killed_in_mid_epoch_resumes_to_equal_weights(undisturbed, monkeypatch):
    """SIGKILL of a real process; the resumed half runs in this one."""
    whole = undisturbed("--model.slow", "0.03")
    words = [sys.executable, "-m", "seqssm", *FIT, "--model.slow", "0.03", "--output", "run"]
    child = subprocess.Popen(
        words, env={**os.environ, "SEQSSM_CHECKPOINT_SECONDS": "0.05"}, stdout=subprocess.DEVNULL, text=True
    )
    while child.poll() is None:
        time.sleep(0.01)
        if Path("run/log.csv").exists() and last("run")["global_step"] > STEPS + 1:
            break
    child.kill()
    child.wait()
    assert child.returncode == -signal.SIGKILL
    step = last("run")["global_step"]
    assert STEPS < step < 3 * STEPS
    assert main(["toy", "fit", "--resume", "run"]) == 0
    require_equal(whole, "run")


class Pair:
    """A fit on two processes in a separate process group, 25 steps per epoch."""

    DDP = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size")
    STEPS = 25

    def __init__(self, *words: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "seqssm", *words],
            env={**os.environ, "SEQSSM_CHECKPOINT_SECONDS": "0", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def signal_after(self, step: int, number: int, limit: float = 120) -> None:
        """Send a signal to both processes, as a batch system does, once `last.ckpt` has advanced."""
        began = time.monotonic()
        while not Path("run/last.ckpt").exists() or last("run")["global_step"] <= step:
            assert self.child.poll() is None, "ended before it was interrupted"
            assert time.monotonic() - began < limit
            time.sleep(0.01)
        os.killpg(self.child.pid, number)

    def end(self) -> tuple[int, str]:
        """Exit code and standard error of the first process."""
        try:
            printed = self.child.communicate(timeout=120)[1]
        finally:
            if self.child.poll() is None:  # they wait for one another
                os.killpg(self.child.pid, signal.SIGKILL)
        return self.child.returncode, printed


@pytest.mark.long
def test_two_processes_killed_and_terminated_resume_to_equal_weights(toy):
    """SIGKILL of both after the first epoch, later SIGTERM to both; the result equals an uninterrupted run."""
    fit = ["toy", "fit", "--config", "tiny", "--data.rows", "100", "--model.weight_decay", "0.1", *Pair.DDP, "2"]
    fit += ["--model.slow", "0.03"]
    assert Pair(*fit, "--output", "whole").end()[0] == 0
    killed = Pair(*fit, "--output", "run")
    killed.signal_after(Pair.STEPS + 1, signal.SIGKILL)
    assert killed.end()[0] == -signal.SIGKILL
    first = last("run")["global_step"]
    assert Pair.STEPS + 1 < first < 3 * Pair.STEPS - 5
    terminated = Pair("toy", "fit", "--resume", "run")
    terminated.signal_after(first, signal.SIGTERM)
    code, printed = terminated.end()
    assert code == 130
    assert printed.count("interrupted; continue with: seqssm toy fit --resume run") == 1, (
        "only the first process prints"
    )
    assert first < last("run")["global_step"] < 3 * Pair.STEPS
    assert Pair("toy", "fit", "--resume", "run").end()[0] == 0
    require_equal("whole", "run")


def test_another_seed_gives_other_weights(undisturbed):
    whole = undisturbed()
    assert main([*FIT, "--output", "run", "--seed_everything", "8"]) == 0
    assert log(whole) != log("run")


def test_a_full_disk_keeps_the_last_checkpoint(toy, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        save, count = torch.save, []

        def full(content, file):
            count.append(1)
            if len(count) == 4:
                file.write(b"half")
                raise OSError(28, "No space left on device")
            save(content, file)

        patch.setattr("seqssm.training.checkpoint.torch.save", full)
        assert main([*FIT, "--output", "run"]) == 2
    message = capsys.readouterr().err.strip()
    assert "run/last.ckpt: no space left on the disk" in message
    assert len(message.splitlines()) == 1
    assert last("run")["global_step"] == STEPS
    assert not [name for name in os.listdir("run") if name.endswith(".tmp")]
    assert main(["toy", "fit", "--resume", "run"]) == 0


@pytest.mark.parametrize(
    ("start", "more"),
    [
        ("6", []),
        (str(STEPS), []),
        ("4", ["--data.validation", "false", "--trainer.accumulate_grad_batches", "2"]),
        ("6", ["--data.validation", "false", "--trainer.accumulate_grad_batches", "2"]),
    ],
)
def test_a_run_that_ended_after_some_steps_goes_on_from_there(undisturbed, capsys, start, more):
    """The rest of the epoch was drawn from the permutation of the next one, and the epoch had two rows in the log."""
    steps = ["--trainer.max_steps", "11"]
    whole = undisturbed(*more, *steps, "--trainer.max_epochs", "5")
    assert main([*FIT, *more, "--trainer.max_steps", start, "--trainer.max_epochs", "5", "--output", "part"]) == 0
    before = Path("part/log.csv").read_bytes()
    capsys.readouterr()
    assert main(["toy", "fit", "--resume", "part"]) == 0
    assert "nothing left to train: epochs done: " in capsys.readouterr().out
    assert Path("part/log.csv").read_bytes() == before
    assert main(["toy", "fit", "--resume", "part", *steps]) == 0
    assert "nothing left" not in capsys.readouterr().out
    require_equal("part", whole)
    assert main(["toy", "fit", "--resume", "part", "--trainer.max_steps", "5"]) == 2
    assert "--trainer.max_steps 5: the run already has 11 steps" in capsys.readouterr().err


def test_a_finished_run_says_that_nothing_is_left(undisturbed, capsys):
    for more in (["--trainer.max_epochs", "1"], ["--trainer.max_epochs", "9", "--early_stopping.patience", "1"]):
        folder = undisturbed(*more, "--model.learning_rate", "1e-12", "--overwrite")
        before = Path(folder, "log.csv").read_bytes()
        capsys.readouterr()
        assert main(["toy", "fit", "--resume", folder]) == 0
        assert "nothing left to train: epochs done: " in capsys.readouterr().out
        assert Path(folder, "log.csv").read_bytes() == before


def test_a_larger_patience_continues_a_run_that_early_stopping_ended(undisturbed, capsys):
    more = ["--model.learning_rate", "1e-12", "--trainer.max_epochs", "6"]
    whole = undisturbed(*more, "--early_stopping.patience", "3")
    folder = "part"
    assert main([*FIT, *more, "--early_stopping.patience", "1", "--output", folder]) == 0
    capsys.readouterr()
    assert main(["toy", "fit", "--resume", folder]) == 0
    assert "early stopping ended it: a larger --early_stopping.patience continues it" in capsys.readouterr().out
    assert main(["toy", "fit", "--resume", folder, "--early_stopping.patience", "3"]) == 0
    assert "nothing left" not in capsys.readouterr().out
    require_equal(folder, whole)


def test_another_monitor_is_refused(undisturbed, capsys):
    folder = undisturbed("--trainer.max_epochs", "1", "--early_stopping.monitor", "val_mse")
    again = ["toy", "fit", "--resume", folder, "--trainer.max_epochs", "2"]
    assert main([*again, "--early_stopping.monitor", "val_loss"]) == 2
    assert "--early_stopping.monitor val_loss: the run has val_mse" in capsys.readouterr().err
    assert main(again) == 0
