"""Layers with integer weights: storage, exactness of every route, the choice among them, states in checkpoints."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from seqssm.compress import rounding
from seqssm.errors import InputError
from seqssm.nn import integer, quantized
from seqssm.nn.integer import ROUTES, Weights, exact, pack_nibbles, quantise, unpack_nibbles
from seqssm.nn.quantized import QuantizedLinear
from seqssm.nn.rounded import RoundedValues, RoundingFormat


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


KINDS = {
    "w8a8": {"bits": 8, "act_scale": 0.03},
    "w4a8": {"bits": 4, "act_scale": 0.03},
    "w8a16": {"bits": 8},
    "w4a16": {"bits": 4},
    "rotated": {"bits": 8, "act_scale": 0.03, "rotated": True},
}


def layer(kind, out=48, width=128, seed=0, bias=True):
    weight = drawn(out, width, seed=seed)
    return weight, rounding.linear(weight, drawn(out, seed=seed + 1) if bias else None, **KINDS[kind])


@pytest.mark.parametrize("width", [1, 2, 7, 128])
def test_nibbles_are_unpacked(width):
    values = torch.randint(-8, 8, (5, width), generator=torch.Generator().manual_seed(width))
    packed = pack_nibbles(values)
    assert packed.shape == (5, (width + 1) // 2)
    assert torch.equal(unpack_nibbles(packed, width), values.to(torch.int8))


@pytest.mark.parametrize(("bits", "levels"), [(8, 127), (4, 7)])
@pytest.mark.parametrize("shape", [(3, 5), (16, 128), (9, 96), (4, 384)])
def test_rounding_errs_by_half_a_step(bits, levels, shape):
    weight = drawn(*shape, seed=shape[0])
    weight[0] = 0
    made = rounding.linear(weight, None, bits).weights()
    step = made.scale.repeat_interleave(made.group, dim=1)
    assert ((made.dequantised() - weight).abs() <= step * (0.5 + 1e-6)).all()
    assert made.values.int().abs().max() <= levels + 1
    assert torch.equal(made.dequantised()[0], torch.zeros(shape[1]))


def test_4_bit_weights_with_integer_factors_stay_within_8_bits():
    weight = drawn(16, 512)
    weight[:, 300] *= 40  # one group is much larger than the others
    made = rounding.linear(weight, None, 4, act_scale=0.1)
    values = made.weights().values
    assert values.dtype == torch.int8
    assert made.multiplier.min() >= 1
    assert made.multiplier.max() == rounding.LARGEST_FACTOR
    step = made.scale.double() * made.multiplier.repeat_interleave(128, dim=1)
    assert ((made.weights().dequantised().double() - weight).abs() <= step * (0.5 + 1e-6)).all()


def test_activations_err_by_half_a_step_within_the_range():
    x = torch.linspace(-3, 3, 1001)
    scale = 3 / 127
    assert (quantise(x, scale) * scale - x).abs().max() <= scale / 2 * (1 + 1e-5)
    assert quantise(torch.tensor([1e9, -1e9]), scale).tolist() == [127, -128]
    rounded = RoundedValues(RoundingFormat(1))
    rounded.scale.fill_(scale)
    torch.testing.assert_close(rounded(x), quantise(x, scale) * scale)
    assert torch.equal(rounded(rounded(x)), rounded(x))


def test_values_are_rounded_by_group_of_channels():
    rounded = RoundedValues(RoundingFormat(2))
    rounded.scale.copy_(torch.tensor([1.0, 0.25]))
    x = torch.tensor([[0.6, 1.4, 0.6, 1.4]])
    assert rounded(x).tolist() == [[1.0, 1.0, 0.5, 1.5]]
    assert rounded(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_every_sound_route_gives_the_exact_product(kind):
    weights = layer(kind, bias=False)[1].weights()
    tried = []
    for route in (one for one in ROUTES if one.serves(weights)):
        static = weights.act_scale is not None
        if route is not ROUTES[-1] and not integer.is_sound(route.name, weights.bits, static, "cpu"):
            continue  # saturates or is missing on this processor, so it is not used
        tried.append(route.name)
        packed = route.pack(weights)
        for rows in (1, 3, 15, 16, 70):
            x = drawn(rows, weights.width, seed=rows)
            found, wanted = route.apply(packed, weights, x).double(), exact(weights, x)
            assert (found - wanted).abs().max() <= route.tolerance * wanted.abs().max(), (route.name, rows)
    assert tried[-1] == "float32"
    assert len(tried) > 1  # at least one kernel for integer weights on any processor


def test_exact_is_the_definition():
    values = torch.tensor([[1, -2], [127, -128]], dtype=torch.int8)
    weights = Weights(values, 2, torch.tensor([[0.5], [0.25]]), act_scale=0.1)
    x = torch.tensor([[0.26, -100.0]])  # 3 steps, and clipped to -128
    wanted = [[(3 * 1 + 128 * 2) * 0.05, (3 * 127 + 128 * 128) * 0.025]]
    torch.testing.assert_close(exact(weights, x), torch.tensor(wanted, dtype=torch.float64))


def test_a_kernel_that_saturates_is_detected_and_not_used(monkeypatch):
    weights = layer("w8a8")[1].weights()
    right = ROUTES[-1]

    def saturating(packed, weights, x):
        """Saturate like 16-bit sums of two products of unsigned and signed bytes."""
        shifted = quantise(x, weights.act_scale) + 128
        pairs = shifted.unflatten(1, (-1, 2)).unsqueeze(1) * weights.values.float().unflatten(1, (-1, 2))
        sums = pairs.sum(-1).clamp(-32768, 32767).sum(-1) - 128 * weights.values.float().sum(1)
        return sums * (weights.scale.T * weights.act_scale)

    small = drawn(4, weights.width) * 0.1
    wrong = integer.Route("wrong", "saturates", lambda _: True, lambda _: None, saturating, 1e-5)
    assert integer.agrees(wrong, weights, None, small)  # not detectable with ordinary values
    monkeypatch.setattr(integer, "ROUTES", (wrong, right))
    assert not integer.is_sound("wrong", 8, True, "cpu")
    assert integer.choose(weights)[0] is right


def test_a_kernel_that_is_missing_is_not_used(monkeypatch):
    def missing(*_):
        raise RuntimeError("not implemented on this processor")

    broken = integer.Route("missing", "", lambda _: True, missing, missing, 1e-5)
    monkeypatch.setattr(integer, "ROUTES", (broken, ROUTES[-1]))
    assert integer.choose(layer("w8a16")[1].weights())[0] is ROUTES[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_the_linear_layer_up_to_rounding(kind):
    weight, made = layer(kind)
    x = drawn(2, 9, 128, seed=5)
    if kind == "rotated":  # the weights are those of the rotated input
        wanted = nn.functional.linear(quantized.rotate(x), weight, made.bias)
    else:
        wanted = nn.functional.linear(x, weight, made.bias)
    found = made(x)
    assert found.shape == wanted.shape
    error = (found - wanted).square().mean() / wanted.square().mean()
    assert error < (4e-4 if "4" not in kind else 2e-2)
    torch.testing.assert_close(made(x[0]), found[0], rtol=1e-2, atol=0.1)
    assert made(x.bfloat16()).dtype == torch.bfloat16
    assert made(x.double()).dtype == torch.float64
    torch.testing.assert_close(made(x[0, 0].double()).float(), found[0, 0], rtol=2e-2, atol=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_saved_and_loaded_to_the_bit(kind):
    _, made = layer(kind)
    x = drawn(3, 128)
    wanted = made(x)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    again = QuantizedLinear(made.format)
    again(x)  # a route is chosen for the wrong integers, and has to be chosen again
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(again(x), wanted)
    assert torch.equal(copy.deepcopy(made)(x), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(made))(x), wanted)
    assert made.half().scale.dtype == torch.bfloat16  # conversions of the network do not touch the integers
    assert torch.equal(made(x), wanted)


def test_autocast_does_not_change_the_product():
    _, made = layer("w8a8")
    x = drawn(20, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made(x)
    assert torch.equal(found, made(x))


def test_bytes_of_a_layer():
    def size(kind):
        kept = layer(kind, 256, 128, bias=False)[1].state_dict().values()
        return sum(value.numel() * value.element_size() for value in kept)

    whole = 4 * 256 * 128
    assert whole / size("w8a8") >= 3.9
    assert whole / size("w8a16") >= 3.9
    assert whole / size("w4a8") >= 7.4
    assert whole / size("w4a16") >= 7.4


# -- in a network ------------------------------------------------------------------------------------------------------


def network():
    return nn.Sequential(nn.Linear(8, 16), nn.Identity(), nn.Linear(16, 4))


def test_a_layout_is_installed():
    source = network()
    quantized.replace(source, "0", rounding.linear(source[0].weight, source[0].bias, 8))
    quantized.replace(source, "1", RoundedValues(RoundingFormat(4)))
    layout = quantized.layout_of(source)
    target = network()
    quantized.install(target, layout)
    target.load_state_dict(source.state_dict())
    x = drawn(5, 8)
    assert torch.equal(target(x), source(x))
    quantized.install(target, layout)  # the second time, nothing is replaced
    assert torch.equal(target(x), source(x))
    assert quantized.float_bytes(source.state_dict(), layout) == 4 * 8 * 16


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (3, "layout of integer layers is a int"),
        ({"7": {"kind": "linear", "width": 8, "out": 16}}, "7 is not a layer"),
        ({"0": {"kind": "linear", "width": 9, "out": 16}}, "0 does not have the sizes"),
        ({"0": {"kind": "rounded"}}, "does not round values at 0"),
        ({"0": {"kind": "other"}}, "0 has an unknown kind"),
        ({"0": 4}, "0 has an unknown kind"),
        ({"0": {"kind": "linear", "width": 8}}, "0 has impossible sizes"),
        ({"0": {"kind": "linear", "width": 8, "out": 16, "bits": 3}}, "0 has impossible sizes"),
        ({"0": {"kind": "linear", "width": 8, "out": -16}}, "0 has impossible sizes"),
        ({"0": {"kind": "linear", "width": 8, "out": 16, "code": 1}}, "0 has an unknown property code"),
    ],
)
def test_a_damaged_layout_is_refused(layout, message):
    with pytest.raises(InputError, match=message):
        quantized.install(network(), layout)


def test_memory_counts_packed_copies():
    made = layer("w4a16", bias=False)[1]
    before = quantized.memory(made)
    made(drawn(1, 128))
    assert quantized.memory(made) == before + made.packed_bytes()
