"""The CPU engine of the convolution: vectorised over 16 channels, tiled over time, threaded over batch and channels.

Weights and states are small and are always converted to channel-last float32. Inputs and outputs are read and written
in place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqssm_kernels.causal_conv1d import numba_kernels as c
from seqssm_kernels.causal_conv1d import numba_step as s
from seqssm_kernels.contract.calls import ConvCall, ConvSizes
from seqssm_kernels.cpu import rows as k
from seqssm_kernels.cpu.compile import compiled, quietly, source_key
from seqssm_kernels.cpu.memory import fresh
from seqssm_kernels.cpu.plan import KINDS, SIGNATURE, Plan
from seqssm_kernels.cpu.steps import StepPlan, StepPlans, plan_of

SOURCES = ("cpu/lanes", "cpu/tiles", "cpu/rows", "causal_conv1d/numba_kernels")


@cache
def _kernel(direction: str) -> Any:
    make = c.make_forward if direction == "forward" else c.make_backward
    return compiled(make(source_key(*SOURCES)), SIGNATURE, f"causal_conv1d {direction}")


def kernels() -> dict[str, Callable[[], Any]]:
    """Kernel titles, each with a function that compiles or loads the kernel silently."""
    found: dict[str, Callable[[], Any]] = {d: partial(quietly, _kernel, d) for d in ("forward", "backward")}
    return {**found, "step": partial(quietly, _step_kernel)}


@cache
def _step_kernel() -> Any:
    sources = ("cpu/lanes", "cpu/rows", "causal_conv1d/numba_step")
    return compiled(s.make_step(source_key(*sources)), SIGNATURE, "causal_conv1d step")


class _Plan(Plan[ConvSizes]):
    """Execution plan of a convolution."""

    def __init__(self, call: ConvCall) -> None:
        x, weight, bias, order, cu_seqlens, state, silu = call
        sizes = call.sizes()
        work = sizes.batch * sizes.routes * sizes.steps * sizes.channels * sizes.width
        super().__init__(sizes, work, order, cu_seqlens)
        self.divide(self.least_groups())
        p = self.params
        self.tensor(k.X, x)
        weight = weight.to(torch.float32).transpose(1, 2).contiguous()
        p[c.WEIGHT], p[c.WEIGHT_ROUTE] = self.address(weight), 4 * weight.stride(0) if weight.shape[0] > 1 else 0
        self.vector(k.BIAS, None if bias is None else bias.to(torch.float32))
        if state is not None:
            p[k.INITIAL] = self.address(_channel_last(state))
        p[c.TAPS], p[c.SILU] = sizes.width, silu

    def run(self, direction: str) -> None:
        scratch = c.scratch_bytes(self.width, self.params[c.TAPS], direction == "backward")
        self.execute(_kernel(direction), scratch)


def _channel_last(state: Tensor) -> Tensor:
    """(n, R, E, W - 1) as (n, R, W - 1, E), and back."""
    return state.transpose(2, 3).contiguous()


def forward(call: ConvCall) -> tuple[Tensor, Tensor]:
    """Run the convolution; see `engines` for the contract."""
    plan = _Plan(call)
    sizes = plan.sizes
    # Positions that no step visits stay zero.
    out = fresh(sizes.out_shape, call.x.dtype, zero=call.order is not None)
    final = fresh((sizes.sequences, sizes.routes, sizes.width - 1, sizes.channels))
    plan.tensor(k.OUT, out)
    plan.params[k.FINAL] = plan.address(final)
    plan.run("forward")
    return out, _channel_last(final)


def backward(dout: Tensor, dfinal: Tensor | None, call: ConvCall, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Gradients of the convolution; see `engines` for the contract."""
    x, weight, bias = call.x, call.weight, call.bias
    plan = _Plan(call)
    sizes, p = plan.sizes, plan.params
    need_x, need_weight, need_bias, need_state = needs
    plan.tensor(k.DOUT, dout)
    if dfinal is not None:
        p[k.D_FINAL] = plan.address(_channel_last(dfinal))
    dx = dweight = dbias = dstate = None
    if need_x:
        shared = x.shape[2] < sizes.routes  # gradients of the routes are accumulated in float32
        dx = fresh(tuple(x.shape), torch.float32 if shared else x.dtype, zero=shared or call.order is not None)
        plan.tensor(k.DX, dx)
        p[k.ADD_X] = shared
    if need_weight:
        dweight = fresh((plan.parts, sizes.routes, sizes.width, sizes.channels), zero=True)
        p[c.D_WEIGHT] = plan.address(dweight)
    if need_bias:
        dbias = fresh((plan.parts, sizes.routes, sizes.channels), zero=True)
        p[k.D_BIAS] = plan.address(dbias)
    if need_state:
        dstate = fresh((sizes.sequences, sizes.routes, sizes.width - 1, sizes.channels))
        p[k.D_INITIAL] = plan.address(dstate)
    plan.run("backward")
    return (
        None if dx is None else dx.to(x.dtype),
        None if dweight is None else _summed(dweight, weight).transpose(1, 2).to(weight.dtype).contiguous(),
        None if dbias is None or bias is None else _summed(dbias, bias).to(bias.dtype),
        None if dstate is None else _channel_last(dstate),
    )


def _summed(parts: Tensor, t: Tensor) -> Tensor:
    """Sum the partial sums of the threads, and over the routes if `t` has size 1 there."""
    total = parts.sum(0)
    return total if t.shape[0] == total.shape[0] else total.sum(0, keepdim=True)


def step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool) -> tuple[Tensor, Tensor] | None:
    """One step without gradients; see `engines` for the contract."""
    key = (
        silu, x.shape, x.stride(), x.dtype, x.is_cpu, weight.shape, weight.stride(), weight.dtype, weight.is_cpu,
        state.shape, state.stride(), state.dtype, state.is_cpu,
        None if bias is None else (bias.shape, bias.stride(), bias.dtype, bias.is_cpu),
    )  # fmt: skip
    plan = _step_plans.find(key, (x, weight, bias, state, silu))
    if plan is None:
        return None
    params, out, following = plan.begin(x, state)
    params[: s.ADDRESSES] = (
        x.data_ptr(), out.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
        state.data_ptr(), following.data_ptr(),
    )  # fmt: skip
    plan.launch(_step_kernel(), params, (x, weight, bias, state, out, following))
    return out, following


def _plan_step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, silu: bool) -> StepPlan | None:
    """Return None for shapes, dtypes or layouts that the compiled step does not support."""
    batch, channels, taps = x.shape[0], x.shape[-1], weight.shape[-1]
    routes = 1 if x.dim() == 2 or state.dim() != 4 else state.shape[1]
    shape: tuple[int, ...] = (batch, channels) if x.dim() == 2 else (batch, routes, channels)
    wanted = [(weight, (*shape[1:], taps)), (bias, shape[1:]), (state, (*shape, taps - 1))]
    for t, size in wanted:
        if t is not None and not (tuple(t.shape) == size and t.dtype in KINDS and t.is_cpu and t.is_contiguous()):
            return None
    if tuple(x.shape) not in (shape, (batch, 1, channels)) or x.dim() != len(shape) or x.stride(-1) != 1:
        return None  # with a route axis, x may have size 1 there
    if not x.is_cpu or x.dtype not in KINDS or state.dtype != torch.float32 or not x.numel() or not routes:
        return None
    bytes_of_x, groups = x.element_size(), -(-channels // s.CHANNELS_OF_TASK)
    params = np.zeros(s.LENGTH, np.int64)
    params[s.ADDRESSES :] = (
        KINDS[x.dtype], bytes_of_x * x.stride(0), bytes_of_x * x.stride(1) if x.dim() == 3 and x.shape[1] > 1 else 0,
        KINDS[weight.dtype], 0 if bias is None else KINDS[bias.dtype], routes, channels, taps, silu, batch,
    )  # fmt: skip
    tasks = batch * routes * groups
    work = batch * routes * channels * taps
    out = torch.empty(shape, dtype=x.dtype, device="meta")
    return plan_of(x, state, out, params, tasks, work, s.scratch_bytes(taps))


_step_plans = StepPlans(_plan_step)
