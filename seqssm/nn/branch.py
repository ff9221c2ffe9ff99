"""One route of a Mamba layer: convolution, projections, A and D."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BranchSettings:
    """Sizes and initialisation of a branch.

    Args:
        width: number of channels of the scan, E.
        d_state: number of states per channel, N.
        d_conv: kernel size of the convolution, W.
        dt_rank: inner width of the dt projection.
        conv_bias: whether the convolution has a bias.
        dt_min: minimum initial step size; dt is initialised log-uniform in [dt_min, dt_max].
        dt_max: maximum initial step size; see `dt_min`.
        dt_init_floor: lower bound of the initial step size.
    """

    width: int
    d_state: int
    d_conv: int
    dt_rank: int
    conv_bias: bool
    dt_min: float
    dt_max: float
    dt_init_floor: float


class DtProjection(nn.Linear):
    """Projection to dt before softplus, initialised such that softplus(bias) is log-uniform (Mamba, section 3.6).

    Args:
        settings: arguments of the branch.
    """

    def __init__(self, settings: BranchSettings) -> None:
        self.settings = settings  # needed by reset_parameters, which the constructor of nn.Linear calls
        super().__init__(settings.dt_rank, settings.width)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        low, high = math.log(self.settings.dt_min), math.log(self.settings.dt_max)
        nn.init.uniform_(self.weight, -(self.settings.dt_rank**-0.5), self.settings.dt_rank**-0.5)
        uniform = torch.rand_like(self.bias, dtype=torch.float32)
        dt = torch.exp(uniform * (high - low) + low).clamp(min=self.settings.dt_init_floor)
        self.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus


def _held(name: str) -> Any:
    return property(lambda self: getattr(self.holder, name), lambda self, value: setattr(self.holder, name, value))


class ScanBranch:
    """One route of a layer.

    A branch stores no weights itself; it reads and replaces those of `holder`. For the first route this is the layer,
    whose weights therefore have Mamba's public names (``conv1d.weight``, ``A_log``, ...); for other routes it is a
    `BranchWeights`.

    Args:
        holder: module with the five weights.
        settings: arguments of the branch.
    """

    __slots__ = ("holder", "settings")

    conv1d = _held("conv1d")
    x_proj = _held("x_proj")
    dt_proj = _held("dt_proj")
    A_log = _held("A_log")
    D = _held("D")

    def __init__(self, holder: nn.Module, settings: BranchSettings) -> None:
        self.holder, self.settings = holder, settings

    def build(self) -> None:
        """Create and initialise the weights in the holder.

        `A_log` and `D` are float32, or float64 if that is the default dtype: rounding errors of A in exp(dt A)
        accumulate over the sequence.
        """
        width, rank, states = self.settings.width, self.settings.dt_rank, self.settings.d_state
        taps = self.settings.d_conv
        self.conv1d = nn.Conv1d(width, width, taps, groups=width, padding=taps - 1, bias=self.settings.conv_bias)
        self.x_proj = nn.Linear(width, rank + 2 * states, bias=False)
        self.dt_proj = DtProjection(self.settings)
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.A_log = nn.Parameter(torch.empty(width, states, dtype=dtype))
        self.D = nn.Parameter(torch.empty(width, dtype=dtype))
        self.reset_parameters()  # resets twice, to keep the weights per seed of version 0.1

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as Mamba (section 3.6): A = -(1..N) in each channel, D = 1, softplus(bias of dt) = dt."""
        for module in (self.conv1d, self.x_proj, self.dt_proj):
            module.reset_parameters()
        steps = torch.arange(1, self.settings.d_state + 1, dtype=self.A_log.dtype, device=self.A_log.device)
        self.A_log.copy_(steps.log().expand_as(self.A_log))
        self.D.fill_(1.0)

    def select(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Compute dt before softplus (..., E), and the tensor with B and C (..., rank + 2 N), from channels (..., E).

        The projections are called as modules, because adapters and quantisers replace them.
        """
        selected = self.x_proj(u)
        return self.dt_proj(selected[..., : self.settings.dt_rank]), selected

    def constants(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return A (E, N) and D (E,) for channels of `dtype`: float32, or float64 for float64."""
        kept = torch.promote_types(dtype, torch.float32)
        return -torch.exp(self.A_log).to(kept), self.D.to(kept)


class BranchWeights(nn.Module):
    """Weights of a branch other than the first.

    Args:
        settings: arguments of the branch.
    """

    def __init__(self, settings: BranchSettings) -> None:
        super().__init__()
        self.settings = settings
        ScanBranch(self, settings).build()

    def reset_parameters(self) -> None:
        """Initialise all weights."""
        ScanBranch(self, self.settings).reset_parameters()
