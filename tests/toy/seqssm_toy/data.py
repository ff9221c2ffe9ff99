"""The toy's data: made from a formula, with noise that is redrawn each time a record is read for training."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from seqssm.training.data import DataModule


class Numbers(Dataset):
    def __init__(self, rows: list[int], noise: float) -> None:
        self.rows, self.noise = rows, noise

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        number = self.rows[place]
        x = torch.sin(torch.tensor([1.0, 2.0, 3.0]) * number)
        y = x[0] * 0.5 - x[1] + 0.3 * x[2]
        return {"x": x + self.noise * torch.randn(3) if self.noise else x, "y": y, "index": torch.tensor(place)}


class ToyData(DataModule):
    """Numbers 0 .. `rows`; every fourth validates, the one after it tests, unless there are folds.

    Args:
        rows: how many records there are.
        noise: standard deviation of the noise added to training inputs.
        fold: index of the test fold.
        folds: number of folds, or a folder of ``splits_N.csv``.
        validation: whether there is a validation split.
    """

    def __init__(
        self,
        rows: int = 60,
        noise: float = 0.1,
        fold: int | None = None,
        folds: int | str | None = None,
        validation: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)

    def setup(self, stage: str) -> None:
        h = self.hparams
        numbers = list(range(h["rows"]))
        if isinstance(h["folds"], int):
            test = [n for n in numbers if n % h["folds"] == h["fold"]]
        else:
            test = [n for n in numbers if n % 4 == 1 + (h["fold"] or 0)]
        rest = [n for n in numbers if n not in test]
        self.train_set = Numbers([n for n in rest if n % 4 or not h["validation"]], h["noise"])
        self.val_set = Numbers([n for n in rest if n % 4 == 0], 0.0) if h["validation"] else None
        self.test_set = Numbers(test, 0.0)

    def summary(self) -> dict:
        return {"offset": torch.tensor([0.25])}
