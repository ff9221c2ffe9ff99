"""Prediction from recordings: probabilities and decisions per class, challenge files and ECG pages."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from seqssm.errors import InputError, unknown_output
from seqssm.files.frames import as_pandas, is_frame
from seqssm.files.notes import note
from seqssm.files.numbers import real_array
from seqssm.metrics.columns import OutputColumns
from seqssm.prediction.predictor import Predictor, Record, with_notes
from seqssm_ecg import files
from seqssm_ecg.arrays import Layout
from seqssm_ecg.classifier import pooled_logits
from seqssm_ecg.clock import Clock, places_of, timed
from seqssm_ecg.files import open_recording
from seqssm_ecg.labels import ABBREVIATIONS
from seqssm_ecg.leads import LEADS, check_lead_map, obtainable, select
from seqssm_ecg.long import LongRecording, is_long
from seqssm_ecg.measure import column_names, measure_part, measure_recording, parts
from seqssm_ecg.outputs import write_output
from seqssm_ecg.preprocess import Preprocess, windows
from seqssm_ecg.quality import assess
from seqssm_ecg.recording import ArraySpec, Recording
from seqssm_ecg.records import WINDOWS_AT_ONCE, stack

if TYPE_CHECKING:
    import pyarrow as pa

IDENTITY = ["patient_id", "patient_name", "birth_date"]  # columns written with --identity
TITLE_NAMES = 10  # maximum number of classes in the title of a page


def reading_options(options: dict[str, Any]) -> dict[str, Any]:
    """Convert command-line options to arguments of `read_recording`.

    Raises:
        InputError: a lead map entry is not of the form NAME=LEAD, or contradicts another.
    """
    lead_map = {}
    for pair in options.get("lead_map") or []:
        own, equals, lead = pair.partition("=")
        if not equals:
            raise InputError(f"--lead-map {pair}: expected NAME=LEAD, e.g. MLII=II")
        if lead_map.get(own, lead) != lead:
            raise InputError(f"--lead-map: {own} appears twice, as {lead_map[own]} and as {lead}")
        lead_map[own] = lead
    check_lead_map(lead_map)
    leads = options.get("array_leads")
    array = ArraySpec(options.get("array_rate_hz"), tuple(leads) if leads else None, options.get("array_unit") or "mV")
    return {
        "lead_map": lead_map,
        "array": array,
        "checksums": not options.get("ignore_checksums"),
        "wfdb_defaults": bool(options.get("wfdb_defaults")),
    }


class EcgPredictor(Predictor):
    """Predictor with one row per recording: probabilities, decisions, seconds, notes."""

    keys = ("start_s", "end_s")

    def __init__(self, model: nn.Module, summary: dict[str, Any], options: dict[str, Any]) -> None:
        super().__init__(model, summary, options)
        self.classes: list[str] = summary["classes"]
        exclusive = getattr(model, "exclusive", False)  # a pretrained network has no classes
        self.outputs = OutputColumns(tuple(self.classes), "class" if exclusive else "labels")
        self.estimates = self.outputs.estimates
        self.window_s = options["window_s"]
        self.columns = ["start_s", "end_s"] if self.window_s is not None else []
        self.columns += [*self.outputs.columns, "seconds", "notes"]
        if options["measure"]:
            self.columns += column_names()
        if options["identity"]:
            self.columns += IDENTITY
        self.preprocess = Preprocess.from_dict(summary["preprocess"])
        self.reading = reading_options(options)
        self.reading["lead_map"] = {**self.preprocess.lead_map, **self.reading["lead_map"]}
        self.challenge = options["format"] == "challenge"
        if self.window_s is not None and self.challenge:
            raise InputError("--format challenge takes one row per recording; omit --window-s")
        self.attributed = options["attribution_class"]
        if self.attributed not in (None, "highest", *self.classes):
            raise unknown_output("--attribution-class", self.attributed, self.classes, "highest: the most probable one")

    # -- records -----------------------------------------------------------------------------------------------------

    def records(self, inputs: list[Path]) -> Iterator[Record]:
        """Yield the recordings of files and folders; those of a folder are named by their path within it.

        Ids have no suffix. Recordings that would have the same id keep it, or have the whole path as their id.

        Raises:
            InputError: the network is pretrained only, and has no classes to predict.
        """
        self._require_classes()
        seen: set[str] = set()
        for index, (name, path) in enumerate(named(inputs, unique=not self.challenge)):
            reason = None
            if self.challenge:
                stem = name.rsplit("/", 1)[-1]
                if stem in seen:
                    reason = f"duplicate record name {stem}: their challenge files would collide"
                seen.add(stem)
            yield Record(index, name, path, reason)

    def records_of(self, data: Any) -> Iterator[Record]:
        """Yield recordings of in-memory arrays; rate, leads and unit are the options ``array_rate_hz``, ...

        Args:
            data: array (leads, n) or (n, leads), array of several records (records, leads, n), mapping from lead names
                to (n,), data frame with a column per lead, or list of these.

        Raises:
            InputError: `data` has a different form.
        """
        self._require_classes()
        if is_frame(data) and "path" in as_pandas(data).columns:
            raise InputError('a manifest cannot be predicted: pass its recordings, list(frame["path"])')
        several = isinstance(data, list | tuple) or (isinstance(data, np.ndarray) and data.ndim == 3)
        for index, one in enumerate(data if several else [data]):
            name = Path(f"array {index}")
            try:
                yield Record(index, name.name, self._in_memory(one, name))
            except InputError as error:
                yield Record(index, name.name, None, str(error))

    def _require_classes(self) -> None:
        if not self.classes and not self.embeds:
            raise InputError(
                "this network is pretrained and has no classes: train a classifier with --model.init_from, or compute "
                "features with seqssm.load(...).embed"
            )

    def _in_memory(self, data: Any, name: Path) -> Recording:
        spec, names = self.reading["array"], None
        if is_frame(data):
            frame = as_pandas(data)
            names, data = tuple(map(str, frame.columns)), [frame.iloc[:, k] for k in range(frame.shape[1])]
        elif isinstance(data, Mapping):
            names, data = tuple(map(str, data)), list(data.values())
        try:
            table = real_array(data)
        except (ValueError, TypeError) as error:
            why = f": {error}" if "not real numbers" in str(error) else ""
            raise InputError(f"is not an array of numbers{why}", file=name) from None
        if table.ndim != 2 or 0 in table.shape:
            raise InputError(f"has shape {table.shape}; expected (leads, n)", file=name)
        notes: list[str] = []
        if names is not None and len(table) == len(names):
            spec, notes = timed([Clock(names[place], table[place]) for place in places_of(names)], spec, name)
        layout = Layout.of(table.shape, names, self.reading["lead_map"], spec, name)
        rows = (table.T if layout.turned else table)[list(layout.rows)] * layout.factor
        rows = np.where(np.isfinite(rows), rows, np.nan)
        recording = Recording.of_arrays(name, layout.rate_hz, dict(zip(layout.leads, rows)))
        recording.notes += [*layout.notes, *notes]
        return recording

    def open(self, path: Path) -> Recording:
        """Open a recording with the command-line options for reading."""
        return open_recording(path, **self.reading)

    def prepare(self, record: Record) -> Record:
        """Read a record; a long one is only checked here, and read in blocks by `predict`."""
        recording = record.item if isinstance(record.item, Recording) else self.open(record.item)
        path = recording.path
        item: dict[str, Any] = {"recording": recording, "seconds": recording.seconds}
        if is_long(recording, self.preprocess):
            item["x"] = LongRecording(recording, self.preprocess)
            quality, notes = item["x"].quality, item["x"].notes
        else:
            item["x"], notes = self.preprocess(recording)
            quality = assess(recording, self.preprocess.leads)
            if not np.isfinite(item["x"]).all():
                raise InputError("samples are not finite after scaling", file=path)
        if quality.implausible is not None and not self.options["accept_implausible"]:
            raise InputError(f"{quality.implausible}; pass --accept-implausible to predict it anyway", file=path)
        found = [] if quality.implausible is None else [quality.implausible]
        if self.options["measure"] and self.window_s is not None:
            item["measured"] = [measure_part(recording, one) for one in parts(recording, self.window_s)]
        elif self.options["measure"]:
            item["measured"] = [measure_recording(recording)]
        if recording.groups:
            used = dict.fromkeys(" ".join(one.good) for one in item.get("measured", []) if one.good)
            found += [f"measured on {leads}" for leads in used]
        item["notes"] = list(dict.fromkeys([*notes, *quality.notes, *found]))
        record.item = item
        return record

    # -- rows --------------------------------------------------------------------------------------------------------

    def predict(self, records: list[Record]) -> list[list[dict[str, Any]]]:
        if self.window_s is not None:
            return [self._rows(record, *self._by_part(record.item["x"])) for record in records]
        logits = self.logits([record.item["x"] for record in records])
        rows = [self._rows(record, row[None]) for record, row in zip(records, logits)]
        if self.challenge:
            for record, found in zip(records, rows):
                if record.reason is None:
                    self._write_challenge(record, found[0])
        return rows

    def _rows(self, record: Record, logits: Tensor, times: list[tuple[float, float]] | None = None) -> Any:
        """Return the rows of a record: one per row of `logits` (k, m), with start and end of the windows if given."""
        probabilities = self.model.probabilities(logits.double())
        scores, limits = probabilities.cpu().numpy(), self.limits
        if not np.isfinite(scores).all():
            record.reason = "the probabilities are not finite"
            return self.failed(record)
        rows = []
        for number, values in enumerate(scores):
            row: dict[str, Any] = {} if times is None else dict(zip(("start_s", "end_s"), times[number]))
            row |= self.outputs.row(values, limits)
            row["seconds"], row["notes"] = record.item["seconds"], "; ".join(record.item["notes"])
            measured = record.item.get("measured")
            if measured:
                row |= measured[min(number, len(measured) - 1)].columns()
            if self.options["identity"]:
                row |= {name: record.item["recording"].identity.get(name) for name in IDENTITY}
            rows.append(row)
        return rows

    def finish(self, tables: Iterator[pa.Table]) -> list[Path]:
        """Report the number of records with notes."""
        found = with_notes(tables)
        if found:
            note(f"{found} have notes on leads or signals (column notes)", sys.stderr)
        return []

    def single(self) -> str | None:
        return "--format challenge" if self.challenge else None

    def derive(self, row: dict[str, Any], members: Sequence[Predictor]) -> dict[str, Any]:
        """Compare the mean probabilities with the mean of the members' thresholds."""
        limits = np.mean([member.limits for member in members], axis=0)  # type: ignore[attr-defined]
        return self.outputs.decide(row, limits)

    @property
    def limits(self) -> list[float]:
        """Decision thresholds of the classes."""
        return self.model.thresholds.double().tolist()

    def _by_part(self, x: np.ndarray | LongRecording) -> tuple[Tensor, list[tuple[float, float]]]:
        """Compute the logits (k, m) of consecutive windows of the length asked for, and their times in seconds.

        The network's own windows within one are combined as those of a record are. The last one ends with the record.
        """
        samples = x.samples if isinstance(x, LongRecording) else x.shape[1]
        rate_hz = self.preprocess.rate_hz
        length = min(round(self.window_s * rate_hz), samples)
        starts = windows(samples, length, length)
        if isinstance(x, LongRecording):
            pieces = x.windows(length, length, WINDOWS_AT_ONCE)
        else:
            pieces = (x[None, :, start : start + length] for start in starts)
        rows = [self.logits(list(piece)) for piece in pieces]
        times = [(start / rate_hz, (start + length) / rate_hz) for start in starts]
        return torch.cat(rows), times

    def logits(self, inputs: list[np.ndarray | LongRecording]) -> Tensor:
        """Compute logits (records, m).

        Args:
            inputs: arrays (leads, n), or long recordings.
        """
        rows = []
        for found in self._by_window(inputs, self.model):
            record_index = torch.zeros(len(found), dtype=torch.int64, device=found.device)
            aggregate = self.summary["aggregate"]
            rows.append(pooled_logits(found, record_index, 1, aggregate, self.model.exclusive)[0])
        return torch.stack(rows)

    def embed(self, records: list[Record]) -> list[Tensor]:
        """Compute the features before the head, (D,) per record: the mean over its windows."""
        inputs = [record.item["x"] for record in records]
        return [found.mean(0).cpu() for found in self._by_window(inputs, self.model.features)]

    def _by_window(self, inputs: list[Any], network: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        """Apply `network` to the windows of each record, a bounded number at a time; (windows, k) per record."""
        window, stride = self.summary["window"], self.summary["stride"]
        found: dict[int, Tensor] = {}
        short: list[tuple[int, np.ndarray]] = []
        for number, one in enumerate(inputs):
            if isinstance(one, LongRecording):
                found[number] = self._passes(one.windows(window, stride, WINDOWS_AT_ONCE), network)
            elif one.shape[1] <= window:
                short.append((number, one))
            else:
                starts = windows(one.shape[1], window, stride)
                parts = (starts[k : k + WINDOWS_AT_ONCE] for k in range(0, len(starts), WINDOWS_AT_ONCE))
                found[number] = self._passes(
                    (np.stack([one[:, s : s + window] for s in part]) for part in parts), network
                )
        for start in range(0, len(short), WINDOWS_AT_ONCE):
            part = short[start : start + WINDOWS_AT_ONCE]
            batch = stack([table for _, table in part], window, stride)
            rows = network(batch["x"].to(self.device), batch["lengths"]).float()
            found |= {number: row[None] for (number, _), row in zip(part, rows)}
        return [found[number] for number in range(len(inputs))]

    def _passes(self, parts: Iterable[np.ndarray], network: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Apply `network` to batches of windows (k, leads, window) of one recording; (windows, k)."""
        rows = [network(torch.from_numpy(x).to(self.device), torch.full((len(x),), x.shape[-1])) for x in parts]
        return torch.cat(rows).float()

    def _write_challenge(self, record: Record, row: dict[str, Any]) -> None:
        folder = self.options["challenge_folder"]
        if folder is None:
            if self.output is None:
                raise InputError("--format challenge requires --challenge-folder")
            folder = self.output.with_name(f"{self.output.stem}_challenge")
        name = record.id.rsplit("/", 1)[-1]
        codes = [group[0] for group in self.summary["codes"]]
        scores = [row[column] for column in self.estimates]
        write_output(Path(folder) / f"{name}.csv", name, codes, [int(one) for one in self.outputs.decided(row)], scores)

    # -- figures -----------------------------------------------------------------------------------------------------

    def figures(self, record: Record, rows: list[dict[str, Any]], folder: Path) -> list[Path]:
        """Draw a page of the recording in millivolts, with the attribution of a class if requested."""
        from seqssm_ecg.paper import SECONDS, Page, draw_page, looks_normalised

        row = rows[0]
        recording = record.item["recording"]
        measured = record.item.get("measured")
        head = recording.head(SECONDS)
        long = isinstance(record.item["x"], LongRecording)
        page = Page(
            drawable(recording, head),
            recording.rate_hz,
            f"{record.id}: {_listed(self._positive(row))}",
            self._details(recording),
            self.options["page_layout"],
            self.options["paper_speed"],
            self.options["paper_gain"],
            recording.seconds,
            looks_normalised(head if long else recording.values),
            None if self.attributed is None else self._overlay(record, row, SECONDS),
            measured[0].text() if measured else "",
        )
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", record.id)[-60:]
        return [draw_page(folder / f"{record.index:05d}_{name}.png", page)]

    def _positive(self, row: dict[str, Any]) -> list[str]:
        """Return the predicted classes with their probabilities."""
        classes = zip(self.classes, self.estimates, self.outputs.decided(row))
        return [f"{name} {row[column]:.2f}" for name, column, positive in classes if positive]

    def _details(self, recording: Recording) -> str:
        """Return age, sex and filters for a page."""
        process = self.preprocess
        seen = f"model input: {process.rate_hz:g} Hz"
        if process.band_hz is not None:
            low, high = process.band_hz
            band = f"{low:g} to {high:g} Hz" if low and high else f"above {low:g} Hz" if low else f"below {high:g} Hz"
            seen += f", {band}"
        age = "" if recording.age is None else f"{recording.age:g} years"
        return "   ".join(part for part in (age, recording.sex or "", f"no display filter ({seen})") if part)

    def _overlay(self, record: Record, row: dict[str, Any], seconds: float) -> Any:
        """Compute the attribution of a class over the page's time: the mean over the windows that cover it."""
        from seqssm_ecg.attribution import by_lead, integrated_gradients, smooth
        from seqssm_ecg.paper import Overlay

        scores = [row[one] for one in self.estimates]
        column = int(np.argmax(scores)) if self.attributed == "highest" else self.classes.index(str(self.attributed))
        x, rate_hz = record.item["x"], self.preprocess.rate_hz
        count = round(seconds * rate_hz)
        table = next(x.scaled()) if isinstance(x, LongRecording) else x
        window = self.summary["window"]
        table = table[:, : max(count, window)]
        total, covered = np.zeros_like(table), np.zeros(table.shape[1])
        for start in windows(table.shape[1], window, self.summary["stride"]):
            piece = torch.from_numpy(np.ascontiguousarray(table[:, start : start + window])).to(self.device)
            found = integrated_gradients(self.model, piece, column).cpu().numpy()
            total[:, start : start + window] += found
            covered[start : start + window] += 1
        attribution = (total / covered)[:, :count]
        leads = self.preprocess.leads
        seen = smooth(attribution, round(0.08 * rate_hz))
        title = f"{self.classes[column]} {scores[column]:.2f}"
        return Overlay(title, dict(zip(leads, seen)), dict(zip(leads, by_lead(attribution))))


def named(inputs: Sequence[Path], unique: bool = True) -> list[tuple[str, Path]]:
    """Return (id, path) of the recordings of files and folders, in order.

    Args:
        inputs: files, record names and folders.
        unique: whether different recordings get different ids: with suffix, or the whole path.

    Raises:
        InputError: a path does not exist, or a folder has no recordings.
    """
    found = [
        (path.relative_to(given) if given.is_dir() else Path(path.name), path)
        for given in inputs
        for path in files.inputs([given])
    ]
    ids = [files.without_suffix(inside) for inside, _ in found]
    levels = [[inside.as_posix() for inside, _ in found], [path.as_posix() for _, path in found]]
    for longer in levels if unique else ():
        repeated = {name for name, count in Counter(ids).items() if count > 1}
        files_of = {(name, files.located(path)) for name, (_, path) in zip(ids, found) if name in repeated}
        counts = Counter(name for name, _ in files_of)  # 1: one recording was given twice
        ids = [long if counts[short] > 1 else short for short, long in zip(ids, longer)]
    return list(zip(ids, (path for _, path in found)))


def drawable(recording: Recording, head: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the leads of a page, including computed ones; unavailable leads are omitted.

    Args:
        recording: recording.
        head: displayed samples.
    """
    table, _ = select(head, LEADS, "zero", recording.path, recording.apart)
    have = obtainable(head, LEADS, recording.apart)
    return {lead: row for lead, row in zip(LEADS, table) if lead in have}


def _listed(names: list[str]) -> str:
    """Join as many names as fit into the title."""
    shown = names[:TITLE_NAMES]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more if names else "no class"


def abbreviation(code: str) -> str:
    """Return the challenge's abbreviation of a SNOMED code, or the code."""
    return ABBREVIATIONS.get(code, code)
