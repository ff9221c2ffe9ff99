"""The GPU engine: Triton kernels, one launch if batch, routes and channels fill the GPU, otherwise three over chunks.

The host reads no tensor, so a call never synchronises with the device and can be captured in a CUDA graph. There are no
atomics: partial sums are stored separately and added in a fixed order, so results are bitwise reproducible. With
TRITON_INTERPRET=1 the same kernels run, slowly, on CPU tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqssm_kernels.contract.calls import Scales, ScanCall, ScanSizes, out_dtype
from seqssm_kernels.gpu import plan
from seqssm_kernels.gpu.launch import (
    OPTIONS,
    card,
    launch,
    on_device,
    rows_of_division,
    rows_of_slots,
    strides,
    unit,
    unit_channels,
)
from seqssm_kernels.gpu.plan import KEEP
from seqssm_kernels.selective_scan.triton_adjoint import scan_adjoint
from seqssm_kernels.selective_scan.triton_backward import scan_backward
from seqssm_kernels.selective_scan.triton_forward import scan_forward, scan_step
from seqssm_kernels.selective_scan.triton_tables import scan_carry, scan_collect, scan_tables

LANES = 32  # as in `gpu.blocks`
STATES = 16  # as in `triton_tables`
# Without this limit, the assembler spills a few registers of some variants to fit more warps.
FORWARD_OPTIONS: dict[str, Any] = OPTIONS | {"maxnreg": 168}
BACK_OPTIONS: dict[str, Any] = OPTIONS | {"maxnreg": 255}
TABLE_OPTIONS: dict[str, Any] = OPTIONS | {"num_warps": 4}
# Maximum number of scratch values of the backward pass; above it, its programs run in several launches.
SCRATCH = 1 << 26


def _ceil(a: int, b: int) -> int:
    return (a + b - 1) // b


def tiles(sizes: ScanSizes) -> int:
    """Tiles of the channels, see `gpu.blocks`."""
    return _ceil(sizes.channels, plan.tile(sizes.channels))


def saved_size(sizes: ScanSizes, packed: bool) -> int:
    """Number of saved values: the state before every 64th step, one line per `KEEP` steps, in tiles."""
    width = tiles(sizes) * plan.tile(sizes.channels)
    return plan.slots(sizes, packed, KEEP) * sizes.routes * width * sizes.d_state


class Kernels:
    """Division of a pass of a call, and the arguments shared by its kernels.

    Attributes:
        sizes: sizes of the call.
        division: division of the backward pass if there is a `dout`, otherwise of the forward pass.
        slots: number of slots.
        programs: number of programs of the kernels that work on slots.
        lines: number of lines, see `gpu.blocks`.
        arguments: tensors, strides, sizes and constants by kernel parameter name.
    """

    def __init__(self, call: ScanCall, dout: Tensor | None = None, scales: Scales | None = None) -> None:
        self.call, self.sizes, self.scales = call, call.sizes(), scales
        sizes, packed = self.sizes, call.cu_seqlens is not None
        plan.check_steps(sizes.steps)
        processors, config = card(call.x)
        self.division = division = plan.divide(sizes, processors, config, dout is not None, packed)
        self.slots = plan.slots(sizes, packed, division.chunk) if division.split else sizes.sequences
        self.blocks = _ceil(sizes.channels, division.block)
        self.programs = self.slots * sizes.routes * self.blocks
        self.lines = plan.slots(sizes, packed, KEEP)
        of_places = {"x": call.x, "dt": call.dt, "z": call.z, "dout": dout}
        dense = {name: unit_channels(t) for name, t in of_places.items()}
        by_place = strides(dense, "blr")
        size = unit((*by_place.values(), sizes.channels))
        D, bias = unit_channels(call.D), unit_channels(call.dt_bias)
        self.arguments: dict[str, Any] = {
            **dense, "D": D, "dt_bias": bias, "order": call.order, "cu_seqlens": call.cu_seqlens,
            "row_of_slot": rows_of_division(call.cu_seqlens, division, self.slots),
            **{name: n // size for name, n in by_place.items()}, **strides({"D": D, "bias": bias}, "r"),
            **strides({"order": call.order}, "br"), "lines": self.lines,
            "steps": sizes.steps, "length": sizes.length, "channels": sizes.channels // size, "routes": sizes.routes,
            "per_row": division.per_row, "chunk": division.chunk, "kept_per_row": _ceil(sizes.steps, KEEP),
            "N": sizes.d_state, "K": division.block // LANES, "TILE": plan.tile(sizes.channels), "KEEP": KEEP,
            "UNIT": size, "UNROLL": plan.steps_forward(division.block, config), "SOFTPLUS": call.dt_softplus,
            "PREFETCH": call.x.is_cuda,
            **scale_arguments(scales),
        }  # fmt: skip

    def tables(self) -> None:
        """Write the tables of the call, and add them to the arguments."""
        call, sizes = self.call, self.sizes
        with_routes = [(call.B, 2), (call.C, 2), (call.order, 1), *[(scale, 0) for scale in (self.scales or ())[1:]]]
        routed = any(t is not None and t.shape[axis] > 1 for t, axis in with_routes)
        routes, of_rates = (sizes.routes if routed else 1), call.A.shape[0]
        row_of_line = rows_of_slots(call.cu_seqlens, KEEP, self.lines)
        rates = self.empty(of_rates, tiles(sizes), sizes.d_state, plan.tile(sizes.channels))
        pairs = self.empty(routes, self.lines, sizes.d_state, 2, KEEP)
        parts = _ceil(sizes.d_state, STATES)
        self.arguments |= {
            "rates": rates, "pairs": pairs, "rates_r": int(of_rates > 1), "pairs_r": int(routes > 1),
            "row_of_line": row_of_line,
        }  # fmt: skip
        launch(
            scan_tables, parts * (routes * self.lines + of_rates * tiles(sizes)), self.arguments, **TABLE_OPTIONS,
            A=call.A, B=call.B, C=call.C, channels=sizes.channels, line_programs=parts * routes * self.lines,
            **strides({"B": call.B, "C": call.C}, "blrn"), **strides({"A": call.A}, "ren"),
        )  # fmt: skip

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Allocate uninitialised memory on the device of the call."""
        return torch.empty(shape, dtype=dtype, device=self.call.x.device)

    def states(self) -> Tensor:
        """Allocate memory for the state of each slot, in tiles."""
        sizes = self.sizes
        return self.empty(self.slots, sizes.routes, tiles(sizes), sizes.d_state, plan.tile(sizes.channels))

    def chunk_results(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Allocate the results of each chunk from a zero state: final state, sum of dt, and whether it has a reset."""
        sizes = self.sizes
        resets = None if self.call.order is None else self.empty(self.slots, sizes.routes, dtype=torch.int32)
        return self.states(), self.empty(self.slots, sizes.routes, sizes.channels), resets

    def carry(
        self, ends: Tensor, sums: Tensor, resets: Tensor | None, border: Tensor | None, last: Tensor, back: bool
    ) -> None:
        """Carry states, or in the backward pass their gradients, over the chunks of each row."""
        sizes = self.sizes
        groups = plan.carry_groups(self.division.per_row)
        launch(
            scan_carry, sizes.sequences * sizes.routes * sizes.d_state * _ceil(sizes.channels, LANES),
            {**self.arguments, "channels": sizes.channels}, **(OPTIONS | {"num_warps": groups}), ends=ends, sums=sums,
            resets=resets, border=border, last=last, **strides({"": border}, "sren"), GROUPS=groups,
            AHEAD=plan.CARRY_AHEAD, BACK=back,
        )  # fmt: skip


def scale_arguments(scales: Scales | None) -> dict[str, Any]:
    """Return the scales of integers with contiguous last axes, and their strides, by kernel parameter name."""
    names = ("x_scale", "B_scale", "C_scale")
    dense = dict(zip(names, [None] * 3 if scales is None else [scale.contiguous() for scale in scales]))
    return {**dense, **strides(dense, "r")}


def _step(call: ScanCall, scales: Scales | None, out: Tensor, final: Tensor) -> None:
    """One step of every row, without tables."""
    sizes = call.sizes()
    dense = {name: unit_channels(t) for name, t in {"x": call.x, "dt": call.dt, "z": call.z}.items()}
    D, bias, state = unit_channels(call.D), unit_channels(call.dt_bias), call.initial_state
    width = 1 << (sizes.d_state - 1).bit_length()
    block = max(1, 512 // width)
    launch(
        scan_step, sizes.sequences * sizes.routes * _ceil(sizes.channels, block),
        {
            **dense, "A": call.A, "B": call.B, "C": call.C, "D": D, "dt_bias": bias, "order": call.order,
            "cu_seqlens": call.cu_seqlens, "start_state": state, "out": out, "end_state": final,
            "length": sizes.length, "channels": sizes.channels, "routes": sizes.routes, **strides(dense, "blr"),
            **strides({"B": call.B, "C": call.C}, "blrn"), **strides({"A": call.A}, "ren"),
            **strides({"D": D, "bias": bias}, "r"), **strides({"order": call.order}, "br"),
            **strides({"h": state}, "sren"), "N": sizes.d_state, "WIDTH": width, "BLOCK": block,
            "SOFTPLUS": call.dt_softplus, **scale_arguments(scales),
        },
    )  # fmt: skip


def forward(call: ScanCall, save: bool, scales: Scales | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan, with `scales` of integers; see `engines` for the contract."""
    x, initial_state = call.x, call.initial_state
    sizes = call.sizes()
    # Zeros where a step may visit no position: an order leaves some out, and packed sequences may end before L.
    everywhere = call.order is None and call.cu_seqlens is None
    out = (x.new_empty if everywhere else x.new_zeros)(sizes.out_shape, dtype=out_dtype(call))
    saved = x.new_empty(saved_size(sizes, call.cu_seqlens is not None) if save else 0, dtype=torch.float32)
    if sizes.steps == 0 or sizes.sequences == 0:
        final = (
            x.new_zeros(sizes.state_shape, dtype=torch.float32)
            if initial_state is None
            else initial_state.clone(memory_format=torch.contiguous_format)
        )
        return out, final, saved
    final = x.new_empty(sizes.state_shape, dtype=torch.float32)
    with on_device(x):
        if sizes.steps == 1 and not save:
            _step(call, scales, out, final)
        else:
            _scan(Kernels(call, scales=scales), out, final, saved if save else None)
    return out, final, saved


def _scan(kernels: Kernels, out: Tensor, final: Tensor, kept: Tensor | None) -> None:
    initial_state = kernels.call.initial_state
    kernels.tables()
    programs, shared = kernels.programs, kernels.arguments
    if not kernels.division.split:
        launch(
            scan_forward, programs, shared, **FORWARD_OPTIONS, **strides({"h": initial_state}, "sren"),
            start_state=initial_state, run=kernels.states(), out=out, end_state=final, kept=kept, sums=None,
            resets=None, SPLIT=False, ENDS=False,
        )  # fmt: skip
        return
    ends, sums, resets = kernels.chunk_results()
    unused = {"start_state": None, "end_state": None, **strides({"h": None}, "sren"), **FORWARD_OPTIONS}
    launch(
        scan_forward, programs, shared, **unused, run=ends, out=out, kept=None, sums=sums, resets=resets,
        SPLIT=True, ENDS=True,
    )  # fmt: skip
    kernels.carry(ends, sums, resets, initial_state, final, back=False)
    launch(
        scan_forward, programs, shared, **unused, run=ends, out=out, kept=kept, sums=None, resets=None,
        SPLIT=True, ENDS=False,
    )  # fmt: skip


class _Gradients:
    """Memory for the gradients of a call, and their conversion to the shape and dtype of the inputs."""

    def __init__(self, kernels: Kernels, needs: tuple[bool, ...]) -> None:
        call, sizes, self.kernels = kernels.call, kernels.sizes, kernels
        need_x, need_dt, need_A, self.need_B, self.need_C, need_D, need_z, need_bias, need_initial = needs
        routes, device = sizes.routes, call.x.device
        self.working = sizes.steps > 0 and sizes.sequences > 0
        everywhere = self.working and call.order is None and call.cu_seqlens is None
        make = torch.empty if everywhere else torch.zeros

        def by_place(t: Tensor | None, need: bool) -> Tensor | None:
            if t is None or not need:
                return None
            return make(sizes.out_shape, dtype=t.dtype if t.shape[2] == routes else torch.float32, device=device)

        def partial(need: bool, *shape: int) -> Tensor | None:
            return torch.zeros(shape, dtype=torch.float32, device=device) if need else None

        self.x, self.dt, self.z = by_place(call.x, need_x), by_place(call.dt, need_dt), by_place(call.z, need_z)
        of_states = (tiles(sizes), sizes.d_state, plan.tile(sizes.channels))
        self.A = partial(need_A, kernels.slots, routes, *of_states)
        self.D, self.bias = (partial(need, kernels.slots, routes, sizes.channels) for need in (need_D, need_bias))
        self.initial = kernels.empty(*sizes.state_shape) if need_initial else None
        of_lines = (kernels.blocks, routes, kernels.lines, sizes.d_state, 2, KEEP)
        self.pairs = kernels.empty(*of_lines) if self.working and (self.need_B or self.need_C) else None

    def collected(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of B and C from the sums of the channel blocks."""
        kernels, call, sizes = self.kernels, self.kernels.call, self.kernels.sizes
        routed = any(t is not None and t.shape[axis] > 1 for t, axis in ((call.B, 2), (call.C, 2), (call.order, 1)))
        routes = sizes.routes if routed else 1
        everywhere = self.working and call.order is None and call.cu_seqlens is None
        make = torch.empty if everywhere else torch.zeros

        def fresh(t: Tensor, need: bool) -> Tensor | None:
            shape = (sizes.batch, sizes.length, routes, sizes.d_state)
            dtype = t.dtype if t.shape[2] == routes else torch.float32
            return make(shape, dtype=dtype, device=t.device) if need else None

        dB, dC = fresh(call.B, self.need_B), fresh(call.C, self.need_C)
        if self.pairs is not None:
            launch(
                scan_collect, _ceil(sizes.d_state, STATES) * routes * kernels.lines, kernels.arguments, **TABLE_OPTIONS,
                dpairs=self.pairs, dB=dB, dC=dC, routes=routes, part=routes * kernels.lines,
                parts=kernels.blocks * (sizes.routes // routes),
            )  # fmt: skip
        return dB, dC

    def of_inputs(self, dB: Tensor | None, dC: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return all gradients in the shapes of their inputs.

        Those of shared inputs are summed over the routes in order.
        """
        call, sizes = self.kernels.call, self.kernels.sizes

        def like(grad: Tensor | None, t: Tensor | None, axis: int) -> Tensor | None:
            if grad is None or t is None:
                return None
            return (
                (grad if t.shape[axis] == grad.shape[axis] else grad.sum(axis, keepdim=True)).to(t.dtype).contiguous()
            )

        def parameter(grad: Tensor | None, t: Tensor | None) -> Tensor | None:
            return like(None if grad is None else grad.sum(0), t, 0)

        dA = None
        if self.A is not None:  # (slots, R, tiles, N, TILE) as (slots, R, E, N)
            dA = self.A.transpose(3, 4).flatten(2, 3)[:, :, : sizes.channels]
        return (
            like(self.x, call.x, 2), like(self.dt, call.dt, 2), parameter(dA, call.A), like(dB, call.B, 2),
            like(dC, call.C, 2), parameter(self.D, call.D), like(self.z, call.z, 2), parameter(self.bias, call.dt_bias),
            self.initial,
        )  # fmt: skip


def backward(
    dout: Tensor, dfinal: Tensor | None, call: ScanCall, saved: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the scan; see `engines` for the contract."""
    kernels = Kernels(call, dout)
    grads = _Gradients(kernels, needs)
    if grads.working:
        with on_device(call.x):
            kernels.tables()
            _scan_back(kernels, grads, dfinal, saved)
            dB, dC = grads.collected()
    else:
        dB, dC = grads.collected()
        if grads.initial is not None:
            grads.initial.zero_() if dfinal is None else grads.initial.copy_(dfinal)
    return grads.of_inputs(dB, dC)


def _scan_back(kernels: Kernels, grads: _Gradients, dfinal: Tensor | None, saved: Tensor) -> None:
    sizes, division, shared = kernels.sizes, kernels.division, kernels.arguments
    if division.split:
        carry, sums, resets = kernels.chunk_results()
        launch(scan_adjoint, kernels.programs, shared, **FORWARD_OPTIONS, ends=carry, sums=sums, resets=resets)
        before = kernels.empty(*sizes.state_shape) if grads.initial is None else grads.initial
        kernels.carry(carry, sums, resets, dfinal, before, back=True)
    else:
        carry = kernels.states()
    back, again = plan.steps_back(division.block, grads.z is not None)
    per_program = ((KEEP + again) // back * sizes.d_state + 2 * back) * division.block
    at_once = min(kernels.programs, max(1, SCRATCH // per_program))
    scratch = kernels.empty(at_once * per_program)
    for first in range(0, kernels.programs, at_once):
        launch(
            scan_backward, min(at_once, kernels.programs - first), shared, **BACK_OPTIONS, first_program=first,
            dfinal=None if division.split else dfinal, carry=carry, kept=saved, scratch=scratch, dx=grads.x,
            ddt=grads.dt, dz=grads.z, dA=grads.A, dpairs=grads.pairs, dD=grads.D, dbias=grads.bias,
            dinitial=None if division.split else grads.initial, **strides({"": dfinal}, "sren"), BACK=back,
            AGAIN=again, SPLIT=division.split, NEEDS_B=grads.need_B, NEEDS_C=grads.need_C,
        )  # fmt: skip
