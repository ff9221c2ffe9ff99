"""Decoding step by step: the compiled calls against the reference, and calls that bypass them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from seqssm_kernels import causal_conv1d_step, compat, selective_scan_step
from seqssm_kernels.causal_conv1d import numba as conv_engine
from seqssm_kernels.selective_scan import numba as scan_engine
from torch import Tensor

CASES = [
    (shape, states, dtype, options)
    for (shape, states), (dtype, options) in zip(
        itertools.cycle([((1, 512), 16), ((3, 37), 5), ((2, 3, 70), 24), ((2, 1, 16), 128), ((70, 96), 16)]),
        itertools.product((torch.float32, torch.bfloat16, torch.float16), itertools.product((False, True), repeat=3)),
    )
]  # fmt: skip


def doubled(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.double()


def close(found: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    for a, b, tolerance in zip(found, right, (1e-2 if dtype.itemsize == 2 else 1e-5, 1e-5)):
        assert a.shape == b.shape
        assert (a.double() - b).norm() <= tolerance * b.norm()
    assert found[0].dtype == dtype
    assert found[1].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def scan_arguments(shape, states, dtype, D, z, bias):
    def normal(*size: int) -> Tensor:
        return torch.randn(size)

    tensors = [normal(*shape), normal(*shape) * 0.1, -torch.rand(*shape[1:], states) * 9]
    tensors += [normal(*shape[:-1], states), normal(*shape[:-1], states), normal(*shape, states)]
    tensors = [t if i in (2, 5) else t.to(dtype) for i, t in enumerate(tensors)]
    options = {"D": normal(*shape[1:]) if D else None, "dt_bias": normal(*shape[1:]) if bias else None}
    return tensors, {**options, "z": normal(*shape).to(dtype) if z else None}


@pytest.mark.parametrize(("shape", "states", "dtype", "given"), CASES)
def test_scan_step_is_the_reference(shape, states, dtype, given, monkeypatch):
    torch.manual_seed(0)
    tensors, options = scan_arguments(shape, states, dtype, *given)
    before = tensors[-1].clone()
    served: list[tuple | None] = []
    monkeypatch.setattr(
        scan_engine, "run_step", lambda *a, run=scan_engine.run_step: served.append(run(*a)) or served[-1]
    )
    found = selective_scan_step(*tensors, **options, dt_softplus=True)
    assert served[0] is not None
    assert torch.equal(tensors[-1], before)
    wide = {k: doubled(v) for k, v in options.items()}
    close(found, selective_scan_step(*map(doubled, tensors), **wide, dt_softplus=True, engine="reference"), dtype)
    tensors[1], options["dt_bias"], wide["dt_bias"] = tensors[1].abs(), None, None  # states that do not grow
    without = selective_scan_step(*tensors, **options)
    right = selective_scan_step(*map(doubled, tensors), **wide, engine="reference")
    close(without, right, dtype)
    tensors[2] = torch.log(-tensors[2])
    close(selective_scan_step(*tensors, **options, A_is_log=True), right, dtype)
    close(selective_scan_step(*map(doubled, tensors), **wide, A_is_log=True), right, torch.float64)


@pytest.mark.parametrize("taps", [1, 2, 4, 7])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("shape", [(1, 512), (3, 37), (2, 3, 70), (90, 2, 96)])
def test_convolution_step_is_the_reference(shape, activation, taps):
    for dtype, mixed, shared in itertools.product((torch.float32, torch.bfloat16), (True, False), (True, False)):
        torch.manual_seed(0)
        x = torch.randn(shape[0], 1, shape[2]) if shared and len(shape) == 3 else torch.randn(shape)
        of_weights = torch.float32 if mixed else dtype
        tensors = [x.to(dtype), torch.randn(*shape[1:], taps).to(of_weights), torch.randn(shape[1:]).to(of_weights)]
        tensors.append(torch.randn(*shape, taps - 1))
        before = tensors[-1].clone()
        found = causal_conv1d_step(*tensors, activation=activation)
        assert torch.equal(tensors[-1], before)
        right = causal_conv1d_step(*map(doubled, tensors), activation=activation, engine="reference")
        close(found, right, dtype)


def test_slices_of_larger_tensors_are_read_in_place():
    """As in a layer: B and C are columns of one projection, x and z halves of another."""
    torch.manual_seed(0)
    x, z = torch.randn(3, 2 * 40).chunk(2, -1)
    _, B, C = torch.randn(3, 6 + 2 * 16).split([6, 16, 16], -1)
    A, state = -torch.rand(40, 16), torch.randn(3, 40, 16)
    parts = selective_scan_step(x, x.abs(), A, B, C, state, z=z)
    whole = selective_scan_step(*(t.contiguous() for t in (x, x.abs(), A, B, C, state)), z=z.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(parts, whole))


@pytest.mark.parametrize("change", ["transposed state", "strided channels", "shared A", "double"])
def test_unsupported_steps_use_the_general_path(change):
    torch.manual_seed(0)
    tensors, _ = scan_arguments((2, 2, 6), 4, torch.float32, False, False, False)
    if change == "transposed state":
        tensors[5] = tensors[5].transpose(2, 3).contiguous().transpose(2, 3)
    elif change == "strided channels":
        tensors[0] = torch.randn(2, 2, 12)[..., ::2]
    elif change == "shared A":
        tensors[2] = tensors[2][:1]
    else:
        tensors = [t.double() for t in tensors]
    found = selective_scan_step(*tensors)
    right = selective_scan_step(*map(doubled, tensors), engine="reference")
    for a, b in zip(found, right):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


def test_gradients_of_steps():
    torch.manual_seed(0)
    tensors, options = scan_arguments((2, 2, 6), 4, torch.float32, True, True, True)
    leaves = [*tensors, *options.values()]

    def run(dtype: torch.dtype, engine: str | None) -> tuple[Tensor, ...]:
        given = [t.to(dtype).detach().requires_grad_() for t in leaves]
        state, loss = given[5], torch.zeros((), dtype=dtype)
        for _ in range(3):
            named = dict(zip(options, given[6:]))
            out, state = selective_scan_step(*given[:5], state, **named, dt_softplus=True, engine=engine)
            loss = loss + out.sin().sum()
        return torch.autograd.grad(loss + state.cos().sum(), given)

    for a, b in zip(run(torch.float32, None), run(torch.float64, "reference")):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_extreme_values():
    x = torch.ones(1, 3)
    A = torch.tensor([[1000.0], [-1.0], [math.nan]])
    out, state = selective_scan_step(x, x, A, torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 3, 1))
    assert out[0, 0] == math.inf
    assert out[0, 1] == pytest.approx(1 + math.exp(-1))
    assert out[0, 2].isnan()
    assert torch.equal(out.nan_to_num(), state[..., 0].nan_to_num())


def test_large_batches_use_threads_and_agree():
    torch.manual_seed(0)
    before = torch.get_num_threads()
    tensors, options = scan_arguments((64, 512), 16, torch.float32, True, True, True)
    try:
        found = []
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(selective_scan_step(*tensors, **options))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_a_compiled_or_traced_step_keeps_the_operator():
    torch.compiler.reset()
    tensors, _ = scan_arguments((2, 6), 4, torch.float32, False, False, False)
    window, weight = torch.randn(2, 6, 3), torch.randn(6, 4)

    def both(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        x, _ = causal_conv1d_step(x, weight, None, window)
        return selective_scan_step(x, *tensors[1:5], state)

    expected = both(tensors[0], tensors[5])
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    program = torch.export.export(_Module(both), (tensors[0], tensors[5]), strict=False).module()
    for function in (compiled, program):
        with torch.no_grad():
            for a, b in zip(function(tensors[0], tensors[5]), expected):
                torch.testing.assert_close(a, b)
    with torch._subclasses.FakeTensorMode() as mode:
        out, _ = causal_conv1d_step(
            *(mode.from_tensor(t) for t in (tensors[0], weight)), None, mode.from_tensor(window)
        )
        assert out.shape == (2, 6)


class _Module(torch.nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments):
        return self.function(*arguments)


def test_wrong_steps_are_refused():
    x, A, B, state = torch.ones(2, 3), -torch.ones(3, 4), torch.ones(2, 4), torch.zeros(2, 3, 4)
    for change, message in (
        ({"state": torch.zeros(2, 3, 5)}, "initial_state has shape"),
        ({"B": torch.ones(2, 5)}, "B has shape"),
        ({"state": state.double()}, "initial_state must be float32"),
        ({"x": x.int()}, "selective_scan takes"),
        ({"engine": "cuda"}, "unknown engine"),
    ):
        call = {"x": x, "dt": x, "A": A, "B": B, "C": B, "state": state} | change
        with pytest.raises(ValueError, match=message):
            selective_scan_step(**call)
    with pytest.raises(ValueError, match="weight has shape"):
        causal_conv1d_step(x, torch.ones(4, 2), None, torch.zeros(2, 3, 1))
    with pytest.raises(ValueError, match="activation must be"):
        causal_conv1d_step(x, torch.ones(3, 2), None, torch.zeros(2, 3, 1), activation="relu")


def test_empty_batches():
    x = torch.ones(0, 3)
    out, state = selective_scan_step(x, x, -torch.ones(3, 4), torch.ones(0, 4), torch.ones(0, 4), torch.zeros(0, 3, 4))
    assert (out.shape, state.shape) == ((0, 3), (0, 3, 4))
    out, state = causal_conv1d_step(x, torch.ones(3, 2), None, torch.zeros(0, 3, 1))
    assert (out.shape, state.shape) == ((0, 3), (0, 3, 1))
    assert conv_engine.step(x, torch.ones(3, 2), None, torch.zeros(0, 3, 1), False) is None


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_the_default_dtype_changes_nothing(default):
    torch.manual_seed(0)
    tensors, options = scan_arguments((2, 2, 6), 4, torch.float32, True, True, True)
    window, weight = torch.randn(2, 2, 6, 3), torch.randn(2, 6, 4)

    def run() -> list[Tensor]:
        found = [*selective_scan_step(*tensors, **options, dt_softplus=True)]
        found += causal_conv1d_step(tensors[0], weight, None, window)
        state, taken = tensors[5].clone(), window[:, 0].clone()
        found.append(compat.selective_state_update(state, *tensors[:5], **options))
        found.append(compat.causal_conv1d_update(tensors[0][:, 0], taken, weight[0]))
        found.append(compat.causal_conv1d_fn(tensors[0], weight[:, 0], seq_idx=torch.zeros(2, 6)))
        return [*found, state, taken]

    expected, before = run(), torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = run()
    finally:
        torch.set_default_dtype(before)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
