"""Plausibility of a recording per lead: flat, clipped, noise, physically impossible amplitudes.

The limits were set on 1,819 PTB-XL records and 50 records of the 2021 challenge, none of which is implausible. A record
is read in blocks, with constant memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqssm_ecg.einthoven import remark
from seqssm_ecg.recording import Recording

FLAT_MV = 1e-6  # peak to peak; below it, the lead was not connected
SEGMENT_S = 2.0  # length of the segments in which amplitudes are measured: at least one beat
LARGE_MV, SMALL_MV = (
    20.0,
    0.02,
)  # peak to peak, median over segments: upper limit of any lead, lower limit of the largest lead
NEARLY_FLAT_MV = 0.005  # of one lead when others have a signal: a few units of the ADC
IMPOSSIBLE_MV = 1000.0  # relative to the lead's first value; offsets of electrodes and amplifiers are below 300 mV
LAG_S = 0.010  # samples at this lag are correlated in an ECG and uncorrelated in noise
NOISE_ALWAYS, NOISE_IF_ROUND = 0.1, 0.35  # correlation at the lag; the second only without sharp peaks
ROUND_KURTOSIS = 4.5  # kurtosis of a distribution without sharp peaks (Gaussian: 3; an ECG with QRS complexes: 15)
NOISE_FROM_HZ = 80.0  # at lower rates the lag is not resolved
CLIPPED_FRACTION, CLIPPED_RUNS = 0.005, 3


@dataclass(frozen=True)
class Quality:
    """Result of the plausibility check.

    Attributes:
        notes: findings that do not rule out an ECG: ``"flat: V2 V4"``.
        implausible: reason why the recording cannot be an ECG in millivolts, or None.
    """

    notes: list[str]
    implausible: str | None


def assess(recording: Recording, wanted: Sequence[str]) -> Quality:
    """Check the leads of a recording.

    Args:
        recording: recording, read once in blocks.
        wanted: leads to check; the others are ignored.
    """
    survey = Survey(recording)
    for block in recording.blocks():
        survey.add(block)
    return survey.quality(wanted)


class Survey:
    """Statistics of the leads, accumulated over blocks.

    Args:
        recording: recording, of which leads, groups and sampling rate are used.
    """

    def __init__(self, recording: Recording) -> None:
        self.leads, rate_hz = list(recording.leads), recording.rate_hz
        self.groups = recording.groups or (recording.leads,)
        self.segment = max(2, round(SEGMENT_S * rate_hz))
        self.lag = max(1, round(LAG_S * rate_hz)) if rate_hz >= NOISE_FROM_HZ else 0
        count = len(self.leads)
        self.known = np.zeros(count, dtype=bool)  # leads with any sample
        self.first = np.full(count, np.nan)
        self.low, self.high = np.full(count, np.inf), np.full(count, -np.inf)
        self.repeats = np.zeros((2, count))  # consecutive samples at the extreme: (low, high)
        self.runs = np.zeros((2, count))
        self.samples = 0
        self.ranges: list[np.ndarray] = []  # peak to peak by segment, (segments, leads) per block
        self.measured = 0  # samples in the sums
        self.covariance = np.zeros((count, count))
        self.powers = np.zeros((3, count))  # of (x - mean)^2, of its square, and of squared differences at the lag

    def add(self, block: np.ndarray) -> None:
        """Add a block of samples.

        Args:
            block: samples (leads, n), mV; missing samples are NaN.
        """
        table = block.astype(np.float64)
        gaps = np.isnan(table)
        self.known |= ~gaps.all(axis=1)
        if gaps.any():  # forward-fill; leading gaps get the first value
            table = _held(table, gaps, self.first)
        self.first = np.where(np.isnan(self.first) & self.known, table[:, 0], self.first)
        self.samples += table.shape[1]
        self._extremes(table)
        count = max(1, table.shape[1] // self.segment)
        if table.shape[1] < self.segment and self.ranges:
            return
        length = min(self.segment, table.shape[1])
        pieces = table[:, : count * length].reshape(len(self.leads), count, length)
        self.ranges.append(np.ptp(pieces, axis=2).T)
        centred = pieces - pieces.mean(axis=2, keepdims=True)
        flat = centred.reshape(len(self.leads), -1)
        self.covariance += flat @ flat.T
        if self.lag and length > self.lag:
            square = centred * centred
            steps = centred[..., self.lag :] - centred[..., : -self.lag]
            self.measured += count * length
            self.powers[0] += square.sum((1, 2))
            self.powers[1] += np.einsum("lcn,lcn->l", square, square)
            self.powers[2] += np.einsum("lcn,lcn->l", steps, steps) * (length / (length - self.lag))

    def _extremes(self, table: np.ndarray) -> None:
        """Update minimum and maximum, and count consecutive samples at them."""
        for which, (old, new) in enumerate(((self.low, table.min(1)), (self.high, table.max(1)))):
            beyond = new < old if which == 0 else new > old
            self.repeats[which, beyond] = self.runs[which, beyond] = 0
            old[beyond] = new[beyond]
            held = table == old[:, None]
            pairs = held[:, 1:] & held[:, :-1]
            self.repeats[which] += pairs.sum(1)
            self.runs[which] += pairs[:, 0] + (pairs[:, 1:] & ~pairs[:, :-1]).sum(1) if pairs.shape[1] else 0

    def quality(self, wanted: Sequence[str]) -> Quality:
        """Evaluate the statistics of the wanted leads."""
        known = self.known & np.isin(self.leads, list(wanted))
        span = np.where(known, self.high - self.low, 0)
        typical = np.median(np.concatenate(self.ranges), axis=0) if self.ranges else np.zeros(len(self.leads))
        flat = known & (span < FLAT_MV)
        if (typical[known] >= SMALL_MV).any():
            flat |= known & (typical < NEARLY_FLAT_MV)
        live = known & ~flat
        noise = live & self._noise()
        clipped = live & ((self.repeats >= CLIPPED_FRACTION * self.samples) & (self.runs >= CLIPPED_RUNS)).any(axis=0)
        beyond = np.maximum(np.abs(self.high - self.first), np.abs(self.low - self.first))
        large = live & ((typical > LARGE_MV) | (beyond > IMPOSSIBLE_MV))
        notes = [
            f"{what}: {self._names(which)}"
            for what, which in (("flat", flat), ("clipped", clipped), ("noise", noise))
            if which.any()
        ]
        for group in self.groups:  # the equations hold among samples of one time
            kept = np.flatnonzero(live & np.isin(self.leads, group))
            limb = remark([self.leads[k] for k in kept], self.covariance[np.ix_(kept, kept)])
            notes += [limb] if limb else []
        if flat.any() and not live.any():
            notes[0] = "all leads flat"
        reason = None
        if large.any():
            reason = _amplitude(self._names(large), max(typical[large]), max(beyond[large]))
        elif live.any() and (typical[live] < SMALL_MV).all():
            reason = f"{max(typical[live]):.2g} mV peak to peak at most; check gain and unit (volts read as mV?)"
        elif known.any() and 2 * (flat | noise).sum() > known.sum():
            reason = "; ".join(note for note in notes if not note.startswith("clipped"))
        return Quality(notes, None if reason is None else f"is implausible as an ECG: {reason}")

    def _noise(self) -> np.ndarray:
        square, fourth, steps = self.powers
        if not self.measured:
            return np.zeros(len(self.leads), dtype=bool)
        with np.errstate(divide="ignore", invalid="ignore"):
            correlation = 1 - steps / (2 * square)
            kurtosis = self.measured * fourth / square**2
        return (correlation < NOISE_ALWAYS) | ((correlation < NOISE_IF_ROUND) & (kurtosis < ROUND_KURTOSIS))

    def _names(self, which: np.ndarray) -> str:
        return " ".join(lead for lead, yes in zip(self.leads, which) if yes)


def _amplitude(leads: str, typical: float, beyond: float) -> str:
    """Describe amplitudes that are too large, with the most likely cause."""
    if typical <= LARGE_MV:
        return f"{beyond:.3g} mV in {leads}: single samples are corrupt"
    likely = typical / 1000
    hint = " (microvolts read as mV?)" if SMALL_MV < likely < LARGE_MV else ""
    return f"{typical:.3g} mV peak to peak in {leads}; check gain and unit{hint}"


def _held(table: np.ndarray, gaps: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Forward-fill missing samples; a lead without any samples becomes zero."""
    place = np.where(gaps, 0, np.arange(table.shape[1]))
    filled = np.take_along_axis(table, np.maximum.accumulate(place, axis=1), axis=1)
    start = np.array([row[~gap][0] if not gap.all() else np.nan for row, gap in zip(table, gaps)])
    start = np.where(np.isnan(start), first, start)
    return np.where(np.isnan(filled), np.nan_to_num(start)[:, None], filled)
