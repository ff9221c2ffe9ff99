"""Dispatch from a public function to an engine: validation once per signature, canonical form, operator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from seqssm_kernels.contract import engines
from seqssm_kernels.contract.arguments import Call, canonical, check, with_length
from seqssm_kernels.contract.operators import DEFINED, below_autograd, refuse_forward_mode
from seqssm_kernels.contract.order import prepare
from seqssm_kernels.contract.validation import Seen, any_requires_grad, is_eager, signature_of


class Entry:
    """Dispatch of the public functions of one operation.

    Args:
        operation: name of the operation, as in `engines.OPERATIONS`.
        reference: forward pass of the `reference` engine.
    """

    def __init__(self, operation: str, reference: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.operation, self.reference = operation, reference
        self._operator, entry = DEFINED[operation], engines.OPERATIONS[operation]
        self._saves, self._differentiable = entry.saves, entry.differentiable
        self._seen = Seen()

    def whole(self, call: Call, return_final_state: bool, engine: str | None) -> Tensor | tuple[Tensor, Tensor]:
        """Run a call over whole sequences.

        Args:
            call: arguments as the caller gave them.
            return_final_state: whether to return the final state as well.
            engine: engine that the caller requests, or None.

        Returns:
            `out`, or `(out, final_state)`, with the route axis if `x` has it.

        Raises:
            ValueError: inconsistent arguments.
            RuntimeError: forward-mode differentiation with an engine other than `reference`.
        """
        known = None
        compiling = torch.compiler.is_compiling()
        if not compiling:
            signature = signature_of(engine, call)
            known = self._seen.get(signature)
        if known is None:
            known = check(self.operation, call, engine)
            if not compiling:
                self._seen.put(signature, known)
        route_axis, chosen = known

        call = canonical(call)
        if chosen == "reference":
            out, final_state = self.reference(prepare(call))
        else:
            save = any_requires_grad(call)
            flags = (save, engine or "") if self._saves else (engine or "",)
            tensors = (call.x, *call.inputs(), call.order, call.cu_seqlens)
            if not is_eager(tensors) or call.x.is_meta or (save and not self._differentiable):
                refuse_forward_mode(call)
                with below_autograd(save):
                    out, final_state = self._operator.overload(*call, *flags)[:2]
            elif save:
                out, final_state = self._operator.eager.apply(*call, *flags)[:2]
            else:
                out, final_state = self._operator.forward(*call, *flags)[:2]
        if not route_axis:
            out = out.squeeze(2)
        if not return_final_state:
            return out
        return out, final_state if route_axis else final_state.squeeze(1)

    def step(self, call: Call, engine: str | None) -> tuple[Tensor, Tensor]:
        """Run a call of one step, whose tensors have no axis of positions, as a sequence of length 1.

        Args:
            call: arguments of the step, with the state in its field.
            engine: engine that the caller requests, or None.

        Returns:
            `out` without the axis of positions, and the next state.

        Raises:
            ValueError: inconsistent arguments.
        """
        out, state = self.whole(with_length(call), True, engine)
        return out.squeeze(1), state
