"""Scores against scikit-learn and SciPy, or their definition; bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as oracle
from seqssm_dna import metrics
from seqssm_dna.metrics import BaseScores, Classified, MultiLabelled, Regressed

from seqssm.metrics.metric import direction, evaluate


def made(classes, count=200, seed=0):
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, count)
    logits = random.normal(size=(count, classes)) + 1.5 * np.eye(classes)[truth]
    scores = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 2)  # with ties
    return truth, scores


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classes(classes):
    truth, scores = made(classes)
    found = evaluate(metrics.CLASSES, Classified(truth, scores), "test")
    predicted = scores.argmax(1)
    assert found["mcc"] == pytest.approx(oracle.matthews_corrcoef(truth, predicted))
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, predicted))
    assert found["f1"] == pytest.approx(oracle.f1_score(truth, predicted, average="macro"))
    wanted = [1] if classes == 2 else range(classes)
    areas = [oracle.roc_auc_score(truth == k, scores[:, k]) for k in wanted]
    assert found["auroc"] == pytest.approx(np.mean(areas))
    precisions = [oracle.average_precision_score(truth == k, scores[:, k]) for k in wanted]
    assert found["auprc"] == pytest.approx(np.mean(precisions))


def test_several_labels():
    random = np.random.default_rng(1)
    truth = random.integers(0, 2, (150, 4))
    scores = np.round(np.clip(0.3 * truth + random.random((150, 4)) * 0.7, 0, 1), 2)
    predicted = scores >= 0.5
    found = evaluate(metrics.CLASSES, MultiLabelled(truth, scores), "test")
    assert found["mcc"] == pytest.approx(
        np.mean([oracle.matthews_corrcoef(truth[:, k], predicted[:, k]) for k in range(4)])
    )
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, predicted))
    assert found["f1"] == pytest.approx(oracle.f1_score(truth, predicted, average="macro"))
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(truth, scores, average="macro"))
    assert found["auprc"] == pytest.approx(oracle.average_precision_score(truth, scores, average="macro"))
    strict = MultiLabelled(truth, scores, np.array([0.9, 0.5, 0.5, 0.1]))
    assert metrics.accuracy(strict) == oracle.accuracy_score(truth, scores >= np.array([0.9, 0.5, 0.5, 0.1]))


def test_numbers():
    random = np.random.default_rng(2)
    truth = np.round(random.normal(size=(80, 2)), 1)
    predictions = np.round(truth + random.normal(size=(80, 2)), 1)
    found = evaluate(metrics.REGRESSION, Regressed(truth, predictions), "test")
    assert found["pearson"] == pytest.approx(
        np.mean([scipy.stats.pearsonr(truth[:, k], predictions[:, k])[0] for k in range(2)])
    )
    assert found["spearman"] == pytest.approx(
        np.mean([scipy.stats.spearmanr(truth[:, k], predictions[:, k])[0] for k in range(2)])
    )
    assert found["r2"] == pytest.approx(oracle.r2_score(truth, predictions))
    assert found["rmse"] == pytest.approx(np.sqrt(oracle.mean_squared_error(truth, predictions)))
    one = Regressed(truth[:, 0], predictions[:, 0])
    assert metrics.pearson(one) == pytest.approx(scipy.stats.pearsonr(truth[:, 0], predictions[:, 0])[0])


def test_bases_are_weighted_equally():
    found = BaseScores(np.array([2.0, 30.0, 0.0]), np.array([1, 10, 0]), np.array([2, 18, 0]))
    assert metrics.mean_nll(found) == pytest.approx(1.6)
    assert metrics.bits_per_base(found) == pytest.approx(1.6 / np.log(2))
    assert metrics.perplexity(found) == pytest.approx(np.exp(1.6))
    assert metrics.next_base_accuracy(found) == pytest.approx(11 / 20)
    uniform = BaseScores(np.log(4) * np.array([5, 7]), np.zeros(2), np.array([5, 7]))
    assert metrics.bits_per_base(uniform) == pytest.approx(2)
    assert metrics.perplexity(uniform) == pytest.approx(4)


def test_scores_that_are_not_defined():
    nothing = BaseScores(np.zeros(2), np.zeros(2), np.zeros(2))
    assert np.isnan(metrics.bits_per_base(nothing))
    one_class = Classified(np.ones(5, dtype=int), np.tile([0.2, 0.8], (5, 1)))
    assert metrics.mcc(one_class) == 0
    assert np.isnan(metrics.auroc(one_class))
    assert metrics.accuracy(one_class) == 1
    constant = Regressed(np.arange(5.0), np.ones(5))
    assert np.isnan(metrics.pearson(constant))
    assert np.isnan(metrics.spearman(constant))
    empty = (Classified(np.zeros(0, int), np.zeros((0, 2))), MultiLabelled(np.zeros((0, 2)), np.zeros((0, 2))))
    for found in empty:
        assert all(np.isnan(value) for value in evaluate(metrics.CLASSES, found, "test").values())
    assert all(np.isnan(v) for v in evaluate(metrics.REGRESSION, Regressed(np.zeros(0), np.zeros(0)), "test").values())


def test_names_and_directions():
    names = [metric.name for metric in metrics.METRICS]
    assert len(set(names)) == len(names)
    assert direction(metrics.METRICS, "bits_per_base") == "min"
    assert direction(metrics.METRICS, "mcc") == "max"
    assert direction(metrics.METRICS, "n_scored") is None


def test_intervals_contain_the_figure():
    truth, scores = made(2, 400)
    found = Classified(truth, scores)
    low, high = metrics.bootstrap(found, metrics.auroc, 200)
    assert low < metrics.auroc(found) < high
    assert high - low < 0.15
    every = metrics.intervals(metrics.CLASSES, found, 200)
    assert every["auroc"] == (low, high)
    assert set(every) == {metric.name for metric in metrics.CLASSES}
    assert metrics.bootstrap(found, metrics.auroc, 200, seed=1) != (low, high)
    wide = metrics.bootstrap(found, metrics.auroc, 200, level=0.99)
    assert wide[0] <= low
    assert wide[1] >= high


def test_intervals_of_groups_are_wider():
    """Every record is copied ten times: intervals over records shrink, intervals over groups do not."""
    truth, scores = made(2, 60)
    copies = np.repeat(np.arange(60), 10)
    found = Classified(truth[copies], scores[copies])
    plain = np.diff(metrics.bootstrap(Classified(truth, scores), metrics.accuracy, 400))
    blind = np.diff(metrics.bootstrap(found, metrics.accuracy, 400))
    grouped = np.diff(metrics.bootstrap(found, metrics.accuracy, 400, groups=copies))
    assert blind < 0.5 * plain
    assert grouped == pytest.approx(plain, rel=0.25)


def test_coverage_of_intervals():
    """About 95 % of 200 samples have an interval that contains the true figure."""
    random = np.random.default_rng(3)
    held = 0
    for seed in range(200):
        right = random.random(120) < 0.7
        found = Classified(np.ones(120, int), np.stack([1 - right, right], 1).astype(float))
        low, high = metrics.bootstrap(found, metrics.accuracy, 100, seed)
        held += low <= 0.7 <= high
    assert 0.88 <= held / 200 <= 0.99


def test_intervals_without_records():
    assert np.isnan(metrics.bootstrap(Classified(np.zeros(0, int), np.zeros((0, 2))), metrics.mcc)).all()
    assert metrics.intervals(metrics.CLASSES, Classified(np.zeros(0, int), np.zeros((0, 2)))) == {}
