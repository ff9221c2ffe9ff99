"""Baselines: class frequencies of the training records, and a linear model on 19 features per lead."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from seqssm.errors import NotApplicableError
from seqssm_ecg import metrics, thresholds
from seqssm_ecg.metrics import Predictions
from seqssm_ecg.records import OnDisk

if TYPE_CHECKING:
    from seqssm_ecg.data import EcgData

STEPS, PENALTY = 200, 3e-3
PIECE_S = 60.0  # length of the segments of a long record, seconds
TITLES = {"linear": "linear on 19 numbers a lead", "prior": "training frequencies"}
"""Row names in `metrics.json`, unchanged since 0.1.0; a baseline that is not listed uses its own name."""


def features(table: np.ndarray, rate_hz: float) -> np.ndarray:
    """Compute the features of a recording (leads, n).

    Per lead: standard deviation, skewness, kurtosis, quantiles, roughness, and the power in bands from 0.5 to 40 Hz.
    Over all leads: the autocorrelation at lags of plausible heart rates.
    """
    x = table.astype(np.float64)
    mean, std = x.mean(1, keepdims=True), x.std(1, keepdims=True)
    z = (x - mean) / np.where(std < 1e-6, 1, std)
    power = np.abs(np.fft.rfft(z, axis=1)) ** 2
    hz = np.fft.rfftfreq(x.shape[1], 1 / rate_hz)
    edges = (0.5, 1, 2, 4, 7, 10, 15, 20, 30, 40)
    total = power.sum(1) + 1e-9
    bands = [np.log1p(1e3 * power[:, (hz >= a) & (hz < b)].sum(1) / total) for a, b in pairwise(edges)]
    quantiles = np.quantile(z, (0.01, 0.05, 0.25, 0.75, 0.95, 0.99), axis=1)
    spectrum = np.fft.irfft(np.abs(np.fft.rfft(z, 2 * z.shape[1], axis=1)) ** 2, axis=1)[:, : z.shape[1]]
    beat = spectrum.mean(0) / max(1e-9, spectrum.mean(0)[0])
    lags = [
        beat[int(rate_hz * a) : max(int(rate_hz * a) + 1, int(rate_hz * b))]
        for a, b in ((0.3, 0.6), (0.6, 1.0), (1.0, 1.6))
    ]
    rhythm = [lag.max() if len(lag) else 0.0 for lag in lags]
    roughness = np.log1p(np.abs(np.diff(z, axis=1)).mean(1))
    by_lead = np.concatenate([[std[:, 0], (z**3).mean(1), np.log1p((z**4).mean(1)), roughness], quantiles, bands])
    return np.nan_to_num(np.concatenate([by_lead.ravel(), rhythm]))


def _tables(data: EcgData, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features and labels of a split."""
    chosen = {"train": data.train_set, "val": data.val_set, "test": data.test_set}[part]
    found = np.stack([_whole(data.records[position], data.rate_hz) for position in chosen.positions])
    return found, chosen.y.numpy()


def _whole(table: np.ndarray | OnDisk, rate_hz: float) -> np.ndarray:
    """Compute `features` of a record; for a long one, the mean over its segments."""
    if not isinstance(table, OnDisk):
        return features(table, rate_hz)
    size = round(PIECE_S * rate_hz)
    pieces = [features(table[:, start : start + size], rate_hz) for start in range(0, table.shape[1] - size + 1, size)]
    return np.mean(pieces or [features(table[:, : table.shape[1]], rate_hz)], axis=0)


def fit_linear(data: EcgData) -> Predictions:
    """Predict the test records with logistic regressions on `features`.

    The penalty is fixed; 200 full-batch steps of Adam start from zero weights. Nothing is random, and only the
    thresholds use validation records.
    """
    if data.one_lead:
        raise NotApplicableError("it uses all leads at once")
    reference = _reference(data)
    x, y = _tables(reference, "train")
    mean, std = x.mean(0), x.std(0)
    std[std < 1e-9] = 1
    with torch.inference_mode(False), torch.enable_grad():
        inputs = torch.from_numpy((x - mean) / std).float()
        truth = torch.from_numpy(y.copy()).float()
        weight = torch.zeros(inputs.shape[1], y.shape[1], requires_grad=True)
        frequency = truth.nanmean(0).clamp(1e-3, 1 - 1e-3)
        known = truth.isfinite()
        bias = torch.logit(frequency).clone().requires_grad_()
        optimizer = torch.optim.Adam([weight, bias], lr=0.02)
        for _ in range(STEPS):
            logits = (inputs @ weight + bias)[known]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth[known])
            loss = loss + PENALTY * weight.square().sum() / y.shape[1]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def scores(source: EcgData, part: str) -> tuple[np.ndarray, np.ndarray]:
        values, labels = _tables(source, part)
        z = torch.from_numpy((values - mean) / std).float() @ weight.detach() + bias.detach()
        return z.sigmoid().double().numpy(), labels

    val_scores, val_truth = scores(reference, "val")
    limits = thresholds.fit_thresholds(val_truth, val_scores, "f1")
    test_scores, truth = scores(data, "test")
    return Predictions(truth, test_scores, test_scores >= limits, *(data.challenge or (None, None)))


def fit_prior(data: EcgData) -> Predictions:
    """Predict each class's frequency among known training labels, and classes above one half as positive."""
    reference = _reference(data)
    fraction = (reference.counts / reference.known.clamp(min=1)).double().numpy()
    scores = np.tile(fraction, (len(data.test_set), 1))
    return Predictions(data.test_set.y.numpy(), scores, scores > 0.5, *(data.challenge or (None, None)))


def linear(data: EcgData) -> dict[str, float]:
    """Evaluate the linear model on the test records."""
    return metrics.summary(fit_linear(data))


def prior(data: EcgData) -> dict[str, float]:
    """Evaluate the training frequencies on the test records."""
    return metrics.summary(fit_prior(data))


def _reference(data: EcgData) -> EcgData:
    """Return the training data of the run."""
    found = data.reference()
    if found is None:
        raise NotApplicableError("the run's own data cannot be read")
    return found
