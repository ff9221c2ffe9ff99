"""Generation conditioned on properties: a language model whose sequences begin with a token per property."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.bounds import Bounds
from seqssm.errors import InputError
from seqssm.training.output_names import Outputs, interval_names
from seqssm_dna.model import GenomeLM
from seqssm_dna.rivals import GruLM
from seqssm_dna.task import GenomeTask, LanguageTask, is_base, next_token_nll, sums
from seqssm_dna.tokens import BOS, FIXED, PAD, SEP, Vocabulary


def quantile_edges(values: np.ndarray, bins: int) -> list[float]:
    """Return the inner edges of quantile bins; value v is in bin ``sum(v >= edges)``.

    Args:
        values: values of the training split, (n,).
        bins: number of bins.

    Raises:
        InputError: there are too many equal values for this number of bins.
    """
    edges = [float(one) for one in np.quantile(values, np.arange(1, bins) / bins)]
    if len(set(edges)) < len(edges) or np.isnan(edges).any():
        raise InputError(f"--model.bins {bins}: too many equal values for this number of bins; use fewer bins")
    return edges


class ConditionedGeneration(LanguageTask):
    """Trains a causal language model on ``[BOS]``, a token per property, the bases, ``[SEP]``.

    A property is the class, or a column of numbers, which are binned at quantiles of the training split. The loss
    covers the bases and the end token only; N is never a target.

    Args:
        target: ``value`` or ``class``; by default that of the data.
        bins: number of bins per property.
        properties: names of the properties; by default those of the data.
        classes: names of the classes, for target ``class``; by default those of the data.
        edges: inner edges of the bins by property; by default quantiles of the training split.
        **kwargs: arguments of the network and of `seqssm_dna.task.GenomeTask`.
    """

    networks: ClassVar[Mapping[str, type[nn.Module]]] = {"hybrid": GenomeLM, "gru": GruLM}
    linked_args: ClassVar[tuple[str, ...]] = ("context", "target")
    target_args: ClassVar[tuple[str, ...]] = ("target",)
    inferred_args: ClassVar[tuple[str, ...]] = ("properties", "classes", "edges", "context")
    self_supervised: ClassVar[bool] = False
    objective: ClassVar[str] = "generation"
    limits: ClassVar[Mapping[str, Bounds]] = {**GenomeTask.limits, "bins": Bounds(2, 1000)}
    beside: ClassVar[tuple[str, ...]] = ("markov",)

    def __init__(
        self,
        target: Literal["class", "labels", "value"] | None = None,
        bins: int = 5,
        properties: list[str] | None = None,
        classes: list[str] | None = None,
        edges: list[list[float]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data, h = self.trainer.datamodule, self.hparams
        if h["target"] == "labels":
            raise InputError("--data.target labels: conditioned generation requires class or value")
        properties = list(data.classes) if h["target"] == "value" else ["class"]
        classes = [] if h["target"] == "value" else list(data.classes)
        for name, found in (("properties", properties), ("classes", classes)):
            if h[name] is not None and list(h[name]) != found:
                raise InputError(f"the model's {name} are {', '.join(h[name][:8])}, the data's {', '.join(found[:8])}")
            h[name] = found
        if h["edges"] is None:
            truth = data.truth("train") if h["target"] == "value" else np.zeros((0, 0))
            h["edges"] = [quantile_edges(truth[:, column], h["bins"]) for column in range(truth.shape[1])]
        if h["context"] is None and data.longest:
            h["context"] = data.longest

    @classmethod
    def named_outputs(cls, hparams: Mapping[str, Any], summary: Mapping[str, Any]) -> Outputs:
        if hparams.get("target") != "value":
            return Outputs("classes", tuple(hparams.get("classes") or ()))
        both = zip(hparams.get("properties") or (), hparams.get("edges") or ())
        return Outputs("properties", tuple(f"{name} {own}" for name, edges in both for own in interval_names(edges)))

    @property
    def window(self) -> int | None:
        """Window of attention, tokens; with ``"context"``, all tokens of a training sequence."""
        window = super().window
        if window is None or self.hparams["attn_window"] != "context":
            return window
        return window + 2 + len(self.hparams["properties"] or ())

    @property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the network: bases, then one token per bin or class."""
        h = self.hparams
        if h["target"] == "value":
            names = [f"{name}={number}" for name in h["properties"] or () for number in range(h["bins"])]
        else:
            names = [f"class={name}" for name in h["classes"] or ()]
        return Vocabulary(tuple(names))

    def trains(self, name: str) -> bool:
        """Whether a parameter is trained in addition to adapters: those of the head, and the embedding's new rows."""
        return super().trains(name) or name.startswith("embedding.")

    def prefixes(self, y: Tensor) -> Tensor:
        """Convert labels to prefix tokens, (B, P).

        Args:
            y: class indices, (B,), or numbers, (B, P).
        """
        h = self.hparams
        if h["target"] != "value":
            return len(FIXED) + y.long().unsqueeze(1)
        columns = []
        for column, edges in enumerate(h["edges"]):
            inner = torch.tensor(edges, device=y.device, dtype=torch.float64)
            number = (y[:, column].double().unsqueeze(1) >= inner).sum(1)
            columns.append(len(FIXED) + column * h["bins"] + number)
        return torch.stack(columns, dim=1)

    def step(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        ids, mask = batch["ids"], batch["mask"]
        prefix = self.prefixes(batch["y"])
        start = ids.new_full((len(ids), 1), BOS)
        inputs = torch.cat([start, prefix, ids], dim=1)
        real = torch.cat([mask.new_ones(len(ids), 1 + prefix.shape[1]), mask], dim=1)
        # the target of the last prefix token is the first base; the target of the last base is the end token
        ends = F.pad(ids, (0, 1), value=PAD).scatter(1, mask.sum(1, keepdim=True), SEP)
        logits = self.model(inputs, mask=None if bool(real.all()) else real)[:, prefix.shape[1] :]
        nll = next_token_nll(logits, ends)
        counted = is_base(ends) | (ends == SEP)
        loss = (nll * counted).sum() / counted.sum().clamp(min=1)
        if self.model.training:
            return loss, {"logits": logits, "counted": counted}
        return loss, sums(nll, logits, ends, is_base(ends))

    def predict_words(self) -> list[str]:
        """A label for each property: the highest bin, or the last class."""
        prefixes = self.vocabulary.prefixes
        names = self.hparams["properties"] or ()
        labels = [next(one for one in reversed(prefixes) if one.startswith(f"{name}=")) for name in names]
        return ["--label", *labels] if labels else []

    def describe(self) -> dict[str, Any]:
        h = self.hparams
        return {
            **super().describe(),
            "properties": list(h["properties"] or ()),
            "bins": h["bins"] if h["target"] == "value" else None,
            "edges": [list(map(float, own)) for own in h["edges"] or ()],
        }
