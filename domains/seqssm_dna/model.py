"""Genome networks: a causal language model, and a bidirectional encoder, optionally equivariant to the strands.

Interface for prediction:

- A causal model reads ``[BOS]``, prefix tokens if it has any, bases, and ``[SEP]`` at the end of a sequence; the logits
  at a position are those of the *next* token. `CausalNetwork` is the interface: ``forward``, ``hidden``, ``step``,
  ``prefill``, ``new_state``; `seqssm.nn.chunks` and `seqssm.nn.generation` accept such a model.
- An encoder reads bases only; its logits at a position are those of the token *at* this position (masked training).
- ``network.causal`` distinguishes the two; ``network.width`` is the width D of the features pooled by
  `seqssm_dna.classifier`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from seqssm.nn.backbone import Backbone
from seqssm.nn.language_model import LanguageModel
from seqssm.nn.state import State
from seqssm.training.sizes import require_rates, require_sizes
from seqssm_dna.convolutions import LAYERS, CausalConvolutions
from seqssm_dna.strands import complement_table, flip_positions, reverse_complement
from seqssm_dna.tokens import FIXED

Mixer = Literal["mamba2", "mamba", "mamba3", "attention"]
Bidirectional = Literal["mamba", "mamba2", "mamba3"]
SYMBOLS = {"mamba2": "M", "mamba": "m", "mamba3": "3", "attention": "*"}
HEAD = 64  # width of an attention head, if the model is wide enough
WIDEST = 1000  # maximum hidden width of an MLP relative to D
QUERIES = 4  # query heads per key-value head


def layer_pattern(n_layers: int, mixer: str, attn_period: int, attn_offset: int, mlp: bool) -> str:
    """Return the layer pattern of a stack, with attention in layers offset, offset + period, ...

    Args:
        n_layers: number of mixers, including attention.
        mixer: mixer of the other layers.
        attn_period: distance between attention layers; 0 for none.
        attn_offset: index of the first attention layer, from 0.
        mlp: whether an MLP follows every mixer.

    Raises:
        ValueError: an unknown mixer, or an offset outside of its period.
    """
    if mixer not in SYMBOLS:
        raise ValueError(f"mixer {mixer}: expected one of {', '.join(SYMBOLS)}")
    if min(attn_period, attn_offset) < 0 or (attn_period and attn_offset >= attn_period):
        raise ValueError(f"attn_period {attn_period}, attn_offset {attn_offset}: expected 0 <= offset < period")
    symbols = [
        "*" if attn_period and layer % attn_period == attn_offset else SYMBOLS[mixer] for layer in range(n_layers)
    ]
    return "".join(symbol + "-" * mlp for symbol in symbols)


def build_backbone(
    d_model: int,
    n_layers: int,
    mixer: str,
    *,
    attn_period: int = 0,
    attn_offset: int = 0,
    attn_window: int | None = None,
    mlp_ratio: float = 0.0,
    dropout: float = 0.0,
    d_state: int | None = None,
    head_dim: int | None = None,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    engine: str | None = None,
    merge: str | None = None,
) -> Backbone:
    """Build the stack of a genome network.

    Args:
        d_model: D, width of the model.
        n_layers: number of mixers, including attention.
        mixer: mixer of the layers other than attention.
        attn_period: distance between attention layers; 0 for none.
        attn_offset: index of the first attention layer, from 0.
        attn_window: window of attention, positions; None for all.
        mlp_ratio: inner width of the MLP behind every mixer, over D; 0: no MLP.
        dropout: on every layer's output, in training.
        d_state: states of the scans; None: the layer's own default.
        head_dim: channels of a head of Mamba-2 and Mamba-3; None: 64, or all channels where there are fewer.
        n_heads: query heads of attention; None: heads of 64.
        n_kv_heads: heads of keys and values; None: one for four query heads.
        engine: engine of the scans.
        merge: merge of the two directions of a layer; None for forward scans and causal attention.

    Raises:
        InputError: a size below 1, or a rate outside [0, 1).
        ValueError: an unknown mixer, or sizes that do not fit together.
    """
    optional = {"d_state": d_state, "head_dim": head_dim, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    optional["attn_window"] = attn_window
    require_sizes(d_model=d_model, n_layers=n_layers, **{k: size for k, size in optional.items() if size is not None})
    require_rates(dropout=dropout)
    if not 0 <= mlp_ratio <= WIDEST:
        raise ValueError(f"mlp_ratio {mlp_ratio}: must be in [0, {WIDEST}]")
    scan: dict[str, Any] = {"engine": engine}
    if merge is not None:
        scan |= {"ordering": "bidirectional", "merge": merge}
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
        "causal": merge is None,
    }
    options = {
        "M": ("mamba2", {**scan, **heads}),
        "m": ("mamba", scan),
        "3": ("mamba3", {**scan, **heads}),
        "*": ("attention", attention),
        "-": ("mlp", {"hidden": max(1, round(mlp_ratio * d_model))}),
    }
    pattern = layer_pattern(n_layers, mixer, attn_period, attn_offset, mlp_ratio > 0)
    own = {name: values for symbol, (name, values) in options.items() if symbol in pattern}
    return Backbone(d_model, pattern, dropout=dropout, **own)


class OneStrand:
    """A network whose features are those of the strand that it reads."""

    def halves(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Return the features to pool, (B, L, D) each: the features themselves.

        Args:
            hidden: features of the network.
        """
        return (hidden,)


class GenomeLM(OneStrand, LanguageModel):
    """A causal language model of DNA: HybriDNA's stack of Mamba-2 and attention, or a single mixer type.

    Each layer is x + mixer(norm(x)), followed by x + mlp(norm(x)) unless `mlp_ratio` is 0 (arXiv 2502.10807). There are
    no positional encodings. Residual causal convolutions may precede the stack.

    Args:
        d_model: D, width of the model.
        n_layers: number of mixers, including attention.
        mixer: mixer of the layers other than the periodic attention.
        attn_period: distance between attention layers, 8 in HybriDNA; 0 for none.
        attn_offset: index of the first attention layer, from 0.
        attn_window: window of attention, tokens, including the position itself; None for all preceding tokens.
        mlp_ratio: hidden width of the gated MLP after every mixer, relative to d_model, 2 in HybriDNA; 0 for no MLP.
        dropout: dropout on the output of every layer.
        d_state: states per channel of the scans; by default that of the mixer.
        head_dim: channels per head of Mamba-2 and Mamba-3 (other mixers have no heads).
        n_heads: number of query heads of attention; by default heads of 64 channels.
        n_kv_heads: number of key-value heads; by default one per four query heads.
        tie: whether the head shares the weights of the embedding.
        n_labels: number of additional prefix tokens, with ids from 12.
        strands: only ``none``: with shared strands, later bases would leak into the prediction.
        engine: engine of the scans.
        conv_layers: number of causal convolutions before the mixers, with dilations 1, 2, 4, ...; 0 for none.
        conv_kernel: kernel size of these convolutions, letters.

    Raises:
        ValueError: a size is out of range, or strands are shared.
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
        conv_layers: int = 0,
        conv_kernel: int = 4,
    ) -> None:
        if strands != "none":
            raise ValueError(
                "strands shared: a causal model would read the bases that it predicts; use masked pretraining with an "
                "encoder, or data.reverse_complement"
            )
        backbone = build_backbone(
            d_model,
            n_layers,
            mixer,
            attn_period=attn_period,
            attn_offset=attn_offset,
            attn_window=attn_window,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            d_state=d_state,
            head_dim=head_dim,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            engine=engine,
        )
        LAYERS.require("--model.conv_layers", conv_layers)
        require_sizes(conv_kernel=conv_kernel)
        super().__init__(len(FIXED) + n_labels, backbone, tie=tie)
        self.attn_window = attn_window
        self.convs = CausalConvolutions(d_model, conv_layers, conv_kernel, dropout) if conv_layers else None

    @property
    def width(self) -> int:
        """Width D of the features."""
        return self.backbone.d_model

    @property
    def has_attention(self) -> bool:
        """Whether there is an attention layer."""
        return "*" in self.backbone.pattern

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.convs is not None:
            self.convs.reset_parameters()

    def hidden(
        self,
        ids: Tensor,
        state: State | None = None,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        """Compute features after each token, (B, L, D), or (features, state); arguments as for `forward`.

        Args:
            ids: token ids, (B, L).
            state: state after the preceding piece.
            mask: mask, (B, L), True at real positions.
            cu_seqlens: start offsets of packed sequences (B = 1) and the total length, (n + 1,) int32.
            return_state: whether to also return the state.
        """
        shared: dict[str, Any] = {"mask": mask, "cu_seqlens": cu_seqlens, "return_state": return_state}
        if self.convs is None:
            return super().hidden(ids, state, **shared)
        x = self.convs(self.embedding(ids), None if state is None else state["convs"], **shared)
        if not return_state:
            return self.backbone(x, state, **shared)
        y, after = self.backbone(x[0], state, **shared)
        return y, State(**after, convs=x[1])

    def step(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        if self.convs is None:
            return super().step(ids, state)
        x, convs = self.convs.step(self.embedding(ids), state["convs"])
        y, after = self.backbone.step(x, state)
        return self.logits(y), State(**after, convs=convs)

    def new_state(self, batch_size: int) -> State:
        state = super().new_state(batch_size)
        return state if self.convs is None else State(**state, convs=self.convs.new_state(batch_size))


class GenomeEncoder(nn.Module):
    """A bidirectional encoder for masked training, optionally with parameters shared by both strands (Caduceus-PS).

    With ``strands="shared"``, the features have 2 D channels [a | b] (arXiv 2403.03234, section 4.2): a is the output
    of the stack for the sequence, b that for its reverse complement, with positions and channels reversed. Let R
    reverse positions and channels; then hidden(rc(x)) = R hidden(x) exactly, and the logits of the reverse complement
    are those of the sequence, reversed and complemented.

    Args:
        d_model: D, width of the model.
        n_layers: number of mixers, including attention.
        mixer: mixer of the layers other than the periodic attention.
        merge: merge of the two directions of a layer.
        attn_period: distance between (bidirectional) attention layers; 0 for none.
        attn_offset: index of the first attention layer, from 0.
        attn_window: window of attention to each side, positions, including the position itself; None for all.
        mlp_ratio: hidden width of the gated MLP after every mixer, relative to d_model; 0 for no MLP.
        dropout: dropout on the output of every layer.
        d_state: states per channel of the scans; by default that of the mixer.
        head_dim: channels per head of Mamba-2 and Mamba-3.
        n_heads: number of query heads of attention; by default heads of 64 channels.
        n_kv_heads: number of key-value heads; by default one per four query heads.
        strands: none, or shared: parameters shared by both strands, exactly equivariant, at twice the computation.
        engine: engine of the scans.

    Raises:
        ValueError: a size is out of range.
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
        backbone = build_backbone(
            d_model,
            n_layers,
            mixer,
            attn_period=attn_period,
            attn_offset=attn_offset,
            attn_window=attn_window,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            d_state=d_state,
            head_dim=head_dim,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            engine=engine,
            merge=merge,
        )
        self.strands, self.attn_window, self.width = strands, attn_window, d_model
        self.embedding = nn.Embedding(len(FIXED), d_model)
        self.backbone = backbone
        self.lm_head = nn.Linear(d_model, len(FIXED), bias=False)
        self.register_buffer("complement", complement_table(len(FIXED)), persistent=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    @property
    def has_attention(self) -> bool:
        """Whether there is an attention layer."""
        return "*" in self.backbone.pattern

    def hidden(self, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Compute features, (B, L, D), or with shared strands (B, L, 2 D) = [a | b].

        Args:
            ids: token ids of bases or ``[MASK]``, (B, L).
            mask: mask, (B, L), True at real positions; features at padded positions are undefined.
        """
        if self.strands == "none":
            return self.backbone(self.embedding(ids), mask=mask)
        both = torch.cat([ids, reverse_complement(ids, mask, self.complement)])
        real = None if mask is None else torch.cat([mask, mask])
        a, other = self.backbone(self.embedding(both), mask=real).chunk(2)
        return torch.cat([a, flip_positions(other, mask).flip(-1)], dim=-1)

    def halves(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Return the features to pool, one per strand, (B, L, D) each, with the same order of channels.

        Args:
            hidden: result of `hidden`.
        """
        if self.strands == "none":
            return (hidden,)
        a, b = hidden.chunk(2, dim=-1)
        return a, b.flip(-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute logits, (B, L, V), of the token at each position.

        Args:
            hidden: result of `hidden`.
        """
        first, *other = self.halves(hidden)
        logits = self.lm_head(first)
        return logits + self.lm_head(other[0])[..., self.complement] if other else logits

    def forward(self, ids: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Compute logits, (B, L, V), of the token at each position, for masked training.

        Args:
            ids: token ids of bases or ``[MASK]``, (B, L).
            mask: mask, (B, L), True at real positions.
        """
        return self.logits(self.hidden(ids, mask=mask))
