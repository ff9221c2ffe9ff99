"""``seqssm info``: versions, devices, and the default engine of each device with the reason."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from seqssm.cli.options import Parser
from seqssm.cli.warmup import cache_of_compiled_kernels
from seqssm.domain import domains
from seqssm.version import __version__

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


def info(argv: list[str]) -> int:
    """``seqssm info``."""
    Parser("seqssm info", "Show versions, devices and engines, for bug reports.", "seqssm info").parse(argv)
    import torch
    from seqssm_kernels.contract.engines import describe_engines

    from seqssm.files import datasets

    section("versions", [("seqssm", __version__), ("python", platform.python_version()), *map(installed, PACKAGES)])
    section("sciences", [(domain.name, domain.missing() or domain.title) for domain in domains().values()])
    section("machine", [("system", platform.platform()), ("processor", processor()), ("threads", threads(torch))])
    section("devices", devices(torch))
    rows = [(f"{s.device}, {s.dtypes}", f"{s.engine} for {s.operations}: {s.why}") for s in describe_engines()]
    section("default engines", rows)
    section("compiled kernels", [("cache", cache_of_compiled_kernels()), ("to compile now", "seqssm warmup")])
    places = os.environ.get(datasets.DATA)
    section("data", [(f"${datasets.DATA}", places or "not set"), ("cache", str(datasets.cache_folder()))])
    return 0


def section(title: str, rows: list[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    print(f"{title}:")
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")
    print()


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
