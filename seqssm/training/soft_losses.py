"""Losses for the soft targets of a teacher: classes, labels and numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from seqssm.errors import InputError


def of_classes(logits: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the cross-entropy of the softened class probabilities, mean over all other axes.

    It is multiplied by the squared temperature, so that the size of its gradient does not depend on it (Hinton et al.,
    arXiv 1503.02531).

    Args:
        logits: those of the student, (..., classes).
        wanted: those of the teacher, of the same shape.
        temperature: T; logits are divided by it.
    """
    require_equal(logits, wanted)
    soft = F.softmax(wanted.float() / temperature, -1)
    return -(soft * F.log_softmax(logits.float() / temperature, -1)).sum(-1).mean() * temperature**2


def of_labels(logits: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the binary cross-entropy of softened probabilities, mean over all axes; arguments as for `of_classes`."""
    require_equal(logits, wanted)
    soft = torch.sigmoid(wanted.float() / temperature)
    return F.binary_cross_entropy_with_logits(logits.float() / temperature, soft) * temperature**2


def of_values(values: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the mean squared difference of numbers, for which there is no temperature."""
    require_equal(values, wanted)
    return F.mse_loss(values.float(), wanted.float())


def require_equal(found: Tensor, wanted: Tensor) -> None:
    """Raise InputError if the outputs of student and teacher differ in shape."""
    if found.shape != wanted.shape:
        raise InputError(
            f"--model.teacher: its outputs have the shape {tuple(wanted.shape)}, those of this model "
            f"{tuple(found.shape)}"
        )
