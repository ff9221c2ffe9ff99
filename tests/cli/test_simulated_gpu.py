"""The commands of every domain on the GPU simulated by `tests/gpu/simulated.py`: no mixture of devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .test_gpu_agrees import SCORED, require_close_tables
from .test_processes_agree import CASES, FLAGS, made

SIMULATED = Path(__file__).parents[1] / "gpu" / "simulated.py"
SMALL = ["--data.batch_size", "6", "--trainer.max_epochs", "1"]


def on_gpu(*argv: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SIMULATED), *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, (argv, done.stdout[-1000:], done.stderr[-2000:])


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_commands_of_a_run(toy, tmp_path, case):
    """Trained, tested and used there; the predictions are those of the CPU."""
    flags, inputs = made(tmp_path / "data", case)
    domain = case.split()[0]
    on_gpu(domain, "fit", *FLAGS[case], *flags, *SMALL, "--output", "run")
    on_gpu(domain, "test", "run")
    for device in ("gpu", "cpu"):
        on_gpu("predict", "run", *inputs, "--accelerator", device, "--output", f"{device}.csv")
    require_close_tables(Path("cpu.csv"), Path("gpu.csv"), 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("case", SCORED)
def test_compression(toy, tmp_path, case):
    flags, inputs = made(tmp_path / "data", case)
    on_gpu(case, "fit", *FLAGS[case], *flags, *SMALL, "--output", "run")
    bags = sorted(map(str, (tmp_path / "data").rglob("*.h5")))
    on_gpu("compress", "run", "--method", "w8a8", "--output", "s.ckpt", *(["--calibration", *bags] if bags else []))
    on_gpu("predict", "s.ckpt", *inputs, "--output", "s.csv")
