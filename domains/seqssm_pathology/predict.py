"""Prediction per case from a checkpoint and bags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from seqssm.errors import InputError, no_such_file
from seqssm.prediction.predictor import Predictor, Record, with_notes
from seqssm_pathology.answers import Columns
from seqssm_pathology.case_figures import CaseFigures
from seqssm_pathology.files import Bag, checked, join, list_bags, read_bag, require_bag_name, say, slide_id
from seqssm_pathology.fitted import Scaler
from seqssm_pathology.heads import SurvivalHead, heads_of, split_logits
from seqssm_pathology.items import Prepared, instance_order, stacked
from seqssm_pathology.manifest import read_manifest
from seqssm_pathology.ranges import UNUSUAL, Profile, Ranges
from seqssm_pathology.values import read_values

AT_ONCE = 65_536  # maximum number of patches per forward pass; a single larger case is allowed


def grouped(records: list[Record], most: int) -> Iterator[list[Record]]:
    """Group consecutive records with at most `most` patches in total; a larger record forms its own group."""
    group: list[Record] = []
    total = 0
    for record in records:
        size = len(record.item.order)
        if group and total + size > most:
            yield group
            group, total = [], 0
        group.append(record)
        total += size
    if group:
        yield group


class CasePredictor(Predictor):
    """One row per case: class probabilities, or risk and survival at the ends of the time bins."""

    def __init__(self, model: Any, summary: dict[str, Any], options: dict[str, Any]) -> None:
        super().__init__(model, summary, options)
        self.heads = heads_of(summary)
        self.artist = CaseFigures(self.heads, summary, options)
        if options["slides"] is not None:  # reported before the first case is predicted
            from seqssm_pathology import slides

            slides.openslide()
            slides.find_slide(Path(options["slides"]), "")
        known = summary["scaler"]
        self.scaler = None if known is None else Scaler.of_summary(known)
        self.ranges = Ranges.of_summary(summary.get("ranges"))

    @property
    def columns(self) -> list[str]:  # type: ignore[override]
        notes = [] if self.ranges is None else ["notes"]  # checkpoints of version 0.1.0 have no ranges
        return [*(name for head in self.heads for name in head.columns), "patches", "dropped", *notes]

    @property
    def estimates(self) -> list[str]:  # type: ignore[override]
        return [name for head in self.heads for name in head.estimates]

    def unify(self, members: Sequence[Predictor]) -> list[str]:
        """Write survival curves of different bins at the same times: the medians of the ends of the members' bins."""
        notes = []
        for place, head in enumerate(self.heads):
            own = [member.heads[place] for member in members if isinstance(member, CasePredictor)]
            same = [one for one in own if isinstance(one, SurvivalHead) and one.unit == getattr(head, "unit", None)]
            edges = {one.edges for one in same}
            if len(same) < len(members) or len(edges) < 2:
                continue
            count = min(map(len, edges))
            times = tuple(float(np.median([one[k] for one in edges if len(one) == count])) for k in range(count))
            for member, one in zip(members, same):
                member.heads[place] = replace(one, written_edges=times)  # type: ignore[attr-defined]
            notes.append(f"{head.name}: the models have different time bins; their curves are averaged at common times")
        return notes

    # -- records -----------------------------------------------------------------------------------------------------

    def records(self, inputs: list[Path]) -> Iterator[Record]:
        """List the cases of a manifest, all bags of the given folders and files, or the cases of value tables."""
        return self.artist.listed(self._cases(inputs))

    def _cases(self, inputs: list[Path]) -> Iterator[Record]:
        for path in inputs:
            if not path.exists():
                raise no_such_file(path)
        if self.summary["columns"] is not None:
            yield from self._rows(inputs)
            return
        bags: dict[str, Path] = {}
        for path in inputs:
            found = list_bags(path) if path.is_dir() else {slide_id(path.name): path}
            for name, file in found.items():
                if name in bags:
                    raise InputError(f"duplicate slide {name}, also as {bags[name]}", file=file)
                require_bag_name(file)
                bags[name] = file
        if self.options["manifest"] is None:
            for index, (name, file) in enumerate(bags.items()):
                yield Record(index, name, [file])
            return
        columns = Columns(slide=self.summary["slide_column"], case=self.summary["case_column"])
        level = self.summary.get("level", "case")
        manifest = read_manifest(Path(self.options["manifest"]), None, columns, level=level)
        index, used = 0, set()
        for case in manifest.cases.values():
            files = [bags[slide] for slide in case.slides if slide in bags]
            used |= set(case.slides)
            missing = len(case.slides) - len(files)
            if files and missing:
                say(f"{case.id}: {missing} of {len(case.slides)} slides have no bag")
            yield Record(index, case.id, files, None if files else "no bag of any of its slides")
            index += 1
        for name in bags:
            if name not in used:
                yield Record(index, name, None, "the manifest has no row for this bag")
                index += 1

    def _rows(self, inputs: list[Path]) -> Iterator[Record]:
        """List the cases of value tables; columns are matched by name."""
        for option in ("manifest", "slides", "feature_key"):
            if self.options[option] is not None:
                flag = option.replace("_", "-")
                raise InputError(f"--{flag}: the model reads value tables, which have one row per case and no slides")
        index = 0
        for path in inputs:
            if path.is_dir():
                raise InputError("the model reads value tables (.h5 or .csv), not folders of bags", file=path)
            table = read_values(path).select(self.summary["columns"])
            for case, row in zip(table.cases, table.values):
                yield Record(index, case, row)
                index += 1

    def records_of(self, data: Any) -> Iterator[Record]:
        """List the cases of in-memory data.

        Args:
            data: dict from slide name to features (N, D) or (features, coords); for a model of value tables, a
                DataFrame with one row per case, the case ids as its index, and the model's columns.
        """
        return self.artist.listed(self._cases_of(data))

    def _cases_of(self, data: Any) -> Iterator[Record]:
        if self.summary["columns"] is not None and isinstance(data, pd.DataFrame):
            missing = [name for name in self.summary["columns"] if name not in data.columns]
            if missing:
                raise InputError(f"the frame lacks {len(missing)} of the model's columns (first: {missing[0]})")
            values = data[self.summary["columns"]].to_numpy(np.float32)
            for index, (case, row) in enumerate(zip(data.index, values)):
                reason = None if np.isfinite(row).all() else "values are empty or not finite"
                yield Record(index, str(case), row, reason)
            return
        if self.summary["columns"] is not None or not isinstance(data, Mapping):
            form = "{name: (N, D) array}" if self.summary["columns"] is None else "a DataFrame of cases by columns"
            raise InputError(f"a {type(data).__name__} cannot be predicted: expected files, or {form}")
        for index, (name, arrays) in enumerate(data.items()):
            yield Record(index, str(name), [arrays if isinstance(arrays, tuple) else (arrays, None)])

    def prepare(self, record: Record) -> Record:
        if isinstance(record.item, np.ndarray):
            row = record.item if self.scaler is None else self.scaler(record.item)
            order = self.summary["token_order"].numpy()
            remark = "" if self.ranges is None else self.ranges.remark(Profile.of(record.item))
            record.item = Prepared(row[:, None].astype(np.float32), order, remark=remark)
        elif isinstance(record.item, list):
            record.item = self._bag(record.item, record.id)
        return record

    def _slide(self, given: Path | tuple[Any, Any], case: str) -> Bag:
        """Read a slide from its file, or from features and coordinates in memory."""
        if isinstance(given, Path):
            key = self.options["feature_key"] or self.summary["feature_key"]
            slide = read_bag(given, key, self.options["invalid"])
        else:
            features, coords = (None if one is None else np.asarray(one) for one in given)
            assert features is not None
            slide = replace(checked(Path(case), features, coords, {}, self.options["invalid"]), id=case)
        if slide.features.shape[1] != self.summary["width"]:
            message = f"features have width {slide.features.shape[1]}; the model was trained on {self.summary['width']}"
            raise InputError(message, file=given if isinstance(given, Path) else None)
        return slide

    def _bag(self, files: list[Path | tuple[Any, Any]], case: str) -> Prepared:
        slides = [self._slide(file, case) for file in files]
        bag, number = join(slides, case)
        placed = bag.coords
        if placed is not None and len(slides) > 1:
            placed = stacked(placed, number)
        if placed is None and self.summary["order"] not in ("file", "random"):
            self.artist.say_once("order", f"{case}: no coordinates; such bags are scanned in file order")
        order = instance_order(Bag(bag.id, bag.features, placed), self.summary["order"])
        features = bag.features if self.scaler is None else self.scaler(bag.features)
        names = [slide.id for slide in slides]
        bare = [replace(slide, features=slide.features[:0], coords=None) for slide in slides]
        known = bag.coords
        if known is None and any(slide.coords is not None for slide in slides):  # slides without coordinates get NaN
            unknown = [np.full((len(slide), 2), np.nan) for slide in slides]
            known = np.concatenate([u if s.coords is None else s.coords for s, u in zip(slides, unknown)])
        remark = "" if self.ranges is None else self.ranges.remark(Profile.of(bag.features, bag.powers))
        features = features.astype(np.float32, copy=False)
        return Prepared(features, order, names, number, known, bare, bag.dropped, remark)

    # -- prediction --------------------------------------------------------------------------------------------------

    def predict(self, records: list[Record]) -> list[list[dict[str, Any]]]:
        rows: list[list[dict[str, Any]]] = []
        for group in grouped(records, AT_ONCE):
            rows += self._together(group)
        return rows

    def _together(self, records: list[Record]) -> list[list[dict[str, Any]]]:
        """Predict records in one packed forward pass, and return their rows."""
        items = [record.item for record in records]
        lengths = [len(item.order) for item in items]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        features = items[0].features if len(items) == 1 else np.concatenate([item.features for item in items])
        order = np.concatenate([item.order + start for item, start in zip(items, starts)])
        out = self.model(
            torch.from_numpy(features).to(self.device),
            torch.from_numpy(starts.astype(np.int32)).to(self.device),
            lengths,
            torch.from_numpy(order).to(self.device),
        )
        scores, attention = out.scores.float().cpu().numpy(), out.attention.float().cpu().numpy()
        rows = []
        for number, (record, item) in enumerate(zip(records, items)):
            own = slice(starts[number], starts[number + 1])
            item.scores, item.attention = scores[own], attention[own]
            item.sources = [(self.model, item.features, item.order)]
            logits = out.logits[number].float().cpu()
            if not torch.isfinite(logits).all():
                record.reason = "the network output is not finite"
                rows.append(self.failed(record))
                continue
            rows.append([self._row(logits, item)])
        return rows

    def _row(self, logits: torch.Tensor, item: Prepared) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for head, own in zip(self.heads, split_logits(self.heads, logits[None])):
            row |= head.row(own[0])
        row |= {"patches": len(item.order), "dropped": item.dropped}
        return row if self.ranges is None else {**row, "notes": item.remark}

    def finish(self, tables: Iterator[pa.Table]) -> list[Path]:
        """Report the number of unusual records."""
        if self.ranges is None:
            return []
        found = with_notes(tables)
        if found:
            say(f"warning: {found} have {UNUSUAL} (column notes)")
        return []

    def derive(self, row: dict[str, Any], members: Sequence[Predictor]) -> dict[str, Any]:
        """Return the columns that follow from mean estimates: class, labels present, median survival time."""
        found: dict[str, Any] = {}
        for head in self.heads:
            found |= head.derive(row)
        return found

    def merge(self, items: list[Any]) -> Any:
        """Average the scores and attention of the patches; gradient maps average those of all members."""
        if any(item is None or item.scores is None or item.attention is None for item in items):
            return items[0]
        scores, attention = (np.mean([getattr(item, name) for item in items], 0) for name in ("scores", "attention"))
        sources = [source for item in items for source in item.sources]
        return replace(items[0], scores=scores, attention=attention, sources=sources)

    def figures(self, record: Record, rows: list[dict[str, Any]], folder: Path) -> list[Path]:
        return self.artist.draw(record, rows[0], folder)
