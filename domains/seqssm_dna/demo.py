"""The demo: a simulated genome of known entropy, variants with known effects, promoters with known boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from seqssm.tools.page import Section, read_test_table
from seqssm_dna import simulate
from seqssm_dna.kmers import MarkovModel
from seqssm_dna.metrics import bits_per_base, correlation
from seqssm_dna.tokens import encode

SEED, LENGTH = 7, 40_000
PRETRAIN = ["--config", "tiny", "--trainer.max_epochs", "6", "--model.d_model", "32", "--model.n_layers", "2"]
FORWARD = ["--data.reverse_complement", "false"]  # the Markov chain of the genome differs between the strands
LABELS = ["--config", "ecoli_promoters", "--trainer.max_epochs", "6", "--model.positions", "80"]
LABELS += ["--model.stem_width", "9", "--model.learning_rate", "5e-3", "--model.dropout", "0.1"]


def demo(folder: Path) -> list[Section]:
    """Simulate sequences; then train, predict, score variants and generate with the commands that a user types.

    Args:
        folder: folder for all files.
    """
    made = simulate.folder(folder / "made", SEED, LENGTH, labelled=1000, alleles=100)
    return [*_genome(folder, made), _promoters(folder)]


def run(*words: object) -> None:
    """Run a command of the domain.

    Args:
        *words: words of the command line.
    """
    from seqssm.cli.main import run as command

    command([str(word) for word in words])


def _genome(folder: Path, made: simulate.Made) -> list[Section]:
    """Train a language model of the simulated genome; report perplexity, variants and designs."""
    data, model, figures = folder / "made", folder / "language_model", folder / "figures"
    fit = [
        *PRETRAIN,
        "--data.fasta",
        data / "genome.fa",
        "--data.bed",
        data / "splits.bed",
        "--trainer.accelerator",
        "cpu",
    ]
    run("dna", "fit", *fit, "--seed_everything", SEED, "--output", model)
    cpu = ("--accelerator", "cpu")
    run("predict", model, data / "genome.fa", "--output", folder / "genome.csv", "--figures", figures, *cpu)
    variants = ("--reference", data / "genome.fa", "--window", 256, "--strands", "forward")
    variants = (*variants, "--output", folder / "variants.csv")
    run("predict", model, data / "calls.vcf", *variants, *cpu)
    designs = ("--length", 200, "--count", 5, "--training", data / "genome.fa", "--output", folder / "designs.fa")
    run("dna", "generate", model, *designs, *cpu)
    rows = pd.read_csv(folder / "genome.csv")
    test = rows.iloc[-1]
    ids = {name: encode(letters) for name, letters in made.contigs.items()}
    names = list(ids)
    markov = MarkovModel(8).fit([ids[name] for name in names[:2]])
    markov.select([ids[names[2]]])
    table = pd.DataFrame(
        {
            "model": [
                "Mamba, 2 layers of 32 channels",
                f"k-mer Markov model, {markov.order} bases",
                "the true Markov chain",
            ],
            "bits per base": [test["bits_per_base"], bits_per_base(markov.scores([ids[names[3]]])), made.chain.bits],
        }
    )
    text = (
        f"Four simulated contigs of {LENGTH:,} letters: a Markov chain over three bases of context, interrupted by "
        "mutated copies of three repeat families on both strands and by tandem repeats. A small causal model was "
        "trained on two contigs; the table has its bits per base on the last contig, which was not used in training. "
        "Uniform probabilities give 2 bits. The last row is the entropy of the chain, the lower bound between the "
        "repeats; inside repeats a model can be better or, if it has not learned them, worse.\n\n"
        "The figure, drawn by `seqssm predict --figures`, shows the bits per base along the contig."
    )
    columns = ["id", "length", "mean_nll", "perplexity", "bits_per_base", "next_base_accuracy", "n_scored", "status"]
    tables = [("Bits per base on the test contig", table), ("Predictions by contig", rows[columns])]
    own, kmers, chain = table["bits per base"]
    headline = f"{own:.3f} bits per base on an unseen contig (k-mer model {kmers:.3f}, the chain itself {chain:.3f})."
    pictures = sorted(figures.glob("*chr4*track.png"))
    first = Section("DNA: a language model of a genome", text, tables, pictures, headline=headline)
    return [first, _effects(folder, made)]


def _effects(folder: Path, made: simulate.Made) -> Section:
    """Compare predicted with true variant effects."""
    found = pd.read_csv(folder / "variants.csv")
    found["true_llr"] = simulate.variants(made, "chr4", len(found), SEED)["true_llr"]
    r = correlation(found["llr"].to_numpy(float), found["true_llr"].to_numpy(float))
    text = (
        "`seqssm predict calls.vcf --reference genome.fa` scores both alleles of every variant in windows of equal "
        "length. The true log-likelihood ratio of each allele under the Markov chain of the genome is in the column "
        f"true_llr; Pearson's r between the two is {r:.3f}, over {len(found)} variants.\n\n"
        "`seqssm dna generate` then generated five sequences with the model; with `--training` it reports the edit "
        "distance to the most similar segment of the training genome: none is a copy."
    )
    shown = found[["chrom", "pos", "ref", "alt", "llr", "true_llr", "status"]].head(8)
    headers = [line[1:].split() for line in (folder / "designs.fa").read_text().splitlines() if line.startswith(">")]
    rows = [{"name": words[0], **dict(word.split("=") for word in words[1:])} for words in headers]
    return Section(
        "DNA: effects of variants, designed sequences", text, [("Variants", shown), ("Designs", pd.DataFrame(rows))]
    )


def _promoters(folder: Path) -> Section:
    """Train a classifier of simulated promoters; score every single-base change of one promoter."""
    data, model, figures = folder / "made", folder / "promoters", folder / "figures"
    fit = [*LABELS, "--data.train", data / "promoters.csv", "--trainer.accelerator", "cpu"]
    run("dna", "fit", *fit, "--seed_everything", SEED, "--output", model)
    run("dna", "test", model)
    one = simulate.promoters(1, SEED + 1).iloc[0]
    (folder / "promoter.fa").write_text(f">promoter\n{one['sequence']}\n")
    scan = ("--reference", folder / "promoter.fa", "--region", "promoter", "--class", "promoter")
    run("dna", "scan-variants", model, *scan, "--output", folder / "scan.csv", "--figures", figures)
    changes = pd.read_csv(folder / "scan.csv")
    inside = np.zeros(len(changes), dtype=bool)
    for box in ("box35", "box10"):
        inside |= changes["pos"].between(one[box] + 1, one[box] + 6)
    drop = changes["p_promoter_change"].groupby(inside).mean()
    table = pd.DataFrame(
        {"changes": ["inside the boxes", "elsewhere"], "mean change of p(promoter)": [drop[True], drop[False]]}
    )
    text = (
        "1,000 simulated sequences of 80 bases, half of them promoters: a box TTGACA and a box TATAAT, each with "
        "mutations, 16 to 18 bases apart. The other half has the letters of the boxes in random order. The network, a "
        "convolution and a bidirectional Mamba layer, was trained on 81 % of them; kmers is a linear model on k-mers "
        "and positions.\n\n"
        "`seqssm dna scan-variants` replaces every base of a new promoter by each of the three others. The boxes begin "
        f"at positions {one['box35'] + 1} and {one['box10'] + 1}; changes there lower the probability."
    )
    models = read_test_table(model, "Test")
    pictures = sorted(figures.glob("promoter*changes.png"))
    return Section(
        "DNA: promoters and their boxes",
        text,
        [("Test", models), ("All single-base changes of one promoter", table)],
        pictures,
    )
