"""Rejected public weights: damaged files, mismatched configs and tensors, models without a public format."""

from __future__ import annotations

import json
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from seqssm.errors import InputError
from seqssm.files.weight_config import architecture_of
from seqssm.files.weights import load, save

from .public_models import STATE_SPACES, ids, own_model, public, write


@pytest.fixture(autouse=True)
def _no_gradients(one_thread):
    with torch.no_grad():
        yield


@pytest.fixture
def folder(tmp_path):
    save(own_model(), tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **changes):
    """Change the config; None removes a key."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def edit_tensors(folder, function):
    tensors = load_file(folder / "model.safetensors")
    function(tensors)
    save_file(tensors, folder / "model.safetensors")


def refused(path, *parts):
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_missing_files(folder, tmp_path):
    refused(tmp_path / "nothing", "nothing: no such file or folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "contains no weights: expected one of model.safetensors")
    (folder / "config.json").unlink()
    refused(folder, "no config.json in the folder of the weights")
    refused(folder / "model.safetensors", "no config.json in the folder of the weights")


@pytest.mark.parametrize("kept", [0, 4, 300, -1])
def test_truncated_safetensors(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(folder, "model.safetensors: is ", "empty" if kept == 0 else "not a complete safetensors file")


def test_a_pointer_instead_of_the_weights(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    refused(folder, "is a Git LFS pointer", "git lfs pull")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code(zipped, tmp_path):
    tensors = public(own_model()) | {"extra": Bomb(tmp_path / "executed")}
    write(tmp_path / "m", {}, STATE_SPACES["MM"])
    torch.save(tensors, tmp_path / "m" / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "m", "pytorch_model.bin: is not a file of weights", "would run code")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    refused(tmp_path / "m", "pytorch_model.bin: is not a file of weights")
    assert not (tmp_path / "executed").exists()


def test_damaged_bin_files(tmp_path):
    folder = write(tmp_path / "m", public(own_model()), STATE_SPACES["MM"])
    path = folder / "pytorch_model.bin"
    content = path.read_bytes()
    for damaged in (content[:200], content[: len(content) // 2], content[:-30], b"no weights at all", b"PK\x03\x04"):
        path.write_bytes(damaged)
        refused(folder, "pytorch_model.bin: is not a file of weights")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", "0" * 1000)
    refused(folder, "its member archive/data.pkl is compressed")
    for wrong, message in (
        ([torch.ones(2)], "expected a dict of tensors"),
        ({1: torch.ones(2)}, "expected a dict of tensors"),
        ({"model": {"a": torch.ones(2)}}, "entry 'model' is of type dict, not a tensor"),
        ({"a": torch.ones(2, dtype=torch.int8)}, "tensor a has dtype int8"),
        ({"a": torch.ones(2).to_sparse()}, "tensor a has dtype float32"),
    ):
        torch.save(wrong, path)
        refused(folder, message)


def test_tensors_that_do_not_fit_the_config(folder):
    before = (folder / "model.safetensors").read_bytes()

    def with_change(function, *parts):
        (folder / "model.safetensors").write_bytes(before)
        edit_tensors(folder, function)
        refused(folder, *parts)

    a_log, conv = "backbone.layers.1.mixer.A_log", "backbone.layers.0.mixer.conv1d.weight"
    with_change(lambda t: t.pop(a_log), f"tensor {a_log} is missing")
    with_change(lambda t: t.pop("backbone.embeddings.weight"), "tensor backbone.embeddings.weight is missing")
    with_change(lambda t: t.pop("backbone.layers.1.norm.weight"), "tensor backbone.layers.1.norm.weight is missing")
    with_change(lambda t: t.update(more=torch.ones(1)), "tensor more is not part of the model")
    with_change(
        lambda t: t.update({f"x{n}": torch.ones(1) for n in range(5)}), "tensors x0, x1, x2 and 2 more are not part"
    )
    with_change(lambda t: t.update({a_log: torch.ones(3)}), f"tensor {a_log} has shape (3,), config.json requires (4,)")
    with_change(lambda t: t.update({conv: torch.ones(48, 4)}), f"tensor {conv} has shape (48, 4)")
    with_change(lambda t: t.update({conv: torch.ones(48, 1, 4, dtype=torch.int64)}), f"tensor {conv} has dtype I64")


def test_configs_that_do_not_fit_the_tensors(folder):
    """Sizes come from the config: tensors of other sizes are an error before a large model is built."""
    before = (folder / "config.json").read_text()

    def with_change(changes, *parts):
        (folder / "config.json").write_text(before)
        edit(folder, **changes)
        refused(folder, *parts)

    embedding = "tensor backbone.embeddings.weight has shape"
    with_change({"vocab_size": 25}, embedding, "requires (25, 16)")
    with_change({"vocab_size": 2**30}, embedding)
    with_change({"hidden_size": 2**20, "num_heads": 2**18}, embedding)
    with_change({"state_size": 2**20, "n_groups": 4}, "has shape", "requires")
    with_change({"state_size": 8}, "tensor backbone.layers.0.mixer", "has shape")
    with_change({"num_heads": 8, "head_dim": 4}, "has shape")
    with_change({"num_hidden_layers": 1}, "tensors backbone.layers.1.", "are not part of the model")
    with_change({"num_hidden_layers": 2**20}, "tensor backbone.layers.2.norm.weight is missing")
    with_change({"use_bias": True}, "tensors backbone.layers.0.mixer.in_proj.bias", "missing")
    with_change({"use_conv_bias": False}, "conv1d.bias", "not part of the model")
    with_change({"n_groups": 3}, "config.json: 4 heads do not divide into n_groups = 3")
    with_change({"num_heads": 3}, "config.json: num_heads: 3 heads of 8 do not match", "32 channels")


def test_configs_of_other_models(folder):
    before = (folder / "config.json").read_text()

    def with_change(changes, *parts):
        (folder / "config.json").write_text(before)
        edit(folder, **changes)
        refused(folder, "config.json: ", *parts)

    for name in ("hidden_size", "state_size", "vocab_size", "n_groups", "expand", "layer_norm_epsilon", "model_type"):
        with_change({name: None}, f"{name}: is missing")
    with_change({"model_type": "falcon_mamba"}, "model_type: 'falcon_mamba' is not supported; supported are mamba, ma")
    with_change({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported")
    with_change({"quantization_config": {}}, "quantised weights are not supported")
    for value in (0, -1, True, "16", 16.0, 2**60, [16]):
        with_change({"hidden_size": value}, "hidden_size: expected an integer from 1 to")
    with_change({"expand": "2"}, "expand: expected a positive number")
    with_change({"use_bias": 1}, "use_bias: expected true or false")
    with_change({"time_step_limit": [0.1]}, "time_step_limit: expected two numbers")
    with_change({"time_step_limit": [0.5, 0.1]}, "dt_limit must be an ascending range")
    with_change({"model_type": None, "hidden_size": None}, "does not describe a Mamba or Mamba-2")
    for text, part in {"{": "line 1: is not JSON", "[1]": "is not a JSON object", "\xff": "is not JSON"}.items():
        (folder / "config.json").write_bytes(text.encode("latin-1"))
        refused(folder, f"config.json: {part}")
    (folder / "config.json").write_text("[" * 100_000)
    refused(folder, "config.json: is not JSON")


def test_configs_of_state_spaces_that_are_not_supported(tmp_path):
    def with_change(changes, *parts):
        config = STATE_SPACES["MM"] | changes
        refused(write(tmp_path, public(own_model()), config), "config.json: ", *parts)

    ssm = STATE_SPACES["MM"]["ssm_cfg"]
    with_change({"rms_norm": False}, "rms_norm: False is not supported")
    with_change({"attn_layer_idx": [1]}, "attn_cfg.causal: False is not supported")
    with_change({"attn_layer_idx": [2]}, "attn_layer_idx: expected layer indices below n_layer = 2")
    with_change({"ssm_cfg": {"layer": "Mamba3"}}, "ssm_cfg.layer: 'Mamba3' is not supported")
    with_change({"ssm_cfg": [1]}, "ssm_cfg: expected an object")
    for key, value in {"D_has_hdim": True, "norm_before_gate": True, "rmsnorm": False, "d_ssm": 8, "new": 1}.items():
        with_change({"ssm_cfg": ssm | {key: value}}, f"ssm_cfg.{key}: {value} is not supported")
    with_change({"ssm_cfg": ssm | {"dt_limit": 3}}, "ssm_cfg.dt_limit: expected two numbers")


# Saving


@pytest.mark.parametrize(
    ("pattern", "options", "message"),
    [
        ("MM-", {}, "layer 2 (MLP) is neither Mamba nor Mamba2"),
        ("*M", {}, "layer 0 (Attention) is neither"),
        ("mM", {}, "layer 1 (Mamba2) follows a Mamba"),
        (
            "mm",
            {"mamba": {"ordering": "bidirectional"}},
            "layer 0 (Mamba) does not scan along exactly one forward route",
        ),
        ("mm", {"mamba": {"ordering": "reverse"}}, "layer 0 (Mamba) does not scan along exactly one forward route"),
        ("mm", {"mamba": {"merge": "gate"}}, "layer 0 (Mamba) weights its route"),
        ("mm", {"mamba": {"expand": 1.5}}, "layer 0 (Mamba) scans 24 channels"),
        ("MM", {"mamba2": {"norm_groups": 1}}, "layer 0 (Mamba2) normalises in 1 groups, but has n_groups = 2"),
        ("MM", {"norm_eps": 1e-3}, "layer 0 (Mamba2) has a norm_eps different"),
    ],
)
def test_models_that_transformers_does_not_have(pattern, options, message, tmp_path):
    with pytest.raises(InputError) as caught:
        save(own_model(pattern, **options), tmp_path / "model")
    assert message in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_layers_that_differ_and_modules_that_were_replaced(tmp_path):
    model = own_model("mm")
    model.backbone.layers[1] = own_model("m", mamba={"d_state": 3}).backbone.layers[0]
    with pytest.raises(InputError, match=r"layer 1 \(Mamba\) differs from layer 0"):
        save(model, tmp_path / "model")
    model = own_model("mm")
    model.backbone.layers[1].mixer.in_proj = torch.nn.Sequential(model.backbone.layers[1].mixer.in_proj)
    with pytest.raises(InputError, match=r"tensor backbone.layers.1.mixer.in_proj.0.weight has no counterpart"):
        save(model, tmp_path / "model")


def test_an_earlier_model_is_kept_unless_told_otherwise(folder):
    before = load(folder)(ids(1, 4))
    with pytest.raises(InputError, match=r"model.safetensors: already exists; pass overwrite=True"):
        save(own_model("mm"), folder)
    assert torch.equal(load(folder)(ids(1, 4)), before)
    save(own_model("mm"), folder, overwrite=True)
    assert torch.equal(load(folder)(ids(1, 4)), own_model("mm")(ids(1, 4)))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="part of the path is a file"):
        save(own_model(), tmp_path / "file" / "model")


@pytest.mark.parametrize(
    ("layer", "multiple", "vocabulary", "in_proj"), [("Mamba1", 8, 50280, 3072), ("Mamba2", 16, 50288, 3352)]
)
def test_sizes_of_published_models(layer, multiple, vocabulary, in_proj, tmp_path):
    """The configs of the public 130m models leave most of ``ssm_cfg`` to the defaults of the format."""
    config = {"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {"layer": layer}}
    model = architecture_of(config | {"pad_vocab_size_multiple": multiple}, tmp_path / "config.json").build(tie=True)
    assert model.embedding.weight.shape == (vocabulary, 768)
    assert model.backbone.layers[23].mixer.in_proj.weight.shape == (in_proj, 768)
    assert model.embedding.weight.is_meta
