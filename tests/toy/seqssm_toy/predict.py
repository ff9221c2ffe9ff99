"""The toy's prediction. A line of a file is a record, ``id x1 x2 x3``; certain words instead of x1 raise errors."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from seqssm.errors import InputError
from seqssm.prediction.predictor import Predictor, Record


class ToyPredictor(Predictor):
    columns = ["unit", "value", "steps"]  # noqa: RUF012 - as domains write it
    estimates = ["value"]  # noqa: RUF012

    def records(self, inputs):
        index = 0
        for path in inputs:
            if not path.is_file():
                raise InputError("no such file", file=path)
            with open(path) as file:
                for number, line in enumerate(file, 1):
                    words = line.split()
                    if words[0] == "broken":
                        raise InputError("cannot be used at all", file=path, place=f"line {number}")
                    reason = "is marked as bad" if words[1] == "bad" else None
                    yield Record(index, words[0], (str(path), number, words[1:]), reason)
                    index += 1

    def prepare(self, record):
        path, number, words = record.item
        if words[0] == "unreadable":
            raise InputError("x1 is not a number", file=path, place=f"line {number}")
        if words[0] == "prepare-bug":
            raise KeyError("prepare-bug")
        if words[0] == "kill-loader":
            os.kill(os.getpid(), signal.SIGKILL)
        record.item = words if words[0].isalpha() else torch.tensor([float(word) for word in words])
        return record

    def predict(self, records):
        time.sleep(self.options["delay"])
        for record in records:
            if record.item[0] == "refused":
                raise InputError("x1 is refused")
            if record.item[0] == "bug":
                raise ZeroDivisionError("a bug in the package")
            if record.item[0] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if record.item[0] == "unusable":
                record.reason = "found unusable late"
        x = torch.stack([r.item if r.reason is None else torch.zeros(3) for r in records]).to(self.device)
        y = (self.model(x).float() + self.summary["offset"].to(self.device)) * self.options["scale"]
        unit = self.options["unit"]
        return [[{"unit": unit, "value": value / step, "steps": step} for step in (1, 2)] for value in y.cpu().numpy()]

    def figures(self, record, rows, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        if record.id == "undrawable":
            raise ValueError("nothing to draw")
        path = folder / f"{record.index}.png"
        path.write_bytes(b"figure")
        return [path]
