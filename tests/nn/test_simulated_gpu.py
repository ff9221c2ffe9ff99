"""On a GPU simulated by `tests/gpu/simulated.py`: layers give the CPU's values, and mixtures of devices are found."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
import simulated

from .mixers import ALL, FORWARD, D, close, make, sequences

MIXTURES = {
    "sum": lambda x: x + torch.ones(3),
    "product": lambda x: x @ torch.ones(3, 3),
    "choice": lambda x: torch.where(x > 0, x, torch.zeros(3)),
    "join": lambda x: torch.cat([x, torch.ones(1, 3)]),
    "values at indices": lambda x: x.index_put((torch.tensor([0]),), torch.ones(1, 3)),
    "indices of the device": lambda x: torch.ones(3)[x[0].long()],
    "number of the device": lambda x: torch.ones(3) * x.sum(),
    "layer": lambda x: torch.nn.Linear(3, 2)(x),
    "generator": lambda x: torch.rand(3, generator=torch.Generator(), device=x.device),
    "NumPy": lambda x: x.numpy(),
    "array": lambda x: np.asarray(x),
}


@pytest.fixture(autouse=True)
def gpu():
    """The device, usable for one test."""
    with simulated.Simulated():
        yield simulated.DEVICE


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_of_devices_is_an_error(gpu, name):
    with pytest.raises((RuntimeError, TypeError), match="sim:0"):
        MIXTURES[name](torch.ones(2, 3).to(gpu))


def test_what_a_gpu_accepts_is_accepted(gpu):
    x = torch.ones(2, 3, device=gpu)
    assert (x * torch.tensor(2.0))[torch.tensor([1])].tolist() == [[2.0] * 3]
    assert x.cpu().numpy().sum() == float(x.sum()) == 6
    assert torch.zeros(2, 3).copy_(x).device.type == "cpu"


def test_random_numbers_of_the_device_have_their_own_state(gpu):
    torch.manual_seed(3)
    first, own = torch.rand(4), torch.rand(4, device=gpu)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(4, device=gpu).cpu(), own.cpu())
    assert torch.equal(torch.rand(4), first)


@pytest.mark.parametrize("name", ALL)
def test_layers_on_the_device(gpu, name):
    """Outputs and gradients of padded sequences; the values of the CPU."""
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    found = {}
    for device in ("cpu", gpu):
        layer, x = make(name).to(device), sequences(2, 7, D).to(device).requires_grad_()
        out = layer(x, mask=mask.to(device))
        out.square().sum().backward()
        found[str(device)] = [out.detach().cpu(), x.grad.cpu(), *(p.grad.cpu() for p in layer.parameters())]
    for one, two in zip(*found.values(), strict=True):
        close(two, one)


@pytest.mark.parametrize("name", FORWARD)
@torch.no_grad()
def test_steps_on_the_device(gpu, name):
    layer, x = make(name).to(gpu), sequences(2, 7, D).to(gpu)
    whole = layer(x)
    first, state = layer(x[:, :4], return_state=True)
    rest = []
    for place in range(4, 7):
        out, state = layer.step(x[:, place], state)
        rest.append(out)
    close(torch.cat([first, torch.stack(rest, 1)], 1).cpu(), whole.cpu())
