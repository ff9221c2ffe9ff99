"""What a mixer carries from one piece of a sequence to the next: named tensors whose first axis is the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class State(dict[str, Any]):
    """A dict of tensors, or of further `State`s: one entry per cache, one sub-state per layer of a stack.

    The same object holds what every kind of mixer needs: ``conv`` and ``scan`` of a `seqssm.nn.mamba.Mamba`, keys and
    values of attention. Mixers never write into a state that they were given, so an earlier one stays valid.

    Every tensor has the batch (packed: the sequences) as its first axis. All methods return a new `State`.
    """

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """The state of `function` applied to every tensor."""
        return State({k: v.map(function) if isinstance(v, State) else function(v) for k, v in self.items()})

    def detach(self) -> State:
        """Cut from the graph: for training in pieces with truncated gradients."""
        return self.map(Tensor.detach)

    def clone(self) -> State:
        """A copy with its own memory."""
        return self.map(Tensor.clone)

    def to(self, device: torch.device | str) -> State:
        """On another device. The dtype stays: a scan's state is float32 whatever the weights are."""
        return self.map(lambda tensor: tensor.to(device))

    def reorder(self, index: Tensor) -> State:
        """The samples `index` (integers (B')) in that order, as beam search and dropping finished samples need."""
        return self.map(lambda tensor: tensor.index_select(0, index.to(tensor.device)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a call with a plain dict: ``weights_only`` loading refuses the items of a subclass."""
        return State, (dict(self),)


def _flatten(state: State) -> tuple[list[Any], list[str]]:
    return list(state.values()), list(state)


def _flatten_with_keys(state: State) -> tuple[list[tuple[pytree.KeyEntry, Any]], list[str]]:
    return [(pytree.MappingKey(name), value) for name, value in state.items()], list(state)


def _unflatten(values: Iterable[Any], names: list[str]) -> State:
    return State(zip(names, values, strict=True))


pytree.register_pytree_node(  # what torch.compile and torch.export ask for to see the tensors inside
    State,
    _flatten,
    _unflatten,
    serialized_type_name="seqssm.state.State",  # exported programs store the name: it stays
    flatten_with_keys_fn=_flatten_with_keys,
)
torch.serialization.add_safe_globals([State])  # files with states load with weights_only
