"""One long sequence in chunks: the memory of a chunk, the result of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from seqssm_kernels import causal_conv1d, selective_scan
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seqssm.nn.mamba import Mamba
from seqssm.orders import RESET


def in_chunks(layer: Mamba, x: Tensor, tables: Sequence[Tensor], chunk_size: int) -> Tensor:
    """A layer over one long sequence with the memory of a chunk: state and window are carried from chunk to chunk.

    The result is that of the layer. With gradients, each chunk keeps its input and state only and is computed again in
    the backward pass.

    Args:
        layer: the layer; its routes are walked one after the other.
        x: (L, D).
        tables: steps of each route, integers (S,): positions in order of visit, -1 and -2 as in an order table.
        chunk_size: steps per chunk.

    Returns:
        (L, D).

    Raises:
        ValueError: as many tables as the layer has routes are needed; a layer with a convolution over the grid.
    """
    if len(tables) != len(layer.ordering):
        raise ValueError(f"{len(tables)} tables for the {len(layer.ordering)} routes of the layer")
    if layer.local is not None:
        raise ValueError("a layer with a convolution over the grid needs the whole sequence")
    out = x.new_zeros(x.shape)
    for number, table in enumerate(tables):
        conv, scan = _zero_states(layer)
        for steps in _chunks(table.to(x.device), chunk_size):
            if steps is None:
                conv, scan = _zero_states(layer)
                continue
            given = (layer, number, x[steps], conv, scan)
            if torch.is_grad_enabled():
                y, conv, scan = checkpoint(_chunk, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                y, conv, scan = _chunk(*given)
            out.index_add_(0, steps, y.to(out.dtype))
    # the bias of out_proj belongs to every position once, whatever the number of routes
    bias = layer.out_proj.bias
    return out if bias is None else out + bias


def _zero_states(layer: Mamba) -> tuple[Tensor, Tensor]:
    """Window (1, E, W - 1) and state (1, E, N) of one route."""
    state = layer.new_state(1)
    return state["conv"][:, 0], state["scan"][:, 0]


def _chunks(table: Tensor, chunk_size: int) -> Iterator[Tensor | None]:
    """The visited positions of a route in chunks, int64; None where the state is reset."""
    table = table.long()
    resets = (table == RESET).nonzero().flatten().tolist()
    for number, part in enumerate(torch.tensor_split(table, resets)):
        if number:
            yield None
        visited = part[part >= 0]
        yield from visited.split(chunk_size) if len(visited) else ()


def _chunk(layer: Mamba, number: int, x: Tensor, conv: Tensor, scan: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Route `number` over the next steps: (its part of the output (S, D) without bias, window, state)."""
    branch = layer.branches[number]
    u, z = _own_channels(layer, number, x)
    weight, bias = branch.conv1d.weight.squeeze(1), branch.conv1d.bias
    u, conv = causal_conv1d(
        u, weight, bias, state=conv, activation="silu", return_final_state=True, engine=layer.engine
    )
    dt, selected = branch.select(u)
    _, B, C = selected.split([branch.settings.dt_rank, branch.settings.d_state, branch.settings.d_state], dim=-1)
    A, D = branch.constants(u.dtype)
    y, scan = selective_scan(
        u, dt, A, B, C, D=D, z=z, dt_softplus=True,
        initial_state=scan, return_final_state=True, engine=layer.engine,
    )  # fmt: skip
    y = layer.out_proj(_merged(layer, number, y[0]))
    if layer.out_proj.bias is not None:
        y = y - layer.out_proj.bias
    return (y * (1 / len(layer.ordering)) if layer.merge == "mean" else y), conv, scan


def _own_channels(layer: Mamba, number: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """The channels and the gate of one route, (1, S, E) each."""
    u, z = layer.channels(x.unsqueeze(0))
    own = number if layer.merge == "concat" else 0
    return u[:, :, own], z[:, :, own]


def _merged(layer: Mamba, number: int, y: Tensor) -> Tensor:
    """What `out_proj` is given of one route's output (S, E)."""
    if layer.merge == "gate":
        return y * layer.route_weight[number].to(y.dtype)
    if layer.merge == "concat":
        width = layer.settings.width
        return torch.nn.functional.pad(y, (number * width, layer.width - (number + 1) * width))
    return y
