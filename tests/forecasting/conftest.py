"""Simulated series, and one small trained run that several tests read."""

from __future__ import annotations

import pytest
import torch
from seqssm_forecasting import simulate

SMALL = ["--data.lookback", "24", "--data.horizon", "6", "--model.d_model", "16", "--model.d_state", "4"]
SMALL += ["--model.blend", "false"]  # saves the training of a DLinear in most tests; test_blend.py has the blend
SMALL += ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--data.batch_size", "16"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(11)


@pytest.fixture(scope="session")
def my_csv(tmp_path_factory):
    """The user's own wide CSV: 400 hours of 4 series."""
    path = tmp_path_factory.mktemp("made") / "my.csv"
    simulate.series(400, 3).to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def trained(my_csv, tmp_path_factory):
    """A tested run of the preset for own CSV files; not to be changed."""
    from seqssm.cli.main import main

    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.delenv("PL_GLOBAL_SEED")
        command = ["forecasting", "fit", "--config", "smamba", "--data.file", str(my_csv), "--output", str(folder)]
        assert main([*command, *SMALL]) == 0
        assert main(["forecasting", "test", str(folder)]) == 0
    return folder
