"""Maps of a slide of a predicted case: heat map, page with zoom, GeoJSON for QuPath, images of the highest patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqssm_pathology import figures
from seqssm_pathology.files import Bag, say
from seqssm_pathology.geojson import write_geojson
from seqssm_pathology.grids import covered, side_of
from seqssm_pathology.viewer import LONGEST, MapPage, write_page

ATTENTION = "rank of the score in the slide (1 = highest)"
TILE = 512  # longest side of the image of a patch, pixels


@dataclass(frozen=True)
class SlideMap:
    """The patches of a slide, and what a map shows of them.

    Attributes:
        slide: slide id.
        bag: the slide's bag without features.
        coords: top left corners of the patches, (N, 2) int64.
        values: value of each patch, (N,), by which patches are ranked.
        columns: values of each patch by name, (N,) each, for pages and GeoJSON.
        signed: whether the values are evidence for (positive) and against (negative) the output.
        what: what the map speaks for, such as ``attention for tumour``.
        answer: `what`, and the prediction of the case.
    """

    slide: str
    bag: Bag
    coords: np.ndarray
    values: np.ndarray
    columns: Mapping[str, np.ndarray]
    signed: bool
    what: str
    answer: str

    @property
    def shade(self) -> np.ndarray:
        """Values for the colours, (N,), 0 to 1."""
        return figures.signed(self.values) if self.signed else figures.percentiles(self.values)


class SlideMaps:
    """Writes the maps of slides.

    Args:
        options: options of the prediction.
        say_once: function that reports a message once per kind.
    """

    def __init__(self, options: Mapping[str, Any], say_once: Callable[[str, str], None]) -> None:
        self.options, self.say_once = options, say_once

    def write(self, stem: Path, suffix: str, one: SlideMap) -> list[Path]:
        """Write the heat map, and the page, GeoJSON and images of patches that were asked for.

        Args:
            stem: path of the case's files without suffix.
            suffix: number of the slide in the names of its files; ``""`` for the only slide of a case.
            one: the slide.
        """
        file = self._file(one.slide)
        background, remark, pixels = self._background(file, one)
        label = figures.SIGNED if one.signed else ATTENTION
        title = f"{one.slide}\n{one.answer}{remark}"
        path = stem.with_name(f"{stem.name}_heat{suffix}.png")
        drawn = [figures.heat_map(path, one.coords, one.shade, background, title, label)]
        if self.options["html"]:
            drawn.append(self._page(stem.with_name(f"{stem.name}_map{suffix}.html"), one, background))
        if pixels is None:
            if self.options["geojson"] or self.options["tiles"]:
                words = "coordinates are in micrometres, and no slide states its resolution (--slides)"
                say(f"{one.slide}: {words}; no GeoJSON and no images of patches")
            return drawn
        if self.options["geojson"]:
            corners = np.round(one.coords * pixels).astype(np.int64)
            path, side = stem.with_name(f"{stem.name}_map{suffix}.geojson"), round(background.side * pixels)
            rank = figures.percentiles(one.values)
            drawn.append(write_geojson(path, one.slide, corners, side, one.columns, rank, one.what))
        if self.options["tiles"] and file is not None:
            drawn += self._tiles(stem, suffix, one, file, background.side, pixels)
        return drawn

    def _file(self, slide: str) -> Path | None:
        if self.options["slides"] is None:
            return None
        from seqssm_pathology import slides

        file = slides.find_slide(Path(self.options["slides"]), slide)
        if file is None:
            without = ", and no images of its patches" if self.options["tiles"] else ""
            say(f"{slide}: no slide in {self.options['slides']}, drawn without thumbnail{without}")
        return file

    def _background(self, file: Path | None, one: SlideMap) -> tuple[figures.Background, str, float | None]:
        """Return the canvas of the map, a remark for its title, and level-0 pixels per unit of the coordinates."""
        bag, thumbnail, extent = one.bag, None, None
        mpp = bag.mpp
        pixels = None if bag.in_micrometres else 1.0
        if file is not None:
            from seqssm_pathology import slides

            longest = LONGEST if self.options["html"] else figures.CANVAS
            thumbnail, extent, resolution = slides.thumbnail(file, longest)
            if bag.in_micrometres and resolution is None:
                words = "coordinates are in micrometres and the slide has no resolution, no thumbnail drawn"
                say(f"{one.slide}: {words}")
                thumbnail, extent = None, None
            elif bag.in_micrometres:
                assert resolution is not None
                extent, pixels = (extent[0] * resolution, extent[1] * resolution), 1 / resolution
            else:
                mpp = resolution or bag.mpp
        side, known = side_of(one.coords, bag.patch)
        if not known:
            self.say_once("side", f"{one.slide}: patch size unknown, drawn as {side} level-0 pixels")
        fraction, remark = covered(one.coords, side), ""
        if fraction < figures.COVERED:
            say(f"{one.slide}: patches of {side} level-0 pixels cover {fraction:.1%} of the area that they span")
            remark = f"\npatches of {side} pixels cover {fraction:.1%} of the area that they span"
        return figures.Background(side, thumbnail, extent, mpp), remark, pixels

    def _page(self, path: Path, one: SlideMap, background: figures.Background) -> Path:
        scale = ("lowest rank", "median", "highest rank")
        if one.signed:
            scale = ("against", "none", "for")
        unit = "µm" if one.bag.in_micrometres else "level-0 pixels"
        page = MapPage(
            one.slide, one.answer, one.coords, background.side, one.shade, one.columns, scale,
            background.thumbnail, background.extent, background.mpp, unit,
        )  # fmt: skip
        return write_page(path, page)

    def _tiles(self, stem: Path, suffix: str, one: SlideMap, file: Path, side: int, pixels: float) -> list[Path]:
        """Write the highest patches of a slide as images, and all of them on one sheet."""
        from seqssm_pathology import slides

        order = np.argsort(-one.values, kind="stable")[: self.options["top_k"]]
        corners = np.round(one.coords[order] * pixels).astype(np.int64)
        folder = stem.with_name(f"{stem.name}_tiles{suffix}")
        images = slides.regions(file, corners, round(side * pixels), TILE)
        names = [f"{place:02d}_x{x}_y{y}.png" for place, (x, y) in enumerate(corners, start=1)]
        drawn = [slides.write_image(folder / name, image) for name, image in zip(names, images)]
        captions = [f"{place}: {one.values[number]:.3g}" for place, number in enumerate(order, start=1)]
        what = "evidence" if one.signed else "score"
        title = f"{one.slide}\n{one.answer}\nhighest patches of {round(side * pixels)} level-0 pixels; rank: {what}"
        sheet = stem.with_name(f"{stem.name}_tiles{suffix}.png")
        return [*drawn, figures.sheet(sheet, images, captions, title)]
