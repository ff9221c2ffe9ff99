"""Images from ``.npz`` or ``.npy`` files, and their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from seqssm.errors import InputError
from seqssm.files.tables import read_table
from seqssm.training.data import DataModule


def read_images(path: Path) -> tuple[Tensor, list[str] | None]:
    """Images (n, C, H, W) float32, scaled to [0, 1] for 8-bit files, and the labels in the file, if any.

    Raises:
        InputError: not an array file, or an array of an unsupported shape or type.
    """
    try:
        content = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"is not a readable .npy or .npz file ({error})", file=path) from None
    archive = not isinstance(content, np.ndarray)
    if archive and "images" not in content:
        raise InputError(f"contains no array named images (found: {', '.join(content)})", file=path)
    images = content["images"] if archive else content
    labels = [str(label) for label in content["labels"]] if archive and "labels" in content else None
    if images.ndim not in (3, 4) or images.dtype.kind not in "uif":
        raise InputError(f"images are {images.dtype} {images.shape}; expected numbers (n, [C,] H, W)", file=path)
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    values = torch.from_numpy(images.astype(np.float32) / scale)
    return (values if values.ndim == 4 else values[:, None]), labels


class Images(TensorDataset):
    """Samples for the task: image, class index, record index."""

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        image, label = super().__getitem__(index)
        return {"image": image, "label": label, "index": torch.tensor(index)}


class ImageData(DataModule):
    """Labelled images, split at random into training, validation (15 %) and test (15 %).

    Args:
        file: ``.npz`` with ``images`` and ``labels``, or ``.npy`` with images.
        labels: table with a column ``label``, one row per image; needed for ``.npy``.
        kwargs: arguments of `seqssm.training.data.DataModule`.
    """

    def __init__(self, file: str | None = None, labels: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        self.file, self.labels = file, labels
        self.classes: list[str] = []

    def setup(self, stage: str) -> None:
        if self.file is None:
            raise InputError("--data.file FILE is needed (.npz or .npy)")
        images, labels = read_images(Path(self.file))
        if self.labels is not None:
            table = read_table(self.labels)
            if "label" not in table.frame:
                raise InputError(f"has no column label (columns: {', '.join(table.frame)})", file=self.labels)
            labels = table.frame["label"].tolist()
        if labels is None or len(labels) != len(images):
            raise InputError(f"{len(labels or [])} labels for {len(images)} images", file=self.labels or self.file)
        self.classes = sorted(set(labels))
        if len(self.classes) < 2:
            raise InputError(f"one class only ({self.classes[0]}); at least two are needed", file=self.file)
        numbers = torch.tensor([self.classes.index(label) for label in labels])
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        held = max(1, round(0.15 * len(images)))
        test, val, train = order[:held], order[held : 2 * held], order[2 * held :]
        self.train_set, self.val_set, self.test_set = (Images(images[i], numbers[i]) for i in (train, val, test))

    def summary(self) -> dict[str, Any]:
        return {"classes": self.classes, "shape": list(self.train_set[0]["image"].shape)}
