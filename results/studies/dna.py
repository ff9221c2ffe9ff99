"""DNA studies: sequence labels, language models of two genomes, architectures at equal budgets, designed promoters.

Times are CPU seconds of one thread. The long studies are `dna_architectures` (five models, three seeds, 10 CPU-minutes
each: 3 hours; `SEQSSM_STUDY_MINUTES` sets the minutes), `dna_human_chr20` and
`dna_pfalciparum` (15 minutes for each of three and four networks) and `dna_pfalciparum_hour`.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

from studies.common import RUNS, Study, epochs, markdown, relative, results_of, seqssm, spread, table_of, tested

os.environ.setdefault("OMP_NUM_THREADS", "1")

TITLES = {
    "stem": "convolution stem, bidirectional Mamba (the preset)",
    "cnn": "small CNN",
    "gru": "bidirectional GRU",
    "kmers": "k-mer and position regression",
    "markov": "k-mer Markov model",
    "pretrained": "convolutions and Mamba, after a language model of the genome (the preset)",
    "scratch": "the same network from scratch",
}
PARAMETERS, LAYERS, CONTEXT = 300_000, 8, 512
PIECES = 4  # epochs of a fit of `dna_architectures`: the budget is divided into them, and the last ends in a validation
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Mamba-2 and attention, 7 to 1": {"mixer": "mamba2", "head_dim": 16, "d_state": 64, "attn_period": 8},
    "Mamba-2": {"mixer": "mamba2", "head_dim": 16, "d_state": 64},
    "Mamba": {"mixer": "mamba", "d_state": 16},
    "Mamba-3": {"mixer": "mamba3", "head_dim": 32, "d_state": 64},
    "transformer": {"mixer": "attention", "mlp_ratio": 2.0},
}
"""Title -> options of the network `hybrid`, with `LAYERS` layers and without convolutions in front."""


# -- labels of sequences -----------------------------------------------------------------------------------------------


def kfold(name: str, preset: str, models: str, *words: str) -> dict[str, Any]:
    """Run `seqssm dna kfold`; return its rows, with the CPU seconds of each fit."""
    folder = RUNS / name
    command = ["dna", "kfold", "--config", preset, "--models", models, *words]
    seqssm(*command, "--output", relative(folder), "--resume")
    rows = []
    for line in table_of(folder / "folds.csv"):
        row: dict[str, Any] = {"model": line["model"], "seed": int(line["seed"]), "fold": line.get("fold") or None}
        row |= {key: float(value) for key, value in line.items() if key not in ("model", "seed", "fold") and value}
        log = run_of(folder, row) / "log.csv"
        if log.is_file():
            row["cpu_seconds"] = sum(epoch["cpu_seconds"] for epoch in epochs(log))
        rows.append(row)
    return {"command": "seqssm " + " ".join(command), "rows": rows}


def run_of(folder: Path, row: dict[str, Any]) -> Path:
    """The run folder of a row."""
    fold = "" if row["fold"] is None else f"fold-{row['fold']}_"
    return folder / row["model"] / f"{fold}seed-{row['seed']}"


def scores_table(study: dict[str, Any], names: tuple[str, ...], over: str) -> str:
    """One row per model: mean and standard deviation of scores over seeds (and folds), CPU seconds of a fit."""
    lines = [["model", *names, "runs", "CPU seconds per run"]]
    for model in dict.fromkeys(row["model"] for row in study["rows"]):
        own = [row for row in study["rows"] if row["model"] == model]
        if over == "folds":  # mean over the folds first, standard deviation over the seeds
            seeds = {row["seed"] for row in own}
            values = {
                name: [statistics.fmean(row[name] for row in own if row["seed"] == seed) for seed in seeds]
                for name in names
            }
        else:
            values = {name: [row[name] for row in own] for name in names}
        seconds = [row["cpu_seconds"] for row in own if "cpu_seconds" in row]
        cost = f"{statistics.median(seconds):.0f}" if seconds else ""
        lines.append([TITLES[model], *(spread(values[name]) for name in names), str(len(own)), cost])
    return markdown(lines)


def dna_promoters() -> dict[str, Any]:
    """E. coli promoters: three seeds, five folds."""
    return kfold("dna_promoters", "ecoli_promoters", "stem,cnn,gru,kmers", "--folds", "5", "--seeds", "1,2,3")


def dna_promoters_table(study: dict[str, Any]) -> str:
    """MCC, AUROC and accuracy, with the published figure."""
    table = scores_table(study, ("mcc", "auroc", "accuracy"), "folds")
    return f"{table}\n\nFive folds; standard deviations are over the seeds. Published (CNNProm): MCC 0.84."


def dna_promoters_pretrained() -> dict[str, Any]:
    """E. coli promoters after a language model of the genome of strain 536: the seeds and folds of `dna_promoters`."""
    name = "dna_promoters_pretrained"
    before = RUNS / name / "genome"
    genome = ("--config", "ecoli_pretrain")
    bits = tested("dna", before, genome)["metrics"]["bits_per_base"]
    starts = {
        "pretrained": ("ecoli_promoters_finetune", "hybrid", "--model.init_from", relative(before / "best.ckpt")),
        "scratch": ("ecoli_promoters_finetune", "hybrid"),
        "cnn": ("ecoli_promoters", "cnn"),
    }
    rows, commands = [], ["seqssm dna fit " + " ".join(genome)]
    for title, (preset, model, *words) in starts.items():
        study = kfold(f"{name}/{title}", preset, model, *words, "--folds", "5", "--seeds", "1,2,3")
        rows += [{**row, "model": title} for row in study["rows"]]
        commands.append(study["command"])
    seconds = sum(epoch["cpu_seconds"] for epoch in epochs(before / "log.csv"))
    return {"commands": commands, "bits_per_base": bits, "pretraining_cpu_seconds": seconds, "rows": rows}


def dna_promoters_pretrained_table(study: dict[str, Any]) -> str:
    """MCC, AUROC and accuracy, and the cost of the language model."""
    return (
        f"{dna_promoters_table(study)} Pretraining, once: {study['pretraining_cpu_seconds']:.0f} CPU seconds, "
        f"{study['bits_per_base']:.4f} bits per base."
    )


def dna_tata() -> dict[str, Any]:
    """Arabidopsis TATA promoters: one seed, five folds."""
    return kfold("dna_tata", "arabidopsis_tata", "stem,cnn,gru,kmers", "--folds", "5", "--seeds", "1")


def dna_tata_table(study: dict[str, Any]) -> str:
    """MCC, AUROC and accuracy, with the published figures."""
    table = scores_table(study, ("mcc", "auroc", "accuracy"), "folds")
    return f"{table}\n\nFive folds. Published: CNNProm MCC 0.91, iPTT 0.937."


def dna_ctcf() -> dict[str, Any]:
    """CTCF peaks against background, split by position: three seeds."""
    return kfold("dna_ctcf", "ctcf_chr20", "stem,cnn,kmers", "--seeds", "1,2,3")


def dna_ctcf_table(study: dict[str, Any]) -> str:
    """AUROC, average precision and MCC."""
    table = scores_table(study, ("auroc", "auprc", "mcc"), "seeds")
    return f"{table}\n\nTest set: 710 windows from 45 Mb on, mean of both strands. Consensus scan: AUROC 0.875."


def dna_splice() -> dict[str, Any]:
    """Splice junctions, StatLog split, five seeds; also scored on the test rows that are not in train."""
    study = kfold("dna_splice", "splice", "stem,cnn,gru,kmers", "--seeds", "1,2,3,4,5")
    for row in study["rows"]:
        run = run_of(RUNS / "dna_splice", row)
        records = run / "figures" / "test_records.csv"
        if not records.is_file():
            continue
        split = table_of(run / "split.csv")
        known = {one["sequence"] for one in split if one["split"] in ("train", "val")}
        clean = [one["sequence"] not in known for one in split if one["split"] == "test"]
        right = [one["prediction"] == one["label"] for one in table_of(records)]
        row["clean_accuracy"] = statistics.fmean(hit for hit, own in zip(right, clean, strict=True) if own)
        row["clean_rows"] = sum(clean)
    return study


def dna_splice_table(study: dict[str, Any]) -> str:
    """Accuracy and MCC on all test rows, accuracy on clean rows, and a note if logistic regression is better."""
    lines = [["model", "accuracy", "MCC", "accuracy on clean rows", "runs", "CPU seconds per run"]]
    means = {}
    for model in dict.fromkeys(row["model"] for row in study["rows"]):
        own = [row for row in study["rows"] if row["model"] == model]
        means[model] = statistics.fmean(row["accuracy"] for row in own)
        clean = [row["clean_accuracy"] for row in own if "clean_accuracy" in row]
        seconds = [row["cpu_seconds"] for row in own if "cpu_seconds" in row]
        cells = [spread([row[name] for row in own]) for name in ("accuracy", "mcc")]
        cost = f"{statistics.median(seconds):.0f}" if seconds else ""
        lines.append([TITLES[model], *cells, spread(clean) if clean else "", str(len(own)), cost])
    best = max(means.values())
    note = "" if means["kmers"] < means["stem"] else " Logistic regression is better than the network on this data set."
    rows = next((row["clean_rows"] for row in study["rows"] if "clean_rows" in row), 0)
    caption = f"StatLog split; clean rows: the {rows:,} test rows that are not in train. Highest accuracy: {best:.4f}."
    return f"{markdown(lines)}\n\n{caption}{note}"


# -- language models ---------------------------------------------------------------------------------------------------


def budgeted(name: str, preset: str, minutes: float, *flags: str) -> dict[str, Any]:
    """Fit for about `minutes` CPU minutes, then test; an interrupted fit is resumed.

    One epoch is timed first, in a separate run. It determines the number of epochs and so the schedule.
    """
    probe = RUNS / f"{name}_timing"
    if not (probe / "best.ckpt").is_file():
        fit = ("dna", "fit", "--config", preset, *flags)
        seqssm(*fit, "--trainer.max_epochs", "1", "--output", relative(probe), "--overwrite")
    count = max(1, int(60 * minutes / epochs(probe / "log.csv")[0]["cpu_seconds"]))
    length = ("--trainer.check_val_every_n_epoch", "1", "--trainer.max_epochs", str(count))
    row = fitted(RUNS / name, ("--config", preset, *flags, *length))
    return {"flags": list(flags), "epochs": count, "minutes": minutes, **row}


def fitted(run: Path, words: tuple[str, ...]) -> dict[str, Any]:
    """Fit with the arguments `words` and test, or continue where an earlier call stopped; return the figures."""
    test = tested("dna", run, words)
    log = epochs(run / "log.csv")
    row: dict[str, Any] = {"cpu_seconds": sum(epoch["cpu_seconds"] for epoch in log), **test["metrics"]}
    row["best_val_bits"] = min(epoch["val_bits_per_base"] for epoch in log if "val_bits_per_base" in epoch)
    for other in test["tables"][0]["rows"]:
        if other["model"] == "markov":
            row["markov"] = other["bits_per_base"]
    row["parameters"] = parameters(run)
    return row


def parameters(run: Path) -> int:
    """Number of parameters of a run's network."""
    import torch

    weights = torch.load(run / "best.ckpt", weights_only=True, map_location="cpu")["state_dict"]
    return sum(value.numel() for value in weights.values())


def genome_rows(name: str, preset: str, runs: dict[str, tuple[float, tuple[str, ...]]]) -> dict[str, Any]:
    """Fit and test the runs of a genome, given by title as (minutes, flags)."""
    rows = []
    for number, (title, (minutes, flags)) in enumerate(runs.items()):
        rows.append({"model": title, **budgeted(f"{name}_{number}", preset, minutes, *flags)})
    return {"preset": preset, "rows": rows}


def genome_table(study: dict[str, Any]) -> str:
    """Bits per base on the test contig, accuracy, CPU time; the Markov model last."""
    lines = [["model", "parameters", "bits per base", "next-base accuracy", "best on validation", "CPU minutes"]]
    for row in study["rows"]:
        cells = [f"{row['bits_per_base']:.4f}", f"{row['next_base_accuracy']:.4f}", f"{row['best_val_bits']:.4f}"]
        lines.append([row["model"], f"{row['parameters'] / 1e6:.2f} M", *cells, f"{row['cpu_seconds'] / 60:.1f}"])
    floor = study["rows"][0]["markov"]
    lines.append([TITLES["markov"], "", f"{floor:.4f}", "", "", ""])
    lost = [row["model"] for row in study["rows"] if row["bits_per_base"] >= floor]
    note = f" Not better than the Markov model: {', '.join(lost)}." if lost else ""
    caption = "Whole test split, forward strand. One thread; times include validation."
    return f"{markdown(lines)}\n\n{caption}{note}"


GRU = ("--model.network", "gru", "--model.d_model", "192", "--model.n_layers", "2")
CNN = ("--model.network", "cnn", "--model.d_model", "128", "--model.n_layers", "5")
MAMBA = ("--model.conv_layers", "0", "--model.n_layers", "4")
"""Flags of the preset `pfalciparum_pretrain` without convolutions."""


def dna_pfalciparum() -> dict[str, Any]:
    """P. falciparum: MAL1 and MAL2 for training, MAL3 for validation, all of MAL13 for the test.

    The preset was chosen by its bits per base on MAL3 without the first and last 100 kb, whose repeats also occur in
    the training chromosomes, in runs of 2 to 10 CPU minutes. MAL13 was not used.
    """
    runs = {
        "convolutions and Mamba, 15 minutes (the preset)": (15.0, ()),
        "GRU, 15 minutes": (15.0, GRU),
        "dilated convolutions, 15 minutes": (15.0, CNN),
        "Mamba alone, 15 minutes": (15.0, MAMBA),
    }
    return genome_rows("dna_pfalciparum", "pfalciparum_pretrain", runs)


def dna_pfalciparum_hour() -> dict[str, Any]:
    """P. falciparum as above, with a wider Mamba and four times the budget."""
    wider = ("--model.dropout", "0.1", "--model.d_model", "128")
    return genome_rows("dna_pfalciparum_hour", "pfalciparum_pretrain", {"Mamba, 60 minutes": (60.0, wider)})


def dna_human_chr20() -> dict[str, Any]:
    """Human chromosome 20: 3.0 to 8.4 Mb for training, 50 to 51 Mb for the test; the network of `dna_pfalciparum`."""
    minutes = float(os.environ.get("SEQSSM_STUDY_MINUTES", "15"))
    runs = {
        "convolutions and Mamba (the preset)": (minutes, ()),
        "GRU": (minutes, GRU),
        "dilated convolutions": (minutes, CNN),
    }
    return genome_rows("dna_human_chr20", "human_chr20_pretrain", runs)


# -- architectures -----------------------------------------------------------------------------------------------------


def architecture_flags(title: str) -> tuple[str, ...]:
    """Flags of a network with about `PARAMETERS` parameters; its width is found on the meta device."""
    import torch
    from seqssm_dna.task import CausalPretraining

    fixed = {**ARCHITECTURES[title], "n_layers": LAYERS, "conv_layers": 0}

    def size(width: int) -> int:
        with torch.device("meta"):
            model = CausalPretraining(**fixed, d_model=width, context=CONTEXT).build_model()
        return sum(parameter.numel() for parameter in model.parameters())

    width = min(
        range(16, 257, 16 if ARCHITECTURES[title]["mixer"] == "mamba3" else 8),
        key=lambda own: abs(size(own) - PARAMETERS),
    )
    return tuple(
        word for name, value in {**fixed, "d_model": width}.items() for word in (f"--model.{name}", str(value))
    )


def steps_within(seconds: float, number: int, flags: tuple[str, ...]) -> int:
    """Number of training steps that take `seconds` CPU seconds: the second of two timed epochs of 40 steps tells."""
    probe = RUNS / "dna_architectures" / f"{number}_timing"
    if not (probe / "best.ckpt").is_file():
        length = ("--trainer.max_epochs", "2", "--trainer.limit_train_batches", "40")
        fit = ("dna", "fit", "--config", "pfalciparum_pretrain", *flags, *length, "--data.eval_letters", "20000")
        seqssm(*fit, "--trainer.check_val_every_n_epoch", "3", "--output", relative(probe), "--overwrite")
    return int(seconds / epochs(probe / "log.csv")[1]["cpu_seconds"] * 40)


def dna_architectures() -> dict[str, Any]:
    """Networks with equal parameters and CPU minutes on P. falciparum, three seeds; no choice by validation."""
    minutes = float(os.environ.get("SEQSSM_STUDY_MINUTES", "10"))
    rows = []
    for seed in (1, 2, 3):
        for number, title in enumerate(ARCHITECTURES):
            flags = architecture_flags(title)
            batches = steps_within(60 * minutes, number, flags) // PIECES
            length = {"max_epochs": PIECES, "limit_train_batches": batches, "check_val_every_n_epoch": PIECES}
            words = [word for key, value in length.items() for word in (f"--trainer.{key}", str(value))]
            run = RUNS / "dna_architectures" / f"{minutes:g}_minutes" / f"{number}_seed-{seed}"
            fit = ("--config", "pfalciparum_pretrain", *flags, *words, "--seed_everything", str(seed))
            row = {"model": title, "seed": seed, "flags": list(flags), "steps": batches * PIECES}
            rows.append({**row, "minutes": minutes, **fitted(run, fit)})
            print(rows[-1], flush=True)
    return {"minutes": minutes, "rows": rows}


def dna_architectures_table(study: dict[str, Any]) -> str:
    """Mean and standard deviation over the seeds, best first."""
    lines = [["model", "parameters", "bits per base", "each seed", "CPU minutes"]]
    found = {}
    for title in ARCHITECTURES:
        found[title] = [row for row in study["rows"] if row["model"] == title]
    for title, own in sorted(found.items(), key=lambda one: statistics.fmean(row["bits_per_base"] for row in one[1])):
        bits = [row["bits_per_base"] for row in own]
        minutes = statistics.fmean(row["cpu_seconds"] for row in own) / 60
        each = ", ".join(f"{value:.4f}" for value in bits)
        lines.append([title, f"{own[0]['parameters'] / 1e3:.0f} k", spread(bits), each, f"{minutes:.1f}"])
    floor = study["rows"][0]["markov"]
    return (
        f"{markdown(lines)}\n\nAll of MAL13; k-mer Markov model: {floor:.4f}. Budget: {study['minutes']:g} CPU minutes."
    )


# -- designed promoters ------------------------------------------------------------------------------------------------


def dna_yeast() -> dict[str, Any]:
    """Yeast promoters designed for five expression classes, evaluated by a regressor trained on other rows.

    The generator is trained on the rows with even index, the regressor on those with odd index.
    """
    from seqssm.files.datasets import find

    folder = RUNS / "dna_yeast"
    folder.mkdir(parents=True, exist_ok=True)
    import pandas as pd

    table = pd.read_csv(find("yeast_random"))
    halves = {"generator": table[::2], "regressor": table[1::2]}
    for name, own in halves.items():
        own[["sequence", "expression"]].to_csv(folder / f"{name}.csv", index=False)
    for name, preset in (("generator", "yeast_generation"), ("regressor", "yeast_expression")):
        tested("dna", folder / name, ("--config", preset, "--data.train", relative(folder / f"{name}.csv")))
    known = set(table["sequence"].str.strip("N"))
    lengths = set(table["sequence"].str.strip("N").str.len())
    rows = []
    for number in range(5):
        designs = folder / f"bin_{number}.fa"
        words = ("--bin", str(number), "--count", "200", "--length", "110", "--seed", "1")
        seqssm("dna", "generate", relative(folder / "generator"), *words, "--output", relative(designs), "--overwrite")
        predicted = folder / f"bin_{number}.csv"
        words = (relative(folder / "regressor" / "best.ckpt"), relative(designs))
        seqssm("predict", *words, "--output", relative(predicted), "--overwrite")
        with open(designs, encoding="utf-8") as file:
            made = "".join("\n" if line[0] == ">" else line.strip() for line in file).split()
        values = [float(row["prediction"]) for row in table_of(predicted)]
        row = {"bin": number, "count": len(made), "mean": statistics.fmean(values), "sd": statistics.stdev(values)}
        row["valid"] = sum(set(one) <= set("ACGT") and len(one) == 110 and 110 in lengths for one in made)
        row["copied"] = sum(one in known for one in made)
        rows.append(row)
    test = results_of(folder / "regressor")["test"]["metrics"]
    return {"rows": rows, "regressor": test, "generator": results_of(folder / "generator")["test"]["metrics"]}


def dna_yeast_table(study: dict[str, Any]) -> str:
    """Mean predicted expression by requested class."""
    lines = [["requested class", "predicted expression", "valid, 110 letters", "copies of measured sequences"]]
    for row in study["rows"]:
        cells = [f"{row['mean']:.2f} ± {row['sd']:.2f}", f"{row['valid']} of {row['count']}", str(row["copied"])]
        lines.append([f"{row['bin'] + 1} of 5", *cells])
    return (
        f"{markdown(lines)}\n\nPearson r of the regressor, trained on other rows: {study['regressor']['pearson']:.3f}."
    )


STUDIES: dict[str, Study] = {
    "dna_promoters": (dna_promoters, dna_promoters_table),
    "dna_promoters_pretrained": (dna_promoters_pretrained, dna_promoters_pretrained_table),
    "dna_tata": (dna_tata, dna_tata_table),
    "dna_splice": (dna_splice, dna_splice_table),
    "dna_ctcf": (dna_ctcf, dna_ctcf_table),
    "dna_pfalciparum": (dna_pfalciparum, genome_table),
    "dna_pfalciparum_hour": (dna_pfalciparum_hour, genome_table),
    "dna_human_chr20": (dna_human_chr20, genome_table),
    "dna_architectures": (dna_architectures, dna_architectures_table),
    "dna_yeast": (dna_yeast, dna_yeast_table),
}
