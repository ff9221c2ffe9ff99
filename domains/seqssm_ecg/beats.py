"""Beats: R peaks from all leads together, the median beat, and how well a lead's beats agree.

Detection follows Pan and Tompkins (1985): band-pass, slope, moving integration, adaptive threshold, refractory period,
rejection of T waves by height, search back in long pauses; the slopes of all leads are combined first. The median beat
is aligned by correlation, without the beats that differ from it (ectopic ones).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import signal as dsp
from scipy.ndimage import uniform_filter1d

RATE_HZ = 500.0  # rate of all measurements
BAND_HZ = (5.0, 22.0)  # where QRS complexes exceed P and T waves and noise
REFRACTORY_S, T_WAVE_S = 0.22, 0.36
LEVEL, T_WAVE_LEVEL, SEARCH_BACK_LEVEL = 0.4, 0.55, 0.2  # fractions of the level of neighbouring beats
SEGMENT_S, SEGMENTS = 2.0, 7  # the level is the median over the maxima of this number of segments
FLAT_MV = 1e-3
BEFORE_S, AFTER_S = 0.42, 0.72  # longest extent of a median beat around R
ALIGN_S = 0.024  # largest shift of a beat in the alignment
SIMILAR = 0.85  # correlation with the median beat of beats that are averaged
MIN_BEATS = 3


def detect_beats(table: np.ndarray, rate_hz: float = RATE_HZ) -> np.ndarray:
    """Find the R peaks of a recording.

    Args:
        table: samples (leads, n) without gaps, mV or any other unit.
        rate_hz: sampling rate, hertz; at least 50.

    Returns:
        Sample indices of the peaks, ascending.
    """
    if table.shape[1] < rate_hz:
        return np.empty(0, dtype=np.int64)
    high = min(BAND_HZ[1], 0.45 * rate_hz)
    sections = dsp.butter(2, (BAND_HZ[0], high), "bandpass", fs=rate_hz, output="sos")
    band = dsp.sosfiltfilt(sections, table.astype(np.float64), axis=1)
    scale = np.percentile(np.abs(band), 98, axis=1, keepdims=True)
    live = scale[:, 0] > FLAT_MV * 0.1
    if not live.any():
        return np.empty(0, dtype=np.int64)
    band = band[live] / scale[live]
    slope = np.sqrt((np.gradient(band, axis=1) ** 2).mean(axis=0)) * rate_hz
    height = uniform_filter1d(slope, max(1, round(0.11 * rate_hz)))
    peaks, _ = dsp.find_peaks(height, distance=max(1, round(REFRACTORY_S * rate_hz)))
    if not len(peaks):
        return peaks
    level = _levels(height, rate_hz)[peaks]
    kept = _without_t_waves(peaks[height[peaks] > LEVEL * level], height, rate_hz)
    kept = _with_missed(kept, peaks[height[peaks] > SEARCH_BACK_LEVEL * level], height, rate_hz)
    return _refined(kept, np.abs(band).sum(axis=0), rate_hz)


def _levels(height: np.ndarray, rate_hz: float) -> np.ndarray:
    """Return the typical height of a beat around each sample: a running median of segment maxima."""
    length = max(1, round(SEGMENT_S * rate_hz))
    count = max(1, len(height) // length)
    maxima = np.array([part.max() for part in np.array_split(height, count)])
    side = SEGMENTS // 2
    smooth = np.array([np.median(maxima[max(0, k - side) : k + side + 1]) for k in range(count)])
    return smooth[np.minimum(np.arange(len(height)) * count // len(height), count - 1)]


def _without_t_waves(peaks: np.ndarray, height: np.ndarray, rate_hz: float) -> np.ndarray:
    """Drop peaks shortly after a much higher one."""
    kept: list[int] = []
    for peak in peaks:
        if kept and peak - kept[-1] < T_WAVE_S * rate_hz:
            if height[peak] < T_WAVE_LEVEL * height[kept[-1]]:
                continue
            if height[kept[-1]] < T_WAVE_LEVEL * height[peak]:
                kept.pop()
        kept.append(int(peak))
    return np.array(kept, dtype=np.int64)


def _with_missed(peaks: np.ndarray, candidates: np.ndarray, height: np.ndarray, rate_hz: float) -> np.ndarray:
    """Add the highest candidate in each pause of more than 1.66 typical intervals."""
    if len(peaks) < MIN_BEATS:
        return peaks
    typical = np.median(np.diff(peaks))
    found = list(peaks)
    for first, second in pairwise(peaks):
        if second - first <= 1.66 * typical:
            continue
        side = T_WAVE_S * rate_hz
        between = candidates[(candidates > first + side) & (candidates < second - side)]
        if len(between):
            found.append(between[np.argmax(height[between])])
    return np.sort(np.array(found, dtype=np.int64))


def _refined(peaks: np.ndarray, size: np.ndarray, rate_hz: float) -> np.ndarray:
    """Move each peak to the largest deflection of all leads within 80 ms."""
    side = max(1, round(0.08 * rate_hz))
    moved = []
    for peak in peaks:
        start = max(0, peak - side)
        moved.append(start + int(np.argmax(size[start : peak + side + 1])))
    return np.unique(np.array(moved, dtype=np.int64))


@dataclass(frozen=True)
class MedianBeat:
    """The median over similar beats.

    Attributes:
        values: samples (leads, m).
        r: index of the R peak.
        beats: all beats, aligned, (beats, leads, m).
        similar: whether each of them is part of the median, (beats,).
        rr: typical interval between beats, samples.
    """

    values: np.ndarray
    r: int
    beats: np.ndarray
    similar: np.ndarray
    rr: float

    def agreement(self) -> np.ndarray:
        """Return the mean correlation of the similar beats with the median beat, per lead, (leads,); 0 if flat."""
        found = np.array([_correlations(self.beats[self.similar][:, k], row) for k, row in enumerate(self.values)])
        return np.clip(found.mean(axis=1), 0, 1)


def median_beat(table: np.ndarray, peaks: np.ndarray, rate_hz: float = RATE_HZ) -> MedianBeat | None:
    """Compute the median beat of a recording; None with fewer than `MIN_BEATS` whole beats.

    Args:
        table: samples (leads, n) without baseline wander.
        peaks: R peaks.
        rate_hz: sampling rate, hertz.
    """
    if len(peaks) < MIN_BEATS:
        return None
    rr = float(np.median(np.diff(peaks)))
    before = round(min(BEFORE_S * rate_hz, 0.5 * rr))
    after = round(min(AFTER_S * rate_hz, 0.85 * rr))
    shift = max(1, round(ALIGN_S * rate_hz))
    inside = peaks[(peaks >= before + shift) & (peaks + after + shift < table.shape[1])]
    if len(inside) < MIN_BEATS:
        return None
    wide = np.stack([table[:, peak - before - shift : peak + after + shift] for peak in inside])
    beats, core = _aligned(wide, before, shift, rate_hz)
    middle = np.median(beats, axis=0)
    for _ in range(2):
        alike = _correlations(beats[..., core].reshape(len(beats), -1), middle[:, core].ravel())
        similar = alike >= min(SIMILAR, np.sort(alike)[-max(MIN_BEATS, len(alike) // 2)])
        middle = np.median(beats[similar], axis=0)
    return MedianBeat(middle, before, beats, similar, rr)


def _aligned(wide: np.ndarray, before: int, shift: int, rate_hz: float) -> tuple[np.ndarray, slice]:
    """Shift each beat to its best correlation with the median beat; also return the QRS part of a beat."""
    length = wide.shape[2] - 2 * shift
    side = round(0.1 * rate_hz)
    core = slice(max(0, before - side), min(length, before + side))
    middle = np.median(wide[:, :, shift : shift + length], axis=0)[:, core].ravel()
    beats = []
    for beat in wide:
        scores = [
            _correlations(beat[:, s + core.start : s + core.stop].reshape(1, -1), middle)[0]
            for s in range(2 * shift + 1)
        ]
        start = int(np.argmax(scores))
        beats.append(beat[:, start : start + length])
    return np.stack(beats), core


def _correlations(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the correlation of each row (k, m) with `wanted` (m,); 0 where one is constant."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    wanted = wanted - wanted.mean()
    size = np.sqrt((rows**2).sum(axis=1) * (wanted**2).sum())
    return np.divide(rows @ wanted, size, out=np.zeros(len(rows)), where=size > 1e-12)
