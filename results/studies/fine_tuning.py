"""What pretrained weights, adapters and frozen features gain: DNA, forecasting and pathology (ECG: `ecg_pretrain`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studies.common import RUNS, Study, epochs, relative, seeds, tested
from studies.starts import STARTS, fitted, starts_table


def cpu_seconds(run: Path) -> float:
    """CPU seconds of a run's training."""
    return sum(epoch["cpu_seconds"] for epoch in epochs(run / "log.csv"))


# -- DNA -------------------------------------------------------------------------------------------------------------

NETWORK = ["--model.d_model", "96", "--model.n_layers", "2", "--model.conv_layers", "6", "--model.d_state", "16"]
PROMOTERS = {10: ("25", "16"), 100: ("5", "32")}
"""Percentages of the labelled training sequences, and the epochs and the batch size of their fits."""


def dna_fine_tuning() -> dict[str, Any]:
    """Pretraining on the genome of E. coli 536, then promoters of E. coli with 10 and 100 % of the labels."""
    folder = RUNS / "dna_fine_tuning"
    folder.mkdir(parents=True, exist_ok=True)
    genome = ["--config", "pfalciparum_pretrain", "--data.dataset", "ecoli_536", "--trainer.max_epochs", "3"]
    genome += ["--trainer.check_val_every_n_epoch", "1"]
    pretrained = tested("dna", folder / "pretrained", genome)
    rows, commands = [], ["seqssm dna fit " + " ".join(genome)]
    for percent, (most, batch) in PROMOTERS.items():
        for seed in seeds():
            table = folder / f"labels-{percent}-{seed}.csv"
            records = write_promoters(table, percent / 100, seed)
            for start in STARTS:
                words = ["--config", "ecoli_promoters", "--model.network", "hybrid", *NETWORK]
                words += ["--data.train", relative(table), "--seed_everything", str(seed)]
                words += ["--trainer.max_epochs", most, "--data.batch_size", batch]
                run = folder / f"{start}-{percent}" / f"seed-{seed}"
                row, command = fitted("dna", run, start, words, folder / "pretrained", ("auroc", "mcc"))
                rows.append({"percent": percent, "records": records, "seed": seed, **row})
                if seed == seeds()[0]:
                    commands.append(command)
    bits = pretrained["metrics"]["bits_per_base"]
    cost = cpu_seconds(folder / "pretrained")
    return {"commands": commands, "bits_per_base": bits, "pretraining_cpu_seconds": cost, "rows": rows}


def write_promoters(path: Path, fraction: float, seed: int) -> int:
    """Write promoters of E. coli and others, split by class: 20 % test, 10 % validation, and a part of the rest.

    The sequences of a smaller fraction are among those of a larger one with the same seed.
    """
    import numpy as np
    import pandas as pd
    from Bio import SeqIO

    from seqssm.files.datasets import find_data_set

    rng, rows, kept = np.random.default_rng(seed), [], 0
    for label, name in (("promoter", "ecoli_promoter.fa"), ("other", "ecoli_non_promoter.fa")):
        found = sorted(
            {str(one.seq).upper() for one in SeqIO.parse(find_data_set("dna", f"promoters/{name}"), "fasta")}
        )
        order = [found[place] for place in rng.permutation(len(found))]
        test, val = round(0.2 * len(order)), round(0.3 * len(order))
        train = order[val:][: round(fraction * (len(order) - val))]
        kept += len(train)
        for split, own in (("train", train), ("val", order[test:val]), ("test", order[:test])):
            rows += [{"sequence": one, "label": label, "split": split} for one in own]
    pd.DataFrame(rows).to_csv(path, index=False)
    return kept


def dna_fine_tuning_table(study: dict[str, Any]) -> str:
    """Test AUROC and MCC of the promoters by way of training."""
    return (
        f"{starts_table(study['rows'], {'auroc': 'AUROC', 'mcc': 'MCC'}, 'sequences')}\n\n"
        f"Pretraining: {study['pretraining_cpu_seconds']:.0f} CPU seconds, {study['bits_per_base']:.4f} bits per base."
    )


# -- forecasting -----------------------------------------------------------------------------------------------------

HOURS = {10: 864, 100: 8640}
"""Percentages of the training rows of ETTh1, and their number."""


def forecasting_fine_tuning() -> dict[str, Any]:
    """Pretraining on ETTm1 (every 15 minutes), then ETTh1 (every hour) with 10 and 100 % of its training rows."""
    import pandas as pd

    from seqssm.files.datasets import find_data_set

    folder = RUNS / "forecasting_fine_tuning"
    folder.mkdir(parents=True, exist_ok=True)
    quarter_hours = ["--config", "ettm1_96", "--trainer.max_epochs", "3"]
    tested("forecasting", folder / "pretrained", quarter_hours)
    rows, commands = [], ["seqssm forecasting fit " + " ".join(quarter_hours)]
    hours = pd.read_csv(find_data_set("forecasting", "ETTh1.csv"))
    for percent, count in HOURS.items():
        table = folder / f"rows-{percent}.csv"
        hours.iloc[8640 - count : 14400].to_csv(table, index=False)
        borders = hours["date"].iloc[[8640, 11520]].tolist()
        for seed in seeds():
            for start in STARTS:
                words = ["--config", "etth1_96", "--seed_everything", str(seed), "--data.file", relative(table)]
                words += ["--data.marks", "hour", "--data.val_from", borders[0], "--data.test_from", borders[1]]
                run = folder / f"{start}-{percent}" / f"seed-{seed}"
                row, command = fitted("forecasting", run, start, words, folder / "pretrained", ("mse", "mae"))
                rows.append({"percent": percent, "records": count, "seed": seed, **row})
                if seed == seeds()[0]:
                    commands.append(command)
    return {"commands": commands, "pretraining_cpu_seconds": cpu_seconds(folder / "pretrained"), "rows": rows}


def forecasting_fine_tuning_table(study: dict[str, Any]) -> str:
    """Test MSE and MAE of ETTh1 by way of training; each share of the rows has its own scale."""
    return (
        f"{starts_table(study['rows'], {'mse': 'MSE', 'mae': 'MAE'}, 'rows')}\n\n"
        f"Pretraining: {study['pretraining_cpu_seconds']:.0f} CPU seconds."
    )


# -- pathology -------------------------------------------------------------------------------------------------------


def pathology_fine_tuning() -> dict[str, Any]:
    """Pretraining on the tumour type of the training cases of GBMLGG, then their survival; the five published folds."""
    folder = RUNS / "pathology_fine_tuning"
    types = ["--config", "gbmlgg", "--data.target", "classification", "--data.label_column", "oncotree"]
    rows, commands, costs = [], [], []
    for fold in range(5):
        own = [*types, "--data.fold", str(fold)]
        before = folder / "pretrained" / f"fold-{fold}"
        tested("pathology", before, own)
        costs.append(cpu_seconds(before))
        commands += ["seqssm pathology fit " + " ".join(own)] if fold == 0 else []
        for start in STARTS:
            words = ["--config", "gbmlgg", "--data.fold", str(fold)]
            row, command = fitted(
                "pathology", folder / start / f"fold-{fold}", start, words, before, ("c_index", "ibs")
            )
            rows.append({"percent": 100, "records": 455, "fold": fold, **row})
            commands += [command] if fold == 0 else []
    return {"commands": commands, "pretraining_cpu_seconds": sum(costs) / 5, "rows": rows}


def pathology_fine_tuning_table(study: dict[str, Any]) -> str:
    """Test concordance by way of training."""
    scores = {"c_index": "concordance", "ibs": "integrated Brier score"}
    return (
        f"{starts_table(study['rows'], scores, 'cases', 'fold')}\n\n"
        f"Pretraining of a fold: {study['pretraining_cpu_seconds']:.0f} CPU seconds."
    )


STUDIES: dict[str, Study] = {
    "dna_fine_tuning": (dna_fine_tuning, dna_fine_tuning_table),
    "forecasting_fine_tuning": (forecasting_fine_tuning, forecasting_fine_tuning_table),
    "pathology_fine_tuning": (pathology_fine_tuning, pathology_fine_tuning_table),
}
