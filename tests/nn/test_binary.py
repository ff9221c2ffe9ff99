"""Layers with weights of one bit: signs, gradients, packing to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from seqssm.errors import InputError
from seqssm.nn import quantized
from seqssm.nn.backbone import Backbone
from seqssm.nn.binary import BinaryLinear, PackedBinaryLinear, pack, unpack
from seqssm.nn.language_model import LanguageModel
from seqssm.nn.projections import binarise, binary_layers, binary_share, pack_binary


def layer(width: int = 13, out: int = 7, bias: bool = True) -> BinaryLinear:
    torch.manual_seed(0)
    made = BinaryLinear(width, out, bias)
    with torch.no_grad():
        made.weight[0, :3] = torch.tensor([0.0, -0.0, -1e-30])
    return made


def effective(made: BinaryLinear) -> torch.Tensor:
    signs = torch.tensor([[1.0 if float(w) >= 0 else -1.0 for w in row] for row in made.weight])
    return signs * made.scale + made.shift


def test_the_product_and_its_gradients():
    made = layer().double()
    x = torch.randn(2, 5, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight = effective(made).double()
    torch.testing.assert_close(made(x), x @ weight.T + made.bias, rtol=1e-12, atol=1e-12)
    assert weight[0, 0] == made.scale[0] + made.shift[0]  # sign(0) = +1
    assert weight[0, 1] == made.scale[1] + made.shift[1]
    assert weight[0, 2] == -made.scale[2] + made.shift[2]
    seen = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    made(x).backward(seen)
    of_weight = seen.flatten(0, 1).T @ x.detach().flatten(0, 1)
    signs = (weight - made.shift) / made.scale
    torch.testing.assert_close(made.weight.grad, of_weight * made.scale)  # through the sign, unclipped
    torch.testing.assert_close(made.scale.grad, (of_weight * signs).sum(0))
    torch.testing.assert_close(made.shift.grad, of_weight.sum(0))
    torch.testing.assert_close(x.grad, seen @ weight.detach())


def test_it_approximates_the_layer_that_it_replaces():
    torch.manual_seed(3)
    linear = nn.Linear(16, 40)
    made = BinaryLinear.of(linear)
    assert made.weight is linear.weight
    torch.testing.assert_close(made.shift, linear.weight.mean(0))
    torch.testing.assert_close(made.scale, (linear.weight - linear.weight.mean(0)).abs().mean(0))
    other = BinaryLinear(16, 40)
    other.load_state_dict(linear.state_dict(), strict=False)  # a warm start from float weights
    torch.testing.assert_close(other.scale, made.scale)
    other.load_state_dict({**made.state_dict(), "scale": torch.full((16,), 2.0)})
    assert (other.scale == 2).all()


@pytest.mark.parametrize("width", [1, 7, 8, 9, 64])
def test_bits(width):
    signs = torch.where(torch.rand(5, width, generator=torch.Generator().manual_seed(width)) < 0.5, -1.0, 1.0)
    packed = pack(signs)
    assert packed.shape == (5, -(-width // 8))
    assert torch.equal(unpack(packed, width), signs)
    assert unpack(pack(torch.zeros(1, width)), width).eq(1).all()


@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_gives_the_same_bits(bias, tmp_path):
    made = layer(24, 40, bias)
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(4))
    packed = PackedBinaryLinear.of(made)
    assert torch.equal(packed(x), made(x))
    torch.save(packed.state_dict(), tmp_path / "w.pt")
    again = PackedBinaryLinear(packed.format)
    again.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    assert torch.equal(again(x), made(x))
    assert torch.equal(copy.deepcopy(again)(x), made(x))


def model(pattern: str = "M-m*") -> nn.Module:
    torch.manual_seed(5)
    options = {"mamba2": {"d_state": 8, "head_dim": 16}, "mamba": {"d_state": 4}, "attention": {"n_heads": 2}}
    own = {name: options[name] for symbol, name in zip("Mm*", options) if symbol in pattern}
    return LanguageModel(11, Backbone(32, pattern, **own)).eval()


@torch.no_grad()
def test_a_network():
    network = model()
    binarise(network)
    names = [name.removeprefix("backbone.layers.") for name in binary_layers(network)]
    assert names == [
        "0.mixer.in_proj", "0.mixer.out_proj", "1.mixer.fc1", "1.mixer.fc2", "2.mixer.in_proj", "2.mixer.out_proj",
        "3.mixer.in_proj", "3.mixer.out_proj",
    ]  # fmt: skip
    ids = torch.randint(0, 11, (2, 20), generator=torch.Generator().manual_seed(6))
    wanted, shares = network(ids), binary_share(network)
    floats = sum(4 * network.get_submodule(name).weight.numel() for name in binary_layers(network))
    assert shares[0] == floats // 4
    assert shares[1] == sum(one.numel() for one in network.parameters())
    pack_binary(network)
    assert torch.equal(network(ids), wanted)
    assert binary_share(network) == shares
    layout = quantized.layout_of(network)
    fresh = model()
    binarise(fresh)
    quantized.install(fresh, layout)
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(fresh(ids), wanted)
    layout["backbone.layers.0.mixer.in_proj"]["width"] = 31
    with pytest.raises(InputError, match="does not have the sizes of the network"):
        quantized.install(model(), layout)


def test_one_bit_per_weight():
    """The projections of Mamba-2 with d 128, as in examples/char_lm.py."""
    with torch.device("meta"):
        layers = [BinaryLinear(128, 2 * 256 + 2 * 64 + 4, bias=False), BinaryLinear(256, 128, bias=False)]
        packed = [PackedBinaryLinear.of(one) for one in layers]
    size = sum(value.numel() * value.element_size() for one in packed for value in one.state_dict().values())
    assert sum(4 * one.weight.numel() for one in layers) > 20 * size


def test_a_network_without_projections_is_refused():
    with pytest.raises(InputError, match=r"--model\.binary true: the network has no layers with a scan"):
        binarise(nn.Linear(3, 3))
