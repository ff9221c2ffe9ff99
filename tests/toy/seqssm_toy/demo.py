"""The toy's demo and its own command."""

from __future__ import annotations

import base64
from pathlib import Path

import pandas as pd

from seqssm.errors import InputError
from seqssm.tools.page import Section

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def demo(folder: Path) -> list[Section]:
    figure = folder / "pixel.png"
    figure.write_bytes(base64.b64decode(PIXEL))
    frame = pd.DataFrame({"model": ["net <1>"], "mse": [0.123456]})
    return [Section("Numbers & sums", "One sentence.\n\nAnother one.", [("Figures", frame)], [figure])]


def no_demo(folder: Path) -> list[Section]:
    raise InputError("needs the extra 'tin'")


def count(options: dict) -> int:
    print(len(options["inputs"]) * options["times"])
    return 0
