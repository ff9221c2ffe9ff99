"""Preprocessing from a recording to the network's input, shared by training and prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from scipy import signal as dsp

from seqssm.errors import InputError
from seqssm_ecg.leads import LEAD_SETS, select
from seqssm_ecg.quality import FLAT_MV
from seqssm_ecg.recording import Recording

LOST_FRACTION = 0.5  # a lead with a larger fraction of missing samples counts as missing


@dataclass
class Preprocess:
    """Preprocessing steps in their order: leads, gaps, resampling, band-pass, normalisation.

    Attributes:
        rate_hz: sampling rate of the network's input.
        lead_set: number of leads: 12, 6, 4, 3 or 2.
        missing_leads: treatment of missing leads, ``"zero"`` or ``"refuse"``.
        band_hz: cutoff frequencies (low, high) of a band-pass, either may be None; None for no filter.
        causal: whether the filter runs forward only, as a stream requires.
        normalise: ``"lead"``: each lead of a recording to mean 0 and standard deviation 1 (amplitude is lost);
        ``"global"``: by the scalars `mean` and `std` of the training recordings; ``"none"``: millivolts.
        mean: mean of the training recordings, mV, for ``"global"``.
        std: standard deviation of the training recordings, mV, for ``"global"``.
        lead_map: mapping from lead names in files to standard names.
    """

    rate_hz: float = 100.0
    lead_set: int = 12
    missing_leads: Literal["zero", "refuse"] = "zero"
    band_hz: tuple[float | None, float | None] | None = None
    causal: bool = False
    normalise: Literal["lead", "global", "none"] = "lead"
    mean: float = 0.0
    std: float = 1.0
    lead_map: dict[str, str] = field(default_factory=dict)

    @property
    def leads(self) -> tuple[str, ...]:
        return LEAD_SETS[self.lead_set]

    def to_dict(self) -> dict[str, Any]:
        """Convert to built-in types for a checkpoint."""
        return {**asdict(self), "band_hz": None if self.band_hz is None else list(self.band_hz)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        band = values.get("band_hz")
        return cls(**{**values, "band_hz": None if band is None else tuple(band)})

    def millivolts(self, recording: Recording) -> tuple[np.ndarray, list[str]]:
        """Return the wanted leads at the network's rate with gaps interpolated, (leads, n) float32 in mV, and notes.

        Raises:
            InputError: required leads are missing, or the recording is shorter than a second.
        """
        values: dict[str, np.ndarray] = {}
        lost: list[str] = []
        repaired: list[str] = []
        for name, row in recording.values.items():
            gaps = np.isnan(row)
            fraction = gaps.mean()
            if fraction > LOST_FRACTION:
                lost.append(name)
            elif fraction > 0:
                repaired.append(name)
                values[name] = close_gaps(row, gaps)
            else:
                values[name] = row
        if not values:
            raise InputError("has only missing samples", file=recording.path)
        table, notes = select(values, self.leads, self.missing_leads, recording.path, recording.apart)
        notes = [*recording.notes, *notes, *self.gap_notes(repaired, lost)]
        if recording.rate_hz != self.rate_hz:
            table = resample(table, recording.rate_hz, self.rate_hz)
        if table.shape[1] < self.rate_hz:
            raise InputError(f"is shorter than a second ({recording.samples} samples)", file=recording.path)
        return table, notes

    @staticmethod
    def gap_notes(repaired: list[str], lost: list[str]) -> list[str]:
        """Format notes on leads with missing samples.

        Args:
            repaired: leads with interpolated gaps.
            lost: leads most of whose samples are missing.
        """
        pairs = (("gaps interpolated", repaired), ("most samples missing, treated as a missing lead", lost))
        return [f"{what}: {' '.join(names)}" for what, names in pairs if names]

    def scaled(self, table: np.ndarray) -> np.ndarray:
        """Band-pass filter and normalise (leads, n) mV; returns finite float32."""
        if self.band_hz is not None:
            table = self.filtered(table)
        if self.normalise == "lead":
            mean = table.mean(axis=1, keepdims=True)
            std = table.std(axis=1, keepdims=True)
            table = (table - mean) / np.where(std < FLAT_MV, 1.0, std)
        elif self.normalise == "global":
            table = (table - self.mean) / self.std
        return table.astype(np.float32)

    def filtered(self, table: np.ndarray) -> np.ndarray:
        """Apply a Butterworth filter of order 3 over the band, zero-phase or forward only."""
        sections = self.sections()
        if self.causal:
            return dsp.sosfilt(sections, table, axis=1)
        pad = min(table.shape[1] - 1, self.padding)
        return dsp.sosfiltfilt(sections, table, axis=1, padtype="odd", padlen=pad)

    @property
    def padding(self) -> int:
        """Samples by which the zero-phase filter extends a recording at each end."""
        return int(3 * self.rate_hz)

    def steps(self) -> list[str]:
        """Describe the steps from millivolts to the network's input for users of an exported model."""
        rows = [
            "x: millivolts, (leads, samples), in the order of leads; a missing lead is zeros",
            f"x = scipy.signal.resample_poly(x, up, down, axis=1, padtype='line') if not at {self.rate_hz:g} Hz",
        ]
        if self.band_hz is not None and self.causal:
            rows.append("x = scipy.signal.sosfilt(filter_sections, x, axis=1)")
        elif self.band_hz is not None:
            pad = f"padlen=min(samples - 1, {self.padding})"
            rows.append(f"x = scipy.signal.sosfiltfilt(filter_sections, x, axis=1, padtype='odd', {pad})")
        if self.normalise == "lead":
            rows.append(
                "each lead: (x - mean) / std over the recording (numpy.std); without the division if std is below "
                f"{FLAT_MV:g}"
            )
        elif self.normalise == "global":
            rows.append(f"(x - {self.mean!r}) / {self.std!r}")
        return rows

    def sections(self) -> np.ndarray:
        """Return the second-order sections of the filter."""
        assert self.band_hz is not None
        low, high = self.band_hz
        if high is not None and high >= self.rate_hz / 2:
            high = None  # at or above the Nyquist frequency
        if low is not None and high is not None:
            return dsp.butter(3, (low, high), "bandpass", fs=self.rate_hz, output="sos")
        if low is not None:
            return dsp.butter(3, low, "highpass", fs=self.rate_hz, output="sos")
        if high is not None:
            return dsp.butter(3, high, "lowpass", fs=self.rate_hz, output="sos")
        return np.array([[1.0, 0, 0, 1.0, 0, 0]])

    def __call__(self, recording: Recording) -> tuple[np.ndarray, list[str]]:
        """Return the network's input (leads, n) float32, and notes."""
        table, notes = self.millivolts(recording)
        return self.scaled(table), notes


def close_gaps(row: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Interpolate missing samples linearly; at the ends, repeat the nearest sample."""
    place = np.arange(len(row))
    return np.interp(place, place[~gaps], row[~gaps]).astype(np.float32)


def resample(table: np.ndarray, old_hz: float, new_hz: float) -> np.ndarray:
    """Resample (leads, n) polyphase by the reduced ratio, e.g. 500/257; returns round(n * new / old) samples."""
    ratio = rate_ratio(old_hz, new_hz)
    if ratio == 1:
        return table
    made = dsp.resample_poly(table, ratio.numerator, ratio.denominator, axis=1, padtype="line")
    length = round(table.shape[1] * new_hz / old_hz)
    return np.ascontiguousarray(made[:, :length], dtype=np.float32)


def rate_ratio(old_hz: float, new_hz: float) -> Fraction:
    """Return new rate / old rate as a reduced fraction: 257 to 500 Hz is 500/257."""
    return Fraction(new_hz / old_hz).limit_denominator(2000)


def windows(samples: int, window: int, stride: int) -> list[int]:
    """Return the start indices of the windows over a recording, every `stride`; the last window is flush with the end.

    A recording that is not longer than a window is a single window of its own length.
    """
    if samples <= window:
        return [0]
    starts = list(range(0, samples - window + 1, stride))
    if starts[-1] != samples - window:
        starts.append(samples - window)
    return starts


def require_band(band: list[float | None], rate_hz: float) -> None:
    """Raise InputError unless `band` is [low, high] in hertz (either may be None) that fits the rate `rate_hz`."""
    if len(band) != 2:
        raise InputError(f"--data.band_hz {band}: expected two numbers, [low, high]")
    low, high = band
    if (low is not None and not 0 < low < rate_hz / 2) or (high is not None and not high > (low or 0)):
        raise InputError(f"--data.band_hz {band}: expected 0 < low < high, and low below half the sampling rate")
