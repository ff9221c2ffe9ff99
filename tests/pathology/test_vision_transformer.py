"""Vision transformers from weight files, against those of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from seqssm_pathology import ENCODERS, encoders
from seqssm_pathology.vision_transformer import Sizes, VisionTransformer

from seqssm.errors import InputError

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'seqssm[dev]'")

WIDTH, DEPTH, PATCH, IMAGE = 192, 2, 16, 112


def oracle(registers: int, gated: bool, scale: float = 0.3):
    """DINOv2 of transformers with random weights."""
    torch.manual_seed(registers + gated)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 3, "patch_size": PATCH}
    sizes |= {"image_size": IMAGE, "use_swiglu_ffn": gated, "layerscale_value": scale}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        network = transformers.Dinov2WithRegistersModel(config)
    else:
        network = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    for name, weight in network.named_parameters():
        if "layer_scale" not in name:
            torch.nn.init.normal_(weight, std=0.08)
    return network.eval()


def named(network, registers: int) -> dict[str, torch.Tensor]:
    """The weights of `oracle` by timm's names."""
    state = network.state_dict()
    found = {"cls_token": state["embeddings.cls_token"], "pos_embed": state["embeddings.position_embeddings"]}
    for kind in ("weight", "bias"):
        found[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
        found[f"norm.{kind}"] = state[f"layernorm.{kind}"]
    if registers:
        found["reg_token"] = state["embeddings.register_tokens"]
    for block in range(DEPTH):  # by order, because transformers has renamed these weights
        own = [one for name, one in state.items() if name.startswith(f"encoder.layer.{block}.")]
        norm1, q, k, v, proj = (own[at : at + 2] for at in range(0, 10, 2))
        norm2, rest = own[11:13], own[13:-1]
        if len(rest) == 6:  # gate, value and output of the gated MLP
            rest = [torch.cat([rest[0], rest[2]]), torch.cat([rest[1], rest[3]]), *rest[4:]]
        parts = {"norm1": norm1, "attn.qkv": [torch.cat(one) for one in zip(q, k, v)], "attn.proj": proj}
        parts |= {"norm2": norm2, "mlp.fc1": rest[:2], "mlp.fc2": rest[2:]}
        for name, pair in parts.items():
            found |= {f"blocks.{block}.{name}.{kind}": one for kind, one in zip(("weight", "bias"), pair)}
        found |= {f"blocks.{block}.ls1.gamma": own[10], f"blocks.{block}.ls2.gamma": own[-1]}
    return found


@pytest.mark.parametrize(("registers", "gated"), [(0, False), (0, True), (4, True)])
def test_features_are_those_of_transformers(registers, gated, tmp_path):
    other = oracle(registers, gated)
    weights = named(other, registers)
    sizes = Sizes.of(weights)
    assert (sizes.depth, sizes.gated, sizes.registers, sizes.scaled) == (DEPTH, gated, registers, True)
    network = VisionTransformer(sizes, mean=True).eval()
    torch.save({"model": {f"backbone.{name}": one for name, one in weights.items()}}, tmp_path / "w.pth")
    encoders.load(network, tmp_path / "w.pth")
    x = torch.randn(2, 3, IMAGE, IMAGE)
    with torch.inference_mode():
        tokens = other(x).last_hidden_state
        expected = torch.cat([tokens[:, 0], tokens[:, 1 + registers :].mean(1)], -1)
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


def test_names_of_dinov2_and_positions_of_all_prefix_tokens():
    """Some files have a position for the class token only, for all tokens in front of the patches, or for none."""
    weights = named(oracle(4, True), 4)
    network = VisionTransformer(Sizes.of(weights)).eval()
    network.load_state_dict(weights)
    x = torch.randn(1, 3, IMAGE, IMAGE)
    own = weights["pos_embed"]
    with torch.inference_mode():
        expected = network(x)
        for positions in (torch.cat([own[:, :1], own.new_zeros(1, 4, WIDTH), own[:, 1:]], 1), own[:, 1:]):
            other = {**weights, "pos_embed": positions}
            if positions.shape[1] == own.shape[1] - 1:
                other["cls_token"] = weights["cls_token"] + own[:, :1]
            again = VisionTransformer(Sizes.of(other)).eval()
            again.load_state_dict(other)
            torch.testing.assert_close(again(x), expected)
    old = {name.replace("fc1", "w12").replace("fc2", "w3"): one for name, one in weights.items()}
    old["register_tokens"] = old.pop("reg_token")
    renamed = encoders.renamed({**old, "mask_token": torch.zeros(1, WIDTH)})
    assert set(renamed) == set(weights)


def test_another_grid_interpolates_the_positions():
    """At the trained size nothing changes; a constant table stays constant at any size."""
    weights = named(oracle(0, False), 0)
    weights["pos_embed"] = torch.full_like(weights["pos_embed"], 0.5)
    network = VisionTransformer(Sizes.of(weights)).eval()
    network.load_state_dict(weights)
    torch.testing.assert_close(network._positions(14, 9), torch.full((1, 1 + 14 * 9, WIDTH), 0.5))
    assert network(torch.randn(1, 3, 224, 144)).shape == (1, WIDTH)


def test_the_command_offers_every_encoder():
    assert ENCODERS == encoders.NAMES


def test_tiles_of_a_named_encoder_are_standardised_as_published(tmp_path, monkeypatch):
    weights = named(oracle(4, True), 4)
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"holds a vision transformer of width 192, 2 blocks, .* uni has width 1024"):
        encoders.make("uni", tmp_path / "w.pth")
    for name in ("vit", "virchow2", "hoptimus0", "gigapath"):
        public = encoders.TRANSFORMERS[name]
        monkeypatch.setitem(encoders.TRANSFORMERS, name, encoders.Public(None, *list(vars(public).values())[1:]))
        encoder = encoders.Network(name, tmp_path / "w.pth", "cpu")
        tile = np.random.default_rng(0).random((256, 256, 3), dtype=np.float32)
        found = encoder([tile])
        assert found.shape == (1, WIDTH * (2 if public.patches else 1))
        x = torch.from_numpy(tile).permute(2, 0, 1)[None]
        if public.resized == 256:
            x = x[..., 16:240, 16:240]
        else:
            x = torch.nn.functional.interpolate(x, (224, 224), mode="bilinear", antialias=True)
        x = (x - torch.tensor(public.mean)[:, None, None]) / torch.tensor(public.std)[:, None, None]
        with torch.inference_mode():
            np.testing.assert_allclose(found, encoder.network(x).numpy(), rtol=1e-4, atol=1e-5)


def test_weights_of_something_else(tmp_path):
    weights = named(oracle(0, False), 0)
    for change, message in (
        ({"norm.weight": None}, "has no norm.weight: not a vision transformer"),
        ({"patch_embed.proj.weight": torch.zeros(200, 3, 16, 16)}, "tokens of width 200; the number of heads is known"),
        ({"pos_embed": torch.zeros(1, 53, WIDTH)}, "has 53 positions, which are not a square"),
        ({"blocks.1.norm2.bias": None}, r"lacks 1 of \d+ weights of the network \(first: blocks.1.norm2.bias\)"),
        ({"blocks.1.mlp.fc1.weight": torch.zeros(3, WIDTH)}, r"blocks.1.mlp.fc1.weight has shape \(3, 192\)"),
    ):
        some = {name: one for name, one in {**weights, **change}.items() if one is not None}
        torch.save(some, tmp_path / "w.pth")
        with pytest.raises(InputError, match=message):
            encoders.make("vit", tmp_path / "w.pth")
