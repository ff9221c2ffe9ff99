"""Run the kernel tests on an NVIDIA GPU, then the benchmark, whose table is printed last: `make gpu-check`.

Compilation takes most of the tests' time, so they run in parallel, together with one run of each benchmark case. The
longest sequence and the benchmark need the whole GPU and run alone afterwards. Packages are those of the running
interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PYTEST = [sys.executable, "-m", "pytest", "-q"]
ENGINE = "tests/kernels/triton_engine.py"
LONG = "beyond_32_bit"
BENCH = [sys.executable, "kernels/benchmarks/bench_gpu.py"]
TOGETHER = {
    "scan, options in pairs": [*PYTEST, ENGINE, "-k", "scan_options"],
    "Mamba-2": [*PYTEST, ENGINE, "-k", "ssd"],
    "engine, everything else": [*PYTEST, ENGINE, "-k", "not scan_options and not ssd"],
    "compile, graphs, autocast, DDP, random shapes": [*PYTEST, "-m", "gpu"],
    "benchmark cases, compiled": [*BENCH, "--prewarm"],
}
ALONE = {"the longest sequence": [*PYTEST, "-m", "gpu", "tests/kernels/test_gpu.py", "-k", LONG]}


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
    start = time.monotonic()
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    failed = run(TOGETHER, environment | {"SEQSSM_LONG": "0"})
    failed += run(ALONE, environment)
    print(f"\ntests: {time.monotonic() - start:.0f} s", flush=True)
    code = subprocess.run(BENCH, cwd=ROOT, env=environment).returncode
    failed += ["benchmark"] * (code != 0)
    print(f"{time.monotonic() - start:.0f} s" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
