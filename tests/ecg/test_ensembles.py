"""Ensembles of ECG classifiers: mean probabilities, and decisions by the mean thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import seqssm
from seqssm.errors import InputError
from seqssm.training import checkpoint, ensemble

from ..prediction.members import moved


def test_probabilities_are_means_and_decisions_follow(trained, made, tmp_path):
    other = moved(trained, tmp_path / "other", scale=0.1)
    content = torch.load(other / "best.ckpt", weights_only=True)
    content["state_dict"]["model.thresholds"] += 0.2
    torch.save(content, other / "best.ckpt")
    runs = [trained, other]
    inputs = sorted(made.glob("*.hea"))[:4]
    alone = [seqssm.load(run).predict(inputs) for run in runs]
    table = seqssm.load(ensemble.combine(runs, tmp_path / "two.ckpt")).predict(inputs)
    tasks = [checkpoint.build_task(checkpoint.read_checkpoint(run), run) for run in runs]
    limits = torch.stack([task.model.thresholds for task in tasks]).mean(0).tolist()
    for name, limit in zip(seqssm.load(trained).summary["classes"], limits):
        values = np.stack([one[f"p_{name}"] for one in alone])
        np.testing.assert_allclose(table[f"p_{name}"], values.mean(0))
        np.testing.assert_allclose(table[f"p_{name}_std"], values.std(0, ddof=1))
        assert list(table[f"positive_{name}"]) == [int(value >= limit) for value in table[f"p_{name}"]]
    assert list(table["seconds"]) == list(alone[0]["seconds"])
    with pytest.raises(InputError, match="--format challenge: not available for an ensemble"):
        seqssm.load(tmp_path / "two.ckpt").predict(inputs, format="challenge", challenge_folder=tmp_path)
