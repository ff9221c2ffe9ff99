"""Mamba blocks over the instances of packed bags: orders as tables, the published padding, long bags in pieces."""

from __future__ import annotations

from typing import Literal

import torch
from seqssm_kernels import causal_conv1d, selective_scan
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from seqssm.nn.mamba import Mamba, Route
from seqssm.orders import lattice, orderings
from seqssm_pathology.dynamics import exclude_convergence

Mixer = Literal["mamba", "bimamba", "srmamba"]


def routes_of(mixer: Mixer, rate: int) -> orderings.Spec:
    """The ordering behind a mixer's name."""
    return {"mamba": "forward", "bimamba": "bidirectional", "srmamba": ["forward", {"stride": rate}]}[mixer]


class ImportanceMamba(Mamba):
    """A layer whose scans visit the instances by increasing learned score, the highest last (arXiv 2410.03292).

    The score of an instance on a route is <K, d>, d its dt before softplus. The convolution keeps the layer's ordering;
    outputs come back by place. The published soft sort needs an L x L matrix; here the sort is hard, and K learns
    through a factor 1 + s - s (its second s without gradient) on the scanned channels: the value is that of the hard
    order, and the gradient raises the score of instances that should count for more.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.score = nn.Parameter(torch.randn(len(self.ordering), self.width) * self.width**-0.5)  # K of each route

    def arrange(
        self, u: Tensor, dt: Tensor, order: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        score = (dt * self.score).sum(-1)  # (1, l, r)
        table = lattice.by_score(score[0].T.detach(), cu_seqlens).to(torch.int32)
        return u * (1 + score - score.detach()).unsqueeze(-1), table


class Block(nn.Module):
    """h + Mixer(LayerNorm(h)), MambaMIL's block (arXiv 2403.06800), over packed bags.

    Args:
        mixer: ``mamba`` (one forward scan), ``bimamba`` (forward and reverse), ``srmamba`` (forward and reordered).
        d_model, d_state, d_conv, expand: of the layer.
        rate: R of ``srmamba``.
        padding: ``free``: the reordered scan visits the N instances; ``published``: also the R ceil(N / R) - N zero
            rows that the released code appends, inside the sequence.
        importance: whether the scans go by learned score.
        regime: ``positive`` excludes the convergent regime.
        piece: bags of more instances are scanned in pieces of this many.
        engine: of the scan.
    """

    def __init__(
        self,
        mixer: Mixer,
        d_model: int,
        d_state: int,
        d_conv: int,
        expand: float,
        rate: int,
        padding: Literal["free", "published"],
        importance: bool,
        regime: Literal["free", "positive"],
        piece: int,
        engine: str | None,
    ) -> None:
        super().__init__()
        self.rate, self.padding, self.piece = rate, padding, piece
        self.importance = importance
        self.norm = nn.LayerNorm(d_model)
        layer = ImportanceMamba if importance else Mamba
        spec = routes_of(mixer, rate)
        self.mixer = layer(d_model, d_state=d_state, d_conv=d_conv, expand=expand, ordering=spec, engine=engine)
        if regime == "positive":
            exclude_convergence(self.mixer)

    def forward(self, h: Tensor, cu_seqlens: Tensor, lengths: list[int], order: Tensor | None) -> Tensor:
        """h and order as in `model.Mil`: (total, D) and (total,)."""
        long = not self.importance and max(lengths) > self.piece
        x = self.norm(h)
        if not long:
            return h + self._packed(x, cu_seqlens, lengths, order)
        start, parts = 0, []
        for length in lengths:  # each bag by itself, so that memory is bounded by a piece
            own = slice(start, start + length)
            places = None if order is None else order[own] - start
            parts.append(self._alone(x[own], places))
            start += length
        return h + torch.cat(parts)

    def _packed(self, x: Tensor, cu_seqlens: Tensor, lengths: list[int], order: Tensor | None) -> Tensor:
        if self.padding == "published":
            x, cu_seqlens, table, real = self._with_pads(x, lengths, order)
            return self.mixer(x.unsqueeze(0), cu_seqlens=cu_seqlens, order=table)[0, real]
        table = None
        if order is not None:
            table = orderings.pack(cu_seqlens, len(x), self.mixer.ordering)
            # a plain forward layer has no table of its own; walked over an order it needs one
            table = order[None].to(torch.int32) if table is None else lattice.relabel(table, order)
        return self.mixer(x.unsqueeze(0), cu_seqlens=cu_seqlens, order=table)[0]

    def _with_pads(self, x: Tensor, lengths: list[int], order: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Zero rows behind each bag to a multiple of R: only the reordered route visits them."""
        device, rows, tables, real = x.device, [], [[] for _ in self.mixer.ordering], []
        start = padded_start = 0
        ends = [0]
        for length in lengths:
            whole = -(-length // self.rate) * self.rate
            rows += [x[start : start + length], x.new_zeros(whole - length, x.shape[1])]
            places = torch.arange(length, device=device) if order is None else order[start : start + length] - start
            pads = torch.arange(length, whole, device=device)
            real.append(padded_start + torch.arange(length, device=device))
            for route, table in zip(self.mixer.ordering, tables):
                if route.name == "stride":
                    walked = lattice.relabel(
                        orderings.stride(whole, self.rate, device=device), torch.cat([places, pads])
                    )[0]
                else:
                    table_own = orderings.build(route, length, device)
                    walked = places if table_own is None else lattice.relabel(table_own, places)[0]
                    walked = F.pad(walked, (0, whole - length), value=orderings.ABSENT)
                table.append(torch.where(walked >= 0, walked + padded_start, walked))
            start, padded_start = start + length, padded_start + whole
            ends.append(padded_start)
        table = torch.stack([torch.cat(parts) for parts in tables]).to(torch.int32)
        return torch.cat(rows), torch.tensor(ends, dtype=torch.int32, device=device), table, torch.cat(real)

    def _alone(self, x: Tensor, places: Tensor | None) -> Tensor:
        """One bag in pieces."""
        if self.padding == "published":
            whole = -(-len(x) // self.rate) * self.rate
            length = len(x)
            if places is None:
                places = torch.arange(length, device=x.device)
            x = F.pad(x, (0, 0, 0, whole - length))
            everything = torch.cat([places, torch.arange(length, whole, device=x.device)])
            tables = [
                everything[orderings.stride(whole, self.rate, device=x.device)[0].long()]
                if route.name == "stride"
                else _walk(route, length, places)
                for route in self.mixer.ordering
            ]
            return in_pieces(self.mixer, x, tables, self.piece)[:length]
        return in_pieces(self.mixer, x, [_walk(route, len(x), places) for route in self.mixer.ordering], self.piece)


def _walk(route: orderings.Route, length: int, places: Tensor | None) -> Tensor:
    """The places in the order of a route, int64."""
    device = None if places is None else places.device
    table = orderings.build(route, length, device)
    steps = torch.arange(length, device=device) if table is None else table[0].long()
    return steps if places is None else places[steps]


def in_pieces(layer: Mamba, x: Tensor, tables: list[Tensor], piece: int) -> Tensor:
    """A layer over one long sequence with the memory of a piece: state and window are carried from piece to piece.

    The result is that of the layer. With gradients, each piece keeps its input and state only and is computed again in
    the backward pass.

    Args:
        layer: the layer; its routes are walked one after the other.
        x: (L, D).
        tables: the places of each route in order of visit, int64.
        piece: steps.

    Returns:
        (L, D).
    """
    out = x.new_zeros(x.shape)
    scale = 1 / len(tables) if layer.merge == "mean" else 1.0
    # the bias of out_proj belongs to every place once, whatever the number of routes
    bias = layer.out_proj.bias
    for route, table in zip(layer._all_routes(), tables):
        conv = x.new_zeros(1, layer.width, layer.d_conv - 1, dtype=layer.A_log.dtype)
        scan = x.new_zeros(1, layer.width, layer.d_state, dtype=layer.A_log.dtype)
        for steps in table.to(x.device).split(piece):
            if torch.is_grad_enabled():
                y, conv, scan = checkpoint(
                    _piece, layer, route, x[steps], conv, scan, use_reentrant=False, preserve_rng_state=False
                )
            else:
                y, conv, scan = _piece(layer, route, x[steps], conv, scan)
            out.index_add_(0, steps, (y * scale).to(out.dtype))
    return out if bias is None else out + bias


def _piece(layer: Mamba, route: Route, x: Tensor, conv: Tensor, scan: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One route over the next steps: (out_proj's share (S, D) without bias, window, state)."""
    u, z = layer.in_proj(x).unsqueeze(0).chunk(2, dim=-1)
    weight, bias = route.conv1d.weight.squeeze(1), route.conv1d.bias
    u, conv = causal_conv1d(
        u, weight, bias, state=conv, activation="silu", return_final_state=True, engine=layer.engine
    )
    low, B, C = route.x_proj(u).split([route.dt_rank, route.d_state, route.d_state], dim=-1)
    A = -torch.exp(route.A_log)
    y, scan = selective_scan(
        u, route.dt_proj(low), A, B, C, D=route.D, z=z, dt_softplus=True,
        initial_state=scan, return_final_state=True, engine=layer.engine,
    )  # fmt: skip
    y = layer.out_proj(y[0])
    return (y if layer.out_proj.bias is None else y - layer.out_proj.bias), conv, scan
