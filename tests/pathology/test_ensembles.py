"""Ensembles of pathology models: mean probabilities, the class that follows, figures of mean attention."""

from __future__ import annotations

import numpy as np
import pandas as pd
from seqssm_pathology.survival import median_time, survival_at

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


def test_survival_curves_of_different_bins_are_averaged_at_common_times(fit, cohort, tmp_path, capsys):
    """Bins are quantiles of the training times, so that the models of a study over folds had no ensemble."""
    folder, runs = cohort[0], []
    manifest = pd.read_csv(folder / "manifest.csv")
    for number, factor in enumerate((1.0, 1.5, 2.0)):
        path = tmp_path / f"{number}.csv"
        manifest.assign(survival_months=manifest["survival_months"] * factor).to_csv(path, index=False)
        words = ["--data.manifest", str(path), "--data.features", str(folder)]
        assert fit(tmp_path / f"run-{number}", *words, preset="survival", epochs=1) == 0
        runs.append(tmp_path / f"run-{number}")
    models = [seqssm.load(one) for one in runs]
    edges = [list(model.summary["heads"][0]["edges"]) for model in models]
    capsys.readouterr()
    table = seqssm.load(ensemble.combine(runs, tmp_path / "three.ckpt")).predict(folder)
    assert "the models have different time bins" in capsys.readouterr().err
    times = np.median(edges, 0)
    np.testing.assert_allclose(times, edges[1])
    curves = []
    for model, own in zip(models, edges):
        found = model.predict(folder)
        curves.append(survival_at(found.filter(regex="^S_").to_numpy(), own, times[1:]))
    curve = table.filter(regex="^S_.*_months$")
    np.testing.assert_allclose(curve, np.mean(curves, 0), rtol=1e-6)
    np.testing.assert_allclose(table["risk"], -curve.sum(axis=1), rtol=1e-6)
    assert [name.removesuffix("_months") for name in curve] == [f"S_{time:.4g}" for time in times[1:]]
    medians = median_time(curve.to_numpy(), times)
    np.testing.assert_allclose(table["median_survival_months"].astype(float), medians)
