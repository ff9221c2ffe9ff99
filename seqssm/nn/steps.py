"""Values along the steps of a route: preceding and following values, and sums that restart at resets of the state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seqssm.orders import RESET


class Steps:
    """Steps of a scan, as tensors over (B, R, S): B samples, R routes, S steps of the order table.

    Steps without a visit are skipped, and resets and boundaries of packed sequences are never crossed. A *sequence* is
    a sample, or with `cu_seqlens` one of the n packed sequences.

    Args:
        batch: number of samples, B.
        length: number of positions, L.
        routes: number of routes, R.
        order: order table, (1 or R, S) or (B, 1 or R, S), as for a scan; None: all positions in sequence.
        cu_seqlens: start offsets of packed sequences and the total length, (n + 1,) in steps.
        device: device of the values.
    """

    def __init__(
        self,
        batch: int,
        length: int,
        routes: int,
        order: Tensor | None,
        cu_seqlens: Tensor | None,
        device: torch.device,
    ) -> None:
        self.length, self.packed = length, cu_seqlens is not None
        self.plain = order is None and cu_seqlens is None
        table = torch.arange(length, device=device)[None] if order is None else order.to(device).long()
        self.table = table.expand(batch, routes, -1)
        self.count = self.table.shape[2]
        self.place = torch.arange(self.count, device=device)
        self.real = self.table >= 0
        resets = self.table == RESET
        self.begun = resets.cumsum(-1)  # resets of the sequence so far; 0: the initial state still applies
        self.sequences, self.sequence = batch, torch.zeros_like(self.place)
        if cu_seqlens is not None:
            ends = cu_seqlens.to(device).long()
            self.sequences = len(ends) - 1
            self.sequence = torch.bucketize(self.place, ends[1:], right=True)  # sequence index of each step
            self.real = self.real & (self.sequence < self.sequences)
            before = torch.cat([torch.zeros_like(self.begun[..., :1]), self.begun], -1)[..., ends[:-1]]
            before = torch.cat([before, before.new_zeros((*before.shape[:-1], 1))], -1)
            self.begun = self.begun - before[..., self.sequence]
        self.segment = self.begun + self.sequence * (
            self.count + 1
        )  # equal for two steps if no reset or boundary lies between them

    def gather(self, values: Tensor) -> Tensor:
        """Gather values by position (B, L, r, K), r = 1 or R, to steps (B, R, S, K); 0 at steps without a visit."""
        values = values.transpose(1, 2).expand(-1, self.table.shape[1], -1, -1)
        if self.plain:
            return values
        index = self.table.clamp(min=0).unsqueeze(-1).expand(-1, -1, -1, values.shape[-1])
        return values.gather(2, index).masked_fill(~self.real.unsqueeze(-1), 0)

    def scatter(self, values: Tensor) -> Tensor:
        """Scatter values by step (B, R, S, K) to positions (B, L, R, K); 0 at positions without a visit."""
        if self.plain:
            return values.transpose(1, 2)
        size = (
            *values.shape[:2],
            self.length + 1,
            values.shape[-1],
        )  # one additional position receives the steps without a visit
        index = torch.where(self.real, self.table, self.length).unsqueeze(-1).expand_as(values)
        return values.new_zeros(size).scatter(2, index, values)[:, :, :-1].transpose(1, 2)

    def following(self, values: Tensor) -> Tensor:
        """Return the value of the next visited step in the same segment, (B, R, S, K); 0 if there is none."""
        if self.count == 0:
            return values
        if self.plain:
            return nn.functional.pad(values[:, :, 1:], (0, 0, 0, 1))
        after = self._places(self.real).gather(-1, self.real.cumsum(-1))
        found = after < self.count
        after = after.clamp(max=self.count - 1)
        same = found & (self.segment.gather(-1, after) == self.segment) & self.real
        taken = values.gather(2, after.unsqueeze(-1).expand_as(values))
        return taken.masked_fill(~same.unsqueeze(-1), 0)

    def running_sum(self, values: Tensor, initial: Tensor | None = None) -> Tensor:
        """Cumulative sums from the start of the segment to each step, in float64.

        Args:
            values: values by step, (B, R, S, K), 0 at steps without a visit.
            initial: initial values, (sequences, R, K), added until the first reset of a sequence.
        """
        total = values.double().cumsum(2)
        if self.count and not self.plain:
            total = self._restarted(total)
        if initial is not None:
            total = total + self._of_sequences(initial).double() * (self.begun == 0).unsqueeze(-1)
        return total

    def _restarted(self, total: Tensor) -> Tensor:
        """Sums from the start of each segment, of sums over all steps."""
        begins = self.segment != self.segment.roll(1, -1)
        begins[..., 0] = True
        start = self._places(begins).gather(-1, begins.cumsum(-1) - 1)
        before = torch.cat([torch.zeros_like(total[:, :, :1]), total], 2)
        return total - before.gather(2, start.unsqueeze(-1).expand_as(total))

    def _places(self, mask: Tensor) -> Tensor:
        """The steps at which a mask (B, R, S) is True, in order, (B, R, S + 1); then the number of steps."""
        rank = torch.where(mask, mask.cumsum(-1) - 1, self.count)
        found = rank.new_full((*rank.shape[:2], self.count + 1), self.count)
        return found.scatter(-1, rank, torch.where(mask, self.place, self.count))

    def _of_sequences(self, values: Tensor) -> Tensor:
        """Expand values of sequences (sequences, R, K) to their steps, (B, R, S, K)."""
        if not self.packed:
            return values.unsqueeze(2).expand(-1, -1, self.count, -1)
        padded = torch.cat([values, values.new_zeros(1, *values.shape[1:])])  # for steps after the last sequence
        return padded[self.sequence].transpose(0, 1).unsqueeze(0)

    def first(self, values: Tensor) -> Tensor:
        """Value of each sequence's first visited step, (sequences, R, K); 0 if a reset or the end precedes it."""
        counted = self.real & (self.begun == 0)
        return self._pick(values, torch.where(counted, self.place, self.count), last=False)

    def last(self, values: Tensor, earlier: Tensor) -> Tensor:
        """Return the value of each sequence's last visited step, (sequences, R, K).

        Args:
            values: values by step, (B, R, S, K).
            earlier: values of sequences without a step, (sequences, R, K); 0 if a reset followed the last
                step.
        """
        if self.count == 0:
            return earlier
        found = self._pick(values, torch.where(self.real, self.place, -1), last=True)
        step = self._by_sequence(torch.where(self.real, self.place, -1), last=True)
        reset = self._by_sequence(torch.where(self.table == RESET, self.place, -1), last=True)
        found = found.masked_fill((reset > step).unsqueeze(-1), 0)
        return torch.where(((step < 0) & (reset < 0)).unsqueeze(-1), earlier.to(found.dtype), found)

    def _by_sequence(self, places: Tensor, last: bool) -> Tensor:
        """Return the largest or smallest position of each sequence, (sequences, R), from (B, R, S)."""
        absent = -1 if last else self.count
        if not self.packed:
            return places.amax(-1) if last else places.amin(-1)
        routes = places.shape[1]
        out = places.new_full((routes, self.sequences + 1), absent)
        index = self.sequence.expand(routes, -1)
        out = out.scatter_reduce(1, index, places[0], "amax" if last else "amin")
        return out[:, :-1].transpose(0, 1)

    def _pick(self, values: Tensor, places: Tensor, last: bool) -> Tensor:
        if self.count == 0:
            return values.new_zeros(self.sequences, values.shape[1], values.shape[-1])
        place = self._by_sequence(places, last)
        missing = (place < 0) | (place >= self.count)
        index = place.clamp(0, self.count - 1)
        if self.packed:
            taken = values[0].gather(1, index.transpose(0, 1).unsqueeze(-1).expand(-1, -1, values.shape[-1]))
            taken = taken.transpose(0, 1)
        else:
            taken = values.gather(2, index[..., None, None].expand(-1, -1, 1, values.shape[-1])).squeeze(2)
        return taken.masked_fill(missing.unsqueeze(-1), 0)
