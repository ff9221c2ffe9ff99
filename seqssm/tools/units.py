"""Units and directions of a domain's scores, for table headings."""

from __future__ import annotations

from seqssm.domain import Domain, resolve


def units_of(domain: Domain) -> dict[str, str]:
    """Return the units of the domain's scores by name; scores without a unit are left out."""
    metrics = resolve(domain.metrics) if domain.metrics else ()
    return {metric.name: metric.unit for metric in metrics if metric.unit}
