"""Linear baselines for labelled sequences: logistic and ridge regression on k-mer counts and one-hot positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from seqssm.errors import InputError
from seqssm_dna.tokens import BASE_COUNT, FIRST_BASE, is_base, reverse_complement_ids

Scale = Literal["unit", "counts"]

SIZES = (3, 4, 5)  # lengths of k-mers
STRENGTH = 0.1  # inverse penalty of the logistic regression
PENALTY = 100.0  # penalty of the ridge regression


def kmer_counts(sequences: Sequence[np.ndarray], sizes: Sequence[int] = SIZES, both: bool = False) -> np.ndarray:
    """Count k-mers.

    Args:
        sequences: token ids, (L,) each; k-mers with tokens other than A, C, G and T are ignored.
        sizes: lengths of the k-mers.
        both: whether to add the k-mers of the reverse complement.

    Returns:
        Counts, (n, sum 4^k) float32.
    """
    blocks = []
    for k in sizes:
        rows = np.zeros((len(sequences), 4**k), dtype=np.float32)
        for row, ids in enumerate(sequences):
            for strand in (ids, reverse_complement_ids(ids)) if both else (ids,):
                rows[row] += np.bincount(_words(strand, k), minlength=4**k)
        blocks.append(rows)
    return np.concatenate(blocks, axis=1)


def unit_rows(counts: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Scale the counts of each sequence and k-mer length to Euclidean norm 1.

    Args:
        counts: k-mer counts, (n, sum 4^k).
        sizes: lengths of the k-mers.
    """
    blocks = np.split(counts, np.cumsum([4**k for k in sizes])[:-1], axis=1)
    norms = [np.linalg.norm(block, axis=1, keepdims=True) for block in blocks]
    return np.concatenate([block / np.maximum(norm, 1e-9) for block, norm in zip(blocks, norms)], axis=1)


def _words(ids: np.ndarray, k: int) -> np.ndarray:
    """Encode all k-mers as integers."""
    count = len(ids) - k + 1
    if count < 1:
        return np.zeros(0, dtype=np.int64)
    known = is_base(ids)
    bases = np.where(known, ids.astype(np.int64) - FIRST_BASE, 0)
    codes, whole = np.zeros(count, dtype=np.int64), np.ones(count, dtype=bool)
    for step in range(k):
        codes = 4 * codes + bases[step : step + count]
        whole &= known[step : step + count]
    return codes[whole]


def one_hot(sequences: Sequence[np.ndarray], length: int) -> np.ndarray:
    """One-hot encode positions: one column per position and base; zeros for other tokens.

    Args:
        sequences: token ids, (length,) each.
        length: length of the sequences.

    Returns:
        Features, (n, 4 length) float32.
    """
    ids = np.stack(list(sequences)) if len(sequences) else np.zeros((0, length), np.uint8)
    return (ids[..., None] == FIRST_BASE + np.arange(BASE_COUNT)).astype(np.float32).reshape(len(ids), -1)


class KmerLinear:
    """Logistic regression (classes) or ridge regression (numbers) on k-mer counts and one-hot positions.

    Hyper-parameters are fixed; nothing is selected on the test data. Positions are used if all training sequences have
    the same length.

    Args:
        target: ``"classification"``, ``"multilabel"`` or ``"regression"``.
        sizes: lengths of the k-mers; if empty, only positions are used.
        positions: whether to use one-hot positions if possible.
        both: whether to count both strands.
        scale: scaling of k-mer counts: none, or to unit norm per k, which gives positions more weight. Counts suit
            motifs at any position, unit rows suit aligned sequences. None uses unit rows for classes and counts for
            numbers.

    Raises:
        InputError: no features are left, or scikit-learn is missing.
    """

    def __init__(
        self,
        target: str = "classification",
        sizes: Sequence[int] = SIZES,
        positions: bool = True,
        both: bool = False,
        scale: Scale | None = None,
    ) -> None:
        if not sizes and not positions:
            raise InputError("no features: neither k-mers nor positions are available")
        self.target, self.sizes, self.positions = target, tuple(sizes), positions
        self.both = both
        self.scale = scale or ("counts" if target == "regression" else "unit")
        self.length: int | None = None
        self.models: list[Any] = []
        self.columns = 0

    def features(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """Compute features, (n, features) float32.

        Args:
            sequences: token ids, (L,) each.

        Raises:
            InputError: positions are used, and the length of a sequence differs from that in training.
        """
        blocks = []
        if self.sizes:
            counts = kmer_counts(sequences, self.sizes, self.both)
            blocks.append(unit_rows(counts, self.sizes) if self.scale == "unit" else counts)
        if self.length is not None:
            wrong = next((len(ids) for ids in sequences if len(ids) != self.length), None)
            if wrong is not None:
                raise InputError(f"a sequence of {wrong} letters; all training sequences have {self.length}")
            blocks.append(one_hot(sequences, self.length))
        return np.concatenate(blocks, axis=1)

    def fit(self, sequences: Sequence[np.ndarray], truth: np.ndarray, classes: int | None = None) -> KmerLinear:
        """Fit the model.

        Args:
            sequences: token ids, (L,) each.
            truth: class indices, (n,); zeros and ones, (n, m); or numbers, (n,) or (n, t).
            classes: number of classes, if some may be absent from the training data; by default the largest index + 1.

        Returns:
            The model itself.
        """
        try:
            from sklearn.linear_model import LogisticRegression, Ridge
        except ImportError:
            raise InputError("the k-mer baselines require scikit-learn: pip install 'seqssm[dna]'") from None
        lengths = {len(ids) for ids in sequences}
        self.length = lengths.pop() if self.positions and len(lengths) == 1 else None
        if not self.sizes and self.length is None:
            raise InputError("positions as features require sequences of equal length")
        x, truth = self.features(sequences), np.asarray(truth)
        if self.target == "regression":
            self.columns = 1 if truth.ndim == 1 else truth.shape[1]
            self.models = [Ridge(alpha=PENALTY).fit(x, truth.reshape(len(truth), -1))]
            return self
        columns = [truth] if truth.ndim == 1 else list((truth > 0).astype(np.int64).T)
        self.columns = (classes or int(truth.max()) + 1) if truth.ndim == 1 else len(columns)
        self.models = []
        for column in columns:
            if len(np.unique(column)) == 1:
                self.models.append(int(column[0]))  # only one class: always predicted
            else:
                self.models.append(LogisticRegression(C=STRENGTH, max_iter=1000).fit(x, column))
        return self

    def predict(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """Predict probabilities of classes, (n, C), of labels, (n, m), or numbers, (n, t).

        Args:
            sequences: token ids, (L,) each.
        """
        x = self.features(sequences)
        if self.target == "regression":
            return self.models[0].predict(x).reshape(len(x), -1)
        result = np.zeros((len(x), self.columns))
        for number, model in enumerate(self.models):
            if self.target == "multilabel":
                result[:, number] = model if isinstance(model, int) else model.predict_proba(x)[:, 1]
            elif isinstance(model, int):
                result[:, model] = 1
            else:
                result[:, model.classes_] = model.predict_proba(x)
        return result
