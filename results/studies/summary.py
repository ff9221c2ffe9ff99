"""One table over all domains, for the README: our model with scans, the best other model, published figures."""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

from studies import dna, ecg, forecasting, pathology
from studies.common import markdown, spread


class Line(NamedTuple):
    """One line of the table.

    Attributes:
        data: name of the data set.
        metric: name and direction, as printed.
        study: name of the study, whose rows have the figures.
        key: key of the metric in the rows.
        ours: key of our model.
        largest: whether larger is better.
        titles: titles of the models of the study.
        published: published figure with its source; empty if there is none for this split.
    """

    data: str
    metric: str
    study: str
    key: str
    ours: str
    largest: bool
    titles: dict[str, str]
    published: str = ""


GENOME_MAMBA = "convolutions and Mamba, 15 minutes (the preset)"
GENOME = {
    "GRU, 15 minutes": "GRU",
    "dilated convolutions, 15 minutes": "dilated convolutions",
    "Mamba alone, 15 minutes": "Mamba alone",
}
CHR20_MAMBA = "convolutions and Mamba (the preset)"
CHR20 = {name: name for name in ("GRU", "dilated convolutions")}
LINES = (
    Line("ETTh1, 96 steps", "MSE, lower", "etth1_96", "mse", "smamba", False, forecasting.TITLES, ".386 (S-Mamba)"),
    Line("ETTm1, 96 steps", "MSE, lower", "ettm1_96", "mse", "smamba", False, forecasting.TITLES, ".333 (S-Mamba)"),
    Line("PTB-XL, 1,819 records", "AUROC", "ecg_ptbxl_small", "auroc", "mamba", True, ecg.TITLES),
    Line("MUSK1", "accuracy", "pathology_musk1", "accuracy", "srmamba", True, pathology.TITLES, ".900 (gated ABMIL)"),
    Line("UCSB breast", "accuracy", "pathology_ucsb", "accuracy", "srmamba", True, pathology.TITLES),
    Line("Elephant, ten folds", "accuracy", "recipes_elephant", "score", "srmamba_mixed", True, pathology.TITLES),
    Line("TCGA glioma", "C-index", "pathology_gbmlgg", "c_index", "srmamba_file", True, pathology.TITLES),
    Line("splice junctions", "accuracy", "dna_splice", "accuracy", "stem", True, dna.TITLES),
    Line("CTCF peaks, chromosome 20", "AUROC", "dna_ctcf", "auroc", "stem", True, dna.TITLES),
    Line("*E. coli* promoters", "MCC", "dna_promoters", "mcc", "stem", True, dna.TITLES, ".84 (CNNProm)"),
    Line(
        "*E. coli* promoters, pretrained",
        "MCC",
        "dna_promoters_pretrained",
        "mcc",
        "pretrained",
        True,
        dna.TITLES,
        ".84 (CNNProm)",
    ),
    Line("*P. falciparum*, MAL13", "bits, lower", "dna_pfalciparum", "bits_per_base", GENOME_MAMBA, False, GENOME),
    Line("human chromosome 20", "bits, lower", "dna_human_chr20", "bits_per_base", CHR20_MAMBA, False, CHR20),
    Line("*Arabidopsis* TATA", "MCC", "dna_tata", "mcc", "stem", True, dna.TITLES, ".91 (CNNProm)"),
)


def by_seed(rows: list[dict[str, Any]], key: str) -> list[float]:
    """The metric of each seed, averaged over its folds."""
    seeds = sorted({row.get("seed", 1) for row in rows})
    return [statistics.fmean(row[key] for row in rows if row.get("seed", 1) == seed) for seed in seeds]


def summary_table(studies: dict[str, dict[str, Any]]) -> str:
    """Markdown of the lines whose study has been run.

    Args:
        studies: content of `results/<study>.json` by study.
    """
    lines = [["data", "metric", "our model with scans", "best other model", "published"]]
    for line in LINES:
        if line.study not in studies:
            continue
        rows = studies[line.study]["rows"]
        models = dict.fromkeys(row["model"] for row in rows)
        values = {model: by_seed([row for row in rows if row["model"] == model], line.key) for model in models}
        family = line.ours.split("_")[0]
        others = {model: statistics.fmean(own) for model, own in values.items() if not model.startswith(family)}
        best = (max if line.largest else min)(others, key=others.__getitem__)
        ours = spread(values[line.ours])
        ahead = (statistics.fmean(values[line.ours]) > others[best]) == line.largest
        other = spread(values[best])
        ours, other = (f"**{ours}**", other) if ahead else (ours, f"**{other}**")
        title = line.titles[best].replace(" (iTransformer)", "").replace(" of equal width", "")
        lines.append([line.data, line.metric, ours, f"{other}, {title}", line.published])
    return markdown(lines)
