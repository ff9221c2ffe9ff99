"""Streaming accumulation of the scores of one sequence: totals, windows, bins, a track."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqssm.files.disk import atomic
from seqssm_dna.files import bedgraph
from seqssm_dna.scoring import Scored
from seqssm_dna.sources import LONG, Item

BINS = 2000  # points in the figure of a sequence
SPAN = 1 << 18  # values of a track per write
LN2 = float(np.log(2))


class Sums:
    """Sums over segments of equal length.

    Args:
        length: length of the sequence.
        size: length of a segment; the last one may be shorter.
    """

    def __init__(self, length: int, size: int) -> None:
        self.length, self.size = length, max(size, 1)
        count = max(-(-length // self.size), 1)
        self.nll, self.correct, self.scored = (np.zeros(count) for _ in range(3))
        self.strands = 1

    def add(self, places: np.ndarray, nll: np.ndarray, correct: np.ndarray) -> None:
        """Add bases.

        Args:
            places: positions, (n,).
            nll: negative log-likelihoods, nats, (n,); NaN for unscored positions.
            correct: whether the base is the most probable one, (n,) bool.
        """
        if not len(places):
            return
        low = int(min(places[0], places[-1])) // self.size
        index = places // self.size - low
        known = ~np.isnan(nll)
        count = int(index.max()) + 1
        own = slice(low, low + count)
        self.nll[own] += np.bincount(index, np.where(known, nll, 0).astype(np.float64), count)
        self.correct[own] += np.bincount(index, correct, count)
        self.scored[own] += np.bincount(index, known, count)

    def rows(self) -> Iterator[tuple[int, int, float, float, int]]:
        """Yield (start, end, mean nll, accuracy, number of bases) of each segment; NaN without bases."""
        for number, scored in enumerate(self.scored.tolist()):
            start = number * self.size
            mean = self.nll[number] / scored if scored else np.nan
            accuracy = self.correct[number] / scored if scored else np.nan
            yield start, min(start + self.size, self.length), mean, accuracy, round(scored / self.strands)


class Profile:
    """Scores of one sequence.

    Args:
        item: sequence.
        window: length of the segments with one row each, letters; None for the whole sequence only.
        values: whether to keep the value of every base, for a track.
        work: folder for the values of long sequences, which are stored on disk.

    Attributes:
        hidden: sum of the features over the letters, (D,); None if not requested.
    """

    def __init__(self, item: Item, window: int | None = None, values: bool = False, work: Path | None = None) -> None:
        self.item, length = item, item.length
        self.total = Sums(length, max(length, 1))
        self.bins = Sums(length, -(-length // BINS))
        self.windows = None if window is None else Sums(length, window)
        self.hidden: np.ndarray | None = None
        self.letters = 0
        self.values: np.ndarray | None = None
        self.file: Path | None = None
        if values and length > LONG and work is not None:
            self.file = work / f"values-{id(self):x}.tmp"
            self.values = np.memmap(self.file, dtype=np.float32, mode="w+", shape=(length,))
        elif values:
            self.values = np.zeros(length, dtype=np.float32)

    def add(self, first: int, scored: Scored, opposite: bool = False) -> None:
        """Add the scores of consecutive bases.

        Args:
            first: position of the first base, in reading direction.
            scored: scores of the bases.
            opposite: whether the bases were read from the opposite strand.
        """
        count = len(scored.nll)
        places = np.arange(first, first + count)
        if opposite:
            places = self.item.length - 1 - places
        sums = (self.total, self.bins) if self.windows is None else (self.total, self.bins, self.windows)
        for one in sums:
            one.add(places, scored.nll, scored.correct)
            one.strands = 2 if opposite else one.strands
        if scored.hidden is not None:
            self.hidden = scored.hidden if self.hidden is None else self.hidden + scored.hidden
            self.letters += count
        if self.values is not None and count:
            low, own = int(min(places[0], places[-1])), scored.nll[::-1] if opposite else scored.nll
            span = self.values[low : low + count]
            span[:] = (span + own) / 2 if opposite else own

    @property
    def scored(self) -> int:
        """Number of scored bases, each counted once."""
        return round(float(self.total.scored[0]) / self.total.strands)

    @property
    def embedding(self) -> np.ndarray | None:
        """Mean of the features, (D,) float32."""
        return None if self.hidden is None else (self.hidden / max(self.letters, 1)).astype(np.float32)

    def track(self, contig: str) -> Iterator[bytes]:
        """Yield the lines of a bedGraph of -log2 p, in ascending order.

        Args:
            contig: name of the contig.
        """
        assert self.values is not None
        order = slice(None) if self.item.strand == "+" else slice(None, None, -1)
        values = self.values[order]  # in contig direction
        done = 0
        for start, end in self.item.blocks or ((self.item.start, self.item.end),):
            for first in range(start, end, SPAN):
                last = min(first + SPAN, end)
                own = np.asarray(values[done : done + last - first]) / np.float32(LN2)
                yield bedgraph(contig, first, own)
                done += last - first

    def close(self) -> None:
        """Delete the values."""
        self.values = None
        if self.file is not None:
            self.file.unlink(missing_ok=True)


@dataclass
class Parts:
    """Parts of an additional output file, one per batch, which survive an interruption.

    Attributes:
        folder: folder of the parts.
        kind: suffix of the parts, ``"track"`` or ``"vectors"``.
    """

    folder: Path
    kind: str

    def path(self, first: int) -> Path:
        """Return the path of the part of a batch.

        Args:
            first: index of the first record of the batch.
        """
        return self.folder / f"{first:012d}.{self.kind}"

    def write(self, first: int, content: Iterator[bytes]) -> None:
        """Write the part of a batch.

        Args:
            first: index of the first record of the batch.
            content: bytes to write.
        """
        with atomic(self.path(first)) as out:
            for one in content:
                out.write(one)

    def paths(self) -> list[Path]:
        """Return all parts, in order."""
        return sorted(self.folder.glob(f"*.{self.kind}"))


def language_row(nll: float, accuracy: float, scored: int) -> dict[str, Any]:
    """Return the columns of a segment scored by a language model.

    Args:
        nll: mean negative log-likelihood, nats.
        accuracy: fraction of bases that have the highest predicted probability.
        scored: number of scored bases.
    """
    return {
        "mean_nll": nll,
        "perplexity": float(np.exp(nll)),
        "bits_per_base": nll / LN2,
        "next_base_accuracy": accuracy,
        "n_scored": scored,
    }
