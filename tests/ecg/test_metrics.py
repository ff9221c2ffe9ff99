"""Scores against worked cases, scikit-learn, and the official rules."""

from __future__ import annotations

import numpy as np
import pytest
from seqssm_ecg import metrics, thresholds
from seqssm_ecg.labels import EQUIVALENT, SINUS, read_weights
from seqssm_ecg.metrics import Predictions
from sklearn import metrics as sk

from seqssm.errors import InputError

W = np.array([[1, 0.5, 0.25, 0.3], [0.5, 1, 0.25, 0.3], [0.25, 0.25, 1, 0.45], [0.3, 0.3, 0.45, 1]])  # AF AFL NSR SB


@pytest.fixture
def table():
    random = np.random.default_rng(5)
    truth = (random.random((80, 4)) < 0.3).astype(float)
    scores = np.round(0.5 * truth + random.random((80, 4)), 1) / 1.5  # one decimal: many ties
    return truth, scores


def test_worked_cases_of_the_challenge_score():
    truth = np.array([[1, 0, 0, 0]])
    assert metrics.challenge_score(W, truth, np.array([[1, 1, 0, 0]]), 2) == pytest.approx(0.7142857, abs=1e-6)
    truth = np.array([[1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
    outputs = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]])
    assert metrics.challenge_score(W, truth, outputs, 2) == pytest.approx(0.390625)
    assert metrics.challenge_score(W, truth, np.zeros((3, 4)), 2) == pytest.approx(-1.15625)


def test_challenge_score_is_0_for_sinus_only_and_1_for_the_truth(table):
    truth, _ = table
    sinus = np.zeros_like(truth)
    sinus[:, 2] = 1
    assert metrics.challenge_score(W, truth, sinus, 2) == 0
    assert metrics.challenge_score(W, truth, truth, 2) == 1
    assert metrics.challenge_score(W, truth, np.zeros_like(truth), 2) < 0
    assert metrics.challenge_score(W, sinus, sinus, 2) == 0  # nothing to gain: by definition 0


def test_the_challenge_score_equals_a_plain_loop(table):
    truth, scores = table
    outputs = scores > 0.4

    def plain(other):
        total = 0.0
        for i in range(len(truth)):
            n = max(1, int(((truth[i] + other[i]) > 0).sum()))
            for j in range(4):
                for k in range(4):
                    total += W[j, k] * truth[i, j] * other[i, k] / n
        return total

    sinus = np.zeros_like(truth)
    sinus[:, 2] = 1
    expected = (plain(outputs) - plain(sinus)) / (plain(truth) - plain(sinus))
    assert metrics.challenge_score(W, truth, outputs, 2) == pytest.approx(expected, abs=1e-12)


def test_areas_equal_scikit_learns_with_ties(table):
    truth, scores = table
    for k in range(4):
        assert metrics.auroc(truth, scores)[k] == pytest.approx(sk.roc_auc_score(truth[:, k], scores[:, k]))
        assert metrics.auprc(truth, scores)[k] == pytest.approx(sk.average_precision_score(truth[:, k], scores[:, k]))
    constant = np.full_like(scores, 0.3)
    assert metrics.auroc(truth, constant) == pytest.approx(np.full(4, 0.5))


def test_areas_without_positives_or_negatives():
    truth, scores = np.array([[0, 1.0], [0, 1.0]]), np.array([[0.2, 0.3], [0.4, 0.1]])
    assert np.isnan(metrics.auroc(truth, scores)).all()
    assert np.isnan(metrics.auprc(truth, scores)[0])
    assert metrics.auprc(truth, scores)[1] == 1
    assert np.isnan(metrics.macro(metrics.auroc(truth, scores)))


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_f_measures_equal_scikit_learns(table, beta):
    truth, scores = table
    outputs = scores > 0.4
    expected = sk.fbeta_score(truth, outputs, beta=beta, average=None)
    assert metrics.f_measure(truth, outputs, beta) == pytest.approx(expected)
    assert np.isnan(metrics.f_measure(np.zeros((3, 1)), np.zeros((3, 1)))).all()


def test_f2_g2_weight_a_record_by_its_labels():
    truth = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    outputs = np.array([[1, 0, 0], [1, 0, 1], [1, 0, 0]])
    f2, g2 = metrics.f2_g2(truth, outputs)
    tp, fp, fn = 1.5, 1.0, 0.0  # class 0: half of record 0, record 1; false alarm in record 2
    assert f2[0] == pytest.approx(5 * tp / (5 * tp + fp + 4 * fn))
    assert g2[0] == pytest.approx(tp / (tp + fp + 2 * fn))
    assert f2[1] == 0
    assert g2[1] == 0


def slow_f2_g2(truth, outputs):
    """Both by the definition of the challenge 2020, record by record."""
    f2, g2 = [], []
    for k in range(truth.shape[1]):
        tp = fp = fn = 0.0
        for labels, answers in zip(truth.tolist(), outputs.tolist()):
            weight = 1 / max(1, labels.count(1))
            tp += weight if labels[k] == 1 and answers[k] else 0
            fp += weight if labels[k] == 0 and answers[k] else 0
            fn += weight if labels[k] == 1 and not answers[k] else 0
        f2.append((1 + 2**2) * tp / ((1 + 2**2) * tp + fp + 2**2 * fn) if tp + fp + fn else np.nan)
        g2.append(tp / (tp + fp + 2 * fn) if tp + fp + fn else np.nan)
    return f2, g2


def test_f2_g2_equal_the_definition_and_scikit_learns_with_one_label_per_record():
    rng = np.random.default_rng(5)
    truth, outputs = (rng.random((60, 6)) < 0.35).astype(float), rng.random((60, 6)) < 0.4
    truth[:, 5] = outputs[:, 5] = 0  # a class without any positive has no value
    for found, expected in zip(metrics.f2_g2(truth, outputs), slow_f2_g2(truth, outputs)):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    several = sk.fbeta_score(truth[:, :5], outputs[:, :5], beta=2, average=None)
    assert np.abs(metrics.f2_g2(truth, outputs)[0][:5] - several).max() > 0.01
    single = np.eye(5)[rng.integers(0, 5, 60)]
    expected = sk.fbeta_score(single, outputs[:, :5], beta=2, average=None)
    np.testing.assert_allclose(metrics.f2_g2(single, outputs[:, :5])[0], expected, rtol=1e-12)


def test_accuracy_and_calibration():
    truth = np.array([[1, 0], [0, 1], [1, 1]])
    assert metrics.accuracy(truth, np.array([[1, 0], [0, 0], [1, 1]])) == pytest.approx(2 / 3)
    scores = np.full((10, 1), 0.7)
    truth = np.array([[1.0]] * 5 + [[0.0]] * 5)
    assert metrics.calibration_error(truth, scores) == pytest.approx(0.2)
    assert metrics.brier(truth, scores)[0] == pytest.approx((5 * 0.09 + 5 * 0.49) / 10)


def test_the_bootstrap_keeps_every_class_and_is_deterministic():
    truth = np.zeros((40, 2))
    truth[:20, 0], truth[3, 1] = 1, 1
    seen = []

    def figure(index):
        seen.append(truth[index, 1].any())
        return float(truth[index, 0].mean())

    low, high = metrics.bootstrap(40, figure, 100, seed=2, usable=metrics.every_class(truth))
    assert low < 0.5 < high
    assert np.mean(seen) > 0.99
    scores = np.random.default_rng(0).random((40, 2))
    first = metrics.intervals(Predictions(truth, scores, scores > 0.5), draws=20)
    assert first == metrics.intervals(Predictions(truth, scores, scores > 0.5), draws=20)
    assert first["auroc"][0] <= first["auroc"][1]


@pytest.mark.parametrize("criterion", ["f1", "youden"])
def test_thresholds_are_the_best_ones(table, criterion):
    truth, scores = table
    found = thresholds.fit_thresholds(truth, scores, criterion)

    def value(k, limit):
        out = scores[:, [k]] >= limit
        if criterion == "f1":
            return metrics.f_measure(truth[:, [k]], out)[0]
        y = truth[:, k] > 0
        return out[y].mean() - out[~y].mean()

    for k in range(4):
        assert value(k, found[k]) == pytest.approx(max(value(k, limit) for limit in np.linspace(0.001, 1, 400)))


def test_challenge_thresholds_beat_those_of_f1(table):
    truth, scores = table
    by_f1 = thresholds.fit_thresholds(truth, scores, "f1")
    by_score = thresholds.fit_thresholds(truth, scores, "challenge", W, 2)
    first = metrics.challenge_score(W, truth, scores >= by_f1, 2)
    assert metrics.challenge_score(W, truth, scores >= by_score, 2) > first


def test_a_class_without_positives_keeps_the_default(table):
    truth, scores = table
    truth[:, 1] = 0
    assert thresholds.fit_thresholds(truth, scores, "challenge", W, 2)[1] == 0.5


def test_the_temperature_is_recovered():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 3))
    truth = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    assert thresholds.temperature(truth, logits * 2.5) == pytest.approx(2.5, rel=0.1)


def weights_file(path, codes):
    random = np.random.default_rng(len(codes))
    table = np.round(random.random((len(codes), len(codes))), 3)
    table = (table + table.T) / 2
    np.fill_diagonal(table, 1)
    lines = ["," + ",".join(codes)]
    lines += [f"{code}," + ",".join(str(cell) for cell in row) for code, row in zip(codes, table)]
    path.write_text("\n".join(lines) + "\n")
    return table


def test_weights_of_2020_are_merged_and_those_of_2021_unchanged(tmp_path):
    pairs = [code for pair in EQUIVALENT[2020] for code in pair]
    codes = [SINUS, *pairs, "164889003"]
    table = weights_file(tmp_path / "w.csv", codes)
    classes = read_weights(tmp_path / "w.csv")
    assert classes.year == 2020
    assert len(classes.names) == len(codes) - 3
    assert classes.codes[1] == EQUIVALENT[2020][0]
    keep = [0, 1, 3, 5, 7]
    np.testing.assert_array_equal(classes.weights, table[np.ix_(keep, keep)])
    joined = [SINUS, "713427006|59118001"]
    table = weights_file(tmp_path / "w.csv", joined)
    classes = read_weights(tmp_path / "w.csv")
    assert classes.year == 2021
    assert classes.names == ["NSR", "CRBBB|RBBB"]
    np.testing.assert_array_equal(classes.weights, table)
    assert classes.vector(["59118001", "999"]).tolist() == [0, 1]
    assert classes.other == {"999": 1}


@pytest.mark.parametrize("text", ["", "a,b\n", ",a,b\na,1,0\nc,0,1\n", ",a\na,x\n"])
def test_a_bad_table_of_weights_is_one_line(tmp_path, text):
    (tmp_path / "w.csv").write_text(text)
    with pytest.raises(InputError, match=r"w\.csv"):
        read_weights(tmp_path / "w.csv")


def test_a_new_score_is_one_entry(monkeypatch):
    """A score added to the table is in validation, test, intervals, tables by class and by source."""
    entry = metrics.EcgMetric(
        "prevalence",
        lambda p: p.truth.mean(),
        shown=("val", "test"),
        by_class=lambda p: p.truth.mean(0),
    )
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, entry))
    random = np.random.default_rng(0)
    truth = (random.random((30, 3)) < 0.4).astype(float)
    found = Predictions(truth, random.random((30, 3)), truth)
    for where in ("val", "test"):
        assert metrics.summary(found, where)["prevalence"] == truth.mean()
    assert "challenge" not in metrics.summary(found)
    assert metrics.table_by_class(found)["prevalence"] == pytest.approx(truth.mean(0))
    assert "prevalence" in metrics.intervals(found, draws=3)
    assert "prevalence" in metrics.rows_by_source(np.repeat(["a", "b"], 15), found)[1]


def test_the_order_of_the_scores_is_that_of_the_tables():
    assert [metric.name for metric in metrics.METRICS] == [
        *("auroc", "auprc", "f1", "f2", "g2", "accuracy", "calibration_error", "brier", "one_lead_auroc", "challenge")
    ]
    assert all(metric.better for metric in metrics.METRICS)
