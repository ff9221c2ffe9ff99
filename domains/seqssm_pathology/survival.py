"""Survival: concordance, Brier score, likelihood, Kaplan-Meier curves, curves given at the ends of bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


def c_index(time: np.ndarray, censored: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's concordance index of risk and time; NaN if no pair is comparable.

    Pair (i, j) is comparable if i has an event and t_i < t_j, or t_i = t_j and j is censored; it is concordant if the
    risk of i is higher, and counts half if the risks differ by at most 1e-8 (as in scikit-survival).

    Args:
        time: event or censoring times, (n,).
        censored: censoring flags, (n,): 1 censored, 0 event.
        risk: risk scores, (n,); higher is worse.
    """
    pairs = right = 0.0
    for i in np.flatnonzero(censored == 0):
        later = (time > time[i]) | ((time == time[i]) & (censored == 1))
        gap = risk[i] - risk[later]
        tied = np.abs(gap) <= 1e-8
        pairs += len(gap)
        right += ((gap > 0) & ~tied).sum() + tied.sum() / 2
    return float(right / pairs) if pairs else np.nan


def survival_at(curves: np.ndarray, edges: list[float], times: np.ndarray) -> np.ndarray:
    """Interpolate S(t) of each case linearly between the ends of the bins (1 at time 0, constant after the last bin).

    Args:
        curves: survival curves at the ends of the bins, (n, K).
        edges: edges of the bins, K + 1 values.
        times: evaluation times, (T,).

    Returns:
        S(t), (n, T).
    """
    knots = np.concatenate([[0.0], edges[1:]])
    values = np.concatenate([np.ones((len(curves), 1)), curves], axis=1)
    return np.stack([np.interp(times, knots, row) for row in values]) if len(values) else np.empty((0, len(times)))


def median_time(curves: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Median survival time: the time at which S(t), linear between the ends of the bins, is 0.5.

    Args:
        curves: survival curves at the ends of the bins, (n, K).
        edges: edges of the bins, K + 1 values.

    Returns:
        Times, (n,); NaN for curves that stay above 0.5.
    """
    knots = np.concatenate([[0.0], edges[1:]])
    found = np.full(len(curves), np.nan)
    for row, curve in enumerate(np.concatenate([np.ones((len(curves), 1)), curves], axis=1)):
        below = np.flatnonzero(curve <= 0.5)
        if len(below):
            end = int(below[0])
            fraction = (curve[end - 1] - 0.5) / (curve[end - 1] - curve[end])
            found[row] = knots[end - 1] + fraction * (knots[end] - knots[end - 1])
    return found


@dataclass(frozen=True)
class Followed:
    """Predictions of records with a survival time.

    Attributes:
        time: event or censoring times, (n,).
        censored: censoring flags, (n,): 1 censored, 0 event.
        curves: survival curves at the ends of the bins, (n, K).
        edges: edges of the bins, K + 1 values.
        follow_up: (times, censored) for estimating the censoring distribution.
    """

    time: np.ndarray
    censored: np.ndarray
    curves: np.ndarray
    edges: list[float]
    follow_up: tuple[np.ndarray, np.ndarray]

    @property
    def risk(self) -> np.ndarray:
        """Risk scores, (n,): minus the sum of the survival curve; higher is worse."""
        return -self.curves.sum(1)

    def rows(self, index: np.ndarray) -> Followed:
        """Select records by index, with repetitions."""
        return Followed(self.time[index], self.censored[index], self.curves[index], self.edges, self.follow_up)


def survival_log_loss(found: Followed) -> float:
    """Negative log-likelihood of the time bin (event) or of surviving it (censored), mean over the records, nats."""
    bins = np.clip(np.searchsorted(found.edges, found.time, side="right") - 1, 0, found.curves.shape[1] - 1)
    curves = np.concatenate([np.ones((len(bins), 1)), found.curves.astype(np.float64)], axis=1)
    row = np.arange(len(bins))
    after, before = curves[row, bins + 1], curves[row, bins]
    likelihood = np.where(found.censored == 1, after, before - after)
    return float(-np.log(np.maximum(likelihood, 1e-15)).mean())


@dataclass(frozen=True)
class BrierGrid:
    """Times and cases at which integrated Brier scores are comparable.

    Attributes:
        times: evaluation times, (T,), strictly inside the follow-up.
        inside: test cases with a weight, (n,) bool.
        known: (event, time) pairs of the training cases, for the censoring weights.
        own: (event, time) pairs of the test cases in `inside`.
    """

    times: np.ndarray
    inside: np.ndarray
    known: np.ndarray
    own: np.ndarray

    def score(self, survival: np.ndarray) -> float:
        """Compute the integrated Brier score (Graf et al. 1999) by scikit-survival; lower is better.

        Args:
            survival: S(t) of all test cases at `times`, (n, T).

        Returns:
            The score; NaN if the censoring distribution is 0 inside the grid.
        """
        from sksurv.metrics import integrated_brier_score

        try:
            return float(integrated_brier_score(self.known, self.own, survival[self.inside], self.times))
        except ValueError:
            return np.nan


def brier_grid(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], points: int = 100
) -> BrierGrid | None:
    """Define the grid of the integrated Brier score, which all models of a table share.

    Args:
        train: (time, censored) of the cases that determine the censoring weights.
        test: (time, censored) of the test cases; those beyond the training follow-up have no weight and are dropped.
        points: number of points of the time grid.

    Returns:
        The grid; None if the follow-up is too short for one.
    """
    from sksurv.util import Surv

    last = train[0][train[1] == 1].max() if (train[1] == 1).any() else train[0].max()
    inside = test[0] < last
    if inside.sum() < 2:
        return None
    time, censored = test[0][inside], test[1][inside]
    low, high = time.min(), time.max()
    grid = np.linspace(low, high, points + 2)[1:-1]
    grid = grid[(grid > low) & (grid < high)]
    if len(grid) < 2 or not (censored == 0).any():
        return None
    known = Surv.from_arrays(train[1] == 0, train[0])
    return BrierGrid(grid, inside, known, Surv.from_arrays(censored == 0, time))


def integrated_brier(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    curves: np.ndarray,
    edges: list[float],
    points: int = 100,
) -> float:
    """Integrated Brier score of curves that are given at the ends of bins.

    Args:
        train: (time, censored) of the training cases.
        test: (time, censored) of the test cases.
        curves: survival curves of the test cases, (n, K).
        edges: edges of the bins.
        points: number of points of the time grid.

    Returns:
        The score, lower is better; NaN if the follow-up is too short for a grid.
    """
    grid = brier_grid(train, test, points)
    return np.nan if grid is None else grid.score(survival_at(curves, edges, grid.times))


@dataclass(frozen=True)
class KaplanMeier:
    """A Kaplan-Meier curve, a right-continuous step function.

    Attributes:
        times: times of the steps, (m,), from 0.
        survival: survival function at `times`, (m,), from 1.
        low: lower end of the 95 % confidence band (log-log), (m,); NaN if undefined.
        high: upper end of the band, (m,).
    """

    times: np.ndarray
    survival: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, times: np.ndarray) -> np.ndarray:
        """Evaluate S(t) at `times`."""
        return self.survival[np.searchsorted(self.times, times, side="right") - 1]

    def median(self) -> tuple[float, float, float]:
        """Median survival time and the ends of its 95 % interval: where the curve and its band first reach 0.5.

        Values that are not reached are NaN (Brookmeyer & Crowley, Biometrics 1982).
        """
        reached = [np.flatnonzero(curve <= 0.5) for curve in (self.survival, self.low, self.high)]
        median, low, high = (float(self.times[one[0]]) if len(one) else np.nan for one in reached)
        return median, low, high


def kaplan_meier(time: np.ndarray, censored: np.ndarray) -> KaplanMeier:
    """Compute the Kaplan-Meier curve of a group, by scikit-survival.

    Args:
        time: event or censoring times, (n,).
        censored: censoring flags, (n,): 1 censored, 0 event.
    """
    from sksurv.nonparametric import kaplan_meier_estimator

    if not (censored == 0).any():
        ones = np.ones(2)
        return KaplanMeier(np.array([0.0, time.max()]), ones, ones, ones)
    with np.errstate(divide="ignore", invalid="ignore"):  # the band is undefined where S is 0 or 1
        times, survival, (low, high) = kaplan_meier_estimator(censored == 0, time, conf_type="log-log")
    start, one = np.zeros(1), np.ones(1)
    join = np.concatenate
    return KaplanMeier(join([start, times]), join([one, survival]), join([one, low]), join([one, high]))


def halves(risk: np.ndarray) -> dict[str, np.ndarray]:
    """Split cases at the median risk: masks (n,) by name, without empty ones; ties are in the lower half.

    Args:
        risk: risk scores, (n,); higher is worse.
    """
    high = risk > np.median(risk)
    return {name: group for name, group in (("lower risk", ~high), ("higher risk", high)) if group.any()}


def risk_groups(time: np.ndarray, censored: np.ndarray, risk: np.ndarray) -> pd.DataFrame:
    """Summarise the halves by risk: cases, events, median survival time with its 95 % interval.

    Args:
        time: event or censoring times, (n,).
        censored: censoring flags, (n,): 1 censored, 0 event.
        risk: risk scores, (n,); see `halves`.
    """
    rows = []
    for name, group in halves(risk).items():
        median, low, top = kaplan_meier(time[group], censored[group]).median()
        row = {"group": name, "cases": int(group.sum()), "events": int((censored[group] == 0).sum())}
        rows.append({**row, "median": median, "2.5 %": low, "97.5 %": top})
    return pd.DataFrame(rows)


def at_risk(time: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Number of cases still under observation at each of `times`, (T,).

    Args:
        time: end of observation of each case, (n,).
        times: evaluation times, (T,).
    """
    return (time[None] >= times[:, None]).sum(1)


def log_rank(time: np.ndarray, censored: np.ndarray, group: np.ndarray) -> float:
    """p value of the log-rank test that all groups have the same survival curve.

    NaN with one group or no event, and where no event has cases of two groups at risk: its variance is 0.
    """
    from sksurv.compare import compare_survival
    from sksurv.util import Surv

    if len(np.unique(group)) < 2 or not (censored == 0).any():
        return np.nan
    try:
        return float(compare_survival(Surv.from_arrays(censored == 0, time), group)[1])
    except np.linalg.LinAlgError:
        return np.nan
