"""Which rows are for training, validation and test: by fractions, by date, or by rolling origin."""

from __future__ import annotations

from dataclasses import dataclass

from seqssm.errors import InputError
from seqssm_forecasting.series import Series
from seqssm_forecasting.windows import FIXED, borders, borders_by_date, percentages, require_windows

Rows = dict[str, tuple[int, int]]
"""First and end row of each split, look-back included."""


@dataclass(frozen=True)
class SplitRule:
    """How the rows are split; the values of the options of `ForecastingData`.

    Attributes:
        lookback: steps.
        horizon: steps.
        split: percentages, or ``ett_hour``, ``ett_minute``.
        val_from: first date of the validation split, or None.
        test_from: first date of the test split, or None.
        windows: number of windows of a rolling-origin cross-validation, or None.
        window: index of the window to test, or None.
        window_step: steps between the windows; None for the horizon.

    Raises:
        InputError: values that contradict each other or are out of range.
    """

    lookback: int
    horizon: int
    split: str
    val_from: str | None = None
    test_from: str | None = None
    windows: int | None = None
    window: int | None = None
    window_step: int | None = None

    def __post_init__(self) -> None:
        if (self.val_from is None) != (self.test_from is None):
            raise InputError("--data.val_from and --data.test_from must be given together")
        if self.split not in FIXED:
            percentages(self.split)
        if (self.windows is None) != (self.window is None):
            raise InputError("--data.windows and --data.window must be given together")
        if self.windows is None or self.window is None:
            return
        if self.test_from is not None:
            raise InputError("--data.windows and --data.test_from exclude each other")
        if self.windows < 1 or not 0 <= self.window < self.windows or self.step < 1:
            raise InputError(
                f"--data.windows {self.windows}, --data.window {self.window}, --data.window_step {self.step}: expected "
                "at least 1 window and 1 step, and an index from 0 to the number of windows minus 1"
            )

    @property
    def step(self) -> int:
        """Steps between the windows of a rolling-origin cross-validation."""
        return self.horizon if self.window_step is None else self.window_step

    def rows(self, series: Series) -> Rows:
        """Split the rows of a series."""
        if self.windows is not None:
            return self._rolling_origin(len(series))
        if self.val_from is not None and self.test_from is not None:
            return borders_by_date(series, self.lookback, self.val_from, self.test_from)
        return borders(len(series), self.lookback, self.split)

    def _rolling_origin(self, rows: int) -> Rows:
        """Test on the horizon after a cutoff; divide the rows before it in the proportion of train and validation."""
        assert self.windows is not None
        assert self.window is not None
        cutoff = rows - self.horizon - self.step * (self.windows - 1 - self.window)
        train, val = (3.0, 1.0) if self.split in ("ett_hour", "ett_minute") else percentages(self.split)[:2]
        border = cutoff - int(cutoff * val / (train + val))
        return {
            "train": (0, border),
            "val": (border - self.lookback, cutoff),
            "test": (cutoff - self.lookback, cutoff + self.horizon),
        }

    def require_windows(self, series: Series, splits: Rows) -> None:
        """Raise InputError if a split has no window."""
        options = None
        if self.windows is not None:
            options = f"--data.windows {self.windows} and --data.window {self.window}"
        elif self.val_from is not None:
            options = f"--data.val_from {self.val_from} and --data.test_from {self.test_from}"
        require_windows(series.path, len(series), splits, self.lookback, self.horizon, options, self.split)
