"""The Mamba layer (arXiv 2312.00752, figure 3) with any number of routes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from seqssm_kernels import (
    MambaWeights,
    causal_conv1d,
    causal_conv1d_step,
    mamba_step,
    selective_scan,
    selective_scan_int8,
    selective_scan_int8_step,
    selective_scan_step,
)
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from seqssm.nn.branch import BranchSettings, BranchWeights, DtProjection, ScanBranch
from seqssm.nn.integer_scan import IntegerScan, integer_scan
from seqssm.nn.routed import RoutedMixer
from seqssm.nn.sizes import require_positive, require_range
from seqssm.nn.state import State
from seqssm.orders import Merge, Spec


class Mamba(RoutedMixer):
    """Gated selective scan over one or several routes of the sequence.

    ``in_proj`` and ``out_proj`` are shared; each route has a branch with its own convolution, ``x_proj``, ``dt_proj``,
    ``A_log`` and ``D``. One forward route is Mamba; ``bidirectional`` is the block of Vision Mamba, ``cross`` that of
    VMamba, and ``["forward", {"stride": 5}]`` SR-Mamba of MambaMIL. All routes run in one call of the convolution and
    one of the scan.

    The parameters of the first branch have the public names of Mamba (``conv1d.weight``, ``A_log``, ...), those of
    branch r = 1, 2, ... the same names under ``routes.<r>.``: weights of a one-route layer can be loaded into the first
    route of any layer. ``A_log`` and ``D`` stay float32 under all dtype conversions of the layer (float64 under
    ``double()``).

    Args:
        d_model: width of the sequence, D.
        d_state: number of states per channel, N.
        d_conv: kernel size of the causal convolution, W.
        expand: expansion factor; E = expand * d_model channels are scanned.
        dt_rank: inner width of the dt projection; ``"auto"`` is ceil(d_model / 16), under ``concat`` of a channel
            group.
        ordering: scan order of the routes, see `seqssm.orders`.
        merge: rule that combines the outputs of the routes: ``sum``; ``mean``; ``union`` for routes that visit disjoint
            positions; ``concat``, where each of the R routes scans E / R channels; ``gate``, a learned weight per
            route, initially 1 / R.
        local_conv: kernel size (odd) of a depthwise convolution over the grid, whose projected output is added to that
            of the scan; None to disable it. Required by orders whose routes never exchange information, such as
            ``atrous``.
        bias: whether ``in_proj`` and ``out_proj`` have a bias.
        conv_bias: whether the causal convolution has a bias.
        dt_min: minimum initial step size; dt is initialised log-uniform in [dt_min, dt_max].
        dt_max: maximum initial step size; see `dt_min`.
        dt_init_floor: lower bound of the initial step size.
        engine: engine of the kernels; None for the best one for the device.

    Raises:
        ValueError: an unknown ordering or merge, a merge that does not match the coverage of the routes, an order that
            requires `local_conv`, or a size that is not positive.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | Literal["auto"] = "auto",
        ordering: Spec = "forward",
        merge: Merge = "sum",
        local_conv: int | None = None,
        bias: bool = False,
        conv_bias: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        engine: str | None = None,
    ) -> None:
        super().__init__(d_model, int(expand * d_model), ordering, merge, local_conv, engine)
        rank = math.ceil(d_model / (16 * self.groups)) if dt_rank == "auto" else int(dt_rank)
        self.settings = BranchSettings(
            self.width // self.groups, d_state, d_conv, rank, conv_bias, dt_min, dt_max, dt_init_floor
        )
        self._require_sizes()
        # the order of registration determines that of optimiser states in checkpoints
        ScanBranch(self, self.settings).build()
        self.in_proj = nn.Linear(d_model, 2 * self.width, bias=bias)
        self.routes = nn.ModuleDict({str(r): BranchWeights(self.settings) for r in range(1, len(self.ordering))})
        self.out_proj = nn.Linear(self.width, d_model, bias=bias)
        self._finish(local_conv)
        self.scan_x, self.scan_b, self.scan_c = nn.Identity(), nn.Identity(), nn.Identity()  # rounding, if compressed

    def _require_sizes(self) -> None:
        sizes = {"d_model": self.d_model, "expand * d_model": self.width}
        require_positive(**sizes, **{name: getattr(self.settings, name) for name in ("d_state", "d_conv", "dt_rank")})
        require_range("dt_min and dt_max", self.settings.dt_min, self.settings.dt_max)

    @property
    def state_size(self) -> tuple[int, int]:
        return self.settings.width, self.settings.d_state

    @property
    def branches(self) -> list[ScanBranch]:
        """Branches, one per route."""
        return [ScanBranch(holder, self.settings) for holder in (self, *self.routes.values())]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise all weights, e.g. after ``to_empty`` of a layer built on the meta device."""
        first, *others = self.branches
        first.reset_parameters()
        self.in_proj.reset_parameters()
        for branch in others:
            branch.reset_parameters()
        self.out_proj.reset_parameters()
        self._reset_shared()

    def kept_parameters(self) -> Iterator[Tensor]:
        for branch in self.branches:
            yield from (branch.A_log, branch.D)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, d_state={self.settings.d_state}"

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
        u, z = self.channels(x, only)
        convolved = causal_conv1d(
            u,
            *_convolution(branches),
            order=order,
            cu_seqlens=cu_seqlens,
            state=None if state is None else state["conv"],
            activation="silu",
            return_final_state=return_state,
            engine=self.engine,
        )
        u, conv_state = convolved if isinstance(convolved, tuple) else (convolved, None)  # u: (b, l, r, e)
        inputs, scan = self._rounded(u, branches)
        A, D = _constants(branches, u.dtype)
        inputs["x"], order = self.arrange(inputs["x"], inputs["dt"], order, cu_seqlens)
        scanned = (selective_scan if scan is None else selective_scan_int8)(
            **inputs,
            **({} if scan is None else scan.with_routes),
            A=A,
            D=D,
            z=z,
            dt_softplus=True,
            order=order,
            cu_seqlens=cu_seqlens,
            initial_state=None if state is None else state["scan"],
            return_final_state=return_state,
            engine=self.engine,
        )
        y, scan_state = scanned if isinstance(scanned, tuple) else (scanned, None)
        return y, State(conv=conv_state, scan=scan_state) if return_state else None

    def _rounded(self, u: Tensor, branches: list[ScanBranch]) -> tuple[dict[str, Any], IntegerScan | None]:
        """Return x, dt, B and C from the convolved channels (..., r, e), and the scales if x, B and C are integers."""
        scan = integer_scan(self, u)
        x = self.scan_x(u) if scan is None else scan.x(u)
        dt, both = _select(branches, x)
        states = self.settings.d_state
        if scan is None:
            B, C = both.split([states, states], dim=-1)
            return {"x": x, "dt": dt, "B": self.scan_b(B), "C": self.scan_c(C)}, None
        B, C = scan.b_and_c(both).split([states, states], dim=-1)
        return {"x": x, "dt": dt.to(u.dtype), "B": B, "C": C}, scan

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if len(self.ordering) == 1:
            return self._step_of_one(x, state)
        branches = self.branches
        u, z = self.channels(x)
        u, conv = causal_conv1d_step(u, *_convolution(branches), state["conv"], activation="silu", engine=self.engine)
        inputs, scan = self._rounded(u, branches)
        A, D = _constants(branches, u.dtype)
        shared: dict[str, Any] = {"A": A, "D": D, "z": z, "dt_softplus": True, "engine": self.engine}
        if scan is None:
            y, after = selective_scan_step(**inputs, state=state["scan"], **shared)
        else:
            y, after = selective_scan_int8_step(**inputs, **scan.with_routes, state=state["scan"], **shared)
        return self.project(self._merge(y)), State(conv=conv, scan=after)

    def _step_of_one(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Step along a single route without the route axis, because small operations dominate the decoding time."""
        weights = self.plain_weights()
        if weights is not None:
            y, conv, scan = mamba_step(self.in_proj(x), weights, state["conv"], state["scan"], engine=self.engine)
            y = y if self.merge != "gate" else self._merge(y.unsqueeze(1))
            return self.project(y), State(conv=conv, scan=scan)
        rank, states = self.settings.dt_rank, self.settings.d_state
        u, z = self.in_proj(x).chunk(2, dim=-1)
        branch, window = self.branches[0], state["conv"].squeeze(1)
        conv1d = branch.conv1d
        u, window = causal_conv1d_step(
            u, conv1d.weight.squeeze(1), conv1d.bias, window, activation="silu", engine=self.engine
        )
        A, D, is_log = branch.A_log, branch.D, True
        if A.dtype != torch.promote_types(u.dtype, torch.float32):
            A, D, is_log = *branch.constants(u.dtype), False
        shared: dict[str, Any] = {"D": D, "z": z, "dt_softplus": True, "A_is_log": is_log, "engine": self.engine}
        before, integers = state["scan"].squeeze(1), integer_scan(self, u)
        if integers is None:
            u = self.scan_x(u)
            low, B, C = branch.x_proj(u).split([rank, states, states], dim=-1)
            B, C = self.scan_b(B), self.scan_c(C)
            y, scan = selective_scan_step(u, branch.dt_proj(low), A, B, C, before, **shared)
        else:
            rounded = integers.x(u)
            low, both = branch.x_proj(rounded).split([rank, 2 * states], dim=-1)
            B, C = integers.b_and_c(both).split([states, states], dim=-1)
            dt = branch.dt_proj(low).to(u.dtype)
            y, scan = selective_scan_int8_step(rounded, dt, A, B, C, before, **integers.of_one, **shared)
        y = y if self.merge != "gate" else self._merge(y.unsqueeze(1))
        return self.project(y), State(conv=window.unsqueeze(1), scan=scan.unsqueeze(1))

    def plain_weights(self) -> MambaWeights | None:
        """Return the weights of the first branch for calls of its operations; None if a module must be called instead.

        Adapters, quantisers and hooks replace or observe `x_proj`, `dt_proj` and the values of the scan.
        """
        own: dict[str, Any] = self._modules  # attributes of a module take five times as long
        called = [own[name] for name in ("x_proj", "dt_proj", "scan_x", "scan_b", "scan_c")]
        x_proj, dt_proj, scan_x = called[:3]
        if type(x_proj) is not nn.Linear or type(dt_proj) is not DtProjection or type(scan_x) is not nn.Identity:
            return None
        if _has_any_global_hook() or any(one._forward_hooks or one._forward_pre_hooks for one in called):
            return None
        conv, select, dt = own["conv1d"]._parameters, x_proj._parameters, dt_proj._parameters
        mine: dict[str, Any] = self._parameters
        if select.get("bias") is not None:
            return None
        of_parts = [part.get("weight") for part in (conv, select, dt)]
        needed: list[Any] = [*of_parts, mine.get("A_log"), mine.get("D")]
        if any(t is None for t in needed) or needed[3].dtype != needed[1].dtype:  # None: parametrised or pruned
            return None
        return MambaWeights(needed[0], conv["bias"], needed[1], needed[2], dt["bias"], *needed[3:])

    def new_state(self, batch_size: int) -> State:
        shape = (batch_size, len(self.ordering), self.settings.width)
        first = self.branches[0]
        dtype = torch.promote_types(
            first.A_log.dtype, first.conv1d.weight.dtype
        )  # float32, or float64 in a double layer
        conv = first.A_log.new_zeros(*shape, self.settings.d_conv - 1, dtype=dtype)
        scan = first.A_log.new_zeros(*shape, self.settings.d_state, dtype=dtype)
        return self.kept_state(State(conv=conv, scan=scan))

    def channels(self, x: Tensor, only: int | None = None) -> tuple[Tensor, Tensor]:
        """Compute the scanned channels u and the gate z of x (..., d), both (..., r or 1, e); routes share size 1.

        Args:
            x: input, (..., d).
            only: index of the only route to compute.
        """
        u, z = self.in_proj(x).unsqueeze(-2).chunk(2, dim=-1)
        if self.merge != "concat":
            return u, z
        groups = (len(self.ordering), self.settings.width)
        u, z = u.squeeze(-2).unflatten(-1, groups), z.squeeze(-2).unflatten(-1, groups)
        return (u, z) if only is None else (u[..., only : only + 1, :], z[..., only : only + 1, :])

    def arrange(
        self, u: Tensor, dt: Tensor, order: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the channels and the order table of the scan, after the convolution; subclasses may reorder here.

        Args:
            u: input of the scan after the convolution, (B, L, R, E).
            dt: step sizes, (B, L, R, E), before softplus.
            order: order table of the convolution.
            cu_seqlens: ends of packed sequences in steps of the table.
        """
        return u, order


def _convolution(branches: list[ScanBranch]) -> tuple[Tensor, Tensor | None]:
    """Stack weight (r, e, w) and bias (r, e) of all routes."""
    convs = [branch.conv1d for branch in branches]
    if len(convs) == 1:
        bias = convs[0].bias
        return convs[0].weight.transpose(0, 1), None if bias is None else bias.unsqueeze(0)
    biases = [conv.bias for conv in convs if conv.bias is not None]
    return torch.stack([conv.weight.squeeze(1) for conv in convs]), torch.stack(biases) if biases else None


def _select(branches: list[ScanBranch], u: Tensor) -> tuple[Tensor, Tensor]:
    """Compute dt before softplus (..., r, e), and B with C (..., r, 2 n), from the convolved channels (..., r, e)."""
    rank = branches[0].settings.dt_rank
    if len(branches) == 1:
        dt, selected = branches[0].select(u)
        return dt, selected[..., rank:]
    pairs = [branch.select(part) for branch, part in zip(branches, u.unbind(-2), strict=True)]
    both = torch.stack([selected for _, selected in pairs], dim=-2)[..., rank:]
    return torch.stack([dt for dt, _ in pairs], dim=-2), both


def _constants(branches: list[ScanBranch], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return A (r, e, n) and D (r, e) of all routes, float32, or float64 for float64 channels."""
    if len(branches) == 1:
        A, D = branches[0].constants(dtype)
        return A.unsqueeze(0), D.unsqueeze(0)
    A = -torch.exp(torch.stack([branch.A_log for branch in branches]))
    kept = torch.promote_types(dtype, torch.float32)
    return A.to(kept), torch.stack([branch.D for branch in branches]).to(kept)


def is_hooked(module: nn.Module) -> bool:
    """Whether hooks of a module, forward or backward, must be called."""
    forward, backward = module._forward_hooks or module._forward_pre_hooks, module._backward_hooks
    return bool(_has_any_global_hook() or forward or backward or module._backward_pre_hooks)


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether a call of a layer is nothing but the product with its weight, so that the weight may be used instead."""
    own = layer._parameters
    plain = type(layer) is nn.Linear and own.get("weight") is not None and own.get("bias") is None
    return plain and not is_hooked(layer)
