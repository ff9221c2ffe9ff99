"""Subnormal numbers are zero while a model is trained or tested, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seqssm.training.run import Options, evaluate, fit
from seqssm.training.subnormals import flushed


def product() -> float:
    return float(torch.full((), 1e-39).mul(1))


def test_the_mode_is_restored():
    assert product() > 0
    with flushed():
        assert product() == 0
        with flushed():
            assert product() == 0
        assert product() == 0
    assert product() > 0
    with pytest.raises(ValueError, match="now"), flushed():
        raise ValueError("now")
    assert product() > 0


def test_training_and_test_take_them_for_zero(toy, monkeypatch):
    """The backward pass of convolutions after GELU became 10 times slower in the course of a training."""
    from seqssm.training.task import Task

    found = {}

    def note(name):
        before = getattr(Task, name, None)

        def hook(task):
            found[name] = product()
            if before is not None:
                before(task)

        monkeypatch.setattr(Task, name, hook, raising=False)

    for name in ("on_train_epoch_start", "on_test_epoch_end"):
        note(name)
    finished = fit(toy, ["tiny"], Options(["--trainer.max_epochs", "1"]), output=Path("flushed"))
    evaluate(toy, "test", finished.folder.path)
    assert found == {"on_train_epoch_start": 0, "on_test_epoch_end": 0}
    assert product() > 0
