"""Sizes of a call, read from its tensors in their canonical form: every tensor has the route axis."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ScanSizes(NamedTuple):
    """Sizes of one selective scan.

    Attributes:
        batch: `B`.
        length: places `L`.
        steps: steps of an order `S`; `L` without an order.
        routes: `R`, the largest size that any tensor has on its route axis.
        channels: channels of a route `E`.
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


class ConvSizes(NamedTuple):
    """Sizes of one causal convolution: as `ScanSizes`, with the window's width `W`."""

    batch: int
    length: int
    steps: int
    routes: int
    channels: int
    width: int
    sequences: int


def scan_sizes(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    order: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
) -> ScanSizes:
    """Sizes of a selective scan whose tensors all have the route axis."""
    batch, length, routes, channels = x.shape
    routes = max(routes, dt.shape[2], A.shape[0], B.shape[2], C.shape[2])
    if D is not None:
        routes = max(routes, D.shape[0])
    if z is not None:
        routes = max(routes, z.shape[2])
    if dt_bias is not None:
        routes = max(routes, dt_bias.shape[0])
    if initial_state is not None:
        routes = max(routes, initial_state.shape[1])
    steps = length
    if order is not None:
        routes = max(routes, order.shape[1])
        steps = order.shape[2]
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return ScanSizes(batch, length, steps, routes, channels, A.shape[2], sequences)


def conv_sizes(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    cu_seqlens: Tensor | None,
    state: Tensor | None,
) -> ConvSizes:
    """Sizes of a causal convolution whose tensors all have the route axis."""
    batch, length, routes, channels = x.shape
    routes = max(routes, weight.shape[0])
    if bias is not None:
        routes = max(routes, bias.shape[0])
    if state is not None:
        routes = max(routes, state.shape[1])
    steps = length
    if order is not None:
        routes = max(routes, order.shape[1])
        steps = order.shape[2]
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return ConvSizes(batch, length, steps, routes, channels, weight.shape[2], sequences)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and states: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
