"""Base class of layers that scan along routes: order tables, merging of routes, and processing in chunks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from seqssm.nn.grid_conv import GridConv
from seqssm.nn.rounded import IntegerState
from seqssm.nn.state import State
from seqssm.orders import GeometryOrMany, Merge, Spec, by_sample, format_orders, require_coverage, routes, walk


class RoutedMixer(nn.Module, ABC):
    """Base class of `Mamba`, `Mamba2` and `Mamba3`: a mixer with a recurrence along one or several routes.

    Subclasses define `mix` (from the sequence to one output per route), `project` (from the merged routes to the
    output), `advance` (one step) and `new_state`. This class computes the order tables, excludes padding, merges the
    outputs and adds the convolution over the grid.

    Args:
        d_model: width of the sequence, D.
        width: number of scanned channels of all groups, E.
        ordering: scan order of the routes, see `seqssm.orders`.
        merge: rule that combines the outputs of the routes.
        local_conv: kernel size of the convolution over the grid, or None.
        engine: engine of the kernels.

    Raises:
        ValueError: a merge that does not match the coverage of the routes, an order that requires `local_conv`, or
            channels that are not divisible into the groups of ``concat``.
    """

    linear_projection = True
    """Whether `project` is linear up to a bias, so that contributions of routes can be projected separately."""
    needs_whole_sequence = False
    """Whether the layer determines its order from the whole sequence, and therefore cannot be applied in chunks."""

    out_proj: Any
    route_weight: nn.Parameter

    def __init__(
        self, d_model: int, width: int, ordering: Spec, merge: Merge, local_conv: int | None, engine: str | None
    ) -> None:
        super().__init__()
        self.d_model, self.width = d_model, width
        self.ordering, self.merge, self.engine = routes(ordering), merge, engine
        require_coverage(self.ordering, merge)
        for order in self.ordering:
            if order.entry.needs_convolution and local_conv is None:
                raise ValueError(
                    f"routes of {format_orders((order,))} never exchange information: the layer needs a convolution "
                    "over the grid in addition to the scan, e.g. local_conv=3"
                )
        self.only_forward = all(one.is_forward for one in self.ordering) and local_conv is None
        if self.width % self.groups:
            raise ValueError(f"expand * d_model = {self.width} channels do not divide into {self.groups} groups")
        self.local: GridConv | None = None
        self.scan_state: nn.Module = nn.Identity()  # `IntegerState`, if compressed

    @property
    def groups(self) -> int:
        """Number of channel groups: one, or one per route with ``concat``."""
        return len(self.ordering) if self.merge == "concat" else 1

    @property
    def state_size(self) -> tuple[int, int] | None:
        """Channels of a route and states per channel, if the state of the scan can be kept in 8 bits; else None."""
        return None

    def _finish(self, local_conv: int | None) -> None:
        """Create the modules that follow the layer's own weights; optimiser states depend on this order."""
        if self.merge == "gate":
            self.route_weight = nn.Parameter(torch.full((len(self.ordering),), 1 / len(self.ordering)))
        self.local = None if local_conv is None else GridConv(self.d_model, local_conv)

    def _reset_shared(self) -> None:
        if self.merge == "gate":
            with torch.no_grad():
                self.route_weight.fill_(1 / len(self.ordering))
        if self.local is not None:
            self.local.reset_parameters()

    @abstractmethod
    def mix(
        self,
        x: Tensor,
        order: Tensor | None,
        cu_seqlens: Tensor | None,
        state: State | None,
        return_state: bool,
        only: int | None = None,
    ) -> tuple[Tensor, State | None]:
        """Compute the outputs of the routes before the merge, (B, L, R, E), and the state after them.

        Args:
            x: input, (B, L, D), without NaN at unvisited positions.
            order: order table of the routes, None for plain forward ones.
            cu_seqlens: ends of packed sequences in steps of the table.
            state: state of an earlier chunk.
            return_state: whether to return the state.
            only: index of the only route to process; `order` and `state` are then those of this route.
        """

    @abstractmethod
    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance all routes by one step: x (B, D) to (y (B, D), state)."""

    def project(self, y: Tensor) -> Tensor:
        """Project the merged routes (..., E) to the output (..., D)."""
        return self.out_proj(y)

    @abstractmethod
    def new_state(self, batch_size: int) -> State:
        """Return the state before the first position: all zeros.

        Args:
            batch_size: number of samples, or of packed sequences with `cu_seqlens`.
        """

    @abstractmethod
    def kept_parameters(self) -> Iterable[Tensor]:
        """Parameters that stay float32 under conversion to narrower dtypes."""

    def extra_repr(self) -> str:
        merge = f", merge={self.merge}" if len(self.ordering) > 1 else ""
        return f"{self.d_model}, ordering=({format_orders(self.ordering)}){merge}"

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        geometry: GeometryOrMany = None,
        order: Tensor | None = None,
        outputs: int | None = None,
        return_state: bool = False,
    ) -> Any:
        """Mix along the sequence.

        Args:
            x: input, (B, L, D).
            state: state returned for an earlier chunk of the same sequences; forward routes only.
            mask: valid positions, (B, L) bool. Padding may be anywhere and does not affect valid positions or the
                state; at padded positions `x` is not read and the output is that of a zero (``out_proj``'s
                bias). On a grid of all L positions the masked ones are hidden cells.
            cu_seqlens: start offsets of packed sequences (B = 1) and the total length, (n + 1,) int32.
            geometry: geometry of the positions, for orders that are not defined on a plain length: ``Grid(h, w)``,
                ``Coordinates(xy)``, ... For packed sequences, or with `mask` for the valid positions of each sample, it
                is one for all of them or a list with one per sequence.
            order: order table, (R, S) or (B, R, S), used instead of that of `ordering`. With `cu_seqlens`, which then
                counts its steps, it must not cross sequence boundaries.
            outputs: number of positions, from the first, whose outputs are projected and returned; all by default.
            return_state: whether to return the state after the last step of each route as well.

        Returns:
            y (B, L or outputs, D), or (y, state).

        Raises:
            ValueError: `mask` with `cu_seqlens`, `state` for a layer with non-forward routes, a geometry that does not
                match the orders or the positions, or wrong shapes.
        """
        if x.ndim != 3 or x.shape[2] != self.d_model:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, L, d_model) with d_model = {self.d_model}")
        if state is not None:
            self.require_forward("a state")
        table, steps = self._walk(x, mask, cu_seqlens, geometry, order)
        if mask is not None:
            # zeroed here as well: NaN at a padded position would reach the gradient of in_proj as 0 * NaN
            x = x.masked_fill(~mask.bool().unsqueeze(-1), 0)
        y, new = self.mix(x, table, steps, self.float_state(state, x.dtype), return_state)
        y = self.project(self._merge(y[:, :outputs]))
        if self.local is not None:
            y = y + self._local(x, mask, geometry)[:, :outputs]
        return (y, self.kept_state(new)) if return_state else y

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Process one more position; forward routes only.

        Args:
            x: input, (B, D).
            state: state returned by `forward` or `step` for the preceding positions, or by `new_state` at the start.

        Returns:
            (y (B, D), state after this position).

        Raises:
            ValueError: the layer has non-forward routes, no state, or wrong shapes.
        """
        self.require_forward("step")
        if x.ndim != 2 or x.shape[1] != self.d_model:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, d_model) with d_model = {self.d_model}")
        if state is None:
            raise ValueError(
                "step requires the state before this position, returned by forward or new_state(batch_size)"
            )
        y, new = self.advance(x, self.float_state(state, x.dtype))
        return y, self.kept_state(new)

    def float_state(self, state: Any, dtype: torch.dtype = torch.float32) -> Any:
        """Return a state with the values of the scan in float; compressed layers keep them in 8 bits.

        A state in float is returned as it is: compressed layers continue from it too.

        Args:
            state: state of an earlier call, or None.
            dtype: dtype of the activations.

        Raises:
            ValueError: the state is in 8 bits and the layer has no scales for it, or has other sizes.
        """
        scan = None if state is None else state.get("scan")
        if scan is None or scan.is_floating_point():
            return state
        if not isinstance(self.scan_state, IntegerState):
            raise ValueError("the state is in 8 bits, but this layer keeps its state in float")
        return State({**state, "scan": self.scan_state.decode(scan, dtype)})

    def kept_state(self, state: Any) -> Any:
        """Return a state as the layer returns it: with the values of the scan in 8 bits if it has scales for them.

        Args:
            state: state with the values in float, or None.
        """
        if state is None or not isinstance(self.scan_state, IntegerState):
            return state
        return State({**state, "scan": self.scan_state.encode(state["scan"])})

    def new_route_state(self) -> State:
        """Return the state of one route before its first step, for one sequence."""
        return self.new_state(1).map(lambda tensor: tensor[:, :1])

    def mix_route(self, number: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one route over the next positions that it visits; the caller sums the outputs of the routes.

        Args:
            number: index of the route.
            x: positions in visiting order, (1, S, D).
            state: state returned by the previous call, or by `new_route_state` at the start.

        Returns:
            (contribution of the route to the input of `project` (1, S, E), state after the last step).
        """
        y, new = self.mix(x, None, None, self.float_state(state, x.dtype), True, only=number)
        if new is None:
            raise RuntimeError(f"{type(self).__name__}.mix returned no state")
        new = self.kept_state(new)
        y = y[:, :, 0]
        if self.merge == "mean":
            y = y * (1 / len(self.ordering))
        elif self.merge == "gate":
            y = y * self.route_weight[number].to(y.dtype)
        elif self.merge == "concat":
            own = self.width // self.groups
            y = nn.functional.pad(y, (number * own, self.width - (number + 1) * own))
        return y, new

    def require_forward(self, what: str) -> None:
        """Raise ValueError unless all routes are forward ones, which alone can continue from a state."""
        if not self.only_forward:
            beside = "" if self.local is None else " with a convolution over the grid"
            raise ValueError(
                f"{what} requires forward routes; those of this layer are {format_orders(self.ordering)}{beside}: "
                "pass the whole sequence"
            )

    def _walk(
        self,
        x: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        geometry: GeometryOrMany,
        given: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Compute the order table (None for plain forward routes) and the ends of packed sequences in its steps."""
        if given is not None:
            if mask is not None:
                raise ValueError("an order table defines the visited positions: give mask or order, not both")
            if geometry is not None and self.local is None:
                raise ValueError("an order needs no geometry: give geometry or order, not both")
            if given.ndim < 2 or given.shape[-2] not in (1, len(self.ordering)):
                raise ValueError(f"order has shape {tuple(given.shape)}, the layer {len(self.ordering)} routes")
            return given, cu_seqlens
        if mask is not None and mask.shape != x.shape[:2]:
            raise ValueError(f"mask has shape {tuple(mask.shape)}, the sequences {tuple(x.shape[:2])}")
        kept = {"mask": mask, "cu_seqlens": cu_seqlens, "geometry": geometry}
        return walk(self.ordering, x.shape[1], device=x.device, **kept)  # type: ignore[arg-type]

    def _merge(self, y: Tensor) -> Tensor:
        """Merge outputs (..., r, e) of the routes to (..., E). Unvisited positions are 0, hence a union is a sum."""
        if self.merge == "gate":
            return self.route_weight.to(y.dtype) @ y
        if self.merge == "concat":
            return y.flatten(-2)
        if y.shape[-2] == 1:
            return y.squeeze(-2)
        return y.mean(-2) if self.merge == "mean" else y.sum(-2)

    def _local(self, x: Tensor, mask: Tensor | None, geometry: GeometryOrMany) -> Tensor:
        """Convolve over the grid; the result is zero at padded and hidden positions."""
        if mask is None:
            return self.local(x, geometry)  # type: ignore[misc]
        real, geometry = mask.bool(), by_sample(geometry, mask)
        if isinstance(geometry, list | tuple):  # one grid per sample, for its valid positions
            own = self.local(x[real].unsqueeze(0), geometry).squeeze(0)  # type: ignore[misc]
            return torch.zeros_like(x, dtype=own.dtype).masked_scatter(real.unsqueeze(-1), own)
        return self.local(x, geometry).masked_fill(~real.unsqueeze(-1), 0)  # type: ignore[misc]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = {id(t) for p in self.kept_parameters() for t in (p, p.grad) if t is not None}

        def convert(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            if id(tensor) in kept and new.dtype in (torch.float16, torch.bfloat16):
                return tensor.to(new.device)
            return new

        return super()._apply(convert, recurse)
