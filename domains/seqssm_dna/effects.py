"""Effects of variants: both alleles in windows of equal length, on one strand or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqssm_dna.scoring import Scorer
from seqssm_dna.sources import Reader
from seqssm_dna.tokens import known_ends, reverse_complement_ids
from seqssm_dna.variants import Allele, allele_window


@dataclass
class Pair:
    """The windows of a variant's alleles.

    Attributes:
        allele: the allele as in the file.
        start, end: REF's window on the contig, 0-based half-open.
        ref, alt: token ids of the windows, (L,) uint8, of equal length.
        offset: offset of the alleles in both windows.
    """

    allele: Allele
    start: int = 0
    end: int = 0
    ref: np.ndarray | None = None
    alt: np.ndarray | None = None
    offset: int = 0

    def load(self, reader: Reader, reference: Path, window: int) -> None:
        """Read the windows; with `Reader.trim_n` without N at both ends.

        Args:
            reader: reader of the reference.
            reference: path of the reference.
            window: length of the windows, letters; shorter at the ends of a contig.
        """
        found = allele_window(reader.genome(reference), self.allele, window)
        self.start, self.end, self.offset = found.start, found.end, found.offset
        self.ref, self.alt = reader.ids(found.ref), reader.ids(found.alt)
        if reader.trim_n:
            ends = [known_ends(ids) for ids in (self.ref, self.alt)]
            first, last = min(one[0] for one in ends), max(one[1] for one in ends)
            self.ref, self.alt = self.ref[first:last], self.alt[first:last]
            self.start, self.end, self.offset = self.start + first, self.start + last, self.offset - first


@dataclass(frozen=True)
class Effect:
    """Log-likelihoods of a variant's alleles over their windows, nats.

    Attributes:
        ref, alt: log-likelihoods by strand, (S,): forward, and reverse if both are read.
        letters: number of letters that they sum over.
    """

    ref: np.ndarray
    alt: np.ndarray
    letters: int

    @property
    def llr(self) -> np.ndarray:
        """Difference alt - ref by strand, (S,)."""
        return self.alt - self.ref


def effects(scorer: Scorer, pairs: Sequence[Pair], both: bool) -> list[Effect]:
    """Compute the log-likelihoods of the alleles of variants.

    Variants with the same REF window (ALT alleles of a line, all substitutions of a base) share its computation.

    Args:
        scorer: scorer of a language model.
        pairs: alleles with their windows.
        both: whether to score the reverse complements too.
    """
    groups: dict[Any, list[int]] = {}
    for number, pair in enumerate(pairs):
        assert pair.ref is not None
        groups.setdefault((pair.allele.contig, pair.start, pair.allele.start, pair.ref.tobytes()), []).append(number)
    tables = [[pairs[own[0]].ref, *(pairs[k].alt for k in own)] for own in groups.values()]
    strands = [scorer.alternatives(tables)]  # type: ignore[arg-type]
    if both:
        turned = [[reverse_complement_ids(ids) for ids in table] for table in tables]  # type: ignore[arg-type]
        strands.append(scorer.alternatives(turned))
    found: list[Effect | None] = [None] * len(pairs)
    for group, own in enumerate(groups.values()):
        for place, number in enumerate(own):
            ref, alt = np.array([values[group][place] for values in strands]).T
            found[number] = Effect(ref, alt, scorer.counted(pairs[number].ref, pairs[number].alt))  # type: ignore[arg-type]
    return found  # type: ignore[return-value]
