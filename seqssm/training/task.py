"""Base class of training tasks: optimiser, learning rate, logging, reproducible randomness."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.parsing import save_hyperparameters
from torch import Tensor, nn

from seqssm.bounds import RATE, Bounds
from seqssm.errors import InputError
from seqssm.metrics.gather import add_loss
from seqssm.metrics.metric import Metric
from seqssm.metrics.report import Report
from seqssm.nn import quantized
from seqssm.nn.projections import binarise
from seqssm.training import networks
from seqssm.training.adapters import add_adapters, merged, train_only
from seqssm.training.averaging import Averaging
from seqssm.training.checkpoint import checkpoint_metadata, layout_of_integers, restore_paths
from seqssm.training.lists import require_no_blanks
from seqssm.training.optimiser import adamw, rate_factor, total_steps
from seqssm.training.output_names import Outputs
from seqssm.training.seeds import derive_seed, seed_torch
from seqssm.training.sizes import (
    MOST_THREADS,
    TRAINING_COPIES,
    for_weights,
    free_bytes,
    require_count,
    require_depth,
    require_fits,
)
from seqssm.training.soft_losses import of_classes
from seqssm.training.teacher import Teacher, join_stages, prepare
from seqssm.training.warm_start import warm_start


@dataclass(frozen=True)
class Recorded:
    """A test batch, what `Task.step` returned for it, both on the CPU, and the CPU seconds that it took."""

    batch: dict[str, Any]
    outputs: Any
    cpu_s: float


class Task(Averaging):
    """Base class of the domains' training tasks.

    A subclass declares `domain` and its `networks`, takes its own training arguments and passes the others on
    (``super().__init__(**kwargs)``). It implements `step`, `update_metrics`, `compute_metrics` and `test_report`. It
    does not repeat the arguments of its networks, which are those of their classes (`seqssm.training.networks`). All
    arguments are plain values in `self.hparams`, from which `build_model` makes the network.
    A batch is a dict whose ``"index"`` holds one integer per record.

    Args:
        learning_rate: base rate of AdamW.
        weight_decay: weight decay of matrices; vectors, biases, `A_log`, `D` and `dt_bias` have none. 0 gives Adam.
        schedule: ``"constant"``; ``"halving"``: base rate in the first two epochs, then halved before each further
            one; ``"cosine"``: cosine decay to zero at the end of the last epoch.
        warmup_steps: number of optimiser steps of linear warm-up.
        averaging: decay per step of an exponential moving average of the weights, which is validated and saved in place
            of the last ones (`seqssm.training.averaging`), such as 0.9 for an average over some 10 steps; 0 for none.
        init_from: checkpoint for a warm start; weights are matched by name and shape, other weights are initialised.
        freeze: ``"backbone"`` trains the head only.
        lora: rank of low-rank adapters on all projections; only adapters and the head are then trained; 0 for none.
        threads: number of PyTorch threads during a CPU run; unchanged by default. A small model, whose steps take
            milliseconds, is often fastest with one thread.
        binary: whether the projections have weights of one bit (Bi-Mamba, arXiv 2411.11843); embedding, head, norms,
            convolutions and the projections to dt, B and C stay in float.
        teacher: checkpoint whose outputs are learned (distillation). It is not needed to use the trained model.
        teacher_weight: weight of the teacher's soft targets in the loss, from 0 to 1; the rest is that of the labels.
        teacher_temperature: temperature that softens the probabilities of teacher and model.
    """

    domain: ClassVar[str]
    networks: ClassVar[Mapping[str, type[nn.Module]]] = {}
    """Networks by name; the first one is the default of the argument ``network``."""
    derived: ClassVar[tuple[str, ...]] = ()
    """Arguments of the networks that are computed by `derive` and are not options."""
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """Scores of test and validation."""
    head: ClassVar[tuple[str, ...]] = ("head",)
    """Names of the modules in `self.model` that belong to the head and not to the backbone."""
    fitted: ClassVar[tuple[str, ...]] = ()
    """Names of modules and buffers in `self.model` that a fit sets from its data, whatever `init_from` has."""
    limits: ClassVar[Mapping[str, Bounds]] = {
        "learning_rate": Bounds(0, 100),
        "weight_decay": Bounds(0, 1000),
        "warmup_steps": Bounds(0, 2**31 - 1),
        "averaging": RATE,
        "lora": Bounds(0, 4096),
        "teacher_weight": Bounds(0, 1),
        "teacher_temperature": Bounds(0, 1000, above=True),
    }
    """Bounds of numeric arguments; those of a subclass are added. Networks check their own. None is always accepted."""
    monitor: ClassVar[str] = "val_loss"
    """Metric that selects `best.ckpt`: ``"val_loss"``, or ``"val_"`` plus a name from `compute_metrics`."""
    paths: ClassVar[tuple[str, ...]] = ("init_from", "teacher")
    """Arguments that name files."""
    kept_paths: Mapping[str, Any] = {}
    linked_args: ClassVar[tuple[str, ...]] = ()
    """Arguments shared with the data module (a horizon, ...); by default its values."""
    inferred_args: ClassVar[tuple[str, ...]] = ()
    """Arguments that `setup` infers from the data unless given (the class names, ...)."""
    target_args: ClassVar[tuple[str, ...]] = ()
    """Arguments that define what is predicted (a horizon, ...): `compare` takes no differences where they differ."""
    unit_values: ClassVar[tuple[str, ...]] = ()
    """Values of the checkpoint's data summary that set the units of its scores (a scale, ...): likewise."""
    self_supervised: ClassVar[bool] = False
    """Whether the inputs alone are learned, and no labels: another task's test records may be among them."""
    distils: ClassVar[bool] = True
    """Whether the task can learn from a teacher; its outputs in training are then those of the network."""
    assumed: ClassVar[Mapping[str, Any]] = {}
    """Values of arguments without default that come from the data, with which the others are checked beforehand."""

    model: nn.Module
    own_arguments: ClassVar[dict[str, Any]]
    network_arguments: ClassVar[dict[str, Any]]
    arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        networks.declare(cls)

    def __init__(
        self,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Literal["constant", "halving", "cosine"] = "constant",
        warmup_steps: int = 0,
        averaging: float = 0.0,
        init_from: str | None = None,
        freeze: Literal["backbone"] | None = None,
        lora: int = 0,
        threads: int | None = None,
        binary: bool = False,
        teacher: str | None = None,
        teacher_weight: float = 1.0,
        teacher_temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if not isinstance(getattr(self, "domain", None), str):
            raise InputError(f"{type(self).__name__} has no class attribute domain: set it to the name of its domain")
        if threads is not None:
            require_count("--model.threads", threads, 1, MOST_THREADS, "the largest number of threads")
        for name, bounds in {**Task.limits, **self.limits}.items():
            bounds.require(f"--model.{name}", self.arguments[name])
        require_no_blanks("--model.", type(self), self.arguments)
        networks.check(type(self), self.arguments, self.assumed)
        self._log_hyperparams = False
        save_hyperparameters(self, given_hparams=self.arguments)  # all arguments, not those found by frame inspection
        if binary and lora:
            raise InputError("--model.binary true cannot be combined with --model.lora")
        self.built = False
        self.teacher: Teacher | None = None
        self.stages: list[nn.Module] = []  # a plain list: they are not saved
        self.report: Report | None = None
        self.recorded: list[Recorded] | None = None
        self.train_loss = torch.zeros(2, dtype=torch.float64)  # sum over records and number of records of this epoch
        self.val_loss = torch.zeros(2, dtype=torch.float64)
        self.threads_before: int | None = None

    # -- implemented by domains ------------------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        """Build the network from `self.hparams` alone; by default the chosen one of `networks`."""
        return self.build_network()

    def build_network(self) -> nn.Module:
        """Build the chosen network with the arguments in `self.hparams` and those of `derive`."""
        return networks.build(type(self), self.hparams, self.derive())

    def derive(self) -> dict[str, Any]:
        """Compute the arguments in `derived` from `self.hparams`."""
        return {}

    def adapt_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename or extend the weights of another model before a warm start; by default adapters are merged.

        Args:
            weights: state dict of the checkpoint's network.

        Returns:
            Weights by the names of `self.model`; those that do not fit are not used.
        """
        return merged(weights)

    @classmethod
    def named_outputs(cls, hparams: Mapping[str, Any], summary: Mapping[str, Any]) -> Outputs:
        """Return what the outputs of a model mean, compared with those of a teacher and of `init_from`.

        Args:
            hparams: arguments of the model.
            summary: summary of its data (`seqssm.training.data.DataModule.summary`); empty if it is unknown.

        Returns:
            By default the argument ``classes``, if there is one.
        """
        names = hparams.get("classes")  # names, or in some domains their number
        return Outputs("classes", tuple(map(str, names)) if isinstance(names, list | tuple) else ())

    @abstractmethod
    def step(self, batch: dict[str, Any]) -> tuple[Tensor, Any]:
        """Run a batch through the network, in training, validation and test.

        Returns:
            (scalar mean loss over the records, outputs for `update_metrics`).
        """

    def update_metrics(self, batch: dict[str, Any], outputs: Any, stage: str) -> None:
        """Add a batch of `stage` ("val" or "test") to the metrics. Each record is added once over all processes."""

    def compute_metrics(self, stage: str) -> dict[str, float]:
        """Compute the metrics of `stage` over all processes, by names without the prefix ``val_`` or ``test_``."""
        return {}

    def reset_metrics(self, stage: str) -> None:
        """Reset the metrics before a pass over `stage`; by default all torchmetrics metrics of this module."""
        for module in self.modules():
            if module is not self and hasattr(module, "_defaults") and hasattr(module, "reset"):
                module.reset()  # type: ignore[operator]

    def decisions(self, outputs: Any) -> Tensor | None:
        """Return what a user acts on, one row of integers or booleans per record; None if there are numbers only.

        Comparisons of two models count the records whose decision differs. `outputs` is the second result of `step`.
        """
        return None

    def from_teacher(self, outputs: Any) -> Any:
        """Return the second result of a teacher's `step` in the terms of this model's; by default unchanged."""
        return outputs

    def soft_loss(self, outputs: Any, wanted: Any, temperature: float) -> Tensor:
        """Compute the loss for the soft targets of a teacher; by default for logits of classes.

        Args:
            outputs: second result of `step` in training.
            wanted: that of the teacher, from `from_teacher`.
            temperature: temperature of the probabilities.
        """
        return of_classes(outputs, wanted, temperature)

    def test_report(self) -> Report:
        """Make the report that `test` prints and writes; called after the last batch in every process."""
        return Report(self.compute_metrics("test"))

    def predict_words(self) -> list[str]:
        """Options that ``seqssm predict`` needs for this model beside its inputs, for the hint after a fit."""
        return []

    def usage(self, model: str) -> list[str]:
        """Commands that use the trained model, for the hint after a fit; by default that of ``seqssm predict``.

        Args:
            model: path of the checkpoint.
        """
        return []

    def after_fit(self, path: Path, data: Any, device: Any = "cpu") -> None:
        """Complete `best.ckpt` after a fit, in rank 0; by default, nothing is added.

        Args:
            path: the checkpoint; it does not exist after a trial run.
            data: the data module of the fit.
            device: device to compute on.
        """

    # -- data ----------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Link the arguments shared with the data module, and set the number of threads. Subclasses call it first."""
        super().setup(stage)
        if (data := self.trainer.datamodule) is not None:  # type: ignore[attr-defined]
            self.hparams.update(networks.linked(type(self), self.hparams, data.hparams))
        self.threads_before = torch.get_num_threads()
        if self.hparams["threads"] is not None:
            torch.set_num_threads(self.hparams["threads"])

    def teardown(self, stage: str) -> None:
        """Restore the number of threads."""
        if self.threads_before is not None:
            torch.set_num_threads(self.threads_before)

    # -- the model ---------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the network once; at the start of a fit, also apply `init_from` and `freeze`."""
        if self.built:
            return
        trainer = self._trainer
        require_depth(self.hparams)
        if trainer is not None:
            device = trainer.strategy.root_device
            free, copies = free_bytes(device), TRAINING_COPIES if trainer.state.fn == TrainerFn.FITTING else 1
            bound = f"the free memory of {device}" + (", gradients and AdamW included" if copies > 1 else "")
            require_fits(self.build_model, None if free is None else free // copies, bound)
        with for_weights():
            self.model = self.build_model()
            if self.hparams["binary"]:
                binarise(self.model)
            join_stages(self)
        self.built = True
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            if self.hparams["init_from"] and not trainer.ckpt_path:
                warm_start(self, self.hparams["init_from"])
            if self.hparams["freeze"] == "backbone" and not train_only(self.model, self.is_head):
                raise InputError(f"--model.freeze backbone: this model has no module {' or '.join(self.head)} to train")
            prepare(self)
        if self.hparams["lora"]:
            with for_weights():
                add_adapters(self.model, self.hparams["lora"], self.trains)

    def trains(self, name: str) -> bool:
        """Whether the parameter `name` of `self.model` is trained in addition to adapters; by default the head."""
        return self.is_head(name)

    def is_head(self, name: str) -> bool:
        """Whether the parameter `name` of `self.model` belongs to the head."""
        return any(name == head or name.startswith(head + ".") for head in self.head)

    # -- optimiser ---------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        mixed = self._trainer is not None and "mixed" in str(self._trainer.precision)
        return adamw(self, self.hparams["learning_rate"], self.hparams["weight_decay"], fused=not mixed)

    def rate(self, epoch: int, step: int, total: int) -> float:
        """Return the learning rate of optimiser step `step` (from 0) in epoch `epoch` (from 0) of `total` steps."""
        h = self.hparams
        return h["learning_rate"] * rate_factor(h["schedule"], h["warmup_steps"], epoch, step, total)

    # -- training ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate and seed dropout; both are functions of (seed, epoch, step, rank) alone."""
        trainer = self.trainer
        total = total_steps(trainer, self.hparams["schedule"])
        rate = self.rate(self.current_epoch, self.global_step, total)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        data = trainer.datamodule  # type: ignore[attr-defined]
        seed = data.run_seed if data is not None else 0
        seed_torch(derive_seed(seed, self.current_epoch, batch_idx, trainer.global_rank, 2), self.device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if batch_idx == 0:
            self.train_loss.zero_()
        records = self.count(batch)
        before = None if self.teacher is None else torch.get_rng_state()
        loss, outputs = self.step(batch)
        if self.teacher is not None and before is not None:
            loss = self.teacher.loss(self, batch, (loss, outputs), before)
        self.train_loss = add_loss(self.train_loss, loss, records)
        self.log("loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=False, batch_size=records)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train_loss", self.mean_loss(self.train_loss), rank_zero_only=True)

    # -- validation and test -----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.val_loss = torch.zeros_like(self.val_loss)  # `validate` makes tensors that cannot be changed in a fit
        self.reset_metrics("val")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if self._repeated("val", batch_idx):
            return
        records = self.count(batch)
        loss, outputs = self.step(batch)
        self.val_loss = add_loss(self.val_loss, loss, records)
        self.update_metrics(batch, outputs, "val")

    def on_validation_epoch_end(self) -> None:
        values = {"loss": self.mean_loss(self.val_loss), **self.compute_metrics("val")}
        self.log_dict({f"val_{name}": float(value) for name, value in values.items()}, batch_size=1)

    def on_test_epoch_start(self) -> None:
        self.reset_metrics("test")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if not self._repeated("test", batch_idx):
            self.count(batch)
            start = time.process_time()
            _, outputs = self.step(batch)
            if self.recorded is not None:
                made = {"batch": batch, "outputs": outputs, "cpu_s": time.process_time() - start}
                self.recorded.append(Recorded(**move_data_to_device(made, "cpu")))
            self.update_metrics(batch, outputs, "test")

    def on_test_epoch_end(self) -> None:
        self.report = self.test_report() if self.recorded is None else Report(self.compute_metrics("test"))
        self.log_dict({f"test_{k}": float(v) for k, v in self.report.metrics.items()}, batch_size=1)

    def count(self, batch: Any) -> int:
        """Return the number of records of a batch.

        Raises:
            InputError: the batch is not a dict with the entry ``"index"``.
        """
        if not isinstance(batch, Mapping) or "index" not in batch:
            names = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
            raise InputError(
                f"a batch has no entry 'index', the numbers of its records (found: {names}); the items of a data set "
                f"for {type(self).__name__} are dicts that hold it"
            )
        return len(batch["index"])

    def _repeated(self, stage: str, batch_idx: int) -> bool:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return data is not None and data.is_padding(stage, batch_idx)

    def mean_loss(self, total: Tensor) -> float:
        """Return the mean over the records of all processes, from this process's (sum, count)."""
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(total.to(self.device), reduce_op="sum")
        return float(total[0] / total[1]) if total[1] else float("nan")

    # -- checkpoint --------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seqssm"] = checkpoint_metadata(self)
        restore_paths(self, checkpoint)
        super().on_save_checkpoint(checkpoint)
        total = self.train_loss
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(total.to(self.device), reduce_op="mean")
        checkpoint["seqssm"]["train_loss"] = total.cpu().clone()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.configure_model()
        super().on_load_checkpoint(checkpoint)
        quantized.install(self.model, layout_of_integers(checkpoint["seqssm"]))
        self.train_loss = checkpoint["seqssm"]["train_loss"].clone()
