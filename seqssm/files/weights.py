"""Public weights of Mamba and Mamba-2 language models: `load` reads two namings, `save` writes transformers' one."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from seqssm.errors import InputError
from seqssm.files.disk import writing
from seqssm.files.tensors import StoredTensor, find_weights, open_tensors
from seqssm.files.weight_config import MODEL_TYPES, Architecture, architecture_of, read_architecture
from seqssm.nn.language_model import LanguageModel
from seqssm.nn.mamba import Mamba
from seqssm.nn.mamba2 import Mamba2

CONFIG, WEIGHTS = "config.json", "model.safetensors"
EMBEDDINGS = ("backbone.embedding.weight", "backbone.embeddings.weight")  # state-spaces, transformers
HEAD = "lm_head.weight"
KINDS: dict[type, str] = {Mamba: "mamba", Mamba2: "mamba2"}  # model_type of transformers by layer class
LAYER = re.compile(r"backbone\.layers\.(\d+)\.(mixer|norm)\.(.+)")
SHOWN = 3  # maximum number of tensor names in a message


def load(path: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> LanguageModel:
    """Load a Mamba or Mamba-2 language model from public weights.

    Supported are folders of state-spaces (``config.json`` with ``d_model`` and ``ssm_cfg``) and of transformers
    (``model_type`` ``mamba`` or ``mamba2``), as safetensors or ``pytorch_model.bin``, in a single file or sharded with
    an index. Hybrids of state-spaces are supported if their attention has neither rotary positions nor a convolution.
    Nothing is downloaded, and code in files is never run. All tensors are checked against the config before memory is
    allocated.

    Args:
        path: model folder; or a file of weights or an index, with ``config.json`` in the same folder.
        dtype: dtype of the weights; None for that of the stored embedding. ``A_log``, ``D`` and ``dt_bias`` are at
            least float32.
        device: target device of the weights.

    Returns:
        The model in evaluation mode: ``model(ids)`` returns the logits. Its vocabulary is the stored one, including
        padding.

    Raises:
        InputError: a file is missing, corrupt or would run code; the config has an unsupported architecture or option;
            or a tensor is missing, unknown or does not match the shape in the config. The message has the file, and
            the key or tensor.
    """
    weights = find_weights(Path(path))
    config = weights.with_name(CONFIG)
    if not config.is_file():
        raise InputError(f"no {CONFIG} in the folder of the weights; it defines the sizes of the model", file=weights)
    architecture = read_architecture(config)
    stored = open_tensors(weights)
    _require_layers(architecture, stored, weights)
    embedding = next((name for name in EMBEDDINGS if name in stored), EMBEDDINGS[1])
    tie = _is_tied(architecture, stored, embedding, config)
    try:
        model = architecture.build(tie)
    except ValueError as error:
        raise InputError(str(error), file=config) from None
    public = _public_names(model, architecture, embedding)
    _require_tensors(model, public, stored, weights, tie)
    model = model.to(dtype or stored[embedding].dtype)
    values = {
        own: stored[public[own]].read().to(device, like.dtype, copy=True).contiguous()
        for own, like in model.state_dict().items()
    }
    model.load_state_dict(values, assign=True)
    return model.eval()


def save(model: LanguageModel, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write ``config.json`` and ``model.safetensors`` in the format of transformers.

    With ``n_groups`` above 1, transformers before 5.24 normalises all channels of Mamba-2 as one group, and its logits
    differ.

    Args:
        model: language model with `Mamba` or `Mamba2` layers only, each with one forward route.
        folder: output folder, which is created.
        overwrite: whether to replace a model in `folder`.

    Raises:
        InputError: a layer is not supported by transformers' Mamba (the message names it); the folder contains a model;
            the disk is full or the folder is not writable.
    """
    folder = Path(folder)
    config = _config_of(model, folder)
    names = (WEIGHTS, CONFIG)
    for name in names:
        if (folder / name).exists() and not overwrite:
            raise InputError("already exists; pass overwrite=True to replace the model", file=folder / name)
    tensors = {EMBEDDINGS[1] if name == "embedding.weight" else name: t for name, t in model.state_dict().items()}
    temporary = {name: folder / f".{name}.{os.getpid()}.tmp" for name in names}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                temporary[WEIGHTS],
                metadata={"format": "pt"},
            )
            temporary[CONFIG].write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            for name in names:
                os.replace(temporary[name], folder / name)
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)


def _require_layers(architecture: Architecture, stored: dict[str, StoredTensor], file: Path) -> None:
    """Reject a config with more layers than the file has, before a model is built."""
    step = 2 if architecture.mlp_behind_each else 1
    for number in range(len(architecture.pattern) // step):
        name = f"backbone.layers.{number}.norm.weight"
        if name not in stored:
            raise InputError(f"tensor {name} is missing, but required by {CONFIG}", file=file)


def _is_tied(architecture: Architecture, stored: dict[str, StoredTensor], embedding: str, config: Path) -> bool:
    """Return whether the head is tied; if the config does not specify it, a stored head that differs is not tied."""
    if HEAD not in stored:
        return architecture.tie is not False
    if architecture.tie is False or embedding not in stored:
        return bool(architecture.tie)
    same = stored[HEAD].shape == stored[embedding].shape and torch.equal(stored[HEAD].read(), stored[embedding].read())
    if architecture.tie and not same:
        raise InputError(
            f"ties {HEAD} to the embedding, but the stored two differ: correct the config, or remove the tensor",
            file=config,
        )
    return same


def _public_names(model: LanguageModel, architecture: Architecture, embedding: str) -> dict[str, str]:
    """Return the names of tensors in the files by their names in the model."""
    names = {}
    for own in model.state_dict():
        found = LAYER.fullmatch(own)
        if own == "embedding.weight":
            names[own] = embedding
        elif found is None or not architecture.mlp_behind_each:
            names[own] = own
        else:
            number, part, rest = int(found[1]), found[2], found[3]
            if number % 2:
                part = {"mixer": "mlp", "norm": "norm2"}[part]
            names[own] = f"backbone.layers.{number // 2}.{part}.{rest}"
    return names


def _require_tensors(
    model: LanguageModel, public: dict[str, str], stored: dict[str, StoredTensor], file: Path, tie: bool
) -> None:
    expected = {public[own]: tuple(value.shape) for own, value in model.state_dict().items()}
    missing = [name for name in expected if name not in stored]
    unknown = [name for name in stored if name not in expected and not (tie and name == HEAD)]
    if missing or unknown:
        lists = {"missing": missing, "not part of the model": unknown}
        text = "; ".join(f"{_listed(names)} {what}" for what, names in lists.items() if names)
        raise InputError(f"{text}, according to {CONFIG}", file=file)
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise InputError(
                f"tensor {name} has shape {stored[name].shape}, {CONFIG} requires {shape}", file=stored[name].file
            )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:SHOWN])
    if len(names) == 1:
        return f"tensor {shown} is"
    return f"tensors {shown}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''} are"


def _config_of(model: LanguageModel, folder: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a model, and check that a model built from it has the same tensors."""
    layers: list[Any] = list(model.backbone.layers)
    first, eps = layers[0].mixer, model.backbone.norm_f.eps
    for number, layer in enumerate(layers):
        problem = _problem(layer.mixer, first, eps)
        if problem is None and layer.norm.eps != eps:
            problem = "has a norm_eps different from that of the last norm"
        if problem is not None:
            raise InputError(
                f"layer {number} ({type(layer.mixer).__name__}) {problem}; models of transformers are stacks of "
                "identical forward Mamba or Mamba2 layers",
                file=folder,
            )
    kind = KINDS[type(first)]
    config = {
        "architectures": [MODEL_TYPES[kind][1]],
        "model_type": kind,
        "vocab_size": model.vocab_size,
        "hidden_size": model.backbone.d_model,
        "num_hidden_layers": len(layers),
        "layer_norm_epsilon": eps,
        "residual_in_fp32": model.backbone.residual_in_fp32,
        "tie_word_embeddings": model.lm_head is None,
        "hidden_act": "silu",
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),  # otherwise transformers uses its defaults
        **_layer_entries(first),
    }
    again = architecture_of(config, folder / CONFIG).build(model.lm_head is None)
    expected, own = ({name: value.shape for name, value in one.state_dict().items()} for one in (again, model))
    for name in {**own, **expected}:
        if expected.get(name) != own.get(name):
            raise InputError(
                f"tensor {name} has no counterpart in models of transformers; merge adapters before saving", file=folder
            )
    return config


def _problem(mixer: Any, first: Any, norm_eps: float | None) -> str | None:
    """Return why transformers does not support a layer; None if it does."""
    if type(mixer) not in KINDS:
        return "is neither Mamba nor Mamba2"
    if type(mixer) is not type(first):
        return f"follows a {type(first).__name__}"
    if not mixer.only_forward or len(mixer.ordering) != 1:
        return "does not scan along exactly one forward route"
    if mixer.merge == "gate":
        return "weights its route (merge='gate')"
    if mixer.width % mixer.d_model:
        return f"scans {mixer.width} channels, which is not a whole multiple of d_model = {mixer.d_model}"
    if isinstance(mixer, Mamba2) and mixer.norm.groups != mixer.n_groups:
        return f"normalises in {mixer.norm.groups} groups, but has n_groups = {mixer.n_groups}"
    if isinstance(mixer, Mamba2) and mixer.norm.eps != norm_eps:
        return "has a norm_eps different from that of the stack"
    return None if _layer_entries(mixer) == _layer_entries(first) else "differs from layer 0"


def _layer_entries(mixer: Any) -> dict[str, Any]:
    """Return the config entries of a layer."""
    entries: dict[str, Any] = {
        "expand": mixer.width // mixer.d_model,
        "use_bias": getattr(mixer.in_proj, "bias", None) is not None,
        "use_conv_bias": mixer.conv1d.bias is not None,
    }
    if isinstance(mixer, Mamba):
        own = mixer.settings
        return entries | {
            "state_size": own.d_state,
            "conv_kernel": own.d_conv,
            "time_step_rank": own.dt_rank,
            "time_step_min": own.dt_min,
            "time_step_max": own.dt_max,
            "time_step_floor": own.dt_init_floor,
        }
    if mixer.dt_limit != (0.0, math.inf):  # the default; other infinite limits are written as by transformers 5
        limit = [{"__float__": "Infinity"} if math.isinf(one) else one for one in mixer.dt_limit]
        entries["time_step_limit"] = limit
    return entries | {
        "state_size": mixer.d_state,
        "conv_kernel": mixer.d_conv,
        "num_heads": mixer.heads,
        "head_dim": mixer.head_dim,
        "n_groups": mixer.n_groups,
        "time_step_min": mixer.dt_range[0],
        "time_step_max": mixer.dt_range[1],
        "time_step_floor": mixer.dt_init_floor,
    }
