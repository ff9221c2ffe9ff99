"""Calls of the operations with random arguments, and the comparison of their results by RMS ratio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from seqssm_kernels import (
    causal_conv1d,
    causal_conv1d_step,
    selective_scan,
    selective_scan_int8,
    selective_scan_step,
    ssd_scan,
    ssd_scan_int8,
    ssd_step,
)
from torch import Tensor

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass
class Call:
    """A call with its arguments by name; results are `out`, `final_state` and one gradient per float argument."""

    function: Callable
    floats: tuple[str, ...]
    tensors: dict[str, Tensor | None]
    options: dict[str, Any] = field(default_factory=dict)

    def given(self) -> dict[str, Tensor]:
        """The tensors that are not None."""
        return {name: t for name, t in self.tensors.items() if t is not None}

    def leaves(self) -> dict[str, Tensor]:
        """The tensors that are not None; floating-point ones require a gradient."""
        return {n: t.detach().requires_grad_() if t.is_floating_point() else t for n, t in self.given().items()}

    def on(self, device: str) -> Call:
        """Move the tensors to a device."""
        self.tensors = {name: t if t is None else t.to(device) for name, t in self.tensors.items()}
        return self

    def run(self, engine: str | None, *, double: bool = False, grads: bool = True, only: tuple | None = None) -> dict:
        """Outputs and gradients; with `double` on the inputs upcast to float64."""
        arguments = self.given()
        leaves = {}
        for name in self.floats:
            if name in arguments:
                t = arguments[name].detach()
                t = t.double() if double else t
                if grads and (only is None or name in only):
                    leaves[name] = t = t.requires_grad_()
                arguments[name] = t
        out, final = self.function(**arguments, **self.options, return_final_state=True, engine=engine)
        result = {"out": out.detach(), "final_state": final.detach()}
        if grads:
            # Weights that differ from element to element, and are exact in every dtype.
            weights = [((torch.arange(t.numel()) % 7 - 3) / 4).view(t.shape).to(t) for t in (out, final)]
            found = torch.autograd.grad((out, final), list(leaves.values()), weights, allow_unused=True)
            for (name, leaf), grad in zip(leaves.items(), found):
                result[f"d{name}"] = torch.zeros_like(leaf) if grad is None else grad
        return result

    def differentiable(self, engine: str = "reference") -> tuple[Callable, list[Tensor]]:
        """A function of the float tensors, and these as leaves, for `gradcheck`."""
        given = self.leaves()
        names = [name for name in self.floats if name in given]

        def function(*values: Tensor) -> tuple[Tensor, Tensor]:
            arguments = given | dict(zip(names, values))
            return self.function(**arguments, **self.options, return_final_state=True, engine=engine)

        return function, [given[name] for name in names]

    def require_refused(self, change: dict[str, Callable], message: str, engine: str) -> None:
        """Require a ValueError with `message` after the named arguments are replaced by functions of them."""
        arguments: dict[str, Any] = self.given() | {"engine": engine}
        for name, function in change.items():
            arguments[name] = function(arguments.get(name))
        with pytest.raises(ValueError, match=message):
            self.function(**arguments)


def rms_ratio(value: Tensor, reference: Tensor) -> float:
    """RMS(difference) / RMS(reference); 0 where both are zero or empty."""
    if value.numel() == 0:
        return 0.0
    difference = (value.double() - reference.double()).square().mean().sqrt()
    size = reference.double().square().mean().sqrt()
    return 0.0 if difference == 0 else float(difference / size)


def assert_close(value: dict, reference: dict, tolerance: float) -> None:
    assert value.keys() == reference.keys()
    for name in reference:
        assert value[name].shape == reference[name].shape, name
        assert torch.isfinite(value[name]).all(), f"{name} is not finite"
        ratio = rms_ratio(value[name], reference[name])
        # Gradients of halves are rounded to halves, states and parameters are float32 throughout.
        assert ratio < tolerance, f"{name}: RMS ratio {ratio:.2e} above {tolerance:.0e}"


def assert_equal(value: dict, reference: dict) -> None:
    for name in reference:
        assert torch.equal(value[name], reference[name]), name


@dataclass
class Draw:
    """Random tensors of a call; the fields are the options of `scan_call`, `ssd_call` and `conv_call` alike.

    Args:
        dtype: dtype of x and of the tensors that must have the same dtype.
        mixed: whether tensors that may be float32 with a narrower x are float32.
        shared: names of the arguments with one route for all.
        state: whether there is an initial state.
        seed: seed of all random numbers.
    """

    batch: int
    length: int
    routes: int
    dtype: torch.dtype = torch.float32
    mixed: bool = False
    shared: tuple[str, ...] = ()
    state: bool = True
    order: Tensor | None = None
    cu_seqlens: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.other = self.wide if self.mixed else self.dtype

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def by_route(self, name: str, *shape: int) -> tuple[int, ...]:
        """The shape of a parameter."""
        return (1 if name in self.shared else self.routes, *shape)

    def by_position(self, name: str, *shape: int) -> tuple[int, ...]:
        """The shape of a tensor with a value per position."""
        return (self.batch, self.length, *self.by_route(name, *shape))

    def initial_state(self, *shape: int) -> Tensor | None:
        rows = self.batch if self.cu_seqlens is None else len(self.cu_seqlens) - 1
        return self.normal(rows, self.routes, *shape).to(self.wide) if self.state else None

    def tables(self) -> dict[str, Tensor | None]:
        return {"order": self.order, "cu_seqlens": self.cu_seqlens}


@dataclass
class ScanDraw(Draw):
    """Random tensors of a scan as in a Mamba layer.

    Args:
        dt: range of the step sizes, after softplus if it is applied.
    """

    z: bool = True
    dt_bias: bool = True
    dt_softplus: bool = True
    w: bool = False
    dt: tuple[float, float] = (1e-3, 0.3)

    def steps(self, count: int) -> Tensor:
        """Log-uniform step sizes."""
        low, high = torch.tensor(self.dt, dtype=torch.float64).log()
        steps = torch.exp(low + self.uniform(*self.by_position("dt", count)) * (high - low))
        return torch.log(torch.expm1(steps)) if self.dt_softplus else steps

    def positions(self, name: str, *shape: int) -> Tensor:
        return self.normal(*self.by_position(name, *shape))

    def tensors(
        self, x: tuple[int, ...], rate: tuple[int, ...], B: tuple[int, ...], D: tuple[int, ...] | None, N: int
    ) -> dict[str, Tensor | None]:
        """All tensors, from the shapes after the route axis of x, of a rate with its states, of B and of D."""
        steps = self.steps(rate[0])
        A = -self.uniform(*self.by_route("A", *rate))
        return {
            "x": self.positions("x", *x).to(self.dtype),
            "dt": steps.to(self.other),
            # A rate per state falls with its index, as in Mamba; a rate per head lies between -4 and -1.
            "A": (2 * A - torch.arange(1, N + 1) if len(rate) > 1 else 3 * A - 1).to(self.wide),
            "B": self.positions("B", *B).to(self.other),
            "C": self.positions("C", *B).to(self.other),
            "D": None if D is None else self.normal(*self.by_route("D", *D)).to(self.wide),
            "z": self.positions("z", *x).to(self.dtype) if self.z else None,
            # Without softplus a negative step would let the state grow.
            "dt_bias": self.normal(*self.by_route("dt_bias", rate[0])).abs().mul(0.1).to(self.wide)
            if self.dt_bias
            else None,
            "w": self.positions("w", rate[0]).to(self.other) if self.w else None,
            "initial_state": self.initial_state(*x, N),
            **self.tables(),
        }


def scan_call(
    batch: int = 2,
    length: int = 12,
    routes: int = 1,
    channels: int = 3,
    d_state: int = 4,
    *,
    D: bool = True,
    **options: Any,
) -> Call:
    """Random arguments of a selective scan; `options` are fields of `ScanDraw`."""
    draw = ScanDraw(batch, length, routes, **options)
    tensors = draw.tensors((channels,), (channels, d_state), (d_state,), (channels,) if D else None, d_state)
    del tensors["w"]
    return Call(selective_scan, SCAN.floats, tensors, {"dt_softplus": draw.dt_softplus})


def ssd_call(
    batch: int = 2,
    length: int = 12,
    routes: int = 1,
    heads: int = 2,
    head_dim: int = 3,
    groups: int = 1,
    d_state: int = 4,
    *,
    D: str | None = "heads",
    **options: Any,
) -> Call:
    """Random arguments of a Mamba-2 scan; D is per `heads` or `channels`, `options` are fields of `ScanDraw`."""
    draw = ScanDraw(batch, length, routes, **options)
    skip = {"heads": (heads,), "channels": (heads, head_dim), None: None}[D]
    tensors = draw.tensors((heads, head_dim), (heads,), (groups, d_state), skip, d_state)
    return Call(ssd_scan, SSD.floats, tensors, {"dt_softplus": draw.dt_softplus})


def conv_call(
    batch: int = 2,
    length: int = 12,
    routes: int = 1,
    channels: int = 3,
    width: int = 4,
    *,
    bias: bool = True,
    activation: str | None = None,
    **options: Any,
) -> Call:
    """Random arguments of a convolution; `options` are fields of `Draw`."""
    draw = Draw(batch, length, routes, **options)
    tensors: dict[str, Tensor | None] = {
        "x": draw.normal(*draw.by_position("x", channels)).to(draw.dtype),
        "weight": draw.normal(*draw.by_route("weight", channels, width)).to(draw.other),
        "bias": draw.normal(*draw.by_route("bias", channels)).to(draw.other) if bias else None,
        "state": draw.initial_state(channels, width - 1),
        **draw.tables(),
    }
    return Call(causal_conv1d, CONV.floats, tensors, {"activation": activation})


def integer_call(call: Call, seed: int = 0) -> Call:
    """The scan of the same kind of 8-bit integers, whose x, B and C are those of `call`, rounded to random scales."""
    g = torch.Generator().manual_seed(seed)
    tensors, dtype = dict(call.tensors), call.tensors["x"].dtype  # type: ignore[union-attr]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    tensors.pop("w", None)
    for name in ("x", "B", "C"):
        t: Any = tensors[name]
        shape = (t.shape[2], *t.shape[3:])
        scale = (0.02 + 0.06 * torch.rand(shape, generator=g, dtype=torch.float64)).to(wide)
        tensors[name] = (t.double() / scale).round().clamp(-128, 127).to(torch.int8)
        tensors[f"{name}_scale"] = scale
    for name in ("dt", "z"):
        tensors[name] = None if tensors[name] is None else tensors[name].to(dtype)  # type: ignore[union-attr]
    floats = ("dt", "A", "x_scale", "B_scale", "C_scale", "D", "z", "dt_bias", "initial_state")
    function = selective_scan_int8 if call.function is selective_scan else ssd_scan_int8
    return Call(function, floats, tensors, call.options)


def values_of(call: Call) -> Call:
    """The float scan of an integer call: integers times scales, in float32 or float64."""
    tensors = dict(call.tensors)
    for name in ("x", "B", "C"):
        scale: Any = tensors.pop(f"{name}_scale")
        tensors[name] = tensors[name].to(scale.dtype) * scale  # type: ignore[union-attr]
    function, floats = (selective_scan, SCAN.floats) if call.function is selective_scan_int8 else (ssd_scan, SSD.floats)
    return Call(function, tuple(name for name in floats if name != "w"), tensors, call.options)


@dataclass(frozen=True)
class Operation:
    """An operation as the common tests need it.

    Attributes:
        name: name in the ids of tests.
        make: function that builds a call from batch, length, routes and further sizes.
        floats: names of the float arguments, the initial state last.
        by_position: names of the arguments with a value per position.
    """

    name: str
    make: Callable[..., Call]
    function: Callable
    step: Callable
    floats: tuple[str, ...]
    by_position: tuple[str, ...]

    @property
    def state(self) -> str:
        """Name of the initial state."""
        return self.floats[-1]

    def present(self, call: Call) -> list[str]:
        """Names of the tensors with a value per position that `call` has."""
        return [name for name in self.by_position if call.tensors[name] is not None]


SCAN = Operation(
    "scan",
    scan_call,
    selective_scan,
    selective_scan_step,
    ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"),
    ("x", "dt", "B", "C", "z"),
)
SSD = Operation(
    "ssd",
    ssd_call,
    ssd_scan,
    ssd_step,
    ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "w", "initial_state"),
    ("x", "dt", "B", "C", "z", "w"),
)
CONV = Operation("conv", conv_call, causal_conv1d, causal_conv1d_step, ("x", "weight", "bias", "state"), ("x",))
OPERATIONS = (SCAN, SSD, CONV)


ORDER_KINDS = ("none", "reverse", "shuffled", "subset", "gaps", "resets", "per sample")


def make_order(kind: str, batch: int, length: int, routes: int, seed: int = 0) -> Tensor | None:
    """A table of the given kind, `(1 or R, S)` or `(B, 1 or R, S)`."""
    g = torch.Generator().manual_seed(seed)

    def permutation() -> Tensor:
        return torch.randperm(length, generator=g)

    def with_ids(ids: Tensor, extra: int, count: int) -> Tensor:
        mixed = torch.cat([ids, torch.full((count,), extra)])
        where = torch.randperm(len(mixed), generator=g)
        return mixed[where]

    if kind == "none":
        return None
    if kind == "reverse":
        return torch.arange(length - 1, -1, -1)[None].to(torch.int32)
    if kind == "shuffled":
        return torch.stack([permutation() for _ in range(routes)])
    if kind == "subset":
        return torch.stack([permutation()[: (length + 1) // 2] for _ in range(routes)]).to(torch.int32)
    if kind == "gaps":
        return torch.stack([with_ids(permutation(), -1, 5) for _ in range(routes)])
    if kind == "resets":
        return torch.stack([with_ids(with_ids(permutation(), -2, 3), -1, 2) for _ in range(routes)])
    assert kind == "per sample"
    rows = [[with_ids(permutation(), -1, 3) for _ in range(routes)] for _ in range(batch)]
    return torch.stack([torch.stack(row) for row in rows]).to(torch.int32)


def make_cu_seqlens(steps: int, count: int, seed: int = 0) -> Tensor:
    """Bounds of `count` sequences, some of length zero."""
    g = torch.Generator().manual_seed(seed)
    inner = torch.randint(0, steps + 1, (count - 1,), generator=g).sort().values
    return torch.cat([torch.tensor([0]), inner, torch.tensor([steps])]).to(torch.int32)


LAYOUTS = ("contiguous", "transposed", "sliced", "expanded")


def laid_out(call: Call, layout: str) -> Call:
    """Give A and the tensors with a position axis another layout in memory."""

    def change(t: Tensor) -> Tensor:
        if layout == "transposed":
            return t.transpose(1, -1).contiguous().transpose(1, -1)
        if layout == "sliced":
            return torch.cat([t, torch.full_like(t, torch.nan)], dim=-1)[..., : t.shape[-1]]
        if layout == "expanded":
            return t[:1].expand_as(t)
        return t

    for name in ("x", "dt", "B", "C", "z", "w", "A"):
        t = call.tensors.get(name)
        if t is not None:
            call.tensors[name] = change(t)
    return call


def build(make: Callable[..., Call], options: dict[str, Any], seed: int = 0) -> Call:
    """A call from a row of options.

    Args:
        make: `make` of an operation.
        options: arguments of `make`, and `kind` of the order, `packed` (number of sequences, True: 4; the batch is 1)
            and `layout` in memory.
        seed: seed of all random numbers.
    """
    options = {"batch": 2, "routes": 1, "kind": "none", "packed": False, "layout": "contiguous"} | options
    batch, kind, packed, layout = (options.pop(name) for name in ("batch", "kind", "packed", "layout"))
    batch = 1 if packed else batch
    length, routes = options["length"], options["routes"]
    order = make_order(kind, batch, length, routes, seed)
    sequences = 4 if packed is True else packed
    cu = make_cu_seqlens(length if order is None else order.shape[-1], sequences, seed) if packed else None
    return laid_out(make(batch, order=order, cu_seqlens=cu, seed=seed, **options), layout)
