"""Run the tests that need an NVIDIA GPU, then the benchmark, whose table is printed last: `make gpu-check`.

Compilation takes most of the tests' time, so they run in as many processes as there are processors, together with one
run of each benchmark case, peers included. The longest sequence and the benchmark need the whole GPU and run alone
afterwards. Packages are those of the running interpreter.

Options are passed to `bench_gpu.py`; `--tests-only` leaves the benchmark out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench_gpu import SHAPES, SSD_SHAPES

ROOT = Path(__file__).resolve().parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-q", "--dist", "load"]
ENGINE = "tests/kernels/triton_engine.py"
LONG = "beyond_32_bit"
BENCH = [sys.executable, "kernels/benchmarks/bench_gpu.py"]
WORKERS = max(1, (os.cpu_count() or 1) // 2)  # of the engine's tests; a quarter for the others, the rest for benchmarks
ALONE = {"the longest sequence": [*PYTEST, "-m", "gpu", "tests/kernels/test_gpu.py", "-k", LONG]}


def together(benchmark: bool) -> dict[str, list[str]]:
    """Name -> command of what shares the GPU; tests marked `gpu` are found by their text, without collecting all."""
    marked = [
        str(p) for p in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in p.read_text(encoding="utf-8")
    ]
    commands = {
        "engine": [*PYTEST, ENGINE, "-n", str(WORKERS)],
        "graphs, autocast, DDP, layers, domains": [*PYTEST, "-m", "gpu", *marked, "-n", str(max(1, WORKERS // 2))],
    }
    if benchmark:
        commands |= {f"benchmark case {name}": [*BENCH, "--prewarm", name] for name in SHAPES}
        commands |= {f"benchmark case ssd {name}": [*BENCH, "--prewarm", f"ssd-{name}"] for name in SSD_SHAPES}
    return commands


def run(commands: dict[str, list[str]], environment: dict[str, str]) -> list[str]:
    """Run commands in parallel and print the end of their output; return the names of those that failed."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        started = {}
        for i, (name, command) in enumerate(commands.items()):
            log = Path(folder) / f"{i}.txt"
            with log.open("w") as file:
                process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
            started[name] = (process, log)
        for name, (process, log) in started.items():
            code = process.wait()
            lines = log.read_text(errors="replace").splitlines()
            print(f"\n{name}: {'passed' if code == 0 else f'FAILED ({code})'}")
            print("\n".join(lines[-3:] if code == 0 else lines[-60:]), flush=True)
            if code:
                failed.append(name)
    return failed


def main() -> int:
    if not torch.cuda.is_available():
        print("no NVIDIA GPU found; `make test` tests the kernels without one")
        return 1
    options = [option for option in sys.argv[1:] if option != "--tests-only"]
    benchmark = "--tests-only" not in sys.argv
    start = time.monotonic()
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    failed = run(together(benchmark), environment | {"SEQSSM_LONG": "0"})
    failed += run(ALONE, environment)
    print(f"\ntests: {time.monotonic() - start:.0f} s", flush=True)
    if benchmark:
        code = subprocess.run([*BENCH, *options], cwd=ROOT, env=environment).returncode
        failed += ["benchmark"] * (code != 0)
    print(f"{time.monotonic() - start:.0f} s" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
