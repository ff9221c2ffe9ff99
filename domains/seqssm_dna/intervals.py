"""BED files: intervals with splits, strands and blocks; their sequences; overlap checks between splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from seqssm.errors import InputError
from seqssm.files.content import as_utf8, read_bytes
from seqssm.files.splits import SPLIT_NAMES
from seqssm_dna.genome import Genome
from seqssm_dna.letters import reverse_complement
from seqssm_dna.records import suffix_of

HEADER = re.compile(r"^(#\s*)?(chrom|chr|chromosome|contig)\t(chrom)?start\t(chrom)?end(\t|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Interval:
    """An interval of a contig, 0-based half-open.

    Attributes:
        contig: index of the contig in the genome; -1 without a genome.
        chrom: name of the contig as in the file.
        start, end: positions on the contig.
        name: fourth column; empty if it is missing or contains the split.
        strand: ``"+"``, ``"-"``, or ``"."`` if unknown.
        split: ``"train"``, ``"val"`` or ``"test"``; None if the file has no splits.
        label: column ``label`` of a file with a header line; otherwise None.
        blocks: (start, end) of the blocks of a BED12 line, on the contig; empty if there are none.
        line: line number in the file.
    """

    contig: int
    chrom: str
    start: int
    end: int
    name: str = ""
    strand: str = "."
    split: str | None = None
    label: str | None = None
    blocks: tuple[tuple[int, int], ...] = ()
    line: int = 0

    def __len__(self) -> int:
        return self.end - self.start

    def sequence(self, genome: Genome, spliced: bool = True) -> bytes:
        """Read the letters of the interval, on its strand.

        Args:
            genome: genome of the interval.
            spliced: whether to join the blocks; otherwise all letters from start to end are read.
        """
        parts = self.blocks if spliced and self.blocks else ((self.start, self.end),)
        letters = b"".join(genome.fetch(self.contig, start, end) for start, end in parts)
        return reverse_complement(letters) if self.strand == "-" else letters


def is_bed(path: Path) -> bool:
    """Whether a file is BED by its suffix: ``.bed``, ``.bed6``, ``.bed12.gz``.

    Args:
        path: the file.
    """
    return re.fullmatch(r"\.bed\d*", suffix_of(path)) is not None


def read_bed(path: str | Path, genome: Genome | None = None) -> list[Interval]:
    """Read a BED file.

    Columns: contig, start, end, then name, score, strand and the blocks of BED12. A fourth column that contains only
    ``train``, ``valid`` and ``test`` is read as splits. With a header line ``chrom start end ...``, columns are
    identified by name (``split``, ``label``, ``name``, ``strand``). Lines that begin with ``#``, ``track`` or
    ``browser`` are skipped.

    Args:
        path: path of the file, plain or gzip.
        genome: genome in which contigs are looked up and bounds are checked; None checks neither.

    Raises:
        InputError: too few columns, positions that are not numbers, start >= end, an unknown contig, a position beyond
            its end, or invalid blocks; the message has the line.
    """
    path = Path(path)
    text, _, _ = as_utf8(read_bytes(path), path)
    rows, names = _rows(text.decode("utf-8"), path)
    if not rows:
        raise InputError("contains no intervals", file=path)
    if names is None:
        _refuse_gff(rows[0][1], path, rows[0][0])
    words = {cells[3].strip().lower() for _, cells in rows if len(cells) > 3}
    by_fourth = names is None and bool(words) and words <= set(SPLIT_NAMES) and all(len(cells) > 3 for _, cells in rows)
    return [_interval(cells, line, path, genome, names, by_fourth) for line, cells in rows]


def _refuse_gff(cells: list[str], path: Path, line: int) -> None:
    """Raise InputError for a line of GFF or GTF: contig, source, type, start, end, score, strand, ..."""
    numbers = [re.fullmatch(r"\d+", cell) is not None for cell in cells[:5]]
    if len(cells) >= 8 and numbers[1:] == [False, False, True, True] and cells[6] in "+-.?":
        message = (
            "is GFF or GTF, whose start and end are columns 4 and 5, from 1; convert it to BED: contig, start - 1, end"
        )
        raise InputError(message, file=path, place=f"line {line}")


def _rows(text: str, path: Path) -> tuple[list[tuple[int, list[str]]], list[str] | None]:
    """Read (line number, cells) of every interval, and the column names of a header line."""
    rows: list[tuple[int, list[str]]] = []
    names = None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if not rows and names is None and HEADER.match(line):
            names = [cell.strip().lower() for cell in line.lstrip("# ").split("\t")]
            continue
        if line.startswith("#") or re.match(r"(track|browser)(\s|$)", line):
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) < 3:
            message = f"{len(cells)} columns; a BED line has at least contig, start and end, separated by tabs"
            raise InputError(message, file=path, place=f"line {number}")
        rows.append((number, [cell.strip() for cell in cells]))
    return rows, names


def _interval(
    cells: list[str], line: int, path: Path, genome: Genome | None, names: list[str] | None, by_fourth: bool
) -> Interval:
    place = f"line {line}"
    start, end = (_position(cells[k], what, path, place) for k, what in ((1, "start"), (2, "end")))
    if start >= end:
        raise InputError(f"start {start} is not less than end {end}", file=path, place=place)
    column = dict(zip(names, cells)) if names is not None else {}
    if names is None:
        keys = ("split",) if by_fourth else ("name", "score", "strand")
        column = dict(zip(keys, cells[3:]))
        if by_fourth and len(cells) > 5:
            column["strand"] = cells[5]
    strand = column.get("strand", ".") or "."
    if strand not in "+-." or len(strand) != 1:
        raise InputError(f"strand {strand!r}: expected +, - or .", file=path, place=place)
    split = column.get("split")
    if split is not None and split.lower() not in SPLIT_NAMES:
        raise InputError(f"split {split!r}: expected train, valid or test", file=path, place=place)
    contig = -1
    if genome is not None:
        contig = _contig(genome, cells[0], end, path, place)
    blocks = _blocks(cells, start, end, path, place) if names is None and len(cells) >= 12 else ()
    return Interval(
        contig,
        cells[0],
        start,
        end,
        column.get("name", ""),
        strand,
        None if split is None else SPLIT_NAMES[split.lower()],
        column.get("label"),
        blocks,
        line,
    )


def _position(cell: str, what: str, path: Path, place: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", cell):
        raise InputError(f"{what} {cell[:40]!r} is not a position (an integer from 0)", file=path, place=place)
    return int(cell)


def _contig(genome: Genome, chrom: str, end: int, path: Path, place: str) -> int:
    try:
        contig = genome.find(chrom)
    except InputError as error:
        raise InputError(f"{error.message} ({genome.path.name})", file=path, place=place) from None
    size = genome.lengths[contig]
    if end > size:
        raise InputError(f"end {end} is beyond the end of {chrom!r} (length {size})", file=path, place=place)
    return contig


def _blocks(cells: Sequence[str], start: int, end: int, path: Path, place: str) -> tuple[tuple[int, int], ...]:
    """Parse the blocks of a BED12 line: count, sizes, starts relative to the interval."""
    lists = []
    for cell in cells[10:12]:
        parts = [part for part in cell.rstrip(",").split(",") if part]
        lists.append([_position(part, "block", path, place) for part in parts])
    sizes, begins = lists
    if cells[9] != str(len(sizes)) or len(sizes) != len(begins) or not sizes:
        message = f"block count {cells[9]}, but {len(sizes)} sizes and {len(begins)} starts"
        raise InputError(message, file=path, place=place)
    blocks = tuple((start + begin, start + begin + size) for begin, size in zip(begins, sizes))
    ordered = all(a[1] <= b[0] for a, b in pairwise(blocks))
    if not ordered or blocks[0][0] != start or blocks[-1][1] != end or min(sizes) < 1:
        raise InputError("blocks overlap, or do not span the interval from start to end", file=path, place=place)
    return blocks


def require_splits(intervals: Sequence[Interval], path: str | Path) -> None:
    """Check that a BED file has splits.

    Args:
        intervals: intervals of the file.
        path: path used in error messages.

    Raises:
        InputError: it has none; the message has the line that is at fault if other lines name splits.
    """
    if any(one.split for one in intervals):
        return
    others = [one for one in intervals if one.name.lower() not in SPLIT_NAMES]
    if not others:  # with a header line
        raise InputError("has no splits: the column of train, valid and test must be called split, not name", file=path)
    if len(others) < len(intervals):
        found = repr(others[0].name) if others[0].name else "no split"
        message = f"{found} in the fourth column; expected train, valid or test, as in other lines"
        raise InputError(message, file=path, place=f"line {others[0].line}")
    message = "has no splits; expected train, valid or test in the fourth column, or a header line with a column split"
    raise InputError(message, file=path)


def require_apart(intervals: Iterable[Interval], path: str | Path) -> None:
    """Check that intervals of different splits do not overlap.

    Args:
        intervals: intervals of one genome; those without a split are ignored.
        path: path used in error messages.

    Raises:
        InputError: intervals of two splits overlap; the message has both lines.
    """
    known = [one for one in intervals if one.split is not None]
    known.sort(key=lambda one: (one.contig, one.chrom if one.contig < 0 else "", one.start))
    ends: dict[str, Interval] = {}  # by split: the interval with the largest end on this contig
    before = None
    for one in known:
        key = (one.contig, one.chrom if one.contig < 0 else "")
        if key != before:
            ends, before = {}, key
        for split, other in ends.items():
            if split != one.split and other.end > one.start:
                message = f"{one.split} interval overlaps the {split} interval of line {other.line}"
                raise InputError(message, file=path, place=f"line {one.line}")
        if one.split not in ends or ends[one.split].end < one.end:  # type: ignore[index]
            ends[one.split] = one  # type: ignore[index]


def of_split(intervals: Iterable[Interval], split: str) -> list[Interval]:
    """Select the intervals of a split.

    Args:
        intervals: intervals of a BED file.
        split: ``"train"``, ``"val"`` or ``"test"``.
    """
    return [one for one in intervals if one.split == split]


def whole_contigs(genome: Genome) -> list[Interval]:
    """Return one interval per non-empty contig.

    Args:
        genome: genome with the contigs.
    """
    pairs = enumerate(zip(genome.names, genome.lengths))
    return [Interval(contig, name, 0, length) for contig, (name, length) in pairs if length]
