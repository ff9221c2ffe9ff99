"""Properties of every engine of the scans and of the convolution: the float64 reference, and exact invariants."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .calls import CONV, SCAN, SSD
from .options import CONV_FACTORS, SCAN_FACTORS, SSD_FACTORS, rows


def each(scan=None, ssd=None, conv=None):
    """Run a test for the given operations, each with its own `sizes`."""
    pairs = [(SCAN, scan), (SSD, ssd), (CONV, conv)]
    given = [pytest.param(operation, sizes, id=operation.name) for operation, sizes in pairs if sizes is not None]
    return pytest.mark.parametrize(("operation", "sizes"), given)


def compare(tools, engine, call, tolerance=1e-5):
    tools.assert_close(call.run(engine), call.run("reference", double=True), tolerance)


TABLES = [(SCAN, SCAN_FACTORS), (SSD, SSD_FACTORS), (CONV, CONV_FACTORS)]


@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize(
    ("operation", "options"),
    [
        pytest.param(one, row, id=f"{one.name}-{n}", marks=() if n % 3 == 0 else pytest.mark.long)
        for one, table in TABLES
        for n, row in enumerate(rows(table))
    ],
)
def test_options_in_pairs(tools, engine, operation, options):
    compare(tools, engine, tools.build(operation.make, options), tools.tolerance[options["dtype"]])


GROUPS = st.tuples(st.integers(1, 5), st.booleans()).map(lambda t: {"heads": t[0], "groups": t[0] if t[1] else 1})
ANY_SIZES = {
    SCAN: st.fixed_dictionaries({"channels": st.integers(1, 35), "d_state": st.integers(1, 9)}),
    SSD: st.tuples(GROUPS, st.fixed_dictionaries({"head_dim": st.integers(1, 70), "d_state": st.integers(1, 9)})).map(
        lambda t: t[0] | t[1]
    ),
    CONV: st.fixed_dictionaries({"channels": st.integers(1, 35), "width": st.integers(1, 6)}),
}
QUIET = [HealthCheck.function_scoped_fixture]


@pytest.mark.usefixtures("nan_memory")
@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=QUIET)
@given(
    kind=st.sampled_from(("none", "gaps", "resets", "per sample")),
    sequences=st.sampled_from((0, 3)),
    batch=st.integers(1, 3),
    routes=st.integers(1, 2),
    state=st.booleans(),
    seed=st.integers(0, 99),
    data=st.data(),
)
@each(scan={"longest": 70}, ssd={"longest": 140}, conv={"longest": 70})
def test_any_sizes(tools, engine, operation, sizes, kind, sequences, batch, routes, state, seed, data):
    own = data.draw(ANY_SIZES[operation]) | {"length": data.draw(st.integers(1, sizes["longest"]))}
    own |= {"kind": kind, "packed": sequences, "batch": batch, "routes": routes, "state": state}
    compare(tools, engine, tools.build(operation.make, own, seed))


LENGTHS = [(SCAN, n, {"channels": 5}) for n in (0, 1, 2, 63, 64, 65, 123, 1000)]
LENGTHS += [(SSD, n, {"heads": 3, "head_dim": 5, "groups": 3, "d_state": 7}) for n in (0, 1, 2, 63, 64, 65, 123, 1000)]
LENGTHS += [(CONV, n, {"channels": 5, "width": w}) for w in (1, 4) for n in (0, 1, 2, 3, 255, 256, 257, 1000)]


@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize(
    ("operation", "length", "sizes"),
    [pytest.param(*row, id="-".join(map(str, [row[0].name, row[1], *row[2].values()]))) for row in LENGTHS],
)
def test_lengths(tools, engine, operation, length, sizes):
    compare(tools, engine, operation.make(2, length, 1, **sizes))


@pytest.mark.long
@pytest.mark.parametrize(("dt", "tolerance"), [((1e-3, 1.1e-3), 1e-5), ((1e-4, 1.1e-4), 1e-4)])
@each(scan={"channels": 3, "d_state": 16}, ssd={"heads": 2, "head_dim": 3, "d_state": 8})
def test_long_and_slow(tools, engine, operation, sizes, dt, tolerance):
    call = operation.make(1, 4096, 1, dt=dt, dt_bias=False, dt_softplus=False, **sizes)
    compare(tools, engine, call, tolerance)


@each(scan={"channels": 17, "d_state": 4}, ssd={"heads": 4, "head_dim": 17, "groups": 2, "d_state": 4})
def test_steps_and_rates_of_either_sign(tools, engine, operation, sizes):
    call = operation.make(2, 70, 1, dt_softplus=False, dt_bias=False, **sizes)
    call.tensors["dt"] = call.tensors["dt"] * torch.where(torch.rand(call.tensors["dt"].shape) < 0.5, 1, -1)
    call.tensors["A"] = call.tensors["A"] * torch.where(torch.rand(call.tensors["A"].shape) < 0.5, 0.3, -0.3)
    compare(tools, engine, call)


@each(scan={"length": 70}, ssd={"length": 130, "heads": 4, "groups": 2, "w": True}, conv={"length": 70})
def test_float64(tools, operation, sizes):
    call = tools.build(operation.make, {"kind": "resets", "routes": 2, "dtype": torch.float64, **sizes})
    tools.assert_close(call.run("torch"), call.run("reference"), 1e-12)
    tools.assert_equal(call.run(None), call.run("torch"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each(scan={"D": False}, ssd={"D": None})
def test_overflow_is_infinite_and_nan_stays_nan(tools, engine, operation, sizes, dtype):
    options = {"dtype": dtype, "z": False, "dt_bias": False, "dt_softplus": False, "state": False, **sizes}
    call = operation.make(1, 40, 1, **options)
    for name in ("x", "dt", "B", "C"):
        call.tensors[name] = torch.ones_like(call.tensors[name])
    call.tensors["A"] = torch.full_like(call.tensors["A"], 30.0)
    result = call.run(engine, grads=False)
    assert torch.isposinf(result["out"][:, 10:]).all()
    assert torch.isposinf(result["final_state"]).all()

    call.tensors["A"] = torch.full_like(call.tensors["A"], -1.0)
    for name, value in itertools.product(("x", "dt", "A", "B", "C"), (torch.nan, torch.inf)):
        broken = call.tensors[name].clone()
        broken[(slice(None), 1) if name == "A" else (slice(None), 20, slice(None), ..., -1)] = value
        changed = operation.make(1, 40, 1, **options)
        changed.tensors = call.tensors | {name: broken}
        expected, found = (changed.run(one, grads=False) for one in ("reference", engine))
        for part in expected:
            assert torch.equal(torch.isnan(found[part]), torch.isnan(expected[part])), (name, value, part)


@pytest.mark.parametrize("kind", ["none", "resets"])
@each(scan={"channels": 40}, ssd={"heads": 4, "head_dim": 40}, conv={"channels": 40})
def test_same_bits_each_time(tools, engine, operation, sizes, kind):
    call = tools.build(operation.make, {"kind": kind, "length": 70, "routes": 2, "shared": ("x", "A"), **sizes})
    tools.assert_equal(call.run(engine), call.run(engine))


@pytest.mark.parametrize("kind", ["subset", "gaps", "resets", "per sample"])
@each(scan={"channels": 5}, ssd={"head_dim": 5, "w": True}, conv={"channels": 5})
def test_unvisited_positions_have_no_effect(tools, engine, operation, sizes, kind):
    call = tools.build(operation.make, {"kind": kind, "length": 40, **sizes})
    order = call.tensors["order"]
    order = order[None] if order.dim() == 2 else order
    order = torch.where((order >= 0) & (order % 3 == 0), -1, order)  # a third of the positions goes unvisited
    call.tensors["order"] = order
    clean = call.run(engine)
    hidden = torch.ones(2, 41, dtype=torch.bool)
    hidden.scatter_(1, torch.where(order >= 0, order, 40)[:, 0].long().expand(2, -1), False)
    hidden = hidden[:, :40]
    assert hidden.any()
    for name in operation.by_position:
        t = call.tensors[name]
        call.tensors[name] = t.masked_fill(hidden.view(*hidden.shape, *[1] * (t.dim() - 2)), torch.nan)
    tools.assert_equal(call.run(engine), clean)
    for name in ("out", *(f"d{n}" for n in operation.by_position)):
        assert (clean[name][hidden] == 0).all(), name


@pytest.mark.parametrize(
    ("operation", "length", "every", "tolerance"),
    [
        pytest.param(SCAN, 70, 2, 1e-6, id="scan"),
        pytest.param(SSD, 70, 2, 2e-6, id="ssd"),
        pytest.param(CONV, 300, 3, 1e-6, id="conv"),
    ],
)
def test_absent_steps_change_nothing(tools, engine, operation, length, every, tolerance):
    plain = tools.build(operation.make, {"kind": "shuffled", "length": length, "routes": 2})
    gaps = operation.make(2, length, 2, order=torch.full((2, every * length), -1))
    gaps.tensors["order"][:, 1::every] = plain.tensors["order"]
    tools.assert_close(gaps.run(engine), plain.run(engine), tolerance)


@pytest.mark.parametrize("reset", [[-2], [-2, -1]])
@each(scan={}, ssd={}, conv={})
def test_no_gradient_and_no_value_across_a_reset(tools, engine, operation, sizes, reset):
    call = operation.make(1, 10, order=torch.tensor([[0, 1, 2, 3, *reset, 4, 5, 6, 7, 8, 9]]), **sizes)
    call.tensors["x"][:, 3] = torch.inf
    tensors = call.leaves()
    out = operation.function(**tensors, **call.options, engine=engine)
    assert torch.isfinite(out[:, 4:]).all()
    if operation is not CONV:  # whose gradient does not depend on x; through infinite states it would be NaN
        call.tensors["x"][:, 3] = 0
        tensors = call.leaves()
        out = operation.function(**tensors, **call.options, engine=engine)
    dx, dstate = torch.autograd.grad(out[:, 4:].sum(), (tensors["x"], tensors[operation.state]))
    assert (dx[:, :4] == 0).all()
    assert (dx[:, 4:] != 0).all()
    assert (dstate == 0).all()


@pytest.mark.parametrize("kind", ["none", "shuffled"])
@each(scan={"channels": 17}, ssd={"head_dim": 17, "w": True}, conv={"channels": 17})
def test_causality(tools, engine, operation, sizes, kind):
    call = tools.build(operation.make, {"kind": kind, "length": 70, **sizes})
    order = torch.arange(70) if kind == "none" else call.tensors["order"][0]
    earlier, later, first_later = order[:41], order[41:], order[41]
    leaves = call.leaves()
    out = operation.function(**leaves, **call.options, engine=engine)
    for grad in torch.autograd.grad(out[:, earlier].sum(), [leaves[name] for name in operation.by_position]):
        assert (grad[:, later] == 0).all()
        assert (grad[:, earlier] != 0).any()

    def changed(places, value):
        for name in operation.by_position:
            call.tensors[name] = call.tensors[name].clone()
            call.tensors[name][:, places] = value(call.tensors[name][:, places])
        return call.run(engine, grads=False)["out"]

    before = call.run(engine, grads=False)["out"]
    after = changed(later, lambda t: t + 1)
    # numba chooses its exponential per tile, and ssd multiplies matrices: the last bit may differ.
    exact = operation is SCAN and engine == "torch"
    limit = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(before[:, earlier], after[:, earlier], **limit)
    assert not torch.equal(before[:, later], after[:, later])
    broken = changed(first_later, lambda t: torch.full_like(t, torch.nan))
    torch.testing.assert_close(before[:, earlier], broken[:, earlier], rtol=1e-5, atol=1e-5)


@each(scan={"channels": 17}, ssd={"head_dim": 17}, conv={"channels": 17})
def test_flipped_input_in_reverse_order_is_flipped_output(tools, engine, operation, sizes):
    forward = operation.make(2, 70, 1, **sizes)
    reverse = operation.make(2, 70, 1, order=torch.arange(69, -1, -1)[None], **sizes)
    for name in operation.present(forward):
        reverse.tensors[name] = forward.tensors[name].flip(1)
    a, b = forward.run(engine, grads=False), reverse.run(engine, grads=False)
    # Not bit for bit: an engine may read the two layouts with different vector instructions.
    assert tools.rms_ratio(a["out"], b["out"].flip(1)) < 1e-6
    assert tools.rms_ratio(a["final_state"], b["final_state"]) < 1e-6


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("kind", ["none", "resets"])
@each(scan={"shared": ("A", "x")}, ssd={"shared": ("A", "x")}, conv={})
def test_packed_equals_separate(tools, engine, operation, sizes, kind, state):
    options = {"length": 80, "routes": 2, "state": state, **sizes}
    call = tools.build(operation.make, {"kind": kind, "packed": True, **options})
    together = call.run(engine, grads=False)
    order = torch.arange(80).expand(2, 80) if call.tensors["order"] is None else call.tensors["order"]
    limit = {"rtol": 1e-5, "atol": 1e-5} if operation is SSD else {}
    for i, (start, stop) in enumerate(itertools.pairwise(call.tensors["cu_seqlens"].tolist())):
        one = operation.make(1, **options)
        one.tensors |= {"order": order[:, start:stop], "cu_seqlens": None}
        if state:
            one.tensors[operation.state] = call.tensors[operation.state][i : i + 1]
        alone = one.run(engine, grads=False)
        for r in range(2):
            visited = order[r, start:stop]
            visited = visited[visited >= 0]
            torch.testing.assert_close(together["out"][:, visited, r], alone["out"][:, visited, r], **limit)
        torch.testing.assert_close(together["final_state"][i : i + 1], alone["final_state"], **limit)


HEADS = {"heads": 4, "head_dim": 17, "groups": 2, "d_state": 5, "shared": ("A", "D")}
STEPPED = [
    pytest.param(SCAN, {"channels": 17, "shared": ("A", "D")}, id="scan"),
    *(pytest.param(SSD, HEADS | {"w": w}, id=f"ssd-{w}") for w in (True, False)),
    pytest.param(CONV, {"channels": 17}, id="conv"),
]


@pytest.mark.parametrize(("operation", "sizes"), STEPPED)
def test_whole_chunked_and_step_by_step_are_equal(tools, engine, operation, sizes):
    call = operation.make(2, 70, 2, **sizes)
    whole = call.run(engine, grads=False)
    tensors, names = call.given(), operation.present(call)
    limit = {"rtol": 1e-5, "atol": 1e-5}
    limit_of_state = {"rtol": 0, "atol": 0} if operation is CONV else limit

    outs, state = [], tensors[operation.state]
    for start, stop in itertools.pairwise((0, 1, 1, 3, 40, 70)):
        part = tensors | {n: tensors[n][:, start:stop] for n in names} | {operation.state: state}
        out, state = operation.function(**part, **call.options, return_final_state=True, engine=engine)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole["out"], **limit)
    torch.testing.assert_close(state, whole["final_state"], **limit_of_state)

    outs, state = [], tensors.pop(operation.state)
    for t in range(70):
        part = tensors | {n: tensors[n][:, t] for n in names}
        out, state = operation.step(**part, state=state, **call.options, engine=engine)
        outs.append(out)
    torch.testing.assert_close(torch.stack(outs, 1), whole["out"], **limit)
    torch.testing.assert_close(state, whole["final_state"], **limit_of_state)


@pytest.mark.parametrize("kind", ["none", "gaps"])
@each(scan={}, ssd={"w": True}, conv={})
def test_route_of_size_one_is_a_tensor_for_all(tools, engine, operation, sizes, kind):
    names = operation.floats[:-1]
    call = tools.build(operation.make, {"kind": kind, "length": 40, "routes": 3, "shared": names, **sizes})
    small = call.run(engine)
    axes = {name: 2 if name in operation.by_position else 0 for name in names}
    for name, axis in axes.items():
        shape = list(call.tensors[name].shape)
        shape[axis] = 3
        call.tensors[name] = call.tensors[name].expand(shape)
    large = call.run(engine)
    for name, axis in axes.items():
        large[f"d{name}"] = large[f"d{name}"].sum(axis, keepdim=True)
    tools.assert_close(small, large, 1e-6 if operation is CONV else 5e-6)


@each(scan={}, ssd={}, conv={})
def test_routes_given_by_the_order_or_the_state_alone(tools, engine, operation, sizes):
    names = operation.floats[:-1]
    order = tools.order("shuffled", 2, 20, 3)
    compare(tools, engine, operation.make(2, 20, 3, shared=names, state=False, order=order, **sizes))
    compare(tools, engine, operation.make(2, 20, 3, shared=names, **sizes))


@pytest.mark.parametrize(
    ("operation", "name"),
    [pytest.param(one, name, id=f"{one.name}-{name}") for one in (SCAN, SSD, CONV) for name in one.floats],
)
def test_one_gradient_alone_equals_that_of_all(tools, engine, operation, name):
    options = {"kind": "gaps", "length": 40, "routes": 2, "shared": ("B", "z")} | (
        {"w": True} if operation is SSD else {}
    )
    call = tools.build(operation.make, options)
    everything = call.run(engine)
    alone = call.run(engine, only=(name,))
    assert set(alone) == {"out", "final_state", f"d{name}"}
    assert torch.equal(alone[f"d{name}"], everything[f"d{name}"])


@pytest.mark.parametrize("part", [0, 1])
@each(scan={"channels": 5}, ssd={"head_dim": 5}, conv={"channels": 5})
def test_gradient_through_one_output_alone(tools, engine, operation, sizes, part):
    call = operation.make(2, 40, 1, **sizes)
    grads = []
    for name in (engine, "reference"):
        tensors = call.leaves()
        result = operation.function(**tensors, **call.options, return_final_state=True, engine=name)[part]
        grads.append(torch.autograd.grad(result.sum(), [tensors["x"], tensors[operation.state]]))
    for found, expected in zip(*grads):
        assert tools.rms_ratio(found, expected) < (1e-6 if operation is CONV else 1e-5)


@pytest.mark.parametrize("order", [None, torch.zeros(1, 0, dtype=torch.int32), torch.tensor([[-1, -1]])])
@each(scan={"channels": 5}, ssd={"head_dim": 5}, conv={"channels": 5})
def test_without_a_step_the_state_is_copied(tools, engine, operation, sizes, order):
    call = operation.make(2, 0 if order is None else 5, 1, order=order, **sizes)
    result, state = call.run(engine), call.tensors[operation.state]
    assert torch.equal(result["final_state"], state)
    assert result["final_state"].data_ptr() != state.data_ptr()
    assert (result["out"] == 0).all()
    call.tensors[operation.state] = None
    assert (call.run(engine)["final_state"] == 0).all()


@each(scan={"channels": 5}, ssd={"heads": 4, "head_dim": 5}, conv={"channels": 5})
def test_empty_calls(tools, engine, operation, sizes):
    calls = [operation.make(batch, length, 2, **sizes) for batch, length in ((0, 5), (2, 0), (0, 0))]
    calls += [operation.make(2, 0, 2, order=torch.tensor([[-1, -2, -1]]), **sizes)]
    calls += [operation.make(2, 5, 1, order=torch.zeros(1, 0, dtype=torch.int32), **sizes)]
    calls += [operation.make(1, 0, 1, cu_seqlens=torch.zeros(1, dtype=torch.int32), **sizes)]
    for call in calls:
        tools.assert_close(call.run(engine), call.run("reference"), 1e-6)


@each(scan={}, ssd={"w": True}, conv={})
def test_inputs_are_not_modified(tools, engine, operation, sizes):
    call = tools.build(operation.make, {"kind": "resets", "packed": True, "length": 40, "routes": 2, **sizes})
    before = {name: t.clone() for name, t in call.given().items()}
    call.run(engine)
    for name, t in before.items():
        assert torch.equal(call.tensors[name], t), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each(scan={"channels": 5}, ssd={"heads": 4, "head_dim": 5}, conv={"channels": 5})
def test_autocast_changes_nothing(tools, engine, operation, sizes, dtype):
    call = operation.make(2, 40, 1, dtype=dtype, **sizes)
    plain, reference = call.run(engine), call.run("reference")
    with torch.autocast("cpu", torch.bfloat16):
        tools.assert_equal(call.run(engine), plain)
        tools.assert_equal(call.run("reference"), reference)


@each(scan={}, ssd={}, conv={})
def test_second_derivative_is_refused(engine, operation, sizes):
    tensors = operation.make(1, 4, **sizes).leaves()
    out = operation.function(**tensors, engine=engine)
    (dx,) = torch.autograd.grad(out.sum(), tensors["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="engine='reference'"):
        dx.sum().backward()
