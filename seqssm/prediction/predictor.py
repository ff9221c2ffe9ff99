"""Base class for a domain's prediction from a checkpoint and the user's files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from seqssm.errors import InputError
from seqssm.prediction.record import Record, units_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa


def with_notes(tables: Iterable[pa.Table]) -> str:
    """Count the records with a note, ``3 of 10 records``; ``""`` if none has one.

    Args:
        tables: the rows of all batches, with a column ``notes``; a record may have several rows.
    """
    total = found = 0
    for table in tables:
        rows = list(zip(table.column("index").to_pylist(), table.column("notes").to_pylist()))
        total += len({index for index, _ in rows})
        found += len({index for index, text in rows if text})
    return f"{found} of {total} records" if found else ""


class Predictor(ABC):
    """Turns files into records, and records into rows.

    Args:
        model: the trained network in eval mode, on its device.
        summary: description of the data in the checkpoint (`seqssm.training.data.DataModule.summary`).
        options: all options of the domain, by name.

    Rows are dicts of the value `columns`, in the user's names and units. A record may have several rows. The writer
    adds ``index, id`` before and ``status, reason`` after them.
    """

    columns: list[str]
    """Set by the class, or in `__init__` if they depend on the summary or the options."""

    estimates: list[str] = []  # noqa: RUF012
    """The `columns` that are numbers computed by the network: an ensemble averages them. Domains that set none have no
    ensembles."""

    keys: Sequence[str] = ()
    """The `columns` that say what a row of a record is about: a series and a date, a window, an allele. The members of
    an ensemble may have other rows, or the same in another order."""

    days: Sequence[str] = ()
    """The `columns` with timestamps that are days (weeks, months, ...): a .csv shows them as dates, ``2024-01-31``, if
    all of them are at midnight."""

    embeds: bool = False
    """Whether features are computed in place of predictions (`seqssm.prediction.model.Model.embed`)."""

    kinds: Sequence[str] = ()
    """Kinds of the model, ``"masked language models"``, to which `seqssm.domain.Option.models` refers."""

    output: Path | None = None
    """The output table of the command line, for domains that write additional files."""

    work: Path | None = None
    """Folder for parts of further files, kept until the prediction is complete: parts of finished batches survive an
    interruption. Several processes write into it. None outside of a prediction."""

    def __init__(self, model: nn.Module, summary: dict[str, Any], options: dict[str, Any]) -> None:
        self.model, self.summary, self.options = model, summary, options

    @property
    def device(self) -> Any:
        """The device of the network."""
        return next(self.model.parameters()).device

    unit: str = "records"
    """What the summary of a prediction counts, in the plural."""

    def units(self, table: pa.Table) -> Iterable[tuple[Any, bool]]:
        """Yield (unit, whether it is ok) from the rows of a batch; a unit of several rows is ok when all of them are.

        Args:
            table: the rows, with ``index, id`` before and ``status, reason`` after the predictor's columns.
        """
        return units_of(table)

    @abstractmethod
    def records(self, inputs: list[Path]) -> Iterator[Record]:
        """Yield the records of `inputs` lazily, in input order.

        Raises:
            InputError: a file is not usable at all. A bad record in a good file is a `Record` with a reason.
        """

    def prepare(self, record: Record) -> Record:
        """Read the data of a record, on the CPU; runs in loader processes with ``--num-workers``."""
        return record

    @abstractmethod
    def predict(self, records: list[Record]) -> Sequence[list[dict[str, Any]] | pd.DataFrame]:
        """Predict the rows of each record, in order; called without gradients, with records that have no reason.

        Rows are dicts, or a frame with some of `columns` if a record has very many.

        For a record that turns out to be unusable, set its `reason` and return the rows of `failed`.
        """

    def records_of(self, data: Any) -> Iterator[Record]:
        """Yield the records of in-memory data, for ``seqssm.load(...).predict(data)``.

        Args:
            data: a pandas DataFrame, an array or a list of arrays, depending on the domain.

        Raises:
            InputError: the domain predicts files only, or `data` is of the wrong form.
        """
        raise InputError(f"a {type(data).__name__} cannot be predicted: this domain expects files")

    def no_embedding(self) -> str | None:
        """Return why there are no features: the network has none, or an option does not apply; None if there are."""
        return None

    def embed(self, records: list[Record]) -> list[Any]:
        """Compute the features in front of the head, one vector (D,) per record; called like `predict`.

        By default, the input of the network's ``head``, which must have one row per record.
        """
        captured: list[Any] = []
        head = self.model.get_submodule("head")
        handle = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0].detach().float().cpu()))
        try:
            self.predict(records)
        finally:
            handle.remove()
        rows = [row for part in captured for row in part.reshape(-1, part.shape[-1])]
        if len(rows) != len(records):
            raise RuntimeError(
                f"{type(self).__name__} must implement embed: {len(rows)} features for {len(records)} records"
            )
        return rows

    def failed(self, record: Record) -> list[dict[str, Any]]:
        """Return the rows of a record that cannot be predicted: by default one without values."""
        return [{}]

    def single(self) -> str | None:
        """Return a given option that is not available for ensembles, because `predict` writes files; None for none."""
        return None

    def in_common(self) -> Mapping[str, Any]:
        """Return what the members of an ensemble must have in common in addition to their columns, by name."""
        return {}

    def unify(self, members: Sequence[Predictor]) -> list[str]:
        """Give the members of an ensemble the same columns where their outputs can be converted; by default nothing.

        Called on the first of them.

        Args:
            members: all of them.

        Returns:
            What was converted, as lines for the user.
        """
        return []

    def derive(self, row: dict[str, Any], members: Sequence[Predictor]) -> dict[str, Any]:
        """Return the columns that follow from the estimates (a class, a decision); by default none.

        Args:
            row: a row of an ensemble, whose estimates are means over its members.
            members: the predictors of the members, for their thresholds.
        """
        return {}

    def settle(self, name: str, means: np.ndarray) -> np.ndarray:
        """Return the means of an estimate over the members of an ensemble as a member would write them.

        By default, unchanged; for example, means of whole numbers are rounded.

        Args:
            name: one of `estimates`.
            means: means, of any shape.
        """
        return means

    def merge(self, items: list[Any]) -> Any:
        """Merge the items of a record that the members of an ensemble have predicted, for `figures`.

        By default, the first one: its figure has the averaged rows, and otherwise shows the first member.
        """
        return items[0]

    def finish(self, tables: Iterator[pa.Table]) -> list[Path]:
        """Write further files from the parts in `work`; called once, in one process, when all batches are complete.

        Args:
            tables: the rows of all batches, in order.

        Returns:
            The files.
        """
        return []

    def figures(self, record: Record, rows: Any, folder: Path) -> list[Path]:
        """Draw a record's figures into `folder`; called with ``--figures`` only. `rows` are those of `predict`."""
        return []
