"""The Triton engine against the float64 reference: on a GPU if there is one, else in Triton's interpreter.

Not collected by a plain `pytest`: the interpreter must be chosen before Triton is imported, and excludes compilation.
`make test` runs this file in a separate process with TRITON_INTERPRET=1, `make gpu-check` on the GPU.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import itertools
import os
from types import SimpleNamespace

import pytest
import torch
from seqssm_kernels import selective_scan, ssd_scan
from seqssm_kernels.gpu import plan as plan_triton

from .calls import CONV, SCAN, SSD, integer_call
from .options import CONV_FLAGS, DTYPES, SCAN_FLAGS, SSD_FLAGS, rows

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU, or TRITON_INTERPRET=1", allow_module_level=True)

import triton  # noqa: E402
from seqssm_kernels.gpu import launch as launching  # noqa: E402  only where they can be imported

scan_engine = importlib.import_module("seqssm_kernels.selective_scan.triton")
ssd_engine = importlib.import_module("seqssm_kernels.ssd_scan.triton")

# Fresh memory holds NaN in every test, so that values a kernel does not write are detected.
pytestmark = pytest.mark.usefixtures("one_thread", "nan_memory")

BOTH = (True, False)
PLACES = set(SSD.by_position)
SMALL = {
    "kind": ("none", "reverse", "subset", "resets", "per sample"),
    "shared": ((), ("x", "B", "D"), ("A", "dt", "dt_bias"), ("C", "z")),
    "layout": ("contiguous", "transposed", "expanded"),
    "dtype": DTYPES,
    "length": (1, 7, 19),
}
SCAN_FACTORS = {
    **SMALL,
    "channels": (1, 16, 40, 100),
    "d_state": (1, 3, 4),
    "block": (32, 64, 128),
    "routes": (1, 2),
    "split": BOTH,
    **SCAN_FLAGS,
}
CONV_FACTORS = {
    **SMALL,
    "shared": ((), ("x",), ("weight", "bias")),
    "channels": (1, 16, 20),
    "width": (1, 2, 4),
    "routes": (1, 2),
    "split": BOTH,
    **CONV_FLAGS,
}
SSD_FACTORS = {
    **SMALL,
    "shared": ((), ("x", "B", "D"), ("A", "dt", "dt_bias"), ("C", "z", "w")),
    "length": (1, 18),
    "heads": (2,),
    "groups": (1, 2),
    "head_dim": (1, 20),
    "d_state": (3, 20),
    "routes": (1, 2),
    **SSD_FLAGS,
}


def pairs(factors):
    """Rows of options that hold every pair of values; `make test` runs every eighth."""
    table = rows(factors)
    marked = [
        pytest.param(row, id=str(number), marks=() if number % 8 == 4 else pytest.mark.long)
        for number, row in enumerate(table)
    ]
    return pytest.mark.parametrize("options", marked)


@pytest.fixture(autouse=True, scope="module")
def quick_interpreter():
    """Save the interpreter two thirds of its work; other Triton releases are only slower.

    The interpreter patches the whole language again for every call of a helper, where once per kernel is enough. It
    also checks every integer operation for overflow, which cannot occur at these sizes.
    """
    interpreter = importlib.import_module("triton.runtime.interpreter") if INTERPRETED else None
    original = getattr(interpreter, "_patch_lang", None)
    if original is None:
        yield
        return
    patched: set[int] = set()

    def patch(fn):
        known = (triton.language, triton.language.core)
        languages = {id(value) for value in fn.__globals__.values() if any(value is one for one in known)}
        if languages <= patched:
            return SimpleNamespace(restore=lambda: None)
        patched.update(languages)
        scope = original(fn)
        return SimpleNamespace(restore=lambda: (patched.clear(), scope.restore()))

    options = interpreter.interpreter_builder.options
    interpreter._patch_lang = patch
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
    yield
    interpreter._patch_lang = original
    interpreter.interpreter_builder.options = options


# Steps that the forward pass and the two kernels of the backward pass process at once, by block.
AT_ONCE = {32: (4, 4, 4), 64: (8, 4, 8), 128: (4, 8, 8)}


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 8 steps, a kept state every 8, few steps at once: a few steps cross every boundary."""
    monkeypatch.setattr(scan_engine, "KEEP", 8)
    monkeypatch.setattr(plan_triton, "steps_back", lambda block, gated: AT_ONCE[block][1:])
    monkeypatch.setattr(plan_triton, "steps_forward", lambda block, config: AT_ONCE[block][0])
    monkeypatch.setattr(plan_triton, "carry_groups", lambda per_row: 2)
    monkeypatch.setattr(plan_triton, "CARRY_AHEAD", 2)
    monkeypatch.setattr(plan_triton, "SSD_CHUNKS", (16,))
    monkeypatch.setattr(plan_triton, "ssd_block", lambda *_: plan_triton.SsdBlock(16, 16))

    def choose(split: bool, block: int = 32) -> None:
        def division(sizes, *_: object) -> plan_triton.Division:
            chunk = 8 if split else max(1, sizes.steps)
            channels = min(block, plan_triton.tile(sizes.channels))
            return plan_triton.Division(channels, chunk, max(1, -(-sizes.steps // chunk)))

        monkeypatch.setattr(plan_triton, "divide", division)
        monkeypatch.setattr(plan_triton, "divide_convolution", division)

    return choose


def on_device(call):
    return call.on(DEVICE)


def build(tools, make, options):
    return on_device(tools.build(make, options))


def compared(call, **options):
    """Results of the engine, and of the reference on the CPU in float64."""
    found = {k: v.cpu() for k, v in call.run("triton", **options).items()}
    return found, call.on("cpu").run("reference", double=True, **options)


def close(tools, call, dtype=torch.float32, **options):
    tools.assert_close(*compared(call, **options), tools.tolerance[dtype])


@pairs(SCAN_FACTORS)
def test_scan_options_in_pairs(tools, small_chunks, options):
    options = dict(options)
    small_chunks(options.pop("split"), options.pop("block"))
    close(tools, build(tools, tools.scan, options), options["dtype"])


@pairs(CONV_FACTORS)
def test_conv_options_in_pairs(tools, small_chunks, options):
    options = dict(options)
    small_chunks(options.pop("split"))
    close(tools, build(tools, tools.conv, options), options["dtype"])


@pairs(SSD_FACTORS)
def test_ssd_options_in_pairs(tools, small_chunks, options):
    """Factors of matrix products are rounded to half precision or tf32: a sum over all steps may lose more."""
    dtype = options["dtype"]
    value, reference = compared(build(tools, tools.ssd, options))
    sums = {name: (value.pop(name), reference.pop(name)) for name in ("dA", "ddt_bias") if name in reference}
    tools.assert_close(value, reference, tools.tolerance[dtype])
    for name, pair in sums.items():
        factor = 1 if dtype == torch.float32 else 5
        tools.assert_close({name: pair[0]}, {name: pair[1]}, factor * tools.tolerance[dtype])


FEW = {"state": BOTH, "z": BOTH, "D": BOTH, "packed": BOTH, "length": (1, 19), "routes": (1, 2), "dtype": DTYPES}
FEW |= {"kind": ("none", "resets"), "shared": ((), ("x", "B", "D"), ("C",))}
OF_SCAN = FEW | {"channels": (16, 40), "d_state": (3, 16), "split": BOTH}
OF_SSD = FEW | {"D": ("heads", "channels"), "heads": (2,), "groups": (1, 2), "head_dim": (3, 20), "d_state": (3, 20)}


@pytest.mark.parametrize(
    ("name", "factors"),
    [pytest.param("scan", OF_SCAN, id="scan", marks=pytest.mark.long), pytest.param("ssd", OF_SSD, id="ssd")],
)
def test_integers_options_in_pairs(tools, small_chunks, name, factors):
    for options in rows(factors):
        small_chunks(options.pop("split", False))
        call = on_device(integer_call(tools.build(getattr(tools, name), options)))
        close(tools, call, options["dtype"], grads=False)


@pytest.mark.parametrize("dt", [(1e-4, 1.1e-4), (0.3, 10.0), (5.0, 90.0)])
def test_ssd_in_whole_chunks(tools, dt):
    """Slow decay, and decays that differ by orders of magnitude inside a chunk of 64 steps."""
    call = tools.ssd(1, 70, 1, 1, 5, 1, 6, dt=dt, dt_bias=False, dt_softplus=False, z=False, w=True)
    call.tensors["dt"][:, 31] = 20.0
    call.tensors["dt"][:, 0] = dt[0] / 10  # otherwise the gradient of the initial state is below float32's range
    close(tools, on_device(call))


def test_ssd_heads_of_a_group_in_parts(tools, small_chunks, monkeypatch):
    call = on_device(tools.ssd(1, 18, 1, 3, 2, 1, 3))
    whole = call.run("triton")
    monkeypatch.setattr(plan_triton, "ssd_heads_per_part", lambda *_: 2)
    parts = call.run("triton")
    for name in ("dB", "dC"):
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-5, atol=1e-6)


def test_ssd_infinity_stays_where_it_is(tools, small_chunks):
    """Not before its step and not after a reset, although both are in one matrix product."""
    order = torch.tensor([[0, 1, 2, 3, 4, -2, 5, 6, 7, 8, 9]])
    call = on_device(tools.ssd(1, 10, 1, 2, 5, order=order))
    call.tensors["x"][:, 3, :, 0] = torch.inf
    tensors = call.leaves()
    out, final = ssd_scan(**tensors, **call.options, return_final_state=True, engine="triton")
    reached = torch.zeros(10, 2, dtype=torch.bool)
    reached[3:5, 0] = True
    assert torch.equal(torch.isfinite(out[0, :, 0]).all(-1).cpu(), ~reached)
    assert torch.isfinite(final).all()
    dB, dinitial = torch.autograd.grad(final.sum(), (tensors["B"], tensors["initial_state"]))
    assert (dB[:, :3] == 0).all()
    assert (dinitial == 0).all()


@pytest.mark.parametrize("length", [0, 8, 40])
@pytest.mark.parametrize("name", ["scan", "conv"])
def test_lengths(tools, small_chunks, name, length):
    small_chunks(True)
    close(tools, on_device(getattr(tools, name)(1, length, 1, 5)))


@pytest.mark.parametrize("split", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["scan", "conv", "ssd"])
def test_unvisited_positions_have_no_effect(tools, small_chunks, name, split):
    small_chunks(split)
    order = torch.cat([tools.order("resets", 1, 12, 1), torch.tensor([[12, -7, 99, -2, 13]])], 1)
    order[order % 3 == 1] = -1
    call = getattr(tools, name)(1, 14, 1, 5, order=order.clamp(-2, 13))
    hidden = torch.ones(15, dtype=torch.bool)
    hidden[call.tensors["order"][0]] = False
    hidden = hidden[:14]
    clean = on_device(call).run("triton")
    for place in PLACES & call.tensors.keys():
        if call.tensors[place] is not None:
            call.tensors[place][:, hidden] = torch.nan
    dirty = call.run("triton")
    tools.assert_equal(dirty, clean)
    assert (clean["out"][:, hidden] == 0).all()
    assert (clean["dx"][:, hidden] == 0).all()


def test_ids_out_of_bounds_are_no_step(tools, monkeypatch):
    """On a GPU; on the CPU, and so in the interpreter, the table is checked first."""
    monkeypatch.setattr("seqssm_kernels.contract.order.check_order", lambda *_: None)
    legal = torch.tensor([[0, 1, -1, 2, -1, -2, -1, 3]])
    wrong = torch.tensor([[0, 1, 99, 2, -3, -2, 4, 3]])
    for make in (tools.scan, tools.conv, tools.ssd):
        results = [on_device(make(1, 4, 1, 5, order=order)).run("triton") for order in (legal, wrong)]
        tools.assert_equal(*results)


def test_check_switch(tools, monkeypatch):
    monkeypatch.setenv("SEQSSM_CHECK", "1")
    call = on_device(tools.scan(1, 4, 1, 5, order=torch.tensor([[0, 4]])))
    with pytest.raises(ValueError, match=r"order\[0, 0, 1\] is 4"):
        call.run("triton")


def test_nothing_crosses_a_reset(tools, small_chunks):
    small_chunks(True)
    steps = list(range(10))
    order = torch.tensor([[*steps[:5], -2, -1, *steps[5:]]])
    call = on_device(tools.scan(1, 10, 1, 5, order=order))
    call.tensors["x"][:, 4] = torch.inf
    tensors = call.leaves()
    out, final = selective_scan(**tensors, **call.options, return_final_state=True, engine="triton")
    assert torch.isfinite(out[:, 5:]).all()
    assert torch.isfinite(final).all()
    leaves = (tensors["B"], tensors["initial_state"])
    dB, dinitial = torch.autograd.grad(final.sum(), leaves)
    assert (dB[:, :4] == 0).all()
    assert (dinitial == 0).all()


@pytest.mark.parametrize("name", ["scan", "conv", pytest.param("ssd", marks=pytest.mark.long)])
def test_same_bits_each_time(tools, small_chunks, name):
    small_chunks(True)
    options = {"kind": "resets", "length": 19, "routes": 2, "shared": ("x",)}
    call = build(tools, getattr(tools, name), options)
    tools.assert_equal(call.run("triton"), call.run("triton"))


@pytest.mark.long
def test_one_gradient_alone_equals_that_of_all(tools):
    options = {"kind": "subset", "length": 7, "routes": 2}
    makers = ((tools.scan, tools.scan_floats), (tools.conv, tools.conv_floats), (tools.ssd, tools.ssd_floats))
    for make, floats in makers:
        call = build(tools, make, options)
        floats = [name for name in floats if call.tensors[name] is not None]
        everything = call.run("triton")
        for name in floats:
            alone = call.run("triton", only=(name,))
            assert torch.equal(alone[f"d{name}"], everything[f"d{name}"]), name


@pytest.mark.parametrize(
    ("operation", "sizes"), [(SCAN, (5,)), (SSD, (2, 5)), (CONV, (5,))], ids=["scan", "ssd", "conv"]
)
def test_whole_is_step_by_step(operation, sizes):
    call = on_device(operation.make(2, 6, 2, *sizes))
    whole = call.run("triton", grads=False)
    arguments = call.given()
    state = arguments.pop(operation.state)
    for t in range(6):
        now = {k: v[:, t] if k in operation.by_position else v for k, v in arguments.items()}
        out, state = operation.step(**now, state=state, **call.options, engine="triton")
        torch.testing.assert_close(out, whole["out"][:, t], rtol=1e-5, atol=1e-5)
    limit = 0 if operation is CONV else 1e-5
    torch.testing.assert_close(state, whole["final_state"], rtol=limit, atol=limit)


@pytest.mark.long
def test_no_batch_and_no_sequence(tools):
    makers = (tools.scan, tools.conv, tools.ssd)
    calls = [make(0, 5, 2, 5) for make in makers]
    calls += [make(2, 0, 2, 5, order=torch.tensor([[-1, -2, -1]])) for make in makers]
    calls += [make(1, 0, 1, 5, cu_seqlens=torch.zeros(1, dtype=torch.int32)) for make in makers]
    for call in calls:
        close(tools, on_device(call))


def test_float64_uses_another_engine(tools):
    for make in (tools.scan, tools.conv):
        call = on_device(make(1, 4, dtype=torch.float64))
        with pytest.raises(ValueError, match="engine='torch'"):
            call.run("triton")
        assert call.run(None)["out"].dtype == torch.float64


@pytest.mark.parametrize("d_state", [32, 33, pytest.param(256, marks=pytest.mark.long)])
def test_many_states(tools, d_state):
    close(tools, on_device(tools.scan(1, 3, 1, 2, d_state)))


@pytest.mark.parametrize("split", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["scan", "conv", "ssd"])
def test_packed_sequences_that_end_early(tools, small_chunks, monkeypatch, name, split):
    """Steps after the last sequence are not visited: results are exactly zero, and a NaN there has no effect.

    On a GPU; on the CPU, and so in the interpreter, the table is checked first.
    """
    monkeypatch.setattr("seqssm_kernels.contract.order.check_cu_seqlens", lambda *_: None)
    small_chunks(split)
    bounds = torch.tensor([0, 3, 3, 13], dtype=torch.int32)
    call = getattr(tools, name)(1, 22, 2, 2, 5, cu_seqlens=bounds)
    by_place = {name for name in PLACES & call.tensors.keys() if call.tensors[name] is not None}
    for place in by_place:
        call.tensors[place][:, 13:] = torch.nan
    found = {k: v.cpu() for k, v in on_device(call).run("triton").items()}
    call.on("cpu")
    call.tensors |= {place: call.tensors[place][:, :13] for place in by_place}
    for place in ("out", *(f"d{place}" for place in by_place)):
        assert (found[place][:, 13:] == 0).all(), place
        found[place] = found[place][:, :13]
    tools.assert_close(found, call.run("reference", double=True), tools.tolerance[torch.float32])


@pytest.mark.parametrize("name", ["scan", "ssd"])
@pytest.mark.parametrize("ids", [[[[0]], [[0]]], [[[-1]], [[-2]]]])
def test_one_step(tools, ids, name):
    call = on_device(getattr(tools, name)(2, 1, 1, 20, 3, order=torch.tensor(ids)))
    close(tools, call, grads=False)


@pytest.mark.parametrize("name", ["scan", "ssd"])
def test_one_step_of_packed_rows(tools, name):
    call = on_device(getattr(tools, name)(1, 1, 2, 5, cu_seqlens=torch.tensor([0, 0, 1, 1], dtype=torch.int32)))
    close(tools, call, grads=False)


@pytest.mark.parametrize("groups", [1, 4])
def test_carry_in_runs(tools, small_chunks, monkeypatch, groups):
    """For every division of the chunks of a row among warps, with a reset in one chunk."""
    small_chunks(True)
    monkeypatch.setattr(plan_triton, "carry_groups", lambda per_row: groups)
    order = torch.arange(44)[None].clone()
    order[0, 21] = -2
    close(tools, on_device(tools.scan(1, 44, 1, 2, 1, order=order)))


def test_backward_in_several_launches(tools, small_chunks, monkeypatch):
    small_chunks(True)
    call = on_device(tools.scan(2, 19, 1, 5))
    whole = call.run("triton")
    monkeypatch.setattr(scan_engine, "SCRATCH", 3000)
    tools.assert_equal(call.run("triton"), whole)


def test_every_row_of_slots_is_reached(tools):
    for seed, count, chunk in itertools.product(range(5), (1, 3, 9), (4, 16)):
        cu = tools.cu_seqlens(50, count, seed)
        slots = 50 // chunk + count
        rows = launching.rows_of_slots(cu.to(DEVICE), chunk, slots).tolist()
        for i, (start, stop) in enumerate(itertools.pairwise(cu.tolist())):
            first = start // chunk + i
            needed = max(1, -(-(stop - start) // chunk))
            assert rows[first : first + needed] == [i] * needed
