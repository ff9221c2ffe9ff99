"""Forecasting studies: public benchmarks with baselines, their cost, prediction intervals, backtest."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies.common import RUNS, Study, epochs, markdown, relative, results_of_study, seqssm, spread, table_of, tested

PUBLISHED = {"smamba": (0.386, 0.405), "itransformer": (0.386, 0.405), "dlinear": (0.386, 0.400)}
"""ETTh1, look-back 96, horizon 96: (MSE, MAE) as reported in the S-Mamba paper (arXiv 2403.11144 v3, table 2)."""
PUBLISHED_M1 = {"smamba": (0.333, 0.368), "dlinear": (0.345, 0.372)}
"""The same for ETTm1."""
ETT_MODELS = "smamba,itransformer,dlinear,last_value,seasonal_naive"
TITLES = {
    "smamba": "S-Mamba",
    "smamba_reference": "S-Mamba, `engine=reference`",
    "itransformer": "transformer encoder of equal width (iTransformer)",
    "dlinear": "DLinear",
    "last_value": "last value",
    "seasonal_naive": "seasonal naive (24)",
}


def folds(folder: Path) -> list[dict[str, Any]]:
    """The rows of a study's `folds.csv`, with numeric values converted."""
    return [
        {"model": row["model"], "seed": int(row["seed"]), "mse": float(row["mse"]), "mae": float(row["mae"])}
        for row in table_of(folder / "folds.csv")
    ]


def benchmark(preset: str, models: str) -> dict[str, Any]:
    """A public benchmark, three seeds, compared with the baselines."""
    folder = RUNS / preset
    words = ["forecasting", "kfold", "--config", preset, "--seeds", "2023,2024,2025", "--models", models]
    seqssm(*words, "--output", relative(folder), "--resume")
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
    """Mean and standard deviation over the seeds, each seed, and the paper's figure."""

    def table(study: dict[str, Any]) -> str:
        rows = study["rows"]
        seeds = sorted({row["seed"] for row in rows})
        head = ["model", "test MSE", "test MAE", *(f"seed {seed}" for seed in seeds), "published"]
        lines = [head]
        for model in dict.fromkeys(row["model"] for row in rows):
            own = {row["seed"]: row for row in rows if row["model"] == model}
            means = [spread([row[name] for row in own.values()]) for name in ("mse", "mae")]
            each = [f"{own[seed]['mse']:.4f} / {own[seed]['mae']:.4f}" for seed in seeds]
            known = published.get(model)
            title = TITLES[model].replace("(24)", f"({season})")
            lines.append([title, *means, *each, f"{known[0]:.3f} / {known[1]:.3f}" if known else ""])
        return markdown(lines)

    return table


def etth1_96_cost() -> dict[str, Any]:
    """CPU seconds of an epoch (including validation) of the same training, one thread, one run at a time."""
    folder = RUNS / "etth1_96_cost"
    words = ["forecasting", "kfold", "--config", "etth1_96", "--models", "smamba,smamba_reference,itransformer"]
    words += ["--trainer.max_epochs", "4"]
    seqssm(*words, "--output", relative(folder), "--resume")
    rows = []
    for model in ("smamba", "smamba_reference", "itransformer"):
        seconds = [epoch["cpu_seconds"] for epoch in epochs(folder / model / "seed-2023" / "log.csv")]
        rows.append({"model": model, "first": seconds[0], "later": seconds[1:]})
    return {"command": "seqssm " + " ".join(words), "rows": rows}


def etth1_96_cost_table(study: dict[str, Any]) -> str:
    """The median of the epochs after the first (which may compile), and their range."""
    own = statistics.median(study["rows"][0]["later"])
    lines = [["model", "CPU seconds per epoch", "range", "times S-Mamba"]]
    for row in study["rows"]:
        median = statistics.median(row["later"])
        spread = f"{min(row['later']):.1f} to {max(row['later']):.1f}"
        lines.append([TITLES[row["model"]], f"{median:.1f}", spread, f"{median / own:.2f}"])
    return markdown(lines)


def of_study(preset: str) -> Path:
    """The run of a preset: that of its study if it exists, otherwise a separate one."""
    studied = RUNS / preset / "smamba" / "seed-2023"
    return studied if (studied / "metrics.json").is_file() else RUNS / "intervals" / preset


def weather_96() -> dict[str, Any]:
    """Weather, 96 to 96, two epochs, one seed: with the 81 cells of -9999 as published, and filled."""
    common = ["--config", "weather_96", "--trainer.max_epochs", "2", "--model.threads", "1"]
    variants = {"published": common, "cleaned": [*common, "--data.sentinels", "-9999", "--data.missing", "forward"]}
    rows = []
    for variant, words in variants.items():
        for row in tested("forecasting", RUNS / "weather_96" / variant, words)["tables"][0]["rows"]:
            rows.append({"variant": variant, **{name: row[name] for name in ("model", "mse", "mae")}})
    commands = ["seqssm forecasting fit " + " ".join(words) for words in variants.values()]
    return {"commands": commands, "rows": rows}


def weather_96_table(study: dict[str, Any]) -> str:
    """One row per model, one pair of columns per variant."""
    titles = {"published": "as published (MSE / MAE)", "cleaned": "-9999 taken as missing (MSE / MAE)"}
    there = [variant for variant in titles if any(row["variant"] == variant for row in study["rows"])]
    lines = [["model", *(titles[variant] for variant in there)]]
    for model in dict.fromkeys(row["model"] for row in study["rows"]):
        own = {row["variant"]: row for row in study["rows"] if row["model"] == model}
        lines.append([TITLES.get(model, model), *(f"{own[v]['mse']:.4f} / {own[v]['mae']:.4f}" for v in there)])
    return markdown(lines)


PANELS = range(1, 9)
"""Seeds of the simulated panels of the study of intervals; the coverage of one panel is a chance figure."""


def forecasting_intervals() -> dict[str, Any]:
    """Coverage and width of the conformal intervals on the test sets of ETTh1, ETTm1 and panels of random walks."""
    from seqssm_forecasting import simulate

    runs = {preset: (of_study(preset), ["--config", preset]) for preset in ("etth1_96", "ettm1_96")}
    folder = RUNS / "forecasting_intervals"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in PANELS:
        path = folder / f"walks-{seed}.csv"
        simulate.walks(2000, 8, seed=seed).to_csv(path, index=False)
        words = ["--config", "smamba", "--data.file", relative(path), "--data.horizon", "24"]
        runs[f"walks {seed}"] = (folder / f"walks-{seed}", words)
    rows = []
    for preset, (run, words) in runs.items():
        tables = tested("forecasting", run, words)["tables"]
        found = next(table for table in tables if table["title"].startswith("Intervals"))
        own = tables[0]["rows"][0]
        rows += [{"preset": preset, "crps": own["crps"], "mae": own["mae"], **row} for row in found["rows"]]
    return {"command": "seqssm forecasting test RUN", "rows": rows}


def forecasting_intervals_table(study: dict[str, Any]) -> str:
    """One row per set and level; the panels of random walks share one."""
    lines = [["set", "level", "coverage", "mean width, scaled", "coverage of each", "CRPS", "MAE"]]
    for row in study["rows"]:
        if row["preset"].startswith("walks"):
            continue
        span = f"series: {row['least of a variate']:.1f} to {row['largest']:.1f} %"
        name = row["preset"].replace("etth1_96", "ETTh1").replace("ettm1_96", "ETTm1")
        figures = [f"{row['coverage']:.1f} %", f"{row['width']:.2f}", span, f"{row['crps']:.4f}", f"{row['mae']:.4f}"]
        lines.append([name, f"{row['level']:g} %", *figures])
    walks = [row for row in study["rows"] if row["preset"].startswith("walks")]
    for level in dict.fromkeys(row["level"] for row in walks):
        own = [row for row in walks if row["level"] == level]
        mean = {name: statistics.fmean(row[name] for row in own) for name in ("coverage", "width", "crps", "mae")}
        span = f"panels: {min(row['coverage'] for row in own):.1f} to {max(row['coverage'] for row in own):.1f} %"
        figures = [f"{mean['coverage']:.1f} %", f"{mean['width']:.2f}", span, f"{mean['crps']:.4f}"]
        lines.append([f"walks, {len(own)} panels", f"{level:g} %", *figures, f"{mean['mae']:.4f}"])
    return markdown(lines)


BLEND_SETS = {
    "walks": ["--config", "smamba", "--data.file", "runs/real/forecasting_blend/walks.csv", "--data.horizon", "24"],
    "ETTh1": ["--config", "etth1_96"],
    "ETTm1": ["--config", "ettm1_96"],
    "Weather": ["--config", "weather_96", "--trainer.max_epochs", "2", "--model.threads", "1"],
}
"""Sets of the blend study and their configurations; Weather as in the study `weather_96`. The environment variable
`SEQSSM_STUDY_SETS` limits them (walks,ETTh1); the study keeps its figures of the others."""
MEMBERS = ("smamba", "dlinear", "last value")


def forecasting_blend(seeds: str = "2023,2024,2025", extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """The blend and its members on three public sets and a simulated panel of drifting random walks, three seeds."""
    from seqssm_forecasting import simulate

    folder = RUNS / "forecasting_blend"
    folder.mkdir(parents=True, exist_ok=True)
    simulate.walks(2000, 8, seed=5).to_csv(folder / "walks.csv", index=False)
    rows, commands = [], []
    chosen = os.environ.get("SEQSSM_STUDY_SETS", ",".join(BLEND_SETS)).split(",")
    before = results_of_study("forecasting_blend")
    for name, config in BLEND_SETS.items():
        words = ["forecasting", "kfold", *config, "--models", "blend", "--seeds", seeds, *extra]
        if name not in chosen:
            rows += [row for row in before.get("rows", []) if row["set"] == name]
            commands += [one for one in before.get("commands", []) if one == "seqssm " + " ".join(words)]
            continue
        seqssm(*words, "--output", relative(folder / name), "--resume")
        commands.append("seqssm " + " ".join(words))
        for seed in seeds.split(","):
            path = folder / name / "blend" / f"seed-{seed}" / "metrics.json"
            tables = json.loads(path.read_text(encoding="utf-8"))["test"]["tables"]
            errors = {row["model"]: row["mse"] for row in tables[0]["rows"]}
            coverage = {f"{row['level']:g}": row["coverage"] for row in tables[1]["rows"]}
            rows.append({"set": name, "seed": int(seed), "mse": errors, "coverage": coverage})
    return {"commands": commands, "rows": rows}


def forecasting_blend_table(study: dict[str, Any]) -> str:
    """Mean test MSE over the seeds, its ratio to the best member, and the coverage of the intervals."""
    lines = [["set", "blend", "S-Mamba", "DLinear", "last value", "blend / best member", "coverage at 80, 90, 95 %"]]
    for name in dict.fromkeys(row["set"] for row in study["rows"]):
        own = [row for row in study["rows"] if row["set"] == name]
        errors = {model: [row["mse"][model] for row in own] for model in ("blend", *MEMBERS)}
        best = min(statistics.fmean(errors[model]) for model in MEMBERS)
        ratio = f"{statistics.fmean(errors['blend']) / best:.3f}"
        levels = [statistics.fmean(row["coverage"][level] for row in own) for level in ("80", "90", "95")]
        cover = ", ".join(f"{level:.1f}" for level in levels)
        lines.append([name, *(spread(errors[model]) for model in ("blend", *MEMBERS)), ratio, cover])
    return markdown(lines)


def forecasting_backtest() -> dict[str, Any]:
    """1,000 windows of ETTh1 in one backtest, compared with one prediction for each of 25 of them; one thread."""
    import tempfile
    import time

    import numpy as np
    import pandas as pd
    import torch

    import seqssm as package

    torch.set_num_threads(1)
    folder = of_study("etth1_96")
    tested("forecasting", folder, ["--config", "etth1_96"])
    model, path = package.load(folder, accelerator="cpu"), package.find("etth1")
    frame = pd.read_csv(path)
    model.predict(path)  # compiles
    began = time.perf_counter()
    many = model.predict(path, backtest=1000)
    batched = time.perf_counter() - began
    chosen = many["cutoff"].drop_duplicates().sort_values().iloc[:: 1000 // 25]
    std = dict(zip(model.summary["columns"], model.summary["std"].tolist()))
    spent, largest = {"whole": 0.0, "short": 0.0}, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        cut = Path(scratch) / "cut.csv"
        for cutoff in chosen:
            end = int(np.flatnonzero(pd.to_datetime(frame["date"]) == cutoff)[0]) + 1
            for kind, first in (("whole", 0), ("short", end - model.summary["lookback"])):
                frame.iloc[first:end].to_csv(cut, index=False)
                began = time.perf_counter()
                one = model.predict(cut)
                spent[kind] += (time.perf_counter() - began) / len(chosen) * 1000
            same = many[many["cutoff"] == cutoff]
            scale = one["unique_id"].map(std).to_numpy()
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
    """Seconds for 1,000 windows with each method."""
    seconds = study["seconds"]
    lines = [["1,000 windows of ETTh1, 96 to 96", "seconds", "relative to the backtest"]]
    for name, title in (
        ("backtest", "`--backtest 1000`"),
        ("whole", "one `predict` per window, of the file up to the cutoff"),
        ("short", "one `predict` per window, of a file with its 96 rows only"),
    ):
        lines.append([title, f"{seconds[name]:.1f}", f"{seconds[name] / seconds['backtest']:.1f}"])
    lines.append(["network alone, 256 windows at once", f"{seconds['forward_batched']:.2f}", ""])
    ratio = seconds["forward_alone"] / seconds["forward_batched"]
    lines.append(
        [
            "network alone, one window at a time",
            f"{seconds['forward_alone']:.1f}",
            f"({ratio:.1f} times the line above)",
        ]
    )
    largest = f"Maximum difference between forecasts, scaled: {study['largest_difference']:.1e}."
    return f"{markdown(lines)}\n\n{largest}"


READERS = {
    "pandas.read_csv": "import pandas\nread = lambda path: pandas.read_csv(path)",
    "seqssm_forecasting.files.read_series": (
        "from seqssm_forecasting import files\nread = lambda path: files.read_series(path)"
    ),
}
MEASURE = """
import json, re, sys, time
import pandas, psutil, pyarrow.compute, pyarrow.csv
{reader}
base = psutil.Process().memory_info().rss
times = []
for _ in range({rounds}):
    begun = time.process_time()
    kept = read(sys.argv[1])
    times.append(time.process_time() - begun)
    # not ru_maxrss: a child process starts with its parent's peak
    peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) - base
    del kept
print(json.dumps([sorted(times)[len(times) // 2], peak]))
"""


def forecasting_reading() -> dict[str, Any]:
    """Read a long CSV of 1 million rows, compared with pandas: CPU seconds (median of five) and peak memory (Linux)."""
    import numpy as np
    import pandas as pd

    path = RUNS / "reading" / "long.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        dates = pd.date_range("2023-01-01", periods=10_000, freq="h").strftime("%Y-%m-%d %H:%M:%S")
        values = np.random.default_rng(0).normal(50, 10, 1_000_000).round(3)
        ids = np.repeat([f"series_{number}" for number in range(100)], 10_000)
        pd.DataFrame({"unique_id": ids, "ds": np.tile(dates, 100), "y": values}).to_csv(path, index=False)
    found: dict[str, Any] = {"rows": 1_000_000, "series": 100, "bytes": path.stat().st_size}
    for name, reader in READERS.items():
        cost = []
        for rounds in (5, 1):  # time over five readings, memory of a single one
            code = MEASURE.format(reader=reader, rounds=rounds)
            done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
            cost.append(json.loads(done.stdout))
        found[name] = {"cpu_seconds": cost[0][0], "peak_bytes": cost[1][1]}
    return found


def forecasting_reading_table(study: dict[str, Any]) -> str:
    peer = study["pandas.read_csv"]
    lines = [["a long CSV of 1 million rows", "CPU seconds", "times pandas", "peak memory, MB", "times pandas"]]
    for name in READERS:
        own = study[name]
        lines.append(
            [
                f"`{name}`",
                f"{own['cpu_seconds']:.2f}",
                f"{own['cpu_seconds'] / peer['cpu_seconds']:.1f}",
                f"{own['peak_bytes'] / 1e6:.0f}",
                f"{own['peak_bytes'] / peer['peak_bytes']:.1f}",
            ]
        )
    return markdown(lines)


STUDIES: dict[str, Study] = {
    "etth1_96_cost": (etth1_96_cost, etth1_96_cost_table),
    "etth1_96": (lambda: benchmark("etth1_96", ETT_MODELS), benchmark_table(PUBLISHED)),
    "ettm1_96": (
        lambda: benchmark("ettm1_96", ETT_MODELS.replace("itransformer,", "")),
        benchmark_table(PUBLISHED_M1, 96),
    ),
    "weather_96": (weather_96, weather_96_table),
    "forecasting_blend": (forecasting_blend, forecasting_blend_table),
    "forecasting_intervals": (forecasting_intervals, forecasting_intervals_table),
    "forecasting_backtest": (forecasting_backtest, forecasting_backtest_table),
    "forecasting_reading": (forecasting_reading, forecasting_reading_table),
}
