"""Loggers of other services beside the run folder, and the how-to page on searches with Optuna."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import seqssm
from seqssm.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
LOGGER = "lightning.pytorch.loggers."
FIT = ["toy", "fit", "--config", "tiny", "--data.rows", "40", "--trainer.max_epochs", "2", "--output", "run"]


def test_a_fit_logs_to_a_tensorboard_folder_of_its_own(toy):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = ["--trainer.logger", f"{LOGGER}TensorBoardLogger", "--trainer.logger.save_dir", "boards"]
    assert main([*FIT, *logger]) == 0
    (events,) = Path("boards").rglob("events.out.tfevents.*")
    board = EventAccumulator(str(events))
    board.Reload()
    logged = [event.value for event in board.Scalars("val_loss")]
    np.testing.assert_allclose(logged, pd.read_csv("run/log.csv")["val_loss"], rtol=1e-4)


@pytest.mark.long
def test_a_fit_logs_to_weights_and_biases_offline(toy, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'seqssm[wandb]'")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(Path("wandb-home").absolute()))
    logger = ["--trainer.logger", f"{LOGGER}WandbLogger", "--trainer.logger.project", "numbers"]
    logger += ["--trainer.logger.offline", "true", "--trainer.logger.save_dir", "boards"]
    Path("boards").mkdir()
    assert main([*FIT, *logger]) == 0
    import wandb

    wandb.finish()
    (log,) = Path("boards").rglob("offline-run-*/run-*.wandb")
    assert b"val_loss" in log.read_bytes()


@pytest.mark.long
def test_the_page_on_optuna_runs(tmp_path, monkeypatch):
    optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install 'seqssm[tune]'")
    page = (ROOT / "docs" / "how-to" / "tune.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for old, new in (
        ("n_trials=20", "n_trials=2"),
        ('"max_epochs": 5', '"max_epochs": 1, "limit_train_batches": 2'),
        ("[32, 64, 128]", "[8, 16]"),
        ('"horizon": 24', '"horizon": 4, "lookback": 16'),
    ):
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    hours = pd.date_range("2024-01-01", periods=200, freq="h")
    pd.DataFrame({"date": hours, "load": np.sin(np.arange(200) / 4)}).to_csv("my.csv", index=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found: dict = {}
    exec(compile(code, "tune.md", "exec"), found)
    trials = found["study"].trials
    assert len(trials) == 2
    for trial in trials:
        run = Path("search") / str(trial.number)
        assert trial.value == pytest.approx(pd.read_csv(run / "log.csv")["val_loss"].min())
        features = seqssm.load(run, accelerator="cpu").embed("my.csv")  # of the network in a blend
        assert len(features.filter(regex="^e[0-9]+$").columns) == trial.params["d_model"]
        assert features["e0"].notna().all()
