"""Runs every figure that a README states on real data, and writes them: `results/<study>.json`, then the README tables.

    python results/real.py                 all studies; what is finished is not run again
    python results/real.py etth1_96        some of them
    python results/real.py --tables        only the tables, from the JSON files at hand

Runs lie in `runs/real/<study>` and are continued after an interruption. The data sets are found as everywhere
(`SEQSSM_DATA`, the user's cache). A table stands in a README between the lines `<!-- results: NAME -->` and
`<!-- end of results -->`; what is between them is written from the JSON, never by hand.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS, RUNS = ROOT / "results", ROOT / "runs" / "real"
BLOCK = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

PUBLISHED = {"smamba": (0.386, 0.405), "itransformer": (0.386, 0.405), "dlinear": (0.386, 0.400)}
"""ETTh1, look-back 96, horizon 96: (MSE, MAE) as the S-Mamba paper prints them (arXiv 2403.11144 v3, table 2)."""
TITLES = {
    "smamba": "S-Mamba",
    "smamba_reference": "S-Mamba, `engine=reference`",
    "itransformer": "transformer encoder of equal width (iTransformer)",
    "dlinear": "DLinear",
    "last_value": "last value",
    "seasonal_naive": "seasonal naive (24)",
}


def seqssm(*words: str) -> None:
    """Runs a command as a user types it; its output is shown."""
    print("$ seqssm " + " ".join(words), flush=True)
    code = subprocess.run([sys.executable, "-m", "seqssm", *words], cwd=ROOT, check=False).returncode
    if code != 0:
        raise SystemExit(f"ended with code {code}; the same command goes on here: python results/real.py")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    name = platform.processor()
    if Path("/proc/cpuinfo").is_file():
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        name = names[0] if names else name
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def folds(folder: Path) -> list[dict[str, Any]]:
    """The rows of a study's `folds.csv`, numbers as numbers."""
    with open(folder / "folds.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        {"model": row["model"], "seed": int(row["seed"]), "mse": float(row["mse"]), "mae": float(row["mae"])}
        for row in rows
    ]


def epochs(log: Path) -> list[dict[str, float]]:
    """The rows of a run's `log.csv`."""
    with open(log, newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


# -- forecasting -----------------------------------------------------------------------------------------------------


def etth1_96() -> dict[str, Any]:
    """ETTh1, 96 to 96, three seeds, beside the transformer encoder and the three baselines."""
    folder = RUNS / "etth1_96"
    models = "smamba,itransformer,dlinear,last_value,seasonal_naive"
    words = ["forecasting", "kfold", "--config", "etth1_96", "--seeds", "2023,2024,2025", "--models", models]
    seqssm(*words, "--output", str(folder.relative_to(ROOT)), "--resume")
    rows = folds(folder)
    for row in rows:
        log = folder / row["model"] / f"seed-{row['seed']}" / "log.csv"
        if log.is_file():
            own = epochs(log)
            row["epochs"] = len(own)
            row["best_epoch"] = int(min(own, key=lambda epoch: epoch["val_loss"])["epoch"])
            row["cpu_seconds_an_epoch"] = statistics.median(epoch["cpu_seconds"] for epoch in own)
    return {"command": "seqssm " + " ".join(words), "rows": rows}


def etth1_96_table(study: dict[str, Any]) -> str:
    """Mean and deviation over the seeds, each seed, the paper's figure."""
    rows = study["rows"]
    seeds = sorted({row["seed"] for row in rows})
    head = ["model", "test MSE", "test MAE", *(f"seed {seed}" for seed in seeds), "published"]
    lines = [head]
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["seed"]: row for row in rows if row["model"] == model}
        means = [_spread([row[name] for row in own.values()]) for name in ("mse", "mae")]
        each = [f"{own[seed]['mse']:.4f} / {own[seed]['mae']:.4f}" for seed in seeds]
        known = PUBLISHED.get(model)
        lines.append([TITLES[model], *means, *each, f"{known[0]:.3f} / {known[1]:.3f}" if known else ""])
    return _markdown(lines)


def _spread(values: list[float]) -> str:
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean:.4f}" if deviation < 5e-5 else f"{mean:.4f} ± {deviation:.4f}"


def etth1_96_cost() -> dict[str, Any]:
    """CPU seconds of an epoch (its validation included) of the same training, one thread, one run after the other."""
    folder = RUNS / "etth1_96_cost"
    words = ["forecasting", "kfold", "--config", "etth1_96", "--models", "smamba,smamba_reference,itransformer"]
    words += ["--trainer.max_epochs", "4"]
    seqssm(*words, "--output", str(folder.relative_to(ROOT)), "--resume")
    rows = []
    for model in ("smamba", "smamba_reference", "itransformer"):
        seconds = [epoch["cpu_seconds"] for epoch in epochs(folder / model / "seed-2023" / "log.csv")]
        rows.append({"model": model, "first": seconds[0], "later": seconds[1:]})
    return {"command": "seqssm " + " ".join(words), "rows": rows}


def etth1_96_cost_table(study: dict[str, Any]) -> str:
    """The median of the epochs after the first (which may compile), and their range."""
    own = statistics.median(study["rows"][0]["later"])
    lines = [["model", "CPU seconds an epoch", "least to most", "times S-Mamba"]]
    for row in study["rows"]:
        median = statistics.median(row["later"])
        spread = f"{min(row['later']):.1f} to {max(row['later']):.1f}"
        lines.append([TITLES[row["model"]], f"{median:.1f}", spread, f"{median / own:.2f}"])
    return _markdown(lines)


STUDIES: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], str]]] = {
    "etth1_96_cost": (etth1_96_cost, etth1_96_cost_table),
    "etth1_96": (etth1_96, etth1_96_table),
}
"""name -> (runs it, makes its table)."""


# -- tables ----------------------------------------------------------------------------------------------------------


def _markdown(lines: list[list[str]]) -> str:
    rows = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([rows[0], "|" + " --- |" * len(lines[0]), *rows[1:]])


def tables(names: list[str] | None = None) -> dict[str, str]:
    """The Markdown of every study that has been run."""
    made = {}
    for name in names or STUDIES:
        path = RESULTS / f"{name}.json"
        if path.is_file():
            study = json.loads(path.read_text(encoding="utf-8"))
            where = study["machine"]
            note = f"{where['cpu']}, torch {where['torch']}. Printed by `python results/real.py {name}`."
            made[name] = f"{STUDIES[name][1](study)}\n\n{note}\n"
    return made


def filled(text: str, made: dict[str, str]) -> str:
    """A README's text with the tables that it asks for."""
    return BLOCK.sub(lambda found: f"{found[1]}{made[found[2]]}{found[3]}" if found[2] in made else found[0], text)


def write_tables() -> None:
    """Puts the tables into every README that asks for one."""
    made = tables()
    for path in sorted([ROOT / "README.md", *ROOT.glob("domains/*/README.md"), *ROOT.glob("docs/**/*.md")]):
        if path.is_file():
            before = path.read_text(encoding="utf-8")
            after = filled(before, made)
            if after != before:
                path.write_text(after, encoding="utf-8")
                print(f"written: {path.relative_to(ROOT)}")


def main() -> None:
    """Runs the studies named on the command line, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of: {', '.join(STUDIES)}")
    parser.add_argument("--tables", action="store_true", help="run nothing, only write the tables")
    options = parser.parse_args()
    for name in options.studies:
        if name not in STUDIES:
            parser.error(f"no study {name}; there are: {', '.join(STUDIES)}")
    for name in [] if options.tables else options.studies or STUDIES:
        study = {"machine": machine(), **STUDIES[name][0]()}
        (RESULTS / f"{name}.json").write_text(json.dumps(study, indent=2) + "\n", encoding="utf-8")
        print(f"\n{name}\n{tables([name])[name]}", flush=True)
    write_tables()


if __name__ == "__main__":
    main()
