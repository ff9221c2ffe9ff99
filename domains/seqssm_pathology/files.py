"""Bags of patch features on disk: CLAM and TRIDENT ``.h5``, ``.pt`` tensors and ``.npy``; written in TRIDENT's layout.

A bag is one slide: features (N, D) and, if known, coords (N, 2), the top left corner of each patch in level-0
pixels. An unusable bag raises one `InputError` with its path.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from seqssm.errors import InputError, no_such_file
from seqssm.files.disk import atomic, encodable
from seqssm.files.notes import note
from seqssm_pathology.formats import read_content

SLIDE_SUFFIXES = (".svs", ".tiff", ".tif", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".czi", ".dcm")
BAG_SUFFIXES = (".h5", ".hdf5", ".pt", ".npy")
FOLDERS = ("", "h5_files", "pt_files", "features")  # locations of the bags in data sets of CLAM, TRIDENT and torchmil
RESOLUTIONS = ("mpp", "level0_mpp", "mpp_level0", "mpp_x", "slide_mpp")  # attributes with micrometres per level-0 pixel
MICROMETRES = ("um", "µm", "μm", "micrometer", "micrometre", "micron", "microns")  # of attribute `unit` (STAMP)
LARGEST = 2.0**53  # upper bound of coordinates: float64 represents smaller integers exactly
POWER = "target_magnification"  # attribute with the magnification of the patches
NOMINAL = 10.0  # product of magnification and micrometres per pixel: 20x is about 0.5

Invalid = Literal["error", "drop"]


@dataclass
class Bag:
    """The patches of a slide.

    Attributes:
        id: id of the slide.
        features: patch features, (N, D) float32.
        coords: x and y of the top left corner of each patch, (N, 2) int64, level-0 pixels; None if unknown.
        patch: side length of a patch, level-0 pixels; None if unknown.
        dropped: number of instances dropped because of NaN or infinity.
        attributes: attributes of the file (numbers, text and pairs of numbers).
    """

    id: str
    features: np.ndarray
    coords: np.ndarray | None = None
    patch: int | None = None
    dropped: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def in_micrometres(self) -> bool:
        """Whether coordinates and patch side are micrometres, not level-0 pixels."""
        return str(self.attributes.get("unit", "")).strip().lower() in MICROMETRES

    @property
    def mpp(self) -> float | None:
        """Micrometres per level-0 pixel, from the file or from the magnification (20x is 0.5); None if unknown."""
        if self.in_micrometres:
            return 1.0
        for name in RESOLUTIONS:
            value = self.attributes.get(name)
            if _is_number(value) and 0.01 <= value <= 20:
                return float(value)
        power = self.attributes.get("level0_magnification")
        return NOMINAL / power if _is_number(power) and 0.5 <= power <= 200 else None

    @property
    def powers(self) -> set[float]:
        """Magnifications at which the patches were read, as TRIDENT writes them; empty if unknown."""
        given = self.attributes.get(POWER, ())
        every = given if isinstance(given, tuple) else (given,)
        return {float(one) for one in every if _is_number(one) and one > 0}


@dataclass(frozen=True)
class Header:
    """Header of a bag.

    Attributes:
        patches: number of patches, N.
        width: feature width, D.
        has_coords: whether patches have coordinates.
    """

    patches: int
    width: int
    has_coords: bool


def slide_id(name: str) -> str:
    """Strip the suffix of a slide or bag: ``"caseC.vvs.svs"`` becomes ``"caseC.vvs"``."""
    name = encodable(name)
    for suffix in (*BAG_SUFFIXES, *SLIDE_SUFFIXES):  # features are often named slide.svs.h5
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            name = name[: -len(suffix)]
    return name


def read_bag(path: Path, key: str = "features", invalid: Invalid = "error") -> Bag:
    """Read a bag.

    Args:
        path: path of the bag, ``.h5``, ``.hdf5``, ``.pt`` or ``.npy``.
        key: name of the features in an ``.h5`` file or a saved dict.
        invalid: treatment of instances with NaN or infinity: ``"error"`` rejects the bag, ``"drop"`` drops and counts
            them.

    Raises:
        InputError: the file is missing, corrupt, locked or empty, has no features, or coords of another length.
    """
    _require_file(path)
    return checked(path, *read_content(path, key), invalid)


def checked(
    path: Path, features: np.ndarray, coords: np.ndarray | None, attributes: dict[str, Any], invalid: Invalid
) -> Bag:
    """Make a bag of arrays, and check them.

    Args:
        path: path of the bag, or its name as a path; determines the id and is used in error messages.
        features: patch features, (N, D) numbers, or with a leading axis of 1.
        coords: coordinates, (N, 2), pixels, or None.
        attributes: attributes of the file.
        invalid: treatment of instances with NaN or infinity, as in `read_bag`.

    Raises:
        InputError: shapes do not match, or values are not finite.
    """
    for name, values in (("features", features), ("coords", coords)):
        if values is not None and values.dtype.kind in "cbmM":  # their conversion would drop imaginary parts
            raise InputError(f"{name} hold {values.dtype}, not real numbers", file=path)
    features, coords = _shaped(path, features, coords)
    with np.errstate(over="ignore"):  # values beyond single precision become infinite and are reported below
        features = np.ascontiguousarray(features, dtype=np.float32)
    if coords is not None:
        coords = _pixels(path, coords)
    good = np.isfinite(features).all(axis=1)
    dropped = int(len(good) - good.sum())
    if dropped:
        first = int(np.flatnonzero(~good)[0])
        if invalid == "error":
            message = f"{dropped} of {len(good)} patches contain NaN or infinity (first: row {first})"
            raise InputError(f"{message}; --data.invalid drop (fit), --invalid drop (predict) excludes them", file=path)
        if dropped == len(good):
            raise InputError("every patch contains NaN or infinity", file=path)
        features, coords = features[good], None if coords is None else coords[good]
    return Bag(slide_id(path.name), features, coords, _patch_side(attributes), dropped, attributes)


def read_header(path: Path, key: str = "features") -> Header:
    """Check a bag without reading its values: file, datasets and shapes.

    Args:
        path: path of the bag, ``.h5``, ``.hdf5``, ``.pt`` or ``.npy``.
        key: name of the features.

    Raises:
        InputError: as `read_bag`, except for invalid values.
    """
    _require_file(path)
    features, coords, _ = read_content(path, key, header=True)
    features, coords = _shaped(path, features, coords)
    return Header(len(features), features.shape[1], coords is not None)


def require_bag_name(path: Path) -> None:
    """Reject a file whose suffix is not that of a bag.

    Raises:
        InputError: with a remedy if the file is a table.
    """
    suffix = path.suffix.lower()
    if suffix not in BAG_SUFFIXES:
        table = suffix in (".csv", ".tsv", ".xlsx", ".parquet")
        remedy = "; a table of slides and cases is --manifest PATH, next to the folder of features" if table else ""
        raise InputError(f"is not a bag of features ({', '.join(BAG_SUFFIXES)}){remedy}", file=path)


def _require_file(path: Path) -> None:
    require_bag_name(path)
    if not path.is_file():
        raise InputError("not a regular file", file=path) if path.exists() else no_such_file(path)
    if path.stat().st_size == 0:
        raise InputError("is empty (0 bytes)", file=path)


def _shaped(path: Path, features: np.ndarray, coords: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return features (N, D) and coords (N, 2) without the leading axes that some encoders keep."""
    features = _squeezed(features, path, "features")
    if features.ndim == 1:
        features = features[None]
    if features.ndim != 2:
        raise InputError(f"features have shape {features.shape}, not (patches, width)", file=path)
    if features.size == 0:
        raise InputError(f"contains no patches: features have shape {features.shape}", file=path)
    if coords is not None:
        coords = _squeezed(coords, path, "coords")
        if coords.shape != (len(features), 2):
            shape = f"coords have shape {coords.shape}, features {features.shape}"
            raise InputError(f"{shape}: expected one x, y per patch", file=path)
    return features, coords


def _pixels(path: Path, coords: np.ndarray) -> np.ndarray:
    """Coordinates as whole pixels; fractions of a slide's size, which would fall on one another, are refused."""
    with np.errstate(invalid="ignore"):
        if not (np.isfinite(coords).all() and (np.abs(coords.astype(np.float64)) < LARGEST).all()):
            raise InputError("coords contain NaN, infinity or values that are not pixels", file=path)
    whole = coords.astype(np.int64)
    if coords.dtype.kind == "f" and len(np.unique(whole, axis=0)) < len(np.unique(coords, axis=0)):
        message = f"coords between {coords.min():g} and {coords.max():g} with fractions are not pixels"
        raise InputError(f"{message}: several patches fall on one pixel; store level-0 pixels", file=path)
    return whole


def _squeezed(array: np.ndarray, path: Path, what: str) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise InputError(f"{what} have dtype {array.dtype}, expected numbers", file=path)
    return array[0] if array.ndim == 3 and array.shape[0] == 1 else array


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _patch_side(attributes: dict[str, Any]) -> int | None:
    """Return the side of a patch in level-0 pixels, or None if the attributes do not determine it.

    The attributes give it directly, or as `patch_size` times level-0 magnification / target magnification (TRIDENT), or
    times the downsample of its level (CLAM).
    """
    found = {name: value for name, value in attributes.items() if _is_number(value) and value > 0}
    side = found.get("patch_size_level0", found.get("tile_size_um"))
    if side is None and attributes.get("unit") in MICROMETRES:
        side = found.get("tile_size")
    if side is None and "patch_size" in found:
        side = found["patch_size"]
        downsample = attributes.get("downsample")
        if isinstance(downsample, list):
            downsample = downsample[0]
        if "level0_magnification" in found and POWER in found:
            side = side * found["level0_magnification"] / found[POWER]
        elif _is_number(downsample) and downsample > 0:
            side = side * downsample
        elif found.get("patch_level"):  # a level above 0 without its downsample
            return None
    return round(side) if side is not None and 1 <= side < 1e6 else None


def write_bag(path: Path, bag: Bag, encoder: str) -> None:
    """Write a bag in TRIDENT's layout: compressed `features` and `coords` with attributes.

    Args:
        path: path of the ``.h5`` file; written atomically.
        bag: the bag; its attributes are written to `coords`.
        encoder: name of the feature encoder.
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
    """List the bags of a folder by slide id, sorted: its files, or those in ``h5_files``, ``pt_files`` or ``features``.

    The output folder of TRIDENT (``20x_256px_0px_overlap/features_uni_v1``), STAMP (``uni-1a2b3c``) or CLAM is accepted
    if it holds the features of one encoder. If a slide exists in several formats, the ``.h5`` file is used, because it
    holds coordinates.

    Raises:
        InputError: no such folder, no bags, features of several encoders, or two bags of one slide and format.
    """
    if not folder.is_dir():
        raise InputError("no such folder", file=folder)
    folder = _inner(folder)
    found: dict[str, Path] = {}
    for name in FOLDERS:
        inside = folder / name
        if inside.is_dir():
            files = [file for file in inside.iterdir() if file.suffix.lower() in BAG_SUFFIXES and file.name[0] != "."]
            files = [file for file in files if not file.is_dir()]
            for file in sorted(files, key=lambda file: (BAG_SUFFIXES.index(file.suffix.lower()), file.name)):
                known = found.setdefault(slide_id(file.name), file)
                if known != file and known.suffix.lower() == file.suffix.lower():
                    message = f"duplicate bags of the slide {slide_id(file.name)}: {known.relative_to(folder)}"
                    raise InputError(f"{message} and {file.relative_to(folder)}; remove one", file=folder)
    if not found:
        raise InputError(
            f"contains no bags ({', '.join(BAG_SUFFIXES)}), nor do h5_files, pt_files, features", file=folder
        )
    return dict(sorted(found.items()))


def _inner(folder: Path) -> Path:
    """Return the only folder of features inside an output folder; the folder itself if it has bags of its own."""
    if any(_has_bags(folder / name) for name in FOLDERS):
        return folder
    inside = [one for pattern in ("*", "*/*") for one in sorted(folder.glob(pattern)) if one.is_dir()]
    inside = [one for one in inside if not one.name.startswith((".", "slide_features", "patches"))]
    found = [one for one in inside if any(_has_bags(one / name) for name in FOLDERS)]
    found = [one for one in found if not any(one != other and other in one.parents for other in found)]
    if len(found) > 1:
        names = ", ".join(str(one.relative_to(folder)) for one in found[:5])
        raise InputError(f"has features in {len(found)} folders: {names}; name one of them", file=folder)
    return found[0] if found else folder


def _has_bags(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return any(one.suffix.lower() in BAG_SUFFIXES and one.name[0] != "." for one in folder.iterdir() if one.is_file())


def join(bags: Iterable[Bag], case: str) -> tuple[Bag, np.ndarray]:
    """Concatenate the slides of a case to one bag, and return it with the slide index of each patch.

    Coordinates are kept only if all slides have them.

    Raises:
        InputError: feature widths differ between the slides.
    """
    slides = list(bags)
    if len(slides) == 1:
        return slides[0], np.zeros(len(slides[0]), dtype=np.int64)
    widths = {bag.features.shape[1] for bag in slides}
    if len(widths) > 1:
        raise InputError(f"the slides of case {case} have features of different widths: {sorted(widths)}")
    coords = None
    if all(bag.coords is not None for bag in slides):
        coords = np.concatenate([bag.coords for bag in slides if bag.coords is not None])
    slide = np.repeat(np.arange(len(slides)), [len(bag) for bag in slides])
    features = np.concatenate([bag.features for bag in slides])
    powers = {POWER: tuple(sorted(set().union(*(bag.powers for bag in slides))))}
    return Bag(case, features, coords, slides[0].patch, sum(bag.dropped for bag in slides), powers), slide


def say(message: str) -> None:
    """Print a message to stderr: what was dropped, merged or reordered."""
    note(message, sys.stderr)
