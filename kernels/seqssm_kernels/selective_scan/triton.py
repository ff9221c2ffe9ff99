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

from seqssm_kernels.contract.calls import ScanCall, ScanSizes
from seqssm_kernels.gpu import plan
from seqssm_kernels.gpu.plan import KEEP, Config, Division
from seqssm_kernels.selective_scan.triton_backward import scan_adjoint, scan_backward
from seqssm_kernels.selective_scan.triton_forward import scan_carry, scan_forward

HUGE = 1e38  # as in `gpu.blocks.rate`
TILE = 128  # channels, as in `gpu.blocks`
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


def strides(tensors: dict[str, Tensor | None], letters: str) -> dict[str, int]:
    """Strides along the first axes, one for each letter, such as `x_b` of `x`; without a name the letter alone.

    Zero where an axis has size 1, so that all routes read a shared tensor there, and where there is no tensor.
    """
    return {
        f"{name}_{letter}" if name else letter: 0 if t is None or t.shape[axis] == 1 else t.stride(axis)
        for name, t in tensors.items()
        for axis, letter in enumerate(letters)
    }


def unit(numbers: tuple[int, ...]) -> int:
    """The largest unit, `ALIGNMENT` or 1, in which all strides are whole numbers."""
    return 1 if any(n % ALIGNMENT for n in numbers) else ALIGNMENT


def by_route(t: Tensor) -> Tensor:
    """B or C, (B, L, R, N), as (R, B, L, N) in float32 and contiguous: a copy, unless it is that already.

    They are small, and a half would have to be widened once more for every channel block. A row is there to be read
    even where there are no places.
    """
    t = t.permute(2, 0, 1, 3).to(torch.float32, memory_format=torch.contiguous_format).contiguous()
    return t if t.numel() else t.new_zeros((1, 1, 1, t.shape[-1]))


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


class Kernels:
    """How a pass of a call is divided, and what its kernels share.

    Attributes:
        sizes: those of the call.
        division: of the backward pass where there is a `dout`, else of the forward pass.
        slots: how many there are.
        grid: of the kernels that work on slots.
        arguments: tensors, strides, sizes and constants under the names that the kernels give them.
    """

    def __init__(self, call: ScanCall, dout: Tensor | None = None) -> None:
        self.sizes = sizes = call.sizes()
        plan.check_steps(sizes.steps)
        packed = call.cu_seqlens is not None
        processors, config = card(call.x)
        self.division = division = plan.divide(sizes, processors, config, dout is not None, packed)
        self.slots = plan.slots(sizes, packed, division.chunk) if division.split else sizes.sequences
        self.grid = (self.slots * sizes.routes * tiles(sizes) * (TILE // division.block),)
        of_places = {"x": call.x, "dt": call.dt, "z": call.z, "dout": dout}
        dense = {name: unit_channels(t) for name, t in of_places.items()}
        by_place = strides(dense, "blr")
        size = unit((*by_place.values(), sizes.channels))
        B, C, D, bias = by_route(call.B), by_route(call.C), unit_channels(call.D), unit_channels(call.dt_bias)
        self.arguments: dict[str, Any] = {
            **dense, "A": call.A, "B": B, "C": C, "D": D, "dt_bias": bias, "order": call.order,
            "cu_seqlens": call.cu_seqlens, "row_of_slot": rows_of_slots(call.cu_seqlens, division, self.slots),
            **{name: n // size for name, n in by_place.items()}, **strides({"A": call.A}, "ren"),
            **strides({"B": B, "C": C, "D": D, "bias": bias}, "r"), **strides({"order": call.order}, "br"),
            "steps": sizes.steps, "length": sizes.length, "channels": sizes.channels // size, "routes": sizes.routes,
            "per_row": division.per_row, "chunk": division.chunk, "kept_per_row": -(-sizes.steps // KEEP),
            "N": sizes.d_state, "BLOCK": division.block, "KEEP": KEEP, "UNIT": size, "UNROLL": config.unroll,
            "SOFTPLUS": call.dt_softplus,
        }  # fmt: skip

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor (slots, R, *shape)."""
        return self.arguments["x"].new_empty((self.slots, self.sizes.routes, *shape), dtype=dtype)

    def states(self) -> Tensor:
        """Room for the state of each slot, in tiles."""
        return self.empty(tiles(self.sizes), self.sizes.d_state, TILE)

    def chunk_results(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Room for what each chunk gives from a zero state: its end, the sum of dt, and whether it has a reset."""
        resets = None if self.arguments["order"] is None else self.empty(dtype=torch.int32)
        return self.states(), self.empty(self.sizes.channels), resets

    def carry(
        self, ends: Tensor, sums: Tensor, resets: Tensor | None, border: Tensor | None, last: Tensor, back: bool
    ) -> None:
        """Carries states, or backward their gradients, over the chunks of each row."""
        sizes = self.sizes
        grid = (sizes.sequences * sizes.routes * sizes.d_state * tiles(sizes),)
        arguments = {**self.arguments, **strides({"": border}, "sren"), "channels": sizes.channels}
        launch(scan_carry, grid, arguments, ends=ends, sums=sums, resets=resets, border=border, last=last, BACK=back)


def forward(call: ScanCall, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the scan; see `engines` for the contract."""
    x, initial_state = call.x, call.initial_state
    kernels = Kernels(call)
    sizes, grid, shared, split = kernels.sizes, kernels.grid, kernels.arguments, kernels.division.split
    # packed sequences may end before L: positions that no step visits must be zero
    everywhere = call.order is None and call.cu_seqlens is None
    out = x.new_empty(sizes.out_shape) if everywhere else x.new_zeros(sizes.out_shape)
    saved = x.new_empty(saved_size(sizes, call.cu_seqlens is not None) if save else 0, dtype=torch.float32)
    if sizes.steps == 0 or sizes.sequences == 0:
        final = (
            x.new_zeros(sizes.state_shape, dtype=torch.float32)
            if initial_state is None
            else initial_state.clone(memory_format=torch.contiguous_format)
        )
        return out, final, saved
    final = x.new_empty(sizes.state_shape, dtype=torch.float32)
    kept = saved if save else None
    with on_device(x):
        if not split:
            launch(
                scan_forward, grid, shared, start_state=initial_state, **strides({"h": initial_state}, "sren"),
                out=out, end_state=final, kept=kept, sums=None, resets=None, SPLIT=False, ENDS=False,
            )  # fmt: skip
            return out, final, saved
        ends, sums, resets = kernels.chunk_results()
        launch(
            scan_forward, grid, shared, start_state=None, **strides({"h": None}, "sren"),
            out=out, end_state=ends, kept=None, sums=sums, resets=resets, SPLIT=True, ENDS=True,
        )  # fmt: skip
        kernels.carry(ends, sums, resets, initial_state, final, back=False)
        launch(
            scan_forward, grid, shared, start_state=ends, **strides({"h": None}, "sren"),
            out=out, end_state=None, kept=kept, sums=None, resets=None, SPLIT=True, ENDS=False,
        )  # fmt: skip
    return out, final, saved


def backward(
    dout: Tensor, dfinal: Tensor | None, call: ScanCall, saved: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the scan; see `engines` for the contract."""
    x, dt, A, B, C, D, z, dt_bias, _, order, _, _ = call
    kernels = Kernels(call, dout)
    sizes, division, grid, slots = kernels.sizes, kernels.division, kernels.grid, kernels.slots
    blocks = tiles(sizes) * (TILE // division.block)
    routes, channels, states = sizes.routes, sizes.channels, sizes.d_state
    need_x, need_dt, need_A, need_B, need_C, need_D, need_z, need_bias, need_initial = needs
    back = plan.steps_back(division.block, need_z)
    working = sizes.steps > 0 and sizes.sequences > 0
    # Where a kernel does not write everything, zeros: an order may leave places out.
    everywhere = order is None and call.cu_seqlens is None and working
    make = torch.empty if everywhere else torch.zeros

    def by_place(t: Tensor | None, need: bool) -> Tensor | None:
        if t is None or not need:
            return None
        dtype = t.dtype if t.shape[2] == routes else torch.float32
        return make(sizes.out_shape, dtype=dtype, device=x.device)

    def partial(need: bool, *shape: int, fresh: Any = torch.zeros) -> Tensor | None:
        return fresh(shape, dtype=torch.float32, device=x.device) if need else None

    dx, ddt, dz = by_place(x, need_x), by_place(dt, need_dt), by_place(z, need_z)
    of_states = (blocks, routes, sizes.batch, sizes.length, states)
    dB, dC = (partial(need, *of_states, fresh=make) for need in (need_B, need_C))
    dA = partial(need_A, slots, routes, tiles(sizes), states, TILE)
    dD, dbias = (partial(need, slots, routes, channels) for need in (need_D, need_bias))
    dinitial = partial(need_initial, *sizes.state_shape, fresh=torch.empty)

    if working:
        with on_device(x):
            scratch = torch.empty(
                grid[0] * (KEEP // back) * states * division.block, dtype=torch.float32, device=x.device
            )
            rates = to_tiles((A * math.log2(math.e)).clamp_(-HUGE, HUGE))
            shared = {**kernels.arguments, "rates": rates, "shared_rates": int(A.shape[0] > 1)}
            if division.split:
                carry, sums, resets = kernels.chunk_results()
                launch(scan_adjoint, grid, shared, ends=carry, sums=sums, resets=resets)
                in_front = x.new_empty(sizes.state_shape, dtype=torch.float32) if dinitial is None else dinitial
                kernels.carry(carry, sums, resets, dfinal, in_front, back=True)
            else:
                carry = kernels.states()
            launch(
                scan_backward, grid, shared, dfinal=None if division.split else dfinal, carry=carry, kept=saved,
                scratch=scratch, dx=dx, ddt=ddt, dz=dz, dA=dA, dB=dB, dC=dC, dD=dD, dbias=dbias,
                dinitial=None if division.split else dinitial, batches=sizes.batch, nil=0,
                **strides({"": dfinal}, "sren"), BACK=back, SPLIT=division.split,
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
