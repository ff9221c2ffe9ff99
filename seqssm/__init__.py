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
    "Mamba": "seqssm.nn.mamba",
}

__all__ = ["InputError", "Mamba", "__version__", "find", "fit", "load"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'seqssm' has no attribute {name!r}")
