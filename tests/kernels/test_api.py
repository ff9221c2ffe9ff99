"""The public functions as seen by their callers: errors, engines, compilers, imports."""

from __future__ import annotations

import importlib.util
import io
import itertools
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from seqssm_kernels import causal_conv1d, causal_conv1d_step, selective_scan, selective_scan_step
from seqssm_kernels.contract import engines, operators

COMPILERS = [name for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if shutil.which(name)]

# --- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": lambda t: t[:, :5]}, r"dt has shape \(2, 5, 2, 3\), expected \(B, L, R, E\) = \(2, 6, 1 or 2, 3\)"),
        ({"A": lambda t: t.repeat(2, 1, 1)}, r"x has shape \(2, 6, 2, 3\), expected .* = \(2, 6, 1 or 4, 3\)"),
        ({"A": lambda t: t[0]}, "A must be of 3 axes .with the route axis, like x"),
        ({"B": lambda t: t[..., :3]}, r"B has shape \(2, 6, 2, 3\), expected .* \(2, 6, 1 or 2, 4\)"),
        ({"D": lambda t: t[:, :2]}, "D has shape"),
        ({"z": lambda t: t.double()}, "z must be float32 where x is float32, got float64"),
        ({"dt": lambda t: t.half()}, "dt must be float32 where x is float32, got float16"),
        ({"A": lambda t: t.bfloat16()}, "A must be float32"),
        ({"A": lambda t: t.to(torch.complex64)}, "complex parameters .S4-style. are not supported"),
        ({"x": lambda t: t.to(torch.complex64)}, "complex parameters .S4-style. are not supported"),
        ({"x": lambda t: t.long()}, "selective_scan takes float32, bfloat16, float16, float64, x is int64"),
        ({"x": lambda t: t[0, 0]}, r"x must be \(B, L, R, E\) or \(B, L, E\), got shape \(2, 3\)"),
        ({"x": lambda t: t.numpy()}, "x must be a tensor .* got ndarray"),
        ({"B": lambda t: t.tolist()}, "B must be a tensor .* got list"),
        ({"B": lambda _: None}, "B must be a tensor .* got NoneType"),
        ({"C": lambda t: t.to("meta")}, "C is on meta and x on cpu"),
        ({"initial_state": lambda t: t[:1]}, r"initial_state has shape \(1, 2, 3, 4\), expected \(B, R, E, N\)"),
        ({"order": lambda _: torch.zeros(2, 3)}, "order must contain integers, got float32"),
        ({"order": lambda _: torch.arange(6)}, r"order must be \(1 or R, S\) or \(B, 1 or R, S\)"),
        ({"order": lambda _: torch.arange(6).expand(3, 6)}, "expected .* 1 or 3"),
        ({"order": lambda _: torch.arange(6).expand(3, 2, 6)}, r"order has shape \(3, 2, 6\), .* B = 2 and R = 2"),
        ({"order": lambda _: torch.tensor([[0, 6]])}, r"order\[0, 0, 1\] is 6: a position index must be in \[0, 6\)"),
        ({"order": lambda _: torch.tensor([[0, -3]])}, r"order\[0, 0, 1\] is -3"),
        ({"order": lambda _: torch.tensor([[0, 2**32]])}, r"order\[0, 0, 1\] is 4294967296"),
        ({"order": lambda _: torch.tensor([[0, 200]], dtype=torch.uint8)}, r"order\[0, 0, 1\] is 200"),
        ({"order": lambda _: torch.tensor([[[0, 1]], [[2, 2]]])}, r"order visits position 2 twice in row \[1, 0\]"),
        ({"cu_seqlens": lambda _: torch.tensor([0, 6], dtype=torch.int32)}, "x has batch size 2"),
        ({"cu_seqlens": lambda _: torch.tensor([0.0, 6.0])}, r"cu_seqlens must be int32 \(n \+ 1,\)"),
        ({"engine": lambda _: "cudnn"}, "unknown engine 'cudnn': use one of triton, numba, torch, reference"),
    ],
)
def test_arguments_that_do_not_fit(tools, engine, change, message):
    tools.scan(2, 6, 2, 3, 4).require_refused(change, message, engine)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([1, 6], "starts at 1"),
        ([0, 4, 3, 6], "decreases from 4 to 3 at index 2"),
        ([0, 5], "ends at 5: it must end at the number of steps, 6"),
    ],
)
def test_bounds_of_sequences(tools, bounds, message):
    for name in ("numba", "torch", "reference"):
        cu = torch.tensor(bounds, dtype=torch.int32)
        arguments = {k: v for k, v in tools.scan(1, 6, state=False).tensors.items() if v is not None}
        with pytest.raises(ValueError, match=message):
            selective_scan(**arguments, cu_seqlens=cu, engine=name)
        with pytest.raises(ValueError, match=message):
            causal_conv1d(arguments["x"], torch.ones(1, 3, 4), cu_seqlens=cu, engine=name)


def test_bounds_that_are_not_a_tensor():
    x, A, B = torch.ones(1, 6, 3), -torch.ones(3, 4), torch.ones(1, 6, 4)
    with pytest.raises(ValueError, match=r"cu_seqlens must be a tensor int32 \(n \+ 1,\), got list"):
        selective_scan(x, x, A, B, B, cu_seqlens=[0, 6])
    with pytest.raises(ValueError, match="cu_seqlens must be a tensor"):
        causal_conv1d(x, torch.ones(3, 4), cu_seqlens=[0, 6])


def test_without_route_axis_errors_show_the_shapes_of_the_caller():
    x, A, B = torch.ones(2, 6, 3), torch.ones(3, 4), torch.ones(2, 6, 4)
    with pytest.raises(ValueError, match=r"B has shape \(2, 6, 5\), expected \(B, L, N\) = \(2, 6, 4\)"):
        selective_scan(x, x, A, torch.ones(2, 6, 5), B)
    with pytest.raises(ValueError, match="order has 2 routes, but the tensors have no route axis"):
        selective_scan(x, x, A, B, B, order=torch.arange(6).expand(2, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": lambda t: t[:, :2]}, r"weight has shape \(2, 2, 4\), expected \(R, E, W\) = \(1 or 2, 3, 4\)"),
        ({"weight": lambda t: t.double()}, "weight must be float32"),
        ({"bias": lambda t: t[0]}, "bias must be of 2 axes"),
        ({"state": lambda t: t[..., :2]}, r"state has shape .* expected \(B, R, E, W - 1\) = \(2, 2, 3, 3\)"),
        ({"state": lambda t: t.bfloat16()}, "state must be float32"),
        ({"order": lambda _: torch.tensor([[0, 0]])}, "twice"),
        ({"x": lambda t: t.int()}, "causal_conv1d takes float32"),
        ({"activation": lambda _: "relu"}, "activation must be 'silu' or None, got 'relu'"),
    ],
)
def test_arguments_of_the_convolution(tools, engine, change, message):
    tools.conv(2, 6, 2).require_refused(change, message, engine)


def test_arguments_of_the_steps():
    x, A, B, state = torch.ones(2, 3), -torch.ones(3, 4), torch.ones(2, 4), torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="state must be"):
        selective_scan_step(x, x, A, B, B, state[0])
    with pytest.raises(ValueError, match="B must be of 2 axes, one step like x"):
        selective_scan_step(x, x, A, B[0], B, state)
    with pytest.raises(ValueError, match="x must be"):
        causal_conv1d_step(x[0], torch.ones(3, 4), None, torch.zeros(2, 3, 3))
    out, after = selective_scan_step(x, x, A, B, B, state)
    assert out.shape == (2, 3)
    assert torch.equal(state, torch.zeros(2, 3, 4))
    assert not torch.equal(after, state)


# --- engines


def test_which_engine_is_chosen(caplog):
    engines.load.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert engines.choose_engine("selective_scan", None, "cpu", torch.bfloat16) == "numba"
        assert engines.choose_engine("selective_scan", None, "cpu", torch.float64) == "torch"
        engines.load("selective_scan", None, "cpu", torch.float64)
        assert not caplog.records
        for _ in range(2):
            assert engines.load("causal_conv1d", None, "mps", torch.float32).__name__.endswith("causal_conv1d.torch")
    assert [r.getMessage() for r in caplog.records] == ["causal_conv1d of mps tensors runs with engine 'torch'"]
    with pytest.raises(ValueError, match="use engine='torch'"):
        engines.choose_engine("selective_scan", "numba", "cpu", torch.float64)
    with pytest.raises(ValueError, match="mps tensors: use engine='torch'"):
        engines.choose_engine("causal_conv1d", "numba", "mps", torch.float32)


def test_missing_package_names_a_usable_engine(monkeypatch):
    engines.module.cache_clear()
    monkeypatch.setitem(sys.modules, "seqssm_kernels.selective_scan.numba", None)
    with pytest.raises(RuntimeError, match=r"engine 'numba' cannot be loaded .* engine='torch'"):
        engines.module("selective_scan", "numba")


def test_description_names_the_chosen_engine():
    printed = set()
    for service in engines.describe_engines():
        for operation, dtype in itertools.product(service.operations.split(", "), service.dtypes.split(", ")):
            printed.add((operation, service.device, dtype))
            assert engines.choose_engine(operation, None, service.device, getattr(torch, dtype)) == service.engine
    assert {(o, "cpu", t) for o in engines.OPERATIONS for t in ("float32", "bfloat16", "float64")} <= printed
    assert {s.device for s in engines.describe_engines()} >= {"cpu"}


def test_every_engine_of_the_table_has_what_its_operations_need():
    for operation in engines.OPERATIONS.values():
        for name in operation.engines:
            if name == "triton" and importlib.util.find_spec("triton") is None:
                continue
            module = engines.module(operation.name, name)
            needed = ["forward"]
            if name != "reference" and operation.differentiable:
                needed += ["backward"] + ["saved_size"] * operation.saves
            assert all(callable(getattr(module, function)) for function in needed)


def test_an_operation_is_one_entry(monkeypatch):
    """A new entry gives the choice among its engines, its line of `seqssm info`, and both operators."""
    entry = engines.Operation("toy_scan", 7, engines.ConvCall, False, ("torch", "reference"))
    monkeypatch.setitem(engines.OPERATIONS, "toy_scan", entry)
    assert engines.choose_engine("toy_scan", None, "cpu", torch.float32) == "torch"
    with pytest.raises(engines.EngineError, match="'numba' does not implement toy_scan: use one of torch, reference"):
        engines.choose_engine("toy_scan", "numba", "cpu", torch.float32)
    assert ("toy_scan", "cpu") in {(o, s.device) for s in engines.describe_engines() for o in s.operations.split(", ")}
    operators._Operator(entry)
    assert str(torch.ops.seqssm.toy_scan_v7.default._schema) == (
        "seqssm::toy_scan_v7(Tensor x, Tensor weight, Tensor? bias, Tensor? order, Tensor? cu_seqlens, Tensor? state, "
        "bool silu, str engine) -> (Tensor, Tensor)"
    )
    assert "Tensor dout, Tensor? dfinal" in str(torch.ops.seqssm.toy_scan_backward_v7.default._schema)


def test_an_amd_gpu_is_not_an_nvidia_gpu(monkeypatch):
    assert engines.choose_engine("selective_scan", None, "cuda", torch.float32) == "triton"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert engines.choose_engine("selective_scan", None, "cuda", torch.float32) == "torch"
    with pytest.raises(engines.EngineError, match="got rocm tensors: use engine='torch'"):
        engines.choose_engine("selective_scan", "triton", "cuda", torch.float32)


def test_import_loads_no_compiler():
    code = (
        "import sys, seqssm_kernels; print([m for m in ('numba', 'lightning', 'pandas', 'seqssm') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# --- operators, compilers


def operator_arguments(tools, channels=16):
    call = tools.scan(2, 9, 2, channels, 4, shared=("A", "x"), order=tools.order("resets", 2, 9, 2), dt_bias=False)
    t = dict(call.tensors)
    return [t[n] for n in ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")] + [True, t["order"][None], None], t


def with_gradients(arguments):
    return [
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments
    ]


ALL_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def test_operators_keep_the_rules(tools, engine):
    arguments, t = operator_arguments(tools)
    # The compiled engine does not write slots of the kept states that it never reads: they cannot be compared.
    checks = ALL_CHECKS if engine == "torch" else ALL_CHECKS[:3]
    scan = torch.ops.seqssm.selective_scan_v1.default
    torch.library.opcheck(scan, (*arguments, t["initial_state"], False, engine))
    torch.library.opcheck(scan, (*with_gradients([*arguments, t["initial_state"]]), True, engine), test_utils=checks)
    out, final, saved = scan(*arguments, t["initial_state"], True, engine)
    needs = [True] * 7 + [False, True]
    torch.library.opcheck(
        torch.ops.seqssm.selective_scan_backward_v1.default,
        (out, final, *arguments, t["initial_state"], saved, needs, engine),
    )
    conv = tools.conv(2, 9, 2, 16, shared=("x",)).tensors
    arguments = [conv[n] for n in ("x", "weight", "bias")] + [t["order"][None], None, conv["state"]]
    torch.library.opcheck(torch.ops.seqssm.causal_conv1d_v1.default, (*with_gradients(arguments), True, engine))
    out, final = torch.ops.seqssm.causal_conv1d_v1(*arguments, True, engine)
    torch.library.opcheck(
        torch.ops.seqssm.causal_conv1d_backward_v1.default, (out, final, *arguments, True, [True] * 4, engine)
    )


def test_operator_called_without_saving_cannot_be_differentiated(tools):
    arguments, t = operator_arguments(tools)
    out, *_ = torch.ops.seqssm.selective_scan_v1(*with_gradients(arguments), t["initial_state"], False, "torch")
    with pytest.raises(RuntimeError, match="save=False"):
        out.sum().backward()


class Layer(torch.nn.Module):
    """Both functions as a model uses them."""

    def __init__(self, engine, order=None):
        super().__init__()
        torch.manual_seed(0)
        self.engine, self.order = engine, order
        self.weight = torch.nn.Parameter(torch.randn(6, 4))
        self.A = torch.nn.Parameter(-torch.rand(6, 3))
        self.states = torch.nn.Linear(6, 6)

    def forward(self, x):
        x = causal_conv1d(x, self.weight, order=self.order, activation="silu", engine=self.engine)
        B, C = self.states(x).chunk(2, -1)
        out, final = selective_scan(
            x, x, self.A, B, C, dt_softplus=True, order=self.order, return_final_state=True, engine=self.engine
        )
        return out * 2, final


def trained(layer, function, x):
    x = x.clone().requires_grad_()
    out, final = function(x)
    return [out, final, *torch.autograd.grad(out.sum() + final.sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("ordered", [pytest.param(False, marks=pytest.mark.long), True])
def test_compiled_is_eager(engine, ordered):
    torch.compiler.reset()
    layer = Layer(engine, torch.tensor([[0, 2, -1, 4, -2, 1]]) if ordered else None)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (9, 12, 37):
        x = torch.randn(2, length, 6)
        for a, b in zip(trained(layer, layer, x), trained(layer, compiled, x)):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), layer(x))


def test_compiled_program_still_checks_its_order():
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, order: causal_conv1d(x, torch.ones(3, 2), order=order), fullgraph=True, backend="aot_eager"
    )
    x = torch.randn(1, 5, 3)
    compiled(x, torch.tensor([[0, 1, 2]]))
    with pytest.raises(ValueError, match="a position index must be in"):
        compiled(x, torch.tensor([[0, 1, 5]]))


@pytest.mark.long
@pytest.mark.skipif(not COMPILERS, reason="no C++ compiler was found, which inductor needs")
def test_inductor():
    torch.compiler.reset()
    layer = Layer(None)
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(2, 9, 6)
    with torch._inductor.utils.fresh_cache():  # its key knows the operator's name, not its code
        found = trained(layer, compiled, x)
    for a, b in zip(found, trained(layer, layer, x)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("strict", [True, False])
def test_exported_program_takes_other_lengths(engine, strict):
    layer = Layer(engine).eval()
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(layer, (torch.randn(2, 9, 6),), dynamic_shapes=({1: length},), strict=strict)
    names = {str(node.target) for node in program.graph.nodes}
    assert {"seqssm.selective_scan_v1.default", "seqssm.causal_conv1d_v1.default"} <= names
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    x = torch.randn(2, 33, 6)
    torch.testing.assert_close(loaded(x), layer(x))


def test_forward_mode_is_refused_not_dropped(tools, engine):
    x, A, B = torch.rand(1, 6, 4), -torch.rand(4, 3), torch.rand(1, 6, 3)

    def scan(name):
        return lambda v: selective_scan(v, v, A, B, B, engine=name)

    def convolution(name):
        return lambda v: causal_conv1d(v, torch.ones(4, 2), engine=name)

    for function in (scan, convolution):
        _, tangent = torch.func.jvp(function("reference"), (x,), (torch.ones_like(x),))
        assert (tangent != 0).all()
        with pytest.raises(RuntimeError, match="forward-mode differentiation requires engine='reference'"):
            torch.func.jvp(function(engine), (x,), (torch.ones_like(x),))


def test_functional_gradients_name_the_engine_that_supports_them():
    x, A, B = torch.rand(1, 6, 4), -torch.rand(4, 3), torch.rand(1, 6, 3)

    def total(v, engine):
        return selective_scan(causal_conv1d(v, torch.ones(4, 2), engine=engine), v, A, B, B, engine=engine).sum()

    v = x.clone().requires_grad_()
    total(v, "numba").backward()
    torch.testing.assert_close(torch.func.grad(total)(x, "reference"), v.grad)
    for engine in ("numba", "torch"):
        with pytest.raises(RuntimeError, match="vjp and jacrev require engine='reference'"):
            torch.func.grad(total)(x, engine)


def test_vmap(tools, engine):
    x, A, B = torch.randn(3, 2, 6, 5), -torch.rand(5, 4), torch.randn(2, 6, 4)
    found = torch.vmap(lambda v: selective_scan(v, v.abs(), A, B, B, engine=engine))(x)
    expected = torch.stack([selective_scan(v, v.abs(), A, B, B, engine=engine) for v in x])
    torch.testing.assert_close(found, expected)


def test_batches_of_gradients_and_gradients_without_values():
    x, weight = torch.randn(1, 5, 4, requires_grad=True), torch.randn(4, 2)
    order = torch.tensor([[4, 3, 2, 1, 0]])
    y = causal_conv1d(x, weight, order=order)
    ahead = torch.randn(3, *y.shape)
    (batched,) = torch.autograd.grad(y, x, ahead, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in ahead]
    torch.testing.assert_close(batched, torch.stack(each))
    with torch.device("meta"):
        x = torch.randn(2, 5, 4, requires_grad=True)
        dt, A, B = torch.randn(2, 5, 4), torch.randn(4, 3), torch.randn(2, 5, 3)
        selective_scan(x, dt, A, B, B, order=torch.zeros(1, 5, dtype=torch.int32)).sum().backward()
    assert x.grad.shape == x.shape
