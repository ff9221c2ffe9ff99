"""``seqssm warmup``: compiles the kernels ahead of the first use."""

from __future__ import annotations

from seqssm.cli.options import Parser

HELP = """Compile every kernel that this machine can use, and print how long each took.

Without it, the first training step or prediction compiles them, which takes up to a minute. Compiled kernels
are cached on disk; set NUMBA_CACHE_DIR to choose the folder."""


def warmup(argv: list[str]) -> int:
    """``seqssm warmup``."""
    Parser("seqssm warmup", HELP, "seqssm warmup").parse(argv)
    from seqssm_kernels.warmup import kernels

    total = 0.0
    for kernel in kernels():
        print(f"{kernel.engine}  {kernel.title}", end="  ", flush=True)
        seconds = kernel.compile()
        print(f"{seconds:.1f} s", flush=True)
        total += seconds
    print(f"total  {total:.1f} s")
    print(f"cache  {cache_of_compiled_kernels()}")
    return 0


def cache_of_compiled_kernels() -> str:
    """Return where compiled CPU kernels are cached, or why they are not."""
    try:
        from seqssm_kernels.cpu.compile import cache_root
        from seqssm_kernels.cpu.rows import make_adder
    except ImportError as error:
        return f"none ({error})"
    return cache_root(make_adder(0))
