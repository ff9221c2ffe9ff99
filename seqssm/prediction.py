"""Prediction from a checkpoint and the user's files: the domain's side (`Record`, `Predictor`) and `load`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import nn


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
        summary: what the checkpoint says about the data (`seqssm.data.DataModule.summary`).
        options: the domain's own options by name, with their defaults.

    Rows are dicts of the value `columns`, in the user's own names and units. Several rows a record are fine; the writer
    puts ``index, id`` before and ``status, reason`` after.
    """

    columns: ClassVar[list[str]]

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
    def predict(self, records: list[Record]) -> list[list[dict[str, Any]]]:
        """The rows of each record, in order; called without gradients, with records that have no reason.

        A record found to be unusable only here gets its `reason` set, and its rows from `failed`.
        """

    def failed(self, record: Record) -> list[dict[str, Any]]:
        """The rows of a record that cannot be predicted: by default one without values."""
        return [{}]

    def figures(self, record: Record, rows: list[dict[str, Any]], folder: Path) -> list[Path]:
        """Draws a record's figures into `folder`; only called with ``--figures``."""
        return []
