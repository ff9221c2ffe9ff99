"""Figures and tables of a predicted case: what each patch contributes, heat maps, ranked patches, survival curve."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from seqssm.errors import InputError, nearest, unknown_output
from seqssm.files.disk import atomic
from seqssm.prediction.predictor import Record
from seqssm_pathology import figures
from seqssm_pathology.evidence import integrated_gradients
from seqssm_pathology.files import say
from seqssm_pathology.heads import Head, SurvivalHead, split_logits
from seqssm_pathology.items import Prepared
from seqssm_pathology.slide_maps import SlideMap, SlideMaps


@dataclass(frozen=True)
class Shown:
    """What a map shows of a case.

    Attributes:
        values: value of each patch, (N,): score before softmax, or evidence; patches are ranked by it.
        scores: score before softmax of each patch, (N,).
        attention: attention of each patch, (N,).
        title: what it speaks for, for titles.
        output: name of the explained output.
        signed: whether values are evidence for (positive) and against (negative) the output.
    """

    values: np.ndarray
    scores: np.ndarray
    attention: np.ndarray
    title: str
    output: str
    signed: bool


def _chosen(heads: Sequence[Head], name: str) -> tuple[Head, str]:
    """Return the target and the output of a name; outputs of several targets are TARGET.OUTPUT where names repeat."""
    found = [(head, output) for head in heads for output in head.outputs if name in (output, f"{head.tag}{output}")]
    if len(found) == 1:
        return found[0]
    every = [output for head in heads for output in head.outputs]
    names = [output if every.count(output) == 1 else f"{head.tag}{output}" for head in heads for output in head.outputs]
    if not found:
        raise unknown_output("--map-output", name, names)
    several = " or ".join(f"{head.tag}{output}" for head, output in found)
    raise InputError(f"--map-output {name}: several targets have it; give {several}")


class CaseFigures:
    """Draws the figures of cases.

    Args:
        heads: targets of the model.
        summary: description of the data in the checkpoint.
        options: options of the prediction.

    Raises:
        InputError: an unknown output to explain, or a number out of range.
    """

    def __init__(self, heads: list[Head], summary: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self.heads, self.summary, self.options = heads, summary, options
        for name in ("top_k", "figures_limit"):
            if options[name] is not None and options[name] < 1:
                raise InputError(f"--{name.replace('_', '-')} {options[name]}: must be at least 1")
        self.head, self.output = heads[0], None if options["map_output"] is None else str(options["map_output"])
        if self.output is not None:
            self.head, self.output = _chosen(heads, self.output)
        cases = options["figures_cases"]
        self.cases = None if cases is None else set(cases)
        self.reported: set[str] = set()
        self.maps = SlideMaps(options, self.say_once)

    def listed(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records, and require that the cases of ``--figures-cases`` are among them.

        A prediction lists all records before it predicts the first one.

        Args:
            records: all records of the prediction.

        Raises:
            InputError: a case is not among them, raised after the last one.
        """
        absent = dict.fromkeys(sorted(self.cases or ()))
        names = []
        for record in records:
            absent.pop(record.id, None)
            if self.cases is not None:
                names.append(record.id)
            yield record
        if absent:
            first = next(iter(absent))
            more = f" ({len(absent)} such ids: {', '.join(list(absent)[:5])})" if len(absent) > 1 else ""
            raise InputError(f"--figures-cases {first}: no such case{more}{nearest(first, names)}")

    def wants(self, record: Record) -> bool:
        """Whether the figures of a case are requested."""
        limit = self.options["figures_limit"]
        if self.cases is not None and record.id not in self.cases:
            return False
        return limit is None or record.index < limit

    def draw(self, record: Record, row: Mapping[str, Any], folder: Path) -> list[Path]:
        """Write the table of all and of the top patches (CSV), heat maps, ranked scores and the survival curve.

        Args:
            record: the case, predicted.
            row: its row of predictions.
            folder: folder of the figures.
        """
        item: Prepared | None = record.item
        if not self.wants(record) or item is None or item.scores is None or "patches" not in row:
            return []
        shown = self.shown(item, row)
        stem = f"{record.index:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', record.id)[:80]}"
        table = self.table(item, shown)
        drawn = [folder / f"{stem}_attention.csv", folder / f"{stem}_top.csv"]
        by = "evidence" if shown.signed else "score"
        top = table.sort_values(by, ascending=False, kind="stable").head(self.options["top_k"])
        for path, frame in zip(drawn, (table, top)):
            with atomic(path, "w") as file:
                frame.to_csv(file, index=False, lineterminator="\n")
        answer = f"{shown.title}; {self.head.answer(row)}"
        title, what = f"{record.id}\n{answer}", "tokens" if item.slide is None else "patches"
        axis = figures.EVIDENCE if shown.signed else "score before softmax"
        path = folder / f"{stem}_ranked.png"
        drawn.append(figures.ranked(path, shown.values, shown.attention, title, what, axis))
        if isinstance(self.head, SurvivalHead):
            drawn.append(self._curve(folder / f"{stem}_survival.png", record.id, self.head, row))
        if item.coords is not None and item.slide is not None:
            for number in range(len(item.slides)):
                if np.isnan(item.coords[item.slide == number]).any():
                    continue
                suffix = "" if len(item.slides) == 1 else str(number + 1)
                one = self._slide(item, number, shown, table, answer)
                drawn += self.maps.write(folder / stem, suffix, one)
        return drawn

    def shown(self, item: Prepared, row: Mapping[str, Any]) -> Shown:
        """Return what the map of a case shows: attention or gradients, for the chosen or the predicted output.

        Args:
            item: the case, predicted.
            row: its row of predictions.
        """
        head = self.head
        output = self.output or head.output(row)
        scores, attention = item.scores, item.attention
        assert scores is not None
        assert attention is not None
        title = "attention" if isinstance(head, SurvivalHead) or len(head.outputs) < 2 else "attention of all classes"
        if scores.ndim == 2:
            first = sum(one.size for one in self.heads[: self.heads.index(head)])
            column = head.branch(output)
            own = slice(first, first + head.size) if column is None else slice(first + column, first + column + 1)
            scores, attention = scores[:, own].mean(1), attention[:, own].mean(1)
            title = f"attention for {output}" if column is not None else "attention, mean of the time bins"
        if self.options["map"] == "attention":
            return Shown(scores, scores, attention, title, output, False)
        values = self._evidence(item, head, output)
        return Shown(values, scores, attention, f"evidence for {output}", output, True)

    def _evidence(self, item: Prepared, head: Head, output: str) -> np.ndarray:
        """Return the evidence of each patch, mean over the models of an ensemble."""
        place = self.heads.index(head)
        found = []
        for network, features, order in item.sources:
            device = next(network.parameters()).device
            own = integrated_gradients(
                network,
                torch.from_numpy(features).to(device),
                torch.from_numpy(order).to(device),
                lambda logits: head.evidence(split_logits(self.heads, logits)[place], output),
            )
            found.append(own.cpu().double().numpy())
        return np.mean(found, axis=0)

    def table(self, item: Prepared, shown: Shown) -> pd.DataFrame:
        """Build a table with one row per patch, in file order; tokens of a value table have their column's name."""
        table: dict[str, Any] = {}
        if item.slide is None:
            table["token"] = self.summary["columns"]
        else:
            table["slide_id"] = [item.slides[number] for number in item.slide]
            if item.coords is not None:
                table |= {"x": item.coords[:, 0], "y": item.coords[:, 1]}
                if np.isnan(item.coords).any():  # integers with missing values
                    table |= {axis: pd.Series(table[axis]).convert_dtypes() for axis in "xy"}
                sides = ["" if slide.patch is None else slide.patch for slide in item.bags]
                table["patch"] = [sides[number] for number in item.slide]
        assert item.attention is not None
        table |= {"score": shown.scores, "attention": shown.attention}
        if shown.signed:
            table["evidence"] = shown.values
        table["rank"] = figures.percentiles(shown.values)
        if item.attention.ndim == 2:
            names = [name for head in self.heads for name in self._branches(head)]
            table |= {f"attention_{name}": column for name, column in zip(names, item.attention.T)}
        return pd.DataFrame(table)

    @staticmethod
    def _branches(head: Head) -> list[str]:
        """Names of the branches of per-class attention."""
        return head.curve if isinstance(head, SurvivalHead) else head.outputs

    def _curve(self, path: Path, name: str, head: SurvivalHead, row: Mapping[str, Any]) -> Path:
        curve = np.array([row[column] for column in head.curve])
        title = f"{name}\npredicted, risk {row[f'{head.tag}risk']:.3f}"
        unit = f"{head.name}, {head.unit}" if head.unit else head.name
        return figures.survival_curve(path, list(head.edges), curve, unit, title)

    def say_once(self, kind: str, message: str) -> None:
        """Report a message once per kind.

        Args:
            kind: kind of the message.
            message: the message.
        """
        if kind not in self.reported:
            say(message)
        self.reported.add(kind)

    def _slide(self, item: Prepared, number: int, shown: Shown, table: pd.DataFrame, answer: str) -> SlideMap:
        """Collect what the maps of a slide of a case show."""
        own = item.slide == number
        assert item.coords is not None
        names = ["rank", "score", *(name for name in table.columns if name.startswith(("attention", "evidence")))]
        values = shown.values[own]
        columns = {name: table.loc[own, name].to_numpy() for name in names}
        columns["rank"] = figures.percentiles(values)  # in the slide; that of the table is in the case
        coords = item.coords[own].astype(np.int64)
        return SlideMap(
            item.slides[number], item.bags[number], coords, values, columns, shown.signed, shown.title, answer
        )
