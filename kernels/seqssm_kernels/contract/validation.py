"""Checks of shapes, dtypes and devices, shared by the public functions; tensor values are not read."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from seqssm_kernels.contract.calls import AnyCall
from seqssm_kernels.contract.order import INTEGER_DTYPES

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_PLAIN = (Tensor, torch.nn.Parameter)

# A size of None matches 1 or the number of routes.
Shape = tuple[int | None, ...]


def name_of(dtype: torch.dtype) -> str:
    """Name of a dtype without the prefix: `float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def check_kind(name: str, t: object, dims: tuple[int, ...], meaning: str) -> None:
    """Raise unless `t` is a tensor whose number of axes is in `dims`."""
    if not isinstance(t, Tensor):
        raise ValueError(f"{name} must be a tensor {meaning}, got {type(t).__name__}")
    if t.dim() not in dims:
        raise ValueError(f"{name} must be {meaning}, got shape {tuple(t.shape)}")


def check_float(function: str, t: Tensor, name: str = "x") -> None:
    """Raise unless the operation supports the dtype of `t`, which determines that of the output."""
    if t.dtype not in FLOAT_DTYPES:
        hint = "; complex parameters (S4-style) are not supported" if t.is_complex() else ""
        raise ValueError(
            f"{function} takes {', '.join(map(name_of, FLOAT_DTYPES))}, {name} is {name_of(t.dtype)}{hint}"
        )


def check_dtype(name: str, t: Tensor, allowed: tuple[torch.dtype, ...], source: str, dtype: torch.dtype) -> None:
    """Raise unless `t` has one of the dtypes that are allowed where the argument `source` is of `dtype`."""
    if t.dtype not in allowed:
        hint = "; complex parameters (S4-style) are not supported" if t.is_complex() else ""
        names = " or ".join(dict.fromkeys(map(name_of, allowed)))
        raise ValueError(f"{name} must be {names} where {source} is {name_of(dtype)}, got {name_of(t.dtype)}{hint}")


def check_shape(name: str, t: Tensor, shape: Shape, routes: int, layout: str, route_axis: bool) -> None:
    """Raise unless `t` has `shape`, where None matches 1 or the number of routes."""
    actual = t.shape
    if len(actual) == len(shape) and all(
        (n == 1 or n == routes) if want is None else n == want for n, want in zip(actual, shape)
    ):
        return
    _shape_error(name, t, shape, routes, layout, route_axis)


def _shape_error(name: str, t: Tensor, shape: Shape, routes: int, layout: str, route_axis: bool) -> NoReturn:
    axes = layout.split(", ")
    if route_axis:
        wanted = ", ".join(
            "1" if n is None and routes == 1 else f"1 or {routes}" if n is None else str(n) for n in shape
        )
        actual = tuple(t.shape)
    else:  # hide the route axis, which the caller did not pass
        at = next(i for i, a in enumerate(axes) if "R" in a)
        axes = axes[:at] + axes[at + 1 :]
        wanted = ", ".join(str(n) for i, n in enumerate(shape) if i != at)
        actual = tuple(n for i, n in enumerate(t.shape) if i != at)
    raise ValueError(f"{name} has shape {actual}, expected ({', '.join(axes)}) = ({wanted})")


def check_device(name: str, t: Tensor, x: Tensor) -> None:
    """Raise unless `t` is on the device of `x`."""
    if t.device != x.device:
        raise ValueError(f"{name} is on {t.device} and x on {x.device}: all tensors must be on one device")


def check_tables(order: Tensor | None, cu_seqlens: Tensor | None, x: Tensor, routes: int) -> None:
    """Check type, shape and device of `order (1 or B, 1 or R, S)` and `cu_seqlens (n + 1,)`.

    Args:
        order: order table with three axes, or None.
        cu_seqlens: boundaries of packed sequences, or None.
        x: input `(B, L, 1 or R, E)`.
        routes: number of routes `R`.
    """
    batch = x.shape[0]
    if order is not None:
        if order.dtype not in INTEGER_DTYPES:
            raise ValueError(f"order must contain integers, got {name_of(order.dtype)}")
        if order.shape[0] not in (1, batch) or order.shape[1] not in (1, routes):
            raise ValueError(
                f"order has shape {tuple(order.shape)}, expected (1 or B, 1 or R, S) with B = {batch} and R = {routes}"
            )
        check_device("order", order, x)
    if cu_seqlens is not None:
        if cu_seqlens.dtype not in (torch.int32, torch.int64) or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
            raise ValueError(
                f"cu_seqlens must be int32 (n + 1,), got {name_of(cu_seqlens.dtype)} {tuple(cu_seqlens.shape)}"
            )
        if batch != 1:
            raise ValueError(f"cu_seqlens packs sequences into one batch element, but x has batch size {batch}")
        check_device("cu_seqlens", cu_seqlens, x)


def check_axes_of_tables(order: Tensor | None, cu_seqlens: Tensor | None) -> None:
    """Raise unless both tables are None or tensors with the expected number of axes."""
    if order is not None:
        check_kind("order", order, (2, 3), "(1 or R, S) or (B, 1 or R, S)")
    if cu_seqlens is not None:
        check_kind("cu_seqlens", cu_seqlens, (1,), "int32 (n + 1,)")


def signature_of(engine: str | None, call: AnyCall) -> tuple | None:
    """Cache key of everything that the checks depend on; None if an argument is not a tensor, None or bool."""
    try:
        return (engine, *[t if t is None or t is True or t is False else (t.shape, t.dtype, t.device) for t in call])
    except AttributeError:
        return None


def any_requires_grad(call: AnyCall) -> bool:
    """Whether a gradient of some input is required."""
    if torch.is_grad_enabled():
        for t in call.inputs():
            if t is not None and t.requires_grad:
                return True
    return False


def is_plain(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a call is eager and no gradient of it is required."""
    if not is_eager(tensors):
        return False
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return False
    return True


def is_eager(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a call may bypass the custom operators: no transform, mode or subclass is involved.

    All other calls are traced or transformed and must go through an operator.
    """
    if torch.compiler.is_compiling():
        return False
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    ):
        return False
    for t in tensors:  # noqa: SIM110  (a generator takes twice as long)
        if t is not None and type(t) not in _PLAIN:
            return False
    return True


class Seen:
    """Cache of the signatures of valid calls, so that a loop over equal shapes is checked once.

    None and unhashable keys (such as symbolic sizes while a graph is captured) are not cached.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._passed: dict[tuple | None, tuple] = {}
        self._limit = limit

    def get(self, signature: tuple | None) -> tuple | None:
        """Return the cached result for this signature, or None."""
        try:
            return self._passed.get(signature)
        except TypeError:
            return None

    def put(self, signature: tuple | None, answer: tuple) -> None:
        """Cache the result of the checks."""
        if signature is None:
            return
        try:
            if len(self._passed) >= self._limit:
                self._passed.clear()
            self._passed[signature] = answer
        except TypeError:
            pass
