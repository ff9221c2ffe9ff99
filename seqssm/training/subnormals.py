"""Subnormal numbers, which processors multiply many times slower than others, taken for zero."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """Take subnormal numbers (in float32, below 1.2e-38) for zero, in this thread and in those that it starts.

    The derivative of GELU is subnormal at -13, as are its products with gradients closer to 0. Once the activations
    of a model of sequences had grown, the backward passes of its convolutions took 10 times longer.
    """
    import torch

    before = bool(torch.full((), 1e-39).mul(1) == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
