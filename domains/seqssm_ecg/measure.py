"""Measurements of a recording: heart rate, PR, QRS, QT, corrected QT, and the signal quality of each lead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import signal as dsp

from seqssm_ecg.beats import FLAT_MV, RATE_HZ, detect_beats, median_beat
from seqssm_ecg.delineate import Boundaries, delineate
from seqssm_ecg.leads import LEADS
from seqssm_ecg.preprocess import close_gaps, resample
from seqssm_ecg.recording import Recording

WHOLE_S, PART_S = 120.0, 10.0  # longer recordings are measured in parts
BASELINE_HZ = 0.5  # high-pass, zero-phase
GOOD = 0.5  # agreement of beats below which a lead is not measured
INTERVALS = ("heart_rate_bpm", "pr_ms", "qrs_ms", "qt_ms", "qtcb_ms", "qtcf_ms")
PLAUSIBLE = {"heart_rate_bpm": (15, 350), "pr_ms": (60, 450), "qrs_ms": (30, 300), "qt_ms": (150, 800)}


@dataclass(frozen=True)
class Measurements:
    """Measurements of a recording, or of a part of one.

    Attributes:
        values: `INTERVALS` in beats per minute and milliseconds; None if not measurable.
        quality: agreement of the beats with the median beat by lead, 0 (flat or noise) to 1; without the leads that too
            few beats could not judge.
        peaks_s: times of the R peaks, seconds.
        boundaries: boundaries of the median beat, samples at `seqssm_ecg.beats.RATE_HZ`, or None.
        good: the leads whose median beat was measured.
    """

    values: dict[str, float | None]
    quality: dict[str, float]
    peaks_s: np.ndarray = field(repr=False)
    boundaries: Boundaries | None = None
    good: tuple[str, ...] = ()

    def columns(self, leads: Sequence[str] = LEADS) -> dict[str, float | None]:
        """Return the columns of a table, rounded: the intervals, the number of beats, and the quality of `leads`."""
        found: dict[str, float | None] = {
            name: None if value is None else round(value, 1) for name, value in self.values.items()
        }
        found["beats"] = len(self.peaks_s)
        quality = {lead: self.quality.get(lead) for lead in leads}
        return found | {f"quality_{lead}": None if q is None else round(q, 3) for lead, q in quality.items()}

    def text(self) -> str:
        """Return one line for a page."""
        names = ("HR", "PR", "QRS", "QT", "QTcB", "QTcF")
        parts = []
        for name, key in zip(names, INTERVALS):
            value = self.values[key]
            shown = "-" if value is None else f"{value:.0f}"
            parts.append(f"{name} {shown}{'/min' if key == 'heart_rate_bpm' else ' ms'}")
        return "   ".join(parts)


def column_names(leads: Sequence[str] = LEADS) -> list[str]:
    """Return the names of `Measurements.columns`."""
    return [*INTERVALS, "beats", *(f"quality_{lead}" for lead in leads)]


def measure(values: Mapping[str, np.ndarray], rate_hz: float) -> Measurements:
    """Measure leads over at least a few beats; intervals are those of the median beat over all good leads.

    Args:
        values: samples by lead, (n,) each, mV, of leads recorded at the same time; missing samples are NaN.
        rate_hz: sampling rate, hertz.

    Returns:
        Corrected QT: QT / sqrt(RR) (Bazett 1920) and QT / RR^(1/3) (Fridericia 1920) with the mean RR in seconds. A
        value outside of any plausible range is None.
    """
    leads, table = _prepared(values, rate_hz)
    quality = {lead: 0.0 for lead in values if lead not in leads}  # flat, or most samples missing
    if not leads:
        return Measurements(dict.fromkeys(INTERVALS), quality, np.empty(0))
    peaks = detect_beats(table)
    beat = median_beat(table, peaks)
    if beat is None:  # too few whole beats to judge the leads
        return Measurements(_intervals(None, peaks), quality, peaks / RATE_HZ)
    quality |= dict(zip(leads, map(float, beat.agreement())))
    good = [number for number, lead in enumerate(leads) if quality[lead] >= GOOD]
    if not good:
        return Measurements(dict.fromkeys(INTERVALS), quality, np.empty(0))
    if len(good) < len(leads):
        peaks = detect_beats(table[good])
        beat = median_beat(table[good], peaks)
    found = None if beat is None else delineate(beat, RATE_HZ)
    return Measurements(_intervals(found, peaks), quality, peaks / RATE_HZ, found, tuple(leads[one] for one in good))


def _prepared(values: Mapping[str, np.ndarray], rate_hz: float) -> tuple[list[str], np.ndarray]:
    """Return the usable leads at `RATE_HZ` without baseline wander, (leads, n)."""
    leads, rows = [], []
    for lead, row in values.items():
        gaps = np.isnan(row)
        if gaps.mean() > 0.5 or not np.ptp(row[~gaps]) > FLAT_MV:
            continue
        leads.append(lead)
        rows.append(close_gaps(row, gaps) if gaps.any() else row.astype(np.float32))
    if not leads or len(rows[0]) < 2 * rate_hz:
        return [], np.empty((0, 0))
    table = resample(np.stack(rows), rate_hz, RATE_HZ).astype(np.float64)
    table -= np.median(table, axis=1, keepdims=True)
    sections = dsp.butter(1, BASELINE_HZ, "highpass", fs=RATE_HZ, output="sos")
    return leads, dsp.sosfiltfilt(sections, table, axis=1)


def _intervals(found: Boundaries | None, peaks: np.ndarray) -> dict[str, float | None]:
    """Compute the intervals from boundaries and R peaks at `RATE_HZ`."""
    ms = 1000 / RATE_HZ
    rr_s = float(peaks[-1] - peaks[0]) / (len(peaks) - 1) / RATE_HZ if len(peaks) > 1 else 0.0
    raw: dict[str, float | None] = dict.fromkeys(INTERVALS)
    raw["heart_rate_bpm"] = 60 / rr_s if rr_s > 0 else None
    if found is not None:
        raw["qrs_ms"] = (found.qrs_offset - found.qrs_onset) * ms
        raw["pr_ms"] = None if found.p_onset is None else (found.qrs_onset - found.p_onset) * ms
        raw["qt_ms"] = None if found.t_offset is None else (found.t_offset - found.qrs_onset) * ms
    for name, (low, high) in PLAUSIBLE.items():
        value = raw[name]
        if value is not None and not low <= value <= high:
            raw[name] = None
    qt = raw["qt_ms"]
    if qt is not None and raw["heart_rate_bpm"] is not None:
        raw["qtcb_ms"], raw["qtcf_ms"] = qt / rr_s**0.5, qt / rr_s ** (1 / 3)
    return raw


def measure_recording(recording: Recording) -> Measurements:
    """Measure a recording; one of more than `WHOLE_S` in parts of `PART_S`, with constant memory."""
    if recording.seconds <= WHOLE_S:
        return measure_part(recording, recording.values)
    return combined(measure_part(recording, part) for part in parts(recording, PART_S))


def measure_part(recording: Recording, values: Mapping[str, np.ndarray]) -> Measurements:
    """Measure samples of a recording on leads that were recorded at one time: the group with the most good leads.

    Beats of leads that were recorded one after the other are not those of one time. The quality of a lead is that among
    the leads of its own time.

    Args:
        recording: recording.
        values: all leads of the recording, or of a part of it.
    """
    groups = recording.groups or (recording.leads,)
    found = [measure({lead: values[lead] for lead in group}, recording.rate_hz) for group in groups]
    quality = {lead: value for one in found for lead, value in one.quality.items()}
    return replace(max(found, key=lambda one: (len(one.good), len(one.peaks_s))), quality=quality)


def parts(recording: Recording, seconds: float) -> Iterator[dict[str, np.ndarray]]:
    """Yield consecutive parts of a recording as samples by lead; the last part ends with the recording.

    Args:
        recording: recording, read once in blocks.
        seconds: duration of each part; a shorter recording is one part.
    """
    size = max(1, round(seconds * recording.rate_hz))
    rest = last = np.empty((len(recording.leads), 0), np.float32)
    for block in recording.blocks():
        rest = np.concatenate([rest, block], axis=1)
        while rest.shape[1] >= size:
            last, rest = rest[:, :size], rest[:, size:]
            yield dict(zip(recording.leads, last))
    if rest.shape[1]:
        yield dict(zip(recording.leads, np.concatenate([last, rest], axis=1)[:, -size:]))


def combined(parts: Iterable[Measurements]) -> Measurements:
    """Combine the measurements of the parts of a long recording: medians; the heart rate is the mean over time.

    Args:
        parts: measurements of consecutive parts of equal length, with `peaks_s` relative to each part.
    """
    rows: list[list[float]] = []
    quality: dict[str, list[float]] = {}
    beats, good = 0, list[str]()
    for part in parts:
        good += part.good
        rows.append([np.nan if part.values[name] is None else float(part.values[name] or 0) for name in INTERVALS])
        beats += len(part.peaks_s)
        for lead, value in part.quality.items():
            quality.setdefault(lead, []).append(value)
    table = np.array(rows) if rows else np.full((1, len(INTERVALS)), np.nan)
    values: dict[str, float | None] = {}
    for name, column in zip(INTERVALS, table.T):
        known = column[~np.isnan(column)]
        middle = float(np.mean(known) if name == "heart_rate_bpm" else np.median(known)) if len(known) else None
        values[name] = middle
    means = {lead: float(np.mean(q)) for lead, q in quality.items()}
    return Measurements(values, means, np.zeros(beats), good=tuple(dict.fromkeys(good)))
