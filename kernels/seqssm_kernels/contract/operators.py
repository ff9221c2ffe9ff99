"""The custom operators behind the public functions.

`seqssm::selective_scan_v1` and `seqssm::causal_conv1d_v1`, each with its backward, are opaque to `torch.compile`
and `torch.export`: fake kernels give the shapes, autograd formulas the gradients. They change no argument, and no
output shares memory with one. An output that is not wanted is an empty tensor. The version is part of the name,
because exported programs store it; such a program loads once this module is imported.

Orders are checked here, not in the public functions: inside an operator the check still runs in a compiled program.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from seqssm_kernels.contract import engines
from seqssm_kernels.contract.calls import ConvCall, ScanCall, state_dtype
from seqssm_kernels.contract.order import prepare

# Registered through `Library` rather than the `custom_op` decorator: a tiny call is dispatched in half the time.
_library = torch.library.Library("seqssm", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)

_SCAN = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, bool dt_softplus, "
    "Tensor? order, Tensor? cu_seqlens, Tensor? initial_state"
)
_CONV = "Tensor x, Tensor weight, Tensor? bias, Tensor? order, Tensor? cu_seqlens, Tensor? state, bool silu"

_library.define(f"selective_scan_v1({_SCAN}, bool save, str engine) -> (Tensor, Tensor, Tensor)", tags=_TAGS)
_library.define(
    f"selective_scan_backward_v1(Tensor dout, Tensor? dfinal, {_SCAN}, Tensor saved, bool[] needs, str engine) "
    f"-> ({', '.join(['Tensor'] * 9)})",
    tags=_TAGS,
)
_library.define(f"causal_conv1d_v1({_CONV}, str engine) -> (Tensor, Tensor)", tags=_TAGS)
_library.define(
    f"causal_conv1d_backward_v1(Tensor dout, Tensor? dfinal, {_CONV}, bool[] needs, str engine) "
    f"-> ({', '.join(['Tensor'] * 4)})",
    tags=_TAGS,
)

# Where the arguments of an operator are those of `inputs()`, the differentiable ones.
_SCAN_INPUTS = (0, 1, 2, 3, 4, 5, 6, 7, 11)
_CONV_INPUTS = (0, 1, 2, 5)


def _engine(operation: str, engine: str, call: ScanCall | ConvCall) -> Any:
    return engines.load(operation, engine or None, call.x.device.type, call.x.dtype)


def _filled(grads: tuple[Tensor | None, ...], call: ScanCall | ConvCall) -> tuple[Tensor, ...]:
    """An operator cannot return None: an empty tensor stands for a gradient that nobody needs."""
    return tuple(call.x.new_empty(0) if g is None else g for g in grads)


def _grads_fake(call: ScanCall | ConvCall, needs: list[bool]) -> tuple[Tensor, ...]:
    wanted = zip(call.inputs(), needs)
    return _filled(tuple(t.new_empty(t.shape) if t is not None and need else None for t, need in wanted), call)


# --- selective scan


def _scan(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, save, engine = arguments
    call = prepare(ScanCall(*fields))
    return _engine("selective_scan", engine, call).forward(call, save)


def _scan_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fields, save, engine = arguments
    call = ScanCall(*fields)
    sizes, acc = call.sizes(), state_dtype(call.x.dtype)
    saved = _engine("selective_scan", engine, call).saved_size(sizes, call.cu_seqlens is not None) if save else 0
    final_state = call.x.new_empty(sizes.state_shape, dtype=acc)
    return call.x.new_empty(sizes.out_shape), final_state, call.x.new_empty(saved, dtype=acc)


def _scan_backward(dout: Tensor, dfinal: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    *fields, saved, needs, engine = arguments
    call = prepare(ScanCall(*fields))
    grads = _engine("selective_scan", engine, call).backward(dout, dfinal, call, saved, tuple(needs))
    return _filled(grads, call)


def _scan_backward_fake(dout: Tensor, dfinal: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    *fields, _saved, needs, _engine = arguments
    return _grads_fake(ScanCall(*fields), needs)


def _scan_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _setup(ctx, inputs, output)
    ctx.save_for_backward(*inputs[:8], *inputs[9:12], output[2])
    ctx.dt_softplus, ctx.save, ctx.engine = inputs[8], inputs[12], inputs[13]


def _scan_autograd(ctx: Any, dout: Tensor | None, dfinal: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if not ctx.save:
        raise RuntimeError("seqssm::selective_scan_v1 was called with save=False and cannot be differentiated")
    tensors = ctx.saved_tensors
    needs = [ctx.needs_input_grad[i] for i in _SCAN_INPUTS]
    grads = torch.ops.seqssm.selective_scan_backward_v1(
        _materialised(ctx, dout), dfinal, *tensors[:8], ctx.dt_softplus, *tensors[8:], needs, ctx.engine
    )
    return _placed(grads, needs, _SCAN_INPUTS, 14)


# --- causal convolution


def _conv(*arguments: Any) -> tuple[Tensor, Tensor]:
    *fields, engine = arguments
    call = prepare(ConvCall(*fields))
    return _engine("causal_conv1d", engine, call).forward(call)


def _conv_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    *fields, _engine = arguments
    call = ConvCall(*fields)
    sizes, acc = call.sizes(), state_dtype(call.x.dtype)
    return call.x.new_empty(sizes.out_shape), call.x.new_empty(sizes.state_shape, dtype=acc)


def _conv_backward(dout: Tensor, dfinal: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    *fields, needs, engine = arguments
    call = prepare(ConvCall(*fields))
    return _filled(_engine("causal_conv1d", engine, call).backward(dout, dfinal, call, tuple(needs)), call)


def _conv_backward_fake(dout: Tensor, dfinal: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    *fields, needs, _engine = arguments
    return _grads_fake(ConvCall(*fields), needs)


def _conv_setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _setup(ctx, inputs, output)
    ctx.save_for_backward(*inputs[:6])
    ctx.silu, ctx.engine = inputs[6:]


def _conv_autograd(ctx: Any, dout: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = [ctx.needs_input_grad[i] for i in _CONV_INPUTS]
    grads = torch.ops.seqssm.causal_conv1d_backward_v1(
        _materialised(ctx, dout), dfinal, *ctx.saved_tensors, ctx.silu, needs, ctx.engine
    )
    return _placed(grads, needs, _CONV_INPUTS, 8)


# --- autograd, common to both


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # most calls leave the final state alone: no zeros for it
    ctx.out_like = (output[0].shape, output[0].dtype, output[0].device)


def _materialised(ctx: Any, dout: Tensor | None) -> Tensor:
    if dout is not None:
        return dout
    shape, dtype, device = ctx.out_like
    return torch.zeros(shape, dtype=dtype, device=device)


def _placed(
    grads: tuple[Tensor, ...], needs: list[bool], places: tuple[int, ...], arguments: int
) -> tuple[Tensor | None, ...]:
    """Puts the gradients at the places of their arguments."""
    answer: list[Tensor | None] = [None] * arguments
    for i, grad, need in zip(places, grads, needs):
        answer[i] = grad if need else None
    return tuple(answer)


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> None:
    raise RuntimeError(
        "second derivatives of the selective scan and the causal convolution exist with engine='reference' only"
    )


def _remember_nothing(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    pass


def _register(name: str, kernel: Any, fake: Any, setup: Any, autograd: Any) -> None:
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"seqssm::{name}", fake, lib=_library)
    torch.library.register_autograd(f"seqssm::{name}", autograd, setup_context=setup, lib=_library)


_register("selective_scan_v1", _scan, _scan_fake, _scan_setup, _scan_autograd)
_register("selective_scan_backward_v1", _scan_backward, _scan_backward_fake, _remember_nothing, _no_second_derivative)
_register("causal_conv1d_v1", _conv, _conv_fake, _conv_setup, _conv_autograd)
_register("causal_conv1d_backward_v1", _conv_backward, _conv_backward_fake, _remember_nothing, _no_second_derivative)

selective_scan_v1 = torch.ops.seqssm.selective_scan_v1.default
causal_conv1d_v1 = torch.ops.seqssm.causal_conv1d_v1.default

_nothing = contextlib.nullcontext()


def below_autograd(save: bool) -> contextlib.AbstractContextManager:
    """A context for calls of an operator: where no gradient is asked for, it skips the operator's autograd layer.

    That layer is Python and would only hand the call on; for a tiny call it costs more than the scan. A graph that
    is being captured keeps it.
    """
    return _nothing if save or torch.compiler.is_compiling() else torch._C._AutoDispatchBelowAutograd()


def refuse_forward_mode(call: ScanCall | ConvCall) -> None:
    """Raises where an input carries a tangent, which an operator would drop unsaid, and inside `torch.func.grad`.

    Raises:
        RuntimeError: a derivative in forward mode, or by `torch.func.grad` or `vjp`, is asked for.
    """
    if not torch.compiler.is_compiling():
        transform = torch._C._functorch.peek_interpreter_stack()
        if transform is not None and transform.key() == torch._C._functorch.TransformType.Grad:
            raise RuntimeError(
                "torch.func.grad, vjp and jacrev go with engine='reference' only; autograd with every one"
            )
    if forward_ad._current_level < 0:  # the usual case, without a look at the tensors
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in call.inputs()):
        raise RuntimeError("derivatives in forward mode exist with engine='reference' only")
