"""Causal grouped-query attention without positional encoding, with a key-value cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.padding import Rows
from seqssm.nn.sizes import require_positive
from seqssm.nn.state import State, like_of

QUERY_BLOCK = 256  # queries per call if a mask is needed: masks have (block, keys) entries instead of (L, L)


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245) without positional encoding; other layers provide the order.

    Args:
        d_model: width of the sequence, D.
        n_heads: number of query heads, H.
        n_kv_heads: number of key and value heads, a divisor of `n_heads`; None for `n_heads`.
        head_dim: width of a head; None for d_model / n_heads.
        window: number of positions that a position attends to, including itself; None for all preceding ones. The cache
            then holds `window` keys per head, in a ring buffer.
        causal: whether later positions are masked. If False, `window` extends to both sides, and the layer cannot
            continue from a state.
        bias: whether the projections have a bias.

    Raises:
        ValueError: sizes that are not positive or not divisible.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 8,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        window: int | None = None,
        causal: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        require_positive(d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads)
        require_positive(head_dim=1 if head_dim is None else head_dim, window=1 if window is None else window)
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} query heads do not divide into {n_kv_heads} groups of keys and values")
        if head_dim is None and d_model % n_heads:
            raise ValueError(f"d_model = {d_model} does not divide into {n_heads} heads: give head_dim")
        self.d_model, self.n_heads, self.n_kv_heads = d_model, n_heads, n_kv_heads
        self.head_dim = d_model // n_heads if head_dim is None else head_dim
        self.window, self.causal = window, causal
        self.in_proj = nn.Linear(d_model, (n_heads + 2 * n_kv_heads) * self.head_dim, bias=bias)  # rows q, k, v
        self.out_proj = nn.Linear(n_heads * self.head_dim, d_model, bias=bias)

    @property
    def only_forward(self) -> bool:
        """Whether the layer can continue from a state."""
        return self.causal

    def reset_parameters(self) -> None:
        """Initialise all weights."""
        self.in_proj.reset_parameters()
        self.out_proj.reset_parameters()

    def extra_repr(self) -> str:
        window = "" if self.window is None else f", window={self.window}"
        return f"{self.d_model}, n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}{window}, causal={self.causal}"

    def require_forward(self, what: str) -> None:
        """Raise ValueError unless the attention is causal."""
        if not self.causal:
            raise ValueError(f"{what} requires causal attention; this layer attends to both sides")

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Mix along the sequence.

        Args:
            x: input, (B, L, D).
            state: state returned for an earlier chunk of the same sequences; causal attention only.
            mask: valid positions, (B, L) bool. Padding may be anywhere and does not affect valid positions or the
                state; at padded positions `x` is not read, and the output is that of a zero input.
            cu_seqlens: start offsets of packed sequences (B = 1) and the total length, (n + 1,) int32. Read on the
                host.
            return_state: whether to return the cache after the last position as well.

        Returns:
            y (B, L, D), or (y, state). The state holds ``key`` and ``value`` (B, n_kv_heads, T, head_dim), with T the
            number of positions so far or `window`, and ``length`` (B,), the number of positions per sample.

        Raises:
            ValueError: `mask` with `cu_seqlens`, a state for non-causal attention, or wrong shapes.
        """
        if x.ndim != 3 or x.shape[2] != self.d_model:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, L, d_model) with d_model = {self.d_model}")
        if state is not None or return_state:
            self.require_forward("a state")
        rows = Rows(x, mask, cu_seqlens)
        if mask is not None:
            x = x.masked_fill(~mask.bool().unsqueeze(-1), 0)
        y, new = self._attend(rows.split(self.in_proj(x)), rows.lengths, state, return_state)
        y = rows.join(y)
        y = self.out_proj(y)
        return (y, new) if return_state else y

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Process one more position.

        Args:
            x: input, (B, D).
            state: state returned by `forward` or `step` for the preceding positions, or by `new_state` at the start.

        Returns:
            (y (B, D), state after this position).

        Raises:
            ValueError: non-causal attention, no state, or wrong shapes.
        """
        self.require_forward("step")
        if x.ndim != 2 or x.shape[1] != self.d_model:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, d_model) with d_model = {self.d_model}")
        if state is None:
            raise ValueError("step requires the state before this position, returned by forward or new_state")
        q, k, v = self._heads(self.in_proj(x).unsqueeze(1))
        new = self._append(k, v, None, state)
        slots = torch.arange(new["key"].shape[2], device=x.device)
        seen = (slots < new["length"].unsqueeze(1))[
            :, None, None
        ]  # once it has wrapped around, the ring buffer is full
        y = F.scaled_dot_product_attention(q, new["key"], new["value"], attn_mask=seen, enable_gqa=True)
        return self.out_proj(y.flatten(1)), new

    def new_state(self, batch_size: int) -> State:
        """Return the state before the first position.

        Args:
            batch_size: number of samples, or of packed sequences with `cu_seqlens`.
        """
        return self._empty(batch_size, like_of(self))

    def _empty(self, batch_size: int, like: Tensor) -> State:
        places = 0 if self.window is None else self.window
        empty = like.new_zeros(batch_size, self.n_kv_heads, places, self.head_dim)
        return State(key=empty, value=empty, length=torch.zeros(batch_size, dtype=torch.long, device=like.device))

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split (B, L, channels) into queries (B, H, L, d), keys and values (B, n_kv_heads, L, d)."""
        sizes = [self.n_heads, self.n_kv_heads, self.n_kv_heads]
        heads = qkv.unflatten(-1, (sum(sizes), self.head_dim)).transpose(1, 2)
        return heads.split(sizes, dim=1)  # type: ignore[return-value]

    def _attend(
        self, qkv: Tensor, lengths: Tensor | None, state: State | None, return_state: bool
    ) -> tuple[Tensor, State | None]:
        """Attention over sequences that start at position 0 of their row.

        Args:
            qkv: projected queries, keys and values, (B, L, channels).
            lengths: number of valid positions of each row, (B,); None: all.
            state: state of earlier chunks.
            return_state: whether to return the state.
        """
        q, k, v = self._heads(qkv)
        batch, _, length, _ = q.shape
        banded = torch.compiler.is_exporting() and self.window is not None and state is None and lengths is None
        plain = not banded and state is None and (self.window is None or self.window >= length)
        if banded:
            y = self._banded(q, k, v)
        elif length == 0:
            y = q
        elif plain and (self.causal or lengths is None):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=True)
        elif plain:  # bidirectional: one mask row serves all queries
            seen = torch.arange(length, device=q.device) < lengths.unsqueeze(1)  # type: ignore[union-attr]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None], enable_gqa=True)
        else:
            y = self._in_blocks(q, k, v, lengths, state)
        new = None
        if return_state:
            new = self._append(k, v, lengths, self._empty(batch, k) if state is None else state)
        return y.transpose(1, 2).flatten(2), new

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, state: State | None) -> Tensor:
        """Attend in blocks of queries, each with the keys in its range and a mask by position."""
        batch, _, length, _ = q.shape
        past = 0
        own = torch.arange(length, device=q.device)
        at = own.expand(batch, -1)  # position of each key; negative for empty entries
        if lengths is not None:
            at = at.masked_fill(own >= lengths.unsqueeze(1), -1)
        first = at.new_zeros(batch)
        if state is not None:
            first = state["length"]
            keys, values, before = self._past(state)
            past = keys.shape[2]
            k, v = torch.cat([keys.to(k.dtype), k], 2), torch.cat([values.to(v.dtype), v], 2)
            at = torch.cat([before, torch.where(at < 0, at, at + first.unsqueeze(1))], 1)
        outputs = []
        for start in range(0, length, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, length)
            low, high = 0, past + (stop if self.causal else length)
            if self.window is not None:
                low = max(0, past + start - self.window + 1)
                high = high if self.causal else min(high, past + stop + self.window - 1)
            place = (own[start:stop] + first.unsqueeze(1))[:, :, None]  # (B, block, 1)
            key_place = at[:, None, low:high]
            seen = key_place >= 0
            if self.causal:
                seen = seen & (key_place <= place)
            if self.window is not None:
                seen = seen & ((key_place - place).abs() < self.window)
            outputs.append(
                F.scaled_dot_product_attention(
                    q[:, :, start:stop], k[:, :, low:high], v[:, :, low:high], attn_mask=seen[:, None], enable_gqa=True
                )
            )
        return torch.cat(outputs, dim=2)

    def _banded(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend within the window, for graphs that hold for any length L: without branches or loops that depend on it.

        Queries are divided into pieces of `window` positions, each with the keys of its own and the adjacent pieces.
        """
        length, window = q.shape[2], self.window or 0
        pieces = length // window + 2  # at least two, and some padding: no size is special
        rest = pieces * window - length
        after = rest if self.causal else rest + window
        near = 2 if self.causal else 3  # pieces of keys for a piece of queries
        queries = F.pad(q, (0, 0, 0, rest)).unflatten(2, (pieces, window)).transpose(1, 2).flatten(0, 1)

        def keys_of(x: Tensor) -> Tensor:
            """(B, n_kv_heads, L, d) to (B * pieces, n_kv_heads, near * window, d)."""
            parts = F.pad(x, (0, 0, window, after)).unflatten(2, (pieces + near - 1, window)).transpose(1, 2)
            return torch.cat([parts[:, k : k + pieces] for k in range(near)], 3).flatten(0, 1)

        start = torch.arange(pieces, device=q.device)[:, None, None] * window
        place = start + torch.arange(window, device=q.device)[:, None]  # (pieces, window, 1)
        key_place = start - window + torch.arange(near * window, device=q.device)  # (pieces, 1, near * window)
        seen = (key_place >= 0) & (key_place < length) & ((key_place - place).abs() < window)
        if self.causal:
            seen = seen & (key_place <= place)
        seen = seen | (place >= length)  # padding
        mask = seen.unsqueeze(1).repeat(q.shape[0], 1, 1, 1)
        y = F.scaled_dot_product_attention(queries, keys_of(k), keys_of(v), attn_mask=mask, enable_gqa=True)
        return y.unflatten(0, (q.shape[0], pieces)).transpose(1, 2).flatten(2, 3)[:, :, :length]

    def _past(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Return cached keys and values sorted by position, and the positions (B, T), negative for empty entries."""
        key, value, length = state["key"], state["value"], state["length"].unsqueeze(1)
        slots = torch.arange(key.shape[2], device=key.device)
        if self.window is None:
            at = slots.expand(len(key), -1)
            return key, value, at.masked_fill(at >= length, -1)
        at = length - self.window + slots  # the last `window` positions
        ring = (at % self.window)[:, None, :, None].expand_as(key)
        return key.gather(2, ring), value.gather(2, ring), at.clamp(min=-1)

    def _append(self, k: Tensor, v: Tensor, lengths: Tensor | None, state: State) -> State:
        """Append the valid keys and values (B, n_kv_heads, L, d) to the cache."""
        key, value, before = state["key"].to(k.dtype), state["value"].to(v.dtype), state["length"]
        new = k.shape[2]
        if new == 0:
            return State(key=key, value=value, length=before)
        total = before + (new if lengths is None else lengths)
        if self.window is None:
            # padded positions come after the valid ones: their entries are masked and overwritten later
            places = before.unsqueeze(1) + torch.arange(new, device=k.device)
            index = places[:, None, :, None].expand_as(k)
            key, value = (F.pad(cache, (0, 0, 0, new)) for cache in (key, value))
            return State(key=key.scatter_(2, index, k), value=value.scatter_(2, index, v), length=total)
        slots = torch.arange(self.window, device=k.device)
        # latest position before `total` in this slot of the ring buffer
        last = total.unsqueeze(1) - 1 - (total.unsqueeze(1) - 1 - slots) % self.window
        source = last - before.unsqueeze(1)  # index of the new key in this slot
        index = torch.where(source >= 0, source.clamp(max=new - 1) + self.window, slots)
        index = index[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        return State(
            key=torch.cat([key, k], 2).gather(2, index),
            value=torch.cat([value, v], 2).gather(2, index),
            length=total,
        )
