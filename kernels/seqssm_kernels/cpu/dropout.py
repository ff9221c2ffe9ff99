"""Dropout on the CPU with the random numbers of PyTorch, four times as fast.

PyTorch draws a value as a uniform double from two words of its Mersenne Twister, one value at a time (M. Matsumoto and
T. Nishimura, "Mersenne Twister", ACM TOMACS 8, 1998; the 32-bit version, MT19937). Here the words of a block are
computed together, from the state of PyTorch's generator, which is advanced as PyTorch would: masks, and all random
numbers after them, are the same.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from seqssm_kernels.contract.validation import is_eager

FEWEST = 4096  # values below which PyTorch is as fast
WORDS = 624
# layout of the generator's state in bytes: words left in the block plus one, index of the next word, words as uint64
LEFT, NEXT, KEY = slice(8, 12), slice(16, 24), slice(24, 24 + 8 * WORDS)


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`torch.nn.functional.dropout`, with the same result for the same seed.

    Args:
        x: input of any shape; contiguous float32 on the CPU is processed here, in the main thread, others by PyTorch.
        p: probability of a zero; the other values are multiplied by 1 / (1 - p).
        training: whether to apply it.
    """
    if not training or not 0 < p < 1 or not (x.is_cpu and x.dtype == torch.float32) or x.numel() < FEWEST:
        return F.dropout(x, p, training)
    if not is_eager((x,)) or not x.is_contiguous() or threading.current_thread() is not threading.main_thread():
        return F.dropout(x, p)  # another thread could draw between the reading and the writing of the state
    if not _as_pytorch():
        return F.dropout(x, p)
    return x * _mask(tuple(x.shape), p)


def _mask(shape: tuple[int, ...], p: float) -> Tensor:
    """Return 0 with probability `p` and 1 / (1 - p) otherwise."""
    state = torch.default_generator.get_state()
    content = state.numpy()
    left, following = content[LEFT].view(np.int32), content[NEXT].view(np.int64)
    mask = torch.empty(shape, dtype=torch.float32, device="cpu")
    place = np.array([left[0], following[0]], np.int64)
    limit, value = np.uint64(math.ceil((1 - p) * 2.0**53)), np.float32(1) / np.float32(1 - p)
    _kernel()(content[KEY].view(np.uint64), place, mask.view(-1).numpy(), limit, value)
    left[0], following[0] = place
    torch.default_generator.set_state(state)
    return mask


@cache
def _as_pytorch() -> bool:
    """Whether the masks and the following random numbers are those of this version of PyTorch."""
    if importlib.util.find_spec("numba") is None:
        return False
    before = torch.default_generator.get_state()
    try:
        expected = F.dropout(torch.ones(2 * WORDS, dtype=torch.float32, device="cpu"), 0.3), torch.rand(3, device="cpu")
        torch.default_generator.set_state(before)
        found = _mask((2 * WORDS,), 0.3), torch.rand(3, device="cpu")
    except (RuntimeError, ValueError):  # another layout of the state
        return False
    finally:
        torch.default_generator.set_state(before)
    return all(torch.equal(a, b) for a, b in zip(expected, found))


def mask_kernel() -> Any:
    """Compile the kernel silently, or load it from the cache."""
    from seqssm_kernels.cpu.compile import quietly

    return quietly(_kernel)


@cache
def _kernel() -> Any:
    from numba import types

    from seqssm_kernels.cpu.compile import compiled, source_key
    from seqssm_kernels.cpu.twister import make_mask

    signature = types.void(types.uint64[::1], types.int64[::1], types.float32[::1], types.uint64, types.float32)
    return compiled(make_mask(source_key("cpu/twister")), signature, "dropout")
