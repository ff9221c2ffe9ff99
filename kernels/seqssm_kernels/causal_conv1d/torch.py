"""The causal convolution in chunks of PyTorch operations, for every dtype and device.

In a chunk, each route's visited steps are moved to the front. Its window is then a slice of the preceding inputs
followed by the visited steps. A reset starts a new segment; inputs of earlier segments count as zero. Nothing is saved
for the backward pass, which collects the windows between chunks again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqssm_kernels.contract.calls import ConvCall, state_dtype
from seqssm_kernels.contract.indexing import Piece, grad_like, sequences

CHUNK = 256


class _Window:
    """A chunk's past followed by its visited steps, `line (B, W - 1 + T, R, E)`, and the map between steps and line."""

    def __init__(self, x: Tensor, piece: Piece, past: Tensor) -> None:
        batch, routes, channels, self.before = past.shape
        self.steps = piece.stop - piece.start
        self.shape = (batch, self.steps, routes, channels)
        visits = piece.read(x, past.dtype).expand(self.shape)
        self.place: Tensor | None = None  # index of each step in the line, counted from the end of the past
        self.count: Tensor | None = None  # visited steps of each route
        self.segment: Tensor | None = None  # segment of each row of the line
        if piece.absent is not None:
            absent = piece.absent.expand(self.shape[:3])
            # A stable sort on "absent" moves the visited steps to the front and keeps their order.
            source = torch.argsort(absent.to(torch.uint8), dim=1, stable=True)
            self.place = torch.argsort(source, dim=1)
            self.count = (~absent).sum(1)
            visits = visits.gather(1, self._wide(source))
            if piece.reset is not None:
                segment = piece.reset.expand(self.shape[:3]).cumsum(1)
                self.last_segment = segment[:, -1]
                of_past = segment.new_zeros((batch, self.before, routes))
                self.segment = torch.cat([of_past, segment.gather(1, source)], dim=1)
        self.line = torch.cat([past.permute(0, 3, 1, 2), visits], dim=1)

    def _wide(self, index: Tensor) -> Tensor:
        return index.unsqueeze(-1).expand(*index.shape, self.shape[3])

    def to_steps(self, line: Tensor) -> Tensor:
        """Map rows of the line to steps; the values of absent steps are never written."""
        return line if self.place is None else line.gather(1, self._wide(self.place))

    def to_line(self, steps: Tensor, piece: Piece) -> Tensor:
        """Map steps to rows of the line, with zeros after the visited ones."""
        if self.place is None or piece.absent is None:
            return steps
        steps = steps.masked_fill(piece.absent[..., None], 0)
        return torch.zeros_like(steps).scatter_(1, self._wide(self.place), steps)

    def cut(self, values: Tensor, k: int) -> Tensor:
        """`values (B, T, R, E)` of tap `k`, zero where the tap reaches across a reset."""
        if self.segment is None:
            return values
        own, reached = self.segment[:, self.before :], self.segment[:, k : k + self.steps]
        return values.masked_fill((own != reached)[..., None], 0)

    def convolve(self, taps: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
        """Convolution at the rows of the line that belong to the chunk, `(B, T, R, E)`."""
        y = self.line.new_zeros(self.shape)
        for k, tap in enumerate(taps):
            y += self.cut(self.line[:, k : k + self.steps] * tap, k)
        return y if bias is None else y + bias

    def _ends(self) -> Tensor:
        """Indices of the rows of the line, `(B, W - 1, R)`, that are the past of the next chunk."""
        batch, _, routes, _ = self.shape
        rows = torch.arange(self.before, device=self.line.device)[:, None].expand(batch, self.before, routes)
        return rows + (self.steps if self.count is None else self.count[:, None, :])

    def _forgotten(self, ends: Tensor) -> Tensor | None:
        """Whether each of these rows precedes a reset."""
        if self.segment is None:
            return None
        return (self.segment.gather(1, ends) != self.last_segment[:, None, :])[..., None]

    def past(self) -> Tensor:
        """The past of the next chunk, `(B, R, E, W - 1)`."""
        ends = self._ends()
        past, forgotten = self.line.gather(1, self._wide(ends)), self._forgotten(ends)
        past = past if forgotten is None else past.masked_fill(forgotten, 0)
        return past.permute(0, 2, 3, 1)

    def add_past(self, grad: Tensor, dpast: Tensor) -> None:
        """Add the gradient of the next chunk's past, `(B, R, E, W - 1)`, to that of the line."""
        ends = self._ends()
        dpast, forgotten = dpast.permute(0, 3, 1, 2), self._forgotten(ends)
        dpast = dpast if forgotten is None else dpast.masked_fill(forgotten, 0)
        grad.scatter_add_(1, self._wide(ends), dpast)


def forward(call: ConvCall) -> tuple[Tensor, Tensor]:
    """Run the convolution; see `engines` for the contract."""
    x, weight, bias, order, cu_seqlens, state, silu = call
    acc = state_dtype(x.dtype)
    sizes = call.sizes()
    taps = weight.to(acc).unbind(-1)
    everywhere = order is None and cu_seqlens is None  # unchecked cu_seqlens may end before L
    out = x.new_empty(sizes.out_shape) if everywhere else x.new_zeros(sizes.out_shape)
    final_state = x.new_zeros(sizes.state_shape, dtype=acc) if state is None else state.contiguous().clone()

    for first, last, rows in sequences(sizes.steps, sizes.batch, cu_seqlens):
        past = final_state[rows]
        for start in range(first, last, CHUNK):
            piece = Piece(order, start, min(start + CHUNK, last))
            window = _Window(x, piece, past)
            past = window.past()
            y = window.convolve(taps, bias)
            piece.write(out, window.to_steps(F.silu(y) if silu else y))
        final_state[rows] = past
    return out, final_state


def backward(dout: Tensor, dfinal: Tensor | None, call: ConvCall, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Gradients of the convolution; see `engines` for the contract."""
    x, weight, bias, order, cu_seqlens, state, silu = call
    acc = state_dtype(x.dtype)
    sizes = call.sizes()
    need_x, need_weight, need_bias, need_state = needs
    routes, channels, width = sizes.routes, sizes.channels, sizes.width
    taps = weight.to(acc).unbind(-1)

    dx = grad_like(x, routes, acc) if need_x else None
    dweight = x.new_zeros((width, routes, channels), dtype=acc)
    dbias = x.new_zeros((routes, channels), dtype=acc)
    dstate = x.new_zeros(sizes.state_shape, dtype=acc) if dfinal is None else dfinal.to(acc).contiguous().clone()
    start_state = x.new_zeros(sizes.state_shape, dtype=acc) if state is None else state

    for first, last, rows in sequences(sizes.steps, sizes.batch, cu_seqlens):
        pieces = [Piece(order, start, min(start + CHUNK, last)) for start in range(first, last, CHUNK)]
        pasts = [start_state[rows]]
        for piece in pieces[:-1]:
            pasts.append(_Window(x, piece, pasts[-1]).past().clone())
        dpast = dstate[rows]
        for piece, past in zip(reversed(pieces), reversed(pasts)):
            window = _Window(x, piece, past)
            dy = window.to_line(piece.read(dout, acc), piece)
            if silu:
                value = window.convolve(taps, bias)
                sigmoid = torch.sigmoid(value)
                dy = dy * sigmoid * (1 + value * (1 - sigmoid))
            if need_bias:
                dbias += dy.sum((0, 1))
            dline = torch.zeros_like(window.line)
            window.add_past(dline, dpast)
            for k, tap in enumerate(taps):
                if need_weight:
                    dweight[k] += window.cut(dy * window.line[:, k : k + window.steps], k).sum((0, 1))
                dline[:, k : k + window.steps] += window.cut(dy * tap, k)
            dpast = dline[:, : width - 1].permute(0, 2, 3, 1)
            if dx is not None:
                piece.add(dx, window.to_steps(dline[:, width - 1 :]))
        dstate[rows] = dpast

    def shared(grad: Tensor, t: Tensor | None, need: bool) -> Tensor | None:
        if t is None or not need:
            return None
        return (grad if t.shape[0] == routes else grad.sum(0, keepdim=True)).to(t.dtype)

    return (
        None if dx is None else dx.to(x.dtype),
        shared(dweight.permute(1, 2, 0).contiguous(), weight, need_weight),
        shared(dbias, bias, need_bias),
        dstate if need_state else None,
    )
