"""ECG studies: PTB-XL with a CNN, the forward-only variant and baselines for comparison; speed of prediction."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

from studies.common import RUNS, Study, epochs, markdown, relative, seeds, seqssm, spread, table_of, tested
from studies.starts import STARTS, fitted, starts_table

TITLES = {
    "mamba": "bidirectional Mamba",
    "cnn": "residual 1-D CNN (the preset)",
    "forward": "forward-only Mamba",
    "linear": "linear model on 19 features per lead",
    "prior": "training frequencies",
}
PRESETS = {
    "ptbxl_superclass_small_mamba": "mamba,forward",
    "ptbxl_superclass_small": "cnn,linear,prior",
}
"""Presets of one recipe, and the models that are trained by each."""
CLASSES = ("NORM", "MI", "STTC", "CD", "HYP")


def ecg_ptbxl_small() -> dict[str, Any]:
    """The 1,819 PTB-XL records, three seeds, compared with a CNN, the forward-only variant and two baselines."""
    folder = RUNS / "ecg_ptbxl_small"
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    lines, commands = [], []
    for preset, models in PRESETS.items():
        words = ["ecg", "kfold", "--config", preset, "--seeds", "1,2,3", "--models", models]
        commands.append("seqssm " + " ".join(words))
        output = RUNS / preset
        seqssm(*words, "--output", relative(output), "--resume")
        lines += table_of(output / "folds.csv")
        for model in models.split(","):
            (folder / model).unlink(missing_ok=True)
            (folder / model).symlink_to(output / model)
    for line in sorted(lines, key=lambda line: list(TITLES).index(line["model"])):
        row = {"model": line["model"], "seed": int(line["seed"])}
        row |= {name: float(line[name]) for name in ("auroc", "auprc", "f1", "accuracy", "calibration_error")}
        run = folder / row["model"] / f"seed-{row['seed']}"
        if (run / "log.csv").is_file():
            own = epochs(run / "log.csv")
            row["cpu_seconds"] = sum(epoch["cpu_seconds"] for epoch in own)
            row["best_val_auroc"] = max(epoch["val_auroc"] for epoch in own)
        rows.append(row)
    study = {"command": "; ".join(commands), "rows": rows, "intervals": ecg_intervals(folder)}
    return {**study, "ensembles": ecg_ensembles(folder)}


def test_scores(folder: Path, model: str) -> tuple[Any, list[Any]]:
    """True labels (n, C) of the test records, and the probabilities of each seed of a model, in the same order."""
    from seqssm.metrics.columns import OutputColumns, read_test_records

    outputs = OutputColumns(CLASSES, kind="labels")
    truth: Any = None
    scores = []
    for run in sorted((folder / model).glob("seed-*")):
        table = read_test_records(run, [outputs])
        if table is not None:
            truth, values = outputs.read(table)
            scores.append(values)
    return truth, scores


ENSEMBLES = {
    "bidirectional Mamba, three seeds": (("mamba", 3),),
    "residual CNN, three seeds": (("cnn", 3),),
    "forward-only Mamba, three seeds": (("forward", 3),),
    "the first two seeds of all three models": (("mamba", 2), ("cnn", 2), ("forward", 2)),
    "three seeds of all three models": (("mamba", 3), ("cnn", 3), ("forward", 3)),
}
"""Members by title: (model, number of seeds), fixed before they were evaluated."""


def ecg_ensembles(folder: Path) -> list[dict[str, Any]]:
    """Test AUROC of the mean probabilities of several runs."""
    import numpy as np
    from seqssm_ecg.metrics import auroc, macro

    rows = []
    for title, members in ENSEMBLES.items():
        truth = test_scores(folder, members[0][0])[0]
        scores = [one for model, seeds in members for one in test_scores(folder, model)[1][:seeds]]
        value = float(macro(auroc(truth, np.mean(scores, axis=0))))
        rows.append({"title": title, "members": len(scores), "auroc": value})
    return rows


def ecg_intervals(folder: Path, draws: int = 1000) -> list[dict[str, Any]]:
    """5 and 95 % bootstrap quantiles over test records of each model's mean AUROC and its difference to the first."""
    import numpy as np
    from seqssm_ecg.metrics import auroc, every_class, macro

    models = [model for model in TITLES if list((folder / model).glob("seed-*/figures/test_records.csv"))]
    truth, _ = test_scores(folder, models[0])
    scores = {model: test_scores(folder, model)[1] for model in models}
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
        row["by_class"] = {name: float(value) for name, value in zip(CLASSES, by_class)}
        if model != models[0]:
            point = [macro(auroc(truth, a)) - macro(auroc(truth, b)) for a, b in zip(scores[model], scores[models[0]])]
            row["difference"] = statistics.fmean(point)
            row["difference_low"] = np.percentile(own - first, 5)
            row["difference_high"] = np.percentile(own - first, 95)
        rows.append({key: float(value) if isinstance(value, np.floating) else value for key, value in row.items()})
    return rows


def ecg_ptbxl_small_table(study: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds, interval over records, paired difference to the first model."""
    intervals = {row["model"]: row for row in study["intervals"]}
    head = ["model", "test AUROC", "90 % over records", "difference to the first (90 %)", "AUPRC", "F1", "each seed"]
    lines = [[*head, "CPU seconds per run"]]
    for model in dict.fromkeys(row["model"] for row in study["rows"]):
        own = [row for row in study["rows"] if row["model"] == model]
        means = [spread([row[name] for row in own]) for name in ("auroc", "auprc", "f1")]
        known = intervals.get(model, {})
        interval = f"{known['low']:.3f} to {known['high']:.3f}" if known else ""
        difference = ""
        if "difference" in known:
            low, high = known["difference_low"], known["difference_high"]
            difference = f"{known['difference']:+.4f} ({low:+.3f} to {high:+.3f})"
        each = ", ".join(f"{row['auroc']:.4f}" for row in own)
        seconds = [row["cpu_seconds"] for row in own if "cpu_seconds" in row]
        cost = f"{statistics.median(seconds):.0f}" if seconds else ""
        lines.append([TITLES[model], means[0], interval, difference, means[1], means[2], each, cost])
    classes = [["model", *CLASSES]]
    for row in study["intervals"]:
        classes.append([TITLES[row["model"]], *(f"{row['by_class'][name]:.3f}" for name in CLASSES)])
    text = markdown(lines) + "\n\nAUROC by class, mean of the seeds:\n\n" + markdown(classes)
    if "ensembles" in study:
        joined = [["mean probabilities of", "runs", "test AUROC"]]
        joined += [[row["title"], str(row["members"]), f"{row['auroc']:.4f}"] for row in study["ensembles"]]
        text += "\n\nEnsembles, fixed before they were evaluated:\n\n" + markdown(joined)
    return text


def ecg_speed() -> dict[str, Any]:
    """Records per second and core of `seqssm predict` with the small preset, over the 1,819 records, one thread."""
    import resource
    import time

    from seqssm.files.datasets import find_data_set

    run = RUNS / "ecg_ptbxl_small" / "mamba" / "seed-1"
    records = find_data_set("ecg", "ptbxl")
    output = RUNS / "ecg_speed.csv"
    words = ["predict", relative(run), str(records), "--output", str(output), "--overwrite"]
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
    """Speed including start-up, reading and writing."""
    lines = [["records of 10 s", "CPU seconds (start included)", "records per CPU second"]]
    for row in study["rows"]:
        lines.append([str(row["records"]), f"{row['cpu_seconds']:.1f}", f"{row['records'] / row['cpu_seconds']:.0f}"])
    return markdown(lines)


FRACTIONS = {5: 8, 25: 16, 100: 32}
"""Percentages of the training records that keep their labels, and the batch size of their fits."""


def ecg_pretrain() -> dict[str, Any]:
    """Pretraining on PTB-XL's folds 1-8 without labels, then classifiers of the superclasses with 5, 25 and 100 % of
    their labels, three seeds, each with other records; fold 10 is tested."""
    folder = RUNS / "ecg_pretrain"
    folder.mkdir(parents=True, exist_ok=True)
    words = ["--config", "pretrain", "--data.dataset", "ptbxl", "--model.threads", "1"]
    commands = ["seqssm ecg fit " + " ".join(words)]
    pretrained = tested("ecg", folder / "pretrained", words)
    log = epochs(folder / "pretrained" / "log.csv")
    found: dict[str, Any] = {
        "explained_variance": pretrained["metrics"]["explained_variance"],
        "pretraining_cpu_seconds": sum(epoch["cpu_seconds"] for epoch in log),
        "rows": [],
    }
    for percent, batch in FRACTIONS.items():
        for seed in seeds():
            table = folder / f"labels-{percent}-{seed}.csv"
            records = write_subset(table, percent / 100, seed)
            for start in STARTS:
                words = ["--config", "ptbxl_superclass_small_mamba", "--seed_everything", str(seed)]
                words += ["--data.manifest", relative(table), "--data.batch_size", str(batch)]
                words += ["--data.deduplicate", "false"]
                run = folder / f"{start}-{percent}" / f"seed-{seed}"
                row, command = fitted("ecg", run, start, words, folder / "pretrained", ("auroc", "auprc"))
                found["rows"].append({"percent": percent, "records": records, "seed": seed, **row})
                if seed == seeds()[0]:
                    commands.append(command)
    return {"commands": commands, **found}


def write_subset(path: Path, fraction: float, seed: int) -> int:
    """Write a manifest of PTB-XL with all records of folds 9 and 10, and some of folds 1-8; return their number.

    The records of a smaller fraction are among those of a larger one with the same seed.
    """
    import numpy as np
    import pandas as pd
    from seqssm_ecg.data import EcgData

    listed = EcgData(dataset="ptbxl", labels="superclass").source.listed()
    names = dict(zip(listed.classes.names, listed.classes.codes))
    rows = []
    for one in listed.records:
        codes = set(one.codes or ())
        split = {9: "val", 10: "test"}.get(one.fold or 0, "train")
        rows.append({"path": str(one.path), "patient": one.patient, "split": split})
        rows[-1] |= {name: int(bool(codes & set(own))) for name, own in names.items()}
    table = pd.DataFrame(rows)
    train = np.flatnonzero(table["split"] == "train")
    kept = np.random.default_rng(seed).permutation(train)[: round(fraction * len(train))]
    table.loc[np.sort(np.concatenate([kept, np.flatnonzero(table["split"] != "train")]))].to_csv(path, index=False)
    return len(kept)


def ecg_pretrain_table(study: dict[str, Any]) -> str:
    """Test AUROC by way of training and percentage of the labels, and its difference from training from scratch."""
    return (
        f"{starts_table(study['rows'], {'auroc': 'AUROC', 'auprc': 'AUPRC'})}\n\n"
        f"Pretraining: {study['pretraining_cpu_seconds']:.0f} CPU seconds, "
        f"{study['explained_variance']:.2f} of the variance of hidden samples explained."
    )


STUDIES: dict[str, Study] = {
    "ecg_ptbxl_small": (ecg_ptbxl_small, ecg_ptbxl_small_table),
    "ecg_pretrain": (ecg_pretrain, ecg_pretrain_table),
    "ecg_speed": (ecg_speed, ecg_speed_table),
}
