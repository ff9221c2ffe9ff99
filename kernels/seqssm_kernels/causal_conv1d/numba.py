"""The CPU engine of the convolution: vectorised over 16 channels, tiled over time, threaded over batch and channels.

Weights and states are small: they are handed to the kernels channel-last, in float32, whatever their dtype and layout.
Inputs and outputs are read and written in place.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types
from torch import Tensor

from seqssm_kernels.causal_conv1d import numba_kernels as c
from seqssm_kernels.contract.calls import ConvCall
from seqssm_kernels.cpu import rows as k
from seqssm_kernels.cpu import threads
from seqssm_kernels.cpu.compile import compiled, source_key
from seqssm_kernels.cpu.lanes import BFLOAT16, FLOAT16, FLOAT32, LANES
from seqssm_kernels.cpu.memory import fresh

KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
WIDEST = 8  # vectors of 16 channels in a group: its rows of a tile fit the first-level cache
SIGNATURE = types.void(types.int64[::1], types.int64, types.int64, types.int64, types.int64)
SOURCES = ("cpu/lanes", "cpu/tiles", "cpu/rows", "causal_conv1d/numba_kernels")


@cache
def _kernel(direction: str) -> Any:
    make = c.make_forward if direction == "forward" else c.make_backward
    return compiled(make(source_key(*SOURCES)), SIGNATURE)


class _Plan:
    """Sizes of a call, its division into tasks, and the array that the kernels read."""

    def __init__(self, call: ConvCall) -> None:
        x, weight, bias, order, cu_seqlens, state, silu = call
        self.sizes = sizes = call.sizes()
        work = sizes.batch * sizes.routes * sizes.steps * sizes.channels * sizes.width
        blocks = -(-sizes.channels // LANES)
        workers = threads.parts(blocks * sizes.batch, work)
        groups = max(-(-blocks // WIDEST), min(blocks, -(-workers // max(1, sizes.batch))))
        self.width = LANES * -(-blocks // groups)
        self.tasks = -(-sizes.channels // self.width) * sizes.batch
        self.parts = min(workers, max(1, self.tasks))
        self.kept: list[Tensor] = []  # tensors that must live as long as their addresses are used
        p = self.params = [0] * k.LENGTH  # a list: setting items of an array costs ten times as much
        self.places(k.X, x)
        weight = weight.to(torch.float32).transpose(1, 2).contiguous()
        p[c.WEIGHT], p[c.WEIGHT_ROUTE] = self.address(weight), 4 * weight.stride(0) if weight.shape[0] > 1 else 0
        if bias is not None:
            bias = bias.to(torch.float32).contiguous()
            p[k.BIAS], p[k.BIAS_ROUTE] = self.address(bias), 4 * bias.stride(0) if bias.shape[0] > 1 else 0
        if order is not None:
            p[k.ORDER] = self.address(order)
            p[k.ORDER_BATCH] = 4 * order.stride(0) if order.shape[0] > 1 else 0
            p[k.ORDER_ROUTE] = 4 * order.stride(1) if order.shape[1] > 1 else 0
        if cu_seqlens is not None:
            p[k.CU_SEQLENS] = self.address(cu_seqlens)
        if state is not None:
            p[k.INITIAL] = self.address(_channel_last(state))
        p[k.BATCH], p[k.STEP_COUNT], p[k.ROUTES], p[k.CHANNELS] = sizes.batch, sizes.steps, sizes.routes, sizes.channels
        p[c.TAPS], p[c.SILU], p[k.WIDTH] = sizes.width, silu, self.width
        p[k.SEQUENCES] = 1 if cu_seqlens is None else sizes.sequences

    def address(self, tensor: Tensor) -> int:
        self.kept.append(tensor)
        return tensor.data_ptr()

    def places(self, at: int, tensor: Tensor) -> None:
        """Address, kind and byte strides of a (B, L, 1|R, E) tensor, whose last axis is made dense where it is not."""
        b, place, route, channel = tensor.stride()
        if channel != 1 and tensor.shape[3] > 1:
            tensor = tensor.contiguous()
            b, place, route, _ = tensor.stride()
        size = tensor.element_size()
        self.params[at : at + 5] = (
            self.address(tensor),
            KINDS[tensor.dtype],
            size * b,
            size * place,
            size * route if tensor.shape[2] > 1 else 0,
        )

    def run(self, direction: str) -> None:
        if self.tasks:
            scratch = c.scratch_bytes(self.width, self.sizes.width, direction == "backward")
            params = np.array(self.params, np.int64)
            threads.run(_kernel(direction), params, self.tasks, self.parts, scratch)


def _channel_last(state: Tensor) -> Tensor:
    """(n, R, E, W - 1) as (n, R, W - 1, E), and back."""
    return state.transpose(2, 3).contiguous()


def forward(call: ConvCall) -> tuple[Tensor, Tensor]:
    """Runs the convolution; see `engines` for the contract."""
    plan = _Plan(call)
    sizes = plan.sizes
    # Places that no step visits stay zero.
    out = fresh(sizes.out_shape, call.x.dtype, zero=call.order is not None)
    final = fresh((sizes.sequences, sizes.routes, sizes.width - 1, sizes.channels))
    plan.places(k.OUT, out)
    plan.params[k.FINAL] = final.data_ptr()
    plan.run("forward")
    return out, _channel_last(final)


def backward(dout: Tensor, dfinal: Tensor | None, call: ConvCall, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Gradients of the convolution; see `engines` for the contract."""
    x, weight, bias = call.x, call.weight, call.bias
    plan = _Plan(call)
    sizes, p = plan.sizes, plan.params
    need_x, need_weight, need_bias, need_state = needs
    plan.places(k.DOUT, dout)
    if dfinal is not None:
        p[k.D_FINAL] = plan.address(_channel_last(dfinal))
    dx = dweight = dbias = dstate = None
    if need_x:
        shared = x.shape[2] < sizes.routes  # then routes add up, in float32
        dx = fresh(tuple(x.shape), torch.float32 if shared else x.dtype, zero=shared or call.order is not None)
        plan.places(k.DX, dx)
        p[k.ADD_X] = shared
    if need_weight:
        dweight = fresh((plan.parts, sizes.routes, sizes.width, sizes.channels), zero=True)
        p[c.D_WEIGHT] = dweight.data_ptr()
    if need_bias:
        dbias = fresh((plan.parts, sizes.routes, sizes.channels), zero=True)
        p[k.D_BIAS] = dbias.data_ptr()
    if need_state:
        dstate = fresh((sizes.sequences, sizes.routes, sizes.width - 1, sizes.channels))
        p[k.D_INITIAL] = dstate.data_ptr()
    plan.run("backward")
    return (
        None if dx is None else dx.to(x.dtype),
        None if dweight is None else _summed(dweight, weight).transpose(1, 2).to(weight.dtype).contiguous(),
        None if dbias is None or bias is None else _summed(dbias, bias).to(bias.dtype),
        None if dstate is None else _channel_last(dstate),
    )


def _summed(parts: Tensor, t: Tensor) -> Tensor:
    """Sums the threads' parts, and the routes where `t` has one for all."""
    total = parts.sum(0)
    return total if t.shape[0] == total.shape[0] else total.sum(0, keepdim=True)
