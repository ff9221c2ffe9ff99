"""The arguments of a call as one object, and its sizes.

A public function creates the object from the user's arguments and converts it to canonical form: every tensor has the
route axis, and the order has the batch axis. The custom operators take its fields as their arguments, in this order,
and pass the object to the engines.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ScanSizes(NamedTuple):
    """Sizes of one selective scan.

    Attributes:
        batch: batch size `B`.
        length: number of positions `L`.
        steps: number of steps of an order `S`; `L` without an order.
        routes: number of routes `R`, the largest size of any tensor on its route axis.
        channels: channels per route `E`.
        d_state: state size `N`.
        sequences: rows of a state: `n` of a packed call, else `B`.
    """

    batch: int
    length: int
    steps: int
    routes: int
    channels: int
    d_state: int
    sequences: int

    def letters(self) -> dict[str, int]:
        """Sizes by the letters of the layouts in `contract.arguments`."""
        return {
            "B": self.batch, "B or n": self.sequences, "L": self.length, "R": self.routes, "E": self.channels,
            "N": self.d_state,
        }  # fmt: skip

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """`(B, L, R, E)`."""
        return self.batch, self.length, self.routes, self.channels

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """`(B or n, R, E, N)`."""
        return self.sequences, self.routes, self.channels, self.d_state


class ConvSizes(NamedTuple):
    """Sizes of one causal convolution: as `ScanSizes`, with the window width `W`."""

    batch: int
    length: int
    steps: int
    routes: int
    channels: int
    width: int
    sequences: int

    def letters(self) -> dict[str, int]:
        """Sizes by the letters of the layouts in `contract.arguments`."""
        return {
            "B": self.batch, "B or n": self.sequences, "L": self.length, "R": self.routes, "E": self.channels,
            "W": self.width, "W - 1": self.width - 1,
        }  # fmt: skip

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """`(B, L, R, E)`."""
        return self.batch, self.length, self.routes, self.channels

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """`(B or n, R, E, W - 1)`."""
        return self.sequences, self.routes, self.channels, self.width - 1


class SsdSizes(NamedTuple):
    """Sizes of one scan with a scalar decay per head (Mamba-2).

    Attributes:
        batch: batch size `B`.
        length: number of positions `L`.
        steps: number of steps of an order `S`; `L` without an order.
        routes: number of routes `R`, the largest size of any tensor on its route axis.
        heads: heads per route `H`.
        head_dim: channels per head `P`.
        groups: number `G` of groups of heads with shared B and C; divides `H`.
        d_state: state size `N`.
        sequences: rows of a state: `n` of a packed call, else `B`.
    """

    batch: int
    length: int
    steps: int
    routes: int
    heads: int
    head_dim: int
    groups: int
    d_state: int
    sequences: int

    def letters(self) -> dict[str, int]:
        """Sizes by the letters of the layouts in `contract.arguments`."""
        return {
            "B": self.batch, "B or n": self.sequences, "L": self.length, "R": self.routes, "H": self.heads,
            "P": self.head_dim, "G": self.groups, "N": self.d_state,
        }  # fmt: skip

    @property
    def channels(self) -> int:
        """Channels per route, `H P`."""
        return self.heads * self.head_dim

    @property
    def out_shape(self) -> tuple[int, int, int, int, int]:
        """`(B, L, R, H, P)`."""
        return self.batch, self.length, self.routes, self.heads, self.head_dim

    @property
    def state_shape(self) -> tuple[int, int, int, int, int]:
        """`(B or n, R, H, P, N)`."""
        return self.sequences, self.routes, self.heads, self.head_dim, self.d_state


class ScanCall(NamedTuple):
    """The arguments of a selective scan, documented at `selective_scan`.

    Attributes:
        x: input `(B, L, 1 or R, E)`; `dt` and `z` have the same layout.
        A: state matrix `(1 or R, E, N)`.
        B: input projection `(B, L, 1 or R, N)`; `C` has the same layout.
        D: skip weight `(1 or R, E)`; `dt_bias` has the same layout.
        dt_softplus: whether softplus is applied to `dt + dt_bias`.
        order: order table `(1 or B, 1 or R, S)`; None for the positions in their own order.
        cu_seqlens: sequence boundaries `(n + 1,)` of a packed call, whose batch size is 1.
        initial_state: state before the first step `(B or n, R, E, N)`.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    dt_softplus: bool
    order: Tensor | None
    cu_seqlens: Tensor | None
    initial_state: Tensor | None

    def inputs(self) -> tuple[Tensor | None, ...]:
        """The differentiable arguments, in the order in which an engine returns their gradients."""
        return self.x, self.dt, self.A, self.B, self.C, self.D, self.z, self.dt_bias, self.initial_state

    def sizes(self) -> ScanSizes:
        """Sizes of a call in canonical form."""
        x, dt, A, B, C, D, z, dt_bias, _, order, cu_seqlens, initial_state = self
        batch, length, routes, channels = x.shape
        routes = max(
            routes, dt.shape[2], A.shape[0], B.shape[2], C.shape[2], 0 if D is None else D.shape[0],
            0 if z is None else z.shape[2], 0 if dt_bias is None else dt_bias.shape[0],
            0 if order is None else order.shape[1], 0 if initial_state is None else initial_state.shape[1],
        )  # fmt: skip
        steps = length if order is None else order.shape[2]
        sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
        return ScanSizes(batch, length, steps, routes, channels, A.shape[2], sequences)


class ConvCall(NamedTuple):
    """The arguments of a causal convolution, documented at `causal_conv1d`.

    Attributes:
        x: input `(B, L, 1 or R, E)`.
        weight: filter taps `(1 or R, E, W)`; `weight[..., -1]` multiplies the current step.
        bias: bias `(1 or R, E)`.
        order: order table `(1 or B, 1 or R, S)`; None for the positions in their own order.
        cu_seqlens: sequence boundaries `(n + 1,)` of a packed call, whose batch size is 1.
        state: window before the first step, oldest first, `(B or n, R, E, W - 1)`.
        silu: whether SiLU is applied to the output.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    order: Tensor | None
    cu_seqlens: Tensor | None
    state: Tensor | None
    silu: bool

    def inputs(self) -> tuple[Tensor | None, ...]:
        """The differentiable arguments, in the order in which an engine returns their gradients."""
        return self.x, self.weight, self.bias, self.state

    def sizes(self) -> ConvSizes:
        """Sizes of a call in canonical form."""
        x, weight, bias, order, cu_seqlens, state, _ = self
        batch, length, routes, channels = x.shape
        routes = max(
            routes, weight.shape[0], 0 if bias is None else bias.shape[0], 0 if order is None else order.shape[1],
            0 if state is None else state.shape[1],
        )  # fmt: skip
        steps = length if order is None else order.shape[2]
        sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
        return ConvSizes(batch, length, steps, routes, channels, weight.shape[2], sequences)


class SsdCall(NamedTuple):
    """The arguments of a scan with a scalar decay per head, documented at `ssd_scan`.

    Attributes:
        x: input `(B, L, 1 or R, H, P)`; `z` has the same layout.
        dt: step size `(B, L, 1 or R, H)`; `w` has the same layout.
        A: decay rate `(1 or R, H)`; `dt_bias` has the same layout.
        B: input projection `(B, L, 1 or R, G, N)`; `C` has the same layout.
        D: skip weight `(1 or R, H)` or `(1 or R, H, P)`.
        dt_softplus: whether softplus is applied to `dt + dt_bias`.
        w: input weight in place of `dt`.
        order: order table `(1 or B, 1 or R, S)`; None for the positions in their own order.
        cu_seqlens: sequence boundaries `(n + 1,)` of a packed call, whose batch size is 1.
        initial_state: state before the first step `(B or n, R, H, P, N)`.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    dt_softplus: bool
    w: Tensor | None
    order: Tensor | None
    cu_seqlens: Tensor | None
    initial_state: Tensor | None

    def inputs(self) -> tuple[Tensor | None, ...]:
        """The differentiable arguments, in the order in which an engine returns their gradients."""
        return self.x, self.dt, self.A, self.B, self.C, self.D, self.z, self.dt_bias, self.w, self.initial_state

    def sizes(self) -> SsdSizes:
        """Sizes of a call in canonical form."""
        x, dt, A, B, C, D, z, dt_bias, _, w, order, cu_seqlens, initial_state = self
        batch, length, routes, heads, head_dim = x.shape
        routes = max(
            routes, dt.shape[2], A.shape[0], B.shape[2], C.shape[2], 0 if D is None else D.shape[0],
            0 if z is None else z.shape[2], 0 if dt_bias is None else dt_bias.shape[0],
            0 if w is None else w.shape[2], 0 if order is None else order.shape[1],
            0 if initial_state is None else initial_state.shape[1],
        )  # fmt: skip
        steps = length if order is None else order.shape[2]
        sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
        return SsdSizes(batch, length, steps, routes, heads, head_dim, B.shape[3], B.shape[4], sequences)


class Scales(NamedTuple):
    """Scales of the integers of an inference call: a value is its integer times its scale.

    Attributes:
        x: `(1 or R, E)`, or `(1 or R, H, P)`.
        B: `(1 or R, N)`, or `(1 or R, G, N)`.
        C: in the shape of `B`.
    """

    x: Tensor
    B: Tensor
    C: Tensor


class ScanInt8Call(NamedTuple):
    """The arguments of a selective scan of 8-bit integers, documented at `selective_scan_int8`.

    Attributes:
        x, B, C: as in `ScanCall`, int8.
        x_scale, B_scale, C_scale: see `Scales`.
        dt: as in `ScanCall`; `out` has its dtype, and so has `z`.
        other names: as in `ScanCall`.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    x_scale: Tensor
    B_scale: Tensor
    C_scale: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    dt_softplus: bool
    order: Tensor | None
    cu_seqlens: Tensor | None
    initial_state: Tensor | None

    def inputs(self) -> tuple[Tensor | None, ...]:
        """The arguments of floats, none of which gets a gradient."""
        return (
            self.dt, self.A, self.x_scale, self.B_scale, self.C_scale, self.D, self.z, self.dt_bias,
            self.initial_state,
        )  # fmt: skip

    def scales(self) -> Scales:
        """The scales of x, B and C."""
        return Scales(self.x_scale, self.B_scale, self.C_scale)

    def integers(self) -> ScanCall:
        """The call of the float scan with integer x, B and C."""
        return ScanCall(
            self.x, self.dt, self.A, self.B, self.C, self.D, self.z, self.dt_bias, self.dt_softplus, self.order,
            self.cu_seqlens, self.initial_state,
        )  # fmt: skip

    def dequantised(self) -> ScanCall:
        """The call of the float scan of the values, in the dtype of sums."""
        kept = state_dtype(self.dt.dtype)
        x, B, C = (t.to(kept) * scale.to(kept) for t, scale in zip((self.x, self.B, self.C), self.scales()))
        z = None if self.z is None else self.z.to(kept)
        return self.integers()._replace(x=x, dt=self.dt.to(kept), B=B, C=C, z=z)

    def sizes(self) -> ScanSizes:
        """Sizes of a call in canonical form."""
        return self.integers().sizes()


class SsdInt8Call(NamedTuple):
    """The arguments of a Mamba-2 scan of 8-bit integers, documented at `ssd_scan_int8`.

    Attributes:
        x, B, C: as in `SsdCall`, int8.
        x_scale, B_scale, C_scale: see `Scales`.
        dt: as in `SsdCall`; `out` has its dtype, and so has `z`.
        other names: as in `SsdCall`.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    x_scale: Tensor
    B_scale: Tensor
    C_scale: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    dt_softplus: bool
    order: Tensor | None
    cu_seqlens: Tensor | None
    initial_state: Tensor | None

    def inputs(self) -> tuple[Tensor | None, ...]:
        """The arguments of floats, none of which gets a gradient."""
        return (
            self.dt, self.A, self.x_scale, self.B_scale, self.C_scale, self.D, self.z, self.dt_bias,
            self.initial_state,
        )  # fmt: skip

    def scales(self) -> Scales:
        """The scales of x, B and C."""
        return Scales(self.x_scale, self.B_scale, self.C_scale)

    def integers(self) -> SsdCall:
        """The call of the float scan with integer x, B and C."""
        return SsdCall(
            self.x, self.dt, self.A, self.B, self.C, self.D, self.z, self.dt_bias, self.dt_softplus, None, self.order,
            self.cu_seqlens, self.initial_state,
        )  # fmt: skip

    def dequantised(self) -> SsdCall:
        """The call of the float scan of the values, in the dtype of sums."""
        kept = state_dtype(self.dt.dtype)
        x, B, C = (t.to(kept) * scale.to(kept) for t, scale in zip((self.x, self.B, self.C), self.scales()))
        z = None if self.z is None else self.z.to(kept)
        return self.integers()._replace(x=x, dt=self.dt.to(kept), B=B, C=C, z=z)

    def sizes(self) -> SsdSizes:
        """Sizes of a call in canonical form."""
        return self.integers().sizes()


AnyCall = ScanCall | ConvCall | SsdCall | ScanInt8Call | SsdInt8Call


def out_dtype(call: AnyCall) -> torch.dtype:
    """The dtype of the output: that of x, or with integer x that of dt."""
    if call.x.dtype == torch.int8 and not isinstance(call, ConvCall):
        return call.dt.dtype
    return call.x.dtype


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and states: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
