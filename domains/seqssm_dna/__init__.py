"""DNA: language models of genomes, labels of sequences, variants and designed sequences, from FASTA (HybriDNA)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from seqssm.domain import Added, Domain, Effect, OfDataSet
from seqssm_dna.catalogue import BASELINES, DATA_SETS, NAME
from seqssm_dna.options import COMMANDS, PREDICT_OPTIONS

ATTENTION = ("model.attn_period", "model.mixer attention")
_LAZY = {
    "CausalPretraining": "seqssm_dna.task",
    "ConditionedGeneration": "seqssm_dna.conditioned",
    "DnaPredictor": "seqssm_dna.predict",
    "Genome": "seqssm_dna.genome",
    "GenomeClassifier": "seqssm_dna.classifier",
    "GenomeData": "seqssm_dna.data",
    "GenomeEncoder": "seqssm_dna.model",
    "GenomeLM": "seqssm_dna.model",
    "KmerLinear": "seqssm_dna.linear",
    "MarkovModel": "seqssm_dna.kmers",
    "MaskedPretraining": "seqssm_dna.task",
    "SequenceData": "seqssm_dna.sequences",
    "SequenceLabels": "seqssm_dna.labels_task",
    "StemEncoder": "seqssm_dna.stem",
    "Variants": "seqssm_dna.variants",
    "Vocabulary": "seqssm_dna.tokens",
    "open_genome": "seqssm_dna.genomes",
    "read_bed": "seqssm_dna.intervals",
    "read_labelled": "seqssm_dna.labelled",
    "read_records": "seqssm_dna.records",
    "stream_pieces": "seqssm_dna.records",
}

__all__ = [
    "DOMAIN",
    "CausalPretraining",
    "ConditionedGeneration",
    "DnaPredictor",
    "Genome",
    "GenomeClassifier",
    "GenomeData",
    "GenomeEncoder",
    "GenomeLM",
    "KmerLinear",
    "MarkovModel",
    "MaskedPretraining",
    "SequenceData",
    "SequenceLabels",
    "StemEncoder",
    "Variants",
    "Vocabulary",
    "open_genome",
    "read_bed",
    "read_labelled",
    "read_records",
    "stream_pieces",
]


def __getattr__(name: str) -> Any:
    """Import the named object on first use, so that importing the package does not load NumPy."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'seqssm_dna' has no attribute {name!r}")


DOMAIN = Domain(
    name=NAME,
    title="DNA: language models of genomes, labels of sequences, variants, designed sequences (HybriDNA)",
    task="seqssm_dna.task:CausalPretraining",
    data="seqssm_dna.data:GenomeData",
    predictor="seqssm_dna.predict:DnaPredictor",
    package="seqssm_dna",
    example_preset="tiny",
    example_input="genome.fa",
    demo="seqssm_dna.demo:demo",
    summary={
        "objective": "str",
        "vocabulary": {"tokens": "strings", "complement": "numbers"},
        "context": "int?",
        "attn_window": "int?",
        "has_attention": "bool",
        "average_strands": "bool",
        "properties": "strings",
        "bins": "int?",
        "edges": "list",
        "lower": "str",
        "target": "str?",
        "classes": "strings",
        "unit": "str",
        "max_length": "int?",
        "trim_n": "bool",
        "sequence_column": "str?",
        "id_column": "str?",
    },
    migrations=(
        Added("summary.trim_n", False),
        Added("summary.sequence_column", None),
        Added("summary.id_column", None),
        Added("model.head", "linear", of="SequenceLabels"),
        Added("model.max_classes", None, of="SequenceLabels"),
        Added("model.projector", "none", of="SequenceLabels"),
        Added("model.class_means", False, of="SequenceLabels"),
        *(
            Added("model.conv_layers", 0, of=name)
            for name in ("CausalPretraining", "ConditionedGeneration", "SequenceLabels")
        ),
    ),
    effects=(
        Effect("model.conv_kernel", needs=("model.conv_layers",)),
        Effect("model.attn_offset", needs=("model.attn_period",)),
        *(Effect(f"model.{name}", needs=ATTENTION) for name in ("attn_window", "n_heads", "n_kv_heads")),
        Effect("model.head_dim", needs=("model.mixer mamba2|mamba3",)),
        Effect("model.d_state", needs=("model.mixer mamba|mamba2|mamba3",)),
        Effect("model.decay_fraction", needs=("model.schedule trapezoid",)),
        Effect("model.echo_separator", needs=("model.echo",)),
        Effect("model.class_weights", needs=("data.target class",)),
        Effect("model.label_smoothing", needs=("data.target class",)),
        Effect("data.lowercase_weight", needs=("data.lower upper",)),
        *(
            Effect(f"data.{name}_fraction", without=("data.bed", "data.val_contigs", "data.test_contigs"))
            for name in ("val", "test")
        ),
        Effect("data.test_fraction", without=("data.folds",)),
        Effect("data.fold", needs=("data.folds",)),
    ),
    models={
        **{name: ("--model.network", name) for name in ("hybrid", "encoder", "stem", "cnn", "gru")},
        "mamba": ("--model.mixer", "mamba"),
        "mamba2": ("--model.mixer", "mamba2"),
        "mamba3": ("--model.mixer", "mamba3"),
        "transformer": ("--model.mixer", "attention"),
    },
    baselines=BASELINES,
    metrics="seqssm_dna.metrics:METRICS",
    export="seqssm_dna.export:export",
    test_records="seqssm_dna.tested:test_records",
    of_data_set=(OfDataSet("unit"),),
    data_argument="fasta",
    own_preset="tiny",
    data_sets=DATA_SETS,
    folds=True,
    extends=True,
    requires=("Bio", "pyfaidx", "sklearn"),
    commands=COMMANDS,
    predict_options=PREDICT_OPTIONS,
)
