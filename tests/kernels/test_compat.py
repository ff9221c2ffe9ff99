"""The functions under their public names, against slow ones written from the public definitions."""

from __future__ import annotations

import pytest
import torch
from seqssm_kernels.compat import (
    causal_conv1d_fn,
    causal_conv1d_update,
    selective_scan_fn,
    selective_state_update,
)
from torch.nn import functional as F


def formula(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """y and the last state, with one B and C per channel: `(B, D, N, L)`."""
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


def test_unsupported_calls_are_errors():
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


# --- convolution


def window_sum(x, weight, bias, activation, before):
    """out[b, d, t] = bias + sum over k of weight[d, k] * input[t - W + 1 + k]; `before(b, t)` is the input at t < 0."""
    batch, channels, length = x.shape
    width = weight.shape[1]
    out = torch.zeros(batch, channels, length, dtype=torch.float64)
    for b in range(batch):
        for t in range(length):
            for k in range(width):
                at = t - width + 1 + k
                value = x[b, :, at] if at >= 0 else before(b, at)
                out[b, :, t] += weight[:, k].double() * value.double()
    out = out if bias is None else out + bias.double()[:, None]
    return out if activation is None else out * torch.sigmoid(out)


TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def near(a, b, dtype):
    assert a.shape == b.shape
    assert a.dtype == dtype
    torch.testing.assert_close(a.double(), b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("channel_last", [False, True])
def test_convolution(dtype, activation, channel_last):
    torch.manual_seed(0)
    for width, length, with_states in (
        (4, 9, False),
        (4, 9, True),
        (3, 1, True),
        (2, 2, False),
        (4, 2, True),
        (1, 3, True),
    ):
        x = torch.randn(2, 5, length, dtype=dtype)
        x = x.transpose(1, 2).contiguous().transpose(1, 2) if channel_last else x
        weight, bias = torch.randn(5, width), torch.randn(5)
        states = torch.randn(2, 5, width - 1, dtype=dtype) if with_states else None
        zero = torch.zeros(5)

        def before(b, at, states=states, zero=zero):
            return zero if states is None else states[b, :, at]

        right = window_sum(x, weight, bias, activation, before)
        near(causal_conv1d_fn(x, weight, bias, initial_states=states, activation=activation), right, dtype)
        kept = torch.full((2, 5, width - 1), torch.nan, dtype=dtype)
        out, last = causal_conv1d_fn(
            x, weight, bias, None, states, return_final_states=True, final_states_out=kept, activation=activation
        )
        near(out, right, dtype)
        line = torch.cat([torch.zeros(2, 5, width - 1, dtype=dtype) if states is None else states, x], -1)
        assert last is kept
        assert torch.equal(kept, line[..., line.shape[-1] - width + 1 :])
        assert causal_conv1d_fn(x, weight, None).is_contiguous() == x.is_contiguous()


def test_convolution_of_concatenated_sequences():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 12, requires_grad=True), torch.randn(5, 4), torch.randn(5)
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 4, 4, 4, 4, 4, -1, -1], [-1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3]])
    out = causal_conv1d_fn(x, weight, bias, seq_idx=seq_idx, activation="silu")
    right = torch.zeros(2, 5, 12)
    for b in range(2):
        for number in seq_idx[b].unique():
            here = (seq_idx[b] == number).nonzero().flatten()
            if number >= 0:
                alone = x[b : b + 1, :, here]
                right[b, :, here] = window_sum(alone, weight, bias, "silu", lambda b, at: torch.zeros(5))[0].float()
    torch.testing.assert_close(out, right)
    (grad,) = torch.autograd.grad(out.square().sum(), x, retain_graph=True)
    (expected,) = torch.autograd.grad(right.square().sum(), x)
    torch.testing.assert_close(grad, expected)


def test_gradients_of_the_convolution():
    torch.manual_seed(0)
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 7), (3, 4), (3,), (2, 3, 3))]

    def convolution(x, weight, bias, states):
        return causal_conv1d_fn(x, weight, bias, initial_states=states, return_final_states=True, activation="silu")

    assert torch.autograd.gradcheck(convolution, leaves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
def test_convolution_update(dtype, circular, indexed):
    """A stream in chunks, against the whole stream at once."""
    torch.manual_seed(0)
    for size, pieces in ((3, (1, 1, 1, 1, 1, 1, 1, 1)), (5, (2, 1, 4, 1)), (8, (8, 0 + 1, 3)), (3, (1, 3, 3, 1))):
        x = torch.randn(2, 5, sum(pieces), dtype=dtype)
        weight, bias = torch.randn(5, 4), torch.randn(5)
        right = window_sum(x, weight, bias, "silu", lambda b, at: torch.zeros(5))
        rows = torch.tensor([3, 1]) if indexed else None
        state = torch.zeros(4 if indexed else 2, 5, size, dtype=dtype)
        others = state[torch.tensor([0, 2])].fill_(7) if indexed else None
        if indexed:
            state[torch.tensor([0, 2])] = others
        done = 0
        for length in pieces:
            piece = x[:, :, done : done + length]
            piece = piece[..., 0] if length == 1 else piece
            seqlens = torch.tensor([done, done], dtype=torch.int32) if circular else None
            out = causal_conv1d_update(piece, state, weight, bias, "silu", seqlens, rows)
            near(out, right[:, :, done : done + length].reshape(piece.shape), dtype)
            done += length
        line = torch.cat([torch.zeros(2, 5, size, dtype=dtype), x], -1)[..., -size:]
        found = state[rows] if indexed else state
        if circular:
            found = found.roll(-(done % size), -1)
        assert torch.equal(found, line)
        if indexed:
            assert torch.equal(state[torch.tensor([0, 2])], others)


# --- state update


def one_step(state, x, dt, A, B, C, D, z, dt_bias, softplus):
    """Written for one sample, one head and one channel at a time."""
    batch, heads, channels, _ = state.shape
    out, following = torch.zeros(batch, heads, channels), torch.zeros(state.shape)
    for b in range(batch):
        for h in range(heads):
            group = h // (heads // B.shape[1])
            for d in range(channels):
                step = dt[b, h, d].float() + (0 if dt_bias is None else dt_bias[h, d].float())
                step = torch.log1p(torch.exp(step)) if softplus else step
                new = torch.exp(step * A[h, d].float()) * state[b, h, d].float()
                new = new + step * B[b, group].float() * x[b, h, d].float()
                y = (new * C[b, group].float()).sum() + (0 if D is None else D[h, d].float() * x[b, h, d].float())
                gate = 1.0 if z is None else z[b, h, d].float()
                out[b, h, d] = y if z is None else y * gate / (1 + torch.exp(-gate))
                following[b, h, d] = new
    return out, following


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups"), [(None, 1), (1, 1), (4, 1), (4, 2), (4, 4)])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
def test_state_update(dtype, heads, groups, full, indexed):
    torch.manual_seed(0)
    h, rows = heads or 1, 5 if indexed else 3
    state, x, z = torch.randn(rows, h, 6, 8), torch.randn(3, h, 6).to(dtype), torch.randn(3, h, 6).to(dtype)
    dt, A = torch.rand(3, h, 6).to(dtype), -torch.rand(h, 6, 8)
    B, C = torch.randn(2, 3, groups, 8).to(dtype)
    D, bias = torch.randn(h, 6).to(dtype), torch.randn(h, 6).to(dtype)
    if full and heads == 4:  # Mamba-2: one rate, step and bias per head, expanded
        A, dt, bias = A[:, :1, :1].expand(4, 6, 8), dt[:, :, :1].expand(3, 4, 6), bias[:, :1].expand(4, 6)
    optional = (D, z, bias) if full else (None, None, None)
    index = torch.tensor([4, 0, 2], dtype=torch.int32) if indexed else None
    picked = state[index] if indexed else state.clone()
    right, following = one_step(picked, x, dt, A, B, C, *optional, full)
    untouched = state[[1, 3]].clone() if indexed else None

    def user(t, axis=1):
        return t if heads or t is None else t.squeeze(axis)

    given = state if heads else state.squeeze(1)  # shares its memory
    out = selective_state_update(
        given, user(x), user(dt), user(A, 0), user(B), user(C), user(optional[0], 0), user(optional[1]),
        user(optional[2], 0), full, index,
    )  # fmt: skip
    near(out, user(right).double(), dtype)
    near(state[index] if indexed else state, following.double(), torch.float32)
    if indexed:
        assert torch.equal(state[[1, 3]], untouched)


def test_states_in_half_precision_keep_their_dtype():
    torch.manual_seed(0)
    state, x, B = torch.randn(2, 3, 4).bfloat16(), torch.randn(2, 3), torch.randn(2, 4)
    expected = state.float()
    selective_state_update(expected, x, x.abs(), -torch.ones(3, 4), B, B)
    selective_state_update(state, x, x.abs(), -torch.ones(3, 4), B, B)
    near(state, expected.double(), torch.bfloat16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w: causal_conv1d_fn(x, w, activation="relu"), "activation must be None, 'silu' or 'swish'"),
        (lambda x, w: causal_conv1d_fn(x[0], w), r"x must be \(B, D, L\)"),
        (lambda x, w: causal_conv1d_fn(x, w[:2]), "weight has shape"),
        (
            lambda x, w: causal_conv1d_fn(x, w, seq_idx=torch.zeros(2, 4), return_final_states=True),
            "cannot be combined with",
        ),
        (lambda x, w: causal_conv1d_fn(x, w, seq_idx=torch.zeros(2, 3)), "seq_idx has shape"),
        (lambda x, w: causal_conv1d_fn(x, w, seq_idx=torch.tensor([[0, 1, 0, 0]] * 2)), "recurs after another"),
        (lambda x, w: causal_conv1d_fn(x, w, final_states_out=x), "return_final_states is False"),
        (lambda x, w: causal_conv1d_update(x, torch.zeros(2, 3, 1), w), "S at least 2"),
        (lambda x, w: causal_conv1d_update(x, torch.zeros(3, 3, 2), w), "one per batch entry, 2"),
        (
            lambda x, w: causal_conv1d_update(x, torch.zeros(2, 3, 2), w, cache_seqlens=torch.zeros(2).int()),
            "4 positions do not fit into a circular conv_state of 2",
        ),
        (
            lambda x, w: causal_conv1d_update(x, torch.zeros(4, 3, 2), w, conv_state_indices=torch.tensor([-1, 0])),
            "are unsupported",
        ),
        (
            lambda x, w: causal_conv1d_update(x, torch.zeros(4, 3, 2), w, conv_state_indices=torch.tensor([1, 1])),
            "the same row of conv_state",
        ),
        (lambda x, w: selective_state_update(x, x, x, w, x, x), "state must be"),
        (
            lambda x, w: selective_state_update(
                torch.zeros(2, 3, 4, 5), x, x, -torch.ones(3, 4, 5), torch.ones(2, 2, 5), torch.ones(2, 3, 5)
            ),
            "with G dividing 3 heads",
        ),
    ],
)
def test_mismatched_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 3, 4), torch.ones(3, 3))
