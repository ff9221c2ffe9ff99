"""Branches and merges of a Mamba layer; initialisation, dtypes, and states in exported programs."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from torch.nn import functional as F

from seqssm import Mamba, orders
from seqssm.nn.branch import DtProjection
from seqssm.nn.state import State
from seqssm.orders import Grid

ORDER_OF_PARAMETERS = ["A_log", "D", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"]


def sequences(*shape, seed=2):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_names_and_order_of_parameters_are_those_of_old_checkpoints():
    layer = Mamba(8, ordering=["bidirectional", {"stride": 3}], bias=True)
    names = [*ORDER_OF_PARAMETERS, "in_proj.weight", "in_proj.bias"]
    names += [f"routes.{r}.{name}" for r in (1, 2) for name in ORDER_OF_PARAMETERS]
    names += ["out_proj.weight", "out_proj.bias"]
    assert [name for name, _ in layer.named_parameters()] == names
    assert list(layer.state_dict()) == names


def test_branches_read_and_replace_the_layers_weights():
    layer = Mamba(8, ordering="bidirectional")
    first, second = layer.branches
    assert first.A_log is layer.A_log
    assert second.A_log is layer.routes["1"].A_log
    first.x_proj = torch.nn.Identity()
    second.x_proj = torch.nn.Identity()
    assert isinstance(layer.x_proj, torch.nn.Identity)
    assert isinstance(layer.routes["1"].x_proj, torch.nn.Identity)
    copied = copy.deepcopy(layer)
    assert copied.branches[0].A_log is copied.A_log
    assert copied.A_log is not layer.A_log


def require_mambas_initialisation(layer):
    for branch in layer.branches:
        expected = torch.arange(1.0, branch.settings.d_state + 1).log().expand_as(branch.A_log)
        torch.testing.assert_close(branch.A_log, expected, check_dtype=False)
        assert (branch.D == 1).all()
        dt = F.softplus(branch.dt_proj.bias)
        assert dt.min() >= 1e-3 * (1 - 1e-3)
        assert dt.max() <= 0.1 * (1 + 1e-3)
        assert abs(dt.float().log().mean() - math.log(1e-2)) < 0.5
        assert branch.dt_proj.weight.abs().max() <= branch.settings.dt_rank**-0.5


@pytest.mark.parametrize(
    "options",
    [{}, {"ordering": "bidirectional", "bias": True}, {"ordering": "cross", "merge": "gate", "local_conv": 3}],
)
@pytest.mark.parametrize("how", ["layer", "modules first", "modules last", "owners"])
def test_weights_of_the_meta_device_become_mambas(options, how):
    with torch.device("meta"):
        layer = Mamba(64, **options)
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(float("nan"))
    torch.manual_seed(0)
    resets = [module for module in layer.modules() if hasattr(module, "reset_parameters")]
    if how == "layer":
        layer.reset_parameters()
    elif how == "owners":  # as in fully sharded training: every module that owns parameters
        for module in resets:
            if list(module.parameters(recurse=False)):
                module.reset_parameters()
    else:
        for module in resets if how == "modules first" else reversed(resets):
            module.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in layer.parameters())
    require_mambas_initialisation(layer)
    if options.get("merge") == "gate":
        assert (layer.route_weight == 0.25).all()


def test_resetting_draws_from_the_distribution_of_a_new_layer():
    layer = Mamba(64, ordering="bidirectional")
    before = {name: p.clone() for name, p in layer.named_parameters()}
    layer.reset_parameters()
    for name, parameter in layer.named_parameters():
        if name.endswith(("A_log", "D")):
            assert torch.equal(parameter, before[name])
        else:
            assert not torch.equal(parameter, before[name]), name
            assert 0.8 < parameter.std() / before[name].std() < 1.25, name
    assert isinstance(layer.dt_proj, DtProjection)


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("spec", ["forward", ["forward", {"stride": 1}]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layers_of_another_default_dtype_train_and_step(default_dtype, spec, dtype):
    default_dtype(dtype)
    torch.manual_seed(0)
    layer = Mamba(8, d_state=4, ordering=spec)
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert layer.A_log.dtype == layer.D.dtype == kept
    assert layer.in_proj.weight.dtype == dtype
    x = torch.randn(2, 5, 8)
    y, state = layer(x, return_state=True)
    y.square().sum().backward()
    assert y.dtype == dtype
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    torch.optim.AdamW(layer.parameters(), lr=1e-3).step()
    walked = layer.new_state(2)
    assert {tensor.dtype for tensor in walked.values()} == {tensor.dtype for tensor in state.values()} == {kept}
    with torch.no_grad():
        steps = []
        for position in x.unbind(1):
            one, walked = layer.step(position, walked)
            steps.append(one)
        tolerance = 1e-12 if dtype == torch.float64 else 2e-2
        torch.testing.assert_close(torch.stack(steps, 1), layer(x), rtol=tolerance, atol=tolerance)


def test_single_precision_a_in_a_double_layer():
    layer = Mamba(8, d_state=4, ordering="bidirectional").double()
    expected = layer(sequences(2, 5, 8).double())
    single = {k: v.float() if k.endswith(("A_log", "D")) else v for k, v in layer.state_dict().items()}
    layer.load_state_dict(single, assign=True)
    assert layer.A_log.dtype == torch.float32
    y, state = layer(sequences(2, 5, 8).double(), return_state=True)
    y.sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-8)
    assert state["scan"].dtype == layer.new_state(2)["scan"].dtype == torch.float64


def test_channel_groups_are_independent_layers():
    torch.manual_seed(0)
    layer = Mamba(8, d_state=4, expand=2, ordering="cross", merge="concat", dt_rank=1).double()
    assert [branch.A_log.shape[0] for branch in layer.branches] == [4, 4, 4, 4]
    x, grid = sequences(2, 12, 8).double(), Grid(3, 4)
    u, z = layer.in_proj(x).chunk(2, -1)
    groups = []
    for number, order in enumerate(layer.ordering):
        alone = Mamba(4, d_state=4, expand=1, dt_rank=1, ordering=order).double()
        branch = layer.branches[number]
        with torch.no_grad():
            alone.in_proj.weight.copy_(torch.eye(4).repeat(2, 1))
            alone.out_proj.weight.copy_(torch.eye(4))
            for name, parameter in alone.named_parameters():
                if not name.startswith(("in_proj", "out_proj")):
                    module = branch
                    for part in name.split("."):
                        module = getattr(module, part)
                    parameter.copy_(module)
        own = slice(4 * number, 4 * number + 4)
        alone.channels = lambda _, only, own=own: (u[..., own].unsqueeze(-2), z[..., own].unsqueeze(-2))
        groups.append(alone(u[..., own], geometry=grid))
    torch.testing.assert_close(layer(x, geometry=grid), layer.out_proj(torch.cat(groups, -1)), rtol=0, atol=1e-12)


def test_gates_start_as_the_mean_and_learn():
    torch.manual_seed(0)
    gated = Mamba(8, ordering="bidirectional", merge="gate")
    mean = Mamba(8, ordering="bidirectional", merge="mean")
    missing = mean.load_state_dict(gated.state_dict(), strict=False)
    assert missing.unexpected_keys == ["route_weight"]
    x = sequences(2, 9, 8)
    torch.testing.assert_close(gated(x), mean(x))
    gated(x).square().sum().backward()
    assert (gated.route_weight.grad != 0).all()
    with torch.no_grad():
        gated.route_weight.copy_(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(gated(x), Mamba_of_first(gated)(x))


def Mamba_of_first(layer):  # noqa: N802
    """A forward layer with the weights of the first route."""
    first = Mamba(8)
    first.load_state_dict(layer.state_dict(), strict=False)
    return first


@pytest.mark.parametrize("spec", ["forward", ["forward", "forward"]], ids=str)
def test_channel_groups_step_as_they_scan(spec):
    layer = Mamba(8, d_state=4, ordering=spec, merge="concat")
    x, state = sequences(2, 6, 8), layer.new_state(2)
    expected, final = layer(x, return_state=True)
    steps = []
    for position in x.unbind(1):
        y, state = layer.step(position, state)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, 1), expected, rtol=1e-4, atol=1e-6)
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in final.items()}


def test_channels_must_divide_into_groups():
    with pytest.raises(ValueError, match="expand \\* d_model = 14 channels do not divide into 4 groups"):
        Mamba(7, ordering="cross", merge="concat")


def test_a_layer_of_one_union_and_a_convolution_of_the_grid():
    layer, x = Mamba(8, ordering="cross", local_conv=3), sequences(2, 15, 8)
    assert layer(x, geometry=Grid(3, 5)).shape == x.shape
    with pytest.raises(ValueError, match="needs geometry=Grid"):
        Mamba(8, local_conv=3)(x)
    with pytest.raises(ValueError, match="with a convolution over the grid"):
        Mamba(8, local_conv=3).step(x[:, 0], None)
    table = orders.build("cross", Grid(3, 5))
    torch.testing.assert_close(layer(x, order=table, geometry=Grid(3, 5)), layer(x, geometry=Grid(3, 5)))


class Step(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, state):
        return self.layer.step(x, state)


@torch.no_grad()
def test_programs_with_a_state_are_exported_saved_and_loaded(tmp_path, caplog):
    layer, x = Mamba(8, d_state=4), sequences(2, 7, 8)
    _, state = layer(x, return_state=True)
    expected, expected_state = layer(x, state, return_state=True)
    program = torch.export.export(layer, (x, state), {"return_state": True})
    torch.export.save(program, tmp_path / "layer.pt2")
    caplog.clear()
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]  # weights_only is sufficient
    y, after = loaded(x, state, return_state=True)
    torch.testing.assert_close(y, expected)
    assert isinstance(after, State)
    torch.testing.assert_close(dict(after), dict(expected_state))
    batch = torch.export.Dim("batch", min=1, max=64)
    step = torch.export.export(Step(layer), (x[:, 0], state), dynamic_shapes=({0: batch}, [{0: batch}, {0: batch}]))
    for size in (2, 5):
        given = layer.new_state(size)
        y, after = step.module()(sequences(size, 8), given)
        torch.testing.assert_close(y, layer.step(sequences(size, 8), given)[0])
    assert "seqssm.state.State" in torch.utils._pytree.treespec_dumps(torch.utils._pytree.tree_structure(state))


def test_states_are_saved_without_code(tmp_path):
    state = State({"0": Mamba(4).new_state(2), "1": State(keys=torch.ones(2, 3))})
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert isinstance(loaded, State)
    assert isinstance(loaded["0"], State)
    assert torch.equal(loaded["1"]["keys"], state["1"]["keys"])
    assert isinstance(copy.deepcopy(state)["0"], State)
