"""The CPU engine: vectorised over 16 channels, tiled over time, threaded over batch and channels.

The plan of a call (strides, sizes, flags) is passed to the kernels as one array. The forward pass saves the state at
every 24th step; the backward pass recomputes the steps between. dB and dC are summed over the channels of a group
inside a tile and over the groups afterwards, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from seqssm_kernels.contract.calls import Scales, ScanCall, ScanSizes, out_dtype
from seqssm_kernels.cpu import rows as k
from seqssm_kernels.cpu.compile import compiled, quietly, source_key
from seqssm_kernels.cpu.lanes import LANES
from seqssm_kernels.cpu.memory import fresh
from seqssm_kernels.cpu.plan import SIGNATURE, Plan, covers
from seqssm_kernels.cpu.sums import added, adder
from seqssm_kernels.cpu.tiles import STEPS, TABLE
from seqssm_kernels.mamba_step import numba_plan as mamba_step
from seqssm_kernels.selective_scan.numba_backward import make_backward
from seqssm_kernels.selective_scan.numba_forward import make_forward
from seqssm_kernels.selective_scan.numba_rows import scratch_layout
from seqssm_kernels.selective_scan.numba_step import make_step
from seqssm_kernels.selective_scan.numba_step_plan import run_step

TABLE_ADDRESS = TABLE.ctypes.data
SOURCES = (
    "cpu/lanes",
    "cpu/tiles",
    "cpu/rows",
    "selective_scan/numba_rows",
    "selective_scan/numba_forward",
    "selective_scan/numba_backward",
)
STEP_SOURCES = ("cpu/lanes", "cpu/tiles", "cpu/rows", "selective_scan/numba_step")
UNROLL = {4: "d_state a multiple of 4", 2: "even d_state", 1: "odd d_state"}
"""Numbers of states that a tile may hold, and the condition for each."""


@cache
def _kernel(direction: str, unroll: int) -> Any:
    make = make_forward if direction == "forward" else make_backward
    return compiled(make(unroll, source_key(*SOURCES)), SIGNATURE, f"selective_scan {direction}, {UNROLL[unroll]}")


def kernels() -> dict[str, Callable[[], Any]]:
    """Kernel titles, each with a function that compiles or loads the kernel silently."""
    found: dict[str, Callable[[], Any]] = {"sums over parts": partial(quietly, adder)}
    for unroll, when in UNROLL.items():
        for direction in ("forward", "backward"):
            found[f"{direction}, {when}"] = partial(quietly, _kernel, direction, unroll)
    found["step"] = partial(quietly, _step_kernel)
    found["step of a Mamba layer"] = partial(quietly, mamba_step.kernel)
    return found


@cache
def _step_kernel() -> Any:
    return compiled(make_step(source_key(*STEP_SOURCES)), SIGNATURE, "selective_scan step")


def step(*call: Any, scales: Scales | None = None) -> tuple[Tensor, Tensor] | None:
    """One step without gradients, with `scales` of integers; see `engines` for the contract."""
    return run_step(call, _step_kernel) if scales is None else run_step(call, _step_kernel, scales)


def layer_step(*call: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    """One step of a Mamba layer between its outer projections, without gradients; see `engines` for the contract."""
    return mamba_step.run(*call)


def _unroll(states: int) -> int:
    return next(unroll for unroll in UNROLL if states % unroll == 0)


def saved_size(sizes: ScanSizes, packed: bool) -> int:
    """Number of saved values, packed or not: states before every 24th step, (B, R, tiles, blocks, N, 16) contiguous."""
    blocks, tiles = -(-sizes.channels // LANES), -(-sizes.steps // STEPS)
    return sizes.batch * sizes.routes * tiles * blocks * sizes.d_state * LANES


class _Plan(Plan[ScanSizes]):
    """Execution plan of a scan."""

    def __init__(self, call: ScanCall, scales: Scales | None = None) -> None:
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, order, cu_seqlens, initial_state = call
        sizes = call.sizes()
        work = sizes.batch * sizes.routes * sizes.steps * sizes.channels * sizes.d_state
        super().__init__(sizes, work, order, cu_seqlens)
        groups = self.least_groups()
        while groups < self.blocks and groups * sizes.batch < 4 * self.workers and groups * sizes.batch % self.workers:
            groups += 1
        self.divide(groups)
        self.unroll = _unroll(sizes.d_state)
        self.unvisited = not covers(order, sizes.length)  # whether some positions stay zero
        p = self.params
        p[k.TABLE] = TABLE_ADDRESS
        for at, tensor in ((k.X, x), (k.DT, dt), (k.B, B), (k.C, C), (k.Z, z)):
            self.tensor(at, tensor)
        self.scale(scales)
        route, channel, state = A.stride()
        p[k.A : k.A + 4] = (self.address(A), 4 * route if A.shape[0] > 1 else 0, 4 * channel, 4 * state)
        self.vector(k.D, D)
        self.vector(k.BIAS, dt_bias)
        if initial_state is not None:
            p[k.INITIAL] = self.address(initial_state.contiguous())
        p[k.STATES], p[k.SOFTPLUS] = sizes.d_state, dt_softplus
        p[k.A_ROUTES : k.A_ROUTES + 3] = [1 if t is None else t.shape[0] for t in (A, D, dt_bias)]

    def run(self, direction: str) -> None:
        p = self.params
        routes = p[k.A_ROUTES : k.A_ROUTES + 3]
        offsets, scratch = scratch_layout(
            self.width, p[k.STATES], *routes, unroll=self.unroll, backward=direction == "backward"
        )
        p[k.OFFSETS : k.LENGTH] = offsets
        self.execute(_kernel(direction, self.unroll), scratch)


def forward(call: ScanCall, save: bool, scales: Scales | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan, with `scales` of integers; see `engines` for the contract."""
    plan = _Plan(call, scales)
    out = fresh(plan.sizes.out_shape, out_dtype(call), zero=plan.unvisited)
    final = fresh(plan.sizes.state_shape)
    saved = fresh((saved_size(plan.sizes, call.cu_seqlens is not None),)) if save else final.new_empty(0)
    plan.tensor(k.OUT, out)
    plan.params[k.FINAL] = plan.address(final)
    if save:
        plan.params[k.SAVED] = plan.address(saved)
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
    p[k.SAVED] = plan.address(saved)
    if dfinal is not None:
        p[k.D_FINAL] = plan.address(dfinal.contiguous())
    wanted = dict(zip(("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"), needs))
    grads: dict[str, Tensor] = {}
    for name, at, add, tensor in (("x", k.DX, k.ADD_X, x), ("dt", k.DDT, k.ADD_DT, dt), ("z", k.DZ, k.ADD_Z, z)):
        if tensor is not None and wanted[name]:
            shared = tensor.shape[2] < sizes.routes  # gradients of the routes are accumulated in float32
            kind = torch.float32 if shared else tensor.dtype
            grads[name] = fresh(tuple(tensor.shape), kind, zero=shared or plan.unvisited)
            plan.tensor(at, grads[name])
            p[add] = shared
    for name, at, add, tensor in (("B", k.DB, k.ADD_B, B), ("C", k.DC, k.ADD_C, C)):
        if wanted[name]:
            shared = tensor.shape[2] < sizes.routes
            # one per group of channels
            partial = fresh((plan.groups * sizes.batch, *tensor.shape[1:]), zero=shared or plan.unvisited)
            plan.tensor(at, partial)
            p[add] = shared
            grads[name] = partial.view(plan.groups, *tensor.shape)
    for name, at, vector in (("A", k.D_A, A), ("D", k.D_D, D), ("dt_bias", k.D_BIAS, dt_bias)):
        if vector is not None and wanted[name]:
            grads[name] = fresh((plan.parts, *vector.shape), zero=True)
            p[at] = plan.address(grads[name])
    if initial_state is not None and wanted["initial_state"]:
        grads["initial_state"] = fresh(tuple(initial_state.shape))
        p[k.D_INITIAL] = plan.address(grads["initial_state"])
    plan.run("backward")
    for name in grads.keys() & {"A", "B", "C", "D", "dt_bias"}:
        grads[name] = added(grads[name])
    for name, tensor in (("x", x), ("dt", dt), ("B", B), ("C", C), ("z", z)):
        if tensor is not None and name in grads:
            grads[name] = grads[name].to(tensor.dtype)
    return tuple(grads.get(name) for name in wanted)
