"""The GPU engine of the Mamba-2 scan: matrix products over chunks, three launches forward, six or seven backward.

The same rules as in `selective_scan.triton`: the host reads no tensor, no atomics, sums in a fixed order.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from seqssm_kernels.contract.calls import Scales, SsdCall, SsdSizes, out_dtype
from seqssm_kernels.gpu import plan
from seqssm_kernels.gpu.launch import OPTIONS, card, launch, on_device, rows_of_slots, strides, unit, unit_channels
from seqssm_kernels.ssd_scan.triton_backward import ssd_backward_decays, ssd_backward_group, ssd_backward_inputs
from seqssm_kernels.ssd_scan.triton_forward import ssd_one, ssd_output, ssd_pass, ssd_states

PASS_BLOCK = 256  # values of the state that a program of `ssd_pass` carries
# Without this limit, the assembler spills registers of some variants to fit more warps.
PRODUCT_OPTIONS: dict[str, Any] = OPTIONS | {"maxnreg": 255}
PASS_OPTIONS: dict[str, Any] = OPTIONS | {"num_warps": 2}


def saved_size(sizes: SsdSizes, packed: bool) -> int:
    """Number of saved values: the state before each chunk."""
    return plan.slots(sizes, packed, plan.ssd_chunk(sizes)) * math.prod(sizes.state_shape[1:])


class Kernels:
    """Division of a pass of a call, and the arguments shared by its kernels.

    Attributes:
        sizes: sizes of the call.
        chunk: steps of a chunk.
        slots: number of chunks.
        heads: number of chunks over all routes and heads.
        block: channels and states held by a program.
        arguments: tensors, strides, sizes and constants by kernel parameter name.
        options: compiler options of the kernels that multiply matrices.
    """

    def __init__(self, call: SsdCall, dout: Tensor | None = None, scales: Scales | None = None) -> None:
        self.call, self.sizes = call, call.sizes()
        sizes, packed = self.sizes, call.cu_seqlens is not None
        plan.check_steps(sizes.steps)
        self.working = sizes.steps > 0 and sizes.sequences > 0
        # Whether every position is visited: an order leaves some out, and packed sequences may end before L.
        self.everywhere = self.working and call.order is None and not packed
        self.chunk = plan.ssd_chunk(sizes)
        self.slots = plan.slots(sizes, packed, self.chunk)
        self.heads = self.slots * sizes.routes * sizes.heads
        dy = dout if dout is None or call.z is None else dout * F.silu(call.z)
        of_channels = {"x": call.x, "z": call.z, "o": dout, "g": dy}
        dense = {name: unit_channels(t) for name, t in (of_channels | {"B": call.B, "C": call.C}).items()}
        by_row = strides({name: dense[name] for name in of_channels}, "blrh")
        by_row |= strides({name: dense[name] for name in ("B", "C")}, "blrg")
        size = unit((*by_row.values(), sizes.head_dim, sizes.d_state))
        D = call.D if call.D is None or call.D.dim() == 3 else call.D[..., None]
        self.block = block = plan.ssd_block(sizes, out_dtype(call).itemsize, dout is not None)
        self.arguments: dict[str, Any] = {
            "x": dense["x"], "z": dense["z"], "dout": dense["o"], "dys": dense["g"], "B": dense["B"],
            "C": dense["C"], "dt": call.dt, "w": call.w, "A": call.A, "D": D, "dt_bias": call.dt_bias,
            "order": call.order, "cu_seqlens": call.cu_seqlens,
            "row_of_slot": rows_of_slots(call.cu_seqlens, self.chunk, self.slots),
            **{name: n // size for name, n in by_row.items()}, **strides({"dt": call.dt, "w": call.w}, "blrh"),
            **strides({"A": call.A, "bias": call.dt_bias}, "rh"), **strides({"D": D}, "rhp"),
            **strides({"order": call.order}, "br"), "steps": sizes.steps, "length": sizes.length,
            "routes": sizes.routes, "heads": sizes.heads, "per_group": sizes.heads // sizes.groups,
            "per_row": -(-sizes.steps // self.chunk), "P": sizes.head_dim, "N": sizes.d_state, "Q": self.chunk,
            "channels": sizes.head_dim, "d_state": sizes.d_state, **block._asdict(), "UNIT": size,
            "SOFTPLUS": call.dt_softplus, "PRECISION": precision(call, dout is not None),
            **scale_arguments(scales),
        }  # fmt: skip
        self.blocks = -(-sizes.head_dim // block.PB), -(-sizes.d_state // block.NB)
        self.options = PRODUCT_OPTIONS | {"num_warps": plan.ssd_warps(self.chunk, card(call.x)[1])}

    def empty(self, *shape: int) -> Tensor:
        """Allocate uninitialised float32 memory on the device of the call."""
        return torch.empty(shape, dtype=torch.float32, device=self.call.x.device)

    def states(self) -> Tensor:
        """Allocate one state per chunk."""
        return self.empty(self.slots, *self.sizes.state_shape[1:])

    def carried(self, states: Tensor, border: Tensor | None, last: Tensor, back: bool) -> None:
        """Fill `states` with the state before each chunk, or with the gradient of the state after it.

        Args:
            states: memory for one state per chunk.
            border: state before each row, or gradient of the state after it; None for zero.
            last: output for the state after each row, or the gradient of that before it.
            back: whether this is the backward pass.
        """
        sizes, (of_p, of_n) = self.sizes, self.blocks
        values, lines = ("g", "C") if back else ("x", "B")
        by_row = {f"v_{i}": self.arguments[f"{values}_{i}"] for i in "blrh"}
        by_row |= {f"m_{i}": self.arguments[f"{lines}_{i}"] for i in "blrg"}
        whole = self.empty(self.slots, sizes.routes, sizes.heads)
        launch(
            ssd_states, self.heads * of_p * of_n, self.arguments, **self.options, **by_row,
            values=self.arguments["dys" if back else "x"], lines=self.arguments[lines], states=states,
            whole_decays=whole, BACK=back,
        )  # fmt: skip
        elements = sizes.head_dim * sizes.d_state
        launch(
            ssd_pass, sizes.sequences * sizes.routes * sizes.heads * -(-elements // PASS_BLOCK), self.arguments,
            **PASS_OPTIONS, states=states, whole_decays=whole, border=border, last=last,
            **strides({"h": border}, "srhpn"), BLOCK=PASS_BLOCK, AHEAD=plan.CARRY_AHEAD, BACK=back,
        )  # fmt: skip


def scale_arguments(scales: Scales | None) -> dict[str, Any]:
    """Return the scales of integers, dense in their last axes, and their strides, by kernel parameter name."""
    names = ("x_scale", "B_scale", "C_scale")
    dense = dict(zip(names, [None] * 3 if scales is None else [scale.contiguous() for scale in scales]))
    return {**dense, **strides({"x_scale": dense["x_scale"]}, "rh"),
            **strides({name: dense[name] for name in names[1:]}, "rg")}  # fmt: skip


def precision(call: SsdCall, backward: bool) -> str | int:
    """Precision of the matrix products of a call, see `triton_steps.product`.

    In the backward pass, bfloat16 would be too inaccurate where gradients of the decays cancel.
    """
    dtype = out_dtype(call)
    if dtype == torch.float32:
        return "tf32x3"
    chosen = "bf16" if dtype == torch.bfloat16 and not backward else "tf32"
    return chosen if call.x.is_cuda else {"bf16": 16, "tf32": 13}[chosen]


def forward(call: SsdCall, save: bool, scales: Scales | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Run the scan, with `scales` of integers; see `engines` for the contract."""
    x, initial_state, sizes = call.x, call.initial_state, call.sizes()
    # Zeros where a step may visit no position.
    everywhere = call.order is None and call.cu_seqlens is None
    out = (x.new_empty if everywhere else x.new_zeros)(sizes.out_shape, dtype=out_dtype(call))
    saved = x.new_empty(saved_size(sizes, call.cu_seqlens is not None) if save else 0, dtype=torch.float32)
    if sizes.steps == 0 or sizes.sequences == 0:
        if initial_state is None:
            return out, x.new_zeros(sizes.state_shape, dtype=torch.float32), saved
        return out, initial_state.clone(memory_format=torch.contiguous_format), saved
    final = x.new_empty(sizes.state_shape, dtype=torch.float32)
    with on_device(x):
        if sizes.steps == 1 and not save:
            _one(call, scales, out, final)
            return out, final, saved
        kernels = Kernels(call, scales=scales)
        states = saved if save else kernels.states()
        kernels.carried(states, initial_state, final, back=False)
        launch(
            ssd_output, kernels.heads * kernels.blocks[0], kernels.arguments, **kernels.options, states=states, out=out
        )
    return out, final, saved


def _one(call: SsdCall, scales: Scales | None, out: Tensor, final: Tensor) -> None:
    """One step of every row."""
    kernels, sizes = Kernels(call, scales=scales), call.sizes()
    width = 1 << (sizes.d_state - 1).bit_length()
    block = max(1, 1024 // width)
    size = kernels.arguments["UNIT"]
    by_row = {f"{name}_{i}": size * kernels.arguments[f"{name}_{i}"] for name in "xz" for i in "blrh"}
    by_row |= {f"{name}_{i}": size * kernels.arguments[f"{name}_{i}"] for name in "BC" for i in "blrg"}
    launch(
        ssd_one, sizes.sequences * sizes.routes * sizes.heads * -(-sizes.head_dim // block),
        kernels.arguments | by_row | {"PB": block, "NB": width}, start_state=call.initial_state, out=out,
        end_state=final, **strides({"h": call.initial_state}, "srhpn"),
    )  # fmt: skip


class _Gradients:
    """Memory for the gradients of a call, and their conversion to the shape and dtype of the inputs."""

    def __init__(self, kernels: Kernels, needs: tuple[bool, ...]) -> None:
        call, sizes, device = kernels.call, kernels.sizes, kernels.call.x.device
        need_x, need_dt, need_A, need_B, need_C, need_D, need_z, need_bias, need_w, need_initial = needs
        self.kernels = kernels
        make = torch.empty if kernels.everywhere else torch.zeros

        def by_place(t: Tensor | None, need: bool) -> Tensor | None:
            if t is None or not need:
                return None
            dtype = t.dtype if t.shape[2] == sizes.routes else torch.float32
            return make((sizes.batch, sizes.length, sizes.routes, *t.shape[3:]), dtype=dtype, device=device)

        def partial(need: bool, *shape: int) -> Tensor | None:
            # Zeros: slots that no row uses are not written.
            whole = (kernels.slots, sizes.routes, sizes.heads, *shape)
            return torch.zeros(whole, dtype=torch.float32, device=device) if need else None

        self.x, self.dt, self.z = by_place(call.x, need_x), by_place(call.dt, need_dt), by_place(call.z, need_z)
        self.w = by_place(call.w, need_w)
        self.A, self.bias, self.D = partial(need_A), partial(need_bias), partial(need_D, sizes.head_dim)
        self.initial = kernels.empty(*sizes.state_shape) if need_initial else None
        per_group = sizes.heads // sizes.groups
        programs = kernels.slots * sizes.routes * sizes.groups * kernels.blocks[1]
        self.per_part = plan.ssd_heads_per_part(per_group, programs, card(call.x)[0])
        parts = -(-per_group // self.per_part)

        def of_groups(t: Tensor, need: bool) -> Tensor | None:
            shape = (parts, sizes.batch, sizes.length, sizes.routes, sizes.groups, sizes.d_state)
            dtype = t.dtype if parts == 1 and t.shape[2] == sizes.routes else torch.float32
            return make(shape, dtype=dtype, device=device) if need else None

        self.B, self.C, self.parts = of_groups(call.B, need_B), of_groups(call.C, need_C), parts

    def of_inputs(self) -> tuple[Tensor | None, ...]:
        """Return all gradients in the shapes of their inputs.

        Those of shared inputs are summed over the routes in order.
        """
        call = self.kernels.call

        def like(grad: Tensor | None, t: Tensor | None, axis: int) -> Tensor | None:
            if grad is None or t is None:
                return None
            whole = t.shape[axis] == grad.shape[axis]
            return (grad if whole else grad.sum(axis, keepdim=True)).to(t.dtype).contiguous()

        def parameter(grad: Tensor | None, t: Tensor | None) -> Tensor | None:
            return like(None if grad is None else grad.sum(0), t, 0)

        def of_parts(grad: Tensor | None, t: Tensor) -> Tensor | None:
            return like(None if grad is None else grad[0] if self.parts == 1 else grad.sum(0), t, 2)

        dD = self.D
        if dD is not None and call.D is not None and call.D.dim() == 2:
            dD = dD.sum(-1)
        return (
            like(self.x, call.x, 2), like(self.dt, call.dt, 2), parameter(self.A, call.A), of_parts(self.B, call.B),
            of_parts(self.C, call.C), parameter(dD, call.D), like(self.z, call.z, 2),
            parameter(self.bias, call.dt_bias), like(self.w, call.w, 2), self.initial,
        )  # fmt: skip


def backward(
    dout: Tensor, dfinal: Tensor | None, call: SsdCall, saved: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the scan; see `engines` for the contract."""
    kernels = Kernels(call, dout)
    grads = _Gradients(kernels, needs)
    if kernels.working:
        with on_device(call.x):
            _back(kernels, grads, dfinal, saved)
    elif grads.initial is not None:
        grads.initial.zero_() if dfinal is None else grads.initial.copy_(dfinal)
    return grads.of_inputs()


def _back(kernels: Kernels, grads: _Gradients, dfinal: Tensor | None, saved: Tensor) -> None:
    sizes, dstates = kernels.sizes, kernels.states()
    before = kernels.empty(*sizes.state_shape) if grads.initial is None else grads.initial
    kernels.carried(dstates, dfinal, before, back=True)
    shared = kernels.arguments | {"states": saved, "dstates": dstates}
    if grads.z is not None:
        programs = kernels.heads * kernels.blocks[0]
        launch(ssd_output, programs, shared, **kernels.options, out=grads.z)
    needs_flows = any(grad is not None for grad in (grads.dt, grads.A, grads.bias))
    flows = None
    if needs_flows or grads.D is not None:
        flows = kernels.empty(kernels.slots, sizes.routes, sizes.heads, kernels.chunk)
        launch(ssd_backward_decays, kernels.heads, shared, **kernels.options, dD=grads.D, flows=flows)
    if needs_flows or grads.x is not None or grads.w is not None:
        launch(
            ssd_backward_inputs, kernels.heads, shared, **kernels.options, flows=flows if needs_flows else None,
            dx=grads.x, ddt=grads.dt, dw=grads.w, dA=grads.A, dbias=grads.bias,
            NB=plan.ssd_states_of_inputs(kernels.block, sizes.d_state),
        )  # fmt: skip
    for grad, states, of_B in ((grads.B, dstates, True), (grads.C, saved, False)):
        if grad is not None:
            launch(
                ssd_backward_group, kernels.slots * sizes.routes * sizes.groups * grads.parts * kernels.blocks[1],
                shared | {"states": states}, **kernels.options, found=grad, per_part=grads.per_part,
                rows_of_part=sizes.batch * sizes.length * sizes.routes * sizes.groups, OF_B=of_B,
            )  # fmt: skip
