"""The network (a Mamba layer along any order over the patches), its scores, and the training task."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.metrics.gather import gathered
from seqssm.metrics.metric import Metric, evaluate
from seqssm.nn.mamba import Mamba
from seqssm.orders import Grid
from seqssm.training.task import Task

METRICS = (
    Metric("accuracy", lambda found: float((found["logits"].argmax(1) == found["label"]).mean()), "max"),
    Metric("records", lambda found: float(len(found["label"])), shown=("test",)),
)


class PatchMamba(nn.Module):
    """Patches of an image, scanned along an order over their grid, averaged and classified.

    Args:
        channels: channels of the image.
        classes: number of classes.
        d_model: width of a patch.
        patch: side length of a patch in pixels.
        layers: number of residual Mamba layers.
        order: scan order, a name in `seqssm.orders` that is defined on a grid.
    """

    def __init__(
        self, channels: int, classes: int, d_model: int = 32, patch: int = 4, layers: int = 2, order: str = "cross"
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, d_model, patch, patch)
        self.norms = nn.ModuleList(nn.RMSNorm(d_model) for _ in range(layers))
        self.mixers = nn.ModuleList(Mamba(d_model, ordering=order, merge="mean") for _ in range(layers))
        self.head = nn.Linear(d_model, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        x = self.embed(images)
        grid = Grid(x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x), geometry=grid)
        return self.head(x.mean(1))


class ImageTask(Task):
    """Cross-entropy training; the numbers of classes and channels come from the data.

    Args:
        classes: number of classes; default: from the data.
        channels: channels of the images; default: from the data.
        kwargs: arguments of `seqssm.training.task.Task`.
    """

    domain = "images"
    networks: ClassVar = {"mamba": PatchMamba}
    metrics = METRICS
    monitor = "val_accuracy"
    inferred_args = ("classes", "channels")

    def __init__(self, classes: int | None = None, channels: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts: list[dict[str, Tensor]] = []

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule
        self.hparams["classes"] = self.hparams["classes"] or len(data.classes)
        self.hparams["channels"] = self.hparams["channels"] or data.summary()["shape"][0]

    def step(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = self.model(batch["image"])
        return F.cross_entropy(logits, batch["label"]), logits

    def reset_metrics(self, stage: str) -> None:
        self.parts = []

    def update_metrics(self, batch: dict[str, Tensor], outputs: Tensor, stage: str) -> None:
        found = {"index": batch["index"], "label": batch["label"], "logits": outputs.float()}
        self.parts.append({name: value.cpu() for name, value in found.items()})

    def decisions(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def compute_metrics(self, stage: str) -> dict[str, float]:
        return evaluate(METRICS, gathered(self.parts, self.trainer.world_size), stage)


def commonest_class(data: Any) -> dict[str, float]:
    """Baseline: the most frequent class of the training images, for every image."""
    train, test = (part.tensors[1] for part in (data.train_set, data.test_set))
    logits = np.zeros((len(test), len(data.classes)))
    logits[:, int(torch.bincount(train).argmax())] = 1
    return evaluate(METRICS, {"logits": logits, "label": test.numpy()}, "test")
