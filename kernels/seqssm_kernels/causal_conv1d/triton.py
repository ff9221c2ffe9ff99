"""The GPU engine of the causal convolution: one launch forward and one backward, at any length.

Slots and rules are those of `selective_scan.triton`: the host reads no tensor, no atomics, sums in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqssm_kernels.causal_conv1d.triton_kernels import conv_backward, conv_forward
from seqssm_kernels.contract.calls import ConvCall
from seqssm_kernels.contract.order import RESET
from seqssm_kernels.gpu import plan
from seqssm_kernels.gpu.launch import card, launch, on_device, rows_of_division, strides, unit, unit_channels

UNROLL = 4


class Kernels:
    """How a pass of a call is divided, and the arguments that both kernels share."""

    def __init__(self, call: ConvCall, dout: Tensor | None = None, *, backward: bool = False) -> None:
        self.sizes = sizes = call.sizes()
        plan.check_steps(sizes.steps)
        self.working = sizes.steps > 0 and sizes.sequences > 0
        # Whether every position is visited: an order leaves some out, and packed sequences may end before L.
        self.everywhere = self.working and call.order is None and call.cu_seqlens is None
        order, cu_seqlens, bias = call.order, call.cu_seqlens, unit_channels(call.bias)
        packed = cu_seqlens is not None
        processors, _ = card(call.x)
        division = plan.divide_convolution(sizes, processors, packed)
        self.slots = plan.slots(sizes, packed, division.chunk) if division.split else sizes.sequences
        self.programs = self.slots * sizes.routes * -(-sizes.channels // division.block)
        of_places = {"x": unit_channels(call.x), "dout": unit_channels(dout)}
        by_place = strides(of_places, "blr")
        size = unit((*by_place.values(), sizes.channels))
        links = None if order is None or not self.working else _links(order, sizes.length, backward)
        self.arguments: dict[str, Any] = {
            **of_places, "weight": call.weight, "bias": bias, "order": order, "links": links, "state": call.state,
            "cu_seqlens": cu_seqlens, "row_of_slot": rows_of_division(cu_seqlens, division, self.slots),
            **{name: n // size for name, n in by_place.items()}, **strides({"w": call.weight}, "rew"),
            **strides({"bias": bias}, "r"), **strides({"order": order, "links": links}, "br"),
            **strides({"state": call.state}, "srew"),
            "steps": sizes.steps, "length": sizes.length, "channels": sizes.channels // size, "routes": sizes.routes,
            "per_row": division.per_row, "chunk": division.chunk,
            "W": sizes.width, "BLOCK": division.block, "UNROLL": UNROLL, "UNIT": size,
        }  # fmt: skip


def _links(order: Tensor, length: int, forwards: bool) -> Tensor:
    """For each step, the last step at or before it that visits or resets, or -1; with `forwards` the next one, or S."""
    steps = torch.arange(order.shape[-1], dtype=torch.int32, device=order.device)
    event = ((order >= 0) & (order < length)) | (order == RESET)
    if not forwards:
        return torch.where(event, steps, -1).cummax(-1).values
    return torch.where(event, steps, order.shape[-1]).to(torch.int32).flip(-1).cummin(-1).values.flip(-1).contiguous()


def forward(call: ConvCall) -> tuple[Tensor, Tensor]:
    """Run the convolution; see `engines` for the contract."""
    x, state = call.x, call.state
    kernels = Kernels(call)
    sizes = kernels.sizes
    out = x.new_empty(sizes.out_shape) if kernels.everywhere else x.new_zeros(sizes.out_shape)
    if not kernels.working:
        if state is not None:
            return out, state.clone(memory_format=torch.contiguous_format)
        return out, x.new_zeros(sizes.state_shape, dtype=torch.float32)
    final = x.new_empty(sizes.state_shape, dtype=torch.float32)
    with on_device(x):
        launch(conv_forward, kernels.programs, kernels.arguments, out=out, final=final, SILU=call.silu)
    return out, final


def _through_silu(dout: Tensor, call: ConvCall) -> Tensor:
    """Gradient of the SiLU's input from that of its output; undefined at unvisited positions.

    This is a separate pass: the backward kernel runs in reverse and never holds the window from which a value is
    computed.
    """
    kernels = Kernels(call, dout)
    grad = torch.empty(dout.shape, dtype=dout.dtype, device=dout.device)
    if kernels.working:
        with on_device(call.x):
            launch(conv_forward, kernels.programs, kernels.arguments, out=grad, final=None, SILU=True)
    return grad


def backward(dout: Tensor, dfinal: Tensor | None, call: ConvCall, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Gradients of the convolution; see `engines` for the contract."""
    x, weight, bias = call.x, call.weight, call.bias
    if call.silu:
        dout = _through_silu(dout, call)
    kernels = Kernels(call, dout, backward=True)
    sizes, slots = kernels.sizes, kernels.slots
    routes, channels, width = sizes.routes, sizes.channels, sizes.width
    need_x, need_weight, need_bias, need_state = needs

    def fresh(need: bool, *shape: int, dtype: torch.dtype = torch.float32, zero: bool = True) -> Tensor | None:
        return (torch.zeros if zero else torch.empty)(shape, dtype=dtype, device=x.device) if need else None

    dx = fresh(
        need_x, *sizes.out_shape,
        dtype=x.dtype if x.shape[2] == routes else torch.float32, zero=not kernels.everywhere,
    )  # fmt: skip
    # Zeros: slots that no row uses are not written.
    dweight = fresh(need_weight, slots, routes, width, channels)
    dbias = fresh(need_bias, slots, routes, channels)
    dstate = fresh(need_state, *sizes.state_shape, zero=False)
    if kernels.working:
        with on_device(x):
            launch(
                conv_backward, kernels.programs, kernels.arguments, dfinal=dfinal, dx=dx, dweight=dweight, dbias=dbias,
                dstate=dstate, **strides({"dfinal": dfinal}, "srew"),
            )  # fmt: skip
    elif dstate is not None:
        dstate.zero_() if dfinal is None else dstate.copy_(dfinal)

    def shared(grad: Tensor | None, t: Tensor | None) -> Tensor | None:
        if grad is None or t is None:
            return None
        grad = grad.sum(0)
        return (grad if t.shape[0] == routes else grad.sum(0, keepdim=True)).to(t.dtype).contiguous()

    if dx is not None:
        dx = (dx if x.shape[2] == routes else dx.sum(2, keepdim=True)).to(x.dtype)
    return (
        dx,
        shared(None if dweight is None else dweight.transpose(2, 3), weight),
        shared(dbias, bias),
        dstate,
    )
