"""Bags of patch features on disk: CLAM and TRIDENT ``.h5``, ``.pt`` tensors, ``.npy``; written as TRIDENT writes them.

A bag is one slide: features (N, D) and, where known, coords (N, 2), the top left corner of each patch in level-0
pixels. Whatever a file holds, reading it runs no code of it and opens no other file; a bag that cannot be used is one
`InputError` that names it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seqssm.errors import InputError
from seqssm.files.disk import atomic

SLIDE_SUFFIXES = (".svs", ".tiff", ".tif", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".czi", ".dcm")
BAG_SUFFIXES = (".h5", ".hdf5", ".pt", ".npy")
FOLDERS = ("", "h5_files", "pt_files", "features")  # where CLAM, TRIDENT and torchmil put a set's bags
INFLATION = 1100  # deflate makes at most 1,032 bytes of one; a file that promises more is damaged

Invalid = Literal["error", "drop"]


@dataclass
class Bag:
    """The patches of a slide.

    Attributes:
        id: the slide.
        features: (N, D) float32.
        coords: (N, 2) int64, x and y of each patch's top left corner, level-0 pixels; None where not known.
        patch: side of a patch in level-0 pixels, None where not known.
        dropped: instances left out because they held NaN or infinity.
        attributes: what the file says about itself (numbers and text).
    """

    id: str
    features: np.ndarray
    coords: np.ndarray | None = None
    patch: int | None = None
    dropped: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)


def slide_id(name: str) -> str:
    """A name without the suffix of a slide or bag: ``"caseC.vvs.svs"`` is ``"caseC.vvs"``."""
    name = name.encode("utf-8", "backslashreplace").decode()  # bytes of a file's name that are no UTF-8
    for suffix in (*BAG_SUFFIXES, *SLIDE_SUFFIXES):  # features are often called slide.svs.h5
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            name = name[: -len(suffix)]
    return name


def read_bag(path: Path, key: str = "features", invalid: Invalid = "error") -> Bag:
    """Reads a bag.

    Args:
        path: ``.h5``, ``.hdf5``, ``.pt`` or ``.npy``.
        key: name of the features in an ``.h5`` file or a saved dict.
        invalid: instances with NaN or infinity: ``"error"`` refuses the bag, ``"drop"`` leaves them out and counts
            them.

    Raises:
        InputError: missing, damaged, empty, without features, with coords of another length.
    """
    suffix = path.suffix.lower()
    if suffix not in BAG_SUFFIXES:
        raise InputError(f"is no bag of features ({', '.join(BAG_SUFFIXES)} are)", file=path)
    if not path.is_file():
        raise InputError("no such file", file=path)
    if path.stat().st_size == 0:
        raise InputError("is empty (0 bytes)", file=path)
    if suffix == ".pt":
        features, coords, attributes = _read_pt(path, key)
    elif suffix == ".npy":
        features, coords, attributes = _read_npy(path)
    else:
        features, coords, attributes = _read_h5(path, key)
    return _checked(path, features, coords, attributes, invalid)


def _checked(path: Path, features: np.ndarray, coords: np.ndarray | None, attributes: dict, invalid: Invalid) -> Bag:
    features = _squeezed(features, path, "features")
    if features.ndim == 1:
        features = features[None]
    if features.ndim != 2:
        raise InputError(f"features have shape {features.shape}; (patches, width) is needed", file=path)
    if features.size == 0:
        raise InputError(f"holds no patches: features have shape {features.shape}", file=path)
    with np.errstate(over="ignore"):  # what single precision cannot hold is infinite, and told below
        features = np.ascontiguousarray(features, dtype=np.float32)
    if coords is not None:
        coords = _squeezed(coords, path, "coords")
        if coords.shape != (len(features), 2):
            shape = f"coords have shape {coords.shape}, features {features.shape}"
            raise InputError(f"{shape}: every patch needs one x, y", file=path)
        if coords.dtype.kind == "f" and not (np.isfinite(coords).all() and (np.abs(coords) < 2.0**53).all()):
            raise InputError("coords hold NaN, infinity or numbers that are no pixels", file=path)
        coords = coords.astype(np.int64)
    good = np.isfinite(features).all(axis=1)
    dropped = int(len(good) - good.sum())
    if dropped:
        first = int(np.flatnonzero(~good)[0])
        if invalid == "error":
            message = f"{dropped} of {len(good)} patches hold NaN or infinity (first: row {first})"
            raise InputError(f"{message}; invalid: drop leaves them out", file=path)
        if dropped == len(good):
            raise InputError("every patch holds NaN or infinity", file=path)
        features, coords = features[good], None if coords is None else coords[good]
    return Bag(slide_id(path.name), features, coords, _patch_side(attributes), dropped, attributes)


def _squeezed(array: np.ndarray, path: Path, what: str) -> np.ndarray:
    """Numbers, without the leading axis of 1 that some encoders leave."""
    if array.dtype.kind not in "fiu":
        raise InputError(f"{what} are of type {array.dtype}, not numbers", file=path)
    return array[0] if array.ndim == 3 and array.shape[0] == 1 else array


def _patch_side(attributes: dict[str, Any]) -> int | None:
    """Level-0 side of a patch: given, or patch_size * level-0 magnification / target magnification (TRIDENT)."""
    found = {name: value for name, value in attributes.items() if isinstance(value, int | float) and value > 0}
    side = found.get("patch_size_level0")
    if side is None and "patch_size" in found:
        side = found["patch_size"]
        if "level0_magnification" in found and "target_magnification" in found:
            side = side * found["level0_magnification"] / found["target_magnification"]
    return round(side) if side is not None and 1 <= side < 1e6 else None


# -- formats ---------------------------------------------------------------------------------------------------------


def _read_h5(path: Path, key: str) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if key not in file:
                names = ", ".join(sorted(file)[:10]) or "nothing"
                hint = (
                    "patch coordinates only, the encoder has not run" if list(file) == ["coords"] else f"holds {names}"
                )
                raise InputError(
                    f"has no dataset {key!r} ({hint}); fit takes another name by --data.feature_key", file=path
                )
            features, attributes = _dataset(file, key, path)
            coords = None
            if "coords" in file:
                coords, own = _dataset(file, "coords", path)
                attributes |= own
            return features, coords, attributes
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise anything that HDF5 and h5py have
        raise InputError(f"is no HDF5 file, or it is damaged ({short(error)})", file=path) from None


def _dataset(file: Any, name: str, path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """The values and plain attributes of a dataset that lies in this very file."""
    import h5py

    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise InputError(f"{name} is a link to somewhere else; not followed", file=path)
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise InputError(f"{name} is not a plain dataset of this file", file=path)
    if data.dtype.kind not in "fiu" or data.shape is None:
        raise InputError(f"{name} are of type {data.dtype}, not numbers", file=path)
    if data.nbytes > INFLATION * path.stat().st_size:
        raise InputError(f"is damaged: it promises {data.nbytes} bytes of {name}", file=path)
    attributes = {}
    for key in list(data.attrs)[:50]:
        value = np.asarray(data.attrs[key])
        if value.size == 1 and value.dtype.kind in "fiub":
            attributes[key] = value.reshape(()).item()
        elif value.size == 1 and value.dtype.kind in "OSU":
            item = value.reshape(()).item()
            attributes[key] = item.decode(errors="replace") if isinstance(item, bytes) else str(item)
    return data[()], attributes


def _read_pt(path: Path, key: str) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    import pickle
    import zipfile

    import torch

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise InputError(f"damaged: the checksum of its part {damaged} is wrong", file=path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # weights_only runs nothing, but a damaged file can raise anything
        message = "is no tensor file, or it is damaged or holds more than tensors"
        if type(error) is not pickle.UnpicklingError:  # whose text advises to run the file
            message += f" ({short(error)})"
        raise InputError(f"{message}; not opened", file=path) from None
    coords = None
    if isinstance(content, dict):
        if key not in content:
            names = ", ".join(str(name) for name in list(content)[:10])
            raise InputError(f"has no entry {key!r} (holds {names or 'nothing'})", file=path)
        content, coords = content[key], content.get("coords")
    arrays = []
    for name, value in (("features", content), ("coords", coords)):
        if value is not None and (not isinstance(value, torch.Tensor) or value.layout != torch.strided):
            raise InputError(f"{name} are a {type(value).__name__}, not a plain tensor", file=path)
        if value is not None and (value.is_complex() or value.is_quantized or value.device.type != "cpu"):
            raise InputError(f"{name} are of type {value.dtype}, not numbers", file=path)
        if value is not None:
            value = value.detach()
            arrays.append((value.double() if value.dtype.is_floating_point else value).numpy())
        else:
            arrays.append(None)
    return arrays[0], arrays[1], {}


def _read_npy(path: Path) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """The features, and ``coords/<slide>.npy`` beside their folder when it is there (torchmil)."""
    beside = path.parent.parent / "coords" / path.name
    arrays = []
    for one in (path, beside if beside != path and beside.is_file() else None):
        try:
            # mapped first: a header that promises more than the file holds must not take memory
            mapped = None if one is None else np.load(one, mmap_mode="r", allow_pickle=False)
            arrays.append(None if mapped is None else np.array(mapped))
        except Exception as error:
            why = "" if "pickle" in str(error) else f" ({short(error)})"  # numpy's text advises to run the file
            raise InputError(f"is no .npy of numbers, or it is damaged{why}", file=one) from None
    return arrays[0], arrays[1], {}


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def write_bag(path: Path, bag: Bag, encoder: str) -> None:
    """Writes a bag as TRIDENT does: `features` and `coords` with attributes, compressed.

    Args:
        path: the ``.h5`` file; it appears when it is complete.
        bag: the bag; its attributes go to `coords`.
        encoder: name of what made the features.
    """
    import h5py

    with atomic(path) as raw, h5py.File(raw, "w") as file:
        features = file.create_dataset("features", data=bag.features, compression="gzip")
        features.attrs["name"], features.attrs["encoder"] = bag.id, encoder
        if bag.coords is not None:
            coords = file.create_dataset("coords", data=bag.coords.astype(np.int64), compression="gzip")
            for name, value in bag.attributes.items():
                coords.attrs[name] = value


# -- folders ---------------------------------------------------------------------------------------------------------


def list_bags(folder: Path) -> dict[str, Path]:
    """The bags of a folder by slide id, sorted: its own files, or those in ``h5_files``, ``pt_files`` or ``features``.

    Of a slide that is there in several formats the ``.h5`` is taken, because it holds coordinates.

    Raises:
        InputError: no such folder, no bag in it, or two of one slide and format.
    """
    if not folder.is_dir():
        raise InputError("no such folder", file=folder)
    found: dict[str, Path] = {}
    for name in FOLDERS:
        inside = folder / name
        if inside.is_dir():
            files = [file for file in inside.iterdir() if file.suffix.lower() in BAG_SUFFIXES and file.name[0] != "."]
            files = [file for file in files if not file.is_dir()]
            for file in sorted(files, key=lambda file: (BAG_SUFFIXES.index(file.suffix.lower()), file.name)):
                known = found.setdefault(slide_id(file.name), file)
                if known != file and known.suffix.lower() == file.suffix.lower():
                    message = f"two bags of the slide {slide_id(file.name)}: {known.relative_to(folder)}"
                    raise InputError(f"{message} and {file.relative_to(folder)}; which one is it?", file=folder)
    if not found:
        raise InputError(f"holds no bags ({', '.join(BAG_SUFFIXES)}), nor do h5_files, pt_files, features", file=folder)
    return dict(sorted(found.items()))


def join(bags: Iterable[Bag], case: str) -> tuple[Bag, np.ndarray]:
    """The slides of a case as one bag, and the number of the slide that each patch is of.

    Coordinates are kept only when every slide has them.

    Raises:
        InputError: the slides have features of different widths.
    """
    slides = list(bags)
    if len(slides) == 1:
        return slides[0], np.zeros(len(slides[0]), dtype=np.int64)
    widths = {bag.features.shape[1] for bag in slides}
    if len(widths) > 1:
        raise InputError(f"the slides of case {case} have features of different widths: {sorted(widths)}")
    coords = None
    if all(bag.coords is not None for bag in slides):
        coords = np.concatenate([bag.coords for bag in slides])
    slide = np.repeat(np.arange(len(slides)), [len(bag) for bag in slides])
    features = np.concatenate([bag.features for bag in slides])
    return Bag(case, features, coords, slides[0].patch, sum(bag.dropped for bag in slides)), slide


def say(message: str) -> None:
    """A line for the user on stderr: what was dropped, merged or reordered."""
    print(message, file=sys.stderr)
