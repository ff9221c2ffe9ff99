"""The Mamba-2 layer (arXiv 2405.21060, section 7) with any number of routes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from seqssm_kernels import causal_conv1d, causal_conv1d_step, ssd_int8_step, ssd_scan, ssd_scan_int8, ssd_step
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.integer_scan import integer_scan
from seqssm.nn.routed import RoutedMixer
from seqssm.nn.sizes import require_head_sizes, require_positive, require_range
from seqssm.nn.state import State
from seqssm.orders import Merge, Spec


class GatedNorm(nn.Module):
    """RMS normalisation in groups of channels after the gate, norm(y silu(z)); the scan applies the gate.

    Args:
        width: number of channels.
        groups: number of groups, which are normalised separately.
        eps: epsilon added to the mean square.

    Raises:
        ValueError: the channels are not divisible into `groups`.
    """

    def __init__(self, width: int, groups: int, eps: float) -> None:
        super().__init__()
        if groups < 1 or width % groups:
            raise ValueError(f"{width} channels do not divide into {groups} groups of the normalisation")
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset all scales to 1."""
        nn.init.ones_(self.weight)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, groups={self.groups}, eps={self.eps}"

    def forward(self, y: Tensor) -> Tensor:
        """Normalise (..., E), in float32 or wider."""
        kept = y.to(torch.promote_types(y.dtype, torch.float32))
        grouped = kept.unflatten(-1, (self.groups, -1))
        normed = F.rms_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(-2)
        return normed.to(y.dtype) * self.weight.to(y.dtype)


class _Branch(nn.Module):
    """Weights of one route: convolution over x, B and C, dt bias, A and D."""

    conv1d: nn.Conv1d
    dt_bias: nn.Parameter
    A_log: nn.Parameter
    D: nn.Parameter


class Mamba2(RoutedMixer):
    """Gated scan with one decay per head (state space duality) over one or several routes of the sequence.

    ``in_proj`` computes the gate z, the channels x, B, C and dt, in this order, once for all routes; each route has its
    own convolution over x, B and C, and its own ``A_log``, ``D`` and ``dt_bias``. The merged routes are normalised
    (gate before norm) and projected. Padding, packing, orders and states are as in `Mamba`.

    The parameters of the first route have the public names of Mamba-2 (``conv1d.weight``, ``A_log``, ``norm.weight``,
    ...), those of route r = 1, 2, ... the same names under ``routes.<r>.``. ``A_log``, ``D`` and ``dt_bias`` stay
    float32 under every dtype conversion (float64 under ``double()``).

    Args:
        d_model: width of the sequence, D.
        d_state: number of states per channel, N.
        d_conv: kernel size of the causal convolution, W.
        expand: expansion factor; E = expand * d_model channels are scanned.
        head_dim: number of channels per head, P; each of the H = E / P heads has one decay.
        n_groups: number of pairs of B and C, G, a divisor of the number of heads.
        norm_groups: number of groups of the normalisation; None for `n_groups`.
        ordering: scan order of the routes, see `seqssm.orders`.
        merge: rule that combines the outputs of the routes, as in `Mamba`; with ``concat``, each of the R routes scans
            H / R heads.
        local_conv: kernel size (odd) of an additional depthwise convolution over the grid; None to disable it.
        bias: whether ``in_proj`` and ``out_proj`` have a bias.
        conv_bias: whether the causal convolution has a bias.
        dt_min: minimum initial step size; dt is initialised log-uniform in [dt_min, dt_max].
        dt_max: maximum initial step size; see `dt_min`.
        dt_init_floor: lower bound of the initial step size.
        dt_limit: range to which dt is clamped after softplus.
        a_range: range of the uniform initialisation of -A.
        norm_eps: epsilon of the normalisation.
        engine: engine of the kernels; None for the best one for the device.

    Raises:
        ValueError: an unknown ordering or merge, a merge that does not match the coverage of the routes, or sizes that
            are not positive or not divisible.
    """

    linear_projection = False

    A_log: nn.Parameter

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 128,
        d_conv: int = 4,
        expand: float = 2,
        head_dim: int = 64,
        n_groups: int = 1,
        norm_groups: int | None = None,
        ordering: Spec = "forward",
        merge: Merge = "sum",
        local_conv: int | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, math.inf),
        a_range: tuple[float, float] = (1.0, 16.0),
        norm_eps: float = 1e-5,
        engine: str | None = None,
    ) -> None:
        super().__init__(d_model, int(expand * d_model), ordering, merge, local_conv, engine)
        self.d_state, self.d_conv, self.head_dim, self.n_groups = d_state, d_conv, head_dim, n_groups
        self.dt_range, self.dt_init_floor, self.a_range = (dt_min, dt_max), dt_init_floor, a_range
        self.dt_limit = (float(dt_limit[0]), float(dt_limit[1]))
        self._require_sizes()
        self.heads = self.width // head_dim
        self._build_branch(self, conv_bias)
        rows = 2 * self.width + 2 * n_groups * d_state + self.heads
        self.in_proj = nn.Linear(d_model, rows, bias=bias)
        self.routes = nn.ModuleDict()
        for number in range(1, len(self.ordering)):
            self.routes[str(number)] = _Branch()
            self._build_branch(self.routes[str(number)], conv_bias)
        self.norm = GatedNorm(self.width, n_groups if norm_groups is None else norm_groups, norm_eps)
        self.out_proj = nn.Linear(self.width, d_model, bias=bias)
        self._finish(local_conv)
        self.scan_x, self.scan_b, self.scan_c = nn.Identity(), nn.Identity(), nn.Identity()  # rounding, if compressed

    def _require_sizes(self) -> None:
        require_head_sizes(self)
        require_positive(d_conv=self.d_conv)
        require_range("a_range", *self.a_range)
        if not 0 <= self.dt_limit[0] < self.dt_limit[1]:
            raise ValueError(f"dt_limit must be an ascending range from 0 upwards, not {self.dt_limit}")

    @property
    def state_size(self) -> tuple[int, int]:
        return self.width // self.groups, self.d_state

    @property
    def conv_width(self) -> int:
        """Number of channels of a route's convolution: x of its heads, B and C."""
        return self.width // self.groups + 2 * self.n_groups * self.d_state

    def _build_branch(self, holder: Any, conv_bias: bool) -> None:
        taps, heads = self.d_conv, self.heads // self.groups
        channels = self.conv_width
        holder.conv1d = nn.Conv1d(channels, channels, taps, groups=channels, padding=taps - 1, bias=conv_bias)
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        for name in ("dt_bias", "A_log", "D"):
            setattr(holder, name, nn.Parameter(torch.empty(heads, dtype=dtype)))
        self._reset_branch(holder)

    @property
    def branches(self) -> list[Any]:
        """Modules that hold the weights of each route: the layer itself for the first one."""
        return [self, *self.routes.values()]

    @torch.no_grad()
    def _reset_branch(self, holder: Any) -> None:
        """Initialise softplus(dt_bias) log-uniform in the dt range, -A uniform in its range, and D = 1."""
        holder.conv1d.reset_parameters()
        low, high = (math.log(limit) for limit in self.dt_range)
        dt = torch.exp(torch.rand_like(holder.dt_bias) * (high - low) + low).clamp(min=self.dt_init_floor)
        holder.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        holder.A_log.uniform_(*self.a_range).log_()
        holder.D.fill_(1.0)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise all weights, e.g. after ``to_empty`` of a layer built on the meta device."""
        for holder in self.branches:
            self._reset_branch(holder)
        for module in (self.in_proj, self.norm, self.out_proj):
            module.reset_parameters()
        self._reset_shared()

    def kept_parameters(self) -> Iterator[Tensor]:
        for holder in self.branches:
            yield from (holder.A_log, holder.D, holder.dt_bias)

    def extra_repr(self) -> str:
        groups = f", n_groups={self.n_groups}" if self.n_groups > 1 else ""
        return f"{super().extra_repr()}, d_state={self.d_state}, head_dim={self.head_dim}{groups}"

    def mix(
        self,
        x: Tensor,
        order: Tensor | None,
        cu_seqlens: Tensor | None,
        state: State | None,
        return_state: bool,
        only: int | None = None,
    ) -> tuple[Tensor, State | None]:
        holders = self.branches if only is None else [self.branches[only]]
        z, u, dt = self._channels(x, only)
        convolved = causal_conv1d(
            u,
            *_convolution(holders),
            order=order,
            cu_seqlens=cu_seqlens,
            state=None if state is None else state["conv"],
            activation="silu",
            return_final_state=return_state,
            engine=self.engine,
        )
        u, conv_state = convolved if isinstance(convolved, tuple) else (convolved, None)
        arguments = self._scan_arguments(u, z, dt, holders)
        scanned = (ssd_scan_int8 if "x_scale" in arguments else ssd_scan)(
            **arguments,
            order=order,
            cu_seqlens=cu_seqlens,
            initial_state=None if state is None else state["scan"],
            return_final_state=return_state,
            engine=self.engine,
        )
        y, scan_state = scanned if isinstance(scanned, tuple) else (scanned, None)
        return y.flatten(-2), State(conv=conv_state, scan=scan_state) if return_state else None

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        holders = self.branches
        z, u, dt = self._channels(x, None)
        u, conv = causal_conv1d_step(u, *_convolution(holders), state["conv"], activation="silu", engine=self.engine)
        arguments = self._scan_arguments(u, z, dt, holders)
        step = ssd_int8_step if "x_scale" in arguments else ssd_step
        y, scan = step(**arguments, state=state["scan"], engine=self.engine)
        return self.project(self._merge(y.flatten(-2))), State(conv=conv, scan=scan)

    def project(self, y: Tensor) -> Tensor:
        return self.out_proj(self.norm(y))

    def new_state(self, batch_size: int) -> State:
        like, routes, heads = self.A_log, len(self.ordering), self.heads // self.groups  # float32, or float64
        conv = like.new_zeros(batch_size, routes, self.conv_width, self.d_conv - 1)
        scan = like.new_zeros(batch_size, routes, heads, self.head_dim, self.d_state)
        return self.kept_state(State(conv=conv, scan=scan))

    def _channels(self, x: Tensor, only: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Project x (..., d) to gate (..., r or 1, e), convolution input (..., r or 1, c) and dt (..., r or 1, h)."""
        shared = 2 * self.n_groups * self.d_state
        rows = self.in_proj(x)
        if self.merge != "concat":
            z, u, dt = rows.split([self.width, self.width + shared, self.heads], dim=-1)
            return z.unsqueeze(-2), u.unsqueeze(-2), dt.unsqueeze(-2)
        z, u, both, dt = rows.split([self.width, self.width, shared, self.heads], dim=-1)
        z, u, dt = (part.unflatten(-1, (self.groups, -1)) for part in (z, u, dt))
        if only is not None:
            z, u, dt = (part[..., only : only + 1, :] for part in (z, u, dt))
        both = both.unsqueeze(-2).expand(*u.shape[:-1], shared)
        return z, torch.cat([u, both], dim=-1), dt

    def _scan_arguments(self, u: Tensor, z: Tensor, dt: Tensor, holders: list[Any]) -> dict[str, Any]:
        """Prepare the arguments shared by scan and step, from the convolved channels (..., r, c).

        They include scales if x, B and C are integers.
        """
        own, states, scan = self.width // self.groups, self.n_groups * self.d_state, integer_scan(self, u)
        x, B, C = (u if scan is None else scan.all(u)).split([own, states, states], dim=-1)
        if scan is None:
            x, B, C = self.scan_x(x), self.scan_b(B), self.scan_c(C)
        kept = torch.promote_types(u.dtype, torch.float32)
        A_log, D, dt_bias = (
            torch.stack([getattr(holder, name) for holder in holders]).to(kept) for name in ("A_log", "D", "dt_bias")
        )
        arguments: dict[str, Any] = {
            "x": x.unflatten(-1, (-1, self.head_dim)),
            "dt": dt,
            "A": -torch.exp(A_log),
            "B": B.unflatten(-1, (self.n_groups, -1)),
            "C": C.unflatten(-1, (self.n_groups, -1)),
            "D": D,
            "z": z.unflatten(-1, (-1, self.head_dim)),
        }
        if scan is not None:
            arguments |= scan.with_routes
        if self.dt_limit == (0.0, math.inf):
            return arguments | {"dt_bias": dt_bias, "dt_softplus": True}
        limited = F.softplus(dt.to(kept) + dt_bias).clamp(*self.dt_limit)
        return arguments | {"dt": limited if scan is None else limited.to(u.dtype)}


def _convolution(holders: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Stack weight (r, c, w) and bias (r, c) of all routes."""
    weights = [holder.conv1d.weight.squeeze(1) for holder in holders]
    biases = [holder.conv1d.bias for holder in holders]
    if len(holders) == 1:
        return weights[0].unsqueeze(0), None if biases[0] is None else biases[0].unsqueeze(0)
    return torch.stack(weights), None if biases[0] is None else torch.stack(biases)
