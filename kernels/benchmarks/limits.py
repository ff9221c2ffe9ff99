"""Measured limits of the processor: multiply-adds in registers, memory bandwidth, matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from llvmlite import ir
from numba import njit, types
from seqssm_kernels.cpu import lanes as v
from seqssm_kernels.cpu.compile import wide_vectors

# independent sums: enough to hide the latency of a multiply-add, few enough to stay in registers
CHAINS = 16 if wide_vectors() else 6


@v.operation(types.float32, types.int64)
def _multiply_add_loop(builder, count):
    before = builder.block
    head, end = builder.append_basic_block("head"), builder.append_basic_block("end")
    builder.branch(head)
    builder.position_at_end(head)
    step = builder.phi(v.I64)
    step.add_incoming(ir.Constant(v.I64, 0), before)
    sums = [builder.phi(v.VF) for _ in range(CHAINS)]
    for i, value in enumerate(sums):
        value.add_incoming(v.floats(1.0 + i), before)
        value.add_incoming(v.muladd(builder, value, v.floats(0.999), v.floats(0.001)), head)
    following = builder.add(step, ir.Constant(v.I64, 1))
    step.add_incoming(following, head)
    builder.cbranch(builder.icmp_signed("<", following, count), head, end)
    builder.position_at_end(end)
    total = sums[0]
    for value in sums[1:]:
        total = builder.fadd(total, value)
    return builder.extract_element(total, ir.Constant(v.I32, 0))


@njit
def _run(count):
    return _multiply_add_loop(count)


def timed(run: Callable[[], object], clock: Callable[[], float], repeats: int) -> list[float]:
    """Sorted seconds of `repeats` runs by `clock`, after one warm-up run."""
    run()
    seconds = []
    for _ in range(repeats):
        start = clock()
        run()
        seconds.append(clock() - start)
    return sorted(seconds)


def multiply_adds_per_second() -> float:
    """16-lane float32 multiply-adds per second on one thread, operands in registers, by CPU time."""
    count = 1_000_000
    return CHAINS * count / median(timed(lambda: _run(count), time.process_time, 5))


def bytes_per_second() -> float:
    """Bytes read and written per second by one thread adding two 64 MB tensors into a third."""
    a, b, out = (torch.ones(16 << 20) for _ in range(3))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = median(timed(lambda: torch.add(a, b, out=out), time.process_time, 5))
    torch.set_num_threads(threads)
    return 3 * 4 * a.numel() / seconds


def matrix_product_scaling(threads: int) -> float:
    """Speed-up of a matrix product on `threads` threads over one, by wall time, a check for an idle machine."""
    a = torch.randn(1024, 1024)
    seconds = {}
    before = torch.get_num_threads()
    for number in (1, threads):
        torch.set_num_threads(number)
        seconds[number] = median(timed(lambda: a @ a, time.perf_counter, 15))
    torch.set_num_threads(before)
    return seconds[1] / seconds[threads]
