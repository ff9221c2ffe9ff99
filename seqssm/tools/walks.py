"""What the layers with a state read while a network predicts: stretches of positions in the order of visit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from seqssm.nn.memory import Memory
from seqssm.nn.padding import Rows
from seqssm.nn.routed import RoutedMixer
from seqssm.orders import RESET, format_orders

LONGEST = 129  # positions of a stretch: distances up to 128
SAMPLES = 1024  # stretches per layer and route
PER_WALK = 64  # of one sequence

Key = tuple[int, int, int]


@dataclass
class Layer:
    """A layer with a state, along one of its routes.

    Attributes:
        name: name of the module in the network.
        index: index of the layer in the network, from 0.
        mixer: the layer.
        route: index of the route.
        direction: order of the route, such as ``forward`` or ``reverse``.
        stretches: consecutive positions in the order of visit, (steps, D) each, up to `LONGEST`.
        keys: (call, sequence, last position) of each stretch, to find the same place in other layers.
        ages: for a memory, ages of the summaries at the end of the sequences, in positions.
    """

    name: str
    index: int
    mixer: RoutedMixer | Memory
    route: int
    direction: str
    stretches: list[Tensor] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    ages: list[float] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """Name of the layer's class."""
        return type(self.mixer).__name__


def layers(network: nn.Module) -> list[Layer]:
    """List the layers with a state: one entry per route.

    Args:
        network: the network.
    """
    found = []
    mixers = [(name, one) for name, one in network.named_modules() if isinstance(one, RoutedMixer | Memory)]
    for index, (name, mixer) in enumerate(mixers):
        orders = ["forward"] if isinstance(mixer, Memory) else [format_orders((one,)) for one in mixer.ordering]
        found += [Layer(name, index, mixer, route, order) for route, order in enumerate(orders)]
    return found


def record(found: list[Layer], run: Callable[[], Any]) -> None:
    """Run a network, and collect what its layers read.

    Args:
        found: the layers, which are extended.
        run: runs the network.
    """
    handles = []
    for mixer in dict.fromkeys(one.mixer for one in found):
        own = [one for one in found if one.mixer is mixer]
        handles.append(mixer.register_forward_pre_hook(_hook(mixer, own), with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()


def _hook(mixer: RoutedMixer | Memory, own: list[Layer]) -> Callable[..., None]:
    calls = 0

    def hook(_: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        if len(own[0].stretches) >= SAMPLES:
            return
        x = (inputs[0] if inputs else given["x"]).detach()
        sequences = _memory_walks(x, given) if isinstance(mixer, Memory) else _walks(mixer, x, given)
        for number, (route, steps, positions) in enumerate(sequences):
            _sample(own[route], steps, positions, (calls, number))

    return hook


def _walks(mixer: RoutedMixer, x: Tensor, given: dict[str, Any]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (route, values in the order of visit (steps, D), positions (steps,)) of each sequence and route."""
    names = ("mask", "cu_seqlens", "geometry", "order")
    table, ends = mixer._walk(x, *(given.get(name) for name in names))
    routes = len(mixer.ordering)
    if table is None:
        table = torch.arange(x.shape[1], device=x.device).expand(routes, -1)
    table = table if table.ndim == 3 else table.unsqueeze(0)
    table = table.expand(len(x) if ends is None else 1, routes, -1).long()
    cuts = [] if ends is None else ends.tolist()[1:]
    for sample, rows in enumerate(table):
        for route, row in enumerate(rows):
            parts = [row] if ends is None else list(row.tensor_split(cuts))[:-1]
            for part in parts:
                for piece in part.tensor_split((part == RESET).nonzero().flatten().tolist()):
                    visited = piece[piece >= 0]
                    if len(visited):
                        yield route, x[sample, visited], visited


def _memory_walks(x: Tensor, given: dict[str, Any]) -> Iterator[tuple[int, Tensor, Tensor]]:
    rows = Rows(x, given.get("mask"), given.get("cu_seqlens"))
    split = rows.split(x)
    lengths = [x.shape[1]] * len(split) if rows.lengths is None else rows.lengths.tolist()
    for values, length in zip(split, lengths, strict=True):
        if length:
            yield 0, values[:length], torch.arange(length)


@torch.no_grad()
def _sample(layer: Layer, steps: Tensor, positions: Tensor, where: tuple[int, int]) -> None:
    """Keep some stretches of a sequence, whose ends are the same for all layers that see the same positions."""
    count = len(steps)
    if isinstance(layer.mixer, Memory):
        layer.ages += (count - 1 - layer.mixer.held(steps)).tolist()
    generator = torch.Generator().manual_seed(where[0] * 1_000_003 + where[1])
    first = min(LONGEST - 1, count // 2)
    ends = torch.randperm(count - first, generator=generator)[:PER_WALK].sort().values + first
    for end in ends.tolist()[: SAMPLES - len(layer.stretches)]:
        layer.stretches.append(steps[max(0, end + 1 - LONGEST) : end + 1].clone())
        layer.keys.append((*where, int(positions[end])))
