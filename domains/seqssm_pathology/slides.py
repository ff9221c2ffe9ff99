"""Bags computed directly from slides: tissue tiles and their features. Requires openslide (``seqssm[slides]``).

By default the features are hand-made: colours, stains and texture. They are sufficient for trying the whole workflow
and for a heat map, and do not replace a trained encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from seqssm.errors import ExitCode, InputError
from seqssm.files.disk import atomic
from seqssm_pathology.encoders import Encoder, Handmade, make
from seqssm_pathology.files import SLIDE_SUFFIXES, Bag, say, slide_id, write_bag
from seqssm_pathology.tissue import LONGEST, Tissue, segment, write_contours

AT_ONCE = 32  # tiles that are encoded together
WHITE = 0.05  # saturation below which a pixel is background
DARK = 0.12  # brightness below which a pixel is a pen mark or the shadow of a fold


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
    if path.is_dir():
        raise InputError("is a folder; name its slides, e.g. folder/*.svs", file=path)
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
        return np.asarray(image.convert("RGB")), slide.dimensions, resolution(slide)


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


@dataclass(frozen=True)
class Grid:
    """Tiles to cut from slides.

    Attributes:
        size: side length of a tile, pixels at the target resolution.
        magnification: magnification of the tiles; by default that of the slide.
        mpp: micrometres per pixel of the tiles, instead of the magnification.
        overlap: overlap of neighbouring tiles, pixels at the target resolution.
        tissue: minimum fraction of tissue of a tile.
        slide_mpp: micrometres per level-0 pixel, for slides that do not state it.
        contours: whether tissue is segmented on an image of the whole slide, instead of on each tile.
    """

    size: int = 256
    magnification: float | None = None
    mpp: float | None = None
    overlap: int = 0
    tissue: float = 0.5
    slide_mpp: float | None = None
    contours: bool = False

    def factor(self, path: Path, power: float | None, mpp: float | None) -> float:
        """Return the level-0 pixels per pixel of a tile.

        Args:
            path: path of the slide, for messages.
            power: magnification of the slide, or None.
            mpp: its micrometres per level-0 pixel, or None.

        Raises:
            InputError: the slide does not state what is needed, or is scanned at a lower resolution.
        """
        if self.magnification is not None and self.mpp is not None:
            raise InputError("--magnification and --mpp exclude each other")
        if self.overlap >= self.size:
            raise InputError(f"--overlap {self.overlap}: must be less than --size {self.size}")
        if self.magnification is not None:
            if power is None:
                raise InputError("does not state its magnification; omit --magnification", file=path)
            if power < self.magnification:
                words = f"is scanned at {power:g}x; --magnification {self.magnification:g} is more"
                raise InputError(words, file=path)
            return power / self.magnification
        if self.mpp is None:
            return 1.0
        if mpp is None:
            raise InputError("does not state its resolution; pass --slide-mpp", file=path)
        if self.mpp < mpp * 0.99:
            raise InputError(f"is scanned at {mpp:g} µm per pixel; --mpp {self.mpp:g} is finer", file=path)
        return max(1.0, self.mpp / mpp)


def tile(path: Path, grid: Grid | None = None, encoder: Encoder | None = None) -> tuple[Bag, Tissue | None]:
    """Cut a slide into tiles on a grid from its origin, and encode the tiles with tissue.

    Args:
        path: path of the slide.
        grid: size, resolution and selection of the tiles.
        encoder: encoder of the tiles; by default hand-made features.

    Returns:
        (bag with features (N, D) float32, coords in level-0 pixels, row by row, and attributes as in TRIDENT; the
        tissue, if ``grid.contours``).

    Raises:
        InputError: no such slide, unknown magnification or resolution, or no tissue.
    """
    grid, encoder = grid or Grid(), encoder or Handmade()
    with open_slide(path) as slide:
        power = _stated(slide, "openslide.objective-power", (0.5, 400))
        mpp = grid.slide_mpp or resolution(slide)
        factor = grid.factor(path, power, mpp)
        side, step = round(grid.size * factor), round((grid.size - grid.overlap) * factor)
        width, height = slide.dimensions
        found = None
        if grid.contours:
            image = _read(path, lambda: slide.get_thumbnail((LONGEST, LONGEST)))
            found = segment(np.asarray(image.convert("RGB")), slide.dimensions, side**2 / 4)
        level = slide.get_best_level_for_downsample(factor * 1.01)
        stored = max(1, round(side / slide.level_downsamples[level]))
        coords, rows, waiting = [], [], []
        for y in range(0, height - side + 1, step):
            for x in range(0, width - side + 1, step):
                if found is not None and found.fraction(x, y, side) < max(grid.tissue, 1e-9):
                    continue
                image = _read(path, lambda x=x, y=y: slide.read_region((x, y), level, (stored, stored)))
                pixels = _on_white(image, grid.size)
                if found is None and is_tissue(pixels).mean() < grid.tissue:
                    continue
                coords.append((x, y))
                waiting.append(pixels)
                if len(waiting) == AT_ONCE:
                    rows.append(encoder(waiting))
                    waiting = []
    if waiting:
        rows.append(encoder(waiting))
    if not rows:
        raise InputError(f"no tile of {side} level-0 pixels is tissue (--size, --tissue)", file=path)
    attributes: dict[str, Any] = {"name": slide_id(path.name), "overlap": grid.overlap}
    attributes |= {"patch_size": grid.size, "patch_size_level0": side, "level0_width": width, "level0_height": height}
    if power is not None:
        attributes |= {"level0_magnification": power, "target_magnification": power / factor}
    if mpp is not None:
        attributes["mpp"] = mpp
    places = np.array(coords, dtype=np.int64)
    return Bag(slide_id(path.name), np.concatenate(rows), places, side, attributes=attributes), found


def resolution(slide: Any) -> float | None:
    """Return the micrometres per level-0 pixel that an open slide states, or None."""
    return _stated(slide, "openslide.mpp-x", (0.01, 20))


def _stated(slide: Any, name: str, limits: tuple[float, float]) -> float | None:
    """Return a property of an open slide, or None if it is missing, not a number, or outside of `limits`."""
    try:
        value = float(slide.properties[name])
    except (KeyError, ValueError):
        return None
    return value if limits[0] <= value <= limits[1] else None


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


def tile_command(options: dict[str, Any]) -> int:
    """Run ``seqssm pathology tile SLIDE... --output DIR``: one bag per slide; exit code 3 if some slides failed."""
    if options["output"] is None:
        raise InputError("--output FOLDER is required")
    openslide()
    failed = 0
    names = {one.name for one in fields(Grid)}
    grid = Grid(**{name: value for name, value in options.items() if name in names and value is not None})
    encoder = make(options["encoder"], options["encoder_weights"])
    paths = {Path(name).absolute(): Path(name) for name in options["inputs"]}
    targets: dict[Path, Path] = {}
    for path in paths.values():
        target = Path(options["output"]) / f"{slide_id(path.name)}.h5"
        if target in targets:
            raise InputError(f"would be written to {target}, as {targets[target]} is; tile them apart", file=path)
        targets[target] = path
    for target, path in targets.items():
        if target.exists() and not options["overwrite"]:
            print(f"{target}: exists (--overwrite replaces it)")
            continue
        try:
            bag, tissue = tile(path, grid, encoder)
        except InputError as error:
            if len(options["inputs"]) == 1:
                raise
            say(f"seqssm: {error}")
            failed += 1
            continue
        if tissue is not None:  # before the bag, which marks the slide as done
            write_contours(target.parent / "contours_geojson" / f"{bag.id}.geojson", tissue)
        write_bag(target, bag, encoder.name)
        print(f"{target}: {len(bag)} tiles")
    return ExitCode.PARTIAL if failed else ExitCode.OK
