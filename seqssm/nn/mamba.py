"""The Mamba layer (arXiv 2312.00752, figure 3) over any number of routes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from seqssm_kernels import causal_conv1d, causal_conv1d_step, selective_scan, selective_scan_step
from torch import Tensor, nn

from seqssm.nn.state import State
from seqssm.orders import orderings
from seqssm.orders.orderings import Spec


class Route(nn.Module):
    """The parameters of one route: its convolution and what makes dt, A, B, C and D of its scan.

    Args:
        width: E, channels of the scan.
        d_state: N.
        d_conv: W, steps that the convolution sees.
        dt_rank: inner width of the projection to dt.
        conv_bias: whether the convolution has a bias.
        dt_min, dt_max, dt_init_floor: dt starts log-uniform in [dt_min, dt_max], at least at the floor.

    Under every dtype conversion of a module, `A_log` and `D` stay float32 (float64 under ``double()``): exp(dt A)
    compounds over the sequence, and half precision of A with it.
    """

    def __init__(
        self,
        width: int,
        d_state: int,
        d_conv: int,
        dt_rank: int,
        conv_bias: bool,
        dt_min: float,
        dt_max: float,
        dt_init_floor: float,
    ) -> None:
        super().__init__()
        self.dt_rank, self.d_state = dt_rank, d_state
        self.dt_range = (dt_min, dt_max, dt_init_floor)
        self.conv1d = nn.Conv1d(width, width, d_conv, groups=width, padding=d_conv - 1, bias=conv_bias)
        self.x_proj = nn.Linear(width, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, width)
        self.A_log = nn.Parameter(torch.empty(width, d_state, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(width, dtype=torch.float32))
        self.reset_route()

    @torch.no_grad()
    def reset_route(self) -> None:
        """Mamba's initialisation (its section 3.6): A = -(1..N) in every channel, D = 1, softplus(bias of dt) = dt."""
        self.conv1d.reset_parameters()
        self.x_proj.reset_parameters()
        low, high, floor = self.dt_range
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        uniform = torch.rand_like(self.dt_proj.bias, dtype=torch.float32)
        dt = torch.exp(uniform * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        steps = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=self.A_log.device)
        self.A_log.copy_(steps.log().expand_as(self.A_log))
        self.D.fill_(1.0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = {id(t) for p in (self.A_log, self.D) for t in (p, p.grad) if t is not None}

        def convert(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            if id(tensor) in kept and new.dtype in (torch.float16, torch.bfloat16):
                return tensor.to(new.device)
            return new

        return super()._apply(convert, recurse)


class Mamba(Route):
    """A gated selective scan over one or several routes of the sequence.

    One ``in_proj`` and one ``out_proj`` are shared; every route has its own convolution, ``x_proj``, ``dt_proj``,
    ``A_log`` and ``D``. One forward route is Mamba; ``bidirectional`` is Vision Mamba's block; ``["forward",
    {"stride": 5}]`` is MambaMIL's SR-Mamba. All routes run in one call of the convolution and one of the scan.

    The parameters of the first route have the public names of Mamba (``conv1d.weight``, ``A_log``, ...), those of route
    r = 1, 2, ... the same names under ``routes.<r>.``: weights of a one-route layer load into the first route of any.

    Args:
        d_model: D, width of the sequence.
        d_state: N, states a channel.
        d_conv: W, steps that the causal convolution sees.
        expand: E = expand * d_model channels are scanned.
        dt_rank: inner width of the projection to dt; ``"auto"`` is ceil(d_model / 16).
        ordering: name of the routes, see `seqssm.orders.orderings`.
        merge: whether the outputs of the routes are summed or averaged, place by place.
        bias: whether ``in_proj`` and ``out_proj`` have a bias.
        conv_bias: whether the convolution has one.
        dt_min, dt_max, dt_init_floor: dt starts log-uniform in [dt_min, dt_max], at least at the floor.
        engine: engine of the kernels; None takes the best one for the device.

    Raises:
        ValueError: an unknown ordering or merge; a size that is not positive.
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
        merge: Literal["sum", "mean"] = "sum",
        bias: bool = False,
        conv_bias: bool = True,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        engine: str | None = None,
    ) -> None:
        width = int(expand * d_model)
        rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        sizes = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "expand * d_model": width, "dt_rank": rank}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"dt_min and dt_max must be positive and in this order, not {dt_min} and {dt_max}")
        if merge not in ("sum", "mean"):
            raise ValueError(f"merge is sum or mean, not {merge!r}")
        route = (width, d_state, d_conv, rank, conv_bias, dt_min, dt_max, dt_init_floor)
        super().__init__(*route)
        self.d_model, self.width, self.d_conv = d_model, width, d_conv
        self.ordering = orderings.routes(ordering)
        self.only_forward = all(one.is_forward for one in self.ordering)
        self.merge, self.engine = merge, engine
        self.in_proj = nn.Linear(d_model, 2 * width, bias=bias)
        self.routes = nn.ModuleDict({str(r): Route(*route) for r in range(1, len(self.ordering))})
        self.out_proj = nn.Linear(width, d_model, bias=bias)

    def extra_repr(self) -> str:
        merge = f", merge={self.merge}" if len(self.ordering) > 1 else ""
        return f"{self.d_model}, d_state={self.d_state}, ordering=({orderings.describe(self.ordering)}){merge}"

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        order: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Mixes along the sequence.

        Args:
            x: (B, L, D).
            state: what an earlier piece of the same sequences returned; forward routes only.
            mask: (B, L), true at real places. Padding, wherever it lies, changes nothing at real places nor in the
                state; at padded places `x` is not read and the output is that of a zero (``out_proj``'s bias).
            cu_seqlens: (n + 1,) int32, starts of the sequences that lie one behind the other in B = 1, and the end.
            order: (R, S) or (B, R, S), the table to walk instead of the one that the ordering names: routes that
                follow coordinates, say. With `cu_seqlens`, which then counts its steps, it stays inside the sequences.
            return_state: return the state behind the last step of each route too.

        Returns:
            y (B, L, D), or (y, state).

        Raises:
            ValueError: `mask` with `cu_seqlens`; `state` for a layer with other routes than forward ones; wrong shapes.
        """
        if x.ndim != 3 or x.shape[2] != self.d_model:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, L, d_model) with d_model = {self.d_model}")
        if state is not None:
            self._require_forward("a state")
        order = self._order(x, mask, cu_seqlens, order)
        if mask is not None:
            # not left to the order alone: NaN at a padded place would reach the gradient of in_proj as 0 * NaN
            x = x.masked_fill(~mask.bool().unsqueeze(-1), 0)
        u, z = self.in_proj(x).unsqueeze(2).chunk(2, dim=-1)  # both (b, l, 1, e), read by every route
        convolved = causal_conv1d(
            u,
            *self._convolution(),
            order=order,
            cu_seqlens=cu_seqlens,
            state=None if state is None else state["conv"],
            activation="silu",
            return_final_state=return_state,
            engine=self.engine,
        )
        u, conv_state = convolved if isinstance(convolved, tuple) else (convolved, None)  # u: (b, l, r, e)
        dt, B, C = self._select(u)
        u, order = self.arrange(u, dt, order, cu_seqlens)
        A, D = self._constants()
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
            cu_seqlens=cu_seqlens,
            initial_state=None if state is None else state["scan"],
            return_final_state=return_state,
            engine=self.engine,
        )
        y, scan_state = scanned if isinstance(scanned, tuple) else (scanned, None)
        y = self.out_proj(self._merge(y))
        return (y, State(conv=conv_state, scan=scan_state)) if return_state else y

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Mixes one more place; forward routes only.

        Args:
            x: (B, D).
            state: what `forward` or `step` returned for the places before, or `new_state` at the beginning.

        Returns:
            (y (B, D), the state behind this place).

        Raises:
            ValueError: the layer has other routes than forward ones; no state; wrong shapes.
        """
        self._require_forward("step")
        if x.ndim != 2 or x.shape[1] != self.d_model:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, d_model) with d_model = {self.d_model}")
        if state is None:
            raise ValueError("step needs the state before this place: what forward returned, or new_state(batch_size)")
        routes = len(self.ordering)
        u, z = (half.expand(-1, routes, -1) for half in self.in_proj(x).unsqueeze(1).chunk(2, dim=-1))  # (b, r, e)
        u, conv_state = causal_conv1d_step(u, *self._convolution(), state["conv"], activation="silu")
        dt, B, C = self._select(u)
        A, D = self._constants()
        y, scan_state = selective_scan_step(
            u, dt, A, B, C, state["scan"], D=D, z=z, dt_softplus=True, engine=self.engine
        )
        return self.out_proj(self._merge(y)), State(conv=conv_state, scan=scan_state)

    def new_state(self, batch_size: int) -> State:
        """The state before the first place: all zero.

        Args:
            batch_size: samples, or with `cu_seqlens` sequences.
        """
        shape = (batch_size, len(self.ordering), self.width)
        zeros = self.A_log.new_zeros  # float32, or float64 in a double layer
        return State(conv=zeros(*shape, self.d_conv - 1), scan=zeros(*shape, self.d_state))

    def _all_routes(self) -> list[Route]:
        return [self, *self.routes.values()]  # type: ignore[list-item]

    def _require_forward(self, what: str) -> None:
        if not self.only_forward:
            raise ValueError(
                f"{what} continues forward routes only; this layer's are {orderings.describe(self.ordering)}: "
                "give it the whole sequence"
            )

    def arrange(
        self, u: Tensor, dt: Tensor, order: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The channels and the table of the scan, behind the convolution; a subclass may find another order here.

        Args:
            u: (B, L, R, E), convolved.
            dt: (B, L, R, E), before softplus.
            order: the table of the convolution.
            cu_seqlens: as in `forward`.
        """
        return u, order

    def _order(self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, given: Tensor | None) -> Tensor | None:
        """The table for these sequences; None for plain forward ones."""
        if given is not None:
            if mask is not None:
                raise ValueError("an order says itself which places are visited: give mask or order, not both")
            if given.ndim < 2 or given.shape[-2] not in (1, len(self.ordering)):
                raise ValueError(f"order has shape {tuple(given.shape)}, the layer {len(self.ordering)} routes")
            return given
        if cu_seqlens is not None:
            if mask is not None:
                raise ValueError("packed sequences have no padding: give mask or cu_seqlens, not both")
            return orderings.pack(cu_seqlens, x.shape[1], self.ordering)
        if mask is not None:
            if mask.shape != x.shape[:2]:
                raise ValueError(f"mask has shape {tuple(mask.shape)}, the sequences {tuple(x.shape[:2])}")
            return orderings.from_mask(mask, self.ordering)
        return orderings.build(self.ordering, x.shape[1], x.device)

    def _convolution(self) -> tuple[Tensor, Tensor | None]:
        """Weight (r, e, w) and bias (r, e) of all routes."""
        convs = [route.conv1d for route in self._all_routes()]
        if len(convs) == 1:
            bias = convs[0].bias
            return convs[0].weight.transpose(0, 1), None if bias is None else bias.unsqueeze(0)
        biases = [conv.bias for conv in convs if conv.bias is not None]
        return torch.stack([conv.weight.squeeze(1) for conv in convs]), torch.stack(biases) if biases else None

    def _select(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt before softplus (..., r, e), B and C (..., r, n), from the convolved channels (..., r, e).

        The projections are called as modules, never by their weights: adapters and quantisers replace them.
        """
        sizes = [self.dt_rank, self.d_state, self.d_state]
        routes = self._all_routes()
        if len(routes) == 1:
            low, B, C = self.x_proj(u).split(sizes, dim=-1)
            return self.dt_proj(low), B, C
        selected = [route.x_proj(part) for route, part in zip(routes, u.unbind(-2), strict=True)]
        dt = [route.dt_proj(part[..., : self.dt_rank]) for route, part in zip(routes, selected, strict=True)]
        _, B, C = torch.stack(selected, dim=-2).split(sizes, dim=-1)
        return torch.stack(dt, dim=-2), B, C

    def _constants(self) -> tuple[Tensor, Tensor]:
        """A (r, e, n) and D (r, e) of all routes."""
        routes = self._all_routes()
        if len(routes) == 1:
            return -torch.exp(self.A_log).unsqueeze(0), self.D.unsqueeze(0)
        return -torch.exp(torch.stack([route.A_log for route in routes])), torch.stack([route.D for route in routes])

    def _merge(self, y: Tensor) -> Tensor:
        """(..., e) from the routes' outputs (..., r, e)."""
        if y.shape[-2] == 1:
            return y.squeeze(-2)
        return y.sum(-2) if self.merge == "sum" else y.mean(-2)
