"""Benchmark the GPU scan against its peers and the limits of the GPU in one run: part of `make gpu-check`.

All measurements use the public functions, in bfloat16 and float32 (dt, B and C as x; A and D float32). The limit is
the largest of: bytes over the bandwidth of a copy measured here, exponentials over the rate of the special-function
units, FP32 instructions (4 forward, 15 backward per state update) over the rate of issue. A peer's time includes the
copies required to convert from our layout; mamba-ssm is also timed in its native layout (`mamba_ssm_own_layout`),
without copies. `graph` is a replay in a CUDA graph, without the host's overhead. Results are printed, and written to
`kernels/benchmarks/results/` after each part.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import limits_gpu
import peers_gpu
import torch
from output import show
from seqssm_kernels import selective_scan, selective_scan_step, ssd_scan
from seqssm_kernels.gpu import plan as plan_triton
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# (B, L, R, E, N) and the name of an order for two routes.
SHAPES: dict[str, tuple[tuple[int, int, int, int, int], str | None]] = {
    "language": ((8, 4096, 1, 2048, 16), None),
    "dna": ((1, 131072, 1, 512, 16), None),
    "genome": ((1, 1048576, 1, 256, 16), None),
    "ecg": ((64, 512, 1, 768, 16), None),
    "series": ((16, 1024, 2, 384, 16), "bidirectional"),
    "slide": ((1, 100000, 2, 1024, 16), "stride(5)"),
}
DOMAINS = tuple(name for name in SHAPES if name != "language")
# Mamba-2: (B, L, H, P, G, N).
SSD_SHAPES = {
    "language": (8, 4096, 32, 64, 1, 128),
    "dna": (1, 131072, 16, 64, 1, 64),
    "series": (16, 1024, 12, 64, 1, 64),
}
PEERS: dict[str, Callable[[], Any]] = {
    "mamba_ssm": peers_gpu.mamba_cuda,
    "mamba_ssm_own_layout": functools.partial(peers_gpu.mamba_cuda, own=True),
    "mamba_ssd": peers_gpu.mamba_ssd,
    "associative_scan": peers_gpu.associative_scan,
    "mamba2": peers_gpu.mamba2,
}
IN_GRAPHS = ("mamba_ssm_own_layout", "mamba2")  # peers that are also timed in a CUDA graph
STEPS = {"one": (1, 2048, 16), "batch": (64, 2048, 16)}
GOALS = {"forward": 1.5, "both": 2.0}
LIMIT_GOALS = {"forward": 2.0, "forward split": 2.7, "both": 3.0, "both split": 3.0}


def order_of(name: str | None, length: int, device: str) -> Tensor | None:
    """Order table (2, L) of a named pair of routes."""
    if name is None:
        return None
    steps = torch.arange(length, dtype=torch.int32, device=device)
    second = steps.flip(0) if name == "bidirectional" else torch.cat([steps[i::5] for i in range(5)])
    return torch.stack([steps, second])


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """x, dt, A, B, C, D as in a newly initialised Mamba; without the route axis for a single route."""
    batch, length, routes, channels, states = shape
    g = torch.Generator(device).manual_seed(0)
    options = {"device": device, "dtype": dtype}
    call = {
        "x": torch.empty(batch, length, routes, channels, **options).normal_(generator=g),
        "dt": torch.empty(batch, length, routes, channels, **options).uniform_(0.001, 0.1, generator=g),
        "A": -torch.arange(1.0, states + 1, device=device).repeat(routes, channels, 1),
        "B": torch.empty(batch, length, routes, states, **options).normal_(generator=g),
        "C": torch.empty(batch, length, routes, states, **options).normal_(generator=g),
        "D": torch.ones(routes, channels, device=device),
    }
    if routes > 1:
        return call
    return {k: t.squeeze(2) if t.dim() == 4 else t.squeeze(0) for k, t in call.items()}


def forward(scan: Callable[..., Tensor], call: dict[str, Tensor]) -> Callable[[], object]:
    def run() -> None:
        with torch.no_grad():
            scan(**call)

    return run


def both(scan: Callable[..., Tensor], call: dict[str, Tensor]) -> Callable[[], object]:
    """Forward and backward with all gradients."""
    call = {k: v.clone().requires_grad_() if v.is_floating_point() else v for k, v in call.items()}
    leaves = [v for v in call.values() if v.requires_grad]
    weight = torch.randn_like(call["x"])

    def run() -> None:
        torch.autograd.grad(scan(**call), leaves, weight)

    return run


PASSES = {"forward": forward, "both": both}


def each(runs: list[Callable[[], object]]) -> Callable[[], object]:
    """Return a function that calls all of `runs` in sequence."""

    def run() -> None:
        for one in runs:
            one()

    return run


def spread(seconds: list[float]) -> dict[str, float]:
    return {"ms": 1e3 * median(seconds), "ms_min": 1e3 * seconds[0], "ms_max": 1e3 * seconds[-1]}


class Bench:
    """The GPU, its limits, the peers, and the timers.

    Args:
        small: whether to run everything at a few steps and channels on the CPU as a smoke test, without measurements.
        peers: names of the peers, all by default.
        case: name in `SHAPES`, or `ssd-` and a name in `SSD_SHAPES`: the only case to run; None for all.
    """

    def __init__(self, small: bool, peers: Sequence[str] | None = None, case: str | None = None) -> None:
        self.small, self.case = small, case
        self.device = "cpu" if small else "cuda"
        self.peers: dict[str, Any] = {name: make() for name, make in PEERS.items() if peers is None or name in peers}
        self.absent = {name: peer for name, peer in self.peers.items() if isinstance(peer, str)}
        if small:
            self.name, self.processors = "none", 1
            names = ("exponentials_per_second", "instructions_per_second", "bytes_per_second")
            self.rate = dict.fromkeys(names, 1e12)
            return
        properties = torch.cuda.get_device_properties(0)
        self.name, self.processors = properties.name, properties.multi_processor_count
        self.capability = properties.major
        self.rate = limits_gpu.rates(properties)
        self.rate["bytes_per_second"] = limits_gpu.bytes_per_second()

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...], str | None]]:
        for name, (shape, order) in SHAPES.items():
            if self.case not in (None, name):
                continue
            yield name, (min(shape[0], 2), 20, shape[2], 16, 4) if self.small else shape, order

    def timed(self, run: Callable[[], object], repeats: int = 20) -> list[float]:
        if not self.small:
            return limits_gpu.timed(run, repeats)
        start = time.perf_counter()
        run()
        return [time.perf_counter() - start]

    def graph_ms(self, run: Callable[[], object], repeats: int = 20) -> float:
        """Median milliseconds of a replay of a run in a CUDA graph."""
        return 1e3 * median(self.timed(run if self.small else limits_gpu.graphed(run), repeats))

    def split(self, shape: tuple[int, ...], backward: bool) -> bool:
        batch, length, routes, channels, states = shape
        sizes = plan_triton.ScanSizes(batch, length, length, routes, channels, states, batch)
        config = plan_triton.config(9 if self.small else self.capability)
        return plan_triton.divide(sizes, self.processors, config, backward, packed=False).split

    def machine(self) -> dict[str, Any]:
        versions = {}
        for package in ("torch", "triton", "mamba-ssm"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[package] = importlib.metadata.version(package)
        return {
            "gpu": self.name, "multiprocessors": self.processors, **self.rate, "system": platform.platform(),
            **versions, "cuda": torch.version.cuda, "absent_peers": self.absent,
        }  # fmt: skip


def speed(bench: Bench) -> list[dict[str, Any]]:
    """Forward, and forward with backward, of each shape, compared with the limits and the peers."""
    table = []
    for name, shape, order_name in bench.shapes():
        for dtype_name, dtype in DTYPES.items():
            call = inputs(shape, dtype, bench.device)
            order = order_of(order_name, shape[1], bench.device)
            with_order = call if order is None else {**call, "order": order}
            for pass_name, make in PASSES.items():
                backward = pass_name == "both"
                split = bench.split(shape, backward)
                limit = limits_gpu.limit_s(bench.rate, shape, call["x"].element_size(), backward)
                row: dict[str, Any] = {"shape": name, "sizes": shape, "dtype": dtype_name, "pass": pass_name}
                run = make(selective_scan, with_order)
                row |= {"split": split, **spread(bench.timed(run)), "graph_ms": bench.graph_ms(run)}
                row |= {f"{key}_ms": 1e3 * value for key, value in limit.items()}
                row["times_limit"] = row["ms"] / row["limit_ms"]
                row["limit_goal"] = LIMIT_GOALS[pass_name + " split" * split]
                for peer_name, peer in bench.peers.items():
                    if peer_name == "mamba2":
                        continue
                    row |= against(bench, row, peer_name, peer, make, with_order)
                if order is not None and not backward:
                    row |= of_routes(bench, shape, dtype, call, order)
                table.append(row)
                show(row)
    return table


def against(
    bench: Bench, row: dict[str, Any], name: str, peer: Any, make: Callable, call: dict[str, Tensor]
) -> dict[str, Any]:
    """A peer's time and the ratio to it, or the reason why it was not measured."""
    if isinstance(peer, str):
        return {}
    if name == "associative_scan" and not bench.small:
        held = 4 * 6 * call["x"].numel() * call["A"].shape[-1]
        if row["pass"] == "both" or held > torch.cuda.mem_get_info()[0]:
            return {f"{name}_absent": "forward only" if row["pass"] == "both" else "does not fit in memory"}
    try:
        if name == "mamba_ssm_own_layout":
            run = each([make(peer, one) for one in peers_gpu.own_layout(call)])
        else:
            run = make(peer, call)
        seconds = bench.timed(run, repeats=7)
        graph = {f"{name}_graph_ms": bench.graph_ms(run, 7)} if name in IN_GRAPHS else {}
    except Exception as error:  # record a peer's failure and continue
        if not bench.small:
            torch.cuda.empty_cache()
        return {f"{name}_absent": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]}
    goal = GOALS[row["pass"]] if row.get("shape") in DOMAINS else 1.0
    found = {
        **graph,
        f"{name}_ms": 1e3 * median(seconds),
        f"times_faster_than_{name}": 1e3 * median(seconds) / row["ms"],
    }
    return {**found, "goal": goal} if name == "mamba_ssm_own_layout" else found


def of_routes(
    bench: Bench, shape: tuple[int, ...], dtype: torch.dtype, call: dict[str, Tensor], order: Tensor
) -> dict[str, float]:
    """Two routes compared with one of twice the channels, and with and without an order table; no merging."""
    batch, length, routes, channels, states = shape
    wide = inputs((batch, length, 1, routes * channels, states), dtype, bench.device)
    runs = {
        "wide": forward(selective_scan, wide),
        "none": forward(selective_scan, call),
        "order": forward(selective_scan, {**call, "order": order}),
    }
    ms = {key: median(bench.timed(run)) for key, run in runs.items()}
    return {"routes_over_one_wide": ms["none"] / ms["wide"], "order_over_none": ms["order"] / ms["none"]}


def ssd_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """x, dt, A, B, C, D as in a newly initialised Mamba-2, without routes."""
    batch, length, heads, head_dim, groups, states = shape
    g = torch.Generator(device).manual_seed(0)
    options = {"device": device, "dtype": dtype}
    return {
        "x": torch.empty(batch, length, heads, head_dim, **options).normal_(generator=g),
        "dt": torch.empty(batch, length, heads, **options).uniform_(0.001, 0.1, generator=g),
        "A": -torch.linspace(1.0, 16.0, heads, device=device),
        "B": torch.empty(batch, length, groups, states, **options).normal_(generator=g),
        "C": torch.empty(batch, length, groups, states, **options).normal_(generator=g),
        "D": torch.ones(heads, device=device),
    }


def ssd(bench: Bench) -> list[dict[str, Any]]:
    """The scan of Mamba-2, forward and with backward, compared with the limits and mamba-ssm's Triton kernels."""
    table = []
    for dtype_name, dtype in DTYPES.items():
        products = 1e12 if bench.small else limits_gpu.products_per_second(dtype)
        for name, full in SSD_SHAPES.items():
            if bench.case not in (None, f"ssd-{name}"):
                continue
            shape = (min(full[0], 2), 20, 2, 8, 1, 4) if bench.small else full
            call = ssd_inputs(shape, dtype, bench.device)
            for pass_name, make in PASSES.items():
                rate = bench.rate | {"products_per_second": products}
                limit = limits_gpu.ssd_limit_s(rate, shape, call["x"].element_size(), pass_name == "both")
                row: dict[str, Any] = {"ssd": name, "sizes": shape, "dtype": dtype_name, "pass": pass_name}
                run = make(ssd_scan, call)
                row |= {**spread(bench.timed(run)), "graph_ms": bench.graph_ms(run)}
                row |= {f"{key}_ms": 1e3 * value for key, value in limit.items()}
                row["times_limit"] = row["ms"] / row["limit_ms"]
                row |= against(bench, row, "mamba2", bench.peers.get("mamba2", "not asked for"), make, call)
                table.append(row)
                show(row)
    return table


def step(bench: Bench) -> list[dict[str, Any]]:
    """One decoding step, called directly and in a CUDA graph."""
    table = []
    for name, (batch, channels, states) in STEPS.items():
        for dtype_name, dtype in DTYPES.items():
            call = inputs((batch, 1, 1, 16 if bench.small else channels, states), dtype, bench.device)
            call = {k: t[:, 0] if t.dim() == 3 else t for k, t in call.items()}
            state = torch.zeros(batch, *call["A"].shape, device=bench.device)

            def run(call: dict[str, Tensor] = call, state: Tensor = state) -> None:
                with torch.no_grad():
                    selective_scan_step(**call, state=state)

            row: dict[str, Any] = {"step": name, "sizes": (batch, channels, states), "dtype": dtype_name}
            row |= {**spread(bench.timed(run, 50)), "graph_ms": bench.graph_ms(run, 50)}
            table.append(row)
            show(row)
    return table


def memory(bench: Bench) -> list[dict[str, Any]]:
    """Peak memory of forward and backward relative to the storage of inputs and output."""
    table = []
    for name, shape, order_name in bench.shapes():
        if bench.small:
            continue
        call = inputs(shape, torch.bfloat16, bench.device)
        order = order_of(order_name, shape[1], bench.device)
        storage = sum(t.numel() * t.element_size() for t in call.values()) + 2 * call["x"].numel()
        run = both(selective_scan, call if order is None else {**call, "order": order})
        call = {}
        run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        table.append({"shape": name, "added_peak_over_storage": (torch.cuda.max_memory_allocated() - before) / storage})
        show(table[-1])
    return table


def tune(bench: Bench, file: Path) -> list[dict[str, Any]]:
    """Time the configurations on the domain shapes and write the best one to a file for SEQSSM_TRITON_CONFIG."""
    candidates: list[dict[str, Any]] = [
        {},
        {"unroll": 4},
        {"unroll": 16},
        {"back_block": 128},
        {"back_block": 32},
        {"block": 32},
        {"block": 128},
    ]
    candidates += [{"fill_forward": 8}, {"fill_forward": 24}, {"fill_backward": 16}]
    candidates += [{"split_forward": 2.0}, {"split_forward": 16.0}, {"split_backward": 2.0}, {"split_backward": 8.0}]
    table = []
    for changes in candidates:
        file.write_text(json.dumps(changes) + "\n")
        os.environ["SEQSSM_TRITON_CONFIG"] = str(file)
        plan_triton.config.cache_clear()
        total = 0.0
        for _, shape, order_name in bench.shapes():
            call: dict[str, Any] = inputs(shape, torch.bfloat16, bench.device)
            order = order_of(order_name, shape[1], bench.device)
            call = call if order is None else {**call, "order": order}
            total += sum(median(bench.timed(make(selective_scan, call), 7)) for make in PASSES.values())
        table.append({"changes": changes, "ms": 1e3 * total})
        show(table[-1])
    best = min(table, key=lambda row: row["ms"])
    file.write_text(json.dumps(best["changes"]) + "\n")
    os.environ.pop("SEQSSM_TRITON_CONFIG")
    plan_triton.config.cache_clear()
    print(f"best: {best['changes'] or 'the shipped configuration'}; written to {file}")
    return table


def summary(found: dict[str, Any]) -> None:
    """Print the table of goals, with misses marked; goals are relative to mamba-ssm in its native layout."""
    print(f"\n{found['machine']['gpu']}: milliseconds, times the limit, times faster than mamba-ssm")
    columns = (
        f"{'ms':>9}",
        f"{'graph':>9}",
        f"{'x limit':>9}",
        f"{'(goal)':>8}",
        f"{'with copies':>13}",
        f"{'own layout':>12}",
        f"{'(goal)':>8}",
    )
    print(f"{'shape':10}{'dtype':7}{'pass':10}{'split':7}{''.join(columns)}")
    for row in found.get("speed", ()):
        copies, own = (row.get(f"times_faster_than_mamba_ssm{name}") for name in ("", "_own_layout"))
        ratios = ["-" if ratio is None else f"{ratio:.2f}" for ratio in (copies, own)]
        goals = [f"({row['limit_goal']})", "" if own is None else f"({row['goal']})"]
        missed = row["times_limit"] > row["limit_goal"] or (own is not None and own < row["goal"])
        print(
            f"{row['shape']:10}{row['dtype']:7}{row['pass']:10}{row['split']!s:7}{row['ms']:9.3f}{row['graph_ms']:9.3f}"
            f"{row['times_limit']:9.2f}{goals[0]:>8}{ratios[0]:>13}{ratios[1]:>12}{goals[1]:>8}"
            f"{'  MISSED' if missed else ''}"
        )
        for key, goal_value in (("routes_over_one_wide", 1.15), ("order_over_none", 1.2)):
            if key in row:
                print(f"{'':10}{key} {row[key]:.2f} (at most {goal_value}){'  MISSED' * (row[key] > goal_value)}")
    for row in found.get("ssd", ()):
        ratio = row.get("times_faster_than_mamba2")
        beside = "-" if ratio is None else f"{ratio:.2f} x mamba-ssm{'  MISSED' * (ratio < 1)}"
        print(
            f"{'ssd ' + row['ssd']:14}{row['dtype']:7}{row['pass']:10}{row['ms']:9.3f}{row['graph_ms']:9.3f}"
            f"{row['times_limit']:9.2f} x limit  {beside}"
        )
    for name, reason in found["machine"]["absent_peers"].items():
        print(f"not compared with {name}: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"speed": speed, "ssd": ssd, "step": step, "memory": memory}
    parser.add_argument("--only", choices=parts, nargs="+")
    cases = [*SHAPES, *(f"ssd-{name}" for name in SSD_SHAPES)]
    parser.add_argument("--peers", choices=PEERS, nargs="*", help="compare with these only")
    parser.add_argument("--prewarm", choices=cases, metavar="CASE", help="run one case once, to compile it")
    parser.add_argument("--tune", type=Path, metavar="FILE", help="write the best configuration to this file")
    parser.add_argument("--dry-run", action="store_true", help="smoke test: run everything at a few steps on the CPU")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("no NVIDIA GPU found; --dry-run runs everything at a few steps on the CPU")
    bench = Bench(options.dry_run, options.peers, options.prewarm)
    if options.prewarm:
        bench.timed = lambda run, repeats=1: [run() or 1.0]  # type: ignore[method-assign, assignment]
        speed(bench)
        ssd(bench)
        step(bench)
        return
    if options.tune:
        tune(bench, options.tune)
        return
    found: dict[str, Any] = {"machine": bench.machine()}
    show(found["machine"])
    target = RESULTS / f"{bench.name.lower().replace(' ', '-')}-{date.today()}.json"
    for part in options.only or parts:
        print(f"\n{part}")
        found[part] = parts[part](bench)
        if not bench.small:  # after each part, because a benchmark may be stopped by a time limit
            RESULTS.mkdir(exist_ok=True)
            target.write_text(json.dumps(found, indent=1) + "\n")
    summary(found)
    print("nothing was measured" if bench.small else f"written: {target}")


if __name__ == "__main__":
    main()
