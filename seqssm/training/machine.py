"""Versions, processor and devices of this machine, for `seqssm info` and the record of a run."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "torch",
    "triton",
    "numba",
    "llvmlite",
    "numpy",
    "lightning",
    "jsonargparse",
    "pandas",
    "pyarrow",
)


def installed(package: str) -> tuple[str, str]:
    try:
        return package, version(package)
    except PackageNotFoundError:
        return package, "not installed"


def processor() -> str:
    """Return the processor's name as reported by the system."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def threads(torch: object) -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{torch.get_num_threads()} used, {usable} processors usable"  # type: ignore[attr-defined]


def devices(torch: object) -> list[tuple[str, str]]:
    """List the devices that PyTorch can use, and why others are unavailable."""
    cuda, mps = torch.cuda, torch.backends.mps  # type: ignore[attr-defined]
    rows = [("cpu", f"instruction set {torch.backends.cpu.get_cpu_capability()}")]  # type: ignore[attr-defined]
    if cuda.is_available():
        for number in range(cuda.device_count()):
            found = cuda.get_device_properties(number)
            text = f"{found.name}, {found.total_memory / 2**30:.0f} GiB, compute capability {found.major}.{found.minor}"
            rows.append((f"cuda:{number}", text))
    else:
        built = torch.version.cuda  # type: ignore[attr-defined]
        rows.append(
            (
                "cuda",
                f"no: PyTorch is built for CUDA {built}, but no GPU was found"
                if built
                else "no: PyTorch is a CPU build",
            )
        )
    if sys.platform == "darwin":
        rows.append(("mps", "yes" if mps.is_available() else "no"))
    return rows


def environment() -> dict[str, str]:
    """Describe the machine in the record of a run: name -> text. Absent packages are left out."""
    import torch

    from seqssm.version import __version__

    versions = [("seqssm", __version__), ("python", platform.python_version()), *map(installed, PACKAGES)]
    machine = [("system", platform.platform()), ("processor", processor()), ("threads", threads(torch))]
    found = [*versions, *machine, *devices(torch)]
    return {name: text for name, text in found if text != "not installed"}
