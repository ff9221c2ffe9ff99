"""Sources of features: a folder of bags, or a value table with one row per case."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqssm import orders
from seqssm.errors import InputError
from seqssm.files.fingerprint import of_files, of_parts
from seqssm_pathology.files import Bag, Invalid, join, list_bags, read_bag, read_header, say
from seqssm_pathology.fitted import Scaler
from seqssm_pathology.items import Order, instance_order, stacked
from seqssm_pathology.manifest import Case
from seqssm_pathology.ranges import Profile, Ranges, in_words
from seqssm_pathology.values import Values, by_family, read_values

CLIP_BEFORE = 4.0  # limit of value tables in their own units; z-scores can have outliers in the thousands
TABLES = (".h5", ".hdf5", ".csv", ".xlsx", ".parquet")


class Source(ABC):
    """Features of cases.

    Attributes:
        path: path of the folder or table.
        width: feature width of an instance; 0 until known.
    """

    path: Path
    width: int = 0
    without_coords: int = 0
    """Number of bags without coordinates among those read by `fit`."""

    @abstractmethod
    def has(self, case: Case) -> bool:
        """Return whether the source has features of `case`."""

    @abstractmethod
    def read(self, case: Case) -> Bag:
        """Read the unscaled features of a case."""

    @abstractmethod
    def order(self, bag: Bag) -> np.ndarray:
        """Return the scan order of the instances, (N,) int64."""

    @abstractmethod
    def scale(self, scaler: Scaler, features: np.ndarray) -> np.ndarray:
        """Scale features, (N, D)."""

    @abstractmethod
    def profile(self, bag: Bag) -> Profile:
        """Return the statistics of a bag, or of a table's row."""

    @abstractmethod
    def fit(self, cases: Sequence[Case], clip: float | None) -> tuple[Scaler, Ranges | None, np.ndarray, np.ndarray]:
        """Fit in one pass over the cases: (scaler, ranges of the bags' features, smallest and largest value of each
        feature per case, (n, D))."""

    @abstractmethod
    def digest(self, cases: Sequence[Case]) -> str:
        """Return a digest of the contents of cases, to notice changes."""

    def name_of(self, feature: int) -> str:
        """Format the name of a feature for messages.

        Args:
            feature: index of the feature.
        """
        return f"feature {feature} (of {self.width}, from 0)"


class BagFolder(Source):
    """Bags of patches, one file per slide.

    Args:
        folder: folder of the bags.
        key: name of the features in ``.h5`` files.
        invalid: treatment of instances with NaN, ``"error"`` or ``"drop"``.
        order: order of the instances.
        bags: bag files by slide id, replacing those of the folder.
    """

    def __init__(
        self, folder: Path, key: str, invalid: Invalid, order: Order, bags: dict[str, Path] | None = None
    ) -> None:
        if order == "family":
            raise InputError("--data.order family applies to value tables only", file=folder)
        self.path, self.key, self.invalid, self.name = folder, key, invalid, order
        self.bags = list_bags(folder) if bags is None else dict(bags)
        self.expected: int | None = None

    @property
    def bytes(self) -> int:
        """Size of all bags on disk, bytes."""
        return sum(file.stat().st_size for file in self.bags.values())

    def has(self, case: Case) -> bool:
        return any(slide in self.bags for slide in case.slides)

    def require_readable(self, cases: Iterable[Case]) -> list[tuple[str, InputError]]:
        """Check the headers of all bags of the cases; with ``invalid="drop"``, unusable ones are dropped.

        Returns:
            (slide, reason) of the dropped bags.

        Raises:
            InputError: a bag is unusable; the message names the first one and the number of such bags.
        """
        slides = [slide for case in cases for slide in case.slides if slide in self.bags]
        bad: list[tuple[str, InputError]] = []
        widths: dict[str, int] = {}
        for slide in slides:
            try:
                widths[slide] = read_header(self.bags[slide], self.key).width
            except InputError as error:
                bad.append((slide, error))
        counts = Counter(widths.values())
        usual = self.expected or (counts.most_common(1)[0][0] if counts else 0)
        whose = "the model was trained on" if self.expected else f"those of {counts[usual]} other bags"
        for slide, width in widths.items():
            if width != usual:
                bad.append((slide, InputError(f"features have width {width}, {whose} {usual}", file=self.bags[slide])))
        if bad and (self.invalid == "error" or len(bad) == len(slides)):
            first = bad[0][1]
            more = f"; {len(bad)} of {len(slides)} bags cannot be used" if len(bad) > 1 else ""
            hint = "; --data.invalid drop drops such bags" if len(bad) < len(slides) else ""
            raise InputError(f"{first.message}{more}{hint}", file=first.file, place=first.place)
        for slide, _ in bad:
            del self.bags[slide]
        self.width = usual
        return bad

    def read(self, case: Case) -> Bag:
        bags = [read_bag(self.bags[s], self.key, self.invalid) for s in case.slides if s in self.bags]
        bag, slide = join(bags, case.id)
        if bag.coords is not None and len(bags) > 1:  # stack the slides vertically, in the order of the manifest
            bag.coords = stacked(bag.coords, slide)
        if self.width and bag.features.shape[1] != self.width:  # the file changed after its header was read
            raise InputError(f"features have width {bag.features.shape[1]}, other bags {self.width}", file=bag.id)
        return bag

    def digest(self, cases: Sequence[Case]) -> str:
        return of_files([self.bags[slide] for slide in sorted(s for c in cases for s in c.slides if s in self.bags)])

    def order(self, bag: Bag) -> np.ndarray:
        return instance_order(bag, self.name)

    def scale(self, scaler: Scaler, features: np.ndarray) -> np.ndarray:
        return scaler(features)

    def profile(self, bag: Bag) -> Profile:
        return Profile.of(bag.features, bag.powers)

    def fit(self, cases: Sequence[Case], clip: float | None) -> tuple[Scaler, Ranges | None, np.ndarray, np.ndarray]:
        lows: list[np.ndarray] = []
        highs: list[np.ndarray] = []
        found: list[Profile] = []

        def watched() -> Iterator[np.ndarray]:
            for case in cases:
                bag = self.read(case)
                self.width = bag.features.shape[1]
                self.without_coords += bag.coords is None
                lows.append(bag.features.min(0))
                highs.append(bag.features.max(0))
                found.append(self.profile(bag))
                yield bag.features

        scaler = Scaler.fit(watched(), clip, None)
        powers = sorted(set().union(*(one.powers for one in found)))
        if len(powers) > 1:
            say(
                f"warning: the training bags have patches at {in_words(powers)}; features of one model should be of one"
            )
        return scaler, Ranges.fit(found), np.vstack(lows), np.vstack(highs)


class TokenTable(Source):
    """A value table: each case is a bag of one token per column.

    Args:
        path: path of the table.
        order: order of the tokens, ``file``, ``row`` (same as ``file``), ``random`` or ``family``.
        families: CSV file of gene families, for ``family``.
        seed: random seed, for ``random``.
    """

    width = 1

    def __init__(self, path: Path, order: Order, families: Path | None, seed: int) -> None:
        self.path = path
        self._hold(read_values(path))
        if order == "family":
            assert families is not None
            self.token_order = by_family(self.columns, families)
        elif order == "random":
            self.token_order = orders.random(len(self.columns), seed).numpy()
        elif order in ("file", "row"):
            self.token_order = np.arange(len(self.columns))
        else:
            raise InputError(f"--data.order {order}: value tables support file, random and family", file=path)

    def _hold(self, values: Values) -> None:
        self.values = values
        self.rows = {case: row for row, case in enumerate(values.cases)}

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return self.values.columns

    def take(self, columns: list[str], token_order: Any) -> None:
        """Select the columns of a trained model by name, and use its order.

        Args:
            columns: column names in the order of the model.
            token_order: token order of the model, (columns,) integers.
        """
        self._hold(self.values.select(columns))
        self.token_order = np.asarray(token_order)

    def has(self, case: Case) -> bool:
        return case.id in self.rows

    def read(self, case: Case) -> Bag:
        return Bag(case.id, self.values.values[self.rows[case.id]][:, None])

    def digest(self, cases: Sequence[Case]) -> str:
        rows = [self.rows[case] for case in sorted(case.id for case in cases)]
        return of_parts([*self.columns, self.token_order, self.values.values[rows]])

    def order(self, bag: Bag) -> np.ndarray:
        return self.token_order

    def scale(self, scaler: Scaler, features: np.ndarray) -> np.ndarray:
        return scaler(features.T).T

    def profile(self, bag: Bag) -> Profile:
        return Profile.of(bag.features[:, 0])

    def fit(self, cases: Sequence[Case], clip: float | None) -> tuple[Scaler, Ranges | None, np.ndarray, np.ndarray]:
        rows = self.values.values[[self.rows[case.id] for case in cases]]
        scaler = Scaler.fit([rows], clip, None if clip is None else CLIP_BEFORE)
        return scaler, Ranges.fit([Profile.of(row) for row in rows]), rows, rows

    def name_of(self, feature: int) -> str:
        return f"column {self.columns[feature]}"


def open_source(
    path: Path, key: str, invalid: Invalid, order: Order, families: Path | None, seed: int
) -> BagFolder | TokenTable:
    """Open a source: a value table if `path` is a file, else a folder of bags.

    Args:
        path: path of the folder or table.
        key: name of the features in ``.h5`` bags.
        invalid: treatment of instances with NaN, ``"error"`` or ``"drop"``.
        order: order of the instances.
        families: CSV file of gene families.
        seed: random seed of ``order: random`` for a table.
    """
    if path.is_file() and path.suffix.lower() in TABLES:
        return TokenTable(path, order, families, seed)
    return BagFolder(path, key, invalid, order)
