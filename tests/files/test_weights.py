"""Public weights: both namings, shards, and equal logits here and in transformers, in both directions."""

from __future__ import annotations

import json
import math

import pytest
import torch

from seqssm.errors import InputError
from seqssm.files.weights import load, save
from seqssm.nn.chunks import in_pieces

from .public_models import OPTIONS, STATE_SPACES, close, hf_model, ids, own_model, public, write


@pytest.fixture(autouse=True)
def _no_gradients(one_thread):
    with torch.no_grad():
        yield


# Beside transformers


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_of_transformers_whole_in_pieces_and_step_by_step(name, tmp_path):
    theirs = hf_model(name)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert not ours.training
    tokens = ids(2, 13)
    expected = theirs(tokens).logits
    close(ours(tokens), expected)
    close(in_pieces(ours, tokens, 4), expected)
    state = ours.new_state(2)
    for place in range(13):
        logits, state = ours.step(tokens[:, place], state)
        close(logits, expected[:, place])


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_padding_on_either_side(name, tmp_path):
    """Left padding agrees with transformers. Right padding agrees with no padding: their state decays over it."""
    theirs = hf_model(name)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    tokens, mask = ids(2, 9), torch.ones(2, 9, dtype=torch.bool)
    mask[0, :4] = False
    close(ours(tokens, mask=mask)[mask], theirs(tokens, attention_mask=mask.long()).logits[mask])
    short = tokens[:1, 4:]
    right = torch.cat([short, ids(1, 4)], 1)
    real = torch.tensor([[True] * 5 + [False] * 4])
    logits, state = ours.prefill(right, mask=real)
    close(logits, theirs(short).logits[:, -1])
    following = ids(1, seed=8)
    expected = theirs(torch.cat([short, following.unsqueeze(0)], 1)).logits[:, -1]
    close(ours.step(following, state)[0], expected)


@pytest.mark.parametrize("pattern", ["mm", "MMM"])
@pytest.mark.parametrize("tie", [True, False])
def test_transformers_opens_saved_models(pattern, tie, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers, which opens the folder")
    kind = "mamba" if pattern[0] == "m" else "mamba2"
    options = {kind: {"bias": tie, "conv_bias": not tie}, "norm_eps": 1e-3}
    if kind == "mamba2":
        options[kind] |= {"norm_eps": 1e-3, "dt_limit": (0.0, math.inf) if tie else (0.01, 0.5)}
    ours = own_model(pattern, tie, **options)
    save(ours, tmp_path / "new" / "folder")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "new" / "folder", output_loading_info=True
    )
    assert not any(report.values())
    assert theirs.config.eos_token_id is None
    tokens = ids(2, 11)
    close(theirs(tokens, use_cache=False).logits, ours(tokens), 1e-5)
    close(load(tmp_path / "new" / "folder")(tokens), ours(tokens), 1e-7)


def test_half_precision_keeps_what_must_be_exact(tmp_path):
    theirs = hf_model("mamba2").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    mixer = ours.backbone.layers[0].mixer
    assert ours.embedding.weight.dtype == mixer.in_proj.weight.dtype == torch.bfloat16
    assert {p.dtype for p in (mixer.A_log, mixer.D, mixer.dt_bias)} == {torch.float32}
    wide = load(tmp_path, dtype=torch.float64)
    assert {p.dtype for p in wide.parameters()} == {torch.float64}
    tokens = ids(1, 12)
    close(wide(tokens).float(), theirs.float()(tokens).logits)
    save(ours, tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "bfloat16"
    assert torch.equal(load(tmp_path / "again")(tokens), ours(tokens))


def test_shards_of_transformers(tmp_path):
    theirs = hf_model("mamba2")
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    close(load(tmp_path)(ids(1, 9)), theirs(ids(1, 9)).logits)
    close(load(tmp_path / "model.safetensors.index.json")(ids(1, 9)), theirs(ids(1, 9)).logits)


# Both namings, in all files


@pytest.mark.parametrize("pattern", ["mm", "MM"])
def test_the_naming_of_state_spaces(pattern, tmp_path):
    model = own_model(pattern)
    expected = model(ids(2, 7))
    config = STATE_SPACES[pattern]
    write(tmp_path / "bin", public(model, head=True), config)
    write(tmp_path / "safe", public(model), config, "model.safetensors")
    write(tmp_path / "mixed", public(model, "backbone.embeddings.weight"), config)
    torch.save(public(model), tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in ("bin", "bin/pytorch_model.bin", "safe", "mixed", "legacy.bin"):
        assert torch.equal(load(tmp_path / path)(ids(2, 7)), expected)


def test_loaded_weights_do_not_depend_on_the_file(tmp_path):
    model = own_model()
    for file in ("pytorch_model.bin", "model.safetensors"):
        folder = write(tmp_path / file[:5], public(model), STATE_SPACES["MM"], file)
        loaded = load(folder)
        (folder / file).write_bytes(b"\0" * (folder / file).stat().st_size)
        assert torch.equal(loaded(ids(1, 5)), model(ids(1, 5)))
        loaded(ids(1, 5))


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_shards(suffix, tmp_path):
    model = own_model()
    tensors = public(model)
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[:5], names[5:])):
        file = f"shard-{number}.{suffix}"
        write(tmp_path, {name: tensors[name] for name in part}, STATE_SPACES["MM"], file)
        index |= dict.fromkeys(part, file)
    stem = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}[suffix]
    path = tmp_path / f"{stem}.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert torch.equal(load(tmp_path)(ids(2, 7)), model(ids(2, 7)))

    def wrong(message, **changes):
        path.write_text(json.dumps({"weight_map": index | changes}))
        with pytest.raises(InputError, match=message):
            load(tmp_path)

    inside = f"shard-0.{suffix}"
    for outside in ("../" + inside, str(tmp_path / inside), "..\\" + inside, "C:" + inside, "..", "", "sub/x.bin"):
        wrong("is not in the folder of the index", **{names[0]: outside})
    wrong("shard-9.bin, which is missing", **{names[0]: "shard-9.bin"})
    wrong("is not a file of tensors", **{names[0]: path.name})
    wrong(rf"tensor {names[0]} is in shard-0.*, but the index assigns it to shard-1", **{names[0]: f"shard-1.{suffix}"})
    wrong("tensor more is not in shard-0", more=inside)
    del index[names[1]]
    wrong(rf"tensor {names[1]} is in shard-0.*, but it is not in the index")
    for content in ('{"weight_map": []}', "{}", "[]", "{"):
        path.write_text(content)
        with pytest.raises(InputError, match=r"index.json: .*is not"):
            load(tmp_path)


def test_hybrids_of_state_spaces(tmp_path):
    """A layer of the files is a mixer and, with d_intermediate, an MLP, which is a separate layer here."""
    model = own_model("M-*-", mamba2={"norm_groups": None})
    names = {}
    for name, tensor in public(model).items():
        parts = name.split(".")
        if name.startswith("backbone.layers."):
            number = int(parts[2])
            parts[2] = str(number // 2)
            if number % 2:
                parts[3] = {"mixer": "mlp", "norm": "norm2"}[parts[3]]
        names[".".join(parts)] = tensor
    attention = {"num_heads": 2, "causal": True, "qkv_proj_bias": False, "out_proj_bias": False, "rotary_emb_dim": 0}
    config = STATE_SPACES["MM"] | {"d_intermediate": 100, "attn_layer_idx": [1], "attn_cfg": attention}
    write(tmp_path, names, config)
    assert load(tmp_path).backbone.pattern == "M-*-"
    assert torch.equal(load(tmp_path)(ids(2, 7)), model(ids(2, 7)))
    for key, value in {"rotary_emb_dim": 64, "d_conv": 4, "causal": False, "softmax_scale": 2.0, "mlp_dim": 8}.items():
        write(tmp_path, names, config | {"attn_cfg": attention | {key: value}})
        with pytest.raises(InputError, match=rf"config.json: attn_cfg.{key}: {value} is not supported"):
            load(tmp_path)
    for key, message in {"window": "is not supported", "out_proj_bias": "only one of the two"}.items():
        write(tmp_path, names, config | {"attn_cfg": attention | {key: True}})
        with pytest.raises(InputError, match=rf"attn_cfg.{key}: .*{message}"):
            load(tmp_path)


# Heads


def test_tied_and_untied_heads(tmp_path):
    config = dict(STATE_SPACES["MM"])
    tied, untied = own_model(), own_model(tie=False)
    write(tmp_path, public(untied), config)
    with pytest.raises(InputError, match=r"config.json: ties lm_head.weight to the embedding, but the stored two"):
        load(tmp_path)
    write(tmp_path, public(tied), config | {"tie_embeddings": False})
    with pytest.raises(InputError, match=r"tensor lm_head.weight is missing"):
        load(tmp_path)
    write(tmp_path, public(untied), config | {"tie_embeddings": False})
    assert torch.equal(load(tmp_path)(ids(1, 5)), untied(ids(1, 5)))
    del config["tie_embeddings"]  # as in early configs: a stored head that differs is untied
    write(tmp_path, public(untied), config)
    assert torch.equal(load(tmp_path)(ids(1, 5)), untied(ids(1, 5)))
    for head in (True, False):
        write(tmp_path, public(tied, head=head), config)
        assert load(tmp_path).lm_head is None
        assert torch.equal(load(tmp_path)(ids(1, 5)), tied(ids(1, 5)))
