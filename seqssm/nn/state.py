"""What a mixer carries from one piece of a sequence to the next: named tensors whose first axis is the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class State(dict[str, Any]):
    """A dict of tensors, or of further `State`s: one entry a cache, one sub-state a layer of a stack.

    The same object holds what every kind of mixer needs: ``conv`` and ``scan`` of a `seqssm.nn.mamba.Mamba`, keys and
    values of attention. Mixers never write into a state that they were given: an earlier one can be gone back to.

    Every tensor has the batch (packed: the sequences) as its first axis. All methods return a new `State`.
    """

    def map(self, function: Callable[[Tensor], Tensor]) -> State:
        """`function` of every tensor."""
        return State({k: v.map(function) if isinstance(v, State) else function(v) for k, v in self.items()})

    def detach(self) -> State:
        """Cut from the graph: for training in pieces with truncated gradients."""
        return self.map(Tensor.detach)

    def clone(self) -> State:
        """A copy with memory of its own."""
        return self.map(Tensor.clone)

    def to(self, device: torch.device | str) -> State:
        """On another device. Precision stays: a scan's state is float32 whatever the weights are."""
        return self.map(lambda tensor: tensor.to(device))

    def reorder(self, index: Tensor) -> State:
        """The samples `index` (integers, (B')) in that order, as beam search and dropping finished samples need."""
        return self.map(lambda tensor: tensor.index_select(0, index.to(tensor.device)))


pytree.register_pytree_node(  # what torch.compile and torch.export ask for to see the tensors inside
    State,
    lambda state: (list(state.values()), list(state)),
    lambda values, names: State(zip(names, values, strict=True)),
    serialized_type_name="seqssm.state.State",
)
