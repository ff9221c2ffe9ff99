"""Nucleotide letters: which there are, their complements, what a foreign letter hints at, counts of what was read."""

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
"""Ambiguity codes -> the bases that they stand for (Cornish-Bowden 1985)."""
GAPS = "-.*"  # alignment gaps and padding
_UPPER = "ACGTU" + "".join(IUPAC)
NUCLEOTIDES = (_UPPER + _UPPER.lower() + GAPS).encode()
"""Every byte that a sequence may contain."""
PROTEIN = "EFILPQZJOX"  # amino acids whose letters are no nucleotide codes
NAMES = 1_000_000  # names that are remembered to find repeated ones: memory stays bounded on reads
COMPLEMENTS = bytes.maketrans(b"ACGTURYKMSWBDHVNacgturykmswbdhvn", b"TGCAAYRMKSWVHDBNtgcaayrmkswvhdbn")


def reverse_complement(sequence: bytes) -> bytes:
    """The opposite strand, read in its own direction; ambiguity codes and case are kept, U becomes A.

    Args:
        sequence: letters of `NUCLEOTIDES`; other bytes are kept as they are.
    """
    return sequence.translate(COMPLEMENTS)[::-1]


def first_foreign(sequence: bytes) -> int | None:
    """Position of the first byte that is not in `NUCLEOTIDES`; None if there is none.

    Args:
        sequence: letters without line ends.
    """
    foreign = sequence.translate(None, NUCLEOTIDES)
    return sequence.index(foreign[:1]) if foreign else None


def what_is(letter: int) -> str:
    """Description of a foreign byte for an error message: the letter, and what it hints at.

    Args:
        letter: the byte.
    """
    sign = chr(letter)
    expected = "expected A C G T U N or an IUPAC code"
    if sign.upper() in PROTEIN:
        return f"{sign!r} is not a nucleotide but an amino acid: is this protein? {expected}"
    if sign.isascii() and sign.isprintable():
        return f"{sign!r} is not a nucleotide; {expected}"
    return f"byte 0x{letter:02x} is not a nucleotide: binary or damaged file; {expected}"


@dataclass
class Findings:
    """Counts of what was read, to report.

    Attributes:
        records: number of records.
        counts: (256,) number of each byte in the sequences.
        repeated: name -> number of records, of names that occur more than once (among the first million).
        notes: further remarks.
    """

    records: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=np.int64))
    repeated: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _names: set[str] = field(default_factory=set, repr=False)

    def begin(self, name: str) -> None:
        """Count a record.

        Args:
            name: its name.
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
        """Number of letters, ambiguous ones included."""
        return int(self.counts.sum())

    @property
    def lower(self) -> int:
        """Number of letters in lower case."""
        return int(self.counts[ord("a") : ord("z") + 1].sum())

    @property
    def ambiguous(self) -> dict[str, int]:
        """Letter in upper case -> number, of the letters that are not A, C, G, T or U."""
        both = self.counts.copy()
        both[ord("A") : ord("Z") + 1] += both[ord("a") : ord("z") + 1]
        return {sign: int(both[ord(sign)]) for sign in (*IUPAC, *GAPS) if both[ord(sign)]}

    def report(self) -> list[str]:
        """Remarks for the user, one line each."""
        lines = list(self.notes)
        if self.repeated:
            first = next(iter(self.repeated))
            total = sum(self.repeated.values())
            lines.append(f"{total} records share {len(self.repeated)} names (first: {first!r}); rows have an index")
        codes = {sign: count for sign, count in self.ambiguous.items() if sign != "N"}
        if codes:
            listed = ", ".join(f"{sign} {count}" for sign, count in sorted(codes.items(), key=lambda item: -item[1]))
            lines.append(f"ambiguity codes read as N: {listed}")
            if sum(codes.values()) > 0.5 * self.bases > 5:
                lines.append("more than half of all letters are ambiguity codes; is this protein?")
        uracil = int(self.counts[ord("U")] + self.counts[ord("u")])
        if uracil:
            lines.append(f"{uracil} U read as T")
        return lines

    def to_dict(self) -> dict[str, int | Mapping[str, int]]:
        """Plain numbers for a summary."""
        return {"records": self.records, "bases": self.bases, "lower_case": self.lower, "ambiguous": self.ambiguous}


def require_nucleotides(sequence: bytes, file: object, place: str, start: int = 0) -> None:
    """Check that a sequence consists of nucleotide letters.

    Args:
        sequence: letters without line ends.
        file: for the message.
        place: record, or line and column, for the message.
        start: position of the first letter in its record, from 0.

    Raises:
        InputError: a foreign letter; names its position, from 1.
    """
    wrong = first_foreign(sequence)
    if wrong is not None:
        position = f"position {start + wrong + 1}"
        raise InputError(what_is(sequence[wrong]), file=str(file), place=f"{place}, {position}" if place else position)
