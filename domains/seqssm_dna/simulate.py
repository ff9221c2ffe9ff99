"""Simulated genomes, promoters and variants with known truth: a Markov chain, repeats, motifs at known positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from seqssm.files.disk import atomic
from seqssm_dna.files import write_fasta
from seqssm_dna.letters import BASES, reverse_complement

ORDER, SPREAD = 3, 0.8  # context of the chain, bases; Dirichlet parameter of its rows, lower is more predictable
FAMILIES, COPY, MUTATED = 3, 150, 0.04  # number of repeat families; length, letters; fraction of substituted letters
SPACING = 1_500  # mean distance between repeats, letters
BOXES = ("TTGACA", "TATAAT")  # -35 and -10 boxes of bacterial promoters
CONSERVED = 0.9  # probability of each letter of a box
GAP, BEHIND = (16, 18), 7  # minimum and maximum distance of the boxes; letters from the second box to the start site
VCF_HEAD = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@dataclass(frozen=True)
class Chain:
    """A Markov chain over A, C, G, T, not symmetric in the strands.

    Attributes:
        rows: probability of the next base after each context, (4^order, 4); the index has the bases as digits in base
            4.
    """

    rows: np.ndarray

    @classmethod
    def random(cls, seed: int, order: int = ORDER, spread: float = SPREAD) -> Chain:
        """Create a chain with random rows.

        Args:
            seed: random seed.
            order: context length, bases.
            spread: Dirichlet parameter of the rows.
        """
        rows = np.random.default_rng(seed).dirichlet(np.full(4, spread), 4**order)
        return cls((rows + 0.01) / 1.04)

    @property
    def order(self) -> int:
        """Context length, bases."""
        return round(np.log(len(self.rows)) / np.log(4))

    @property
    def bits(self) -> float:
        """Entropy rate, bits per base: the lower bound for any model of the chain's sequences."""
        contexts = np.full(len(self.rows), 1 / len(self.rows))
        for _ in range(200):  # converges to the stationary distribution
            contexts = (contexts[:, None] * self.rows).reshape(4, -1).sum(0)
        return float(-(contexts[:, None] * self.rows * np.log2(self.rows)).sum())

    def sample(self, length: int, random: np.random.Generator) -> str:
        """Sample a sequence.

        Args:
            length: number of bases.
            random: random number generator.
        """
        reached = self.rows.cumsum(1)[:, :3].tolist()
        size, context = len(self.rows), int(random.integers(len(self.rows)))
        codes = []
        for draw in random.random(length).tolist():
            low, middle, high = reached[context]
            code = (0 if draw < low else 1) if draw < middle else (2 if draw < high else 3)
            codes.append(code)
            context = (4 * context + code) % size
        return "".join(BASES[code] for code in codes)

    def log_likelihood(self, sequence: str) -> float:
        """Return the log-probability of a sequence after its first `order` bases, nats.

        Args:
            sequence: letters A, C, G, T.
        """
        codes = [BASES.index(letter) for letter in sequence]
        context, total = 0, 0.0
        for place, code in enumerate(codes):
            if place >= self.order:
                total += float(np.log(self.rows[context, code]))
            context = (4 * context + code) % len(self.rows)
        return total


@dataclass
class Made:
    """A simulated genome.

    Attributes:
        contigs: letters of each contig by name.
        chain: Markov chain of the sequence between the repeats.
        features: (contig, start, end, name, strand) of the repeats, 0-based half-open.
    """

    contigs: dict[str, str]
    chain: Chain
    features: list[tuple[str, int, int, str, str]] = field(default_factory=list)


def genome(names: Sequence[str] = ("chr1", "chr2", "chr3"), length: int = 60_000, seed: int = 0) -> Made:
    """Simulate a genome.

    A Markov chain is interrupted by mutated copies of a few repeat families on both strands, and by tandem repeats of
    two or three bases.

    Args:
        names: names of the contigs.
        length: length of each contig.
        seed: random seed.
    """
    random = np.random.default_rng(seed)
    made = Made({}, Chain.random(seed))
    families = [made.chain.sample(COPY, random) for _ in range(FAMILIES)]
    for name in names:
        parts: list[str] = []
        done = 0
        while done < length:
            between = made.chain.sample(int(random.integers(SPACING // 2, 3 * SPACING // 2)), random)
            parts.append(between)
            done += len(between)
            family = int(random.integers(FAMILIES + 1))
            strand = "+-"[int(random.integers(2))]
            if family == FAMILIES:
                unit = "".join(random.choice(list(BASES), int(random.integers(2, 4))))
                copy, label, strand = unit * int(random.integers(20, 40)), f"({unit})n", "+"
            else:
                copy, label = mutated(families[family], MUTATED, random), f"family{family + 1}"
                copy = reverse_complement(copy.encode()).decode() if strand == "-" else copy
            if done + len(copy) <= length:
                made.features.append((name, done, done + len(copy), label, strand))
            parts.append(copy)
            done += len(copy)
        made.contigs[name] = "".join(parts)[:length]
    return made


def mutated(sequence: str, fraction: float, random: np.random.Generator) -> str:
    """Replace random letters of a sequence.

    Args:
        sequence: letters A, C, G, T.
        fraction: fraction of replaced letters.
        random: random number generator.
    """
    codes = np.array([BASES.index(letter) for letter in sequence])
    change = random.random(len(codes)) < fraction
    codes[change] = (codes[change] + random.integers(1, 4, int(change.sum()))) % 4
    return "".join(BASES[code] for code in codes)


def promoters(count: int, seed: int = 0, length: int = 80) -> pd.DataFrame:
    """Simulate sequences with and without a promoter.

    A promoter has two boxes at a distance of 16 to 18 letters, and its start site is 20 letters before the end. The
    other sequences have the letters of the boxes in random order at the same positions.

    Args:
        count: number of sequences, half of them promoters.
        seed: random seed.
        length: length of the sequences, at least 64 letters.

    Returns:
        Columns ``sequence, label``, and ``box35``, ``box10``, the 0-based positions of the boxes.
    """
    random = np.random.default_rng(seed)
    chain = Chain.random(seed + 1, order=1, spread=8.0)  # nearly uniform
    rows = []
    for number in range(count):
        sequence = chain.sample(length, random)
        gap = int(random.integers(GAP[0], GAP[1] + 1))
        ten = length - 20 - BEHIND - len(BOXES[1])
        boxes = [mutated(box, 1 - CONSERVED, random) for box in BOXES]
        positive = number % 2 == 0
        thirty_five = ten - gap - len(BOXES[0])
        if not positive:
            boxes = ["".join(random.permutation(list(box))) for box in boxes]
        for place, box in ((thirty_five, boxes[0]), (ten, boxes[1])):
            sequence = sequence[:place] + box + sequence[place + len(box) :]
        rows.append((sequence, "promoter" if positive else "other", thirty_five, ten))
    return pd.DataFrame(rows, columns=["sequence", "label", "box35", "box10"])


def variants(made: Made, contig: str, count: int, seed: int = 0) -> pd.DataFrame:
    """Simulate single-base changes, insertions and deletions of a contig outside the repeats, with their true effects.

    Args:
        made: simulated genome.
        contig: name of the contig.
        count: number of variants.
        seed: random seed.

    Returns:
        Columns ``chrom, pos, ref, alt`` (as in VCF), ``true_llr``: log-likelihood ratio of the allele under the chain
        over the bases whose context contains it, and as many bases after an insertion or deletion.
    """
    random = np.random.default_rng(seed)
    sequence, order = made.contigs[contig], made.chain.order
    near = np.zeros(len(sequence), dtype=bool)
    near[:50] = near[-100:] = True
    for name, start, end, _, _ in made.features:
        if name == contig:
            near[max(start - 50, 0) : end + 50] = True
    rows = []
    for number, place in enumerate(sorted(random.choice(np.flatnonzero(~near), count, replace=False).tolist())):
        ref, alt = sequence[place], ""
        if number % 10 == 8:
            alt = ref + "".join(random.choice(list(BASES), 2))
        elif number % 10 == 9:
            ref, alt = sequence[place : place + 3], sequence[place]
        else:
            alt = BASES[(BASES.index(ref) + int(random.integers(1, 4))) % 4]
        left, after = sequence[place - order : place], sequence[place + len(ref) :]
        width = max(len(ref), len(alt)) + order
        both = [made.chain.log_likelihood(left + (one + after)[:width]) for one in (ref, alt)]
        rows.append((contig, place + 1, ref, alt, both[1] - both[0]))
    return pd.DataFrame(rows, columns=["chrom", "pos", "ref", "alt", "true_llr"])


def write_vcf(path: Path, found: pd.DataFrame, extra: Sequence[str] = ()) -> Path:
    """Write variants as a VCF file.

    Args:
        path: path of the file.
        found: result of `variants`.
        extra: additional lines, without line ends.
    """
    rows = zip(found.chrom, found.pos, found.ref, found.alt)
    lines = [f"{chrom}\t{pos}\tv{k}\t{ref}\t{alt}\t.\t.\t." for k, (chrom, pos, ref, alt) in enumerate(rows, 1)]
    with atomic(path, "w") as file:
        file.write(VCF_HEAD + "".join(f"{line}\n" for line in [*lines, *extra]))
    return path


def folder(path: Path, seed: int = 0, length: int = 60_000, labelled: int = 400, alleles: int = 100) -> Made:
    """Write a simulated data set.

    The files are ``genome.fa``, ``splits.bed`` (first contigs train, then validation and test), ``repeats.bed``,
    ``promoters.csv`` and ``calls.vcf`` (of the test contig).

    Args:
        path: output folder.
        seed: random seed.
        length: length of each of the four contigs.
        labelled: number of labelled sequences.
        alleles: number of variants.
    """
    path.mkdir(parents=True, exist_ok=True)
    names = ("chr1", "chr2", "chr3", "chr4")
    made = genome(names, length, seed)
    write_fasta(path / "genome.fa", [(f"{name} simulated", letters) for name, letters in made.contigs.items()])
    splits = zip(names, ("train", "train", "valid", "test"))
    beds = {
        "splits.bed": [f"{name}\t0\t{length}\t{split}\n" for name, split in splits],
        "repeats.bed": [f"{c}\t{start}\t{end}\t{name}\t0\t{strand}\n" for c, start, end, name, strand in made.features],
    }
    for name, lines in beds.items():
        with atomic(path / name, "w") as file:
            file.write("".join(lines))
    with atomic(path / "promoters.csv", "w") as file:
        promoters(labelled, seed)[["sequence", "label"]].to_csv(file, index=False, lineterminator="\n")
    write_vcf(path / "calls.vcf", variants(made, names[-1], alleles, seed))
    return made
