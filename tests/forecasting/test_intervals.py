"""Conformal intervals against hand calculations; coverage on exchangeable errors; pinball loss, CRPS and others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from seqssm_forecasting import intervals, metrics
from seqssm_forecasting.figures import autocorrelation
from seqssm_forecasting.intervals import Calibration
from seqssm_forecasting.metrics import Errors, IntervalScores
from seqssm_forecasting.task import quantile_levels, require_probabilities

from seqssm.errors import InputError


def part_of(scores, index=None, calm=False):
    """A batch of scores (windows, N, T), with look-backs that are constant or not."""
    index = torch.arange(len(scores)) if index is None else index
    scale = torch.full_like(scores[..., :1], 0.003 if calm else 1.0)
    return {"index": index, "scores": scores[:, None], "scale": scale}


def kept_of(scores, **part):
    """The calibration that a checkpoint stores for scores (windows, N, T)."""
    calibration = Calibration(len(scores), *scores.shape[1:])
    calibration.batches = [part_of(scores, **part)]
    return {**calibration.result(), "stride": scores.shape[-1]}  # windows that do not overlap


def test_the_half_width_is_the_conformal_quantile():
    scores = torch.rand(199, 2, 3)
    kept = kept_of(scores)
    assert kept["counts"].tolist() == [199, 199]
    for level in (0.8, 0.9, 0.95):
        rank = int(np.ceil(200 * level))
        expected = scores.sort(0).values[rank - 1]
        np.testing.assert_allclose(intervals.half_width(kept, level), expected, atol=0.01)
    kept = kept_of(torch.arange(1.0, 10)[:, None, None])
    assert intervals.half_width(kept, 0.8) == 8, "the ceil(10 * 0.8)th of nine scores"
    assert intervals.half_width(kept, 0.9) == 9
    with pytest.raises(InputError, match=r"--level 95: 9 validation windows allow at most a level of 90\.0 %"):
        intervals.half_width(kept, 0.95)
    assert intervals.largest_level(kept) == 0.9


@pytest.mark.parametrize("power", [1, 2])
def test_windows_that_overlap_count_as_fewer(power):
    """The variance of a mean of n windows whose correlation is a power of their overlap; 1 is that of checkpoints
    without the entry, and those without a stride count every window."""
    kept = {**kept_of(torch.rand(1000, 1, 50)), "power": power}
    for stride, level, step in ((1, 0.8, 1), (1, 0.8, 50), (1, 0.9, 10), (7, 0.8, 50), (7, 0.8, 5), (60, 0.95, 50)):
        apart = np.arange(stride, step, stride)
        count = 1000 / (1 + 2 * np.sum((1 - apart / step) ** power))
        rank = min(1.0, np.ceil((count + 1) / count * level * 1000 - 1e-9) / 1000) * 200  # of 201 quantiles
        low = kept["knots"][:, 0, step - 1]
        expected = np.interp(rank, np.arange(201), low)
        half = intervals.half_width({**kept, "stride": stride}, level)[0, step - 1]
        assert float(half) == pytest.approx(expected, abs=0.002)
    old = {name: value for name, value in kept.items() if name not in ("stride", "power")}
    torch.testing.assert_close(intervals.half_width(old, 0.8), intervals.half_width({**kept, "stride": 60}, 0.8))
    before = {name: value for name, value in kept.items() if name != "power"}
    torch.testing.assert_close(
        intervals.half_width({**before, "stride": 1}, 0.8), intervals.half_width({**kept, "stride": 1, "power": 1}, 0.8)
    )
    few = {**kept_of(torch.rand(30, 1, 30)), "stride": 1}
    assert intervals.half_width(few, 0.9)[0, 29] == few["knots"][-1, 0, 29], "at most the largest score"


def test_the_coverage_on_random_walks_is_the_level_on_average():
    """Errors of the last value over 12 steps: one panel may cover 60 or 95 %, the mean over panels is near 80 %."""
    generator, horizon, panels, windows = np.random.default_rng(3), 12, 1500, 150
    walks = generator.normal(size=(panels, 2 * windows + 3 * horizon)).cumsum(1)
    errors = torch.from_numpy(np.abs(walks[:, horizon:] - walks[:, :-horizon]))  # all at step 12
    kept = {**kept_of(errors[:, :windows].T[..., None].repeat(1, 1, horizon)), "stride": 1}
    covered = {}
    for power in (1, 2):
        half = intervals.half_width({**kept, "power": power}, 0.8)[:, -1]
        covered[power] = float((errors[:, -windows:] <= half[:, None]).double().mean())
    assert 0.79 < covered[2] < 0.83 < covered[1] < 0.87, covered


def test_missing_scores_do_not_count():
    scores = torch.arange(1.0, 12)[:, None, None].repeat(1, 2, 1)
    scores[9:, 1] = torch.nan
    knots, count = intervals.quantiles(scores)
    assert count.tolist() == [[11], [9]]
    assert (knots[0, :, 0].tolist(), knots[-1, :, 0].tolist()) == ([1, 1], [11, 9])


def test_only_series_with_too_few_windows_take_the_pooled_quantiles():
    scores = torch.rand(199, 3, 2) * torch.tensor([1.0, 2.0, 4.0])[:, None]
    whole = intervals.half_width(kept_of(scores), 0.8)
    scores[20:, 1] = torch.nan
    kept = kept_of(scores)
    assert intervals.own_series(kept).tolist() == [True, False, True]
    half = intervals.half_width(kept, 0.8)
    torch.testing.assert_close(half[[0, 2]], whole[[0, 2]])
    pooled = torch.cat([scores[:, 0], scores[:20, 1], scores[:, 2]]).sort(0).values
    np.testing.assert_allclose(half[1], pooled[int(np.ceil(419 * 0.8)) - 1], atol=0.03)
    scores[:, 1] = torch.nan
    assert intervals.half_width(kept_of(scores), 0.8).isfinite().all(), "also a series without any window"
    assert intervals.own_series(kept, 0.999).tolist() == [False] * 3, "a high level needs more windows"
    old = {"knots": kept["knots"], "count": 20}
    assert intervals.own_series(old).all(), "a checkpoint of an earlier version pools nothing"


def test_constant_windows_are_not_pooled():
    """A constant look-back divides its error by almost nothing: pooled, it would widen the intervals of all series."""
    torch.manual_seed(0)
    x, horizon = torch.randn(10, 2, 8), 3
    x[:, 1] = 0.5
    y = torch.cat([torch.randn(10, 1, horizon), torch.full((10, 1, horizon), 0.7)], 1)
    calibration = Calibration(10, 2, horizon)
    calibration.update(torch.zeros(10, 2, horizon), {"index": torch.arange(10), "x": x, "y": y})
    kept = calibration.result()
    half = intervals.half_width(kept, 0.8)
    assert not intervals.own_series(kept).any()
    assert kept["pooled_count"] == 10
    assert 0.5 < float(half[0].min()) <= float(half[0].max()) < 10
    assert (kept_of(torch.rand(5, 2, 3), calm=True)["pooled_count"]) == 10, "nothing else to pool"


@pytest.mark.parametrize("constant", [40, 10])
def test_constant_windows_have_their_own_intervals(constant):
    """They do not widen the other intervals of their series, and their own do not have width zero."""
    torch.manual_seed(1)
    windows, horizon = 200, 4
    x, y = torch.randn(windows, 1, 50), torch.randn(windows, 1, horizon)
    x[:constant], y[:constant] = 0.0, 0.5 * y[:constant]  # a machine that is idle, then starts

    def calibrated(first):
        calibration = Calibration(windows, 1, horizon)
        part = {"index": torch.arange(first, windows), "x": x[first:], "y": y[first:]}
        calibration.update(torch.zeros(windows - first, 1, horizon), part)
        return {**calibration.result(), "stride": horizon}  # the windows of this test are independent

    kept, without = calibrated(0), calibrated(constant)
    half = intervals.half_width(kept, 0.8)
    torch.testing.assert_close(half, intervals.half_width(without, 0.8), atol=0.02, rtol=0)  # other quantiles
    assert kept["counts"].tolist() == [windows - constant]
    scale = intervals.window_std(x)
    margin = intervals.margins(kept, 0.8, scale, half)
    torch.testing.assert_close(margin[constant:], scale[constant:, :, None] * half)
    used = y[:constant] if constant >= intervals.ENOUGH else y  # too few: the errors of all windows
    expected = used.abs()[:, 0].sort(0).values[int(np.ceil((len(used) + 1) * 0.8)) - 1]
    np.testing.assert_allclose(margin[0, 0], expected, atol=0.05)
    assert (margin[:constant] == margin[0]).all()
    assert intervals.margins(kept, 0.999, scale, half).isfinite().all(), "few constant windows: their largest error"
    old = {name: value for name, value in kept.items() if not name.startswith("constant")}
    torch.testing.assert_close(intervals.margins(old, 0.8, scale, half), scale[..., None] * half)


def test_processes_calibrate_as_one(monkeypatch):
    """The scores of all processes are joined by window; a window seen by two processes counts once."""
    scores, windows = torch.rand(37, 2, 3), torch.arange(37)
    one = kept_of(scores)
    parts = [Calibration(37, 2, 3), Calibration(37, 2, 3)]
    for rank, part in enumerate(parts):
        own = torch.cat([windows[rank::2], windows[-1:]])
        part.batches = [part_of(scores[own], own)]

    def gather(everyone, _):
        everyone[:] = [p.batches for p in parts]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    both = {**parts[0].result(2), "stride": 3}
    assert both.keys() == one.keys()
    for name, value in one.items():
        if isinstance(value, int):
            assert both[name] == value
        else:
            torch.testing.assert_close(both[name], value)


def test_the_scale_is_the_standard_deviation_of_the_observed_values():
    x = torch.randn(5, 3, 20)
    torch.testing.assert_close(intervals.window_std(x), torch.sqrt(x.var(-1, correction=0) + 1e-5))
    seen = torch.rand(5, 3, 20) > 0.3
    own = intervals.window_std(x, seen)[2, 1]
    assert own == pytest.approx(np.sqrt(x[2, 1][seen[2, 1]].numpy().var() + 1e-5), rel=1e-5)
    spoilt = x.masked_fill(~seen, 99.0)
    torch.testing.assert_close(intervals.window_std(spoilt, seen), intervals.window_std(x, seen), rtol=1e-4, atol=1e-4)


def test_coverage_on_errors_distributed_as_in_validation():
    """Windows of very different volatility: intervals have their nominal coverage and are wider where it is high."""

    def batch(count, first):
        volatility = torch.exp(torch.randn(count, 2, 1))
        x = volatility * torch.randn(count, 2, 50)
        y = volatility * torch.randn(count, 2, 4) * torch.tensor([1.0, 1.5, 2.0, 3.0])
        return {"index": torch.arange(first, first + count), "x": x, "y": y}

    calibration = Calibration(2000, 2, 4)
    for start in range(0, 2000, 250):
        own = batch(250, start)
        calibration.update(torch.zeros(250, 2, 4), own)
    kept = {**calibration.result(), "stride": 4}  # the windows of this test are independent
    test = batch(4000, 0)
    scale = intervals.window_std(test["x"])
    for level in (0.8, 0.9, 0.95):
        half = scale[..., None] * intervals.half_width(kept, level)
        assert float((test["y"].abs() <= half).float().mean()) == pytest.approx(level, abs=0.015)
        assert (half[:, 0, 3] > half[:, 0, 0]).all()
    assert Calibration(5, 1, 1).result() == {}


def test_few_windows_are_stored_of_a_long_split():
    assert intervals.stride(4000, 7, 96) == 1
    assert intervals.stride(11_425, 7, 96) == 3
    assert intervals.stride(3000, 862, 96) == 9
    assert intervals.stride(3000, 862, 720) == 30


def test_pinball_and_crps_of_a_normal_distribution():
    """Quantiles of N(0, 1) against draws of it: the CRPS is 1/sqrt(pi) (Gneiting and Raftery 2007)."""
    draws = torch.randn(1, 1, 200_000, dtype=torch.float64)
    probabilities = [round(0.01 * k, 2) for k in range(1, 100)]
    normal = torch.distributions.Normal(0.0, 1.0)
    losses = [intervals.pinball(normal.icdf(torch.tensor(p)), draws, p) for p in probabilities]
    scores = IntervalScores([0.8], probabilities)
    edge = float(normal.icdf(torch.tensor(0.9)))
    scores.update([(torch.full_like(draws, -edge), torch.full_like(draws, edge))], losses, draws, None)
    assert scores.crps == pytest.approx(1 / np.sqrt(np.pi), rel=0.02)
    row = scores.table().iloc[0]
    assert (row["coverage"], row["width"]) == (pytest.approx(80, abs=0.5), pytest.approx(2 * edge))
    assert intervals.pinball(torch.tensor(1.0), torch.tensor(3.0), 0.9) == pytest.approx(1.8)
    assert intervals.pinball(torch.tensor(3.0), torch.tensor(1.0), 0.9) == pytest.approx(0.2)


def test_errors_in_units_and_with_missing_values():
    mean, std = torch.tensor([10.0, -4.0]), torch.tensor([2.0, 5.0])
    forecast, truth = torch.randn(6, 2, 3), torch.randn(6, 2, 3)
    there = torch.rand(6, 2, 3) > 0.3
    errors = Errors(mean, std)
    errors.update(forecast, truth.masked_fill(~there, 77.0), there)
    f, t, known = ((value * std[:, None] + mean[:, None]).numpy() for value in (forecast, truth)), None, there.numpy()
    f, t = f
    size = np.abs(f - t)
    assert errors.mae == pytest.approx(float((forecast - truth).abs()[there].mean()), rel=1e-5)
    expected = [size[:, k][known[:, k]].sum() / np.abs(t[:, k][known[:, k]]).sum() for k in range(2)]
    assert errors.wape == pytest.approx(100 * np.mean(expected), rel=1e-5)
    percent = (2 * size / (np.abs(f) + np.abs(t)))[known].mean()
    assert errors.smape == pytest.approx(100 * percent, rel=1e-5)
    absolute = errors.variates()[1]
    assert errors.mase(np.array([0.5, np.nan])) == pytest.approx(absolute[0] / 0.5)
    signed = np.where(known, (forecast - truth).numpy(), 0).sum((0, 1)) / known.sum((0, 1))
    np.testing.assert_allclose(errors.bias(), signed, rtol=1e-4)
    assert len(errors.sums) == metrics.SUMS


def test_levels_and_probabilities():
    assert intervals.parse_levels(["90", "80", 80]) == [80, 90]
    for word in ("0", "100", "x", "nan"):
        with pytest.raises(InputError, match="percentage"):
            intervals.parse_levels([word])
    with pytest.raises(InputError, match=r"--level 0\.8: levels are percentages of at least 1; write 80"):
        intervals.parse_levels(["0.8"])
    assert require_probabilities([0.9, 0.5, 0.1]) == [0.1, 0.5, 0.9]
    assert require_probabilities(None) == []
    for wrong in ([0.1, 0.9], [0.5, 0.5], [0.0, 0.5], [0.5, 1.2]):
        with pytest.raises(InputError, match=r"including 0\.5"):
            require_probabilities(wrong)
    assert quantile_levels([0.05, 0.1, 0.5, 0.9, 0.95, 0.99]) == [0.8, 0.9]


def test_autocorrelation_of_a_known_process():
    generator = np.random.default_rng(3)
    noise = generator.normal(size=(20_000, 2))
    memory = noise.copy()
    for row in range(1, len(memory)):
        memory[row] += 0.7 * memory[row - 1]
    np.testing.assert_allclose(autocorrelation(memory, 3), [0.7, 0.49, 0.343], atol=0.03)
    np.testing.assert_allclose(autocorrelation(noise, 3), 0, atol=0.03)
    assert autocorrelation(np.zeros((10, 2)), 2).tolist() == [0, 0]


def test_steps_whose_intervals_end_at_the_largest_error_are_named():
    """57 windows of stride 1 are worth 57 at the first step and about 3.6 at the 24th: 80 % is not possible there."""
    knots = torch.linspace(0, 1, 57)[:, None, None].expand(57, 2, 24)
    kept = {"knots": knots, "counts": torch.tensor([57, 57]), "count": 57, "stride": 1, "power": intervals.POWER}
    far = intervals.at_largest(kept, 0.8)
    assert max(far) == 24
    assert list(far) == list(range(min(far), 25))
    assert 0.76 < far[24] < 0.8
    half = intervals.half_width(kept, 0.8)[0]
    largest = [step for step in range(1, 25) if half[step - 1] == 1]
    assert set(far) <= set(largest)
    assert not intervals.at_largest(kept, 0.5)
