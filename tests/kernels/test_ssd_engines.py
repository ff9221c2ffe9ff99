"""Every engine of the Mamba-2 scan: tiles, decay, the selective scan; see `test_properties.py` for the rest."""

from __future__ import annotations

import pytest
import torch
from seqssm_kernels import selective_scan, ssd_scan


@pytest.mark.parametrize("dt", [(0.05, 2.0), (0.3, 10.0), (1.0, 30.0)])
@pytest.mark.parametrize("w", [True, False])
def test_strong_decay(tools, engine, dt, w):
    call = tools.ssd(2, 150, 1, 4, 17, 1, 16, dt=dt, dt_bias=False, dt_softplus=False, w=w)
    tools.assert_close(call.run(engine), call.run("reference", double=True), 1e-5)


@pytest.mark.parametrize("offset", [0, 1, 31, 32, 62, 63, 64, 65, 100])
def test_one_very_large_step(tools, engine, offset):
    """A step that forgets nearly everything does not affect its neighbours, at any position of a tile."""
    call = tools.ssd(1, 130, 1, 2, 5, 1, 6, dt=(1e-3, 1e-2), dt_bias=False, dt_softplus=False)
    call.tensors["dt"][:, offset] = 20.0
    tools.assert_close(call.run(engine), call.run("reference", double=True), 1e-5)


@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize(
    "offset", [offset if offset % 5 in (0, 4) else pytest.param(offset, marks=pytest.mark.long) for offset in range(66)]
)  # 64 is the length of a tile
def test_a_reset_and_a_boundary_at_every_offset(tools, engine, offset):
    """Sums over few sequences and steps may cancel: if float32 itself misses the criterion, its error is the bound."""
    places = torch.arange(70)
    order = torch.cat([places[:offset], torch.tensor([-2]), places[offset:]])[None]
    cu = torch.tensor([0, offset, 70], dtype=torch.int32)
    for call in (tools.ssd(2, 70, 1, 2, 5, 1, 6, order=order), tools.ssd(1, 70, 1, 2, 5, 1, 6, cu_seqlens=cu)):
        found, single, double = call.run(engine), call.run("reference"), call.run("reference", double=True)
        for name in double:
            limit = max(1e-5, 4 * tools.rms_ratio(single[name], double[name]))
            assert tools.rms_ratio(found[name], double[name]) < limit, name


def test_it_is_the_selective_scan_with_equal_rates(tools, engine):
    """With equal A and dt for all channels and states of a head, both scans are the same recurrence."""
    call = tools.ssd(2, 70, 1, 2, 5, 1, 4)
    t = call.given()

    def spread(v):
        return v.unsqueeze(-1).expand(*v.shape, 5).flatten(-2)

    found = ssd_scan(**t, **call.options, engine=engine)
    expected = selective_scan(
        t["x"].flatten(3), spread(t["dt"]), spread(t["A"])[..., None].expand(1, 10, 4), t["B"][:, :, :, 0],
        t["C"][:, :, :, 0], D=spread(t["D"]), z=t["z"].flatten(3), dt_bias=spread(t["dt_bias"]),
        initial_state=t["initial_state"].flatten(2, 3), **call.options,
    )  # fmt: skip
    assert tools.rms_ratio(found.flatten(3), expected) < 1e-6
