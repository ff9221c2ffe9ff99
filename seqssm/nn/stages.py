"""Sums of networks: the heads' outputs of earlier networks are added to those of the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def heads_of(network: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Return the modules of a network that compute its outputs.

    Args:
        network: the network.
        names: names of heads; those that the network does not have are skipped.

    Raises:
        ValueError: it has none of them.
    """
    own = dict(network.named_modules())
    found = [own[name] for name in names if name in own]
    if not found:
        raise ValueError(f"the network has no module {' or '.join(names)}")
    return found


def owner(network: nn.Module, names: Sequence[str]) -> nn.Module:
    """Return the part of a network that computes its outputs: the whole, or that whose head it is.

    The network of a blend, for instance, is trained alone and has the head ``network.head``.

    Args:
        network: the network.
        names: names of heads, as for `heads_of`.
    """
    own = dict(network.named_modules())
    return next((own[name.rpartition(".")[0]] for name in names if name in own), network)


@contextmanager
def outputs_of(heads: Sequence[nn.Module], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the outputs of modules by a function of them.

    Args:
        heads: the modules.
        change: called with each output, in the order of the calls.
    """
    handles = [head.register_forward_hook(lambda _, __, output: change(output)) for head in heads]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Sum:
    """Adds the outputs of the heads of `stages` to those of `network`, whenever the `owner` of its heads is called.

    The stages are called with the same arguments, without gradients; the k-th call of a head gets the sum of the k-th
    outputs of the stages' heads.

    Args:
        network: the last network, changed by hooks.
        stages: the earlier ones, in eval mode.
        names: names of the heads.
        alone: fraction of the records in training, chosen at random, whose outputs are those of `network` alone.
    """

    def __init__(
        self, network: nn.Module, stages: Sequence[nn.Module], names: Sequence[str], alone: float = 0.0
    ) -> None:
        self.alone = alone
        self.network, self.stages, self.names = network, list(stages), tuple(names)
        self.sums: list[Tensor] = []
        self.calls = 0
        self.handles: list[Any] = []
        if self.stages:  # otherwise the network is the whole sum
            part = owner(network, names)
            self.handles.append(part.register_forward_pre_hook(self._before, with_kwargs=True))
            self.handles += [head.register_forward_hook(self._add) for head in heads_of(network, names)]

    @torch.no_grad()
    def _before(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        device = next(network.parameters()).device
        self.sums, self.calls = [], 0
        for stage in self.stages:
            count = 0

            def collect(output: Tensor) -> Tensor:
                nonlocal count
                if count == len(self.sums):
                    self.sums.append(output)
                else:
                    self.sums[count] = self.sums[count] + output
                count += 1
                return output

            with outputs_of(heads_of(stage.to(device), self.names), collect):
                owner(stage, self.names)(*args, **kwargs)

    def _add(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        if self.calls >= len(self.sums):
            raise RuntimeError("a head was called outside of its network, or more often than those of the stages")
        earlier = self.sums[self.calls].to(output.dtype)
        self.calls += 1
        if self.alone and self.network.training:
            shape = (len(output), *(1 for _ in output.shape[1:]))
            earlier = earlier * (torch.rand(shape, device=output.device) >= self.alone)
        return output + earlier

    def remove(self) -> None:
        """Leave the network as it was."""
        for handle in self.handles:
            handle.remove()


def attach(network: nn.Module, stages: Sequence[nn.Module], names: Sequence[str], alone: float = 0.0) -> Sum:
    """Let a network return the sum of its outputs and those of earlier networks.

    Args:
        network: the last network; its parameters and checkpoints stay its own.
        stages: the earlier networks.
        names: names of the modules that compute outputs, such as ``("head",)``.
        alone: fraction of the records in training without the earlier networks.

    Returns:
        The hooks, to be removed.

    Raises:
        ValueError: a network has no such module.
    """
    for one in (*stages, network):
        heads_of(one, names)
    return Sum(network, stages, names, alone)
