"""The graph of a classifier for ``seqssm export``: ids of the bases in, probabilities or numbers out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqssm.errors import InputError
from seqssm.tools.export import Graph
from seqssm_dna.classifier import GenomeClassifier
from seqssm_dna.predict import output_columns
from seqssm_dna.tokens import BASE_COUNT, FIRST_BASE, N


class Predicted(nn.Module):
    """Ids (B, L) to probabilities or numbers (B, m), averaged over both strands if the model was trained for it.

    Args:
        model: the trained classifier.
    """

    def __init__(self, model: GenomeClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model.predict(ids)


def export(task: Any, summary: dict[str, Any], streaming: bool) -> Graph:
    """Return the graph of a classifier.

    Args:
        task: the trained task.
        summary: description of the training data.
        streaming: not available.

    Raises:
        InputError: `streaming`, or a model that is not a classifier.
    """
    model = task.model
    if streaming:
        raise InputError("--streaming: a classifier pools the whole sequence")
    if not isinstance(model, GenomeClassifier):
        raise InputError("only models of labelled sequences are exported as graphs; use --format safetensors")
    longest = summary["max_length"] or 400

    def example(batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(length)
        return {"ids": torch.randint(FIRST_BASE, FIRST_BASE + BASE_COUNT, (batch, length), generator=generator)}

    metadata = {
        "target": model.target,
        "classes": list(summary["classes"]),
        "columns": output_columns(summary).estimates,
        "unit": summary["unit"],
        "lower_case": summary["lower"],
        "trim_n": summary["trim_n"],
        "context": summary["context"],
        "ids": {**{letter: FIRST_BASE + k for k, letter in enumerate("ACGT")}, "N": N},
        "strands_averaged": bool(model.average_strands),
        "inputs": "ids: int64 (batch, bases), all sequences of a batch of one length",
        "outputs": "values: (batch, classes): probabilities, or numbers in the unit of the training data",
    }
    lengths = (max(3, longest // 2 + 5), max(2, longest // 4), longest)
    return Graph(Predicted(model), example, {"ids": {0: "batch", 1: "bases"}}, ("values",), metadata, lengths)
