"""The Mamba-3 layer (arXiv 2603.15569, one input and one output per channel) with any number of routes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from seqssm_kernels import ssd_scan, ssd_step
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.rotation import rotate
from seqssm.nn.routed import RoutedMixer
from seqssm.nn.sizes import require_head_sizes
from seqssm.nn.state import State
from seqssm.nn.steps import Steps
from seqssm.orders import Merge, Spec

WEAKEST_DECAY = 1e-4  # minimum of |A|


class _Branch(nn.Module):
    """Weights of one route: dt bias, D, norms and biases of B and C."""

    def __init__(self, heads: int, states: int, eps: float) -> None:
        super().__init__()
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.dt_bias = nn.Parameter(torch.empty(heads, dtype=dtype))
        self.D = nn.Parameter(torch.empty(heads, dtype=dtype))
        self.B_bias = nn.Parameter(torch.empty(heads, states))
        self.C_bias = nn.Parameter(torch.empty(heads, states))
        self.B_norm = nn.RMSNorm(states, eps=eps)
        self.C_norm = nn.RMSNorm(states, eps=eps)

    @torch.no_grad()
    def initialise(self, dt_range: tuple[float, float], floor: float) -> None:
        low, high = (math.log(limit) for limit in dt_range)
        dt = torch.exp(torch.rand_like(self.dt_bias) * (high - low) + low).clamp(min=floor)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
        self.D.fill_(1.0)
        for bias in (self.B_bias, self.C_bias):
            bias.fill_(1.0)
        for norm in (self.B_norm, self.C_norm):
            norm.reset_parameters()


class Mamba3(RoutedMixer):
    """Gated scan with data-dependent decay, trapezoidal input and rotated B and C; it has no convolution.

    With alpha = exp(dt A), lambda = sigmoid(trapezoid), B and C normalised, biased per head and rotated::

        h_t = alpha_t h_(t-1) + (1 - lambda_t) dt_t alpha_t B_(t-1) x_(t-1) + lambda_t dt_t B_t x_t
        y_t = C_t . h_t + D x_t

    The angles accumulate along the route: theta_t = theta_(t-1) + pi tanh(angle_t) dt_t. This is computed as one
    `ssd_scan` with the input weight w_t = lambda_t dt_t + s_(t+1), s_t = (1 - lambda_t) dt_t, and the term s_(t+1) (C_t
    . B_t) x_t subtracted. Padding, packing, orders and states are as in `Mamba`.

    Args:
        d_model: width of the sequence, D.
        d_state: number of states per channel, N.
        expand: expansion factor; E = expand * d_model channels are scanned.
        head_dim: number of channels per head, P; there are H = E / P heads.
        n_groups: number of pairs of B and C in the projection, G, a divisor of the number of heads.
        rope_fraction: fraction of the N states whose pairs are rotated; 0 disables the rotation.
        out_norm: whether each head is normalised before the gate.
        ordering: scan order of the routes, see `seqssm.orders`.
        merge: rule that combines the outputs of the routes, as in `Mamba`, except ``concat``.
        local_conv: kernel size (odd) of an additional depthwise convolution over the grid; None to disable it.
        bias: whether ``in_proj`` and ``out_proj`` have a bias.
        dt_min: minimum initial step size; dt is initialised log-uniform in [dt_min, dt_max].
        dt_max: maximum initial step size; see `dt_min`.
        dt_init_floor: lower bound of the initial step size.
        norm_eps: epsilon of the normalisations.
        engine: engine of the scan; None for the best one for the device.

    Raises:
        ValueError: an unknown ordering or merge, a merge that does not match the coverage of the routes, or sizes that
            are not positive or not divisible.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 128,
        expand: float = 2,
        head_dim: int = 64,
        n_groups: int = 1,
        rope_fraction: float = 0.5,
        out_norm: bool = False,
        ordering: Spec = "forward",
        merge: Merge = "sum",
        local_conv: int | None = None,
        bias: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        norm_eps: float = 1e-5,
        engine: str | None = None,
    ) -> None:
        if merge == "concat":
            raise ValueError("Mamba-3 does not divide its heads over the routes: merge is sum, mean, union or gate")
        super().__init__(d_model, int(expand * d_model), ordering, merge, local_conv, engine)
        self.d_state, self.head_dim, self.n_groups = d_state, head_dim, n_groups
        self.dt_range, self.dt_init_floor, self.norm_eps = (dt_min, dt_max), dt_init_floor, norm_eps
        self._require_sizes(rope_fraction)
        self.heads, self.angles = self.width // head_dim, int(d_state * rope_fraction / 2)
        self.sizes = [self.width, self.width, n_groups * d_state, n_groups * d_state, *[self.heads] * 3, self.angles]
        self.in_proj = nn.Linear(d_model, sum(self.sizes), bias=bias)  # rows z, x, B, C, dt, A, trapezoid, angles
        self.routes = nn.ModuleList(_Branch(self.heads, d_state, norm_eps) for _ in self.ordering)
        self.norm = nn.RMSNorm(head_dim, eps=norm_eps) if out_norm else None
        self.out_proj = nn.Linear(self.width, d_model, bias=bias)
        self._finish(local_conv)
        for branch in self.branches:
            branch.initialise(self.dt_range, self.dt_init_floor)

    @property
    def branches(self) -> list[Any]:
        """Modules that hold the weights of each route."""
        return list(self.routes)

    def _require_sizes(self, rope_fraction: float) -> None:
        require_head_sizes(self)
        if not 0 <= rope_fraction <= 1:
            raise ValueError(f"rope_fraction must be in [0, 1], not {rope_fraction}")

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise all weights, e.g. after ``to_empty`` of a layer built on the meta device."""
        self.in_proj.reset_parameters()
        for branch in self.branches:
            branch.initialise(self.dt_range, self.dt_init_floor)
        if self.norm is not None:
            self.norm.reset_parameters()
        self.out_proj.reset_parameters()
        self._reset_shared()

    def kept_parameters(self) -> Iterator[Tensor]:
        for branch in self.branches:
            yield from (branch.dt_bias, branch.D)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, d_state={self.d_state}, head_dim={self.head_dim}, angles={self.angles}"

    def mix(
        self,
        x: Tensor,
        order: Tensor | None,
        cu_seqlens: Tensor | None,
        state: State | None,
        return_state: bool,
        only: int | None = None,
    ) -> tuple[Tensor, State | None]:
        branches = self.branches if only is None else [self.branches[only]]
        routes = len(branches)
        steps = Steps(x.shape[0], x.shape[1], routes, order, cu_seqlens, x.device)
        z, u, dt, decay, early, turn, B, C = self._selected(x, branches)
        # along the steps of each route: the weight that the next step gives to this one, and the angles
        carried = steps.gather(dt - early)  # contribution of the preceding step to each step
        late = steps.following(carried)
        turned = steps.running_sum(steps.gather(turn), None if state is None else state["angle"].flatten(2))
        theta = (turned % (2 * math.pi)).to(dt.dtype)
        later = steps.scatter(late)
        angle = steps.scatter(theta).unflatten(-1, (self.heads, -1))
        B, C = rotate(B, C, angle)
        kept = dt.dtype
        D = torch.stack([branch.D for branch in branches]).to(kept)
        before = self._zero_state(steps.sequences, routes, dt) if state is None else state
        initial = None
        if state is not None:
            first = steps.first(carried)[..., None, None]
            initial = state["scan"] + first * (state["x"].unsqueeze(-1) * state["B"].unsqueeze(-2))
        scanned = ssd_scan(
            u,
            dt * decay,
            dt.new_full((routes, self.heads), -1.0),
            B,
            C,
            D=D,
            w=early + later,
            order=order,
            cu_seqlens=cu_seqlens,
            initial_state=initial,
            return_final_state=return_state,
            engine=self.engine,
        )
        y, scan = scanned if isinstance(scanned, tuple) else (scanned, None)
        y = y - ((later * (B * C).sum(-1)).unsqueeze(-1) * u).to(y.dtype)
        y = self._gated(y, z).flatten(-2)
        if not return_state:
            return y, None
        new = State(
            scan=scan,
            angle=steps.last(theta, before["angle"].flatten(2)).unflatten(-1, (self.heads, -1)),
            B=steps.last(steps.gather(B.flatten(-2)), before["B"].flatten(2)).unflatten(-1, (self.heads, -1)),
            x=steps.last(steps.gather(u.flatten(-2).to(kept)), before["x"].flatten(2)).unflatten(-1, (self.heads, -1)),
        )
        return y, new

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        branches = self.branches
        z, u, dt, decay, early, turn, B, C = self._selected(x, branches)
        angle = (state["angle"].double() + turn.double().unflatten(-1, (self.heads, -1))) % (2 * math.pi)
        angle = angle.to(dt.dtype)
        B, C = rotate(B, C, angle)
        scan = state["scan"] + (dt - early)[..., None, None] * (state["x"].unsqueeze(-1) * state["B"].unsqueeze(-2))
        u = u.expand(-1, len(branches), -1, -1)
        y, scan = ssd_step(
            u,
            dt * decay,
            dt.new_full((len(branches), self.heads), -1.0),
            B,
            C,
            scan,
            D=torch.stack([branch.D for branch in branches]).to(dt.dtype),
            w=early,
            engine=self.engine,
        )
        y = self._gated(y, z).flatten(-2)
        new = State(scan=scan, angle=angle, B=B, x=u.to(dt.dtype).clone())
        return self.project(self._merge(y)), new

    def new_state(self, batch_size: int) -> State:
        like = self.branches[0].D
        return self._zero_state(batch_size, len(self.ordering), like)

    def _zero_state(self, sequences: int, routes: int, like: Tensor) -> State:
        sizes = {"scan": (self.head_dim, self.d_state), "angle": (self.angles,)}
        sizes |= {"B": (self.d_state,), "x": (self.head_dim,)}
        return State({name: like.new_zeros(sequences, routes, self.heads, *size) for name, size in sizes.items()})

    def _selected(self, x: Tensor, branches: list[Any]) -> tuple[Tensor, ...]:
        """Compute the arguments of the scan from x (..., d); all except z and x are float32 or wider.

        Returns:
            z and x (..., 1, H, P), dt and |A| (..., R, H), lambda dt (..., R, H), the rotation pi tanh(angle) dt
            (..., R, H * angles), B and C (..., R, H, N) before the rotation.
        """
        z, u, B, C, raw_dt, raw_a, raw_trapezoid, raw_angle = self.in_proj(x).split(self.sizes, dim=-1)
        kept = torch.promote_types(x.dtype, torch.float32)
        dt = F.softplus(raw_dt.to(kept).unsqueeze(-2) + torch.stack([b.dt_bias for b in branches]).to(kept))
        decay = _decay(raw_a.to(kept).unsqueeze(-2)).expand_as(dt)
        early = torch.sigmoid(raw_trapezoid.to(kept)).unsqueeze(-2) * dt
        turn = math.pi * torch.tanh(raw_angle.to(kept)).unsqueeze(-2).unsqueeze(-2) * dt.unsqueeze(-1)
        B = torch.stack(
            [self._of_heads(b.B_norm(B.unflatten(-1, (self.n_groups, -1))), b.B_bias) for b in branches], -3
        )
        C = torch.stack(
            [self._of_heads(b.C_norm(C.unflatten(-1, (self.n_groups, -1))), b.C_bias) for b in branches], -3
        )
        z, u = (part.unflatten(-1, (self.heads, -1)).unsqueeze(-3) for part in (z, u))
        return z, u, dt, decay, early, turn.flatten(-2), B.to(kept), C.to(kept)

    def decay_rates(self, rows: Tensor, route: int) -> Tensor:
        """Return ``dt |A|`` of each head of a route, (..., H), from the output of ``in_proj``, (..., channels)."""
        _, _, _, _, raw_dt, raw_a, _, _ = rows.split(self.sizes, dim=-1)
        return F.softplus(raw_dt + self.branches[route].dt_bias.to(raw_dt.dtype)) * _decay(raw_a)

    def _of_heads(self, values: Tensor, bias: Tensor) -> Tensor:
        """Repeat (..., G, N) for the heads of each group and add the bias per head: (..., H, N)."""
        return (values.unsqueeze(-2) + bias.unflatten(0, (self.n_groups, -1))).flatten(-3, -2)

    def _gated(self, y: Tensor, z: Tensor) -> Tensor:
        y = y if self.norm is None else self.norm(y.to(self.norm.weight.dtype)).to(y.dtype)
        return y * F.silu(z)


def _decay(a: Tensor) -> Tensor:
    """|A| of the values of the projection."""
    return torch.where(a >= 0, 1 + a, 1 / (1 - a.clamp(max=0))).clamp(min=WEAKEST_DECAY)
