"""``seqssm dna baseline``: k-mer Markov model for genomes, logistic or ridge regression for labelled sequences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.files.disk import atomic, require_output
from seqssm.given import given_names
from seqssm.metrics.metric import evaluate
from seqssm.metrics.report import Report
from seqssm_dna import metrics
from seqssm_dna.baselines import kmers
from seqssm_dna.data import GenomeData
from seqssm_dna.files import read_labelled
from seqssm_dna.kmers import MarkovModel
from seqssm_dna.options import COMMANDS
from seqssm_dna.records import suffix_of
from seqssm_dna.sequences import SequenceData
from seqssm_dna.sources import TABLES

SHARED = ("bed", "val_contigs", "test_contigs", "target", "label_column", "test")  # options of ``fit`` too


def run(options: dict[str, Any]) -> int:
    """Run the command ``baseline``."""
    require_output(options)
    names = options["inputs"]
    pairs = [name.partition("=") for name in names]
    tables = [suffix_of(Path(name)) in TABLES for name in names]
    by_class = all(equals and label and not Path(name).exists() for name, (label, equals, _) in zip(names, pairs))
    if by_class or any(tables):
        if any(tables) and len(names) > 1:
            raise InputError("expected one table; pass a separate test table as --test FILE")
        _refuse(options, ("bed", "val_contigs", "test_contigs", "order"), "genomes")
        files: dict[str, list[str]] = {}
        for label, _, file in pairs:
            files.setdefault(label, []).append(file)
        with _flags():
            report = labelled(files if by_class else names[0], options)
    else:
        _refuse(options, ("test", "label_column", "target", "folds", "seed"), "labelled sequences")
        with _flags():
            report = genomes(names, options)
    print(report.text())
    if options["output"]:
        with atomic(Path(options["output"]), "w") as file:
            json.dump(report.to_dict(), file, indent=1)
        print(f"written: {options['output']}")
    return 0


@contextmanager
def _flags() -> Iterator[None]:
    """Name the flags of this command in messages of the data modules, whose own are those of ``fit``."""
    known = {f"--data.{name}": f"--{name.replace('_', '-')}" for name in SHARED}
    try:
        yield
    except InputError as error:
        message = re.sub(r"--data\.\w+", lambda found: known.get(found[0], found[0]), error.message)
        raise InputError(message, file=error.file, place=error.place) from None


def _refuse(options: dict[str, Any], names: Sequence[str], what: str) -> None:
    declared = next(command.options for command in COMMANDS if command.name == "baseline")
    given = next((one.flag for one in declared if one.name in names and one.name in given_names(options)), None)
    if given is not None:
        raise InputError(f"{given} applies to {what} only")


def genomes(files: Sequence[str], options: dict[str, Any]) -> Report:
    """Score the Markov model by context length; the context length is selected on the validation split.

    Args:
        files: sequence files.
        options: options of the command.
    """
    order = options["order"]
    data = GenomeData(
        fasta=list(files),
        bed=options["bed"],
        val_contigs=options["val_contigs"],
        test_contigs=options["test_contigs"],
    )
    data.setup("fit")
    if not data.parts["test"]:
        raise InputError("no test split: the contigs are too short to be split; pass --test-contigs or --bed")
    model = MarkovModel(order).fit(data.sequences("train"))
    bits = model.select(list(data.sequences("val"))) if data.parts["val"] else [np.nan] * (order + 1)
    test = list(data.sequences("test"))
    rows = []
    for number in range(order + 1):
        found = metrics.bits_per_base(model.scores(test, number))
        rows.append({"order": str(number), "valid": bits[number], "test": found})
    chosen = evaluate(metrics.LANGUAGE, model.scores(test), "test")
    how = (
        "selected on the validation split" if data.parts["val"] else "the longest, because there is no validation split"
    )
    return Report(chosen, [(f"Bits per base by context; order {model.order}: {how}", pd.DataFrame(rows))])


def labelled(source: str | dict[str, list[str]], options: dict[str, Any]) -> Report:
    """Score the linear model on the file's test split, or by cross-validation if there are no splits.

    Args:
        source: a table, or a mapping from classes to FASTA files.
        options: options of the command.
    """
    common: dict[str, Any] = {"train": source, "target": options["target"], "label_column": options["label_column"]}
    found = None if isinstance(source, dict) else read_labelled(source, target=None)
    if options["test"] or (found is not None and found.splits is not None):
        _refuse(options, ("folds", "seed"), "tables without test records")
        data = SequenceData(**common, test=options["test"])
        data.setup("test")
        own = kmers(data)
        return Report(own, [("Test", pd.DataFrame([{"model": "kmers", **own}]))])
    rows = []
    for fold in range(options["folds"]):
        part = SequenceData(**common, fold=fold, folds=options["folds"], split_seed=options["seed"])
        part.setup("test")
        rows.append({"fold": str(fold), **kmers(part)})
    frame = pd.DataFrame(rows)
    names = [name for name in frame if name != "fold"]
    spread = frame[names].agg(["mean", "std"]).reset_index(names="fold")
    title = f"{options['folds']}-fold cross-validation of a linear model on k-mers and positions"
    return Report({name: float(frame[name].mean()) for name in names}, [(title, pd.concat([frame, spread]))])
