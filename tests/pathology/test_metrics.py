"""Scores against scikit-learn, scikit-survival and hand calculations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from seqssm_pathology import baselines, metrics, outcomes, simulate, survival
from seqssm_pathology.data import BagData
from seqssm_pathology.fitted import bin_of, cut
from seqssm_pathology.heads import ClassHead, curve_names, curves_of, survival_nll
from sklearn import metrics as oracle

from seqssm.errors import InputError
from seqssm.metrics.bootstrap import Part, bootstrap, ends
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
        "kappa": oracle.cohen_kappa_score(truth, best),
        "nll": oracle.log_loss(truth, p, labels=range(classes)),
    }
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("classes", "ranks"),
    [
        (["0", "1", "2"], (0, 1, 2)),
        (["-1", "0", "1"], (0, 1, 2)),
        (["grade-3", "grade-10", "grade-1"], (1, 2, 0)),
        (["grade1", "grade10", "grade2"], (0, 2, 1)),
        (["ISUP 4", "isup 0", "ISUP 1.5"], (2, 0, 1)),
        (["0", "1+", "2+", "3+"], (0, 1, 2, 3)),
        (["I", "II", "III", "IV"], (0, 1, 2, 3)),
        (["stage IV", "stage V", "stage III"], (1, 2, 0)),
        (["HER2 1+", "HER2 0", "HER2 3+", "HER2 2+"], (1, 0, 3, 2)),
        (["HER2-0", "HER2-1", "HER2-2"], (0, 1, 2)),
        (["grade1", "grade10", "grade11"], (0, 1, 2)),
        (["1.5", "1.25", "1.75"], (1, 0, 2)),
        (["score -1", "score 0", "score 1"], (0, 1, 2)),
        (["0", "I", "II", "III"], (0, 1, 2, 3)),
        (["stage 0", "stage II", "stage I"], (0, 2, 1)),
        (["stage II", "stage III", "stage IV"], (0, 1, 2)),
        (["x-1", "x-2", "x0"], None),
        (["I", "V", "X"], None),
        (["ai", "aii", "aiii"], None),
        (["stage I", "stage II", "stage 3"], None),
        (["stage IIA", "stage IIB", "stage I"], None),
        (["high", "low", "mid"], None),
        (["grade1", "grade2", "normal"], None),
        (["grade1", "stage2", "grade3"], None),
        (["3+4", "4+3", "4+4"], None),
        (["T1", "T2a", "T2b"], None),
        (["1", "1.0", "2"], None),
        (["0", "1"], None),  # both kappas are equal
    ],
)
def test_quadratic_kappa_is_of_classes_in_a_known_order(classes, ranks):
    """`low, mid, high` were in alphabetical order: low was next to mid and high, and mid two away from high."""
    assert metrics.class_ranks(classes) == ranks
    head = ClassHead("grade", classes=tuple(classes))
    generator = np.random.default_rng(3)
    truth, logits = generator.integers(0, len(classes), 90), generator.normal(size=(90, len(classes)))
    one = outcomes.collect(head, logits, {"label": truth}, None)
    back = outcomes.of_table(head, outcomes.as_table(head, one))
    found = [outcomes.scores([(head, np.arange(90), given)], "test") for given in (one, back)]
    assert found[0] == pytest.approx(found[1])
    best = logits.argmax(1)
    assert found[0]["kappa"] == pytest.approx(oracle.cohen_kappa_score(truth, best))
    assert ("quadratic_kappa" in found[0]) == (ranks is not None)
    if ranks is not None:
        order = np.array(ranks)
        wanted = oracle.cohen_kappa_score(order[truth], order[best], weights="quadratic")
        assert found[0]["quadratic_kappa"] == pytest.approx(wanted)


def test_one_class_only_has_no_auroc():
    one = metrics.Classified(np.zeros(4, dtype=int), np.full((4, 2), 0.5))
    found = evaluate(metrics.CLASSIFICATION, one, "test")
    assert np.isnan(found["auroc"])
    assert found["accuracy"] == 1


def test_c_index_by_hand():
    time, censored = np.array([1.0, 2, 3, 4]), np.array([0, 1, 0, 0])
    # comparable: (1, 2) (1, 3) (1, 4) (3, 4)
    assert survival.c_index(time, censored, np.array([4.0, 9, 2, 1])) == 0.75
    assert survival.c_index(time, censored, np.array([1.0, 1, 1, 1])) == 0.5
    assert np.isnan(survival.c_index(time, np.ones(4), time))
    assert np.isnan(survival.c_index(time[:1], np.zeros(1), time[:1]))


def test_the_survival_curve_is_linear_between_the_ends_of_the_bins():
    curves = np.array([[0.8, 0.5]])
    times = np.array([0, 5, 10, 15, 20, 25])
    np.testing.assert_allclose(survival.survival_at(curves, [2, 10, 20], times), [[1, 0.9, 0.8, 0.65, 0.5, 0.5]])


def test_steps_alone_would_be_worse_than_no_features():
    """A model of the marginal distribution of times has the score of the Kaplan-Meier curve."""
    generator = np.random.default_rng(1)
    time, end = generator.exponential(20, 2000), generator.uniform(5, 60, 2000)
    follow_up = np.minimum(time, end), (end < time).astype(int)
    edges = [0.0, *np.quantile(time, [0.25, 0.5, 0.75]), float(follow_up[0].max()) + 1e-6]
    curve = np.exp(-np.array(edges[1:]) / 20)
    own = survival.integrated_brier(follow_up, follow_up, np.tile(curve, (2000, 1)), edges)
    grid = survival.brier_grid(follow_up, follow_up)
    null = grid.score(np.tile(survival.kaplan_meier(*follow_up).at(grid.times), (2000, 1)))
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
    scores = [survival.integrated_brier(known, known, curves, edges) for curves in (knows, half)]
    assert scores[0] < 0.05 < 0.2 < scores[1] < 0.3
    assert np.isnan(survival.integrated_brier(known, (time[:1], censored[:1]), half[:1], edges))


def test_scores_of_few_cases_are_numbers_or_nan():
    """With ties, one event, or all censored; a log-rank test without variance ended a study."""
    random = np.random.default_rng(0)
    for _ in range(300):
        n = int(random.integers(1, 8))
        time, censored = random.integers(0, 5, n).astype(float), random.integers(0, 2, n)
        risk = random.integers(0, 3, n).astype(float)
        p = survival.log_rank(time, censored, risk > np.median(risk))
        assert np.isnan(p) or 0 <= p <= 1
        c = survival.c_index(time, censored, risk)
        assert np.isnan(c) or 0 <= c <= 1
        assert (np.diff(survival.kaplan_meier(time, censored).survival) <= 0).all()
        brier = survival.integrated_brier((time, censored), (time, censored), np.full((n, 2), 0.5), [0.0, 2.0, 5.0])
        assert np.isnan(brier) or brier >= 0
    assert np.isnan(survival.log_rank(np.array([1.0, 2, 3]), np.array([1, 1, 0]), np.array([True, True, False])))


def test_groups():
    time, censored = np.arange(1.0, 41), np.zeros(40, dtype=int)
    assert survival.log_rank(time, censored, time < 20) < 1e-6
    assert survival.log_rank(time, censored, np.arange(40) % 2 == 0) > 0.1
    assert np.isnan(survival.log_rank(time, censored, np.zeros(40)))
    curve = survival.kaplan_meier(time[:4], censored[:4])
    assert curve.times.tolist() == [0, 1, 2, 3, 4]
    assert curve.survival.tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert curve.at(np.array([0.5, 1, 3.9])).tolist() == [1, 0.75, 0.25]
    assert (curve.low[1:4] < curve.survival[1:4]).all()
    assert (curve.high[1:4] > curve.survival[1:4]).all()
    assert survival.kaplan_meier(time[:4], np.ones(4)).survival.tolist() == [1, 1]
    assert np.isnan(survival.kaplan_meier(time[:4], np.ones(4)).median()).all()
    median, low, high = survival.kaplan_meier(time, censored).median()  # computed by hand, Greenwood variance
    assert (median, low, high) == (20, 14, 26)
    table = survival.risk_groups(time, censored, -time).set_index("group")
    assert table.cases.tolist() == table.events.tolist() == [20, 20]
    assert table["median"].tolist() == [30, 10]
    assert survival.at_risk(time[:4], np.array([0, 1, 1.5, 4, 5])).tolist() == [4, 4, 3, 1, 0]


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


def test_the_likelihood_is_stable_for_large_logits():
    for value in (-200.0, 200.0):
        z = torch.full((2, 4), value, requires_grad=True)
        loss = survival_nll(z, torch.tensor([3, 0]), torch.tensor([0, 1]))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()
        assert z.grad.abs().max() > 0


def test_bin_edges_are_quantiles_of_events_and_later_times_are_in_the_last_bin(tmp_path):
    times = [(float(t), 0) for t in range(1, 9)] + [(100.0, 1)]
    edges = cut(times, 4, tmp_path)
    assert edges[1:-1] == np.quantile(np.arange(1, 9), [0.25, 0.5, 0.75]).tolist()
    assert [bin_of(t, edges) for t in (0.1, 1, edges[1], 4.4, 100, 999)] == [0, 0, 1, 1, 3, 3]
    with pytest.raises(InputError, match="all are censored"):
        cut([(1.0, 1), (2.0, 1)], 4, tmp_path)
    with pytest.raises(InputError, match=r"lower --data\.bins"):
        cut([(1.0, 0), (1.0, 0), (2.0, 0)], 4, tmp_path)


def test_columns_of_a_curve_are_short_and_distinct():
    assert curve_names([0.1, 9.365, 16.8249, 211.01]) == ["S_9.365", "S_16.82", "S_211"]
    assert curve_names([1, 1000.1, 1000.4, 12345.0]) == ["S_1000.1", "S_1000.4", "S_12345"]


def test_a_p_value_has_no_winner():
    assert direction(metrics.METRICS, "log_rank_p") is None
    assert direction(metrics.METRICS, "ibs") == "min"
    lower = {"ibs", "nll", "mae", "rmse"}
    assert {m.name for m in metrics.METRICS if m.better == "min"} == lower
    assert all(m.better == "max" for m in metrics.METRICS if m.name not in {*lower, "log_rank_p"})


@pytest.mark.parametrize("ties", [0, 1])
def test_the_c_index_is_that_of_scikit_survival(ties):
    from sksurv.metrics import concordance_index_censored

    generator = np.random.default_rng(ties)
    time, risk = generator.exponential(10, 80), generator.normal(size=80)
    if ties:
        time, risk = time.round(), risk.round(1)
    censored = generator.integers(0, 2, 80)
    expected = concordance_index_censored(censored == 0, time, risk)[0]
    assert survival.c_index(time, censored, risk) == pytest.approx(expected, abs=1e-12)


def test_survival_likelihood_from_curves_is_the_loss():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(40, 4, generator=generator)
    edges = [0.0, 2.0, 5.0, 9.0, 20.0]
    time = np.random.default_rng(0).uniform(0.1, 19, 40)
    censored = np.arange(40) % 3 == 0
    bins = torch.tensor([bin_of(one, edges) for one in time])
    expected = survival_nll(z, bins, torch.from_numpy(censored.astype(int))).item()
    found = survival.Followed(time, censored.astype(int), curves_of(z).numpy(), edges, (time, censored))
    assert survival.survival_log_loss(found) == pytest.approx(expected, rel=1e-4)


def test_patients_are_resampled_with_all_their_records():
    """The interval of a mean over independent patients, and one that ignores that records of a patient are equal."""
    generator = np.random.default_rng(0)
    values = np.repeat(generator.normal(size=60), 8)
    patients = np.repeat(np.arange(60).astype(str), 8)
    low, high = ends(bootstrap([Part(patients, lambda i: {"mean": values[i].mean()})])["mean"])
    half = 1.96 * values[::8].std(ddof=1) / np.sqrt(60)
    assert high - low == pytest.approx(2 * half, rel=0.15)
    alone = [str(k) for k in range(480)]
    low, high = ends(bootstrap([Part(alone, lambda i: {"mean": values[i].mean()})])["mean"])
    assert high - low < half
    twice = bootstrap([Part(patients, lambda i: {"mean": values[i].mean()})] * 2)[
        "mean"
    ]  # repeats of the same patients
    np.testing.assert_allclose(twice, bootstrap([Part(patients, lambda i: {"mean": values[i].mean()})])["mean"])
    assert np.isnan(ends(np.array([np.nan]))).all()


def test_a_baseline_that_decides_for_one_class_says_so(tmp_path, capsys):
    """With 11 training cases, the penalty outweighs the means of bags."""
    simulate.cohort(tmp_path, cases=14, seed=3)
    data = BagData(manifest=str(tmp_path / "manifest.csv"), features=str(tmp_path))
    data.setup("fit")
    data.setup("test")
    capsys.readouterr()
    scores = baselines.logistic(data)
    printed = capsys.readouterr().out
    assert "baseline logistic: normal for all 3 test cases (probabilities 0.54 to 0.54)" in printed
    assert "with 11 training cases its fixed penalty outweighs the features" in printed
    assert scores["balanced_accuracy"] == 0.5
