"""Limits of an NVIDIA GPU: measured copy bandwidth, and the rates of its units at its highest clock."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

# Special-function (exp2) and FP32 lanes of a multiprocessor, by compute capability.
LANES = {
    (8, 0): (16, 64),
    (8, 6): (16, 128),
    (8, 9): (16, 128),
    (9, 0): (16, 128),
    (10, 0): (16, 128),
    (12, 0): (16, 128),
}
FORWARD_OPERATIONS, BACKWARD_OPERATIONS = 4, 15  # FP32 instructions for one state update


def timed(run: Callable[[], object], repeats: int = 20, budget_s: float = 3.0) -> list[float]:
    """Sorted seconds of runs by CUDA events, after two warm-up runs; fewer runs if one takes long.

    The L2 cache is overwritten before each run.
    """
    run()
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    once = max(1e-6, start.elapsed_time(end) / 1e3)
    seconds = []
    for _ in range(max(3, min(repeats, int(budget_s / once)))):
        flush.zero_()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return sorted(seconds)


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """Capture a run in a CUDA graph after two warm-up runs; a replay has no launch overhead of the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def bytes_per_second() -> float:
    """Bytes read and written per second by a copy of 1 GB."""
    a = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() / median(timed(lambda: b.copy_(a)))


def products_per_second(dtype: torch.dtype) -> float:
    """Multiplications and additions per second of a large matrix product in `dtype`, float32 in full precision."""
    a = torch.randn(8192, 8192, device="cuda").to(dtype)
    return 2 * 8192**3 / median(timed(lambda: a @ a, 5))


def rates(properties: Any) -> dict[str, float]:
    """Exponentials and FP32 instructions per second, all multiprocessors, at the highest clock of the GPU.

    Args:
        properties: result of `torch.cuda.get_device_properties`. An unknown compute capability is treated as 9.0.
    """
    special, fp32 = LANES.get((properties.major, properties.minor), LANES[9, 0])
    clock = getattr(properties, "clock_rate", 1_755_000) * 1e3
    return {
        "clock_hz": clock,
        "exponentials_per_second": special * properties.multi_processor_count * clock,
        "instructions_per_second": fp32 * properties.multi_processor_count * clock,
        "bytes_per_second": 0.0,
    }


def limit_s(rate: dict[str, float], shape: tuple[int, ...], itemsize: int, backward: bool) -> dict[str, float]:
    """The three limits of a scan with D and without z, in seconds, and the largest.

    Args:
        rate: `rates`, with the measured bandwidth in it.
        shape: (B, L, R, E, N).
        itemsize: bytes of an element of x, dt, B and C.
        backward: forward and backward instead of forward alone.
    """
    batch, length, routes, channels, states = shape
    lines = batch * length * routes
    updates = lines * channels * states
    rows = 8 if backward else 3  # x, dt, out; backward dout, dx, ddt, and x, dt again
    moved = itemsize * lines * (rows * channels + (6 if backward else 2) * states)
    operations = FORWARD_OPERATIONS + (BACKWARD_OPERATIONS if backward else 0)
    found = {
        "memory": moved / rate["bytes_per_second"],
        "exponentials": (2 if backward else 1) * updates / rate["exponentials_per_second"],
        "instructions": operations * updates / rate["instructions_per_second"],
    }
    return {**found, "limit": max(found.values())}


def ssd_limit_s(rate: dict[str, float], shape: tuple[int, ...], itemsize: int, backward: bool) -> dict[str, float]:
    """The two limits of a Mamba-2 scan with D and without z, in seconds, and the largest.

    Counts the products that every algorithm needs: B into the states, and C out of them.

    Args:
        rate: `rates`, with the measured bandwidth and `products_per_second` of the dtype in it.
        shape: (B, L, H, P, G, N).
        itemsize: bytes of an element of x, dt, B and C.
        backward: forward and backward instead of forward alone.
    """
    batch, length, heads, head_dim, groups, states = shape
    steps = batch * length
    of_heads, of_groups = heads * (head_dim + 0.5), 2 * groups * states
    moved = itemsize * steps * ((8 if backward else 2) * of_heads + (3 if backward else 1) * of_groups)
    products = (3 if backward else 1) * 4 * steps * heads * head_dim * states
    found = {"memory": moved / rate["bytes_per_second"], "products": products / rate["products_per_second"]}
    return {**found, "limit": max(found.values())}
