"""Made sequences with one motif per class, and the files of an extension."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

MOTIFS = {"tata": "TATAATTATAAT", "gcgc": "GCGCGCGCGCGC"}
THIRD, FOURTH = {"acca": "ACCAACCAACCA"}, {"ggag": "GGAGGGAGGGAG"}


def labelled(motifs: dict[str, str], count: int, seed: int) -> pd.DataFrame:
    """`count` sequences of 40 letters per class: random letters around the motif of the class."""
    random = np.random.default_rng(seed)

    def letters(number: int) -> str:
        return "".join(random.choice(list("ACGT"), number))

    rows = []
    for name, motif in motifs.items():
        for _ in range(count):
            before = int(random.integers(0, 29))
            rows.append({"sequence": letters(before) + motif + letters(28 - before), "label": name})
    return pd.DataFrame(rows).sample(frac=1, random_state=seed).reset_index(drop=True)


def write_all(folder: Path) -> None:
    """Write the files: training, support of one and of two classes, evaluation, and damaged ones."""
    labelled(MOTIFS, 60, 1).to_csv(folder / "train.csv", index=False)
    labelled(THIRD, 6, 2).to_csv(folder / "support.csv", index=False)
    labelled(FOURTH, 5, 3).to_csv(folder / "third.csv", index=False)
    labelled({**MOTIFS, **THIRD}, 12, 4).to_csv(folder / "evaluate.csv", index=False)
    labelled({f"x{number}": "ACGT" for number in range(5)}, 1, 5).to_csv(folder / "many.csv", index=False)
    pd.DataFrame({"sequence": ["MKVLQEFP"] * 5, "label": ["acca"] * 5}).to_csv(folder / "protein.csv", index=False)
