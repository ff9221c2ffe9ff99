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
PUBLISHED_M1 = {"smamba": (0.333, 0.368), "dlinear": (0.345, 0.372)}
"""The same of ETTm1."""
ETT_MODELS = "smamba,itransformer,dlinear,last_value,seasonal_naive"
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


def benchmark(preset: str, models: str) -> dict[str, Any]:
    """A public benchmark, three seeds, beside the baselines."""
    folder = RUNS / preset
    words = ["forecasting", "kfold", "--config", preset, "--seeds", "2023,2024,2025", "--models", models]
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


def benchmark_table(published: dict[str, tuple[float, float]], season: int = 24) -> Callable[[dict[str, Any]], str]:
    """Mean and deviation over the seeds, each seed, the paper's figure."""

    def table(study: dict[str, Any]) -> str:
        rows = study["rows"]
        seeds = sorted({row["seed"] for row in rows})
        head = ["model", "test MSE", "test MAE", *(f"seed {seed}" for seed in seeds), "published"]
        lines = [head]
        for model in dict.fromkeys(row["model"] for row in rows):
            own = {row["seed"]: row for row in rows if row["model"] == model}
            means = [_spread([row[name] for row in own.values()]) for name in ("mse", "mae")]
            each = [f"{own[seed]['mse']:.4f} / {own[seed]['mae']:.4f}" for seed in seeds]
            known = published.get(model)
            title = TITLES[model].replace("(24)", f"({season})")
            lines.append([title, *means, *each, f"{known[0]:.3f} / {known[1]:.3f}" if known else ""])
        return _markdown(lines)

    return table


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


def tested(folder: Path, *words: str) -> list[dict[str, Any]]:
    """The tables of the test of one fit, which is run, or continued, where it is not finished."""
    path, name = folder / "metrics.json", str(folder.relative_to(ROOT))
    kept = json.loads(path.read_text(encoding="utf-8")).get("test") if path.is_file() else None
    if kept is None:
        begun = (folder / "config.yaml").is_file()
        seqssm("forecasting", "fit", *(["--resume", name] if begun else [*words, "--output", name]))
    if kept is None or not any(table["title"].startswith("Intervals") for table in kept["tables"]):
        seqssm("forecasting", "test", name)
        kept = json.loads(path.read_text(encoding="utf-8"))["test"]
    return kept["tables"]


def of_study(preset: str) -> Path:
    """The run of a preset: that of its study where there is one, else one of its own."""
    studied = RUNS / preset / "smamba" / "seed-2023"
    return studied if (studied / "metrics.json").is_file() else RUNS / "intervals" / preset


def weather_96() -> dict[str, Any]:
    """Weather, 96 to 96, two epochs, one seed: with its 81 cells of -9999 as published, and with them filled."""
    common = ["--config", "weather_96", "--trainer.max_epochs", "2", "--model.threads", "1"]
    variants = {"published": common, "cleaned": [*common, "--data.sentinels", "-9999", "--data.missing", "forward"]}
    rows = []
    for variant, words in variants.items():
        for row in tested(RUNS / "weather_96" / variant, *words)[0]["rows"]:
            rows.append({"variant": variant, **{name: row[name] for name in ("model", "mse", "mae")}})
    commands = ["seqssm forecasting fit " + " ".join(words) for words in variants.values()]
    return {"commands": commands, "rows": rows}


def weather_96_table(study: dict[str, Any]) -> str:
    """One row a model, one pair of columns a variant."""
    titles = {"published": "as published (MSE / MAE)", "cleaned": "-9999 taken as missing (MSE / MAE)"}
    there = [variant for variant in titles if any(row["variant"] == variant for row in study["rows"])]
    lines = [["model", *(titles[variant] for variant in there)]]
    for model in dict.fromkeys(row["model"] for row in study["rows"]):
        own = {row["variant"]: row for row in study["rows"] if row["model"] == model}
        lines.append([TITLES.get(model, model), *(f"{own[v]['mse']:.4f} / {own[v]['mae']:.4f}" for v in there)])
    return _markdown(lines)


def forecasting_intervals() -> dict[str, Any]:
    """Coverage and width of the conformal bands on the test parts of ETTh1 and ETTm1, 96 to 96."""
    rows = []
    for preset in ("etth1_96", "ettm1_96"):
        tables = tested(of_study(preset), "--config", preset)
        found = next(table for table in tables if table["title"].startswith("Intervals"))
        own = tables[0]["rows"][0]
        rows += [{"preset": preset, "crps": own["crps"], "mae": own["mae"], **row} for row in found["rows"]]
    return {"command": "seqssm forecasting test RUN", "rows": rows}


def forecasting_intervals_table(study: dict[str, Any]) -> str:
    """One row a set and level."""
    lines = [["set", "level", "coverage", "mean width, scaled", "coverage by series", "CRPS", "MAE"]]
    for row in study["rows"]:
        span = f"{row['least of a variate']:.1f} to {row['largest']:.1f} %"
        name = row["preset"].replace("etth1_96", "ETTh1").replace("ettm1_96", "ETTm1")
        figures = [f"{row['coverage']:.1f} %", f"{row['width']:.2f}", span, f"{row['crps']:.4f}", f"{row['mae']:.4f}"]
        lines.append([name, f"{row['level']:g} %", *figures])
    return _markdown(lines)


def forecasting_backtest() -> dict[str, Any]:
    """1,000 windows of ETTh1 in one backtest, beside one prediction for each of 25 of them; one thread."""
    import tempfile
    import time

    import numpy as np
    import pandas as pd
    import torch

    import seqssm as package

    torch.set_num_threads(1)
    folder = of_study("etth1_96")
    tested(folder, "--config", "etth1_96")
    model, path = package.load(folder, accelerator="cpu"), package.find("etth1")
    frame = pd.read_csv(path)
    model.predict(path)  # compiles
    began = time.perf_counter()
    many = model.predict(path, backtest=1000)
    batched = time.perf_counter() - began
    chosen = many["cutoff"].drop_duplicates().sort_values().iloc[:: 1000 // 25]
    deviation = dict(zip(model.summary["columns"], model.summary["std"].tolist()))
    spent, largest = {"whole": 0.0, "short": 0.0}, 0.0
    with tempfile.TemporaryDirectory() as place:
        cut = Path(place) / "cut.csv"
        for cutoff in chosen:
            end = int(np.flatnonzero(pd.to_datetime(frame["date"]) == cutoff)[0]) + 1
            for kind, first in (("whole", 0), ("short", end - model.summary["lookback"])):
                frame.iloc[first:end].to_csv(cut, index=False)
                began = time.perf_counter()
                one = model.predict(cut)
                spent[kind] += (time.perf_counter() - began) / len(chosen) * 1000
            same = many[many["cutoff"] == cutoff]
            scale = one["unique_id"].map(deviation).to_numpy()
            largest = max(largest, float(np.abs((one["yhat"].to_numpy() - same["yhat"].to_numpy()) / scale).max()))
    predictor = model.predictor({"backtest": 1000})
    history = predictor.history(Path(path))  # type: ignore[attr-defined]
    forward = predictor._forward  # type: ignore[attr-defined]
    windows = [(history, end) for end in history.ends]
    with torch.inference_mode():
        began = time.perf_counter()
        for start in range(0, 1000, 256):
            forward(windows[start : start + 256])
        network = time.perf_counter() - began
        began = time.perf_counter()
        for window in windows[::10]:
            forward([window])
        alone = (time.perf_counter() - began) * 10
    return {
        "seconds": {"backtest": batched, **spent, "forward_batched": network, "forward_alone": alone},
        "largest_difference": largest,
    }


def forecasting_backtest_table(study: dict[str, Any]) -> str:
    """Seconds for 1,000 windows each way."""
    seconds = study["seconds"]
    lines = [["1,000 windows of ETTh1, 96 to 96", "seconds", "times the backtest's"]]
    for name, title in (
        ("backtest", "`--backtest 1000`"),
        ("whole", "one `predict` a window, of the file up to the cutoff"),
        ("short", "one `predict` a window, of a file of its 96 rows alone"),
    ):
        lines.append([title, f"{seconds[name]:.1f}", f"{seconds[name] / seconds['backtest']:.1f}"])
    lines.append(["network alone, 256 windows at once", f"{seconds['forward_batched']:.2f}", ""])
    ratio = seconds["forward_alone"] / seconds["forward_batched"]
    lines.append(
        ["network alone, one window at a time", f"{seconds['forward_alone']:.1f}", f"({ratio:.1f} of the line above)"]
    )
    largest = f"Largest difference of a forecast, scaled: {study['largest_difference']:.1e}."
    return f"{_markdown(lines)}\n\n{largest}"


# -- ECG -------------------------------------------------------------------------------------------------------------

ECG_TITLES = {
    "mamba": "bidirectional Mamba (the preset)",
    "cnn": "residual 1-D CNN",
    "forward": "forward-only Mamba",
    "linear": "linear model on 19 numbers a lead",
    "prior": "training frequencies",
}
ECG_CLASSES = ("NORM", "MI", "STTC", "CD", "HYP")


def ecg_ptbxl_small() -> dict[str, Any]:
    """The 1,819 PTB-XL records, three seeds, beside a CNN, the forward-only variant and two baselines."""
    folder = RUNS / "ecg_ptbxl_small"
    models = "mamba,cnn,forward,linear,prior"
    words = ["ecg", "kfold", "--config", "ptbxl_superclass_small", "--seeds", "1,2,3", "--models", models]
    seqssm(*words, "--output", str(folder.relative_to(ROOT)), "--resume")
    with open(folder / "folds.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    rows: list[dict[str, Any]] = []
    for line in table:
        row = {"model": line["model"], "seed": int(line["seed"])}
        row |= {name: float(line[name]) for name in ("auroc", "auprc", "f1", "accuracy", "calibration_error")}
        run = folder / row["model"] / f"seed-{row['seed']}"
        if (run / "log.csv").is_file():
            own = epochs(run / "log.csv")
            row["cpu_seconds"] = sum(epoch["cpu_seconds"] for epoch in own)
            row["best_val_auroc"] = max(epoch["val_auroc"] for epoch in own)
        rows.append(row)
    return {"command": "seqssm " + " ".join(words), "rows": rows, "intervals": ecg_intervals(folder)}


def ecg_intervals(folder: Path, draws: int = 1000) -> list[dict[str, Any]]:
    """By model: 5 and 95 % over drawn test records of its seeds' mean AUROC, and of the difference to the first one."""
    import numpy as np
    from seqssm_ecg.metrics import auroc, every_class, macro

    def runs(model: str) -> tuple[Any, list[Any]]:
        found = sorted((folder / model).glob("seed-*/figures/test_records.csv"))
        truth: Any = None
        scores = []
        for path in found:
            with open(path, newline="", encoding="utf-8") as file:
                table = list(csv.DictReader(file))
            truth = np.array([[float(row[f"{name}_truth"]) for name in ECG_CLASSES] for row in table])
            scores.append(np.array([[float(row[name]) for name in ECG_CLASSES] for row in table]))
        return truth, scores

    models = [model for model in ECG_TITLES if list((folder / model).glob("seed-*/figures/test_records.csv"))]
    truth, _ = runs(models[0])
    scores = {model: runs(model)[1] for model in models}
    random, usable = np.random.default_rng(0), every_class(truth)
    values: dict[str, list[float]] = {model: [] for model in models}
    while len(values[models[0]]) < draws:
        index = random.integers(0, len(truth), len(truth))
        if usable(index):
            for model in models:
                values[model].append(statistics.fmean(macro(auroc(truth[index], one[index])) for one in scores[model]))
    first = np.array(values[models[0]])
    rows = []
    for model in models:
        own = np.array(values[model])
        by_class = np.mean([auroc(truth, one) for one in scores[model]], axis=0)
        row: dict[str, Any] = {"model": model, "low": np.percentile(own, 5), "high": np.percentile(own, 95)}
        row["by_class"] = {name: float(value) for name, value in zip(ECG_CLASSES, by_class)}
        if model != models[0]:
            point = [macro(auroc(truth, a)) - macro(auroc(truth, b)) for a, b in zip(scores[model], scores[models[0]])]
            row["difference"] = statistics.fmean(point)
            row["difference_low"] = np.percentile(own - first, 5)
            row["difference_high"] = np.percentile(own - first, 95)
        rows.append({key: float(value) if isinstance(value, np.floating) else value for key, value in row.items()})
    return rows


def ecg_ptbxl_small_table(study: dict[str, Any]) -> str:
    """Mean and deviation over the seeds, the interval over the records, and the paired difference to the preset."""
    intervals = {row["model"]: row for row in study["intervals"]}
    head = ["model", "test AUROC", "90 % over records", "difference to the preset (90 %)", "AUPRC", "F1", "each seed"]
    lines = [[*head, "CPU seconds a run"]]
    for model in dict.fromkeys(row["model"] for row in study["rows"]):
        own = [row for row in study["rows"] if row["model"] == model]
        means = [_spread([row[name] for row in own]) for name in ("auroc", "auprc", "f1")]
        known = intervals.get(model, {})
        interval = f"{known['low']:.3f} to {known['high']:.3f}" if known else ""
        difference = ""
        if "difference" in known:
            low, high = known["difference_low"], known["difference_high"]
            difference = f"{known['difference']:+.4f} ({low:+.3f} to {high:+.3f})"
        each = ", ".join(f"{row['auroc']:.4f}" for row in own)
        seconds = [row["cpu_seconds"] for row in own if "cpu_seconds" in row]
        cost = f"{statistics.median(seconds):.0f}" if seconds else ""
        lines.append([ECG_TITLES[model], means[0], interval, difference, means[1], means[2], each, cost])
    classes = [["model", *ECG_CLASSES]]
    for row in study["intervals"]:
        classes.append([ECG_TITLES[row["model"]], *(f"{row['by_class'][name]:.3f}" for name in ECG_CLASSES)])
    return _markdown(lines) + "\n\nAUROC by class, mean of the seeds:\n\n" + _markdown(classes)


def ecg_speed() -> dict[str, Any]:
    """Records a second and core of `seqssm predict` with the small preset, over the 1,819 records, one thread."""
    import resource
    import time

    from seqssm.datasets import locate

    run = RUNS / "ecg_ptbxl_small" / "mamba" / "seed-1"
    records = locate("ecg", "ptbxl")
    output = RUNS / "ecg_speed.csv"
    words = ["predict", str(run.relative_to(ROOT)), str(records), "--output", str(output), "--overwrite"]
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    for _ in range(3):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        seqssm(*words, "--accelerator", "cpu")
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        with open(output, encoding="utf-8") as file:
            count = sum(1 for _ in file) - 1
        rows.append({"records": count, "wall_seconds": wall, "cpu_seconds": cpu})
    output.unlink()
    return {"command": "seqssm predict runs/real/ecg_ptbxl_small/mamba/seed-1 ptbxl --output out.csv", "rows": rows}


def ecg_speed_table(study: dict[str, Any]) -> str:
    """Start-up, reading and writing included."""
    lines = [["records of 10 s", "CPU seconds (start included)", "records a CPU second"]]
    for row in study["rows"]:
        lines.append([str(row["records"]), f"{row['cpu_seconds']:.1f}", f"{row['records'] / row['cpu_seconds']:.0f}"])
    return _markdown(lines)


# -- pathology ---------------------------------------------------------------------------------------------------------

PATHOLOGY_TITLES = {
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
}
PATHOLOGY_PUBLISHED = {
    "pathology_musk1": {"abmil": "accuracy .892", "abmil_gated": "accuracy .900"},
    "pathology_ucsb": {},
    "pathology_gbmlgg": {},
}
"""ABMIL paper (ICML 2018), the same 5 x 10 folds."""


def pathology(name: str, preset: str, models: str, figures: tuple[str, ...]) -> dict[str, Any]:
    """A data set of bags, its published folds, three seeds; classification also pools the cases of a round of folds."""
    from seqssm.datasets import locate

    splits = locate("pathology", preset) / "splits"
    folder = RUNS / name
    words = ["pathology", "kfold", "--config", preset, "--seeds", "1,2,3", "--models", models]
    seqssm(*words, "--folds", str(splits), "--output", str(folder.relative_to(ROOT)), "--resume")
    with open(folder / "folds.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    rows: list[dict[str, Any]] = []
    for line in table:
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
    """AUROC over all cases of ten folds together, by model, seed and repeat: single folds hold a handful of cases."""
    import numpy as np
    from seqssm_pathology.metrics import auroc

    found: dict[tuple[str, int, int], list[tuple[bool, float]]] = {}
    for row in rows:
        path = folder / row["model"] / f"fold-{row['fold']}_seed-{row['seed']}" / "figures" / "predictions.csv"
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                cases = [(case["Y"] == "1", float(case["p_1"])) for case in csv.DictReader(file)]
            found.setdefault((row["model"], row["seed"], row["fold"] // 10), []).extend(cases)
    pooled = []
    for (model, seed, repeat), cases in found.items():
        value = auroc(np.array([one[0] for one in cases]), np.array([one[1] for one in cases]))
        pooled.append({"model": model, "seed": seed, "repeat": repeat, "auroc": value})
    return pooled


def pathology_table(name: str, figures: dict[str, str]) -> Callable[[dict[str, Any]], str]:
    """Mean and deviation over the seeds of each model's mean over the folds, and the difference to the first model."""

    def made(study: dict[str, Any]) -> str:
        rows, published = study["rows"], PATHOLOGY_PUBLISHED[name]
        models = list(dict.fromkeys(row["model"] for row in rows))
        seeds = sorted({row["seed"] for row in rows})
        head = ["model", *figures.values()]
        head += ["AUROC, cases pooled"] if "pooled" in study else []
        main = next(iter(figures))
        lines = [[*head, f"difference in {figures[main]}", "published", "CPU seconds a fit"]]

        def means(model: str, figure: str) -> list[float]:
            own = [[r[figure] for r in rows if (r["model"], r["seed"]) == (model, s) and figure in r] for s in seeds]
            return [statistics.fmean(values) for values in own if values]

        for model in models:
            line = [PATHOLOGY_TITLES[model]]
            line += [_spread(means(model, figure)) if means(model, figure) else "" for figure in figures]
            if "pooled" in study:
                own = [row for row in study["pooled"] if row["model"] == model]
                by_seed = [statistics.fmean(r["auroc"] for r in own if r["seed"] == seed) for seed in seeds if own]
                line.append(_spread(by_seed) if own else "")
            gaps = [a - b for a, b in zip(means(model, main), means(models[0], main))]
            seconds = [row["cpu_seconds"] for row in rows if row["model"] == model and "cpu_seconds" in row]
            line.append("" if model == models[0] else f"{statistics.fmean(gaps):+.4f}")
            line += [published.get(model, ""), f"{statistics.median(seconds):.1f}" if seconds else ""]
            lines.append(line)
        return _markdown(lines)

    return made


POOLING = "abmil,abmil_gated,mean,max,transmil,mamba,bimamba,srmamba,logistic"
GENES = "abmil,mean,max,srmamba_file,srmamba_family,srmamba_importance,cox,covariate"


def pathology_memory() -> dict[str, Any]:
    """Time and peak memory of a training step and a prediction, 1,000 to 100,000 instances of width 1,024."""
    words = ["pathology", "measure", "--sizes", "1000,3000,10000,30000,100000"]
    print("$ seqssm " + " ".join(words), flush=True)
    command = [sys.executable, "-m", "seqssm", *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return {"command": "seqssm " + " ".join(words), "rows": json.loads(done.stdout)}


def pathology_memory_table(study: dict[str, Any]) -> str:
    lines = [["step", "instances", "CPU seconds", "CPU ms per 1,000", "peak memory of the process, GB"]]
    for row in study["rows"]:
        cells = [f"{row['cpu_seconds']:.2f}", f"{row['cpu_ms_per_1000']:.0f}", f"{row['peak_gb']:.2f}"]
        lines.append([row["step"], f"{row['instances']:,}", *cells])
    return _markdown(lines)


STUDIES: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], str]]] = {
    "etth1_96_cost": (etth1_96_cost, etth1_96_cost_table),
    "etth1_96": (lambda: benchmark("etth1_96", ETT_MODELS), benchmark_table(PUBLISHED)),
    "ettm1_96": (
        lambda: benchmark("ettm1_96", ETT_MODELS.replace("itransformer,", "")),
        benchmark_table(PUBLISHED_M1, 96),
    ),
    "weather_96": (weather_96, weather_96_table),
    "forecasting_intervals": (forecasting_intervals, forecasting_intervals_table),
    "forecasting_backtest": (forecasting_backtest, forecasting_backtest_table),
    "ecg_ptbxl_small": (ecg_ptbxl_small, ecg_ptbxl_small_table),
    "ecg_speed": (ecg_speed, ecg_speed_table),
    "pathology_musk1": (
        lambda: pathology("pathology_musk1", "musk1", POOLING, ("accuracy", "balanced_accuracy", "auroc")),
        pathology_table("pathology_musk1", {"accuracy": "accuracy"}),
    ),
    "pathology_ucsb": (
        lambda: pathology(
            "pathology_ucsb", "ucsb_breast", "mean," + POOLING.replace("mean,", ""), ("auroc", "accuracy")
        ),
        pathology_table("pathology_ucsb", {"accuracy": "accuracy"}),
    ),
    "pathology_gbmlgg": (
        lambda: pathology("pathology_gbmlgg", "gbmlgg", GENES, ("c_index", "ibs")),
        pathology_table("pathology_gbmlgg", {"c_index": "C-index", "ibs": "integrated Brier score"}),
    ),
    "pathology_memory": (pathology_memory, pathology_memory_table),
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
