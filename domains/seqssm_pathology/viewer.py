"""A self-contained HTML page of a slide's map, with zoom, opacity and the values of the patch under the pointer."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqssm.plot.viewer import write_viewer
from seqssm_pathology.grids import spacing

TEMPLATE = Path(__file__).with_name("viewer.html")
LONGEST = 4096  # longest side of the embedded image of the slide, pixels
QUALITY = 80  # of its JPEG
LISTED = 20  # patches in the table under the map


@dataclass(frozen=True)
class MapPage:
    """Content of the page.

    Attributes:
        title: title of the page, the slide.
        subtitle: what the map shows, and the prediction.
        coords: top left corners of the patches, (N, 2), in `unit`.
        side: side of a patch, in `unit`.
        shade: values for the colours, (N,), 0 to 1.
        values: values shown for the patch under the pointer, by name, (N,) each.
        scale: labels of the colour scale at 0, 0.5 and 1.
        thumbnail: RGB image of the whole slide, (H, W, 3) uint8, or None.
        extent: (width, height) of the slide, in `unit`; None for the extent of the patches.
        mpp: micrometres per `unit`; None if unknown.
        unit: unit of the coordinates, ``level-0 pixels`` or ``µm``.
    """

    title: str
    subtitle: str
    coords: np.ndarray
    side: int
    shade: np.ndarray
    values: Mapping[str, np.ndarray]
    scale: tuple[str, str, str]
    thumbnail: np.ndarray | None = None
    extent: tuple[float, float] | None = None
    mpp: float | None = None
    unit: str = "level-0 pixels"

    @property
    def highest(self) -> np.ndarray:
        """Indices of the `LISTED` highest patches."""
        return np.argsort(-self.shade, kind="stable")[:LISTED]


def describe(page: MapPage) -> str:
    """Describe the map in words, as the alternative text of the drawing."""
    unit, factor = (page.unit, 1.0) if page.mpp is None else ("µm", page.mpp)
    centres = (page.coords[page.highest[:5]] + page.side / 2) * factor
    listed = "; ".join(f"x {x:.0f}, y {y:.0f}" for x, y in centres)
    left, top = page.coords.min(0) * factor
    right, bottom = (page.coords.max(0) + page.side) * factor
    return (
        f"Map of {len(page.coords)} patches of slide {page.title}, {page.subtitle}. The patches span x {left:.0f} to "
        f"{right:.0f} and y {top:.0f} to {bottom:.0f} {unit}. Centres of the highest patches: {listed}."
    )


def write_page(path: Path, page: MapPage) -> Path:
    """Write the page as one file without external resources.

    Args:
        path: the HTML file.
        page: its content.
    """
    origin, extent = np.zeros(2), page.extent
    if extent is None:
        origin = page.coords.min(0)
        width, height = (float(v) for v in page.coords.max(0) + page.side - origin)
        extent = width, height
    data = {
        "x": (page.coords[:, 0] - origin[0]).tolist(),
        "y": (page.coords[:, 1] - origin[1]).tolist(),
        "origin": [float(v) for v in origin],
        "side": page.side,
        # overlapping patches are drawn as the cells of their grid, not on top of one another
        "cell": min(page.side, spacing(page.coords) or page.side),
        "shade": np.round(page.shade, 4).tolist(),
        "values": {name: [float(f"{v:.5g}") for v in values] for name, values in page.values.items()},
        "width": extent[0],
        "height": extent[1],
        "mpp": page.mpp,
        "unit": page.unit,
        "image": None if page.thumbnail is None else _jpeg(page.thumbnail),
    }
    parts = {
        "ALT": html.escape(describe(page)),
        "LOW": html.escape(page.scale[0]),
        "MIDDLE": html.escape(page.scale[1]),
        "HIGH": html.escape(page.scale[2]),
        "UNIT": html.escape(page.unit),
        "COUNT": str(len(page.highest)),
        "HEAD": "".join(f'<th scope="col">{html.escape(name)}</th>' for name in page.values),
        "ROWS": "".join(_row(page, int(number)) for number in page.highest),
    }
    return write_viewer(path, TEMPLATE, page.title, page.subtitle, data, parts)


def _row(page: MapPage, number: int) -> str:
    x, y = page.coords[number]
    cells = "".join(f"<td>{values[number]:.4g}</td>" for values in page.values.values())
    return f"<tr><td>{int(x)}</td><td>{int(y)}</td>{cells}</tr>"


def _jpeg(pixels: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
