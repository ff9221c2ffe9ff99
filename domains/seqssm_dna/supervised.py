"""Classification and regression of sequences of any length; long sequences are read in windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seqssm_dna.effects import Pair
from seqssm_dna.scoring import TOKENS
from seqssm_dna.sources import Item, Reader
from seqssm_dna.tokens import is_base, padded
from seqssm_dna.windows import starts_of

AT_ONCE = 8  # batches of windows read at once, to be sorted by length


@dataclass
class Windowed:
    """Outputs of the windows of one sequence.

    Attributes:
        spans: start and end of each window, 0-based half-open, (n, 2).
        values: probabilities or numbers, (n, C); NaN for windows without A, C, G, T.
        features: mean features of the windows, (D,); None if not requested.
        n_fractions: fraction of N in each window, (n,).
        n_fraction: fraction of N among the letters that were read, each counted once.
    """

    spans: np.ndarray
    values: np.ndarray
    features: np.ndarray | None
    n_fractions: np.ndarray
    n_fraction: float

    @property
    def known(self) -> np.ndarray:
        """Mask of windows with bases, (n,) bool."""
        return ~np.isnan(self.values).any(1)

    @property
    def merged(self) -> np.ndarray:
        """Mean over the windows with bases, (C,); NaN if there are none."""
        return self.values[self.known].mean(0) if self.known.any() else np.full(self.values.shape[1], np.nan)


class Supervised:
    """A classifier or regressor over sequences of any length.

    Sequences longer than `window` are read in windows of this length at distance `step`; the last one ends at the end
    of the sequence. The probabilities or numbers are averaged over the windows.

    Args:
        model: a `seqssm_dna.classifier.GenomeClassifier`.
        window: maximum length of a window, letters; None for no limit.
        step: distance between windows, letters; None for half a window.
        average: whether to average over both strands; None for the setting of training.
        features: whether to return the input features of the head.
        tokens: tokens per batch.
    """

    def __init__(
        self,
        model: Any,
        window: int | None = None,
        step: int | None = None,
        average: bool | None = None,
        features: bool = False,
        tokens: int = TOKENS,
    ) -> None:
        self.model, self.window, self.average, self.features = model, window, average, features
        self.step = step or (None if window is None else max(window // 2, 1))
        self.tokens = tokens
        self.device = next(model.parameters()).device

    def spans(self, length: int) -> np.ndarray:
        """Return the windows of a sequence, (n, 2).

        Args:
            length: length of the sequence, letters.
        """
        if self.window is None or length <= self.window:
            return np.array([[0, length]])
        starts = starts_of(length, self.window, self.step or self.window)
        return np.stack([starts, starts + self.window], axis=1)

    def items(self, items: Sequence[Item], reader: Reader) -> list[Windowed]:
        """Predict sequences.

        Args:
            items: sequences.
            reader: reader of their files.
        """
        spans = [self.spans(item.length) for item in items]
        fractions: list[list[float]] = [[] for _ in items]
        counts = np.zeros((len(items), 2))  # letters that were read, and those among them that are bases

        def windows() -> Iterator[np.ndarray]:
            for number, item in enumerate(items):
                done = 0
                for first, last in spans[number].tolist():
                    ids = item.part(reader, first, last)
                    known = is_base(ids)
                    fractions[number].append(1 - float(known.mean()) if len(ids) else 0.0)
                    fresh = known[max(done - first, 0) :]
                    counts[number] += len(fresh), fresh.sum()
                    done = last
                    yield ids

        outputs, features = self.outputs(windows())
        ends = np.cumsum([len(one) for one in spans])[:-1]
        vectors = [None] * len(items) if features is None else np.split(features, ends)
        found = []
        for number, values in enumerate(np.split(outputs, ends)):
            own, known = vectors[number], ~np.isnan(values).any(1)
            mean = None if own is None or not known.any() else own[known].mean(0)
            fraction = 1 - counts[number, 1] / max(counts[number, 0], 1)
            found.append(Windowed(spans[number], values, mean, np.array(fractions[number]), float(fraction)))
        return found

    def outputs(self, sequences: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (probabilities or numbers (n, C), features (n, D) or None), in the order of the sequences.

        Args:
            sequences: token ids, (L,) uint8 each; rows of sequences without A, C, G, T are NaN.
        """
        values: list[np.ndarray] = []
        features: list[np.ndarray] = []
        waiting: list[np.ndarray] = []
        for ids in sequences:
            waiting.append(ids)
            if sum(map(len, waiting)) >= AT_ONCE * self.tokens:
                self._some(waiting, values, features)
                waiting = []
        if waiting:
            self._some(waiting, values, features)
        return np.concatenate(values), np.concatenate(features) if self.features else None

    def _some(self, waiting: list[np.ndarray], values: list[np.ndarray], features: list[np.ndarray]) -> None:
        """Predict sequences in batches of similar lengths."""
        outputs = int(self.model.center.shape[0])
        found = np.full((len(waiting), outputs), np.nan)
        vectors = np.full((len(waiting), self.model.network.width if self.features else 0), np.nan, dtype=np.float32)
        known = [row for row, ids in enumerate(waiting) if is_base(ids).any()]
        known.sort(key=lambda row: len(waiting[row]))
        first = 0
        while first < len(known):
            last = first + 1
            while last < len(known) and (last - first + 1) * len(waiting[known[last]]) <= self.tokens:
                last += 1
            rows = known[first:last]
            found[rows], own = self._batch([waiting[row] for row in rows])
            if own is not None:
                vectors[rows] = own
            first = last
        values.append(found)
        features.append(vectors)

    def _batch(self, sequences: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        table, real = padded(sequences)
        ids = torch.from_numpy(table).to(self.device)
        mask = None if real.all() else torch.from_numpy(real).to(self.device)
        values = self.model.predict(ids, mask, self.average).double().cpu().numpy()
        features = self.model.embed(ids, mask).float().cpu().numpy() if self.features else None
        return values, features

    def alleles(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return the outputs for the windows of REF and ALT, (n, 2, C).

        Args:
            pairs: variants with their windows.
        """
        sequences = [ids for pair in pairs for ids in (pair.ref, pair.alt)]
        values, _ = self.outputs(sequences)  # type: ignore[arg-type]
        return values.reshape(len(pairs), 2, -1)
