"""Every engine of the Mamba-2 scan against the float64 reference, and what must hold exactly whatever the engine."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqssm_kernels import selective_scan, ssd_scan, ssd_step
from seqssm_kernels.contract import engines

PLACES = ("x", "dt", "B", "C", "z", "w")
ENGINES = [name for name in engines.OPERATIONS["ssd_scan"].engines if name in ("torch", "numba")]


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


def build(tools, options, seed=0):
    """A call from a row of options."""
    options = dict(options)
    kind, packed, layout = options.pop("kind"), options.pop("packed"), options.pop("layout", "contiguous")
    batch = 1 if packed else 2
    length, routes = options["length"], options["routes"]
    order = tools.order(kind, batch, length, routes, seed)
    cu = tools.cu_seqlens(length if order is None else order.shape[-1], 4, seed) if packed else None
    return tools.laid_out(tools.ssd(batch, order=order, cu_seqlens=cu, seed=seed, **options), layout)


@pytest.mark.usefixtures("nan_memory")
def test_options_in_pairs(tools, engine, ssd_options):
    call = build(tools, ssd_options)
    tools.assert_close(call.run(engine), call.run("reference", double=True), tools.tolerance[ssd_options["dtype"]])


@pytest.mark.usefixtures("nan_memory")
@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(("none", "gaps", "resets", "per sample")),
    packed=st.booleans(),
    batch=st.integers(1, 3),
    length=st.integers(1, 140),
    heads=st.integers(1, 5),
    per_group=st.booleans(),
    head_dim=st.integers(1, 70),
    d_state=st.integers(1, 9),
    routes=st.integers(1, 2),
    state=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_sizes(
    tools, engine, kind, packed, batch, length, heads, per_group, head_dim, d_state, routes, state, seed
):
    batch, groups = 1 if packed else batch, heads if per_group else 1
    order = tools.order(kind, batch, length, routes, seed)
    cu = tools.cu_seqlens(length if order is None else order.shape[-1], 3, seed) if packed else None
    call = tools.ssd(
        batch, length, routes, heads, head_dim, groups, d_state, order=order, cu_seqlens=cu, state=state, seed=seed
    )
    tools.assert_close(call.run(engine), call.run("reference", double=True), 1e-5)


@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("length", [0, 1, 2, 63, 64, 65, 123, 1000])
def test_lengths(tools, engine, length):
    call = tools.ssd(2, length, 1, 3, 5, 3, 7)
    tools.assert_close(call.run(engine), call.run("reference", double=True), 1e-5)


@pytest.mark.parametrize(("dt", "tolerance"), [((1e-3, 1.1e-3), 1e-5), ((1e-4, 1.1e-4), 1e-4)])
def test_long_and_slow(tools, engine, dt, tolerance):
    call = tools.ssd(1, 4096, 1, 2, 3, 1, 8, dt=dt, dt_bias=False, dt_softplus=False)
    tools.assert_close(call.run(engine), call.run("reference", double=True), tolerance)


@pytest.mark.parametrize("dt", [(0.05, 2.0), (0.3, 10.0), (1.0, 30.0)])
@pytest.mark.parametrize("w", [True, False])
def test_strong_decay(tools, engine, dt, w):
    call = tools.ssd(2, 150, 1, 4, 17, 1, 16, dt=dt, dt_bias=False, dt_softplus=False, w=w)
    tools.assert_close(call.run(engine), call.run("reference", double=True), 1e-5)


@pytest.mark.parametrize("offset", [0, 1, 31, 32, 62, 63, 64, 65, 100])
def test_one_very_large_step(tools, engine, offset):
    """A step that forgets nearly everything, wherever it lies in a tile, leaves its neighbours exact."""
    call = tools.ssd(1, 130, 1, 2, 5, 1, 6, dt=(1e-3, 1e-2), dt_bias=False, dt_softplus=False)
    call.tensors["dt"][:, offset] = 20.0
    tools.assert_close(call.run(engine), call.run("reference", double=True), 1e-5)


def test_steps_and_rates_of_either_sign(tools, engine):
    call = tools.ssd(2, 70, 1, 4, 17, 2, 4, dt_softplus=False, dt_bias=False)
    call.tensors["dt"] = call.tensors["dt"] * torch.where(torch.rand(call.tensors["dt"].shape) < 0.5, 1, -1)
    call.tensors["A"] = call.tensors["A"] * torch.where(torch.rand(call.tensors["A"].shape) < 0.5, 0.3, -0.3)
    tools.assert_close(call.run(engine), call.run("reference", double=True), 1e-5)


def test_float64(tools):
    options = {"kind": "resets", "packed": False, "length": 130, "routes": 2, "heads": 4, "groups": 2, "w": True}
    call = build(tools, {**options, "dtype": torch.float64})
    tools.assert_close(call.run("torch"), call.run("reference"), 1e-12)
    tools.assert_equal(call.run(None), call.run("torch"))


@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("offset", range(66))
def test_a_reset_and_a_border_at_every_offset(tools, engine, offset):
    """Sums over few sequences and steps may cancel: float32 itself is the measure where it misses the criterion."""
    places = torch.arange(70)
    order = torch.cat([places[:offset], torch.tensor([-2]), places[offset:]])[None]
    cu = torch.tensor([0, offset, 70], dtype=torch.int32)
    for call in (tools.ssd(2, 70, 1, 2, 5, 1, 6, order=order), tools.ssd(1, 70, 1, 2, 5, 1, 6, cu_seqlens=cu)):
        found, single, double = call.run(engine), call.run("reference"), call.run("reference", double=True)
        for name in double:
            limit = max(1e-5, 4 * tools.rms_ratio(single[name], double[name]))
            assert tools.rms_ratio(found[name], double[name]) < limit, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_overflow_is_infinite_and_nan_stays_nan(tools, engine, dtype):
    options = {"D": None, "z": False, "dt_bias": False, "dt_softplus": False, "state": False}
    call = tools.ssd(1, 40, 1, 2, 3, 1, 4, dtype=dtype, **options)
    for name in ("x", "dt", "B", "C"):
        call.tensors[name] = torch.ones_like(call.tensors[name])
    call.tensors["A"] = torch.full_like(call.tensors["A"], 30.0)
    result = call.run(engine, grads=False)
    assert torch.isposinf(result["out"][:, 10:]).all()
    assert torch.isposinf(result["final_state"]).all()

    call.tensors["A"] = torch.full_like(call.tensors["A"], -1.0)
    for name in ("x", "dt", "A", "B", "C"):
        for value in (torch.nan, torch.inf):
            broken = call.tensors[name].clone()
            broken[(slice(None), 1) if name == "A" else (slice(None), 20, slice(None), ..., -1)] = value
            result = tools.ssd(1, 40, 1, 2, 3, 1, 4, dtype=dtype, **options)
            result.tensors = call.tensors | {name: broken}
            expected = result.run("reference", grads=False)
            found = result.run(engine, grads=False)
            for part in expected:
                assert torch.equal(torch.isnan(found[part]), torch.isnan(expected[part])), (name, value, part)


@pytest.mark.parametrize("kind", ["none", "resets"])
def test_same_bits_each_time(tools, engine, kind):
    options = {"kind": kind, "packed": False, "length": 70, "routes": 2, "heads": 4, "head_dim": 40}
    call = build(tools, {**options, "shared": ("x", "A")})
    tools.assert_equal(call.run(engine), call.run(engine))


@pytest.mark.parametrize("kind", ["subset", "gaps", "resets", "per sample"])
def test_unvisited_positions_do_not_exist(tools, engine, kind):
    call = build(tools, {"kind": kind, "packed": False, "length": 40, "routes": 1, "head_dim": 5, "w": True})
    order = call.tensors["order"]
    order = order[None] if order.dim() == 2 else order
    order = torch.where((order >= 0) & (order % 3 == 0), -1, order)  # a third of the positions goes unvisited
    call.tensors["order"] = order
    clean = call.run(engine)
    hidden = torch.ones(2, 41, dtype=torch.bool)
    hidden.scatter_(1, torch.where(order >= 0, order, 40)[:, 0].long().expand(2, -1), False)
    hidden = hidden[:, :40]
    assert hidden.any()
    for name in PLACES:
        t = call.tensors[name]
        call.tensors[name] = t.masked_fill(hidden.view(*hidden.shape, *[1] * (t.dim() - 2)), torch.nan)
    broken = call.run(engine)
    tools.assert_equal(broken, clean)
    for name in ("out", *(f"d{n}" for n in PLACES)):
        assert (clean[name][hidden] == 0).all(), name


def test_absent_steps_change_nothing(tools, engine):
    plain = build(tools, {"kind": "shuffled", "packed": False, "length": 70, "routes": 2})
    order = plain.tensors["order"]
    gaps = tools.ssd(2, 70, 2, order=torch.full((2, 140), -1))
    gaps.tensors["order"][:, 1::2] = order
    tools.assert_close(gaps.run(engine), plain.run(engine), 2e-6)


def test_no_gradient_and_no_value_across_a_reset(tools, engine):
    call = tools.ssd(1, 10, order=torch.tensor([[0, 1, 2, 3, -2, 4, 5, 6, 7, 8, 9]]))
    x = call.tensors["x"].clone()
    x[:, 3] = torch.inf
    call.tensors["x"] = x
    tensors = {k: v for k, v in call.tensors.items() if v is not None}
    out = ssd_scan(**tensors, **call.options, engine=engine)
    assert torch.isfinite(out[:, 4:]).all()
    tensors["x"] = torch.where(torch.isinf(x), 0.0, x).requires_grad_()
    state = tensors["initial_state"].requires_grad_()
    out = ssd_scan(**tensors, **call.options, engine=engine)
    dx, dstate = torch.autograd.grad(out[:, 4:].sum(), (tensors["x"], state))
    assert (dx[:, :4] == 0).all()
    assert (dx[:, 4:] != 0).all()
    assert (dstate == 0).all()


@pytest.mark.parametrize("kind", ["none", "shuffled"])
def test_causality(tools, engine, kind):
    call = build(tools, {"kind": kind, "packed": False, "length": 70, "routes": 1, "head_dim": 17, "w": True})
    order = torch.arange(70) if kind == "none" else call.tensors["order"][0]
    before = call.run(engine, grads=False)["out"]
    for name in PLACES:
        changed = call.tensors[name].clone()
        changed[:, order[41:]] += 1
        call.tensors[name] = changed
    after = call.run(engine, grads=False)["out"]
    torch.testing.assert_close(before[:, order[:41]], after[:, order[:41]], rtol=1e-6, atol=1e-6)
    assert not torch.equal(before[:, order[41:]], after[:, order[41:]])
    for name in PLACES:
        changed = call.tensors[name].clone()
        changed[:, order[41]] = torch.nan
        call.tensors[name] = changed
    broken = call.run(engine, grads=False)["out"]
    torch.testing.assert_close(before[:, order[:41]], broken[:, order[:41]], rtol=1e-5, atol=1e-5)
    call = build(tools, {"kind": kind, "packed": False, "length": 70, "routes": 1, "head_dim": 17, "w": True})
    leaves = [call.tensors[name].requires_grad_() for name in PLACES]
    out = ssd_scan(**{k: v for k, v in call.tensors.items() if v is not None}, **call.options, engine=engine)
    for grad in torch.autograd.grad(out[:, order[:41]].sum(), leaves):
        assert (grad[:, order[41:]] == 0).all()
        assert (grad[:, order[:41]] != 0).any()


def test_flipped_input_in_reverse_order_is_flipped_output(tools, engine):
    forward = tools.ssd(2, 70, 1, 2, 17)
    reverse = tools.ssd(2, 70, 1, 2, 17, order=torch.arange(69, -1, -1)[None])
    for name in PLACES:
        if forward.tensors[name] is not None:
            reverse.tensors[name] = forward.tensors[name].flip(1)
    a, b = forward.run(engine, grads=False), reverse.run(engine, grads=False)
    assert tools.rms_ratio(a["out"], b["out"].flip(1)) < 1e-6
    assert tools.rms_ratio(a["final_state"], b["final_state"]) < 1e-6


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("kind", ["none", "resets"])
def test_packed_is_separate(tools, engine, kind, state):
    call = build(tools, {"kind": kind, "packed": True, "length": 80, "routes": 2, "state": state, "shared": ("A", "x")})
    together = call.run(engine, grads=False)
    order = torch.arange(80).expand(2, 80) if call.tensors["order"] is None else call.tensors["order"]
    cu = call.tensors["cu_seqlens"].tolist()
    for i, (start, stop) in enumerate(pairwise(cu)):
        one = tools.ssd(1, 80, 2, state=state, shared=("A", "x"))
        one.tensors |= {"order": order[:, start:stop], "cu_seqlens": None}
        if state:
            one.tensors["initial_state"] = call.tensors["initial_state"][i : i + 1]
        alone = one.run(engine, grads=False)
        for r in range(2):
            places = order[r, start:stop]
            places = places[places >= 0]
            torch.testing.assert_close(together["out"][:, places, r], alone["out"][:, places, r], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together["final_state"][i : i + 1], alone["final_state"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("w", [True, False])
def test_whole_is_chunked_is_step_by_step(tools, engine, w):
    call = tools.ssd(2, 70, 2, 4, 17, 2, 5, shared=("A", "D"), w=w)
    whole = call.run(engine, grads=False)
    tensors = {k: v for k, v in call.tensors.items() if v is not None}
    names = [name for name in PLACES if name in tensors]

    outs, state = [], tensors["initial_state"]
    for start, stop in ((0, 1), (1, 1), (1, 40), (40, 70)):
        part = tensors | {n: tensors[n][:, start:stop] for n in names} | {"initial_state": state}
        out, state = ssd_scan(**part, **call.options, return_final_state=True, engine=engine)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole["out"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, whole["final_state"], rtol=1e-5, atol=1e-5)

    outs, state = [], tensors.pop("initial_state")
    for t in range(70):
        part = tensors | {n: tensors[n][:, t] for n in names}
        out, state = ssd_step(**part, state=state, **call.options, engine=engine)
        outs.append(out)
    torch.testing.assert_close(torch.stack(outs, 1), whole["out"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, whole["final_state"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "gaps"])
def test_route_of_size_one_is_a_tensor_for_all(tools, engine, kind):
    names = tools.ssd_floats[:9]
    call = build(tools, {"kind": kind, "packed": False, "length": 40, "routes": 3, "shared": names, "w": True})
    small = call.run(engine)
    axes = {name: 2 if name in PLACES else 0 for name in names}
    for name, axis in axes.items():
        shape = list(call.tensors[name].shape)
        shape[axis] = 3
        call.tensors[name] = call.tensors[name].expand(shape)
    large = call.run(engine)
    for name, axis in axes.items():
        large[f"d{name}"] = large[f"d{name}"].sum(axis, keepdim=True)
    tools.assert_close(small, large, 5e-6)


def test_routes_given_by_the_order_or_the_state_alone(tools, engine):
    names = tools.ssd_floats[:9]
    call = tools.ssd(2, 20, 3, shared=names, state=False, order=tools.order("shuffled", 2, 20, 3))
    tools.assert_close(call.run(engine), call.run("reference", double=True), 1e-5)
    call = tools.ssd(2, 20, 3, shared=names)
    tools.assert_close(call.run(engine), call.run("reference", double=True), 1e-5)


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "w", "initial_state"])
def test_one_gradient_alone_is_that_of_all(tools, engine, name):
    options = {"kind": "gaps", "packed": False, "length": 40, "routes": 2, "shared": ("B", "z"), "w": True}
    call = build(tools, options)
    everything = call.run(engine)
    alone = call.run(engine, only=(name,))
    assert set(alone) == {"out", "final_state", f"d{name}"}
    assert torch.equal(alone[f"d{name}"], everything[f"d{name}"])


@pytest.mark.parametrize("part", [0, 1])
def test_gradient_through_one_output_alone(tools, engine, part):
    call = tools.ssd(2, 40, 1, 2, 5)
    grads = []
    for name in (engine, "reference"):
        tensors = {k: v.detach().requires_grad_() for k, v in call.tensors.items() if v is not None}
        result = ssd_scan(**tensors, **call.options, return_final_state=True, engine=name)[part]
        grads.append(torch.autograd.grad(result.sum(), [tensors["x"], tensors["initial_state"]]))
    for found, expected in zip(*grads):
        assert tools.rms_ratio(found, expected) < 1e-5


@pytest.mark.parametrize("order", [None, torch.zeros(1, 0, dtype=torch.int32), torch.tensor([[-1, -1]])])
def test_without_a_step_the_state_is_copied(tools, engine, order):
    call = tools.ssd(2, 0 if order is None else 5, 1, 2, 5, order=order)
    result = call.run(engine)
    assert torch.equal(result["final_state"], call.tensors["initial_state"])
    assert result["final_state"].data_ptr() != call.tensors["initial_state"].data_ptr()
    assert (result["out"] == 0).all()
    call.tensors["initial_state"] = None
    assert (call.run(engine)["final_state"] == 0).all()


def test_empty_calls(tools, engine):
    for batch, length in ((0, 5), (2, 0), (0, 0)):
        call = tools.ssd(batch, length, 2, 4, 5)
        tools.assert_close(call.run(engine), call.run("reference"), 1e-6)
    call = tools.ssd(2, 0, 2, 4, 5, order=torch.tensor([[-1, -2, -1]]))
    tools.assert_close(call.run(engine), call.run("reference"), 1e-6)
    call = tools.ssd(1, 0, 1, 4, 5, cu_seqlens=torch.zeros(1, dtype=torch.int32))
    tools.assert_close(call.run(engine), call.run("reference"), 1e-6)


def test_inputs_are_left_as_they_are(tools, engine):
    call = build(tools, {"kind": "resets", "packed": True, "length": 40, "routes": 2, "w": True})
    before = {k: v.clone() for k, v in call.tensors.items() if v is not None}
    call.run(engine)
    for name, t in before.items():
        assert torch.equal(call.tensors[name], t), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_the_scan_alone(tools, engine, dtype):
    call = tools.ssd(2, 40, 1, 4, 5, dtype=dtype)
    plain = call.run(engine)
    reference = call.run("reference")
    with torch.autocast("cpu", torch.bfloat16):
        tools.assert_equal(call.run(engine), plain)
        tools.assert_equal(call.run("reference"), reference)


def test_second_derivative_is_refused(tools, engine):
    call = tools.ssd(1, 4)
    x = call.tensors["x"].requires_grad_()
    tensors = {k: v for k, v in call.tensors.items() if v is not None}
    (dx,) = torch.autograd.grad(ssd_scan(**tensors, engine=engine).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="engine='reference'"):
        dx.sum().backward()


def test_it_is_the_selective_scan_with_equal_rates(tools, engine):
    """With A and dt the same for all channels and states of a head, both scans are one recurrence."""
    call = tools.ssd(2, 70, 1, 2, 5, 1, 4)
    t = {k: v for k, v in call.tensors.items() if v is not None}

    def spread(v):
        return v.unsqueeze(-1).expand(*v.shape, 5).flatten(-2)

    found = ssd_scan(**t, **call.options, engine=engine)
    expected = selective_scan(
        t["x"].flatten(3), spread(t["dt"]), spread(t["A"])[..., None].expand(1, 10, 4), t["B"][:, :, :, 0],
        t["C"][:, :, :, 0], D=spread(t["D"]), z=t["z"].flatten(3), dt_bias=spread(t["dt_bias"]),
        initial_state=t["initial_state"].flatten(2, 3), **call.options,
    )  # fmt: skip
    assert tools.rms_ratio(found.flatten(3), expected) < 1e-6
