"""Genome networks: a causal language model, and a bidirectional encoder that can be exactly symmetric in the strands.

What prediction may rely on:

- A causal model reads ``[BOS]``, prefix tokens if it has any, then bases, then ``[SEP]`` where a sequence ends; the
  logits at a position are those of the *next* token. `CausalNetwork` is the interface: ``forward``, ``hidden``,
  ``step``, ``prefill``, ``new_state``; `seqssm.nn.chunks` and `seqssm.nn.generation` take such a model.
- An encoder reads bases only; its logits at a position are those of the token *there* (masked training).
- ``network.causal`` tells them apart, ``network.width`` is D of the features that `seqssm_dna.classifier` pools.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from seqssm.nn.backbone import Backbone
from seqssm.nn.language_model import LanguageModel
from seqssm.nn.state import State
from seqssm_dna.strands import complement_table, flip_positions, reverse_complement
from seqssm_dna.tokens import FIXED

Mixer = Literal["mamba2", "mamba", "mamba3", "attention"]
Bidirectional = Literal["mamba", "mamba2", "mamba3"]
SYMBOLS = {"mamba2": "M", "mamba": "m", "mamba3": "3", "attention": "*"}
HEAD = 64  # width of a head of attention, where the model is wide enough
QUERIES = 4  # query heads per head of keys and values


def layer_pattern(n_layers: int, mixer: str, attn_period: int, attn_offset: int, mlp: bool) -> str:
    """Symbols of a stack: attention in place of the mixer in layers offset, offset + period, ...; an MLP behind each.

    Args:
        n_layers: mixers, attention included.
        mixer: of the other layers.
        attn_period: layers from one attention layer to the next; 0: none.
        attn_offset: first attention layer, from 0.
        mlp: whether an MLP stands behind every mixer.

    Raises:
        ValueError: an unknown mixer, or sizes out of range.
    """
    if mixer not in SYMBOLS:
        raise ValueError(f"mixer {mixer}: expected one of {', '.join(SYMBOLS)}")
    if n_layers < 1:
        raise ValueError(f"n_layers {n_layers}: must be at least 1")
    if attn_period < 0 or (attn_period and not 0 <= attn_offset < attn_period):
        raise ValueError(f"attn_period {attn_period}, attn_offset {attn_offset}: expected 0 <= offset < period")
    symbols = [
        "*" if attn_period and layer % attn_period == attn_offset else SYMBOLS[mixer] for layer in range(n_layers)
    ]
    return "".join(symbol + "-" * mlp for symbol in symbols)


def layer_options(
    d_model: int,
    pattern: str,
    *,
    mlp_ratio: float,
    d_state: int | None,
    head_dim: int | None,
    n_heads: int | None,
    n_kv_heads: int | None,
    attn_window: int | None,
    engine: str | None,
    routes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of `Backbone` for the layers that a pattern has.

    Args:
        d_model: D.
        pattern: symbols of the layers.
        mlp_ratio: inner width of the MLP over D.
        d_state: states of the scans; None: the layer's own default.
        head_dim: channels of a head of Mamba-2 and Mamba-3; None: 64, or all channels where there are fewer.
        n_heads: query heads of attention; None: heads of 64.
        n_kv_heads: heads of keys and values; None: one for four query heads.
        attn_window: positions that attention sees; None: all before.
        engine: of the scans.
        routes: ordering and merge of bidirectional scans; None: forward ones, and causal attention.
    """
    scan = {"engine": engine, **(routes or {})}
    if d_state is not None:
        scan["d_state"] = d_state
    heads = {"head_dim": min(64, 2 * d_model) if head_dim is None else head_dim}
    n_heads = max(1, d_model // HEAD) if n_heads is None else n_heads
    if n_kv_heads is None:
        n_kv_heads = max(k for k in range(1, max(1, n_heads // QUERIES) + 1) if n_heads % k == 0)
    attention = {
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": max(1, d_model // n_heads),
        "window": attn_window,
        "causal": routes is None,
    }
    options = {
        "M": ("mamba2", {**scan, **heads}),
        "m": ("mamba", scan),
        "3": ("mamba3", {**scan, **heads}),
        "*": ("attention", attention),
        "-": ("mlp", {"hidden": max(1, round(mlp_ratio * d_model))}),
    }
    return {name: values for symbol, (name, values) in options.items() if symbol in pattern}


class GenomeLM(LanguageModel):
    """A causal language model of DNA: HybriDNA's stack of Mamba-2 and attention, or one mixer only.

    Every layer is x + mixer(norm(x)), then x + mlp(norm(x)) where `mlp_ratio` is not 0 (arXiv 2502.10807). There are no
    positional encodings.

    Args:
        d_model: D, width of the sequence.
        n_layers: mixers, attention included.
        mixer: layers other than the periodic attention.
        attn_period: one attention layer in so many layers, 8 in HybriDNA; 0: none.
        attn_offset: place of the first one, from 0.
        attn_window: tokens that attention sees, the position itself included; None: all before.
        mlp_ratio: inner width of the gated MLP behind every mixer, over d_model, 2 in HybriDNA; 0: no MLP.
        dropout: on every layer's output, in training.
        d_state: states per channel of the scans; by default that of the mixer.
        head_dim: channels of a head of Mamba-2 and Mamba-3 (other mixers have none).
        n_heads: query heads of attention; by default heads of 64 channels.
        n_kv_heads: heads of keys and values; by default one for four query heads.
        tie: whether the head uses the weights of the embedding.
        n_labels: additional prefix tokens, with ids from 12 on.
        strands: only ``none``: with both strands in one state, later bases would leak into the prediction.
        engine: engine of the scans.

    Raises:
        ValueError: a size out of range, or strands that a causal model cannot share.
    """

    causal: ClassVar[bool] = True

    def __init__(
        self,
        d_model: int = 128,
        n_layers: int = 4,
        mixer: Mixer = "mamba2",
        attn_period: int = 0,
        attn_offset: int = 4,
        attn_window: int | None = None,
        mlp_ratio: float = 0.0,
        dropout: float = 0.0,
        d_state: int | None = None,
        head_dim: int | None = None,
        n_heads: int | None = None,
        n_kv_heads: int | None = None,
        tie: bool = False,
        n_labels: int = 0,
        strands: Literal["none", "shared"] = "none",
        engine: str | None = None,
    ) -> None:
        if strands != "none":
            raise ValueError(
                "strands shared: a causal model would see the bases that it predicts; use masked pretraining with an "
                "encoder, or data.reverse_complement"
            )
        pattern = layer_pattern(n_layers, mixer, attn_period, attn_offset, mlp_ratio > 0)
        options = layer_options(
            d_model,
            pattern,
            mlp_ratio=mlp_ratio,
            d_state=d_state,
            head_dim=head_dim,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            attn_window=attn_window,
            engine=engine,
        )
        backbone = Backbone(d_model, pattern, dropout=dropout, **options)
        super().__init__(len(FIXED) + n_labels, backbone, tie=tie)
        self.attn_window = attn_window

    @property
    def width(self) -> int:
        """D of the features."""
        return self.backbone.d_model

    @property
    def has_attention(self) -> bool:
        """Whether some layer is attention."""
        return "*" in self.backbone.pattern

    def hidden(
        self, ids: Tensor, state: State | None = None, *, mask: Tensor | None = None, return_state: bool = False
    ) -> Any:
        """The stack's output (B, L, D) behind each token, or (output, state).

        Args:
            ids: (B, L).
            state: what an earlier piece of the same sequences returned.
            mask: (B, L), true at real positions.
            return_state: return the state behind the last position too.
        """
        return self.backbone(self.embedding(ids), state, mask=mask, return_state=return_state)

    def halves(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """What is pooled: the features themselves."""
        return (hidden,)


class GenomeEncoder(nn.Module):
    """A bidirectional encoder for masked training, optionally with parameters shared by both strands (Caduceus-PS).

    With ``strands="shared"`` the features have 2 D channels [a | b] (arXiv 2403.03234, section 4.2): a is the stack
    over the sequence, b the same stack over its reverse complement, with positions and channels reversed. For R, which
    reverses positions and channels, hidden(rc(x)) = R hidden(x) exactly, and the logits of the reverse complement are
    those of the sequence, reversed and complemented.

    Args:
        d_model: D, width of the sequence.
        n_layers: mixers, attention included.
        mixer: layers other than the periodic attention.
        merge: how the two directions of a layer become one.
        attn_period: one attention layer (of both sides) in so many layers; 0: none.
        attn_offset: place of the first one, from 0.
        attn_window: positions that attention sees to each side, the position itself included; None: all.
        mlp_ratio: inner width of the gated MLP behind every mixer, over d_model; 0: no MLP.
        dropout: on every layer's output, in training.
        d_state: states per channel of the scans; by default that of the mixer.
        head_dim: channels of a head of Mamba-2 and Mamba-3.
        n_heads: query heads of attention; by default heads of 64 channels.
        n_kv_heads: heads of keys and values; by default one for four query heads.
        strands: none, or shared: parameters shared by both strands, exactly equivariant, at twice the time.
        engine: engine of the scans.

    Raises:
        ValueError: a size out of range.
    """

    causal: ClassVar[bool] = False
    complement: Tensor

    def __init__(
        self,
        d_model: int = 128,
        n_layers: int = 4,
        mixer: Bidirectional = "mamba",
        merge: Literal["sum", "mean", "concat", "gate"] = "sum",
        attn_period: int = 0,
        attn_offset: int = 4,
        attn_window: int | None = None,
        mlp_ratio: float = 0.0,
        dropout: float = 0.0,
        d_state: int | None = None,
        head_dim: int | None = None,
        n_heads: int | None = None,
        n_kv_heads: int | None = None,
        strands: Literal["none", "shared"] = "none",
        engine: str | None = None,
    ) -> None:
        super().__init__()
        if strands not in ("none", "shared"):
            raise ValueError(f"strands {strands}: expected none or shared")
        pattern = layer_pattern(n_layers, mixer, attn_period, attn_offset, mlp_ratio > 0)
        options = layer_options(
            d_model,
            pattern,
            mlp_ratio=mlp_ratio,
            d_state=d_state,
            head_dim=head_dim,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            attn_window=attn_window,
            engine=engine,
            routes={"ordering": "bidirectional", "merge": merge},
        )
        self.strands, self.attn_window, self.width = strands, attn_window, d_model
        self.embedding = nn.Embedding(len(FIXED), d_model)
        self.backbone = Backbone(d_model, pattern, dropout=dropout, **options)
        self.lm_head = nn.Linear(d_model, len(FIXED), bias=False)
        self.register_buffer("complement", complement_table(len(FIXED)), persistent=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    @property
    def has_attention(self) -> bool:
        """Whether some layer is attention."""
        return "*" in self.backbone.pattern

    def hidden(self, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Features (B, L, D), with shared strands (B, L, 2 D) = [a | b].

        Args:
            ids: (B, L), bases or ``[MASK]``.
            mask: (B, L), true at real positions; at padded positions the features have no meaning.
        """
        if self.strands == "none":
            return self.backbone(self.embedding(ids), mask=mask)
        both = torch.cat([ids, reverse_complement(ids, mask, self.complement)])
        real = None if mask is None else torch.cat([mask, mask])
        a, other = self.backbone(self.embedding(both), mask=real).chunk(2)
        return torch.cat([a, flip_positions(other, mask).flip(-1)], dim=-1)

    def halves(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """What is pooled, (B, L, D) each: the features, or those of both strands in the same order of channels.

        Args:
            hidden: of `hidden`.
        """
        if self.strands == "none":
            return (hidden,)
        a, b = hidden.chunk(2, dim=-1)
        return a, b.flip(-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (B, L, V) of the token at each position.

        Args:
            hidden: of `hidden`.
        """
        first, *other = self.halves(hidden)
        logits = self.lm_head(first)
        return logits + self.lm_head(other[0])[..., self.complement] if other else logits

    def forward(self, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of the token at each position, which masked training hides.

        Args:
            ids: (B, L), bases or ``[MASK]``.
            mask: (B, L), true at real positions.
        """
        return self.logits(self.hidden(ids, mask=mask))
