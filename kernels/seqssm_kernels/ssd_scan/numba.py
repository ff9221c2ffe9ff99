"""The CPU engine: sweeps over tiles of 64 steps with states in registers, threaded over batch and heads.

The plan of a call (strides, sizes, flags) is passed to the kernels as one array. The forward pass saves the state at
every 64th step; the backward pass recomputes the steps between. dB and dC are summed over the heads of a task inside a
tile and over tasks afterwards, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from seqssm_kernels.contract.calls import Scales, SsdCall, SsdSizes, out_dtype
from seqssm_kernels.cpu import rows as k
from seqssm_kernels.cpu.compile import compiled, quietly, source_key
from seqssm_kernels.cpu.lanes import LANES
from seqssm_kernels.cpu.memory import fresh
from seqssm_kernels.cpu.plan import SIGNATURE, Plan, covers
from seqssm_kernels.cpu.sums import added, adder
from seqssm_kernels.ssd_scan import numba_rows as r
from seqssm_kernels.ssd_scan.numba_backward import make_backward
from seqssm_kernels.ssd_scan.numba_forward import make_forward
from seqssm_kernels.ssd_scan.numba_step import make_step, run_step
from seqssm_kernels.ssd_scan.numba_tiles import STEPS

SOURCES = (
    "cpu/lanes",
    "cpu/tiles",
    "cpu/rows",
    "ssd_scan/numba_tiles",
    "ssd_scan/numba_rows",
    "ssd_scan/numba_forward",
    "ssd_scan/numba_backward",
)
STEP_SOURCES = ("cpu/lanes", "cpu/tiles", "cpu/rows", "ssd_scan/numba_step")
CACHE_BYTES = 512 * 1024
"""Maximum size of the states of a task, such that they stay in the cache between tiles."""


@cache
def _kernel(direction: str) -> Any:
    make = make_forward if direction == "forward" else make_backward
    return compiled(make(source_key(*SOURCES)), SIGNATURE, f"ssd_scan {direction}")


def kernels() -> dict[str, Callable[[], Any]]:
    """Kernel titles, each with a function that compiles or loads the kernel silently."""
    found: dict[str, Callable[[], Any]] = {d: partial(quietly, _kernel, d) for d in ("forward", "backward")}
    return {**found, "sums over parts": partial(quietly, adder), "step": partial(quietly, _step_kernel)}


@cache
def _step_kernel() -> Any:
    return compiled(make_step(source_key(*STEP_SOURCES)), SIGNATURE, "ssd_scan step")


def step(*call: Any, scales: Scales | None = None) -> tuple[Tensor, Tensor] | None:
    """One step without gradients, with `scales` of integers; see `engines` for the contract."""
    return run_step(call, _step_kernel) if scales is None else run_step(call, _step_kernel, scales)


def _padded(size: int) -> int:
    return -(-size // LANES) * LANES


def saved_size(sizes: SsdSizes, packed: bool) -> int:
    """Number of saved values, packed or not: states before every 64th step, (B, R, tiles, H, N, P), padded to 16."""
    state = _padded(sizes.head_dim) * _padded(sizes.d_state)
    return sizes.batch * sizes.routes * -(-sizes.steps // STEPS) * sizes.heads * state


def heads_of_task(sizes: SsdSizes, workers: int) -> int:
    """Number of heads of a task: a fraction of a group, or whole groups.

    The maximum whose states fit the cache and which gives every thread the same number of tasks, or at least four.
    """
    per_group = sizes.heads // sizes.groups
    choices = [n for n in range(1, per_group) if per_group % n == 0]
    choices += [per_group * n for n in range(1, sizes.groups + 1)]
    state = 4 * _padded(sizes.head_dim) * _padded(sizes.d_state)
    for n in reversed(choices):
        tasks = -(-sizes.heads // n) * sizes.batch
        if n * state <= CACHE_BYTES and (tasks % workers == 0 or tasks >= 4 * workers):
            return n
    return 1


class _Plan(Plan[SsdSizes]):
    """Execution plan of a scan."""

    def __init__(self, call: SsdCall, scales: Scales | None = None) -> None:
        sizes = call.sizes()
        work = sizes.batch * sizes.routes * sizes.steps * sizes.channels * sizes.d_state
        super().__init__(sizes, work, call.order, call.cu_seqlens)
        self.heads = heads_of_task(sizes, self.workers)
        self.tasks = -(-sizes.heads // self.heads) * sizes.batch
        self.parts = min(self.workers, max(1, self.tasks))
        self.partials = max(1, sizes.heads // sizes.groups // self.heads)
        self.unvisited = not covers(call.order, sizes.length)  # whether some positions stay zero
        p = self.params
        for at, tensor in ((k.X, call.x), (k.DT, call.dt), (k.B, call.B), (k.C, call.C), (k.Z, call.z), (r.W, call.w)):
            self.tensor(at, None if tensor is None else tensor.flatten(3))
        self.scale(scales)
        D = None if call.D is None else call.D.flatten(1)
        for at, vector in ((k.A, call.A), (k.D, D), (k.BIAS, call.dt_bias)):
            self.vector(at, vector)
        if call.initial_state is not None:
            p[k.INITIAL] = self.address(call.initial_state.contiguous())
        p[k.STATES], p[k.SOFTPLUS] = sizes.d_state, call.dt_softplus
        p[k.A_ROUTES : k.A_ROUTES + 3] = [1 if t is None else t.shape[0] for t in (call.A, D, call.dt_bias)]
        p[r.HEADS : r.HEADS + 4] = sizes.heads, sizes.head_dim, sizes.groups, self.heads
        p[r.D_SIZE] = 1 if D is None else D.shape[1] // sizes.heads

    def run(self, direction: str) -> None:
        sizes = self.sizes
        offsets, scratch = r.scratch_layout(self.heads, sizes.head_dim, sizes.d_state, direction == "backward")
        self.params[r.S_PLACES : k.LENGTH] = offsets
        self.execute(_kernel(direction), scratch)


def forward(call: SsdCall, save: bool, scales: Scales | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan, with `scales` of integers; see `engines` for the contract."""
    plan = _Plan(call, scales)
    out = fresh(plan.sizes.out_shape, out_dtype(call), zero=plan.unvisited)
    final = fresh(plan.sizes.state_shape)
    saved = fresh((saved_size(plan.sizes, call.cu_seqlens is not None),)) if save else final.new_empty(0)
    plan.tensor(k.OUT, out.flatten(3))
    plan.params[k.FINAL] = plan.address(final)
    if save:
        plan.params[k.SAVED] = plan.address(saved)
    plan.run("forward")
    return out, final, saved


def backward(
    dout: Tensor, dfinal: Tensor | None, call: SsdCall, saved: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the scan; see `engines` for the contract."""
    plan = _Plan(call)
    sizes, p = plan.sizes, plan.params
    plan.tensor(k.DOUT, dout.flatten(3))
    p[k.SAVED] = plan.address(saved)
    if dfinal is not None:
        p[k.D_FINAL] = plan.address(dfinal.contiguous())
    given = dict(zip(("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "w", "initial_state"), call.inputs()))
    wanted = {name: t for (name, t), need in zip(given.items(), needs) if t is not None and need}
    grads: dict[str, Tensor] = {}
    for name, at, add in (
        ("x", k.DX, k.ADD_X), ("dt", k.DDT, k.ADD_DT), ("z", k.DZ, k.ADD_Z), ("w", r.DW, r.ADD_W)
    ):  # fmt: skip
        if name in wanted:
            shape = tuple(wanted[name].shape)
            shared = shape[2] < sizes.routes  # gradients of the routes are accumulated in float32
            kind = torch.float32 if shared else wanted[name].dtype
            grads[name] = fresh(shape, kind, zero=shared or plan.unvisited)
            plan.tensor(at, grads[name].flatten(3))
            p[add] = shared
    for name, at, add in (("B", k.DB, k.ADD_B), ("C", k.DC, k.ADD_C)):
        if name in wanted:
            shape = tuple(wanted[name].shape)
            shared = shape[2] < sizes.routes
            grads[name] = fresh((plan.partials, *shape), zero=shared or plan.unvisited)
            plan.tensor(at, grads[name].flatten(0, 1).flatten(3))
            p[add] = shared
    for name, at in (("A", k.D_A), ("D", k.D_D), ("dt_bias", k.D_BIAS)):
        if name in wanted:
            grads[name] = fresh((plan.parts, *wanted[name].shape), zero=True)
            p[at] = plan.address(grads[name])
    if "initial_state" in wanted:
        grads["initial_state"] = fresh(sizes.state_shape)
        p[k.D_INITIAL] = plan.address(grads["initial_state"])
    plan.run("backward")
    for name in grads.keys() & {"A", "B", "C", "D", "dt_bias"}:
        grads[name] = added(grads[name])
    return tuple(grads[name].to(t.dtype) if t is not None and name in grads else None for name, t in given.items())
