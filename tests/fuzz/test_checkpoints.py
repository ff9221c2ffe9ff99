"""Checkpoints with changed entries are loaded or give an `InputError`, nothing else: the archive itself is intact.

Damage of bytes is found by checksums (`test_readers.py`). Here entries of the content are removed or replaced.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.training import ensemble
from tests.compat.old_runs import HERE, write_data

CASES = max(10, int(os.environ.get("SEQSSM_FUZZ", "100")) // 10)  # each builds a network
STORED = ("forecasting_dlinear", "forecasting_smamba", "ecg_stream", "pathology_survival")
MADE = ("quantised", "ensemble")
VALUES = (
    None, True, -1, 0, 2**70, 10**6, 1.5, float("nan"), "", "x", "smamba", b"x", [], [0], ["a", "a"], {}, {"a": 1},
    (1, 2), torch.zeros(()), torch.zeros(2, 3), torch.zeros(0), torch.full((4,), float("nan")),
    torch.zeros(4, dtype=torch.int8),
)  # fmt: skip
"""Values that replace an entry."""


@pytest.fixture(scope="module")
def contents(tmp_path_factory) -> dict[str, Any]:
    """Contents of valid checkpoints by name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {name: HERE / "runs" / name / "best.ckpt" for name in STORED}
    paths |= {name: folder / f"{name}.ckpt" for name in MADE}
    smamba = paths["forecasting_smamba"]
    write_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        assert main(["compress", str(smamba.parent), "--method", "w8a8", "--output", str(paths["quantised"])]) == 0
    ensemble.combine([smamba, smamba], paths["ensemble"], ["a", "b"])
    return {name: torch.load(path, weights_only=True) for name, path in paths.items()}


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys of every entry below a value, without the states of the optimiser and the loops."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in entries:
        if above or key in ("seqssm", "state_dict", "members"):
            yield (*above, key)
            yield from places(below, (*above, key))


def change(content: Any, place: tuple[Any, ...], value: Any, remove: bool) -> None:
    for key in place[:-1]:
        try:
            content = content[key] if isinstance(content, dict | list) else None
        except (KeyError, IndexError, TypeError):
            return  # replaced by an earlier change
    if not isinstance(content, dict | list):
        return
    with contextlib.suppress(KeyError, IndexError, TypeError):  # a list in place of a mapping
        if remove:
            del content[place[-1]]
        else:
            content[place[-1]] = copy.deepcopy(value)


@pytest.mark.parametrize("name", [*STORED, *MADE])
def test_a_changed_checkpoint_is_loaded_or_refused(name, contents, tmp_path, one_thread):
    content, path = contents[name], tmp_path / "changed.ckpt"
    entries = list(places(content))
    torch.save(content, path)
    seqssm.load(path, accelerator="cpu")
    changes = st.tuples(st.sampled_from(entries), st.sampled_from(VALUES), st.booleans())

    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        derandomize=CASES <= 10,
        suppress_health_check=list(HealthCheck),
    )
    @given(changed=st.lists(changes, min_size=1, max_size=3))
    def check(changed: list[tuple[tuple[Any, ...], Any, bool]]) -> None:
        own = copy.deepcopy(content)
        for place, value, remove in changed:
            change(own, place, value, remove)
        torch.save(own, path)
        message = require_answer(path)
        assert "\n" not in message
        assert len(message) < 1000

    check()


def require_answer(path: Path) -> str:
    """Load a checkpoint; return the message of the `InputError`, if any."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            seqssm.load(path, accelerator="cpu")
    except InputError as error:
        return str(error)
    return ""
