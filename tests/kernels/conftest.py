"""Cases of the scan and the convolution, their float64 oracle, and the comparison by RMS ratio, as fixtures."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from seqssm_kernels import causal_conv1d, selective_scan, ssd_scan
from torch import Tensor

ENGINES = ["torch", "numba"]

SCAN_FLOATS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
SSD_FLOATS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "w", "initial_state")
CONV_FLOATS = ("x", "weight", "bias", "state")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(params=ENGINES, scope="session")
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """Fresh memory holds NaN: what an engine forgets to write shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


@dataclass
class Call:
    """A call with its arguments by name; results are `out`, `final_state` and one gradient a float argument."""

    function: Callable
    floats: tuple[str, ...]
    tensors: dict[str, Tensor | None]
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, engine: str | None, *, double: bool = False, grads: bool = True, only: tuple | None = None) -> dict:
        """Outputs and gradients; with `double` on the inputs upcast to float64."""
        arguments = dict(self.tensors)
        leaves = {}
        for name in self.floats:
            t = arguments.get(name)
            if t is not None:
                t = t.detach()
                t = t.double() if double else t
                if grads and (only is None or name in only):
                    leaves[name] = t = t.requires_grad_()
                arguments[name] = t
        out, final = self.function(
            **{k: v for k, v in arguments.items() if v is not None},
            **self.options,
            return_final_state=True,
            engine=engine,
        )
        result = {"out": out.detach(), "final_state": final.detach()}
        if grads:
            # Weights that differ from element to element, and are exact in every dtype.
            weights = [((torch.arange(t.numel()) % 7 - 3) / 4).view(t.shape).to(t) for t in (out, final)]
            found = torch.autograd.grad((out, final), list(leaves.values()), weights, allow_unused=True)
            for (name, leaf), grad in zip(leaves.items(), found):
                result[f"d{name}"] = torch.zeros_like(leaf) if grad is None else grad
        return result


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


def scan_call(
    batch: int = 2,
    length: int = 12,
    routes: int = 1,
    channels: int = 3,
    d_state: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    mixed: bool = False,
    shared: tuple[str, ...] = (),
    D: bool = True,
    z: bool = True,
    dt_bias: bool = True,
    dt_softplus: bool = True,
    state: bool = True,
    order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt: tuple[float, float] = (1e-3, 0.3),
    seed: int = 0,
) -> Call:
    """Random arguments as a Mamba layer would give them.

    Args:
        mixed: whether dt, B and C are float32 where x is not.
        shared: names of the arguments with one route for all.
        dt: the range of the step sizes, after softplus where that is applied.
    """
    g = torch.Generator().manual_seed(seed)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    other = torch.float32 if mixed and dtype != torch.float64 else dtype

    def r(name: str) -> int:
        return 1 if name in shared else routes

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    steps = torch.rand(batch, length, r("dt"), channels, generator=g, dtype=torch.float64)
    steps = torch.exp(steps * (torch.tensor(dt[1]).log() - torch.tensor(dt[0]).log()) + torch.tensor(dt[0]).log())
    if dt_softplus:
        steps = torch.log(torch.expm1(steps))
    A = -torch.rand(r("A"), channels, d_state, generator=g, dtype=torch.float64) * 2 - torch.arange(1, d_state + 1)
    rows = batch if cu_seqlens is None else len(cu_seqlens) - 1
    tensors: dict[str, Tensor | None] = {
        "x": normal(batch, length, r("x"), channels).to(dtype),
        "dt": steps.to(other),
        "A": A.to(acc),
        "B": normal(batch, length, r("B"), d_state).to(other),
        "C": normal(batch, length, r("C"), d_state).to(other),
        "D": normal(r("D"), channels).to(acc) if D else None,
        "z": normal(batch, length, r("z"), channels).to(dtype) if z else None,
        # Without softplus a negative step would let the state grow.
        "dt_bias": (normal(r("dt_bias"), channels).abs() * 0.1).to(acc) if dt_bias else None,
        "initial_state": normal(rows, routes, channels, d_state).to(acc) if state else None,
        "order": order,
        "cu_seqlens": cu_seqlens,
    }
    return Call(selective_scan, SCAN_FLOATS, tensors, {"dt_softplus": dt_softplus})


def ssd_call(
    batch: int = 2,
    length: int = 12,
    routes: int = 1,
    heads: int = 2,
    head_dim: int = 3,
    groups: int = 1,
    d_state: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    mixed: bool = False,
    shared: tuple[str, ...] = (),
    D: str | None = "heads",
    z: bool = True,
    dt_bias: bool = True,
    dt_softplus: bool = True,
    w: bool = False,
    state: bool = True,
    order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt: tuple[float, float] = (1e-3, 0.3),
    seed: int = 0,
) -> Call:
    """Random arguments as a Mamba-2 layer would give them.

    Args:
        mixed: whether dt, w, B and C are float32 where x is not.
        shared: names of the arguments with one route for all.
        D: `heads`, `channels` or None.
        dt: the range of the step sizes, after softplus where that is applied.
    """
    g = torch.Generator().manual_seed(seed)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    other = torch.float32 if mixed and dtype != torch.float64 else dtype

    def r(name: str) -> int:
        return 1 if name in shared else routes

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    low, high = torch.tensor(dt, dtype=torch.float64).log()
    steps = torch.exp(low + torch.rand(batch, length, r("dt"), heads, generator=g, dtype=torch.float64) * (high - low))
    if dt_softplus:
        steps = torch.log(torch.expm1(steps))
    rows = batch if cu_seqlens is None else len(cu_seqlens) - 1
    tensors: dict[str, Tensor | None] = {
        "x": normal(batch, length, r("x"), heads, head_dim).to(dtype),
        "dt": steps.to(other),
        "A": -1 - 3 * torch.rand(r("A"), heads, generator=g, dtype=torch.float64).to(acc),
        "B": normal(batch, length, r("B"), groups, d_state).to(other),
        "C": normal(batch, length, r("C"), groups, d_state).to(other),
        "D": None if D is None else normal(r("D"), heads, *[head_dim] * (D == "channels")).to(acc),
        "z": normal(batch, length, r("z"), heads, head_dim).to(dtype) if z else None,
        "dt_bias": (normal(r("dt_bias"), heads).abs() * 0.1).to(acc) if dt_bias else None,
        "w": normal(batch, length, r("w"), heads).to(other) if w else None,
        "initial_state": normal(rows, routes, heads, head_dim, d_state).to(acc) if state else None,
        "order": order,
        "cu_seqlens": cu_seqlens,
    }
    return Call(ssd_scan, SSD_FLOATS, tensors, {"dt_softplus": dt_softplus})


def conv_call(
    batch: int = 2,
    length: int = 12,
    routes: int = 1,
    channels: int = 3,
    width: int = 4,
    *,
    dtype: torch.dtype = torch.float32,
    mixed: bool = False,
    shared: tuple[str, ...] = (),
    bias: bool = True,
    state: bool = True,
    activation: str | None = None,
    order: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    seed: int = 0,
) -> Call:
    """Random arguments of a convolution; `mixed` makes weight and bias float32 where x is not."""
    g = torch.Generator().manual_seed(seed)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    other = acc if mixed else dtype

    def r(name: str) -> int:
        return 1 if name in shared else routes

    rows = batch if cu_seqlens is None else len(cu_seqlens) - 1
    tensors: dict[str, Tensor | None] = {
        "x": torch.randn(batch, length, r("x"), channels, generator=g).to(dtype),
        "weight": torch.randn(r("weight"), channels, width, generator=g).to(other),
        "bias": torch.randn(r("bias"), channels, generator=g).to(other) if bias else None,
        "state": torch.randn(rows, routes, channels, width - 1, generator=g).to(acc) if state else None,
        "order": order,
        "cu_seqlens": cu_seqlens,
    }
    return Call(causal_conv1d, CONV_FLOATS, tensors, {"activation": activation})


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
    """Bounds of `count` sequences, zero-length ones among them."""
    g = torch.Generator().manual_seed(seed)
    inner = torch.randint(0, steps + 1, (count - 1,), generator=g).sort().values
    return torch.cat([torch.tensor([0]), inner, torch.tensor([steps])]).to(torch.int32)


def pairwise(factors: dict[str, tuple], seed: int = 0) -> list[dict]:
    """Rows of options in which every pair of values of every two factors occurs: greedy, the best of 40 random rows."""
    rng = random.Random(seed)
    names = list(factors)
    open_pairs = {(a, va, b, vb) for a, b in itertools.combinations(names, 2) for va in factors[a] for vb in factors[b]}
    rows = []
    while open_pairs:
        best: tuple[int, dict, set] = (-1, {}, set())
        a, va, b, vb = min(open_pairs, key=repr)
        for _ in range(40):
            row = {n: rng.choice(factors[n]) for n in names} | {a: va, b: vb}
            covers = {(p, row[p], q, row[q]) for p, q in itertools.combinations(names, 2)} & open_pairs
            if len(covers) > best[0]:
                best = (len(covers), row, covers)
        rows.append(best[1])
        open_pairs -= best[2]
    return rows


LAYOUTS = ("contiguous", "transposed", "sliced", "expanded")


def laid_out(call: Call, layout: str) -> Call:
    """Gives the tensors of places, and A, another layout in memory."""

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


BOTH = (True, False)
SCAN_FACTORS = {
    "kind": ORDER_KINDS,
    "layout": LAYOUTS,
    "shared": ((), ("x", "D"), ("A", "dt_bias"), ("B",), ("C", "z"), ("dt",), SCAN_FLOATS[:8]),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
    "routes": (1, 2, 3),
    "length": (1, 7, 32, 33, 70),
    "channels": (1, 3, 16, 17, 40),
    "d_state": (1, 2, 3, 4, 16),
    "packed": BOTH,
    "mixed": BOTH,
    "D": BOTH,
    "z": BOTH,
    "dt_bias": BOTH,
    "dt_softplus": BOTH,
    "state": BOTH,
}
SSD_FACTORS = {
    "kind": ORDER_KINDS,
    "layout": LAYOUTS,
    "shared": ((), ("x", "D"), ("A", "dt_bias"), ("B",), ("C", "z"), ("dt", "w"), SSD_FLOATS[:9]),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
    "routes": (1, 2, 3),
    "length": (1, 7, 64, 65, 130),
    "heads": (2, 4, 6),
    "head_dim": (1, 3, 16, 17, 64, 70),
    "groups": (1, 2),
    "d_state": (1, 2, 3, 4, 16, 21),
    "packed": BOTH,
    "mixed": BOTH,
    "D": ("heads", "channels", None),
    "z": BOTH,
    "dt_bias": BOTH,
    "dt_softplus": BOTH,
    "w": BOTH,
    "state": BOTH,
}
CONV_FACTORS = {
    "kind": ORDER_KINDS,
    "layout": LAYOUTS,
    "shared": ((), ("x",), ("weight", "bias"), CONV_FLOATS[:3]),
    "dtype": (torch.float32, torch.bfloat16, torch.float16),
    "routes": (1, 2, 3),
    "length": (1, 3, 33, 300),
    "channels": (1, 3, 16, 17, 40),
    "width": (1, 2, 4, 5),
    "packed": BOTH,
    "mixed": BOTH,
    "bias": BOTH,
    "state": BOTH,
    "activation": (None, "silu"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `scan_options`, `ssd_options` or `conv_options` runs for every row of a pairwise table.

    A module's own SCAN_FACTORS, SSD_FACTORS or CONV_FACTORS take the place of those here.
    """
    tables = (("scan_options", SCAN_FACTORS), ("ssd_options", SSD_FACTORS), ("conv_options", CONV_FACTORS))
    for name, factors in tables:
        if name in metafunc.fixturenames:
            own = f"{name.removesuffix('_options').upper()}_FACTORS"
            rows = pairwise(getattr(metafunc.module, own, factors))
            metafunc.parametrize(name, rows, ids=range(len(rows)))


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    return SimpleNamespace(
        scan=scan_call,
        ssd=ssd_call,
        conv=conv_call,
        order=make_order,
        cu_seqlens=make_cu_seqlens,
        order_kinds=ORDER_KINDS,
        laid_out=laid_out,
        tolerance=TOLERANCE,
        rms_ratio=rms_ratio,
        assert_close=assert_close,
        assert_equal=assert_equal,
        scan_floats=SCAN_FLOATS,
        ssd_floats=SSD_FLOATS,
        conv_floats=CONV_FLOATS,
    )
