"""Interpolated k-mer Markov model, the baseline of DNA language models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from seqssm.errors import InputError
from seqssm_dna.metrics import BaseScores
from seqssm_dna.options import LONGEST
from seqssm_dna.tokens import FIRST_BASE, is_base

CHUNK = 1 << 23  # positions per counting step

Weight = float | Literal["witten_bell"]


class MarkovModel:
    """p(base | the preceding k bases), counted for k = 0 ... K and interpolated.

    p_k(b | c) = (n(c b) + w p_{k-1}(b | c')) / (n(c) + w), c' = c without its first base, p_{-1} = 1/4. A fixed w is
    Jelinek-Mercer interpolation with Dirichlet weights; Witten and Bell (1991) set w to the number of distinct
    bases observed after c. After the start of a record or an N, the longest available context is used.

    Args:
        order: K, maximum context length.
        weight: interpolation weight w, or ``"witten_bell"``.
        both_strands: whether to count the reverse complement too.

    Attributes:
        order: context length in use: K, or the one selected by `select`.
        tables: probabilities for each k, (4^(k+1),) float32; the index has the bases as digits in base 4, first base
            first.

    Raises:
        InputError: `order` or `weight` is out of range.
    """

    def __init__(self, order: int = 11, weight: Weight = 16.0, both_strands: bool = True) -> None:
        if not 0 <= order <= LONGEST:
            raise InputError(f"order {order}: expected 0 to {LONGEST}")
        if isinstance(weight, str) and weight != "witten_bell":
            raise InputError(f"weight {weight!r}: expected a positive number or witten_bell")
        if not isinstance(weight, str) and not 0 < weight < np.inf:
            raise InputError(f"weight {weight}: expected a positive number or witten_bell")
        self.longest = self.order = order
        self.weight, self.both_strands = weight, both_strands
        self.tables: list[np.ndarray] = []

    def fit(self, sequences: Iterable[np.ndarray]) -> MarkovModel:
        """Count the k-mers of sequences.

        Args:
            sequences: token ids of records or segments, (L,) uint8 each; N and other tokens interrupt the context.

        Returns:
            The model itself.

        Raises:
            InputError: the sequences contain no A, C, G or T.
        """
        highest = np.zeros(4 ** (self.longest + 1), dtype=np.int64)
        begins = [np.zeros(4 ** (k + 1), dtype=np.int64) for k in range(self.longest)]
        for ids in sequences:
            for first, last in runs(ids):
                bases = ids[first:last] - np.uint8(FIRST_BASE)
                for strand in (bases, 3 - bases[::-1]) if self.both_strands else (bases,):
                    for k in range(min(self.longest, len(strand))):
                        begins[k][_number(strand[: k + 1])] += 1
                    for codes in _codes(strand, self.longest):
                        highest += np.bincount(codes, minlength=len(highest))
        counts = [highest]
        for k in reversed(range(self.longest)):  # a k-mer is the end of a longer one, or at the start of a segment
            counts.append(counts[-1].reshape(4, -1).sum(0) + begins[k])
        counts.reverse()
        if not counts[0].any():
            raise InputError("the training sequences contain no A, C, G or T")
        self.tables = self._interpolated(counts)
        self._best = [table.reshape(-1, 4).argmax(1).astype(np.uint8) for table in self.tables]
        return self

    def _interpolated(self, counts: list[np.ndarray]) -> list[np.ndarray]:
        tables = []
        shorter = np.full(1, 0.25)
        for own in counts:
            seen = own.reshape(-1, 4)
            total = seen.sum(1, keepdims=True)
            weight = self.weight if not isinstance(self.weight, str) else np.maximum((seen > 0).sum(1)[:, None], 1)
            prior = np.tile(shorter, len(own) // len(shorter)).reshape(-1, 4)
            shorter = ((seen + weight * prior) / (total + weight)).ravel()
            tables.append(shorter.astype(np.float32))
        return tables

    def nll(self, ids: np.ndarray, order: int | None = None) -> np.ndarray:
        """Return the negative log-likelihood of each base, nats, (L,) float32; NaN for letters other than A, C, G, T.

        Args:
            ids: token ids of one record, (L,).
            order: context length; by default the attribute `order`.
        """
        order = self.order if order is None else order
        values = np.full(len(ids), np.nan, dtype=np.float32)
        for first, k, codes in self._contexts(ids, order):
            values[first : first + len(codes)] = -np.log(self.tables[k][codes])
        return values

    def scores(self, sequences: Iterable[np.ndarray], order: int | None = None) -> BaseScores:
        """Compute sums over each sequence, for the scores of `seqssm_dna.metrics`.

        Args:
            sequences: token ids, (L,) each.
            order: context length; by default the attribute `order`.
        """
        order = self.order if order is None else order
        rows = []
        for ids in sequences:
            nll, correct, count = 0.0, 0, 0
            for _, k, codes in self._contexts(ids, order):
                nll -= float(np.log(self.tables[k][codes]).sum(dtype=np.float64))
                correct += int((self._best[k][codes >> 2] == (codes & 3)).sum())
                count += len(codes)
            rows.append((nll, correct, count))
        table = np.array(rows, dtype=np.float64).reshape(-1, 3)
        return BaseScores(table[:, 0], table[:, 1], table[:, 2])

    def select(self, sequences: Iterable[np.ndarray]) -> list[float]:
        """Select the context length with the fewest bits per base on validation data.

        Args:
            sequences: token ids, (L,) each.

        Returns:
            Bits per base of each order 0 ... K.

        Raises:
            InputError: the sequences contain no A, C, G or T.
        """
        held = list(sequences)
        bits = []
        for order in range(self.longest + 1):
            found = self.scores(held, order)
            if not found.scored.sum():
                raise InputError("the validation sequences contain no A, C, G or T")
            bits.append(float(found.nll.sum() / found.scored.sum() / np.log(2)))
        self.order = int(np.argmin(bits))
        return bits

    def _contexts(self, ids: np.ndarray, order: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield (first position, context length, indices into its table) of consecutive bases."""
        for first, last in runs(ids):
            bases = ids[first:last] - np.uint8(FIRST_BASE)
            for k in range(min(order, len(bases))):
                yield first + k, k, np.array([_number(bases[: k + 1])])
            place = first + order
            for codes in _codes(bases, order):
                yield place, order, codes
                place += len(codes)


def runs(ids: np.ndarray) -> Iterator[tuple[int, int]]:
    """Find (start, end) of the runs of A, C, G and T.

    Args:
        ids: token ids, (L,).
    """
    known = is_base(np.asarray(ids))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist())


def _number(bases: np.ndarray) -> int:
    """Encode bases as one number in base 4, first base first."""
    number = 0
    for base in bases.tolist():
        number = 4 * number + base
    return number


def _codes(bases: np.ndarray, order: int) -> Iterator[np.ndarray]:
    """Yield the codes of all words of order + 1 bases, in chunks; nothing if there are fewer bases."""
    for first in range(0, len(bases) - order, CHUNK):
        part = bases[first : first + CHUNK + order]
        count = len(part) - order
        codes = np.zeros(count, dtype=np.int32)
        for k in range(order + 1):
            codes <<= 2
            codes |= part[k : k + count]
        yield codes
