"""Predictions with small untrained networks, without checkpoints."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import torch
from seqssm_dna.model import GenomeEncoder, GenomeLM
from seqssm_dna.options import PREDICT_OPTIONS
from seqssm_dna.predict import DnaPredictor
from seqssm_dna.tokens import Vocabulary

from seqssm.given import require_models
from seqssm.prediction.loop import batched, outcomes
from seqssm.prediction.table import common_schema, conform, tabulate

SUMMARY = {
    "objective": "causal", "vocabulary": Vocabulary().to_dict(), "context": 64, "attn_window": None,
    "has_attention": False, "average_strands": False, "properties": [], "bins": None, "edges": [], "lower": "upper",
    "target": None, "classes": [], "unit": "", "max_length": None,
    "trim_n": False, "sequence_column": None, "id_column": None,
}  # fmt: skip


def causal(seed: int = 0, **options) -> GenomeLM:
    """A causal model with weights that are not near zero."""
    torch.manual_seed(seed)
    given = {"d_model": 16, "n_layers": 2, "mixer": "mamba", **options}
    model = GenomeLM(**given).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(3)
    return model


def encoder(seed: int = 0, **options) -> GenomeEncoder:
    """A masked model."""
    torch.manual_seed(seed)
    return GenomeEncoder(**{"d_model": 16, "n_layers": 1, **options}).eval()


def predictor(model, summary=None, **options) -> DnaPredictor:
    """The predictor of a model, with the command's defaults; `report` is its option ``summary``."""
    options = {"summary" if name == "report" else name: value for name, value in options.items()}
    defaults = {option.name: option.default for option in PREDICT_OPTIONS}
    assert not set(options) - set(defaults)
    made = DnaPredictor(model, {**SUMMARY, **(summary or {})}, {**defaults, **options})
    require_models(PREDICT_OPTIONS, options, made.kinds)
    return made


def predict(model, *inputs, data=None, summary=None, batch_size=4, figures=None, **options):
    """The table of a prediction; internal errors are raised."""
    return predict_with(
        predictor(model, summary, **options), *inputs, data=data, batch_size=batch_size, figures=figures
    )


def predict_with(own: DnaPredictor, *inputs, data=None, batch_size=4, figures=None):
    """The table of a predictor."""
    records = own.records([Path(one) for one in inputs]) if data is None else own.records_of(data)
    with tempfile.TemporaryDirectory() as folder:
        own.work = Path(folder)
        tables = []
        for one in outcomes(own, batched(records, batch_size), figures=figures):
            assert not one.traces, one.traces[0]
            tables.append(tabulate(one.records, one.rows, own.columns))
        tables = tables or [tabulate([], [], own.columns)]
        own.finish(iter(tables))
    schema = common_schema(table.schema for table in tables)
    return pa.concat_tables([conform(table, schema) for table in tables]).to_pandas()
