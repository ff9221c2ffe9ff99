"""Records of 2 s and their manifests, for tests."""

from __future__ import annotations

import pandas as pd
from seqssm_ecg.data import EcgData

COUNT = 24


def frame(**columns):
    return pd.DataFrame(
        {"path": [f"s{n:02d}.hea" for n in range(COUNT)], "fast": [n % 2 for n in range(COUNT)], **columns}
    )


def labels(*cells):
    return frame().assign(labels=[cells[n % len(cells)] for n in range(COUNT)]).drop(columns="fast")


def data_of(records, table, name="m.csv", **options):
    """The data module of a table beside the records, and the printed text."""
    path = records / name
    table.to_csv(path, index=False) if isinstance(table, pd.DataFrame) else path.write_bytes(table)
    data = EcgData(manifest=str(path), window_s=1, **options)
    data.setup("fit")
    return data


SPLIT = (["train"] * 2 + ["val", "test"]) * 6
