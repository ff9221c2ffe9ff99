"""Scores against scikit-learn, scikit-survival and cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from seqssm_pathology import metrics
from seqssm_pathology.fitted import bin_of, cut
from seqssm_pathology.task import curve_names, curves_of, survival_nll
from sklearn import metrics as oracle

from seqssm.errors import InputError
from seqssm.metrics.metric import direction, evaluate


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classification_scores(classes):
    generator = np.random.default_rng(classes)
    truth = generator.integers(0, classes, 200)
    p = generator.dirichlet(np.ones(classes), 200).round(2) + 1e-3  # ties among the scores
    p /= p.sum(1, keepdims=True)
    found, best = evaluate(metrics.CLASSIFICATION, metrics.Classified(truth, p), "test"), p.argmax(1)
    area = oracle.roc_auc_score(truth, p[:, 1] if classes == 2 else p, multi_class="ovr")
    expected = {
        "auroc": area,
        "accuracy": oracle.accuracy_score(truth, best),
        "balanced_accuracy": oracle.balanced_accuracy_score(truth, best),
        "f1": oracle.f1_score(truth, best, average="macro"),
        "kappa": oracle.cohen_kappa_score(truth, best, weights="quadratic"),
    }
    assert found == pytest.approx(expected, abs=1e-12)


def test_one_class_only_has_no_auroc():
    one = metrics.Classified(np.zeros(4, dtype=int), np.full((4, 2), 0.5))
    found = evaluate(metrics.CLASSIFICATION, one, "test")
    assert np.isnan(found["auroc"])
    assert found["accuracy"] == 1


def test_c_index_by_hand():
    time, censored = np.array([1.0, 2, 3, 4]), np.array([0, 1, 0, 0])
    # comparable: (1, 2) (1, 3) (1, 4) (3, 4)
    assert metrics.c_index(time, censored, np.array([4.0, 9, 2, 1])) == 0.75
    assert metrics.c_index(time, censored, np.array([1.0, 1, 1, 1])) == 0.5
    assert np.isnan(metrics.c_index(time, np.ones(4), time))
    assert np.isnan(metrics.c_index(time[:1], np.zeros(1), time[:1]))


def test_the_survival_curve_is_linear_between_the_ends_of_the_bins():
    curves = np.array([[0.8, 0.5]])
    times = np.array([0, 5, 10, 15, 20, 25])
    np.testing.assert_allclose(metrics.survival_at(curves, [2, 10, 20], times), [[1, 0.9, 0.8, 0.65, 0.5, 0.5]])


def test_steps_alone_would_be_worse_than_no_features():
    """A model that knows the distribution of times only has the score of the Kaplan-Meier curve."""
    generator = np.random.default_rng(1)
    time, end = generator.exponential(20, 2000), generator.uniform(5, 60, 2000)
    follow_up = np.minimum(time, end), (end < time).astype(int)
    edges = [0.0, *np.quantile(time, [0.25, 0.5, 0.75]), float(follow_up[0].max()) + 1e-6]
    curve = np.exp(-np.array(edges[1:]) / 20)
    own = metrics.integrated_brier(follow_up, follow_up, np.tile(curve, (2000, 1)), edges)
    grid = metrics.brier_grid(follow_up, follow_up)
    null = grid.score(np.tile(metrics.kaplan_meier(*follow_up).at(grid.times), (2000, 1)))
    assert own == pytest.approx(null, abs=0.003)
    steps = np.concatenate([[1.0], curve])[np.searchsorted(edges[1:], grid.times, side="right")]
    assert grid.score(np.tile(steps, (2000, 1))) > null + 0.01


def test_brier_score_of_truth_and_of_chance():
    generator = np.random.default_rng(0)
    time = generator.exponential(10, 300)
    censored = (generator.random(300) < 0.2).astype(int)
    edges = [0.0, *np.linspace(0.5, time.max() + 1, 60)]
    known = (time, censored)
    knows = (time[:, None] > np.array(edges[1:])[None]).astype(float)
    half = np.full((300, 60), 0.5)
    scores = [metrics.integrated_brier(known, known, curves, edges) for curves in (knows, half)]
    assert scores[0] < 0.05 < 0.2 < scores[1] < 0.3
    assert np.isnan(metrics.integrated_brier(known, (time[:1], censored[:1]), half[:1], edges))


def test_groups():
    time, censored = np.arange(1.0, 41), np.zeros(40, dtype=int)
    assert metrics.log_rank(time, censored, time < 20) < 1e-6
    assert metrics.log_rank(time, censored, np.arange(40) % 2 == 0) > 0.1
    assert np.isnan(metrics.log_rank(time, censored, np.zeros(40)))
    curve = metrics.kaplan_meier(time[:4], censored[:4])
    assert curve.times.tolist() == [0, 1, 2, 3, 4]
    assert curve.survival.tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert curve.at(np.array([0.5, 1, 3.9])).tolist() == [1, 0.75, 0.25]
    assert (curve.low[1:4] < curve.survival[1:4]).all()
    assert (curve.high[1:4] > curve.survival[1:4]).all()
    assert metrics.kaplan_meier(time[:4], np.ones(4)).survival.tolist() == [1, 1]
    assert metrics.at_risk(time[:4], np.array([0, 1, 1.5, 4, 5])).tolist() == [4, 4, 3, 1, 0]


# -- the likelihood --------------------------------------------------------------------------------------------------


def test_the_likelihood_is_the_published_one():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    bins = torch.randint(0, 4, (50,), generator=generator)
    censored = torch.randint(0, 2, (50,), generator=generator)
    h = torch.sigmoid(z)
    S = torch.cumprod(1 - h, 1)
    before = torch.cat([torch.ones(50, 1), S], 1)
    pick = torch.arange(50)
    c = censored.double()
    event = -(1 - c) * (before[pick, bins].log() + h[pick, bins].log())
    for alpha in (0.0, 0.4):
        expected = ((1 - alpha) * (event - c * S[pick, bins].log()) + alpha * event).mean()
        assert survival_nll(z, bins, censored, alpha).item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(curves_of(z), S.float())


def test_the_likelihood_is_stable_far_out():
    for value in (-200.0, 200.0):
        z = torch.full((2, 4), value, requires_grad=True)
        loss = survival_nll(z, torch.tensor([3, 0]), torch.tensor([0, 1]))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()
        assert z.grad.abs().max() > 0


def test_bins_are_cut_on_events_and_later_times_are_in_the_last(tmp_path):
    times = [(float(t), 0) for t in range(1, 9)] + [(100.0, 1)]
    edges = cut(times, 4, tmp_path)
    assert edges[1:-1] == np.quantile(np.arange(1, 9), [0.25, 0.5, 0.75]).tolist()
    assert [bin_of(t, edges) for t in (0.1, 1, edges[1], 4.4, 100, 999)] == [0, 0, 1, 1, 3, 3]
    with pytest.raises(InputError, match="all are censored"):
        cut([(1.0, 1), (2.0, 1)], 4, tmp_path)
    with pytest.raises(InputError, match=r"lower --data\.bins"):
        cut([(1.0, 0), (1.0, 0), (2.0, 0)], 4, tmp_path)


def test_columns_of_a_curve_are_short_and_never_alike():
    assert curve_names([0.1, 9.365, 16.8249, 211.01]) == ["S_9.365", "S_16.82", "S_211"]
    assert curve_names([1, 1000.1, 1000.4, 12345.0]) == ["S_1000.1", "S_1000.4", "S_12345"]


def test_a_p_value_has_no_winner():
    assert direction(metrics.METRICS, "log_rank_p") is None
    assert direction(metrics.METRICS, "ibs") == "min"
    assert all(
        direction(metrics.METRICS, m.name) == "max" for m in metrics.METRICS if m.name not in ("ibs", "log_rank_p")
    )
