"""Fits from scratch and from pretrained weights, side by side: the ways of training, one run, and the table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.common import epochs, markdown, relative, spread, tested

STARTS = {
    "scratch": ("from scratch", ()),
    "full": ("pretrained, all weights trained", ()),
    "lora": ("pretrained, LoRA of rank 8 and head trained", ("--model.lora", "8")),
    "frozen": ("pretrained, head trained", ("--model.freeze", "backbone")),
}
"""Ways of training by name: title and options; all but the first begin with the pretrained weights."""


def fitted(
    domain: str, run: Path, start: str, words: Sequence[str], pretrained: Path, scores: Sequence[str]
) -> tuple[dict[str, Any], str]:
    """Fit and test one way of training.

    Args:
        domain: the domain.
        run: folder of the run.
        start: name of the way, of `STARTS`.
        words: arguments of `fit` that all ways have.
        pretrained: folder of the pretraining.
        scores: names of the scores to keep.

    Returns:
        (row with the way, its scores and its CPU seconds; the command).
    """
    words = [*words, *STARTS[start][1]]
    words += [] if start == "scratch" else ["--model.init_from", relative(pretrained / "best.ckpt")]
    found = tested(domain, run, words)["metrics"]
    seconds = sum(epoch["cpu_seconds"] for epoch in epochs(run / "log.csv"))
    row = {"start": start, "cpu_seconds": seconds, **{name: found[name] for name in scores}}
    return row, f"seqssm {domain} fit " + " ".join(words)


def starts_table(
    rows: Sequence[dict[str, Any]], scores: Mapping[str, str], unit: str = "records", each: str = "seed"
) -> str:
    """Format the scores of all ways of training, by the share of the training data.

    Args:
        rows: rows with ``start``, ``percent`` and ``records`` of the training data, `each`, ``cpu_seconds``, scores.
        scores: titles of the scores by name; the first one is compared with training from scratch.
        unit: name of the records.
        each: key of the repetition, ``seed`` or ``fold``.
    """
    first, *further = scores
    titles = [f"test {scores[first]}", f"each {each}", f"change from scratch, each {each}"]
    lines = [["training data", "training", *titles, *(scores[name] for name in further), "CPU seconds"]]
    for percent in dict.fromkeys(row["percent"] for row in rows):
        base = {row[each]: row[first] for row in rows if (row["start"], row["percent"]) == ("scratch", percent)}
        for start, (title, _) in STARTS.items():
            own = [row for row in rows if (row["start"], row["percent"]) == (start, percent)]
            part = f"{percent} % ({own[0]['records']} {unit})"
            gains = "" if start == "scratch" else ", ".join(f"{row[first] - base[row[each]]:+.3f}" for row in own)
            values = ", ".join(f"{row[first]:.3f}" for row in own)
            others = [spread([row[name] for row in own]) for name in further]
            cost = f"{statistics.median(row['cpu_seconds'] for row in own):.0f}"
            lines.append([part, title, spread([row[first] for row in own]), values, gains, *others, cost])
    return markdown(lines)
