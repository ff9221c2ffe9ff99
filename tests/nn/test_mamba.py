"""The Mamba layer against its equations; padding, packing, chunks and adapters change nothing else."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from seqssm import orders
from seqssm.nn.mamba import Mamba
from seqssm.nn.state import State

SPECS = ["forward", "reverse", "bidirectional", {"stride": 3}, ["forward", {"stride": 2}]]
TOLERANCE = 1e-5


def ratio(value, reference):
    """RMS of the difference relative to the RMS of the reference."""
    value, reference = value.detach().double(), reference.detach().double()
    return float((value - reference).pow(2).mean().sqrt() / reference.pow(2).mean().sqrt())


def make(ordering="forward", d_model=6, seed=1, **options):
    """A layer with weights whose routes all differ, and with dt large enough to matter."""
    torch.manual_seed(seed)
    settings = {"d_state": 4, "d_conv": 3, "dt_rank": 2, "dt_min": 0.1, "dt_max": 1.0, **options}
    layer = Mamba(d_model, ordering=ordering, **settings)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def sequences(*shape, seed=2):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_the_equations(layer, x):
    """The layer by the equations of the paper, step by step, for one sequence x (L, D) in float64."""
    layer = copy.deepcopy(layer).double()
    x = x.double()
    length, width = len(x), layer.out_proj.in_features
    total = torch.zeros(length, width, dtype=torch.float64)
    table = orders.build(layer.ordering, length)
    table = torch.arange(length)[None] if table is None else table
    sizes = [layer.settings.dt_rank, layer.settings.d_state, layer.settings.d_state]
    for r, route in enumerate(layer.branches):
        h = torch.zeros(width, route.A_log.shape[1], dtype=torch.float64)
        taps = route.conv1d.weight[:, 0]
        window = torch.zeros(width, taps.shape[1], dtype=torch.float64)
        for place in table[r].tolist():
            u, z = (x[place] @ layer.in_proj.weight.T).chunk(2)
            window = torch.cat([window[:, 1:], u[:, None]], 1)
            u = F.silu((window * taps).sum(1) + (0 if route.conv1d.bias is None else route.conv1d.bias))
            low, B, C = (route.x_proj.weight @ u).split(sizes)
            dt = F.softplus(route.dt_proj.weight @ low + route.dt_proj.bias)
            h = torch.exp(-dt[:, None] * route.A_log.exp()) * h + dt[:, None] * B * u[:, None]
            total[place] += (h @ C + route.D * u) * F.silu(z)
    total = total / len(table) if layer.merge == "mean" else total
    return total @ layer.out_proj.weight.T


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("options", [{}, {"merge": "mean", "conv_bias": False, "expand": 1, "d_state": 1, "d_conv": 1}])
def test_the_layer_equals_its_equations(spec, options):
    layer, x = make(spec, **options), sequences(2, 9, 6)
    expected = torch.stack([by_the_equations(layer, one) for one in x])
    assert ratio(layer(x), expected) < TOLERANCE
    assert ratio(layer.double()(x.double()), expected) < 1e-12


def test_one_route_has_the_public_names():
    layer = Mamba(32, d_state=16, ordering="reverse")
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "A_log": (64, 16),
        "D": (64,),
        "conv1d.weight": (64, 1, 4),
        "conv1d.bias": (64,),
        "x_proj.weight": (2 + 32, 64),
        "dt_proj.weight": (64, 2),
        "dt_proj.bias": (64,),
        "in_proj.weight": (128, 32),
        "out_proj.weight": (32, 64),
    }


def test_weights_of_one_route_load_into_the_first_of_several():
    one, two = make("forward"), make("bidirectional", seed=7)
    result = two.load_state_dict(one.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys
    assert all(name.startswith("routes.1.") for name in result.missing_keys)


def test_the_initialisation_is_mambas():
    torch.manual_seed(0)
    layer = Mamba(64, d_state=5, ordering="bidirectional", dt_min=1e-3, dt_max=0.1)
    for route in layer.branches:
        assert torch.allclose(-route.A_log.exp(), -torch.arange(1.0, 6.0).expand(128, 5))
        assert (route.D == 1).all()
        dt = F.softplus(route.dt_proj.bias)
        assert dt.min() >= 1e-3 * (1 - 1e-4)
        assert dt.max() <= 0.1 * (1 + 1e-4)
        assert abs(dt.log().mean() - math.log(1e-2)) < 0.4  # log-uniform: the mean of the logarithm is in the middle
        assert 0.9 * 4**-0.5 < route.dt_proj.weight.abs().max() <= 4**-0.5
    assert not torch.equal(layer.x_proj.weight, layer.routes["1"].x_proj.weight)


def test_dt_starts_no_lower_than_the_floor():
    layer = Mamba(64, dt_min=1e-5, dt_max=1e-5, dt_init_floor=1e-4)
    assert torch.allclose(F.softplus(layer.dt_proj.bias), torch.tensor(1e-4), rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_and_d_stay_in_single_precision(dtype):
    layer = make("bidirectional")
    before = {name: p.detach().clone() for name, p in layer.named_parameters() if name.endswith(("A_log", "D"))}
    assert len(before) == 4
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    layer.to(dtype)
    for name, parameter in layer.named_parameters():
        assert parameter.dtype == parameter.grad.dtype == (torch.float32 if name in before else dtype)
        if name in before:
            assert torch.equal(parameter, before[name])
    x = sequences(2, 9, 6).to(dtype)
    y = layer(x)
    y.float().sum().backward()
    assert y.dtype == dtype
    assert ratio(y, layer.float()(x.float())) < 2e-2
    assert {p.dtype for p in layer.double().parameters()} == {torch.float64}


def test_autocast_leaves_parameters_and_works():
    layer, x = make("bidirectional"), sequences(2, 9, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = layer(x, return_state=True)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert state["scan"].dtype == torch.float32
    assert ratio(y, layer(x)) < 3e-2
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_padding_changes_nothing(spec):
    layer, x = make(spec), sequences(3, 7, 6)
    plain, plain_state = layer(x, return_state=True)
    plain_gradient = torch.autograd.grad(plain.square().sum(), list(layer.parameters()))
    for places in (torch.arange(7), torch.arange(4, 11), torch.tensor([0, 2, 3, 5, 8, 9, 10])):
        mask = torch.zeros(3, 11, dtype=torch.bool)
        mask[:, places] = True
        padded = torch.full((3, 11, 6), float("nan"))
        padded[:, places] = x
        y, state = layer(padded, mask=mask, return_state=True)
        assert ratio(y[:, places], plain) < TOLERANCE
        assert (y[~mask] == 0).all()
        assert all(ratio(state[name], plain_state[name]) < TOLERANCE for name in plain_state)
        gradient = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
        for one, other in zip(gradient, plain_gradient, strict=True):
            assert ratio(one, other) < TOLERANCE


def test_samples_of_a_padded_batch_are_independent():
    layer = make(["forward", {"stride": 2}])
    x, lengths = sequences(4, 8, 6), [8, 5, 1, 0]
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    y = layer(x, mask=mask)
    for sample, length in enumerate(lengths[:3]):
        assert ratio(y[sample, :length], layer(x[sample : sample + 1, :length])[0]) < TOLERANCE
    assert (y[3] == 0).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_packed_equals_separate(spec):
    layer, x, lengths = make(spec), sequences(1, 12, 6), [4, 0, 7, 1]
    ends = torch.tensor([0, 4, 4, 11, 12], dtype=torch.int32)
    packed, state = layer(x, cu_seqlens=ends, return_state=True)
    single = [layer(piece, return_state=True) for piece in x.split(lengths, dim=1)]
    assert ratio(packed, torch.cat([y for y, _ in single], dim=1)) < TOLERANCE
    for name in state:
        assert ratio(state[name], torch.cat([one[name] for _, one in single])) < TOLERANCE


@pytest.mark.parametrize("spec", ["forward", ["forward", {"stride": 1}]], ids=str)
def test_whole_chunked_and_stepwise_are_equal(spec):
    layer, x = make(spec), sequences(2, 9, 6)
    whole, final = layer(x, return_state=True)
    pieces, state = [], None
    for piece in x.split([4, 0, 1, 4], dim=1):
        y, state = layer(piece, state, return_state=True)
        pieces.append(y)
    assert ratio(torch.cat(pieces, 1), whole) < TOLERANCE
    steps, walked = [], layer.new_state(2)
    for place in x.unbind(1):
        y, walked = layer.step(place, walked)
        steps.append(y)
    assert ratio(torch.stack(steps, 1), whole) < TOLERANCE
    for name in final:
        assert ratio(state[name], final[name]) < TOLERANCE
        assert ratio(walked[name], final[name]) < TOLERANCE


def test_gradients_flow_between_chunks_until_detached():
    layer, x = make(), sequences(2, 6, 6).requires_grad_()
    whole = torch.autograd.grad(layer(x)[:, 4:].square().sum(), x)[0]
    _, state = layer(x[:, :4], return_state=True)
    pieces = torch.autograd.grad(layer(x[:, 4:], state).square().sum(), x, retain_graph=True)[0]
    assert ratio(pieces, whole) < TOLERANCE
    cut = torch.autograd.grad(layer(x[:, 4:], state.detach()).square().sum(), x)[0]
    assert (cut[:, :4] == 0).all()
    assert not (pieces[:, :4] == 0).any()


def test_padded_prompts_continue_as_if_unpadded():
    layer, x = make(), sequences(2, 6, 6)
    mask = torch.tensor([[True, True, True, False, False], [False, False, True, True, True]])
    padded = torch.zeros(2, 5, 6)
    padded[mask] = x[:, :3].flatten(0, 1)
    _, state = layer(padded, mask=mask, return_state=True)
    y, _ = layer.step(x[:, 3], state)
    assert ratio(y, layer(x[:, :4])[:, 3]) < TOLERANCE


@pytest.mark.parametrize("spec", ["reverse", "bidirectional", {"stride": 2}], ids=str)
def test_only_forward_routes_can_be_continued(spec):
    layer, x = make(spec), sequences(2, 3, 6)
    _, state = layer(x, return_state=True)
    with pytest.raises(ValueError, match="requires forward routes"):
        layer.step(x[:, 0], state)
    with pytest.raises(ValueError, match="requires forward routes"):
        layer(x, state)


def test_reverse_equals_forward_on_the_flipped_sequence():
    forward, x = make("forward"), sequences(2, 9, 6)
    reverse = make("reverse", seed=5)
    reverse.load_state_dict(forward.state_dict())
    assert ratio(reverse(x.flip(1)).flip(1), forward(x)) < TOLERANCE


def test_later_positions_do_not_affect_earlier_ones():
    layer, x = make(), sequences(1, 9, 6).requires_grad_()
    changed = x.detach().clone()
    changed[:, 5:] += 1
    assert torch.equal(layer(x)[:, :5], layer(changed)[:, :5])
    gradient = torch.autograd.grad(layer(x)[:, 4].sum(), x)[0]
    assert (gradient[:, 5:] == 0).all()
    assert (gradient[:, :5] != 0).any(-1).all()


class Adapter(nn.Module):
    """A low-rank adapter around a Linear, without the Linear's attributes."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(2, base.in_features) / 2)
        self.up = nn.Parameter(torch.randn(base.out_features, 2) / 2)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("spec", ["forward", "bidirectional"])
def test_adapters_are_used_and_trained(spec):
    layer, x = make(spec), sequences(2, 7, 6)
    plain = layer(x)
    for parent in (layer, *layer.branches[1:]):
        for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
            if hasattr(parent, name):
                setattr(parent, name, Adapter(getattr(parent, name)))
    adapters = [module for module in layer.modules() if isinstance(module, Adapter)]
    assert len(adapters) == 2 + 2 * len(layer.ordering)
    y = layer(x)
    assert ratio(y, plain) > 0.1
    y.square().sum().backward()
    for adapter in adapters:
        assert adapter.down.grad.abs().max() > 0
        assert adapter.up.grad.abs().max() > 0
    if spec == "forward":
        stepped, _ = layer.step(x[:, 0], layer.new_state(2))
        assert ratio(stepped, y[:, 0]) < TOLERANCE


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_engines_agree(spec):
    layer, x = make(spec), sequences(2, 65, 6)
    layer.engine = "reference"
    expected = layer(x)
    for engine in (None, "torch", "numba"):
        layer.engine = engine
        assert ratio(layer(x), expected) < TOLERANCE


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_short_sequences(spec, length):
    y = make(spec)(sequences(2, length, 6))
    assert y.shape == (2, length, 6)
    assert y.isfinite().all()


def test_the_layer_compiles_in_one_graph():
    layer, x = make("bidirectional"), sequences(2, 9, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y, state = compiled(x, return_state=True)
    expected, expected_state = layer(x, return_state=True)
    assert ratio(y, expected) < TOLERANCE
    assert ratio(state["scan"], expected_state["scan"]) < TOLERANCE


@torch.no_grad()
def test_the_layer_exports_with_any_length():
    layer, x = make("bidirectional"), sequences(2, 9, 6)
    length = torch.export.Dim("length", min=2, max=128)
    exported = torch.export.export(layer, (x,), dynamic_shapes={"x": {1: length}})
    for longer in (sequences(2, 17, 6), sequences(2, 101, 6)):
        assert ratio(exported.module()(longer), layer(longer)) < TOLERANCE
    assert type(orders.build("bidirectional", 9)) is torch.Tensor  # no traced table is cached


def test_wrong_arguments_are_named():
    layer, x = make(), sequences(2, 5, 6)
    with pytest.raises(ValueError, match="not both"):
        layer(x, mask=torch.ones(2, 5, dtype=torch.bool), cu_seqlens=torch.tensor([0, 5]))
    with pytest.raises(ValueError, match=r"mask has shape \(2, 4\)"):
        layer(x, mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"x has shape \(5, 6\), expected \(B, L, d_model\) with d_model = 6"):
        layer(x[0])
    with pytest.raises(ValueError, match=r"x has shape \(2, 5, 3\)"):
        layer(x[..., :3])
    forward = Mamba(6)
    with pytest.raises(ValueError, match=r"x has shape \(2, 5, 6\), expected \(B, d_model\)"):
        forward.step(x, forward.new_state(2))
    with pytest.raises(ValueError, match="step requires the state before this position"):
        forward.step(x[:, 0], None)
    with pytest.raises(ValueError, match="merge must be one of sum, mean"):
        Mamba(4, merge="max")
    with pytest.raises(ValueError, match="d_state must be at least 1"):
        Mamba(4, d_state=0)
    with pytest.raises(ValueError, match="dt_min and dt_max"):
        Mamba(4, dt_min=1.0, dt_max=0.1)
    with pytest.raises(ValueError, match="did you mean reverse"):
        Mamba(4, ordering="revers")


def test_a_state_is_one_object():
    inner = State(conv=torch.arange(6.0).view(3, 2), scan=torch.arange(3.0).view(3, 1).requires_grad_())
    state = State({"0": inner, "1": State(keys=torch.arange(3.0))})
    beams = state.reorder(torch.tensor([2, 2, 0, 1]))
    assert beams["0"]["conv"].tolist() == [[4, 5], [4, 5], [0, 1], [2, 3]]
    assert beams["1"]["keys"].tolist() == [2, 2, 0, 1]
    assert beams["0"]["scan"].requires_grad
    assert not state.detach()["0"]["scan"].requires_grad
    assert state.to("meta")["1"]["keys"].device.type == "meta"
    copied = state.clone()
    copied["0"]["conv"].zero_()
    assert state["0"]["conv"].sum() == 15
    leaves, tree = torch.utils._pytree.tree_flatten(state)
    assert len(leaves) == 3
    assert isinstance(torch.utils._pytree.tree_unflatten(leaves, tree)["0"], State)


def test_a_step_does_not_modify_its_state():
    layer, x = make(), sequences(2, 3, 6)
    _, state = layer(x, return_state=True)
    kept = state.clone()
    first, _ = layer.step(x[:, 0], state)
    layer(x, state)
    again, _ = layer.step(x[:, 0], state)
    assert torch.equal(first, again)
    assert all(torch.equal(state[name], kept[name]) for name in kept)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU was found")
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gpu_and_cpu_agree(spec):
    layer, x = make(spec), sequences(3, 70, 6)
    mask = torch.arange(70) < torch.tensor([70, 41, 1])[:, None]
    expected = layer(x, mask=mask)
    gradient = torch.autograd.grad(expected.square().sum(), list(layer.parameters()))
    layer.to("cuda")
    y = layer(x.cuda(), mask=mask.cuda())
    assert ratio(y.cpu(), expected) < 1e-4
    for one, other in zip(torch.autograd.grad(y.square().sum(), list(layer.parameters())), gradient, strict=True):
        assert ratio(one.cpu(), other) < 1e-4


def _observe(layer: Mamba) -> list[Any]:
    seen: list[Any] = []
    layer.dt_proj.register_forward_hook(lambda module, given, out: seen.append(out))
    return seen


def _replace(layer: Mamba) -> list[Any]:
    seen: list[Any] = []

    class Other(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    other = Other(layer.x_proj.in_features, layer.x_proj.out_features, bias=False)
    other.load_state_dict(layer.x_proj.state_dict())
    layer.x_proj = other
    return seen


@pytest.mark.parametrize("change", [_observe, _replace])
@torch.no_grad()
def test_a_step_calls_projections_that_are_observed_or_replaced(change):
    torch.manual_seed(0)
    layer = Mamba(24)
    x, state = torch.randn(3, 24), layer.new_state(3).map(torch.randn_like)
    right, after = layer.step(x, state)
    seen = change(layer)
    found, then = layer.step(x, state)
    assert len(seen) == 1
    torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)
    for name in after:
        torch.testing.assert_close(then[name], after[name], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_step_uses_pruned_weights():
    torch.manual_seed(0)
    layer = Mamba(24)
    for part in (layer.x_proj, layer.dt_proj):
        prune.l1_unstructured(part, "weight", 0.5)
    x = torch.randn(3, 2, 24)
    _, state = layer(x[:, :1], return_state=True)
    torch.testing.assert_close(layer.step(x[:, 1], state)[0], layer(x)[:, 1], atol=1e-5, rtol=1e-5)
