"""Windows over intervals, which never cross an interval's or a contig's end, with their N and GC fractions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from seqssm.errors import InputError
from seqssm_dna.genome import Genome
from seqssm_dna.intervals import Interval
from seqssm_dna.letters import reverse_complement
from seqssm_dna.tokens import A, C, G, N, T, encode

SPAN = 1 << 22  # letters that are fetched at a time to measure windows


@dataclass
class Windows:
    """Windows of a genome.

    Attributes:
        contig: (n,) int64 index of the contig.
        start, end: (n,) int64 positions, 0-based half-open.
        interval: (n,) int64 index of the interval that each window was cut from.
        reverse: (n,) bool, whether the interval is on the minus strand.
        gc: (n,) fraction of G and C among A, C, G and T; NaN in windows of N only.
        n_fraction: (n,) fraction of letters that are not A, C, G or T.
        dropped: reason -> number of windows that were left out.
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
        """Some of the windows.

        Args:
            which: mask or positions.
        """
        names = ("contig", "start", "end", "interval", "reverse", "gc", "n_fraction")
        return replace(self, **{name: getattr(self, name)[which] for name in names}, dropped=dict(self.dropped))

    def sequence(self, genome: Genome, row: int) -> bytes:
        """Letters of a window, on the strand of its interval.

        Args:
            genome: that the windows lie in.
            row: number of the window.
        """
        letters = genome.fetch(int(self.contig[row]), int(self.start[row]), int(self.end[row]))
        return reverse_complement(letters) if self.reverse[row] else letters

    def report(self) -> list[str]:
        """Remarks for the user: what was left out."""
        return [f"{count} windows left out: {reason}" for reason, count in self.dropped.items()]


def starts_of(length: int, size: int, step: int, partial: bool = False) -> np.ndarray:
    """Starts of the windows of a stretch, int64.

    The last window ends at the stretch's end: if the steps leave a rest, one more window that overlaps the one before
    covers it, unless `partial` asks for a shorter one.

    Args:
        length: of the stretch, letters.
        size: of a window.
        step: from one start to the next one; at most `size` to cover every letter.
        partial: whether the last window, or the only one of a shorter stretch, may be shorter.
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
        genome: that the intervals lie in.
        intervals: stretches that no window leaves; blocks are not joined.
        size: of a window, letters.
        step: from one start to the next one; None is `size`, without overlap but of the last window.
        max_n: largest fraction of letters that are not A, C, G or T; windows above it are left out and counted.
        partial: whether the last window of an interval may be shorter instead of overlapping.

    Returns:
        The windows in the order of the intervals; stretches that are too short are counted in `Windows.dropped`.

    Raises:
        InputError: size, step or fraction out of range.
    """
    step = size if step is None else step
    if size < 1 or step < 1:
        raise InputError(f"window of {size} letters and step of {step}: both must be at least 1")
    if not 0 <= max_n <= 1:
        raise InputError(f"largest fraction of N {max_n}: expected 0 to 1")
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
    """GC and N fractions of windows; the genome is read once if windows are in order.

    Args:
        genome: that the windows lie in.
        contig: (n,) index of the contig.
        start: (n,) first positions.
        end: (n,) positions after the last letters.

    Returns:
        ((n,) fraction of G and C among A, C, G, T; (n,) fraction of other letters), float64.
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
    """Consecutive windows of one contig that lie within `SPAN` letters."""
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
    """Fraction of letters that are not A, C, G or T; NaN of an empty sequence.

    Args:
        sequence: letters.
    """
    return float((encode(sequence) == N).mean()) if sequence else np.nan
