"""Ensembles of pathology models: mean probabilities, the class that follows, figures of mean attention."""

from __future__ import annotations

import numpy as np
import pandas as pd

import seqssm
from seqssm.training import ensemble

from ..prediction.members import moved


def test_probabilities_are_means_and_the_class_follows(run, cohort, tmp_path):
    runs = [run, moved(run, tmp_path / "b", 1, 0.3), moved(run, tmp_path / "c", 2, 0.3)]
    folder, _ = cohort
    alone = [seqssm.load(one).predict(folder) for one in runs]
    own = seqssm.load(ensemble.combine(runs, tmp_path / "three.ckpt"))
    table = own.predict(folder, figures=tmp_path / "figures", figures_limit=1)
    columns = [f"p_{name}" for name in own.summary["classes"]]
    for name in columns:
        np.testing.assert_allclose(table[name], np.mean([one[name] for one in alone], 0))
    best = table[columns].to_numpy().argmax(1)
    assert list(table["prediction"]) == [own.summary["classes"][number] for number in best]
    each = [seqssm.load(one) for one in runs]
    for number, one in enumerate(each):
        one.predict(folder, figures=tmp_path / str(number), figures_limit=1)
    scores = [pd.read_csv(next((tmp_path / name).glob("000_*_attention.csv")))["score"] for name in ("0", "1", "2")]
    mean = pd.read_csv(next((tmp_path / "figures").glob("000_*_attention.csv")))["score"]
    np.testing.assert_allclose(mean, np.mean(scores, 0), rtol=1e-4, atol=1e-5)
