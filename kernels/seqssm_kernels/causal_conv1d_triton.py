"""The GPU engine of the causal convolution: one launch forward and one backward, at any length.

See `selective_scan_triton`: the same slots, the same rules (nothing read by the host, no atomics, fixed order of sums).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqssm_kernels import plan_triton as plan
from seqssm_kernels.causal_conv1d_triton_kernels import conv_backward, conv_forward
from seqssm_kernels.order import RESET
from seqssm_kernels.selective_scan_triton import card, launch, on_device, rows_of_slots, strides, unit, unit_channels
from seqssm_kernels.shapes import conv_sizes

UNROLL = 4


class Call:
    """The arguments that both kernels share."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        order: Tensor | None,
        cu_seqlens: Tensor | None,
        state: Tensor | None,
        dout: Tensor | None = None,
        *,
        backward: bool = False,
    ) -> None:
        self.sizes = sizes = conv_sizes(x, weight, bias, order, cu_seqlens, state)
        plan.check_steps(sizes.steps)
        self.working = sizes.steps > 0 and sizes.sequences > 0
        packed = cu_seqlens is not None
        processors, _ = card(x)
        division = plan.divide_convolution(sizes, processors, packed)
        self.slots = plan.slots(sizes, packed, division.chunk) if division.split else sizes.sequences
        self.grid = (self.slots * sizes.routes * -(-sizes.channels // division.block),)
        rows, drows = unit_channels(x), unit_channels(dout)
        by_place = (*strides(rows, (0, 1, 2)), *strides(drows, (0, 1, 2)))
        size = unit((*by_place, sizes.channels))
        names = ("x_b", "x_l", "x_r", "dout_b", "dout_l", "dout_r")
        links = None if order is None or not self.working else _links(order, sizes.length, backward)
        self.arguments: dict[str, Any] = {
            "x": rows, "dout": drows, "weight": weight, "bias": unit_channels(bias), "order": order, "links": links,
            "cu_seqlens": cu_seqlens, "row_of_slot": rows_of_slots(cu_seqlens, division, self.slots), "state": state,
            **{name: n // size for name, n in zip(names, by_place)},
            **dict(zip(("w_r", "w_e", "w_w"), strides(weight, (0, 1, 2), routes=(0,)))),
            "bias_r": strides(bias, (0,), routes=(0,))[0],
            **dict(zip(("order_b", "order_r"), strides(order, (0, 1), routes=(0, 1)))),
            **dict(zip(("links_b", "links_r"), strides(links, (0, 1), routes=(0, 1)))),
            **dict(zip(("state_s", "state_r", "state_e", "state_w"), strides(state, (0, 1, 2, 3), routes=()))),
            "steps": sizes.steps, "length": sizes.length, "channels": sizes.channels // size, "routes": sizes.routes,
            "per_row": division.per_row, "chunk": division.chunk,
            "W": sizes.width, "BLOCK": division.block, "UNROLL": UNROLL, "UNIT": size,
        }  # fmt: skip


def _links(order: Tensor, length: int, forwards: bool) -> Tensor:
    """For each step the last one at or before it that visits or resets, or -1; with `forwards` the next one, or S."""
    steps = torch.arange(order.shape[-1], dtype=torch.int32, device=order.device)
    event = ((order >= 0) & (order < length)) | (order == RESET)
    if not forwards:
        return torch.where(event, steps, -1).cummax(-1).values
    return torch.where(event, steps, order.shape[-1]).to(torch.int32).flip(-1).cummin(-1).values.flip(-1).contiguous()


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    cu_seqlens: Tensor | None,
    state: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Runs the convolution; see `engines` for the contract."""
    call = Call(x, weight, bias, order, cu_seqlens, state)
    sizes = call.sizes
    out_shape = (sizes.batch, sizes.length, sizes.routes, sizes.channels)
    out = x.new_empty(out_shape) if order is None and call.working else x.new_zeros(out_shape)
    final_shape = (sizes.sequences, sizes.routes, sizes.channels, sizes.width - 1)
    if not call.working:
        if state is not None:
            return out, state.clone(memory_format=torch.contiguous_format)
        return out, torch.zeros(final_shape, dtype=torch.float32, device=x.device)
    final = torch.empty(final_shape, dtype=torch.float32, device=x.device)
    with on_device(x):
        launch(conv_forward, call.grid, call.arguments, out=out, final=final, SILU=silu)
    return out, final


def _through_silu(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    cu_seqlens: Tensor | None,
    state: Tensor | None,
) -> Tensor:
    """The gradient of the SiLU's input from that of its output; unvisited places hold anything.

    A pass of its own: the backward kernel walks in reverse and never has the window that a value is made of.
    """
    call = Call(x, weight, bias, order, cu_seqlens, state, dout)
    grad = torch.empty(dout.shape, dtype=dout.dtype, device=dout.device)
    if call.working:
        with on_device(x):
            launch(conv_forward, call.grid, call.arguments, out=grad, final=None, SILU=True)
    return grad


def backward(
    dout: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    cu_seqlens: Tensor | None,
    state: Tensor | None,
    silu: bool,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of the convolution; see `engines` for the contract."""
    if silu:
        dout = _through_silu(dout, x, weight, bias, order, cu_seqlens, state)
    call = Call(x, weight, bias, order, cu_seqlens, state, dout, backward=True)
    sizes, slots = call.sizes, call.slots
    routes, channels, width = sizes.routes, sizes.channels, sizes.width
    need_x, need_weight, need_bias, need_state = needs

    def fresh(need: bool, *shape: int, dtype: torch.dtype = torch.float32, zero: bool = True) -> Tensor | None:
        return (torch.zeros if zero else torch.empty)(shape, dtype=dtype, device=x.device) if need else None

    dx = fresh(
        need_x, sizes.batch, sizes.length, routes, channels,
        dtype=x.dtype if x.shape[2] == routes else torch.float32, zero=order is not None or not call.working,
    )  # fmt: skip
    # Zeros: slots that no row uses are not written.
    dweight = fresh(need_weight, slots, routes, width, channels)
    dbias = fresh(need_bias, slots, routes, channels)
    dstate = fresh(need_state, sizes.sequences, routes, channels, width - 1, zero=False)
    if call.working:
        names = ("dfinal_s", "dfinal_r", "dfinal_e", "dfinal_w")
        with on_device(x):
            launch(
                conv_backward, call.grid, call.arguments, dfinal=dfinal, dx=dx, dweight=dweight, dbias=dbias,
                dstate=dstate, **dict(zip(names, strides(dfinal, (0, 1, 2, 3), routes=()))),
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
