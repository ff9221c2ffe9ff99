"""How far back a model looks: decays that are known, states that hold what is known, and the command."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import torch
from seqssm_dna import simulate

from seqssm import Backbone
from seqssm.cli.main import main
from seqssm.nn.mamba import Mamba
from seqssm.nn.mamba2 import Mamba2
from seqssm.nn.mamba3 import Mamba3
from seqssm.nn.memory import Memory
from seqssm.tools import diagnose, walks
from seqssm.tools.fidelity import decoded, eclmf, etmf

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "how-far-back.md"
DT = 0.25
SMALL = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "4", "--model.d_model", "16")


def inverse(dt: float) -> float:
    return math.log(math.expm1(dt))


def known(kind: str) -> tuple[torch.nn.Module, list[float]]:
    """A layer with a constant step size, and the half-lives of its channels or heads."""
    torch.manual_seed(0)
    with torch.no_grad():
        if kind == "mamba":
            layer = Mamba(4, d_state=3, expand=1)
            layer.dt_proj.weight.zero_()
            layer.dt_proj.bias.fill_(inverse(DT))
            layer.A_log.copy_((torch.tensor([[0.5], [1.0], [2.0], [8.0]]) * torch.tensor([3.0, 1.0, 2.0])).log())
            return layer, [math.log(2) / (DT * a) for a in (0.5, 1, 2, 8)]
        if kind == "mamba2":
            layer = Mamba2(4, d_state=3, expand=1, head_dim=2)
            layer.in_proj.weight[-2:] = 0
            layer.dt_bias.fill_(inverse(DT))
            layer.A_log.copy_(torch.tensor([0.1, 4.0]).log())
            return layer, [math.log(2) / (DT * a) for a in (0.1, 4)]
        layer = Mamba3(4, d_state=4, expand=1, head_dim=2)
        layer.in_proj.weight.zero_()
        layer.routes[0].dt_bias.fill_(inverse(DT))
        return layer, [math.log(2) / DT] * 2  # |A| is 1 where its projection is 0


def measured(network: torch.nn.Module, *calls: dict) -> diagnose.Diagnosis:
    found = walks.layers(network)
    with torch.no_grad():
        walks.record(found, lambda: [network(**call) for call in calls])
    return diagnose.measured(found)


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "mamba3"])
def test_half_lives_are_those_of_the_decay(kind):
    layer, expected = known(kind)
    table = measured(layer, {"x": torch.randn(4, 40, 4)}).table
    found = table[table.measure == "half_life"].sort_values("index").value.tolist()
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_decoder_finds_what_is_there_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(400, 5, generator=generator)
    states = torch.cat([tokens, torch.randn(400, 20, generator=generator)], 1) @ torch.randn(
        25, 60, generator=generator
    )
    assert etmf(states, tokens) > 0.99
    assert abs(etmf(torch.randn(400, 60, generator=generator), tokens)) < 0.15
    assert eclmf(tokens, states) > 0.99
    assert eclmf(states, torch.randn(400, 60, generator=generator)) < 0.05
    assert eclmf(states, tokens) == pytest.approx(5 / 25, abs=0.1)
    wanted = decoded(states, tokens)[1]
    torch.testing.assert_close(wanted, tokens[200:].double() - tokens[:200].double().mean(0))
    with pytest.raises(ValueError, match="at least 16"):
        decoded(states[:15], tokens[:15])


def test_fidelity_falls_where_the_state_forgets():
    """A scan with a half-life of 2 tokens keeps near tokens and not far ones; a long one keeps far ones."""
    kept = {}
    for decay in (0.35, 0.01):
        torch.manual_seed(1)
        layer = Mamba(4, d_state=8, expand=2, d_conv=1)
        with torch.no_grad():
            layer.dt_proj.bias.fill_(inverse(0.5))
            layer.dt_proj.weight.zero_()
            layer.A_log.fill_(math.log(decay / 0.5))
        table = measured(layer, *({"x": torch.randn(2, 150, 4)} for _ in range(16))).table
        kept[decay] = table[table.measure == "etmf"].set_index("index").value
    assert kept[0.35][1] > 0.3
    assert max(kept[0.35][8], kept[0.35][64]) < 0.1
    assert kept[0.01][16] > kept[0.35][16] + 0.05


def test_sequences_are_followed_in_the_order_of_visit():
    layer = Mamba(2, ordering="bidirectional", d_state=2)
    x = torch.arange(24.0).view(1, 12, 2)
    cases = {
        "plain": ({"x": x}, [(0, range(12)), (1, range(11, -1, -1))]),
        "padded": (
            {"x": x, "mask": (torch.arange(12) % 2 == 0)[None]},
            [(0, range(0, 12, 2)), (1, range(10, -1, -2))],
        ),
        "packed": (
            {"x": x, "cu_seqlens": torch.tensor([0, 5, 12], dtype=torch.int32)},
            [(0, range(5)), (0, range(5, 12)), (1, range(4, -1, -1)), (1, range(11, 4, -1))],
        ),
        "own order": (
            {"x": x, "order": torch.tensor([[3, 1, -1, 2, -2, 7, 8], [8, 7, 2, 1, -1, -1, 3]], dtype=torch.int32)},
            [(0, [3, 1, 2]), (0, [7, 8]), (1, [8, 7, 2, 1, 3])],
        ),
    }
    for given, expected in cases.values():
        found = list(walks._walks(layer, given["x"], {k: v for k, v in given.items() if k != "x"}))
        assert [(route, positions.tolist()) for route, _, positions in found] == [(r, list(p)) for r, p in expected]
        for _, steps, positions in found:
            assert torch.equal(steps, x[0, positions])
    assert [one.direction for one in walks.layers(layer)] == ["forward", "reverse"]


def test_a_stack_with_memory_is_measured():
    torch.manual_seed(0)
    memory = {"pool_size": 3, "summary_dim": 4, "interval": 4, "cross_layer_every": 2}
    stack = Backbone(8, "mNN*-m", mamba={"d_state": 4}, memory=memory, attention={"n_heads": 2}, mlp={"hidden": 8})
    found = measured(stack, *({"x": torch.randn(3, 40, 8)} for _ in range(4)))
    table = found.table
    assert sorted(table[table.measure == "age"].layer.unique()) == [1, 2]
    assert (table[table.measure == "age"].value < 40).all()
    assert sorted(table[table.measure == "half_life"].layer.unique()) == [0, 3]
    pairs = table[table.measure == "eclmf"]
    assert list(zip(pairs.layer, pairs["index"], strict=True)) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert pairs.value.between(0, 1).all()
    assert list(found.summary.layer) == [0, 1, 2, 3]


@torch.no_grad()
def test_held_positions_are_those_in_the_state():
    for replacement in ("priority", "fifo"):
        torch.manual_seed(0)
        layer = Memory(6, summary_dim=6, pool_size=4, interval=3, replacement=replacement)
        x = torch.randn(22, 6)
        _, state = layer(x[None], return_state=True)
        summaries = layer.in_proj(x)[:, -6:]
        held = layer.held(x)
        assert len(held) == 4
        assert held.max() < 21
        torch.testing.assert_close(summaries[held], state["summary"][0])


@pytest.mark.usefixtures("one_thread")
def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    simulate.folder(tmp_path / "made", length=6000, labelled=4, alleles=2)
    (tmp_path / "made" / "genome.fa").rename("genome.fa")
    blocks = re.findall(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 2
    for command in commands:
        name, *argv = shlex.split(command)
        assert name == "seqssm"
        extra = SMALL if argv[1] == "fit" else ()
        assert main([*argv, *extra]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "how far back each layer looks" in printed
    table = pd.read_csv("diagnosis.csv")
    assert list(table.columns) == diagnose.COLUMNS
    assert {"half_life", "etmf"} <= set(table.measure)
    assert (table[table.measure == "half_life"].value > 0).all()
    assert Path("diagnosis.png").stat().st_size > 10_000
    assert main(["diagnose", "run", "genome.fa", "--output", "diagnosis.csv"]) == 2
    assert "pass --overwrite" in capsys.readouterr().err


def test_what_is_refused(run, tmp_path, capsys):
    for words, message in (
        ([], "--output FILE is required"),
        (["--output", str(tmp_path / "a.txt")], "--output must end in .csv"),
        (["--output", str(tmp_path / "a.csv"), "--records", "0"], "--records 0: must be in [1, 2147483647]"),
        (["--output", str(tmp_path / "a.csv")], "no layer with a state"),
    ):
        assert main(["diagnose", str(run), str(tmp_path / "x.txt"), *words]) == 2
        printed = capsys.readouterr().err.strip()
        assert message in printed
        assert "\n" not in printed
