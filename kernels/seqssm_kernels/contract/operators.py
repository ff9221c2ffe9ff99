"""The custom operators behind the public functions, one or two per entry of `engines.OPERATIONS`.

`seqssm::selective_scan_v1`, `seqssm::causal_conv1d_v1` and their backward operators are opaque to `torch.compile` and
`torch.export`: fake kernels give the shapes, autograd formulas the gradients. They modify no argument, and no output
shares memory with one. Outputs that are not requested are empty tensors. The version is part of the name because
exported programs store it. Loading an exported program requires that this module is imported.

The arguments of an operator are the fields of its call object, then `save` (for operations that save values) and the
engine's name. Orders are checked in the operators rather than in the public functions, so that compiled programs run
the check too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad

from seqssm_kernels.contract import engines
from seqssm_kernels.contract.calls import AnyCall, out_dtype, state_dtype
from seqssm_kernels.contract.order import prepare
from seqssm_kernels.contract.validation import is_plain

# Registered through `Library` rather than the `custom_op` decorator, which halves the dispatch time of small calls.
_library = torch.library.Library("seqssm", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)
_SCHEMA_TYPES: dict[Any, str] = {Tensor: "Tensor", Tensor | None: "Tensor?", bool: "bool"}


class _Operator:
    """The operators of one operation, forward and unless it is for inference only backward.

    Each has a kernel, a fake kernel and an autograd formula.
    """

    def __init__(self, operation: engines.Operation) -> None:
        self.operation, self.call = operation, operation.call
        types = {name: _SCHEMA_TYPES[kind] for name, kind in get_type_hints(self.call).items()}
        self.fields = len(types)
        # Indices of the differentiable arguments, in the order in which an engine returns their gradients.
        self.inputs: tuple[int, ...] = self.call(*range(self.fields)).inputs()
        self.tensors = tuple(i for i, kind in enumerate(types.values()) if kind.startswith("Tensor"))
        self.values = tuple(i for i in range(self.fields) if i not in self.tensors)
        self.name = f"{operation.name}_v{operation.version}"
        self.backward_name = f"{operation.name}_backward_v{operation.version}"
        arguments = ", ".join(f"{kind} {name}" for name, kind in types.items())
        outputs, gradients = ["Tensor"] * (3 if operation.saves else 2), ["Tensor"] * len(self.inputs)
        save, saved = (", bool save", ", Tensor saved") if operation.saves else ("", "")
        _library.define(f"{self.name}({arguments}{save}, str engine) -> ({', '.join(outputs)})", tags=_TAGS)
        self._register(
            self.name, self.forward, self.forward_fake, self.setup if operation.differentiable else _remember_nothing,
            self.gradients if operation.differentiable else _no_derivative,
        )  # fmt: skip
        self.overload = getattr(torch.ops.seqssm, self.name).default
        if not operation.differentiable:
            return
        _library.define(
            f"{self.backward_name}(Tensor dout, Tensor? dfinal, {arguments}{saved}, bool[] needs, str engine) "
            f"-> ({', '.join(gradients)})",
            tags=_TAGS,
        )
        self._register(self.backward_name, self.backward, self.backward_fake, _remember_nothing, _no_second_derivative)
        self.backward_overload = getattr(torch.ops.seqssm, self.backward_name).default
        self.eager = self._function()

    def _function(self) -> type[torch.autograd.Function]:
        """Return the operator and its derivative for tensors that nothing traces or transforms.

        The autograd layer of a registered operator reads its schema in each call, which takes as long as a small scan.
        """

        def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
            outputs = self.forward(*arguments)
            self.setup(ctx, arguments, outputs)
            return outputs

        methods = {"forward": staticmethod(forward), "backward": staticmethod(self.gradients)}
        return type(f"seqssm_{self.name}", (torch.autograd.Function,), methods)

    @staticmethod
    def _register(name: str, kernel: Any, fake: Any, setup: Any, autograd: Any) -> None:
        _library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"seqssm::{name}", fake, lib=_library)
        torch.library.register_autograd(f"seqssm::{name}", autograd, setup_context=setup, lib=_library)

    def engine(self, engine: str, call: AnyCall) -> Any:
        return engines.load(self.operation.name, engine or None, call.x.device.type, out_dtype(call))

    def forward(self, *arguments: Any) -> tuple[Tensor, ...]:
        call = prepare(self.call(*arguments[: self.fields]))
        return self.engine(arguments[-1], call).forward(call, *arguments[self.fields : -1])

    def forward_fake(self, *arguments: Any) -> tuple[Tensor, ...]:
        call = self.call(*arguments[: self.fields])
        sizes, dtype = call.sizes(), out_dtype(call)
        acc = state_dtype(dtype)
        outputs = (call.x.new_empty(sizes.out_shape, dtype=dtype), call.x.new_empty(sizes.state_shape, dtype=acc))
        if not self.operation.saves:
            return outputs
        save, engine = arguments[self.fields :]
        size = self.engine(engine, call).saved_size(sizes, call.cu_seqlens is not None) if save else 0
        return *outputs, call.x.new_empty(size, dtype=acc)

    def backward(self, dout: Tensor, dfinal: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
        call = prepare(self.call(*arguments[: self.fields]))
        *saved, needs, engine = arguments[self.fields :]
        return _filled(self.engine(engine, call).backward(dout, dfinal, call, *saved, tuple(needs)), call)

    def backward_fake(self, dout: Tensor, dfinal: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
        call, needs = self.call(*arguments[: self.fields]), arguments[-2]
        grads = (t.new_empty(t.shape) if t is not None and need else None for t, need in zip(call.inputs(), needs))
        return _filled(tuple(grads), call)

    def setup(self, ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)  # no zero gradient for the final state, which most calls ignore
        ctx.out_like = (output[0].shape, output[0].dtype, output[0].device)
        ctx.save_for_backward(*[inputs[i] for i in self.tensors], *output[2:])
        ctx.values, ctx.engine = [inputs[i] for i in self.values], inputs[-1]
        ctx.save = not self.operation.saves or inputs[-2]

    def gradients(self, ctx: Any, dout: Tensor | None, dfinal: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if not ctx.save:
            raise RuntimeError(f"seqssm::{self.name} was called with save=False and cannot be differentiated")
        kept = ctx.saved_tensors  # read once: activation checkpointing does not allow a second access
        fields: list[Any] = [None] * self.fields
        for i, tensor in zip(self.tensors, kept):
            fields[i] = tensor
        for i, value in zip(self.values, ctx.values):
            fields[i] = value
        saved = kept[len(self.tensors) :]
        needs = [ctx.needs_input_grad[i] for i in self.inputs]
        if dout is None:
            shape, dtype, device = ctx.out_like
            dout = torch.zeros(shape, dtype=dtype, device=device)
        arguments = (dout, dfinal, *fields, *saved, needs, ctx.engine)
        if not torch.is_grad_enabled() and is_plain((dout, dfinal, *kept)) and not _is_abstract(dout, dfinal):
            grads = self.backward(*arguments)
        else:
            with below_autograd(torch.is_grad_enabled()):  # enabled with `create_graph`
                grads = self.backward_overload(*arguments)
        answer: list[Tensor | None] = [None] * (self.fields + 1 + self.operation.saves)
        for i, grad, need in zip(self.inputs, grads, needs):
            answer[i] = grad if need else None
        return tuple(answer)


def _is_abstract(*grads: Tensor | None) -> bool:
    """Whether a gradient has no values, or is a batch of gradients (``is_grads_batched``)."""
    return any(t is not None and (t.is_meta or torch._C._functorch.is_legacy_batchedtensor(t)) for t in grads)


def _filled(grads: Sequence[Tensor | None], call: Any) -> tuple[Tensor, ...]:
    """Replace None by an empty tensor, because an operator cannot return None for an unneeded gradient."""
    return tuple(call.x.new_empty(0) if g is None else g for g in grads)


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError("second derivatives of the scans and the causal convolution require engine='reference'")


def _no_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError("scans of 8-bit integers are for inference and have no gradients")


def _remember_nothing(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    pass


DEFINED = {name: _Operator(operation) for name, operation in engines.OPERATIONS.items()}
"""What is registered for each operation."""
OPERATORS = {name: defined.overload for name, defined in DEFINED.items()}
"""The forward operator of each operation."""

_nothing = contextlib.nullcontext()


def below_autograd(needed: bool) -> contextlib.AbstractContextManager:
    """Context in which an operator call skips its autograd layer if no gradient of it is needed.

    That layer is written in Python, would only forward the call, and costs more than the scan for a small call. It is
    kept while a graph is captured.
    """
    return _nothing if needed or torch.compiler.is_compiling() else torch._C._AutoDispatchBelowAutograd()


def refuse_forward_mode(call: AnyCall) -> None:
    """Raise if an input carries a tangent, which an operator would silently drop, and inside `torch.func.grad`.

    Raises:
        RuntimeError: forward-mode differentiation, or `torch.func.grad` or `vjp`, is requested.
    """
    if not torch.compiler.is_compiling():
        transform = torch._C._functorch.peek_interpreter_stack()
        if transform is not None and transform.key() == torch._C._functorch.TransformType.Grad:
            raise RuntimeError(
                "torch.func.grad, vjp and jacrev require engine='reference'; autograd works with every engine"
            )
    if forward_ad._current_level < 0:  # the usual case, without inspecting the tensors
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in call.inputs()):
        raise RuntimeError("forward-mode differentiation requires engine='reference'")
