"""The averaged columns of an ensemble of DNA models, and the columns derived from the means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seqssm.metrics.columns import OutputColumns
from seqssm.prediction.predictor import Predictor

WRITES = ("track", "embeddings", "write_vcf")
"""Options with which `predict` writes values of single models to further files."""


class Member(Predictor):
    """A predictor whose scores or class probabilities can be averaged.

    Attributes:
        classifier: whether the model predicts classes or a value.
        outputs: columns of a classifier's outputs; without names for a language model.
    """

    classifier: bool
    outputs: OutputColumns
    counted: tuple[str, ...]
    """Columns that do not depend on the model."""

    @property
    def estimates(self) -> list[str]:  # type: ignore[override]
        """The scores of a language model, or the outputs of a classifier."""
        counted = {*self.counted, *self.outputs.decisions}
        return [name for name in self.columns if name not in counted]

    def single(self) -> str | None:
        given = [name for name in WRITES if self.options.get(name)]
        return f"--{given[0].replace('_', '-')}" if given else None

    def derive(self, row: dict[str, Any], members: Sequence[Predictor]) -> dict[str, Any]:
        """Derive the decisions of a classifier from the mean outputs."""
        return self.outputs.decide(row) if self.classifier else {}
