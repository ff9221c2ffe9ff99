"""Streaming with constant memory: probabilities per second, equal to those of the whole recording up to that time."""

from __future__ import annotations

import csv
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import signal as dsp
from torch import Tensor
from torch.nn import functional as F

from seqssm.errors import InputError
from seqssm.files.disk import atomic, require_new, require_suffix
from seqssm.files.numbers import real_array
from seqssm.metrics.columns import OutputColumns
from seqssm.nn.state import State
from seqssm_ecg.classifier import Classifier
from seqssm_ecg.files import open_recording
from seqssm_ecg.long import LongRecording, is_long
from seqssm_ecg.model import EcgMamba
from seqssm_ecg.preprocess import Preprocess
from seqssm_ecg.quality import assess
from seqssm_ecg.recording import Recording

LONGEST_WINDOW_S = 3600


class Second(NamedTuple):
    """Probabilities after a completed second.

    Attributes:
        second: time since the start, seconds.
        probabilities: those of the recording so far, (m,).
        recent: those of the sliding window, (m,); None without one.
    """

    second: int
    probabilities: np.ndarray
    recent: np.ndarray | None = None


class Stream:
    """Streaming state of one recording.

    After t seconds, the probabilities equal those of the network on the first t seconds (mean over all tokens so far);
    those of a sliding window are the mean over the tokens of its seconds. The state consists of the left context of the
    convolutions, the state of each block, and sums of the tokens.

    Args:
        model: network of a causal checkpoint, ``seqssm.load(PATH).network``.
        summary: summary of the checkpoint, ``seqssm.load(PATH).summary``.
        window_s: length of the sliding window, whole seconds; None for none.

    Raises:
        InputError: the network or its preprocessing is not causal.
    """

    def __init__(self, model: Classifier, summary: dict[str, Any], window_s: int | None = None) -> None:
        if window_s is not None and (window_s != int(window_s) or not 1 <= window_s <= LONGEST_WINDOW_S):
            raise InputError(f"--window-s {window_s:g}: must be whole seconds, from 1 to {LONGEST_WINDOW_S}")
        backbone = model.backbone
        causal = isinstance(backbone, EcgMamba) and backbone.carries_state
        self.preprocess = Preprocess.from_dict(summary["preprocess"])
        ahead = self.preprocess.normalise == "lead" or (self.preprocess.band_hz and not self.preprocess.causal)
        causal = causal and isinstance(model, Classifier) and not model.one_lead
        if not causal or ahead:
            raise InputError(
                "this model is not causal and cannot be streamed; train one with --config ecg_stream (forward, causal, "
                "mean pooling, no positions, normalise global or none, causal_filter)"
            )
        if model.projector is not None:
            raise InputError("this model has a projector, which reads whole windows: it cannot be streamed")
        self.model, self.backbone = model, backbone
        self.window_s = None if window_s is None else int(window_s)
        self.classes: list[str] = summary["classes"]
        self.second = round(self.preprocess.rate_hz)
        self.reset()

    def reset(self) -> None:
        """Reset the state for a new recording."""
        sections = self.preprocess.sections() if self.preprocess.band_hz else None
        leads = len(self.preprocess.leads)
        self.filter = None if sections is None else np.zeros((len(sections), leads, 2))
        self.sections = sections
        weight = self.backbone.norm.weight
        self.context: list[Tensor] = []
        channels = leads
        for number, (kernel, stride, _) in enumerate(self.backbone.stem.shapes):
            self.context.append(weight.new_zeros(1, channels, kernel - stride))
            channels = self.backbone.stem.layers[2 * number].out_channels
        self.states: list[State | None] = [None] * len(self.backbone.blocks)
        self.total = torch.zeros(self.backbone.d_model, dtype=torch.float64)
        self.tokens = self.samples = 0
        # sum and number of the tokens at the start of each second of the sliding window
        self.marks: deque[tuple[Tensor, int]] = deque([(self.total.clone(), 0)], maxlen=(self.window_s or 0) + 1)

    @torch.no_grad()
    def push(self, millivolts: np.ndarray) -> list[Second]:
        """Process samples; return the probabilities after every completed second.

        Args:
            millivolts: samples (leads, n) in the order of ``preprocess.leads``, at ``preprocess.rate_hz``, without
                gaps.

        Raises:
            InputError: the number of leads is wrong, or a sample is not a finite real number.
        """
        try:
            table = real_array(millivolts)
        except ValueError as error:
            raise InputError(f"samples: {error}") from None
        if table.ndim != 2 or table.shape[0] != len(self.preprocess.leads):
            raise InputError(f"samples have shape {table.shape}; expected ({len(self.preprocess.leads)} leads, n)")
        if not np.isfinite(table).all():
            raise InputError("a sample is not finite")
        found = []
        while table.shape[1]:
            missing = self.second - self.samples % self.second
            piece, table = table[:, :missing], table[:, missing:]
            self._take(piece)
            self.samples += piece.shape[1]
            if self.samples % self.second == 0:
                recent = None if self.window_s is None else self._recent()
                if self.tokens:
                    found.append(Second(self.samples // self.second, self.probabilities(), recent))
        return found

    def probabilities(self) -> np.ndarray:
        """Compute the probabilities (m,) of the recording so far."""
        return self._of_mean(self.total / max(1, self.tokens))

    def _recent(self) -> np.ndarray:
        """Compute the probabilities of the sliding window that ends now, and advance it."""
        self.marks.append((self.total.clone(), self.tokens))
        before, count = self.marks[0]
        return self._of_mean((self.total - before) / max(1, self.tokens - count))

    def _of_mean(self, mean: Tensor) -> np.ndarray:
        mean = mean.to(self.model.head.weight)
        return self.model.probabilities(self.model.head(mean).double()).detach().cpu().numpy()

    def _take(self, piece: np.ndarray) -> None:
        if self.filter is not None:
            piece, self.filter = dsp.sosfilt(self.sections, piece, axis=1, zi=self.filter)
        if self.preprocess.normalise == "global":
            piece = (piece - self.preprocess.mean) / self.preprocess.std
        x = torch.from_numpy(piece.astype(np.float32)).to(self.model.head.weight)[None]
        stem = self.backbone.stem
        for number, (kernel, stride, _) in enumerate(stem.shapes):
            x = torch.cat([self.context[number], x], dim=-1)
            steps = (x.shape[-1] - (kernel - stride)) // stride
            self.context[number] = x[..., steps * stride :]
            if steps == 0:
                return
            x = stem.layers[2 * number](x[..., : steps * stride + kernel - stride])
            x = F.relu(stem.layers[2 * number + 1](x))
        tokens = x.transpose(1, 2)
        for number, block in enumerate(self.backbone.blocks):
            mixed, self.states[number] = block.mixer(block.norm(tokens), self.states[number], return_state=True)
            tokens = tokens + mixed
        tokens = self.backbone.norm(tokens)
        self.total += tokens[0].double().sum(0).cpu()
        self.tokens += tokens.shape[1]


def stream_record(options: dict[str, Any]) -> int:
    """Run the command ``stream``: feed a record to the model in chunks; write one row per second."""
    from seqssm.prediction.model import load_single
    from seqssm_ecg.predict import reading_options

    if len(options["inputs"]) != 2:
        raise InputError("expected a model and a record: seqssm ecg stream MODEL.ckpt RECORD")
    path, output = Path(options["inputs"][1]), options["output"]
    if output:
        require_suffix(output, (".csv",))
    require_new(output, options["overwrite"], options["inputs"])
    model = load_single(options["inputs"][0], "streams", "cpu", "ecg")
    stream = Stream(model.network, model.summary, options["window_s"])  # type: ignore[arg-type]
    reading = reading_options(options)
    reading["lead_map"] = {**stream.preprocess.lead_map, **reading["lead_map"]}
    tables, notes = _samples(open_recording(path, **reading), stream.preprocess, options["accept_implausible"])
    for note in notes:
        print(f"{path}: {note}", file=sys.stderr)
    step = max(1, round(options["chunk_s"] * stream.preprocess.rate_hz))
    seconds = (
        second
        for table in tables
        for start in range(0, table.shape[1], step)
        for second in stream.push(table[:, start : start + step])
    )
    if output:
        with atomic(Path(output), "w") as file:
            csv.writer(file, lineterminator="\n").writerows(_lines(stream, seconds))
    else:
        csv.writer(sys.stdout, lineterminator="\n").writerows(_lines(stream, seconds))
    return 0


def _samples(recording: Recording, preprocess: Preprocess, implausible: bool) -> tuple[Iterator[np.ndarray], list[str]]:
    """Return the samples of a recording in millivolts, (leads, n) in one or more blocks, and notes.

    Raises:
        InputError: the recording is corrupt, too short, lacks leads, or is implausible and `implausible` is not set.
    """
    if is_long(recording, preprocess):
        long = LongRecording(recording, preprocess)
        tables, notes, quality = long.millivolts(), long.notes, long.quality
    else:
        table, notes = preprocess.millivolts(recording)
        tables, quality = iter([table]), assess(recording, preprocess.leads)
    if quality.implausible is None:
        return tables, [*notes, *quality.notes]
    if not implausible:
        raise InputError(f"{quality.implausible}; pass --accept-implausible to predict it anyway", file=recording.path)
    return tables, [*notes, *quality.notes, quality.implausible]


def _lines(stream: Stream, seconds: Iterable[Second]) -> Iterator[list[str]]:
    """Yield the lines of the table: one per second, with columns ``p_CLASS_window`` for a sliding window."""
    estimates = OutputColumns(tuple(stream.classes)).estimates
    sliding = [] if stream.window_s is None else [f"{name}_window" for name in estimates]
    yield ["second", *estimates, *sliding]
    for one in seconds:
        values = [*one.probabilities, *(() if one.recent is None else one.recent)]
        yield [str(one.second), *(f"{value:.6f}" for value in values)]
