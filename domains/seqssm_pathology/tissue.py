"""Tissue of a slide: a mask on a small image of it by Otsu's threshold on the saturation, and its contours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from seqssm.errors import InputError
from seqssm.files.disk import atomic

LONGEST = 2048  # longest side of the image that is segmented, pixels
LEAST = 0.02  # saturation that the threshold is never below: glass and the noise of a camera
DARK = 0.12  # brightness below which a pixel is a pen mark or the shadow of a fold
SMOOTH = 2  # radius of the opening and closing of the mask, pixels


@dataclass(frozen=True)
class Tissue:
    """The tissue of a slide.

    Attributes:
        mask: mask on the small image, (H, W) bool.
        scale: level-0 pixels per pixel of the mask, (x, y).
    """

    mask: np.ndarray
    scale: tuple[float, float]

    def fraction(self, x: int, y: int, side: int) -> float:
        """Return the fraction of tissue of a square, from its top left corner and its side, level-0 pixels."""
        first = np.floor([y / self.scale[1], x / self.scale[0]]).astype(int)
        end = np.ceil([(y + side) / self.scale[1], (x + side) / self.scale[0]]).astype(int)
        own = self.mask[first[0] : end[0], first[1] : end[1]]
        return float(own.mean()) if own.size else 0.0

    def polygons(self) -> list[list[np.ndarray]]:
        """Return the outlines of the pieces of tissue, level-0 pixels: per piece the outer ring, then its holes."""
        from contourpy import FillType, contour_generator

        padded = np.pad(self.mask.astype(float), 1)
        found = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
        pieces = []
        for points, offsets in zip(*found):
            level0 = (points - 0.5) * np.array(self.scale)  # pixel k of the mask is k + 1 of the padded one
            pieces.append([level0[a:b] for a, b in pairwise(offsets)])
        return pieces


def otsu(values: np.ndarray, bins: int = 256) -> float:
    """Return the threshold that separates values in 0 .. 1 by the largest variance between the classes (Otsu 1979)."""
    counts, edges = np.histogram(values, bins, (0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    best = np.flatnonzero(between == np.nanmax(between)) if np.isfinite(between).any() else np.array([0])
    return float(edges[best[len(best) // 2] + 1])


def segment(image: np.ndarray, extent: tuple[int, int], smallest: float) -> Tissue:
    """Segment the tissue on a small image of a slide.

    Args:
        image: RGB image of the whole slide, (H, W, 3) uint8.
        extent: (width, height) of the slide, level-0 pixels.
        smallest: smallest piece of tissue, and smallest hole, level-0 pixels squared.
    """
    from scipy import ndimage

    pixels = image.astype(np.float32) / 255
    high, low = pixels.max(-1), pixels.min(-1)
    saturation = (high - low) / np.maximum(high, 1e-6)
    mask = (saturation > max(LEAST, otsu(saturation))) & (high > DARK)
    disc = np.hypot(*np.mgrid[-SMOOTH : SMOOTH + 1, -SMOOTH : SMOOTH + 1]) <= SMOOTH
    padded = np.pad(mask, 2 * SMOOTH, mode="edge")
    padded = ndimage.binary_opening(ndimage.binary_closing(padded, disc), disc)
    mask = padded[2 * SMOOTH : -2 * SMOOTH, 2 * SMOOTH : -2 * SMOOTH]
    scale = extent[0] / image.shape[1], extent[1] / image.shape[0]
    least = smallest / (scale[0] * scale[1])
    mask = ~_without_small(~_without_small(mask, least), least)
    return Tissue(mask, scale)


def _without_small(mask: np.ndarray, least: float) -> np.ndarray:
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    keep = sizes >= least
    keep[0] = False
    return keep[labels]


def write_contours(path: Path, tissue: Tissue) -> Path:
    """Write the contours as GeoJSON annotations, which QuPath imports.

    Args:
        path: the file.
        tissue: the tissue.

    Raises:
        InputError: there is none.
    """
    features = []
    for rings in tissue.polygons():
        closed = [np.round(np.vstack([ring, ring[:1]]) if (ring[0] != ring[-1]).any() else ring, 1) for ring in rings]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring.tolist() for ring in closed]},
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": "Tissue", "color": [180, 90, 150]},
                },
            }
        )
    if not features:
        raise InputError("no tissue was found", file=path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path, "w") as file:
        json.dump({"type": "FeatureCollection", "features": features}, file, separators=(",", ":"))
    return path
