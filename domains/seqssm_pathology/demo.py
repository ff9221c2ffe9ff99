"""Demo: simulated slides with known lesions, SR-Mamba and its heat map next to the ground truth, and survival."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from seqssm.metrics.columns import ID, RECORDS
from seqssm.tools.page import Section, read_test_table
from seqssm_pathology import metrics, simulate
from seqssm_pathology.figures import Background, heat_map

CASES, EPOCHS, SEED = 80, 15, 7
SMALL = ["--model.d_model", "32", "--model.pool_width", "32"]
SCANS = {"srmamba": ["--model.layers", "1", "--model.d_state", "8"]}  # further options by network
SMALL += ["--model.learning_rate", "2e-3", "--model.threads", "1", "--trainer.accelerator", "cpu"]


def demo(folder: Path) -> list[Section]:
    """Simulate slides, then train, test and predict through the command line; under a minute on two cores.

    Args:
        folder: output folder.
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
    """Join the `test` tables of several runs; the baselines, equal in all, appear once."""
    return pd.concat([read_test_table(out, "Test on") for out in runs], ignore_index=True).drop_duplicates("model")


def _heat_maps(out: Path, data: Path, figures: Path, made: dict[str, simulate.Slide]) -> dict[str, float]:
    """Predict the test cases with figures; return the AUROC of the patch scores for the lesion, by slide."""
    from seqssm.cli.main import run

    tested = pd.read_csv(out / RECORDS, dtype={ID: str})[ID].tolist()
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
    """Train on slide labels, and compare the attention with the lesion, which only the simulation knows."""
    networks = {"srmamba": "SR-Mamba", "abmil": "ABMIL"}
    runs = {name: _train(folder, data, "srmamba", name, EPOCHS) for name in networks}
    areas = {name: _heat_maps(out, data, folder / f"figures-{name}", made) for name, out in runs.items()}
    found = pd.DataFrame({"slide": list(areas["srmamba"])})
    found["lesion patches"] = [f"{made[name].lesion.sum()} of {len(made[name].bag)}" for name in found["slide"]]
    for name, title in networks.items():
        found[f"AUROC, {title}"] = list(areas[name].values())
    shown = made[found["slide"][0]]
    pictures = [next((folder / f"figures-{name}").glob(f"*_{shown.bag.id}_heat.png")) for name in networks]
    title = f"{shown.bag.id}: true lesion"
    lesion = shown.lesion.astype(float)
    background = Background(simulate.STEP)
    truth = heat_map(
        folder / "truth.png", shown.bag.coords, lesion, background, title, label="lesion (1 = yes, 0 = no)"
    )
    means = [f"{np.mean(list(own.values())):.2f} for {networks[name]}" for name, own in areas.items()]
    text = (
        f"{CASES} simulated slides, half of them with a lesion: a disc of patches whose features are shifted. The "
        "models are trained on the label of the slide only, without the position of the lesion. The first table has "
        "the scores on the test cases, with `logistic`, a logistic regression on the mean features, as baseline.\n\n"
        "The second table measures how well the attention score of a patch separates lesion from other patches, in the "
        f"test slides with a lesion: mean AUROC {' and '.join(means)}; 0.5 is chance. ABMIL scores each patch "
        "independently. In a scanning model, the representation of a patch also contains the preceding patches, so its "
        "map can be less sharp.\n\n"
        f"The figures show the attention of SR-Mamba and of ABMIL on the test slide {shown.bag.id}, as ranks within "
        "the slide, then the true lesion."
    )
    tables = [("Test cases", _report(*runs.values())), ("Attention scores compared with the true lesion", found)]
    headline = f"Trained on labels of whole slides, the attention finds the lesion: mean AUROC {' and '.join(means)}."
    title = "Pathology: slide labels and attention"
    return Section(title, text, tables, [*pictures, truth], headline=headline)


def _survival(folder: Path, data: Path) -> Section:
    """Train and test survival on the same slides."""
    out = _train(folder, data, "survival", "srmamba", EPOCHS)
    text = (
        "The same slides with simulated survival times: the larger the lesion, the shorter the expected time. The "
        "times are exponentially distributed around it, which cannot be predicted. The model predicts four time bins, "
        "whose edges come from the training split; censored cases are known to be alive until censoring. The figure "
        "shows Kaplan-Meier curves of the test cases, split at the median predicted risk."
    )
    return Section("Pathology: survival", text, [("Test cases", _report(out))], [out / "figures" / "risk_groups.png"])
