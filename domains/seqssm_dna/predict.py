"""Prediction from a checkpoint and sequences, intervals or variants: table, tracks, embeddings and figures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from torch import nn

from seqssm.errors import InputError, Status
from seqssm.files.disk import encodable
from seqssm.metrics.columns import OutputColumns
from seqssm.prediction.predictor import Record
from seqssm_dna import figures, further
from seqssm_dna.checks import require_files, require_for_inputs, require_for_model
from seqssm_dna.classifier import GenomeClassifier
from seqssm_dna.effects import Effect, Pair, effects
from seqssm_dna.generate import prefix_tokens
from seqssm_dna.labelled import LabelColumns
from seqssm_dna.letters import Findings
from seqssm_dna.member import Member
from seqssm_dna.options import CAUSAL, CLASSIFIER, LANGUAGE, MASKED
from seqssm_dna.profile import Parts, Profile, language_row
from seqssm_dna.scoring import CausalScorer, MaskedScorer, Scorer
from seqssm_dna.sources import LONG, Item, Kind, Reader, kind_of_inputs, of_bed, of_data, of_sequences, of_table
from seqssm_dna.supervised import Supervised, Windowed
from seqssm_dna.tokens import BOS, is_base
from seqssm_dna.variants import Allele, Variants

VARIANT_WINDOW = 512  # letters
MASKED_WINDOW = 1024  # default window of a masked model, letters, if the checkpoint has none
CHUNKS = {"cpu": 4096, "cuda": 65_536}  # bases per pass: fits into the caches of a core; fills a GPU
PLACE = ["record", "start", "end", "strand", "length", "n_fraction"]
SCORES = ["mean_nll", "perplexity", "bits_per_base", "next_base_accuracy", "n_scored"]
VARIANT = ["chrom", "pos", "ref", "alt", "window_start", "window_end"]
LLR = ["ref_ll", "alt_ll", "llr", "llr_mean", "llr_forward", "llr_rc"]


class DnaPredictor(Member):
    """Predicts one row per sequence, interval, window or allele; the columns depend on the model and the inputs."""

    keys = ("record", "start", "end", "strand", *VARIANT[:4])
    counted = ("file", *PLACE, *VARIANT, "n_scored")

    def __init__(self, model: nn.Module, summary: dict[str, Any], options: dict[str, Any]) -> None:
        self.classifier = isinstance(model, GenomeClassifier)
        field = options["vcf_field"] or ("SEQSSM_CHANGE" if self.classifier else "SEQSSM_LLR")
        super().__init__(model, summary, {**options, "vcf_field": field})
        network: Any = model.network if isinstance(model, GenomeClassifier) else model
        self.network, self.causal = network, bool(network.causal)
        self.kinds = (CLASSIFIER,) if self.classifier else (LANGUAGE, CAUSAL if self.causal else MASKED)
        self.outputs = output_columns(summary) if self.classifier else OutputColumns(())
        require_for_model(options, self.outputs.names, self.causal, self.limit)
        self.prefix = [BOS]
        if summary["properties"] or options["label"]:
            self.prefix, _ = prefix_tokens(summary, {"label": options["label"]})
        self.notes: list[str] = []
        self.reader = Reader(summary["lower"], summary["trim_n"])
        self.trained = LabelColumns(sequence=summary["sequence_column"], id=summary["id_column"])
        self.findings = Findings()
        self.kind: Kind = "sequences"
        self.inputs: list[Path] = []
        self.unit = "records"
        self.several = False
        self._columns()

    # -- options -----------------------------------------------------------------------------------------------------

    @property
    def chunk(self) -> int:
        """Bases per forward pass of a causal model."""
        return int(self.options["chunk_size"] or CHUNKS.get(self.device.type, CHUNKS["cuda"]))

    @property
    def both(self) -> bool:
        """Whether a language model reads both strands."""
        if self.options["strands"] != "checkpoint":
            return self.options["strands"] == "both"
        return self.kind == "vcf"

    def _columns(self) -> None:
        file = ["file"] if self.several else []
        if self.kind == "vcf":
            changes = [f"{name}{end}" for name in self.outputs.estimates for end in ("_ref", "_alt", "_change")]
            self.columns = file + VARIANT + (changes if self.classifier else LLR)
            return
        self.columns = file + PLACE + (self.outputs.columns if self.classifier else SCORES)

    @property
    def limit(self) -> int | None:
        """Letters that attention without a window was trained on; None: the model reads any number."""
        everything = getattr(self.network, "has_attention", False) and self.network.attn_window is None
        return self.summary["context"] if everything else None

    @property
    def window(self) -> int:
        """Letters around a variant."""
        trained = self.summary["context"]
        usual = trained if self.classifier and trained else min(VARIANT_WINDOW, self.limit or VARIANT_WINDOW)
        return int(self.options["window"] or usual)

    def scorer(self, features: bool = False) -> Scorer:
        """Return the scorer of a language model.

        Args:
            features: whether to compute features.
        """
        if self.causal:
            return CausalScorer(self.network, self.prefix, self.chunk, features=features)
        window = self.options["window"] or self.summary["context"] or MASKED_WINDOW
        return MaskedScorer(self.network, window, self.options["mask_passes"], features=features)

    def labeller(self, features: bool = False) -> Supervised:
        """Return the classifier over windows.

        Args:
            features: whether to compute features.
        """
        average = {"checkpoint": None, "forward": False, "both": True}[self.options["strands"]]
        window = self.options["window"] or self.summary["context"]
        return Supervised(self.model, window, self.options["step"], average, features)

    # -- records -----------------------------------------------------------------------------------------------------

    def records(self, inputs: list[Path]) -> Iterator[Record]:
        """Yield the sequences, intervals or alleles of files."""
        self.kind, self.inputs = kind_of_inputs(inputs), list(inputs)
        self.several = len(inputs) > 1
        require_for_inputs(self.options, self.kind, inputs, self.causal and not self.classifier, self.limit)
        require_files(self.options, inputs, self.output)
        self.unit = "alleles" if self.kind == "vcf" else "records"
        self._columns()
        self.findings = Findings()
        self.notes.clear()
        return self._alleles(inputs) if self.kind == "vcf" else self._sequences(inputs)

    def _sequences(self, inputs: list[Path]) -> Iterator[Record]:
        index = 0
        for path in inputs:
            if self.kind == "bed":
                found = of_bed(path, Path(self.options["reference"]), self.reader)
            elif self.kind == "table":
                found = of_table(path, encodable(path.name), self.notes.append, self.trained)
            else:
                found = of_sequences(path, self.findings, self.reader)
            for name, item in found:
                yield _record(index, name, item)
                index += 1
        self.notes += self.findings.report()

    def _alleles(self, inputs: list[Path]) -> Iterator[Record]:
        index = 0
        genome = self.reader.genome(Path(self.options["reference"]))
        for path in inputs:
            variants = Variants(path, genome, self.window)
            for allele in variants:
                record = Record(index, allele.id, (encodable(path.name), Pair(allele)))
                if allele.status != Status.OK:
                    record.reason, record.status = allele.reason, Status(allele.status)
                yield record
                index += 1
            self.notes += variants.report()

    def records_of(self, data: Any) -> Iterator[Record]:
        """Yield the sequences of a data frame, or of a dict of names and letters."""
        self.kind, self.several = "table", False
        if self.options["class"] is not None:
            raise InputError("class_ has no effect on sequences: it compares the alleles of a VCF file")
        self._columns()
        found = of_data(data, self.notes.append, self.trained)
        return (_record(index, name, item) for index, (name, item) in enumerate(found))

    def prepare(self, record: Record) -> Record:
        """Read the letters of a short sequence, or the windows of an allele."""
        if isinstance(record.item, tuple):
            record.item[1].load(self.reader, Path(self.options["reference"]), self.window)
            return record
        item: Item = record.item
        if item.length == 0:
            return _refused(record, Status.EMPTY, "the sequence has no letters")
        item.load(self.reader)
        if item.letters is not None and len(item.letters) <= LONG:
            bases = int(is_base(self.reader.ids(item.letters)).sum())
            item.n_fraction = (item.length - bases) / item.length
            if not bases:
                return _refused(record, Status.ALL_N, "the sequence has no A, C, G or T")
            if self.reader.trim_n:
                item.trim(self.reader)
        longest = self.summary["max_length"]
        in_windows = any(self.options[name] for name in ("window", "step", "per_window"))
        if self.classifier and longest and item.length > longest and not in_windows:  # cut as in training
            item.keep(0, longest)
        return self._limited(record, item)

    def _limited(self, record: Record, item: Item) -> Record:
        """Reject a sequence longer than those that unlimited attention was trained on."""
        limit = self.limit
        if limit is not None and item.length > limit and self.causal and not self.classifier:
            why = f"{item.length} letters; attention without attn_window was trained on at most {limit}"
            return _refused(record, Status.TOO_LONG, f"{why}; split the record, or use a BED file of segments")
        return record

    # -- rows --------------------------------------------------------------------------------------------------------

    def predict(self, records: list[Record]) -> Sequence[list[dict[str, Any]] | pd.DataFrame]:
        if isinstance(records[0].item, tuple):
            return self._variant_rows(records)
        if self.classifier:
            return self._label_rows(records)
        return self._language_rows(records)

    def _language_rows(self, records: list[Record]) -> list[list[dict[str, Any]] | pd.DataFrame]:
        profiles = self.profiles([record.item for record in records], bool(self.options["embeddings"]))
        rows = [self._language_row(record, profile) for record, profile in zip(records, profiles)]
        self._write_parts(records, [profile.embedding for profile in profiles])
        if self.options["track"] and self.work is not None:
            good = [one for record, one in zip(records, profiles) if record.reason is None]
            lines = (line for one in good for line in one.track(one.item.record))
            Parts(self.work, "track").write(records[0].index, lines)
        for profile in profiles:
            profile.close()
        return rows

    def profiles(self, items: list[Item], features: bool = False) -> list[Profile]:
        """Score sequences with a language model.

        Args:
            items: sequences.
            features: whether to compute features.
        """
        scorer = self.scorer(features)
        window = self.options["window"] if self.options["per_window"] else None
        profiles = [Profile(item, window, bool(self.options["track"]), self.work) for item in items]
        short = [one for one in profiles if one.item.length <= self.chunk or not self.causal]
        for opposite in (False, True) if self.both else (False,):
            read = [one.item.whole(self.reader, opposite) for one in short]
            for one, scored in zip(short, scorer.whole(read)):
                one.add(0, scored, opposite)
            for one in profiles:
                if one in short:
                    continue
                first = 0
                for scored in scorer.stream(one.item.pieces(self.reader, self.chunk, opposite)):
                    one.add(first, scored, opposite)
                    first += len(scored.nll)
        return profiles

    def _language_row(self, record: Record, profile: Profile) -> list[dict[str, Any]] | pd.DataFrame:
        item: Item = record.item
        item.n_fraction = (item.length - profile.scored) / max(item.length, 1)
        item.bins = profile.bins
        if not profile.scored:
            _refused(record, Status.ALL_N, "the sequence has no A, C, G or T")
            return self.failed(record)
        if profile.windows is None:
            _, _, nll, accuracy, scored = next(profile.total.rows())
            if not np.isfinite(nll):
                return self._not_finite(record)
            return [{**self._place(item), **language_row(nll, accuracy, scored)}]
        rows = []
        for start, end, nll, accuracy, scored in profile.windows.rows():
            row = {**self._place(item, start, end), "n_fraction": 1 - scored / max(end - start, 1)}
            bad = {"status": Status.ALL_N.value, "reason": "the window has no A, C, G or T"}
            good = {**language_row(nll, accuracy, scored), "status": Status.OK.value, "reason": ""}
            rows.append({**row, **(good if scored else bad)})
        return pd.DataFrame(rows)

    def _label_rows(self, records: list[Record]) -> list[list[dict[str, Any]] | pd.DataFrame]:
        found = self.labeller(bool(self.options["embeddings"])).items([one.item for one in records], self.reader)
        rows = [self._label_row(record, own) for record, own in zip(records, found)]
        self._write_parts(records, [own.features for own in found])
        return rows

    def _label_row(self, record: Record, own: Windowed) -> list[dict[str, Any]] | pd.DataFrame:
        item: Item = record.item
        item.n_fraction = own.n_fraction
        if not own.known.any():
            _refused(record, Status.ALL_N, "the sequence has no A, C, G or T")
            return self.failed(record)
        if not self.options["per_window"]:
            if not np.isfinite(own.merged).all():
                return self._not_finite(record)
            return [{**self._place(item), **self.outputs.row(own.merged)}]
        rows = []
        for (first, last), values, known, fraction in zip(
            own.spans.tolist(), own.values, own.known, own.n_fractions.tolist()
        ):
            status = Status.OK if known else Status.ALL_N
            row = {**self._place(item, first, last), **(self.outputs.row(values) if known else {})}
            reason = "" if known else "the window has no A, C, G or T"
            rows.append({**row, "n_fraction": fraction, "status": status.value, "reason": reason})
        return pd.DataFrame(rows)

    def _variant_rows(self, records: list[Record]) -> list[list[dict[str, Any]]]:
        pairs = [record.item[1] for record in records]
        if self.classifier:
            values = self.labeller().alleles(pairs)
            return [self._change_row(record, own) for record, own in zip(records, values)]
        found = effects(self.scorer(), pairs, self.both)
        return [self._llr_row(record, own) for record, own in zip(records, found)]

    def _llr_row(self, record: Record, own: Effect) -> list[dict[str, Any]]:
        if not np.isfinite(own.llr).all():
            return self._not_finite(record)
        mean = float(own.llr.mean())
        row = {
            "ref_ll": float(own.ref.mean()),
            "alt_ll": float(own.alt.mean()),
            "llr": mean,
            "llr_mean": mean / max(own.letters, 1),
            "llr_forward": float(own.llr[0]),
            "llr_rc": float(own.llr[1]) if len(own.llr) > 1 else None,
        }
        return [{**self._variant(record), **row}]

    def _change_row(self, record: Record, values: np.ndarray) -> list[dict[str, Any]]:
        if not np.isfinite(values).all():
            return self._not_finite(record)
        return [{**self._variant(record), **self.change(*values)}]

    def change(self, ref: np.ndarray, alt: np.ndarray) -> dict[str, float]:
        """Return the columns of a classifier's outputs for both alleles of a variant.

        Args:
            ref: outputs for REF, (C,).
            alt: outputs for ALT, (C,).
        """
        row = {}
        for name, before, after in zip(self.outputs.estimates, ref.tolist(), alt.tolist()):
            row |= {f"{name}_ref": before, f"{name}_alt": after, f"{name}_change": after - before}
        return row

    @property
    def wanted(self) -> str:
        """Name of the output whose change is reported."""
        return self.options["class"] or self.outputs.names[-1]

    def _not_finite(self, record: Record) -> list[dict[str, Any]]:
        _refused(record, Status.FAILED, "the prediction is not finite")
        return self.failed(record)

    def failed(self, record: Record) -> list[dict[str, Any]]:
        if isinstance(record.item, tuple):
            return [self._variant(record)]
        return [{} if record.item is None else self._place(record.item)]

    def _place(self, item: Item, first: int = 0, last: int | None = None) -> dict[str, Any]:
        """Return the columns of the position of a sequence, or of its letters `first` to `last`."""
        last = item.length if last is None else last
        spans = item.places(first, last) or [(item.start, item.end)]
        row = {
            "record": item.record,
            "start": spans[0][0],
            "end": spans[-1][1],
            "strand": item.strand,
            "length": last - first,
            "n_fraction": item.n_fraction,
        }
        return {"file": item.file, **row} if self.several else row

    def _variant(self, record: Record) -> dict[str, Any]:
        file, pair = record.item
        allele: Allele = pair.allele
        row = {"chrom": allele.chrom, "pos": allele.pos, "ref": allele.ref, "alt": allele.alt}
        if pair.ref is not None:
            row |= {"window_start": pair.start, "window_end": pair.end}
        return {"file": file, **row} if self.several else row

    # -- embeddings, figures, other outputs --------------------------------------------------------------------------

    def _write_parts(self, records: list[Record], vectors: Sequence[np.ndarray | None]) -> None:
        if self.options["embeddings"] and self.work is not None:
            found = {record.index: own for record, own in zip(records, vectors) if own is not None}
            further.write_vectors(Parts(self.work, "vectors"), records[0].index, found)

    def embed(self, records: list[Record]) -> list[Any]:
        """Return the mean features, (D,), of each sequence: head inputs, or last-layer outputs of a language model."""
        items = [record.item for record in records]
        if any(isinstance(item, tuple) for item in items):
            raise InputError("variants have no embeddings; give sequences or intervals")
        if self.classifier:
            vectors = [own.features for own in self.labeller(features=True).items(items, self.reader)]
        else:
            vectors = [one.embedding for one in self.profiles(items, features=True)]
        return [np.full(self.network.width, np.nan, np.float32) if one is None else one for one in vectors]

    def figures(self, record: Record, rows: Any, folder: Path) -> list[Path]:
        """Draw the outputs along a sequence; nothing for single rows of labels or variants."""
        if isinstance(record.item, tuple):
            return []
        if self.classifier:
            if not self.options["per_window"]:
                return []
            label = "value" if self.model.target == "value" else "probability"
            return figures.windows(record, rows, dict(zip(self.outputs.names, self.outputs.estimates)), label, folder)
        return figures.track(record, folder)

    def finish(self, tables: Iterator[pa.Table]) -> list[Path]:
        """Write the track, embeddings, VCF copy and summary; print messages about the inputs."""
        assert self.work is not None
        aliases = {name: to for one in self.reader.opened.values() for name, to in one.contigs.aliases.items()}
        letters = self.findings.to_dict() if self.kind == "sequences" else {}
        found = [*self.reader.notes(self.findings.report()), *self.notes]
        about = {**letters, "contig_aliases": aliases, "notes": list(dict.fromkeys(found))}
        wanted = (self.wanted, self.outputs.estimate(self.wanted)) if self.classifier else None
        written, counts, notes = further.write_all(
            self.options, self.work, tables, self.inputs, wanted, self.pooling, about
        )
        if self.kind != "vcf" and any(name != Status.OK for name in counts):
            notes = [*notes, "rows by status: " + ", ".join(f"{count} {name}" for name, count in counts.items())]
        for note in notes:
            print(note, file=sys.stderr)
        return written

    @property
    def pooling(self) -> str:
        """Description of the pooling of embeddings."""
        if self.classifier:
            return f"{self.model.pool} over the positions, inputs of the head"
        return "mean over the positions, after the last layer and its norm"


def output_columns(about: dict[str, Any]) -> OutputColumns:
    """Return the columns of a classifier's outputs.

    Args:
        about: summary, or arguments of the task, of the checkpoint: ``classes`` and ``target``.
    """
    names = tuple(str(name) for name in about["classes"])
    kind = about.get("target") or "class"
    return OutputColumns(names or ("prediction",), kind)


def _record(index: int, name: str, item: Item) -> Record:
    record = Record(index, name, item)
    return _refused(record, Status.FAILED, item.problem) if item.problem else record


def _refused(record: Record, status: Status, reason: str) -> Record:
    record.status, record.reason = status, reason
    return record
