"""Baselines: logistic regression, ridge Cox, a single covariate, the Kaplan-Meier curve.

Hyper-parameters are fixed; none is selected on the test split. Baselines are trained on the training and validation
splits together, because they need no validation.
"""

from __future__ import annotations

import numpy as np

from seqssm.domain import resolve
from seqssm.errors import NotApplicableError
from seqssm.metrics.metric import evaluate
from seqssm_pathology import metrics
from seqssm_pathology.catalogue import BASELINES
from seqssm_pathology.data import BagData
from seqssm_pathology.manifest import Case

COMPONENTS, PENALTY = 60, 1.0  # hyper-parameters of ridge Cox
STRENGTH = 0.1  # inverse penalty of the logistic regression


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


def logistic(data: BagData) -> dict[str, float]:
    """Evaluate a logistic regression on mean features, for ``kfold --models logistic``."""
    if data.target != "classification":
        raise NotApplicableError("the baseline logistic requires target classification")
    from sklearn.linear_model import LogisticRegression

    assert data.manifest is not None
    (source, known), test = _training(data), data.test_set.cases
    classes = data.manifest.classes
    codes = {name: number for number, name in enumerate(classes)}
    truth = np.array([codes[str(case.label)] for case in test])
    probabilities = np.zeros((len(test), len(classes)))
    labels = [codes[str(case.label)] for case in known]
    if len(set(labels)) == 1:
        probabilities[:, labels[0]] = 1
        return evaluate(metrics.CLASSIFICATION, metrics.Classified(truth, probabilities), "test")
    model = LogisticRegression(C=STRENGTH, max_iter=2000).fit(case_vectors(source, known), labels)
    probabilities[:, model.classes_] = model.predict_proba(case_vectors(data, test))
    return evaluate(metrics.CLASSIFICATION, metrics.Classified(truth, probabilities), "test")


def _follow_up(cases: list[Case]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([case.time for case in cases]), np.array([case.censored for case in cases])


def _components(data: BagData) -> int:
    """Return the number of principal components, limited by the rank of the training data."""
    width = data.width if data.tokens is None else data.tokens
    return min(COMPONENTS, width, len(_training(data)[1]) - 1)


def cox(data: BagData) -> dict[str, float]:
    """Evaluate ridge Cox on the first principal components, for ``kfold --models cox``."""
    if data.target != "survival":
        raise NotApplicableError("the baseline cox requires target survival")
    from sklearn.decomposition import PCA
    from sksurv.linear_model import CoxPHSurvivalAnalysis
    from sksurv.util import Surv

    (source, known), test = _training(data), data.test_set.cases
    x = case_vectors(source, known)
    components = PCA(_components(data), svd_solver="full").fit(x)
    truth = Surv.from_arrays([case.censored == 0 for case in known], [case.time for case in known])
    model = CoxPHSurvivalAnalysis(alpha=PENALTY).fit(components.transform(x), truth)
    y = components.transform(case_vectors(data, test))
    scores = {"c_index": metrics.c_index(*_follow_up(test), model.predict(y))}
    grid = metrics.brier_grid(data.follow_up(), _follow_up(test))
    if grid is not None:
        curves = [function(grid.times.clip(*function.domain)) for function in model.predict_survival_function(y)]
        scores["ibs"] = grid.score(np.stack(curves))
    return scores


def covariate(data: BagData) -> dict[str, float]:
    """Compute the C-index of the covariate itself (``data.covariate_column``), for ``kfold --models covariate``."""
    if data.target != "survival" or data.columns.covariate is None:
        raise NotApplicableError("the baseline covariate requires target survival and --data.covariate_column NAME")
    test = data.test_set.cases
    risk = np.array([case.covariate for case in test], dtype=np.float64)
    return {"c_index": metrics.c_index(*_follow_up(test), risk)}


def kaplan_meier(data: BagData) -> dict[str, float]:
    """Evaluate the Kaplan-Meier curve of the training cases, for ``kfold --models kaplan_meier``."""
    if data.target != "survival":
        raise NotApplicableError("the baseline kaplan_meier requires target survival")
    reference = data.reference()
    cases = data.test_set.cases if reference is None else reference.train_set.cases + reference.val_set.cases
    grid = metrics.brier_grid(data.follow_up(), _follow_up(data.test_set.cases))
    if grid is None:
        return {"ibs": np.nan}
    curve = metrics.kaplan_meier(*_follow_up(cases)).at(grid.times)
    return {"ibs": grid.score(np.tile(curve, (len(data.test_set), 1)))}


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
