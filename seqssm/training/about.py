"""`about.json` of a run: the command that was typed, the environment, the size of the model, notes about the data."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from seqssm.training.machine import environment
from seqssm.training.origin import entries, folder_of
from seqssm.training.run_folder import ABOUT, RunFolder


class About:
    """The record of a run. It changes nothing in training; `seqssm report` reads it.

    Args:
        folder: the run folder.
        command: the command line as typed; None if the run was started from Python.
        resumed: whether the run continues an earlier one, whose record is kept.
        notes: lines about the data; the list may grow until the last `write`.
    """

    def __init__(self, folder: RunFolder, command: str | None, resumed: bool, notes: list[str]) -> None:
        self.folder, self.notes = folder, notes
        self.content: dict[str, Any] = folder.read_json(ABOUT) if resumed else {}
        if self.content:
            self.content["resumed"] = [*self.content.get("resumed", []), command]
        else:
            self.content = {"command": command}
        self.content |= entries(folder.path, folder_of(folder) if resumed else Path.cwd())

    def begin(self, trainer: Any, model: Any) -> None:
        """Write the record once data and model are set up.

        Args:
            trainer: Lightning's trainer.
            model: the network.
        """
        parameters = list(model.parameters())
        self.content |= {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "parameters": sum(one.numel() for one in parameters),
            "trained_parameters": sum(one.numel() for one in parameters if one.requires_grad),
            "device": str(trainer.strategy.root_device),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "environment": environment(),
        }
        self.write()

    def write(self) -> None:
        """Write the record with the notes so far."""
        kept = [line for line in self.content.get("notes", []) if line not in self.notes]
        self.content["notes"] = [*kept, *self.notes]
        self.folder.write_text(ABOUT, json.dumps(self.content, indent=2) + "\n")
