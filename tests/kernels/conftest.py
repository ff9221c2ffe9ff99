"""The engines of the CPU, memory that shows what is not written, and the calls of `calls.py`, as fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

pytest.register_assert_rewrite(f"{__package__}.calls")

from . import calls  # noqa: E402  behind the line that lets its assertions explain themselves

ENGINES = ["torch", "numba"]


@pytest.fixture(params=ENGINES, scope="session")
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """Fresh memory holds NaN: what an engine forgets to write shows."""
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
