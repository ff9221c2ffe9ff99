"""``seqssm info``: versions, devices, and the default engine of each device with the reason."""

from __future__ import annotations

import os
import platform

from seqssm.cli.options import Parser
from seqssm.cli.warmup import cache_of_compiled_kernels
from seqssm.domain import domains
from seqssm.training.machine import PACKAGES, devices, installed, processor, threads
from seqssm.version import __version__


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
