"""Records as a network reads them: one random window each for training, or whole, as windows that cover them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from seqssm_ecg.augment import Augment
from seqssm_ecg.files import read_recording
from seqssm_ecg.preprocess import Preprocess, windows
from seqssm_ecg.sources import Entry


class Records:
    """Decoded records by number, kept in memory or read each time."""

    def __init__(self, entries: list[Entry], preprocess: Preprocess, checksums: bool, keep: bool) -> None:
        self.entries, self.preprocess, self.checksums = entries, preprocess, checksums
        self.kept: list[np.ndarray | None] | None = [None] * len(entries) if keep else None

    def millivolts(self, number: int) -> np.ndarray:
        """(leads, n) float32, not normalised."""
        entry = self.entries[number]
        recording = read_recording(entry.path, self.preprocess.lead_map, entry.array, self.checksums)
        return self.preprocess.millivolts(recording)[0]

    def __getitem__(self, number: int) -> np.ndarray:
        """(leads, n) float32 as the network reads it."""
        if self.kept is None:
            return self.preprocess.scaled(self.millivolts(number))
        found = self.kept[number]
        if found is None:
            found = self.kept[number] = self.preprocess.scaled(self.millivolts(number))
        return found


class TrainWindows(Dataset):
    """One random window a record: ``index (B,), x (B, leads, W), lengths (B,), y (B, m)``, augmented.

    A record shorter than the window is padded on the right; `lengths` says how much of it is real.
    """

    def __init__(
        self, records: Records, places: list[int], y: Tensor, window: int, augment: Augment, rate_hz: float
    ) -> None:
        self.records, self.places, self.y = records, places, y
        self.window, self.augment, self.rate_hz = window, augment, rate_hz

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        x = np.zeros((len(indices), len(self.records.preprocess.leads), self.window), dtype=np.float32)
        lengths = []
        for row, index in zip(x, indices):
            whole = self.records[self.places[index]]
            spare = whole.shape[1] - self.window
            start = int(torch.randint(spare + 1, ())) if spare > 0 else 0
            piece = whole[:, start : start + self.window]
            row[:, : piece.shape[1]] = piece
            lengths.append(piece.shape[1])
        real = torch.tensor(lengths)
        mixed, y = self.augment(torch.from_numpy(x), self.y[indices], self.rate_hz)
        if self.augment.mix_up:  # a mixed record may be real wherever one of the two is
            real = torch.full_like(real, self.window) if int(real.min()) < self.window else real
        else:
            mixed = mixed * (torch.arange(self.window) < real[:, None]).unsqueeze(1)
        return {"index": torch.tensor(indices), "x": mixed, "lengths": real, "y": y}


class WholeRecords(Dataset):
    """Whole records, each as windows of at most W samples that cover it.

    ``index (B,), y (B, m)``, and of the windows of all records ``x (windows, leads, W), lengths (windows,),
    owner (windows,)``: the number in the batch of the record that a window is of.
    """

    def __init__(self, records: Records, places: list[int], y: Tensor, window: int, stride: int) -> None:
        self.records, self.places, self.y = records, places, y
        self.window, self.stride = window, stride

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        batch = stack([self.records[self.places[index]] for index in indices], self.window, self.stride)
        return {"index": torch.tensor(indices), "y": self.y[indices], **batch}


def stack(tables: list[np.ndarray], window: int, stride: int) -> dict[str, Tensor]:
    """The windows of several records, (leads, n) each: ``x, lengths, owner`` as in `WholeRecords`."""
    x, lengths, owner = [], [], []
    width = min(window, max(table.shape[1] for table in tables))
    for number, table in enumerate(tables):
        for start in windows(table.shape[1], window, stride):
            piece = table[:, start : start + window]
            x.append(np.pad(piece, ((0, 0), (0, width - piece.shape[1]))))
            lengths.append(piece.shape[1])
            owner.append(number)
    return {"x": torch.from_numpy(np.stack(x)), "lengths": torch.tensor(lengths), "owner": torch.tensor(owner)}


def whole_batch(items: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collation of a set that hands over whole batches: nothing is left to do."""
    return items
