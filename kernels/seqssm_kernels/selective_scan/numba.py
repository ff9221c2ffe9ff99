"""The CPU engine: vectorised over 16 channels, tiled over time, threaded over batch and channels.

The plan of a call (strides, sizes, flags) goes to the kernels as one array. The forward pass
keeps the state at every 24th step; the backward pass recomputes what lies between. dB and dC are summed over the
channels of a group inside a tile and over the groups afterwards, in a fixed order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import types
from torch import Tensor

from seqssm_kernels.contract.calls import ScanCall, ScanSizes
from seqssm_kernels.cpu import rows as k
from seqssm_kernels.cpu import threads
from seqssm_kernels.cpu.compile import compiled, source_key
from seqssm_kernels.cpu.lanes import BFLOAT16, FLOAT16, FLOAT32, LANES
from seqssm_kernels.cpu.memory import fresh
from seqssm_kernels.cpu.tiles import STEPS, TABLE
from seqssm_kernels.selective_scan.numba_backward import make_backward
from seqssm_kernels.selective_scan.numba_forward import make_forward

KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
WIDEST = 8  # vectors of 16 channels in a group: its rows of a tile fit the second-level cache
TABLE_ADDRESS = TABLE.ctypes.data
SIGNATURE = types.void(types.int64[::1], types.int64, types.int64, types.int64, types.int64)
SOURCES = (
    "cpu/lanes",
    "cpu/tiles",
    "cpu/rows",
    "selective_scan/numba_forward",
    "selective_scan/numba_backward",
)


@cache
def _kernel(direction: str, unroll: int) -> Any:
    make = make_forward if direction == "forward" else make_backward
    return compiled(make(unroll, source_key(*SOURCES)), SIGNATURE)


@cache
def _adder() -> Any:
    return compiled(k.make_adder(source_key(*SOURCES)), types.void(*[types.int64] * 4))


def _added(parts: Tensor) -> Tensor:
    """The sum over the first axis, in order and in this thread.

    torch's own sum would wake its threads, which then spin for a while beside ours.
    """
    if parts.shape[0] == 1:
        return parts[0]
    total = fresh(tuple(parts.shape[1:]))
    _adder()(parts.data_ptr(), parts.shape[0], total.numel(), total.data_ptr())
    return total


def _unroll(states: int) -> int:
    return 4 if states % 4 == 0 else 2 if states % 2 == 0 else 1


def saved_size(sizes: ScanSizes, packed: bool) -> int:
    """Number of kept values, packed or not: states before every 24th step, (B, R, tiles, blocks, N, 16) in a row."""
    blocks, tiles = -(-sizes.channels // LANES), -(-sizes.steps // STEPS)
    return sizes.batch * sizes.routes * tiles * blocks * sizes.d_state * LANES


def _covers(order: Tensor | None, length: int) -> bool:
    """Whether each row of a checked order visits every place."""
    if order is None:
        return True
    return order.shape[2] >= length and order.numel() > 0 and int((order >= 0).sum(2).min()) == length


class _Plan:
    """Sizes of a call, its division into tasks, and the array that the kernels read."""

    def __init__(self, call: ScanCall) -> None:
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, order, cu_seqlens, initial_state = call
        self.sizes = sizes = call.sizes()
        self.unroll = _unroll(sizes.d_state)
        self.unvisited = not _covers(order, sizes.length)  # whether there are places that stay zero
        work = sizes.batch * sizes.routes * sizes.steps * sizes.channels * sizes.d_state
        blocks = -(-sizes.channels // LANES)
        workers = threads.parts(blocks * sizes.batch, work)
        groups = max(-(-blocks // WIDEST), min(blocks, -(-workers // max(1, sizes.batch))))
        while groups < blocks and groups * sizes.batch < 4 * workers and groups * sizes.batch % workers:
            groups += 1
        self.width = LANES * -(-blocks // groups) if blocks else LANES
        self.groups = -(-sizes.channels // self.width)
        self.tasks = self.groups * sizes.batch
        self.parts = min(workers, max(1, self.tasks))
        self.kept: list[Tensor] = []  # tensors that must live as long as their addresses are used
        p = self.params = [0] * k.LENGTH  # a list: setting items of an array costs ten times as much
        p[k.TABLE] = TABLE_ADDRESS
        for at, tensor in ((k.X, x), (k.DT, dt), (k.B, B), (k.C, C), (k.Z, z)):
            self.tensor(at, tensor)
        route, channel, state = A.stride()
        p[k.A : k.A + 4] = (A.data_ptr(), 4 * route if A.shape[0] > 1 else 0, 4 * channel, 4 * state)
        for at, vector in ((k.D, D), (k.BIAS, dt_bias)):
            if vector is not None:
                vector = self.keep(vector if vector.stride(1) == 1 or sizes.channels == 1 else vector.contiguous())
                p[at], p[at + 1] = vector.data_ptr(), 4 * vector.stride(0) if vector.shape[0] > 1 else 0
        if order is not None:
            p[k.ORDER : k.ORDER + 3] = (
                order.data_ptr(),
                4 * order.stride(0) if order.shape[0] > 1 else 0,
                4 * order.stride(1) if order.shape[1] > 1 else 0,
            )
        if cu_seqlens is not None:
            p[k.CU_SEQLENS] = cu_seqlens.data_ptr()
        if initial_state is not None:
            p[k.INITIAL] = self.keep(initial_state.contiguous()).data_ptr()
        p[k.BATCH : k.BATCH + 8] = (
            sizes.batch, sizes.steps, sizes.routes, sizes.channels, sizes.d_state,
            1 if cu_seqlens is None else sizes.sequences, self.width, dt_softplus,
        )  # fmt: skip
        p[k.A_ROUTES : k.A_ROUTES + 3] = [1 if t is None else t.shape[0] for t in (A, D, dt_bias)]

    def keep(self, tensor: Tensor) -> Tensor:
        self.kept.append(tensor)
        return tensor

    def tensor(self, at: int, tensor: Tensor | None) -> None:
        """Address, kind and byte strides of a (B, L, 1|R, n) tensor whose last axis is dense."""
        if tensor is None:
            return
        b, place, route, channel = tensor.stride()
        if channel != 1 and tensor.shape[3] > 1:
            tensor = self.keep(tensor.contiguous())
            b, place, route, _ = tensor.stride()
        size = tensor.element_size()
        self.params[at : at + 5] = (
            tensor.data_ptr(), KINDS[tensor.dtype], size * b, size * place, size * route if tensor.shape[2] > 1 else 0,
        )  # fmt: skip

    def run(self, direction: str) -> None:
        if self.tasks == 0:
            return
        p = self.params
        offsets, scratch = k.scratch_layout(
            self.width,
            self.sizes.d_state,
            p[k.A_ROUTES],
            p[k.D_ROUTES],
            p[k.BIAS_ROUTES],
            self.unroll,
            direction == "backward",
        )
        p[k.S_PLACES : k.LENGTH] = offsets
        params = np.array(self.params, np.int64)
        threads.run(_kernel(direction, self.unroll), params, self.tasks, self.parts, scratch)


def forward(call: ScanCall, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the scan; see `engines` for the contract."""
    plan = _Plan(call)
    out = fresh(plan.sizes.out_shape, call.x.dtype, zero=plan.unvisited)
    final = fresh(plan.sizes.state_shape)
    saved = fresh((saved_size(plan.sizes, call.cu_seqlens is not None),)) if save else final.new_empty(0)
    plan.tensor(k.OUT, out)
    plan.params[k.FINAL] = final.data_ptr()
    if save:
        plan.params[k.SAVED] = saved.data_ptr()
    plan.run("forward")
    return out, final, saved


def backward(
    dout: Tensor, dfinal: Tensor | None, call: ScanCall, saved: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the scan; see `engines` for the contract."""
    x, dt, A, B, C, D, z, dt_bias, _, _, _, initial_state = call
    plan = _Plan(call)
    sizes, p = plan.sizes, plan.params
    plan.tensor(k.DOUT, dout)
    p[k.SAVED] = saved.data_ptr()
    if dfinal is not None:
        p[k.D_FINAL] = plan.keep(dfinal.contiguous()).data_ptr()
    wanted = dict(zip(("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"), needs))
    grads: dict[str, Tensor] = {}
    for name, at, add, tensor in (("x", k.DX, k.ADD_X, x), ("dt", k.DDT, k.ADD_DT, dt), ("z", k.DZ, k.ADD_Z, z)):
        if tensor is not None and wanted[name]:
            shared = tensor.shape[2] < sizes.routes  # then routes add up, in float32
            kind = torch.float32 if shared else tensor.dtype
            grads[name] = fresh(tuple(tensor.shape), kind, zero=shared or plan.unvisited)
            plan.tensor(at, grads[name])
            p[add] = shared
    for name, at, add, tensor in (("B", k.DB, k.ADD_B, B), ("C", k.DC, k.ADD_C, C)):
        if wanted[name]:
            shared = tensor.shape[2] < sizes.routes
            # one for each group of channels
            partial = fresh((plan.groups * sizes.batch, *tensor.shape[1:]), zero=shared or plan.unvisited)
            plan.tensor(at, partial)
            p[add] = shared
            grads[name] = partial.view(plan.groups, *tensor.shape)
    for name, at, vector in (("A", k.D_A, A), ("D", k.D_D, D), ("dt_bias", k.D_BIAS, dt_bias)):
        if vector is not None and wanted[name]:
            grads[name] = fresh((plan.parts, *vector.shape), zero=True)
            p[at] = grads[name].data_ptr()
    if initial_state is not None and wanted["initial_state"]:
        grads["initial_state"] = fresh(tuple(initial_state.shape))
        p[k.D_INITIAL] = grads["initial_state"].data_ptr()
    plan.run("backward")
    for name in grads.keys() & {"A", "B", "C", "D", "dt_bias"}:
        grads[name] = _added(grads[name])
    for name, tensor in (("x", x), ("dt", dt), ("B", B), ("C", C), ("z", z)):
        if tensor is not None and name in grads:
            grads[name] = grads[name].to(tensor.dtype)
    return tuple(grads.get(name) for name in wanted)
