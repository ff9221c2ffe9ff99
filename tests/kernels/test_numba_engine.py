"""Properties of the compiled CPU engine: exponentials, threads, forks, the cache on disk, 64-bit offsets."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from seqssm_kernels import causal_conv1d, selective_scan
from seqssm_kernels.cpu import threads
from torch import Tensor


def rms(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).pow(2).mean().sqrt() / b.double().pow(2).mean().sqrt())


def call(batch: int = 2, length: int = 100, channels: int = 40, states: int = 4, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(batch, length, channels, generator=g),
        "dt": torch.rand(batch, length, channels, generator=g),
        "A": -torch.rand(channels, states, generator=g),
        "B": torch.randn(batch, length, states, generator=g),
        "C": torch.randn(batch, length, states, generator=g),
    }


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# Exponents of a tile decide how it computes exponentials: [-1, 0], [-2, 0], [-3, 0], within 126, anything. Both sides
# of each.
@pytest.mark.parametrize(
    ("sign", "largest"),
    [(-1.0, e) for e in (0.5, 0.999, 1.001, 1.999, 2.001, 2.999, 3.001, 50.0, 125.0, 200.0, 1e4)]
    + [(1.0, e) for e in (0.5, 2.001, 3.001, 50.0, 125.0, 127.0)],
)
def test_every_exponential(largest, sign):
    t = call(length=40)
    t["A"] = sign * torch.rand(40, 4, generator=torch.Generator().manual_seed(1))
    scale = largest / 1.4426950408889634 / float(t["A"].abs().max() * t["dt"].max())
    t["dt"] = t["dt"] * scale
    if sign > 0:  # growing states: few enough steps to stay finite
        steps = max(1, min(40, int(60 / largest)))
        t = {k: v if k == "A" else v[:, :steps].contiguous() for k, v in t.items()}
    out = selective_scan(**t)
    expected = selective_scan(**{k: v.double() for k, v in t.items()}, engine="reference")
    seen = expected.abs() < 3e38
    assert seen.any()
    assert rms(out[seen], expected[seen]) < 1e-5


def test_overflow_gives_inf_and_nan_stays_nan():
    t = call(batch=1, length=8)
    t["A"][3, 1] = 1000.0
    t["A"][5, 2] = torch.nan
    out = selective_scan(**t)
    assert not out[0, -1, 3].isfinite()
    assert out[0, :, 5].isnan().all()
    rest = [i for i in range(40) if i not in (3, 5)]
    assert out[0, :, rest].isfinite().all()


def test_slow_decay_over_a_long_sequence():
    t = call(batch=1, length=4096, channels=16, states=16)
    t["dt"] = torch.full_like(t["dt"], 1e-3)
    t["A"] = -torch.arange(1.0, 17).repeat(16, 1)
    out, state = selective_scan(**t, return_final_state=True)
    expected, end = selective_scan(**{k: v.double() for k, v in t.items()}, return_final_state=True, engine="torch")
    assert rms(out, expected) < 1e-5
    assert rms(state, end) < 1e-5


def test_thread_count_changes_rounding_only_and_is_deterministic(two_threads):
    t = call(batch=3, length=300, channels=200)
    assert threads.parts(39, 3 * 300 * 200 * 4) == 2

    def run() -> list[Tensor]:
        leaves = {k: v.clone().requires_grad_() for k, v in t.items()}
        out = selective_scan(**leaves)
        return [out.detach(), *torch.autograd.grad(out.sin().sum(), list(leaves.values()))]

    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    torch.set_num_threads(1)
    for a, b in zip(first, run()):
        assert rms(a, b) < 1e-6


def test_callers_in_several_threads_do_not_need_separate_pools(two_threads):
    t = call(batch=4, length=300, channels=64)
    expected = selective_scan(**t)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: selective_scan(**t), range(16)))
    assert all(torch.equal(result, expected) for result in results)


FORK = """
import os, sys, torch
from seqssm_kernels import selective_scan
torch.set_num_threads(2)
g = torch.Generator().manual_seed(0)
B, C = torch.randn(2, 4, 300, 1, generator=g)
x, dt = torch.rand(2, 4, 300, 64, generator=g)
t = dict(x=x, dt=dt, A=-torch.rand(64, 1, generator=g), B=B, C=C)
expected = selective_scan(**t)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(selective_scan(**t), expected) else 1)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) or not torch.equal(selective_scan(**t), expected))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_scans_with_its_own_threads(tmp_path):
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=120)


def test_offsets_of_more_than_32_bits():
    """Rows 4 GB apart in a tensor of 16 GB whose other pages are never touched."""
    gap = 1 << 30
    try:
        storage = torch.empty(3 * gap + 16)
    except RuntimeError:
        pytest.skip("this system does not overcommit 13 GB of memory")
    far = storage.as_strided((1, 4, 16), (0, gap, 1))
    t = call(batch=1, length=4, channels=16)
    far.copy_(t["x"])
    assert torch.equal(selective_scan(**{**t, "x": far}), selective_scan(**t))


def default_dtype(dtype):
    before = torch.get_default_dtype()

    @contextmanager
    def during():
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    return during()


@pytest.mark.parametrize("engine", ["numba", "torch", "reference"])
@pytest.mark.parametrize(
    "surroundings",
    [lambda: default_dtype(torch.float16), lambda: default_dtype(torch.float64), lambda: torch.device("meta")],
    ids=["half", "double", "meta"],
)
def test_defaults_of_torch_change_nothing(surroundings, engine):
    """As under Lightning's ``16-true``, which makes float16 the default: kernels must not write into shorter rows."""
    t = {name: v.half() if name != "A" else v for name, v in call(length=70).items()}
    state = torch.ones(2, 40, 4)
    weight, window = torch.ones(40, 2), torch.ones(2, 40, 1)
    order = torch.arange(69, -1, -1)[None]

    def run() -> list[Tensor]:
        inputs = [v.detach().clone().requires_grad_() for v in (*t.values(), state, weight, window)]
        x, dt, A, B, C, state_, weight_, window_ = inputs
        u, end = causal_conv1d(x, weight_, state=window_, order=order, return_final_state=True, engine=engine)
        y, last = selective_scan(
            u, dt, A, B, C, initial_state=state_, order=order, return_final_state=True, engine=engine
        )
        loss = y.float().sum() + last.sum() + end.sum()
        return [u, end, y, last, *torch.autograd.grad(loss, inputs)]

    expected = run()
    with surroundings():
        found = run()
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
