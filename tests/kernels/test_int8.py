"""Scans of 8-bit integers: the definition, every engine of the CPU against it, steps, and the operators."""

from __future__ import annotations

import pytest
import torch
from seqssm_kernels import (
    selective_scan,
    selective_scan_int8,
    selective_scan_int8_step,
    selective_scan_step,
    ssd_int8_step,
    ssd_scan_int8,
    ssd_step,
)
from seqssm_kernels.contract.calls import ScanInt8Call, SsdInt8Call
from torch.library import opcheck

from .calls import LAYOUTS, ORDER_KINDS, Call, assert_close, assert_equal, build, integer_call, values_of
from .options import DTYPES, flags, rows

STEPS = {"scan": (selective_scan_int8_step, selective_scan_step), "ssd": (ssd_int8_step, ssd_step)}
BY_POSITION = ("x", "dt", "B", "C", "z")
FACTORS = {
    "kind": ORDER_KINDS,
    "layout": LAYOUTS,
    "shared": ((), ("x", "D"), ("A", "dt_bias"), ("B",), ("C", "z"), ("dt",), ("x", "B", "C")),
    "dtype": DTYPES,
    "routes": (1, 2, 3),
    "length": (1, 7, 65, 130),
    **flags("packed", "z", "dt_bias", "dt_softplus", "state"),
}
OF_SCAN = FACTORS | {"channels": (1, 3, 16, 17, 40), "d_state": (1, 2, 3, 16, 20), "D": (True, False)}
OF_SSD = FACTORS | {
    "heads": (2, 4),
    "head_dim": (1, 3, 17, 64, 70),
    "groups": (1, 2),
    "d_state": (1, 3, 16, 21),
    "D": ("heads", "channels", None),
}
CASES = [("scan", row) for row in rows(OF_SCAN)] + [("ssd", row) for row in rows(OF_SSD)]


def made(tools, name: str, *sizes, **options) -> Call:
    return integer_call(getattr(tools, name)(*sizes, **options))


@pytest.mark.parametrize("name", ["scan", "ssd"])
def test_the_definition_is_the_float_scan_of_the_values(tools, name):
    call = made(tools, name, 2, 9, 2, dtype=torch.float64)
    assert int(call.tensors["x"].abs().max()) > 20
    assert_equal(call.run("reference", grads=False), values_of(call).run("reference", grads=False))


def test_the_definition_by_hand():
    """Two steps of one channel and two states, computed with Python's numbers."""
    x, B, C = torch.tensor([[[3], [-128]]]), torch.tensor([[[5, -7], [127, 1]]]), torch.tensor([[[1, 2], [-3, 4]]])
    dt, A = torch.tensor([[[0.5], [0.25]]], dtype=torch.float64), torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    scales = [torch.tensor(v, dtype=torch.float64) for v in ([0.1], [0.01, 0.02], [0.5, 0.25])]
    out, state = selective_scan_int8(
        x.to(torch.int8), dt, A, B.to(torch.int8), C.to(torch.int8),
        **dict(zip(("x_scale", "B_scale", "C_scale"), scales)), return_final_state=True, engine="reference",
    )  # fmt: skip
    h = [0.5 * 0.3 * 0.05, 0.5 * 0.3 * -0.14]
    first = 0.5 * h[0] + 0.5 * h[1]
    e = 2.718281828459045
    h = [e**-0.25 * h[0] + 0.25 * -12.8 * 1.27, e**-0.5 * h[1] + 0.25 * -12.8 * 0.02]
    assert out.flatten().tolist() == pytest.approx([first, -1.5 * h[0] + 1.0 * h[1]], rel=1e-12)
    assert state.flatten().tolist() == pytest.approx(h, rel=1e-12)


@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize(("name", "options"), CASES, ids=range(len(CASES)))
def test_options_in_pairs(tools, name, options):
    call = integer_call(build(getattr(tools, name), options))
    wanted = call.run("reference", double=True, grads=False)
    for engine in ("numba", "torch"):
        found = call.run(engine, grads=False)
        assert found["out"].dtype == options["dtype"]
        assert_close(found, wanted, tools.tolerance[options["dtype"]])


@pytest.mark.parametrize("name", ["scan", "ssd"])
@pytest.mark.parametrize("kind", ["none", "resets"])
def test_the_compiled_engine_gives_the_bits_of_the_float_scan_without_a_copy(tools, name, kind, monkeypatch):
    """Nothing is converted before the kernel: conversions of tensors to floats are errors."""
    options = {"length": 70, "routes": 2, "kind": kind, "batch": 2}
    call = integer_call(build(getattr(tools, name), options))
    wanted = values_of(call).run("numba", grads=False)
    cls = ScanInt8Call if name == "scan" else SsdInt8Call

    def refused(*_: object) -> None:
        raise AssertionError("a copy of the values was made")

    monkeypatch.setattr(cls, "dequantised", refused)
    assert_equal(call.run("numba", grads=False), wanted)


@pytest.mark.parametrize("name", ["scan", "ssd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("routes", [1, 2])
def test_steps_are_those_of_the_whole(tools, name, dtype, routes):
    call = made(tools, name, 2, 6, routes, dtype=dtype)
    whole = call.run(None, grads=False)
    arguments = call.given()
    state = arguments.pop("initial_state")
    for t in range(6):
        now = {k: v[:, t] if k in BY_POSITION else v for k, v in arguments.items()}
        out, state = STEPS[name][0](**now, state=state, **call.options)
        assert out.dtype == dtype
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(out, whole["out"][:, t], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state, whole["final_state"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["scan", "ssd"])
@pytest.mark.parametrize("log", [False, True])
def test_a_step_gives_the_bits_of_the_float_step(tools, name, log, monkeypatch):
    call = made(tools, name, 3, 1, 1)
    floats = values_of(call)
    wanted, found = [], []
    for step, source, kept in ((STEPS[name][1], floats, wanted), (STEPS[name][0], call, found)):
        arguments = source.given()
        state = arguments.pop("initial_state")[:, 0]
        now = {k: v[:, 0, 0] if k in BY_POSITION else v[0] for k, v in arguments.items()}
        now["A"] = (-now["A"]).log() if log else now["A"]
        if source is call:  # the compiled step serves the call
            monkeypatch.setattr("seqssm_kernels.contract.entry.Entry.step", None)
        kept += step(**now, state=state, **source.options, A_is_log=log)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted))


@pytest.mark.parametrize("name", ["scan", "ssd"])
def test_there_are_no_gradients(tools, name):
    call = made(tools, name, 1, 5)
    out, _ = call.function(**call.leaves(), **call.options, return_final_state=True)
    with pytest.raises(RuntimeError, match="for inference"):
        out.sum().backward()


@pytest.mark.parametrize("name", ["scan", "ssd"])
def test_operators_can_be_traced(tools, name):
    call = made(tools, name, 1, 5)
    operator = getattr(torch.ops.seqssm, "selective_scan_int8_v1" if name == "scan" else "ssd_scan_int8_v1")
    cls = ScanInt8Call if name == "scan" else SsdInt8Call
    given = call.given() | call.options
    arguments = [given.get(field, False if field == "dt_softplus" else None) for field in cls._fields]
    opcheck(operator.default, (*arguments, ""), test_utils=("test_schema", "test_faketensor"))
    out, final = operator(*arguments, "")
    assert_equal({"out": out, "final_state": final}, call.run(None, grads=False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda t: t.float()}, "x must be int8 where dt is float32, got float32"),
        ({"B": lambda t: t.to(torch.uint8)}, "B must be int8"),
        ({"z": lambda t: t.bfloat16()}, "z must be float32 where dt is float32"),
        ({"dt": lambda t: t.to(torch.int8)}, "dt is int8"),
        ({"x_scale": lambda t: t[..., :-1]}, "x_scale has shape"),
        ({"C_scale": lambda t: t.double()}, "C_scale must be float32"),
        ({"B_scale": lambda _: 0.1}, "B_scale must be a tensor"),
    ],
)
@pytest.mark.parametrize("name", ["scan", "ssd"])
def test_wrong_arguments(tools, name, change, message):
    made(tools, name).require_refused(change, message, "numba")


def test_floats_are_refused_by_the_float_scan_as_before(tools):
    given = tools.scan().given()
    with pytest.raises(ValueError, match="x is int8"):
        selective_scan(**given | {"x": given["x"].to(torch.int8)})
    with pytest.raises(ValueError, match="numba"):
        ssd_scan_int8(**made(tools, "ssd", dtype=torch.float64).given(), engine="numba")
