"""Signal processing of long recordings in blocks, equivalent to the same steps on the whole recording.

Every function takes and yields consecutive blocks (leads, n). A zero-phase filter and a resampler need samples on both
sides of a block; `overlapped` adds them. Results differ by rounding errors only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain

import numpy as np
from scipy import signal as dsp

HALF_TAPS = 10  # resample_poly's filter has 10 * max(up, down) taps on each side
NEGLIGIBLE = 1e-10  # impulse response of a filter at the end of a margin


def overlapped(blocks: Iterable[np.ndarray], size: int, margin: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Re-chunk blocks with margins: yields (piece, start, stop), where the ``piece[:, start:stop]`` are consecutive.

    Args:
        blocks: blocks of any lengths.
        size: samples per piece without its margins; the last piece may have fewer.
        margin: samples before and after each piece, fewer at the ends of the recording.
    """
    held: np.ndarray | None = None
    start = 0  # start of the next piece in `held`
    for block in blocks:
        held = block if held is None else np.concatenate([held, block], axis=1)
        while held.shape[1] >= start + size + margin:
            first = max(0, start - margin)
            yield held[:, first : start + size + margin], start - first, start - first + size
            cut = max(0, start + size - margin)
            held, start = held[:, cut:], start + size - cut
    while held is not None and start < held.shape[1]:
        first, stop = max(0, start - margin), min(start + size, held.shape[1])
        yield held[:, first : stop + margin], start - first, stop - first
        start = stop


def resampled(
    blocks: Iterable[np.ndarray], ends: tuple[np.ndarray, np.ndarray], samples: int, ratio: Fraction, size: int
) -> Iterator[np.ndarray]:
    """Resample by a rational factor, as `scipy.signal.resample_poly` with ``padtype="line"``.

    Args:
        blocks: blocks (leads, n), float32.
        ends: first and last sample of each lead, (leads,) each; the line through them extends the signal.
        samples: number of samples of the whole signal.
        ratio: new rate / old rate.
        size: approximate number of input samples per step.
    """
    up, down = ratio.numerator, ratio.denominator
    margin = down * math.ceil((HALF_TAPS * max(up, down) / up + 1) / down)
    first, last = (end.astype(np.float32)[:, None] for end in ends)
    slope = (last - first) / max(1, samples - 1)
    steps = np.arange(1, margin + 1, dtype=np.float32)
    whole = chain([first - slope * steps[::-1]], blocks, [last + slope * steps])
    left = round(samples * up / down)  # output samples to come
    skip = margin * up // down
    for piece, start, stop in overlapped(whole, down * math.ceil(size / down), margin):
        made = dsp.resample_poly(piece, up, down, axis=1)
        made = made[:, start * up // down : -(-stop * up // down)]
        made, skip = made[:, skip:], max(0, skip - made.shape[1])
        if made.shape[1] and left:
            yield np.ascontiguousarray(made[:, :left], dtype=np.float32)
            left -= min(left, made.shape[1])


def filtered(
    blocks: Iterable[np.ndarray], sections: np.ndarray, causal: bool, pad: int, size: int
) -> Iterator[np.ndarray]:
    """Filter forward (causal), or forward and backward.

    Args:
        blocks: blocks (leads, n).
        sections: second-order sections of the filter.
        causal: whether to filter forward only.
        pad: samples by which the recording is extended at both ends, if not `causal`.
        size: samples per step.
    """
    if causal:
        state: np.ndarray | None = None
        for block in blocks:
            if state is None:
                state = np.zeros((len(sections), block.shape[0], 2))
            made, state = dsp.sosfilt(sections, block, axis=1, zi=state)
            yield made
        return
    margin = max(pad + 1, decay(sections))
    for piece, start, stop in overlapped(blocks, size, margin):
        padlen = min(pad, piece.shape[1] - 1)
        yield dsp.sosfiltfilt(sections, piece, axis=1, padtype="odd", padlen=padlen)[:, start:stop]


def decay(sections: np.ndarray) -> int:
    """Return the number of samples after which the impulse response of a filter has decayed to `NEGLIGIBLE`."""
    poles = np.abs(np.concatenate([np.roots(section[3:]) for section in sections]))
    slowest = poles.max()
    return 1 if slowest < 1e-6 else math.ceil(math.log(NEGLIGIBLE) / math.log(min(slowest, 1 - 1e-9)))


def moments(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """Compute mean and standard deviation per lead, (leads, 1) each, and the number of samples (Chan et al. 1979)."""
    count, mean, square = 0, np.zeros((1, 1)), np.zeros((1, 1))
    for block in blocks:
        new = block.shape[1]
        own = block.mean(axis=1, keepdims=True, dtype=np.float64)
        step = own - mean
        square = square + ((block - own) ** 2).sum(axis=1, keepdims=True) + step**2 * (count * new / (count + new))
        mean = mean + step * (new / (count + new))
        count += new
    return mean, np.sqrt(square / max(1, count)), count


def windowed(
    blocks: Iterable[np.ndarray], samples: int, window: int, stride: int, at_once: int
) -> Iterator[np.ndarray]:
    """Yield the windows of `seqssm_ecg.preprocess.windows`, (k, leads, window) with k up to `at_once`.

    Args:
        blocks: blocks (leads, n).
        samples: total number of samples, at least `window`.
        window: samples per window.
        stride: samples between window starts; the last window ends at the last sample.
        at_once: maximum number of windows per array.
    """
    starts = [*range(0, samples - window + 1, stride)]
    if starts[-1] != samples - window:
        starts.append(samples - window)
    held: np.ndarray | None = None
    before = 0  # samples already discarded
    ready: list[np.ndarray] = []
    turn = 0
    for block in blocks:
        held = block if held is None else np.concatenate([held, block], axis=1)
        while turn < len(starts) and starts[turn] + window <= before + held.shape[1]:
            ready.append(held[:, starts[turn] - before : starts[turn] - before + window])
            turn += 1
            if len(ready) == at_once:
                yield np.stack(ready)
                ready = []
        drop = min((starts[turn] if turn < len(starts) else samples) - before, held.shape[1])
        held, before = held[:, drop:], before + drop
    if ready:
        yield np.stack(ready)
