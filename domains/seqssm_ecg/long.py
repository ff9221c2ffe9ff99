"""Long recordings (Holters): the steps of `seqssm_ecg.preprocess` in blocks, with constant memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from seqssm.errors import InputError
from seqssm_ecg import blocks
from seqssm_ecg.formats import BLOCK
from seqssm_ecg.leads import select
from seqssm_ecg.preprocess import FLAT_MV, LOST_FRACTION, Preprocess, rate_ratio
from seqssm_ecg.quality import Quality, Survey
from seqssm_ecg.recording import Recording

LONG_VALUES = 1 << 19  # values of the network's input (leads x samples); larger recordings are read in blocks


def is_long(recording: Recording, preprocess: Preprocess) -> bool:
    """Return whether a recording is read in blocks rather than as a whole."""
    return recording.seconds * preprocess.rate_hz * len(preprocess.leads) > LONG_VALUES


class LongRecording:
    """Network input of a recording in blocks. The file is read once here, and again for each pass over the blocks.

    Args:
        recording: opened recording; its samples are not kept.
        preprocess: preprocessing steps.

    Attributes:
        notes: remarks as returned by `Preprocess.millivolts`.
        quality: result of the plausibility check.
        samples: number of samples at the network's sampling rate.

    Raises:
        InputError: as for `Preprocess.millivolts`, or a checksum mismatch.
    """

    def __init__(self, recording: Recording, preprocess: Preprocess) -> None:
        self.recording, self.preprocess = recording, preprocess
        self.first: list[
            np.ndarray
        ] = []  # per block (leads, 2): index and value of the first sample that is not missing, or NaN
        self.last: list[np.ndarray] = []
        survey = Survey(recording)
        missing = np.zeros(len(recording.leads))
        place = 0
        for block in recording.blocks(BLOCK):
            survey.add(block)
            missing += np.isnan(block).sum(axis=1)
            for found, at in zip((self.first, self.last), _ends(block)):
                found.append(at + np.array([place, 0]))
            place += block.shape[1]
        self.lost = {lead for lead, count in zip(recording.leads, missing) if count > LOST_FRACTION * place}
        kept = {lead: np.zeros(1, np.float32) for lead in recording.leads if lead not in self.lost}
        if not kept:
            raise InputError("has only missing samples", file=recording.path)
        _, notes = select(kept, preprocess.leads, preprocess.missing_leads, recording.path, recording.apart)
        repaired = [lead for lead, count in zip(recording.leads, missing) if lead in kept and count]
        self.quality: Quality = survey.quality(preprocess.leads)
        self.notes = [*recording.notes, *notes, *preprocess.gap_notes(repaired, sorted(self.lost))]
        self.ratio = rate_ratio(recording.rate_hz, preprocess.rate_hz)
        self.samples = recording.samples
        if self.ratio != 1:
            self.samples = round(recording.samples * self.ratio.numerator / self.ratio.denominator)
        self._scale: tuple[np.ndarray, np.ndarray] | None = None

    def millivolts(self) -> Iterator[np.ndarray]:
        """Yield the wanted leads at the network's rate with gaps interpolated, (leads, n) float32 in mV."""
        found = self._selected()
        if self.ratio == 1:
            return found
        return blocks.resampled(found, self._outer(), self.recording.samples, self.ratio, BLOCK)

    def scaled(self) -> Iterator[np.ndarray]:
        """Yield the network's input, (leads, n) float32."""
        process = self.preprocess
        if process.normalise == "lead" and self._scale is None:
            mean, std, _ = blocks.moments(self.filtered())
            self._scale = mean, np.where(std < FLAT_MV, 1.0, std)
        for table in self.filtered():
            if process.normalise == "lead":
                assert self._scale is not None
                table = (table - self._scale[0]) / self._scale[1]
            elif process.normalise == "global":
                table = (table - process.mean) / process.std
            yield table.astype(np.float32)

    def windows(self, window: int, stride: int, at_once: int) -> Iterator[np.ndarray]:
        """Yield the network's windows, (k, leads, window) float32 with k up to `at_once`."""
        return blocks.windowed(self.scaled(), self.samples, window, stride, at_once)

    def filtered(self) -> Iterator[np.ndarray]:
        process = self.preprocess
        if process.band_hz is None:
            return self.millivolts()
        pad = min(self.samples - 1, int(3 * process.rate_hz))
        return blocks.filtered(self.millivolts(), process.sections(), process.causal, pad, BLOCK)

    def _selected(self) -> Iterator[np.ndarray]:
        """Yield the wanted leads at the file's rate with gaps interpolated."""
        process, path, apart = self.preprocess, self.recording.path, self.recording.apart
        before, after = self._anchors()
        place = 0
        for number, block in enumerate(self.recording.blocks(BLOCK)):
            values = {}
            for row, lead in enumerate(self.recording.leads):
                if lead not in self.lost:
                    values[lead] = _closed(block[row], place, before[number][row], after[number][row])
            yield select(values, process.leads, process.missing_leads, path, apart)[0]
            place += block.shape[1]

    def _anchors(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Yield the last valid sample before and the first one after each block, (leads, 2) each; NaN if none."""
        none = np.full((len(self.recording.leads), 2), np.nan)
        before, after = [none], [none]
        for found in self.last[:-1]:
            before.append(np.where(np.isnan(found), before[-1], found))
        for found in self.first[:0:-1]:
            after.append(np.where(np.isnan(found), after[-1], found))
        return before, after[::-1]

    def _outer(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the first and last sample of each wanted lead after interpolation."""
        ends = []
        for found in (self.first, self.last[::-1]):
            values = np.full(len(self.recording.leads), np.nan)
            for block in found:
                values = np.where(np.isnan(values), block[:, 1], values)
            known = {
                lead: np.array([value], np.float32)
                for lead, value in zip(self.recording.leads, values)
                if lead not in self.lost
            }
            process, path, apart = self.preprocess, self.recording.path, self.recording.apart
            ends.append(select(known, process.leads, process.missing_leads, path, apart)[0][:, 0])
        return ends[0], ends[1]


def _ends(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return index and value of the first and the last valid sample of each lead, (leads, 2) each; NaN if none."""
    found = np.full((2, len(block), 2), np.nan)
    for row, values in enumerate(block):
        real = np.flatnonzero(~np.isnan(values))
        if len(real):
            for which, at in enumerate((real[0], real[-1])):
                found[which, row] = at, values[at]
    return found[0], found[1]


def _closed(row: np.ndarray, place: int, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Interpolate the gaps of `row` linearly, using the valid samples before and after the block too.

    Args:
        row: samples of one lead, (n,).
        place: index of its first sample.
        before: index and value of the last valid sample before the block, or NaN.
        after: index and value of the first valid sample after the block, or NaN.
    """
    gaps = np.isnan(row)
    if not gaps.any():
        return row
    left, right = (outer[None, :] if not np.isnan(outer[0]) else np.empty((0, 2)) for outer in (before, after))
    at = np.concatenate([left[:, 0], np.arange(place, place + len(row))[~gaps], right[:, 0]])
    values = np.concatenate([left[:, 1], row[~gaps], right[:, 1]])
    return np.interp(np.arange(place, place + len(row)), at, values).astype(np.float32)
