"""Long sequences in pieces: the memory of a piece, the result of the whole.

`in_pieces` and `stream` take any stack of forward layers, `in_chunks` one layer along any tables of its routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from seqssm.nn.routed import RoutedMixer
from seqssm.nn.sizes import require_positive
from seqssm.nn.state import State
from seqssm.orders import RESET


class Continued(Protocol):
    """What goes on from a state: every mixer, `Backbone` and `LanguageModel`, as long as all their layers are forward.

    ``require_forward(what)`` raises ValueError where some layer is not.
    """

    def __call__(self, x: Tensor, state: State | None = None, *, return_state: bool = False) -> Any: ...

    def require_forward(self, what: str) -> None: ...


class Prefilled(Protocol):
    """What prompts are given to: a `LanguageModel`."""

    def prefill(
        self, ids: Tensor, state: State | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, State]: ...

    def require_forward(self, what: str) -> None: ...


def stream(model: Continued, pieces: Iterable[Tensor], state: State | None = None) -> Iterator[tuple[Tensor, State]]:
    """A model over the pieces of one sequence (or of one batch of them), which need not be in memory together.

    Args:
        model: a stack of forward layers, or one layer.
        pieces: chunks, (B, L, D), or ids (B, L) for a `LanguageModel`; any lengths.
        state: None, or what was returned for an earlier part of the same sequences.

    Yields:
        (output of the piece, state behind it). Outputs are those of one pass over the whole sequence. Under
        ``torch.no_grad`` nothing is kept but the state.

    Raises:
        ValueError: the model has a layer that is not forward.
    """
    model.require_forward("a stream of pieces")
    for piece in pieces:
        y, state = model(piece, state, return_state=True)
        yield y, state  # type: ignore[misc]


def in_pieces(
    model: Continued, x: Tensor, piece_size: int, state: State | None = None, *, return_state: bool = False
) -> Any:
    """A model over a long sequence with the memory of a piece beside input and output.

    With gradients, every piece keeps its input and state only and is computed again in the backward pass; random
    numbers (dropout) are then those of the first time.

    Args:
        model: a stack of forward layers, or one layer.
        x: input, (B, L, D), or ids (B, L) for a `LanguageModel`.
        piece_size: positions per piece, at least 1.
        state: None, or what was returned for an earlier part of the same sequences.
        return_state: whether to return the state after the last position too.

    Returns:
        y (B, L, ...), equal to that of one pass, or (y, state).

    Raises:
        ValueError: the model has a layer that is not forward; a piece size below 1.
    """
    require_positive(piece_size=piece_size)
    model.require_forward("a walk in pieces")
    if x.shape[1] <= piece_size:
        return model(x, state, return_state=True) if return_state else model(x, state)
    pieces = x.split(piece_size, dim=1)
    outputs = []
    for piece in pieces:
        if torch.is_grad_enabled():
            y, state = checkpoint(_piece, model, piece, state, use_reentrant=False)  # type: ignore[misc]
        else:
            y, state = _piece(model, piece, state)
        outputs.append(y)
    y = torch.cat(outputs, dim=1)
    return (y, state) if return_state else y


def _piece(model: Continued, x: Tensor, state: State | None) -> tuple[Tensor, State]:
    return model(x, state, return_state=True)  # type: ignore[no-any-return]


def prefill(
    model: Prefilled, ids: Tensor, piece_size: int, state: State | None = None, *, mask: Tensor | None = None
) -> tuple[Tensor, State]:
    """The logits behind prompts and the state of generation, with the memory of a piece beside the prompts.

    Args:
        model: a `LanguageModel` of forward layers.
        ids: token ids, (B, L), at least one position.
        piece_size: positions per piece, at least 1.
        state: None, or what was returned for an earlier part of the same sequences.
        mask: valid positions, (B, L) bool; padding on the left, so that the last chunk has valid positions.

    Returns:
        (logits (B, V), the state).

    Raises:
        ValueError: a layer that is not forward; a piece size below 1; no position.
    """
    require_positive(piece_size=piece_size)
    require_positive(**{"the length of the prompts": ids.shape[1]})
    model.require_forward("a prefill in pieces")
    for start in range(0, ids.shape[1], piece_size):
        own = None if mask is None else mask[:, start : start + piece_size]
        if own is not None and bool(own.all()):
            own = None
        logits, state = model.prefill(ids[:, start : start + piece_size], state, mask=own)
    return logits, state  # type: ignore[return-value]


def in_chunks(layer: RoutedMixer, x: Tensor, tables: Sequence[Tensor], chunk_size: int) -> Tensor:
    """A layer over one long sequence with the memory of a chunk: state and window are carried from chunk to chunk.

    The result is that of the layer. With gradients, each chunk keeps its input and state only and is computed again in
    the backward pass.

    Args:
        layer: the layer; its routes are walked one after the other.
        x: input, (L, D).
        tables: steps of each route, integers (S,): positions in order of visit, -1 and -2 as in an order table.
        chunk_size: steps per chunk, at least 1.

    Returns:
        (L, D).

    Raises:
        ValueError: not as many tables as the layer has routes; a layer that needs the whole sequence: for the
            convolution over its grid, or to find its order; a chunk size below 1.
    """
    require_positive(chunk_size=chunk_size)
    if len(tables) != len(layer.ordering):
        raise ValueError(f"{len(tables)} tables for the {len(layer.ordering)} routes of the layer")
    if layer.local is not None:
        raise ValueError("a layer with a convolution over the grid needs the whole sequence")
    if layer.needs_whole_sequence:
        raise ValueError(f"{type(layer).__name__} finds its order from the whole sequence: it has no chunks")
    # parts of several routes are projected one by one where that is the projection of their sum: half the memory
    at_once = layer.linear_projection or len(tables) == 1
    bias = getattr(layer.out_proj, "bias", None) if at_once else None  # belongs to every position once
    out = x.new_zeros(len(x), layer.d_model if at_once else layer.width)
    for number, table in enumerate(tables):
        state = layer.new_route_state()
        for steps in _chunks(table.to(x.device), chunk_size):
            if steps is None:
                state = layer.new_route_state()
                continue
            given = (layer, number, x[steps].unsqueeze(0), state, at_once, bias)
            y, state = _recomputed(_chunk, *given)
            out.index_add_(0, steps, y.to(out.dtype))
    if at_once:
        return out if bias is None else out + bias
    return torch.cat([_recomputed(layer.project, part) for part in out.split(chunk_size)])


def _recomputed(function: Any, *given: Any) -> Any:
    if torch.is_grad_enabled():
        return checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)
    return function(*given)


def _chunk(
    layer: RoutedMixer, number: int, x: Tensor, state: State, project: bool, bias: Tensor | None
) -> tuple[Tensor, State]:
    """Route `number` over the next steps (1, S, D): (its part of the output without bias, the state)."""
    y, state = layer.mix_route(number, x, state)
    if not project:
        return y[0], state
    y = layer.project(y[0])
    return (y if bias is None else y - bias), state


def _chunks(table: Tensor, chunk_size: int) -> Iterator[Tensor | None]:
    """Yield the visited positions of a route in chunks, int64; None marks a reset of the state."""
    table = table.long()
    resets = (table == RESET).nonzero().flatten().tolist()
    for number, part in enumerate(torch.tensor_split(table, resets)):
        if number:
            yield None
        visited = part[part >= 0]
        yield from visited.split(chunk_size) if len(visited) else ()
