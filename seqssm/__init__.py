"""Selective state-space models for science. Heavy parts load on first use: `seqssm --help` is instant."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from seqssm.errors import InputError
from seqssm.version import __version__

_LAZY = {
    "fit": "seqssm.api",
    "load": "seqssm.prediction.model",
    "find": "seqssm.files.datasets",
    "Attention": "seqssm.nn.attention",
    "Backbone": "seqssm.nn.backbone",
    "LanguageModel": "seqssm.nn.language_model",
    "MLP": "seqssm.nn.mlp",
    "Mamba": "seqssm.nn.mamba",
    "Mamba2": "seqssm.nn.mamba2",
    "Mamba3": "seqssm.nn.mamba3",
    "Memory": "seqssm.nn.memory",
}

__all__ = [
    "MLP",
    "Attention",
    "Backbone",
    "InputError",
    "LanguageModel",
    "Mamba",
    "Mamba2",
    "Mamba3",
    "Memory",
    "__version__",
    "find",
    "fit",
    "load",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'seqssm' has no attribute {name!r}")
