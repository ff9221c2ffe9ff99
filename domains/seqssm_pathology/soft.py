"""Outputs of a teacher in the terms of a student: numbers of another mean and scale, survival in other time bins."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seqssm_pathology.heads import Head, NumberHead, SurvivalHead, curves_of
from seqssm_pathology.survival import survival_at

LEAST = 1e-6
"""Least distance of a hazard from 0 and 1."""


def converted(logits: Tensor, theirs: Head, own: Head) -> Tensor:
    """Convert the logits of a teacher's target to those of a student's.

    A number is standardised by the training records of each model. The survival curve of a teacher, linear between the
    ends of its bins, gives the hazards of the student's bins, 1 - S(end) / S(start).

    Args:
        logits: outputs of the teacher, (n, size).
        theirs: target of the teacher.
        own: target of the student.

    Returns:
        (n, size of the student's target).
    """
    if isinstance(theirs, NumberHead) and isinstance(own, NumberHead):
        return ((theirs.values(logits) - own.mean) / own.scale)[:, None].to(logits.dtype)
    if isinstance(theirs, SurvivalHead) and isinstance(own, SurvivalHead) and theirs.edges != own.edges:
        curves = curves_of(logits).cpu().double().numpy()
        found = survival_at(curves, list(theirs.edges), np.array(own.edges[1:]))
        before = np.concatenate([np.ones((len(found), 1)), found[:, :-1]], axis=1)
        hazards = np.clip(1 - found / np.maximum(before, LEAST), LEAST, 1 - LEAST)
        return torch.from_numpy(np.log(hazards / (1 - hazards))).to(logits.device, logits.dtype)
    return logits
