"""Streaming of FASTA in pieces: records of any length in bounded memory, with the layout for an index."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from seqssm.errors import InputError
from seqssm_dna.compression import BLOCK, opened, require_text
from seqssm_dna.letters import NUCLEOTIDES, Findings, what_is

LONGEST_HEADER = 1 << 20  # bytes; a longer header line indicates a corrupt file
HEAD = 4096  # bytes from which the format and the line ends are detected
WHITESPACE = b"\n\r \t"
OTHER_FORMATS = (
    (b"@", "starts with '@': is this FASTQ? give it the suffix .fastq"),
    (b"##fileformat=VCF", "is a VCF file, not FASTA"),
    (b"LOCUS", "is a GenBank file; give it the suffix .gb"),
    (b"ID   ", "is an EMBL file; give it the suffix .embl"),
    (b"##gff-version", "is a GFF file of annotations, not sequences; give the FASTA file, and intervals as BED"),
    (b"#NEXUS", "is a NEXUS alignment, not FASTA"),
    (b"CLUSTAL", "is a Clustal alignment, not FASTA"),
    (b";", "starts with ';' comment lines, which are not supported; remove them"),
)


def is_old_mac(head: bytes) -> bool:
    """Return whether lines end with a carriage return only.

    Args:
        head: first bytes of a file; only `HEAD` of them are used.
    """
    return b"\r" in head[: HEAD - 1] and b"\n" not in head[:HEAD]


@dataclass(frozen=True)
class Piece:
    """Consecutive letters of a record.

    Attributes:
        record: index of the record in the file, from 0.
        name: header up to the first blank; may be empty, and is not necessarily unique.
        description: the whole header.
        start: position of the first letter in the record, from 0.
        sequence: letters as in the file, without line ends; empty for the only piece of an empty record.
        last: whether this is the last piece of the record.
    """

    record: int
    name: str
    description: str
    start: int
    sequence: bytes
    last: bool

    @property
    def end(self) -> int:
        """Position after the last letter."""
        return self.start + len(self.sequence)


@dataclass
class Layout:
    """Positions of the records of a FASTA file, in the terms of samtools' ``.fai``.

    Attributes:
        names, descriptions: names and headers of the records.
        lengths: lengths of the records, letters.
        offsets: offset of the first letter of each record, decompressed bytes.
        letters: letters per line of each record.
        line_bytes: bytes per line of each record, including the line end.
        uneven: line number and name of the first record whose lines differ in length; None if there is none.
    """

    names: list[str] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    letters: list[int] = field(default_factory=list)
    line_bytes: list[int] = field(default_factory=list)
    uneven: tuple[int, str] | None = None
    _bytes: int = field(default=0, repr=False)  # bytes so far of the line that the last block cut
    _letters: int = field(default=0, repr=False)  # letters so far of this line
    _ended: bool = field(default=False, repr=False)  # whether a short or blank line was read, which must be the last

    def begin(self, name: str, description: str, offset: int) -> None:
        """Begin a record.

        Args:
            name: name of the record.
            description: whole header of the record.
            offset: offset of the byte after the header line.
        """
        self.finish()
        self.names.append(name)
        self.descriptions.append(description)
        self.lengths.append(0)
        self.offsets.append(offset)
        self.letters.append(0)
        self.line_bytes.append(0)
        self._ended = False

    def add(self, raw: bytes, length: int, line: int) -> None:
        """Add bytes of the record, line ends included.

        Args:
            raw: bytes of the file.
            length: number of letters in `raw`.
            line: line number of the first line in `raw`.
        """
        self.lengths[-1] += length
        if self.uneven is not None:
            return
        ends = np.flatnonzero(np.frombuffer(raw, np.uint8) == ord("\n"))
        if not len(ends):
            self._bytes += len(raw)
            self._letters += length
            return
        if not self.line_bytes[-1]:
            self.letters[-1] = self._letters + len(raw[: ends[0]].translate(None, WHITESPACE))
            self.line_bytes[-1] = self._bytes + int(ends[0]) + 1
        sizes = np.diff(ends, prepend=-1)
        sizes[0] += self._bytes
        rest = raw[ends[-1] + 1 :]
        self._bytes, self._letters = len(rest), len(rest.translate(None, WHITESPACE))
        if not self._fits(sizes) or b" " in raw or b"\t" in raw:
            self.uneven = (line, self.names[-1])

    def _fits(self, sizes: np.ndarray) -> bool:
        """Return whether lines of `sizes` bytes fit the layout: full lines, then one shorter line, then blank lines."""
        width, blank = self.line_bytes[-1], self.line_bytes[-1] - self.letters[-1]
        other = np.flatnonzero(sizes != width) if self.letters[-1] else np.zeros(1, int)
        if not self._ended and not len(other):
            return True
        if not self._ended:
            after, fits = sizes[other[0] + 1 :], sizes[other[0]] <= width
        else:
            after, fits = sizes, True
        self._ended = True
        return bool(fits and (after <= blank).all())

    def finish(self) -> None:
        """End the last record."""
        if self._letters and self.uneven is None:
            if not self.line_bytes[-1]:
                self.letters[-1], self.line_bytes[-1] = self._letters, self._bytes
            elif self._ended or self._letters > self.letters[-1]:
                self.uneven = (0, self.names[-1])
        self._bytes = self._letters = 0

    def index(self) -> str:
        """Format a ``.fai`` that names records by their indices, because names may be duplicate or empty."""
        rows = zip(self.lengths, self.offsets, self.letters, self.line_bytes)
        return "".join(f"{k}\t{n}\t{offset}\t{a}\t{b}\n" for k, (n, offset, a, b) in enumerate(rows))


def stream_fasta(
    path: Path,
    findings: Findings | None = None,
    size: int = BLOCK,
    layout: Layout | None = None,
    problems: dict[int, InputError] | None = None,
) -> Iterator[Piece]:
    """Yield the records of a FASTA file in pieces.

    Args:
        path: path of the file; plain, gzip, BGZF, xz or bzip2.
        findings: filled with counts while the file is read.
        size: bytes per read; bounds the length of a piece.
        layout: filled with the positions of the records.
        problems: filled with the records, by index, that contain a letter that is not a nucleotide; the letters from
            this block on are left out. By default they are errors.

    Yields:
        Pieces in file order; each record has at least one, and its last one has `Piece.last` set.

    Raises:
        InputError: the file is not FASTA, has no records, or contains a letter that is not a nucleotide; the message
            has line and record.
    """
    with opened(path) as file:
        yield from _Scanner(path, Findings() if findings is None else findings, layout, problems).pieces(file, size)


class _Scanner:
    """Scanner of one file: the current block, record and line."""

    def __init__(
        self, path: Path, findings: Findings, layout: Layout | None, problems: dict[int, InputError] | None
    ) -> None:
        self.path, self.findings, self.layout, self.problems = path, findings, layout, problems
        self.line, self.offset = 1, 0  # position of the next byte
        self.record, self.length = -1, 0
        self.name = self.description = ""
        self.header: bytes | None = None  # beginning of a header line cut by the block
        self.held: bytes | None = (
            None  # letters held back until the next byte shows whether they are the last of the record
        )

    def pieces(self, file: IO[bytes], size: int) -> Iterator[Piece]:
        fresh = True  # whether the next byte begins a line
        for block in self._blocks(file, max(size, 1)):
            yield from self._block(block, fresh)
            fresh = block.endswith(b"\n")
        if self.header is not None:
            yield from self._begin(self.header)
        yield from self._end()
        if self.layout is not None:
            self.layout.finish()

    def _blocks(self, file: IO[bytes], size: int) -> Iterator[bytes]:
        """Yield the bytes of the file in blocks of `size`, with line ends converted to ``\\n``."""
        head = file.read(HEAD)
        old_mac = is_old_mac(head)
        if head.startswith(BOM_UTF8):
            head, self.offset = head[len(BOM_UTF8) :], len(BOM_UTF8)
        require_text(head, self.path)
        self._require_fasta(head.replace(b"\r", b"\n") if old_mac else head)
        for start in range(0, len(head), size):
            block = head[start : start + size]
            yield block.replace(b"\r", b"\n") if old_mac else block
        while block := file.read(size):
            yield block.replace(b"\r", b"\n") if old_mac else block

    def _require_fasta(self, head: bytes) -> None:
        text = head.lstrip()
        if text.startswith(b">"):
            return
        line = 1 + head[: len(head) - len(text)].count(b"\n")
        for magic, message in OTHER_FORMATS:
            if text.startswith(magic):
                raise InputError(message, file=self.path, place=f"line {line}")
        shown = text.split(b"\n", 1)[0][:40].decode("utf-8", "backslashreplace").strip()
        message = f"expected a FASTA header line that begins with '>', found {shown!r}"
        raise InputError(message, file=self.path, place=f"line {line}")

    def _block(self, block: bytes, fresh: bool) -> Iterator[Piece]:
        position = 0
        while position < len(block):
            if self.header is not None or (fresh and block[position : position + 1] == b">"):
                end = block.find(b"\n", position) + 1
                self.header = (self.header or b"") + block[position : end or len(block)]
                if len(self.header) > LONGEST_HEADER:
                    message = f"header line of more than {LONGEST_HEADER} bytes: corrupt file"
                    raise InputError(message, file=self.path, place=f"line {self.line}")
                if not end:
                    return
                yield from self._begin(self.header)
                self.header, position, fresh = None, end, True
                continue
            end = block.find(b"\n>", position)
            end = len(block) if end < 0 else end + 1
            raw = block[position:end]
            yield from self._letters(raw)
            position, fresh = end, raw.endswith(b"\n")

    def _begin(self, header: bytes) -> Iterator[Piece]:
        yield from self._end()
        self.description = header[1:].decode("utf-8", "backslashreplace").strip()
        self.name = self.description.split(None, 1)[0] if self.description else ""
        self.record += 1
        self.length = 0
        self.held = b""
        self.findings.begin(self.name)
        self.line += 1
        self.offset += len(header)
        if self.layout is not None:
            self.layout.begin(self.name, self.description, self.offset)

    def _letters(self, raw: bytes) -> Iterator[Piece]:
        letters = raw.translate(None, WHITESPACE)
        if self.record < 0:  # blank lines above the first header
            self.line += raw.count(b"\n")
            self.offset += len(raw)
            return
        if letters.translate(None, NUCLEOTIDES):
            if self.problems is None:
                raise self._foreign(raw)
            if self.record not in self.problems:
                self.problems[self.record] = self._foreign(raw)
        if self.problems and self.record in self.problems:
            letters = b""
        if self.layout is not None:
            self.layout.add(raw, len(letters), self.line)
        self.line += raw.count(b"\n")
        self.offset += len(raw)
        if letters:
            if self.held:
                yield self._piece(self.held, last=False)
            self.held = letters

    def _foreign(self, raw: bytes) -> InputError:
        foreign = raw.translate(None, WHITESPACE + NUCLEOTIDES)
        place = raw.index(foreign[:1])
        line = self.line + raw.count(b"\n", 0, place)
        position = self.length + len(self.held or b"") + len(raw[:place].translate(None, WHITESPACE)) + 1
        where = f"line {line}, record {self.record + 1} {self.name!r}, position {position}"
        return InputError(what_is(foreign[0]), file=self.path, place=where)

    def _piece(self, letters: bytes, last: bool) -> Piece:
        piece = Piece(self.record, self.name, self.description, self.length, letters, last)
        self.length += len(letters)
        self.findings.add(letters)
        return piece

    def _end(self) -> Iterator[Piece]:
        if self.held is not None:
            yield self._piece(self.held, last=True)
            self.held = None
