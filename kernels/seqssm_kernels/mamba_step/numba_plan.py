"""Plans of the compiled step of a Mamba layer: supported calls, and the kernel's parameter array."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqssm_kernels.causal_conv1d import numba_step as conv
from seqssm_kernels.cpu import threads
from seqssm_kernels.cpu.compile import compiled, source_key
from seqssm_kernels.cpu.memory import POOLED
from seqssm_kernels.cpu.plan import SIGNATURE
from seqssm_kernels.cpu.steps import StepPlan, StepPlans
from seqssm_kernels.mamba_step import numba_kernel as k
from seqssm_kernels.selective_scan import numba_step as scan

SOURCES = (
    "cpu/lanes",
    "cpu/tiles",
    "cpu/rows",
    "causal_conv1d/numba_step",
    "selective_scan/numba_step",
    "mamba_step/numba_kernel",
)


@cache
def kernel() -> Any:
    """The compiled kernel."""
    return compiled(k.make_step(source_key(*SOURCES)), SIGNATURE, "mamba_step")


def run(xz: Tensor, weights: Any, window: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Run a step; return None for unsupported shapes, dtypes or layouts, and for large batches.

    Args:
        xz: output of `in_proj`, `(B, 2 E)`.
        weights: `MambaWeights`.
        window: window of the convolution, `(B, E, W - 1)` or `(B, 1, E, W - 1)`.
        state: state of the scan, `(B, E, N)` or `(B, 1, E, N)`.
    """
    taps, taps_bias, select, dt, dt_bias, A_log, D = weights
    key = (  # unrolled: a loop takes 1.5 times as long
        xz.shape, xz.stride(), xz.dtype, xz.is_cpu, window.shape, window.stride(), window.dtype, window.is_cpu,
        state.shape, state.stride(), state.dtype, state.is_cpu, taps.shape, taps.stride(), taps.dtype, taps.is_cpu,
        select.shape, select.stride(), select.dtype, select.is_cpu, dt.shape, dt.stride(), dt.dtype, dt.is_cpu,
        A_log.shape, A_log.stride(), A_log.dtype, A_log.is_cpu, D.shape, D.stride(), D.dtype, D.is_cpu,
        None if taps_bias is None else (taps_bias.shape, taps_bias.stride(), taps_bias.dtype, taps_bias.is_cpu),
        None if dt_bias is None else (dt_bias.shape, dt_bias.stride(), dt_bias.dtype, dt_bias.is_cpu),
    )  # fmt: skip
    plan = _plans.find(key, (xz, weights, window, state))
    if plan is None:
        return None
    params, out, following = plan.begin(xz, state)
    new_window = torch.empty_like(window)
    of_dt = 0 if dt_bias is None else dt_bias.data_ptr()
    start, size = xz.data_ptr(), xz.shape[1] * 2  # bytes of half a row of float32
    params[: conv.ADDRESSES] = (
        start, 0, taps.data_ptr(), 0 if taps_bias is None else taps_bias.data_ptr(),
        window.data_ptr(), new_window.data_ptr(),
    )  # fmt: skip
    params[k.SCAN : k.SCAN + scan.NEXT + 1] = (
        0, 0, 0, 0, start + size, out.data_ptr(), A_log.data_ptr(), D.data_ptr(), of_dt,
        state.data_ptr(), following.data_ptr(),
    )  # fmt: skip
    params[k.SELECT], params[k.DT] = select.data_ptr(), dt.data_ptr()
    plan.launch(kernel(), params, (xz, weights, window, state, out, new_window, following))
    return out, new_window, following


def _make_plan(xz: Tensor, weights: Any, window: Tensor, state: Tensor) -> StepPlan | None:
    taps, taps_bias, select, dt, dt_bias, A_log, D = weights
    if xz.dim() != 2 or A_log.dim() != 2 or taps.dim() not in (2, 3) or dt.dim() != 2:
        return None
    batch, (channels, states), width, rank = xz.shape[0], A_log.shape, taps.shape[-1], dt.shape[1]
    wanted = [
        (xz, (batch, 2 * channels)), (select, (rank + 2 * states, channels)), (dt, (channels, rank)),
        (A_log, (channels, states)), (D, (channels,)), (taps_bias, (channels,)), (dt_bias, (channels,)),
    ]  # fmt: skip
    with_axis = [(window, (batch, channels, width - 1)), (state, (batch, channels, states)), (taps, (channels, width))]
    wanted += [(t, shape if t.dim() == len(shape) else (shape[0], 1, *shape[1:])) for t, shape in with_axis]
    for t, shape in wanted:
        if t is not None and not (
            t.is_cpu and t.dtype == torch.float32 and tuple(t.shape) == shape and t.is_contiguous()
        ):
            return None
    work = batch * channels * states
    if not work or not rank or work >= threads.SMALL:  # larger batches use matrix products and threads
        return None
    row = 4 * channels  # bytes
    params = np.zeros(k.LENGTH, np.int64)
    params[conv.X_BATCH], params[conv.ROUTES : conv.LENGTH] = 2 * row, (1, channels, width, True, batch)
    of_scan = params[k.SCAN : k.OWN]
    of_scan[scan.BATCH_STRIDE : scan.BATCH_STRIDE + scan.TENSORS] = (
        row, row, *[k.selected_row(rank, states)] * 2, 2 * row, row,
    )  # fmt: skip
    of_scan[scan.BATCH :] = batch, 1, channels, states, True, True
    params[k.RANK] = rank
    scratch = k.scratch_bytes(batch, channels, width, rank, states)
    return StepPlan(params, (batch, channels), torch.float32, False, state.nbytes < POOLED, 1, work, scratch)


_plans = StepPlans(_make_plan)
