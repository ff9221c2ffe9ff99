"""The demo: made slides with a known lesion, SR-Mamba trained on them, its heat map beside the truth; then survival."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from seqssm.tools.page import Section
from seqssm_pathology import metrics, simulate
from seqssm_pathology.figures import Background, heat_map

CASES, EPOCHS, SEED = 80, 15, 7
SMALL = ["--model.d_model", "32", "--model.pool_width", "32"]
SCANS = {"srmamba": ["--model.layers", "1", "--model.d_state", "8"]}  # further flags by network
SMALL += ["--model.learning_rate", "2e-3", "--model.threads", "1", "--trainer.accelerator", "cpu"]


def demo(folder: Path) -> list[Section]:
    """Make slides, then train, test and predict with the commands that a user types; under a minute on two cores.

    Args:
        folder: everything is written here.
    """
    data = folder / "slides"
    made = simulate.cohort(data, CASES, SEED)
    return [_lesion(folder, data, made), _survival(folder, data)]


def _train(folder: Path, data: Path, preset: str, network: str, epochs: int) -> Path:
    from seqssm.cli.main import run

    out = folder / f"{preset}-{network}"
    fit = ["--config", preset, "--data.manifest", str(data / "manifest.csv"), "--data.features", str(data)]
    fit += ["--model.network", network, *SMALL, *SCANS.get(network, []), "--trainer.max_epochs", str(epochs)]
    run(["pathology", "fit", *fit, "--output", str(out)])
    run(["pathology", "test", str(out)])
    return out


def _report(*runs: Path) -> pd.DataFrame:
    """The tables of `test` of several runs; the baselines, which are equal in all, appear once."""
    rows = []
    for out in runs:
        report = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["test"]
        rows += report["tables"][0]["rows"]
    return pd.DataFrame(rows).drop_duplicates("model")


def _heat_maps(out: Path, data: Path, figures: Path, made: dict[str, simulate.Slide]) -> dict[str, float]:
    """Predict the test cases with figures; the AUROC of the patches' scores for the lesion, by slide."""
    from seqssm.cli.main import run

    tested = pd.read_csv(out / "figures" / "predictions.csv")["case_id"].tolist()
    bags = [str(data / "h5_files" / f"{name}.h5") for name in tested]
    table = figures.with_suffix(".csv")
    predict = ["predict", str(out / "best.ckpt"), *bags, "--output", str(table), "--accelerator", "cpu"]
    run([*predict, "--figures", str(figures)])
    areas = {}
    for file in sorted(figures.glob("*_attention.csv")):
        frame = pd.read_csv(file)
        truth = made[frame["slide_id"][0]]
        if truth.label:
            areas[truth.bag.id] = metrics.auroc(truth.lesion, frame["score"].to_numpy())
    return areas


def _lesion(folder: Path, data: Path, made: dict[str, simulate.Slide]) -> Section:
    """Classification, and whether the attention finds the lesion that only the simulation knows."""
    networks = {"srmamba": "SR-Mamba", "abmil": "ABMIL"}
    runs = {name: _train(folder, data, "srmamba", name, EPOCHS) for name in networks}
    areas = {name: _heat_maps(out, data, folder / f"figures-{name}", made) for name, out in runs.items()}
    found = pd.DataFrame({"slide": list(areas["srmamba"])})
    found["lesion patches"] = [f"{made[name].lesion.sum()} of {len(made[name].bag)}" for name in found["slide"]]
    for name, title in networks.items():
        found[f"AUROC, {title}"] = list(areas[name].values())
    shown = made[found["slide"][0]]
    pictures = [next((folder / f"figures-{name}").glob(f"*_{shown.bag.id}_heat.png")) for name in networks]
    title = f"{shown.bag.id}: where the lesion is"
    lesion = shown.lesion.astype(float)
    background = Background(simulate.STEP)
    truth = heat_map(folder / "truth.png", shown.bag.coords, lesion, background, title, label="lesion (1 = yes)")
    means = [f"{np.mean(list(own.values())):.2f} for {networks[name]}" for name, own in areas.items()]
    text = (
        f"{CASES} made slides, half of them with a lesion: a disc of patches whose features are shifted. The models "
        "see the slide's label only, never where the lesion is. The table is of the test cases, which they did not "
        "see, beside `logistic`, a logistic regression on the mean of the features.\n\n"
        "The second table asks whether the score of a patch tells lesion from other patches in the test slides with a "
        f"lesion: mean AUROC {' and '.join(means)}; 0.5 is chance. ABMIL scores each patch by itself; behind a scan a "
        "patch also carries what was seen before it, so the map of a scanning model can be less sharp.\n\n"
        "The figures: heat maps of one test slide by SR-Mamba and by ABMIL, then the truth."
    )
    tables = [("Test cases", _report(*runs.values())), ("Scores against the truth", found)]
    return Section("Pathology: a slide's label, and where it comes from", text, tables, [*pictures, truth])


def _survival(folder: Path, data: Path) -> Section:
    """Survival on the same slides."""
    out = _train(folder, data, "survival", "srmamba", EPOCHS)
    text = (
        "The same slides with made survival times: the larger the lesion, the shorter the expected time. Around that "
        "the times are exponential, which cannot be predicted. Time is learned in four bins cut on the training "
        "split; a censored case counts as alive until then. The curves are of the test cases, split by "
        "risk."
    )
    return Section("Survival", text, [("Test cases", _report(out))], [out / "figures" / "risk_groups.png"])
