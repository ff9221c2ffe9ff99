"""Lines about the data: printed by the first process of a training only, kept by all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from seqssm.files import notes
from seqssm.training.processes import require_launched


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 0, raising=False)
    yield
    notes.silence(False)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_prints_what_all_have_read(rank, capsys):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    require_launched(SimpleNamespace(global_rank=rank, world_size=2, num_devices=1, strategy=strategy))
    with notes.collected() as lines:
        notes.note("3 rows dropped")
    assert lines == ["3 rows dropped"]
    assert capsys.readouterr().out == ("3 rows dropped\n" if rank == 0 else "")
