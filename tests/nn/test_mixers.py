"""Mamba-2, Mamba-3, attention and stacks of them against their equations; properties of every mixer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from seqssm.nn.attention import Attention
from seqssm.nn.backbone import Backbone
from seqssm.nn.chunks import in_chunks, in_pieces, stream
from seqssm.nn.mamba2 import Mamba2
from seqssm.nn.mamba3 import Mamba3
from seqssm.nn.memory import Memory
from seqssm.nn.mlp import MLP
from seqssm.nn.routed import RoutedMixer

from .mixers import ALL, FORWARD, M2, OTHERS, STACKS, WITHOUT_ROUTES, D, close, make, same_state, sequences
from .oracles import ORACLES


@pytest.mark.parametrize("name", [name for name in ALL if name not in STACKS])
@torch.no_grad()
def test_layers_equal_their_equations(name):
    layer, x = make(name), sequences(2, 11, D)
    expected = torch.stack([ORACLES[type(layer)](layer, one) for one in x])
    close(layer(x), expected)
    narrow = copy.deepcopy(layer).float()
    close(narrow(x.float()).double(), expected, 1e-4)


@pytest.mark.parametrize("name", FORWARD)
def test_whole_chunked_and_stepwise_are_equal(name):
    layer, x = make(name), sequences(2, 11, D)
    whole, final = layer(x, return_state=True)
    pieces, state = [], None
    for piece in x.split([4, 0, 1, 6], dim=1):
        y, state = layer(piece, state, return_state=True)
        pieces.append(y)
    close(torch.cat(pieces, 1), whole)
    same_state(state, final)
    steps, walked = [], layer.new_state(2)
    for place in x.unbind(1):
        y, walked = layer.step(place, walked)
        steps.append(y)
    close(torch.stack(steps, 1), whole)
    same_state(walked, final)


@pytest.mark.parametrize("name", FORWARD)
def test_a_state_is_never_written_to(name):
    layer, x = make(name), sequences(2, 6, D)
    _, state = layer(x, return_state=True)
    kept = state.clone()
    layer.step(x[:, 0], state)
    layer(x[:, :3], state, return_state=True)
    same_state(state, kept, 0.0)


PADDINGS = {
    "right": [0, 1, 2, 3, 4, 5, 6],
    "left": [4, 5, 6, 7, 8, 9, 10],
    "between": [0, 2, 3, 5, 8, 9, 10],
}


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", ALL)
def test_padding_changes_nothing(name, padding):
    layer, x, places = make(name), sequences(3, 7, D), PADDINGS[padding]
    continues = name in FORWARD
    plain = layer(x, return_state=True) if continues else (layer(x), None)
    mask = torch.zeros(3, 11, dtype=torch.bool)
    mask[:, places] = True
    # a stack adds padded positions of its input to outputs of its layers, which must be finite
    padded = torch.full((3, 11, D), 1e3 if name in STACKS else float("nan"), dtype=torch.float64)
    padded[:, places] = x
    y = layer(padded, mask=mask, return_state=True) if continues else (layer(padded, mask=mask), None)
    close(y[0][:, places], plain[0])
    if continues:
        same_state(y[1], plain[1])
    wanted = torch.autograd.grad(plain[0].square().sum(), list(layer.parameters()))
    found = torch.autograd.grad(y[0][:, places].square().sum(), list(layer.parameters()))
    for one, other in zip(found, wanted, strict=True):
        close(one, other, 1e-8)


@pytest.mark.parametrize("name", ALL)
def test_samples_of_a_padded_batch_are_independent(name):
    layer, x, lengths = make(name), sequences(4, 8, D), [8, 5, 1, 0]
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    y = layer(x, mask=mask)
    assert y.isfinite().all()
    for sample, length in enumerate(lengths[:3]):
        close(y[sample, :length], layer(x[sample : sample + 1, :length])[0])


@pytest.mark.parametrize("name", FORWARD)
def test_padded_pieces_of_different_lengths_continue_each_other(name):
    layer, x = make(name), sequences(3, 12, D)
    lengths = torch.tensor([[5, 0, 2], [1, 4, 0], [3, 1, 6]])  # piece, sample
    state = None
    found = [[] for _ in range(3)]
    start = torch.zeros(3, dtype=torch.long)
    for number, own in enumerate(lengths):
        mask = torch.arange(6).flip(0) < own[:, None] if number % 2 else torch.arange(6) < own[:, None]
        piece = torch.zeros(3, 6, D, dtype=torch.float64)
        for sample in range(3):
            piece[sample, mask[sample]] = x[sample, start[sample] : start[sample] + own[sample]]
        y, state = layer(piece, state, mask=mask, return_state=True)
        for sample in range(3):
            found[sample].append(y[sample, mask[sample]])
        start += own
    step = torch.stack([x[sample, start[sample]] for sample in range(3)])
    y, _ = layer.step(step, state)
    for sample in range(3):
        whole = layer(x[sample : sample + 1, : start[sample] + 1])[0]
        close(torch.cat([*found[sample], y[sample : sample + 1]]), whole)


@pytest.mark.parametrize("name", ALL)
def test_packed_equals_separate(name):
    layer, x, lengths = make(name), sequences(1, 12, D), [4, 0, 7, 1]
    ends = torch.tensor([0, 4, 4, 11, 12], dtype=torch.int32)
    if name not in FORWARD:
        y = layer(x, cu_seqlens=ends)
        close(y, torch.cat([layer(piece) for piece in x.split(lengths, dim=1)], 1))
        return
    y, state = layer(x, cu_seqlens=ends, return_state=True)
    single = [layer(piece, return_state=True) for piece in x.split(lengths, dim=1)]
    close(y, torch.cat([one for one, _ in single], 1))
    after = sequences(4, 1, D, seed=5)
    goes_on, _ = layer.step(after[:, 0], state)
    for number, (_, own) in enumerate(single):
        close(goes_on[number : number + 1], layer.step(after[number], own)[0])
    # a second packed piece continues the first
    second = sequences(1, 9, D, seed=7)
    own_ends = torch.tensor([0, 3, 5, 5, 9], dtype=torch.int32)
    y, _ = layer(second, state, cu_seqlens=own_ends, return_state=True)
    for number, piece in enumerate(second.split([3, 2, 0, 4], dim=1)):
        close(y[:, own_ends[number] : own_ends[number + 1]], layer(piece, single[number][1]))


@pytest.mark.parametrize("name", FORWARD)
def test_later_positions_do_not_affect_earlier_ones(name):
    layer, x = make(name), sequences(1, 9, D).requires_grad_()
    gradient = torch.autograd.grad(layer(x)[:, 4].sum(), x)[0]
    # Mamba-3 adds a term of the next step and subtracts it again, which leaves rounding errors
    assert gradient[:, 5:].abs().max() <= (1e-13 if name.startswith("mamba3") or name == "stack" else 0)
    reach = 0 if name == "attention window 1" else 4 - 2 if name == "attention window" else 0
    assert (gradient[:, 4] != 0).any()
    if name != "attention window 1" and not name.startswith("memory"):  # which sees what it has selected
        assert (gradient[:, reach:5] != 0).any(-1).all()


@pytest.mark.parametrize("name", [name for name in ALL if name not in WITHOUT_ROUTES and "attention" not in name])
def test_any_table_is_followed_step_by_step(name):
    """A table with omitted steps and resets, against the layer over its segments, route by route."""
    layer, x = make(name), sequences(1, 11, D)
    rows = len(layer.ordering)
    table = torch.tensor([3, -1, 0, 7, -2, -1, 5, 6, 10, -1, -2, -2, 1, -1, 2, -1])
    tables = torch.stack([table.roll(3 * r) for r in range(rows)]).to(torch.int32)
    y = layer(x, order=tables)
    total = torch.zeros(1, 11, layer.width, dtype=torch.float64)
    for number in range(rows):
        state = layer.new_route_state()
        for place in tables[number].tolist():
            if place == -2:
                state = layer.new_route_state()
            elif place >= 0:
                part, state = layer.mix_route(number, x[:, place : place + 1], state)
                total[:, place] += part[:, 0]
    close(y, layer.project(total))
    chunked = in_chunks(layer, x[0], list(tables), 2)
    close(chunked, y[0])
    parameters = list(layer.parameters())
    wanted = torch.autograd.grad(y.square().sum(), parameters)
    for one, other in zip(torch.autograd.grad(chunked.square().sum(), parameters), wanted, strict=True):
        close(one, other, 1e-8)


@pytest.mark.parametrize("name", FORWARD)
def test_long_sequences_in_chunks(name):
    layer, x = make(name), sequences(2, 23, D).requires_grad_()
    whole, final = layer(x, return_state=True)
    y, state = in_pieces(layer, x, 5, return_state=True)
    close(y, whole)
    same_state(state, final)
    given = [x, *layer.parameters()]
    wanted = torch.autograd.grad(whole.square().sum(), given)
    for one, other in zip(torch.autograd.grad(y.square().sum(), given), wanted, strict=True):
        close(one, other, 1e-8)
    with torch.no_grad():
        outputs = [part for part, _ in stream(layer, x.split(7, dim=1))]
    close(torch.cat(outputs, 1), whole.detach())
    half, state = in_pieces(layer, x[:, :11], 3, return_state=True)
    close(torch.cat([half, in_pieces(layer, x[:, 11:], 4, state)], 1), whole)


def test_recomputed_chunks_repeat_their_dropout():
    torch.manual_seed(0)
    stack = Backbone(D, "M-", dropout=0.5, mamba2=M2).double().train()
    x = sequences(1, 12, D).requires_grad_()
    y = in_pieces(stack, x, 4)
    gradient = torch.autograd.grad(y.sum(), x)[0]
    assert gradient.isfinite().all()
    assert (gradient != 0).any()


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_refuse_to_continue(name):
    layer, x = make(name), sequences(2, 4, D)
    for call in (
        lambda: layer.step(x[:, 0], None),
        lambda: in_pieces(layer, x, 2),
        lambda: next(stream(layer, [x])),
        lambda: Backbone(D, "M", mamba2=M2 | {"ordering": "reverse"}).double().require_forward("a walk"),
    ):
        with pytest.raises(ValueError, match=r"requires (forward routes|causal attention)"):
            call()


class Adapter(nn.Module):
    """A low-rank adapter around a Linear, without the Linear's attributes."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features, dtype=torch.float64) / 2)
        self.up = nn.Parameter(torch.randn(base.out_features, 2, dtype=torch.float64) / 2)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


def test_adapters_on_every_projection_are_used_and_trained():
    layer, x = make("stack"), sequences(2, 7, D)
    plain = layer(x)
    for module in list(layer.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Adapter(child))
    adapters = [module for module in layer.modules() if isinstance(module, Adapter)]
    assert len(adapters) == 2 + 4 + 2 + 2 + 3 + 2
    y = layer(x)
    assert (y - plain).abs().max() > 0.01
    y.pow(4).sum().backward()
    assert all(adapter.down.grad.abs().max() > 0 and adapter.up.grad.abs().max() > 0 for adapter in adapters)
    close(layer.step(x[:, 0], layer.new_state(2))[0], y[:, 0])


@pytest.mark.parametrize("name", ALL)
def test_initialisation_can_be_repeated(name):
    torch.manual_seed(3)
    with torch.device("meta"):
        layer = ALL[name]()
    layer.to_empty(device="cpu")
    for tensor in layer.parameters():
        tensor.data.fill_(float("nan"))
    layer.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in layer.parameters())
    assert layer(torch.randn(1, 5, D)).isfinite().all()
    for module in layer.modules():
        if isinstance(module, Mamba2):
            for branch in module.branches:
                dt = F.softplus(branch.dt_bias)
                assert 0.099 < dt.min() <= dt.max() < 1.01
                assert 0.99 < branch.A_log.exp().min() <= branch.A_log.exp().max() < 16.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mamba2", "mamba3", "attention window", "memory soft", "stack"])
def test_narrow_dtypes(name, dtype):
    layer, x = make(name).float(), sequences(2, 9, D).float()
    expected = layer(x)
    layer.to(dtype)
    kept = [p for m in layer.modules() if isinstance(m, RoutedMixer) for p in m.kept_parameters()]
    assert all(parameter.dtype == torch.float32 for parameter in kept)
    y, state = layer(x.to(dtype), return_state=True)
    assert y.dtype == dtype
    assert ((y.float() - expected).square().mean() / expected.square().mean()).sqrt() < 0.05
    again, _ = layer.step(x[:, 0].to(dtype), state)
    assert again.dtype == dtype


def test_the_residual_can_be_wide():
    torch.manual_seed(0)
    wide = Backbone(D, "M" * 4, mamba2=M2).bfloat16()
    narrow = Backbone(D, "M" * 4, mamba2=M2, residual_in_fp32=False).bfloat16()
    narrow.load_state_dict(wide.state_dict())
    x = sequences(1, 9, D).bfloat16()
    exact = copy.deepcopy(wide).float()(x.float())
    off = [(stack(x).float() - exact).abs().mean() for stack in (wide, narrow)]
    assert off[0] < off[1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Mamba2(8, head_dim=5), "do not divide into heads of 5"),
        (lambda: Mamba2(8, head_dim=4, n_groups=3), "do not divide into n_groups = 3"),
        (lambda: Mamba2(8, head_dim=4, norm_groups=3), "3 groups of the normalisation"),
        (lambda: Mamba2(8, head_dim=4, d_state=0), "d_state must be at least 1"),
        (lambda: Mamba2(8, head_dim=4, dt_limit=(1, 0.5)), "dt_limit"),
        (lambda: Mamba2(8, head_dim=4, a_range=(0, 1)), "a_range"),
        (lambda: Mamba2(8, head_dim=16, ordering="bidirectional", merge="concat"), "for 2 groups of routes"),
        (lambda: Mamba3(8, head_dim=4, ordering="bidirectional", merge="concat"), "does not divide its heads"),
        (lambda: Mamba3(8, head_dim=4, rope_fraction=2), "rope_fraction"),
        (lambda: Attention(8, n_heads=3), "does not divide into 3 heads"),
        (lambda: Attention(8, n_heads=4, n_kv_heads=3), "do not divide into 3 groups"),
        (lambda: Attention(8, n_heads=4, window=0), "window must be at least 1"),
        (lambda: MLP(8, hidden=0), "at least 1"),
        (lambda: Memory(8, interval=0), "interval must be at least 1"),
        (lambda: Memory(8, n_heads=3), "does not divide into 3 heads"),
        (lambda: Memory(8, token_threshold=1.0), r"token_threshold must be in \[0, 1\), not 1.0"),
        (lambda: Memory(8, state_threshold=-0.1), "state_threshold"),
        (lambda: Memory(8, replacement="lru"), "replacement must be one of priority, fifo, not 'lru'"),
        (lambda: Memory(8, gate="hard"), "gate must be one of straight_through, soft"),
        (lambda: Memory(8, index=4)(torch.zeros(1, 3, 8)), "reads the pools of 3 layers below"),
        (lambda: Backbone(8, "Mx"), r"layer 2 of the pattern 'Mx' is 'x'; layers are M \(Mamba-2\)"),
        (lambda: Backbone(8, ""), "at least one layer"),
        (lambda: Backbone(8, "-", mamba2={"d_state": 3}), r"arguments of mamba2, but the pattern '-' has no 'M'"),
        (lambda: Backbone(8, "-", dropout=1.0), "dropout"),
    ],
)
def test_wrong_sizes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
