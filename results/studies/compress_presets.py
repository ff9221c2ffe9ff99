"""Loss of quality by compression of models trained on real data: the runs of other studies, three seeds."""

from __future__ import annotations

import os
import statistics
from typing import Any, NamedTuple

from studies.common import ROOT, RUNS, Study, markdown


class Model(NamedTuple):
    """A model that is compressed.

    Attributes:
        title: its title.
        folder: its runs in `runs/real`, those of the studies `dna_ctcf` and `ecg_ptbxl_small`.
        score: main score; larger is better.
    """

    title: str
    folder: str
    score: str


MODELS = (
    Model("DNA, CTCF peaks", "dna_ctcf/stem", "mcc"),
    Model("ECG, PTB-XL", "ecg_ptbxl_small/mamba", "auroc"),
)
ARMS = {"W8A8": ("w8a8", "quamba"), "W8A8, naive": ("w8a8", "naive"), "W4A16": ("w4a16", "quamba")}
SEEDS = (1, 2, 3)


def compress_presets() -> dict[str, Any]:
    """Compress each run in each way, and test both models on its test data."""
    from seqssm.compress.methods import METHODS, RECIPES
    from seqssm.compress.procedure import Request, compress

    os.chdir(ROOT)
    output = RUNS / "compress_presets.ckpt"
    rows = []
    for title, folder, score in MODELS:
        for seed in SEEDS:
            run = RUNS / folder / f"seed-{seed}"
            for arm, (method, recipe) in ARMS.items():
                done = compress(Request(run, METHODS[method], output, recipe=RECIPES[recipe], overwrite=True))
                if done.comparison is None:
                    raise SystemExit(f"{run}: {done.why}")
                found = {one.name.removeprefix("test_"): one for one in done.comparison.scores}
                row = {"model": title, "seed": seed, "arm": arm, "score": score, "records": done.comparison.records}
                row |= {"before": found[score].before, "after": found[score].after}
                row |= {"bytes_before": done.before.projections, "bytes_after": done.after.projections}
                rows.append(row)
                print(row, flush=True)
    output.unlink()
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
            worst = max(row["before"] - row["after"] for row in own)
            ratio = own[0]["bytes_before"] / own[0]["bytes_after"]
            cells = [f"{before:.4f}", f"{after:.4f}", f"{100 * (after / before - 1):+.2f} %", f"{worst:+.4f}"]
            lines.append([model.title, arm, own[0]["score"], *cells, f"{ratio:.2f}x"])
    return f"{markdown(lines)}\n\nSeeds {', '.join(map(str, SEEDS))}."


STUDIES: dict[str, Study] = {"compress_presets": (compress_presets, presets_table)}
