"""Reading and writing of compressed sequence files: plain, gzip, BGZF, xz and bzip2, detected by their first bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from seqssm.errors import InputError, no_such_file
from seqssm.files.disk import require_no_pipes

Kind = Literal["plain", "gzip", "bgzf", "xz", "bzip2"]

NO_BIOPYTHON = "needs Biopython: pip install 'seqssm[dna]'"
BLOCK = 1 << 20  # bytes per read
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends a complete BGZF file (SAM specification, section 4.1.2)."""
FOREIGN = (
    (b"PK\x03\x04", "is a zip archive or an Excel workbook; unpack it, or use it as a table of labelled sequences"),
    (b"PAR1", "is a Parquet file, not a sequence file"),
    (b"\x89HDF", "is an HDF5 file, not a sequence file"),
    (b"%PDF", "is a PDF, not a sequence file"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; decompress it, or compress it with bgzip"),
    (b"BAM\x01", "is a BAM file; write its sequences as FASTA (samtools fasta)"),
    (b"BCF\x02", "is a BCF file; convert it to VCF (bcftools view)"),
    (b"CRAM", "is a CRAM file; write its sequences as FASTA (samtools fasta)"),
    (b"\x1aA'C", "is a UCSC .2bit file; convert it with twoBitToFa"),
    (b"'CA\x1a", "is a UCSC .2bit file; convert it with twoBitToFa"),
    (b"@HD\tVN:", "is a SAM file; write its sequences as FASTA (samtools fasta)"),
    (b"@SQ\tSN:", "is a SAM file; write its sequences as FASTA (samtools fasta)"),
    (b"##gff", "is a GFF file; give its intervals as BED"),
    (b"\xff\xfe", "is UTF-16 text; save it as plain ASCII or UTF-8"),
    (b"\xfe\xff", "is UTF-16 text; save it as plain ASCII or UTF-8"),
)


def require_file(path: Path) -> None:
    """Check that a path is a readable file.

    Args:
        path: path of the file.

    Raises:
        InputError: the path is missing, a folder, a pipe, or not readable.
    """
    require_no_pipes([path])
    try:
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        if _is_sequence(path):
            message = "no such file; sequences in memory are a dict of names and sequences, or a data frame"
            raise InputError(message, file=path) from None
        raise no_such_file(path) from None
    except IsADirectoryError:
        raise InputError("is a folder; give the file", file=path) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=path) from None


def _is_sequence(path: Path) -> bool:
    """Whether a name consists of bases, so that a sequence was given instead of a file."""
    return len(path.name) > 2 and not str(path).upper().strip("ACGTUN")


def kind_of(path: Path) -> Kind:
    """Detect the compression of a file.

    Args:
        path: path of the file.

    Raises:
        InputError: the file is missing or unreadable.
    """
    require_file(path)
    with open(path, "rb") as file:
        head = file.read(18)
    if head.startswith(b"\x1f\x8b"):
        extra = len(head) == 18 and head[3] & 4 and head[12:14] == b"BC"
        return "bgzf" if extra else "gzip"
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    return "bzip2" if head.startswith(b"BZh") else "plain"


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed.

    Decompression errors while the file is being read are also converted to `InputError`.

    Args:
        path: path of the file.

    Raises:
        InputError: the file is missing, unreadable, truncated or corrupt.
    """
    kind = kind_of(path)
    if kind == "bgzf":
        _require_end(path)
    if path.suffix.lower() in (".gz", ".bgz", ".xz", ".bz2") and kind == "plain":
        if path.stat().st_size == 0:
            raise InputError("is empty (0 bytes)", file=path)
        raise InputError(f"has the suffix {path.suffix} but is not compressed, or its beginning is corrupt", file=path)
    opener = {"plain": open, "gzip": gzip.open, "bgzf": gzip.open, "xz": lzma.open, "bzip2": bz2.open}[kind]
    try:
        with opener(path, "rb") as file:  # type: ignore[operator]
            yield file
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile):
        raise InputError(f"is a truncated or corrupt {kind} file; copy it again", file=path) from None
    except OSError as error:
        if kind == "bzip2" and error.errno is None:
            raise InputError("is a truncated or corrupt bzip2 file; copy it again", file=path) from None
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None


def _require_end(path: Path) -> None:
    """Check for the end-of-file block: a BGZF file truncated between two blocks decompresses without an error."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(BGZF_END)))
        if file.read() != BGZF_END:
            raise InputError("is a truncated BGZF file (its end-of-file block is missing); copy it again", file=path)


def require_text(head: bytes, path: Path) -> None:
    """Check the first bytes of a sequence file.

    Args:
        head: first decompressed bytes.
        path: path used in error messages.

    Raises:
        InputError: the file is empty, or of a binary format.
    """
    if not head.strip():
        raise InputError("is empty; expected sequences", file=path)
    for magic, message in FOREIGN:
        if head.startswith(magic):
            raise InputError(message, file=path)
    if b"\0" in head:
        raise InputError("is a binary file, not a sequence file", file=path)


class Writer:
    """Writes bytes without compression.

    Args:
        out: file open for writing; not closed.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self.out = out

    def write(self, data: bytes) -> None:
        """Write bytes.

        Args:
            data: bytes to write.
        """
        self.out.write(data)

    def finish(self) -> None:
        """Write the end of the file; must be called once, after the last `write`."""


class BlockWriter(Writer):
    """Writes BGZF, which can be indexed by tabix and pyfaidx.

    Args:
        out: file open for writing; not closed.
        path: path used in error messages.

    Raises:
        InputError: Biopython is missing.
    """

    def __init__(self, out: IO[bytes], path: Path) -> None:
        try:
            from Bio import bgzf
        except ImportError:
            raise InputError(f"writing BGZF {NO_BIOPYTHON}", file=path) from None
        super().__init__(out)
        self.blocks = bgzf.BgzfWriter(fileobj=out)

    def write(self, data: bytes) -> None:
        self.blocks.write(data)

    def finish(self) -> None:
        self.blocks.flush()
        self.out.write(BGZF_END)


def writer_for(out: IO[bytes], target: Path) -> Writer:
    """Return a writer for the compression implied by a file's suffix: BGZF for ``.gz`` and ``.bgz``, else none.

    Args:
        out: file open for writing.
        target: final name of the file.
    """
    return BlockWriter(out, target) if target.suffix.lower() in (".gz", ".bgz") else Writer(out)
