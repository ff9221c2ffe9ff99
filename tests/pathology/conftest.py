"""Simulated cohorts and trained runs for the tests of the pathology domain."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from seqssm_pathology import simulate
from seqssm_pathology.files import Bag, write_bag

SMALL = ["--model.d_model", "8", "--model.layers", "1", "--model.d_state", "4", "--model.pool_width", "8"]
SMALL += ["--model.heads", "2", "--model.learning_rate", "5e-3", "--trainer.accelerator", "cpu"]


@pytest.fixture(autouse=True)
def _no_seed_left_behind(one_thread, monkeypatch):
    for name in ("PL_GLOBAL_SEED", "SEQSSM_DATA"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """24 simulated slides: (folder, slides by id); not to be changed."""
    folder = tmp_path_factory.mktemp("cohort")
    return folder, simulate.cohort(folder, cases=24, seed=3, width=6)


def small_flags(network: str) -> list[str]:
    """The flags of a small model, without those of other networks, which would be errors."""
    from seqssm_pathology.task import PathologyTask

    from seqssm.training.networks import owners

    pairs = list(zip(SMALL[::2], SMALL[1::2]))
    names = {flag: owners(PathologyTask, flag.removeprefix("--model.")) for flag, _ in pairs}
    return [word for flag, value in pairs for word in (flag, value) if not names[flag] or network in names[flag]]


def train(folder, *words: str, preset: str = "srmamba", epochs: int = 2) -> int:
    """Train a small model with the command."""
    from seqssm.cli.main import main

    network = words[words.index("--model.network") + 1] if "--model.network" in words else "srmamba"
    common = ["pathology", "fit", "--config", preset, *small_flags(network), "--trainer.max_epochs", str(epochs)]
    return main([*common, "--output", str(folder), *words])


@pytest.fixture
def fit():
    """`train`."""
    return train


@pytest.fixture
def small():
    """Flags of a small model."""
    return list(SMALL)


@pytest.fixture(scope="session")
def run(cohort, tmp_path_factory):
    """A trained classifier; not to be changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run") / "run"
    data, _ = cohort
    words = ["--data.manifest", str(data / "manifest.csv"), "--data.features", str(data)]
    assert train(folder, *words) == 0
    os.environ.pop("PL_GLOBAL_SEED", None)
    return folder


@pytest.fixture(scope="session")
def clam(cohort, tmp_path_factory):
    """A trained CLAM-MB; not to be changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("clam") / "run"
    words = ["--data.manifest", str(cohort[0] / "manifest.csv"), "--data.features", str(cohort[0])]
    assert train(folder, *words, "--model.network", "clam_mb") == 0
    os.environ.pop("PL_GLOBAL_SEED", None)
    return folder


@pytest.fixture
def bag():
    """A bag of 20 patches on a grid of 5 columns."""
    generator = np.random.default_rng(0)
    place = np.arange(20)
    coords = np.stack([place % 5, place // 5], axis=1) * 256
    return Bag("good", generator.normal(size=(20, 6)).astype(np.float32), coords, 256)


@pytest.fixture
def bag_file(bag, tmp_path):
    """The same bag as a file."""
    path = tmp_path / "good.h5"
    write_bag(path, bag, "test")
    return path
