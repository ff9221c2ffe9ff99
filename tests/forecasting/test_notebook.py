"""The notebook runs from its first cell to its last as committed, on real or simulated data."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "forecasting.ipynb"


@pytest.mark.long
def test_the_notebook_runs_and_shows_what_it_ran_on(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # small networks do not benefit from a second thread
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs for cell in cells), "kept empty: the file stays small, and its diffs readable"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    text = "".join(output.get("text", "") for output in outputs)
    assert "data: " in text, "it names its data"
    assert "95 % intervals: " in text
    assert list(tmp_path.iterdir()) == [], "it leaves no files behind"
