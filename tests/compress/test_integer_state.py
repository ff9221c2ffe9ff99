"""States in 8 bits between calls: rounding, scales, every way to carry a state, and files."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from seqssm.compress.methods import METHODS, RECIPES
from seqssm.compress.quantise import quantise, relative_error
from seqssm.compress.states import PIECES, in_pieces, require_states, state_layer
from seqssm.errors import InputError
from seqssm.nn import chunks, quantized
from seqssm.nn.backbone import Backbone
from seqssm.nn.generation import generate
from seqssm.nn.language_model import LanguageModel
from seqssm.nn.mamba import Mamba
from seqssm.nn.projections import bytes_of_states, carried_scans
from seqssm.nn.rounded import IntegerState, StateFormat

from .test_quantise import NAMES, OPTIONS, Tokens, V

STRONG = {"dt_min": 0.05, "dt_max": 0.5}  # outputs depend on the states
PATTERNS = ("mm", "MM", "m*M-", "c")
NAME = "backbone.layers.0.mixer.scan_state"


def model(pattern: str) -> nn.Module:
    """A model whose outputs depend on the states of its scans; ``c``: two forward routes of channel groups."""
    torch.manual_seed(1)
    given = {name: dict(OPTIONS[name]) for symbol, name in NAMES.items() if symbol in pattern.replace("c", "m")}
    for name in ("mamba", "mamba2"):
        if name in given:
            given[name] |= STRONG
    if "c" in pattern:
        given["mamba"] |= {"ordering": ["forward", "forward"], "merge": "concat"}
    network = LanguageModel(V, Backbone(32, pattern.replace("c", "m"), rescale=False, **given), tie=False).eval()
    with torch.no_grad():
        network.embedding.weight.normal_()
        for mixer in carried_scans(network).values():
            for branch in mixer.branches:
                branch.D.zero_()
    return network


@pytest.fixture(scope="module", params=PATTERNS)
def pair(request):
    """A model in W8A8 with float states, and the same with states in 8 bits."""
    integer = model(request.param)
    quantise(Tokens(integer), METHODS["w8a8"], integer_state=True)
    floats = copy.deepcopy(integer)
    for mixer in carried_scans(floats).values():
        mixer.scan_state = nn.Identity()
    return floats, integer


@pytest.fixture(autouse=True)
def _quick(one_thread):
    with torch.no_grad():
        yield


def ids(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def states(state) -> list[torch.Tensor]:
    return [one["scan"] for one in state.values() if "scan" in one]


# -- the layer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 6, 4), (1, 3, 2, 4)], ids=["mamba", "mamba2"])
@pytest.mark.parametrize("grouped", [True, False])
def test_a_round_trip_is_at_most_half_a_step(sizes, grouped):
    values = torch.randn(5, *sizes, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 4)
    layer = state_layer(values.abs().amax((0, 1)).reshape(-1, 4), grouped)
    found = layer.encode(values)
    assert found.dtype == torch.int8
    assert found.shape == values.shape
    step = layer.scale[layer.group.long()].view(sizes[1:])
    assert bool(((layer.decode(found) - values).abs() <= step * 0.50001).all())
    assert int(found.abs().max()) == 127  # the whole range is used
    clipped = layer.encode(torch.stack([1e3 * values[0], -1e3 * values[0]]))
    assert bool(((clipped[0] == 127) | (clipped[0] == -128) | (clipped[0] == clipped[1])).all())
    assert torch.equal(layer.decode(found, torch.float64), found * step.double())
    assert layer.decode(found, torch.bfloat16).dtype == torch.float32


def test_channels_with_large_states_do_not_take_the_resolution_from_others():
    values = torch.randn(40, 1, 16, 4, generator=torch.Generator().manual_seed(0))
    values[:, :, 3] *= 1000
    errors = {}
    for grouped in (True, False):
        layer = state_layer(values.abs().amax((0, 1)), grouped)
        error = (layer.decode(layer.encode(values)) - values).square().mean((0, 1, 3))
        errors[grouped] = torch.cat([error[:3], error[4:]]).max()
    assert errors[True] < 1e-3
    assert errors[False] > 0.1
    assert state_layer(values.abs().amax((0, 1)), True).format.groups <= 4


def test_channels_without_a_state():
    layer = state_layer(torch.zeros(4, 2), True)
    assert torch.equal(layer.decode(layer.encode(torch.zeros(1, 1, 4, 2))), torch.zeros(1, 1, 4, 2))
    mixed = state_layer(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), True)
    assert bool((mixed.scale > 0).all())


def test_states_of_other_sizes_are_refused():
    layer = IntegerState(StateFormat(6, 4))
    with pytest.raises(ValueError, match="6 channels and 4 states"):
        layer.encode(torch.zeros(1, 1, 6, 5))
    with pytest.raises(ValueError, match="6 channels and 4 states"):
        layer.decode(torch.zeros(1, 1, 4, 6, dtype=torch.int8))


# -- carried states ----------------------------------------------------------------------------------------------------


def test_every_way_returns_8_bits(pair):
    _, network = pair
    _, state = network(ids(2, 9), return_state=True)
    _, after = network.step(ids(2), state)
    for one in (network.new_state(2), state, after):
        assert {scan.dtype for scan in states(one)} == {torch.int8}
    assert all(scan.abs().max() > 5 for scan in states(state))
    now, floats = bytes_of_states(network)
    assert (now * 4, now) == (floats, sum(scan.numel() for scan in states(network.new_state(1))))


@pytest.mark.parametrize("size", [1, 7, 40])
def test_pieces_and_steps_stay_close_to_the_whole(pair, size):
    """One rounding of the state is at most 1/254 of its range; errors add up with the number of cuts."""
    floats, network = pair
    tokens = ids(3, 24 if size == 1 else 60)
    whole = network(tokens)
    assert torch.equal(whole, floats(tokens))  # nothing is rounded within a call
    found = chunks.in_pieces(network, tokens, size)
    with_floats = chunks.in_pieces(floats, tokens, size)
    unrounded, error = relative_error(with_floats, whole), relative_error(found, whole)
    assert torch.equal(found[:, :size], with_floats[:, :size])
    assert unrounded < error < unrounded + {1: 2e-2, 7: 2e-3, 40: 2e-4}[size]
    if size == 1:
        state, rows = network.new_state(3), []
        for column in tokens.unbind(1):
            logits, state = network.step(column, state)
            rows.append(logits)
        assert relative_error(torch.stack(rows, 1), found) < 2e-2


def test_a_state_in_float_is_accepted(pair):
    floats, network = pair
    tokens = ids(2, 30)
    _, before = floats(tokens[:, :20], return_state=True)
    wanted, _ = floats(tokens[:, 20:], before, return_state=True)
    found, after = network(tokens[:, 20:], before, return_state=True)
    assert torch.equal(found, wanted)
    assert {scan.dtype for scan in states(after)} == {torch.int8}
    with pytest.raises(ValueError, match="this layer keeps its state in float"):
        floats(tokens[:, 20:], after)
    with pytest.raises(ValueError, match="this layer keeps its state in float"):
        floats.step(tokens[:, 20], after)


def test_padding_does_not_reach_the_state(pair):
    _, network = pair
    tokens = ids(1, 40)
    mask = torch.tensor([[False] * 5 + [True] * 40])
    _, wanted = network(tokens, return_state=True)
    _, found = network(torch.cat([ids(1, 5, seed=8), tokens], 1), mask=mask, return_state=True)
    for a, b in zip(states(found), states(wanted), strict=True):
        assert (a.short() - b.short()).abs().max() <= 1


def test_generation_and_beams_carry_it(pair):
    _, network = pair
    prompts = [[1, 2, 3, 4], [5], [6, 7, 8, 9, 2, 2, 1]]
    for options in ({}, {"beams": 3}):
        together = generate(network, prompts, max_new_tokens=6, **options)
        for prompt, one in zip(prompts, together, strict=True):
            logits, state = network.prefill(torch.tensor([prompt]))
            total = []
            for token in one.ids:
                total.append(logits.log_softmax(-1)[0, token])
                logits, state = network.step(token[None], state)
            torch.testing.assert_close(one.log_probs, torch.stack(total), rtol=0, atol=0.05)
    state = network(ids(3, 9), return_state=True)[1]
    for a, b in zip(states(state.reorder(torch.tensor([2, 0]))), states(state), strict=True):
        assert torch.equal(a, b[[2, 0]])


# -- calibration -------------------------------------------------------------------------------------------------------


def test_reading_in_pieces_does_not_change_float_outputs():
    network = model("m*M-")
    tokens, mask = ids(2, 30), torch.arange(30) < torch.tensor([[30], [21]])
    wanted, state = network(tokens, mask=mask, return_state=True)
    seen: dict[str, list[torch.Tensor]] = {}
    with in_pieces(carried_scans(network), lambda name, state: seen.setdefault(name, []).append(state)):
        found, after = network(tokens, mask=mask, return_state=True)
    torch.testing.assert_close(found[mask], wanted[mask], rtol=1e-4, atol=1e-4)
    assert {len(one) for one in seen.values()} == {PIECES}
    for name, scan in zip(carried_scans(network), states(state), strict=True):
        torch.testing.assert_close(seen[name][-1], scan, rtol=1e-4, atol=1e-4)
    assert all("forward" not in vars(mixer) for mixer in carried_scans(network).values())
    torch.testing.assert_close(states(after), states(state), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["w4a8", "w4a16"])
def test_it_is_deterministic_and_part_of_every_method(method):
    made = []
    for _ in range(2):
        network = model("mM")
        result = quantise(Tokens(network), METHODS[method], integer_state=True)
        made.append(network.state_dict())
    assert [name for name, value in made[0].items() if not torch.equal(value, made[1][name])] == []
    assert sum(isinstance(one, IntegerState) for one in network.modules()) == 2
    assert any(note.startswith(f"state rounded {PIECES} times per sequence: ") for note in result.notes)
    plain = model("mM")
    quantise(Tokens(plain), METHODS[method])
    assert not any(name.endswith("scan_state") for name in quantized.layout_of(plain))
    others = {name: value for name, value in made[0].items() if ".scan_state." not in name}
    assert all(torch.equal(value, others[name]) for name, value in plain.state_dict().items())  # nothing else differs


def test_what_stays_in_float_is_listed():
    network = model("m*3-")
    notes = quantise(Tokens(network), METHODS["w8a8"], integer_state=True).notes
    assert notes[-1] == (
        "in float between calls: windows of convolutions, states of Mamba-3 (1 layers), caches of attention (1 layers)"
    )


def test_all_channels_share_the_scales_of_the_naive_recipe():
    network = model("m")
    quantise(Tokens(network), METHODS["w8a8"], RECIPES["naive"], integer_state=True)
    assert [one.format.groups for one in network.modules() if isinstance(one, IntegerState)] == [1]


def test_a_network_that_carries_no_such_state():
    network = model("3*-")
    with pytest.raises(InputError, match="no forward layers of Mamba or Mamba-2: --state int8 has nothing to do"):
        quantise(Tokens(network), METHODS["w8a8"], integer_state=True)
    assert quantized.layout_of(network) == {}
    for other in (nn.ModuleList([Mamba(8)]), LanguageModel(V, Backbone(8, "m", mamba={"ordering": "bidirectional"}))):
        with pytest.raises(InputError, match="carries no state between calls: --state int8 has nothing to do"):
            require_states(other)


# -- files -------------------------------------------------------------------------------------------------------------


def test_it_is_saved_and_loaded_to_the_bit():
    network = model("mM")
    quantise(Tokens(network), METHODS["w8a8"], integer_state=True)
    file = io.BytesIO()
    torch.save({"layout": quantized.layout_of(network), "weights": network.state_dict()}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    loaded = model("mM")
    quantized.install(loaded, content["layout"])
    loaded.load_state_dict(content["weights"])
    tokens = ids(2, 24)
    assert torch.equal(chunks.in_pieces(loaded, tokens, 5), chunks.in_pieces(network, tokens, 5))
    moved = copy.deepcopy(network).to(torch.bfloat16).float()
    assert torch.equal(
        moved.backbone.layers[0].mixer.scan_state.scale, network.backbone.layers[0].mixer.scan_state.scale
    )


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({NAME: {"kind": "state", "channels": 10**9, "states": 10**9}}, "does not have the sizes of the network"),
        ({NAME: {"kind": "state", "channels": 64, "states": 9}}, "does not have the sizes of the network"),
        ({NAME: {"kind": "state", "channels": 64, "states": 8, "groups": 65}}, "impossible sizes"),
        ({NAME: {"kind": "state", "channels": 64, "states": 8, "groups": True}}, "impossible sizes"),
        ({NAME: {"kind": "state", "channels": 64}}, "impossible sizes"),
        ({NAME: {"kind": "state", "channels": 64, "states": 8, "code": 1}}, "unknown property code"),
        ({NAME.replace("_state", "_x"): {"kind": "state", "channels": 64, "states": 8}}, "does not have the sizes"),
        ({"lm_head": {"kind": "state", "channels": 64, "states": 8}}, "does not have the sizes"),
    ],
)
def test_a_damaged_layout_is_refused(layout, message):
    network = model("m")
    with pytest.raises(InputError, match=message):
        quantized.install(network, layout)


@pytest.mark.parametrize(("part", "value"), [("group", 200), ("scale", 0.0), ("scale", torch.nan), ("scale", -1.0)])
def test_damaged_scales_are_refused(part, value):
    network = model("m")
    quantise(Tokens(network), METHODS["w8a8"], integer_state=True)
    weights = network.state_dict()
    weights[f"{NAME}.{part}"][1] = value
    with pytest.raises(RuntimeError, match=f"the scales of the state {NAME} are corrupt"):
        network.load_state_dict(weights)
