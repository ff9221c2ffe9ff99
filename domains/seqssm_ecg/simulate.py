"""Simulated recordings with known diagnoses: the waves of a beat are Gaussians, projected onto twelve leads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from seqssm_ecg.labels import SINUS
from seqssm_ecg.leads import LEADS
from seqssm_ecg.wfdb_files import write_wfdb

CLASSES = ("NORM", "AF", "STach", "LBBB", "PVC")
CODES = {"NORM": SINUS, "AF": "164889003", "STach": "427084000", "LBBB": "164909002", "PVC": "427172004"}
# centre (s from the R wave), width (s), size (mV) of P, Q, R, S, T
NORMAL = ((-0.17, 0.025, 0.12), (-0.035, 0.01, -0.10), (0.0, 0.012, 1.0), (0.032, 0.011, -0.22), (0.26, 0.05, 0.28))
LEFT_BLOCK = ((-0.20, 0.025, 0.12), (0.0, 0.03, 0.75), (0.06, 0.03, 0.85), (0.35, 0.06, -0.35))
ECTOPIC = ((0.0, 0.05, -1.3), (0.11, 0.05, 0.6), (0.34, 0.07, 0.55))
# projection onto the leads: I and II are free, the other limb leads follow (Einthoven, Goldberger)
VIEW = {"I": 0.7, "II": 1.0, "V1": -0.6, "V2": -0.3, "V3": 0.4, "V4": 1.1, "V5": 1.2, "V6": 0.9}


def recording(kind: Sequence[str], seconds: float, rate_hz: float, seed: int) -> dict[str, np.ndarray]:
    """Simulate a recording with the diagnoses `kind` (of `CLASSES`; empty or NORM: none).

    AF: irregular beats without P waves, with f waves; STach: 110 to 150 beats a minute; LBBB: broad, notched complexes;
    PVC: about every fifth beat early and broad.

    Returns:
        Samples by lead, (n,) float32 each, mV.
    """
    random = np.random.default_rng(seed)
    count = round(seconds * rate_hz)
    time = np.arange(count) / rate_hz
    pace = random.uniform(110, 150) if "STach" in kind else random.uniform(55, 90)
    waves = LEFT_BLOCK if "LBBB" in kind else NORMAL
    source = np.zeros(count)
    beat = -random.uniform(0, 1)
    number = int(random.integers(0, 5))
    while beat < seconds + 1:
        ectopic = "PVC" in kind and number % 5 == 4
        shape = ECTOPIC if ectopic else waves
        for place, (centre, width, size) in enumerate(shape):
            if "AF" in kind and not ectopic and place == 0:
                continue  # no P wave
            scale = size * random.normal(1, 0.04)
            near = slice(*np.searchsorted(time, (beat + centre - 5 * width, beat + centre + 5 * width)))
            source[near] += scale * np.exp(-0.5 * ((time[near] - beat - centre) / width) ** 2)
        step = 60 / pace
        step *= random.uniform(0.55, 1.45) if "AF" in kind else random.normal(1, 0.02)
        number += 1
        if "PVC" in kind and number % 5 == 4:
            step *= 0.65  # the ectopic beat comes early
        beat += step
    if "AF" in kind:
        source += 0.06 * np.sin(2 * np.pi * (random.uniform(5, 7) * time + 0.3 * np.sin(2 * np.pi * 0.7 * time)))
    values: dict[str, np.ndarray] = {}
    for lead, view in VIEW.items():
        wander = 0.08 * np.sin(2 * np.pi * (random.uniform(0.1, 0.3) * time + random.uniform()))
        noise = random.normal(0, 0.02, count)
        values[lead] = view * random.normal(1, 0.1) * source + wander + noise
    one, two = values["I"], values["II"]
    values |= {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    return {lead: values[lead].astype(np.float32) for lead in LEADS}


def diagnoses(count: int, seed: int) -> list[list[str]]:
    """Draw the diagnoses of `count` recordings: a third normal, the others with one or two of the remaining classes."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        if random.random() < 1 / 3:
            found.append(["NORM"])
            continue
        chosen = random.choice(CLASSES[1:], size=int(random.integers(1, 3)), replace=False)
        names = [name for name in CLASSES[1:] if name in chosen]
        if "AF" in names and "STach" in names:
            names.remove("STach")  # AF with a fast rate is a different diagnosis
        found.append(names)
    return found


def folder(path: Path, count: int, seed: int = 0, seconds: float = 10.0, rate_hz: float = 250.0) -> Path:
    """Write simulated recordings in the challenge's layout (`.hea`, `.mat`), and a manifest.

    Returns:
        The columns of ``manifest.csv`` are ``path`` and one 0/1 column per class of `CLASSES`.
    """
    path.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, kind in enumerate(diagnoses(count, seed)):
        name = f"M{number:05d}"
        age = 20 + (number * 37) % 70
        comments = {
            "Age": str(age),
            "Sex": "Female" if number % 2 else "Male",
            "Dx": ",".join(CODES[one] for one in kind),
        }
        write_wfdb(path, name, recording(kind, seconds, rate_hz, seed * 100_003 + number), rate_hz, comments)
        rows.append({"path": f"{name}.hea", **{one: int(one in kind) for one in CLASSES}})
    manifest = path / "manifest.csv"
    pd.DataFrame(rows).to_csv(manifest, index=False, lineterminator="\n")
    return manifest
