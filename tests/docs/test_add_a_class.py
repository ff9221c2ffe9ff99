"""The commands of docs/how-to/add-a-class-later.md, as written, on made sequences; the model is made small."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from seqssm.cli.main import main
from tests.incremental import sequences

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-class-later.md"
SMALL = ["--model.network", "stem", "--model.d_model", "16", "--model.n_layers", "1", "--model.d_state", "4"]
SMALL += ["--model.threads", "1", "--model.mixer", "mamba", "--model.echo", "none", "--trainer.max_epochs", "1"]


@pytest.mark.usefixtures("one_thread")
def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    sequences.write_all(tmp_path)
    (tmp_path / "support.csv").rename("new.csv")
    (tmp_path / "evaluate.csv").rename("more.csv")
    blocks = re.findall(r"```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 7
    for number, command in enumerate(commands):
        name, *argv = shlex.split(command)
        assert name == "seqssm"
        more = {"fit": SMALL, "extend": ["--steps", "2", *(["--overwrite"] if number == 6 else [])]}
        assert main([*argv, *more.get(argv[1], [])]) == 0, capsys.readouterr().err
        said = capsys.readouterr().out
        if argv[1] == "extend":
            assert "forgetting" in said
    assert (tmp_path / "classes.csv").stat().st_size > 100
