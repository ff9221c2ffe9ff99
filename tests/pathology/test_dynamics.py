"""The regimes: the diagnostic against integration of the one-dimensional equation, and the option that excludes one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from seqssm_pathology import dynamics

from seqssm.nn.mamba import Mamba
from seqssm.tools import regime


def one_dimensional(s_b: float, s_c: float) -> Mamba:
    """A layer of one channel and one state with the given projections."""
    layer = Mamba(1, d_state=1, expand=1, dt_rank=1)
    with torch.no_grad():
        layer.x_proj.weight.copy_(torch.tensor([[0.0], [s_b], [s_c]]))
    return layer


@pytest.mark.parametrize(
    ("s_b", "s_c"), [(1.0, -0.7), (-0.4, 0.9), (0.8, 0.6), (-1.0, -0.5), (0.05, 1.0), (0.05, -1.0)]
)
@pytest.mark.parametrize("s_delta", [1.0, -1.0])
def test_the_diagnostic_agrees_with_integration(s_b, s_c, s_delta):
    found = regime.regime(regime.eigenvalues(one_dimensional(s_b, s_c).branches[0]))
    start = np.array([0.5, 0.8, 0.3])
    end = regime.integrate(start, s_b * s_c, s_delta, decay=0.5, until=60.0, steps=6000)
    if found == "divergent":
        assert np.abs(end).max() > 2 * np.abs(start).max()
    else:
        assert (np.abs(end) < np.abs(start)).all()


def test_convergent_tokens_fall_like_one_over_root_t():
    ends = [regime.integrate(np.array([1.0]), -1.0, 0.0, 1.0, until, 4000)[0] for until in (100.0, 400.0)]
    assert ends[0] / ends[1] == pytest.approx(2.0, rel=0.02)


def test_integration_solves_the_equation_of_one_token():
    # D constant (S_D = 0): dx/dt = mu log(2) x^3, so x^-2 falls by 2 mu log(2) t
    end = regime.integrate(np.array([0.5]), -0.8, 0.0, 1.0, 10.0, 1000)[0]
    assert end == pytest.approx((0.25**-1 + 2 * 0.8 * np.log(2) * 10) ** -0.5, rel=1e-9)


@pytest.mark.parametrize("ordering", ["forward", "bidirectional"])
def test_the_positive_option_cannot_converge(ordering):
    torch.manual_seed(0)
    layer = Mamba(8, d_state=6, ordering=ordering)
    dynamics.exclude_convergence(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=5.0)
    for _ in range(5):  # for any weights
        optimizer.zero_grad()
        layer(torch.randn(2, 9, 8)).square().mean().backward()
        optimizer.step()
        for row in regime.report(layer):
            assert row["regime"] == "divergent"
            assert (row["positive"], row["negative"]) == (6, 0)


def test_eigenvalues_are_those_of_the_large_matrix():
    torch.manual_seed(0)
    layer = Mamba(6, d_state=3)
    _, B, C = layer.x_proj.weight.detach().double().split([layer.settings.dt_rank, 3, 3])
    large = torch.linalg.eigvals(C.T @ B)
    kept = large[large.abs() > 1e-9]
    found = regime.eigenvalues(layer.branches[0])
    np.testing.assert_allclose(sorted(found.real.tolist()), sorted(kept.real.tolist()), atol=1e-9)


def test_the_projection_equals_its_weight_and_limits_its_width():
    projection = dynamics.PositiveProjection(8, 2, 3)
    u = torch.randn(4, 8)
    low, B, C = projection(u).split([2, 3, 3], -1)
    torch.testing.assert_close(torch.cat([low, B, C], -1), u @ projection.weight.T)
    with pytest.raises(ValueError, match="at most 2 channels"):
        dynamics.PositiveProjection(2, 1, 3)
