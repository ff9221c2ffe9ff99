"""Reading of whole records with Bio.SeqIO: FASTA, FASTQ (sequence only), GenBank and EMBL; errors have the line."""

from __future__ import annotations

import io
import lzma
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from seqssm.errors import InputError
from seqssm_dna.compression import BLOCK, NO_BIOPYTHON, opened, require_text
from seqssm_dna.fasta import Piece, is_old_mac, stream_fasta
from seqssm_dna.letters import Findings, require_nucleotides

Format = Literal["fasta", "fastq", "genbank", "embl"]

SUFFIXES: dict[str, Format] = {
    ".fa": "fasta", ".fasta": "fasta", ".fna": "fasta", ".ffn": "fasta", ".fas": "fasta", ".fsa": "fasta",
    ".fq": "fastq", ".fastq": "fastq",
    ".gb": "genbank", ".gbk": "genbank", ".gbff": "genbank", ".genbank": "genbank",
    ".embl": "embl",
}  # fmt: skip
"""Formats by suffix; for other suffixes, the format is detected from the first line."""
COMPRESSED = (".gz", ".bgz", ".bgzf", ".xz", ".bz2")
TRUNCATED = "Premature end of file"  # a warning of Biopython that is an error here
STARTS = {"fasta": (b">",), "fastq": (b"@",), "genbank": (b"LOCUS",), "embl": (b"ID ",)}


@dataclass(frozen=True)
class Record:
    """A whole sequence.

    Attributes:
        index: index in the file, from 0.
        name: identifier of the record; may be empty, and is not necessarily unique.
        description: header or definition.
        sequence: letters as in the file.
    """

    index: int
    name: str
    description: str
    sequence: bytes


def format_of(path: Path) -> Format:
    """Detect the format of a sequence file from its first line, or else its suffix.

    Args:
        path: path of the file.

    Raises:
        InputError: the file is missing, empty, binary, or of an unknown format.
    """
    with opened(path) as file:
        head = file.read(4096)
    require_text(head, path)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for name, starts in STARTS.items():
        if text.startswith(starts):
            return name  # type: ignore[return-value]
    return SUFFIXES.get(suffix_of(path), "fasta")  # the reader of this format reports the error


def suffix_of(path: Path) -> str:
    """Return the suffix of the format in lower case, without that of the compression.

    Args:
        path: path of the file.
    """
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def read_records(
    path: Path,
    findings: Findings | None = None,
    kind: Format | None = None,
    problems: dict[int, InputError] | None = None,
) -> Iterator[Record]:
    """Yield the records of a file, each one whole in memory.

    Args:
        path: FASTA, FASTQ, GenBank or EMBL file; plain, gzip, BGZF, xz or bzip2.
        findings: filled with counts while the file is read.
        kind: format of the file; None detects it.
        problems: filled with the records, by index, without a usable sequence, which is then empty; not for FASTA. By
            default they are errors.

    Raises:
        InputError: the file is unreadable or corrupt, has no records, or contains a letter that is not a nucleotide.
    """
    kind = kind or format_of(path)
    findings = Findings() if findings is None else findings
    try:
        from Bio import SeqIO
    except ImportError:
        raise InputError(f"reading this file {NO_BIOPYTHON}", file=path) from None
    with opened(path) as file:
        lines = _Lines(file, path, kind)
        parser = _Parser(lambda: SeqIO.parse(lines, kind), lines)
        index = 0
        while (found := parser.next()) is not None:
            try:
                record = _record(found, index, lines, findings)
            except InputError as error:
                if problems is None or kind == "fasta":
                    raise
                problems[index] = error
                record = Record(index, _name(found), "", b"")
            parser.require_complete(record)
            yield record
            index += 1
    if not index:
        raise InputError(f"contains no {kind} records", file=path)
    if kind == "fastq":
        findings.notes.append("FASTQ qualities are ignored")
    findings.notes += [f"Biopython: {remark}" for remark in parser.remarks]


class _Parser:
    """A Biopython parser; converts its exceptions to input errors and keeps its warnings.

    Args:
        start: function that returns the iterator over records; called at the first record, because it may raise.
        lines: text that the parser reads.
    """

    def __init__(self, start: Callable[[], Iterator[Any]], lines: _Lines) -> None:
        self.start, self.lines = start, lines
        self.iterator: Iterator[Any] | None = None
        self.remarks: list[str] = []

    def next(self) -> Any:
        """Return the next record; None after the last one."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                if self.iterator is None:
                    self.iterator = self.start()
                return next(self.iterator, None)
            except (InputError, OSError, EOFError, zlib.error, lzma.LZMAError, MemoryError):
                raise  # raised by the file below the parser
            except Exception as error:  # Biopython raises many types on corrupt files
                raise self.lines.damaged(error) from None
            finally:
                for one in caught:
                    remark = " ".join(str(one.message).split())[:160]
                    if remark not in self.remarks:
                        self.remarks.append(remark)

    def require_complete(self, record: Record) -> None:
        """Raise InputError if the file ends within a record.

        Args:
            record: the last record of `next`.
        """
        for remark in self.remarks:
            if remark.startswith(TRUNCATED):
                place = f"record {record.index + 1} {record.name!r}"
                raise InputError(f"is truncated ({remark}); copy it again", file=self.lines.path, place=place)


def stream_pieces(
    path: Path,
    findings: Findings | None = None,
    size: int = BLOCK,
    problems: dict[int, InputError] | None = None,
) -> Iterator[Piece]:
    """Yield the sequences of a file of any format in pieces; FASTA records of any length in bounded memory.

    Args:
        path: file in FASTA, FASTQ, GenBank or EMBL; plain, gzip, BGZF, xz or bzip2.
        findings: filled with counts while the file is read.
        size: approximate maximum number of letters in a piece.
        problems: filled with the records, by index, without a usable sequence. By default they are errors.

    Raises:
        InputError: the file is unreadable or corrupt, has no records, or contains a letter that is not a nucleotide.
    """
    kind = format_of(path)
    if kind == "fasta":
        yield from stream_fasta(path, findings, size, problems=problems)
        return
    for record in read_records(path, findings, kind, problems):
        length = len(record.sequence)
        for start in range(0, max(length, 1), size):
            piece = record.sequence[start : start + size]
            yield Piece(record.index, record.name, record.description, start, piece, start + size >= length)


def _name(found: object) -> str:
    name = str(getattr(found, "id", "") or "")
    return "" if name == "<unknown id>" else name


def _record(found: object, index: int, lines: _Lines, findings: Findings) -> Record:
    """Convert a Biopython record; check and count its letters."""
    name = _name(found)
    try:
        sequence = bytes(found.seq)  # type: ignore[attr-defined]
    except Exception:  # UndefinedSequenceError, or no sequence at all
        message = "has no sequence (only a CONTIG line?); download the record with its sequence"
        raise InputError(message, file=lines.path, place=f"record {index + 1} {name!r}") from None
    if lines.kind != "fasta":  # letters of FASTA are checked line by line
        require_nucleotides(sequence, lines.path, f"record {index + 1} {name!r}")
    findings.begin(name)
    findings.add(sequence)
    return Record(index, name, str(getattr(found, "description", "")).strip(), sequence)


class _Lines(io.TextIOBase):
    """The decompressed lines of a file as text, with line numbers; checks the letters of FASTA lines.

    Args:
        file: open file.
        path: path used in error messages.
        kind: format of the file.
    """

    def __init__(self, file: IO[bytes], path: Path, kind: Format) -> None:
        self.file, self.path, self.kind = file, path, kind
        self.number = 0
        self.record, self.letters, self.name = 0, 0, ""
        self.mac: list[bytes] = []  # lines that end with a carriage return only

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> str:
        if size == 0:
            return ""
        return "".join(self)

    def readline(self, size: int | None = -1) -> str:  # type: ignore[override]
        while True:
            line = self._next()
            if not line:
                return ""
            self.number += 1
            if self.number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            text = line.rstrip(b"\r\n")
            if self.kind == "fasta":
                if not text.strip():
                    continue
                self._check(text)
            return text.decode("utf-8", "backslashreplace") + "\n"

    def __next__(self) -> str:  # type: ignore[override]
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    def _next(self) -> bytes:
        if self.mac:
            return self.mac.pop()
        line = self.file.readline()
        if self.number == 0 and is_old_mac(line):  # then the whole file is one line
            self.mac = [part + b"\n" for part in (line + self.file.read()).removesuffix(b"\r").split(b"\r")][::-1]
            return self.mac.pop()
        return line

    def _check(self, text: bytes) -> None:
        if text.startswith(b">"):
            self.record, self.letters = self.record + 1, 0
            words = text[1:].split(None, 1)
            self.name = words[0].decode("utf-8", "backslashreplace") if words else ""
            return
        if not self.record:
            shown = text[:40].decode("utf-8", "backslashreplace").strip()
            message = f"expected a FASTA header line that begins with '>', found {shown!r}"
            raise InputError(message, file=self.path, place=f"line {self.number}")
        where = f"line {self.number}, record {self.record} {self.name!r}"
        plain = text.translate(None, b" \t\r")
        require_nucleotides(plain, self.path, where, self.letters)
        self.letters += len(plain)

    def damaged(self, error: Exception) -> InputError:
        """Convert an exception of a parser to an input error.

        Args:
            error: exception raised by Biopython.
        """
        why = " ".join(str(error).split())[:120] or type(error).__name__
        return InputError(f"is not readable as {self.kind}: {why}", file=self.path, place=f"line {self.number}")
