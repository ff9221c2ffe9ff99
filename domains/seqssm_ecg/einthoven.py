"""Consistency of recorded limb leads: Einthoven's and Goldberger's equations; another order, sign or gain of leads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import permutations, product

import numpy as np

from seqssm_ecg.leads import LEADS

LIMB = LEADS[:6]
EQUATIONS = {
    ("I", "II", "III"): (1.0, -1.0, 1.0),  # I + III = II
    ("aVR", "I", "II"): (1.0, 0.5, 0.5),
    ("aVL", "I", "II"): (1.0, -1.0, 0.5),
    ("aVF", "I", "II"): (1.0, 0.5, -1.0),
}
"""Coefficients of leads whose sum is zero."""
BROKEN, FITTING = 0.05, 0.003
"""Power of the residuum relative to that of the largest lead: above, an equation does not hold; below, all do.

In 50 recordings of the 2021 challenge it is at most 0.0003.
"""
PLANE = 0.01
"""Minimum of the second eigenvalue of the covariance relative to the first: proportional leads fit by chance."""


def remark(leads: Sequence[str], covariance: np.ndarray) -> str:
    """Describe limb leads that contradict the equations, and satisfy all of them in another order, sign or gain.

    Recordings that satisfy them in neither way (noise in one lead) are not described.

    Args:
        leads: names of the leads.
        covariance: covariance of the leads, (n, n).

    Returns:
        The remark; "" for other recordings.
    """
    own = [lead for lead in LIMB if lead in leads]
    places = [list(leads).index(lead) for lead in own]
    matrix = covariance[np.ix_(places, places)]
    power = np.diag(matrix).max(initial=0.0)
    rows = _equations(tuple(own))
    if not len(rows) or not power > 0 or np.diag(matrix).min() <= FITTING * power:
        return ""
    if _residuum(rows, matrix[None]).max() <= BROKEN * power:
        return ""
    largest = np.linalg.eigvalsh(matrix)[::-1]
    if largest[1] <= PLANE * largest[0]:
        return ""
    what = "limb leads contradict Einthoven's equations, and fit them"
    if _in_another_order(rows, matrix, power):
        return f"{what} in another order or sign"
    return f"{what} with other gains (leads normalised one by one?)" if _with_other_gains(rows, matrix) else ""


def _with_other_gains(rows: np.ndarray, matrix: np.ndarray) -> bool:
    """Whether the leads of every equation are linearly dependent, with coefficients of its signs."""
    for row in rows:
        own = np.flatnonzero(row)
        size = np.sqrt(np.diag(matrix)[own])
        values, vectors = np.linalg.eigh(matrix[np.ix_(own, own)] / np.outer(size, size))
        found = vectors[:, 0] * np.sign(vectors[0, 0]) * np.sign(row[own[0]])
        if values[0] > FITTING or values[1] <= PLANE * values[2] or (found * np.sign(row[own]) <= 0).any():
            return False
    return True


def _in_another_order(rows: np.ndarray, matrix: np.ndarray, power: float) -> bool:
    """Whether the leads satisfy all equations in another order or with other signs."""
    count = len(matrix)
    if _residuum(_arranged(tuple(rows[0])), matrix[None]).min() > FITTING * power:  # the first equation fits nowhere
        return False
    signs = np.array(list(product((1.0, -1.0), repeat=count - 1)))
    signs = np.concatenate([np.ones((len(signs), 1)), signs], axis=1)  # a common sign changes nothing
    flipped = matrix * signs[:, :, None] * signs[:, None, :]
    orders = (list(order) for order in permutations(range(count)))
    return any(
        (_residuum(rows, flipped[:, order][:, :, order]) <= FITTING * power).all(axis=1).any() for order in orders
    )


@cache
def _equations(leads: tuple[str, ...]) -> np.ndarray:
    """Return the coefficients of the equations among `leads`, (equations, leads)."""
    found = [dict(zip(names, values)) for names, values in EQUATIONS.items() if set(names) <= set(leads)]
    return np.array([[one.get(lead, 0.0) for lead in leads] for one in found])


@cache
def _arranged(row: tuple[float, ...]) -> np.ndarray:
    """Return an equation with its coefficients at all positions and with all signs, each once, (n, leads)."""
    found = set(permutations(row))
    signs = list(product((1.0, -1.0), repeat=len(row)))
    flipped = {tuple(a * b + 0.0 for a, b in zip(one, sign)) for one in found for sign in signs}
    return np.array(sorted(one for one in flipped if next(a for a in one if a) > 0))


def _residuum(rows: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Return the power of each equation's residuum, (matrices, equations)."""
    return np.einsum("ei,mij,ej->me", rows, matrices, rows)
