"""The way from the arguments of a decoding step to its kernel, short because a step is.

What depends on shapes, dtypes and strides alone is worked out once and remembered; a further call looks that up, fills
in the addresses and runs the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqssm_kernels.cpu import threads
from seqssm_kernels.cpu.memory import POOLED, fresh

LIMIT = 1024  # signatures that are remembered


class StepPlan(NamedTuple):
    """What calls of one signature share.

    Attributes:
        params: array of the kernel, with empty addresses at its start.
        shape: shape of `out`.
        dense: whether `x` is contiguous.
        small: whether the state is too small for the memory pool.
        tasks: number of tasks.
        work: number of state updates.
        scratch: bytes of scratch memory per thread.
    """

    params: np.ndarray
    shape: tuple[int, ...]
    dense: bool
    small: bool
    tasks: int
    work: int
    scratch: int

    def begin(self, x: Tensor, state: Tensor) -> tuple[np.ndarray, Tensor, Tensor]:
        """A copy of the kernel's array, and memory for `out` and the next state."""
        # empty_like takes a third of the time of empty
        out = torch.empty_like(x) if self.dense else torch.empty(self.shape, dtype=x.dtype, device="cpu")
        following = torch.empty_like(state) if self.small else fresh(state.shape)
        return self.params.copy(), out, following

    def launch(self, kernel: Any, params: np.ndarray, held: Any) -> None:
        """Run the kernel over all tasks.

        Args:
            kernel: compiled kernel.
            params: array of the kernel with its addresses.
            held: owners of these addresses.
        """
        if self.work < threads.SMALL:  # the way through `threads.run` takes longer than the step
            own = threads.scratch(self.scratch)
            kernel(params, 0, self.tasks, 0, own[1])
        else:
            parts = threads.parts(self.tasks, self.work)
            threads.run(kernel, params, self.tasks, parts, self.scratch, held)


def plan_of(
    x: Tensor, state: Tensor, shape: tuple[int, ...], params: np.ndarray, tasks: int, work: int, scratch: int
) -> StepPlan:
    """The plan of a step with this input and state; the other arguments are those of `StepPlan`."""
    dense = tuple(x.shape) == shape and x.is_contiguous()
    return StepPlan(params, shape, dense, state.nbytes < POOLED, tasks, work, scratch)


class StepPlans:
    """Remembers the plan of each signature, None where the kernel does not serve it.

    Args:
        make: makes the plan of a call from the arguments of the step function.
    """

    def __init__(self, make: Callable[..., StepPlan | None]) -> None:
        self._make = make
        self._plans: dict[Hashable, StepPlan | None] = {}

    def find(self, key: Hashable, call: tuple[Any, ...]) -> StepPlan | None:
        """The plan of a call.

        Args:
            key: what the plan depends on.
            call: arguments of the step function.
        """
        try:
            return self._plans[key]
        except KeyError:
            if len(self._plans) >= LIMIT:
                self._plans.clear()
            plan = self._plans[key] = self._make(*call)
            return plan
