"""Every engine of the selective scan at extreme step sizes; see `test_properties.py` for other tests."""

from __future__ import annotations

import pytest


def test_long_and_slow_with_equal_steps(tools, engine):
    """Equal steps give equal decays whose rounding errors have one sign: the bound is that of float32 itself."""
    call = tools.scan(1, 4096, 1, 3, 16, dt=(1e-3, 1e-3), dt_bias=False, dt_softplus=False)
    found, single, double = call.run(engine), call.run("reference"), call.run("reference", double=True)
    for name in double:
        limit = max(1e-5, 1.5 * tools.rms_ratio(single[name], double[name]))
        assert tools.rms_ratio(found[name], double[name]) < limit, name


@pytest.mark.parametrize("dt", [(1.0, 30.0), (10.0, 500.0)])
def test_strong_decay(tools, engine, dt):
    call = tools.scan(2, 70, 1, 17, 16, dt=dt, dt_bias=False, dt_softplus=False)
    tools.assert_close(call.run(engine), call.run("reference", double=True), 1e-5)
