"""Published multiple-instance networks, implemented from their papers: CLAM, DSMIL and DTFD-MIL.

They share the projection, the data, the loss of the bags and the training of all networks of this package.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqssm.errors import InputError
from seqssm.training.sizes import require_sizes
from seqssm_pathology.base import Criterion, MILNetwork, Output
from seqssm_pathology.pooling import AttentionPool, bag_of, bag_softmax, last_of, sums

InstanceLoss = Literal["svm", "cross_entropy", "none"]
Distillation = Literal["afs", "maxs", "maxmins", "mas"]


def smooth_svm(logits: Tensor, labels: Tensor, margin: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Compute the smooth top-1 support vector loss (Berrada et al., ICLR 2018, equation 5 with k = 1), mean over rows.

    t log sum_j exp((s_j - s_y + margin [j != y]) / t); for t to 0 it becomes the multi-class hinge loss.

    Args:
        logits: scores s, (n, C).
        labels: class indices y, (n,).
        margin: margin of the wrong classes.
        temperature: temperature t.
    """
    own = logits.gather(1, labels.unsqueeze(1))
    gap = logits - own + margin
    gap = gap.scatter(1, labels.unsqueeze(1), 0.0)
    return (temperature * torch.logsumexp(gap / temperature, 1)).mean()


class ClassHeads(nn.Module):
    """One linear classifier per class, on the bag vector of that class.

    Args:
        d_model: width of a vector.
        num_classes: number of classes.
    """

    def __init__(self, d_model: int, num_classes: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(d_model, 1) for _ in range(num_classes))

    def forward(self, vectors: Tensor) -> Tensor:
        """Map (bags, num_classes * D), the vectors of all classes, to logits (bags, num_classes)."""
        own = vectors.chunk(len(self.heads), dim=1)
        return torch.cat([head(one) for head, one in zip(self.heads, own)], dim=1)


class ClassAttention(nn.Module):
    """Gated attention with one softmax per class (CLAM, equation 1).

    Args:
        d_model: width of an instance.
        width: inner width of the attention.
        branches: number of attention branches.
    """

    def __init__(self, d_model: int, width: int, branches: int) -> None:
        super().__init__()
        self.V, self.U = nn.Linear(d_model, width), nn.Linear(d_model, width)
        self.w = nn.Linear(width, branches)

    def forward(self, h: Tensor, bag: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Pool h (total, D) to ((count, branches * D), scores (total, branches), attention (total, branches))."""
        scores = self.w(torch.tanh(self.V(h)) * torch.sigmoid(self.U(h)))
        attention = bag_softmax(scores.float(), bag, count)
        pooled = [sums(one.to(h.dtype).unsqueeze(-1) * h, bag, count) for one in attention.unbind(1)]
        return torch.cat(pooled, dim=1), scores, attention


class ClamSB(MILNetwork):
    """CLAM with one attention branch for all classes (Lu et al., Nature Biomedical Engineering 2021).

    In training, an instance classifier per class separates the instances with the highest attention of a bag (pseudo-
    label 1 for the class of the bag) from those with the lowest (0); with `exclusive`, the highest ones are also
    negative for all other classes. The loss is bag_weight * L_bag + (1 - bag_weight) * L_instance. L_instance needs one
    class per bag; for other targets the loss is L_bag.

    Args:
        d_in: feature width of an instance.
        num_classes: number of classes or time bins.
        d_model: width of an instance after the projection.
        pool_width: inner width of the attention.
        instance_loss: loss of the instance classifiers: ``svm`` (smooth top-1 SVM), ``cross_entropy`` or ``none``.
        instances: number of instances with the highest, and with the lowest attention, per bag; at most half of a bag.
        bag_weight: weight of the loss of the bags.
        exclusive: whether a bag of one class has no instance of another class.
        dropout: dropout probability after the projection.
        tokens: number of columns of a value table; None for bags of patches.
    """

    per_class = False

    def __init__(
        self,
        d_in: int,
        num_classes: int,
        d_model: int = 512,
        pool_width: int = 256,
        instance_loss: InstanceLoss = "svm",
        instances: int = 8,
        bag_weight: float = 0.7,
        exclusive: bool = True,
        dropout: float = 0.25,
        tokens: int | None = None,
    ) -> None:
        super().__init__(d_in, num_classes, d_model, dropout, tokens)
        require_sizes(pool_width=pool_width, instances=instances)
        if not 0 < bag_weight <= 1:
            raise InputError(f"--model.bag_weight {bag_weight}: must be in (0, 1]")
        self.instance_loss, self.instances = instance_loss, instances
        self.bag_weight, self.exclusive = bag_weight, exclusive
        if self.per_class:
            self.pool = ClassAttention(d_model, pool_width, num_classes)
            self.head: nn.Module = ClassHeads(d_model, num_classes)
        else:
            self.pool = AttentionPool(d_model, pool_width, gated=True)
            self.head = nn.Linear(d_model, num_classes)
        self.instance_head = None if instance_loss == "none" else nn.Linear(d_model, 2 * num_classes)

    def forward(self, features: Tensor, cu_seqlens: Tensor, lengths: list[int], order: Tensor | None = None) -> Output:
        h = self.dropout(self.project(features))
        pooled, scores, attention = self.represent(h, cu_seqlens, lengths, order)
        inner = {"h": h, "lengths": torch.tensor(lengths)} if self.training else None
        return Output(self.head(pooled), scores, attention, inner)

    def loss(self, out: Output, criterion: Criterion, labels: Tensor | None) -> Tensor:
        of_bags = criterion(out.logits, None)
        if out.inner is None or self.instance_head is None:
            return of_bags
        if labels is None:  # the parameters still take part, as distributed training requires
            return of_bags + 0 * sum(p.sum() for p in self.instance_head.parameters())
        lengths = out.inner["lengths"].tolist()
        parts = zip(out.inner["h"].split(lengths), out.scores.split(lengths), labels.tolist())
        of_instances = torch.stack([self._clustering(h, scores, label) for h, scores, label in parts]).mean()
        return self.bag_weight * of_bags + (1 - self.bag_weight) * of_instances

    def _clustering(self, h: Tensor, scores: Tensor, label: int) -> Tensor:
        """Compute the instance loss of one bag, mean over the classes that have pseudo-labels."""
        assert self.instance_head is not None
        n, classes = len(h), self.head_classes
        highest, lowest = min(self.instances, (n + 1) // 2), min(self.instances, n // 2)
        losses = []
        for c in range(classes) if self.exclusive else (label,):
            own = scores[:, c] if scores.ndim == 2 else scores
            chosen = own.topk(highest).indices
            pseudo = torch.full((highest,), int(c == label), device=h.device)
            if c == label:
                chosen = torch.cat([chosen, own.topk(lowest, largest=False).indices])
                pseudo = torch.cat([pseudo, pseudo.new_zeros(lowest)])
            logits = self.instance_head(h[chosen]).view(-1, classes, 2)[:, c].float()
            losses.append((smooth_svm if self.instance_loss == "svm" else F.cross_entropy)(logits, pseudo))
        return torch.stack(losses).mean()

    @property
    def head_classes(self) -> int:
        """Number of classes."""
        assert self.instance_head is not None
        return self.instance_head.out_features // 2


class ClamMB(ClamSB):
    """CLAM with one attention branch and one classifier per class; the arguments are those of `ClamSB`."""

    per_class = True


class DsMil(MILNetwork):
    """DSMIL, the dual-stream network (Li, Li and Eliceiri, CVPR 2021), on features of one magnification.

    The first stream scores all instances per class, and the bag by its highest instance. The second stream attends, per
    class, to the instances similar to that critical instance: weights softmax(<q_i, q_critical> / sqrt(width)). The
    logits are the mean of both streams, the loss the mean of both streams' losses.

    Args:
        d_in: feature width of an instance.
        num_classes: number of classes or time bins.
        d_model: width of an instance after the projection.
        pool_width: width of the queries.
        dropout: dropout probability after the projection.
        tokens: number of columns of a value table; None for bags of patches.
    """

    def __init__(
        self,
        d_in: int,
        num_classes: int,
        d_model: int = 512,
        pool_width: int = 128,
        dropout: float = 0.25,
        tokens: int | None = None,
    ) -> None:
        super().__init__(d_in, num_classes, d_model, dropout, tokens)
        require_sizes(pool_width=pool_width)
        self.instance_head = nn.Linear(d_model, num_classes)
        self.q = nn.Sequential(nn.Linear(d_model, pool_width), nn.ReLU(), nn.Linear(pool_width, pool_width), nn.Tanh())
        self.v = nn.Linear(d_model, d_model)
        self.head = nn.Linear(num_classes * d_model, num_classes)

    def forward(self, features: Tensor, cu_seqlens: Tensor, lengths: list[int], order: Tensor | None = None) -> Output:
        h = self.dropout(self.project(features))
        bag, count = bag_of(cu_seqlens, len(h)), len(lengths)
        of_instances = self.instance_head(h)
        critical = torch.stack([last_of(one, bag, count) for one in of_instances.unbind(1)], dim=1)  # (bags, C)
        highest = of_instances.gather(0, critical)
        q = self.q(h)
        scores = (q.unsqueeze(1) * q[critical][bag]).sum(-1) * q.shape[1] ** -0.5  # (total, C)
        attention = bag_softmax(scores.float(), bag, count)
        v = self.v(h)
        pooled = torch.cat([sums(one.to(v.dtype).unsqueeze(-1) * v, bag, count) for one in attention.unbind(1)], dim=1)
        of_bags = self.head(pooled)
        inner = {"highest": highest, "of_bags": of_bags} if self.training else None
        return Output((highest + of_bags) / 2, scores, attention, inner)

    def loss(self, out: Output, criterion: Criterion, labels: Tensor | None) -> Tensor:
        if out.inner is None:
            return criterion(out.logits, None)
        return (criterion(out.inner["highest"], None) + criterion(out.inner["of_bags"], None)) / 2


class DtfdMil(MILNetwork):
    """DTFD-MIL, double-tier feature distillation (Zhang et al., CVPR 2022).

    A bag is divided into pseudo-bags: at random in training, else every `pseudo_bags`-th instance. The first tier is
    gated attention pooling with a classifier, on the pseudo-bags with the target of their bag. Each pseudo-bag is
    distilled to one or two vectors, which the second tier pools in the same way. An instance's class probability is
    that of the class activation map, softmax over c of a_n <w_c, h_n>. The loss is the sum of both tiers' losses.

    Args:
        d_in: feature width of an instance.
        num_classes: number of classes or time bins.
        d_model: width of an instance after the projection.
        pool_width: inner width of the attention of both tiers.
        pseudo_bags: number of pseudo-bags per bag; a smaller bag has one per instance.
        distillation: vectors of a pseudo-bag: its pooled vector (``afs``), its most probable instance for the class of
            the pseudo-bag (``maxs``), its most and its least probable instance (``maxmins``), or its instance with the
            highest attention (``mas``).
        dropout: dropout probability after the projection.
        tokens: number of columns of a value table; None for bags of patches.
    """

    def __init__(
        self,
        d_in: int,
        num_classes: int,
        d_model: int = 512,
        pool_width: int = 128,
        pseudo_bags: int = 5,
        distillation: Distillation = "afs",
        dropout: float = 0.25,
        tokens: int | None = None,
    ) -> None:
        super().__init__(d_in, num_classes, d_model, dropout, tokens)
        require_sizes(pool_width=pool_width, pseudo_bags=pseudo_bags)
        self.pseudo_bags, self.distillation = pseudo_bags, distillation
        self.first_pool = AttentionPool(d_model, pool_width, gated=True)
        self.first_head = nn.Linear(d_model, num_classes)
        self.pool = AttentionPool(d_model, pool_width, gated=True)
        self.head = nn.Linear(d_model, num_classes)

    def forward(self, features: Tensor, cu_seqlens: Tensor, lengths: list[int], order: Tensor | None = None) -> Output:
        h = self.dropout(self.project(features))
        group, bag = self._divided(lengths, h.device)
        count = len(bag)
        pooled, _, attention = self.first_pool(h, group, count)
        first = self.first_head(pooled)
        vectors, source = self._distilled(h, group, pooled, attention, first)
        pooled, _, second = self.pool(vectors, bag[source], len(lengths))
        weight = sums(second, source, count)[group]  # of the pseudo-bag of each instance in its bag
        tiny = torch.finfo(torch.float32).tiny
        ranked = torch.log(attention.clamp_min(tiny)) + torch.log(weight.clamp_min(tiny))
        inner = {"first": first, "bag": bag} if self.training else None
        return Output(self.head(pooled), ranked, attention * weight, inner)

    def _divided(self, lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Divide bags into pseudo-bags: (pseudo-bag of each instance, (total,); bag of each pseudo-bag)."""
        groups, bags, start = [], [], 0
        for number, length in enumerate(lengths):
            own = min(self.pseudo_bags, length)
            index = torch.randperm(length) if self.training else torch.arange(length)
            groups.append(index % own + start)
            bags += [number] * own
            start += own
        return torch.cat(groups).to(device), torch.tensor(bags, device=device)

    def _distilled(
        self, h: Tensor, group: Tensor, pooled: Tensor, attention: Tensor, first: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the vectors of the pseudo-bags and the pseudo-bag of each vector."""
        count = len(pooled)
        every = torch.arange(count, device=h.device)
        if self.distillation == "afs":
            return pooled, every
        if self.distillation == "mas":
            return h[last_of(attention, group, count)], every
        activation = attention.unsqueeze(-1) * F.linear(h, self.first_head.weight).float()
        probability = activation.softmax(-1).gather(1, first.argmax(1)[group].unsqueeze(1)).squeeze(1)
        most = last_of(probability, group, count)
        if self.distillation == "maxs":
            return h[most], every
        return h[torch.cat([most, last_of(-probability, group, count)])], torch.cat([every, every])

    def loss(self, out: Output, criterion: Criterion, labels: Tensor | None) -> Tensor:
        of_bags = criterion(out.logits, None)
        if out.inner is None:
            return of_bags
        return of_bags + criterion(out.inner["first"], out.inner["bag"])
