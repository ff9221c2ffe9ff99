"""The records of users' inputs for prediction: sequence files, tables, BED intervals and in-memory data.

Records of short sequences contain the letters; long sequences are read from the file in pieces during prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.files.disk import encodable
from seqssm_dna.columns import ROW
from seqssm_dna.compression import kind_of, opened, require_text
from seqssm_dna.files import open_genome, read_bed, stream_pieces
from seqssm_dna.genome import Genome
from seqssm_dna.intervals import is_bed
from seqssm_dna.labelled import LabelColumns, read_labelled
from seqssm_dna.letters import Findings, require_nucleotides, reverse_complement
from seqssm_dna.records import format_of, suffix_of
from seqssm_dna.tokens import Lower, encode, known_ends

Kind = Literal["sequences", "table", "bed", "vcf"]

LONG = 1 << 20  # letters; longer sequences of indexable files are read in pieces
TABLES = (".csv", ".tsv", ".tab", ".parquet", ".pq", ".xlsx", ".xlsm", ".xls", ".ods")


class Reader:
    """Opens files for random access, each once, and encodes letters as tokens.

    Args:
        lower: policy for lower-case letters, as in training (`seqssm_dna.tokens.encode`).
        trim_n: whether to ignore N at both ends of a sequence, as in training.
    """

    def __init__(self, lower: Lower = "upper", trim_n: bool = False) -> None:
        self.lower, self.trim_n = lower, trim_n
        self.opened: dict[Path, Genome] = {}

    def genome(self, path: Path) -> Genome:
        """Open a file for random access.

        Args:
            path: path of the file.
        """
        if path not in self.opened:
            self.opened[path] = open_genome(path)
        return self.opened[path]

    def notes(self, known: Collection[str] = ()) -> list[str]:
        """What was found out about the files, one line each.

        Args:
            known: remarks that were made otherwise.
        """
        return [f"{one.path}: {note}" for one in self.opened.values() for note in one.notes if note not in known]

    def ids(self, letters: bytes) -> np.ndarray:
        """Encode letters as token ids, (L,) uint8.

        Args:
            letters: letters of a sequence.
        """
        return encode(letters, self.lower)


@dataclass
class Item:
    """A sequence to predict.

    Attributes:
        record: name of the contig or record.
        start, end: positions on the contig or record, 0-based half-open.
        strand: ``"+"``, or ``"-"`` to predict the reverse complement.
        letters: letters on the strand; None if the sequence is read in pieces.
        genome: file to read the sequence from, if `letters` is None.
        contig: index of the contig in `genome`.
        blocks: (start, end) on the contig of the joined blocks of a BED12 line.
        file: name of the input.
        problem: why the sequence cannot be predicted; empty if it can.
        n_fraction: fraction of letters that are not A, C, G, T; set when the letters are read.
        bins: sums along the sequence (`seqssm_dna.profile.Sums`), for a figure; set by prediction.
    """

    record: str
    start: int
    end: int
    strand: str = "+"
    letters: bytes | None = None
    genome: Path | None = None
    contig: int = -1
    blocks: tuple[tuple[int, int], ...] = ()
    file: str = ""
    problem: str = ""
    n_fraction: float | None = None
    bins: Any = None

    @property
    def length(self) -> int:
        """Number of letters to predict."""
        return sum(b - a for a, b in self.blocks) if self.blocks else self.end - self.start

    def pieces(self, reader: Reader, size: int, opposite: bool = False) -> Iterator[np.ndarray]:
        """Yield the token ids in reading direction, (L,) uint8, in pieces.

        Args:
            reader: reader of the files.
            size: maximum length of a piece, letters.
            opposite: whether to read the reverse complement instead.
        """
        strand = {"+": "-", "-": "+"}[self.strand] if opposite else self.strand
        if self.letters is not None:
            letters = reverse_complement(self.letters) if opposite else self.letters
            for first in range(0, len(letters), size):
                yield reader.ids(letters[first : first + size])
            return
        assert self.genome is not None
        genome = reader.genome(self.genome)
        spans = self.blocks or ((self.start, self.end),)
        for low, high in spans if strand == "+" else spans[::-1]:
            starts = range(low, high, size) if strand == "+" else range(high, low, -size)
            for first in starts:
                a, b = (first, min(first + size, high)) if strand == "+" else (max(first - size, low), first)
                yield reader.ids(genome.fetch(self.contig, a, b, strand))

    def whole(self, reader: Reader, opposite: bool = False) -> np.ndarray:
        """Ids of all its letters, (L,) uint8, in its direction.

        Args:
            reader: opens the files.
            opposite: read the reverse complement instead.
        """
        parts = list(self.pieces(reader, max(self.length, 1), opposite))  # several of a sequence of blocks
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.uint8), *parts])

    def load(self, reader: Reader) -> None:
        """Read and keep the letters of a short sequence.

        Args:
            reader: reader of the files.
        """
        if self.letters is None and self.length <= LONG:
            assert self.genome is not None
            genome, spans = reader.genome(self.genome), self.blocks or ((self.start, self.end),)
            letters = b"".join(genome.fetch(self.contig, a, b) for a, b in spans)
            self.letters = reverse_complement(letters) if self.strand == "-" else letters

    def trim(self, reader: Reader) -> None:
        """Leave out N at both ends of a sequence whose letters are here and hold a base.

        Args:
            reader: of the letters.
        """
        assert self.letters is not None
        self.keep(*known_ends(reader.ids(self.letters)))

    def keep(self, first: int, last: int) -> None:
        """Reduce the sequence to some of its letters; `start`, `end` and `blocks` move along.

        Args:
            first: position of the first one, in its direction.
            last: position after the last one.
        """
        spans = self.places(first, last)
        self.letters = None if self.letters is None else self.letters[first:last]
        self.start, self.end = spans[0][0], spans[-1][1]
        self.blocks = tuple(spans) if self.blocks else ()

    def part(self, reader: Reader, first: int, last: int) -> np.ndarray:
        """Read the token ids of a segment in reading direction, (L,) uint8.

        Args:
            reader: reader of the files.
            first: position of the first letter.
            last: position after the last letter.
        """
        if self.letters is not None:
            return reader.ids(self.letters[first:last])
        assert self.genome is not None
        genome = reader.genome(self.genome)
        letters = b"".join(genome.fetch(self.contig, a, b) for a, b in self.places(first, last))
        return reader.ids(reverse_complement(letters) if self.strand == "-" else letters)

    def places(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the positions (start, end) on the contig, start < end, of the letters `first` to `last`.

        Args:
            first: position of the first letter in reading direction, 0-based.
            last: position after the last letter.
        """
        if self.strand == "-":
            first, last = self.length - last, self.length - first
        found, done = [], 0
        for a, b in self.blocks or ((self.start, self.end),):
            low, high = max(first - done, 0), min(last - done, b - a)
            if low < high:
                found.append((a + low, a + high))
            done += b - a
        return found


def kind_of_inputs(paths: Sequence[Path]) -> Kind:
    """Return the common kind of input files.

    Args:
        paths: paths of the inputs.

    Raises:
        InputError: a file is missing, or the files are of several kinds.
    """
    kinds = {path: _kind(path) for path in paths}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{path.name} ({kind})" for path, kind in list(kinds.items())[:4])
        raise InputError(f"inputs of several kinds: {listed}; predict them separately")
    return next(iter(kinds.values()))


def _kind(path: Path) -> Kind:
    suffix = suffix_of(path)
    if suffix in TABLES:
        return "table"
    if is_bed(path):
        return "bed"
    if suffix == ".vcf":
        return "vcf"
    with opened(path) as file:
        head = file.read(64).removeprefix(b"\xef\xbb\xbf")
    if head:
        require_text(head, path)
    return "vcf" if head.startswith((b"##fileformat=VCF", b"#CHROM\tPOS")) else "sequences"


def of_sequences(path: Path, findings: Findings, reader: Reader) -> Iterator[tuple[str, Item]]:
    """Yield (name, sequence) of the records of a FASTA, FASTQ, GenBank or EMBL file; damaged ones have a `problem`.

    Args:
        path: path of the file.
        findings: filled with counts while the file is read.
        reader: opens the file for random access if it has a long record.

    Raises:
        InputError: the file is unreadable, or no record has a usable sequence.
    """
    problems: dict[int, InputError] = {}
    count = 0
    indexed = format_of(path) == "fasta" and kind_of(path) in ("plain", "bgzf")
    parts: list[bytes] = []
    for piece in stream_pieces(path, findings, problems=problems):
        if piece.start == 0:
            parts = []
        if not indexed or piece.end <= LONG:
            parts.append(piece.sequence)
        if not piece.last:
            continue
        count += 1
        if piece.record in problems:
            error = problems[piece.record]
            why = f"{error.place}: {error.message}"
            yield piece.name, Item(piece.name, 0, 0, letters=b"", file=encodable(path.name), problem=why)
            continue
        item = Item(piece.name, 0, piece.end, file=encodable(path.name))
        whole = reader.genome(path) if indexed and piece.end > LONG else None
        if whole is not None and whole.lengths[piece.record] != piece.end:
            raise InputError("has changed while it was read; run the command again", file=path)
        if whole is None:
            item.letters = b"".join(parts)
        else:
            item.genome, item.contig, parts = path, piece.record, []
        yield piece.name, item
    if problems and len(problems) == count:
        raise next(iter(problems.values()))


def of_bed(path: Path, reference: Path, reader: Reader) -> Iterator[tuple[str, Item]]:
    """Yield (name, sequence) of the intervals of a BED file.

    Args:
        path: path of the file.
        reference: sequence file of the intervals.
        reader: opens the sequence file.

    Raises:
        InputError: a line is malformed.
    """
    for one in read_bed(path, reader.genome(reference)):
        strand = "-" if one.strand == "-" else "+"
        name = one.name if one.name not in ("", ".") else f"{one.chrom}:{one.start}-{one.end}({strand})"
        file = encodable(path.name)
        item = Item(one.chrom, one.start, one.end, strand, None, reference, one.contig, one.blocks, file)
        yield name, item


def of_table(
    source: Path | pd.DataFrame, name: str, say: Callable[[str], None], columns: LabelColumns | None = None
) -> Iterator[tuple[str, Item]]:
    """Yield (name, sequence) of the rows of a table with a column of sequences; damaged rows have a `problem`.

    Args:
        source: CSV, TSV, Excel or Parquet file, or a data frame, each of whose rows is kept.
        name: name of the input.
        say: called with messages for the user: empty lines of a file, its encoding.
        columns: names of the columns in training; a column that the table lacks is found by its usual names.

    Raises:
        InputError: no column of sequences, or no row with a usable one.
    """
    if isinstance(source, pd.DataFrame):
        source = source.assign(**{ROW: np.arange(len(source))})  # the reader drops rows without a cell
    found = read_labelled(source, target=None, columns=columns, invalid="keep")
    for note in found.notes:
        say(f"{name}: {note}")
    for row, letters in enumerate(found.sequences):
        problem = found.problems.get(row, "")
        yield found.ids[row], Item(found.ids[row], 0, len(letters), letters=letters, file=name, problem=problem)


def of_data(data: Any, say: Callable[[str], None], columns: LabelColumns | None = None) -> Iterator[tuple[str, Item]]:
    """Yield (name, sequence) of in-memory data.

    Args:
        data: a data frame with a column of sequences, or a mapping of names to sequences.
        say: called with remarks for the user.
        columns: names of the columns of a data frame in training, as in `of_table`.

    Raises:
        InputError: `data` is of another type, or a sequence is not text.
    """
    if isinstance(data, pd.DataFrame):
        yield from of_table(data, "data frame", say, columns)
        return
    if not isinstance(data, Mapping):
        raise InputError(
            f"a {type(data).__name__} cannot be predicted: expected files, a data frame with a column sequence, or a "
            "dict of names and sequences"
        )
    problems: dict[str, InputError] = {}
    for name, sequence in data.items():
        if type(sequence).__module__ == "Bio.Seq":
            sequence = str(sequence)
        if not isinstance(sequence, str | bytes):
            raise InputError(f"sequence {name!r} is a {type(sequence).__name__}, not text")
        letters = sequence.encode("utf-8", "surrogateescape") if isinstance(sequence, str) else sequence
        problem = ""
        try:
            require_nucleotides(letters, "dict", f"record {name!r}")
        except InputError as error:
            problems[str(name)] = error
            letters, problem = b"", f"{error.place}: {error.message}"
        yield str(name), Item(str(name), 0, len(letters), letters=letters, problem=problem)
    if problems and len(problems) == len(data):
        raise next(iter(problems.values()))
