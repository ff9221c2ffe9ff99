"""The commands on DNA of docs/how-to/fine-tune.md, as written, on made sequences; the models are made small."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from seqssm.cli.main import main
from tests.incremental import sequences

pytest.importorskip("peft", reason="peft is not installed: pip install 'seqssm[adapters]'")

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "fine-tune.md"
SMALL = ["--model.d_model", "16", "--model.n_layers", "1", "--model.d_state", "4", "--model.mixer", "mamba"]
SMALL += ["--model.threads", "1", "--trainer.max_epochs", "1"]


@pytest.mark.usefixtures("one_thread")
def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sequences.write_all(tmp_path)
    (tmp_path / "train.csv").rename("labels.csv")
    letters = np.random.default_rng(0).choice(list("ACGT"), 6000)
    (tmp_path / "genome.fa").write_text(">c\n" + "".join(letters) + "\n")
    blocks = re.findall(r"```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    commands = [line for block in blocks[:2] for line in block.splitlines()]
    assert len(commands) == 10
    said = {}
    for command in commands:
        name, *argv = shlex.split(command)
        assert name == "seqssm"
        more = SMALL if argv[1] == "fit" else []
        more = more + (["--data.context", "64"] if "pretrain" in argv else [])
        assert main([*argv, *more]) == 0, capsys.readouterr().err
        said[argv[1], argv[-1]] = capsys.readouterr().out
    for run in ("all", "lora"):
        assert "warm start from pretrained" in said["fit", run]
    assert "warm start" not in said["fit", "scratch"]
    assert all(run in said["scratch", "head"] for run in ("scratch", "all", "lora", "head")), "the table of compare"
