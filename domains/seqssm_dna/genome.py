"""Random access to the contigs of a sequence file.

Plain and BGZF FASTA files are indexed once, in the user's cache, and read by pyfaidx; nothing is written next to the
file. Files that cannot be indexed (plain gzip, xz, bzip2, lines of unequal length, other formats) are held in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqssm.errors import InputError, no_such_file
from seqssm.files.datasets import cache_folder
from seqssm.files.disk import atomic
from seqssm_dna.compression import NO_BIOPYTHON, kind_of
from seqssm_dna.contigs import Contigs, parse_region
from seqssm_dna.fasta import Layout, stream_fasta
from seqssm_dna.letters import NUCLEOTIDES, Findings, reverse_complement
from seqssm_dna.records import format_of, stream_pieces

VERSION = 2  # version of the index files in the cache; 1 did not count a byte-order mark
MEMORY = 1 << 30  # default limit of letters held in memory


@dataclass(frozen=True)
class _State:
    """Identity of an indexed file: size in bytes and modification time."""

    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> _State:
        try:
            found = path.stat()
        except FileNotFoundError:
            raise no_such_file(path) from None
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None
        return cls(found.st_size, found.st_mtime_ns)


@dataclass
class _Index:
    """The index of a file: paths and contents of the index files."""

    fai: Path
    gzi: Path | None
    names: list[str]
    descriptions: list[str]
    lengths: list[int]
    findings: Findings = field(default_factory=Findings)


class Genome:
    """Random access to the contigs of a FASTA, FASTQ, GenBank or EMBL file.

    Objects can be pickled and used in forked processes; each process opens the file separately.

    Args:
        path: path of the file.
        memory: maximum number of letters held in memory if the file cannot be indexed.
        say: called once with each message for the user; None only keeps them in `notes`.

    Attributes:
        contigs: names of the contigs, and the aliases used.
        lengths: lengths of the contigs, letters.
        notes: messages about the file.
        findings: counts of the letters.

    Raises:
        InputError: the file is unreadable or corrupt, contains no nucleotides, or is too large for memory and cannot be
            indexed.
    """

    def __init__(self, path: str | Path, memory: int = MEMORY, say: Callable[[str], None] | None = None) -> None:
        self.path, self.memory = Path(path), memory
        self.notes: list[str] = []
        self.findings = Findings()
        self.lengths: list[int] = []
        self._held: list[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory | None = None  # folder of the index if the cache is not writable
        self._index: _Index | None = None
        self._reader: tuple[int, Any] | None = None  # process, pyfaidx.Faidx
        self._state = _State.of(self.path)
        names, descriptions = self._open()
        self.contigs = Contigs(names, descriptions)
        self.notes += self.findings.report()
        if say is not None:
            for note in self.notes:
                say(f"{self.path}: {note}")

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the open file, which belongs to this process."""
        return self.__dict__ | {"_reader": None, "_folder": None}

    @property
    def names(self) -> list[str]:
        """Names of the contigs, in file order; not necessarily unique."""
        return list(self.contigs.names)

    @property
    def held(self) -> bool:
        """Whether the file is held in memory."""
        return self._held is not None

    def __len__(self) -> int:
        return len(self.lengths)

    def length(self, contig: str | int) -> int:
        """Return the length of a contig, letters.

        Args:
            contig: name, possibly under another naming scheme, or index.
        """
        return self.lengths[self.find(contig)]

    def find(self, contig: str | int) -> int:
        """Return the index of a contig.

        Args:
            contig: name, possibly under another naming scheme, or index.

        Raises:
            InputError: no contig or several contigs match.
        """
        if isinstance(contig, int):
            return contig
        try:
            return self.contigs.find(contig)
        except InputError as error:
            raise InputError(error.message, file=self.path) from None

    def region(self, text: str) -> tuple[int, int, int]:
        """Parse ``chr7:1000-2000`` (1-based, inclusive) to (contig index, start, end), 0-based half-open.

        Args:
            text: the region; contig names take precedence.

        Raises:
            InputError: there is no such contig, or the region is outside of it.
        """
        try:
            return parse_region(text, self.contigs, self.lengths)
        except InputError as error:
            raise InputError(error.message, file=self.path) from None

    def fetch(self, contig: str | int, start: int = 0, end: int | None = None, strand: str = "+") -> bytes:
        """Read letters of a contig as in the file.

        Args:
            contig: name or index.
            start: first position, 0-based.
            end: position after the last letter; None for the end of the contig.
            strand: strand to read; ``"-"`` gives the reverse complement.

        Raises:
            InputError: there is no such contig, the region is outside of it, or the file has changed since it was
                indexed.
        """
        record = self.find(contig)
        size = self.lengths[record]
        end = size if end is None else end
        if not 0 <= start <= end <= size:
            message = f"positions {start} to {end} are outside of {self.contigs.names[record]!r} (length {size})"
            raise InputError(message, file=self.path)
        letters = b"" if start == end else self._read(record, start, end)
        return reverse_complement(letters) if strand == "-" else letters

    # -- opening -------------------------------------------------------------------------------------------------------

    def _open(self) -> tuple[list[str], list[str]]:
        kind = kind_of(self.path)
        if format_of(self.path) != "fasta":
            return self._hold("its format cannot be indexed")
        if kind not in ("plain", "bgzf"):
            advice = "; compress it with bgzip to make it indexable" if kind == "gzip" else ""
            return self._hold(f"{kind} files cannot be indexed{advice}")
        if kind == "bgzf" and self.path.suffix.lower() not in (".gz", ".bgz"):
            return self._hold("an index requires the suffix .gz or .bgz")
        return self._by_index(kind == "bgzf")

    def _hold(self, why: str) -> tuple[list[str], list[str]]:
        """Hold the file in memory."""
        parts: list[list[bytes]] = []
        names, descriptions, total = [], [], 0
        for piece in stream_pieces(self.path, self.findings):
            if piece.start == 0 and len(parts) == piece.record:
                parts.append([])
                names.append(piece.name)
                descriptions.append(piece.description)
            parts[-1].append(piece.sequence)
            total += len(piece.sequence)
            if total > self.memory:
                message = f"{why}, and it has more than {self.memory} letters, too many to keep in memory"
                raise InputError(f"{message}; decompress it, or compress it with bgzip", file=self.path)
        self._held = [b"".join(own) for own in parts]
        self.lengths = [len(one) for one in self._held]
        self.notes.append(f"held in memory ({total} letters): {why}")
        return names, descriptions

    def _by_index(self, blocks: bool) -> tuple[list[str], list[str]]:
        old = self.path.with_name(self.path.name + ".fai")
        if old.exists() and _State.of(old).changed < self._state.changed:
            self.notes.append(f"{old.name} is older than the FASTA file and ignored; a new index is in the cache")
        key = f"{self.path.resolve()}\0{self._state.size}\0{self._state.changed}\0{VERSION}"
        stem = hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()[:24]
        folder = cache_folder() / "fasta"
        found = _load(folder / stem, blocks)
        if found is None:
            layout, findings = Layout(), Findings()
            for _ in stream_fasta(self.path, findings, layout=layout):
                pass
            if layout.uneven is not None:
                return self._hold(
                    f"it cannot be indexed, because the lines of record {layout.uneven[1]!r} differ in length"
                )
            starts = _block_starts(self.path) if blocks else None
            try:
                found = _save(folder / stem, layout, findings, starts)
            except (InputError, OSError) as error:
                self._folder = tempfile.TemporaryDirectory(prefix="seqssm-fasta-")
                found = _save(Path(self._folder.name, stem), layout, findings, starts)
                why = getattr(error, "message", None) or error
                self.notes.append(f"the cache {folder} is not writable ({why}); the index is temporary")
        self._index, self.lengths, self.findings = found, found.lengths, found.findings
        return found.names, found.descriptions

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read(self, record: int, start: int, end: int) -> bytes:
        if self._held is not None:
            return self._held[record][start:end]
        if _State.of(self.path) != self._state:
            raise InputError("has changed since it was opened; run the command again", file=self.path)
        try:
            letters = self._faidx().fetch(str(record), start + 1, end).encode("latin-1")
        except InputError:
            raise
        except Exception as error:  # a corrupt index or file; pyfaidx and Bio.bgzf raise many types
            why = " ".join(str(error).split())[:120] or type(error).__name__
            raise InputError(f"cannot be read with its index ({why}); delete {self._files()}", file=self.path) from None
        if len(letters) != end - start or letters.translate(None, NUCLEOTIDES):
            raise InputError(f"does not match its index; delete {self._files()}", file=self.path)
        return letters

    def _files(self) -> str:
        return "its index" if self._index is None else str(self._index.fai)

    def _faidx(self) -> Any:
        """Return the pyfaidx reader of this process."""
        if self._reader is None or self._reader[0] != os.getpid():
            try:
                from pyfaidx import Faidx
            except ImportError:
                raise InputError("random access needs pyfaidx: pip install 'seqssm[dna]'", file=self.path) from None
            assert self._index is not None
            options = {} if self._index.gzi is None else {"gzi_indexname": str(self._index.gzi)}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # the system clock may be behind
                faidx = Faidx(str(self.path), indexname=str(self._index.fai), as_raw=True, rebuild=False, **options)
            self._reader = (os.getpid(), faidx)
        return self._reader[1]


def _load(stem: Path, blocks: bool) -> _Index | None:
    """Read the index from the cache; None if it is missing or corrupt."""
    fai, gzi, about = (stem.with_suffix(suffix) for suffix in (".fai", ".gzi", ".json"))
    try:
        content = json.loads(about.read_text(encoding="utf-8"))
        names, descriptions, lengths = content["names"], content["descriptions"], content["lengths"]
        rows = [line.split("\t") for line in fai.read_text(encoding="utf-8").splitlines()]
        complete = [int(row[1]) for row in rows] == lengths and len(names) == len(descriptions) == len(lengths)
        if not complete or (blocks and not gzi.stat().st_size):
            return None
        findings = Findings(content["records"], repeated=content["repeated"])
        for letter, count in content["counts"].items():
            findings.counts[int(letter)] = count
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return _Index(fai, gzi if blocks else None, names, descriptions, lengths, findings)


def _block_starts(path: Path) -> list[tuple[int, int]]:
    """Return (offset in the file, offset in the decompressed bytes) of each block of a BGZF file.

    Raises:
        InputError: Biopython is missing, or a block is corrupt in a way that gzip does not detect.
    """
    try:
        from Bio import bgzf
    except ImportError:
        raise InputError(f"reading it {NO_BIOPYTHON}", file=path) from None
    try:
        with open(path, "rb") as file:
            return [(start, plain) for start, _, plain, size in bgzf.BgzfBlocks(file) if size]
    except Exception as error:  # Bio.bgzf raises many types
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise InputError(f"is a corrupt BGZF file ({why}); compress it again with bgzip", file=path) from None


def _save(stem: Path, layout: Layout, findings: Findings, starts: list[tuple[int, int]] | None) -> _Index:
    """Write an index: ``.fai``, ``.gzi`` for BGZF files, and last the names and counts as JSON."""
    fai, gzi, about = (stem.with_suffix(suffix) for suffix in (".fai", ".gzi", ".json"))
    if starts is not None:
        with atomic(gzi) as out:  # format of htslib: number of blocks except the first, then their offsets
            out.write(struct.pack("<Q", len(starts) - 1))
            out.write(b"".join(struct.pack("<QQ", *one) for one in starts[1:]))
    with atomic(fai, "w") as out:
        out.write(layout.index())
    content = {
        "names": layout.names,
        "descriptions": layout.descriptions,
        "lengths": layout.lengths,
        "records": findings.records,
        "repeated": findings.repeated,
        "counts": {str(letter): int(count) for letter, count in enumerate(findings.counts) if count},
    }
    with atomic(about, "w") as out:
        json.dump(content, out)
    at = None if starts is None else gzi
    return _Index(fai, at, layout.names, layout.descriptions, layout.lengths, findings)
