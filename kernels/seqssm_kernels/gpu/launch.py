"""Kernel launches of the Triton engines: device, strides in units, row tables, compiler options."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from seqssm_kernels.gpu import plan
from seqssm_kernels.gpu.plan import Config, Division

ALIGNMENT = 16  # strides that are multiples of it allow vectorised loads of a thread's channels
# One warp per program. Fusing of multiply and add is set explicitly because the default differs between compilers.
# num_stages is fixed at 1: no loop here gains from software pipelining, and several Triton releases (3.5.1 to 3.7.0)
# are reported to corrupt pipelined loops on Blackwell.
OPTIONS: dict[str, Any] = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True}


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Context that makes the device of `x` current: kernels start on the current stream of the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def card(x: Tensor) -> tuple[int, Config]:
    """Multiprocessors and configuration of the device of `x`; the interpreter pretends to be a very small GPU."""
    if not x.is_cuda:
        return 1, plan.config(9)
    properties = torch.cuda.get_device_properties(x.device)
    return properties.multi_processor_count, plan.config(properties.major)


def unit_channels(t: Tensor | None) -> Tensor | None:
    """Return `t` with a contiguous last axis: kernels support no other channel stride."""
    return t if t is None or t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def strides(tensors: dict[str, Tensor | None], letters: str) -> dict[str, int]:
    """Strides along the first axes, one per letter, such as `x_b` of `x`; without a name the letter alone.

    0 for axes of size 1 (broadcast over routes) and for absent tensors.
    """
    return {
        f"{name}_{letter}" if name else letter: 0 if t is None or t.shape[axis] == 1 else t.stride(axis)
        for name, t in tensors.items()
        for axis, letter in enumerate(letters)
    }


def unit(numbers: tuple[int, ...]) -> int:
    """The largest unit, `ALIGNMENT` or 1, in which all strides are whole numbers."""
    return 1 if any(n % ALIGNMENT for n in numbers) else ALIGNMENT


def rows_of_slots(cu_seqlens: Tensor | None, chunk: int, count: int) -> Tensor | None:
    """Row of each of `count` slots of packed rows, computed on the device; None if rows are not packed."""
    if cu_seqlens is None:
        return None
    rows = torch.arange(cu_seqlens.shape[0] - 1, dtype=torch.int32, device=cu_seqlens.device)
    first = torch.div(cu_seqlens[:-1], chunk, rounding_mode="floor").to(torch.int32) + rows
    slot = torch.arange(count, dtype=torch.int32, device=cu_seqlens.device)
    return (torch.searchsorted(first, slot, right=True, out_int32=True) - 1).clamp_(min=0)


def rows_of_division(cu_seqlens: Tensor | None, division: Division, slots: int) -> Tensor | None:
    """Row of each slot of a packed call that is split; None if a kernel can compute it."""
    return rows_of_slots(cu_seqlens, division.chunk, slots) if division.split else None


def launch(kernel: Any, programs: int, arguments: dict[str, Any], **more: Any) -> None:
    """Launch a kernel with the entries of `arguments` that it declares, and `more`, which may override `OPTIONS`."""
    known = {name: arguments[name] for name in kernel.arg_names if name in arguments}
    kernel[(programs,)](**(OPTIONS | known | more))
