"""The reference of the Mamba-2 scan against a recurrence in NumPy and against finite differences."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from seqssm_kernels import ssd_scan
from torch.autograd import gradcheck, gradgradcheck

PLACES = ("x", "dt", "B", "C", "z", "w")


def numpy_scan(call, softplus):
    """The recurrence, one route, sequence, step and head at a time."""
    order, cu, x = call["order"], call["cu_seqlens"], call["x"]
    batch, length, _, heads, head_dim = x.shape
    groups, d_state = call["B"].shape[3:]
    routes = max(
        v.shape[{"order": -2, "initial_state": 1}.get(k, 2 if k in PLACES else 0)]
        for k, v in call.items() if v is not None and k != "cu_seqlens"
    )  # fmt: skip
    bounds = [0, length if order is None else order.shape[-1]] if cu is None else list(cu)
    rows = batch if cu is None else len(cu) - 1
    out = np.zeros((batch, length, routes, heads, head_dim))
    final = np.zeros((rows, routes, heads, head_dim, d_state))
    if order is not None and order.ndim == 2:
        order = order[None]
    for b, r, (i, (start, stop)) in (
        (b, r, s) for b in range(batch) for r in range(routes) for s in enumerate(pairwise(bounds))
    ):
        of_place = {k: None if call[k] is None else call[k][b, :, min(r, call[k].shape[2] - 1)] for k in PLACES}
        A, D, bias = (None if call[k] is None else call[k][min(r, len(call[k]) - 1)] for k in ("A", "D", "dt_bias"))
        row = b if cu is None else i
        h = (
            np.zeros((heads, head_dim, d_state))
            if call["initial_state"] is None
            else call["initial_state"][row, r].copy()
        )
        for s in range(start, stop):
            p = s if order is None else int(order[min(b, len(order) - 1), min(r, order.shape[1] - 1), s])
            if p == -2:
                h = np.zeros_like(h)
            if p < 0:
                continue
            for k in range(heads):
                g = k // (heads // groups)
                dt = of_place["dt"][p, k] + (0 if bias is None else bias[k])
                dt = np.log1p(np.exp(dt)) if softplus else dt
                w = dt if of_place["w"] is None else of_place["w"][p, k]
                x_p = of_place["x"][p, k]
                h[k] = np.exp(dt * A[k]) * h[k] + w * np.outer(x_p, of_place["B"][p, g])
                y = h[k] @ of_place["C"][p, g] + (0 if D is None else D[k] * x_p)
                z = of_place["z"]
                out[b, p, r, k] = y if z is None else y * z[p, k] / (1 + np.exp(-z[p, k]))
        final[row, r] = h
    return out, final


CASES = [
    {},
    {"groups": 2, "D": "channels", "w": True},
    {"routes": 2, "kind": "gaps", "shared": ("x", "A", "z")},
    {"routes": 2, "kind": "resets", "shared": ("dt", "C"), "state": False, "heads": 4, "groups": 2},
    {"routes": 3, "kind": "per sample", "shared": (*PLACES, "A", "D", "dt_bias"), "w": True},
    {"batch": 1, "kind": "none", "packed": 4},
    {"batch": 1, "routes": 2, "kind": "gaps", "packed": 5, "state": False, "z": False, "D": None},
]  # fmt: skip


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("softplus", [True, False])
def test_it_is_the_recurrence(tools, options, softplus):
    call = tools.build(tools.ssd, {"length": 9, "dtype": torch.float64, "dt_softplus": softplus, **options})
    result = call.run("reference", grads=False)
    out, final = numpy_scan({k: None if v is None else v.numpy() for k, v in call.tensors.items()}, softplus)
    np.testing.assert_allclose(result["out"], out, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result["final_state"], final, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ["reference", "torch"])
@pytest.mark.parametrize("w", [True, False])
@pytest.mark.parametrize(
    ("length", "kind"), [(1, "none"), (2, "reverse"), (7, "resets"), (67, "none"), (7, "per sample")]
)
def test_gradients(tools, length, kind, w, engine):
    routes = 1 if length == 67 else 2
    order = tools.order(kind, 2, length, routes)
    call = tools.ssd(
        2, length, routes, 2, 2, 2, 2, dtype=torch.float64, shared=("A", "x"), order=order, w=w, D="channels"
    )
    assert gradcheck(*call.differentiable(engine), fast_mode=length > 1)


def test_second_derivatives(tools):
    order = tools.order("resets", 1, 4, 2)
    call = tools.ssd(1, 4, 2, 2, 2, 1, 2, dtype=torch.float64, shared=("A",), order=order, w=True)
    assert gradgradcheck(*call.differentiable(), fast_mode=True)


def test_without_the_route_axis(tools):
    call = tools.ssd(2, 9, 1, 4, 3, 2, 5, w=True, D="channels")
    t = call.given()
    axes = {name: 2 if name in PLACES else 1 if name == "initial_state" else 0 for name in t}
    plain = {name: v.squeeze(axes[name]) for name, v in t.items()}
    for engine in (None, "torch", "reference"):
        out, final = ssd_scan(**t, **call.options, return_final_state=True, engine=engine)
        found, state = ssd_scan(**plain, **call.options, return_final_state=True, engine=engine)
        assert torch.equal(found, out.squeeze(2))
        assert torch.equal(state, final.squeeze(1))
