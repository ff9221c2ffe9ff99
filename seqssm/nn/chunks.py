"""Processing long sequences in chunks, with the memory of one chunk and the result of one pass.

`in_pieces` and `stream` support any stack of forward layers, `in_chunks` one layer with any tables of its routes.
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
    """Model that can continue from a state: a mixer, `Backbone` or `LanguageModel` with forward layers only.

    ``require_forward(what)`` raises ValueError if a layer cannot.
    """

    def __call__(self, x: Tensor, state: State | None = None, *, return_state: bool = False) -> Any: ...

    def require_forward(self, what: str) -> None: ...


class Prefilled(Protocol):
    """Model that can read prompts: a `LanguageModel`."""

    def prefill(
        self, ids: Tensor, state: State | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, State]: ...

    def require_forward(self, what: str) -> None: ...


def stream(model: Continued, pieces: Iterable[Tensor], state: State | None = None) -> Iterator[tuple[Tensor, State]]:
    """Apply a model to the chunks of a sequence (or a batch), which need not be in memory at the same time.

    Args:
        model: stack of forward layers, or a single layer.
        pieces: chunks of any lengths, (B, L, D), or ids (B, L) for a `LanguageModel`.
        state: state returned for the preceding chunks, or None.

    Yields:
        (output of the chunk, state after it). The outputs are equal to those of one pass over the whole sequence. Under
        ``torch.no_grad`` only the state is kept.

    Raises:
        ValueError: a layer of the model is not forward.
    """
    model.require_forward("a stream of pieces")
    for piece in pieces:
        y, state = model(piece, state, return_state=True)
        yield y, state  # type: ignore[misc]


def in_pieces(
    model: Continued, x: Tensor, piece_size: int, state: State | None = None, *, return_state: bool = False
) -> Any:
    """Apply a model to a long sequence in chunks; in addition to input and output, only one chunk is in memory.

    With gradients, only the input and state of each chunk are kept, and the chunk is recomputed in the backward pass
    with the same random numbers (dropout).

    Args:
        model: stack of forward layers, or a single layer.
        x: input, (B, L, D), or ids (B, L) for a `LanguageModel`.
        piece_size: number of positions per chunk, at least 1.
        state: state returned for the preceding chunks, or None.
        return_state: whether to return the state after the last position as well.

    Returns:
        y (B, L, ...), equal to that of one pass, or (y, state).

    Raises:
        ValueError: a layer of the model is not forward, or a chunk size below 1.
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
    """Compute the logits after prompts, and the state for generation, in chunks.

    Args:
        model: `LanguageModel` with forward layers only.
        ids: token ids, (B, L), with at least one position.
        piece_size: number of positions per chunk, at least 1.
        state: state returned for the preceding chunks, or None.
        mask: valid positions, (B, L) bool, with padding on the left: the last chunk must contain valid positions.

    Returns:
        (logits (B, V), state).

    Raises:
        ValueError: a layer that is not forward, a chunk size below 1, or no positions.
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
    """Apply a layer to one long sequence in chunks, carrying state and convolution window from chunk to chunk.

    The result is that of the whole layer. With gradients, only the input and state of each chunk are kept, and the
    chunk is recomputed in the backward pass.

    Args:
        layer: the layer; its routes are processed one after the other.
        x: input, (L, D).
        tables: steps of each route, integers (S,): positions in order of visit, -1 and -2 as in an order table.
        chunk_size: number of steps per chunk, at least 1.

    Returns:
        Output, (L, D).

    Raises:
        ValueError: the number of tables is not that of the routes, the layer needs the whole sequence (for a
            convolution over the grid, or to determine its order), or a chunk size below 1.
    """
    require_positive(chunk_size=chunk_size)
    if len(tables) != len(layer.ordering):
        raise ValueError(f"{len(tables)} tables for the {len(layer.ordering)} routes of the layer")
    if layer.local is not None:
        raise ValueError("a layer with a convolution over the grid needs the whole sequence")
    if layer.needs_whole_sequence:
        raise ValueError(
            f"{type(layer).__name__} determines its order from the whole sequence and cannot be applied in chunks"
        )
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
    """Process the next steps (1, S, D) of a route: (its contribution to the output without bias, the state)."""
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
