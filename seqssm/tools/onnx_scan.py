"""The scans and the causal convolution as ONNX operators, for `torch.onnx.export`.

Each function translates one custom operator of `seqssm_kernels`. The recurrence becomes the operator ``Scan``: one
small body that runs once per step, for any length. Orders become ``GatherElements`` before it and
``ScatterElements`` after it. The arguments are those of the custom operators (`seqssm_kernels.contract.calls`), with a
route axis everywhere; batch and length may be dynamic, routes, channels and states are constants of the graph.

Annotations are evaluated by onnxscript; this module must not postpone them.
"""

from typing import Any, Tuple  # noqa: UP035 - onnxscript supports this form only

from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op
from seqssm_kernels.contract.operators import OPERATORS

FAR = 2**31 - 1  # end of a slice


@script(default_opset=op)
def recurrence(
    h: FLOAT[...], A: FLOAT[...], dt: FLOAT[...], u: FLOAT[...], b: FLOAT[...], c: FLOAT[...], keep: FLOAT[...]
) -> Tuple[FLOAT[...], FLOAT[...]]:  # noqa: UP006
    """h <- keep exp(dt A) h + u b, y = sum over the states of c h; along axis 1 of dt, u, b, c and keep."""

    @graph()
    def step(state, dt_now, u_now, b_now, c_now, keep_now):
        new = op.Add(op.Mul(op.Mul(keep_now, op.Exp(op.Mul(dt_now, A))), state), op.Mul(u_now, b_now))
        last = op.Constant(value_ints=[-1])
        return op.Identity(new), op.ReduceSum(op.Mul(new, c_now), last, keepdims=0)

    final, y = op.Scan(
        h, dt, u, b, c, keep, body=step, num_scan_inputs=5, scan_input_axes=[1, 1, 1, 1, 1], scan_output_axes=[1]
    )
    return y, final


def ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def number(value: float) -> Any:
    return op.Constant(value_float=float(value))


def sizes(tensor: Any, first: int, end: int) -> Any:
    """Sizes of some axes at run time, as a vector."""
    return op.Shape(tensor, start=first, end=end)


def filled(value: float, *parts: Any) -> Any:
    """A constant tensor; its shape is the concatenation of the vectors `parts`."""
    return op.Expand(number(value), op.Concat(*parts, axis=0))


def unpacked(cu_seqlens: Any) -> None:
    """Reject packed calls: batches of a graph have one length."""
    if cu_seqlens is not None:
        raise ValueError("packed sequences cannot be exported; use a batch of sequences of equal length")


class Walk:
    """Tensors by position (B, L, R, ...) in the order of the steps (B, S, R, ...), and back.

    Args:
        order: table (1 or B, 1 or R, S), or None for the positions in their own order.
        like: a tensor (B, L, ...).
        routes: R.
    """

    def __init__(self, order: Any, like: Any, routes: int) -> None:
        self.order, self.like, self.routes = order, like, routes
        self.keep: Any = None
        if order is not None:
            by_step = op.Transpose(op.Cast(order, to=7), perm=[0, 2, 1])  # int64 (1 or B, S, 1 or R)
            zero = ints(0)
            self.position = op.Max(by_step, zero)
            self.visited = op.Cast(op.GreaterOrEqual(by_step, zero), to=1)
            self.keep = op.Cast(op.Not(op.Equal(by_step, ints(-2))), to=1)

    def steps(self) -> Any:
        """Number of steps, as a vector."""
        return sizes(self.like, 1, 2) if self.order is None else sizes(self.position, 1, 2)

    def spread(self, tensor: Any, rank: int) -> Any:
        """A tensor (1 or B, S, 1 or R) with further axes of size 1."""
        return op.Unsqueeze(tensor, ints(*range(3, rank))) if rank > 3 else tensor

    def gather(self, tensor: Any, rank: int) -> Any:
        """Gather values by position in the order of the steps, with one copy per route."""
        batch, rest = sizes(tensor, 0, 1), sizes(tensor, 3, rank)
        if self.order is None:
            return tensor
        whole = op.Expand(tensor, op.Concat(batch, sizes(tensor, 1, 2), ints(self.routes), rest, axis=0))
        index = op.Expand(
            self.spread(self.position, rank), op.Concat(batch, self.steps(), ints(self.routes), rest, axis=0)
        )
        return op.GatherElements(whole, index, axis=1)

    def scatter(self, tensor: Any, rank: int) -> Any:
        """Scatter values by step to their positions; unvisited positions are zero."""
        if self.order is None:
            return tensor
        shape = op.Shape(tensor)
        index = op.Expand(self.spread(self.position, rank), shape)
        value = op.Mul(tensor, self.spread(self.visited, rank))  # absent steps add zero somewhere
        zero = filled(0.0, sizes(tensor, 0, 1), sizes(self.like, 1, 2), sizes(tensor, 2, rank))
        return op.ScatterElements(zero, index, value, axis=1, reduction="add")

    def keeping(self, rank: int) -> Any:
        """1, or 0 where the state is reset, broadcasting against a step of the state, (B, S, 1 or R, 1, ...)."""
        if self.order is not None:
            return self.spread(self.keep, rank)
        return filled(1.0, ints(1), self.steps(), ints(*([1] * (rank - 2))))


def routes_of(*tensors: tuple[Any, int]) -> int:
    """The largest static size of the route axes."""
    return max(int(tensor.shape[axis]) for tensor, axis in tensors if tensor is not None)


def step_size(dt: Any, dt_bias: Any, softplus: bool) -> Any:
    dt = dt if dt_bias is None else op.Add(dt, dt_bias)
    return op.Softplus(dt) if softplus else dt


def gated(y: Any, z: Any) -> Any:
    return y if z is None else op.Mul(y, op.Mul(z, op.Sigmoid(z)))


def selective_scan(
    x: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    dt_bias: Any = None,
    dt_softplus: bool = False,
    order: Any = None,
    cu_seqlens: Any = None,
    initial_state: Any = None,
    save: bool = False,
    engine: str = "",
) -> tuple[Any, Any, Any]:
    """``seqssm::selective_scan_v1``; arguments as `seqssm_kernels.contract.calls.ScanCall`."""
    unpacked(cu_seqlens)
    pairs = ((x, 2), (dt, 2), (A, 0), (B, 2), (C, 2), (D, 0), (z, 2), (order, 1), (initial_state, 1))
    routes, channels, states = routes_of(*pairs), int(x.shape[3]), int(A.shape[2])
    walk = Walk(order, x, routes)
    xs, dts = walk.gather(x, 4), walk.gather(step_size(dt, dt_bias, dt_softplus), 4)
    if order is not None:
        dts = op.Mul(dts, walk.spread(walk.visited, 4))
    h = initial_state
    if h is None:
        h = filled(0.0, sizes(x, 0, 1), ints(routes, channels, states))
    u = op.Unsqueeze(op.Mul(dts, xs), ints(4))
    b, c = op.Unsqueeze(walk.gather(B, 4), ints(3)), op.Unsqueeze(walk.gather(C, 4), ints(3))
    y, final = recurrence(h, A, op.Unsqueeze(dts, ints(4)), u, b, c, walk.keeping(5))
    y = y if D is None else op.Add(y, op.Mul(D, xs))
    return gated(walk.scatter(y, 4), z), final, filled(0.0, ints(0))


def ssd_scan(
    x: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    dt_bias: Any = None,
    dt_softplus: bool = False,
    w: Any = None,
    order: Any = None,
    cu_seqlens: Any = None,
    initial_state: Any = None,
    save: bool = False,
    engine: str = "",
) -> tuple[Any, Any, Any]:
    """``seqssm::ssd_scan_v1``; arguments as `seqssm_kernels.contract.calls.SsdCall`."""
    unpacked(cu_seqlens)
    pairs = ((x, 2), (dt, 2), (A, 0), (B, 2), (C, 2), (D, 0), (z, 2), (w, 2), (order, 1), (initial_state, 1))
    routes, heads, width = routes_of(*pairs), int(x.shape[3]), int(x.shape[4])
    groups, states = int(B.shape[3]), int(B.shape[4])
    walk = Walk(order, x, routes)
    step = step_size(dt, dt_bias, dt_softplus)
    xs, dts = walk.gather(x, 5), walk.gather(step, 4)
    weight = dts if w is None else walk.gather(w, 4)
    if order is not None:
        dts, weight = (op.Mul(one, walk.spread(walk.visited, 4)) for one in (dts, weight))

    def by_head(tensor: Any) -> Any:
        found = walk.gather(tensor, 5)
        if groups < heads:
            found = op.Unsqueeze(found, ints(4))
            shape = op.Concat(sizes(found, 0, 4), ints(heads // groups, states), axis=0)
            found = op.Reshape(op.Expand(found, shape), ints(0, 0, 0, heads, states))
        return op.Unsqueeze(found, ints(4))  # (B, S, R, H, 1, N)

    h = initial_state
    if h is None:
        h = filled(0.0, sizes(x, 0, 1), ints(routes, heads, width, states))
    u = op.Unsqueeze(op.Mul(op.Unsqueeze(weight, ints(4)), xs), ints(5))
    decay, rate = op.Unsqueeze(dts, ints(4, 5)), op.Unsqueeze(A, ints(2, 3))
    y, final = recurrence(h, rate, decay, u, by_head(B), by_head(C), walk.keeping(6))
    if D is not None:
        skip = D if len(D.shape) == 3 else op.Unsqueeze(D, ints(2))
        y = op.Add(y, op.Mul(skip, xs))
    return gated(walk.scatter(y, 5), z), final, filled(0.0, ints(0))


def causal_conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    order: Any = None,
    cu_seqlens: Any = None,
    state: Any = None,
    silu: bool = False,
    engine: str = "",
) -> tuple[Any, Any]:
    """``seqssm::causal_conv1d_v1``; arguments as `seqssm_kernels.contract.calls.ConvCall`.

    Absent steps must be the last ones of a route, as in the tables of whole sequences.
    """
    unpacked(cu_seqlens)
    routes = routes_of((x, 2), (weight, 0), (bias, 0), (order, 1), (state, 1))
    channels, taps = int(x.shape[3]), int(weight.shape[2])
    walk = Walk(order, x, routes)
    xs = walk.gather(x, 4)
    if order is None and int(x.shape[2]) < routes:
        xs = op.Expand(xs, op.Concat(sizes(x, 0, 2), ints(routes, channels), axis=0))
    before = filled(0.0, sizes(x, 0, 1), ints(taps - 1, routes, channels))
    if state is not None:
        before = op.Transpose(state, perm=[0, 3, 1, 2])
    window = op.Concat(before, xs, axis=1) if taps > 1 else xs
    y = None
    for tap in range(taps):
        end = FAR if tap == taps - 1 else tap - taps + 1
        part = op.Slice(window, ints(tap), ints(end), ints(1))
        scaled = op.Mul(part, op.Squeeze(op.Slice(weight, ints(tap), ints(tap + 1), ints(2)), ints(2)))
        y = scaled if y is None else op.Add(y, scaled)
    y = y if bias is None else op.Add(y, bias)
    y = op.Mul(y, op.Sigmoid(y)) if silu else y
    rest = op.Slice(window, ints(1 - taps), ints(FAR), ints(1)) if taps > 1 else before
    return walk.scatter(y, 4), op.Transpose(rest, perm=[0, 2, 3, 1])


TABLE: dict[Any, Any] = {
    OPERATORS["selective_scan"]: selective_scan,
    OPERATORS["ssd_scan"]: ssd_scan,
    OPERATORS["causal_conv1d"]: causal_conv1d,
}
"""Custom operator -> its translation, for ``torch.onnx.export(custom_translation_table=TABLE)``."""
