"""Public weights: models of transformers give the same logits here, and ours there; both namings; damaged files."""

from __future__ import annotations

import json
import math
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from seqssm.errors import InputError
from seqssm.files.weight_config import architecture_of
from seqssm.files.weights import load, save
from seqssm.nn.backbone import Backbone
from seqssm.nn.chunks import in_pieces
from seqssm.nn.language_model import LanguageModel

V, D = 24, 16
M1 = {"d_state": 4, "d_conv": 3, "dt_rank": 2}
M2 = {"d_state": 4, "head_dim": 8, "n_groups": 2}
PUBLIC = {  # sizes in the naming of transformers
    "mamba": {"state_size": 4, "conv_kernel": 3, "time_step_rank": 2},
    "mamba2": {"state_size": 4, "head_dim": 8, "num_heads": 4, "n_groups": 2},
}
OPTIONS = {
    "mamba": ("mamba", {}),
    "mamba with biases, untied": (
        "mamba",
        {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-2},
    ),
    "mamba, other residual and rank": ("mamba", {"residual_in_fp32": False, "time_step_rank": "auto", "expand": 3}),
    "mamba2": ("mamba2", {}),
    "mamba2 tied with biases": (
        "mamba2",
        {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": True, "layer_norm_epsilon": 1e-2},
    ),
    "mamba2 limited": ("mamba2", {"time_step_limit": (0.3, 0.8), "n_groups": 1, "chunk_size": 4}),
    "mamba2 limited below": ("mamba2", {"time_step_limit": (0.7, math.inf), "hidden_act": "swish"}),
}


def hf_model(name: str, **more):
    """A model of transformers whose weights all differ."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, the other side of the comparison")
    kind, options = OPTIONS[name]
    torch.manual_seed(3)
    config, model = {
        "mamba": (transformers.MambaConfig, transformers.MambaForCausalLM),
        "mamba2": (transformers.Mamba2Config, transformers.Mamba2ForCausalLM),
    }[kind]
    sizes = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": 3, "expand": 2, "use_cache": False}
    made = model(config(**{**sizes, **PUBLIC[kind], **options, **more})).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def ids(*shape, seed=5):
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def own_model(pattern="MM", tie=True, **options):
    torch.manual_seed(1)
    kinds = {"M": ("mamba2", M2), "m": ("mamba", M1), "*": ("attention", {"n_heads": 2}), "-": ("mlp", {"hidden": 128})}
    given = {name: dict(values) for symbol, (name, values) in kinds.items() if symbol in pattern}
    for name, values in options.items():
        given[name] = given.get(name, {}) | values if isinstance(values, dict) else values
    model = LanguageModel(V, Backbone(D, pattern, **given), tie=tie)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def close(value, expected, tolerance=1e-4):
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


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
def test_transformers_opens_what_is_saved(pattern, tie, tmp_path):
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


def public(model, embedding="backbone.embedding.weight", head=False):
    tensors = {(embedding if n == "embedding.weight" else n): t.clone() for n, t in model.state_dict().items()}
    if head:
        tensors["lm_head.weight"] = tensors[embedding]
    return tensors


STATE_SPACES = {
    "mm": {"d_model": D, "n_layer": 2, "vocab_size": 20, "ssm_cfg": {"d_state": 4, "d_conv": 3, "dt_rank": 2}},
    "MM": {
        "d_model": D,
        "n_layer": 2,
        "vocab_size": 21,
        "ssm_cfg": {"layer": "Mamba2", "d_state": 4, "headdim": 8, "ngroups": 2, "chunk_size": 32},
        "pad_vocab_size_multiple": 12,
        "tie_embeddings": True,
        "rms_norm": True,
        "fused_add_norm": True,
        "residual_in_fp32": True,
        "attn_layer_idx": [],
        "attn_cfg": {},
        "d_intermediate": 0,
    },
}


def write(folder, tensors, config, file="pytorch_model.bin"):
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if file.endswith(".bin"):
        torch.save(tensors, folder / file)
    else:
        save_file(tensors, folder / file)
    return folder


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
        wrong("is not beside the index", **{names[0]: outside})
    wrong("shard-9.bin, which is missing", **{names[0]: "shard-9.bin"})
    wrong("is not a file of tensors", **{names[0]: path.name})
    wrong(rf"tensor {names[0]} is in shard-0.*, but shard-1", **{names[0]: f"shard-1.{suffix}"})
    wrong("tensor more is not in shard-0", more=inside)
    del index[names[1]]
    wrong(rf"tensor {names[1]} is in shard-0.*, but the index does not name it")
    for content in ('{"weight_map": []}', "{}", "[]", "{"):
        path.write_text(content)
        with pytest.raises(InputError, match=r"index.json: .*is not"):
            load(tmp_path)


def test_hybrids_of_state_spaces(tmp_path):
    """A layer of the files is a mixer, and with d_intermediate an MLP too, which is a layer of its own here."""
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
    del config["tie_embeddings"]  # as in early configs: then a stored head that differs is one of its own
    write(tmp_path, public(untied), config)
    assert torch.equal(load(tmp_path)(ids(1, 5)), untied(ids(1, 5)))
    for head in (True, False):
        write(tmp_path, public(tied, head=head), config)
        assert load(tmp_path).lm_head is None
        assert torch.equal(load(tmp_path)(ids(1, 5)), tied(ids(1, 5)))


# Damaged files


@pytest.fixture
def folder(tmp_path):
    save(own_model(), tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **changes):
    """Changes the config; None removes a key."""
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
    refused(tmp_path / "empty", "holds no weights: expected one of model.safetensors")
    (folder / "config.json").unlink()
    refused(folder, "no config.json beside the weights")
    refused(folder / "model.safetensors", "no config.json beside the weights")


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
    refused(folder, "its part archive/data.pkl is compressed")
    for wrong, message in (
        ([torch.ones(2)], "expected a dict of tensors"),
        ({1: torch.ones(2)}, "expected a dict of tensors"),
        ({"model": {"a": torch.ones(2)}}, "entry 'model' is of type dict, not a tensor"),
        ({"a": torch.ones(2, dtype=torch.int8)}, "tensor a has type int8"),
        ({"a": torch.ones(2).to_sparse()}, "tensor a has type float32"),
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
    with_change(lambda t: t.update({a_log: torch.ones(3)}), f"tensor {a_log} has shape (3,), config.json asks for (4,)")
    with_change(lambda t: t.update({conv: torch.ones(48, 4)}), f"tensor {conv} has shape (48, 4)")
    with_change(lambda t: t.update({conv: torch.ones(48, 1, 4, dtype=torch.int64)}), f"tensor {conv} has type I64")


def test_configs_that_do_not_fit_the_tensors(folder):
    """Sizes are those of the config: what the tensors have instead is an error, before a large model is made."""
    before = (folder / "config.json").read_text()

    def with_change(changes, *parts):
        (folder / "config.json").write_text(before)
        edit(folder, **changes)
        refused(folder, *parts)

    embedding = "tensor backbone.embeddings.weight has shape"
    with_change({"vocab_size": 25}, embedding, "asks for (25, 16)")
    with_change({"vocab_size": 2**30}, embedding)
    with_change({"hidden_size": 2**20, "num_heads": 2**18}, embedding)
    with_change({"state_size": 2**20, "n_groups": 4}, "has shape", "asks for")
    with_change({"state_size": 8}, "tensor backbone.layers.0.mixer", "has shape")
    with_change({"num_heads": 8, "head_dim": 4}, "has shape")
    with_change({"num_hidden_layers": 1}, "tensors backbone.layers.1.", "are not part of the model")
    with_change({"num_hidden_layers": 2**20}, "tensor backbone.layers.2.norm.weight is missing")
    with_change({"use_bias": True}, "tensors backbone.layers.0.mixer.in_proj.bias", "missing")
    with_change({"use_conv_bias": False}, "conv1d.bias", "not part of the model")
    with_change({"n_groups": 3}, "config.json: 4 heads do not divide into n_groups = 3")
    with_change({"num_heads": 3}, "config.json: num_heads: 3 heads of 8 are not the", "32 channels")


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
    with_change({"time_step_limit": [0.5, 0.1]}, "dt_limit must be a range")
    with_change({"model_type": None, "hidden_size": None}, "describes no Mamba or Mamba-2")
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
    with_change({"attn_layer_idx": [2]}, "attn_layer_idx: expected numbers of layers below n_layer = 2")
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
        ("mm", {"mamba": {"ordering": "bidirectional"}}, "layer 0 (Mamba) scans along other routes"),
        ("mm", {"mamba": {"ordering": "reverse"}}, "layer 0 (Mamba) scans along other routes"),
        ("mm", {"mamba": {"merge": "gate"}}, "layer 0 (Mamba) weighs its route"),
        ("mm", {"mamba": {"expand": 1.5}}, "layer 0 (Mamba) scans 24 channels"),
        ("MM", {"mamba2": {"norm_groups": 1}}, "layer 0 (Mamba2) normalises in 1 groups, but has n_groups = 2"),
        ("MM", {"norm_eps": 1e-3}, "layer 0 (Mamba2) has another norm_eps"),
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
    with pytest.raises(InputError, match=r"model.safetensors: exists already; pass overwrite=True"):
        save(own_model("mm"), folder)
    assert torch.equal(load(folder)(ids(1, 4)), before)
    save(own_model("mm"), folder, overwrite=True)
    assert torch.equal(load(folder)(ids(1, 4)), own_model("mm")(ids(1, 4)))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_disks_that_refuse(tmp_path):
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
