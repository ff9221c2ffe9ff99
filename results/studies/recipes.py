"""Study of recipes of SR-Mamba on small bags.

Mixed pooling, shuffled orders averaged at test, half the epochs, and an exponential moving average of the weights.
"""

from __future__ import annotations

import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from studies.common import RUNS, Study, epochs, markdown, relative, seqssm, spread, table_of


class Data(NamedTuple):
    """A data set of the study.

    Attributes:
        preset: preset of the domain, also the name of the data.
        score: metric beside the negative log-likelihood.
        epochs: epochs of the preset.
        seeds: comma-separated seeds.
    """

    preset: str
    score: str
    epochs: int
    seeds: str = "1,2,3"


DATA = (
    Data("musk1", "accuracy", 40),
    Data("ucsb_breast", "auroc", 40),
    Data("elephant", "accuracy", 40),
    Data("gbmlgg", "c_index", 12),
)
FOLDS = 10  # of MUSK1 and Elephant, the first of five repetitions of ten folds
RECIPES = {
    "srmamba": "attention pooling, one order",
    "srmamba_mixed": "mixed pooling",
    "srmamba_shuffled": "mixed pooling, 8 shuffled orders",
    "srmamba_shuffled, half": "mixed pooling, 8 shuffled orders, half the epochs",
    "srmamba, averaged": "attention pooling, one order, averaged weights",
    "srmamba_shuffled, half, averaged": "mixed pooling, 8 shuffled orders, half the epochs, averaged weights",
    "abmil": "attention pooling without a scan (ABMIL)",
    "max": "max pooling without a scan",
}
DECAY = 0.9  # of the average, chosen on validation parts of glioma's training folds


def first_folds(preset: str) -> Path:
    """Copy the split files of the first ten folds of a data set, and return their folder."""
    from seqssm.files.datasets import find_data_set
    from seqssm.files.splits import split_files

    folder = RUNS / "pathology_recipes" / "splits" / preset
    folder.mkdir(parents=True, exist_ok=True)
    for number, path in split_files(find_data_set("pathology", preset) / "splits").items():
        if number < FOLDS:
            shutil.copy(path, folder / path.name)
    return folder


def recipes(data: Data) -> dict[str, Any]:
    """Every recipe on a data set: the first ten published folds (glioma: all five) and three seeds."""
    rows: list[dict[str, Any]] = []
    splits = first_folds(data.preset)
    for how in dict.fromkeys(name.partition(", ")[2] for name in RECIPES):
        models = [name.partition(", ")[0] for name in RECIPES if name.partition(", ")[2] == how]
        folder = RUNS / "pathology_recipes" / "_".join([data.preset, *filter(None, how.split(", "))])
        words = ["pathology", "kfold", "--config", data.preset, "--folds", str(splits), "--seeds", data.seeds]
        words += ["--models", ",".join(models), "--output", relative(folder), "--resume"]
        words += ["--model.averaging", str(DECAY)] if "averaged" in how else []
        seqssm(*words, "--trainer.max_epochs", str(data.epochs // (2 if "half" in how else 1)))
        for line in table_of(folder / "folds.csv"):
            run = folder / line["model"] / f"fold-{line['fold']}_seed-{line['seed']}"
            row: dict[str, Any] = {"model": ", ".join(filter(None, (line["model"], how))), "fold": int(line["fold"])}
            row |= {"seed": int(line["seed"]), "nll": float(line["nll"]), "score": float(line[data.score])}
            rows.append({**row, "cpu_seconds": sum(one["cpu_seconds"] for one in epochs(run / "log.csv"))})
    return {"rows": rows}


def paired(rows: list[dict[str, Any]], model: str, key: str) -> tuple[float, float]:
    """Mean difference of a recipe to the first one in the same fold, seeds averaged, and its standard error."""

    def by_fold(name: str) -> dict[int, float]:
        own = [row for row in rows if row["model"] == name]
        return {f: statistics.fmean(r[key] for r in own if r["fold"] == f) for f in sorted({r["fold"] for r in own})}

    base, own = by_fold("srmamba"), by_fold(model)
    gaps = [own[fold] - base[fold] for fold in own]
    return statistics.fmean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5


def recipes_table(data: Data, study: dict[str, Any]) -> str:
    """Mean and standard deviation over the seeds, and paired difference to the first recipe over the folds."""
    rows = study["rows"]
    score = {"accuracy": "accuracy", "auroc": "AUROC", "c_index": "C-index"}[data.score]
    lines = [["recipe", "NLL, lower", "difference ± s.e.", score, "difference ± s.e.", "CPU seconds per fit"]]
    for model, title in RECIPES.items():
        own = [row for row in rows if row["model"] == model]
        cells = []
        for key in ("nll", "score"):
            seeds = sorted({row["seed"] for row in own})
            cells.append(spread([statistics.fmean(r[key] for r in own if r["seed"] == seed) for seed in seeds]))
            gap, error = paired(rows, model, key)
            cells.append("" if model == "srmamba" else f"{gap:+.3f} ± {error:.3f}")
        lines.append([title, *cells, f"{statistics.median(row['cpu_seconds'] for row in own):.1f}"])
    return markdown(lines)


STUDIES: dict[str, Study] = {
    f"recipes_{data.preset}": (partial(recipes, data), partial(recipes_table, data)) for data in DATA
}
