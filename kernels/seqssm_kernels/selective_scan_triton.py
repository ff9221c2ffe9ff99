"""The GPU engine: Triton kernels, one launch where batch, routes and channels fill the card, else three over chunks.

The host reads no tensor, so a call never waits for the card and can be captured in a CUDA graph. Nothing is added up
by atomics: partial sums are written side by side and added in a fixed order, so the same input gives the same bits.
With TRITON_INTERPRET=1 the same kernels run, slowly, on CPU tensors.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from seqssm_kernels import plan_triton as plan
from seqssm_kernels.plan_triton import KEEP, Config, Division
from seqssm_kernels.selective_scan_triton_backward import scan_adjoint, scan_backward
from seqssm_kernels.selective_scan_triton_forward import scan_carry, scan_forward
from seqssm_kernels.shapes import ScanSizes, scan_sizes

HUGE = 1e38  # as in `blocks_triton.rate`
TILE = 128  # channels, as in `blocks_triton`
ALIGNMENT = 16  # strides that are multiples of it let a thread read its channels at once
# Multiply and add are fused, said once here because compilers change their minds about it.
OPTIONS: dict[str, Any] = {"num_warps": 1, "enable_fp_fusion": True}
# Left alone, the assembler spills a few registers of some backward variants for the sake of more warps.
BACK_OPTIONS: dict[str, Any] = {**OPTIONS, "maxnreg": 255}


def tiles(sizes: ScanSizes) -> int:
    return (sizes.channels + TILE - 1) // TILE


def saved_size(sizes: ScanSizes, packed: bool) -> int:
    """Number of kept values: the state before every 64th step, by slot of `KEEP` steps, in tiles."""
    return plan.slots(sizes, packed, KEEP) * sizes.routes * tiles(sizes) * sizes.d_state * TILE


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Makes the card of `x` the current one: kernels start on the current stream of the current card."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def card(x: Tensor) -> tuple[int, Config]:
    """Multiprocessors and configuration of the card of `x`; in the interpreter those of a very small card."""
    if not x.is_cuda:
        return 1, plan.config(9)
    properties = torch.cuda.get_device_properties(x.device)
    return properties.multi_processor_count, plan.config(properties.major)


def unit_channels(t: Tensor | None) -> Tensor | None:
    """`t` with its last axis contiguous in memory: kernels know no other channel stride."""
    return t if t is None or t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def strides(t: Tensor | None, axes: tuple[int, ...], routes: tuple[int, ...] = (2,)) -> tuple[int, ...]:
    """Strides along `axes`, zero where a route axis of size 1 is read by all routes and where there is no tensor."""
    if t is None:
        return (0,) * len(axes)
    return tuple(0 if a in routes and t.shape[a] == 1 else t.stride(a) for a in axes)


def unit(numbers: tuple[int, ...]) -> int:
    """The largest unit, `ALIGNMENT` or 1, in which all strides are whole numbers."""
    return 1 if any(n % ALIGNMENT for n in numbers) else ALIGNMENT


def by_route(t: Tensor) -> Tensor:
    """B or C, (B, L, R, N), as (R, B, L, N) in float32 and contiguous: a copy, unless it is that already.

    They are small, and a half would have to be widened once more for every channel block. A row is there to be read
    even where there are no places.
    """
    t = t.permute(2, 0, 1, 3).to(torch.float32, memory_format=torch.contiguous_format).contiguous()
    return t if t.numel() else t.new_zeros(t.shape[-1])


def to_tiles(A: Tensor) -> Tensor:
    """(R, E, N) as (R, tiles, N, TILE), zero behind the last channel."""
    routes, channels, states = A.shape
    padded = torch.nn.functional.pad(A, (0, 0, 0, -channels % TILE))
    return padded.view(routes, -1, TILE, states).transpose(2, 3).contiguous()


def from_tiles(grad: Tensor, channels: int) -> Tensor:
    """(slots, R, tiles, N, TILE) as (slots, R, E, N)."""
    return grad.transpose(3, 4).flatten(2, 3)[:, :, :channels]


def rows_of_slots(cu_seqlens: Tensor | None, division: Division, count: int) -> Tensor | None:
    """The row of each slot of a split, packed call, found on the device; None where a kernel can compute it."""
    if cu_seqlens is None or not division.split:
        return None
    rows = torch.arange(cu_seqlens.shape[0] - 1, dtype=torch.int32, device=cu_seqlens.device)
    first = torch.div(cu_seqlens[:-1], division.chunk, rounding_mode="floor").to(torch.int32) + rows
    slot = torch.arange(count, dtype=torch.int32, device=cu_seqlens.device)
    return (torch.searchsorted(first, slot, right=True, out_int32=True) - 1).clamp_(min=0)


def launch(kernel: Any, grid: tuple[int], arguments: dict[str, Any], **more: Any) -> None:
    """Starts a kernel with those of `arguments` that it has, and `more`."""
    known = {name: value for name, value in arguments.items() if name in kernel.arg_names}
    kernel[grid](**known, **more, **(BACK_OPTIONS if kernel is scan_backward else OPTIONS))


class Call:
    """The arguments that all kernels of a call share."""

    def __init__(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        dt_softplus: bool,
        order: Tensor | None,
        cu_seqlens: Tensor | None,
        initial_state: Tensor | None,
        dout: Tensor | None = None,
    ) -> None:
        self.sizes = scan_sizes(x, dt, A, B, C, D, z, dt_bias, order, cu_seqlens, initial_state)
        plan.check_steps(self.sizes.steps)
        self.packed = cu_seqlens is not None
        self.places = [unit_channels(t) for t in (x, dt, z)]
        self.dout = unit_channels(dout)
        self.of_states = [by_route(t) for t in (B, C)]
        self.A, self.D, self.dt_bias = A, unit_channels(D), unit_channels(dt_bias)
        self.order, self.cu_seqlens, self.initial_state = order, cu_seqlens, initial_state
        self.dt_softplus = dt_softplus
        self.kept_per_row = -(-self.sizes.steps // KEEP)
        self.processors, self.config = card(x)
        by_place = tuple(n for t in (*self.places, self.dout) for n in strides(t, (0, 1, 2)))
        self.unit = unit((*by_place, self.sizes.channels))
        self.by_place = tuple(n // self.unit for n in by_place)
        self.dout_strides = self.by_place[9:]

    def division(self, backward: bool) -> tuple[Division, int, Tensor | None]:
        """How a pass is divided, its slots, and their rows."""
        division = plan.divide(self.sizes, self.processors, self.config, backward, self.packed)
        count = plan.slots(self.sizes, self.packed, division.chunk) if division.split else self.sizes.sequences
        return division, count, rows_of_slots(self.cu_seqlens, division, count)

    def grid(self, slots: int, block: int) -> tuple[int]:
        return (slots * self.sizes.routes * tiles(self.sizes) * (TILE // block),)

    def tensors(self) -> dict[str, Tensor | None]:
        (x, dt, z), (B, C) = self.places, self.of_states
        return {
            "x": x, "dt": dt, "A": self.A, "B": B, "C": C, "D": self.D, "z": z, "dt_bias": self.dt_bias,
            "order": self.order, "cu_seqlens": self.cu_seqlens,
        }  # fmt: skip

    def numbers(self, division: Division) -> dict[str, int]:
        """Sizes and strides under the names that the kernels give them."""
        sizes = self.sizes
        names = [f"{t}_{axis}" for t in ("x", "dt", "z") for axis in "blr"]
        answer = dict(zip(names, self.by_place))
        for name, t in zip("BC", self.of_states):
            answer[f"{name}_r"] = t.stride(0) if t.dim() == 4 and t.shape[0] > 1 else 0
        answer |= dict(zip(("A_r", "A_e", "A_n"), strides(self.A, (0, 1, 2), routes=(0,))))
        answer["D_r"] = strides(self.D, (0,), routes=(0,))[0]
        answer["bias_r"] = strides(self.dt_bias, (0,), routes=(0,))[0]
        order_b, order_r = (0, 0) if self.order is None else strides(self.order, (0, 1), routes=(0, 1))
        return answer | {
            "order_b": order_b, "order_r": order_r,
            "steps": sizes.steps, "length": sizes.length, "channels": sizes.channels // self.unit,
            "routes": sizes.routes, "per_row": division.per_row, "chunk": division.chunk,
        }  # fmt: skip

    def constants(self, division: Division) -> dict[str, Any]:
        return {
            "N": self.sizes.d_state, "BLOCK": division.block, "KEEP": KEEP, "UNIT": self.unit,
            "SOFTPLUS": self.dt_softplus,
        }  # fmt: skip

    def carry(
        self, division: Division, ends: Tensor, sums: Tensor, resets: Tensor | None, border: Tensor | None,
        last: Tensor, back: bool,
    ) -> None:  # fmt: skip
        """Carries states, or backward their gradients, over the chunks of each row."""
        sizes = self.sizes
        A_r, A_e, A_n = strides(self.A, (0, 1, 2), routes=(0,))
        scan_carry[(sizes.sequences * sizes.routes * sizes.d_state * tiles(sizes),)](
            self.A, self.cu_seqlens, ends, sums, resets, border, last,
            sizes.steps, sizes.channels, sizes.routes, division.per_row, division.chunk, A_r, A_e, A_n,
            *((0, 0, 0, 0) if border is None else border.stride()),
            N=sizes.d_state, BACK=back, **OPTIONS,
        )  # fmt: skip


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    order: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the scan; see `engines` for the contract."""
    call = Call(x, dt, A, B, C, D, z, dt_bias, dt_softplus, order, cu_seqlens, initial_state)
    sizes = call.sizes
    shape = (sizes.batch, sizes.length, sizes.routes, sizes.channels)
    out = x.new_empty(shape) if order is None else x.new_zeros(shape)
    final_shape = (sizes.sequences, sizes.routes, sizes.channels, sizes.d_state)
    saved = x.new_empty(saved_size(sizes, call.packed) if save else 0, dtype=torch.float32)
    if sizes.steps == 0 or sizes.sequences == 0:
        final = (
            x.new_zeros(final_shape, dtype=torch.float32)
            if initial_state is None
            else initial_state.clone(memory_format=torch.contiguous_format)
        )
        return out, final, saved
    final = x.new_empty(final_shape, dtype=torch.float32)

    division, count, row_of_slot = call.division(backward=False)
    tensors, numbers, constants = call.tensors(), call.numbers(division), call.constants(division)
    shared = {
        **tensors, **numbers, **constants, "row_of_slot": row_of_slot, "kept_per_row": call.kept_per_row,
        "UNROLL": call.config.unroll,
    }  # fmt: skip
    grid = call.grid(count, division.block)
    nothing = {"end_state": None, "kept": None, "sums": None, "resets": None}
    with on_device(x):
        if not division.split:
            launch(
                scan_forward, grid, shared, **{**nothing, "end_state": final, "kept": saved if save else None},
                out=out, start_state=initial_state, **_state_strides(initial_state), SPLIT=False, ENDS=False,
            )  # fmt: skip
            return out, final, saved
        ends, sums, resets = chunk_results(call, count, x.device)
        launch(
            scan_forward, grid, shared, **{**nothing, "end_state": ends, "sums": sums, "resets": resets},
            out=out, start_state=None, **_state_strides(None), SPLIT=True, ENDS=True,
        )  # fmt: skip
        call.carry(division, ends, sums, resets, initial_state, final, back=False)
        launch(
            scan_forward, grid, shared, **{**nothing, "kept": saved if save else None},
            out=out, start_state=ends, **_state_strides(None), SPLIT=True, ENDS=False,
        )  # fmt: skip
    return out, final, saved


def chunk_results(call: Call, slots: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Room for what each chunk gives from a zero state: its end, the sum of dt, and whether it has a reset."""
    sizes = call.sizes
    routes, channels = sizes.routes, sizes.channels
    ends = torch.empty((slots, routes, tiles(sizes), sizes.d_state, TILE), dtype=torch.float32, device=device)
    sums = torch.empty((slots, routes, channels), dtype=torch.float32, device=device)
    resets = None if call.order is None else torch.empty((slots, routes), dtype=torch.int32, device=device)
    return ends, sums, resets


def _state_strides(state: Tensor | None) -> dict[str, int]:
    """Strides of a state (rows or slots, R, E, N)."""
    return dict(zip(("h_s", "h_r", "h_e", "h_n"), (0, 0, 0, 0) if state is None else state.stride()))


def backward(
    dout: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    order: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    saved: Tensor,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the scan; see `engines` for the contract."""
    call = Call(x, dt, A, B, C, D, z, dt_bias, dt_softplus, order, cu_seqlens, initial_state, dout)
    sizes = call.sizes
    division, count, row_of_slot = call.division(backward=True)
    blocks = tiles(sizes) * (TILE // division.block)
    routes, channels, states = sizes.routes, sizes.channels, sizes.d_state
    need_x, need_dt, need_A, need_B, need_C, need_D, need_z, need_bias, need_initial = needs
    back = plan.steps_back(division.block, need_z)
    working = sizes.steps > 0 and sizes.sequences > 0
    # Where a kernel does not write everything, zeros: an order may leave places out.
    make = torch.empty if order is None and working else torch.zeros

    def by_place(t: Tensor | None, need: bool) -> Tensor | None:
        if t is None or not need:
            return None
        dtype = t.dtype if t.shape[2] == routes else torch.float32
        return make((sizes.batch, sizes.length, routes, channels), dtype=dtype, device=x.device)

    def partial(need: bool, *shape: int, fresh: Any = torch.zeros) -> Tensor | None:
        return fresh(shape, dtype=torch.float32, device=x.device) if need else None

    dx, ddt, dz = by_place(x, need_x), by_place(dt, need_dt), by_place(z, need_z)
    of_states = (blocks, routes, sizes.batch, sizes.length, states)
    dB, dC = (partial(need, *of_states, fresh=make) for need in (need_B, need_C))
    dA = partial(need_A, count, routes, tiles(sizes), states, TILE)
    dD, dbias = (partial(need, count, routes, channels) for need in (need_D, need_bias))
    dinitial = partial(need_initial, sizes.sequences, routes, channels, states, fresh=torch.empty)

    if working:
        grid = call.grid(count, division.block)
        with on_device(x):
            resets = None
            if division.split:
                carry, sums, resets = chunk_results(call, count, x.device)
            else:
                carry = torch.empty((count, routes, tiles(sizes), states, TILE), dtype=torch.float32, device=x.device)
            scratch = torch.empty(
                grid[0] * (KEEP // back) * states * division.block,
                dtype=torch.float32,
                device=x.device,
            )
            rates = to_tiles((A * math.log2(math.e)).clamp_(-HUGE, HUGE))
            shared = {
                **call.tensors(), **call.numbers(division), **call.constants(division), "row_of_slot": row_of_slot,
                "rates": rates, "shared_rates": int(A.shape[0] > 1), "kept_per_row": call.kept_per_row,
                "dout": call.dout,
                **dict(zip(("dout_b", "dout_l", "dout_r"), call.dout_strides)),
            }  # fmt: skip
            if division.split:
                launch(scan_adjoint, grid, shared, ends=carry, sums=sums, resets=resets, UNROLL=call.config.unroll)
                in_front = (
                    torch.empty((sizes.sequences, routes, channels, states), dtype=torch.float32, device=x.device)
                    if dinitial is None
                    else dinitial
                )
                call.carry(division, carry, sums, resets, dfinal, in_front, back=True)
            launch(
                scan_backward, grid, shared, dfinal=None if division.split else dfinal, carry=carry, kept=saved,
                scratch=scratch, dx=dx, ddt=ddt, dz=dz, dA=dA, dB=dB, dC=dC, dD=dD, dbias=dbias,
                dinitial=None if division.split else dinitial, batches=sizes.batch, nil=0,
                **dict(zip("sren", (0, 0, 0, 0) if dfinal is None else dfinal.stride())),
                BACK=back, SPLIT=division.split,
            )  # fmt: skip
    elif dinitial is not None:
        dinitial.zero_() if dfinal is None else dinitial.copy_(dfinal)

    def of_input(grad: Tensor, t: Tensor, axis: int) -> Tensor:
        """`grad` with all routes along `axis`, as the input is: summed over them where it has only one."""
        return (grad if t.shape[axis] == routes else grad.sum(axis, keepdim=True)).to(t.dtype).contiguous()

    def place_like(grad: Tensor | None, t: Tensor | None) -> Tensor | None:
        return None if grad is None or t is None else of_input(grad, t, 2)

    def state_like(grad: Tensor | None, t: Tensor) -> Tensor | None:
        return None if grad is None else of_input(grad.sum(0).permute(1, 2, 0, 3), t, 2)

    def parameter(grad: Tensor | None, t: Tensor | None) -> Tensor | None:
        return None if grad is None or t is None else of_input(grad.sum(0), t, 0)

    return (
        place_like(dx, x),
        place_like(ddt, dt),
        parameter(None if dA is None else from_tiles(dA, channels), A),
        state_like(dB, B),
        state_like(dC, C),
        parameter(dD, D),
        place_like(dz, z),
        parameter(dbias, dt_bias),
        dinitial,
    )
