"""The notebook's cells run, one after the other, in an empty folder."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "ecg.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    shown: list[object] = []
    display = types.ModuleType("IPython.display")
    display.Image = lambda path: Path(path).read_bytes()[:8]
    display.display = shown.append
    package = types.ModuleType("IPython")
    package.version_info, package.get_ipython = (9, 0), lambda: None  # matplotlib asks for both
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # kept empty: the file stays small, and its diffs readable
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    os.environ.clear()
    os.environ.update(before)
    pages = 3 if "real" in names else 2  # the third is of a real recording, where there is one
    assert shown == [b"\x89PNG\r\n\x1a\n"] * pages
    assert "auroc" in capsys.readouterr().out
    assert names["challenge_score"](names["weights"], names["truth"], names["truth"], 2) == 1
