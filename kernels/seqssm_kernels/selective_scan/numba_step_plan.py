"""Signatures and plans of a step of the scan: supported calls, and the kernel's parameter array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqssm_kernels.contract.calls import Scales
from seqssm_kernels.cpu.plan import KINDS, WITH_INTEGERS
from seqssm_kernels.cpu.steps import StepPlan, StepPlans, plan_of
from seqssm_kernels.selective_scan import numba_step as k


def run_step(
    call: tuple[Any, ...], kernel: Callable[[], Any], scales: Scales | None = None
) -> tuple[Tensor, Tensor] | None:
    """Run a step; return None for unsupported shapes, dtypes or layouts.

    Args:
        call: arguments `x, dt, A, B, C, state, D, z, dt_bias, dt_softplus, A_is_log` of `selective_scan_step`.
        kernel: function that returns the compiled kernel.
        scales: scales of integer x, B and C.
    """
    x, dt, A, B, C, state, D, z, dt_bias, dt_softplus, A_is_log = call
    key = (  # unrolled: a loop takes 1.5 times as long
        dt_softplus, A_is_log, x.shape, x.stride(), x.dtype, x.is_cpu, dt.shape, dt.stride(), dt.dtype, dt.is_cpu,
        A.shape, A.stride(), A.dtype, A.is_cpu, B.shape, B.stride(), B.dtype, B.is_cpu,
        C.shape, C.stride(), C.dtype, C.is_cpu, state.shape, state.stride(), state.dtype, state.is_cpu,
        None if D is None else (D.shape, D.stride(), D.dtype, D.is_cpu),
        None if z is None else (z.shape, z.stride(), z.dtype, z.is_cpu),
        None if dt_bias is None else (dt_bias.shape, dt_bias.stride(), dt_bias.dtype, dt_bias.is_cpu),
        None if scales is None else tuple((t.shape, t.dtype, t.is_cpu, t.is_contiguous()) for t in scales),
    )  # fmt: skip
    plan = _plans.find(key, call if scales is None else (*call, scales))
    if plan is None:
        return None
    params, out, following = plan.begin(x, state)
    params[: k.ADDRESSES] = (
        x.data_ptr(), dt.data_ptr(), B.data_ptr(), C.data_ptr(), 0 if z is None else z.data_ptr(), out.data_ptr(),
        A.data_ptr(), 0 if D is None else D.data_ptr(), 0 if dt_bias is None else dt_bias.data_ptr(),
        state.data_ptr(), following.data_ptr(), *((0, 0, 0) if scales is None else [t.data_ptr() for t in scales]),
    )  # fmt: skip
    plan.launch(kernel(), params, (call, scales, out, following))
    return out, following


def _make_plan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, D: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, dt_softplus: bool, A_is_log: bool, scales: Scales | None = None,
) -> StepPlan | None:  # fmt: skip
    shape, states, single = tuple(x.shape), A.shape[-1], (torch.float32,)
    batch, channels, routes = shape[0], shape[-1], 1 if len(shape) == 2 else shape[1]
    per_state = (*shape[:-1], states)
    shared = (batch, 1, channels)
    # the output is like x, or with integers like dt
    like, kinds = (x, KINDS) if scales is None else (dt, WITH_INTEGERS)
    if scales is not None and {x.dtype, B.dtype, C.dtype} != {torch.int8}:
        return None
    of_places = [(x, shape), (dt, shape), (B, per_state), (C, per_state)]
    if z is not None:
        of_places.append((z, shared if len(shape) == 3 and tuple(z.shape) == shared else shape))
        if z.dtype != like.dtype:
            return None
    for t, wanted in of_places:
        if tuple(t.shape) != wanted or t.dtype not in kinds or not t.is_cpu or t.stride(-1) != 1:
            return None
    constants = [(A, (*shape[1:], states)), (state, (*shape, states)), (D, shape[1:]), (dt_bias, shape[1:])]
    constants += zip(scales or (), (shape[1:], per_state[1:], per_state[1:]))
    for one, wanted in constants:
        if one is not None and not (
            tuple(one.shape) == wanted and one.dtype in single and one.is_cpu and one.is_contiguous()
        ):
            return None
    if not x.numel() or not states or like.dtype not in KINDS:
        return None
    out = torch.empty(shape, dtype=like.dtype, device="meta")
    params = np.zeros(k.LENGTH, np.int64)
    for i, one in enumerate((x, dt, B, C, z, out)):
        if one is not None:
            size = one.element_size()
            params[k.KIND + i], params[k.BATCH_STRIDE + i] = kinds[one.dtype], size * one.stride(0)
            params[k.ROUTE_STRIDE + i] = size * one.stride(1) if len(shape) == 3 and one.shape[1] > 1 else 0
    params[k.BATCH :] = batch, routes, channels, states, dt_softplus, A_is_log
    tasks = batch * routes * -(-channels // k.CHANNELS_OF_TASK)
    work = batch * routes * channels * states
    return plan_of(x, state, out, params, tasks, work, k.scratch_bytes(states))


_plans = StepPlans(_make_plan)
