"""The Mamba layer (arXiv 2312.00752, figure 3) over any number of routes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from seqssm_kernels import causal_conv1d, causal_conv1d_step, selective_scan, selective_scan_step
from torch import Tensor, nn

from seqssm.nn.branch import BranchSettings, BranchWeights, ScanBranch
from seqssm.nn.grid_conv import GridConv
from seqssm.nn.state import State
from seqssm.orders import GeometryOrMany, Merge, Spec, by_sample, describe, require_coverage, routes, walk


class Mamba(nn.Module):
    """A gated selective scan over one or several routes of the sequence.

    One ``in_proj`` and one ``out_proj`` are shared; every route has a branch with its own convolution, ``x_proj``,
    ``dt_proj``, ``A_log`` and ``D``. One forward route is Mamba; ``bidirectional`` is Vision Mamba's block; ``cross``
    is VMamba's; ``["forward", {"stride": 5}]`` is MambaMIL's SR-Mamba. All routes run in one call of the convolution
    and one of the scan.

    The parameters of the first branch have the public names of Mamba (``conv1d.weight``, ``A_log``, ...), those of
    branch r = 1, 2, ... the same names under ``routes.<r>.``: weights of a one-route layer load into the first route of
    any. Under every dtype conversion of the layer, ``A_log`` and ``D`` stay float32 (float64 under ``double()``).

    Args:
        d_model: D, width of the sequence.
        d_state: N, states per channel.
        d_conv: W, steps that the causal convolution sees.
        expand: E = expand * d_model channels are scanned.
        dt_rank: inner width of the projection to dt; ``"auto"`` is ceil(d_model / 16), of a channel group under
            ``concat``.
        ordering: name of the routes, see `seqssm.orders`.
        merge: how the outputs of the routes become one: ``sum``; ``mean``; ``union`` of routes that visit disjoint
            positions; ``concat``, for which each of the R routes scans E / R channels; ``gate``, a learned weight per
            route, from 1 / R.
        local_conv: kernel size (odd) of a depthwise convolution over the grid beside the scan, whose projected output
            is added; None: none. Orders whose routes never exchange information, as ``atrous``, need one.
        bias: whether ``in_proj`` and ``out_proj`` have a bias.
        conv_bias: whether the causal convolution has one.
        dt_min: dt starts log-uniform in [dt_min, dt_max].
        dt_max: see `dt_min`.
        dt_init_floor: lowest initial dt.
        engine: engine of the kernels; None takes the best one for the device.

    Raises:
        ValueError: an unknown ordering or merge; a merge that does not fit the routes' coverage; an order that needs
            `local_conv`; a size that is not positive.
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
        super().__init__()
        self.d_model, self.width = d_model, int(expand * d_model)
        self.ordering, self.merge, self.engine = routes(ordering), merge, engine
        require_coverage(self.ordering, merge)
        self._require_convolution(local_conv)
        self.only_forward = all(one.is_forward for one in self.ordering) and local_conv is None
        groups = len(self.ordering) if merge == "concat" else 1
        if self.width % groups:
            raise ValueError(f"expand * d_model = {self.width} channels do not divide into {groups} groups")
        rank = math.ceil(d_model / (16 * groups)) if dt_rank == "auto" else int(dt_rank)
        self.settings = BranchSettings(
            self.width // groups, d_state, d_conv, rank, conv_bias, dt_min, dt_max, dt_init_floor
        )
        self._require_sizes()
        # registered in this order, which is that of an optimiser's states in checkpoints
        ScanBranch(self, self.settings).build()
        self.in_proj = nn.Linear(d_model, 2 * self.width, bias=bias)
        self.routes = nn.ModuleDict({str(r): BranchWeights(self.settings) for r in range(1, len(self.ordering))})
        self.out_proj = nn.Linear(self.width, d_model, bias=bias)
        if merge == "gate":
            self.route_weight = nn.Parameter(torch.full((len(self.ordering),), 1 / len(self.ordering)))
        self.local = None if local_conv is None else GridConv(d_model, local_conv)

    def _require_sizes(self) -> None:
        sizes = {"d_model": self.d_model, "expand * d_model": self.width}
        sizes |= {name: getattr(self.settings, name) for name in ("d_state", "d_conv", "dt_rank")}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        low, high = self.settings.dt_min, self.settings.dt_max
        if not 0 < low <= high:
            raise ValueError(f"dt_min and dt_max must be positive and in this order, not {low} and {high}")

    def _require_convolution(self, local_conv: int | None) -> None:
        for order in self.ordering:
            if order.entry.needs_convolution and local_conv is None:
                raise ValueError(
                    f"routes of {describe((order,))} never exchange information: the layer needs a convolution over "
                    "the grid beside the scan, as local_conv=3"
                )

    @property
    def branches(self) -> list[ScanBranch]:
        """One branch per route."""
        return [ScanBranch(holder, self.settings) for holder in (self, *self.routes.values())]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialises all weights anew, as after ``to_empty`` of a layer that was built on the meta device."""
        first, *others = self.branches
        first.reset_parameters()
        self.in_proj.reset_parameters()
        for branch in others:
            branch.reset_parameters()
        self.out_proj.reset_parameters()
        if self.merge == "gate":
            self.route_weight.fill_(1 / len(self.ordering))
        if self.local is not None:
            self.local.reset_parameters()

    def extra_repr(self) -> str:
        merge = f", merge={self.merge}" if len(self.ordering) > 1 else ""
        return f"{self.d_model}, d_state={self.settings.d_state}, ordering=({describe(self.ordering)}){merge}"

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        geometry: GeometryOrMany = None,
        order: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Mixes along the sequence.

        Args:
            x: (B, L, D).
            state: what an earlier piece of the same sequences returned; forward routes only.
            mask: (B, L), true at real positions. Padding, wherever it lies, changes nothing at real positions nor in
                the state; at padded positions `x` is not read and the output is that of a zero (``out_proj``'s bias).
                On a grid of all L positions the masked ones are hidden cells.
            cu_seqlens: (n + 1,) int32, starts of the sequences that lie one behind the other in B = 1, and the end.
            geometry: what the positions are, for orders that are not defined on a plain length: ``Grid(h, w)``,
                ``Coordinates(xy)``, ...; of packed sequences each, or beside `mask` of the real positions of each
                sample, one for all of them or a list with one per sequence.
            order: (R, S) or (B, R, S), the table to walk instead of the one that the ordering names. With
                `cu_seqlens`, which then counts its steps, it stays inside the sequences.
            return_state: return the state behind the last step of each route too.

        Returns:
            y (B, L, D), or (y, state).

        Raises:
            ValueError: `mask` with `cu_seqlens`; `state` for a layer with other routes than forward ones; a geometry
                that does not fit the orders or the positions; wrong shapes.
        """
        if x.ndim != 3 or x.shape[2] != self.d_model:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, L, d_model) with d_model = {self.d_model}")
        if state is not None:
            self._require_forward("a state")
        order, steps = self._walk(x, mask, cu_seqlens, geometry, order)
        if mask is not None:
            # not left to the order alone: NaN at a padded position would reach the gradient of in_proj as 0 * NaN
            x = x.masked_fill(~mask.bool().unsqueeze(-1), 0)
        u, z = self.channels(x)
        convolved = causal_conv1d(
            u,
            *self._convolution(),
            order=order,
            cu_seqlens=steps,
            state=None if state is None else state["conv"],
            activation="silu",
            return_final_state=return_state,
            engine=self.engine,
        )
        u, conv_state = convolved if isinstance(convolved, tuple) else (convolved, None)  # u: (b, l, r, e)
        dt, B, C = self._select(u)
        u, order = self.arrange(u, dt, order, steps)
        A, D = self._constants(u.dtype)
        scanned = selective_scan(
            u,
            dt,
            A,
            B,
            C,
            D=D,
            z=z,
            dt_softplus=True,
            order=order,
            cu_seqlens=steps,
            initial_state=None if state is None else state["scan"],
            return_final_state=return_state,
            engine=self.engine,
        )
        y, scan_state = scanned if isinstance(scanned, tuple) else (scanned, None)
        y = self.out_proj(self._merge(y))
        if self.local is not None:
            y = y + self._local(x, mask, geometry)
        return (y, State(conv=conv_state, scan=scan_state)) if return_state else y

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Mixes one more position; forward routes only.

        Args:
            x: (B, D).
            state: what `forward` or `step` returned for the positions before, or `new_state` at the beginning.

        Returns:
            (y (B, D), the state behind this position).

        Raises:
            ValueError: the layer has other routes than forward ones; no state; wrong shapes.
        """
        self._require_forward("step")
        if x.ndim != 2 or x.shape[1] != self.d_model:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, d_model) with d_model = {self.d_model}")
        if state is None:
            raise ValueError(
                "step needs the state before this position: what forward returned, or new_state(batch_size)"
            )
        if len(self.ordering) == 1:
            return self._step_of_one(x, state)
        u, z = self.channels(x)
        u, conv = causal_conv1d_step(u, *self._convolution(), state["conv"], activation="silu", engine=self.engine)
        dt, B, C = self._select(u)
        A, D = self._constants(u.dtype)
        y, scan = selective_scan_step(u, dt, A, B, C, state["scan"], D=D, z=z, dt_softplus=True, engine=self.engine)
        return self.out_proj(self._merge(y)), State(conv=conv, scan=scan)

    def _step_of_one(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """A step along a single route, without the route axis: its few small operations are what decoding waits for."""
        sizes = [self.settings.dt_rank, self.settings.d_state, self.settings.d_state]
        u, z = self.in_proj(x).chunk(2, dim=-1)
        branch, window = self.branches[0], state["conv"].squeeze(1)
        conv1d = branch.conv1d
        u, window = causal_conv1d_step(
            u, conv1d.weight.squeeze(1), conv1d.bias, window, activation="silu", engine=self.engine
        )
        low, B, C = branch.x_proj(u).split(sizes, dim=-1)
        dt, A, D, is_log = branch.dt_proj(low), branch.A_log, branch.D, True
        if A.dtype != torch.promote_types(u.dtype, torch.float32):
            A, D, is_log = *branch.constants(u.dtype), False
        y, scan = selective_scan_step(
            u, dt, A, B, C, state["scan"].squeeze(1), D=D, z=z, dt_softplus=True, A_is_log=is_log, engine=self.engine
        )
        y = y if self.merge != "gate" else self._merge(y.unsqueeze(1))
        return self.out_proj(y), State(conv=window.unsqueeze(1), scan=scan.unsqueeze(1))

    def new_state(self, batch_size: int) -> State:
        """The state before the first position: all zero.

        Args:
            batch_size: samples, or with `cu_seqlens` sequences.
        """
        shape = (batch_size, len(self.ordering), self.settings.width)
        first = self.branches[0]
        dtype = torch.promote_types(first.A_log.dtype, first.conv1d.weight.dtype)  # float32, in a double layer float64
        conv = first.A_log.new_zeros(*shape, self.settings.d_conv - 1, dtype=dtype)
        return State(conv=conv, scan=first.A_log.new_zeros(*shape, self.settings.d_state, dtype=dtype))

    def channels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scanned channels u and the gate z of x (..., d), both (..., r or 1, e): size 1 is read by every route."""
        u, z = self.in_proj(x).unsqueeze(-2).chunk(2, dim=-1)
        if self.merge != "concat":
            return u, z
        groups = (len(self.ordering), self.settings.width)
        return u.squeeze(-2).unflatten(-1, groups), z.squeeze(-2).unflatten(-1, groups)

    def arrange(
        self, u: Tensor, dt: Tensor, order: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The channels and the table of the scan, behind the convolution; a subclass may find another order here.

        Args:
            u: (B, L, R, E), convolved.
            dt: (B, L, R, E), before softplus.
            order: the table of the convolution.
            cu_seqlens: ends of packed sequences in steps of the table.
        """
        return u, order

    def _require_forward(self, what: str) -> None:
        if not self.only_forward:
            beside = "" if self.local is None else " beside a convolution over the grid"
            raise ValueError(
                f"{what} continues forward routes only; this layer's are {describe(self.ordering)}{beside}: "
                "give it the whole sequence"
            )

    def _walk(
        self,
        x: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        geometry: GeometryOrMany,
        given: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The table for these sequences, None for plain forward ones, and the ends of packed sequences in its steps."""
        if given is not None:
            if mask is not None:
                raise ValueError("an order says itself which positions are visited: give mask or order, not both")
            if geometry is not None and self.local is None:
                raise ValueError("an order needs no geometry: give geometry or order, not both")
            if given.ndim < 2 or given.shape[-2] not in (1, len(self.ordering)):
                raise ValueError(f"order has shape {tuple(given.shape)}, the layer {len(self.ordering)} routes")
            return given, cu_seqlens
        if mask is not None and mask.shape != x.shape[:2]:
            raise ValueError(f"mask has shape {tuple(mask.shape)}, the sequences {tuple(x.shape[:2])}")
        kept = {"mask": mask, "cu_seqlens": cu_seqlens, "geometry": geometry}
        return walk(self.ordering, x.shape[1], device=x.device, **kept)  # type: ignore[arg-type]

    def _convolution(self) -> tuple[Tensor, Tensor | None]:
        """Weight (r, e, w) and bias (r, e) of all routes."""
        convs = [branch.conv1d for branch in self.branches]
        if len(convs) == 1:
            bias = convs[0].bias
            return convs[0].weight.transpose(0, 1), None if bias is None else bias.unsqueeze(0)
        biases = [conv.bias for conv in convs if conv.bias is not None]
        return torch.stack([conv.weight.squeeze(1) for conv in convs]), torch.stack(biases) if biases else None

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt before softplus (..., r, e), B and C (..., r, n), from the convolved channels (..., r, e)."""
        sizes = [self.settings.dt_rank, self.settings.d_state, self.settings.d_state]
        branches = self.branches
        if len(branches) == 1:
            dt, selected = branches[0].select(u)
            return dt, *selected.split(sizes, dim=-1)[1:]
        pairs = [branch.select(part) for branch, part in zip(branches, u.unbind(-2), strict=True)]
        _, B, C = torch.stack([selected for _, selected in pairs], dim=-2).split(sizes, dim=-1)
        return torch.stack([dt for dt, _ in pairs], dim=-2), B, C

    def _constants(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A (r, e, n) and D (r, e) of all routes, float32, or float64 for channels of float64."""
        branches = self.branches
        if len(branches) == 1:
            A, D = branches[0].constants(dtype)
            return A.unsqueeze(0), D.unsqueeze(0)
        A = -torch.exp(torch.stack([branch.A_log for branch in branches]))
        kept = torch.promote_types(dtype, torch.float32)
        return A.to(kept), torch.stack([branch.D for branch in branches]).to(kept)

    def _merge(self, y: Tensor) -> Tensor:
        """(..., width) from the routes' outputs (..., r, e). Unvisited positions are exactly 0, so a union is a sum."""
        if self.merge == "gate":
            return self.route_weight.to(y.dtype) @ y
        if self.merge == "concat":
            return y.flatten(-2)
        if y.shape[-2] == 1:
            return y.squeeze(-2)
        return y.mean(-2) if self.merge == "mean" else y.sum(-2)

    def _local(self, x: Tensor, mask: Tensor | None, geometry: GeometryOrMany) -> Tensor:
        """The convolution over the grid; zero at padded and hidden positions."""
        if mask is None:
            return self.local(x, geometry)  # type: ignore[misc]
        real, geometry = mask.bool(), by_sample(geometry, mask)
        if isinstance(geometry, list | tuple):  # one grid per sample, of its real positions
            own = self.local(x[real].unsqueeze(0), geometry).squeeze(0)  # type: ignore[misc]
            return torch.zeros_like(x, dtype=own.dtype).masked_scatter(real.unsqueeze(-1), own)
        return self.local(x, geometry).masked_fill(~real.unsqueeze(-1), 0)  # type: ignore[misc]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        parameters = [p for branch in self.branches for p in (branch.A_log, branch.D)]
        kept = {id(t) for p in parameters for t in (p, p.grad) if t is not None}

        def convert(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            if id(tensor) in kept and new.dtype in (torch.float16, torch.bfloat16):
                return tensor.to(new.device)
            return new

        return super()._apply(convert, recurse)
