"""Data sets of records: one random window each for training, or all windows for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from seqssm.errors import InputError
from seqssm_ecg.augment import Augment
from seqssm_ecg.files import open_recording
from seqssm_ecg.leads import obtainable
from seqssm_ecg.long import LongRecording, is_long
from seqssm_ecg.one_lead import keep_one, present_leads
from seqssm_ecg.preprocess import Preprocess, windows
from seqssm_ecg.quality import assess
from seqssm_ecg.recording import Recording
from seqssm_ecg.sources import LabelledRecord

WINDOWS_AT_ONCE = 64  # windows of a long recording per forward pass; bounds memory


@dataclass(frozen=True)
class OnDisk:
    """Network input of a long recording in a temporary file; ``table[:, start:stop]`` reads that slice.

    Attributes:
        path: path of the file of float32 samples, interleaved by lead.
        shape: shape (leads, samples).
        stored: indices of the leads that are in the file.
        constant: values of the other leads, which are constant, (leads,).
    """

    path: Path
    shape: tuple[int, int]
    stored: tuple[int, ...]
    constant: np.ndarray

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        start, stop, step = index[1].indices(self.shape[1])
        if index[0] != slice(None) or step != 1:
            raise IndexError("only [:, start:stop] is supported")
        width, count = len(self.stored), max(0, stop - start)
        table = np.repeat(self.constant[:, None], count, axis=1)
        raw = np.fromfile(self.path, "<f4", count * width, offset=4 * start * width)
        table[list(self.stored)] = raw.reshape(count, width).T
        return table

    @classmethod
    def write(cls, path: Path, recording: LongRecording) -> OnDisk:
        """Decode a recording to a file."""
        leads = recording.preprocess.leads
        kept = [lead for lead in recording.recording.leads if lead not in recording.lost]
        stored = tuple(leads.index(lead) for lead in obtainable(kept, leads, recording.recording.apart))
        constant = np.zeros(len(leads), np.float32)
        samples = 0
        with open(path, "wb") as file:
            for block in recording.scaled():
                if not samples:
                    constant = block[:, 0].copy()
                file.write(np.ascontiguousarray(block[list(stored)].T, dtype="<f4").tobytes())
                samples += block.shape[1]
        return cls(path, (len(leads), samples), stored, constant)


class Records:
    """Decoded records by index, kept in memory or decoded on each access; long ones are decoded to files.

    Args:
        labelled: labelled records.
        preprocess: preprocessing steps.
        reading: options of `open_recording`: ``checksums``, ``wfdb_defaults``.
        keep: whether to keep decoded records in memory.
        folder: temporary folder for long records.
    """

    def __init__(
        self, labelled: list[LabelledRecord], preprocess: Preprocess, reading: dict[str, bool], keep: bool, folder: Path
    ) -> None:
        self.labelled, self.preprocess, self.reading, self.keep = labelled, preprocess, reading, keep
        self.folder = folder
        self.kept: dict[int, np.ndarray | OnDisk] = {}

    def open(self, position: int) -> Recording:
        """Open a record."""
        record = self.labelled[position]
        return open_recording(record.path, self.preprocess.lead_map, record.array, **self.reading)

    def filtered(self, position: int) -> Iterator[np.ndarray]:
        """Yield the band-passed record in mV, (leads, n), in one or more blocks."""
        recording = self.open(position)
        if is_long(recording, self.preprocess):
            yield from LongRecording(recording, self.preprocess).filtered()
            return
        table = self.preprocess.millivolts(recording)[0]
        yield table if self.preprocess.band_hz is None else self.preprocess.filtered(table)

    def require(self, position: int, implausible: bool) -> list[str]:
        """Check a record, decode it if records are kept, and return notes on it.

        Args:
            position: index of the record.
            implausible: whether to accept a recording that is implausible as an ECG.

        Raises:
            InputError: the record cannot be used.
        """
        recording = self.open(position)
        if is_long(recording, self.preprocess):
            survey = LongRecording(recording, self.preprocess)
            quality, notes = survey.quality, survey.notes
            if quality.implausible is None or implausible:
                self.kept[position] = OnDisk.write(self.folder / f"{position}.f32", survey)
        elif self.keep:
            table, notes = self.preprocess.millivolts(recording)
            quality = assess(recording, self.preprocess.leads)
            self.kept[position] = self.preprocess.scaled(table)
        else:
            return recording.notes
        if quality.implausible is not None and not implausible:
            self.kept.pop(position, None)
            raise InputError(quality.implausible, file=recording.path)
        return [*notes, *quality.notes]

    def __getitem__(self, position: int) -> np.ndarray | OnDisk:
        """Return the network's input, (leads, n) float32."""
        if position not in self.kept:
            recording = self.open(position)
            return self.preprocess(recording)[0]
        return self.kept[position]


class TrainWindows(Dataset):
    """Training data set of one random augmented window per record.

    Batches: ``index (B,), x (B, leads, W), lengths (B,), y (B, m)``.

    With `one_lead`, a window keeps one random lead of its record. A record shorter than the window is padded on the
    right; `lengths` holds the number of valid samples.
    """

    def __init__(
        self,
        records: Records,
        positions: list[int],
        y: Tensor,
        window: int,
        augment: Augment,
        rate_hz: float,
        one_lead: bool = False,
    ) -> None:
        self.records, self.positions, self.y, self.one_lead = records, positions, y, one_lead
        self.window, self.augment, self.rate_hz = window, augment, rate_hz

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        x = np.zeros((len(indices), len(self.records.preprocess.leads), self.window), dtype=np.float32)
        lengths = []
        for row, index in zip(x, indices):
            whole = self.records[self.positions[index]]
            spare = whole.shape[1] - self.window
            start = int(torch.randint(spare + 1, ())) if spare > 0 else 0
            piece = whole[:, start : start + self.window]
            row[:, : piece.shape[1]] = piece
            lengths.append(piece.shape[1])
        real = torch.tensor(lengths)
        present = present_leads(torch.from_numpy(x), real) if self.one_lead else None
        mixed, y = self.augment(torch.from_numpy(x), self.y[indices], self.rate_hz)
        if self.augment.mix_up:  # a mixed record is valid where either one is
            real = torch.full_like(real, self.window) if int(real.min()) < self.window else real
        else:
            mixed = mixed * (torch.arange(self.window) < real[:, None]).unsqueeze(1)
        if present is not None:
            mixed = keep_one(mixed, present)
        return {"index": torch.tensor(indices), "x": mixed, "lengths": real, "y": y}


class WholeRecords(Dataset):
    """Evaluation data set of whole records, each as windows of at most W samples that cover it.

    Per record: ``index (B,), y (B, m)``. Per window: ``x (windows, leads, W), lengths (windows,), record_index
    (windows,)``, the latter being the index of its record in the batch. Long records are excluded from these;
    ``long`` lists them as (index in the batch, `LongWindows`).
    """

    def __init__(self, records: Records, positions: list[int], y: Tensor, window: int, stride: int) -> None:
        self.records, self.positions, self.y = records, positions, y
        self.window, self.stride = window, stride

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        tables = [self.records[self.positions[index]] for index in indices]
        batch = stack(tables, self.window, self.stride)
        long = [
            (number, LongWindows(table, self.window, self.stride))
            for number, table in enumerate(tables)
            if isinstance(table, OnDisk)
        ]
        return {"index": torch.tensor(indices), "y": self.y[indices], **batch, "long": long}


class LongWindows:
    """Lazily read windows of a long recording. Not a dataclass, which Lightning would convert field by field.

    Args:
        table: network input of the recording.
        window: samples per window.
        stride: samples between window starts.
    """

    def __init__(self, table: OnDisk, window: int, stride: int) -> None:
        self.table, self.window, self.stride = table, window, stride

    def __iter__(self) -> Iterator[Tensor]:
        """Yield (k, leads, window) with k up to `WINDOWS_AT_ONCE`."""
        starts = windows(self.table.shape[1], self.window, self.stride)
        for first in range(0, len(starts), WINDOWS_AT_ONCE):
            part = starts[first : first + WINDOWS_AT_ONCE]
            yield torch.from_numpy(np.stack([self.table[:, start : start + self.window] for start in part]))


def stack(tables: list[Any], window: int, stride: int) -> dict[str, Tensor]:
    """Collate the windows of several records, (leads, n) each, to ``x, lengths, record_index`` as in `WholeRecords`.

    Args:
        tables: network inputs of the records; those on disk are skipped.
        window: samples per window.
        stride: samples between window starts.
    """
    x, lengths, owners = [], [], []
    short = [(number, table) for number, table in enumerate(tables) if not isinstance(table, OnDisk)]
    width = min(window, max((table.shape[1] for _, table in short), default=window))
    for number, table in short:
        for start in windows(table.shape[1], window, stride):
            piece = table[:, start : start + window]
            x.append(np.pad(piece, ((0, 0), (0, width - piece.shape[1]))))
            lengths.append(piece.shape[1])
            owners.append(number)
    values = np.stack(x) if x else np.zeros((0, tables[0].shape[0], width), np.float32)
    return {
        "x": torch.from_numpy(values),
        "lengths": torch.tensor(lengths, dtype=torch.int64),
        "record_index": torch.tensor(owners, dtype=torch.int64),
    }
