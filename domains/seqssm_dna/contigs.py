"""Contig names: the same chromosome under the names of UCSC, Ensembl and NCBI, and regions as text."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from seqssm.errors import InputError, nearest

HUMAN = {f"NC_{number:06d}": str(number) for number in range(1, 23)}
HUMAN |= {"NC_000023": "X", "NC_000024": "Y", "NC_012920": "MT"}
"""RefSeq accessions of the human chromosomes, without version; for other species, FASTA headers are searched."""
MITOCHONDRIA = {"M", "MT"}


@dataclass
class Contigs:
    """The contigs of a FASTA file, which can be looked up under other naming schemes.

    Attributes:
        names: names of the records, in file order; not necessarily unique.
        descriptions: headers of the records, which are searched for chromosome names.
        aliases: mapping from requested names to names in the FASTA file, where they differ; filled by `find`.
    """

    names: Sequence[str]
    descriptions: Sequence[str] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    _known: dict[str, int | str] = field(default_factory=dict, repr=False)
    _tables: dict[int, dict[str, list[int]]] = field(default_factory=dict, repr=False)

    def find(self, name: str) -> int:
        """Return the index of the record for a contig name.

        The following are tried in this order: the exact name; ``chr`` added or removed (and M for MT); accessions
        without version, a field of a ``|`` header, a chromosome number in the description, and the RefSeq accessions of
        human chromosomes. A match must be unique.

        Args:
            name: contig name in a BED or VCF file.

        Raises:
            InputError: no record or several records match; the message has no file.
        """
        if name not in self._known:
            self._known[name] = self._search(name)
        found = self._known[name]
        if isinstance(found, str):
            raise InputError(found)
        return found

    def _search(self, name: str) -> int | str:
        for step, keys in enumerate(_steps(name)):
            table = self._table(step)
            matches = sorted({record for key in keys for record in table.get(key, ())})
            if len(matches) == 1:
                found = matches[0]
                if self.names[found] != name:
                    self.aliases[name] = self.names[found]
                return found
            if matches:
                listed = ", ".join(f"{record + 1} {self.names[record]!r}" for record in matches[:5])
                return f"contig {name!r} matches several records of the FASTA file: {listed}"
        listed = ", ".join(repr(one) for one in self.names[:8]) + (", ..." if len(self.names) > 8 else "")
        return f"no contig {name!r} in the FASTA file, which has {listed}{nearest(name, self.names)}"

    def _table(self, step: int) -> dict[str, list[int]]:
        """Return a mapping from keys to records for a step of `_steps`; built when the earlier steps have no match."""
        if step not in self._tables:
            table: dict[str, list[int]] = {}
            for record, name in enumerate(self.names):
                description = self.descriptions[record] if record < len(self.descriptions) else ""
                for key in _keys(step, name, description):
                    table.setdefault(key, []).append(record)
            self._tables[step] = table
        return self._tables[step]


def _keys(step: int, name: str, description: str) -> set[str]:
    """Return the keys of a record in a step of `_steps`."""
    if step == 0:
        return {name}
    if step == 1:
        return {_plain(name)}
    return _accessions(name) if step == 2 else _chromosomes(name, description)


def _steps(name: str) -> list[set[str]]:
    """Return the keys to look up, from the strictest to the loosest match."""
    accessions = _accessions(name)
    chromosomes = {_plain(name)} | {HUMAN[one] for one in accessions if one in HUMAN}
    return [{name}, {_plain(name)}, accessions, chromosomes]


def _plain(name: str) -> str:
    """Remove ``chr`` from a chromosome name; ``"chrM"`` becomes ``"MT"``."""
    plain = re.sub(r"^chr(omosome)?_?", "", name, flags=re.IGNORECASE)
    return "MT" if plain.upper() in MITOCHONDRIA else plain.upper() if plain.upper() in ("X", "Y") else plain


def _accessions(name: str) -> set[str]:
    """Return the fields of a ``|`` header, with and without version."""
    fields = {part for part in name.split("|") if len(part) > 3 or part == name}
    return fields | {re.sub(r"\.\d+$", "", part) for part in fields}


def _chromosomes(name: str, description: str) -> set[str]:
    """Return the chromosome named in a header of NCBI, EMBL or Ensembl, or that of a human accession."""
    found = {_plain(name)} | {HUMAN[one] for one in _accessions(name) if one in HUMAN}
    words = re.search(r"\bchromosome:? +([0-9]{1,2}|[IVX]+|[XYZW]|MT?)\b(?=,| |$)", description)
    if words and not re.search(r"\b(unplaced|unlocalized|alternate|patch|scaffold)\b", description, re.IGNORECASE):
        found.add(_plain(words[1]))
    if re.search(r"\bmitochondrion\b", description):
        found.add("MT")
    return found


def parse_region(text: str, contigs: Contigs, lengths: Mapping[int, int] | Sequence[int]) -> tuple[int, int, int]:
    """Parse a region: ``chr7``, ``chr7:1000-2000`` (1-based, inclusive) or ``chr7:1,000-2,000``.

    Record names take precedence, because they may contain ``:`` and ``-``.

    Args:
        text: the region.
        contigs: contigs of the FASTA file.
        lengths: lengths of the records, letters.

    Returns:
        (record, start, end), 0-based half-open.

    Raises:
        InputError: there is no such contig, or the region is outside of it.
    """
    match = None if text in contigs.names else re.fullmatch(r"(.+):([\d,]+)(?:-([\d,]+))?", text)
    if match is None:
        record = contigs.find(text)
        return record, 0, lengths[record]
    try:
        record = contigs.find(match[1])
    except InputError:
        with contextlib.suppress(InputError):
            record = contigs.find(text)  # another name of a record whose name ends like a region
            return record, 0, lengths[record]
        raise
    start = int(match[2].replace(",", "") or 0)
    end = int((match[3] or match[2]).replace(",", "") or 0)
    if not 1 <= start <= end <= lengths[record]:
        size = lengths[record]
        raise InputError(
            f"region {text}: expected 1 <= start <= end <= {size}, the length of {contigs.names[record]!r}"
        )
    return record, start - 1, end
