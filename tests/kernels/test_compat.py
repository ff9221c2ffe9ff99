"""`selective_scan_fn` against the published formula in channels-first form."""

from __future__ import annotations

import pytest
import torch
from seqssm_kernels.compat import selective_scan_fn
from torch.nn import functional as F


def formula(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """y and the last state, with one B and C a channel: `(B, D, N, L)`."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = F.softplus(delta)
    h, ys = torch.zeros(*u.shape[:2], A.shape[1], dtype=u.dtype), []
    for t in range(u.shape[2]):
        d = delta[:, :, t, None]
        h = torch.exp(d * A) * h + d * B[..., t] * u[:, :, t, None]
        ys.append((h * C[..., t]).sum(-1))
    y = torch.stack(ys, -1)
    y = y if D is None else y + u * D[:, None]
    return (y if z is None else y * F.silu(z)), h


def a_channel_each(t, channels):
    t = t[:, None] if t.dim() == 3 else t
    return t.repeat_interleave(channels // t.shape[1], dim=1)


@pytest.mark.parametrize(("b_groups", "c_groups"), [(None, None), (1, None), (3, 3), (3, None)])
@pytest.mark.parametrize("full", [True, False])
def test_is_the_formula(b_groups, c_groups, full):
    torch.manual_seed(0)
    batch, channels, d_state, length = 2, 6, 4, 37

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    def states(groups):
        return normal(batch, d_state, length) if groups is None else normal(batch, groups, d_state, length)

    u, delta, A = (
        normal(batch, channels, length),
        normal(batch, channels, length).abs(),
        -normal(channels, d_state).abs(),
    )
    B, C = states(b_groups), states(c_groups)
    options = (
        {"D": normal(channels), "z": normal(batch, channels, length), "delta_bias": normal(channels)} if full else {}
    )
    leaves = [t.requires_grad_() for t in (u, delta, A, B, C, *options.values())]

    y, h = formula(
        u, delta, A, a_channel_each(B, channels), a_channel_each(C, channels), **options, delta_softplus=full
    )
    out, last = selective_scan_fn(u, delta, A, B, C, **options, delta_softplus=full, return_last_state=True)
    torch.testing.assert_close(out, y)
    torch.testing.assert_close(last, h)
    expected = torch.autograd.grad(y.square().sum() + h.sum(), leaves)
    found = torch.autograd.grad(out.square().sum() + last.sum(), leaves)
    torch.testing.assert_close(found, expected)
    assert torch.equal(selective_scan_fn(u, delta, A, B, C, **options, delta_softplus=full), out)


def test_half_precision_keeps_its_dtype():
    u = torch.randn(1, 4, 20).bfloat16()
    B = torch.randn(1, 3, 20).bfloat16()
    D = torch.ones(4, dtype=torch.bfloat16)
    out, last = selective_scan_fn(u, u.abs(), -torch.ones(4, 3), B, B, D, return_last_state=True)
    assert out.dtype == torch.bfloat16
    assert last.dtype == torch.float32
    y, _ = formula(*(t.float() for t in (u, u.abs(), -torch.ones(4, 3), *[a_channel_each(B, 4)] * 2, D)))
    torch.testing.assert_close(out.float(), y, rtol=2e-2, atol=2e-2)


def test_what_it_does_not_serve_is_an_error():
    u, A, B = torch.randn(2, 6, 5), -torch.ones(6, 4), torch.randn(2, 4, 5)
    with pytest.raises(ValueError, match="constant in time"):
        selective_scan_fn(u, u, A, torch.randn(6, 4), B)
    with pytest.raises(ValueError, match="complex"):
        selective_scan_fn(u, u, A.to(torch.complex64), B, B)
    with pytest.raises(ValueError, match="groups"):
        selective_scan_fn(u, u, A, torch.randn(2, 4, 4, 5), B)
    with pytest.raises(ValueError, match="A has shape"):
        selective_scan_fn(u, u, A[:3], B, B)
    with pytest.raises(ValueError, match="delta has shape"):
        selective_scan_fn(u, u[:, :3], A, B, B)
