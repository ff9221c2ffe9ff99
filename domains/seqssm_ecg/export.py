"""The graph of an ECG model for ``seqssm export``: a window in, probabilities out; or one step of a stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.errors import InputError
from seqssm.metrics.columns import OutputColumns
from seqssm.nn.state import State
from seqssm.tools.export import Graph
from seqssm_ecg.classifier import Classifier
from seqssm_ecg.model import EcgMamba
from seqssm_ecg.preprocess import Preprocess


class Probabilities(nn.Module):
    """Windows (B, leads, n) to probabilities (B, m).

    Args:
        model: the trained network.
    """

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.probabilities(self.model(x))


class Step(nn.Module):
    """One token of a stream: samples and states in, probabilities of the recording so far and next states out.

    Inputs are the samples of one token (B, leads, stride), the number of tokens before (B, 1), the sum of their
    features (B, D), the left context of each convolution, then window and state of each block.

    Args:
        model: a causal network.
    """

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model, self.backbone = model, model.backbone

    def initial(self, batch: int) -> dict[str, Tensor]:
        """The states at the start of a recording, by name."""
        stem = self.backbone.stem
        found = {"tokens": torch.zeros(batch, 1), "total": torch.zeros(batch, self.backbone.d_model)}
        for number, (kernel, stride, _) in enumerate(stem.shapes):
            found[f"context_{number}"] = torch.zeros(batch, stem.layers[2 * number].in_channels, kernel - stride)
        for number, block in enumerate(self.backbone.blocks):
            state = block.mixer.new_state(batch)
            found |= {f"conv_{number}": state["conv"], f"scan_{number}": state["scan"]}
        return found

    def forward(self, x: Tensor, tokens: Tensor, total: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        stem, new = self.backbone.stem, []
        contexts, rest = states[: len(stem.shapes)], states[len(stem.shapes) :]
        for number, (kernel, stride, _) in enumerate(stem.shapes):
            x = torch.cat([contexts[number], x], dim=-1)
            new.append(x[..., x.shape[-1] - (kernel - stride) :])
            x = F.relu(stem.layers[2 * number + 1](stem.layers[2 * number](x)))
        token = x[:, :, 0]
        for number, block in enumerate(self.backbone.blocks):
            state = State(conv=rest[2 * number], scan=rest[2 * number + 1])
            mixed, state = block.mixer.step(block.norm(token), state)
            token = token + mixed
            new += [state["conv"], state["scan"]]
        total, tokens = total + self.backbone.norm(token), tokens + 1
        return (self.model.probabilities(self.model.head(total / tokens)), tokens, total, *new)


def export(task: Any, summary: dict[str, Any], streaming: bool) -> Graph:
    """Return the graph of a model.

    Args:
        task: the trained task.
        summary: description of the training data.
        streaming: whether to export one step of a causal model.

    Raises:
        InputError: `streaming` with a model that is not causal, a network without classes, or one of
            single leads.
    """
    from seqssm_ecg.streaming import Stream

    model: Classifier = task.model
    if getattr(model, "one_lead", False):
        raise InputError("a model of single leads cannot be exported: the number of its passes depends on the input")
    if not isinstance(model, Classifier):
        raise InputError("a pretrained network has no classes to export: train a classifier with --model.init_from")
    preprocess = Preprocess.from_dict(summary["preprocess"])
    leads = len(preprocess.leads)
    metadata = {
        "classes": list(summary["classes"]),
        "columns": OutputColumns(tuple(summary["classes"])).estimates,
        "leads": list(preprocess.leads),
        "preprocess": preprocess.to_dict(),
        "steps": preprocess.steps(),
        "filter_sections": preprocess.sections().tolist() if preprocess.band_hz else None,
        "thresholds": model.thresholds.tolist(),
        "inputs": f"x: millivolts at {preprocess.rate_hz:g} Hz after the steps, (batch, leads, samples)",
        "exclusive": model.exclusive,
        "outputs": "probabilities: (batch, classes), after temperature scaling; "
        + ("the most probable class is predicted" if model.exclusive else "a class is predicted at its threshold"),
    }
    if streaming:
        Stream(model, summary)  # raises if the model is not causal
        step = Step(model)
        stride = model.backbone.stem.stride  # type: ignore[union-attr, operator]
        names = list(step.initial(1))
        metadata |= {
            "samples_per_step": stride,
            "inputs": f"x: {stride} samples, (batch, leads, {stride}); states start as zeros and are fed back",
        }

        def one(batch: int, seed: int) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(seed)
            states = {k: torch.randn(v.shape, generator=generator) for k, v in step.initial(batch).items()}
            states["tokens"] = torch.full((batch, 1), float(seed))
            return {"x": torch.randn(batch, leads, stride, generator=generator), **states}

        axes = {name: {0: "batch"} for name in ("x", *names)}
        return Graph(step, one, axes, ("probabilities", *(f"{name}_next" for name in names)), metadata, (1, 2, 3))
    window = int(summary["window"])
    if not isinstance(model.backbone, EcgMamba) and window < 8:
        raise InputError("the window is too short")

    def example(batch: int, length: int) -> dict[str, Tensor]:
        return {"x": torch.randn(batch, leads, length, generator=torch.Generator().manual_seed(length))}

    # made off the training window, whose table of positions is not interpolated
    lengths = (window + window // 2 + 3, window, 2 * window + 40)
    axes = {"x": {0: "batch", 2: "samples"}}
    notes = [
        "recordings longer than the training window are one pass here; seqssm predict averages windows "
        f"of {window} samples"
    ]
    return Graph(Probabilities(model), example, axes, ("probabilities",), metadata, lengths, notes)
