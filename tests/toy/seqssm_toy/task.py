"""The toy's network and tasks."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from seqssm.metrics.gather import gathered
from seqssm.metrics.metric import Metric, evaluate
from seqssm.metrics.report import Report
from seqssm.training.task import Task

METRICS = (
    Metric("mse", lambda errors: float(errors.square().mean()), "min"),
    Metric("r2", lambda errors: 1 - float(errors.square().mean()), "max"),
    Metric("records", len),
)


class Net(nn.Module):
    """(B, inputs) -> (B,), with dropout so that a resumed run must restore its random numbers.

    Args:
        inputs: width of a record.
        d_model: width of the hidden layer.
        dropout: fraction of dropped values.
        out: width of the head.
    """

    def __init__(self, inputs: int, d_model: int = 8, dropout: float = 0.2, out: int = 1) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(inputs, d_model), nn.GELU(), nn.Dropout(dropout))
        self.head = nn.Linear(d_model, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))[:, 0]


class Line(nn.Module):
    """(B, inputs) -> (B,), a linear map.

    Args:
        inputs: width of a record.
        bias: whether the map has a constant term.
    """

    def __init__(self, inputs: int, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)[:, 0]


class ToyTask(Task):
    """Regression.

    Args:
        inputs: width of a record; by default that of the data.
        slow: seconds per training batch, for tests that interrupt.
    """

    domain = "toy"
    networks: ClassVar = {"net": Net, "line": Line}
    metrics = METRICS
    inferred_args: ClassVar[tuple[str, ...]] = ("inputs",)

    def __init__(self, inputs: int | None = None, slow: float = 0.0, **kwargs) -> None:
        super().__init__(**kwargs)
        self.parts: dict[str, list[dict]] = {}

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.hparams["inputs"] is None:
            self.hparams["inputs"] = len(self.trainer.datamodule.test_set[0]["x"])

    def step(self, batch):
        if self.training and self.hparams["slow"]:
            import time

            time.sleep(self.hparams["slow"])
        y = self.model(batch["x"])
        return nn.functional.mse_loss(y, batch["y"]), y

    def reset_metrics(self, stage: str) -> None:
        self.parts[stage] = []

    def update_metrics(self, batch, outputs, stage: str) -> None:
        self.parts[stage].append({"index": batch["index"], "error": (outputs - batch["y"]).double().cpu()})

    def compute_metrics(self, stage: str) -> dict[str, float]:
        errors = gathered(self.parts[stage], self.trainer.world_size)["error"]
        return scores(torch.from_numpy(errors))

    def test_report(self) -> Report:
        import pandas as pd

        values = self.compute_metrics("test")
        return Report(values, [("beside the mean", pd.DataFrame([{"model": "net", "mse": values["mse"]}]))])


class TinTask(ToyTask):
    domain = "tin"


def scores(errors: torch.Tensor) -> dict[str, float]:
    return evaluate(METRICS, errors, "test")


def predict_mean(data) -> dict[str, float]:
    """The untrained baseline: the mean of the training targets."""
    mean = torch.stack([item["y"] for item in data.train_set]).mean()
    return scores(torch.stack([mean - item["y"] for item in data.test_set]).double())
