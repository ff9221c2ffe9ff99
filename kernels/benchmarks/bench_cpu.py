"""Benchmark the CPU scan against a peer and the machine's limits in one run: `make bench`.

All measurements use the public functions with float32, one thread and CPU time unless stated otherwise. The arithmetic
limit counts 9 vector operations per 16 state updates forward and 16 more backward (2 and 6 for the Mamba-2 scan), at
the rate of multiply-adds in registers that is measured together with each figure. The memory limit counts each tensor
read or written once, at the rate of an addition of two large tensors. Results are printed and written to
`kernels/benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import layers
import limits
import numba
import peers
import torch
from output import show
from seqssm_kernels import causal_conv1d, selective_scan, ssd_scan
from torch import Tensor

SHAPES = {"K1": (1, 4096, 256, 16), "K2": (8, 1024, 256, 16), "K3": (1, 65536, 128, 16)}
FORWARD, BOTH = 9, 25  # vector operations per 16 state updates
PARTS = ("overhead", "decoding", "speed", "ssd", "layers", "threads", "orders", "convolution", "memory")
RESULTS = Path(__file__).parent / "results"


def inputs(shape: tuple[int, int, int, int], full: bool = False) -> dict[str, Any]:
    """x, dt, A, B, C, D as in a newly initialised Mamba: A = -(1..N), dt log-uniform in [1e-3, 0.1]."""
    batch, length, channels, states = shape
    torch.manual_seed(0)
    dt = torch.exp(torch.empty(batch, length, channels).uniform_(-6.9, -2.3))
    call: dict[str, Any] = {
        "x": torch.randn(batch, length, channels),
        "dt": torch.log(torch.expm1(dt)) if full else dt,
        "A": -torch.arange(1.0, states + 1).repeat(channels, 1),
        "B": torch.randn(batch, length, states),
        "C": torch.randn(batch, length, states),
        "D": torch.ones(channels),
    }
    if full:
        call |= {"z": torch.randn(batch, length, channels), "dt_bias": torch.zeros(channels), "dt_softplus": True}
    return call


def with_gradient(call: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v.clone().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in call.items()
    }


def both(scan: Callable[..., Tensor], call: dict[str, Any]) -> Callable[[], None]:
    """Return a function that runs forward and backward with all gradients."""
    call = with_gradient(call)
    leaves = [v for v in call.values() if isinstance(v, Tensor) and v.requires_grad]
    weight = torch.randn_like(call["x"])

    def run() -> None:
        torch.autograd.grad(scan(**call), leaves, weight)

    return run


def forward(scan: Callable[..., Tensor], call: dict[str, Any]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            scan(**call)

    return run


def spread(seconds: list[float]) -> dict[str, float]:
    return {"ms": 1e3 * median(seconds), "ms_min": 1e3 * seconds[0], "ms_max": 1e3 * seconds[-1]}


def floor_bytes(shape: tuple[int, int, int, int], backward: bool) -> int:
    """Minimum memory traffic in bytes: x, dt, out; backward also dout, dx, ddt and x, dt again."""
    batch, length, channels, states = shape
    rows = 8 if backward else 3
    return 4 * batch * length * (rows * channels + (6 if backward else 2) * states)


def speed(repeats: int, pscan: Any) -> list[dict[str, Any]]:
    """Forward and forward + backward of each shape, compared with the limits and the peer."""
    table = []
    for name, shape in SHAPES.items():
        updates = shape[0] * shape[1] * shape[2] * shape[3] / 16
        for title, full in (("plain", False), ("z, softplus, bias", True)):
            call = inputs(shape, full)
            for pass_name, make, operations in (("forward", forward, FORWARD), ("both", both, BOTH)):
                seconds = limits.timed(make(selective_scan, call), time.process_time, repeats)
                rate = limits.multiply_adds_per_second()
                row = {"shape": name, "options": title, "pass": pass_name, **spread(seconds)}
                row["arithmetic_limit_ms"] = 1e3 * updates * operations / rate
                row["memory_limit_ms"] = 1e3 * floor_bytes(shape, pass_name == "both") / limits.bytes_per_second()
                row["times_arithmetic_limit"] = row["ms"] / row["arithmetic_limit_ms"]
                row["times_both_limits"] = row["ms"] / (row["arithmetic_limit_ms"] + row["memory_limit_ms"])
                if pscan is not None and not full:

                    def peer(**call: Tensor) -> Tensor:
                        return peers.mambapy_scan(pscan, **call)

                    row["mambapy_ms"] = 1e3 * median(
                        limits.timed(make(peer, call), time.process_time, 1 if name == "K3" else 3)
                    )
                    row["times_faster_than_mambapy"] = row["mambapy_ms"] / row["ms"]
                table.append(row)
                show(row)
    return table


SSD_FORWARD, SSD_BOTH = 2, 8  # vector operations per 16 state updates


def ssd_inputs(states: int, full: bool = False) -> dict[str, Any]:
    """The Mamba-2 scan of (1, 4096, 8 heads of 64), one group; A from -1 to -16, dt log-uniform in [1e-3, 0.1]."""
    torch.manual_seed(0)
    dt = torch.exp(torch.empty(1, 4096, 8).uniform_(-6.9, -2.3))
    call: dict[str, Any] = {
        "x": torch.randn(1, 4096, 8, 64),
        "dt": torch.log(torch.expm1(dt)) if full else dt,
        "A": -torch.linspace(1, 16, 8),
        "B": torch.randn(1, 4096, 1, states),
        "C": torch.randn(1, 4096, 1, states),
    }
    if full:
        call |= {"D": torch.ones(8), "z": torch.randn(1, 4096, 8, 64), "dt_bias": torch.zeros(8), "dt_softplus": True}
    return call


def as_selective(call: dict[str, Any]) -> dict[str, Any]:
    """The same call for `selective_scan`: A and dt repeated over the channels of a head."""
    channels, states = call["x"].shape[3], call["B"].shape[3]
    return {
        "x": call["x"].flatten(2),
        "dt": call["dt"].repeat_interleave(channels, 2),
        "A": call["A"].repeat_interleave(channels)[:, None].repeat(1, states),
        "B": call["B"].squeeze(2),
        "C": call["C"].squeeze(2),
    }


def ssd(repeats: int) -> list[dict[str, Any]]:
    """The Mamba-2 scan compared with its limit, chunked PyTorch at its best chunk size, and `selective_scan`."""
    table = []
    for states in (64, 128):
        updates = 4096 * 512 * states / 16
        for title, full in (("plain", False), ("D, z, softplus, bias", True)):
            call = ssd_inputs(states, full)
            for pass_name, make, operations in (("forward", forward, SSD_FORWARD), ("both", both, SSD_BOTH)):
                seconds = limits.timed(make(ssd_scan, call), time.process_time, repeats)
                row = {"states": states, "options": title, "pass": pass_name, **spread(seconds)}
                row["arithmetic_limit_ms"] = 1e3 * updates * operations / limits.multiply_adds_per_second()
                row["times_arithmetic_limit"] = row["ms"] / row["arithmetic_limit_ms"]
                if not full:
                    others = {
                        f"chunks_of_{chunk}_ms": (partial(peers.chunked_ssd, chunk=chunk), call)
                        for chunk in (32, 64, 128)
                    }
                    others["selective_scan_ms"] = (selective_scan, as_selective(call))
                    for name, (scan, arguments) in others.items():
                        seconds = limits.timed(make(scan, arguments), time.process_time, 3)
                        row[name] = 1e3 * median(seconds)
                    best = min(row[name] for name in others if name.startswith("chunks"))
                    row["times_faster_than_chunks"] = best / row["ms"]
                    row["times_faster_than_selective_scan"] = row["selective_scan_ms"] / row["ms"]
                table.append(row)
                show(row)
    return table


def threads(repeats: int) -> list[dict[str, Any]]:
    """Speed-up of two threads over one in wall time, compared with that of a matrix product."""
    table = []
    for name, shape in SHAPES.items():
        for pass_name, make in (("forward", forward), ("both", both)):
            run = make(selective_scan, inputs(shape))
            seconds = {}
            for number in (1, 2):
                torch.set_num_threads(number)
                seconds[number] = median(limits.timed(run, time.perf_counter, repeats))
            product = limits.matrix_product_scaling(2)
            torch.set_num_threads(1)
            row = {"shape": name, "pass": pass_name, "scan_scaling": seconds[1] / seconds[2], "matrix_scaling": product}
            table.append({**row, "ratio": row["scan_scaling"] / product})
            show(table[-1])
    return table


def orders(repeats: int) -> list[dict[str, Any]]:
    """Forward along order tables, compared with no table."""
    table = []
    for name, shape in SHAPES.items():
        length = shape[1]
        call = inputs(shape)
        steps = torch.arange(length, dtype=torch.int32)
        tables = {
            "identity": steps,
            "reverse": steps.flip(0),
            "stride(5)": torch.cat([steps[i::5] for i in range(5)]),
            "random": torch.randperm(length, dtype=torch.int32),
        }
        runs = {"none": forward(selective_scan, call)}
        runs |= {title: forward(selective_scan, {**call, "order": order[None]}) for title, order in tables.items()}
        seconds: dict[str, list[float]] = {title: [] for title in runs}
        for _ in range(repeats):  # alternating, so that disturbances affect all equally
            for title, run in runs.items():
                seconds[title] += limits.timed(run, time.process_time, 1)
        base = median(seconds["none"])
        row = {"shape": name, **{title: median(values) / base for title, values in seconds.items() if title != "none"}}
        table.append(row)
        show(row)
    return table


def convolution(repeats: int) -> list[dict[str, Any]]:
    """The convolution with fused SiLU, compared with a separate SiLU."""
    table = []
    for name, (batch, length, channels, _) in SHAPES.items():
        torch.manual_seed(0)
        sizes = {"x": (batch, length, channels), "weight": (channels, 4), "bias": (channels,)}
        call = {argument: torch.randn(size) for argument, size in sizes.items()}

        def inside(**call: Tensor) -> Tensor:
            return causal_conv1d(**call, activation="silu")

        def behind(**call: Tensor) -> Tensor:
            return torch.nn.functional.silu(causal_conv1d(**call))

        for pass_name, make in (("forward", forward), ("both", both)):
            inner, outer = make(inside, call), make(behind, call)
            pairs = [
                (*limits.timed(inner, time.process_time, 1), *limits.timed(outer, time.process_time, 1))
                for _ in range(repeats)
            ]
            row = {"shape": name, "pass": pass_name, "ms": 1e3 * median(a for a, _ in pairs)}
            table.append({**row, "times_faster_than_apart": median(b for _, b in pairs) / median(a for a, _ in pairs)})
            show(table[-1])
    return table


def overhead() -> dict[str, float]:
    """Call overhead, measured with a call of negligible size."""
    call = {**inputs((1, 8, 16, 16)), "D": None}
    run, calls = forward(selective_scan, call), 2000

    def many() -> None:
        for _ in range(calls):
            run()

    row = {"tiny_call_us": 1e6 * median(limits.timed(many, time.perf_counter, 7)) / calls}
    show(row)
    return row


@torch.inference_mode()
def decoding(repeats: int, peer: bool) -> list[dict[str, Any]]:
    """A step of the Mamba layer (d_model 256, 16 states, 4 taps) and transformers' cached step, alternating."""
    from seqssm.nn.mamba import Mamba

    table = []
    layer = Mamba(256).eval()
    for batch in (1, 8, 64):
        x, state = torch.randn(batch, 256), layer.new_state(batch)
        inner, of_dt = torch.randn(batch, 512), torch.randn(batch, 16)
        branch = layer.branches[0]
        runs: dict[str, Callable[[], Any]] = {
            "step_us": partial(layer.step, x, state),
            "projections_us": lambda branch=branch, x=x, inner=inner, of_dt=of_dt: (
                layer.in_proj(x), branch.x_proj(inner), branch.dt_proj(of_dt), layer.out_proj(inner)
            ),
        }  # fmt: skip
        other = peers.cached_step(256, 16, batch) if peer else None
        if other is not None:
            runs["transformers_us"] = other
        calls = 100 if batch < 64 else 20
        seconds: dict[str, list[float]] = {title: [] for title in runs}
        for _ in range(5 * repeats):  # alternating, so that disturbances affect all equally
            for title, run in runs.items():
                start = time.process_time()
                for _ in range(calls // 10):
                    run()
                seconds[title].append((time.process_time() - start) / (calls // 10))
        row: dict[str, Any] = {"batch": batch, **{title: 1e6 * median(values) for title, values in seconds.items()}}
        if other is not None:
            row["of_transformers"] = row["step_us"] / row["transformers_us"]
        table.append(row)
        show(row)
    return table


MEMORY: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    **{name: (selective_scan, partial(inputs, shape)) for name, shape in SHAPES.items()},
    "Mamba-2, 64 states": (ssd_scan, partial(ssd_inputs, 64)),
    "Mamba-2, 128 states": (ssd_scan, partial(ssd_inputs, 128)),
}
"""Functions measured by `memory`, each with a function that creates its arguments."""


def memory() -> list[dict[str, Any]]:
    """Peak memory of forward + backward relative to the storage of inputs and output, each in a new process."""
    table = []
    for name in MEMORY:
        command = [sys.executable, __file__, "--memory-of", name]
        row = {"shape": name, **json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)}
        table.append(row)
        show(row)
    return table


def memory_of(name: str) -> dict[str, float]:
    scan, make = MEMORY[name]
    both(scan, {k: v[:1, :64] if v.ndim > 2 else v for k, v in make().items()})()  # loads and compiles
    before = _status("VmRSS")
    call = with_gradient(make())
    storage = sum(v.nbytes for v in call.values()) + call["x"].nbytes  # the result is as large as x
    leaves, weight = list(call.values()), torch.randn_like(call["x"])
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    torch.autograd.grad(scan(**call), leaves, weight)
    return {"peak_over_storage": (_status("VmHWM") - before) / storage, "storage_mb": storage / 2**20}


def _status(name: str) -> int:
    """Value of an entry of /proc/self/status in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {name} in /proc/self/status")


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", choices=PARTS, nargs="+", help="run only these; print and do not write")
    parser.add_argument("--no-peer", action="store_true", help="skip the comparison with mambapy and transformers")
    parser.add_argument("--memory-of", choices=MEMORY, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        print(json.dumps(memory_of(options.memory_of)))
        return
    found: dict[str, Any] = {
        "machine": {
            "processor": processor(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numba": numba.__version__,
            "multiply_adds_per_second": limits.multiply_adds_per_second(),
            "bytes_per_second": limits.bytes_per_second(),
            "matrix_product_scaling": limits.matrix_product_scaling(2),
        }
    }
    show(found["machine"])
    makers = {
        "overhead": overhead,
        "decoding": lambda: decoding(options.repeats, not options.no_peer),
        "speed": lambda: speed(options.repeats, None if options.no_peer else peers.mambapy()),
        "ssd": lambda: ssd(options.repeats),
        "layers": lambda: layers.layers(options.repeats, not options.no_peer),
        "threads": lambda: threads(options.repeats),
        "orders": lambda: orders(options.repeats),
        "convolution": lambda: convolution(options.repeats),
        "memory": memory,
    }
    for part in options.only or PARTS:
        print(f"\n{part}")
        found[part] = makers[part]()
    if options.only:
        return
    RESULTS.mkdir(exist_ok=True)
    target = RESULTS / f"cpu-{date.today()}.json"
    target.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nwritten: {target}")


if __name__ == "__main__":
    main()
