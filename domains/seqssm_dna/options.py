"""Options of prediction and of the domain's commands; light imports only."""

from __future__ import annotations

from seqssm.bounds import COUNT, SEED, Bounds
from seqssm.domain import ACCELERATOR, OVERWRITE, Command, Option

LONGEST = 12  # maximum context of the Markov model, bases; the counts of order 12 take 0.5 GB
STRANDS = ("checkpoint", "forward", "both")
CAUSAL, MASKED, LANGUAGE, CLASSIFIER = (
    "causal language models",
    "masked language models",
    "language models",
    "classifiers",
)
"""Kinds of models, for options that have an effect on one of them only."""

REFERENCE = Option("--reference", "sequence file that the positions of a VCF or BED file refer to", metavar="PATH")
WINDOW = Option(
    "--window",
    "letters around a variant (default 512), or per window of a classifier (default: its longest training sequence)",
    int,
    bounds=COUNT,
)
STRAND = Option("--strands", "strands to read and average; checkpoint: as in training", str, STRANDS[0], STRANDS)
CHUNK = Option(
    "--chunk-size",
    "bases per forward pass of a causal model, the result is the same (default: 4096, on GPUs 65536)",
    int,
    bounds=COUNT,
    models=CAUSAL,
)
PASSES = Option(
    "--mask-passes",
    "passes of a masked model over a sequence; with n passes, each masks every n-th base",
    int,
    8,
    bounds=Bounds(1, 1000),
    models=MASKED,
)
CLASS = Option("--class", "class whose probability is compared between alleles (default: the last class)")
LABEL = Option("--label", "label before the bases, for models trained with labels: expression=4", many=True)

PREDICT_OPTIONS = (
    REFERENCE,
    WINDOW,
    Option(
        "--step", "letters from one window to the next (default: half a window)", int, bounds=COUNT, models=CLASSIFIER
    ),
    Option("--per-window", "one row per window instead of per record", bool),
    STRAND,
    CHUNK,
    PASSES,
    Option("--track", "bedGraph file for -log2 p of every base", writes=True, models=LANGUAGE),
    Option("--embeddings", "file for the mean features of every record, .parquet or .npy", writes=True),
    Option(
        "--write-vcf",
        "copy of the VCF file with the scores as an INFO field; compressed as BGZF if it ends in .gz",
        writes=True,
    ),
    Option(
        "--vcf-field",
        "name of the INFO field (default: SEQSSM_LLR, of a classifier SEQSSM_CHANGE)",
        str,
        needs=("--write-vcf",),
    ),
    CLASS,
    LABEL,
    Option("--summary", "JSON file with counts: letters, rows by status, contig aliases", writes=True),
)

COMMANDS = (
    Command(
        "generate",
        "generate sequences with a language model, for a class or bin if it was trained with labels; writes FASTA",
        "seqssm_dna.generate:run",
        "seqssm dna generate runs/dna/yeast_generation --output designs.fa --count 20 --length 80 --bin 4",
        (
            Option("--output", "FASTA file (default: printed)"),
            Option("--count", "number of sequences", int, 10, bounds=Bounds(1, 10_000_000)),
            Option("--length", "bases per sequence (default: as in training)", int, bounds=Bounds(1, 100_000_000)),
            Option("--prompt", "first bases of every sequence, included in its length", str, ""),
            Option(
                "--expression",
                "of a model with the property expression: lowest, low, middle, high, highest, or a value in its unit",
            ),
            Option("--bin", "quantile bin of the model's only property, from 0 (lowest)", int, bounds=Bounds(0, 1000)),
            Option("--class", "requested class"),
            Option("--label", "requested labels by property, bins, words or values: strength=high cost=0", many=True),
            Option(
                "--temperature",
                "sampling temperature; below 1: more probable sequences, above 1: more diverse ones",
                float,
                1.0,
                bounds=Bounds(0, 1000, above=True),
            ),
            Option("--top-k", "sample from the k most probable bases only, 1 to 4", int, bounds=Bounds(1, 4)),
            Option(
                "--top-p",
                "sample from the most probable bases with this cumulative probability",
                float,
                bounds=Bounds(0, 1, above=True),
            ),
            Option(
                "--beams",
                "width of a beam search, used instead of sampling if above 1",
                int,
                1,
                bounds=Bounds(1, 10_000),
            ),
            Option("--seed", "seed of the first sequence, incremented for each further one", int, 0, bounds=SEED),
            Option("--training", "FASTA file or table of training sequences, to report copies of them", many=True),
            Option("--batch-size", "sequences generated per batch", int, 64, bounds=Bounds(1, 1_000_000)),
            ACCELERATOR,
            OVERWRITE,
        ),
        inputs="MODEL",
    ),
    Command(
        "scan-variants",
        "score every single-base change of a region: a table and a heat map",
        "seqssm_dna.scan:run",
        "seqssm dna scan-variants runs/dna/tiny --reference genome.fa --region chr1:1001-1100 --output scan.csv",
        (
            REFERENCE,
            Option("--region", "chr:start-end, 1-based, inclusive; record names take precedence"),
            Option("--output", "table, .csv or .parquet (default: printed)"),
            Option("--figures", "folder for the heat map"),
            Option(
                "--window", "letters around a change (default: 512; for a classifier, the region)", int, bounds=COUNT
            ),
            STRAND,
            CHUNK,
            PASSES,
            CLASS,
            LABEL,
            Option("--strand", "strand read by a classifier", str, "+", ("+", "-")),
            ACCELERATOR,
            OVERWRITE,
        ),
        inputs="MODEL",
    ),
    Command(
        "baseline",
        "bits per base of an interpolated k-mer Markov model, or scores of a k-mer logistic or ridge regression",
        "seqssm_dna.compare:run",
        "seqssm dna baseline genome.fa --bed splits.bed",
        (
            Option("--bed", "intervals of a genome with train, valid, test in the fourth column"),
            Option(
                "--val-contigs", "contigs to select the context length on (default: a tenth of every contig)", many=True
            ),
            Option("--test-contigs", "contigs to test on (default: the last tenth of every contig)", many=True),
            Option("--order", "maximum context length, bases", int, 11, bounds=Bounds(0, LONGEST)),
            Option("--target", "target of a table: class, labels or value", str, "class", ("class", "labels", "value")),
            Option("--label-column", "column of the labels (default: detected by its usual names)"),
            Option("--test", "table to test on (default: column split of the table, otherwise cross-validation)"),
            Option("--folds", "number of cross-validation folds", int, 5, bounds=Bounds(2, 100)),
            Option("--seed", "seed of the folds", int, 0, bounds=SEED),
            Option("--output", "JSON file for the scores, which are also printed"),
            OVERWRITE,
        ),
        inputs="FILE_OR_CLASS=FILE",
    ),
)
