"""Windows within intervals and contigs, with their N and GC fractions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from seqssm.errors import InputError
from seqssm_dna.genome import Genome
from seqssm_dna.intervals import Interval
from seqssm_dna.letters import reverse_complement
from seqssm_dna.tokens import A, C, G, N, T, encode

SPAN = 1 << 22  # letters per read when measuring windows


@dataclass
class Windows:
    """Windows of a genome.

    Attributes:
        contig: index of the contig, (n,) int64.
        start, end: positions, 0-based half-open, (n,) int64.
        interval: index of the interval of each window, (n,) int64.
        reverse: whether the interval is on the minus strand, (n,) bool.
        gc: fraction of G and C among A, C, G and T, (n,); NaN for windows of N only.
        n_fraction: fraction of letters that are not A, C, G or T, (n,).
        dropped: number of dropped windows by reason.
    """

    contig: np.ndarray
    start: np.ndarray
    end: np.ndarray
    interval: np.ndarray
    reverse: np.ndarray
    gc: np.ndarray
    n_fraction: np.ndarray
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.start)

    def rows(self, which: np.ndarray) -> Windows:
        """Select windows.

        Args:
            which: mask or indices of the windows.
        """
        names = ("contig", "start", "end", "interval", "reverse", "gc", "n_fraction")
        return replace(self, **{name: getattr(self, name)[which] for name in names}, dropped=dict(self.dropped))

    def sequence(self, genome: Genome, row: int) -> bytes:
        """Read the letters of a window, on the strand of its interval.

        Args:
            genome: genome of the windows.
            row: index of the window.
        """
        letters = genome.fetch(int(self.contig[row]), int(self.start[row]), int(self.end[row]))
        return reverse_complement(letters) if self.reverse[row] else letters

    def report(self) -> list[str]:
        """Return messages about dropped windows."""
        return [f"{count} windows dropped: {reason}" for reason, count in self.dropped.items()]


def starts_of(length: int, size: int, step: int, partial: bool = False) -> np.ndarray:
    """Return the starts of the windows of a segment, int64.

    The last window ends at the end of the segment: remaining letters are covered by an additional window that overlaps
    the preceding one, or by a shorter one with `partial`.

    Args:
        length: length of the segment, letters.
        size: length of a window, letters.
        step: distance between window starts; at most `size` to cover every letter.
        partial: whether the last window, or the only one of a shorter segment, may be shorter.
    """
    if length <= 0:
        return np.zeros(0, dtype=np.int64)
    if length < size:
        return np.zeros(int(partial), dtype=np.int64)
    starts = np.arange(0, length - size + 1, step, dtype=np.int64)
    rest = length - (int(starts[-1]) + size)
    if rest > 0 and step <= size:
        starts = np.append(starts, starts[-1] + step if partial else length - size)
    return starts


def make_windows(
    genome: Genome,
    intervals: Sequence[Interval],
    size: int,
    step: int | None = None,
    max_n: float = 1.0,
    partial: bool = False,
) -> Windows:
    """Cut intervals into windows.

    Args:
        genome: genome of the intervals.
        intervals: intervals; windows do not cross their ends, and blocks are not joined.
        size: length of a window, letters.
        step: distance between window starts; None for `size`, so that only the last window may overlap.
        max_n: maximum fraction of letters that are not A, C, G or T; windows above it are dropped and counted.
        partial: whether the last window of an interval may be shorter instead of overlapping.

    Returns:
        The windows in the order of the intervals; intervals that are too short are counted in `Windows.dropped`.

    Raises:
        InputError: a size, step or fraction is out of range.
    """
    step = size if step is None else step
    if size < 1 or step < 1:
        raise InputError(f"window of {size} letters and step of {step}: both must be at least 1")
    if not 0 <= max_n <= 1:
        raise InputError(f"maximum fraction of N {max_n}: expected 0 to 1")
    found: list[tuple[np.ndarray, np.ndarray]] = []
    short = 0
    for one in intervals:
        starts = one.start + starts_of(len(one), size, step, partial)
        short += not len(starts)
        found.append((starts, np.minimum(starts + size, one.end)))
    counts = [len(starts) for starts, _ in found]
    owner = np.repeat(np.arange(len(found)), counts)
    start = np.concatenate([pair[0] for pair in found]) if found else np.zeros(0, np.int64)
    end = np.concatenate([pair[1] for pair in found]) if found else np.zeros(0, np.int64)
    contig = np.array([one.contig for one in intervals], dtype=np.int64)[owner]
    reverse = np.array([one.strand == "-" for one in intervals], dtype=bool)[owner]
    gc, n = measure(genome, contig, start, end)
    windows = Windows(contig, start, end, owner, reverse, gc, n)
    if short:
        windows.dropped[f"interval shorter than {size}"] = short
    many = n > max_n
    if many.any():
        windows.dropped[f"more than {max_n:.3g} of the letters are N"] = int(many.sum())
        windows = windows.rows(~many)
    return windows


def measure(genome: Genome, contig: np.ndarray, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute GC and N fractions of windows; the genome is read once if windows are in order.

    Args:
        genome: genome of the windows.
        contig: index of the contig, (n,).
        start: first positions, (n,).
        end: positions after the last letters, (n,).

    Returns:
        (Fraction of G and C among A, C, G, T, (n,); fraction of other letters, (n,)), float64.
    """
    gc, n = np.full(len(start), np.nan), np.zeros(len(start))
    for rows in _groups(contig, start, end):
        low, high = int(start[rows].min()), int(end[rows].max())
        ids = encode(genome.fetch(int(contig[rows[0]]), low, high))
        strong = np.append(0, np.cumsum((ids == C) | (ids == G)))
        known = np.append(0, np.cumsum((ids >= A) & (ids <= T)))
        a, b = start[rows] - low, end[rows] - low
        bases = known[b] - known[a]
        part = np.full(len(rows), np.nan)
        np.divide(strong[b] - strong[a], bases, out=part, where=bases > 0)
        gc[rows] = part
        n[rows] = 1 - bases / (b - a)
    return gc, n


def _groups(contig: np.ndarray, start: np.ndarray, end: np.ndarray) -> Iterator[np.ndarray]:
    """Yield runs of consecutive windows of one contig within `SPAN` letters."""
    first = 0
    while first < len(start):
        last, low, high = first, int(start[first]), int(end[first])
        while last + 1 < len(start) and contig[last + 1] == contig[first]:
            low, high = min(low, int(start[last + 1])), max(high, int(end[last + 1]))
            if high - low > SPAN:
                break
            last += 1
        yield np.arange(first, last + 1)
        first = last + 1


def n_fraction(sequence: bytes) -> float:
    """Return the fraction of letters that are not A, C, G or T; NaN for an empty sequence.

    Args:
        sequence: letters.
    """
    return float((encode(sequence) == N).mean()) if sequence else np.nan
