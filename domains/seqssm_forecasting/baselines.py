"""Baselines: the last value, the last season, and DLinear trained during the test."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from seqssm.errors import InputError
from seqssm.training.data import TrainBatches
from seqssm_forecasting.data import ForecastingData
from seqssm_forecasting.metrics import Errors
from seqssm_forecasting.model import DLinear
from seqssm_forecasting.windows import Windows

LEARNING_RATE = 1e-3
ROUNDS, PATIENCE, BATCH = 10, 3, 32
ROUND = 250  # minimum number of optimiser steps per round; several epochs for a small file
VARIATES_AT_ONCE = 64  # variates per forward pass in evaluation; bounds memory for hundreds of variates


def last_value(x: Tensor, horizon: int) -> Tensor:
    """Repeat the last value: ``x (B, N, L)`` to ``(B, N, T)``."""
    return x[..., -1:].expand(*x.shape[:-1], horizon)


def seasonal_naive(past: Tensor, horizon: int, season: int) -> Tensor:
    """Repeat the last `season` steps: ``past (B, N, at least season)`` to ``(B, N, T)``."""
    steps = torch.arange(horizon, device=past.device) % season
    return past[..., past.shape[-1] - season :][..., steps]


@dataclass(frozen=True)
class Naive:
    """A forecast that needs no training.

    Attributes:
        name: name in `kfold --models` (`DOMAIN.baselines`).
        title: title in the tables of `test`; ``{season}`` is replaced by the seasonal period.
        seasonal: whether it needs a seasonal period.
        forecast: function of (batch of `Windows`, horizon, season) that returns the forecast (B, N, T).
    """

    name: str
    title: str
    seasonal: bool
    forecast: Callable[[dict[str, Tensor], int, int], Tensor]


NAIVE = (
    Naive("last_value", "last value", False, lambda batch, horizon, _: last_value(batch["x"], horizon)),
    Naive(
        "seasonal_naive",
        "seasonal naive ({season})",
        True,
        lambda batch, horizon, season: seasonal_naive(batch.get("past", batch["x"]), horizon, season),
    ),
)
"""Untrained baselines, included in `test` and available to `kfold`."""


def naive(season: int | None) -> dict[str, Callable[[dict[str, Tensor], int], Tensor]]:
    """Return the applicable untrained baselines by title, as functions of a batch of `Windows` and the horizon."""
    return {
        one.title.format(season=season): lambda batch, horizon, one=one: one.forecast(batch, horizon, season or 0)
        for one in NAIVE
        if season is not None or not one.seasonal
    }


def batches(windows: Windows, size: int = 256) -> Iterator[dict[str, Tensor]]:
    """Yield batches with all windows of a split, in order."""
    for start in range(0, len(windows), size):
        yield windows.__getitems__(list(range(start, min(start + size, len(windows)))))


def test_last_value(data: ForecastingData) -> dict[str, float]:
    """Score the last value on the test split, for ``kfold --models last_value``."""
    return test_naive(data, NAIVE[0])


def test_seasonal_naive(data: ForecastingData) -> dict[str, float]:
    """Score the seasonal naive forecast on the test split, for ``kfold --models seasonal_naive``."""
    return test_naive(data, NAIVE[1])


def test_naive(data: ForecastingData, baseline: Naive) -> dict[str, float]:
    """Score an untrained baseline on the test split.

    Args:
        data: the data module, already set up.
        baseline: an entry of `NAIVE`.

    Raises:
        InputError: the baseline needs a seasonal period and there is none.
    """
    if baseline.seasonal and data.season is None:
        raise InputError(
            "has no seasonal period, or less history than one period; give --data.season STEPS", file=data.find()
        )
    errors = Errors()
    for batch in batches(data.test_set):
        forecast = baseline.forecast(batch, data.horizon, data.season or 0)
        errors.update(forecast[:, -data.outputs :], batch["y"], batch.get("target_mask"))
    return {"mse": errors.mse, "mae": errors.mae}


def fit_dlinear(train: Windows, val: Windows, seed: int, device: torch.device | str = "cpu") -> DLinear:
    """Train DLinear with the recipe of the benchmarks; the same `seed` gives the same weights.

    Adam with a learning rate of 1e-3 (halved from the third round on), batches of 32 windows, at most 10 rounds, early
    stopping after 3 rounds without a better validation error. Returns the best weights, in eval mode. A round is one
    epoch, or enough epochs for 250 steps if the file is small. The recipe is the same for all data sets, and nothing is
    selected on the test split.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DLinear(train.lookback, train.horizon)
    model.to(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # steps take a few milliseconds, too short for several threads
    try:
        return _fit(model, train, val, seed, device)
    finally:
        torch.set_num_threads(threads)


def _fit(model: DLinear, train: Windows, val: Windows, seed: int, device: torch.device | str) -> DLinear:
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    order = TrainBatches(len(train), min(BATCH, len(train)), seed, 0, 1, drop_last=True)
    best, best_error, waited = copy.deepcopy(model.state_dict()), float("inf"), 0
    passes = -(-ROUND // len(order))
    for index in range(ROUNDS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * 0.5 ** max(0, index - 1)
        for order.epoch in range(index * passes, (index + 1) * passes):
            for indices in order:
                batch = train.__getitems__(indices)
                loss = _loss(model, batch, device)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        error = mean_squared(model, val, device)
        if error < best_error:
            best, best_error, waited = copy.deepcopy(model.state_dict()), error, 0
        else:
            waited += 1
            if waited == PATIENCE:
                break
    model.load_state_dict(best)
    return model.eval()


def _loss(model: DLinear, batch: dict[str, Tensor], device: torch.device | str) -> Tensor:
    y = batch["y"].to(device)
    forecast = model(batch["x"][:, -y.shape[1] :].to(device))  # series are independent: only those that are forecast
    if "target_mask" not in batch:
        return F.mse_loss(forecast, y)
    mask = batch["target_mask"].to(device)
    return ((forecast - y).square() * mask).sum() / mask.sum().clamp(min=1)


@torch.no_grad()
def mean_squared(model: DLinear, windows: Windows, device: torch.device | str) -> float:
    """Return the mean squared error (scaled) of `model` over all windows of a split, ignoring missing values."""
    total, cells = 0.0, 0
    for batch in batches(windows):
        inputs = batch["x"][:, -windows.outputs :]
        target_mask = batch["target_mask"] if "target_mask" in batch else torch.ones_like(batch["y"], dtype=torch.bool)
        chunks = (values.split(VARIATES_AT_ONCE, 1) for values in (inputs, batch["y"], target_mask))
        for x, y, mask in zip(*chunks):
            error = (model(x.to(device)) - y.to(device)).square() * mask.to(device)
            total += float(error.sum())
            cells += int(mask.sum())
    return total / max(1, cells)
