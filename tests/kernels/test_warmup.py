"""Compiling ahead of use."""

from __future__ import annotations

import torch
from seqssm_kernels import warmup
from seqssm_kernels.contract import engines
from seqssm_kernels.cpu import sums


def test_every_kernel_of_the_cpu_engine_is_compiled():
    found = list(warmup.kernels())
    titles = [kernel.title for kernel in found]
    assert len(set(titles)) == len(titles)
    for operation in ("selective_scan", "causal_conv1d", "ssd_scan"):
        compiled = {t.removeprefix(operation + " ") for t in titles if t.startswith(operation + " ")}
        assert compiled == set(engines.module(operation, "numba").kernels())
    scan = engines.module("selective_scan", "numba")
    for kernel in (scan._kernel, sums.adder, engines.module("causal_conv1d", "numba")._kernel):
        for one in found:
            assert one.compile() >= 0
        misses = kernel.cache_info().misses
        for one in found:
            one.compile()
        assert kernel.cache_info().misses == misses


def test_the_layer_that_warms_up_a_gpu():
    warmup.run_layer(torch.device("cpu"), torch.float32, channels=16, d_state=4)
