"""The toy's network and tasks."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from seqssm.metrics.report import Report
from seqssm.training.task import Task


class Net(nn.Module):
    """(B, inputs) -> (B,), with dropout so that a resumed run must restore its random numbers."""

    def __init__(self, inputs: int, d_model: int, dropout: float, out: int = 1) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(inputs, d_model), nn.GELU(), nn.Dropout(dropout))
        self.head = nn.Linear(d_model, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))[:, 0]


class ToyTask(Task):
    """Regression.

    Args:
        d_model: width.
        dropout: share of dropped values.
        out: width of the head.
        inputs: numbers of a record; the data's when not given.
        slow: seconds that a training batch takes, for tests that interrupt.
    """

    domain = "toy"
    filled: ClassVar[tuple[str, ...]] = ("inputs",)

    def __init__(
        self,
        d_model: int = 8,
        dropout: float = 0.2,
        out: int = 1,
        inputs: int | None = None,
        slow: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        self.sums: dict[str, list[float]] = {}

    def setup(self, stage: str) -> None:
        if self.hparams["inputs"] is None:
            self.hparams["inputs"] = len(self.trainer.datamodule.test_set[0]["x"])

    def build_model(self) -> nn.Module:
        h = self.hparams
        return Net(h["inputs"], h["d_model"], h["dropout"], h["out"])

    def loss(self, batch):
        if self.training and self.hparams["slow"]:
            import time

            time.sleep(self.hparams["slow"])
        return nn.functional.mse_loss(self.model(batch["x"]), batch["y"])

    def reset_metrics(self, stage: str) -> None:
        self.sums[stage] = []

    def update_metrics(self, batch, stage: str) -> None:
        error = (self.model(batch["x"]) - batch["y"]).double()
        self.sums[stage] += list(zip(batch["index"].tolist(), error.tolist()))

    def compute_metrics(self, stage: str) -> dict[str, float]:
        parts = [self.sums[stage]]
        if self.trainer.world_size > 1:
            parts = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, self.sums[stage])
        errors = sorted(pair for part in parts for pair in part)
        assert len({index for index, _ in errors}) == len(errors), "a record came twice"
        return scores(torch.tensor([error for _, error in errors], dtype=torch.float64))

    def test_report(self) -> Report:
        import pandas as pd

        values = self.compute_metrics("test")
        return Report(values, [("beside the mean", pd.DataFrame([{"model": "net", "mse": values["mse"]}]))])


class TinTask(ToyTask):
    domain = "tin"


def scores(errors: torch.Tensor) -> dict[str, float]:
    return {"mse": float(errors.square().mean()), "r2": 1 - float(errors.square().mean()), "records": len(errors)}


def predict_mean(data) -> dict[str, float]:
    """The untrained baseline: the mean of the training targets."""
    mean = torch.stack([item["y"] for item in data.train_set]).mean()
    return scores(torch.stack([mean - item["y"] for item in data.test_set]).double())
