"""12-lead ECG diagnosis: 1-D convolutions and a bidirectional Mamba encoder, from WFDB folders to challenge scores."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from seqssm.domain import (
    FIGURES,
    OVERWRITE,
    Added,
    Baseline,
    Command,
    DataSet,
    Domain,
    Effect,
    OfDataSet,
    Option,
    Renamed,
)
from seqssm_ecg.limits import DRAWS, PAPER_GAIN, PAPER_SPEED, PER_WINDOW, PTBXL_TASKS, RATE_HZ, SECONDS

_LAZY = {
    "EcgData": "seqssm_ecg.data",
    "EcgPretraining": "seqssm_ecg.pretrain",
    "EcgRecordings": "seqssm_ecg.unlabelled",
    "EcgTask": "seqssm_ecg.task",
    "EcgMamba": "seqssm_ecg.model",
    "ResidualCnn": "seqssm_ecg.model",
}

__all__ = ["DOMAIN", "EcgData", "EcgMamba", "EcgPretraining", "EcgRecordings", "EcgTask", "ResidualCnn"]


def __getattr__(name: str) -> Any:
    """Import the named class on first use: this module stays free of torch."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'seqssm_ecg' has no attribute {name!r}")


_EVALUATION = "https://raw.githubusercontent.com/physionetchallenges/evaluation"
_COMMITS = {2020: "8ad0242", 2021: "e2a75fc"}


def _weights(year: int, sha256: str) -> DataSet:
    return DataSet(
        name=f"cinc{year}_weights",
        title=f"Classes and weights of the {year} challenge's score",
        path=f"cinc_tables/{year}/weights.csv",
        url=f"{_EVALUATION}-{year}/HEAD/weights.csv",
        licence="BSD-2-Clause; the codes are SNOMED CT, which has its own terms",
        found=f"github.com/physionetchallenges/evaluation-{year}, commit {_COMMITS[year]}",
        sha256=sha256,
    )


DATA_SETS = (
    DataSet(
        name="ptbxl",
        title="PTB-XL: 21,837 recordings of 10 s with 71 statements (a folder)",
        path="ptbxl",
        url=None,
        licence="CC BY 4.0",
        found="unpack physionet.org/content/ptb-xl into a folder of this name",
    ),
    DataSet(
        name="cinc2021",
        title="Recordings of the 2021 challenge, one folder per source",
        path="cinc2021",
        url=None,
        licence="CC BY 4.0",
        found="unpack the sources of physionet.org/content/challenge-2021 into a folder of this name",
    ),
    _weights(2020, "879908ab77ce7ea64a3d0c009fe9d31d9393ec7cd8866190a0efeda19afdf9dc"),
    _weights(2021, "668cb04555a97e8977488cb4bb6088d0d2bf9e59557945deedf29d5065c14d2b"),
)

_ARRAYS = (
    Option(
        "--array-rate-hz",
        "sampling rate of .npy, .csv and HDF5 records that do not state it, hertz",
        float,
        bounds=RATE_HZ,
    ),
    Option("--array-leads", "leads of .npy, .csv and HDF5 records that do not state them, in their order", many=True),
    Option("--array-unit", "unit of .npy, .csv and HDF5 records that do not state it", str, "mV", ("mV", "uV", "V")),
    Option("--lead-map", "lead names in the files and their standard names: MLII=II", many=True, pairs=True),
    Option("--ignore-checksums", "accept samples that do not match their header's checksum", bool),
    Option("--wfdb-defaults", "use WFDB's 200 per mV and 250 Hz if a header has no gain or rate", bool),
)
_IMPLAUSIBLE = Option(
    "--accept-implausible", "also predict recordings that are implausible as an ECG (see notes)", bool
)

DOMAIN = Domain(
    name="ecg",
    title="ECG diagnosis: several labels from 12 leads or fewer, from WFDB folders to challenge scores (ECG-Mamba)",
    task="seqssm_ecg.task:EcgTask",
    data="seqssm_ecg.data:EcgData",
    predictor="seqssm_ecg.predict:EcgPredictor",
    package="seqssm_ecg",
    example_preset="ptbxl_superclass_small",
    example_input="records/",
    demo="seqssm_ecg.demo:demo",
    summary={
        "classes": "strings",
        "codes": "list",
        "preprocess": {"rate_hz": "float", "lead_set": "int", "band_hz": "list?", "lead_map": "mapping?"},
        "window": "int",
        "stride": "int",
        "aggregate": "str",
        "single_label": "bool",
    },
    models={
        "mamba": ("--model.network", "mamba"),
        "forward": ("--model.network", "mamba", "--model.direction", "forward"),
        "cnn": ("--model.network", "cnn"),
    },
    baselines=(
        Baseline("linear", "seqssm_ecg.baselines:linear"),
        Baseline("prior", "seqssm_ecg.baselines:prior"),
    ),
    migrations=(
        Renamed("data.least", "data.min_positives"),
        Renamed("data.wander", "data.baseline_wander"),
        Added("data.wfdb_defaults", False),
        Added("data.implausible", "keep"),
        Added("data.label_columns", None),
        Added("data.split_column", None),
        Added("data.one_lead", False),
        Added("model.one_lead", False, of="EcgTask"),
        Added("model.temperature", "single", of="EcgTask"),
        Added("data.only_classes", None),
        Added("data.single_label", False),
        Added("summary.single_label", False),
        Added("model.head", "linear", of="EcgTask"),
        Added("model.max_classes", None, of="EcgTask"),
        Added("model.projector", "none", of="EcgTask"),
        Added("model.class_means", False, of="EcgTask"),
    ),
    commands=(
        Command(
            "score",
            "score a folder of challenge output files against headers, with confidence intervals",
            "seqssm_ecg.score:score_predictions",
            "seqssm ecg score labels/ outputs/ --year 2021",
            (
                Option("--year", "year of the challenge whose rules and classes apply", str, "2021", ("2020", "2021")),
                Option("--weights", "weights.csv of the challenge (default: searched like a data set)"),
                Option("--draws", "bootstrap draws over records; 0 for no intervals", int, 200, bounds=DRAWS),
                Option("--output", "JSON file for the scores, which are also printed"),
                OVERWRITE,
            ),
            inputs="FOLDER",
        ),
        Command(
            "stream",
            "feed a record to a causal model in chunks; one row of probabilities per second",
            "seqssm_ecg.streaming:stream_record",
            "seqssm ecg stream runs/ecg/ecg_stream record.hea --output seconds.csv",
            (
                Option("--output", "CSV file with one row per second (default: printed)"),
                OVERWRITE,
                Option("--chunk-s", "length of the chunks, seconds", float, 0.25, bounds=SECONDS),
                Option(
                    "--window-s",
                    "also the probabilities of a sliding window of this length, seconds",
                    float,
                    bounds=SECONDS,
                ),
                _IMPLAUSIBLE,
                *_ARRAYS,
            ),
            inputs="MODEL_AND_RECORD",
        ),
    ),
    predict_options=(
        Option(
            "--format", "challenge also writes the official file of each record", str, "table", ("table", "challenge")
        ),
        Option(
            "--challenge-folder",
            "folder of these files (default: name of the output with _challenge)",
            metavar="PATH",
            needs=("--format challenge",),
        ),
        Option(
            "--page-layout",
            "layout of the pages drawn by --figures",
            str,
            "3x4",
            ("3x4", "6x2", "12x1"),
            needs=FIGURES,
            formerly=("--layout",),
        ),
        Option("--paper-speed", "paper speed of the pages, mm/s", float, 25.0, bounds=PAPER_SPEED, needs=FIGURES),
        Option("--paper-gain", "gain of the pages, mm/mV", float, 10.0, bounds=PAPER_GAIN, needs=FIGURES),
        Option(
            "--attribution-class",
            "class whose attribution is shown on the page (highest: the most probable one)",
            needs=FIGURES,
        ),
        Option(
            "--window-s",
            "one row per window of this length instead of per record, seconds",
            float,
            bounds=PER_WINDOW,
            formerly=("--per-window",),
        ),
        Option("--measure", "also measure heart rate, PR, QRS, QT, QTcB, QTcF and the signal quality per lead", bool),
        Option("--identity", "also write patient id, name and birth date, as far as the files have them", bool),
        _IMPLAUSIBLE,
        *_ARRAYS,
    ),
    data_sets=DATA_SETS,
    folds=True,
    extends=True,
    of_data_set=(OfDataSet("labels", PTBXL_TASKS, beside=("folder",)),),
    effects=(
        Effect("model.class_means", needs=("model.loss cross_entropy",)),
        Effect("model.thresholds", needs=("model.loss bce|weighted_bce|asymmetric",)),
        Effect("data.causal_filter", needs=("data.band_hz",)),
        Effect("data.fold", needs=("data.folds",)),
        Effect("data.val_fold", without=("data.folds",)),
        Effect("data.test_fold", without=("data.folds",)),
    ),
    requires=("scipy", "wfdb"),
    metrics="seqssm_ecg.metrics:METRICS",
    export="seqssm_ecg.export:export",
    test_records="seqssm_ecg.tested:test_records",
    data_argument="manifest",
    own_preset="ecg_small",
)
