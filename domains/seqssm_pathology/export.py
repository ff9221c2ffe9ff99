"""The graph of a pathology model for ``seqssm export``: bags of one size in, class probabilities or survival out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seqssm.errors import InputError
from seqssm.tools.export import Graph, plain
from seqssm_pathology.base import MILNetwork
from seqssm_pathology.heads import SurvivalHead, curves_of, heads_of
from seqssm_pathology.mixers import Block, ImportanceMamba
from seqssm_pathology.model import ForwardMambaMIL, TransMil
from seqssm_pathology.peers import ClamMB, DsMil, DtfdMil

SCALED = (
    ", scaled by the values of scaler: limited to -clip_before ... clip_before, then (feature - mean) / scale, limited "
    "to -clip ... clip (no limit where it is null)"
)


class Bags(nn.Module):
    """Bags (B, n, d_in), instances in scan order, to the outputs (B, m) and the attention (B, n).

    Args:
        model: the trained network.
        target: ``"classification"`` or ``"survival"``.
    """

    def __init__(self, model: MILNetwork, target: str) -> None:
        super().__init__()
        self.model, self.target = model, target

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        h = self.model.project(features)
        if isinstance(self.model, ForwardMambaMIL):
            for block in self.model.blocks:
                h = h + block.mixer(block.norm(h))
            h = self.model.norm(h)
        batch, count, _ = h.shape
        bag = torch.arange(batch * count, device=h.device) // count
        pooled, _, attention = self.model.pool(h.flatten(0, 1), bag, batch)
        logits = self.model.head(pooled)
        if self.target == "classification":
            return logits.softmax(-1), attention.unflatten(0, (batch, count))
        return curves_of(logits), attention.unflatten(0, (batch, count))


def export(task: Any, summary: dict[str, Any], streaming: bool) -> Graph:
    """Return the graph of a model; the number of instances is its dynamic length.

    Args:
        task: the trained task.
        summary: description of the training data.
        streaming: not available.

    Raises:
        InputError: `streaming`, a value table, or an order that depends on scores or padding.
    """
    model: MILNetwork = task.model
    if streaming:
        raise InputError("--streaming: attention pooling needs the whole bag")
    if summary.get("columns") is not None:
        raise InputError("a model of value tables cannot be exported as a graph; use --format safetensors")
    if summary["target"] not in ("classification", "survival"):
        raise InputError(f"target {summary['target']} cannot be exported as a graph; use --format safetensors")
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
    target, width = summary["target"], int(summary["width"])

    def example(batch: int, length: int) -> dict[str, Tensor]:
        return {"features": torch.randn(batch, length, width, generator=torch.Generator().manual_seed(length))}

    outputs = ("probabilities" if target == "classification" else "survival", "attention")
    meanings = {
        "classification": "probabilities: (batch, classes)",
        "survival": "survival: (batch, bins), S(t) at the ends of the bins",
    }
    head = heads_of(summary)[0]
    metadata = {
        "classes": list(summary["classes"]),
        "columns": head.curve if isinstance(head, SurvivalHead) else head.estimates,
        "edges": plain(summary["edges"]),
        "scaler": plain(summary["scaler"]),
        "scan_order": summary["order"],
        "inputs": f"features: (batch, instances, {width}), the instances of a bag in scan_order"
        + ("" if summary["scaler"] is None else SCALED),
        "outputs": f"{meanings[target]}; attention: (batch, instances)",
    }
    axes = {"features": {0: "batch", 1: "instances"}}
    return Graph(Bags(model, target), example, axes, outputs, metadata, (23, 7, 64))
