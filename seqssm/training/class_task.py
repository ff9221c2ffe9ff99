"""Base of tasks whose records have one class each: fixed or growing heads, and class means for classes added later."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import functional as F

from seqssm.bounds import Bounds
from seqssm.errors import InputError
from seqssm.files.disk import atomic
from seqssm.nn.etf import EtfHead, cosines_of, last_layer
from seqssm.nn.selective_projector import Branches
from seqssm.training.checkpoint import build_task, read_checkpoint
from seqssm.training.class_losses import dot_regression
from seqssm.training.class_means import ENTRY, ClassInputs, means_of
from seqssm.training.output_names import Outputs
from seqssm.training.task import Task

EXTENDED = {"new": "none", "dual": "base"}
"""Values of the argument `projector` that `extend` sets, and those of a model that is trained from the start."""


class ClassTask(Task):
    """Base of the tasks of single-label classifiers, to which `seqssm <domain> extend` adds classes.

    The network is a `seqssm.nn.etf.Classifying`. A subclass implements `class_inputs`, `class_labels` and
    `class_scores`; where it has other targets too, it says with `has_classes` whether the records have one class each.

    Args:
        head: linear, or etf: fixed directions with equal angles for `max_classes` classes, trained with the
            dot-regression loss; classes can be added without changing the logits of the others.
        max_classes: largest number of classes that a model with the head etf may ever have; at most the width of its
            features.
        projector: base adds a selective projector in front of the head; new and dual are set by extend.
        class_means: whether best.ckpt keeps the mean features of every class with at least five training records, from
            which classes can be added later without the training records.
    """

    limits: ClassVar[Mapping[str, Bounds]] = {"max_classes": Bounds(2, 1_000_000)}

    def __init__(
        self,
        head: Literal["linear", "etf"] = "linear",
        max_classes: int | None = None,
        projector: Branches = "none",
        class_means: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if head == "etf" and max_classes is None:
            raise InputError("--model.head etf requires --model.max_classes, the most classes the model may ever have")
        if head != "etf" and max_classes is not None:
            raise InputError("--model.max_classes requires --model.head etf; a linear head has no such limit")

    # -- implemented by domains --------------------------------------------------------------------------------------

    @property
    def has_classes(self) -> bool:
        """Whether each record has exactly one class."""
        return True

    @abstractmethod
    def class_inputs(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Compute what projector and head read: pooled features (B, D) and tokens (B, T, D), one row per record."""

    @abstractmethod
    def class_labels(self, batch: dict[str, Any]) -> Tensor:
        """Return the class indices of a batch, (B,)."""

    @abstractmethod
    def class_scores(self, batch: dict[str, Any]) -> Tensor:
        """Compute the scores of a batch, (B, C), as in prediction: the largest one is the predicted class."""

    aggregate = "mean"
    """Combination of the windows of a record outside of a trainer; `extend` sets that of the checkpoint."""

    # -- the head ----------------------------------------------------------------------------------------------------

    @property
    def head_options(self) -> dict[str, Any]:
        """Arguments of the network about head and projector: ``class_head``, ``max_classes``, ``projector``."""
        h = self.hparams
        return {"class_head": h["head"], "max_classes": h["max_classes"], "projector": h["projector"]}

    @classmethod
    def named_outputs(cls, hparams: Mapping[str, Any], summary: Mapping[str, Any]) -> Outputs:
        """Return the classes, by default those of the data: the argument ``classes`` may be their number."""
        return Outputs("classes", tuple(map(str, summary.get("classes") or ())))

    def is_head(self, name: str) -> bool:
        return super().is_head(name) or name.startswith("projector.")

    def configure_model(self) -> None:
        """Build the network once, after checking the options of its head."""
        if self.built:
            return
        h = self.hparams
        if not self.has_classes and (h["head"] != "linear" or h["projector"] != "none"):
            flag = "head" if h["head"] != "linear" else "projector"
            raise InputError(f"--model.{flag} {h[flag]}: requires records with exactly one class each")
        trainer = self._trainer
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING and h["projector"] in EXTENDED:
            raise InputError(f"--model.projector {h['projector']}: is set by extend; pass base or none")
        try:
            super().configure_model()
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"--model.{error}") from None

    def class_loss(self, logits: Tensor, y: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
        """Compute the loss: cross-entropy of a linear head, dot regression of an ETF head.

        Args:
            logits: logits, (B, C).
            y: class indices, (B,), or probabilities, (B, C).
            weights: weights of the classes, (C,).
            smoothing: label smoothing.
        """
        if isinstance(last_layer(self.model.head), EtfHead):  # type: ignore[arg-type]
            if smoothing:
                raise InputError("--model.label_smoothing: does not apply to the loss of --model.head etf")
            return dot_regression(cosines_of(logits, self.model.head), y, weights)  # type: ignore[arg-type]
        return F.cross_entropy(logits, y, weights, label_smoothing=smoothing)

    # -- class means -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def read_classes(self, loader: Any, device: Any = "cpu") -> Iterator[ClassInputs]:
        """Yield what projector and head read, batch by batch, on `device`.

        Args:
            loader: batches of the data module, without augmentation.
            device: device of the network.
        """
        self.eval()
        for batch in loader:
            moved = self.transfer_batch_to_device(batch, torch.device(device), 0)
            pooled, tokens = self.class_inputs(moved)
            yield ClassInputs(pooled.float(), tokens.float(), self.class_labels(moved).long())

    def after_fit(self, path: Path, data: Any, device: Any = "cpu") -> None:
        """Add the class means to `best.ckpt`.

        Args:
            path: the checkpoint.
            data: the data module of the fit.
            device: device to compute on.
        """
        if not self.has_classes or not self.hparams["class_means"] or not path.is_file():
            return
        content = read_checkpoint(path)
        task = build_task(content, path).to(device)
        names = list(content["seqssm"]["data"]["classes"])
        loader = data.whole_loader(data.plain_train_set())
        means = means_of(task.model, task.read_classes(loader, device), names).kept()
        content["seqssm"][ENTRY] = means.to_dict()
        with atomic(path) as file:
            torch.save(content, file)
