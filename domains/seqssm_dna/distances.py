"""Compiled edit distances between sequences, to find copies of training sequences among generated ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from seqssm_dna.tokens import PAD, reverse_complement_ids

LONGER = 2  # sequences longer than this multiple of the query are searched for it, with free ends


@cache
def _kernel() -> Any:
    import numba
    from seqssm_kernels.cpu.compile import compiled

    longer = LONGER

    def smallest(query, table, lengths, both_rows):  # compiled by numba
        best, place = np.int64(1 << 40), np.int64(-1)
        m = len(query)
        row, before = both_rows[0], both_rows[1]
        for number in range(len(table)):
            n = lengths[number]
            inside = n > longer * m  # free ends: the query may be a segment of the sequence
            if not inside and abs(n - m) >= best:
                continue
            for j in range(n + 1):
                before[j] = 0 if inside else j
            least = np.int64(0)
            for i in range(m):
                row[0] = i + 1
                least = row[0]
                for j in range(n):
                    value = before[j] + (query[i] != table[number, j])
                    value = min(value, before[j + 1] + 1, row[j] + 1)
                    row[j + 1] = value
                    least = min(least, value)
                row, before = before, row
                if least >= best:
                    break
            if least < best:
                value = before[n]
                if inside:
                    for j in range(n):
                        value = min(value, before[j])
                if value < best:
                    best, place = value, number
        return best, place

    u1, i8 = numba.types.uint8, numba.types.int64
    return compiled(smallest, (u1[::1], u1[:, ::1], i8[::1], i8[:, ::1]), "edit distance")


class Nearest:
    """Training sequences for nearest-neighbour search by edit distance.

    For sequences more than `LONGER` times as long as the query, such as contigs, the most similar segment counts.

    Args:
        sequences: token ids, (L,) uint8 each.
        both: whether to search their reverse complements too.
    """

    def __init__(self, sequences: Sequence[np.ndarray], both: bool = True) -> None:
        listed = [*sequences, *(reverse_complement_ids(ids) for ids in sequences)] if both else list(sequences)
        self.count = len(sequences)
        self.lengths = np.array([len(ids) for ids in listed], dtype=np.int64)
        self.table = np.full((len(listed), int(self.lengths.max(initial=0))), PAD, dtype=np.uint8)
        for row, ids in enumerate(listed):
            self.table[row, : len(ids)] = ids

    def of(self, ids: np.ndarray) -> tuple[int, int]:
        """Return (smallest edit distance, index of the nearest sequence); each edit operation costs 1.

        Args:
            ids: token ids, (L,) uint8.
        """
        rows = np.zeros((2, self.table.shape[1] + 1), dtype=np.int64)
        query = np.ascontiguousarray(ids, dtype=np.uint8)
        distance, index = _kernel()(query, self.table, self.lengths, rows)
        return int(distance), int(index) % max(self.count, 1)
