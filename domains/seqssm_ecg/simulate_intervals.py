"""Simulated recordings whose waves begin and end at known times, for checking measurements.

Every wave is a raised cosine with a compact support, so its boundaries are exact. A wave has a direction in space, and
a lead sees its projection (Dower's matrix, Dower et al. 1980, J Electrocardiol 13:243).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqssm_ecg.leads import LEADS, select

VIEW = {
    "I": (0.632, -0.235, 0.059),
    "II": (0.235, 1.066, -0.132),
    "V1": (-0.515, 0.157, -0.917),
    "V2": (0.044, 0.164, -1.387),
    "V3": (0.882, 0.098, -1.277),
    "V4": (1.213, 0.127, -0.601),
    "V5": (1.125, 0.127, -0.086),
    "V6": (0.831, 0.076, 0.230),
}
"""Dower's matrix: millivolts in a lead per millivolt of the heart vector (left, down, back)."""
P_MS, P_PEAK, T_PEAK = 100.0, 0.5, 0.62  # duration of P; place of the peaks within the waves
P_VECTOR, T_VECTOR = (0.05, 0.11, 0.02), (0.22, 0.2, -0.12)
QRS_LOBES = (
    (0.0, 0.24, (-0.08, -0.05, -0.15)),
    (0.16, 0.68, (0.9, 0.95, 0.3)),
    (0.55, 1.0, (-0.12, -0.15, 0.45)),
)
"""Start and end within the complex, and vector, of its parts."""


@dataclass(frozen=True)
class Timing:
    """Intervals of a simulated recording.

    Attributes:
        heart_rate_bpm: mean heart rate.
        pr_ms, qrs_ms, qt_ms: intervals in milliseconds; `pr_ms` None: no P waves.
    """

    heart_rate_bpm: float = 72.0
    pr_ms: float | None = 160.0
    qrs_ms: float = 92.0
    qt_ms: float = 390.0


def timed_recording(
    timing: Timing, seconds: float, rate_hz: float, seed: int = 0, noise_mv: float = 0.015, irregular: float = 0.02
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Simulate a recording with known intervals.

    Args:
        timing: intervals.
        seconds: duration.
        rate_hz: sampling rate, hertz.
        seed: seed of the noise, the amplitudes and the beat intervals.
        noise_mv: standard deviation of white noise; baseline wander is ten times as large.
        irregular: standard deviation of the beat intervals as a fraction of their mean.

    Returns:
        Samples by lead, (n,) float32 in mV, and the times of QRS onsets within the recording, seconds.
    """
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    vector = np.zeros((3, len(time)))
    onsets, place = [], -1.0 + random.uniform(0, 0.5)
    while place < seconds + 1:
        for first, last, peak, size in _waves(timing):
            begin, end, top = (place + at / 1000 for at in (first, last, peak))
            near = slice(*np.searchsorted(time, (begin, end)))
            vector[:, near] += np.outer(size, _raised_cosine(time[near], begin, top, end)) * random.normal(1, 0.02)
        onsets.append(place)
        place += 60 / timing.heart_rate_bpm * max(0.5, random.normal(1, irregular))
    values = {}
    for lead, view in VIEW.items():
        wander = 10 * noise_mv * np.sin(2 * np.pi * (random.uniform(0.1, 0.3) * time + random.uniform()))
        values[lead] = np.asarray(view) @ vector + wander + random.normal(0, noise_mv, len(time))
    table, _ = select(values, LEADS, "refuse", Path("simulated"))
    return dict(zip(LEADS, table)), np.array([at for at in onsets if 0 <= at < seconds])


def _waves(timing: Timing) -> list[tuple[float, float, float, tuple[float, float, float]]]:
    """Return (start, end, peak) in milliseconds from the QRS onset, and vector, of each wave of a beat."""
    waves = []
    if timing.pr_ms is not None:
        first = -timing.pr_ms
        waves.append((first, first + P_MS, first + P_PEAK * P_MS, P_VECTOR))
    for start, stop, size in QRS_LOBES:
        first, last = start * timing.qrs_ms, stop * timing.qrs_ms
        waves.append((first, last, (first + last) / 2, size))
    first, last = timing.qrs_ms + 0.22 * (timing.qt_ms - timing.qrs_ms), timing.qt_ms
    waves.append((first, last, first + T_PEAK * (last - first), T_VECTOR))
    return waves


def _raised_cosine(time: np.ndarray, first: float, peak: float, last: float) -> np.ndarray:
    phase = np.where(time < peak, (time - first) / (peak - first), (last - time) / (last - peak))
    return 0.5 - 0.5 * np.cos(np.pi * np.clip(phase, 0, 1))
