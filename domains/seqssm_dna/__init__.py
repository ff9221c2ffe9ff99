"""DNA: sequences, intervals, variants and labels from users' files, tokens, k-mer baselines and scores."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_LAZY = {
    "Genome": "seqssm_dna.genome",
    "KmerLinear": "seqssm_dna.linear",
    "MarkovModel": "seqssm_dna.kmers",
    "Variants": "seqssm_dna.variants",
    "Vocabulary": "seqssm_dna.tokens",
    "open_genome": "seqssm_dna.genomes",
    "read_bed": "seqssm_dna.intervals",
    "read_labelled": "seqssm_dna.labelled",
    "read_records": "seqssm_dna.records",
    "stream_pieces": "seqssm_dna.records",
}

__all__ = [
    "Genome",
    "KmerLinear",
    "MarkovModel",
    "Variants",
    "Vocabulary",
    "open_genome",
    "read_bed",
    "read_labelled",
    "read_records",
    "stream_pieces",
]


def __getattr__(name: str) -> Any:
    """Import the named object on first use: this module stays free of NumPy."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'seqssm_dna' has no attribute {name!r}")
