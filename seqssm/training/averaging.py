"""Exponential moving average of the weights of a model in training (Polyak averaging)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

TRAINED = "trained_weights"
"""Entry of a checkpoint with the weights of the optimiser; its state dict has their average."""
PREFIX = "model."


def averaged_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Return what is averaged, by name: the trained parameters, and the running statistics of batch normalisation."""
    yield from ((name, one) for name, one in model.named_parameters() if one.requires_grad)
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            own = dict(module.named_buffers(recurse=False))
            yield from ((f"{prefix}.{name}", one) for name, one in own.items() if one.is_floating_point())


class Averaging(LightningModule):
    """Base class of tasks that use an exponential moving average of their weights in place of the last ones.

    With the decay d (``self.hparams["averaging"]``; 0 for no average), step t = 1, 2, ... of the optimiser moves the
    average a to the weights w: ``a_t = a_{t-1} + (1 - d) / (1 - d^t) (w_t - a_{t-1})``. This is the weighted mean of
    w_1, ..., w_t with weights proportional to ``d^(t-i)``; the initial weights are not part of it. The average is
    validated and saved, and remains in `model` after the fit. A checkpoint with the state of the optimiser also holds
    the weights that the optimiser continues with.
    """

    model: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.average: dict[str, Tensor] = {}  # plain tensors: they are not part of the state dict
        self.swapped = False  # whether `model` has the average, and `average` the weights of the optimiser

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        step = self.global_step + 1
        super().optimizer_step(*args, **kwargs)
        if decay := self.hparams["averaging"]:
            weight = (1 - decay) / (1 - decay**step)
            with torch.no_grad():
                for name, one in averaged_tensors(self.model):
                    if name not in self.average:
                        self.average[name] = one.detach().clone()
                    else:
                        self.average[name] = self.average[name].to(one.device).lerp_(one, weight)

    def setup(self, stage: str) -> None:
        if stage == "fit":  # before a checkpoint is loaded
            self.average, self.swapped = {}, False

    @torch.no_grad()
    def _swap(self) -> None:
        if not self.average:
            return
        for name, one in averaged_tensors(self.model):
            kept = one.clone()
            one.copy_(self.average[name])
            self.average[name] = kept
        self.swapped = not self.swapped

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == "fit":
            self._swap()

    def on_validation_end(self) -> None:
        """Continue with the weights of the optimiser; callbacks save the average before this."""
        if self.trainer.state.fn == "fit":
            self._swap()

    def on_fit_end(self) -> None:
        """Leave the average in the model; a checkpoint saved after this still has the weights of the optimiser."""
        self._swap()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not self.average:
            return
        state, other = checkpoint["state_dict"], {PREFIX + name: value for name, value in self.average.items()}
        own = {name: state[name] for name in other}
        average, trained = (own, other) if self.swapped else (other, own)
        checkpoint["state_dict"] = {**state, **average}
        if "optimizer_states" in checkpoint:
            checkpoint["seqssm"][TRAINED] = trained

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue a fit with the weights of the optimiser; whatever else loads the checkpoint gets the average."""
        trained = checkpoint["seqssm"].get(TRAINED)
        if trained is None or self._trainer is None or self._trainer.state.fn != "fit":
            return
        state = checkpoint["state_dict"]
        self.average = {name.removeprefix(PREFIX): state[name].clone() for name in trained}
        checkpoint["state_dict"] = {**state, **trained}
