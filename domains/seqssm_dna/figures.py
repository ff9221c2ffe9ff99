"""Figures: perplexity along a sequence, probabilities of windows, and a heat map of all single-base changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.plot.canvas import file_name, new_axes, new_figure, plain_text, save, set_title
from seqssm.prediction.record import Record
from seqssm_dna.letters import BASES
from seqssm_dna.profile import Sums
from seqssm_dna.sources import Item

SMOOTH = 40  # points averaged for the dark line of a track
LETTERS = 120  # maximum length of a region whose letters are written below a heat map
LINE = 200  # positions per line of a heat map
SHOWN = 8  # maximum number of classes in a figure of windows


def _path(folder: Path, record: Record, kind: str) -> Path:
    return folder / f"{record.index:05d}_{file_name(record.id)}_{kind}.png"


def track(record: Record, folder: Path) -> list[Path]:
    """Draw the bits per base along a sequence.

    Args:
        record: record of a predicted sequence.
        folder: folder of the figure.
    """
    item: Item = record.item
    bins: Sums = item.bins
    with np.errstate(invalid="ignore", divide="ignore"):
        bits = bins.nll / bins.scored / np.log(2)
    edges = np.minimum(np.arange(len(bits) + 1) * bins.size, item.length)
    middle, first = (edges[:-1] + edges[1:]) / 2, 0 if item.blocks else item.start
    if item.strand == "-" and not item.blocks:
        middle = item.length - middle
    middle = first + middle
    figure, axes = new_axes(9, 2.8)
    axes.plot(
        middle,
        bits,
        color="#9db8d2",
        linewidth=0.7,
        label=f"mean of {bins.size} bases" if bins.size > 1 else "each base",
    )
    if len(bits) > 4 * SMOOTH:
        smooth = pd.Series(bits).rolling(SMOOTH, center=True, min_periods=1).mean()
        label = f"mean of {bins.size * SMOOTH:,} bases"
        axes.plot(middle, smooth, color="#1f4e79", linewidth=1.2, label=label)
    axes.axhline(2, color="0.5", linewidth=0.8, linestyle=":")
    axes.text(1, 2, " uniform", transform=axes.get_yaxis_transform(), fontsize=7, color="0.4", va="center")
    axes.set_xlim(first, first + max(item.length, 1))
    axes.set_ylim(bottom=min(0.0, float(np.nanmin(bits))))
    where = f"position on {plain_text(item.record) or 'the sequence'}"
    if item.blocks:
        where = f"position in the joined blocks of {plain_text(item.record)}:{item.start}-{item.end}({item.strand})"
    axes.set_xlabel(where)
    axes.set_ylabel("bits per base")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(loc="lower right", fontsize=7, frameon=False, ncols=2)
    total = bins.nll.sum() / max(bins.scored.sum(), 1)
    set_title(axes, f"{record.id}: {total / np.log(2):.3f} bits per base, perplexity {np.exp(total):.3f}")
    return [save(figure, _path(folder, record, "track"))]


def windows(record: Record, rows: Any, outputs: Mapping[str, str], label: str, folder: Path) -> list[Path]:
    """Draw the outputs of a classifier along a sequence.

    Args:
        record: record of a predicted sequence.
        rows: its table, one row per window.
        outputs: names of the outputs, and their columns.
        label: what the outputs are, for the axis.
        folder: folder of the figure.
    """
    frame = pd.DataFrame(rows)
    if len(frame) < 2:
        return []
    figure, axes = new_axes(9, 2.8)
    middle = (frame["start"] + frame["end"]) / 2
    names = list(outputs)
    for name in names[:SHOWN]:
        axes.plot(middle, frame[outputs[name]], linewidth=1, label=plain_text(name, 30))
    axes.set_xlabel(f"position on {plain_text(record.item.record)}")
    axes.set_ylabel(label if len(names) > 1 else plain_text(names[0]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(loc="upper right", fontsize=7, frameon=False, ncols=2)
    size = int((frame["end"] - frame["start"]).max())
    set_title(axes, f"{record.id}: {len(frame)} windows of {size} letters")
    return [save(figure, _path(folder, record, "windows"))]


def heat_map(path: Path, title: str, contig: str, start: int, reference: str, values: np.ndarray, label: str) -> Path:
    """Draw the effect of every single-base change of a region.

    Args:
        path: path of the figure.
        title: title of the figure.
        contig: name of the contig.
        start: 1-based position of the first letter.
        reference: letters of the region.
        values: effect of A, C, G and T at each position, (L, 4); NaN for the reference base and unknown effects.
        label: label of the colour scale.
    """
    lines = [slice(first, min(first + LINE, len(values))) for first in range(0, len(values), LINE)]
    width = min(10.0, 2.5 + 0.09 * min(len(values), LINE))
    figure = new_figure(max(width, 5.0), 0.9 + 1.25 * len(lines))
    limit = float(np.nanquantile(np.abs(values), 0.99)) if np.isfinite(values).any() else 1.0
    panels = figure.subplots(len(lines), 1, squeeze=False)[:, 0]
    image = None
    for axes, own in zip(panels, lines):
        edge = (own.start - 0.5 + start, own.start + (own.stop - own.start) - 0.5 + start)
        image = axes.imshow(
            values[own].T, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit, extent=(*edge, 3.5, -0.5),
            interpolation="nearest",
        )  # fmt: skip
        axes.set_facecolor("0.85")
        axes.set_yticks(range(4), list(BASES), fontsize=7)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_xlim(edge[0], edge[0] + min(LINE, len(values)))
        places = [place for place in range(own.start, own.stop) if reference[place] in BASES]
        axes.scatter([start + place for place in places], [BASES.index(reference[p]) for p in places], s=2, color="0.3")
        if len(values) <= LETTERS:
            for place in range(own.start, own.stop):
                axes.text(start + place, -0.75, reference[place], fontsize=6, ha="center", va="bottom")
    panels[-1].set_xlabel(f"position on {plain_text(contig)} (grey: the reference base)", fontsize=8)
    set_title(panels[0], title)
    if len(values) <= LETTERS:  # above the letters
        panels[0].set_title(panels[0].get_title(loc="left"), fontsize=9, loc="left", pad=18)
    bar = figure.colorbar(image, ax=list(panels), fraction=0.03, pad=0.01)
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=7)
    return save(figure, path)
