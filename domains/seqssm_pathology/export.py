"""The graph of a pathology model for ``seqssm export``: bags of one size in, the predictions of each target out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seqssm.errors import InputError
from seqssm.tools.export import Graph, plain
from seqssm_pathology.base import MILNetwork
from seqssm_pathology.heads import (
    ClassHead,
    Head,
    LabelsHead,
    NumberHead,
    SurvivalHead,
    curves_of,
    heads_of,
    split_logits,
)
from seqssm_pathology.mixers import Block, ImportanceMamba
from seqssm_pathology.model import ForwardMambaMIL, TransMil
from seqssm_pathology.peers import ClamMB, DsMil, DtfdMil

SCALED = (
    ", scaled by the values of scaler: limited to -clip_before ... clip_before, then (feature - mean) / scale, limited "
    "to -clip ... clip (no limit where it is null)"
)


ANSWERS: dict[type[Head], tuple[str, str, Callable[[Any, Tensor], Tensor]]] = {
    ClassHead: ("probabilities", "(batch, classes)", lambda head, logits: logits.softmax(-1)),
    SurvivalHead: (
        "survival",
        "(batch, bins), S(t) at the ends of the bins",
        lambda head, logits: curves_of(logits),
    ),
    NumberHead: (
        "value",
        "(batch, 1), in the unit of the column",
        lambda head, logits: head.evidence(logits, "")[:, None],
    ),
    LabelsHead: ("probabilities", "(batch, labels), each of its own", lambda head, logits: logits.sigmoid()),
}
"""Output of a kind of target: name, meaning, and its values from the logits."""


class Bags(nn.Module):
    """Bags (B, n, d_in), instances in scan order, to the outputs (B, m) of each target and the attention (B, n).

    Args:
        model: the trained network.
        heads: its targets.
    """

    def __init__(self, model: MILNetwork, heads: Sequence[Head]) -> None:
        super().__init__()
        self.model, self.heads = model, list(heads)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        h = self.model.project(features)
        if isinstance(self.model, ForwardMambaMIL):
            for block in self.model.blocks:
                h = h + block.mixer(block.norm(h))
            h = self.model.norm(h)
        batch, count, _ = h.shape
        bag = torch.arange(batch * count, device=h.device) // count
        pooled, _, attention = self.model.pool(h.flatten(0, 1), bag, batch)
        logits = split_logits(self.heads, self.model.head(pooled))
        answers = [ANSWERS[type(head)][2](head, own) for head, own in zip(self.heads, logits)]
        return (*answers, attention.unflatten(0, (batch, count)))


def columns_of(head: Head) -> list[str]:
    """Return the columns of `predict` that an output of the graph has."""
    return head.curve if isinstance(head, SurvivalHead) else head.estimates


def export(task: Any, summary: dict[str, Any], streaming: bool) -> Graph:
    """Return the graph of a model; the number of instances is its dynamic length.

    Args:
        task: the trained task.
        summary: description of the training data.
        streaming: not available.

    Raises:
        InputError: `streaming`, a value table, a network or an order that a graph cannot have.
    """
    model: MILNetwork = task.model
    if streaming:
        raise InputError("--streaming: attention pooling needs the whole bag")
    if summary.get("columns") is not None:
        raise InputError("a model of value tables cannot be exported as a graph; use --format safetensors")
    if isinstance(model, TransMil | ClamMB | DsMil | DtfdMil):
        name = task.hparams["network"]
        raise InputError(f"the network {name} cannot be exported as a graph; use --format safetensors")
    if getattr(model, "shuffles", 0):
        raise InputError("a model with shuffles averages several orders and cannot be exported as a graph")
    for block in (one for one in model.modules() if isinstance(one, Block)):
        if isinstance(block.mixer, ImportanceMamba):
            raise InputError("a model with importance orders sorts by learned scores and cannot be exported as a graph")
        if block.pads > 1:
            raise InputError("a model with pad_to_stride visits padding and cannot be exported as a graph")
    heads, width = heads_of(summary), int(summary["width"])

    def example(batch: int, length: int) -> dict[str, Tensor]:
        return {"features": torch.randn(batch, length, width, generator=torch.Generator().manual_seed(length))}

    outputs = [ANSWERS[type(head)][0] + (f"_{head.place}" if head.tag else "") for head in heads]
    said = [ANSWERS[type(head)][1] + (f" of {head.name}" if head.tag else "") for head in heads]
    columns = {name: columns_of(head) for name, head in zip(outputs, heads)}
    metadata = {
        "classes": list(summary["classes"]),
        "columns": columns if heads[0].tag else columns[outputs[0]],
        "edges": plain(summary["edges"]),
        "scaler": plain(summary["scaler"]),
        "scan_order": summary["order"],
        "inputs": f"features: (batch, instances, {width}), the instances of a bag in scan_order"
        + ("" if summary["scaler"] is None else SCALED),
        "outputs": "; ".join([*map(": ".join, zip(outputs, said)), "attention: (batch, instances)"]),
    }
    axes = {"features": {0: "batch", 1: "instances"}}
    return Graph(Bags(model, heads), example, axes, (*outputs, "attention"), metadata, (23, 7, 64))
