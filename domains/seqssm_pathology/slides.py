"""Bags computed directly from slides: tissue tiles with simple features. Requires openslide (``seqssm[slides]``).

The features are hand-made: colours, stains and texture. They are sufficient for trying the whole workflow and for a
heat map, and do not replace a trained encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from seqssm.errors import ExitCode, InputError
from seqssm.files.disk import atomic
from seqssm_pathology.files import SLIDE_SUFFIXES, Bag, say, slide_id, write_bag

ENCODER = "seqssm_handmade_46"
WHITE = 0.05  # saturation below which a pixel is background
DARK = 0.12  # brightness below which a pixel is a pen mark or the shadow of a fold
# optical densities of haematoxylin, eosin and the residual in red, green, blue (Ruifrok and Johnston 2001)
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
BINS = 8  # bins of a colour histogram
PATTERNS = 10  # uniform local binary patterns of 8 neighbours: 0 to 8 set, and all others


def openslide() -> Any:
    """Import the module openslide.

    Raises:
        InputError: openslide is not installed.
    """
    try:
        import openslide as module
    except (ImportError, OSError):
        raise InputError("slides need openslide: pip install 'seqssm[slides]'") from None
    return module


def open_slide(path: Path) -> Any:
    """Open a slide.

    Raises:
        InputError: the file is missing, or is not a slide.
    """
    module = openslide()
    if not path.is_file():
        raise InputError("no such slide", file=path)
    try:
        return module.open_slide(str(path))
    except (module.OpenSlideError, OSError) as error:
        raise InputError(
            f"is not a slide that openslide can read ({' '.join(str(error).split())[:100]})", file=path
        ) from None


def find_slide(folder: Path, name: str) -> Path | None:
    """Find the slide `name` in a folder, with any slide suffix."""
    if not folder.is_dir():
        raise InputError("no such folder of slides", file=folder)
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in SLIDE_SUFFIXES and slide_id(file.name) == name:
            return file
    return None


def thumbnail(path: Path, longest: int) -> tuple[np.ndarray, tuple[int, int], float | None]:
    """Read a small image of a slide.

    Args:
        path: path of the slide.
        longest: length of the longest side of the image, pixels.

    Returns:
        (RGB image, (width, height) of the slide in level-0 pixels, micrometres per level-0 pixel or None).
    """
    with open_slide(path) as slide:
        image = _read(path, lambda: slide.get_thumbnail((longest, longest)))
        try:
            mpp = float(slide.properties["openslide.mpp-x"])
        except (KeyError, ValueError):
            mpp = 0.0
        return np.asarray(image.convert("RGB")), slide.dimensions, mpp if 0.01 <= mpp <= 20 else None


def regions(path: Path, corners: np.ndarray, side: int, longest: int) -> list[np.ndarray]:
    """Read square regions of a slide.

    Args:
        path: path of the slide.
        corners: top left corners, (N, 2), level-0 pixels.
        side: side of a region, level-0 pixels.
        longest: maximum side of an image; larger regions are read from a smaller level, and shrunk.

    Returns:
        RGB images, (H, W, 3) uint8; areas that were not scanned are white.
    """
    size = min(side, longest)
    with open_slide(path) as slide:
        level = slide.get_best_level_for_downsample(side / size * 1.01)
        stored = max(1, round(side / slide.level_downsamples[level]))
        images = []
        for x, y in corners.tolist():
            image = _read(path, lambda x=x, y=y: slide.read_region((x, y), level, (stored, stored)))
            images.append(np.round(255 * _on_white(image, size)).astype(np.uint8))
        return images


def write_image(path: Path, pixels: np.ndarray) -> Path:
    """Write an RGB image, (H, W, 3) uint8, as PNG."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        Image.fromarray(pixels).save(file, "PNG")
    return path


def tile(path: Path, size: int = 256, magnification: float | None = None, tissue: float = 0.5) -> Bag:
    """Cut a slide into tiles on a grid from its origin and keep the tiles with tissue.

    Args:
        path: path of the slide.
        size: side length of a tile, pixels at `magnification`.
        magnification: magnification of the tiles; by default that of the slide.
        tissue: minimum fraction of tissue pixels.

    Returns:
        A bag with features (N, 46) float32, coords in level-0 pixels, row by row, and attributes as in TRIDENT.

    Raises:
        InputError: no such slide, unknown magnification, or no tissue.
    """
    with open_slide(path) as slide:
        own = slide.properties.get("openslide.objective-power")
        power = float(own) if own else None
        factor = 1.0
        if magnification is not None:
            if power is None:
                raise InputError("does not state its magnification; omit --magnification", file=path)
            factor = power / magnification
            if factor < 1:
                raise InputError(f"is scanned at {power:g}x; --magnification {magnification:g} is more", file=path)
        step = round(size * factor)
        width, height = slide.dimensions
        level = slide.get_best_level_for_downsample(factor * 1.01)
        shrink = slide.level_downsamples[level]
        side = max(1, round(step / shrink))
        coords, rows = [], []
        for y in range(0, height - step + 1, step):
            for x in range(0, width - step + 1, step):
                image = _read(path, lambda x=x, y=y: slide.read_region((x, y), level, (side, side)))
                pixels = _on_white(image, size)
                if is_tissue(pixels).mean() >= tissue:
                    coords.append((x, y))
                    rows.append(features(pixels))
    if not rows:
        raise InputError(f"no tile of {step} level-0 pixels is tissue (--size, --tissue)", file=path)
    attributes: dict[str, Any] = {"name": slide_id(path.name), "overlap": 0}
    attributes |= {"patch_size": size, "patch_size_level0": step}
    if power is not None:
        attributes |= {"level0_magnification": power, "target_magnification": magnification or power}
    return Bag(slide_id(path.name), np.stack(rows), np.array(coords, dtype=np.int64), step, attributes=attributes)


def _read(path: Path, read: Any) -> Any:
    try:
        return read()
    except (openslide().OpenSlideError, OSError) as error:
        raise InputError(f"cannot be read to its end ({' '.join(str(error).split())[:100]})", file=path) from None


def _on_white(image: Any, size: int) -> np.ndarray:
    """Read a tile, (size, size, 3), in 0 .. 1; areas that were not scanned are white."""
    from PIL import Image

    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    flat = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    if flat.size != (size, size):
        flat = flat.resize((size, size), Image.Resampling.BOX)
    return np.asarray(flat, dtype=np.float32) / 255


def is_tissue(pixels: np.ndarray) -> np.ndarray:
    """Mask of stained pixels: (H, W, 3) in 0 .. 1 to (H, W) bool."""
    high, low = pixels.max(-1), pixels.min(-1)
    return (high - low > WHITE * np.maximum(high, 1e-6)) & (high > DARK)


def features(pixels: np.ndarray) -> np.ndarray:
    """Compute 46 features per tile: mean and std of colours (6) and of stains (6), histograms (24), texture (10)."""
    flat = pixels.reshape(-1, 3)
    density = -np.log10(np.clip(flat, 1 / 255, 1))
    unit = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    stains = density @ np.linalg.inv(unit)
    parts = [flat.mean(0), flat.std(0), stains.mean(0), stains.std(0)]
    for channel in flat.T:
        counts = np.bincount(np.minimum((channel * BINS).astype(int), BINS - 1), minlength=BINS)
        parts.append(counts / len(flat))
    parts.append(texture(pixels.mean(-1)))
    return np.concatenate(parts).astype(np.float32)


def texture(grey: np.ndarray) -> np.ndarray:
    """Compute the fractions of the uniform local binary patterns (Ojala et al. 2002) of 8 neighbours."""
    if min(grey.shape) < 3:
        return np.zeros(PATTERNS)
    centre = grey[1:-1, 1:-1]
    ring = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0)]
    rows, columns = centre.shape
    bits = np.stack([grey[y : y + rows, x : x + columns] >= centre for y, x in ring])
    changes = (bits != np.roll(bits, 1, axis=0)).sum(0)
    pattern = np.where(changes <= 2, bits.sum(0), PATTERNS - 1)
    return np.bincount(pattern.ravel(), minlength=PATTERNS) / pattern.size


def tile_command(options: dict[str, Any]) -> int:
    """Run ``seqssm pathology tile SLIDE... --output DIR``: one bag per slide; exit code 3 if some slides failed."""
    if options["output"] is None:
        raise InputError("--output FOLDER is required")
    openslide()
    failed = 0
    for name in options["inputs"]:
        path = Path(name)
        target = Path(options["output"]) / f"{slide_id(path.name)}.h5"
        if target.exists() and not options["overwrite"]:
            print(f"{target}: exists (--overwrite replaces it)")
            continue
        try:
            bag = tile(path, options["size"], options["magnification"], options["tissue"])
        except InputError as error:
            if len(options["inputs"]) == 1:
                raise
            say(f"seqssm: {error}")
            failed += 1
            continue
        write_bag(target, bag, ENCODER)
        print(f"{target}: {len(bag)} tiles")
    return ExitCode.PARTIAL if failed else ExitCode.OK
