"""Low-overhead dispatch from the arguments of a decoding step to its kernel.

Values that depend only on shapes, dtypes and strides are computed once per signature and cached. Later calls look them
up, set the addresses and run the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqssm_kernels.cpu import threads
from seqssm_kernels.cpu.memory import POOLED, fresh

LIMIT = 1024  # maximum number of cached signatures


class StepPlan(NamedTuple):
    """Values shared by all calls of one signature.

    Attributes:
        params: parameter array of the kernel; the addresses at its start are not set.
        shape: shape of `out`.
        dtype: dtype of `out`.
        dense: whether `x` is contiguous and of this dtype.
        small: whether the state is too small for the memory pool.
        tasks: number of tasks.
        work: number of state updates.
        scratch: bytes of scratch memory per thread.
    """

    params: np.ndarray
    shape: tuple[int, ...]
    dtype: torch.dtype
    dense: bool
    small: bool
    tasks: int
    work: int
    scratch: int

    def begin(self, x: Tensor, state: Tensor) -> tuple[np.ndarray, Tensor, Tensor]:
        """Return a copy of the parameter array, and memory for `out` and the next state."""
        # empty_like takes a third of the time of empty
        out = torch.empty_like(x) if self.dense else torch.empty(self.shape, dtype=self.dtype, device="cpu")
        following = torch.empty_like(state) if self.small else fresh(state.shape)
        return self.params.copy(), out, following

    def launch(self, kernel: Any, params: np.ndarray, held: Any) -> None:
        """Run the kernel over all tasks.

        Args:
            kernel: compiled kernel.
            params: parameter array with its addresses.
            held: owners of these addresses.
        """
        if self.work < threads.SMALL:  # `threads.run` would take longer than the step
            own = threads.scratch(self.scratch)
            kernel(params, 0, self.tasks, 0, own[1])
        else:
            parts = threads.parts(self.tasks, self.work)
            threads.run(kernel, params, self.tasks, parts, self.scratch, held)


def plan_of(x: Tensor, state: Tensor, out: Tensor, params: np.ndarray, tasks: int, work: int, scratch: int) -> StepPlan:
    """Create the plan of a step with this input and state, and an output like `out`, whose values are not used."""
    shape, dtype = tuple(out.shape), out.dtype
    dense = tuple(x.shape) == shape and x.is_contiguous() and x.dtype == dtype
    return StepPlan(params, shape, dtype, dense, state.nbytes < POOLED, tasks, work, scratch)


class StepPlans:
    """Cache of plans by signature, with None for signatures that the kernel does not support.

    Args:
        make: function that creates the plan from the arguments of the step function.
    """

    def __init__(self, make: Callable[..., StepPlan | None]) -> None:
        self._make = make
        self._plans: dict[Hashable, StepPlan | None] = {}

    def find(self, key: Hashable, call: tuple[Any, ...]) -> StepPlan | None:
        """Return the plan of a call, created on first use.

        Args:
            key: signature of the call: everything that the plan depends on.
            call: arguments of the step function.
        """
        try:
            return self._plans[key]
        except KeyError:
            if len(self._plans) >= LIMIT:
                self._plans.clear()
            plan = self._plans[key] = self._make(*call)
            return plan
