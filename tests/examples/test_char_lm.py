"""The comparison of character models in examples/char_lm.py, with a few steps on the built-in text."""

from __future__ import annotations

import gzip
import importlib.util
import re
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "examples" / "char_lm.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("char_lm", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "char_lm", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("one_thread")
def test_the_table(script, tmp_path, capsys):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(script.SMALL.encode()))
    small = ["--text", str(path), "--steps", "3", "--d-model", "16", "--layers", "1", "--d-state", "8"]
    script.main([*small, "--length", "24", "--batch", "2"])
    printed = capsys.readouterr().out
    values = {name: float(re.search(rf"^{name} +([\d.]+)", printed, re.MULTILINE)[1]) for name in script.ARMS}
    assert all(0 < value < 10 for value in values.values())
    assert len(set(values.values())) == 4
    assert re.search(r"binary: \d\d\.\d % of the parameters", printed)
    assert float(re.search(r"that is ([\d.]+)x smaller", printed)[1]) > 10


def test_bits_are_those_of_one_pass(script):
    import torch

    ids, letters = script.encoded(script.SMALL[:300])
    settings = script.Settings(d_model=16, layers=1, d_state=8)
    torch.manual_seed(0)
    model = script.build(letters, settings).eval()
    logits = model(ids[None, :-1])[0]
    wanted = torch.nn.functional.cross_entropy(logits, ids[1:]) / torch.log(torch.tensor(2.0))
    assert script.bits(model, ids, settings) == pytest.approx(float(wanted), rel=1e-5)
