"""Reused memory of results: never shared by two tensors, and limited in size."""

from __future__ import annotations

import copy
import ctypes
import io
import itertools
import os
import subprocess
import sys
import threading

import pytest
import torch
from seqssm_kernels import causal_conv1d, empty_cache, selective_scan
from seqssm_kernels.cpu import memory

pytestmark = pytest.mark.skipif(memory._ALONE is None, reason="this PyTorch does not count the users of a storage")
LARGE = (1024, 1024)  # 4 MB


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    pool = memory.Pool(32 << 20)
    monkeypatch.setattr(memory, "_pool", pool)
    return pool


def test_memory_is_returned_with_its_last_tensor(pool):
    tensor = memory.fresh(LARGE)
    address, part = tensor.data_ptr(), tensor[3:]
    del tensor
    assert pool.unused() == 0
    assert memory.fresh(LARGE).data_ptr() != address
    del part
    assert address in {one.data_ptr() for one in [memory.fresh(LARGE) for _ in range(2)]}
    assert pool.unused() == 2 * (4 << 20)


def holders(tensor):
    """Objects other than the tensor itself that may keep a result's memory in use."""
    yield tensor.untyped_storage()
    yield tensor.numpy()
    yield torch.utils.dlpack.to_dlpack(tensor)
    yield memoryview(tensor.numpy())
    yield (tensor.requires_grad_() ** 2).grad_fn


@pytest.mark.parametrize("kind", range(5))
def test_memory_in_use_is_not_reused(kind):
    tensor = memory.fresh(LARGE).fill_(7)
    address = tensor.data_ptr()
    held = next(itertools.islice(holders(tensor), kind, None))
    del tensor
    assert memory.fresh(LARGE).data_ptr() != address
    assert held is not None


def test_zeros_are_zero_in_reused_memory():
    memory.fresh(LARGE).fill_(7)
    assert memory.fresh(LARGE, zero=True).count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shape_dtype_and_size(dtype):
    tensor = memory.fresh((3, 700, 1001), dtype)
    assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == ((3, 700, 1001), dtype, True)
    assert tensor.untyped_storage().nbytes() >= tensor.nbytes
    tensor.fill_(2)
    assert torch.equal(tensor.clone(), torch.full((3, 700, 1001), 2, dtype=dtype))


def test_no_more_than_the_limit_is_kept(pool):
    tensors = [memory.fresh((1024 + i, 1024)) for i in range(20)]
    assert len({t.data_ptr() for t in tensors}) == 20
    tensors.clear()
    assert 16 << 20 < pool.unused() <= pool.limit
    before = pool.unused()
    memory.fresh((10 * 1024, 1024))  # larger than the limit: evicts nothing
    assert pool.unused() == before


def test_the_cache_can_be_emptied(pool, monkeypatch):
    kept, _ = memory.fresh(LARGE).fill_(7), memory.fresh(LARGE)
    del _
    assert pool.unused() > 0
    empty_cache()
    assert pool.remembered() == 0
    assert bool((kept == 7).all())


def test_results_can_be_resized(pool):
    for _ in range(2):  # in new memory and in reused memory
        out = causal_conv1d(torch.ones(1, 4096, 64), torch.ones(64, 2))
        assert out.resize_(3, 4096, 64).shape == (3, 4096, 64)
        assert bool((out[0, 1:] == 2).all())
    assert torch.add(out, 1, out=_scanned().resize_(0)).shape == out.shape
    del out
    assert [pool.take(k * 4 * 4096 * 64) for k in (1, 3)] == [None, None], "resized memory is not reused"


def test_a_saved_result_contains_no_earlier_one(pool):
    memory.fresh((1100, 1024)).fill_(7)
    tensor = memory.fresh(LARGE)
    rest = torch.empty(0).set_(tensor.untyped_storage(), 0, (tensor.untyped_storage().nbytes() // 4,))[1024 * 1024 :]
    assert len(rest) == 76 * 1024
    assert not rest.any()


def test_much_too_large_memory_is_not_reused(pool):
    address = memory.fresh(LARGE).data_ptr()
    small = memory.fresh((512, 1024))
    assert small.data_ptr() != address


def test_threads_never_share(pool):
    wrong = []

    def work(number: int) -> None:
        for _ in range(60):
            one, other = memory.fresh(LARGE), memory.fresh((900, 1024))
            one.fill_(number), other.fill_(-number)
            if not (bool((one == number).all()) and bool((other == -number).all())):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 0 < pool.remembered() <= pool.limit


def _scanned() -> torch.Tensor:
    x = torch.linspace(-1, 1, 4096 * 64).view(1, 4096, 64)
    return selective_scan(x, x.abs(), -torch.ones(64, 4), torch.ones(1, 4096, 4), torch.ones(1, 4096, 4))


def test_results_are_ordinary_tensors():
    for leaf in (torch.randn(1, 4096, 64).requires_grad_(), torch.randn(1, 4096, 1, 64).requires_grad_()):
        small, large = (
            causal_conv1d(part, torch.ones(*part.shape[2:], 4)) for part in (leaf[:, :16], leaf)
        )  # in memory of the C library, and of the pool
        for out in (small, large):
            assert out.untyped_storage().nbytes() == out.nbytes
            (grad,) = torch.autograd.grad(out.mul_(2).sum(), leaf)
            assert grad[0, 0].flatten()[0] == 8
        saved = io.BytesIO()
        torch.save(large.detach(), saved)
        saved.seek(0)
        assert torch.equal(torch.load(saved, weights_only=True), copy.deepcopy(large.detach()))


def test_a_result_may_be_shared_with_other_processes(pool):
    out = _scanned()
    expected = out.clone()
    assert torch.equal(out.share_memory_(), expected)
    del out
    assert pool.unused() == 0  # its memory stays shared


def test_a_forked_child_writes_into_a_copy():
    tensor = memory.fresh(LARGE)
    tensor.zero_()
    child = os.fork()
    if child == 0:
        ctypes.memset(tensor.data_ptr(), 1, 100)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert tensor.count_nonzero() == 0


def test_results_outlive_the_interpreter_quietly():
    code = (
        "import torch; from seqssm_kernels.cpu import memory; import builtins;"
        "builtins.kept = [memory.fresh((1024, 1024)) for _ in range(3)]; memory.fresh((1024, 1024)).requires_grad_()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
