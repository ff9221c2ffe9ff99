"""One declaration per score; validation, test, tables by class, intervals, kfold and early stopping read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """A score.

    Attributes:
        name: ``"auroc"``: its name in tables, in `log.csv` (after ``val_``) and in `metrics.json`.
        function: computes the value from the domain's collected predictions; None if another metric provides it.
        better: direction of improvement; None if there is none (a count, a p value): `kfold` then counts no
            wins, and early stopping cannot monitor the metric.
        unit: unit of the value, ``""`` for a pure number.
        shown: tables that include the metric: ``"val"``, ``"test"``, and further tables of the domain (``"by_class"``,
            ...).
        title: label for legends; the name by default.
    """

    name: str
    function: Callable[..., Any] | None = None
    better: Literal["max", "min"] | None = None
    unit: str = ""
    shown: tuple[str, ...] = ("val", "test")
    title: str = ""


def evaluate(metrics: Iterable[Metric], collected: Any, where: str) -> dict[str, Any]:
    """Compute all metrics shown in `where`, by name.

    Args:
        metrics: the table of the domain.
        collected: the argument of the metrics' functions.
        where: an entry of `Metric.shown`.
    """
    return {m.name: m.function(collected) for m in metrics if where in m.shown and m.function is not None}


def direction(metrics: Iterable[Metric], name: str) -> Literal["max", "min"] | None:
    """Return the direction of improvement of the score `name`; None if it has none or is not declared.

    Args:
        metrics: the table of the domain.
        name: name of the score; one of several targets may precede it (``"grade.auroc"``).
    """
    table = {m.name: m.better for m in metrics}
    return table.get(name, table.get(name.rsplit(".", 1)[-1]))
