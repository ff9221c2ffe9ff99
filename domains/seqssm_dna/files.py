"""Readers of all file formats in one import, and writers of FASTA and bedGraph.

Reading: `read_records` and `stream_pieces` (FASTA, FASTQ, GenBank, EMBL as a stream), `open_genome` (random access),
`read_bed`, `Variants` and `write_scores` (VCF), `read_labelled` (tables, one FASTA file per class).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm.files.disk import atomic
from seqssm.files.notes import note
from seqssm_dna.compression import writer_for
from seqssm_dna.genome import Genome
from seqssm_dna.genomes import open_genome
from seqssm_dna.intervals import Interval, read_bed
from seqssm_dna.labelled import Labelled, read_labelled
from seqssm_dna.letters import Findings, require_nucleotides
from seqssm_dna.records import Record, read_records, stream_pieces
from seqssm_dna.variants import Variants
from seqssm_dna.vcf import write_scores

__all__ = [
    "Findings",
    "Genome",
    "Interval",
    "Labelled",
    "Record",
    "Variants",
    "bedgraph",
    "open_genome",
    "read_bed",
    "read_labelled",
    "read_records",
    "say",
    "stream_pieces",
    "write_fasta",
    "write_scores",
]


def say(message: str) -> None:
    """Print a message for the user to stderr.

    Args:
        message: one line.
    """
    note(message, sys.stderr)


def write_fasta(path: str | Path, records: Iterable[tuple[str, str | bytes]], width: int = 60) -> int:
    """Write a FASTA file atomically.

    Args:
        path: path of the file; compressed as BGZF if the suffix is ``.gz``.
        records: (header, sequence) pairs.
        width: letters per line; 0 writes each sequence on one line.

    Returns:
        The number of records.

    Raises:
        InputError: a header has several lines, a letter is not a nucleotide, or the file cannot be written.
    """
    path, count = Path(path), 0
    with atomic(path) as out:
        writer = writer_for(out, path)
        for header, sequence in records:
            letters = sequence.encode() if isinstance(sequence, str) else sequence
            place = f"record {count + 1}"
            if "\n" in header or "\r" in header:
                raise InputError("the header contains a line break", file=path, place=place)
            require_nucleotides(letters, path, place)
            step = width or max(len(letters), 1)
            lines = [letters[start : start + step] for start in range(0, len(letters), step)]
            writer.write(b"\n".join([b">" + header.encode("utf-8", "surrogateescape"), *lines, b""]))
            count += 1
        writer.finish()
    return count


def bedgraph(contig: str, start: int, values: np.ndarray, decimals: int = 4) -> bytes:
    """Format a bedGraph track; consecutive bases with equal values are one line, bases without a value are omitted.

    Args:
        contig: name of the contig.
        start: position of the first value, 0-based.
        values: one value per base, (L,); NaN if unknown.
        decimals: number of decimals.

    Returns:
        Lines ``contig start end value``, 0-based half-open; empty without values.
    """
    rounded = np.round(np.asarray(values, dtype=np.float64), decimals)
    if not len(rounded):
        return b""
    same = (rounded[1:] == rounded[:-1]) | (np.isnan(rounded[1:]) & np.isnan(rounded[:-1]))
    begins = np.concatenate([[0], np.flatnonzero(~same) + 1])
    ends = np.append(begins[1:], len(rounded))
    rows = zip(begins.tolist(), ends.tolist(), rounded[begins].tolist())
    lines = [f"{contig}\t{start + a}\t{start + b}\t{value:.{decimals}f}\n" for a, b, value in rows if value == value]
    return "".join(lines).encode()
