"""Figures without global state, safe titles, and atomic PNG files."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import IO, TYPE_CHECKING

from seqssm.files.disk import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LETTERS_PER_INCH = 13  # of a title at 9 points


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure.

    Args:
        width: width in inches.
        height: height in inches.

    Returns:
        A figure with its own canvas. pyplot is not used, because it keeps global state and may open windows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure with one pair of axes and no top or right spine; sizes in inches."""
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plain_text(text: str, length: int = 60) -> str:
    """Prepare a name from the user's data for a figure.

    Args:
        text: the name.
        length: maximum number of characters; longer names are shortened in the middle.

    Returns:
        A single line in which dollar signs do not start mathematics.
    """
    text = " ".join(text.split())
    if len(text) > length:
        text = f"{text[: length // 2 - 1]}…{text[len(text) - length // 2 :]}"
    return text.replace("$", r"\$")


def set_title(axes: Axes, title: str, lines: int = 3) -> None:
    """Set a left-aligned title above the axes, wrapped to the width of the figure.

    Args:
        axes: the axes.
        title: the text; dollar signs do not start mathematics.
        lines: maximum number of lines per line of `title`.
    """
    width = max(20, int(axes.figure.get_figwidth() * LETTERS_PER_INCH))  # type: ignore[union-attr]
    wrapped = [part for line in title.splitlines() for part in textwrap.wrap(line, width)[:lines]]
    axes.set_title("\n".join(wrapped).replace("$", r"\$"), fontsize=9, loc="left")


def file_name(text: str, length: int = 60) -> str:
    """Make `text` safe for a file name: ASCII letters, digits, ``_``, ``.`` and ``-``, at most `length` characters."""
    return re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII).strip("_.")[:length].rstrip("_.") or "unnamed"


def describe(figure: Figure) -> str:
    """Describe a figure in words, from its titles, axis labels and legends; ``""`` if it has none.

    The text is the alternative text of the figure on a page.
    """
    found = []
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        title = axes.get_title(loc="left") or axes.get_title()
        parts = [
            title,
            *(f"{name}: {text}" for name, text in (("x", axes.get_xlabel()), ("y", axes.get_ylabel())) if text),
        ]
        legend = axes.get_legend()
        series = [text.get_text() for text in legend.get_texts()] if legend is not None else []
        if series:
            parts.append(f"curves: {', '.join(series)}")
        parts = [" ".join(part.replace(r"\$", "$").split()) for part in parts if part]
        if parts:
            found.append("; ".join(parts))
    return ". ".join(dict.fromkeys(found))


def save(figure: Figure, path: Path, dpi: int = 130) -> Path:
    """Write the figure atomically as a PNG file, with its description (`describe`) in the entry ``Description``.

    Args:
        figure: the figure.
        path: the file.
        dpi: pixels per inch.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic(path) as file:
        write_png(figure, file, dpi)
    return path


def write_png(figure: Figure, file: IO[bytes], dpi: int = 130) -> None:
    """Write the figure as PNG into an open file.

    Args:
        figure: the figure.
        file: a binary file.
        dpi: pixels per inch.
    """
    text = describe(figure)
    figure.savefig(file, format="png", dpi=dpi, metadata={"Description": text} if text else None)
