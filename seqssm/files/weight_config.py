"""Reading of public ``config.json`` files of Mamba and Mamba-2, in both public namings.

The naming of state-spaces has ``d_model``, ``n_layer`` and ``ssm_cfg``, with defaults for values missing in ``ssm_cfg``
(`SSM_DEFAULTS`); that of transformers has ``model_type``, ``hidden_size`` and all sizes explicitly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seqssm.errors import InputError
from seqssm.files.tensors import read_json
from seqssm.nn.backbone import Backbone
from seqssm.nn.language_model import LanguageModel
from seqssm.nn.mlp import MULTIPLE

MAX_SIZE = 2**20  # maximum of every size except the vocabulary, so that products fit in 64 bits
MAX_VOCABULARY = 2**30
MODEL_TYPES = {"mamba": ("m", "MambaForCausalLM"), "mamba2": ("M", "Mamba2ForCausalLM")}
"""(Symbol of the layers, class) by ``model_type`` of transformers."""
SSM_LAYERS = {"Mamba1": "m", "Mamba2": "M"}
SSM_DEFAULTS: dict[str, dict[str, Any]] = {
    "m": {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto", "bias": False, "conv_bias": True},
    "M": {
        "d_state": 128,
        "d_conv": 4,
        "expand": 2,
        "headdim": 64,
        "ngroups": 1,
        "bias": False,
        "conv_bias": True,
        "dt_limit": [0.0, math.inf],
    },
}
"""Arguments of each layer type in the code of state-spaces, with their defaults, overridden by ``ssm_cfg``."""
WITHOUT_EFFECT = {  # initialisation and implementation options
    "A_init_range", "chunk_size", "conv_init", "dt_init", "dt_init_floor", "dt_max", "dt_min", "dt_scale",
    "sequence_parallel", "use_fast_path", "use_mem_eff_path",
}  # fmt: skip
ONLY = {"activation": ("silu", "swish"), "rmsnorm": (True,), "norm_before_gate": (False,), "D_has_hdim": (False,)}
"""Supported values of further arguments of state-spaces' layers."""
ATTENTION_ONLY = {
    "causal": (True,),
    "d_conv": (0,),
    "mlp_dim": (0,),
    "rotary_emb_dim": (0,),
    "rotary_emb_base": None,
    "rotary_emb_interleaved": None,
    "softmax_scale": (None,),
}
"""The same for ``attn_cfg``; None for any value."""
ATTENTION_DEFAULTS = {
    "causal": False,
    "num_heads_kv": None,
    "head_dim": None,
    "qkv_proj_bias": True,
    "out_proj_bias": True,
}


@dataclass(frozen=True)
class Architecture:
    """The language model described by a config.

    Args:
        vocab_size: number of rows of the embedding, including padding.
        d_model: width of the model.
        pattern: one symbol per layer.
        options: further arguments of `Backbone`.
        tie: whether the head shares the weights of the embedding; None if the config does not specify it.
    """

    vocab_size: int
    d_model: int
    pattern: str
    options: dict[str, Any]
    tie: bool | None

    def build(self, tie: bool) -> LanguageModel:
        """Build the model on the meta device.

        Args:
            tie: whether the head shares the weights of the embedding.

        Raises:
            ValueError: the sizes are incompatible.
        """
        with torch.device("meta"):
            return LanguageModel(self.vocab_size, Backbone(self.d_model, self.pattern, **self.options), tie=tie)

    @property
    def mlp_behind_each(self) -> bool:
        """Whether a layer of the files consists of a mixer and an MLP."""
        return self.pattern[1:2] == "-"


def read_architecture(path: Path) -> Architecture:
    """Read the architecture from a ``config.json``.

    Args:
        path: path of the file.

    Raises:
        InputError: the file is missing or not JSON; the architecture or an option is not supported; or a size is
            missing or invalid.
    """
    return architecture_of(read_json(path), path)


def architecture_of(values: Mapping[str, Any], path: Path) -> Architecture:
    """Interpret the content of a ``config.json``.

    Args:
        values: content of the file.
        path: path used in error messages.

    Raises:
        InputError: as for `read_architecture`.
    """
    config = Fields(values, path)
    if config.values.get("quantization_config") is not None:
        raise config.error("quantization_config", "quantised weights are not supported")
    if "model_type" in config.values or "hidden_size" in config.values:
        return _of_transformers(config)
    if "d_model" in config.values and "n_layer" in config.values:
        return _of_state_spaces(config)
    raise InputError(
        "does not describe a Mamba or Mamba-2 model: neither model_type and hidden_size (transformers) nor d_model and "
        "n_layer (state-spaces)",
        file=config.file,
    )


class Fields:
    """Typed access to a section of a config.

    Args:
        values: the section.
        file: path used in error messages.
        prefix: prefix of the section's keys in messages.
    """

    def __init__(self, values: Mapping[str, Any], file: Path, prefix: str = "") -> None:
        self.values, self.file, self.prefix = values, file, prefix

    def error(self, name: str, message: str) -> InputError:
        """Return an error for a key.

        Args:
            name: name of the key.
            message: description of the error.
        """
        return InputError(message, file=self.file, place=self.prefix + name)

    def get(self, name: str) -> Any:
        """Return a required value.

        Args:
            name: name of the key.
        """
        if name not in self.values:
            raise self.error(name, "is missing")
        return self.values[name]

    def size(self, name: str, limit: int = MAX_SIZE, least: int = 1) -> int:
        """Return an integer.

        Args:
            name: name of the key.
            limit: maximum value.
            least: minimum value.
        """
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= limit:
            raise self.error(name, f"expected an integer from {least} to {limit}, not {value!r}")
        return value

    def number(self, name: str) -> float:
        """Return a positive number.

        Args:
            name: name of the key.
        """
        value = self.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MAX_SIZE:
            raise self.error(name, f"expected a positive number of at most {MAX_SIZE}, not {value!r}")
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Return a boolean.

        Args:
            name: name of the key.
            default: default value; None if the entry is required.
        """
        value = self.get(name) if default is None else self.values.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, f"expected true or false, not {value!r}")
        return value

    def limits(self, name: str) -> tuple[float, float]:
        """Return a range, whose end may be infinite; transformers 5 writes infinity as ``{"__float__": "Infinity"}``.

        Args:
            name: name of the key.
        """
        value = self.get(name)
        if isinstance(value, list):
            value = [math.inf if one == {"__float__": "Infinity"} else one for one in value]
            if len(value) == 2 and all(isinstance(one, int | float) and not isinstance(one, bool) for one in value):
                return float(value[0]), float(value[1])
        raise self.error(name, f"expected two numbers, not {value!r}")

    def rank(self, name: str) -> int | str:
        """Return a size, or ``"auto"``.

        Args:
            name: name of the key.
        """
        return "auto" if self.get(name) == "auto" else self.size(name)

    def only(self, name: str, choices: tuple[Any, ...]) -> None:
        """Reject unsupported values; for a missing value, the default of the format applies.

        Args:
            name: name of the key.
            choices: supported values.
        """
        value = self.values.get(name, choices[0])
        if not any(value is one or (value == one and type(value) is type(one)) for one in choices):
            raise self.error(name, f"{value!r} is not supported; only {', '.join(map(repr, choices))}")


def _of_transformers(config: Fields) -> Architecture:
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise config.error("model_type", f"{kind!r} is not supported; supported are {', '.join(MODEL_TYPES)}")
    config.only("hidden_act", ("silu", "swish"))
    d_model, eps = config.size("hidden_size"), config.number("layer_norm_epsilon")
    layer: dict[str, Any] = {
        "d_state": config.size("state_size"),
        "d_conv": config.size("conv_kernel"),
        "expand": config.number("expand"),
        "bias": config.flag("use_bias"),
        "conv_bias": config.flag("use_conv_bias"),
    }
    symbol, tie = MODEL_TYPES[kind][0], None
    if kind == "mamba":
        layer["dt_rank"] = config.rank("time_step_rank")
    else:
        layer |= {"head_dim": config.size("head_dim"), "n_groups": config.size("n_groups"), "norm_eps": eps}
        heads, width = config.size("num_heads"), int(layer["expand"] * d_model)
        if heads * layer["head_dim"] != width:
            raise config.error(
                "num_heads",
                f"{heads} heads of {layer['head_dim']} do not match expand * hidden_size = {width} channels",
            )
        if "time_step_limit" in config.values:
            layer["dt_limit"] = config.limits("time_step_limit")
        tie = False
    name = "tie_word_embeddings"
    return Architecture(
        config.size("vocab_size", MAX_VOCABULARY),
        d_model,
        symbol * config.size("num_hidden_layers"),
        {
            {"m": "mamba", "M": "mamba2"}[symbol]: layer,
            "norm_eps": eps,
            "residual_in_fp32": config.flag("residual_in_fp32", True),
        },
        config.flag(name) if name in config.values else tie,
    )


def _of_state_spaces(config: Fields) -> Architecture:
    config.only("rms_norm", (True,))
    d_model, n_layer = config.size("d_model"), config.size("n_layer")
    symbol, layer = _ssm_layer(_section(config, "ssm_cfg"), d_model)
    options: dict[str, Any] = {
        {"m": "mamba", "M": "mamba2"}[symbol]: layer,
        "residual_in_fp32": config.flag("residual_in_fp32", True),
    }
    attention = config.values.get("attn_layer_idx") or []
    if not isinstance(attention, list) or not all(type(one) is int and 0 <= one < n_layer for one in attention):
        raise config.error("attn_layer_idx", f"expected layer indices below n_layer = {n_layer}")
    if attention:
        options["attention"] = _attention(_section(config, "attn_cfg"))
    hidden = config.size("d_intermediate", least=0) if "d_intermediate" in config.values else 0
    if hidden:
        options["mlp"] = {"hidden": -(-hidden // MULTIPLE) * MULTIPLE}
    places = set(attention)
    pattern = "".join(("*" if n in places else symbol) + ("-" if hidden else "") for n in range(n_layer))
    if len(places) == n_layer:
        del options["mamba" if symbol == "m" else "mamba2"]
    name = "pad_vocab_size_multiple"
    multiple = config.size(name) if name in config.values else 8
    vocabulary = -(-config.size("vocab_size", MAX_VOCABULARY) // multiple) * multiple
    tie = config.flag("tie_embeddings") if "tie_embeddings" in config.values else None
    return Architecture(vocabulary, d_model, pattern, options, tie)


def _section(config: Fields, name: str) -> Fields:
    values = config.values.get(name) or {}
    if not isinstance(values, dict):
        raise config.error(name, f"expected an object, not {values!r}")
    return Fields(values, config.file, f"{name}.")


def _ssm_layer(given: Fields, d_model: int) -> tuple[str, dict[str, Any]]:
    """Return the symbol and the arguments of the scanning layers."""
    name = given.values.get("layer", "Mamba1")
    if name not in SSM_LAYERS:
        raise given.error("layer", f"{name!r} is not supported; supported are {', '.join(SSM_LAYERS)}")
    symbol = SSM_LAYERS[name]
    defaults = SSM_DEFAULTS[symbol]
    for key, value in given.values.items():
        if key in ONLY:
            given.only(key, ONLY[key])
        elif key == "d_ssm":
            continue
        elif key not in {"layer", *defaults, *WITHOUT_EFFECT}:
            raise given.error(key, f"{value!r} is not supported")
    fields = Fields(defaults | dict(given.values), given.file, given.prefix)
    layer: dict[str, Any] = {
        "d_state": fields.size("d_state"),
        "d_conv": fields.size("d_conv"),
        "expand": fields.number("expand"),
        "bias": fields.flag("bias"),
        "conv_bias": fields.flag("conv_bias"),
    }
    if symbol == "m":
        return symbol, layer | {"dt_rank": fields.rank("dt_rank")}
    if fields.values.get("d_ssm") not in (None, int(layer["expand"] * d_model)):
        raise fields.error("d_ssm", f"{fields.values['d_ssm']!r} is not supported; only expand * d_model")
    own = {
        "head_dim": fields.size("headdim"),
        "n_groups": fields.size("ngroups"),
        "dt_limit": fields.limits("dt_limit"),
    }
    return symbol, layer | own


def _attention(given: Fields) -> dict[str, Any]:
    """Return the arguments of a hybrid's attention layers, which have no positional encoding, convolution or MLP."""
    known = {"num_heads", *ATTENTION_DEFAULTS, *ATTENTION_ONLY}
    for key, value in given.values.items():
        if key not in known:
            raise given.error(key, f"{value!r} is not supported")
    fields = Fields(ATTENTION_DEFAULTS | dict(given.values), given.file, given.prefix)
    for key, choices in ATTENTION_ONLY.items():
        if choices is not None:
            fields.only(key, choices)
    bias = fields.flag("qkv_proj_bias")
    if fields.flag("out_proj_bias") != bias:
        raise fields.error("out_proj_bias", "a bias in only one of the two projections is not supported")
    optional = {"n_kv_heads": "num_heads_kv", "head_dim": "head_dim"}
    sizes = {own: fields.size(key) for own, key in optional.items() if fields.values[key] is not None}
    return {"n_heads": fields.size("num_heads"), "bias": bias, **sizes}
