"""File formats of bags: HDF5 (CLAM, TRIDENT), saved tensors and NumPy arrays, read in full or headers only.

Reading never executes code from a file, follows no external links, and allocates no more memory than the file can fill.
"""

from __future__ import annotations

import errno
import pickle
import sys
import zipfile
from functools import cache
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np

from seqssm.errors import InputError
from seqssm.files.notes import note

INFLATION = (
    1100  # maximum ratio of declared to stored bytes; deflate reaches at most 1,032, so larger ratios mean damage
)
ATTRIBUTES = 50  # maximum number of attributes read per dataset or file

OLD_PIXELS, OLD_MICROMETRES = 224, 256.0  # side of a tile of STAMP version 1
DEFAULT_KEY, STAMP_KEY = "features", "feats"  # names of the features of CLAM and TRIDENT, and of STAMP

Content = tuple[np.ndarray, np.ndarray | None, dict[str, Any]]
"""Features, coordinates (or None) and attributes."""


def read_content(path: Path, key: str, header: bool = False) -> Content:
    """Read features, coordinates and attributes without converting them.

    Args:
        path: path of the bag, ``.h5``, ``.hdf5``, ``.pt`` or ``.npy``.
        key: name of the features in an ``.h5`` file or a saved dict.
        header: whether to read shapes only; the returned arrays are then zeros that use no memory.

    Raises:
        InputError: the file is corrupt, locked, not readable, or has no features.
    """
    readers = {".pt": _read_pt, ".npy": _read_npy}
    return readers.get(path.suffix.lower(), _read_h5)(path, key, header)


def short(error: Exception) -> str:
    """Format an exception of a library as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def unreadable(error: BaseException, path: Path) -> InputError | None:
    """Return the error for a file that is locked or not permitted to be read; None for other exceptions.

    Args:
        error: exception raised when the file was opened or read.
        path: path of the file.
    """
    text = str(error).lower()
    code = getattr(error, "errno", None)
    if "unable to lock file" in text or "already open for write" in text or isinstance(error, BlockingIOError):
        message = "is locked by another process, which may still be writing it; wait until it has finished"
        return InputError(message, file=path)
    if isinstance(error, PermissionError) or code in (errno.EACCES, errno.EPERM) or "permission denied" in text:
        return InputError("cannot be read: permission denied", file=path)
    return None


def _stand_in(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.broadcast_to(np.zeros((), dtype=dtype), shape)


# -- HDF5 --------------------------------------------------------------------------------------------------------------


def _read_h5(path: Path, key: str, header: bool) -> Content:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if key == DEFAULT_KEY and key not in file and STAMP_KEY in file:
                key = STAMP_KEY
            if key not in file:
                names = ", ".join(_datasets(file)) or "nothing"
                hint = f"contains {names}"
                if list(file) == ["coords"]:
                    hint = "patch coordinates only; the encoder has not been run"
                options = "--data.feature_key (fit) and --feature-key (predict) name another"
                raise InputError(f"has no dataset {key!r} ({hint}); {options}", file=path)
            features, own = dataset(file, key, path, header)
            attributes = _plain(file.attrs) | own
            coords, place = None, key.rpartition("/")[0] + "/coords"  # of a dataset in a group: beside it
            if place in file:
                coords, own = dataset(file, place.strip("/"), path, header)
                attributes |= own
            if key == STAMP_KEY:
                return features, *of_stamp(coords, attributes, header)
            return features, coords, attributes
    except InputError:
        raise
    except Exception as error:  # damaged files raise many kinds of exceptions in h5py
        known = unreadable(error, path)
        raise known or InputError(f"is not an HDF5 file, or it is corrupt ({short(error)})", file=path) from None


def of_stamp(
    coords: np.ndarray | None, attributes: dict[str, Any], header: bool
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return coordinates and attributes of a STAMP file with an explicit unit, by the conventions of its versions.

    Version 2 states ``unit``; ``tile_size_um`` alone means micrometres. Version 1 states neither: its tiles are 224
    pixels wide and 224 apart, and cover 256 micrometres.

    Args:
        coords: coordinates, (N, 2), or None.
        attributes: attributes of the file.
        header: whether `coords` has a shape only.
    """
    if "unit" in attributes or coords is None:
        return coords, attributes
    if "tile_size_um" in attributes:
        return coords, {**attributes, "unit": "um"}
    _say_once(
        "STAMP files without a unit of the coordinates: tiles of 224 pixels are read as 256 micrometres (STAMP "
        "version 1), others as level-0 pixels"
    )
    if header or coords.ndim != 2 or coords.dtype.kind not in "iuf":
        return coords, attributes
    side = attributes.get("tile_size", _spacing(coords))
    if not isinstance(side, int | float) or abs(side - OLD_PIXELS) > 0.5:
        return coords, attributes
    return coords * (OLD_MICROMETRES / OLD_PIXELS), {**attributes, "unit": "um", "tile_size_um": OLD_MICROMETRES}


def _spacing(coords: np.ndarray) -> float:
    """Smallest distance between columns or rows of tiles; 0 for a single tile."""
    gaps = [np.diff(np.unique(axis)) for axis in coords.T]
    return float(min((own.min() for own in gaps if len(own)), default=0))


@cache
def _say_once(line: str) -> None:
    if parent_process() is None:  # loader processes read the same files
        note(line, sys.stderr)


def _datasets(group: Any, prefix: str = "", depth: int = 2) -> list[str]:
    """The first names of a file; those inside a group by their path. Links are named, not followed."""
    import h5py

    names: list[str] = []
    for name in sorted(group)[:10]:
        inner = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        inside = _datasets(inner, f"{prefix}{name}/", depth - 1) if isinstance(inner, h5py.Group) and depth else []
        names += inside or [f"{prefix}{name}"]
    return names[:10]


def dataset(file: Any, name: str, path: Path, header: bool = False) -> tuple[np.ndarray, dict[str, Any]]:
    """Read the values and plain attributes of a dataset stored in this file itself.

    Args:
        file: an open `h5py.File`.
        name: name of the dataset.
        path: path of the file, used in error messages.
        header: whether to return zeros instead of the values.

    Returns:
        (values, attributes); attributes are numbers, text and pairs of numbers.

    Raises:
        InputError: the dataset is a link, is not numeric, or declares more bytes than the file can hold.
    """
    import h5py

    parts = [part for part in name.split("/") if part]
    for count in range(1, len(parts) + 1):  # a group on the way may be a link as well
        link = file.get("/".join(parts[:count]), getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = "an external link" if isinstance(link, h5py.ExternalLink) else f"a link to {link.path}"
            raise InputError(f"{'/'.join(parts[:count])} is {kind}, which is not followed", file=path)
    data = file[name]
    if isinstance(data, h5py.Group):
        inside = ", ".join(_datasets(data, f"{name}/")) or "nothing"
        raise InputError(f"{name} is a group, not a dataset (contains {inside})", file=path)
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise InputError(f"{name} is not a plain dataset of this file", file=path)
    if data.shape is None:
        raise InputError(f"{name} is an empty dataset", file=path)
    if data.dtype.kind not in "fiu":
        raise InputError(f"{name} have dtype {data.dtype}, expected numbers", file=path)
    if data.nbytes > INFLATION * path.stat().st_size:
        raise InputError(f"is corrupt: it declares {data.nbytes} bytes of {name}", file=path)
    return _stand_in(data.shape, data.dtype) if header else data[()], _plain(data.attrs)


def _plain(stored: Any) -> dict[str, Any]:
    """The attributes of a file or dataset that are numbers, text or pairs of numbers."""
    attributes: dict[str, Any] = {}
    for key in list(stored)[:ATTRIBUTES]:
        value = np.asarray(stored[key])
        if value.size == 1 and value.dtype.kind in "fiub":
            attributes[key] = value.reshape(()).item()
        elif value.size == 2 and value.dtype.kind in "fiu":  # CLAM's downsample: one number per axis
            attributes[key] = value.ravel().tolist()
        elif value.size == 1 and value.dtype.kind in "OSU":
            item = value.reshape(()).item()
            attributes[key] = item.decode(errors="replace") if isinstance(item, bytes) else str(item)
    return attributes


# -- tensors and arrays ------------------------------------------------------------------------------------------------


def _read_pt(path: Path, key: str, header: bool) -> Content:
    import torch

    try:
        archive = zipfile.is_zipfile(path)
        if archive and not header:
            with zipfile.ZipFile(path) as content:
                damaged = content.testzip()
            if damaged:
                raise InputError(f"is corrupt: wrong checksum of member {damaged}", file=path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive and header)
    except InputError:
        raise
    except Exception as error:  # weights_only runs no code, but damaged files raise many kinds of exceptions
        message = "is not a tensor file, or is corrupt, or contains more than tensors"
        if type(error) is not pickle.UnpicklingError:  # the text of UnpicklingError suggests disabling weights_only
            message += f" ({short(error)})"
        raise unreadable(error, path) or InputError(f"{message}; not opened", file=path) from None
    coords = None
    if isinstance(content, dict):
        if key not in content:
            names = ", ".join(str(name) for name in list(content)[:10])
            raise InputError(f"has no entry {key!r} (contains {names or 'nothing'})", file=path)
        content, coords = content[key], content.get("coords")
    return (
        _array(content, "features", path, header),
        None if coords is None else _array(coords, "coords", path, header),
        {},
    )


def _array(value: Any, name: str, path: Path, header: bool) -> np.ndarray:
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        raise InputError(f"{name} are a {type(value).__name__}, not a plain tensor", file=path)
    if value.is_complex() or value.is_quantized or value.device.type != "cpu":
        raise InputError(f"{name} are of type {value.dtype}, not numbers", file=path)
    if header:
        kind = np.float32 if value.dtype.is_floating_point else np.bool_ if value.dtype == torch.bool else np.int64
        return _stand_in(tuple(value.shape), np.dtype(kind))
    value = value.detach()
    return (value.double() if value.dtype.is_floating_point else value).numpy()


def _read_npy(path: Path, key: str, header: bool) -> Content:
    """Read the features, and ``coords/<slide>.npy`` next to their folder if it exists (torchmil layout)."""
    beside = path.parent.parent / "coords" / path.name
    arrays: list[np.ndarray | None] = []
    for one in (path, beside if beside != path and beside.is_file() else None):
        if one is None:
            arrays.append(None)
            continue
        try:
            # memory-mapped first: a damaged header must not cause a huge allocation
            mapped = np.load(one, mmap_mode="r", allow_pickle=False)
            arrays.append(_stand_in(mapped.shape, mapped.dtype) if header else np.array(mapped))
        except Exception as error:
            why = "" if "pickle" in str(error) else f" ({short(error)})"  # the text of numpy suggests allow_pickle
            message = f"is not an .npy file of numbers, or it is corrupt{why}"
            raise unreadable(error, one) or InputError(message, file=one) from None
    assert arrays[0] is not None
    return arrays[0], arrays[1], {}
