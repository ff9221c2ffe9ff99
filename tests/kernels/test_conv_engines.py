"""Every engine of the convolution against the float64 reference, and what must hold exactly whatever the engine."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqssm_kernels import causal_conv1d, causal_conv1d_step


def build(tools, options, seed=0):
    """A call from a row of options."""
    options = dict(options)
    kind, packed, layout = options.pop("kind"), options.pop("packed"), options.pop("layout", "contiguous")
    batch = 1 if packed else 2
    length, routes = options["length"], options["routes"]
    order = tools.order(kind, batch, length, routes, seed)
    cu = tools.cu_seqlens(length if order is None else order.shape[-1], 4, seed) if packed else None
    return tools.laid_out(tools.conv(batch, order=order, cu_seqlens=cu, seed=seed, **options), layout)


@pytest.mark.usefixtures("nan_memory")
def test_options_in_pairs(tools, engine, conv_options):
    call = build(tools, conv_options)
    tools.assert_close(call.run(engine), call.run("reference", double=True), tools.tolerance[conv_options["dtype"]])


@pytest.mark.usefixtures("nan_memory")
@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(("none", "gaps", "resets", "per sample")),
    packed=st.booleans(),
    batch=st.integers(1, 3),
    length=st.integers(1, 70),
    channels=st.integers(1, 35),
    width=st.integers(1, 6),
    routes=st.integers(1, 2),
    state=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_sizes(tools, engine, kind, packed, batch, length, channels, width, routes, state, seed):
    batch = 1 if packed else batch
    order = tools.order(kind, batch, length, routes, seed)
    cu = tools.cu_seqlens(length if order is None else order.shape[-1], 3, seed) if packed else None
    call = tools.conv(batch, length, routes, channels, width, order=order, cu_seqlens=cu, state=state, seed=seed)
    tools.assert_close(call.run(engine), call.run("reference", double=True), 1e-5)


@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("length", [0, 1, 2, 3, 255, 256, 257, 1000])
@pytest.mark.parametrize("width", [1, 4])
def test_lengths(tools, engine, length, width):
    call = tools.conv(2, length, 1, 5, width)
    tools.assert_close(call.run(engine), call.run("reference", double=True), 1e-5)


def test_float64(tools):
    call = build(tools, {"kind": "resets", "packed": False, "length": 70, "routes": 2, "dtype": torch.float64})
    tools.assert_close(call.run("torch"), call.run("reference"), 1e-12)
    tools.assert_equal(call.run(None), call.run("torch"))


def test_same_bits_each_time(tools, engine):
    call = build(
        tools, {"kind": "resets", "packed": False, "length": 70, "routes": 2, "channels": 40, "shared": ("x",)}
    )
    tools.assert_equal(call.run(engine), call.run(engine))


@pytest.mark.parametrize("kind", ["subset", "gaps", "resets", "per sample"])
def test_unvisited_places_do_not_exist(tools, engine, kind):
    call = build(tools, {"kind": kind, "packed": False, "length": 40, "routes": 1, "channels": 5})
    order = call.tensors["order"]
    order = order[None] if order.dim() == 2 else order
    order = torch.where((order >= 0) & (order % 3 == 0), -1, order)
    call.tensors["order"] = order
    clean = call.run(engine)
    hidden = torch.ones(2, 41, dtype=torch.bool)
    hidden.scatter_(1, torch.where(order >= 0, order, 40)[:, 0].long().expand(2, -1), False)
    hidden = hidden[:, :40]
    call.tensors["x"] = call.tensors["x"].masked_fill(hidden[..., None, None], torch.nan)
    tools.assert_equal(call.run(engine), clean)
    assert (clean["out"][hidden] == 0).all()
    assert (clean["dx"][hidden] == 0).all()


def test_absent_steps_do_not_shift_the_window(tools, engine):
    plain = build(tools, {"kind": "shuffled", "packed": False, "length": 300, "routes": 2})
    order = plain.tensors["order"]
    gaps = tools.conv(2, 300, 2, order=torch.full((2, 900), -1))
    gaps.tensors["order"][:, 1::3] = order
    tools.assert_close(gaps.run(engine), plain.run(engine), 1e-6)


def test_no_gradient_and_no_value_across_a_reset(tools, engine):
    call = tools.conv(1, 8, order=torch.tensor([[0, 1, 2, 3, -2, -1, 4, 5, 6, 7]]))
    x = call.tensors["x"]
    x[:, 3] = torch.inf
    tensors = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in call.tensors.items() if v is not None}
    out = causal_conv1d(**tensors, engine=engine)
    assert torch.isfinite(out[:, 4:]).all()
    dx, dstate = torch.autograd.grad(out[:, 4:].sum(), (x, tensors["state"]))
    assert (dx[:, :4] == 0).all()
    assert (dx[:, 4:] != 0).all()
    assert (dstate == 0).all()


def test_packed_is_separate(tools, engine):
    call = build(tools, {"kind": "resets", "packed": True, "length": 80, "routes": 2})
    together = call.run(engine, grads=False)
    order = call.tensors["order"]
    for i, (start, stop) in enumerate(pairwise(call.tensors["cu_seqlens"].tolist())):
        one = tools.conv(1, 80, 2)
        one.tensors |= {"order": order[:, start:stop], "cu_seqlens": None, "state": call.tensors["state"][i : i + 1]}
        alone = one.run(engine, grads=False)
        for r in range(2):
            places = order[r, start:stop]
            places = places[places >= 0]
            torch.testing.assert_close(together["out"][:, places, r], alone["out"][:, places, r])
        torch.testing.assert_close(together["final_state"][i : i + 1], alone["final_state"])


def test_whole_is_chunked_is_step_by_step(tools, engine):
    call = tools.conv(2, 70, 2, 17)
    whole = call.run(engine, grads=False)
    x, weight, bias, first = (call.tensors[k] for k in ("x", "weight", "bias", "state"))
    outs, state = [], first
    for start, stop in ((0, 1), (1, 1), (1, 3), (3, 70)):
        out, state = causal_conv1d(x[:, start:stop], weight, bias, state=state, return_final_state=True, engine=engine)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole["out"], rtol=1e-5, atol=1e-5)
    assert torch.equal(state, whole["final_state"])
    outs, state = [], first
    for t in range(70):
        out, state = causal_conv1d_step(x[:, t], weight, bias, state, engine=engine)
        outs.append(out)
    torch.testing.assert_close(torch.stack(outs, 1), whole["out"], rtol=1e-5, atol=1e-5)
    assert torch.equal(state, whole["final_state"])


@pytest.mark.parametrize("kind", ["none", "gaps"])
def test_route_of_size_one_is_a_tensor_for_all(tools, engine, kind):
    names = tools.conv_floats[:3]
    call = build(tools, {"kind": kind, "packed": False, "length": 40, "routes": 3, "shared": names})
    small = call.run(engine)
    for name, axis in (("x", 2), ("weight", 0), ("bias", 0)):
        shape = list(call.tensors[name].shape)
        shape[axis] = 3
        call.tensors[name] = call.tensors[name].expand(shape)
    large = call.run(engine)
    for name, axis in (("x", 2), ("weight", 0), ("bias", 0)):
        large[f"d{name}"] = large[f"d{name}"].sum(axis, keepdim=True)
    tools.assert_close(small, large, 1e-6)


@pytest.mark.parametrize("name", ["x", "weight", "bias", "state"])
def test_one_gradient_alone_is_that_of_all(tools, engine, name):
    call = build(tools, {"kind": "gaps", "packed": False, "length": 40, "routes": 2})
    assert torch.equal(call.run(engine, only=(name,))[f"d{name}"], call.run(engine)[f"d{name}"])


def test_gradient_through_one_output_alone(tools, engine):
    call = tools.conv(2, 10, 1, 5)
    for part in (0, 1):
        grads = []
        for name in (engine, "reference"):
            tensors = {k: v.detach().requires_grad_() for k, v in call.tensors.items() if v is not None}
            result = causal_conv1d(**tensors, return_final_state=True, engine=name)[part]
            grads.append(torch.autograd.grad(result.sum(), [tensors["x"], tensors["state"]]))
        for found, expected in zip(*grads):
            torch.testing.assert_close(found, expected)


def test_empty_calls(tools, engine):
    calls = [tools.conv(b, length, 2, 5) for b, length in ((0, 5), (2, 0), (0, 0))]
    calls += [tools.conv(2, 0, 2, 5, order=torch.tensor([[-1, -2, -1]]))]
    calls += [tools.conv(2, 5, 1, 5, order=torch.zeros(1, 0, dtype=torch.int32))]
    calls += [tools.conv(1, 0, 1, 5, cu_seqlens=torch.zeros(1, dtype=torch.int32))]
    for call in calls:
        tools.assert_close(call.run(engine), call.run("reference"), 1e-6)
    assert torch.equal(calls[1].run(engine)["final_state"], calls[1].tensors["state"])


def test_autocast_leaves_the_convolution_alone(tools, engine):
    call = tools.conv(2, 40, 1, 5)
    plain = call.run(engine)
    with torch.autocast("cpu", torch.bfloat16):
        tools.assert_equal(call.run(engine), plain)


@pytest.mark.parametrize("kind", ["none", "resets"])
def test_silu_inside_is_the_silu_behind(tools, engine, kind):
    call = build(tools, {"kind": kind, "packed": False, "length": 70, "routes": 2, "activation": "silu"})
    inside = call.run(engine)
    call.options["activation"] = None
    behind = dict(call.tensors)
    leaves = {name: behind[name].clone().requires_grad_() for name in tools.conv_floats}
    behind |= leaves
    out, final = causal_conv1d(**behind, return_final_state=True, engine=engine)
    out = torch.nn.functional.silu(out)
    weights = [((torch.arange(t.numel()) % 7 - 3) / 4).view(t.shape) for t in (out, final)]
    found = torch.autograd.grad((out, final), list(leaves.values()), weights)
    expected = {"out": out, "final_state": final} | {f"d{n}": g for n, g in zip(leaves, found)}
    tools.assert_close(inside, {name: t.detach() for name, t in expected.items()}, 1e-6)


def test_silu_keeps_nothing_of_its_own(tools, engine):
    call = tools.conv(2, 70, 1, 17)
    x, weight, bias = (call.tensors[name].requires_grad_() for name in ("x", "weight", "bias"))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        causal_conv1d(x, weight, bias, activation="silu", engine=engine)
    assert set(kept) == {t.data_ptr() for t in (x, weight, bias)}


def test_silu_of_large_values(tools, engine):
    x = torch.tensor([-1e30, -200.0, -90.0, 0.0, 90.0, 1e30]).view(1, 6, 1).requires_grad_()
    out = causal_conv1d(x, torch.ones(1, 1), activation="silu", engine=engine)
    (dx,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(out.flatten(), torch.tensor([0.0, 0.0, 0.0, 0.0, 90.0, 1e30]))
    torch.testing.assert_close(dx.flatten(), torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0, 1.0]))


def test_second_derivative_is_refused(tools, engine):
    call = tools.conv(1, 4)
    x = call.tensors["x"].requires_grad_()
    out = causal_conv1d(x, call.tensors["weight"].requires_grad_(), engine=engine)
    (dx,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="engine='reference'"):
        dx.sum().backward()
