"""Pathology studies: bags of patches and of genes with pooling baselines; time and memory of large bags."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies.common import ROOT, RUNS, Study, epochs, markdown, relative, seqssm, spread, table_of

TITLES = {
    "abmil": "attention pooling (ABMIL)",
    "abmil_gated": "gated attention pooling",
    "mean": "mean pooling",
    "max": "max pooling",
    "transmil": "attention between instances (TransMIL-style)",
    "mamba": "Mamba, one direction",
    "bimamba": "bidirectional Mamba",
    "srmamba": "SR-Mamba, rate 5",
    "srmamba_file": "SR-Mamba, genes by alphabet",
    "srmamba_family": "SR-Mamba, genes by family",
    "srmamba_importance": "SR-Mamba, genes by learned importance",
    "logistic": "logistic regression on mean features",
    "cox": "ridge Cox on 60 components",
    "covariate": "age alone",
    "kaplan_meier": "Kaplan-Meier curve of the training cases, no features",
}
PUBLISHED = {
    "pathology_musk1": {"abmil": "accuracy .892", "abmil_gated": "accuracy .900"},
    "pathology_ucsb": {},
    "pathology_gbmlgg": {},
}
"""ABMIL paper (ICML 2018), the same 5 x 10 folds."""


def pathology(name: str, preset: str, models: str, figures: tuple[str, ...]) -> dict[str, Any]:
    """A data set of bags, its published folds, three seeds; classification also pools the cases over the folds."""
    from seqssm.files.datasets import find_data_set

    splits = find_data_set("pathology", preset) / "splits"
    folder = RUNS / name
    words = ["pathology", "kfold", "--config", preset, "--seeds", "1,2,3", "--models", models]
    seqssm(*words, "--folds", str(splits), "--output", relative(folder), "--resume")
    rows: list[dict[str, Any]] = []
    for line in table_of(folder / "folds.csv"):
        row = {"model": line["model"], "fold": int(line["fold"]), "seed": int(line["seed"])}
        row |= {figure: float(line[figure]) for figure in figures if line.get(figure)}
        log = folder / row["model"] / f"fold-{row['fold']}_seed-{row['seed']}" / "log.csv"
        if log.is_file():
            row["cpu_seconds"] = sum(epoch["cpu_seconds"] for epoch in epochs(log))
        rows.append(row)
    study: dict[str, Any] = {"command": "seqssm " + " ".join(words) + f" --folds {preset}/splits", "rows": rows}
    if "auroc" in figures:
        study["pooled"] = pooled_auroc(folder, rows)
    return study


def pooled_auroc(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """AUROC over the pooled cases of ten folds, by model, seed and repeat, because folds have few cases."""
    import numpy as np

    from seqssm.metrics.columns import OutputColumns, read_test_records
    from seqssm.metrics.scores import auroc

    outputs = OutputColumns(("0", "1"))
    found: dict[tuple[str, int, int], list[tuple[bool, float]]] = {}
    for row in rows:
        run = folder / row["model"] / f"fold-{row['fold']}_seed-{row['seed']}"
        table = read_test_records(run, [outputs])
        if table is not None:
            cases = list(zip((table["label"] == "1").tolist(), table["p_1"].tolist()))
            found.setdefault((row["model"], row["seed"], row["fold"] // 10), []).extend(cases)
    pooled = []
    for (model, seed, repeat), cases in found.items():
        value = auroc(np.array([one[0] for one in cases]), np.array([one[1] for one in cases]))
        pooled.append({"model": model, "seed": seed, "repeat": repeat, "auroc": value})
    return pooled


def pathology_table(name: str, figures: dict[str, str]) -> Callable[[dict[str, Any]], str]:
    """Mean and standard deviation over the seeds of each model's mean over the folds, and its paired difference to the
    first model in the same fold and seed: the mean, and how often the model is better."""

    def made(study: dict[str, Any]) -> str:
        rows, published = study["rows"], PUBLISHED[name]
        models = list(dict.fromkeys(row["model"] for row in rows))
        seeds = sorted({row["seed"] for row in rows})
        # studies without the null model have Brier scores of an earlier version, in which S(t) was a step function
        shown = {key: title for key, title in figures.items() if key != "ibs" or "kaplan_meier" in models}
        head = ["model", *shown.values()]
        head += ["AUROC, cases pooled"] if "pooled" in study else []
        main = next(iter(figures))
        lines = [[*head, f"difference in {figures[main]}, runs won", "published", "CPU seconds per fit"]]

        def means(model: str, figure: str) -> list[float]:
            own = [[r[figure] for r in rows if (r["model"], r["seed"]) == (model, s) and figure in r] for s in seeds]
            return [statistics.fmean(values) for values in own if values]

        runs = {m: {(r["fold"], r["seed"]): r[main] for r in rows if r["model"] == m and main in r} for m in models}
        for model in models:
            line = [TITLES[model]]
            line += [spread(means(model, figure)) if means(model, figure) else "" for figure in shown]
            if "pooled" in study:
                own = [row for row in study["pooled"] if row["model"] == model]
                by_seed = [statistics.fmean(r["auroc"] for r in own if r["seed"] == seed) for seed in seeds if own]
                line.append(spread(by_seed) if own else "")
            gaps = [runs[model][pair] - value for pair, value in runs[models[0]].items() if pair in runs[model]]
            seconds = [row["cpu_seconds"] for row in rows if row["model"] == model and "cpu_seconds" in row]
            won = f"{statistics.fmean(gaps):+.4f}, {sum(gap > 0 for gap in gaps)} of {len(gaps)}" if gaps else ""
            line.append("" if model == models[0] else won)
            line += [published.get(model, ""), f"{statistics.median(seconds):.1f}" if seconds else ""]
            lines.append(line)
        found = {TITLES[model]: means(model, main) for model in models}
        return f"{markdown(lines)}\n\n{winner(figures[main], found)}"

    return made


def winner(figure: str, found: dict[str, list[float]]) -> str:
    """A sentence with the model of the highest mean over the seeds, and the models within both standard deviations."""
    mean = {model: statistics.fmean(values) for model, values in found.items() if values}
    std = {model: statistics.stdev(found[model]) if len(found[model]) > 1 else 0.0 for model in mean}
    best = max(mean, key=lambda model: mean[model])
    near = [m for m in mean if m != best and mean[best] - mean[m] <= std[best] + std[m]]
    others = "; ".join(near) or "none"
    return f"Highest {figure}: {best}. Within the sum of both standard deviations: {others}."


POOLING = "abmil,abmil_gated,mean,max,transmil,mamba,bimamba,srmamba,logistic"
GENES = "abmil,mean,max,srmamba_file,srmamba_family,srmamba_importance,cox,covariate,kaplan_meier"


def pathology_memory() -> dict[str, Any]:
    """Time and peak memory of a training step and a prediction, 1,000 to 100,000 instances of width 1,024."""
    words = ["pathology", "measure", "--sizes", "1000,3000,10000,30000,100000"]
    print("$ seqssm " + " ".join(words), flush=True)
    command = [sys.executable, "-m", "seqssm", *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return {"command": "seqssm " + " ".join(words), "rows": json.loads(done.stdout)}


def pathology_memory_table(study: dict[str, Any]) -> str:
    """One row per step and size."""
    lines = [["step", "instances", "CPU seconds", "CPU ms per 1,000", "peak memory of the process, GB"]]
    for row in study["rows"]:
        cells = [f"{row['cpu_seconds']:.2f}", f"{row['cpu_ms_per_1000']:.0f}", f"{row['peak_gb']:.2f}"]
        lines.append([row["step"], f"{row['instances']:,}", *cells])
    return markdown(lines)


STUDIES: dict[str, Study] = {
    "pathology_musk1": (
        lambda: pathology("pathology_musk1", "musk1", POOLING, ("accuracy", "balanced_accuracy", "auroc")),
        pathology_table("pathology_musk1", {"accuracy": "accuracy", "auroc": "AUROC, mean of folds"}),
    ),
    "pathology_ucsb": (
        lambda: pathology(
            "pathology_ucsb", "ucsb_breast", "mean," + POOLING.replace("mean,", ""), ("auroc", "accuracy")
        ),
        pathology_table("pathology_ucsb", {"accuracy": "accuracy", "auroc": "AUROC, mean of folds"}),
    ),
    "pathology_gbmlgg": (
        lambda: pathology("pathology_gbmlgg", "gbmlgg", GENES, ("c_index", "ibs")),
        pathology_table("pathology_gbmlgg", {"c_index": "C-index", "ibs": "integrated Brier score"}),
    ),
    "pathology_memory": (pathology_memory, pathology_memory_table),
}
