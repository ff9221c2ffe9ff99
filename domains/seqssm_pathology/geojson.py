"""Patches of a slide as GeoJSON for QuPath: one square per patch with its values and its class, in level-0 pixels."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from seqssm.files.disk import atomic

CLASSES = ("top fifth", "2nd fifth", "3rd fifth", "4th fifth", "lowest fifth")
"""Classes of patches by rank in the slide, the highest first."""
COLOURS = ((180, 4, 38), (240, 139, 110), (221, 220, 220), (141, 176, 254), (59, 76, 192))
"""Colours of the classes, RGB, from the colour map of the heat maps."""


def rank_class(rank: float) -> int:
    """Return the index of the class of a patch in `CLASSES`, by its rank from 0 to 1 (highest)."""
    return min(len(CLASSES) - 1, int((1 - rank) * len(CLASSES)))


def write_geojson(
    path: Path,
    slide: str,
    coords: np.ndarray,
    side: float,
    measurements: Mapping[str, np.ndarray],
    rank: np.ndarray,
    what: str,
) -> Path:
    """Write the patches of a slide as detections, which QuPath imports by drag and drop.

    Ids follow from the slide and the patch, so that importing a file again does not create new objects.

    Args:
        path: the ``.geojson`` file.
        slide: slide id.
        coords: top left corners of the patches, (N, 2), level-0 pixels.
        side: side of a patch, level-0 pixels.
        measurements: values of the patches by name, (N,) each.
        rank: rank of each patch in the slide, (N,), 0 to 1.
        what: what the classes rank, such as ``attention for tumour``.
    """
    space = uuid.uuid5(uuid.NAMESPACE_OID, slide)
    kinds = [{"name": f"{what}: {name}", "color": list(colour)} for name, colour in zip(CLASSES, COLOURS)]
    columns = {name: np.asarray(values, dtype=np.float64).tolist() for name, values in measurements.items()}
    with atomic(path, "w") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for number, ((x, y), place) in enumerate(zip(coords.tolist(), rank.tolist())):
            corners = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(space, str(number))),
                "geometry": {"type": "Polygon", "coordinates": [corners]},
                "properties": {
                    "objectType": "detection",
                    "name": f"patch {number}",
                    "classification": kinds[rank_class(place)],
                    "measurements": {name: values[number] for name, values in columns.items()},
                },
            }
            file.write((",\n" if number else "\n") + json.dumps(feature, separators=(",", ":")))
        file.write("\n]}\n")
    return path
