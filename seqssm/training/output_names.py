"""What the outputs of a model mean, in order: those of two models of equal shape may be other classes or time bins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from seqssm.metrics.classes import class_list

SHOWN = 8  # maximum number of names in a message


@dataclass(frozen=True)
class Outputs:
    """Names of the outputs of a model.

    Attributes:
        kind: what they are, in the plural: classes, labels, time bins, quantiles.
        names: one name per output, in order; empty if they are unknown.
        unit: unit of the numbers in the names; empty if there is none, or it is unknown.
        convertible: whether outputs of as many other names are converted to these for a student.
    """

    kind: str = ""
    names: tuple[str, ...] = ()
    unit: str = ""
    convertible: bool = False

    def renamed(self, other: Outputs) -> bool:
        """Return whether outputs with the same positions have other names or another unit; False if unknown.

        Args:
            other: outputs of the other model.
        """
        if not self.names or not other.names:
            return False
        return self.names != other.names or self.other_unit(other)

    def other_unit(self, other: Outputs) -> bool:
        """Return whether both units are known and differ."""
        return len({self.unit, other.unit} - {""}) > 1

    def listed(self, other: Outputs) -> str:
        """Format the names for a message: the first ones, or those from the first difference on.

        Args:
            other: outputs of the other model.
        """
        pairs = zip(self.names, other.names)
        first = next((place for place, (one, theirs) in enumerate(pairs) if one != theirs), 0)
        start = first if first >= SHOWN else 0
        shown = self.names[start : start + SHOWN]
        more = ", ..." if start + SHOWN < len(self.names) else ""
        return ("..., " if start else "") + class_list(shown) + more + (f" ({self.unit})" if self.unit else "")


def interval_names(inner: Sequence[float]) -> list[str]:
    """Return names of the intervals between edges: ``below 2``, ``2 to 5``, ``from 5``.

    Args:
        inner: edges without the outer ones, ascending.
    """
    ends = [f"{edge:.6g}" for edge in inner]
    if not ends:
        return ["all"]
    return [f"below {ends[0]}", *(f"{low} to {high}" for low, high in pairwise(ends)), f"from {ends[-1]}"]


def missing_classes(own: Sequence[str], given: Sequence[str]) -> str:
    """Return the advice about data without some classes of a model; empty if the data have them all.

    Args:
        own: classes of the model.
        given: classes of the data.
    """
    missing = [name for name in own if name not in given]
    return f"; pass data with records of {class_list(missing[:8])}" if missing else ""
