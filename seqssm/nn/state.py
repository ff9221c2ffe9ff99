"""State that a mixer carries from one chunk of a sequence to the next: named tensors with the batch as first axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class State(dict[str, Any]):
    """A dict of tensors or nested `State`s: one entry per cache, one sub-state per layer of a stack.

    It serves all kinds of mixers: ``conv`` and ``scan`` of a `seqssm.nn.mamba.Mamba`, keys and values of attention.
    Mixers never modify a state that is passed to them, so earlier states remain valid.

    The first axis of each tensor is the batch (packed: the sequences). All methods return a new `State`.
    """

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """Apply `function` to all tensors."""
        return State({k: v.map(function) if isinstance(v, State) else function(v) for k, v in self.items()})

    def detach(self) -> State:
        """Detach all tensors from the graph, for truncated backpropagation."""
        return self.map(Tensor.detach)

    def clone(self) -> State:
        """Copy all tensors."""
        return self.map(Tensor.clone)

    def to(self, device: torch.device | str) -> State:
        """Move to another device. The state of a scan remains float32 for all dtypes of the weights."""
        return self.map(lambda tensor: tensor.to(device))

    def reorder(self, index: Tensor) -> State:
        """Select the samples `index` (integers (B')) in this order, for beam search or dropping finished samples."""
        return self.map(lambda tensor: tensor.index_select(0, index.to(tensor.device)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a call with a plain dict: ``weights_only`` loading rejects the items of a subclass."""
        return State, (dict(self),)


def _flatten(state: State) -> tuple[list[Any], list[str]]:
    return list(state.values()), list(state)


def _flatten_with_keys(state: State) -> tuple[list[tuple[pytree.KeyEntry, Any]], list[str]]:
    return [(pytree.MappingKey(name), value) for name, value in state.items()], list(state)


def _unflatten(values: Iterable[Any], names: list[str]) -> State:
    return State(zip(names, values, strict=True))


pytree.register_pytree_node(  # exposes the tensors to torch.compile and torch.export
    State,
    _flatten,
    _unflatten,
    serialized_type_name="seqssm.state.State",  # stored in exported programs; must not change
    flatten_with_keys_fn=_flatten_with_keys,
)
torch.serialization.add_safe_globals([State])  # for loading files with states under weights_only


def like_of(module: nn.Module) -> Tensor:
    """Return a tensor with the device of a module and the dtype of its activations, for a new state.

    Layers with integer weights have no parameters and compute in float32.

    Args:
        module: the module.
    """
    floats = (parameter for parameter in module.parameters() if parameter.is_floating_point())
    found = next(floats, None)
    return torch.empty(0, device=next(module.buffers()).device) if found is None else found
