"""What a domain's demo hands over, and the one HTML page that is made of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Section:
    """A part of the demo page.

    Attributes:
        title: its heading.
        text: what was done and what is to be seen, in plain sentences; blank lines part paragraphs.
        tables: (title, frame) pairs.
        figures: image files (PNG), drawn in this order.
    """

    title: str
    text: str
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    figures: list[Path] = field(default_factory=list)
