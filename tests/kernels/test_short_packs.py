"""Packed sequences that end before L, where the host does not check: no step after them is visited.

On the CPU such a table is rejected before an engine runs; on other devices the host does not read it. The same test for
`triton` is in triton_engine.py.
"""

from __future__ import annotations

import pytest
import torch

BOUNDS = torch.tensor([0, 3, 3, 13], dtype=torch.int32)
NONE = torch.tensor([0, 0], dtype=torch.int32)


@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("engine", ["torch", "reference"])
@pytest.mark.parametrize("name", ["scan", "conv"])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("bounds", [BOUNDS, NONE], ids=["short", "empty"])
def test_steps_after_the_last_sequence_are_zero(tools, monkeypatch, engine, name, ordered, bounds):
    monkeypatch.setattr("seqssm_kernels.contract.order.check_cu_seqlens", lambda *_: None)
    end = int(bounds[-1])
    order = torch.arange(22)[None] if ordered else None
    call = getattr(tools, name)(1, 22, 2, 5, dtype=torch.float64, order=order, cu_seqlens=bounds)
    by_place = {"x", "dt", "B", "C", "z"} & call.tensors.keys()
    for place in by_place:
        call.tensors[place][:, end:] = torch.nan
    found = call.run(engine)
    for place in ("out", *(f"d{place}" for place in by_place)):
        assert (found[place][:, end:] == 0).all(), place
        found[place] = found[place][:, :end]
    call.tensors |= {place: call.tensors[place][:, :end] for place in by_place}
    call.tensors["order"] = None
    tools.assert_close(found, call.run("reference"), tools.tolerance[torch.float64])


@pytest.mark.parametrize("engine", ["torch", "reference", "numba"])
@pytest.mark.parametrize("name", ["scan", "conv"])
def test_refused_on_the_cpu(tools, engine, name):
    call = getattr(tools, name)(1, 22, 1, 5, cu_seqlens=BOUNDS)
    with pytest.raises(ValueError, match="ends at 13"):
        call.run(engine)
