"""Quantisation of networks: the effect of each step, and robustness to an exact reparametrisation with outliers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from seqssm.compress.methods import METHODS, RECIPES, Recipe
from seqssm.compress.quantise import quantise, relative_error
from seqssm.compress.sources import Source
from seqssm.errors import InputError
from seqssm.nn import quantized
from seqssm.nn.backbone import Backbone
from seqssm.nn.language_model import LanguageModel
from seqssm.nn.projections import find_targets, scans
from seqssm.nn.quantized import QuantizedLinear
from seqssm.nn.rounded import RoundedValues

V, D = 11, 32
OPTIONS = {
    "mamba2": {"d_state": 8, "head_dim": 8, "n_groups": 2},
    "mamba": {"d_state": 8},
    "mamba3": {"d_state": 4, "head_dim": 8},
    "attention": {"n_heads": 2},
    "mlp": {"hidden": 48},
}
NAMES = {"M": "mamba2", "m": "mamba", "3": "mamba3", "*": "attention", "-": "mlp"}


class Tokens(Source):
    """Random tokens through a language model."""

    def __init__(self, network: nn.Module, seed: int = 0) -> None:
        self.network = network
        self.ids = torch.randint(0, V, (12, 40), generator=torch.Generator().manual_seed(seed))
        self.count, self.title = 12, "12 random sequences"

    @torch.no_grad()
    def outputs(self, few: bool = False):
        return self.network(self.ids[:2] if few else self.ids).double().flatten()


def model(pattern: str) -> nn.Module:
    torch.manual_seed(1)
    given = {name: OPTIONS[name] for symbol, name in NAMES.items() if symbol in pattern}
    network = LanguageModel(V, Backbone(D, pattern, **given)).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return network


def error(network: nn.Module, method: str, recipe: Recipe = RECIPES["quamba"]) -> float:
    """Error on sequences that were not used for the calibration."""
    network = copy.deepcopy(network)
    other = Tokens(copy.deepcopy(network), seed=7)
    wanted = other.outputs()
    other.network = quantise(Tokens(network), METHODS[method], recipe).network
    return relative_error(other.outputs(), wanted)


@pytest.mark.parametrize(
    "method", [name for name in METHODS if METHODS[name].bits > 1]
)  # 1 bit: tests/nn/test_binary.py
@pytest.mark.parametrize("pattern", ["m", "M", "3", "*-m"])
def test_every_layer_is_quantised(pattern, method):
    network = model(pattern)
    names = [target.name for target in find_targets(network)]
    floats = {name: network.get_submodule(name) for name in names}
    outputs = [mixer.out_proj for mixer in scans(network).values()]
    source = Tokens(network)
    wanted = source.outputs()
    result = quantise(source, METHODS[method])
    layout = quantized.layout_of(result.network)
    assert set(names) <= set(layout)
    assert all(isinstance(result.network.get_submodule(name), QuantizedLinear) for name in names)
    assert ("scan_x" in str(list(layout))) is (METHODS[method].static and any(one in pattern for one in "mM"))
    for name in names:
        entry, role = layout[name], name.rpartition(".")[2]
        assert (entry["width"], entry["out"]) == (floats[name].in_features, floats[name].out_features)
        assert entry["bits"] == (8 if role in ("x_proj", "dt_proj") else METHODS[method].bits)
        assert entry["static"] is (METHODS[method].static and role != "dt_proj")
        of_scan = role == "out_proj" and floats[name] in outputs
        assert entry["rotated"] is (METHODS[method].static and of_scan)
    assert result.error == pytest.approx(relative_error(source.outputs(), wanted))
    assert result.error < (0.02 if METHODS[method].bits == 8 else 0.2)


@pytest.mark.parametrize("pattern", ["m", "M", "*-m"])
def test_steps_are_those_of_the_whole_sequence(pattern):
    network = model(pattern)
    quantise(Tokens(network), METHODS["w8a8"])
    ids = torch.randint(0, V, (2, 9), generator=torch.Generator().manual_seed(3))
    whole = network(ids)
    state, rows = network.new_state(2), []
    assert all(tensor.dtype != torch.bfloat16 for one in state.values() for tensor in one.values())
    for column in ids.unbind(1):
        logits, state = network.step(column, state)
        rows.append(logits)
    found = torch.stack(rows, 1)
    assert (found - whole).abs().max() < 0.05 * whole.abs().max()  # kernels for few rows round to bfloat16


RARE = V - 1  # a token that occurs once per sequence


class RareTokens(Tokens):
    """Sequences in which one position holds the token `RARE`."""

    def __init__(self, network: nn.Module, seed: int = 0) -> None:
        super().__init__(network, seed)
        self.ids = self.ids % RARE
        places = torch.randint(0, 40, (12,), generator=torch.Generator().manual_seed(seed + 1))
        self.ids[torch.arange(12), places] = RARE


@torch.no_grad()
def with_outliers(network: nn.Module, factor: float) -> nn.Module:
    """The same function, with a channel of the scan's input that is huge at one position of a sequence.

    Channel 3 detects the rare token: factor * (<v, h> - threshold), which SiLU turns into 0 elsewhere. Nothing reads
    it: its columns of x_proj and out_proj are 0, and so are D and dt of the channel.
    """
    changed = copy.deepcopy(network)
    block = changed.backbone.layers[0]
    inputs = block.norm(changed.embedding.weight)
    direction = inputs[RARE] / inputs[RARE].norm()
    others = inputs[:RARE] @ direction
    mixer, channel = block.mixer, 3
    threshold = (inputs[RARE] @ direction + others.max()) / 2
    mixer.in_proj.weight[channel] = factor * direction
    mixer.conv1d.weight[channel] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    mixer.conv1d.bias[channel] = -factor * threshold
    mixer.x_proj.weight[:, channel] = 0
    mixer.out_proj.weight[:, channel] = 0
    mixer.D[channel] = 0
    mixer.dt_proj.weight[channel] = 0
    mixer.dt_proj.bias[channel] = -80
    return changed


def test_rare_outliers_break_the_naive_recipe_and_not_the_default_one():
    """Rounding x with one scale for the largest value loses all other channels; a percentile ignores it."""
    calm, stressed = (with_outliers(model("m"), factor) for factor in (1e-3, 1000.0))
    wanted = RareTokens(calm).outputs()
    torch.testing.assert_close(RareTokens(stressed).outputs(), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    lost = {}
    for name, network, recipe in (
        ("calm", calm, "naive"),
        ("naive", stressed, "naive"),
        ("default", stressed, "quamba"),
    ):
        made = quantise(RareTokens(copy.deepcopy(network)), METHODS["w8a8"], RECIPES[recipe])
        lost[name] = relative_error(RareTokens(made.network, seed=7).outputs(), RareTokens(calm, seed=7).outputs())
    assert lost["naive"] > 20 * lost["calm"]
    assert lost["naive"] - lost["default"] >= 0.9 * (lost["naive"] - lost["calm"])
    assert made.percentile == 0.999


def test_a_rotation_spreads_outliers_of_the_gated_output():
    network = model("m")
    mixer = network.backbone.layers[0].mixer
    mixer.D.data[5] = 60.0  # one channel of y is much larger than the others
    mixer.out_proj.weight.data[:, 5] /= 60.0
    rotated = error(network, "w8a8", Recipe(fold=False, percentile=False, cluster=False))
    plain = error(network, "w8a8", RECIPES["naive"])
    assert rotated < 0.2 * plain


def test_gptq_is_better_than_rounding():
    network = model("mM")
    assert error(network, "w4a16") < 0.8 * error(network, "w4a16", RECIPES["naive"])


def test_quantisation_is_deterministic():
    first, second = (quantise(Tokens(model("Mm")), METHODS["w4a8"]).network.state_dict() for _ in range(2))
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


def test_widths_without_a_hadamard_matrix_are_reported():
    torch.manual_seed(0)
    network = LanguageModel(V, Backbone(18, "m", mamba={"d_state": 4})).eval()
    result = quantise(Tokens(network), METHODS["w8a8"])
    assert "not rotated, because there is no Hadamard matrix of order 36" in "\n".join(result.notes)


def test_layers_outside_of_the_blocks_stay_in_float():
    network = model("*-m")
    quantise(Tokens(network), METHODS["w8a8"])
    assert not any("head" in name or "embedding" in name for name in quantized.layout_of(network))
    assert not any(isinstance(module, RoundedValues) for name, module in network.named_modules() if "layers.0" in name)


def test_a_network_without_scans_has_nothing_to_quantise():
    with pytest.raises(InputError, match="the model has no layers with a scan"):
        find_targets(nn.Sequential(nn.Linear(3, 4)))
