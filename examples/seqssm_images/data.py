"""Images from ``.npz`` or ``.npy`` files, and their labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from seqssm.bounds import RATE
from seqssm.errors import InputError, no_column
from seqssm.files.content import DAMAGED
from seqssm.files.tables import read_table
from seqssm.training.data import DataModule


def read_images(path: Path) -> tuple[Tensor, list[str] | None]:
    """Images (n, C, H, W) float32, scaled to [0, 1] for 8-bit files, and the labels in the file, if any.

    Raises:
        InputError: not an array file, or an array of an unsupported shape or type.
    """
    content = _arrays(path)
    if "images" not in content:
        raise InputError(f"contains no array named images (found: {', '.join(content)})", file=path)
    images = content["images"]
    labels = [str(label) for label in content["labels"].ravel()] if "labels" in content else None
    if images.ndim not in (3, 4) or images.dtype.kind not in "uif":
        raise InputError(f"images are {images.dtype} {images.shape}; expected numbers (n, [C,] H, W)", file=path)
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    values = torch.from_numpy(images.astype(np.float32) / scale)
    return (values if values.ndim == 4 else values[:, None]), labels


def _arrays(path: Path) -> dict[str, Any]:
    """The arrays of an archive by name, or a single array as ``images``."""
    try:
        content = np.load(path, allow_pickle=False)
        return {"images": content} if isinstance(content, np.ndarray) else dict(content)
    except (OSError, *DAMAGED) as error:
        why = " ".join(str(error).split())[:120]
        raise InputError(f"is not a readable .npy or .npz file ({why})", file=path) from None


def split_of(path: Path, count: int) -> list[Tensor]:
    """Indices of the training, validation and test images: the array ``split`` of an archive, or at random."""
    content = _arrays(path)
    if "split" not in content:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        held = max(1, round(0.15 * count))
        return [order[2 * held :], order[held : 2 * held], order[:held]]
    names = content["split"].astype(str)
    if len(names) != count or set(names) - {"train", "val", "test"}:
        raise InputError(f"the array split needs train, val or test for each of the {count} images", file=path)
    return [torch.from_numpy(np.flatnonzero(names == name)) for name in ("train", "val", "test")]


class Images(TensorDataset):
    """Samples for the task: image, class index, record index.

    Args:
        images: images, (n, C, H, W).
        labels: class indices, (n,).
        jitter: largest random shift, as a fraction of the image; rotation and scaling by as much.
    """

    def __init__(self, images: Tensor, labels: Tensor, jitter: float = 0.0) -> None:
        super().__init__(images, labels)
        self.jitter = jitter

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        image, label = super().__getitem__(index)
        if self.jitter:
            a, x, y, log = ((2 * torch.rand(4) - 1) * self.jitter * torch.tensor([2.0, 2.0, 2.0, 1.0])).unbind()
            turn = torch.stack([torch.stack([a.cos(), -a.sin(), x]), torch.stack([a.sin(), a.cos(), y])])
            turn[:, :2] *= log.exp()
            grid = F.affine_grid(turn[None], [1, *image.shape], align_corners=False)
            image = F.grid_sample(image[None], grid, align_corners=False)[0]
        return {"image": image, "label": label, "index": torch.tensor(index)}


class ImageData(DataModule):
    """Labelled images, split as the file says, or at random into training, validation (15 %) and test (15 %).

    Args:
        file: ``.npz`` with ``images``, ``labels`` and optionally ``split``, or ``.npy`` with images.
        labels: table with a column ``label``, one row per image; needed for ``.npy``.
        jitter: augmentation: largest random shift, as a fraction of the image, with rotation and scaling.
        kwargs: arguments of `seqssm.training.data.DataModule`.
    """

    sources = (("file",), ("labels",))
    labelled_argument = "file"

    neutral = (*DataModule.neutral, "jitter")
    limits = {"jitter": RATE}  # noqa: RUF012

    def __init__(self, file: str | None = None, labels: str | None = None, jitter: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        self.file, self.labels, self.jitter = file, labels, jitter
        self.classes: list[str] = []

    def use_summary(self, summary: Mapping[str, Any], external: bool) -> None:
        self.fitted, self.external = summary, external

    def class_names(self) -> list[str]:
        return sorted(set(self.read()[1]))

    def read(self) -> tuple[Tensor, list[str]]:
        """Images (n, C, H, W) and their labels."""
        if self.file is None:
            raise InputError("--data.file FILE is needed (.npz or .npy)")
        images, labels = read_images(Path(self.file))
        if self.labels is not None:
            table = read_table(self.labels)
            if "label" not in table.frame:
                raise no_column("label", table.columns, file=self.labels)
            labels = table.frame["label"].tolist()
        if labels is None or len(labels) != len(images):
            raise InputError(f"{len(labels or [])} labels for {len(images)} images", file=self.labels or self.file)
        return images, labels

    def setup(self, stage: str) -> None:
        images, labels = self.read()
        self.classes = sorted(set(labels))
        if self.fitted is not None:
            self.classes = list(self.fitted["classes"])
            strange = sorted(set(labels) - set(self.classes))
            if strange or list(images.shape[1:]) != list(self.fitted["shape"]):
                why = f"label {strange[0]}" if strange else f"images {list(images.shape[1:])}"
                raise InputError(f"{why}, unknown to the model", file=self.labels or self.file)
        if len(self.classes) < 2:
            raise InputError(f"one class only ({self.classes[0]}); at least two are needed", file=self.file)
        numbers = torch.tensor([self.classes.index(label) for label in labels])
        if self.external:
            self.test_set = Images(images, numbers)
            return
        parts = split_of(Path(str(self.file)), len(images))
        self.train_set, self.val_set, self.test_set = (Images(images[i], numbers[i]) for i in parts)
        self.train_set.jitter = self.jitter

    def plain_train_set(self) -> Images:
        return Images(*self.train_set.tensors)

    def augmented(self) -> Images | None:
        return Images(*self.test_set.tensors, jitter=self.jitter) if self.jitter else None

    def summary(self) -> dict[str, Any]:
        return {"classes": self.classes, "shape": list((self.train_set or self.test_set)[0]["image"].shape)}
