"""Prediction from a checkpoint and the user's files: what a domain provides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from seqssm.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Record:
    """One record of the user's input: a series file, a FASTA record, a WFDB record, a case.

    Attributes:
        index: its number in input order, from 0.
        id: the user's own name for it.
        item: what `Predictor.predict` needs, as light as possible until `Predictor.prepare` has read it.
        reason: set when the record cannot be predicted; it keeps its row, with this reason.
    """

    index: int
    id: str
    item: Any = None
    reason: str | None = None


class Predictor(ABC):
    """A domain's prediction: turns files into records and records into rows.

    Args:
        model: the trained network in eval mode, on its device.
        summary: what the checkpoint says about the data (`seqssm.training.data.DataModule.summary`).
        options: the domain's own options by name, with their defaults.

    Rows are dicts of the value `columns`, in the user's own names and units. Several rows a record are fine; the writer
    puts ``index, id`` before and ``status, reason`` after.
    """

    columns: list[str]
    """Of the class, or set in `__init__` where they depend on the summary or the options."""

    output: Path | None = None
    """The table that the command line writes, for a domain whose options put further files beside it."""

    def __init__(self, model: nn.Module, summary: dict[str, Any], options: dict[str, Any]) -> None:
        self.model, self.summary, self.options = model, summary, options

    @property
    def device(self) -> Any:
        """Where the network's weights are."""
        return next(self.model.parameters()).device

    @abstractmethod
    def records(self, inputs: list[Path]) -> Iterator[Record]:
        """The records of `inputs`, lazily, in input order.

        Raises:
            InputError: a file that is not usable at all. A bad record in a good file is a `Record` with a reason.
        """

    def prepare(self, record: Record) -> Record:
        """Reads what a record needs; runs in the loader's processes with ``--num-workers``. CPU only."""
        return record

    @abstractmethod
    def predict(self, records: list[Record]) -> Sequence[list[dict[str, Any]] | pd.DataFrame]:
        """The rows of each record, in order; called without gradients, with records that have no reason.

        They are dicts, or, where a record has very many, a frame with some of `columns`.

        A record found to be unusable only here gets its `reason` set, and its rows from `failed`.
        """

    def records_of(self, data: Any) -> Iterator[Record]:
        """The records of data in memory, for ``seqssm.load(...).predict(data)``.

        Args:
            data: a pandas DataFrame, an array or a list of arrays, as the domain takes them.

        Raises:
            InputError: the domain's records come from files only, or `data` has another form.
        """
        raise InputError(f"a {type(data).__name__} cannot be predicted: this domain takes files")

    def embed(self, records: list[Record]) -> list[Any]:
        """The features in front of the head, one vector (D,) per record; called as `predict` is.

        By default what the network's ``head`` is given, which must be one row per record.
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
                f"{type(self).__name__}.embed is needed: {len(rows)} features for {len(records)} records"
            )
        return rows

    def failed(self, record: Record) -> list[dict[str, Any]]:
        """The rows of a record that cannot be predicted: by default one without values."""
        return [{}]

    def figures(self, record: Record, rows: Any, folder: Path) -> list[Path]:
        """Draws a record's figures into `folder`; only called with ``--figures``. `rows` are what `predict` gave."""
        return []
