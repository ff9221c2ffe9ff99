"""Sort-and-cluster scales and offline reordering of Mamba-2 (Quamba2, sections 3.2 and 3.3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqssm.compress.observe import Statistics
from seqssm.nn.mamba2 import Mamba2

HEAD_CLUSTERS = 4  # clusters of heads in a group of B and C
CHANNEL_CLUSTERS = 4  # clusters of sorted channels in a cluster of heads


def orders(mixer: Mamba2, channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the channels of each head, and cluster the heads of each group and their sorted channels.

    Args:
        mixer: the layer.
        channels: statistic of each channel, (E,), e.g. the largest absolute value.

    Returns:
        heads: (H,) new order of the heads, each staying in its group of B and C.
        positions: (E,) new order of the channels: all those of the first head, then the second, ...
        cluster: (E,) integer of the cluster of each channel in the new order, ascending.
    """
    heads, size = channels.numel() // mixer.head_dim, mixer.head_dim
    table = channels.double().view(heads, size)
    ranked = table.argsort(dim=1, stable=True)
    ordered = table.gather(1, ranked)
    shapes = ordered / ordered.norm(dim=1, keepdim=True).clamp(min=1e-30)
    head_order: list[int] = []
    cluster: list[Tensor] = []
    per_group = heads // mixer.n_groups
    count = 0
    for group in range(mixer.n_groups):
        first = group * per_group
        labels = ward(shapes[first : first + per_group], HEAD_CLUSTERS)
        for label in sorted(set(labels)):
            members = [first + k for k in range(per_group) if labels[k] == label]
            bounds = contiguous(ordered[members], CHANNEL_CLUSTERS)
            own = torch.bucketize(torch.arange(size), torch.tensor(bounds[1:-1], dtype=torch.int64), right=True)
            head_order += members
            cluster += [count + own] * len(members)
            count += len(bounds) - 1
    order = torch.tensor(head_order)
    positions = (order.unsqueeze(1) * size + ranked[order]).flatten()
    return order, positions, torch.cat(cluster)


def channel_scales(mixer: Mamba2, found: Statistics) -> Tensor:
    """Return the largest value of each channel's cluster, (E,), in the present order of the channels.

    Args:
        mixer: the layer.
        found: statistics of the scan's input.
    """
    assert found.channels is not None
    assert found.means is not None
    _, positions, cluster = orders(mixer, found.means)
    largest = found.channels.double()[positions]
    top = torch.stack([largest[cluster == number].max() for number in range(int(cluster.max()) + 1)])
    scales = torch.empty_like(largest)
    scales[positions] = top[cluster]
    return scales.float()


def ward(points: Tensor, clusters: int) -> list[int]:
    """Cluster points by Ward's method: merge the two clusters that increase the sum of squares least.

    Args:
        points: (n, d).
        clusters: number of clusters; fewer if there are fewer points.

    Returns:
        The cluster of each point; clusters are numbered by their first point.
    """
    members = [[k] for k in range(len(points))]
    while len(members) > clusters:
        centres = torch.stack([points[own].mean(0) for own in members])
        sizes = torch.tensor([float(len(own)) for own in members], dtype=torch.float64)
        cost = torch.cdist(centres, centres).square() * (
            sizes[:, None] * sizes / (sizes[:, None] + sizes)
        )  # the increase of the sum of squares
        cost.fill_diagonal_(torch.inf)
        first, second = divmod(int(cost.argmin()), len(members))
        first, second = min(first, second), max(first, second)
        members[first] = sorted(members[first] + members.pop(second))
    members.sort(key=lambda own: own[0])
    labels = [0] * len(points)
    for label, own in enumerate(members):
        for k in own:
            labels[k] = label
    return labels


def contiguous(table: Tensor, clusters: int) -> list[int]:
    """Split sorted positions into contiguous clusters with the smallest sum of squares (k-means in one dimension).

    Args:
        table: (heads, positions), each column a point.
        clusters: number of clusters; fewer if there are fewer positions.

    Returns:
        Bounds 0 = b_0 < b_1 < ... = positions.
    """
    points = table.T
    count = len(points)
    clusters = min(clusters, count)
    zero = points.new_zeros(1, points.shape[1])
    sums = torch.cat([zero, points.cumsum(0)])
    squares = torch.cat([zero[:, 0], points.square().sum(1).cumsum(0)])

    def cost(start: int, stop: int) -> float:
        total = sums[stop] - sums[start]
        return float(squares[stop] - squares[start] - total.square().sum() / (stop - start))

    best: dict[tuple[int, int], tuple[float, int]] = {(0, 0): (0.0, 0)}
    for number in range(1, clusters + 1):
        for stop in range(number, count + 1):
            options = [
                (best[number - 1, start][0] + cost(start, stop), start)
                for start in range(number - 1, stop)
                if (number - 1, start) in best
            ]
            if options:
                best[number, stop] = min(options)
    bounds, stop = [count], count
    for number in range(clusters, 0, -1):
        stop = best[number, stop][1]
        bounds.append(stop)
    return bounds[::-1]


@torch.no_grad()
def reorder(mixer: Mamba2, heads: Tensor, positions: Tensor) -> None:
    """Reorder the heads and channels of a layer, which leaves its output unchanged.

    Args:
        mixer: the layer, changed in place.
        heads: new order of the heads, (H,); each stays in its group of B and C.
        positions: new order of the channels, (E,), head by head.

    Raises:
        ValueError: the routes have channels of their own (``concat``), or the groups of the norm are finer than those
            of B and C.
    """
    if mixer.groups > 1 or mixer.n_groups % mixer.norm.groups:
        raise ValueError("channels can be reordered only within groups of B and C and of the norm")
    width = mixer.width
    states = 2 * mixer.n_groups * mixer.d_state
    kept = torch.arange(states)
    rows = torch.cat(
        [positions, width + positions, 2 * width + kept, 2 * width + states + heads],
    )
    parts: list[tuple[Any, Tensor]] = [(mixer.in_proj.weight, rows), (mixer.norm.weight, positions)]
    if mixer.in_proj.bias is not None:
        parts.append((mixer.in_proj.bias, rows))
    for holder in mixer.branches:
        convolved = torch.cat([positions, width + kept])
        parts.append((holder.conv1d.weight, convolved))
        if holder.conv1d.bias is not None:
            parts.append((holder.conv1d.bias, convolved))
        parts += [(getattr(holder, name), heads) for name in ("A_log", "D", "dt_bias")]
    for tensor, index in parts:
        tensor.copy_(tensor[index])
    mixer.out_proj.weight.copy_(mixer.out_proj.weight[:, positions])
