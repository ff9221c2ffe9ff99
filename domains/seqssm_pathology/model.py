"""Multiple-instance networks over packed bags: MambaMIL (arXiv 2403.06800) and its peers.

A network is a class whose signature is its configuration. All networks project the instances, optionally mix them, pool
each bag to one vector and end in a linear head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqssm.errors import InputError
from seqssm.orders import Spec, random
from seqssm.training.sizes import require_sizes
from seqssm_pathology.base import MILNetwork
from seqssm_pathology.mixers import Block
from seqssm_pathology.peers import ClamMB, ClamSB, DsMil, DtfdMil
from seqssm_pathology.pooling import AttentionPool, MaxPool, MeanPool, MixedPool, TransMILPooling

T = TypeVar("T", bound=nn.Module)
LONGEST_STRIDE = 100_000  # in instances; larger bags are rare
MOST_SHUFFLES = 1000
Pool = Literal["attention", "mixed"]
POOLS: dict[str, type[AttentionPool]] = {"attention": AttentionPool, "mixed": MixedPool}


def extends(base: type[nn.Module]) -> Callable[[type[T]], type[T]]:
    """Class decorator that adds the arguments of `base` to the signature of a constructor ending in ``**scan``.

    Args:
        base: class whose constructor takes the further arguments.
    """

    def decorate(cls: type[T]) -> type[T]:
        own, inherited = (list(inspect.signature(one.__init__).parameters.values()) for one in (cls, base))
        named = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        known = {parameter.name for parameter in named}
        more = [parameter for parameter in inherited if parameter.name not in known]
        constructor: Any = cls.__init__
        constructor.__signature__ = inspect.Signature([*named, *more])
        constructor.__annotations__ = {**base.__init__.__annotations__, **constructor.__annotations__}
        return cls

    return decorate


class ForwardMambaMIL(MILNetwork):
    """Blocks of Mamba scans in one direction, then attention pooling.

    With `shuffles`, each training step scans the instances of each bag in a new random order. Otherwise the network
    averages the pooled instances, scores and attention over that many fixed random orders of the bag.

    Args:
        d_in: feature width of an instance.
        num_classes: number of classes or time bins.
        d_model: width of an instance after the projection.
        layers: number of blocks of scans.
        d_state: state size of a scan.
        d_conv: kernel size of the convolution before a scan.
        expand: inner width of a block, in multiples of `d_model`.
        pool_width: inner width of the attention.
        pool: ``attention``, or ``mixed``: the mean of attention pooling and of the channel maxima.
        shuffles: number of random scan orders averaged in validation, test and prediction, with a new random order at
            each training step; 0 scans in the order of the data.
        dropout: dropout probability after the projection.
        tokens: number of columns of a value table; None for bags of patches.
        importance: whether scans visit instances by a learned score instead of the order of the data.
        positive_definite: whether to exclude the convergent regime of the scans (arXiv 2410.03292).
        chunk_size: chunk length for scanning longer bags, to save memory.
        recompute: whether to recompute blocks in the backward pass, to save memory.
        engine: engine of the scans; by default the best one for the device.
    """

    ordering: Spec = "forward"
    pads = 1  # bags are zero-padded to a multiple of this; the reordered scan visits the padding

    def __init__(
        self,
        d_in: int,
        num_classes: int,
        d_model: int = 512,
        layers: int = 2,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        pool_width: int = 128,
        pool: Pool = "attention",
        shuffles: int = 0,
        dropout: float = 0.25,
        tokens: int | None = None,
        importance: bool = False,
        positive_definite: bool = False,
        chunk_size: int = 4096,
        recompute: bool = False,
        engine: str | None = None,
    ) -> None:
        super().__init__(d_in, num_classes, d_model, dropout, tokens)
        require_sizes(layers=layers, d_state=d_state, d_conv=d_conv, pool_width=pool_width, chunk_size=chunk_size)
        if not 0 <= shuffles <= MOST_SHUFFLES:
            raise InputError(f"--model.shuffles {shuffles}: must be in [0, {MOST_SHUFFLES}]")
        if shuffles and importance:
            raise InputError("--model.importance true defines its own order; remove --model.shuffles")
        self.recompute, self.shuffles = recompute, shuffles
        sizes = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "engine": engine}
        self.blocks = nn.ModuleList(
            Block(d_model, self.ordering, sizes, importance, positive_definite, chunk_size, self.pads)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.pool = POOLS[pool](d_model, pool_width, gated=False)
        self.head = nn.Linear(d_model, num_classes)

    def represent(
        self, h: Tensor, cu_seqlens: Tensor, lengths: list[int], order: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not self.shuffles:
            return super().represent(h, cu_seqlens, lengths, order)
        draws = []
        for draw in range(1 if self.training else self.shuffles):
            shuffled = self._shuffled(lengths, None if self.training else draw).to(h.device)
            draws.append(super().represent(h, cu_seqlens, lengths, shuffled))
        pooled, scores, attention = (sum(parts) / len(draws) for parts in zip(*draws))
        return pooled, scores, attention

    def _shuffled(self, lengths: list[int], draw: int | None) -> Tensor:
        """Return a random order within each bag, (total,); with `draw` it depends on that and on the bag's size."""
        start, parts = 0, []
        for length in lengths:
            own = torch.randperm(length) if draw is None else random(length, draw)
            parts.append(own + start)
            start += length
        return torch.cat(parts)

    def mix(self, h: Tensor, cu_seqlens: Tensor, lengths: list[int], order: Tensor | None) -> Tensor:
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                h = checkpoint(block, h, cu_seqlens, lengths, order, use_reentrant=False)
            else:
                h = block(h, cu_seqlens, lengths, order)
        return self.norm(h)


class BiMambaMIL(ForwardMambaMIL):
    """Blocks of Mamba scans in both directions, then attention pooling.

    Arguments are those of `ForwardMambaMIL`.
    """

    ordering: Spec = "bidirectional"


@extends(ForwardMambaMIL)
class MambaMIL(ForwardMambaMIL):
    """MambaMIL (arXiv 2403.06800): each block scans the instances in sequence and reordered by a stride.

    Further arguments are those of `ForwardMambaMIL`.

    Args:
        d_in: feature width of an instance.
        num_classes: number of classes or time bins.
        stride: stride of the second scan: every `stride`-th instance from the first one, then from the second one, ...
        pad_to_stride: whether bags are zero-padded to a multiple of `stride`, with the padding inside the reordered
        sequence, as in the released code.
        **scan: further arguments of `ForwardMambaMIL`.
    """

    def __init__(self, d_in: int, num_classes: int, stride: int = 5, pad_to_stride: bool = False, **scan: Any) -> None:
        require_sizes(stride=stride)
        if stride > LONGEST_STRIDE:
            raise InputError(f"--model.stride {stride}: at most {LONGEST_STRIDE}")
        if pad_to_stride and scan.get("importance"):
            raise InputError("--model.importance true defines its own order; remove --model.pad_to_stride")
        self.ordering = ["forward", {"stride": stride}]
        self.pads = stride if pad_to_stride else 1
        super().__init__(d_in, num_classes, **scan)


class AbMil(MILNetwork):
    """Attention pooling of the projected instances (Ilse et al., ICML 2018).

    Args:
        d_in: feature width of an instance.
        num_classes: number of classes or time bins.
        d_model: width of an instance after the projection.
        pool_width: inner width of the attention.
        pool: ``attention``, or ``mixed``: the mean of attention pooling and of the channel maxima.
        dropout: dropout probability after the projection.
        tokens: number of columns of a value table; None for bags of patches.
    """

    gated = False

    def __init__(
        self,
        d_in: int,
        num_classes: int,
        d_model: int = 512,
        pool_width: int = 128,
        pool: Pool = "attention",
        dropout: float = 0.25,
        tokens: int | None = None,
    ) -> None:
        super().__init__(d_in, num_classes, d_model, dropout, tokens)
        require_sizes(pool_width=pool_width)
        self.pool = POOLS[pool](d_model, pool_width, gated=self.gated)
        self.head = nn.Linear(d_model, num_classes)


class GatedAbMil(AbMil):
    """Gated attention pooling (Ilse et al., ICML 2018); the arguments are those of `AbMil`."""

    gated = True


class MeanMil(MILNetwork):
    """Mean of the projected instances.

    Args:
        d_in: feature width of an instance.
        num_classes: number of classes or time bins.
        d_model: width of an instance after the projection.
        dropout: dropout probability after the projection.
        tokens: number of columns of a value table; None for bags of patches.
    """

    pooling: Callable[[], nn.Module] = MeanPool

    def __init__(
        self, d_in: int, num_classes: int, d_model: int = 512, dropout: float = 0.25, tokens: int | None = None
    ) -> None:
        super().__init__(d_in, num_classes, d_model, dropout, tokens)
        self.pool = type(self).pooling()
        self.head = nn.Linear(d_model, num_classes)


class MaxMil(MeanMil):
    """Maximum of each channel over the projected instances; the arguments are those of `MeanMil`."""

    pooling = MaxPool


class TransMil(MILNetwork):
    """Attention between the instances of a bag, in the style of TransMIL (NeurIPS 2021); quadratic in the bag size.

    Args:
        d_in: feature width of an instance.
        num_classes: number of classes or time bins.
        d_model: width of an instance after the projection, a multiple of `heads`.
        heads: number of attention heads.
        dropout: dropout probability after the projection.
        tokens: number of columns of a value table; None for bags of patches.
    """

    def __init__(
        self,
        d_in: int,
        num_classes: int,
        d_model: int = 512,
        heads: int = 8,
        dropout: float = 0.25,
        tokens: int | None = None,
    ) -> None:
        super().__init__(d_in, num_classes, d_model, dropout, tokens)
        require_sizes(heads=heads)
        if d_model % heads:
            raise InputError(f"--model.d_model {d_model} is not divisible by --model.heads {heads}")
        self.pool = TransMILPooling(d_model, heads)
        self.head = nn.Linear(d_model, num_classes)


NETWORKS: dict[str, type[MILNetwork]] = {
    "srmamba": MambaMIL,
    "bimamba": BiMambaMIL,
    "mamba": ForwardMambaMIL,
    "abmil": AbMil,
    "abmil_gated": GatedAbMil,
    "mean": MeanMil,
    "max": MaxMil,
    "transmil": TransMil,
    "clam_sb": ClamSB,
    "clam_mb": ClamMB,
    "dsmil": DsMil,
    "dtfd": DtfdMil,
}
"""Networks by ``--model.network`` name; the first one is the default."""
