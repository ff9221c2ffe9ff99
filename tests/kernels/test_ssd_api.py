"""The public Mamba-2 scan: errors, operators, compilers, decoding steps."""

from __future__ import annotations

import io

import pytest
import torch
from seqssm_kernels import ssd_scan, ssd_step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": lambda t: t[:, :5]}, r"dt has shape \(2, 5, 2, 4\), expected \(B, L, R, H\) = \(2, 6, 1 or 2, 4\)"),
        ({"dt": lambda t: t[..., None]}, "dt must be of 4 axes .with the route axis, like x"),
        ({"A": lambda t: t.repeat(2, 1)}, r"x has shape \(2, 6, 2, 4, 3\), expected .* = \(2, 6, 1 or 4, 4, 3\)"),
        ({"A": lambda t: t[0]}, "A must be of 2 axes"),
        ({"B": lambda t: t[..., :3]}, r"C has shape .* expected \(B, L, R, G, N\) = \(2, 6, 1 or 2, 2, 3\)"),
        ({n: lambda t: t[..., :1, :].expand(2, 6, 2, 3, 5) for n in "BC"}, "groups must divide .* G = 3 and H = 4"),
        ({"D": lambda t: t[:, :2]}, r"D has shape \(2, 2\), expected \(R, H\) = \(1 or 2, 4\)"),
        ({"D": lambda t: t[..., None]}, r"D has shape \(2, 4, 1\), expected \(R, H, P\) = \(1 or 2, 4, 3\)"),
        ({"D": lambda t: t[0]}, "D must be of 2 or 3 axes"),
        ({"w": lambda t: t.half()}, "w must be float32 where x is float32, got float16"),
        ({"w": lambda t: t[..., :2]}, "w has shape"),
        ({"z": lambda t: t.double()}, "z must be float32 where x is float32, got float64"),
        ({"A": lambda t: t.to(torch.complex64)}, "complex parameters .S4-style. are not supported"),
        ({"x": lambda t: t.long()}, "ssd_scan takes float32, bfloat16, float16, float64, x is int64"),
        ({"x": lambda t: t[0, 0]}, r"x must be \(B, L, R, H, P\) or \(B, L, H, P\), got shape \(2, 4, 3\)"),
        ({"B": lambda _: None}, "B must be a tensor .* got NoneType"),
        ({"C": lambda t: t.to("meta")}, "C is on meta and x on cpu"),
        ({"initial_state": lambda t: t[:1]}, r"initial_state has shape .* expected \(B, R, H, P, N\)"),
        ({"order": lambda _: torch.tensor([[0, 6]])}, r"order\[0, 0, 1\] is 6: a position index must be in \[0, 6\)"),
        ({"order": lambda _: torch.tensor([[[0, 1]], [[2, 2]]])}, r"order visits position 2 twice in row \[1, 0\]"),
        (
            {"cu_seqlens": lambda _: torch.tensor([0, 6], dtype=torch.int32), "initial_state": lambda _: None},
            "x has batch size 2",
        ),
        ({"engine": lambda _: "cudnn"}, "unknown engine 'cudnn'"),
        ({"engine": lambda _: "triton"}, "'triton' supports .* on cuda, got cpu tensors: use engine='numba'"),
    ],
)
def test_arguments_that_do_not_fit(tools, engine, change, message):
    tools.ssd(2, 6, 2, 4, 3, 2, 5, w=True).require_refused(change, message, engine)


def test_without_route_axis_errors_show_the_shapes_of_the_caller():
    x, dt, A, B = torch.ones(2, 6, 4, 3), torch.ones(2, 6, 4), -torch.ones(4), torch.ones(2, 6, 1, 5)
    with pytest.raises(ValueError, match=r"C has shape \(2, 6, 1, 4\), expected \(B, L, G, N\) = \(2, 6, 1, 5\)"):
        ssd_scan(x, dt, A, B, B[..., :4])
    with pytest.raises(ValueError, match="order has 2 routes, but the tensors have no route axis"):
        ssd_scan(x, dt, A, B, B, order=torch.arange(6).expand(2, 6))


def test_arguments_of_the_step():
    x, dt, A, B = torch.ones(2, 4, 3), torch.ones(2, 4), -torch.ones(4), torch.ones(2, 2, 5)
    state = torch.zeros(2, 4, 3, 5)
    with pytest.raises(ValueError, match="state must be"):
        ssd_step(x, dt, A, B, B, state[0])
    with pytest.raises(ValueError, match="B must be of 3 axes"):
        ssd_step(x, dt, A, B[0], B, state)
    with pytest.raises(ValueError, match="x must be"):
        ssd_step(x[0], dt, A, B, B, state)
    with pytest.raises(ValueError, match="w must be of 2 axes"):
        ssd_step(x, dt, A, B, B, state, w=dt[0])
    out, after = ssd_step(x, dt, A, B, B, state)
    assert out.shape == (2, 4, 3)
    assert torch.equal(state, torch.zeros(2, 4, 3, 5))
    assert not torch.equal(after, state)


CALL = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")
ALL_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("w", [True, False])
def test_operators_keep_the_rules(tools, engine, w):
    order = tools.order("resets", 2, 9, 2)
    t = tools.ssd(2, 9, 2, 4, 16, 2, 4, shared=("A", "x"), order=order, dt_bias=False, w=w).tensors
    arguments = [*[t[n] for n in CALL], True, t["w"], order[None], None, t["initial_state"]]
    leaves = [
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments
    ]
    # The compiled engine does not write slots of the kept states that it never reads: they cannot be compared.
    checks = ALL_CHECKS if engine == "torch" else ALL_CHECKS[:3]
    scan = torch.ops.seqssm.ssd_scan_v1.default
    torch.library.opcheck(scan, (*arguments, False, engine))
    torch.library.opcheck(scan, (*leaves, True, engine), test_utils=checks)
    out, final, saved = scan(*arguments, True, engine)
    needs = [True] * 7 + [False, w, True]
    torch.library.opcheck(torch.ops.seqssm.ssd_scan_backward_v1.default, (out, final, *arguments, saved, needs, engine))


class Layer(torch.nn.Module):
    """The scan as a model uses it."""

    def __init__(self, engine, order=None):
        super().__init__()
        torch.manual_seed(0)
        self.engine, self.order = engine, order
        self.A = torch.nn.Parameter(-torch.rand(2))
        self.states = torch.nn.Linear(6, 8)

    def forward(self, x):
        dt, B, C = self.states(x).split([2, 3, 3], -1)
        out, final = ssd_scan(
            x.unflatten(-1, (2, 3)), dt, self.A, B.unsqueeze(2), C.unsqueeze(2), dt_softplus=True, order=self.order,
            return_final_state=True, engine=self.engine,
        )  # fmt: skip
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


def test_exported_program_takes_other_lengths(engine):
    layer = Layer(engine).eval()
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(layer, (torch.randn(2, 9, 6),), dynamic_shapes=({1: length},))
    assert "seqssm.ssd_scan_v1.default" in {str(node.target) for node in program.graph.nodes}
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    x = torch.randn(2, 133, 6)
    torch.testing.assert_close(loaded(x), layer(x))


def test_forward_mode_and_functional_gradients_are_refused(engine):
    x, dt, A, B = torch.rand(1, 6, 2, 4), torch.rand(1, 6, 2), -torch.rand(2), torch.rand(1, 6, 1, 3)

    def scan(name):
        return lambda v: ssd_scan(v, dt, A, B, B, engine=name)

    _, tangent = torch.func.jvp(scan("reference"), (x,), (torch.ones_like(x),))
    assert (tangent != 0).all()
    with pytest.raises(RuntimeError, match="forward-mode differentiation requires engine='reference'"):
        torch.func.jvp(scan(engine), (x,), (torch.ones_like(x),))
    with pytest.raises(RuntimeError, match="vjp and jacrev require engine='reference'"):
        torch.func.grad(lambda v: scan(engine)(v).sum())(x)


def test_vmap(engine):
    x, dt, A, B = torch.randn(3, 2, 6, 2, 5), torch.rand(2, 6, 2), -torch.rand(2), torch.randn(2, 6, 1, 4)
    found = torch.vmap(lambda v: ssd_scan(v, dt, A, B, B, engine=engine))(x)
    expected = torch.stack([ssd_scan(v, dt, A, B, B, engine=engine) for v in x])
    torch.testing.assert_close(found, expected)


STEPS = [  # shape of x, groups, states, dtype, D, z, bias, w
    ((1, 2, 64), 1, 16, torch.float32, "heads", True, True, False),
    ((3, 6, 17), 2, 21, torch.float32, "channels", True, False, True),
    ((2, 3, 4, 5), 4, 3, torch.float32, "heads", False, True, True),
    ((2, 9, 33), 3, 48, torch.bfloat16, "channels", True, True, False),
    ((2, 2, 6, 16), 1, 128, torch.float16, None, True, True, True),
    ((4, 24, 64), 1, 64, torch.float32, "heads", True, True, False),  # large enough for two threads
]


@pytest.mark.parametrize(("shape", "groups", "states", "dtype", "D", "z", "bias", "w"), STEPS)
def test_the_compiled_step_is_the_reference(shape, groups, states, dtype, D, z, bias, w, monkeypatch):
    from seqssm_kernels.ssd_scan import numba as compiled

    torch.manual_seed(0)
    per_head, wide = shape[:-1], torch.cat([torch.randn(shape), torch.full(shape, torch.nan)], 1)
    call = {
        "x": wide.chunk(2, 1)[0],  # rows of a larger tensor, as from a layer's projection
        "dt": torch.randn(per_head) * 0.3,
        "A": torch.rand(per_head[1:]),
        "B": torch.randn(*shape[:-2], groups, states),
        "C": torch.randn(*shape[:-2], groups, states),
        "state": torch.randn(*shape, states),
        "D": None if D is None else torch.randn(per_head[1:] if D == "heads" else shape[1:]),
        "z": torch.randn(shape) if z else None,
        "dt_bias": torch.randn(per_head[1:]) if bias else None,
        "w": torch.randn(per_head) if w else None,
    }
    for name in ("x", "dt", "B", "C", "z", "w"):
        call[name] = None if call[name] is None else call[name].to(dtype)
    before, served = call["state"].clone(), []
    monkeypatch.setattr(compiled, "run_step", lambda *a, run=compiled.run_step: served.append(run(*a)) or served[-1])
    double = {name: None if t is None else t.double() for name, t in call.items()}
    for is_log in (True, False):
        found = ssd_step(**call, dt_softplus=True, A_is_log=is_log)
        assert served.pop() is not None
        assert torch.equal(call["state"], before)
        expected = ssd_step(**double, dt_softplus=True, A_is_log=is_log, engine="reference")
        for one, right, limit in zip(found, expected, (1e-2 if dtype != torch.float32 else 1e-6, 1e-6)):
            assert float((one.double() - right).square().mean().sqrt() / right.square().mean().sqrt()) < limit


def test_steps_that_the_compiled_one_does_not_support(monkeypatch):
    from seqssm_kernels.ssd_scan import numba as compiled

    torch.manual_seed(0)
    x, dt, A, B = torch.randn(2, 2, 4, 3), torch.rand(2, 2, 4), -torch.rand(2, 4), torch.randn(2, 2, 2, 5)
    state, served = torch.randn(2, 2, 4, 3, 5), []
    monkeypatch.setattr(compiled, "run_step", lambda *a, run=compiled.run_step: served.append(run(*a)) or served[-1])
    expected = ssd_step(x, dt, A, B, B, state, engine="torch")
    for change in ({"x": x.transpose(2, 3).contiguous().transpose(2, 3)}, {"A": A.t().contiguous().t()}):
        arguments = {"x": x, "dt": dt, "A": A, "B": B, "C": B, "state": state} | change
        for found, right in zip(ssd_step(**arguments), expected):
            torch.testing.assert_close(found, right)
        assert served.pop() is None
    leaf = x.clone().requires_grad_()
    assert ssd_step(leaf, dt, A, B, B, state)[0].requires_grad
    assert not served
    out, after = ssd_step(torch.ones(0, 4, 3), dt[:0, 0], A[0], B[:0, 0], B[:0, 0], state[:0, 0])
    assert (out.shape, after.shape) == ((0, 4, 3), (0, 4, 3, 5))
