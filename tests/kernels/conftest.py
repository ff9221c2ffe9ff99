"""Fixtures: the engines of the CPU, memory that reveals unwritten values, and the calls of `calls.py`."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

pytest.register_assert_rewrite(f"{__package__}.calls")

from . import calls  # noqa: E402  after the line that enables rewritten assertions

ENGINES = ["torch", "numba"]


@pytest.fixture(params=ENGINES, scope="session")
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """Fill fresh memory with NaN, so that values an engine does not write are detected."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    return SimpleNamespace(
        scan=calls.scan_call,
        ssd=calls.ssd_call,
        conv=calls.conv_call,
        build=calls.build,
        order=calls.make_order,
        cu_seqlens=calls.make_cu_seqlens,
        tolerance=calls.TOLERANCE,
        rms_ratio=calls.rms_ratio,
        assert_close=calls.assert_close,
        assert_equal=calls.assert_equal,
        scan_floats=calls.SCAN.floats,
        ssd_floats=calls.SSD.floats,
        conv_floats=calls.CONV.floats,
    )
