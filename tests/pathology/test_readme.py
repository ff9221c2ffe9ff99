"""The README's commands on simulated slides, as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from seqssm_pathology import simulate

from seqssm.cli.main import main

README = Path(__file__).parents[2] / "domains" / "seqssm_pathology" / "README.md"
FEW = ["--model.d_model", "8", "--model.layers", "1", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("seqssm ")]


@pytest.mark.long
def test_own_files_with_every_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    simulate.cohort(tmp_path / "DIR", cases=15, seed=2, width=6)
    (tmp_path / "DIR" / "manifest.csv").rename("m.csv")
    simulate.cohort(tmp_path / "OTHER", cases=8, seed=5, width=6)
    (tmp_path / "OTHER" / "manifest.csv").rename("other.csv")
    own = [words for words in commands() if "musk1" not in " ".join(words)]
    assert [words[2] if words[1] == "pathology" else words[1] for words in own] == [
        "fit",
        "test",
        "predict",
        "test",
        "fit",
        *("fit", "test", "fit", "test", "fit", "test", "predict"),
        "kfold",
        "kfold",
        "predict",
    ]
    for words in own:
        words = ["made_001" if word == "P-01" else word for word in words]
        if "fit" in words or "kfold" in words:
            words = [*words, *FEW]
        if "survival" in words:
            words = [*words, "--overwrite"]
        if "kfold" in words:
            words = ["1" if word == "1,2,3" else "3" if word == "5" else word for word in words]
        assert main(words[1:]) == 0, words
    printed = capsys.readouterr().out
    assert "logistic " in printed
    assert "difference" in printed
    assert (tmp_path / "figs").is_dir()
    names: dict = {}
    (example,) = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile(example, "README.md", "exec"), names)
    assert len(names["table"]) == len(names["features"]) == 15
    assert names["features"].filter(like="e").shape[1] >= 512


def test_the_commands_of_the_benchmarks_name_what_exists():
    from seqssm_pathology import DOMAIN

    found = [words for words in commands() if "musk1" in " ".join(words)]
    assert [words[1:3] for words in found] == [["pathology", name] for name in ("fit", "test", "kfold")]
    kfold = found[-1]
    assert set(kfold[kfold.index("--models") + 1].split(",")) <= set(DOMAIN.models)
