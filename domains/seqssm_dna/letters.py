"""Nucleotide letters: the alphabet, complements, messages about invalid letters, and counts for reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from seqssm.errors import InputError

BASES = "ACGT"
IUPAC = {
    "R": "AG", "Y": "CT", "K": "GT", "M": "AC", "S": "CG", "W": "AT",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip
"""Bases represented by each ambiguity code (Cornish-Bowden 1985)."""
GAPS = "-.*"  # alignment gaps and padding
_UPPER = "ACGTU" + "".join(IUPAC)
NUCLEOTIDES = (_UPPER + _UPPER.lower() + GAPS).encode()
"""Every byte that a sequence may contain."""
PROTEIN = "EFILPQZJOX"  # amino acids whose letters are not nucleotide codes
NAMES = 1_000_000  # maximum number of names kept to find duplicates; bounds memory for reads
COMPLEMENTS = bytes.maketrans(b"ACGTURYKMSWBDHVNacgturykmswbdhvn", b"TGCAAYRMKSWVHDBNtgcaayrmkswvhdbn")


def reverse_complement(sequence: bytes) -> bytes:
    """Return the reverse complement; ambiguity codes and case are kept, U becomes A.

    Args:
        sequence: letters of `NUCLEOTIDES`; other bytes are kept unchanged.
    """
    return sequence.translate(COMPLEMENTS)[::-1]


def first_foreign(sequence: bytes) -> int | None:
    """Return the position of the first byte that is not in `NUCLEOTIDES`; None if there is none.

    Args:
        sequence: letters without line ends.
    """
    foreign = sequence.translate(None, NUCLEOTIDES)
    return sequence.index(foreign[:1]) if foreign else None


def what_is(letter: int) -> str:
    """Describe an invalid byte and its probable cause for an error message.

    Args:
        letter: the byte.
    """
    sign = chr(letter)
    expected = "expected A C G T U N or an IUPAC code"
    if sign.upper() in PROTEIN:
        return f"{sign!r} is not a nucleotide but an amino acid: is this protein? {expected}"
    if sign.isascii() and sign.isprintable():
        return f"{sign!r} is not a nucleotide; {expected}"
    return f"byte 0x{letter:02x} is not a nucleotide: binary or corrupt file; {expected}"


@dataclass
class Findings:
    """Counts of records and letters, for reports.

    Attributes:
        records: number of records.
        counts: number of occurrences of each byte in the sequences, (256,).
        repeated: number of records by name, for duplicate names (among the first million).
        notes: further messages.
    """

    records: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    repeated: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _names: set[str] = field(default_factory=set, repr=False)

    def begin(self, name: str) -> None:
        """Count a record.

        Args:
            name: name of the record.
        """
        self.records += 1
        if name in self._names:
            self.repeated[name] = self.repeated.get(name, 1) + 1
        elif len(self._names) < NAMES:
            self._names.add(name)

    def add(self, sequence: bytes) -> None:
        """Count letters.

        Args:
            sequence: letters as in the file.
        """
        self.counts += np.bincount(np.frombuffer(sequence, dtype=np.uint8), minlength=256)

    @property
    def bases(self) -> int:
        """Number of letters, including ambiguous ones."""
        return int(self.counts.sum())

    @property
    def lower(self) -> int:
        """Number of letters in lower case."""
        return int(self.counts[ord("a") : ord("z") + 1].sum())

    @property
    def ambiguous(self) -> dict[str, int]:
        """Counts by upper-case letter, for letters other than A, C, G, T and U."""
        both = self.counts.copy()
        both[ord("A") : ord("Z") + 1] += both[ord("a") : ord("z") + 1]
        return {sign: int(both[ord(sign)]) for sign in (*IUPAC, *GAPS) if both[ord(sign)]}

    def report(self) -> list[str]:
        """Return messages for the user, one line each."""
        lines = list(self.notes)
        if self.repeated:
            first = next(iter(self.repeated))
            total = sum(self.repeated.values())
            lines.append(
                f"{total} records share {len(self.repeated)} names (first: {first!r}); the index column identifies them"
            )
        codes = {sign: count for sign, count in self.ambiguous.items() if sign != "N"}
        if codes:
            listed = ", ".join(f"{sign} {count}" for sign, count in sorted(codes.items(), key=lambda item: -item[1]))
            lines.append(f"ambiguity codes read as N: {listed}")
            if sum(codes.values()) > 0.5 * self.bases > 5:
                lines.append("more than half of the letters are ambiguity codes; is this protein?")
        uracil = int(self.counts[ord("U")] + self.counts[ord("u")])
        if uracil:
            lines.append(f"{uracil} U read as T")
        return lines

    def to_dict(self) -> dict[str, int | Mapping[str, int]]:
        """Return the counts as plain numbers for a summary."""
        return {"records": self.records, "bases": self.bases, "lower_case": self.lower, "ambiguous": self.ambiguous}


def require_nucleotides(sequence: bytes, file: object, place: str, start: int = 0) -> None:
    """Check that a sequence consists of nucleotide letters.

    Args:
        sequence: letters without line ends.
        file: path used in error messages.
        place: record, or line and column, used in error messages.
        start: position of the first letter in its record, from 0.

    Raises:
        InputError: a letter is not a nucleotide; the message has its position, from 1.
    """
    wrong = first_foreign(sequence)
    if wrong is not None:
        position = f"position {start + wrong + 1}"
        raise InputError(what_is(sequence[wrong]), file=str(file), place=f"{place}, {position}" if place else position)
