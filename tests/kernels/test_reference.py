"""The references against recurrences in NumPy and against finite differences."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from seqssm_kernels import causal_conv1d, selective_scan
from torch.autograd import gradcheck, gradgradcheck

REF = {"engine": "reference"}


def one_route(t, route, axis):
    """The slice of a route in a tensor whose route axis may have size 1."""
    return None if t is None else np.take(t, min(route, t.shape[axis] - 1), axis)


def walk(call, places, length):
    """For each batch element, route and sequence: its steps, and the row of its state."""
    order, cu = call["order"], call["cu_seqlens"]
    bounds = [0, length if order is None else order.shape[-1]] if cu is None else list(cu)
    for b in range(places):
        for i, (start, stop) in enumerate(pairwise(bounds)):
            yield b, b if cu is None else i, range(start, stop)


def place_of(order, b, route, step):
    if order is None:
        return step
    order = order[None] if order.ndim == 2 else order
    return int(order[min(b, order.shape[0] - 1), min(route, order.shape[1] - 1), step])


def numpy_scan(call, softplus):
    x, A = call["x"], call["A"]
    order = call["order"]
    batch, length = x.shape[:2]
    routes = max(v.shape[-2] if k not in ("A", "initial_state") else v.shape[-3 if k == "initial_state" else 0]
                 for k, v in call.items() if v is not None and k != "cu_seqlens")  # fmt: skip
    channels, d_state = A.shape[1:]
    rows = batch if call["cu_seqlens"] is None else len(call["cu_seqlens"]) - 1
    out = np.zeros((batch, length, routes, channels))
    final = np.zeros((rows, routes, channels, d_state))
    for r in range(routes):
        xr, dtr, Br, Cr, zr = (one_route(call[k], r, 2) for k in ("x", "dt", "B", "C", "z"))
        Ar, Dr, biasr = (one_route(call[k], r, 0) for k in ("A", "D", "dt_bias"))
        for b, row, steps in walk(call, batch, length):
            h = np.zeros((channels, d_state)) if call["initial_state"] is None else call["initial_state"][row, r].copy()
            for s in steps:
                p = place_of(order, b, r, s)
                if p == -2:
                    h = np.zeros_like(h)
                if p < 0:
                    continue
                dt = dtr[b, p] + (0 if biasr is None else biasr)
                if softplus:
                    dt = np.log1p(np.exp(dt))
                for e in range(channels):
                    for n in range(d_state):
                        h[e, n] = np.exp(dt[e] * Ar[e, n]) * h[e, n] + dt[e] * Br[b, p, n] * xr[b, p, e]
                y = h @ Cr[b, p] + (0 if Dr is None else Dr * xr[b, p])
                out[b, p, r] = y if zr is None else y * zr[b, p] / (1 + np.exp(-zr[b, p]))
            final[row, r] = h
    return out, final


def numpy_conv(call):
    x, weight = call["x"], call["weight"]
    batch, length = x.shape[:2]
    routes = max(x.shape[2], weight.shape[0], 1 if call["order"] is None else call["order"].shape[-2])
    channels, width = weight.shape[1:]
    rows = batch if call["cu_seqlens"] is None else len(call["cu_seqlens"]) - 1
    out = np.zeros((batch, length, routes, channels))
    final = np.zeros((rows, routes, channels, width - 1))
    for r in range(routes):
        xr, wr, br = one_route(x, r, 2), one_route(weight, r, 0), one_route(call["bias"], r, 0)
        for b, row, steps in walk(call, batch, length):
            past = [np.zeros(channels)] * (width - 1) if call["state"] is None else list(call["state"][row, r].T)
            for s in steps:
                p = place_of(call["order"], b, r, s)
                if p == -2:
                    past = [np.zeros(channels)] * (width - 1)
                if p < 0:
                    continue
                window = [*past, xr[b, p]]
                out[b, p, r] = sum(wr[:, k] * window[k] for k in range(width)) + (0 if br is None else br)
                past = window[1:]
            final[row, r] = np.array(past).reshape(width - 1, channels).T
    return out, final


CASES = [
    {},
    {"routes": 2, "kind": "gaps", "shared": ("x", "A", "z")},
    {"routes": 2, "kind": "resets", "shared": ("dt", "C", "weight"), "state": False},
    {"routes": 3, "kind": "per sample", "shared": ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "weight", "bias")},
    {"batch": 1, "kind": "none", "packed": 4},
    {"batch": 1, "routes": 2, "kind": "gaps", "packed": 5, "state": False},
]


def prepared(tools, make, options):
    return tools.build(make, {"length": 9, "dtype": torch.float64, **options})


def as_numpy(call):
    return {k: None if v is None else v.numpy() for k, v in call.tensors.items()}


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("softplus", [True, False])
def test_scan_is_the_recurrence(tools, options, softplus):
    call = prepared(tools, tools.scan, {**options, "dt_softplus": softplus})
    result = call.run("reference", grads=False)
    out, final = numpy_scan(as_numpy(call), softplus)
    np.testing.assert_allclose(result["out"], out, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result["final_state"], final, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("width", [1, 2, 4])
def test_convolution_is_the_sum_over_its_window(tools, options, width):
    call = prepared(tools, tools.conv, {**options, "width": width})
    result = call.run("reference", grads=False)
    out, final = numpy_conv(as_numpy(call))
    np.testing.assert_allclose(result["out"], out, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result["final_state"], final, rtol=1e-12, atol=1e-12)


def test_softplus_is_the_identity_above_20():
    dt = torch.tensor([[[19.0], [21.0], [1000.0]]], dtype=torch.float64)
    ones = torch.ones_like(dt)
    A = torch.zeros(1, 1, dtype=torch.float64)
    out = selective_scan(ones, dt, A, ones, ones, dt_softplus=True, **REF)
    expected = torch.tensor([np.log1p(np.exp(19.0)), 21.0, 1000.0]).cumsum(0)
    torch.testing.assert_close(out.flatten(), expected.double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("length", "kind"), [(1, "none"), (2, "reverse"), (7, "resets"), (33, "none"), (7, "per sample")]
)
def test_gradients_of_the_scan(tools, length, kind):
    routes = 1 if length == 33 else 2
    order = tools.order(kind, 2, length, routes)
    call = tools.scan(2, length, routes, 2, 2, dtype=torch.float64, shared=("A", "x"), order=order)
    assert gradcheck(*call.differentiable(), fast_mode=length > 7)


@pytest.mark.parametrize(("length", "kind"), [(1, "none"), (7, "resets"), (33, "shuffled")])
def test_gradients_of_the_convolution(tools, length, kind):
    call = tools.conv(2, length, 2, 2, 3, dtype=torch.float64, shared=("x",), order=tools.order(kind, 2, length, 2))
    assert gradcheck(*call.differentiable(), fast_mode=length > 7)


def test_second_derivatives(tools):
    order = tools.order("resets", 1, 4, 2)
    scan = tools.scan(1, 4, 2, 2, 2, dtype=torch.float64, shared=("A",), order=order)
    assert gradgradcheck(*scan.differentiable(), fast_mode=True)
    conv = tools.conv(1, 4, 2, 2, 3, dtype=torch.float64, order=order)
    assert gradgradcheck(*conv.differentiable(), fast_mode=True)


def test_order_is_index_then_run_then_scatter(tools):
    call = tools.scan(2, 12, state=False)
    order = tools.order("shuffled", 2, 12, 1)
    moved = tools.scan(2, 12, state=False)
    for name in ("x", "dt", "B", "C", "z"):
        moved.tensors[name] = call.tensors[name][:, order[0]]
    expected = moved.run("reference", grads=False)
    call.tensors["order"] = order
    result = call.run("reference", grads=False)
    assert torch.equal(result["out"][:, order[0]], expected["out"])
    assert torch.equal(result["final_state"], expected["final_state"])


def test_convolution_equals_that_of_torch(tools):
    call = tools.conv(2, 20, state=False)
    x, weight, bias = (call.tensors[k] for k in ("x", "weight", "bias"))
    padded = torch.nn.functional.pad(x[:, :, 0].transpose(1, 2), (3, 0))
    expected = torch.nn.functional.conv1d(padded, weight[0].unsqueeze(1), bias[0], groups=3).transpose(1, 2)
    torch.testing.assert_close(causal_conv1d(x[:, :, 0], weight[0], bias[0], **REF), expected)
