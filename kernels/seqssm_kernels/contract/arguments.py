"""Layouts and dtypes of the arguments of every operation in one table, which defines checks and the canonical form.

A layout names the axes of a tensor by the letters of its sizes: batch `B`, positions `L`, routes `R`, channels of a
route `E` and so on; `B or n` is `n` in a packed call. Calls without the route axis use the same layouts without `R`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch

from seqssm_kernels.contract import engines
from seqssm_kernels.contract.calls import (
    AnyCall,
    ConvCall,
    ScanCall,
    ScanInt8Call,
    SsdCall,
    SsdInt8Call,
    state_dtype,
)
from seqssm_kernels.contract.order import check_sizes
from seqssm_kernels.contract.validation import (
    check_axes_of_tables,
    check_device,
    check_dtype,
    check_float,
    check_kind,
    check_shape,
    check_tables,
)

Call = TypeVar("Call", ScanCall, ConvCall, SsdCall, ScanInt8Call, SsdInt8Call)


class Argument(NamedTuple):
    """One tensor of an operation.

    Attributes:
        layouts: axes in canonical form; with two layouts, the number of axes decides.
        dtype: `x` for the dtype of the output, `step` for that or float32, `sum` for float32 (float64 with float64),
            `int8`.
        optional: whether it may be absent.
    """

    layouts: tuple[tuple[str, ...], ...]
    dtype: str
    optional: bool = False


def _argument(layout: str, dtype: str, *, optional: bool = False) -> Argument:
    return Argument(tuple(tuple(one.split(", ")) for one in layout.split(" | ")), dtype, optional)


ARGUMENTS: dict[Any, dict[str, Argument]] = {
    ScanCall: {
        "x": _argument("B, L, R, E", "x"),
        "dt": _argument("B, L, R, E", "step"),
        "A": _argument("R, E, N", "sum"),
        "B": _argument("B, L, R, N", "step"),
        "C": _argument("B, L, R, N", "step"),
        "D": _argument("R, E", "sum", optional=True),
        "z": _argument("B, L, R, E", "x", optional=True),
        "dt_bias": _argument("R, E", "sum", optional=True),
        "initial_state": _argument("B or n, R, E, N", "sum", optional=True),
    },
    ConvCall: {
        "x": _argument("B, L, R, E", "x"),
        "weight": _argument("R, E, W", "step"),
        "bias": _argument("R, E", "step", optional=True),
        "state": _argument("B or n, R, E, W - 1", "sum", optional=True),
    },
    SsdCall: {
        "x": _argument("B, L, R, H, P", "x"),
        "dt": _argument("B, L, R, H", "step"),
        "A": _argument("R, H", "sum"),
        "B": _argument("B, L, R, G, N", "step"),
        "C": _argument("B, L, R, G, N", "step"),
        "D": _argument("R, H | R, H, P", "sum", optional=True),
        "z": _argument("B, L, R, H, P", "x", optional=True),
        "dt_bias": _argument("R, H", "sum", optional=True),
        "w": _argument("B, L, R, H", "step", optional=True),
        "initial_state": _argument("B or n, R, H, P, N", "sum", optional=True),
    },
    ScanInt8Call: {
        "x": _argument("B, L, R, E", "int8"),
        "dt": _argument("B, L, R, E", "x"),
        "A": _argument("R, E, N", "sum"),
        "B": _argument("B, L, R, N", "int8"),
        "C": _argument("B, L, R, N", "int8"),
        "x_scale": _argument("R, E", "sum"),
        "B_scale": _argument("R, N", "sum"),
        "C_scale": _argument("R, N", "sum"),
        "D": _argument("R, E", "sum", optional=True),
        "z": _argument("B, L, R, E", "x", optional=True),
        "dt_bias": _argument("R, E", "sum", optional=True),
        "initial_state": _argument("B or n, R, E, N", "sum", optional=True),
    },
    SsdInt8Call: {
        "x": _argument("B, L, R, H, P", "int8"),
        "dt": _argument("B, L, R, H", "x"),
        "A": _argument("R, H", "sum"),
        "B": _argument("B, L, R, G, N", "int8"),
        "C": _argument("B, L, R, G, N", "int8"),
        "x_scale": _argument("R, H, P", "sum"),
        "B_scale": _argument("R, G, N", "sum"),
        "C_scale": _argument("R, G, N", "sum"),
        "D": _argument("R, H | R, H, P", "sum", optional=True),
        "z": _argument("B, L, R, H, P", "x", optional=True),
        "dt_bias": _argument("R, H", "sum", optional=True),
        "initial_state": _argument("B or n, R, H, P, N", "sum", optional=True),
    },
}


# Computed once because `canonical` runs on every call: number of axes of `x`, and for each tensor its index in the call
# and the index of its route axis.
_AXES_OF_X = {kind: len(arguments["x"].layouts[0]) for kind, arguments in ARGUMENTS.items()}
_ROUTE_AXES = {
    kind: tuple((kind._fields.index(name), a.layouts[0].index("R")) for name, a in arguments.items())
    for kind, arguments in ARGUMENTS.items()
}


def _text(layout: tuple[str, ...], *without: str) -> str:
    return f"({', '.join(axis for axis in layout if axis not in without)})"


def _both(layout: tuple[str, ...], *without: str) -> str:
    return f"{_text(layout, *without)} or {_text(layout, 'R', *without)}"


def has_route_axis(call: AnyCall) -> bool:
    """Whether the tensors of a call have the route axis, determined by `x`."""
    return call.x.dim() == _AXES_OF_X[type(call)]


def canonical(call: Call) -> Call:
    """Return `call` with the route axis in every tensor and the batch axis in the order."""
    order, kind = call.order, type(call)
    if call.x.dim() != _AXES_OF_X[kind]:
        values: list[Any] = list(call)
        for i, axis in _ROUTE_AXES[kind]:
            t = values[i]
            if t is not None:
                values[i] = t.unsqueeze(axis)
        call = kind(*values)
    return call._replace(order=order.unsqueeze(0)) if order is not None and order.dim() == 2 else call


def with_length(call: Call) -> Call:
    """Convert a call of one step, whose tensors have no axis `L`, to a call of length 1.

    Raises:
        ValueError: an argument that is not a tensor or has a wrong number of axes.
    """
    arguments = ARGUMENTS[type(call)]
    layout = arguments["x"].layouts[0]
    check_kind("x", call.x, (len(layout) - 2, len(layout) - 1), _both(layout, "L"))
    missing = len(layout) - 1 - call.x.dim()  # 1 without the route axis
    new: dict[str, Any] = {}
    for name, argument in arguments.items():
        t: Any = getattr(call, name)
        own: tuple[str, ...] = argument.layouts[0]
        if own[0] == "B or n":
            axes = ("B", *own[1:])
            check_kind("state", t, (len(axes) - missing,), _both(axes))
        elif "L" in own and (t is not None or not argument.optional):
            n_axes = len(own) - 1 - missing
            check_kind(name, t, (n_axes,), f"of {n_axes} axes, one step like x")
            new[name] = t.unsqueeze(1)
    return call._replace(**new)


def check(operation: str, call: Call, engine: str | None) -> tuple[bool, str]:
    """Check kinds, dtypes, devices and shapes of a call.

    Args:
        operation: name of the operation, as in `engines.OPERATIONS`.
        call: arguments as the caller gave them.
        engine: engine that the caller requests, or None.

    Returns:
        Whether the tensors have the route axis, and the name of the engine that runs the call.

    Raises:
        ValueError: the first invalid argument, or an engine that does not support the call.
    """
    arguments, x = ARGUMENTS[type(call)], call.x
    layout = arguments["x"].layouts[0]
    check_kind("x", x, (len(layout) - 1, len(layout)), _both(layout))
    integers = arguments["x"].dtype == "int8"
    source = "dt" if integers else "x"
    given_floats: Any = getattr(call, source)
    if integers:
        check_kind("dt", given_floats, (len(arguments["dt"].layouts[0]) - 1, len(arguments["dt"].layouts[0])), "a step")
    check_float(operation, given_floats, source)
    floats = given_floats.dtype
    route_axis = has_route_axis(call)
    with_axis = "with the route axis, like x" if route_axis else "without the route axis, like x"
    dtypes = {
        "x": (floats,), "step": (floats, torch.float32), "sum": (state_dtype(floats),), "int8": (torch.int8,)
    }  # fmt: skip
    given = {}
    for name, argument in arguments.items():
        t = getattr(call, name)
        if t is None and argument.optional:
            continue
        axes = tuple(len(one) - (not route_axis) for one in argument.layouts)
        check_kind(name, t, axes, f"of {' or '.join(map(str, axes))} axes ({with_axis})")
        given[name] = t
    for name, t in given.items():
        check_dtype(name, t, dtypes[arguments[name].dtype], source, floats)
        check_device(name, t, x)
    check_axes_of_tables(call.order, call.cu_seqlens)
    call = canonical(call)
    if call.order is not None and not route_axis and call.order.shape[1] != 1:
        raise ValueError(f"order has {call.order.shape[1]} routes, but the tensors have no route axis: add one")
    _check_shapes(call, route_axis)
    return route_axis, engines.choose_engine(operation, engine, x.device.type, floats)


def _check_shapes(call: Call, route_axis: bool) -> None:
    """Check every shape of a call in canonical form."""
    sizes = call.sizes()
    letters = sizes.letters()
    empty = [axis for axis, size in letters.items() if size < 1 and axis not in ("B", "L", "B or n", "W - 1")]
    if empty:
        got = ", ".join(f"{axis} = {size}" for axis, size in letters.items() if axis in empty)
        raise ValueError(f"routes, channels, states and window must be at least 1, got {got}")
    if letters.get("H", 1) % letters.get("G", 1):
        raise ValueError(
            f"the number of groups must divide the number of heads, got G = {letters['G']} and H = {letters['H']}"
        )
    check_sizes(sizes.length, sizes.steps)
    batch = "B" if call.cu_seqlens is None else "n"
    for name, argument in ARGUMENTS[type(call)].items():
        t = getattr(call, name)
        is_state = argument.layouts[0][0] == "B or n"  # listed last; the tables determine its number of rows
        if is_state:
            check_tables(call.order, call.cu_seqlens, call.x, sizes.routes)
        if t is None:
            continue
        layout = next(one for one in argument.layouts if len(one) == t.dim())
        # Routes may share a tensor (size 1 on the route axis), but not a state.
        shape = tuple(None if axis == "R" and not is_state else letters[axis] for axis in layout)
        shown = ", ".join(batch if axis == "B or n" else axis for axis in layout)
        check_shape(name, t, shape, sizes.routes, shown, route_axis)
