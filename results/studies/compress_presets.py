"""Loss of quality by compression of models trained on real data: the runs of other studies, three seeds.

Finished rows are kept in `runs/real/compress_presets`.
"""

from __future__ import annotations

import json
import os
import statistics
from typing import Any, NamedTuple

from studies.common import ROOT, RUNS, Study, markdown, relative, seqssm


class Model(NamedTuple):
    """A model that is compressed.

    Attributes:
        title: its title.
        folder: its runs in `runs/real`, of the studies `dna_ctcf`, `ecg_ptbxl_small` and `forecasting_blend`.
        score: main score.
        larger: whether a larger score is better.
        seeds: seeds of the runs.
        fit: command that trains a run, for runs of no other study.
    """

    title: str
    folder: str
    score: str
    larger: bool = True
    seeds: tuple[int, ...] = (1, 2, 3)
    fit: tuple[str, ...] = ()


# The preset with the network that has scans, and a tenth of the training cases for validation and calibration.
GLIOMA = ("pathology", "fit", "--config", "gbmlgg", "--model.network", "srmamba", "--data.inner", "0.1")
MODELS = (
    Model("DNA, CTCF peaks", "dna_ctcf/stem", "mcc"),
    Model("ECG, PTB-XL", "ecg_ptbxl_small/mamba", "auroc"),
    Model("forecasting, ETTh1", "forecasting_blend/ETTh1/blend", "mse", False, (2023, 2024, 2025)),
    Model("pathology, TCGA glioma", "compress_presets/glioma", "c_index", fit=GLIOMA),
)
ARMS = {"W8A8": ("w8a8", "quamba"), "W8A8, naive": ("w8a8", "naive"), "W4A16": ("w4a16", "quamba")}


def compress_presets() -> dict[str, Any]:
    """Compress each run in each way, and test both models on its test data."""
    from seqssm.compress.methods import METHODS, RECIPES
    from seqssm.compress.procedure import Request, compress

    os.chdir(ROOT)
    folder = RUNS / "compress_presets"
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "small.ckpt"
    rows = []
    for model in MODELS:
        for seed in model.seeds:
            for arm, (method, recipe) in ARMS.items():
                kept = folder / f"{model.folder.replace('/', '_')}_{method}_{recipe}_{seed}.json"
                if not kept.is_file():
                    run = RUNS / model.folder / f"seed-{seed}"
                    if model.fit and not (run / "best.ckpt").is_file():
                        words = (*model.fit, "--seed_everything", str(seed), "--overwrite")
                        seqssm(*words, "--output", relative(run))
                    done = compress(Request(run, METHODS[method], output, recipe=RECIPES[recipe], overwrite=True))
                    if done.comparison is None:
                        raise SystemExit(f"{run}: {done.why}")
                    found = {one.name.removeprefix("test_"): one for one in done.comparison.scores}
                    row = {"model": model.title, "seed": seed, "arm": arm, "score": model.score}
                    row |= {"records": done.comparison.records}
                    row |= {"before": found[model.score].before, "after": found[model.score].after}
                    row |= {"bytes_before": done.before.projections, "bytes_after": done.after.projections}
                    kept.write_text(json.dumps(row), encoding="utf-8")
                rows.append(json.loads(kept.read_text(encoding="utf-8")))
                print(rows[-1], flush=True)
    return {"rows": rows}


def presets_table(study: dict[str, Any]) -> str:
    """Mean of the main score before and after, the mean and the largest loss of a seed, and bytes."""
    head = ["model", "arm", "score", "before", "after", "mean change", "largest loss of a seed", "projections smaller"]
    lines = [head]
    for model in MODELS:
        for arm in ARMS:
            own = [row for row in study["rows"] if row["model"] == model.title and row["arm"] == arm]
            if not own:
                continue
            before, after = (statistics.fmean(row[name] for row in own) for name in ("before", "after"))
            sign = 1 if model.larger else -1
            worst = max(sign * (row["before"] - row["after"]) for row in own)
            ratio = own[0]["bytes_before"] / own[0]["bytes_after"]
            cells = [f"{before:.4f}", f"{after:.4f}", f"{100 * (after / before - 1):+.2f} %", f"{worst:+.4f}"]
            lines.append([model.title, arm, own[0]["score"], *cells, f"{ratio:.2f}x"])
    return f"{markdown(lines)}\n\nThree seeds; of `mse`, less is better."


STUDIES: dict[str, Study] = {"compress_presets": (compress_presets, presets_table)}
