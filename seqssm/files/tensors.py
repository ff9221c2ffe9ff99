"""Files of named tensors: safetensors, ``torch.save`` archives, and sharded files with an index.

Shapes are listed before tensors are read, and code in files is never run.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from seqssm.errors import InputError, no_such_file
from seqssm.files.content import DAMAGED, read_bytes

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names of the weights file of a model folder; the first existing one is read."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class StoredTensor:
    """A floating-point tensor in a file.

    Args:
        file: file that contains the tensor.
        shape: shape of the tensor.
        dtype: dtype of the stored tensor.
        read: function that reads the tensor.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def find_weights(path: Path) -> Path:
    """Find the file with the weights: `path` itself, or one of `WEIGHT_FILES` in the folder `path`.

    Args:
        path: model folder or file.

    Raises:
        InputError: there is no such file.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise no_such_file(path)
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    raise InputError(f"contains no weights: expected one of {', '.join(WEIGHT_FILES)}", file=path)


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of a file, or of all files of an index.

    Args:
        path: ``.safetensors`` file; ``.json`` index; or any other file, read as a ``torch.save`` archive of a dict of
            tensors.

    Raises:
        InputError: a file is missing, truncated or corrupt, or contains more than tensors; a tensor is not
            floating-point; or an index leads out of its folder or does not match its files.
    """
    if path.suffix == ".json":
        return _open_index(path)
    return _open_safetensors(path) if path.suffix == ".safetensors" else _open_torch(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Args:
        path: path of the file.

    Raises:
        InputError: the file is missing, not JSON, or not an object.
    """
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON: {error.msg}", file=path, place=f"line {error.lineno}") from None
    except (UnicodeDecodeError, RecursionError, ValueError):  # ValueError: a number with thousands of digits
        raise InputError("is not JSON", file=path) from None
    if not isinstance(content, dict):
        raise InputError("is not a JSON object", file=path)
    return content


def _open_index(path: Path) -> dict[str, StoredTensor]:
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise InputError("is not an index of weights: 'weight_map' must name a file for each tensor", file=path)
    found: dict[str, StoredTensor] = {}
    for shard in dict.fromkeys(shards.values()):
        if PureWindowsPath(shard).name != shard or shard in ("", ".."):  # handles both kinds of separators, and drives
            raise InputError(f"names the file {shard!r}, which is not in the folder of the index", file=path)
        if not (path.parent / shard).is_file():
            raise InputError(f"names the file {shard}, which is missing", file=path)
        if shard.endswith(".json"):
            raise InputError(f"names the file {shard}, which is not a file of tensors", file=path)
        for name, tensor in open_tensors(path.parent / shard).items():
            if shards.get(name) != shard:
                where = f"the index assigns it to {shards[name]}" if name in shards else "it is not in the index"
                raise InputError(f"tensor {name} is in {shard}, but {where}", file=path)
            found[name] = tensor
    missing = [name for name in shards if name not in found]
    if missing:
        raise InputError(f"tensor {missing[0]} is not in {shards[missing[0]]}", file=path)
    return found


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    _require_content(path)
    try:
        file = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise InputError(f"is not a complete safetensors file ({error})", file=path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None
    found = {}
    for name, view in slices.items():
        if view.get_dtype() not in DTYPES:
            raise _not_floating(path, name, view.get_dtype())
        read = _reader(file, name)
        found[name] = StoredTensor(path, tuple(view.get_shape()), DTYPES[view.get_dtype()], read)
    return found


def _reader(file: Any, name: str) -> Callable[[], Tensor]:
    return lambda: file.get_tensor(name)


def _open_torch(path: Path) -> dict[str, StoredTensor]:
    foreign = "is not a file of weights"
    archive = _require_content(path).startswith(b"PK")  # otherwise the format before torch 1.6
    if archive:
        _require_stored(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except UnpicklingError:
        raise InputError(
            f"{foreign}: it contains more than tensors (reading it would run code), or is corrupt", file=path
        ) from None
    except (OSError, RuntimeError, LookupError, ValueError, EOFError, AttributeError, TypeError, AssertionError):
        raise InputError(f"{foreign}, or is truncated or corrupt", file=path) from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{foreign}: expected a dict of tensors", file=path)
    found = {}
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{foreign}: entry {name!r} is of type {type(value).__name__}, not a tensor", file=path)
        if value.dtype not in DTYPES.values() or value.layout is not torch.strided:
            raise _not_floating(path, name, str(value.dtype).removeprefix("torch."))
        found[name] = StoredTensor(path, tuple(value.shape), value.dtype, _constant(value))
    return found


def _constant(value: Tensor) -> Callable[[], Tensor]:
    return lambda: value


def _require_content(path: Path) -> bytes:
    """Read the first bytes; reject missing or empty files and Git LFS pointers."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(LFS_POINTER))
    except FileNotFoundError:
        raise no_such_file(path) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", file=path) from None
    if not start:
        raise InputError("is empty", file=path)
    if start == LFS_POINTER:
        raise InputError("is a Git LFS pointer, not the weights; fetch them with `git lfs pull`", file=path)
    return start


def _require_stored(path: Path) -> None:
    """Reject compressed members: torch writes none, they cannot be memory-mapped, and may inflate to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed: Iterable[str] = [
                part.filename for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED
            ]
    except (OSError, *DAMAGED):
        raise InputError("is not a file of weights, or is truncated", file=path) from None
    for name in packed:
        raise InputError(f"is not a file of weights: its member {name} is compressed", file=path)


def _not_floating(path: Path, name: str, dtype: str) -> InputError:
    return InputError(
        f"tensor {name} has dtype {dtype}; only dense float64, float32, float16 and bfloat16 are supported",
        file=path,
    )
