"""Labelled sequences as padded batches of token ids, with augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from seqssm_dna.tokens import BASE_COUNT, FIRST_BASE, N, padded, reverse_complement_ids


class Items:
    """Sequences as whole batches: ``index, ids (B, L), mask (B, L), y``; padded at the end.

    Args:
        ids: token ids of the records, (L,) uint8 each.
        truth: labels of the records, (n, ...).
        turn: whether to read records from the other strand with probability 0.5; drawn from NumPy's generator, which
            the loader seeds for every batch.
        mutate: fraction of bases replaced by random ones, drawn in the same way.
    """

    def __init__(self, ids: list[np.ndarray], truth: np.ndarray, turn: bool = False, mutate: float = 0.0) -> None:
        self.ids, self.truth, self.turn, self.mutate = ids, truth, turn, mutate

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, batch: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = [self._one(number) for number in batch]
        ids, mask = padded(rows)
        return {
            "index": torch.tensor(list(batch)),
            "ids": torch.from_numpy(ids),
            "mask": torch.from_numpy(mask),
            "y": torch.from_numpy(self.truth[list(batch)]),
        }

    def _one(self, number: int) -> np.ndarray:
        ids = self.ids[number]
        if self.turn and np.random.random() < 0.5:
            ids = reverse_complement_ids(ids)
        if self.mutate:
            chosen = (np.random.random(len(ids)) < self.mutate) & (ids != N)
            ids = np.where(chosen, np.random.randint(FIRST_BASE, FIRST_BASE + BASE_COUNT, len(ids)), ids)
        return ids
