"""Prediction per case from a checkpoint and bags, with heat maps, ranked patches and survival curves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from seqssm.errors import InputError
from seqssm.files.disk import atomic
from seqssm.prediction.predictor import Predictor, Record
from seqssm_pathology import figures
from seqssm_pathology.answers import Columns
from seqssm_pathology.files import BAG_SUFFIXES, Bag, checked, join, list_bags, read_bag, say, slide_id
from seqssm_pathology.fitted import Scaler
from seqssm_pathology.grids import covered, side_of
from seqssm_pathology.items import instance_order, stacked
from seqssm_pathology.manifest import read_manifest
from seqssm_pathology.task import curve_names, curves_of
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


@dataclass
class Prepared:
    """A case prepared for the network.

    Attributes:
        features: patch features, (N, D) float32, scaled.
        order: scan order of the instances, (N,) int64.
        slides: slide ids; empty for a row of a value table.
        slide: slide index of each patch, (N,).
        coords: coordinates as in the files, (N, 2); NaN for slides without, None if no slide has any.
        bags: bags of the slides without features, for patch size and resolution.
        dropped: number of dropped patches.
        scores, attention: outputs per patch, (N,), set by `predict` for the figures.
    """

    features: np.ndarray
    order: np.ndarray
    slides: list[str] = field(default_factory=list)
    slide: np.ndarray | None = None
    coords: np.ndarray | None = None
    bags: list[Bag] = field(default_factory=list)
    dropped: int = 0
    scores: np.ndarray | None = None
    attention: np.ndarray | None = None


class CasePredictor(Predictor):
    """One row per case: class probabilities, or risk and survival at the ends of the time bins."""

    def __init__(self, model: Any, summary: dict[str, Any], options: dict[str, Any]) -> None:
        super().__init__(model, summary, options)
        if summary["target"] == "classification":
            self.columns = ["prediction", *(f"p_{name}" for name in summary["classes"])]
        else:
            self.columns = ["risk", *curve_names(summary["edges"])]
        self.estimates = [name for name in self.columns if name != "prediction"]
        self.columns += ["patches", "dropped"]
        if options["slides"] is not None:  # reported before the first case is predicted
            from seqssm_pathology import slides

            slides.openslide()
            slides.find_slide(Path(options["slides"]), "")
        self.said: set[str] = set()
        known = summary["scaler"]
        self.scaler = None if known is None else Scaler.of_summary(known)

    # -- records -----------------------------------------------------------------------------------------------------

    def records(self, inputs: list[Path]) -> Iterator[Record]:
        """List the cases of a manifest, all bags of the given folders and files, or the cases of value tables."""
        for path in inputs:
            if not path.exists():
                raise InputError("no such file or folder", file=path)
        if self.summary["columns"] is not None:
            yield from self._rows(inputs)
            return
        bags: dict[str, Path] = {}
        for path in inputs:
            found = list_bags(path) if path.is_dir() else {slide_id(path.name): path}
            for name, file in found.items():
                if name in bags:
                    raise InputError(f"duplicate slide {name}, also as {bags[name]}", file=file)
                if file.suffix.lower() not in BAG_SUFFIXES:
                    raise InputError(f"is not a bag of features ({', '.join(BAG_SUFFIXES)})", file=file)
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
            record.item = Prepared(row[:, None].astype(np.float32), order)
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
            self._say_once("order", f"{case}: no coordinates; such bags are scanned in file order")
        order = instance_order(Bag(bag.id, bag.features, placed), self.summary["order"])
        features = bag.features if self.scaler is None else self.scaler(bag.features)
        names = [slide.id for slide in slides]
        bare = [replace(slide, features=slide.features[:0], coords=None) for slide in slides]
        known = bag.coords
        if known is None and any(slide.coords is not None for slide in slides):  # slides without coordinates get NaN
            unknown = [np.full((len(slide), 2), np.nan) for slide in slides]
            known = np.concatenate([u if s.coords is None else s.coords for s, u in zip(slides, unknown)])
        return Prepared(features.astype(np.float32, copy=False), order, names, number, known, bare, bag.dropped)

    def _say_once(self, kind: str, message: str) -> None:
        """Report a message once per kind."""
        if kind not in self.said:
            say(message)
        self.said.add(kind)

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
            logits = out.logits[number].float().cpu()
            if not torch.isfinite(logits).all():
                record.reason = "the network output is not finite"
                rows.append(self.failed(record))
                continue
            rows.append([self._row(logits, item)])
        return rows

    def _row(self, logits: torch.Tensor, item: Prepared) -> dict[str, Any]:
        if self.summary["target"] == "classification":
            probabilities = logits.softmax(0).tolist()
            best = int(np.argmax(probabilities))
            row: dict[str, Any] = {"prediction": self.summary["classes"][best]}
            row |= {f"p_{name}": p for name, p in zip(self.summary["classes"], probabilities)}
        else:
            curve = curves_of(logits[None])[0].tolist()
            row = {"risk": -sum(curve)}
            row |= dict(zip(curve_names(self.summary["edges"]), curve))
        return {**row, "patches": len(item.order), "dropped": item.dropped}

    def derive(self, row: dict[str, Any], members: Sequence[Predictor]) -> dict[str, Any]:
        """Return the class with the highest mean probability."""
        if "prediction" not in row:
            return {}
        return {"prediction": max(self.summary["classes"], key=lambda name: row[f"p_{name}"])}

    def merge(self, items: list[Any]) -> Any:
        """Average the scores and attention of the patches."""
        if any(item is None or item.scores is None or item.attention is None for item in items):
            return items[0]
        scores, attention = (np.mean([getattr(item, name) for item in items], 0) for name in ("scores", "attention"))
        return replace(items[0], scores=scores, attention=attention)

    # -- figures -----------------------------------------------------------------------------------------------------

    def figures(self, record: Record, rows: list[dict[str, Any]], folder: Path) -> list[Path]:
        """Write the attention of all and of the top patches (CSV), heat maps, ranked scores and the survival curve."""
        item: Prepared = record.item
        limit = self.options["figures_limit"]
        if limit is not None and record.index >= limit:
            return []
        if item is None or item.scores is None or item.attention is None or "patches" not in rows[0]:
            return []
        stem = f"{record.index:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', record.id)[:80]}"
        table = self._attention(record, item)
        drawn = [folder / f"{stem}_attention.csv", folder / f"{stem}_top.csv"]
        top = table.sort_values("score", ascending=False, kind="stable").head(self.options["top_k"])
        for path, frame in zip(drawn, (table, top)):
            with atomic(path, "w") as file:
                frame.to_csv(file, index=False, lineterminator="\n")
        answer = self._answer(rows[0])
        title, what = f"{record.id}\n{answer}", "tokens" if item.slide is None else "patches"
        drawn.append(figures.ranked(folder / f"{stem}_ranked.png", item.scores, item.attention, title, what))
        if self.summary["target"] == "survival":
            curve = np.array([rows[0][name] for name in curve_names(self.summary["edges"])])
            unit = self.summary["time_column"]
            title = f"{record.id}\npredicted, risk {rows[0]['risk']:.3f}"
            drawn.append(
                figures.survival_curve(folder / f"{stem}_survival.png", self.summary["edges"], curve, unit, title)
            )
        if item.coords is not None and item.slide is not None:
            for number, slide in enumerate(item.slides):
                if np.isnan(item.coords[item.slide == number]).any():
                    continue
                path = folder / f"{stem}_heat{'' if len(item.slides) == 1 else number + 1}.png"
                drawn.append(self._heat(path, slide, item, number, f"{slide}\n{answer}"))
        return drawn

    def _attention(self, record: Record, item: Prepared) -> pd.DataFrame:
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
        table |= {"score": item.scores, "attention": item.attention, "rank": figures.percentiles(item.scores)}
        return pd.DataFrame(table)

    def _answer(self, row: dict[str, Any]) -> str:
        """Format the subtitle of a figure. Attention is class-agnostic; it is not evidence for the predicted class."""
        if self.summary["target"] == "survival":
            return f"attention; predicted risk {row['risk']:.3f}"
        p = row[f"p_{row['prediction']}"]
        return f"attention; predicted {row['prediction']}, p = {p:.2f}"

    def _heat(self, path: Path, slide: str, item: Prepared, number: int, title: str) -> Path:
        own = item.slide == number
        assert item.coords is not None
        assert item.scores is not None
        coords, bag = item.coords[own].astype(np.int64), item.bags[number]
        thumbnail, extent, mpp = None, None, bag.mpp
        if self.options["slides"] is not None:
            from seqssm_pathology import slides

            file = slides.find_slide(Path(self.options["slides"]), slide)
            if file is None:
                say(f"{slide}: no slide in {self.options['slides']}, drawn without thumbnail")
            else:
                thumbnail, extent, mpp = slides.thumbnail(file, figures.CANVAS)
                if bag.in_micrometres and mpp is None:
                    say(f"{slide}: coordinates are in micrometres and the slide has no resolution, no thumbnail drawn")
                    thumbnail, extent = None, None
                elif bag.in_micrometres:
                    extent = extent[0] * mpp, extent[1] * mpp
                mpp = bag.mpp if bag.in_micrometres else mpp or bag.mpp
        side, known = side_of(coords, bag.patch)
        if not known:
            self._say_once("side", f"{slide}: patch size unknown, drawn as {side} level-0 pixels")
        fraction = covered(coords, side)
        if fraction < figures.COVERED:
            say(f"{slide}: patches of {side} level-0 pixels cover {fraction:.1%} of the area that they span")
            title += f"\npatches of {side} pixels cover {fraction:.1%} of the area that they span"
        background = figures.Background(side, thumbnail, extent, mpp)
        return figures.heat_map(path, coords, figures.percentiles(item.scores[own]), background, title)
