"""Ensembles of DNA models: mean scores of language models; counts and positions unchanged."""

from __future__ import annotations

import numpy as np
import pytest

from seqssm.errors import InputError
from seqssm.prediction.ensemble import EnsemblePredictor

from .conftest import fasta, letters
from .predicting import causal, predict, predict_with, predictor


def test_scores_are_means_and_counts_stay(write):
    path = write(fasta([("a", letters(50)), ("b", letters(80, 1)), ("n", "NNNN")]))
    networks = [causal(seed) for seed in (0, 1, 2)]
    alone = [predict(one, path) for one in networks]
    table = predict_with(EnsemblePredictor([predictor(one) for one in networks], ["a", "b", "c"]), path)
    for name in ("mean_nll", "perplexity", "bits_per_base", "next_base_accuracy"):
        values = np.stack([one[name].to_numpy(float) for one in alone])
        np.testing.assert_allclose(table[name].to_numpy(float), values.mean(0), rtol=1e-6)
    for name in ("record", "length", "n_scored", "status", "reason"):
        assert list(table[name].astype(str)) == list(alone[0][name].astype(str))
    assert "n_scored_std" not in table
    with pytest.raises(InputError, match="--track: not available for an ensemble"):
        EnsemblePredictor([predictor(one, track="t.bedgraph") for one in networks], ["a", "b", "c"])
