"""``seqssm ecg score LABELS OUTPUTS``: score a folder of challenge outputs against the headers of the records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from seqssm.errors import InputError
from seqssm.files.datasets import find_data_set
from seqssm.files.disk import atomic, require_new
from seqssm.metrics.report import Report
from seqssm_ecg import metrics
from seqssm_ecg.files import find_recordings
from seqssm_ecg.headers import read_codes
from seqssm_ecg.labels import SINUS, Classes, read_weights
from seqssm_ecg.metrics import Predictions
from seqssm_ecg.outputs import read_output


def score_predictions(options: dict[str, Any]) -> int:
    """Run the command ``score``: print the metrics, overall, by class and by source; returns exit code 0."""
    if len(options["inputs"]) != 2:
        raise InputError("expected two folders: LABELS (headers) and OUTPUTS (one .csv per record)")
    labels, outputs = (Path(name) for name in options["inputs"])
    require_new(options["output"], options["overwrite"], [options["weights"], options["inputs"]])
    year = int(options["year"])
    path = options["weights"]
    classes = read_weights(Path(path) if path else find_data_set("ecg", f"cinc_tables/{year}/weights.csv"))
    if classes.year != year and path is None:
        raise InputError(f"is not the weights table of {year}", file=path)
    report = score(labels, outputs, classes, year, options["draws"])
    print(report.text())
    if options["output"]:
        with atomic(Path(options["output"]), "w") as file:
            json.dump(report.to_dict(), file, indent=2)
    return 0


def score(labels: Path, outputs: Path, classes: Classes, year: int, draws: int = 200) -> Report:
    """Score the outputs of the records below `labels`.

    Args:
        labels: folder of headers with Dx lines.
        outputs: folder with one output file per record, of the same name.
        classes: scored classes, from `seqssm_ecg.labels.read_weights`.
        year: year of the challenge whose rules for reading outputs apply.
        draws: bootstrap draws over records; 0 omits the intervals.

    Raises:
        InputError: there are no headers, a name occurs twice, an output is missing, or sinus rhythm is not a class.
    """
    for folder in (labels, outputs):
        if not folder.is_dir():
            raise InputError("no such folder", file=folder)
    headers = find_recordings(labels)
    if not headers:
        raise InputError("contains no headers (.hea)", file=labels)
    known = [read_codes(path) for path in headers]
    sinus = next((k for k, group in enumerate(classes.codes) if SINUS in group), None)
    if sinus is None or classes.weights is None:
        raise InputError(f"sinus rhythm ({SINUS}), which the score requires, is not among the classes")
    places = {}
    for path in sorted(outputs.rglob("*.csv")):
        if path.stem in places:
            raise InputError(f"duplicate file {path.name}", file=outputs)
        places[path.stem] = path
    truth, scores, decisions, notes = [], [], [], []
    for header, codes in zip(headers, known):
        name = header.stem
        binary, values, trouble = read_output(places.get(name, outputs / f"{name}.csv"), classes.codes, year)
        truth.append(classes.vector(codes or []))
        decisions.append(binary)
        scores.append(values)
        if trouble:
            notes.append(trouble)
    extra = sorted(places.keys() - {header.stem for header in headers})
    if extra:
        notes.append(f"{len(extra)} output files without a header, not scored (first: {extra[0]}.csv)")
    y, p, o = np.stack(truth), np.stack(scores), np.stack(decisions)
    found = Predictions(y, p, o, classes.weights, sinus)
    own = metrics.summary(found)
    figures = pd.DataFrame({"figure": list(own), "value": list(own.values())})
    if draws:
        spread = metrics.intervals(found, draws)
        figures["5 %"] = [spread[name][0] for name in own]
        figures["95 %"] = [spread[name][1] for name in own]
    values = metrics.table_by_class(found)
    area, precision = values["auroc"], values["auprc"]
    counts = {"class": classes.names, "positives": y.sum(0).astype(int), "called": o.sum(0).astype(int)}
    by_class = pd.DataFrame({**counts, **values})
    finite = int(np.isfinite(area).sum())
    tables = [
        (f"{len(headers)} records, {int((~y.any(1)).sum())} of them without a scored class; rules of {year}", figures),
        (f"By class: AUROC of {finite}, AUPRC of {int(np.isfinite(precision).sum())} of {len(area)} classes", by_class),
    ]
    sources = np.array([header.parent.name for header in headers])
    if len(set(sources)) > 1:
        tables.append(("By source", pd.DataFrame(metrics.rows_by_source(sources, found))))
    unlabelled = sum(codes is None for codes in known)
    if unlabelled:
        notes.append(f"{unlabelled} headers without a Dx line scored as negative for every class")
    if notes:
        tables.append(("Notes", pd.DataFrame({"note": notes})))
    return Report(own, tables)
