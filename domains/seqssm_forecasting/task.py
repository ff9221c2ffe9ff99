"""The training task: mean squared error or quantile loss over all variates and steps; test with baselines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.bounds import Bounds
from seqssm.errors import InputError
from seqssm.metrics.report import Report
from seqssm.training.networks import parameters
from seqssm.training.output_names import Outputs
from seqssm.training.soft_losses import of_values
from seqssm.training.task import Task
from seqssm_forecasting import STEPS, baselines, intervals, report
from seqssm_forecasting.blend import Blend, ErrorProducts
from seqssm_forecasting.metrics import METRICS, SUMS, Errors, IntervalScores
from seqssm_forecasting.model import NETWORKS, DLinear

TEST_LEVELS = (0.8, 0.9, 0.95)  # levels of the intervals measured by `test`
RESIDUALS, SERIES = 5000, 30  # maximum number of windows and variates in the residual diagnostics


class ForecastingTask(Task):
    """Trains a forecaster on scaled windows.

    Args:
        lookback: number of input steps; by default that of the data.
        horizon: number of steps to forecast; by default that of the data.
        quantiles: probabilities, including 0.5, to train with the pinball loss instead of the mean with the squared
            error; the forecast is then the median, and pairs of quantiles form the prediction intervals.
        future_columns: names of the future covariates; by default those of the data.
        holidays: source of the future covariate of holidays; by default that of the data.
        static: number of static features per series; by default that of the data.
        blend: whether the forecast is a convex combination of the network, DLinear (trained before the network) and the
            last value, with weights fitted on the validation split; not used with `quantiles`. The network is trained
            as without it.
        kwargs: arguments of `seqssm.training.task.Task`.
    """

    domain = "forecasting"
    networks = NETWORKS
    derived: ClassVar[tuple[str, ...]] = ("future",)
    metrics = METRICS
    linked_args: ClassVar[tuple[str, ...]] = ("lookback", "horizon", "future_columns", "holidays")
    target_args: ClassVar[tuple[str, ...]] = ("horizon",)
    unit_values: ClassVar[tuple[str, ...]] = ("mean", "std")
    inferred_args: ClassVar[tuple[str, ...]] = ("static",)
    head: ClassVar[tuple[str, ...]] = ("head", "network.head")
    fitted: ClassVar[tuple[str, ...]] = ("linear", "weights")  # of a blend
    assumed: ClassVar[Mapping[str, Any]] = {"lookback": 1, "horizon": 1}
    limits: ClassVar[Mapping[str, Bounds]] = {"lookback": STEPS, "horizon": STEPS, "static": Bounds(0, 2**31 - 1)}

    def __init__(
        self,
        lookback: int | None = None,
        horizon: int | None = None,
        quantiles: float | list[float] | None = None,
        future_columns: str | list[str] | None = None,
        holidays: str | None = None,
        static: int | None = None,
        blend: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.probabilities = require_probabilities(quantiles)
        self._require_future(future_columns, holidays)
        self.val_error = torch.zeros(2, dtype=torch.float64)  # sum of absolute errors, count
        self.errors: dict[str, Errors] = {}
        self.first_errors: list[Tensor] = []
        self.interval_scores: IntervalScores | None = None
        self.dlinear: nn.Module | None = None
        self.products: ErrorProducts | None = None
        self.calibration: intervals.Calibration | None = None
        self.calibrated: dict[str, Any] = {}
        self.static_table: Tensor | None = None

    def derive(self) -> dict[str, Any]:
        h = self.hparams
        future = bool(h["future_columns"] or h["holidays"])
        return {"quantiles": len(self.probabilities), "future": future, "static": h["static"] or 0}

    @classmethod
    def named_outputs(cls, hparams: Mapping[str, Any], summary: Mapping[str, Any]) -> Outputs:
        found = require_probabilities(hparams.get("quantiles"))
        return Outputs("quantiles", tuple(map(str, found))) if found else Outputs("forecasts", ("the mean",))

    def build_model(self) -> nn.Module:
        """Build the network, and its combination with the other members of a blend."""
        network, h = self.build_network(), self.hparams
        if not h["blend"] or self.probabilities:
            return network
        linear = None if h["network"] == "dlinear" else DLinear(h["lookback"], h["horizon"])
        return Blend(network, h["horizon"], linear)

    @property
    def blend(self) -> Blend | None:
        """The blend, or None if the network is used alone."""
        return self.model if isinstance(self.model, Blend) else None

    def adapt_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the weights of the network from a model with or without a blend."""
        own, inner = super().adapt_weights(weights), "network."
        if self.blend is None:
            return {name.removeprefix(inner): value for name, value in own.items()}
        if any(name.startswith(inner) for name in own):  # the other members of a blend are fitted again
            return {name: value for name, value in own.items() if name.startswith(inner)}
        return {f"{inner}{name}": value for name, value in own.items()}

    def _require_inputs(self, argument: str, given: Any, option: str) -> None:
        """Reject inputs that the chosen network does not support."""
        chosen = self.arguments["network"]
        able = [name for name, network in self.networks.items() if argument in parameters(network)]
        if given and chosen not in able:
            raise InputError(f"--model.network {chosen} does not support {option}; use {' or '.join(able)}")

    def _require_future(self, columns: Any, holidays: str | None) -> None:
        self._require_inputs("future", columns, "--data.future_columns")
        self._require_inputs("future", holidays, "--data.holidays")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = self.trainer.datamodule
        width = data.static_width()
        if self.hparams["static"] is None and width and not self.built:
            self.hparams["static"] = width
        if width != (self.hparams["static"] or 0):
            raise InputError(
                f"--data.static_file gives {width} features per series; the model was made for "
                f"{self.hparams['static'] or 0}"
            )
        self._require_inputs("static", width, "--data.static_file")
        self._require_future(self.hparams["future_columns"], self.hparams["holidays"])
        self.static_table = data.static

    def on_fit_start(self) -> None:
        """Train the DLinear of a blend; a resumed run has it in its checkpoint."""
        super().on_fit_start()
        if self.hparams["blend"] and self.probabilities and self.trainer.is_global_zero:
            print("--model.blend: not used, because the model forecasts quantiles")
        if self.blend is None or self.blend.linear is None or self.trainer.ckpt_path:
            return
        data = self.trainer.datamodule
        fitted = baselines.fit_dlinear(data.train_set, data.val_set, data.run_seed, self.device)
        self.blend.linear.load_state_dict(fitted.state_dict())

    def forward(self, batch: dict[str, Tensor], network: nn.Module | None = None) -> Tensor:
        """Forecast a batch of windows.

        Args:
            batch: the batch.
            network: the network alone; by default the whole model, which may be a blend.

        Returns:
            Scaled forecast, (B, outputs, T), or (B, outputs, T, Q) with quantiles.
        """
        static = None if self.static_table is None else self.static_table.to(batch["x"].device)
        y = (self.model if network is None else network)(
            batch["x"],
            batch.get("marks"),
            observed_mask=batch.get("observed_mask"),
            futr_exog=batch.get("futr_exog"),
            static=static,
        )
        return y[:, -batch["y"].shape[1] :]

    def point(self, forecast: Tensor) -> Tensor:
        """Return the point forecast (B, N, T), which is the median if there are quantiles."""
        return forecast[..., self.probabilities.index(0.5)] if self.probabilities else forecast

    def step(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        own = self.blend if self.hparams["blend"] else None  # a teacher may be a blend where the model is none
        forecast = self(batch, None if own is None else own.network)
        return self.loss(forecast, batch), forecast

    def loss(self, forecast: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean loss of forecasts (B, outputs, T) or (B, outputs, T, Q) over the observed values."""
        mask = batch.get("target_mask")
        if self.probabilities:
            losses = [
                intervals.pinball(forecast[..., index], batch["y"], probability)
                for index, probability in enumerate(self.probabilities)
            ]
            error = torch.stack(losses).mean(0)
        elif mask is None:
            return F.mse_loss(forecast, batch["y"])
        else:
            error = (forecast - batch["y"]).square()
        return error.mean() if mask is None else (error * mask).sum() / mask.sum().clamp(min=1)

    def soft_loss(self, outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        return of_values(outputs, wanted)

    # -- validation ----------------------------------------------------------------------------------------------------

    def reset_metrics(self, stage: str) -> None:
        data = self.trainer.datamodule
        if stage == "val":
            self.val_error = torch.zeros_like(self.val_error)
            members = 1 if self.blend is None else len(self.blend.weights)
            self.products = None if self.blend is None else ErrorProducts(members, data.horizon)
            self.calibration = intervals.Calibration(len(data.val_set), data.outputs, data.horizon, members)
        else:
            self.errors, self.first_errors = {}, []
            self.interval_scores = IntervalScores(self.test_levels(), list(self.crps_probabilities()))

    def update_metrics(self, batch: dict[str, Tensor], outputs: Tensor, stage: str) -> None:
        mask = batch.get("target_mask")
        if stage == "val":
            forecast = self.point(outputs)
            difference = (forecast - batch["y"]).abs()
            absolute = difference.mean() if mask is None else (difference * mask).sum() / mask.sum().clamp(min=1)
            total = self.val_error.to(absolute.device)
            records = len(batch["index"])
            self.val_error = total + torch.stack([absolute * records, absolute.new_tensor(float(records))])
            members = [forecast]
            if self.blend is not None and self.products is not None:
                members += self.blend.others(batch["x"][:, -batch["y"].shape[1] :])
                self.products.update(members, batch["y"], mask)
            if self.calibration is not None:
                self.calibration.update(members, batch)
            return
        horizon, targets = batch["y"].shape[-1], batch["y"].shape[1]
        if self.blend is not None:
            self._add(self.hparams["network"], outputs, batch)
            outputs = self.blend.combine([outputs, *self.blend.others(batch["x"][:, -targets:])])
        data = self.trainer.datamodule
        mean, std = data.mean[-targets:], data.std[-targets:]
        outputs = data.output_limits.clamp(outputs, data.outputs_names, mean, std)
        self._add(self.names()[0], self.point(outputs), batch)
        if self.recorded is not None:  # two models are compared, by the scores of `compute_metrics` alone
            return
        self._add_interval_scores(outputs, batch)
        self._add_first_errors(self.point(outputs), batch)
        if self.dlinear is not None:
            self._add("dlinear", self.dlinear(batch["x"][:, -targets:]), batch)
        for name, naive in baselines.naive(data.season).items():
            self._add(name, naive(batch, horizon)[:, -targets:], batch)

    def _add_first_errors(self, forecast: Tensor, batch: dict[str, Tensor]) -> None:
        """Keep the one-step errors of at most `RESIDUALS` windows and `SERIES` variates for the figure."""
        if sum(len(errors) for errors in self.first_errors) >= RESIDUALS:
            return
        error = (forecast[:, :SERIES, 0] - batch["y"][:, :SERIES, 0]).detach().float()
        if "target_mask" in batch:
            error = error.masked_fill(~batch["target_mask"][:, :SERIES, 0], torch.nan)
        self.first_errors.append(error.cpu())

    def _add(self, name: str, forecast: Tensor, batch: dict[str, Tensor]) -> None:
        if name not in self.errors:
            self.errors[name] = self._empty_errors()
        self.errors[name].update(forecast, batch["y"], batch.get("target_mask"))

    def compute_metrics(self, stage: str) -> dict[str, float]:
        if stage == "val":
            weights = self._fit_blend()
            if self.calibration is not None:
                self.calibrated, self.calibration = self.calibration.result(self.trainer.world_size, weights), None
            return {"mae": self.mean_loss(self.val_error)}
        errors = self.all_errors()[self.names()[0]]
        return {"mse": errors.mse, "mae": errors.mae}

    def _fit_blend(self) -> Tensor | None:
        """Return the weights (M, T) of the blend, fitted on this validation pass unless the model is only evaluated."""
        if self.blend is None or self.products is None:
            return None
        if self.trainer.state.fn == TrainerFn.FITTING:
            precise = torch.float32 if self.device.type == "mps" else torch.float64
            self.products.sums = self._sum(self.products.sums.to(self.device, precise))
            self.blend.weights.copy_(self.products.weights())
        return self.blend.weights.cpu()

    def names(self) -> list[str]:
        """Return the model's name in the tables, then those of the network and DLinear if they are not the model."""
        found = [*(["blend"] if self.blend is not None else []), self.hparams["network"]]
        return [*found, *(["dlinear"] if self.dlinear is not None else [])]

    # -- intervals -----------------------------------------------------------------------------------------------------

    def test_levels(self) -> list[float]:
        """Return the interval levels that `test` measures: those of the quantiles, if any, else 80, 90 and 95 %."""
        if self.probabilities:
            return quantile_levels(self.probabilities)
        return list(TEST_LEVELS)

    def crps_probabilities(self) -> tuple[float, ...]:
        """Return the probabilities of the pinball losses for the CRPS."""
        return tuple(self.probabilities) if self.probabilities else intervals.CRPS_LEVELS

    def _add_interval_scores(self, forecast: Tensor, batch: dict[str, Tensor]) -> None:
        """Update coverage, width and pinball losses with a test batch."""
        assert self.interval_scores is not None
        y, mask = batch["y"], batch.get("target_mask")
        if self.probabilities:
            index = self.probabilities.index
            limits = [
                (forecast[..., index(round((1 - level) / 2, 6))], forecast[..., index(round((1 + level) / 2, 6))])
                for level in self.interval_scores.levels
            ]
            losses = [intervals.pinball(forecast[..., k], y, p) for k, p in enumerate(self.probabilities)]
            self.interval_scores.update(limits, losses, y, mask)
            return
        if not self.calibrated:
            return
        outputs = y.shape[1]
        seen = batch["observed_mask"][:, -outputs:] if "observed_mask" in batch else None
        scale = intervals.window_std(batch["x"][:, -outputs:], seen)
        halves = {level: self._half(level, scale) for level in self.interval_scores.levels}
        losses = []
        for probability in self.interval_scores.probabilities:
            level = round(abs(2 * probability - 1), 6)
            half = self._half(level, scale) if level else torch.zeros_like(forecast)
            losses.append(intervals.pinball(forecast + (half if probability > 0.5 else -half), y, probability))
        self.interval_scores.update([(forecast - half, forecast + half) for half in halves.values()], losses, y, mask)

    def _half(self, level: float, scale: Tensor) -> Tensor:
        # a short validation split does not support the highest levels: the widest interval is used, and covers less
        half = intervals.half_width(self.calibrated, min(level, intervals.largest_level(self.calibrated)))
        return intervals.margins(self.calibrated, level, scale, half)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        kept = checkpoint["seqssm"]["data"]
        kept["quantiles"] = list(self.probabilities)
        if self.calibrated and not self.probabilities:
            kept["intervals"] = dict(self.calibrated)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.calibrated = dict(checkpoint["seqssm"]["data"].get("intervals") or {})

    # -- test ----------------------------------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        """Train the baseline DLinear, identically in every process; takes seconds for a small data set."""
        data = self.trainer.datamodule
        self.dlinear = None
        if self.blend is not None and self.blend.linear is not None:
            self.dlinear = self.blend.linear
        elif self.recorded is not None:
            return  # two models are compared, without baselines
        elif self.hparams["network"] != "dlinear" and (own := data.reference()) is not None:
            with torch.inference_mode(False), torch.enable_grad():
                self.dlinear = baselines.fit_dlinear(own.train_set, own.val_set, data.run_seed, self.device)
        if not self.calibrated and not self.probabilities:  # a checkpoint of an earlier version
            self._calibrate()

    @torch.no_grad()
    def _calibrate(self) -> None:
        data = self.trainer.datamodule.reference()
        if data is None:
            return
        calibration = intervals.Calibration(len(data.val_set), data.outputs, data.horizon)
        for batch in baselines.batches(data.val_set):
            batch = {name: value.to(self.device) for name, value in batch.items()}
            calibration.update(self(batch), batch)
        self.calibrated = calibration.result()

    def all_errors(self) -> dict[str, Errors]:
        """Return the errors of every model over all processes."""
        data = self.trainer.datamodule
        names = [*self.names(), *baselines.naive(data.season)]
        shape = (SUMS, data.outputs, data.horizon)
        empty = torch.zeros(shape, dtype=torch.float32 if self.device.type == "mps" else torch.float64)
        none = self._empty_errors()
        return {name: self.errors.get(name, none).reduce(self._sum, empty.to(self.device)) for name in names}

    def _empty_errors(self) -> Errors:
        data = self.trainer.datamodule
        return Errors(data.mean[-data.outputs :], data.std[-data.outputs :], data.output_limits.inverse)

    def _sum(self, tensor: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(tensor, reduce_op="sum") if self.trainer.world_size > 1 else tensor

    def test_report(self) -> Report:
        """Report the model and the baselines, the intervals, and the model's errors by variate and step."""
        data, scores = self.trainer.datamodule, self.interval_scores
        errors = self.all_errors()
        if scores is not None and (self.probabilities or self.calibrated):
            scores.reduce(self._sum, data.outputs, self.device)
        else:
            scores = None
        made = report.make(errors, scores, data, self.probabilities)
        if self.blend is not None:
            made.tables.append(report.blend_weights(self.blend.weights, [*self.names()[1:], "last value"]))
        if self.trainer.is_global_zero:
            first = torch.cat(self.first_errors).numpy() if self.first_errors else None
            report.write(errors, first, data, Path(self.trainer.default_root_dir) / "figures")
        return made


def require_probabilities(given: float | list[float] | None) -> list[float]:
    """Return the sorted probabilities of the quantiles, possibly empty.

    Raises:
        InputError: probabilities outside (0, 1), duplicates, or no median.
    """
    if not given:
        return []
    many = [given] if isinstance(given, int | float) else given
    found = sorted(round(float(probability), 6) for probability in many)
    if min(found) <= 0 or max(found) >= 1 or len(set(found)) < len(found) or 0.5 not in found:
        raise InputError(f"--model.quantiles {given}: expected distinct numbers between 0 and 1, including 0.5")
    return found


def quantile_levels(probabilities: list[float]) -> list[float]:
    """Return the levels of the intervals between symmetric quantiles: 0.1 and 0.9 give 0.8."""
    own = [round(p, 6) for p in probabilities]
    return [round(1 - 2 * p, 6) for p in sorted(own, reverse=True) if p < 0.5 and round(1 - p, 6) in own]
