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

from seqssm_kernels import engines
from seqssm_kernels.order import prepare
from seqssm_kernels.shapes import conv_sizes, scan_sizes, state_dtype

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

# Which arguments of an operator are the differentiable ones, in the order of the gradients that an engine gives.
_SCAN_INPUTS = (0, 1, 2, 3, 4, 5, 6, 7, 11)
_CONV_INPUTS = (0, 1, 2, 5)


def _engine(operation: str, engine: str, x: Tensor) -> Any:
    return engines.load(operation, engine or None, x.device.type, x.dtype)


def _filled(grads: tuple[Tensor | None, ...], x: Tensor) -> tuple[Tensor, ...]:
    """An operator cannot return None: an empty tensor stands for a gradient that nobody needs."""
    return tuple(x.new_empty(0) if g is None else g for g in grads)


# --- selective scan


def _scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, dt_bias: Tensor | None,
    dt_softplus: bool, order: Tensor | None, cu_seqlens: Tensor | None, initial_state: Tensor | None, save: bool,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if order is not None or cu_seqlens is not None:
        order, cu_seqlens = prepare(order, cu_seqlens, x.shape[1])
    forward = _engine("selective_scan", engine, x).forward
    return forward(x, dt, A, B, C, D, z, dt_bias, dt_softplus, order, cu_seqlens, initial_state, save)


def _scan_fake(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, z: Tensor | None, dt_bias: Tensor | None,
    dt_softplus: bool, order: Tensor | None, cu_seqlens: Tensor | None, initial_state: Tensor | None, save: bool,
    engine: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    sizes = scan_sizes(x, dt, A, B, C, D, z, dt_bias, order, cu_seqlens, initial_state)
    acc = state_dtype(x.dtype)
    out = x.new_empty((sizes.batch, sizes.length, sizes.routes, sizes.channels))
    final = x.new_empty((sizes.sequences, sizes.routes, sizes.channels, sizes.d_state), dtype=acc)
    saved = _engine("selective_scan", engine, x).saved_size(sizes, cu_seqlens is not None) if save else 0
    return out, final, x.new_empty(saved, dtype=acc)


def _scan_backward(
    dout: Tensor, dfinal: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, dt_bias: Tensor | None, dt_softplus: bool, order: Tensor | None, cu_seqlens: Tensor | None,
    initial_state: Tensor | None, saved: Tensor, needs: list[bool], engine: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    if order is not None or cu_seqlens is not None:
        order, cu_seqlens = prepare(order, cu_seqlens, x.shape[1])
    backward = _engine("selective_scan", engine, x).backward
    grads = backward(
        dout, dfinal, x, dt, A, B, C, D, z, dt_bias, dt_softplus, order, cu_seqlens, initial_state, saved, tuple(needs)
    )
    return _filled(grads, x)


def _scan_backward_fake(
    dout: Tensor, dfinal: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, dt_bias: Tensor | None, dt_softplus: bool, order: Tensor | None, cu_seqlens: Tensor | None,
    initial_state: Tensor | None, saved: Tensor, needs: list[bool], engine: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    return _filled(tuple(t.new_empty(t.shape) if t is not None and n else None for t, n in zip(inputs, needs)), x)


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


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, cu_seqlens: Tensor | None,
    state: Tensor | None, silu: bool, engine: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if order is not None or cu_seqlens is not None:
        order, cu_seqlens = prepare(order, cu_seqlens, x.shape[1])
    return _engine("causal_conv1d", engine, x).forward(x, weight, bias, order, cu_seqlens, state, silu)


def _conv_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None, cu_seqlens: Tensor | None,
    state: Tensor | None, silu: bool, engine: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    sizes = conv_sizes(x, weight, bias, order, cu_seqlens, state)
    out = x.new_empty((sizes.batch, sizes.length, sizes.routes, sizes.channels))
    final_shape = (sizes.sequences, sizes.routes, sizes.channels, sizes.width - 1)
    return out, x.new_empty(final_shape, dtype=state_dtype(x.dtype))


def _conv_backward(
    dout: Tensor, dfinal: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None,
    cu_seqlens: Tensor | None, state: Tensor | None, silu: bool, needs: list[bool], engine: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    if order is not None or cu_seqlens is not None:
        order, cu_seqlens = prepare(order, cu_seqlens, x.shape[1])
    backward = _engine("causal_conv1d", engine, x).backward
    return _filled(backward(dout, dfinal, x, weight, bias, order, cu_seqlens, state, silu, tuple(needs)), x)


def _conv_backward_fake(
    dout: Tensor, dfinal: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, order: Tensor | None,
    cu_seqlens: Tensor | None, state: Tensor | None, silu: bool, needs: list[bool], engine: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = (x, weight, bias, state)
    return _filled(tuple(t.new_empty(t.shape) if t is not None and n else None for t, n in zip(inputs, needs)), x)


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


def refuse_forward_mode(*tensors: Tensor | None) -> None:
    """Raises where a tensor carries a tangent, which an operator would drop unsaid, and inside `torch.func.grad`.

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
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise RuntimeError("derivatives in forward mode exist with engine='reference' only")
