"""States between calls in 8 bits: their scales from calibration data (Quamba2, arXiv 2503.22879), and their error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seqssm.compress.sources import Source
from seqssm.errors import InputError
from seqssm.nn import quantized
from seqssm.nn.attention import Attention
from seqssm.nn.mamba3 import Mamba3
from seqssm.nn.memory import Memory
from seqssm.nn.projections import carried_scans
from seqssm.nn.rounded import IntegerState, StateFormat

LEVELS = 127  # steps of a symmetric 8-bit scale
PIECES = 8  # of a sequence: the state is measured, and rounded for the error, after each
GROUPS = 16  # largest number of groups of channels


def require_states(network: nn.Module, what: str = "the model") -> None:
    """Raise InputError if a network carries no state of a scan between calls that can be kept in 8 bits.

    Args:
        network: the network.
        what: name of the network, for the message.
    """
    if not getattr(network, "carries_state", False):
        raise InputError(
            f"{what} reads whole records and carries no state between calls: --state int8 has nothing to do"
        )
    if not carried_scans(network):
        raise InputError(f"{what} has no forward layers of Mamba or Mamba-2: --state int8 has nothing to do")


@contextmanager
def in_pieces(mixers: Mapping[str, Any], seen: Callable[[str, Tensor], None] | None = None) -> Iterator[None]:
    """Let layers read each sequence in `PIECES` pieces, from state to state, within the context.

    Packed sequences are read at once, and only their last state is seen.

    Args:
        mixers: forward layers by name.
        seen: called with the name and the state of the scan in float after each piece.
    """

    def wrapped(name: str, mixer: Any) -> Callable[..., Any]:
        original = mixer.forward

        def forward(x: Tensor, state: Any = None, *, mask: Any = None, return_state: bool = False, **more: Any) -> Any:
            whole = any(value is not None for value in more.values())
            size = max(1, x.shape[1] if whole else -(-x.shape[1] // PIECES))
            parts = []
            for start in range(0, max(1, x.shape[1]), size):
                own = None if mask is None else mask[:, start : start + size]
                y, state = original(x[:, start : start + size], state, mask=own, return_state=True, **more)
                parts.append(y)
                if seen is not None:
                    seen(name, mixer.float_state(state)["scan"])
            y = torch.cat(parts, dim=1)
            return (y, state) if return_state else y

        return forward

    for name, mixer in mixers.items():
        mixer.forward = wrapped(name, mixer)
    try:
        yield
    finally:
        for mixer in mixers.values():
            del mixer.forward


@dataclass(frozen=True)
class Error:
    """Relative squared errors of the outputs if every sequence is read in `PIECES` pieces.

    Attributes:
        rounded: with states in 8 bits.
        floats: with states in float.
    """

    rounded: float
    floats: float


def keep_states(source: Source, grouped: bool, error: Callable[[Tensor], float]) -> Error:
    """Let all forward layers of Mamba and Mamba-2 keep their state in 8 bits between calls.

    Scales are the largest absolute values of the states on the calibration data. Layers that are not called there keep
    float states.

    Args:
        source: the network, changed in place, and its calibration data.
        grouped: whether channels are grouped by the size of their states; otherwise all share the scales.
        error: error of outputs.
    """
    mixers = carried_scans(source.network)
    largest: dict[str, Tensor] = {}

    def see(name: str, state: Tensor) -> None:
        if len(state):
            channels, states = mixers[name].state_size
            found = state.detach().abs().reshape(-1, channels, states).amax(0).float().cpu()
            largest[name] = torch.maximum(largest.get(name, found), found)

    with in_pieces(mixers, see):
        floats = error(source.outputs())
    for name, found in largest.items():
        prefix = f"{name}." if name else ""
        quantized.replace(source.network, f"{prefix}scan_state", state_layer(found, grouped))
    with in_pieces(mixers):
        return Error(error(source.outputs()), floats)


def state_layer(largest: Tensor, grouped: bool) -> IntegerState:
    """Make the layer that keeps a state in 8 bits.

    Channels whose largest values differ by less than a factor of 2 form a group, so that large states of a few channels
    do not take the resolution from the others. A group has one scale per state.

    Args:
        largest: largest absolute values, (channels, states).
        grouped: whether to group channels; otherwise all share the scales.
    """
    top = largest.amax(1)
    group = torch.zeros(len(top), dtype=torch.long)
    if grouped:
        ratio = torch.where(top > 0, top.max() / top.clamp(min=1e-30), torch.inf)
        group = ratio.log2().clamp(0, GROUPS - 1).floor().long()
        group = group.unique(return_inverse=True)[1]
    count = int(group.max()) + 1
    layer = IntegerState(StateFormat(len(largest), largest.shape[1], count))
    scale = torch.stack([largest[group == number].amax(0) for number in range(count)])
    layer.scale.copy_(torch.where(scale > 0, scale, top.max().clamp(min=1e-30)) / LEVELS)
    layer.group.copy_(group)
    return layer.eval()


def kept_in_float(network: nn.Module) -> str:
    """Describe what else a record carries between calls, which stays in float.

    Args:
        network: the network.
    """
    parts = ["windows of convolutions"]
    for kind, title in ((Mamba3, "states of Mamba-3"), (Memory, "memories"), (Attention, "caches of attention")):
        count = sum(isinstance(one, kind) and one.only_forward for one in network.modules())
        parts += [f"{title} ({count} layers)"] if count else []
    return "in float between calls: " + ", ".join(parts)
