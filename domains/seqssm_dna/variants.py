"""Alleles of a VCF file: checks against the genome, a status per allele, and windows of equal length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqssm.errors import InputError, Status
from seqssm_dna.genome import Genome
from seqssm_dna.letters import BASES, IUPAC
from seqssm_dna.vcf import VcfLine, read_vcf

STATUSES = {
    status.value: status.meaning
    for status in (
        Status.OK,
        Status.SYMBOLIC_ALLELE,
        Status.REFERENCE_BLOCK,
        Status.NO_ALTERNATE,
        Status.INVALID_ALLELE,
        Status.UNKNOWN_CONTIG,
        Status.BEYOND_END,
        Status.REF_MISMATCH,
        Status.TOO_LONG,
    )
}
"""Meaning of each status of an allele."""
BLOCKS = ("<NON_REF>", "<*>")
SHOWN = 20  # maximum number of letters of an allele in a reason
EXAMINED = 2000  # maximum number of mismatches examined for a common cause
_BITS = np.zeros(256, dtype=np.uint8)
for _sign, _means in {**{base: base for base in BASES}, **IUPAC, "U": "T"}.items():
    _BITS[[ord(_sign), ord(_sign.lower())]] = sum(1 << BASES.index(base) for base in _means)
_IS_BASE = np.isin(_BITS, [1, 2, 4, 8])


@dataclass(frozen=True)
class Allele:
    """One ALT allele of a variant line, or the line itself if it has none.

    Attributes:
        index: index of the row, from 0.
        record: index of the variant line.
        line: line number in the file.
        number: number of the allele in its line, from 1; 0 if the line has none.
        chrom, id, ref, alt: fields as in the file.
        pos: 1-based position of REF's first letter.
        contig: index of the contig in the genome; -1 if unknown.
        status: one of `STATUSES`.
        reason: description of the problem; empty for ``ok``.
    """

    index: int
    record: int
    line: int
    number: int
    chrom: str
    pos: int
    id: str
    ref: str
    alt: str
    contig: int
    status: str
    reason: str = ""

    @property
    def start(self) -> int:
        """0-based position of REF's first letter."""
        return self.pos - 1


@dataclass(frozen=True)
class AlleleWindow:
    """The windows of both alleles, which start at the same position and have equal length.

    Attributes:
        start: 0-based position of the first letter on the contig.
        end: position on the contig after REF's window.
        ref, alt: letters of the windows; those of the allele in upper case, the others as in the file.
        offset: offset of the alleles in both windows.
    """

    start: int
    end: int
    ref: bytes
    alt: bytes
    offset: int


class Variants:
    """The alleles of a VCF file in file order, one row each, checked against a genome during reading.

    Args:
        path: path of the file, plain, gzip or BGZF.
        genome: reference sequence.
        window: length of the windows in which alleles are scored.

    Attributes:
        counts: number of rows read so far, by status.

    Raises:
        InputError: during reading: the file is not VCF, or a line is malformed.
    """

    def __init__(self, path: str | Path, genome: Genome, window: int) -> None:
        if window < 1:
            raise InputError(f"window of {window} letters: expected at least 1")
        self.path, self.genome, self.window = Path(path), genome, window
        self.counts: dict[str, int] = dict.fromkeys(STATUSES, 0)
        self._causes = {"one before": 0, "one behind": 0, "swapped": 0, "examined": 0}

    def __iter__(self) -> Iterator[Allele]:
        self.counts = dict.fromkeys(STATUSES, 0)
        self._causes = dict.fromkeys(self._causes, 0)
        index = 0
        for line in read_vcf(self.path):
            for number, alt in enumerate(line.alts, 1) if line.alts else [(0, ".")]:
                contig, status, reason = self._check(line, alt, number)
                self.counts[status] += 1
                yield Allele(
                    index, line.record, line.line, number, line.chrom, line.pos, line.id, line.ref, alt, contig,
                    status, reason,
                )  # fmt: skip
                index += 1

    def report(self) -> list[str]:
        """Return messages after reading: aliases, rows by status, a common cause of mismatches."""
        lines = [f"contig {name} read as {other}" for name, other in self.genome.contigs.aliases.items()]
        bad = {status: count for status, count in self.counts.items() if count and status != "ok"}
        lines += [f"{count} alleles {status}: {STATUSES[status]}" for status, count in bad.items()]
        examined = self._causes["examined"]
        known = self.counts["ok"] + self.counts["ref_mismatch"]
        if examined and self.counts["ref_mismatch"] > max(1, 0.1 * known):
            hint = "is the FASTA file of the same genome build?"
            if max(self._causes["one before"], self._causes["one behind"]) > 0.8 * examined:
                hint = "positions look shifted by one (0-based?)"
            elif self._causes["swapped"] > 0.8 * examined:
                hint = "REF and ALT look swapped"
            lines.append(f"{self.counts['ref_mismatch']} of {known} REF alleles disagree with the FASTA file: {hint}")
        return lines

    def _check(self, line: VcfLine, alt: str, number: int) -> tuple[int, str, str]:
        """Return (contig, status, reason) of an allele."""
        kind = _kind(line.ref, alt, number)
        try:
            contig = self.genome.find(line.chrom)
        except InputError as error:
            return (-1, *kind) if kind is not None else (-1, "unknown_contig", error.message)
        if kind is not None:
            return contig, *kind
        start, end, size = line.pos - 1, line.pos - 1 + len(line.ref), self.genome.lengths[contig]
        if start < 0 or end > size:
            return contig, "beyond_end", f"REF covers {line.pos} to {end} of {line.chrom!r}, which has {size} letters"
        found = self.genome.fetch(contig, start, end)
        if not _agree(line.ref, found):
            self._examine(line, alt, contig, start, end)
            there = found.decode().upper()
            return contig, "ref_mismatch", f"REF is {_short(line.ref)}, the FASTA file has {_short(there)}"
        if _placed(start, len(line.ref), len(alt), size, self.window) is None:
            longest = max(len(line.ref), len(alt))
            why = f"an allele of {longest} letters does not fit into a window of {self.window}"
            if longest <= self.window:
                why = f"too close to the contig's end for windows of equal length ({size - end} letters after REF)"
            return contig, "too_long", why
        return contig, "ok", ""

    def _examine(self, line: VcfLine, alt: str, contig: int, start: int, end: int) -> None:
        """Count possible causes of a mismatch."""
        if self._causes["examined"] == EXAMINED:
            return
        self._causes["examined"] += 1
        size = self.genome.lengths[contig]
        shifts = {"one before": (start - 1, end - 1, line.ref), "one behind": (start + 1, end + 1, line.ref)}
        shifts["swapped"] = (start, start + len(alt), alt)
        for cause, (low, high, letters) in shifts.items():
            if low >= 0 and high <= size and _agree(letters, self.genome.fetch(contig, low, high)):
                self._causes[cause] += 1

    def windows(self, allele: Allele) -> AlleleWindow:
        """Return the windows of an allele's REF and ALT.

        Both start at the same position and have equal length; for insertions and deletions, their ends on the contig
        differ. The variant is in the middle, unless it is near the end of the contig.

        Args:
            allele: allele with status ``ok``.
        """
        return allele_window(self.genome, allele, self.window)


def allele_window(genome: Genome, allele: Allele, size: int) -> AlleleWindow:
    """Return the windows of an allele's REF and ALT, which have the same start and equal length.

    Args:
        genome: reference sequence.
        allele: allele with status ``ok``.
        size: requested length; both windows may be shorter at the ends of a contig.

    Raises:
        InputError: the alleles do not fit.
    """
    r, a, length = len(allele.ref), len(allele.alt), genome.lengths[allele.contig]
    placed = _placed(allele.start, r, a, length, size)
    if placed is None:
        place = f"{allele.chrom}:{allele.pos}"
        raise InputError(f"alleles of {r} and {a} letters do not fit into windows of {size}", place=place)
    start, width = placed
    left = genome.fetch(allele.contig, start, allele.start)
    after = allele.start + r
    right = genome.fetch(allele.contig, after, after + max(width - len(left) - min(r, a), 0))
    windows = [(left + one.upper().encode() + right)[:width] for one in (allele.ref, allele.alt)]
    return AlleleWindow(start, start + width, windows[0], windows[1], len(left))


def _placed(start: int, r: int, a: int, length: int, size: int) -> tuple[int, int] | None:
    """Return (first position, length) of the windows around alleles of `r` and `a` letters; None if there are none.

    The contig has `length` letters with REF and length + a - r with ALT: both windows must lie inside.
    """
    shorter = min(length, length + a - r)
    width, longest = min(size, shorter), max(r, a)
    if longest > width:
        return None
    first = min(max(start - (width - longest) // 2, 0), shorter - width)
    return (first, width) if start + longest <= first + width and first <= start else None


def trimmed(pos: int, ref: str, alt: str) -> tuple[int, str, str]:
    """Trim the letters that both alleles share at their ends, but keep at least one letter of each.

    Args:
        pos: position of the variant, 1-based.
        ref: reference allele.
        alt: alternate allele.

    Returns:
        (pos, ref, alt).
    """
    while len(ref) > 1 and len(alt) > 1 and ref[-1].upper() == alt[-1].upper():
        ref, alt = ref[:-1], alt[:-1]
    while len(ref) > 1 and len(alt) > 1 and ref[0].upper() == alt[0].upper():
        pos, ref, alt = pos + 1, ref[1:], alt[1:]
    return pos, ref, alt


def _kind(ref: str, alt: str, number: int) -> tuple[str, str] | None:
    """Return (status, reason) of an allele without a sequence; None if both alleles have one."""
    if number == 0:
        return "no_alternate", "ALT is ."
    if alt in BLOCKS:
        return "reference_block", f"ALT is {alt}"
    if alt == "*":
        return "symbolic_allele", "ALT is *: removed by a deletion of another line"
    if alt.startswith(("<", ".")) or "[" in alt or "]" in alt or alt.endswith("."):
        return "symbolic_allele", f"ALT is {_short(alt)}, which has no sequence"
    for name, allele in (("REF", ref), ("ALT", alt)):
        signs = np.frombuffer(allele.encode("latin-1", "replace"), dtype=np.uint8)
        if not _IS_BASE[signs].any() or not _BITS[signs].all():  # a long allele with a few N can be scored
            return "invalid_allele", f"{name} is {_short(allele)!r}; expected letters A, C, G, T"
    if ref.upper() == alt.upper():
        return "invalid_allele", "REF and ALT are equal"
    return None


def _agree(allele: str, found: bytes) -> bool:
    """Return whether an allele matches the genome; ambiguity codes match each of their bases."""
    a, b = (np.frombuffer(letters, dtype=np.uint8) for letters in (allele.encode("latin-1", "replace"), found))
    return len(a) == len(b) and bool((_BITS[a] & _BITS[b]).all())


def _short(allele: str) -> str:
    return allele if len(allele) <= SHOWN else f"{allele[:SHOWN]}... ({len(allele)} letters)"
