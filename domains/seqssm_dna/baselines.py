"""Baselines beside every result: the interpolated k-mer Markov model, and a linear model on k-mers and positions.

Hyper-parameters are fixed, the context of the Markov model is chosen on the validation split; nothing is selected on
the test split.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from seqssm.errors import InputError, NotApplicableError
from seqssm.metrics.metric import evaluate
from seqssm_dna import metrics
from seqssm_dna.data import GenomeData
from seqssm_dna.kmers import LONGEST, MarkovModel
from seqssm_dna.linear import KmerLinear
from seqssm_dna.metrics import Classified, MultiLabelled, Regressed
from seqssm_dna.sequences import TARGETS, SequenceData

ORDER = LONGEST - 1  # longest context that is tried


def _reference(data: Any) -> Any:
    found = data.reference()
    if found is None:
        raise NotApplicableError("the run's own data cannot be read")
    return found


def markov(data: GenomeData | SequenceData) -> dict[str, float]:
    """Scores of the k-mer Markov model on the test sequences, whatever their labels, for ``kfold --models markov``.

    Args:
        data: after ``setup``.
    """
    model = fitted_markov(_reference(data))
    return evaluate(metrics.LANGUAGE, model.scores(data.sequences("test")), "test")


def fitted_markov(data: GenomeData | SequenceData) -> MarkovModel:
    """The Markov model of the training sequences, its context chosen on the validation sequences.

    Both strands of a genome are counted; labelled sequences are taken to lie on one.

    Args:
        data: after ``setup``.
    """
    model = MarkovModel(ORDER, both_strands=isinstance(data, GenomeData)).fit(data.sequences("train"))
    held = list(data.sequences("val"))
    if held:
        model.select(held)
    return model


def kmers(data: SequenceData) -> dict[str, float]:
    """Scores of logistic or ridge regression on k-mers and positions, for ``kfold --models kmers``.

    Args:
        data: after ``setup``.
    """
    if not isinstance(data, SequenceData):
        raise NotApplicableError("the baseline kmers is for labelled sequences")
    source = _reference(data)
    target = TARGETS[data.target]
    known = [*source.sequences("train"), *source.sequences("val")]
    truth = np.concatenate([source.truth("train"), source.truth("val")])
    model = KmerLinear(target).fit(known, truth, len(source.classes) if data.target == "class" else None)
    test = data.sequences("test")
    try:
        found = model.predict(test)
    except InputError:  # other lengths than in training: positions mean nothing there
        model = KmerLinear(target, positions=False).fit(known, truth, len(source.classes))
        found = model.predict(test)
    if data.target == "value":
        return evaluate(metrics.REGRESSION, Regressed(data.truth("test"), found), "test")
    kind = Classified if data.target == "class" else MultiLabelled
    return evaluate(metrics.CLASSES, kind(data.truth("test"), found), "test")
