"""Small public models of transformers, of state-spaces and of this package; writers of their files."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from seqssm.nn.backbone import Backbone
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
    transformers = pytest.importorskip("transformers", reason="needs transformers, for the comparison")
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
