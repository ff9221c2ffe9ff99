"""The fits of a `kfold` study: one per fold, seed and model, each in its own subfolder."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seqssm.training.run_folder import FOLDS, RunFolder

PLACE = re.compile(r"(?:(?P<kind>fold|window)-(?P<fold>\d+)_)?seed-(?P<seed>\d+)")


@dataclass(frozen=True)
class Cell:
    """One fit and test; `fold` is None for data without folds. `kind` is ``"fold"`` or ``"window"``."""

    model: str
    fold: int | None
    seed: int
    kind: str = "fold"

    def place(self) -> Path:
        fold = "" if self.fold is None else f"{self.kind}-{self.fold}_"
        return Path(self.model, f"{fold}seed-{self.seed}")


def tested_before(folder: RunFolder, cells: Sequence[Cell]) -> list[Cell]:
    """Return the tested cells in the folder of a study that are not among `cells`, by model, seed and fold.

    A continuation with other models or seeds keeps them in its table, as `predict` does in the ensemble.
    """
    found = []
    for path in sorted(folder.path.glob("*/*seed-*")):
        match = PLACE.fullmatch(path.name)
        if match is None or "test" not in RunFolder(path).read_json():
            continue
        fold = None if match["fold"] is None else int(match["fold"])
        cell = Cell(path.parent.name, fold, int(match["seed"]), match["kind"] or cells[0].kind)
        if cell not in cells:
            found.append(cell)
    return sorted(found, key=lambda one: (one.model, one.seed, one.fold or 0))


def tabled(study: Path) -> list[Path]:
    """Return the folders of the runs in the table of a study; none without a table.

    Args:
        study: folder of the study.
    """
    path, found = study / FOLDS, []
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            model, seed, fold = (row.get(name) or "" for name in ("model", "seed", "fold"))
            kinds = [f"{kind}-{fold}_" for kind in ("fold", "window")] if fold else [""]
            places = [study / model / f"{kind}seed-{seed}" for kind in kinds]
            found.append(next((one for one in places if one.exists()), places[0]))
    return found
