"""Mamba blocks over packed bags: scan orders as tables, the published zero padding, long bags in chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm import orders
from seqssm.nn.chunks import in_chunks
from seqssm.nn.mamba import Mamba
from seqssm_pathology.dynamics import exclude_convergence


class ImportanceMamba(Mamba):
    """A layer whose scans visit the instances in ascending order of a learned score (arXiv 2410.03292).

    The score of an instance on a route is <K, d>, with d its dt before softplus. The convolution keeps the layer's
    ordering, and outputs are returned by position. The published soft sort needs an L x L matrix. Here the sort is
    hard, and K is trained through a factor 1 + s - stop_gradient(s) on the scanned channels: the value is that of the
    hard order, and the gradient raises the scores of instances that should have more influence.
    """

    needs_whole_sequence = True

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.score = nn.Parameter(
            torch.randn(len(self.ordering), self.width) * self.width**-0.5
        )  # vector K of each route

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.score.copy_(torch.randn_like(self.score) * self.width**-0.5)

    def arrange(
        self, u: Tensor, dt: Tensor, order: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        score = (dt * self.score).sum(-1)  # (1, l, r)
        table = orders.by_score(score[0].T.detach(), cu_seqlens).to(torch.int32)
        if not u.is_floating_point():  # 8-bit integers: no gradient reaches the score
            return u, table
        return u * (1 + score - score.detach()).unsqueeze(-1), table


class Block(nn.Module):
    """h + Mamba(LayerNorm(h)), MambaMIL's block (arXiv 2403.06800), over packed bags.

    Args:
        d_model: width of an instance.
        ordering: order names of the routes of the layer.
        sizes: further arguments of the layer: `d_state`, `d_conv`, `expand`, `engine`.
        importance: whether the scans visit instances by learned score.
        positive_definite: whether to exclude the convergent regime.
        chunk_size: chunk length for scanning longer bags.
        pads: stride R of the zero padding of the released code: reordered scans also visit the R ceil(N / R) - N
            appended zero rows, inside the sequence. 1 disables it.
    """

    def __init__(
        self,
        d_model: int,
        ordering: orders.Spec,
        sizes: dict[str, Any],
        importance: bool = False,
        positive_definite: bool = False,
        chunk_size: int = 4096,
        pads: int = 1,
    ) -> None:
        super().__init__()
        self.pads, self.chunk_size = pads, chunk_size
        self.norm = nn.LayerNorm(d_model)
        self.mixer = (ImportanceMamba if importance else Mamba)(d_model, ordering=ordering, **sizes)
        if positive_definite:
            exclude_convergence(self.mixer)

    def forward(self, h: Tensor, cu_seqlens: Tensor, lengths: list[int], order: Tensor | None) -> Tensor:
        """Map h (total, D) to (total, D); order (total,) int64 as in `model.MILNetwork.forward`."""
        long = not self.mixer.needs_whole_sequence and max(lengths) > self.chunk_size
        x = self.norm(h)
        if not long:
            return h + self._packed(x, cu_seqlens, lengths, order)
        start, parts = 0, []
        for length in lengths:  # one bag at a time, which bounds the memory by that of a chunk
            own = slice(start, start + length)
            positions = None if order is None else order[own] - start
            parts.append(self._alone(x[own], positions))
            start += length
        return h + torch.cat(parts)

    def _packed(self, x: Tensor, cu_seqlens: Tensor, lengths: list[int], order: Tensor | None) -> Tensor:
        if self.pads > 1:
            x, cu_seqlens, table, real = self._with_pads(x, lengths, order)
            return self.mixer(x.unsqueeze(0), cu_seqlens=cu_seqlens, order=table)[0, real]
        table = None
        if order is not None:
            table = orders.pack(cu_seqlens, len(x), self.mixer.ordering)
            # a forward layer has no order table, but needs one to follow an order
            table = order[None].to(torch.int32) if table is None else orders.relabel(table, order)
        return self.mixer(x.unsqueeze(0), cu_seqlens=cu_seqlens, order=table)[0]

    def _with_pads(self, x: Tensor, lengths: list[int], order: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Append zero rows to each bag up to a multiple of R; only the reordered route visits them."""
        device, rows, tables, real = x.device, [], [[] for _ in self.mixer.ordering], []
        start = padded_start = 0
        ends = [0]
        for length in lengths:
            whole = -(-length // self.pads) * self.pads
            rows += [x[start : start + length], x.new_zeros(whole - length, x.shape[1])]
            positions = torch.arange(length, device=device) if order is None else order[start : start + length] - start
            real.append(padded_start + torch.arange(length, device=device))
            for route, table in zip(self.mixer.ordering, tables):
                walked = self._walked(route, positions, whole)
                walked = F.pad(walked, (0, whole - len(walked)), value=orders.ABSENT)
                table.append(torch.where(walked >= 0, walked + padded_start, walked))
            start, padded_start = start + length, padded_start + whole
            ends.append(padded_start)
        table = torch.stack([torch.cat(parts) for parts in tables]).to(torch.int32)
        return torch.cat(rows), torch.tensor(ends, dtype=torch.int32, device=device), table, torch.cat(real)

    def _alone(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Apply the mixer to one bag in chunks."""
        length = len(x)
        positions = torch.arange(length, device=x.device) if positions is None else positions
        whole = -(-length // self.pads) * self.pads
        tables = [self._walked(route, positions, whole) for route in self.mixer.ordering]
        return in_chunks(self.mixer, F.pad(x, (0, 0, 0, whole - length)), tables, self.chunk_size)[:length]

    def _walked(self, route: orders.Order, positions: Tensor, whole: int) -> Tensor:
        """Return `positions` in the order of a route, int64; a reordered route also visits the zero rows."""
        if route.name == "stride":
            positions = torch.cat([positions, torch.arange(len(positions), whole, device=positions.device)])
        return orders.follow(orders.visit(route, orders.Length(len(positions)), positions.device), positions)
