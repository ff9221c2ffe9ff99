"""Classification and regression of sequences on top of any genome network: echo embedding, pooling, head.

Interface for prediction: ``forward(ids, mask)`` returns logits, or numbers in the user's units; ``predict(ids, mask)``
returns probabilities, or numbers, averaged over both strands if the model was trained for it; ``embed(ids, mask)``
returns the pooled input features of the head. ``ids`` (B, L) are bases without special tokens; ``mask`` (B, L) is True
at real positions.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.nn.dropout import Dropout
from seqssm.nn.etf import Classifying, Head, make_head
from seqssm.nn.selective_projector import POSITIONS, Branches, make_projector, segment_means
from seqssm_dna.strands import compacted, complement_table, reverse_complement
from seqssm_dna.tokens import BOS, FIXED, PAD, SEP

Echo = Literal["none", "same", "reverse_complement"]
Pool = Literal["mean", "max", "last"]


def echoed(ids: Tensor, counts: Tensor, echo: Echo, separator: bool, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Build the input of a causal network: ``[BOS]``, the copy, optionally ``[SEP]``, the sequence, padding.

    Args:
        ids: token ids, (B, L), padded at the end.
        counts: number of real positions, (B,).
        echo: kind of the copy; ``"none"`` omits it.
        separator: whether ``[SEP]`` separates the copies.
        table: result of `seqssm_dna.strands.complement_table`.

    Returns:
        (tokens (B, T), mask (B, T), first (B,): position of the sequence's first base). T is 1 + L, or 1 + 2 L, plus 1
        for the separator. Padding follows the last base and is never between the copies.
    """
    batch, length = ids.shape
    rows = torch.arange(length, device=ids.device)
    real = rows < counts[:, None]
    start = ids.new_full((batch, 1), BOS)
    if echo == "none":
        tokens = torch.cat([start, ids.masked_fill(~real, PAD)], dim=1)
        mask = torch.cat([real.new_ones(batch, 1), real], dim=1)
        return tokens, mask, torch.ones_like(counts)
    extra = int(separator)
    copy = reverse_complement(ids, real, table) if echo == "reverse_complement" else ids
    tokens = ids.new_full((batch, 1 + 2 * length + extra), PAD)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    first = 1 + counts + extra
    everywhere = torch.arange(tokens.shape[1], device=ids.device).expand_as(tokens)
    mask = everywhere < (first + counts)[:, None]
    before = (everywhere - 1).clamp(0, length - 1)
    behind = (everywhere - first[:, None]).clamp(0, length - 1)
    tokens = torch.where(everywhere < 1 + counts[:, None], copy.gather(1, before), ids.gather(1, behind))
    if separator:
        tokens = tokens.masked_fill(everywhere == 1 + counts[:, None], SEP)
    tokens = tokens.masked_fill(everywhere == 0, BOS).masked_fill(~mask, PAD)
    return tokens, mask, first


def pooled(x: Tensor, mask: Tensor, pool: Pool) -> Tensor:
    """Pool the real positions of each sequence into one vector, (B, D).

    Args:
        x: features, (B, L, D).
        mask: mask, (B, L), True at real positions, of which each sequence has at least one.
        pool: ``"mean"``, ``"max"`` or ``"last"``.
    """
    if pool == "last":
        place = torch.arange(x.shape[1], device=x.device).expand_as(mask)
        last = place.masked_fill(~mask, -1).amax(1).clamp(min=0)
        return x[torch.arange(x.shape[0], device=x.device), last]
    real = mask.unsqueeze(-1)
    if pool == "max":
        return x.masked_fill(~real, -torch.inf).amax(1)
    return x.masked_fill(~real, 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1).to(x.dtype)


class GenomeClassifier(Classifying):
    """Predicts classes, labels or numbers of sequences.

    With the echo embedding (arXiv 2502.10807, section 3), a causal network reads the sequence twice, and the second
    copy is pooled: each of its positions depends on the whole sequence. State, convolution and attention continue from
    the first copy to the second; the computation takes twice as long.

    Args:
        network: a network of `seqssm_dna.model` or `seqssm_dna.rivals`.
        n_outputs: number of classes, labels or values.
        target: ``"class"`` (softmax), ``"labels"`` (one sigmoid per label) or ``"value"`` (numbers).
        pool: pooling over positions: ``"mean"``, ``"max"`` or ``"last"``.
        echo: copy in front of the sequence, for causal networks: ``"none"``, ``"same"`` or ``"reverse_complement"``.
        echo_separator: whether ``[SEP]`` separates the copies.
        head_hidden: hidden width of the head; 0 for a linear head.
        dropout: dropout before the head.
        average_strands: whether `predict` averages the sequence and its reverse complement.
        class_head: kind of the last layer, `seqssm.nn.etf.make_head`.
        max_classes: largest number of classes of the head ``"etf"``.
        projector: branches of the selective projector between pooling and head.

    Raises:
        ValueError: echo with a bidirectional network, or more classes than the head can have.
    """

    center: Tensor
    scale: Tensor
    complement: Tensor

    def __init__(
        self,
        network: Any,
        n_outputs: int,
        target: Literal["class", "labels", "value"] = "class",
        pool: Pool = "mean",
        echo: Echo = "none",
        echo_separator: bool = False,
        head_hidden: int = 0,
        dropout: float = 0.0,
        average_strands: bool = False,
        class_head: Head = "linear",
        max_classes: int | None = None,
        projector: Branches = "none",
    ) -> None:
        super().__init__()
        if echo != "none" and not network.causal:
            raise ValueError(f"echo {echo}: requires a causal network; this one is bidirectional")
        self.network = network
        if getattr(network, "lm_head", None) is not None:
            network.lm_head = None  # unused parameters would stop training on several processes
        self.target, self.pool, self.echo, self.echo_separator = target, pool, echo, echo_separator
        self.average_strands = average_strands
        layers: list[nn.Module] = [Dropout(dropout)]
        if head_hidden:
            layers += [nn.Linear(network.width, head_hidden), nn.GELU(), Dropout(dropout)]
        layers.append(make_head(head_hidden or network.width, n_outputs, class_head, max_classes))
        self.head = nn.Sequential(*layers)
        self.projector = make_projector(network.width, projector)
        self.register_buffer("center", torch.zeros(n_outputs))
        self.register_buffer("scale", torch.ones(n_outputs))
        self.register_buffer("complement", complement_table(len(FIXED)), persistent=False)

    def tokens(self, length: int) -> int:
        """Return the number of tokens that the network reads for a sequence, which must fit into its context.

        Args:
            length: length of the sequence, bases.
        """
        if not self.network.causal:
            return length
        return 1 + length if self.echo == "none" else 1 + 2 * length + int(self.echo_separator)

    def positions(self, ids: Tensor, mask: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Compute the features to pool: (one (B, T, D) per strand of the network, mask of the positions (B, T)).

        Args:
            ids: token ids of bases, (B, L).
            mask: mask, (B, L), True at real positions, with padding on either side; None for no padding.
        """
        whole = mask is None  # known without reading values, as an exported graph needs it
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        if not self.network.causal:
            hidden = self.network.hidden(ids, mask=None if whole or bool(mask.all()) else mask)
            return list(self.network.halves(hidden)), mask
        front, counts = (ids, mask.sum(1)) if whole else compacted(ids, mask)
        tokens, real, first = echoed(front, counts, self.echo, self.echo_separator, self.complement)
        hidden = self.network.hidden(tokens, mask=None if whole or bool(real.all()) else real)
        return [hidden], real & (torch.arange(tokens.shape[1], device=ids.device) >= first[:, None])

    def class_inputs(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the pooled features (B, D), and means over segments of the sequence (B, T, D) for the projector.

        Args:
            ids: token ids of bases, (B, L).
            mask: mask, (B, L), True at real positions.
        """
        halves, own = self.positions(ids, mask)
        segments = mean_of(segment_means(half, POSITIONS, own) for half in halves)
        return mean_of(pooled(half, own, self.pool) for half in halves), segments

    def embed(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the features in front of the head, (B, D).

        Args:
            ids: token ids of bases, (B, L).
            mask: mask, (B, L), True at real positions, with padding on either side; None for no padding.
        """
        if self.projector is not None:
            return self.with_projector(*self.class_inputs(ids, mask))
        halves, own = self.positions(ids, mask)
        return mean_of(pooled(half, own, self.pool) for half in halves)

    def raw(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the output of the head, (B, n_outputs): logits, or standardised numbers.

        Args:
            ids: token ids of bases, (B, L).
            mask: mask, (B, L), True at real positions.
        """
        return self.head(self.embed(ids, mask))

    def forward(self, ids: Tensor, mask: Tensor | None = None, standardised: bool = False) -> Tensor:
        """Compute logits, (B, n_outputs), or numbers in the units of the training data.

        Args:
            ids: token ids of bases, (B, L).
            mask: mask, (B, L), True at real positions.
            standardised: whether to return standardised numbers instead.
        """
        raw = self.raw(ids, mask)
        return raw if standardised else raw * self.scale + self.center

    def predict(self, ids: Tensor, mask: Tensor | None = None, average_strands: bool | None = None) -> Tensor:
        """Compute probabilities, (B, n_outputs), or numbers in the units of the training data.

        Args:
            ids: token ids of bases, (B, L).
            mask: mask, (B, L), True at real positions.
            average_strands: whether to average over both strands; None for the setting of training.
        """
        both = self.average_strands if average_strands is None else average_strands
        found = self.activated(self(ids, mask))
        if not both:
            return found
        return (found + self.activated(self(reverse_complement(ids, mask, self.complement), mask))) / 2

    def activated(self, logits: Tensor) -> Tensor:
        """Convert logits to probabilities; numbers are returned unchanged.

        Args:
            logits: output of `forward`, (B, n_outputs).
        """
        if self.target == "value":
            return logits
        return F.softmax(logits.float(), -1) if self.target == "class" else logits.float().sigmoid()


def mean_of(parts: Any) -> Tensor:
    """Average the pooled features over the strands.

    Args:
        parts: features of one strand or both, (B, D) each.
    """
    found = list(parts)
    return found[0] if len(found) == 1 else torch.stack(found).mean(0)
