"""The averaged columns of an ensemble of DNA models, and the columns derived from the means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from seqssm.prediction.predictor import Predictor

WRITES = ("track", "embeddings", "write_vcf")
"""Options with which `predict` writes values of single models to further files."""


class Member(Predictor):
    """A predictor whose scores or class probabilities can be averaged.

    Attributes:
        classifier: whether the model predicts classes or a value.
        names: columns of a classifier's outputs.
    """

    classifier: bool
    names: list[str]
    counted: tuple[str, ...]
    """Columns that do not depend on the model."""

    @property
    def estimates(self) -> list[str]:  # type: ignore[override]
        """The scores of a language model, or the outputs of a classifier."""
        return [name for name in self.columns if name not in self.counted or name in self.names]

    def single(self) -> str | None:
        given = [name for name in WRITES if self.options.get(name)]
        return f"--{given[0].replace('_', '-')}" if given else None

    def labels(self, values: np.ndarray) -> dict[str, Any]:
        """Return the columns of a classifier's outputs (C,) and the label or labels that follow from them."""
        row: dict[str, Any] = {name: float(value) for name, value in zip(self.names, values)}
        if self.model.target == "class":
            row["label"] = self.names[int(values.argmax())]
        elif self.model.target == "labels":
            row["labels"] = ";".join(name for name, value in zip(self.names, values) if value >= 0.5)
        return row

    def derive(self, row: dict[str, Any], members: Sequence[Predictor]) -> dict[str, Any]:
        """Derive the label or labels of a classifier from the mean outputs."""
        if not self.classifier or not all(np.isfinite(row.get(name, np.nan)) for name in self.names):
            return {}
        found = self.labels(np.array([row[name] for name in self.names]))
        return {name: found[name] for name in ("label", "labels") if name in row and name in found}
