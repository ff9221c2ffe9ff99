"""The operators on an NVIDIA GPU, with compilation, graphs, autocast and DDP. Run by `make gpu-check`."""

from __future__ import annotations

import os
import random

import pytest
import torch
from seqssm_kernels import causal_conv1d, causal_conv1d_step, selective_scan, selective_scan_step
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
LONG = (1, 1048576, 4096, 16)


class Mixer(nn.Module):
    """Convolution, activation and scan, as a Mamba layer joins them."""

    def __init__(self, channels: int = 48, states: int = 16) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(channels, 4, generator=g) / 2)
        self.A = nn.Parameter(-torch.rand(channels, states, generator=g) - 0.1)
        self.select = nn.Linear(channels, channels + 2 * states)
        with torch.no_grad():
            self.select.weight.copy_(torch.randn(self.select.weight.shape, generator=g) / channels**0.5)
            self.select.bias.zero_()
        self.sizes = [channels, states, states]

    def forward(self, x: Tensor) -> Tensor:
        u = causal_conv1d(x, self.weight.to(x.dtype), activation="silu")
        dt, B, C = self.select(u).split(self.sizes, dim=-1)
        dt, B, C = (t.to(u.dtype) for t in (dt, B, C))
        return selective_scan(u, dt, self.A, B, C, dt_softplus=True)


@pytest.fixture
def mixer():
    return Mixer().cuda()


@pytest.fixture
def x():
    return torch.randn(2, 300, 48, generator=torch.Generator().manual_seed(1)).cuda()


def gradients(run, module, x):
    out = run(x)
    return out, torch.autograd.grad(out.float().square().mean(), list(module.parameters()))


def to_gpu(call):
    call.tensors = {k: v if v is None else v.cuda() for k, v in call.tensors.items()}
    return call


def test_default_engine_is_triton(tools):
    call = to_gpu(tools.scan(2, 100, 1, 40))
    tools.assert_equal(call.run(None), call.run("triton"))


@pytest.mark.parametrize("shape", [(2, 4096, 1, 64), (300, 96, 1, 64), (1, 9000, 2, 100), (1, 123, 3, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_the_chunked_engine_in_float64(tools, shape, dtype):
    call = to_gpu(tools.scan(*shape, 16, dtype=dtype))
    tools.assert_close(call.run("triton"), call.run("torch", double=True), tools.tolerance[dtype])


def test_slow_decay(tools):
    """The rounding of the approximate exponential compounds over 4096 steps."""
    call = to_gpu(tools.scan(2, 4096, 1, 64, 16, dt=(1e-3, 1.001e-3)))
    tools.assert_close(call.run("triton"), call.run("torch", double=True), 1e-4)


def test_thousand_random_shapes(tools):
    rng = random.Random(0)
    for seed in range(1000):
        batch, length, routes, channels = (rng.randint(1, n) for n in (4, 70, 2, 150))
        kind = rng.choice(("none", "resets"))
        packed = kind == "none" and rng.random() < 0.3
        batch = 1 if packed else batch
        order = tools.order(kind, batch, length, routes, seed)
        cu = tools.cu_seqlens(length, 3, seed) if packed else None
        call = tools.scan(batch, length, routes, channels, 4, order=order, cu_seqlens=cu, seed=seed)
        value = {k: v.cpu() for k, v in to_gpu(call).run("triton").items()}
        call.tensors = {k: v if v is None else v.cpu() for k, v in call.tensors.items()}
        tools.assert_close(value, call.run("reference", double=True), 1e-5)


def test_same_bits(tools):
    call = to_gpu(tools.scan(1, 20000, 2, 100, 16, shared=("x", "z")))
    tools.assert_equal(call.run("triton"), call.run("triton"))


def test_compiled(mixer, x):
    plain, grads = gradients(mixer, mixer, x)
    compiled, compiled_grads = gradients(torch.compile(mixer, fullgraph=True), mixer, x)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled_grads, grads, rtol=1e-3, atol=1e-5)


def test_step_in_a_cuda_graph(tools):
    call = to_gpu(tools.scan(4, 1, 1, 64, 16))
    names = ("x", "dt", "B", "C", "z")
    inputs = {k: v[:, 0] if k in names else v for k, v in call.tensors.items() if v is not None}
    state = inputs.pop("initial_state")
    conv = to_gpu(tools.conv(4, 1, 1, 64))
    weight, bias, window = (conv.tensors[k] for k in ("weight", "bias", "state"))

    def step() -> tuple[Tensor, ...]:
        u, next_window = causal_conv1d_step(inputs["x"], weight, bias, window)
        out, next_state = selective_scan_step(**(inputs | {"x": u}), state=state, **call.options)
        return out, next_state, next_window

    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for t in (inputs["x"], state, window):
            t.copy_(torch.randn_like(t))
        graph.replay()
        torch.cuda.synchronize()
        for value, expected in zip(captured, step()):
            assert torch.equal(value, expected)


def test_autocast(mixer, x):
    plain = mixer(x)
    with torch.autocast("cuda", torch.bfloat16):
        out, grads = gradients(mixer, mixer, x)
    assert (out - plain).square().mean().sqrt() < 2e-2 * plain.square().mean().sqrt()
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in grads)


def test_activation_checkpointing(mixer, x):
    _, plain = gradients(mixer, mixer, x)
    _, again = gradients(lambda t: checkpoint(mixer, t, use_reentrant=False), mixer, x)
    for a, b in zip(plain, again):
        assert torch.equal(a, b)


def test_ddp(mixer, x, tmp_path):
    _, plain = gradients(mixer, mixer, x)
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/ddp", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(mixer, device_ids=[0])
        wrapped(x).float().square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, grad in zip(mixer.parameters(), plain):
        torch.testing.assert_close(parameter.grad, grad)


def test_another_device_than_the_current_one(tools):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    call = tools.scan(2, 100, 1, 40)
    call.tensors = {k: v if v is None else v.to("cuda:1") for k, v in call.tensors.items()}
    tools.assert_close(call.run("triton"), call.run("torch", double=True), 1e-5)


def test_host_never_waits(tools):
    call = to_gpu(tools.scan(1, 3000, 2, 64, order=tools.order("resets", 1, 3000, 2)))
    call.run("triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensors = {k: v for k, v in call.tensors.items() if v is not None}
        selective_scan(**tensors, **call.options)
        causal_conv1d(call.tensors["x"], torch.ones(2, 64, 4, device="cuda"), order=call.tensors["order"])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.mem_get_info()[1] < 76 * 2**30, reason="needs a GPU of 76 GiB or more"
)
@pytest.mark.skipif(os.environ.get("SEQSSM_LONG") == "0", reason="SEQSSM_LONG=0")
def test_sequence_beyond_32_bit_offsets():
    """A gradient that enters through 64 channels, including the last one, equals that of these channels alone."""
    batch, length, channels, states = LONG
    g = torch.Generator("cuda").manual_seed(0)
    half = {"dtype": torch.bfloat16, "device": "cuda"}
    x = torch.empty(batch, length, channels, **half).normal_(generator=g).requires_grad_()
    dt = torch.empty(batch, length, channels, **half).uniform_(0.001, 0.1, generator=g).requires_grad_()
    A = -torch.arange(1.0, states + 1, device="cuda").repeat(channels, 1)
    B, C = (torch.empty(batch, length, states, **half).normal_(generator=g).requires_grad_() for _ in range(2))
    which = slice(channels - 64, channels)
    out = selective_scan(x, dt, A, B, C)
    weight = torch.zeros_like(out)
    weight[..., which].normal_(generator=g)
    found = torch.autograd.grad(out, (x, dt, B, C), weight)
    assert (found[0][..., : which.start] == 0).all()
    out_part, weight_part = out[..., which].detach().clone(), weight[..., which].clone()
    found = [found[0][..., which].clone(), found[1][..., which].clone(), found[2], found[3]]
    leaves = [t[..., which].detach().clone().requires_grad_() for t in (x, dt)]
    del out, weight, x, dt
    part = selective_scan(*leaves, A[which], B, C)
    expected = torch.autograd.grad(part, (*leaves, B, C), weight_part)
    for value, reference in zip((out_part, *found), (part, *expected)):
        difference = (value.float() - reference.float()).square().mean().sqrt()
        assert difference < 1e-2 * reference.float().square().mean().sqrt()
