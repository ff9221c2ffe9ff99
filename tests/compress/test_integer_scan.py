"""Scans of 8-bit integers in compressed layers: they have the bits of the float simulation, and are checked first."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from seqssm.compress.methods import METHODS, RECIPES
from seqssm.compress.quantise import quantise
from seqssm.nn import integer_scan, quantized
from seqssm.nn.backbone import Backbone
from seqssm.nn.integer_scan import choose, routes_of_scans
from seqssm.nn.language_model import LanguageModel
from seqssm.nn.mamba import Mamba
from seqssm.nn.mamba2 import Mamba2

from .test_quantise import OPTIONS, Tokens, V

ROUTES = {"forward": "forward", "both": "bidirectional", "concat": ["forward", "forward"]}


def compressed(symbol: str, method: str = "w8a8", ordering: str = "forward", recipe: str = "quamba", **more):
    torch.manual_seed(1)
    name = {"m": "mamba", "M": "mamba2"}[symbol]
    more |= {"ordering": ROUTES[ordering]} | ({"merge": "concat"} if ordering == "concat" else {})
    network = LanguageModel(V, Backbone(32, 2 * symbol, **{name: OPTIONS[name] | more})).eval()
    quantise(Tokens(network), METHODS[method], RECIPES[recipe])
    return network


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("method", ["w8a8", "w4a8"])
@pytest.mark.parametrize(
    ("symbol", "more"),
    [
        ("m", {}),
        ("M", {}),
        ("m", {"ordering": "both"}),
        ("M", {"ordering": "both"}),
        ("m", {"ordering": "concat"}),
        ("M", {"ordering": "concat"}),
        ("m", {"recipe": "naive"}),
        ("M", {"recipe": "naive"}),
        ("M", {"dt_limit": (1e-3, 0.2)}),
    ],
)
def test_outputs_have_the_bits_of_the_float_simulation(symbol, more, method):
    network = compressed(symbol, method, **more)
    tokens = ids(2, 40)
    with torch.enable_grad():
        wanted = network(tokens).detach()
    with torch.no_grad():
        found = network(tokens)
    assert routes_of_scans(network) == {"int8-scan": 2}
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("symbol", ["m", "M"])
def test_steps_have_the_bits_of_the_float_simulation(symbol):
    network = compressed(symbol)
    results = []
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            state, rows = network.new_state(2), []
            for column in ids(2, 5).unbind(1):
                logits, state = network.step(column, state)
                rows.append(logits.detach())
        results.append(torch.stack(rows))
    assert torch.equal(*results)


@pytest.mark.parametrize(("symbol", "cls"), [("m", Mamba), ("M", Mamba2)])
def test_the_scan_reads_integers(symbol, cls, monkeypatch):
    network = compressed(symbol)
    routes_of_scans(network)  # the check has been made
    module = __import__(cls.__module__, fromlist=["x"])
    name = "selective_scan_int8" if cls is Mamba else "ssd_scan_int8"
    seen, original = [], getattr(module, name)

    def watched(**arguments):
        seen.append({k: v.dtype for k, v in arguments.items() if isinstance(v, torch.Tensor)})
        return original(**arguments)

    monkeypatch.setattr(module, name, watched)
    with torch.no_grad():
        network(ids(1, 20))
    assert len(seen) == 2
    assert all(one[part] == torch.int8 for one in seen for part in ("x", "B", "C"))


@pytest.mark.parametrize(("symbol", "names"), [
    ("m", ("selective_scan_int8", "selective_scan_int8_step")), ("M", ("ssd_scan_int8", "ssd_int8_step")),
])  # fmt: skip
@pytest.mark.parametrize("which", [0, 1])
def test_kernels_that_are_wrong_are_not_used(symbol, names, which, monkeypatch):
    network = compressed(symbol)
    with torch.enable_grad():
        wanted = network(ids(1, 20)).detach()
    original = getattr(integer_scan, names[which])

    def wrong(**arguments):
        out, state = original(**arguments)
        return out * 1.001, state

    monkeypatch.setattr(integer_scan, names[which], wrong)
    quantized_again = copy.deepcopy(network)
    assert routes_of_scans(quantized_again) == {"float-scan": 2}
    with torch.no_grad():
        assert torch.equal(quantized_again(ids(1, 20)), wanted)


def test_other_scales_and_copies_are_checked_again():
    network = compressed("m")
    mixer = network.backbone.layers[0].mixer
    before = choose(mixer)
    assert choose(mixer) is before
    mixer.scan_x.scale.mul_(2)
    mixer.scan_x.repack()
    torch.testing.assert_close(choose(mixer).of_one["x_scale"], 2 * before.of_one["x_scale"])
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    network.load_state_dict(torch.load(buffer, weights_only=True))
    assert mixer.scan_x.chosen is None
    assert copy.deepcopy(mixer).scan_x.chosen is None


def test_a_projection_in_float_keeps_the_float_scan():
    network = compressed("m")
    mixer = network.backbone.layers[0].mixer
    linear = torch.nn.Linear(mixer.x_proj.in_features, mixer.x_proj.out_features, bias=False)
    quantized.replace(network, "backbone.layers.0.mixer.x_proj", linear)
    mixer.scan_x.repack()
    assert routes_of_scans(network) == {"float-scan": 1, "int8-scan": 1}
    with torch.no_grad():
        assert torch.isfinite(network(ids(1, 20))).all()
