"""The compiled step of a Mamba layer against its parts, and the calls that it leaves to them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from seqssm_kernels import MambaWeights, mamba_step
from seqssm_kernels.mamba_step import numba_plan
from torch import Tensor


def arguments(
    batch: int, channels: int, states: int, taps: int, rank: int, bias: bool = True
) -> tuple[Tensor, MambaWeights, Tensor, Tensor]:
    torch.manual_seed(0)
    r = torch.randn
    weights = MambaWeights(
        r(channels, taps),
        r(channels) if bias else None,
        r(rank + 2 * states, channels) * channels**-0.5,
        r(channels, rank) * rank**-0.5,
        r(channels) if bias else None,
        torch.rand(channels, states).log1p(),
        r(channels),
    )
    return r(batch, 2 * channels), weights, r(batch, channels, taps - 1), r(batch, channels, states)


SIZES = [
    (1, 512, 16, 4, 16),
    (8, 512, 16, 4, 16),
    (3, 37, 5, 3, 7),
    (2, 96, 24, 2, 1),
    (5, 64, 16, 4, 33),
    (1, 3, 1, 1, 2),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_compiled_step_equals_its_parts_in_double_precision(sizes, bias):
    xz, weights, window, state = arguments(*sizes, bias=bias)
    given = [t.clone() for t in (xz, window, state)]
    compiled = numba_plan.run(xz, weights, window, state)
    assert compiled is not None
    right = mamba_step(
        xz.double(),
        MambaWeights(*[None if t is None else t.double() for t in weights]),  # type: ignore[arg-type]
        window.double(),
        state.double(),
        engine="reference",
    )
    for a, b, name in zip(compiled, right, ("out", "window", "state")):
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= 2e-6 * b.norm(), name
    for before, after in zip(given, (xz, window, state)):
        assert torch.equal(before, after)


def test_rows_do_not_depend_on_the_batch():
    xz, weights, window, state = arguments(7, 80, 16, 4, 5)
    together = mamba_step(xz, weights, window, state)
    for i in range(7):
        alone = mamba_step(xz[i : i + 1], weights, window[i : i + 1], state[i : i + 1])
        for a, b in zip(alone, together):
            assert torch.equal(a[0], b[i])


@pytest.mark.parametrize("change", ["half", "grad", "large", "strided", "engine"])
def test_other_calls_run_as_parts(change, monkeypatch):
    xz, weights, window, state = arguments(400 if change == "large" else 2, 64, 16, 4, 4)
    engine = None
    if change == "half":
        xz, weights = xz.bfloat16(), MambaWeights(*[t.bfloat16() for t in weights[:5]], *weights[5:])
    if change == "grad":
        xz.requires_grad_()
    if change == "strided":
        xz = torch.randn(2, 256)[:, ::2]
    if change == "engine":
        engine = "torch"
    served = []
    monkeypatch.setattr(numba_plan, "run", lambda *a, run=numba_plan.run: served.append(run(*a)) or served[-1])
    y, after, new = mamba_step(xz, weights, window, state, engine=engine)
    assert all(one is None for one in served)
    right = mamba_step(xz.detach(), weights, window, state, engine="reference")
    for a, b in zip((y, after, new), right):
        assert (a.float() - b.float()).norm() <= (2e-2 if change == "half" else 1e-5) * b.float().norm()
    if change == "grad":
        y.sum().backward()
        assert xz.grad is not None
        assert bool(xz.grad.isfinite().all())


def test_axes_of_size_one_stay():
    xz, weights, window, state = arguments(2, 32, 16, 4, 4)
    right = mamba_step(xz, weights, window, state)
    weights = weights._replace(conv=weights.conv[:, None])
    for engine in (None, "torch"):
        found = mamba_step(xz, weights, window[:, None], state[:, None], engine=engine)
        assert [t.shape for t in found] == [(2, 32), (2, 1, 32, 3), (2, 1, 32, 16)]
        for a, b in zip(found, right):
            torch.testing.assert_close(a.reshape(b.shape), b, atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_other_processes_load_the_compiled_step(tmp_path):
    code = "from seqssm_kernels.mamba_step import numba_plan; numba_plan.kernel()"
    own = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    errors = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        errors.append(done.stderr)
    assert len(list(tmp_path.rglob("*.nbc"))) == 1
    assert "compiling" not in errors[1]


@pytest.mark.parametrize("part", ["window", "state", "D"])
def test_tensors_of_other_devices_are_refused(part):
    xz, weights, window, state = arguments(2, 32, 16, 4, 4)
    mamba_step(xz, weights, window, state)  # its plan is kept, and must not serve the next call
    if part == "D":
        weights = weights._replace(D=weights.D.to("meta"))
    else:
        window, state = (t.to("meta") if name == part else t for name, t in (("window", window), ("state", state)))
    with pytest.raises(ValueError, match="device"):
        mamba_step(xz, weights, window, state)
