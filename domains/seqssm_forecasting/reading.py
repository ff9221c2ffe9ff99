"""Reading options shared by the data module, `predict` and Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from seqssm.errors import InputError
from seqssm.files.dialect import TableOptions

FLAGS = {name: f"--data.{name}" for name in ("separator", "encoding", "comment", "skip_rows", "columns", "decimal")}
"""Names of the table reader's options on the command line."""


@dataclass(frozen=True)
class Reading:
    """Options for reading a file; None and "auto" are inferred from the file.

    Attributes:
        layout: ``"wide"`` (the date, then one column per series), ``"long"`` (one row per series and date), ``"auto"``.
        id_column: column of series names in the long layout.
        time_column: column of dates; in the wide layout the first column by default.
        value_column: column of values in the long layout.
        separator: ``comma``, ``semicolon``, ``tab``, ``bar``, ``space`` or the character itself.
        decimal: ``"point"``, ``"comma"``, ``"auto"``.
        encoding: text encoding; by default that of a byte-order mark, UTF-8, or else Windows-1252 (reported).
        date_format: strptime format of dates that are not year first: ``%d.%m.%Y %H:%M``; ``excel`` for serial numbers
            of a spreadsheet.
        timezone: time zone of the dates (``Europe/Berlin``): dates without an offset are local times in it, dates with
            an offset are converted to it. By default, dates with an offset are converted to UTC.
        future: names of the future covariates (a plan, a holiday).
        columns: columns of a wide file to use, in addition to the dates.
        skip_rows: number of leading lines to skip, or the line numbers to skip.
        comment: character that starts a comment.
        text_columns: policy for columns without numbers: ``"error"`` or ``"drop"``.
        step: name of the step between the dates of a trained model, for files too short to show it.
        axis: kind of the time axis of a trained model, ``"numbers"`` or ``"dates"``: ``2000`` is a number or a year.
        named: columns that another option or a trained model names as series; they are not taken for splits.
        by_date: whether the user has said how the rows are split: from which dates on, or in which windows.
        calendar: ``"regular"``, or ``"observed"``: the time axis has only the times of the week with rows.
    """

    layout: str = "auto"
    id_column: str | None = None
    time_column: str | None = None
    value_column: str | None = None
    separator: str | None = None
    decimal: str = "auto"
    encoding: str | None = None
    date_format: str | None = None
    timezone: str | None = None
    future: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    skip_rows: int | tuple[int, ...] = 0
    comment: str | None = None
    text_columns: str = "error"
    step: str | None = None
    axis: str | None = None
    calendar: str = "regular"
    named: tuple[str, ...] = ()
    by_date: bool = False

    def __post_init__(self) -> None:
        self.table_options().check(FLAGS)
        if self.timezone is not None:
            from zoneinfo import ZoneInfo

            try:
                ZoneInfo(self.timezone)
            except (ValueError, OSError, KeyError):
                raise InputError(f"--data.timezone {self.timezone}: no such time zone (Europe/Berlin, UTC)") from None

    def table_options(self, header: bool = True) -> TableOptions:
        """Return the options of the table reader.

        Args:
            header: whether the first row holds the column names.
        """
        return TableOptions(
            separator=self.separator,
            encoding=self.encoding,
            comment=self.comment,
            skip_rows=self.skip_rows,
            header=header,
        )

    def for_model(self, summary: Mapping[str, Any]) -> Reading:
        """Return the options for files of a trained model: their time axis is read as that of its training.

        Args:
            summary: the summary of the data in its checkpoint.
        """
        axis = "numbers" if summary.get("numbered") else "dates" if summary["dated"] else None
        named = (*self.named, *self.future, *summary.get("columns", ()))
        return replace(self, step=summary["freq"], axis=axis, named=tuple(dict.fromkeys(named)))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain Python, for a checkpoint."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @staticmethod
    def of(plain: dict[str, Any]) -> Reading:
        """Create from `to_dict` or from options of the data module; absent names have their defaults.

        Args:
            plain: values by name; unknown names are ignored.
        """
        known = {one.name for one in fields(Reading)}
        own = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
        own["columns"] = names_of(own.get("columns"))
        own["by_date"] = bool(own.get("by_date")) or any(
            plain.get(name) is not None for name in ("val_from", "windows")
        )
        return Reading(**{name: value for name, value in own.items() if name in known})


def names_of(value: str | list[str] | tuple[str, ...] | None) -> tuple[str, ...]:
    """Normalise a list option that may be given as a single name.

    Args:
        value: one name, several, or None.
    """
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(str(name) for name in value)
