"""Baselines: logistic regression, ridge regression, ridge Cox, a single covariate, the Kaplan-Meier curve.

Hyper-parameters are fixed; none is selected on the test split. Baselines are trained on the training and validation
splits together, because they need no validation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from seqssm.domain import resolve
from seqssm.errors import NotApplicableError
from seqssm.files.notes import note
from seqssm.metrics.metric import evaluate
from seqssm_pathology import fitting, metrics, outcomes, survival
from seqssm_pathology.catalogue import BASELINES
from seqssm_pathology.data import BagData
from seqssm_pathology.heads import ClassHead, Head, LabelsHead, NumberHead, SurvivalHead
from seqssm_pathology.manifest import Case

COMPONENTS, PENALTY = 60, 1.0  # hyper-parameters of ridge Cox
STRENGTH = 0.1  # inverse penalty of the logistic regression
RIDGE = 1.0  # penalty of the ridge regression per training case

Score = Callable[["BagData", "BagData", Head, list[Case], list[Case], dict[str, np.ndarray]], dict[str, float]]


def case_vectors(data: BagData, cases: list[Case]) -> np.ndarray:
    """Compute one vector per case, (n, D): the mean of its scaled instances, or its row of the value table."""
    rows = []
    for case in cases:
        features = data.instances(case)[0].numpy()
        rows.append(features[:, 0] if data.tokens is not None else features.mean(0))
    return np.stack(rows).astype(np.float64)


def _training(data: BagData) -> tuple[BagData, list[Case]]:
    """Return the data module of the training data, and its training and validation cases."""
    reference = data.reference()
    if reference is None:
        raise NotApplicableError("the training data of the run cannot be read")
    return reference, reference.train_set.cases + reference.val_set.cases


def _test(data: BagData, head: Head) -> tuple[list[Case], dict[str, np.ndarray]]:
    """Return the test cases whose target is known, and their targets by the names of `fitting.truths`."""
    cases = [case for case in data.test_set.cases if fitting.target_of(head, case) is not None]
    rows = [fitting.truths([head], case) for case in cases]
    return cases, {name: np.stack([row[name].numpy() for row in rows]) for name in rows[0]} if rows else {}


def _by_target(data: BagData, kinds: tuple[type[Head], ...], name: str, score: Score) -> dict[str, float]:
    """Apply a baseline to all targets of some kinds; the names of scores start with the target if there are several.

    Args:
        data: the data module.
        kinds: types of the heads that the baseline predicts.
        name: name of the baseline.
        score: function from (data, training data, head, training cases, test cases, test targets) to scores.
    """
    heads = [head for head in data.heads if isinstance(head, kinds)]
    if not heads:
        targets = " or ".join(fitting.KINDS[kind] for kind in kinds)
        raise NotApplicableError(f"the baseline {name} requires target {targets}")
    source, known = _training(data)
    found: dict[str, float] = {}
    for head in heads:
        own = [case for case in known if fitting.target_of(head, case) is not None]
        test, truth = _test(data, head)
        if test:
            scores = score(data, source, head, own, test, truth)
            found |= {f"{head.tag}{metric}": value for metric, value in scores.items()}
    return found


def logistic(data: BagData) -> dict[str, float]:
    """Evaluate a logistic regression on mean features, for ``kfold --models logistic``; one per label for labels."""
    return _by_target(data, (ClassHead, LabelsHead), "logistic", _logistic)


def _logistic(
    data: BagData, source: BagData, head: Head, known: list[Case], test: list[Case], truth: dict[str, np.ndarray]
) -> dict[str, float]:
    x, y = case_vectors(source, known), case_vectors(data, test)
    if isinstance(head, ClassHead):
        labels = np.array([head.classes.index(str(fitting.target_of(head, case))) for case in known])
        p = _probabilities(x, labels, y, head.size)
        found = metrics.Classified(truth[head.key("label")], p, metrics.class_ranks(head.classes))
        _report_one_class(found.probabilities, head, len(known))
        return evaluate(outcomes.table_of(head), found, "test")
    rows = np.array([fitting.target_of(head, case) for case in known], dtype=np.float64)  # None becomes NaN
    columns = []
    for column in rows.T:
        there = np.isfinite(column)
        columns.append(_probabilities(x[there], column[there].astype(int), y, 2)[:, 1])
    labelled = metrics.Labelled(truth[head.key("labels")].astype(np.float64), np.stack(columns, axis=1))
    return evaluate(metrics.LABELS, labelled, "test")


def _probabilities(x: np.ndarray, labels: np.ndarray, y: np.ndarray, classes: int) -> np.ndarray:
    """Fit a logistic regression on x, and return class probabilities of y, (n, classes)."""
    from sklearn.linear_model import LogisticRegression

    found = np.zeros((len(y), classes))
    if len(set(labels.tolist())) == 1:
        found[:, labels[0]] = 1
        return found
    model = LogisticRegression(C=STRENGTH, max_iter=2000).fit(x, labels)
    found[:, model.classes_] = model.predict_proba(y)
    return found


def _report_one_class(scores: np.ndarray, head: ClassHead, known: int) -> None:
    """Report decisions that are the same for all test cases.

    Means of many instances differ little, and the penalty is fixed: with few training cases, the probabilities stay
    close to the frequencies of the classes. Their order, and hence the AUROC, is not affected.

    Args:
        scores: class probabilities of the test cases, (n, classes).
        head: the target.
        known: number of training cases.
    """
    decided = set(scores.argmax(1).tolist())
    if len(scores) > 1 and len(decided) == 1:
        index = decided.pop()
        low, high = scores[:, index].min(), scores[:, index].max()
        note(
            f"baseline {head.tag}logistic: {head.classes[index]} for all {len(scores)} test cases (probabilities "
            f"{low:.2f} to {high:.2f}); with {known} training cases its fixed penalty outweighs the features, so only "
            "its AUROC is informative"
        )


def ridge(data: BagData) -> dict[str, float]:
    """Evaluate a ridge regression on mean features, for ``kfold --models ridge``."""
    return _by_target(data, (NumberHead,), "ridge", _ridge)


def _ridge(
    data: BagData, source: BagData, head: Head, known: list[Case], test: list[Case], truth: dict[str, np.ndarray]
) -> dict[str, float]:
    from sklearn.linear_model import Ridge

    values = np.array([fitting.target_of(head, case) for case in known], dtype=np.float64)
    model = Ridge(alpha=RIDGE * len(known)).fit(case_vectors(source, known), values)
    found = metrics.Measured(truth[head.key("value")], model.predict(case_vectors(data, test)))
    return evaluate(metrics.REGRESSION, found, "test")


def _components(data: BagData, cases: int) -> int:
    """Return the number of principal components, limited by the rank of the training data."""
    width = data.width if data.tokens is None else data.tokens
    return min(COMPONENTS, width, cases - 1)


def cox(data: BagData) -> dict[str, float]:
    """Evaluate ridge Cox on the first principal components, for ``kfold --models cox``."""
    return _by_target(data, (SurvivalHead,), "cox", _cox)


def _cox(
    data: BagData, source: BagData, head: Head, known: list[Case], test: list[Case], truth: dict[str, np.ndarray]
) -> dict[str, float]:
    from sklearn.decomposition import PCA
    from sksurv.linear_model import CoxPHSurvivalAnalysis
    from sksurv.util import Surv

    x = case_vectors(source, known)
    components = PCA(_components(data, len(known)), svd_solver="full").fit(x)
    times, censored = _follow_up(head, known)
    model = CoxPHSurvivalAnalysis(alpha=PENALTY).fit(components.transform(x), Surv.from_arrays(censored == 0, times))
    y = components.transform(case_vectors(data, test))
    scores = {"c_index": survival.c_index(*_follow_up(head, test), model.predict(y))}
    grid = survival.brier_grid(data.follow_up(head), _follow_up(head, test))
    if grid is not None:
        curves = [function(grid.times.clip(*function.domain)) for function in model.predict_survival_function(y)]
        scores["ibs"] = grid.score(np.stack(curves))
    return scores


def _follow_up(head: Head, cases: list[Case]) -> tuple[np.ndarray, np.ndarray]:
    known = [fitting.target_of(head, case) for case in cases]
    return np.array([time for time, _ in known]), np.array([censored for _, censored in known])


def covariate(data: BagData) -> dict[str, float]:
    """Compute the C-index of the covariate itself (``data.covariate_column``), for ``kfold --models covariate``."""
    if data.target != "survival" or data.columns.covariate is None:
        raise NotApplicableError("the baseline covariate requires target survival and --data.covariate_column NAME")
    test = data.test_set.cases
    risk = np.array([case.covariate for case in test], dtype=np.float64)
    return {"c_index": survival.c_index(*_follow_up(data.heads[0], test), risk)}


def kaplan_meier(data: BagData) -> dict[str, float]:
    """Evaluate the Kaplan-Meier curve of the training cases, for ``kfold --models kaplan_meier``."""
    heads = [head for head in data.heads if isinstance(head, SurvivalHead)]
    if not heads:
        raise NotApplicableError("the baseline kaplan_meier requires target survival")
    reference = data.reference()
    known = data.test_set.cases if reference is None else reference.train_set.cases + reference.val_set.cases
    found = {}
    for head in heads:
        test, cases = (
            [case for case in some if fitting.target_of(head, case) is not None]
            for some in (data.test_set.cases, known)
        )
        grid = survival.brier_grid(data.follow_up(head), _follow_up(head, test))
        if grid is None:
            found[f"{head.tag}ibs"] = np.nan
            continue
        curve = survival.kaplan_meier(*_follow_up(head, cases)).at(grid.times)
        found[f"{head.tag}ibs"] = grid.score(np.tile(curve, (len(test), 1)))
    return found


def beside(data: BagData) -> dict[str, dict[str, float]]:
    """Evaluate the applicable baselines, by name, for the table of `test`."""
    found = {}
    for baseline in BASELINES:
        try:
            if baseline.in_test:
                found[baseline.name] = resolve(baseline.run)(data)
        except NotApplicableError:
            continue
    return found
