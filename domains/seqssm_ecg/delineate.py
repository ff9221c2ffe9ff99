"""Boundaries of P, QRS and T on a median beat, from all leads together.

QRS: where the spatial velocity (the size of the slope vector over the leads) falls to a fraction of its maximum, as in
vectorcardiography. P and T: the leads are combined to the first principal component of the wave, and the boundaries are
those of the largest trapezium between the steepest point of the flank and a point on the baseline beyond the wave
(Vázquez-Seisdedos et al. 2011, Biomed Eng Online 10:43), which does not depend on a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import signal as dsp
from scipy.ndimage import uniform_filter1d

from seqssm_ecg.beats import MedianBeat

ONSET_LEVEL, OFFSET_LEVEL = 0.055, 0.075  # fractions of the largest spatial velocity
QUIET_S = 0.014  # the velocity stays below the level for so long outside of the complex
LONGEST_QRS_S = 0.24
P_SMALLEST, T_SMALLEST = 0.02, 0.02  # sizes of the waves relative to the QRS complex
P_AGREEMENT = 0.5  # mean correlation of the beats with the median beat in the P wave; lower: no P wave (AF)


@dataclass(frozen=True)
class Boundaries:
    """Boundaries of the waves, samples relative to the R peak; None if a wave is not found.

    Attributes:
        p_onset, p_offset: P wave.
        qrs_onset, qrs_offset: QRS complex.
        t_peak, t_offset: T wave.
    """

    qrs_onset: float
    qrs_offset: float
    p_onset: float | None = None
    p_offset: float | None = None
    t_peak: float | None = None
    t_offset: float | None = None


def delineate(beat: MedianBeat, rate_hz: float) -> Boundaries | None:
    """Find the boundaries of a median beat; None without a QRS complex.

    Args:
        beat: median beat, without baseline wander.
        rate_hz: sampling rate, hertz.
    """
    beat = _weighted(beat)
    complex_ = _qrs(beat, rate_hz)
    if complex_ is None:
        return None
    first, last = complex_
    size = float(np.ptp(beat.values[:, first : last + 1], axis=1).max())
    p = _p_wave(beat, first, size, rate_hz)
    t = _t_wave(beat, last, size, rate_hz, p[0] if p else None)
    relative = [
        None if place is None else float(place - beat.r) for place in (*(p or (None, None)), *(t or (None, None)))
    ]
    return Boundaries(float(first - beat.r), float(last - beat.r), *relative)


def _weighted(beat: MedianBeat) -> MedianBeat:
    """Scale down the leads whose beats differ from the median beat by more than those of a typical lead."""
    noise = np.median(np.abs(beat.beats[beat.similar] - beat.values), axis=(0, 2))
    weight = np.minimum(1, np.median(noise) / np.maximum(noise, 1e-9))[:, None]
    return replace(beat, values=beat.values * weight, beats=beat.beats * weight)


def _qrs(beat: MedianBeat, rate_hz: float) -> tuple[int, int] | None:
    """Return first and last sample of the QRS complex."""
    width = max(5, round(0.012 * rate_hz) | 1)
    slope = dsp.savgol_filter(beat.values, width, 2, deriv=1, axis=1)
    speed = uniform_filter1d(np.sqrt((slope**2).sum(axis=0)), max(1, round(0.004 * rate_hz)))
    near = slice(max(0, beat.r - round(0.08 * rate_hz)), beat.r + round(0.1 * rate_hz))
    top = near.start + int(np.argmax(speed[near]))
    floor = float(np.percentile(speed, 15))
    if not speed[top] > 3 * floor + 1e-9:
        return None
    quiet, reach = round(QUIET_S * rate_hz), round(LONGEST_QRS_S * rate_hz)
    first = _quiet_from(speed[max(0, top - reach) : top + 1][::-1], floor + ONSET_LEVEL * (speed[top] - floor), quiet)
    last = _quiet_from(speed[top : top + reach + 1], floor + OFFSET_LEVEL * (speed[top] - floor), quiet)
    return top - first, top + last


def _quiet_from(speed: np.ndarray, level: float, quiet: int) -> int:
    """Return the index before the first `quiet` samples that are all below `level`; the last index without any."""
    below = np.convolve(speed < level, np.ones(quiet), "valid") >= quiet
    found = np.flatnonzero(below)
    return max(0, int(found[0]) - 1) if len(found) else len(speed) - 1


def _component(values: np.ndarray, zero: float | np.ndarray) -> np.ndarray:
    """Combine leads (leads, m) to their first principal component around a zero level, with a positive peak."""
    centred = values - zero
    _, _, axes = np.linalg.svd(centred @ centred.T)
    row = axes[0] @ centred
    return row if row.max() >= -row.min() else -row


def _p_wave(beat: MedianBeat, first: int, size: float, rate_hz: float) -> tuple[int, int] | None:
    """Return first and last sample of the P wave before the complex."""
    start = max(0, first - round(0.34 * rate_hz))
    stop = first - round(0.012 * rate_hz)
    if stop - start < 0.09 * rate_hz:
        return None
    level = np.median(beat.values[:, max(start, stop - round(0.016 * rate_hz)) : stop + 1], axis=1, keepdims=True)
    row = dsp.savgol_filter(_component(beat.values[:, start:stop], level), _odd(0.024 * rate_hz), 2)
    edge = round(0.03 * rate_hz)
    top = edge + int(np.argmax(row[edge:]))
    if top >= len(row) - edge // 2 or row[top] < P_SMALLEST * size:
        return None
    around = slice(start + max(0, top - round(0.06 * rate_hz)), start + min(len(row), top + round(0.06 * rate_hz)))
    if _agreement(beat, around) < P_AGREEMENT:
        return None
    onset = top - _trapezium(row[: top + 1][::-1], round(0.11 * rate_hz))
    offset = top + _trapezium(row[top:], round(0.11 * rate_hz))
    return start + onset, start + offset


def _t_wave(beat: MedianBeat, last: int, size: float, rate_hz: float, p: int | None) -> tuple[int, int] | None:
    """Return peak and last sample of the T wave after the complex."""
    start = last + round(0.06 * rate_hz)
    stop = beat.values.shape[1]
    if p is not None:  # the P wave of the next beat
        stop = min(stop, round(beat.r + beat.rr - (beat.r - p) - 0.01 * rate_hz))
    if stop - start < 0.1 * rate_hz:
        return None
    tail = max(2, round(0.03 * rate_hz))
    level = np.median(beat.values[:, stop - tail : stop], axis=1, keepdims=True)
    row = dsp.savgol_filter(_component(beat.values[:, start:stop], level), _odd(0.036 * rate_hz), 2)
    top = int(np.argmax(row))
    if top > len(row) - 0.04 * rate_hz or row[top] - row[-tail:].mean() < T_SMALLEST * size:
        return None
    return start + top, start + top + _trapezium(row[top:], round(0.26 * rate_hz))


def _trapezium(flank: np.ndarray, reach: int) -> int:
    """Return the index of the end of a wave.

    Args:
        flank: samples from the peak outwards.
        reach: largest distance of the end from the peak, samples.
    """
    flank = flank[: reach + 1]
    if len(flank) < 4:
        return len(flank) - 1
    steepest = int(np.argmin(np.diff(flank)[: max(1, len(flank) - 2)]))
    outer = len(flank) - 1
    place = np.arange(steepest, outer + 1)
    area = (flank[steepest] - flank[place]) * (2 * outer - place - steepest)
    return int(place[np.argmax(area)])


def _agreement(beat: MedianBeat, part: slice) -> float:
    """Return the mean correlation of the similar beats with the median beat in a part, over all leads."""
    middle = beat.values[:, part] - beat.values[:, part].mean(axis=1, keepdims=True)
    beats = beat.beats[beat.similar][..., part]
    beats = beats - beats.mean(axis=2, keepdims=True)
    sizes = np.sqrt((beats**2).sum((1, 2)) * (middle**2).sum())
    return float(np.mean((beats * middle).sum((1, 2)) / np.maximum(sizes, 1e-12)))


def _odd(samples: float) -> int:
    return max(5, round(samples) | 1)
