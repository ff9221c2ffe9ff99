"""S-Mamba against a plain recurrence with its weights; its size; other networks; window normalisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from seqssm_forecasting.model import NETWORKS, DLinear, EncoderLayer, VariateAttention, VariateScan
from torch.nn import functional as F

from seqssm.errors import InputError
from seqssm.training.networks import parameters

SMALL = {"lookback": 12, "horizon": 5, "d_model": 16, "d_ff": 24, "d_state": 4, "layers": 2, "heads": 4}
REST = {"dropout": 0.1, "use_norm": True, "engine": None}


def build(network, **given):
    """Build a network from the given arguments, without those that it does not have."""
    cls = NETWORKS[network]
    return cls(**{name: value for name, value in given.items() if name in parameters(cls)})


def one_direction(mamba, x):
    """Mamba with kernel 2 and expansion 1, step by step in float64; x is (positions, width), in scan order."""
    w = {name: value.detach().double().numpy() for name, value in mamba.named_parameters()}
    width, rank = w["out_proj.weight"].shape[1], w["dt_proj.weight"].shape[1]
    state_size = w["A_log"].shape[1]
    A = -np.exp(w["A_log"])
    h = np.zeros((width, state_size))
    before = np.zeros(width)
    out = []
    for token in x:
        both = w["in_proj.weight"] @ token
        inner, gate = both[:width], both[width:]
        kernel = w["conv1d.weight"][:, 0]
        u = kernel[:, 0] * before + kernel[:, 1] * inner + w["conv1d.bias"]
        before = inner
        u = u / (1 + np.exp(-u))
        projected = w["x_proj.weight"] @ u
        dt = np.logaddexp(0, w["dt_proj.weight"] @ projected[:rank] + w["dt_proj.bias"])
        B, C = projected[rank : rank + state_size], projected[rank + state_size :]
        h = np.exp(dt[:, None] * A) * h + dt[:, None] * B[None, :] * u[:, None]
        y = h @ C + w["D"] * u
        out.append(w["out_proj.weight"] @ (y * gate / (1 + np.exp(-gate))))
    return np.stack(out)


def test_the_two_scans_are_a_plain_recurrence_each_and_added():
    block = VariateScan(16, 4).eval()
    x = torch.randn(2, 7, 16)
    found = block(x).detach().numpy()
    for tokens, y in zip(x.double().numpy(), found):
        forward = one_direction(block.forward_scan, tokens)
        backward = one_direction(block.reverse_scan, tokens[::-1])[::-1]
        np.testing.assert_allclose(y, forward + backward, atol=2e-5)


@pytest.mark.parametrize("outputs", [None, 3])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"])
@pytest.mark.parametrize("name", ["", "in_proj", "x_proj", "dt_proj", "scan_x", "out_proj"])
def test_both_scans_in_one_call_equal_two_layers(outputs, name, kind):
    torch.manual_seed(0)
    block = VariateScan(16, 4).double()
    hooked, seen = block.forward_scan.get_submodule(name), []
    x = torch.randn(3, 7, 16, dtype=torch.float64, requires_grad=True)
    found = []
    for _ in range(2):
        y = block(x, outputs)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])))
        getattr(hooked, f"register_{kind}")(lambda *_: seen.append(1))  # a hook must be called: two layers
    assert len(seen) == 1
    for together, apart in zip(*found, strict=True):
        torch.testing.assert_close(together, apart)
    separate = [layer(x)[:, :outputs] for layer in (block.forward_scan, block.reverse_scan)]
    torch.testing.assert_close(found[0][0], separate[0] + separate[1])


def test_only_the_tokens_of_variates_are_computed_in_the_last_layer_with_the_masks_of_all():
    torch.manual_seed(0)
    layer = EncoderLayer(VariateScan(16, 4), 16, 24, 0.3)
    x = torch.randn(5, 7, 16)
    with torch.random.fork_rng(devices=[]):
        whole = layer(x)
    torch.testing.assert_close(layer(x, 4), whole[:, :4])


def test_the_reverse_scan_is_flip_run_flip():
    block = VariateScan(16, 4).eval()
    with torch.no_grad():
        block.forward_scan.load_state_dict(block.reverse_scan.state_dict())
        x = torch.randn(3, 9, 16)
        torch.testing.assert_close(block.reverse_scan(x), block.forward_scan(x.flip(1)).flip(1), atol=1e-6, rtol=1e-5)


def test_dt_and_a_start_as_mamba_does():
    scan = VariateScan(64, 8).forward_scan
    dt = F.softplus(scan.dt_proj.bias)
    assert dt.min() >= 1e-3 * 0.999
    assert dt.max() <= 0.1 * 1.001
    assert dt.log().std() > 0.8, "log-uniform, not constant"
    torch.testing.assert_close(scan.A_log.exp(), torch.arange(1.0, 9.0).expand(64, 8))
    assert scan.dt_proj.weight.shape == (64, math.ceil(64 / 16))


@pytest.mark.parametrize(
    ("network", "d_model", "layers", "d_state", "parameters"),
    [
        ("smamba", 256, 2, 2, 1_145_696),
        ("smamba", 128, 2, 32, 348_640),
        ("smamba", 512, 3, 2, 6_631_008),
        ("itransformer", 256, 2, 2, 841_568),
        ("itransformer", 512, 3, 2, 4_833_888),
        ("itransformer", 128, 2, 2, 224_224),
        ("dlinear", 1, 1, 1, 18_624),
    ],
)
def test_live_parameters_of_the_public_networks(network, d_model, layers, d_state, parameters):
    with torch.device("meta"):
        sizes = {"d_model": d_model, "d_ff": d_model, "layers": layers, "d_state": d_state, "heads": 8}
        model = build(network, lookback=96, horizon=96, **sizes, **REST)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("network", ["smamba", "itransformer"])
def test_the_encoder_is_that_of_the_paper(network):
    """Section 3 of the paper, layer by layer: post-norm, exact GELU, marks after the variates and dropped."""
    model = build(network, **SMALL, **REST).eval()
    x, marks = torch.randn(3, 6, 12), torch.rand(3, 4, 12) - 0.5
    mean = x.mean(-1, keepdim=True)
    std = ((x - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt()
    h = model.embed(torch.cat([(x - mean) / std, marks], 1))
    for layer in model.layers:
        h = F.layer_norm(h + layer.mixer(h), (16,), layer.norm1.weight, layer.norm1.bias, 1e-5)
        inner = layer.widen(h)
        gelu = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        h = F.layer_norm(h + layer.narrow(gelu), (16,), layer.norm2.weight, layer.norm2.bias, 1e-5)
    h = F.layer_norm(h, (16,), model.norm.weight, model.norm.bias, 1e-5)
    expected = model.head(h)[:, :6] * std + mean
    torch.testing.assert_close(model(x, marks), expected, atol=1e-5, rtol=1e-5)


def test_attention_is_softmax_over_variates():
    block = VariateAttention(16, 4, 0.1).eval()
    x = torch.randn(2, 5, 16)
    expected = torch.zeros(2, 5, 16)
    q, k, v = block.query(x), block.key(x), block.value(x)
    for head in range(4):
        part = slice(4 * head, 4 * head + 4)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 2).softmax(-1)
        expected[..., part] = weights @ v[..., part]
    torch.testing.assert_close(block(x), block.out(expected), atol=1e-5, rtol=1e-5)


def test_normalisation_carries_level_and_scale():
    """A forecast of a x + b is a (forecast of x) + b, up to the epsilon inside the root."""
    model = build("smamba", **SMALL, **REST).eval()
    x = torch.randn(2, 3, 12) + 2
    torch.testing.assert_close(model(50 * x - 7), 50 * model(x) - 7, atol=1e-2, rtol=1e-4)


def test_gradients_flow_through_the_std_but_not_the_mean():
    model = build("smamba", **SMALL, **REST).eval()
    x = torch.randn(1, 3, 12, requires_grad=True)
    model(x).sum().backward()
    values = x.detach().clone().requires_grad_()
    mean = values.detach().mean(-1, keepdim=True)
    std = ((values - mean).square().mean(-1, keepdim=True) - (values - mean).mean(-1, keepdim=True) ** 2 + 1e-5).sqrt()
    inner = build("smamba", **SMALL, **{**REST, "use_norm": False}).eval()
    inner.load_state_dict(model.state_dict())
    (inner((values - mean) / std) * std + mean).sum().backward()
    torch.testing.assert_close(x.grad, values.grad, atol=1e-5, rtol=1e-4)


def test_a_constant_look_back_gives_finite_forecasts_and_gradients():
    model = build("smamba", **SMALL, **REST)
    x = torch.full((2, 3, 12), 5.0, requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


def test_any_number_of_variates_and_no_marks():
    model = build("smamba", **SMALL, **REST).eval()
    for variates in (1, 2, 40):
        assert model(torch.randn(2, variates, 12)).shape == (2, variates, 5)


def test_dropout_acts_in_training_only():
    model = build("smamba", **SMALL, **REST)
    x = torch.randn(2, 3, 12)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_dlinear_by_hand():
    model = DLinear(30, 4)
    x = torch.randn(2, 3, 30)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (12, 12)), mode="edge")
    trend = np.stack([padded[..., step : step + 25].mean(-1) for step in range(30)], -1)
    trend = torch.from_numpy(trend.astype(np.float32))
    torch.testing.assert_close(model(x), model.seasonal(x - trend) + model.trend(trend), atol=1e-5, rtol=1e-5)


def test_networks_are_named_classes():
    import seqssm_forecasting

    assert list(NETWORKS) == ["smamba", "itransformer", "dlinear"]
    for cls in NETWORKS.values():
        assert getattr(seqssm_forecasting, cls.__name__) is cls
    task = seqssm_forecasting.ForecastingTask(network="dlinear", lookback=12, horizon=5, window=7)
    task.configure_model()
    assert task.model.window == 7
    with pytest.raises(InputError, match="not an argument of the network dlinear"):
        seqssm_forecasting.ForecastingTask(network="dlinear", lookback=12, horizon=5, d_state=4)
    with pytest.raises(InputError, match="no argument d_modle; did you mean d_model"):
        seqssm_forecasting.ForecastingTask(lookback=12, horizon=5, d_modle=4)
    with pytest.raises(InputError, match="unknown network"):
        seqssm_forecasting.ForecastingTask(network="bogus")
    with pytest.raises(
        InputError, match=r"dlinear does not support --data\.future_columns; use smamba or itransformer"
    ):
        seqssm_forecasting.ForecastingTask(network="dlinear", lookback=12, horizon=5, future_columns="plan")


def test_baselines_have_one_name_each():
    from seqssm_forecasting import DOMAIN
    from seqssm_forecasting.baselines import NAIVE

    assert [one.name for one in DOMAIN.baselines] == [one.name for one in NAIVE]


@pytest.mark.parametrize(
    ("network", "given", "words"),
    [
        ("smamba", {"d_model": 0}, "--model.d_model 0"),
        ("smamba", {"layers": 0}, "--model.layers 0"),
        ("smamba", {"dropout": 1.0}, "--model.dropout 1.0"),
        ("itransformer", {"d_model": 12, "heads": 5}, "--model.heads 5 does not divide --model.d_model 12"),
        ("dlinear", {"window": 0}, "--model.window 0"),
    ],
)
def test_refused_sizes(network, given, words):
    with pytest.raises(InputError, match=words):
        build(network, lookback=12, horizon=5, **given)
