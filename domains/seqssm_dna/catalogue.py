"""Tables of the domain: public data sets, their contents, and the baselines. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seqssm.domain import Baseline, DataSet
from seqssm.errors import InputError, nearest

NAME = "dna"


@dataclass(frozen=True)
class GenomeSet:
    """A registered set for language models.

    Attributes:
        fasta: paths of the sequence files in the domain's data folder.
        bed: path of the split file.
    """

    fasta: tuple[str, ...]
    bed: str


@dataclass(frozen=True)
class LabelledSet:
    """A registered set of labelled sequences.

    Attributes:
        source: path of a table, or class -> path of a FASTA file, in the domain's data folder.
        target: ``"class"`` or ``"value"``.
        group: column of the group identifiers.
        positions: first start of the validation split and of the test split, for records named ``chrom:start-end``.
    """

    source: str | Mapping[str, str]
    target: str = "class"
    group: str | None = None
    positions: tuple[int, int] | None = None


GENOMES = {
    "pfalciparum": GenomeSet(
        ("genomes/pfalciparum_mal1_mal3.fa.gz", "genomes/pfalciparum_mal13.fa.gz"), "genomes/splits/pfalciparum.bed"
    ),
    "human_chr20": GenomeSet(
        ("genomes/human_chr20_grch37_3M_9M.fa.gz", "genomes/human_chr20_grch37_50M_51M.fa.gz"),
        "genomes/splits/human_chr20.bed",
    ),
    "ecoli_536": GenomeSet(("genomes/ecoli_536.fa.gz",), "genomes/splits/ecoli_536.bed"),
}
"""Data sets by their names for ``--data.dataset``."""

LABELLED = {
    "ecoli_promoters": LabelledSet(
        {"promoter": "promoters/ecoli_promoter.fa", "other": "promoters/ecoli_non_promoter.fa"}
    ),
    "arabidopsis_tata": LabelledSet(
        {
            "promoter": "promoters/arabidopsis_tata_promoter.fa.gz",
            "other": "promoters/arabidopsis_tata_non_promoter.fa.gz",
        }
    ),
    "splice": LabelledSet("splice/splice_junctions.csv"),
    "ctcf_chr20": LabelledSet(
        {
            "peak": "ctcf_chr20/ctcf_peaks_chr20_hg19.fa",
            "background": "ctcf_chr20/background_gc_matched_chr20_hg19.fa",
        },
        positions=(38_000_000, 45_000_000),
    ),
    "yeast_random": LabelledSet("yeast_expression/random_complex.csv.gz", "value"),
    "yeast_native": LabelledSet("yeast_expression/native_complex.csv.gz", "value", group="gene"),
}
"""Data sets by their names for ``--data.dataset``."""


def registered(sets: Mapping[str, Any], name: str) -> Any:
    """Return a registered data set.

    Args:
        sets: `GENOMES` or `LABELLED`.
        name: name of the data set.

    Raises:
        InputError: no such data set.
    """
    if name not in sets:
        known = ", ".join(sets)
        raise InputError(f"--data.dataset {name}: no such data set{nearest(name, sets)} (known: {known})")
    return sets[name]


_DEBIAN = "Debian package {0}; unchanged sequences, recompressed"
_PROMOTERS = "github.com/solovictor/CNNPromoterData, commit b4d2949 (Umarov and Solovyev 2017)"
_YEAST = "github.com/1edv/evolution, commit bf4a419 (Vaishnav et al. 2022)"
_CTCF = "github.com/const-ae/Neural_Network_DNA_Demo, commit 3404b37"


def _set(name: str, title: str, path: str, licence: str, found: str) -> DataSet:
    return DataSet(name=name, title=title, path=path, url=None, licence=licence, found=found)


DATA_SETS = (
    _set(
        "pfalciparum",
        "P. falciparum MAL1 to MAL3, for training and validation (lower case throughout)",
        "genomes/pfalciparum_mal1_mal3.fa.gz",
        "GPL-3 (package)",
        _DEBIAN.format("smalt-examples 0.7.6-12"),
    ),
    _set(
        "pfalciparum_mal13",
        "P. falciparum MAL13, the test contig of pfalciparum",
        "genomes/pfalciparum_mal13.fa.gz",
        "GPL-3 (package)",
        _DEBIAN.format("smalt-examples 0.7.6-12"),
    ),
    _set(
        "human_chr20",
        "Human chromosome 20, GRCh37, bases 3,000,001 to 9,000,000",
        "genomes/human_chr20_grch37_3M_9M.fa.gz",
        "MIT (package)",
        _DEBIAN.format("vt-examples 0.57721+ds-3"),
    ),
    _set(
        "human_chr20_test",
        "Human chromosome 20, GRCh37, bases 50,000,001 to 51,000,000, the test split of human_chr20",
        "genomes/human_chr20_grch37_50M_51M.fa.gz",
        "MIT (package)",
        _DEBIAN.format("vt-examples 0.57721+ds-3"),
    ),
    _set(
        "ecoli_536",
        "E. coli 536, one chromosome of 4.9 million bases",
        "genomes/ecoli_536.fa.gz",
        "Artistic-2.0 (package)",
        _DEBIAN.format("bowtie-examples 1.3.1-1"),
    ),
    _set(
        "saureus_nctc8325",
        "S. aureus NCTC 8325, the reference of saureus_rn4220",
        "genomes/saureus_nctc8325.fa.gz",
        "GPL-2 (package)",
        _DEBIAN.format("sibelia-examples 3.0.7+dfsg-3"),
    ),
    _set(
        "saureus_rn4220",
        "Variants of S. aureus RN4220 against NCTC 8325",
        "genomes/saureus_rn4220.vcf.gz",
        "GPL-2 (package)",
        _DEBIAN.format("sibelia-examples 3.0.7+dfsg-3"),
    ),
    _set(
        "ecoli_promoters",
        "E. coli sigma-70 promoters, 839 and 3,000 others, 81 nt (a folder of FASTA files)",
        "promoters",
        "none stated",
        _PROMOTERS,
    ),
    _set(
        "arabidopsis_tata",
        "Arabidopsis TATA promoters, 1,497 and 2,879 others, 251 nt (the same folder)",
        "promoters/arabidopsis_tata_promoter.fa.gz",
        "none stated",
        _PROMOTERS,
    ),
    _set(
        "splice",
        "Primate splice junctions: 3,186 sequences of 60 nt, donor, acceptor or neither, split as in StatLog",
        "splice/splice_junctions.csv",
        "CC BY 4.0 (UCI)",
        "UCI splice junctions, from Debian r-cran-mlbench 2.1-3",
    ),
    _set(
        "ctcf_chr20",
        "CTCF peaks on human chromosome 20 and background of equal G+C, 1,112 each of 100 nt (a folder)",
        "ctcf_chr20",
        "MIT",
        _CTCF,
    ),
    _set(
        "yeast_random",
        "Expression of 2,954 random yeast promoters, complex medium",
        "yeast_expression/random_complex.csv.gz",
        "MIT",
        _YEAST,
    ),
    _set(
        "yeast_native",
        "Expression of 3,733 native yeast promoters and variants, complex medium; split by gene",
        "yeast_expression/native_complex.csv.gz",
        "MIT",
        _YEAST,
    ),
)

BASELINES = (
    Baseline("markov", "seqssm_dna.baselines:markov"),
    Baseline("kmers", "seqssm_dna.baselines:kmers"),
)
"""Baselines: functions of `seqssm_dna.baselines` with these names, called with the data module."""
