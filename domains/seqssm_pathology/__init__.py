"""Slides and cases from bags of patch features: MambaMIL (arXiv 2403.06800) and its peers, subtyping and survival."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from seqssm.bounds import COUNT, Bounds
from seqssm.domain import FIGURES, OVERWRITE, Added, Command, Domain, Effect, OfDataSet, Option, Renamed
from seqssm_pathology.catalogue import ATTENTION, BASELINES, DATA_SETS, NAME, PLACES, POOLED, TRAINED

if TYPE_CHECKING:
    from seqssm_pathology.data import BagData
    from seqssm_pathology.model import (
        AbMil,
        BiMambaMIL,
        ClamMB,
        ClamSB,
        DsMil,
        DtfdMil,
        ForwardMambaMIL,
        GatedAbMil,
        MambaMIL,
        MaxMil,
        MeanMil,
        TransMil,
    )
    from seqssm_pathology.predict import CasePredictor
    from seqssm_pathology.task import PathologyTask

__all__ = [
    "DOMAIN",
    "PLACES",
    "AbMil",
    "BagData",
    "BiMambaMIL",
    "CasePredictor",
    "ClamMB",
    "ClamSB",
    "DsMil",
    "DtfdMil",
    "ForwardMambaMIL",
    "GatedAbMil",
    "MambaMIL",
    "MaxMil",
    "MeanMil",
    "PathologyTask",
    "TransMil",
]
_MODULES = {"BagData": "data", "CasePredictor": "predict", "PathologyTask": "task"}


def __getattr__(name: str) -> Any:
    """Import public classes on first access, so that the command-line help does not import PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'model')}"), name)


MPP = Bounds(0.01, 20)
SIZES = Bounds(1, 100_000_000)  # instances; slides have up to some 100,000

ENCODERS = (
    "handmade",
    "resnet50_trunc",
    "resnet50",
    "uni",
    "uni2",
    "virchow",
    "virchow2",
    "gigapath",
    "hoptimus0",
    "vit",
)
"""Names of `seqssm_pathology.encoders`, which imports torch."""

SURVIVAL = ("data.target survival|several",)
DOMAIN = Domain(
    name=NAME,
    title="Pathology: slides and cases from bags of patch features, subtyping and survival, heat maps (MambaMIL)",
    task="seqssm_pathology.task:PathologyTask",
    data="seqssm_pathology.data:BagData",
    predictor="seqssm_pathology.predict:CasePredictor",
    package="seqssm_pathology",
    example_preset="srmamba",
    example_input="features/",
    demo="seqssm_pathology.demo:demo",
    summary={
        "target": "str",
        "classes": "strings",
        "edges": "numbers",
        "heads": "list?",
        "time_column": "str?",
        "order": "str",
        "width": "int",
        "columns": "strings?",
        "token_order": "tensor?",
        "scaler": "mapping?",
        "feature_key": "str?",
        "slide_column": "str?",
        "case_column": "str?",
    },
    models={
        **{name: ("--model.network", name) for name in TRAINED},
        **{name: ("--model.network", name, *ATTENTION) for name in POOLED},
        "srmamba_published": ("--model.network", "srmamba", *ATTENTION, "--model.pad_to_stride", "true"),
        "srmamba_positive": ("--model.network", "srmamba", *ATTENTION, "--model.positive_definite", "true"),
        "srmamba_importance": ("--model.network", "srmamba", *ATTENTION, "--model.importance", "true"),
        "srmamba_file": ("--model.network", "srmamba", *ATTENTION, "--data.order", "file"),
        "srmamba_serpentine": ("--model.network", "srmamba", *ATTENTION, "--data.order", "serpentine"),
        "srmamba_hilbert": ("--model.network", "srmamba", *ATTENTION, "--data.order", "hilbert"),
        "srmamba_shuffled": ("--model.network", "srmamba", "--model.pool", "mixed", "--model.shuffles", "8"),
        "srmamba_mixed": ("--model.network", "srmamba", "--model.pool", "mixed"),
        "abmil_mixed": ("--model.network", "abmil", "--model.pool", "mixed"),
        "srmamba_random": ("--model.network", "srmamba", *ATTENTION, "--data.order", "random"),
        "srmamba_family": ("--model.network", "srmamba", *ATTENTION, "--data.order", "family"),
    },
    baselines=BASELINES,
    metrics="seqssm_pathology.metrics:METRICS",
    export="seqssm_pathology.export:export",
    test_records="seqssm_pathology.tested:test_records",
    kfold_tables="seqssm_pathology.pooled:intervals",
    migrations=(
        Renamed("model.rate", "model.stride"),
        Renamed("model.padding", "model.pad_to_stride", {"free": False, "published": True}),
        Renamed("model.regime", "model.positive_definite", {"free": False, "positive": True}),
        Renamed("model.piece", "model.chunk_size"),
        Renamed("model.outputs", "model.num_classes"),
        Added("model.pool", "attention"),
        Added("model.shuffles", 0),
        Added("data.label_columns", None),
        Added("data.targets", None),
        Added("data.time_unit", None),
        Added("summary.heads", None),
        Added("data.level", "auto"),
        Added("data.decimal", "auto"),
    ),
    data_argument="manifest",
    own_preset="srmamba",
    commands=(
        Command(
            "tile",
            "Cuts slides into tissue tiles and encodes them, one bag (.h5) per slide. Needs openslide.",
            "seqssm_pathology.slides:tile_command",
            "seqssm pathology tile slide.svs --output features --size 256",
            (
                Option("--output", "folder for the bags, written as <slide>.h5"),
                Option("--size", "side of a tile, pixels at --magnification", int, 256, bounds=Bounds(8, 8192)),
                Option(
                    "--magnification",
                    "magnification of the tiles (default: that of the slide)",
                    float,
                    bounds=Bounds(0.1, 400),
                ),
                Option("--mpp", "micrometres per pixel of the tiles, instead of --magnification", float, bounds=MPP),
                Option("--slide-mpp", "micrometres per pixel of slides that do not state it", float, bounds=MPP),
                Option("--overlap", "overlap of neighbouring tiles, pixels", int, 0, bounds=Bounds(0, 8191)),
                Option("--tissue", "minimum tissue fraction of a tile", float, 0.5, bounds=Bounds(0, 1)),
                Option("--contours", "segment tissue on the whole slide, and write its contours as GeoJSON", bool),
                Option("--encoder", "features of the tiles", str, "handmade", ENCODERS),
                Option(
                    "--encoder-weights",
                    "file with the weights of a network (.safetensors, .pth, .bin)",
                    formerly=("--weights",),
                ),
                OVERWRITE,
            ),
            inputs="SLIDE",
        ),
        Command(
            "measure",
            "Measures time and peak memory of a training step and a prediction on bags of growing size.",
            "seqssm_pathology.measure:measure_command",
            "seqssm pathology measure --sizes 1000,10000,100000",
            (
                Option("--sizes", "numbers of instances (default 1000,10000,100000)", int, many=True, bounds=SIZES),
                Option("--phase", "what to measure", str, "both", ("both", "train", "predict"), formerly=("--step",)),
                Option("--network", "network to measure", str, "srmamba", ("srmamba", "bimamba", "mamba", "abmil")),
                Option("--width", "width of the features", int, 1024, bounds=Bounds(1, 1_000_000)),
                Option("--threads", "number of threads", int, 1, bounds=Bounds(1, 1024)),
                Option("--json", "print JSON", bool),
            ),
        ),
        Command(
            "regime",
            "Reports for each scan of a model whether its parameters are in the convergent or the divergent regime.",
            "seqssm_pathology.dynamics:regime_command",
            "seqssm pathology regime runs/pathology/srmamba/best.ckpt",
            (),
            inputs="MODEL.ckpt",
        ),
    ),
    predict_options=(
        Option(
            "--manifest", "table of slides and cases, for one row per case (default: one row per slide)", metavar="PATH"
        ),
        Option(
            "--slides", "folder of the slides, shown under the maps (needs openslide)", needs=FIGURES, metavar="PATH"
        ),
        Option("--feature-key", "name of the features in .h5 bags (default: as in training)"),
        Option("--top-k", "number of patches in the list of the highest scores", int, 20, bounds=COUNT, needs=FIGURES),
        Option("--figures-limit", "maximum number of cases with figures", int, bounds=COUNT, needs=FIGURES),
        Option("--figures-cases", "ids of the cases with figures (default: all)", many=True, needs=FIGURES),
        Option(
            "--map",
            "what maps and tables show of each patch",
            str,
            "attention",
            ("attention", "gradient"),
            needs=FIGURES,
        ),
        Option(
            "--map-output",
            "class, label or other output that they speak for (default: the predicted class); TARGET.CLASS where two "
            "targets have it",
            needs=FIGURES,
        ),
        Option("--html", "page per slide with the map, zoom and the values of each patch", bool, needs=FIGURES),
        Option(
            "--geojson",
            "GeoJSON file per slide with the values and class of each patch, for QuPath",
            bool,
            needs=FIGURES,
        ),
        Option("--tiles", "images of the --top-k patches of each slide", bool, needs=("--figures", "--slides")),
        Option("--invalid", "patches with NaN: fail the record, or drop them", str, "error", ("error", "drop")),
    ),
    data_sets=DATA_SETS,
    folds=True,
    of_data_set=(OfDataSet("folds", ("published",)), OfDataSet("covariate_column")),
    effects=(
        *(Effect(f"model.{name}", needs=("model.instance_loss",)) for name in ("instances", "bag_weight", "exclusive")),
        Effect("model.alpha", needs=SURVIVAL),
        Effect("model.class_weights", needs=("data.target classification|labels|several",)),
        *(Effect(f"data.{name}", needs=SURVIVAL) for name in ("bins", "time_unit", "censor_column", "event_column")),
        Effect("data.time_column", needs=("data.target survival",)),
        Effect("data.censor_column", without=("data.event_column",)),
        Effect("data.label_column", needs=("data.target classification|regression",)),
        Effect("data.label_columns", needs=("data.target labels",)),
        Effect("data.targets", needs=("data.target several",)),
        Effect("data.families", needs=("data.order family",)),
        Effect("data.clip", needs=("data.standardise",)),
    ),
    requires=("h5py", "sklearn"),
)
