"""The network (a Mamba layer along any order over the patches), its scores, and the training task."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from seqssm.metrics.gather import gathered
from seqssm.metrics.metric import Metric, evaluate
from seqssm.nn.etf import Classifying, make_head
from seqssm.nn.mamba import Mamba
from seqssm.nn.selective_projector import Branches, make_projector
from seqssm.orders import Grid
from seqssm.training.class_task import ClassTask

METRICS = (
    Metric("accuracy", lambda found: float((found["logits"].argmax(1) == found["label"]).mean()), "max"),
    Metric("records", lambda found: float(len(found["label"])), shown=("test",)),
)


def make_stem(channels: int, d_model: int, depth: int) -> nn.Sequential:
    """Blocks of a 3 x 3 convolution, batch norm and 2 x 2 max-pooling; the last one has `d_model` channels."""
    widths, blocks = [channels, *[d_model // 2] * (depth - 1), d_model], []
    for before, after in pairwise(widths):
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        blocks += [convolution, nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]
    return nn.Sequential(*blocks)


class PatchMamba(Classifying):
    """Patches of an image, scanned along an order over their grid, averaged and classified.

    Args:
        channels: channels of the image.
        classes: number of classes.
        d_model: width of a patch.
        patch: side length of a patch in pixels.
        stem: number of convolutional blocks instead of patches, each of which halves the image; 0 for patches.
        layers: number of residual Mamba layers.
        order: scan order, a name in `seqssm.orders` that is defined on a grid.
        size: height and width of the image in pixels, for the projector.
        class_head: kind of the head.
        max_classes: largest number of classes of the head ``"etf"``.
        projector: branches of the selective projector in front of the head.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        d_model: int = 32,
        patch: int = 4,
        stem: int = 0,
        layers: int = 2,
        order: str = "cross",
        size: tuple[int, int] = (0, 0),
        class_head: Literal["linear", "etf"] = "linear",
        max_classes: int | None = None,
        projector: Branches = "none",
    ) -> None:
        super().__init__()
        self.embed = make_stem(channels, d_model, stem) if stem else nn.Conv2d(channels, d_model, patch, patch)
        self.norms = nn.ModuleList(nn.RMSNorm(d_model) for _ in range(layers))
        self.mixers = nn.ModuleList(Mamba(d_model, ordering=order, merge="mean") for _ in range(layers))
        self.head = make_head(d_model, classes, class_head, max_classes)
        cells = [-(-side // 2**stem) if stem else side // patch for side in size]
        grid = Grid(*(max(1, count) for count in cells))
        self.projector = make_projector(d_model, projector, grid.positions, ordering="cross", geometry=grid)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        return self.classify(*self.class_inputs(images))

    def class_inputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (B, D) and the features of the patches (B, L, D)."""
        x = self.embed(images)
        grid = Grid(x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x), geometry=grid)
        return x.mean(1), x


class ImageTask(ClassTask):
    """Cross-entropy training; the numbers of classes and channels come from the data.

    Args:
        classes: number of classes; default: from the data.
        channels: channels of the images; default: from the data.
        size: height and width of the images; default: from the data.
        kwargs: arguments of `seqssm.training.class_task.ClassTask`.
    """

    domain = "images"
    networks: ClassVar = {"mamba": PatchMamba}
    metrics = METRICS
    monitor = "val_accuracy"
    inferred_args = ("classes", "channels", "size")
    derived = ("class_head",)

    def __init__(
        self,
        classes: int | None = None,
        channels: int | None = None,
        size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.parts: list[dict[str, Tensor]] = []

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule
        self.hparams["classes"] = self.hparams["classes"] or len(data.classes)
        channels, *size = data.summary()["shape"]
        self.hparams["channels"] = self.hparams["channels"] or channels
        self.hparams["size"] = tuple(self.hparams["size"] or size)

    def derive(self) -> dict[str, Any]:
        return self.head_options

    def step(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = self.model(batch["image"])
        return self.class_loss(logits, batch["label"]), logits

    def class_inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.model.class_inputs(batch["image"])

    def class_labels(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["label"]

    def class_scores(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(batch["image"])

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
