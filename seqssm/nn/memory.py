"""Memory layer: a bounded pool of compressed summaries of earlier positions, read by attention (MemMamba)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.padding import Rows
from seqssm.nn.sizes import require_positive
from seqssm.nn.state import State, like_of

Replacement = Literal["priority", "fifo"]
Gate = Literal["straight_through", "soft"]
EMPTY = -math.inf  # score of an entry of the pool that holds no summary


@dataclass
class Pool:
    """What the positions of each block of `interval` positions can read.

    Attributes:
        summary: summaries, (rows, blocks, P, S); 0 for empty entries.
        bias: logarithm of the weight of each entry in attention, (rows, blocks, P).
    """

    summary: Tensor
    bias: Tensor


class Memory(nn.Module):
    """Selective memory of a sequence after MemMamba (arXiv 2510.03279), for stacks with recurrent layers.

    Each position t has an importance ``i_t = sigmoid(f(x_t))``. If it exceeds `token_threshold`, the summary ``N(x_t)``
    of S numbers waits until the number of positions is a multiple of `interval`, and then enters the pool of P
    summaries. Positions read the pool of summaries as it was at the start of their block of `interval` positions:

        c_tok = [state score sigmoid(g(x_t)) > state_threshold] Attention(Q = q(x_t), K = V = pool)
        c_lay = Attention(Q = q'(x_t), K = V = pools of earlier memory layers)     in each `cross_layer_every`-th one
        y_t   = out_proj(sigmoid(fusion(x_t)) * [c_tok, c_lay])

    The softmax of both attentions has one more entry, a zero vector with logit 0: where nothing matches, or the pool is
    empty, nothing is read, and the importance of a summary has a gradient even if it is alone.

    The pool is a function of earlier positions alone, therefore no output depends on later ones, and whole, chunks and
    steps agree at any cut. The stack adds y_t to x_t, and the scan that follows reads the sum. Costs grow linearly with
    the length; the state has a constant size.

    The paper leaves open how the thresholds are trained and which priority decides. Here, thresholds are arguments, and
    the priority of a summary is its importance. A comparison has no gradient: with ``gate="straight_through"``, the
    weights of summaries and of reading are 0 or 1 in the forward pass and have the gradient of
    ``sigmoid(score - logit(threshold))``; with ``gate="soft"`` they are this value, and positions below the state
    threshold also read. Summaries below the token threshold never enter. The state score reads the layer's input,
    which contains the readouts of the states below, instead of the state of one scan.

    Args:
        d_model: width of the sequence, D.
        pool_size: maximum number of summaries, P.
        summary_dim: width of a summary, S.
        interval: number of positions after which the pool changes, C.
        n_heads: number of heads of both attentions, a divisor of `summary_dim`.
        token_threshold: importance above which a position is summarised, in [0, 1).
        state_threshold: state score above which a position reads the pool, in [0, 1).
        replacement: which summaries leave a full pool: those of lowest importance (``priority``; the older one stays
            if two are equal), or the oldest (``fifo``).
        gate: gradient of the two comparisons, see above.
        cross_layer_every: in a stack, each so many-th memory layer reads the pools of up to as many memory layers below
            it, p.
        index: number of this layer among the memory layers of its stack, from 1; set by `Backbone`.
        bias: whether ``in_proj`` and ``out_proj`` have a bias.

    Raises:
        ValueError: sizes that are not positive or not divisible, thresholds outside [0, 1), or an unknown option.
    """

    only_forward = True

    def __init__(
        self,
        d_model: int,
        *,
        pool_size: int = 50,
        summary_dim: int = 64,
        interval: int = 32,
        n_heads: int = 1,
        token_threshold: float = 0.5,
        state_threshold: float = 0.3,
        replacement: Replacement = "priority",
        gate: Gate = "straight_through",
        cross_layer_every: int = 4,
        index: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"d_model": d_model, "pool_size": pool_size, "summary_dim": summary_dim, "interval": interval}
        require_positive(**sizes, n_heads=n_heads, cross_layer_every=cross_layer_every, index=index)
        if summary_dim % n_heads:
            raise ValueError(f"summary_dim = {summary_dim} does not divide into {n_heads} heads")
        for name, value in (("token_threshold", token_threshold), ("state_threshold", state_threshold)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), not {value}")
        for name, option, known in (("replacement", replacement, Replacement), ("gate", gate, Gate)):
            if option not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, not {option!r}")
        self.d_model, self.pool_size, self.summary_dim, self.interval = d_model, pool_size, summary_dim, interval
        self.n_heads, self.replacement, self.gate, self.index = n_heads, replacement, gate, index
        self.token_threshold, self.state_threshold = token_threshold, state_threshold
        self.across = 0 if index % cross_layer_every else min(index - 1, cross_layer_every)  # pools of other layers
        self.read = summary_dim * (2 if self.across else 1)
        self.in_proj = nn.Linear(d_model, 2 * self.read + summary_dim, bias=bias)  # rows queries, fusion, summary
        self.scores = nn.Linear(d_model, 2)  # importance and state score, before the sigmoid
        self.out_proj = nn.Linear(self.read, d_model, bias=bias)

    def reset_parameters(self) -> None:
        """Initialise all weights."""
        for module in (self.in_proj, self.scores, self.out_proj):
            module.reset_parameters()

    def extra_repr(self) -> str:
        return (
            f"{self.d_model}, pool_size={self.pool_size}, summary_dim={self.summary_dim}, interval={self.interval}, "
            f"replacement={self.replacement}, gate={self.gate}"
        )

    def require_forward(self, what: str) -> None:
        """Do nothing, because the layer always continues from a state."""

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        pools: list[Pool] | None = None,
        return_state: bool = False,
    ) -> Any:
        """Read the memory at each position, and extend it.

        Args:
            x: input, (B, L, D).
            state: state returned for an earlier chunk of the same sequences.
            mask: valid positions, (B, L) bool. Padding may be anywhere and does not affect valid positions or the
                state; at padded positions `x` is not read, and the output is that of an empty pool.
            cu_seqlens: start offsets of packed sequences (B = 1) and the total length, (n + 1,) int32. Read on the
                host.
            pools: pools of the memory layers below in this call, to which that of this layer is appended.
            return_state: whether to return the state after the last position as well.

        Returns:
            y (B, L, D), or (y, state). The state holds the pool, ``summary`` (B, P, S) and ``score`` (B, P), the
            pending summaries of an incomplete block, ``pending`` (B, C, S) and ``pending_score`` (B, C), and
            ``length`` (B,), the number of positions so far.

        Raises:
            ValueError: `mask` with `cu_seqlens`, fewer pools than the layer reads, or wrong shapes.
        """
        if x.ndim != 3 or x.shape[2] != self.d_model:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, L, d_model) with d_model = {self.d_model}")
        rows = Rows(x, mask, cu_seqlens)
        if mask is not None:
            x = x.masked_fill(~mask.bool().unsqueeze(-1), 0)
        c, new = self._remember(rows.split(self.in_proj(x)), rows.split(self._scores(x)), rows.lengths, state, pools)
        y = self.out_proj(rows.join(c))
        return (y, new) if return_state else y

    def step(self, x: Tensor, state: State, pools: list[Pool] | None = None) -> tuple[Tensor, State]:
        """Process one more position.

        Args:
            x: input, (B, D).
            state: state returned by `forward` or `step` for the preceding positions, or by `new_state` at the start.
            pools: as in `forward`.

        Returns:
            (y (B, D), state after this position).

        Raises:
            ValueError: no state, or wrong shapes.
        """
        if x.ndim != 2 or x.shape[1] != self.d_model:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, d_model) with d_model = {self.d_model}")
        if state is None:
            raise ValueError("step requires the state before this position, returned by forward or new_state")
        y, new = self(x.unsqueeze(1), state, pools=pools, return_state=True)
        return y[:, 0], new

    def new_state(self, batch_size: int) -> State:
        """Return the state before the first position: an empty pool.

        Args:
            batch_size: number of samples, or of packed sequences with `cu_seqlens`.
        """
        like = like_of(self)
        return self._empty(batch_size, like)

    @torch.no_grad()
    def held(self, x: Tensor) -> Tensor:
        """Return the positions of the summaries in the pool after a sequence x (L, D), with L at least 1."""
        before = self._empty(1, x)
        score = self._scores(x.unsqueeze(0))[..., 0]
        blocks = _Blocks(self.interval, score, None, None)
        placed = self._admitted(blocks, x.new_zeros(1, x.shape[0], self.summary_dim), score, before)[1]
        scores = torch.cat([before["score"], placed], 1)
        chosen = self._select(scores, blocks)[:, -1]
        return chosen[scores.gather(1, chosen) > EMPTY] - self.pool_size

    def _empty(self, batch_size: int, like: Tensor) -> State:
        kept = torch.promote_types(like.dtype, torch.float32)
        return State(
            summary=like.new_zeros(batch_size, self.pool_size, self.summary_dim),
            score=like.new_full((batch_size, self.pool_size), EMPTY, dtype=kept),
            pending=like.new_zeros(batch_size, self.interval, self.summary_dim),
            pending_score=like.new_full((batch_size, self.interval), EMPTY, dtype=kept),
            length=torch.zeros(batch_size, dtype=torch.long, device=like.device),
        )

    def _scores(self, x: Tensor) -> Tensor:
        """Compute the scores of importance and state before the sigmoid, (..., 2), in float32 or wider."""
        scores: Tensor = self.scores(x)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def _remember(
        self, projected: Tensor, scores: Tensor, lengths: Tensor | None, state: State | None, pools: list[Pool] | None
    ) -> tuple[Tensor, State]:
        """Read and extend the memory of rows: (what is read (rows, L, S or 2 S), state)."""
        query, fusion, summary = projected.split([self.read, self.read, self.summary_dim], dim=-1)
        before = self._empty(len(projected), projected) if state is None else state
        if projected.shape[1] == 0:
            return fusion, before
        blocks = _Blocks(self.interval, projected, lengths, None if state is None else state["length"])
        pending, pending_score = self._admitted(blocks, summary, scores[..., 0], before)
        entries = torch.cat([before["summary"].to(pending.dtype), pending], 1)
        entry_scores = torch.cat([before["score"].to(pending_score.dtype), pending_score], 1)
        chosen = self._select(entry_scores, blocks)
        pool_scores = _taken(entry_scores, chosen)
        own = Pool(_taken(entries, chosen[:, :-1]), self._log_weight(pool_scores[:, :-1]))
        read = self._attend(blocks.of_blocks(query[..., : self.summary_dim]), own)
        read = blocks.of_positions(read) * self._weight(scores[..., 1:], self.state_threshold).to(read.dtype)
        if self.across:
            other = self._attend(blocks.of_blocks(query[..., self.summary_dim :]), self._of_others(pools))
            read = torch.cat([read, blocks.of_positions(other)], -1)
        if pools is not None:
            pools.append(own)
        open_block, open_score = blocks.incomplete(pending, 0), blocks.incomplete(pending_score, EMPTY)
        new = State(
            summary=_taken(entries, chosen[:, -1]),
            score=pool_scores[:, -1],
            pending=open_block,
            pending_score=open_score,
            length=before["length"] + blocks.count,
        )
        return torch.sigmoid(fusion) * read, new

    def _admitted(self, blocks: _Blocks, summary: Tensor, score: Tensor, before: State) -> tuple[Tensor, Tensor]:
        """Summaries (rows, T, S) and scores (rows, T) at the places of the blocks; empty where not important enough."""
        limit = _logit(self.token_threshold)
        score = torch.where((score > limit) & score.isfinite(), score, EMPTY)
        summary = torch.where((score > EMPTY).unsqueeze(-1), summary, 0)
        return (
            blocks.placed(summary, before["pending"].to(summary.dtype), 0),
            blocks.placed(score, before["pending_score"].to(score.dtype), EMPTY),
        )

    @torch.no_grad()
    def _select(self, scores: Tensor, blocks: _Blocks) -> Tensor:
        """Choose the entries of the pool at the start of each block and at the end: indices (rows, blocks + 1, P).

        Args:
            scores: scores of the entries of the pool, then of those at the places of the blocks.
            blocks: the blocks.
        """
        size, interval = self.pool_size, self.interval
        pool = torch.arange(size, device=scores.device).expand(len(scores), -1)
        chosen = [pool]
        for block in range(blocks.number):
            arrived = torch.arange(interval, device=scores.device).expand(len(scores), -1) + size + block * interval
            if self.replacement == "fifo":  # newest first
                candidates = torch.cat([arrived.flip(1), pool], 1)
                rank = (scores.gather(1, candidates) > EMPTY).to(torch.uint8)
            else:
                candidates = torch.cat([pool, arrived], 1)
                rank = scores.gather(1, candidates)
            best = torch.argsort(rank, dim=1, descending=True, stable=True)[:, :size]
            complete = (blocks.complete > block).unsqueeze(1)
            pool = torch.where(complete, candidates.gather(1, best), pool)
            chosen.append(pool)
        return torch.stack(chosen, 1)

    def _of_others(self, pools: list[Pool] | None) -> Pool:
        """Join the pools of the memory layers below that this layer reads."""
        if pools is None or len(pools) < self.across:
            raise ValueError(
                f"memory layer {self.index} of a stack reads the pools of {self.across} layers below, which Backbone "
                "passes; a single layer has index=1"
            )
        read = pools[-self.across :]
        return Pool(torch.cat([one.summary for one in read], 2), torch.cat([one.bias for one in read], 2))

    def _attend(self, query: Tensor, pool: Pool) -> Tensor:
        """Attend from the positions of each block (rows, blocks, q, S) to its pool and to nothing (0, with logit 0)."""
        q, k = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(2, 3) for part in (query, pool.summary.to(query.dtype))
        )
        bias = pool.bias.to(q.dtype).clamp(min=torch.finfo(q.dtype).min)
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias[:, :, None, None]
        weights = F.pad(logits, (0, 1)).softmax(-1)[..., :-1]
        return (weights @ k).transpose(2, 3).flatten(-2)

    def _log_weight(self, score: Tensor) -> Tensor:
        """Logarithm of the weight of entries with these scores; the smallest number if empty."""
        empty = score == EMPTY
        limit = _logit(self.token_threshold)
        weight = F.logsigmoid(score.masked_fill(empty, 0) - limit)
        if self.gate == "straight_through":
            weight = weight - weight.detach()
        return weight.masked_fill(empty, torch.finfo(score.dtype).min)

    def _weight(self, score: Tensor, threshold: float) -> Tensor:
        """Weight of scores before the sigmoid: above the threshold or not, or the soft value."""
        limit = _logit(threshold)
        weight = torch.sigmoid(score - limit)
        if self.gate == "soft":
            return weight
        return (score > limit).to(weight.dtype) + (weight - weight.detach())


class _Blocks:
    """Positions of rows in blocks of a fixed number of positions, counted from the start of each sequence.

    Args:
        interval: positions per block, C.
        values: any values of the rows, (rows, L, ...), with L at least 1.
        lengths: valid positions of each row, which come first; None: all.
        before: positions of each sequence before this call, (rows,); None: none.
    """

    def __init__(self, interval: int, values: Tensor, lengths: Tensor | None, before: Tensor | None) -> None:
        rows, self.length = values.shape[:2]
        self.interval = interval
        longest = self.length + (0 if before is None else interval - 1)
        self.number = -(-longest // interval)
        whole = torch.full((rows,), self.length, dtype=torch.long, device=values.device)
        self.count = whole if lengths is None else lengths.long()
        self.offset = torch.zeros_like(self.count) if before is None else before % interval
        self.complete = (self.offset + self.count) // interval  # blocks that end in this call
        place = torch.arange(self.number * interval, device=values.device) - self.offset.unsqueeze(1)
        self.new = (place >= 0) & (place < self.count.unsqueeze(1))
        self.source = place.clamp(0, self.length - 1)
        self.place = torch.arange(self.length, device=values.device) + self.offset.unsqueeze(1)
        self.place = self.place.clamp(max=self.number * interval - 1)

    def placed(self, values: Tensor, pending: Tensor, empty: float) -> Tensor:
        """Place values (rows, L, ...) after those pending from earlier (rows, C, ...): (rows, blocks * C, ...)."""
        earlier = pending.new_full((len(pending), self.number * self.interval, *pending.shape[2:]), empty)
        earlier[:, : self.interval] = pending
        new = self.new.view(*self.new.shape, *[1] * (values.ndim - 2))
        return torch.where(new, _taken(values, self.source), earlier)

    def incomplete(self, placed: Tensor, empty: float) -> Tensor:
        """Return the incomplete block of placed values (rows, blocks * C, ...), (rows, C, ...)."""
        after = placed.new_full((len(placed), self.interval, *placed.shape[2:]), empty)
        places = self.complete.unsqueeze(1) * self.interval + torch.arange(self.interval, device=placed.device)
        return _taken(torch.cat([placed, after], 1), places)

    def of_blocks(self, values: Tensor) -> Tensor:
        """Return values (rows, L, K) by block, (rows, blocks, C, K); a single position as (rows, 1, 1, K)."""
        if self.length == 1:
            return values.unsqueeze(1)
        return _taken(values, self.source).unflatten(1, (self.number, self.interval))

    def of_positions(self, values: Tensor) -> Tensor:
        """Invert `of_blocks`."""
        return values.flatten(1, 2) if self.length == 1 else _taken(values.flatten(1, 2), self.place)


def _logit(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability) if probability > 0 else -math.inf


def _taken(values: Tensor, index: Tensor) -> Tensor:
    """Take values (rows, n, ...) at an index (rows, ...) along the second axis."""
    flat = index.flatten(1)
    shape = flat.view(*flat.shape, *[1] * (values.ndim - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, shape).unflatten(1, index.shape[1:])
