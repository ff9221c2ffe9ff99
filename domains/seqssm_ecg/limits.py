"""Bounds of numeric options and of headers; imports nothing heavy."""

from __future__ import annotations

from seqssm.bounds import COUNT, RATE, Bounds

RATES = (50.0, 10_000.0)  # Hz; a rate outside this range indicates a corrupt header
RATE_HZ = Bounds(*RATES)
SECONDS = Bounds(0, 86_400, above=True)
"""Of windows and strides: up to a day."""
PER_WINDOW = Bounds(1, 32 * 86_400)
"""Of the rows of a recording, seconds: up to the longest patch recordings."""
DRAWS = Bounds(0, 100_000)
"""Of bootstrap draws over records."""
PAPER_SPEED, PAPER_GAIN = Bounds(5, 200), Bounds(1, 100)
"""Of pages, mm/s and mm/mV: electrocardiographs have 12.5 to 100 and 2.5 to 40."""

DATA = {
    "min_positives": COUNT,
    "sampling_rate_hz": Bounds(1, RATES[1]),
    "window_s": SECONDS,
    "stride_s": SECONDS,
    "array_rate_hz": RATE_HZ,
    "gain": Bounds(0, 10, below=True),
    "baseline_wander": Bounds(0, 100, below=True),
    "noise": Bounds(0, 100, below=True),
    "lead_drop": RATE,
    "time_mask": RATE,
    "mix_up": Bounds(0, 1000),
    "val_fold": Bounds(-(2**31), 2**31 - 1),
    "test_fold": Bounds(-(2**31), 2**31 - 1),
    "fold": Bounds(0, 2**31 - 1),
    "folds": Bounds(2, 10_000),
}
"""Bounds of options of `seqssm_ecg.data.EcgData`; folds of a table have any numbers."""
PTBXL_TASKS = ("superclass", "subclass", "diagnostic", "form", "rhythm", "all")  # label sets of PTB-XL
