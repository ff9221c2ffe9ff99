"""The training task: mean squared error over all variates and steps; `test` beside the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.errors import InputError
from seqssm.files import atomic
from seqssm.report import Report
from seqssm.task import Task
from seqssm_forecasting import baselines, metrics
from seqssm_forecasting.metrics import Errors
from seqssm_forecasting.model import build

LARGEST_TABLE = 30  # variates that `test` prints; all of them are in figures/errors.csv


class ForecastingTask(Task):
    """Trains a forecaster on scaled windows.

    Args:
        network: ``smamba``; ``itransformer`` (attention instead of the two scans); ``dlinear``.
        lookback: steps that the model sees; `data.lookback` when not given.
        horizon: steps that it forecasts; `data.horizon` when not given.
        d_model: width of a variate's token.
        d_ff: width inside the feed-forward part; `d_model` when not given.
        d_state: states a channel of the scan.
        layers: encoder layers.
        heads: of the attention of ``itransformer``.
        dropout: after the embedding and in the feed-forward part.
        use_norm: brings each window to mean 0 and deviation 1 by variate, and back.
        engine: engine of the scan; the best one for the device when not given.
        threads: threads of a CPU run, as long as it lasts; torch's own number when not given. Steps of a small model
            take milliseconds, and a second thread then waits more than it works.
        kwargs: of `seqssm.task.Task`.
    """

    domain = "forecasting"
    from_data: ClassVar[tuple[str, ...]] = ("lookback", "horizon")

    def __init__(
        self,
        network: Literal["smamba", "itransformer", "dlinear"] = "smamba",
        lookback: int | None = None,
        horizon: int | None = None,
        d_model: int = 256,
        d_ff: int | None = None,
        d_state: int = 16,
        layers: int = 2,
        heads: int = 8,
        dropout: float = 0.1,
        use_norm: bool = True,
        engine: str | None = None,
        threads: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = {"d_model": d_model, "d_ff": d_ff or 1, "d_state": d_state, "layers": layers, "heads": heads}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"--model.{name} {size}: must be at least 1")
        if threads is not None and threads < 1:
            raise InputError(f"--model.threads {threads}: must be at least 1")
        if network == "itransformer" and d_model % heads:
            raise InputError(f"--model.heads {heads} does not divide --model.d_model {d_model}")
        if not 0 <= dropout < 1:
            raise InputError(f"--model.dropout {dropout}: must be in [0, 1)")
        self.val_error = torch.zeros(2, dtype=torch.float64)  # sum of absolute errors, number of them
        self.errors: dict[str, Errors] = {}
        self.dlinear: nn.Module | None = None

    def build_model(self) -> nn.Module:
        h = self.hparams
        names = ("d_model", "d_state", "layers", "heads", "dropout", "use_norm", "engine")
        return build(
            h["network"],
            lookback=h["lookback"],
            horizon=h["horizon"],
            d_ff=h["d_ff"] or h["d_model"],
            **{name: h[name] for name in names},
        )

    def setup(self, stage: str) -> None:
        self.threads_before = torch.get_num_threads()
        if self.hparams["threads"] is not None:
            torch.set_num_threads(self.hparams["threads"])

    def teardown(self, stage: str) -> None:
        torch.set_num_threads(self.threads_before)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Forecasts of a batch of windows, (B, N, T), scaled."""
        return self.model(batch["x"], batch.get("marks"))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        forecast = self(batch)
        if not self.training:
            self.forecast = forecast  # `update_metrics` reads it: the pass is not made twice
        return F.mse_loss(forecast, batch["y"])

    # -- validation ----------------------------------------------------------------------------------------------------

    def reset_metrics(self, stage: str) -> None:
        if stage == "val":
            self.val_error = torch.zeros_like(self.val_error)
        else:
            self.errors = {}

    def update_metrics(self, batch: dict[str, Tensor], stage: str) -> None:
        if stage == "val":
            absolute = (self.forecast - batch["y"]).abs().mean()
            total = self.val_error.to(absolute.device)
            records = len(batch["index"])
            self.val_error = total + torch.stack([absolute * records, absolute.new_tensor(float(records))])
            return
        horizon = batch["y"].shape[-1]
        self._add(self.hparams["network"], self(batch), batch)
        if self.dlinear is not None:
            self._add("dlinear", self.dlinear(batch["x"]), batch)
        for name, forecast in baselines.naive(self.trainer.datamodule.season).items():
            self._add(name, forecast(batch, horizon), batch)

    def _add(self, name: str, forecast: Tensor, batch: dict[str, Tensor]) -> None:
        self.errors.setdefault(name, Errors()).update(forecast, batch["y"])

    def compute_metrics(self, stage: str) -> dict[str, float]:
        if stage == "val":
            return {"mae": self.mean_loss(self.val_error)}
        errors = self._all_errors()[self.hparams["network"]]
        return {"mse": errors.mse, "mae": errors.mae}

    # -- test ----------------------------------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        """Trains the DLinear that the model is shown beside: seconds on a small set, the same in every process."""
        data = self.trainer.datamodule
        self.dlinear = None
        if self.hparams["network"] != "dlinear":
            with torch.inference_mode(False), torch.enable_grad():
                self.dlinear = baselines.fit_dlinear(data.train_set, data.val_set, data.run_seed, self.device)

    def _all_errors(self) -> dict[str, Errors]:
        """The errors of every model over all processes."""
        data = self.trainer.datamodule
        names = [self.hparams["network"], *(["dlinear"] if self.dlinear is not None else [])]
        names += list(baselines.naive(data.season))
        shape = (2, len(data.series.columns), data.horizon)
        empty = torch.zeros(shape, dtype=torch.float32 if self.device.type == "mps" else torch.float64)

        def add(tensor: Tensor) -> Tensor:
            return self.trainer.strategy.reduce(tensor, reduce_op="sum") if self.trainer.world_size > 1 else tensor

        return {name: self.errors.get(name, Errors()).reduce(add, empty.to(self.device)) for name in names}

    def test_report(self) -> Report:
        """One table of the model and the baselines, then the model by variate and by step."""
        data = self.trainer.datamodule
        errors = self._all_errors()
        own = errors[self.hparams["network"]]
        models = pd.DataFrame(
            {"model": list(errors), "mse": [e.mse for e in errors.values()], "mae": [e.mae for e in errors.values()]}
        )
        columns, std = data.series.columns, data.std.numpy()
        variates = metrics.by_variate(own, columns, std)
        title = "By variate (mse, mae scaled; rmse_units, mae_units in the file's units)"
        if len(variates) > LARGEST_TABLE:
            variates = variates.nlargest(LARGEST_TABLE, "mse")
            title += f", the {LARGEST_TABLE} with the largest mse"
        steps = metrics.by_step(errors, metrics.some_steps(data.horizon))
        setting = f"look-back {data.lookback}, horizon {data.horizon}, {own.count} windows"
        if self.trainer.is_global_zero:
            self._write(errors, columns, std)
        return Report(
            {"mse": own.mse, "mae": own.mae},
            [
                (f"Test, scaled by the train rows ({setting})", models),
                (title, variates),
                ("Mean squared error by step ahead, scaled", steps),
            ],
        )

    def _write(self, errors: dict[str, Errors], columns: list[str], std: Any) -> None:
        """`figures/errors.csv` (every variate and step) and `figures/error_by_step.png`."""
        from seqssm_forecasting.figures import error_by_step

        folder = Path(self.trainer.default_root_dir) / "figures"
        table = metrics.by_cell(errors[self.hparams["network"]], columns, std)
        with atomic(folder / "errors.csv", "w") as file:
            table.to_csv(file, index=False, lineterminator="\n")
        error_by_step({name: one.cells()[0].mean(0) for name, one in errors.items()}, folder / "error_by_step.png")
