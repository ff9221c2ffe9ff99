"""Simulated slides with known ground truth: patches on a grid, lesions, survival that depends on lesion size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from seqssm_pathology.files import Bag, write_bag

STEP = 256  # spacing of the grid, level-0 pixels
MONTHS = 60.0  # mean survival of a case without lesion
FOLLOW_UP = (12.0, 96.0)  # range of the uniform censoring time


@dataclass
class Slide:
    """A simulated slide.

    Attributes:
        bag: features and coords.
        lesion: mask of the patches in the lesion, (N,) bool; all False if the label is 0.
        label: 1 if the slide has a lesion, else 0.
        time, censored: survival time in months, and censoring flag.
    """

    bag: Bag
    lesion: np.ndarray
    label: int
    time: float
    censored: int


def slide(name: str, label: int, generator: np.random.Generator, width: int = 16, side: int = 12) -> Slide:
    """Simulate a slide of slightly fewer than side x side patches with features of `width`.

    Features of lesion patches are shifted by 1.2 in the first three columns. The lesion is a disc; its radius, 2 to 4
    patches, reduces the mean survival time from MONTHS to MONTHS / (1 + radius).
    """
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    tissue = (x - side / 2 + 0.5) ** 2 + (y - side / 2 + 0.5) ** 2 < (side / 2) ** 2 * generator.uniform(0.8, 1.2)
    positions = np.stack([x[tissue], y[tissue]], axis=1)
    features = generator.normal(size=(len(positions), width)).astype(np.float32)
    radius = generator.uniform(1.5, 3.5) if label else 0.0
    centre = positions[generator.integers(len(positions))]
    lesion = ((positions - centre) ** 2).sum(1) <= radius**2 if label else np.zeros(len(positions), dtype=bool)
    features[lesion, :3] += 1.2
    time = generator.exponential(MONTHS / (1 + radius))
    end = generator.uniform(*FOLLOW_UP)
    bag = Bag(name, features, positions.astype(np.int64) * STEP, STEP, attributes={"patch_size_level0": STEP})
    return Slide(bag, lesion, label, max(0.1, min(time, end)), int(end < time))


def cohort(folder: Path, cases: int = 60, seed: int = 1, width: int = 16) -> dict[str, Slide]:
    """Write simulated slides in CLAM's layout, ``h5_files/*.h5`` and ``manifest.csv``; every second case has a lesion.

    Further targets in the manifest are ``lesion_percent`` (of the patches), and two labels: ``EGFR``, positive in most
    slides with a lesion, and ``KRAS``, which no patch shows. One in eight is unknown for EGFR.

    Returns:
        The slides by id.
    """
    generator = np.random.default_rng(seed)
    others = np.random.default_rng([seed, 1])  # independent of the slides
    made = {}
    rows = []
    for number in range(cases):
        name = f"made_{number:03d}"
        one = slide(name, number % 2, generator, width)
        write_bag(folder / "h5_files" / f"{name}.h5", one.bag, "made")
        label = "lesion" if one.label else "normal"
        rows.append({"slide_id": name, "case_id": name, "label": label})
        rows[-1] |= {"survival_months": round(one.time, 2), "censorship": one.censored}
        rows[-1]["lesion_percent"] = round(100 * one.lesion.mean(), 1)
        for gene, probability in (("EGFR", 0.1 + 0.8 * one.label), ("KRAS", 0.5)):
            known, positive = others.random() > 1 / 8, others.random() < probability
            known |= gene == "KRAS"  # each case has a known label
            rows[-1][gene] = ("positive" if positive else "negative") if known else ""
        made[name] = one
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False, lineterminator="\n")
    return made
