"""Options of prediction and of the domain's commands, for the declaration of the domain; imports nothing heavy."""

from __future__ import annotations

from seqssm.domain import Command, Option

STRANDS = ("checkpoint", "forward", "both")

REFERENCE = Option("--reference", "sequence file that the positions of a VCF or BED file refer to")
WINDOW = Option(
    "--window",
    "letters around a variant (default 512), or that a classifier reads at a time (default: its longest training "
    "sequence)",
    int,
)
STRAND = Option("--strands", "strands that are read and averaged; checkpoint: as in training", str, STRANDS[0], STRANDS)
CHUNK = Option(
    "--chunk-size",
    "bases that a causal model computes at a time, without effect on the result (default: 4096, on GPUs 65536)",
    int,
)
PASSES = Option("--mask-passes", "passes of a masked model over a sequence; each hides every so-manieth base", int, 8)
CLASS = Option("--class", "class whose probability is compared between alleles (default: the last one)")
LABEL = Option("--label", "label in front of the bases, for models trained with some: expression=4", many=True)

PREDICT_OPTIONS = (
    REFERENCE,
    WINDOW,
    Option("--step", "letters from one window to the next (default: half a window)", int),
    Option("--per-window", "one row per window instead of per record", bool),
    STRAND,
    CHUNK,
    PASSES,
    Option("--track", "bedGraph file for -log2 p of every base"),
    Option("--embeddings", "file for the mean features of every record, .parquet or .npy"),
    Option("--write-vcf", "copy of the VCF file with the scores as an INFO field; .gz compresses it as BGZF"),
    Option("--vcf-field", "name of that field", str, "SEQSSM_LLR"),
    CLASS,
    LABEL,
    Option("--summary", "JSON file for counts: letters, rows by status, contig aliases"),
)

COMMANDS = (
    Command(
        "generate",
        "design sequences with a language model, for a class or bin if it was trained with some; writes FASTA",
        "seqssm_dna.generate:run",
        "seqssm dna generate runs/dna/yeast_generation --output designs.fa --count 20 --length 80 --bin 4",
        (
            Option("--output", "FASTA file (default: printed)"),
            Option("--count", "number of sequences", int, 10),
            Option("--length", "bases per sequence (default: as in training)", int),
            Option("--prompt", "bases that every sequence begins with, part of its length", str, ""),
            Option(
                "--expression", "wanted expression: lowest, low, middle, high, highest, or a value in the data's unit"
            ),
            Option("--bin", "wanted quantile bin of the property, from 0 (lowest)", int),
            Option("--class", "wanted class"),
            Option("--label", "wanted labels of a model with several properties: complex=4 defined=0", many=True),
            Option("--temperature", "below 1: more probable sequences, above 1: more diverse ones", float, 1.0),
            Option("--top-k", "draw from the k most probable bases only, 1 to 4", int),
            Option("--top-p", "draw from the most probable bases that together reach this probability", float),
            Option("--beams", "width of a beam search instead of sampling: its best sequences", int, 1),
            Option("--seed", "seed of the first sequence; the next ones count up", int, 0),
            Option("--training", "FASTA or table of training sequences: copies of them are reported", many=True),
            Option("--batch-size", "sequences generated side by side", int, 64),
            Option("--accelerator", "device type to run on", str, "auto", ("auto", "cpu", "gpu", "cuda", "mps")),
            Option("--overwrite", "replace the output", bool),
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
            Option("--region", "chr:start-end, 1-based, both ends included; a whole record name comes first"),
            Option("--output", "table, .csv or .parquet (default: printed)"),
            Option("--figures", "folder for the heat map"),
            Option("--window", "letters around a change (default 512, a classifier: the region)", int),
            STRAND,
            CHUNK,
            PASSES,
            CLASS,
            LABEL,
            Option("--strand", "strand that a classifier reads", str, "+", ("+", "-")),
            Option("--accelerator", "device type to run on", str, "auto", ("auto", "cpu", "gpu", "cuda", "mps")),
            Option("--overwrite", "replace the output", bool),
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
            Option("--val-contigs", "contigs that choose the context (default: a tenth of every contig)", many=True),
            Option("--test-contigs", "contigs that are tested (default: the last tenth of every contig)", many=True),
            Option("--order", "longest context, bases", int, 11),
            Option("--target", "of a table: class, labels or value", str, "class", ("class", "labels", "value")),
            Option("--label-column", "column of the labels (default: found by its usual names)"),
            Option("--test", "table to test on (default: its column split, else cross-validation)"),
            Option("--folds", "folds of the cross-validation", int, 5),
            Option("--seed", "seed of the folds", int, 0),
            Option("--output", "JSON file for the printed scores"),
            Option("--overwrite", "replace the output", bool),
        ),
        inputs="FILE_OR_CLASS=FILE",
    ),
)
