"""Studies of a class that was left out of the training and is added later by five records: splice junctions and ECG.

Each model is trained without one class, and extended by `seqssm.incremental`; finished runs are kept in `runs/real` and
not repeated. `SEQSSM_STUDY_SEEDS` sets the seeds (1,2,3).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studies.common import RUNS, Study, markdown, seeds, seqssm
from studies.later import ARMS, METHODS, percent, recipe

SHOTS = 5


def extended(domain: str, model: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Extend a model and return its figures; those of an earlier call are read."""
    from seqssm.domain import domains
    from seqssm.incremental.procedure import Request, extend

    kept = output.with_suffix(".json")
    if not (kept.is_file() and output.is_file()):
        output.parent.mkdir(parents=True, exist_ok=True)
        done = extend(domains()[domain], Request(model, output=output, overwrite=True, accelerator="cpu", **options))
        rows = {row.title: {**vars(row), "title": row.title} for row in done.rows}
        kept.write_text(json.dumps({"rows": rows, "shots": done.shots, "old": done.old}), encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def left_out(
    domain: str, name: str, fit: tuple[str, ...], files: Callable[[Path, int], tuple[Path, Path]]
) -> dict[str, Any]:
    """Train without a class, extend by five records of it, and test on old and new classes; one row per seed."""
    rows = []
    for seed in seeds():
        run = RUNS / f"extend_{domain}" / f"{name}_seed-{seed}"
        support, evaluate = files(run.parent, seed)
        if not (run / "best.ckpt").is_file():
            head = ("--model.head", "etf", "--model.max_classes", "8", "--model.projector", "base")
            words = (*fit, *head, "--seed_everything", str(seed), "--output", str(run), "--overwrite")
            seqssm(domain, "fit", *words)
        options = {"support": [support], "evaluate": [evaluate], "recipe": recipe(ARMS[2], seed)}
        found = extended(domain, run / "best.ckpt", run / "bigger.ckpt", **options)
        rows.append({"class": name, "seed": seed, **found})
    return {"class": name, "rows": rows}


def left_out_table(study: dict[str, Any]) -> str:
    """Accuracy on the old classes before and after, on the new class, and of the controls, by class left out."""
    head = ["class added", "old classes before, %", "after", "new class", "all", "standard error", "new records"]
    lines = [[*head, "nearest mean: old, new, all", "linear probe: old, new, all"]]
    for case in study["cases"]:
        rows = [row["rows"] for row in case["rows"]]
        parts = ("old classes", "new classes", "all")
        cells = [percent([row["old classes"]["before"]["model"] for row in rows])]
        cells += [percent([row[part]["after"]["model"] for row in rows]) for part in parts]
        cells += [percent([row["all"]["error"] for row in rows]), str(rows[0]["new classes"]["records"])]
        for method in METHODS[1:]:
            cells.append(", ".join(percent([row[part]["after"][method] for row in rows]) for part in parts))
        lines.append([case["class"], *cells])
    used = len(study["cases"][0]["rows"])
    note = f"Accuracy averaged over classes; {SHOTS} records of the new class; {used} seed{'s' if used > 1 else ''}."
    counts = "; ".join(f"{case['class']}: {case['counts']}" for case in study["cases"] if case.get("counts"))
    return f"{markdown(lines)}\n\n{note} {counts}".rstrip()


def extend_dna() -> dict[str, Any]:
    """Splice junctions, trained without one of the three classes."""
    import pandas as pd

    from seqssm.files.datasets import find

    table = pd.read_csv(find("splice"))
    label = next(name for name in ("label", "class") if name in table)
    cases = []
    for name in sorted(table[label].unique()):

        def files(folder: Path, seed: int, name: str = name) -> tuple[Path, Path]:
            folder.mkdir(parents=True, exist_ok=True)
            own, train = table[label] == name, table["split"] == "train"
            support = folder / f"{name}_support-{seed}.csv"
            table[~own].to_csv(folder / f"{name}_train.csv", index=False)
            table[own & train].sample(SHOTS, random_state=seed).to_csv(support, index=False)
            table[own & (table["split"] == "test")].to_csv(folder / f"{name}_test.csv", index=False)
            return support, folder / f"{name}_test.csv"

        data = str(RUNS / "extend_dna" / f"{name}_train.csv")
        fit = ("--config", "splice", "--data.train", data, "--trainer.accelerator", "cpu", "--trainer.max_epochs", "12")
        cases.append(left_out("dna", str(name), fit, files))
    return {"cases": cases}


ECG_EPOCHS = "12"
ECG_CASES = (("rhythm", ("SR", "AFIB", "STACH"), "STACH"), ("superclass", ("NORM", "STTC", "CD"), "CD"))


def extend_ecg() -> dict[str, Any]:
    """PTB-XL: rhythms without sinus tachycardia, superclasses without conduction disturbances; single labels.

    The 1,819 records have none with myocardial infarction or hypertrophy alone.
    """
    from seqssm_ecg.labels import ptbxl_classes, ptbxl_statements
    from seqssm_ecg.sources import ptbxl

    from seqssm.files.datasets import find_data_set

    tree = find_data_set("ecg", "ptbxl")
    records = ptbxl(tree, 100.0)
    cases = []
    for task, names, new in ECG_CASES:
        classes = ptbxl_classes(ptbxl_statements(tree / "scp_statements.csv"), task)
        single = []
        for record in records:
            row = classes.vector(record.codes or [])
            if row.sum() == 1:
                single.append((record, classes.names[int(row.argmax())]))
        counts = ", ".join(f"{name} {sum(own == name for _, own in single)}" for name in names)

        def files(folder: Path, seed: int, single: Any = single, new: str = new) -> tuple[Path, Path]:
            folder.mkdir(parents=True, exist_ok=True)
            train = [one for one, own in single if own == new and one.fold <= 8]
            parts = {f"support-{seed}": random.Random(seed).sample(train, SHOTS)}
            parts["test"] = [one for one, own in single if own == new and one.fold == 10]
            paths = []
            for title, chosen in parts.items():
                lines = ["path,labels", *(f"{one.path},{new}" for one in chosen)]
                paths.append(folder / f"{new}_{title}.csv")
                paths[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
            return paths[0], paths[1]

        kept = ",".join(name for name in names if name != new)
        fit = ("--config", "ptbxl_superclass_small_mamba", "--data.labels", task, "--data.only_classes", f"[{kept}]")
        fit += ("--data.single_label", "true", "--model.loss", "cross_entropy", "--trainer.max_epochs", ECG_EPOCHS)
        cases.append({**left_out("ecg", new, fit, files), "counts": f"single-label records {counts}"})
    return {"cases": cases}


STUDIES: dict[str, Study] = {
    "extend_ecg": (extend_ecg, left_out_table),
    "extend_dna": (extend_dna, left_out_table),
}
