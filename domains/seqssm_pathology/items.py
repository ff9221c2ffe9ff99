"""Network input of cases: scan order of the instances, one item per case, packed batches."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from seqssm import orders
from seqssm_pathology.files import Bag
from seqssm_pathology.grids import row_grids
from seqssm_pathology.manifest import Case

INPUTS = ("index", "features", "order", "cu_seqlens", "lengths", "unusual")
"""Names of the entries of an item and a batch that are not targets."""
Order = Literal["file", "row", "column", "serpentine", "hilbert", "random", "family"]


def instance_order(bag: Bag, order: Order) -> np.ndarray:
    """Compute the scan order of the instances of a bag, (N,) int64.

    Without coordinates, orders that need them fall back to the file order; `BagData` reports how often. ``serpentine``
    traverses tissue sections whose grids have separate rows one after the other.
    """
    if order == "random":
        return orders.random(len(bag), zlib.crc32(bag.id.encode())).numpy()
    if order in ("file", "family") or bag.coords is None:
        return np.arange(len(bag))
    grids = row_grids(bag.coords) if order == "serpentine" else [np.arange(len(bag))]
    walked = [own[orders.positions(order, torch.from_numpy(bag.coords[own])).numpy()] for own in grids]
    return np.concatenate(walked)


def stacked(coords: np.ndarray, slide: np.ndarray) -> np.ndarray:
    """Stack the coordinates of the slides vertically, so that an order visits one slide after the other."""
    out, offset = coords.copy(), 0
    for number in range(int(slide.max()) + 1):
        own = slide == number
        step = coords[own, 1]
        out[own, 1] += offset - step.min()
        gaps = np.unique(step)
        offset = int(out[own, 1].max()) + (int(np.diff(gaps).min()) if len(gaps) > 1 else 1)
    return out


@dataclass
class Prepared:
    """A case prepared for the network.

    Attributes:
        features: patch features, (N, D) float32, scaled.
        order: scan order of the instances, (N,) int64.
        slides: slide ids; empty for a row of a value table.
        slide: slide index of each patch, (N,).
        coords: coordinates as in the files, (N, 2); NaN for slides without, None if no slide has any.
        bags: bags of the slides without features, for patch size and resolution.
        dropped: number of dropped patches.
        remark: how the features differ from those of the training; "" if they do not.
        scores, attention: outputs per patch, (N,) or (N, num_classes), set by `predict` for the figures.
        sources: (network, features, order) of each model that predicted the case, for gradient maps.
    """

    features: np.ndarray
    order: np.ndarray
    slides: list[str] = field(default_factory=list)
    slide: np.ndarray | None = None
    coords: np.ndarray | None = None
    bags: list[Bag] = field(default_factory=list)
    dropped: int = 0
    remark: str = ""
    scores: np.ndarray | None = None
    attention: np.ndarray | None = None
    sources: list[tuple[Any, np.ndarray, np.ndarray]] = field(default_factory=list)


class Cases(Dataset):
    """The records of a split; item k has ``index``, ``features (N, D)``, ``order (N,)``, ``unusual`` and the targets.

    Args:
        instances: function from a case to its scaled features (N, D), order (N,), and whether its features are
            unlike those of the training bags.
        answer: function from a case to its targets by name.
        cases: cases of this split.
        limit: maximum number of instances per bag, resampled on each access; None for all.
    """

    def __init__(
        self,
        instances: Callable[[Case], tuple[Tensor, Tensor, bool]],
        answer: Callable[[Case], dict[str, Tensor]],
        cases: list[Case],
        limit: int | None = None,
    ) -> None:
        self.instances, self.answer, self.cases, self.limit = instances, answer, cases, limit

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.cases[index]
        features, order, unusual = self.instances(case)
        if self.limit is not None and len(order) > self.limit:
            kept = (
                torch.randperm(len(order))[: self.limit].sort().values
            )  # reproducible, because the loader seeds each batch
            features, order = features[kept], _rank(order, kept)
        return {"index": index, "features": features, "order": order, "unusual": unusual, **self.answer(case)}


def _rank(order: Tensor, kept: Tensor) -> Tensor:
    """Restrict an order to the kept instances, with their new indices."""
    new = torch.full_like(order, -1)
    new[kept] = torch.arange(len(kept))
    renamed = new[order]
    return renamed[renamed >= 0]


def pack(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Concatenate items to a packed batch without padding.

    Returns:
        ``index (n,)``, ``features (total, D)``, ``order (total,)`` int64 positions, ``cu_seqlens (n + 1,)`` int32,
        ``lengths`` (a list, to avoid a transfer from the device), ``unusual (n,)``, and the targets, (n, ...) each, by
        the names of their heads (``label``, or ``time, censored, bin``, ...).
    """
    lengths = [len(item["order"]) for item in items]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    batch: dict[str, Any] = {
        "index": torch.tensor([item["index"] for item in items]),
        "features": torch.cat([item["features"] for item in items]),
        "order": torch.cat([item["order"] + int(start) for item, start in zip(items, starts)]),
        "cu_seqlens": torch.from_numpy(starts.astype(np.int32)),
        "lengths": lengths,
        "unusual": torch.tensor([item["unusual"] for item in items]),
    }
    for name in items[0]:
        if name not in INPUTS:
            batch[name] = torch.stack([item[name] for item in items])
    return batch
