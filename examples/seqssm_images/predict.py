"""Prediction from a checkpoint and array files to a table with one row per image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from seqssm.errors import InputError
from seqssm.metrics.columns import OutputColumns
from seqssm.prediction.predictor import Predictor, Record
from seqssm.tools.page import Section
from seqssm_images.data import read_images


class ImagePredictor(Predictor):
    """Rows of class probabilities and the predicted class."""

    def __init__(self, model: Any, summary: dict[str, Any], options: dict[str, Any]) -> None:
        super().__init__(model, summary, options)
        self.outputs = OutputColumns(tuple(summary["classes"]))
        self.columns = self.outputs.columns

    def records(self, inputs: list[Path]) -> Iterator[Record]:
        index = 0
        for path in inputs:
            images, _ = read_images(path)
            if list(images.shape[1:]) != list(self.summary["shape"]):
                raise InputError(f"images are {list(images.shape[1:])}, not {self.summary['shape']}", file=path)
            for number, image in enumerate(images):
                bad = None if bool(torch.isfinite(image).all()) else "the image contains values that are not finite"
                yield Record(index, f"{path.stem}:{number}", image, bad)
                index += 1

    def predict(self, records: list[Record]) -> list[list[dict[str, Any]]]:
        images = torch.stack([record.item for record in records]).to(self.device)
        probabilities = self.model(images).float().softmax(1).cpu().numpy()
        return [[self.outputs.row(p)] for p in probabilities]


def demo(folder: Path) -> list[Section]:
    """Not available: the example has no data for the demo page."""
    raise InputError("the example domain has no demo; see examples/README.md")
