"""Baselines: the interpolated k-mer Markov model, and a linear model on k-mers and positions.

Hyper-parameters are fixed, except for the context length of the Markov model, which is selected on the validation
split; nothing is selected on the test split.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from seqssm.errors import InputError, NotApplicableError
from seqssm.metrics.metric import evaluate
from seqssm_dna import metrics
from seqssm_dna.data import GenomeData
from seqssm_dna.kmers import MarkovModel
from seqssm_dna.linear import KmerLinear
from seqssm_dna.metrics import Classified, MultiLabelled, Regressed
from seqssm_dna.options import LONGEST
from seqssm_dna.sequences import TARGETS, SequenceData

ORDER = LONGEST - 1  # maximum context length


def _reference(data: Any) -> Any:
    found = data.reference()
    if found is None:
        raise NotApplicableError("the run's own data cannot be read")
    return found


def markov(data: GenomeData | SequenceData) -> dict[str, float]:
    """Score the k-mer Markov model on the test sequences, ignoring labels, for ``kfold --models markov``.

    Args:
        data: the data module, already set up.
    """
    model = fitted_markov(_reference(data))
    return evaluate(metrics.LANGUAGE, model.scores(data.sequences("test")), "test")


def fitted_markov(data: GenomeData | SequenceData) -> MarkovModel:
    """Fit the Markov model to the training sequences; its context length is selected on the validation sequences.

    For genomes, both strands are counted; labelled sequences are counted on the given strand only.

    Args:
        data: the data module, already set up.
    """
    model = MarkovModel(ORDER, both_strands=isinstance(data, GenomeData)).fit(data.sequences("train"))
    held = list(data.sequences("val"))
    if held:
        model.select(held)
    return model


def kmers(data: SequenceData) -> dict[str, float]:
    """Score logistic or ridge regression on k-mers and positions, for ``kfold --models kmers``.

    Args:
        data: the data module, already set up.
    """
    if not isinstance(data, SequenceData):
        raise NotApplicableError("the baseline kmers requires labelled sequences")
    source = _reference(data)
    target = TARGETS[data.target]
    known = [*source.sequences("train"), *source.sequences("val")]
    truth = np.concatenate([source.truth("train"), source.truth("val")])
    model = KmerLinear(target).fit(known, truth, len(source.classes) if data.target == "class" else None)
    test = data.sequences("test")
    try:
        found = model.predict(test)
    except InputError:  # lengths differ from training: positional features do not apply
        model = KmerLinear(target, positions=False).fit(known, truth, len(source.classes))
        found = model.predict(test)
    if data.target == "value":
        return evaluate(metrics.REGRESSION, Regressed(data.truth("test"), found), "test")
    kind = Classified if data.target == "class" else MultiLabelled
    return evaluate(metrics.CLASSES, kind(data.truth("test"), found), "test")
