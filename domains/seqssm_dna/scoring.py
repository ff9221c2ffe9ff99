"""Log-likelihoods of bases: causal models in pieces with carried state, masked models by masking each base in turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqssm.nn.state import State
from seqssm_dna.tokens import BASE_COUNT, BOS, FIRST_BASE, MASK, PAD, is_base
from seqssm_dna.windows import starts_of

PIECE = 16_384  # bases of a long record per forward pass
TOKENS = 32_768  # tokens per batch of short records, including padding
PASSES = 8  # passes of a masked model over a sequence; each masks every eighth base


@dataclass
class Scored:
    """Scores of consecutive bases by a language model.

    Attributes:
        nll: negative log-likelihood, nats, (L,) float32; NaN for letters other than A, C, G, T.
        correct: whether the base is the most probable one, (L,) bool.
        hidden: sum of the features over all letters, (D,) float64; None if not requested.
    """

    nll: np.ndarray
    correct: np.ndarray
    hidden: np.ndarray | None = None


def base_scores(logits: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the negative log-likelihood of bases, nats, and whether they are the most probable ones, (L,) each.

    Probabilities are normalised over all tokens, as in training and test.

    Args:
        logits: logits of the tokens, (L, V).
        targets: token ids, (L,).
    """
    logits = logits.float()
    known = (targets >= FIRST_BASE) & (targets < FIRST_BASE + BASE_COUNT)
    chosen = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    nll = (logits.logsumexp(1) - chosen).masked_fill(~known, torch.nan)
    best = logits[:, FIRST_BASE : FIRST_BASE + BASE_COUNT].argmax(1) + FIRST_BASE
    correct = (best == targets) & known
    return nll.cpu().numpy(), correct.cpu().numpy()


class CausalScorer:
    """Scores bases with a causal language model, each given all preceding bases of its sequence.

    Args:
        network: causal genome network (`seqssm_dna.model`).
        prefix: tokens before every sequence.
        piece: bases of a long sequence per forward pass; the result does not depend on it.
        tokens: tokens per batch of short sequences.
        features: whether to sum the features too.
    """

    def __init__(
        self,
        network: Any,
        prefix: Sequence[int] = (BOS,),
        piece: int = PIECE,
        tokens: int = TOKENS,
        features: bool = False,
    ) -> None:
        self.network, self.prefix = network, list(prefix)
        self.piece, self.tokens, self.features = max(piece, 1), max(tokens, 1), features
        self.device = next(network.parameters()).device

    def stream(self, pieces: Iterable[np.ndarray]) -> Iterator[Scored]:
        """Score one sequence that is given in pieces.

        Args:
            pieces: token ids of bases and N, (L,) uint8, of any length.

        Yields:
            The scores, of at most `piece` bases each.
        """
        state: State | None = None
        before = self.prefix  # unread tokens before the next base
        for given in pieces:
            for start in range(0, len(given), self.piece):
                ids = torch.from_numpy(given[start : start + self.piece].astype(np.int64)).to(self.device)
                read = torch.cat([ids.new_tensor(before), ids[:-1]]).unsqueeze(0)
                hidden, state = self.network.hidden(read, state, return_state=True)
                hidden = hidden[:, len(before) - 1 :]
                nll, correct = base_scores(self.network.logits(hidden)[0], ids)
                yield Scored(nll, correct, _sum(hidden[0]) if self.features else None)
                before = [int(ids[-1])]

    def whole(self, sequences: Sequence[np.ndarray]) -> list[Scored]:
        """Score sequences that fit into memory, short ones in batches.

        Args:
            sequences: token ids, (L,) uint8 each.
        """
        found: list[Scored | None] = [None] * len(sequences)
        order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
        batch: list[int] = []
        for row in order:
            length = len(sequences[row])
            if length > self.piece:
                found[row] = joined(self.stream([sequences[row]]))
                continue
            if batch and (len(batch) + 1) * (length + len(self.prefix)) > self.tokens:
                self._batch(batch, sequences, found)
                batch = []
            batch.append(row)
        if batch:
            self._batch(batch, sequences, found)
        return found  # type: ignore[return-value]

    def _batch(self, rows: list[int], sequences: Sequence[np.ndarray], found: list[Scored | None]) -> None:
        """Score sequences as a batch; padding after them has no effect."""
        longest, first = max(len(sequences[row]) for row in rows), len(self.prefix) - 1
        ids = np.full((len(rows), len(self.prefix) + longest), PAD, dtype=np.int64)
        ids[:, : len(self.prefix)] = self.prefix
        for place, row in enumerate(rows):
            ids[place, len(self.prefix) : len(self.prefix) + len(sequences[row])] = sequences[row]
        read = torch.from_numpy(ids).to(self.device)
        hidden = self.network.hidden(read[:, :-1])[:, first:] if longest else None
        for place, row in enumerate(rows):
            length = len(sequences[row])
            if not length:
                found[row] = Scored(np.zeros(0, np.float32), np.zeros(0, bool), self._nothing())
                continue
            assert hidden is not None
            own = hidden[place, :length]
            nll, correct = base_scores(self.network.logits(own), read[place, first + 1 : first + 1 + length])
            found[row] = Scored(nll, correct, _sum(own) if self.features else None)

    def _nothing(self) -> np.ndarray | None:
        return np.zeros(self.network.width) if self.features else None

    def alternatives(self, groups: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Compute log-likelihoods, (k, 2), of the windows of REF and each ALT, nats; a common prefix is read once.

        Args:
            groups: the window of REF, then those of k ALT alleles: (L,) uint8 ids each, of one length within a group.
        """
        tables = [np.stack(list(group)) for group in groups]
        alike: dict[tuple[int, int], list[int]] = {}
        for number, table in enumerate(tables):
            differ = (table != table[0]).any(0)
            common = int(differ.argmax()) if differ.any() else table.shape[1]
            alike.setdefault((common, table.shape[1]), []).append(number)
        found: list[np.ndarray] = [np.zeros((0, 2)) for _ in tables]
        for (common, length), numbers in alike.items():
            step = max(1, self.tokens // max(1, max(len(tables[k]) for k in numbers) * length))
            for first in range(0, len(numbers), step):
                own = numbers[first : first + step]
                for number, sums in zip(own, self._side_by_side([tables[k] for k in own], common)):
                    found[number] = np.array([(sums[0], one) for one in sums[1:]]).reshape(-1, 2)
        return found

    def counted(self, ref: np.ndarray, alt: np.ndarray) -> int:
        """Return the number of letters that a difference of `alternatives` sums over: those of the window.

        Args:
            ref: window of REF, (L,).
            alt: window of ALT, (L,).
        """
        return len(ref)

    def _side_by_side(self, tables: list[np.ndarray], common: int) -> list[list[float]]:
        """Compute log-likelihoods of the rows of tables of equal width that share their first `common` columns."""
        sizes = [len(table) for table in tables]
        sums = np.zeros(len(tables))
        state: State | None = None
        before = torch.tensor([self.prefix] * len(tables), device=self.device)
        for start in range(0, common, self.piece):
            part = np.stack([table[0, start : min(start + self.piece, common)] for table in tables])
            values, before, state = self._piece(part, before, state)
            sums += values
        owner = np.repeat(np.arange(len(tables)), sizes)
        sums = sums[owner]
        index = torch.from_numpy(owner).to(self.device)
        state, before = None if state is None else state.reorder(index), before[index]
        whole = np.concatenate(tables)
        for start in range(common, whole.shape[1], self.piece):
            values, before, state = self._piece(whole[:, start : start + self.piece], before, state)
            sums += values
        return [part.tolist() for part in np.split(sums, np.cumsum(sizes)[:-1])]

    def _piece(self, part: np.ndarray, before: Tensor, state: State | None) -> tuple[np.ndarray, Tensor, State]:
        """Return (log-likelihoods of the next columns (B, L), (B,); last tokens, still to be read; state)."""
        ids = torch.from_numpy(part.astype(np.int64)).to(self.device)
        hidden, state = self.network.hidden(torch.cat([before, ids[:, :-1]], 1), state, return_state=True)
        logits = self.network.logits(hidden[:, before.shape[1] - 1 :])
        nll, _ = base_scores(logits.flatten(0, 1), ids.flatten())
        return -np.nansum(nll.reshape(part.shape), axis=1, dtype=np.float64), ids[:, -1:], state


class MaskedScorer:
    """Scores bases with a masked language model: pseudo-log-likelihoods.

    Each base is masked and predicted from the other bases of its window, in `passes` passes that each mask every
    `passes`-th base. Sequences longer than `window` are read in windows that overlap by half; only the middle half of a
    window is used.

    Args:
        network: bidirectional genome network.
        window: length of a window, letters.
        passes: passes over a window; 1 masks all bases, more passes are more accurate.
        tokens: tokens per batch.
        features: whether to sum the features too (without masking).
    """

    def __init__(
        self, network: Any, window: int, passes: int = PASSES, tokens: int = TOKENS, features: bool = False
    ) -> None:
        self.network, self.window, self.passes = network, max(window, 1), max(passes, 1)
        self.tokens, self.features = max(tokens, 1), features
        self.device = next(network.parameters()).device

    def whole(self, sequences: Sequence[np.ndarray]) -> list[Scored]:
        """Score sequences.

        Args:
            sequences: token ids, (L,) uint8 each.
        """
        return [self._one(ids) for ids in sequences]

    def _one(self, ids: np.ndarray) -> Scored:
        nll, correct = np.full(len(ids), np.nan, np.float32), np.zeros(len(ids), bool)
        total = np.zeros(self.network.width) if self.features else None
        for start, end, low, high in middles(len(ids), self.window):
            own = ids[start:end]
            values, right = self._window(own)
            nll[low:high], correct[low:high] = values[low - start : high - start], right[low - start : high - start]
            if total is not None:
                read = torch.from_numpy(own.astype(np.int64)).to(self.device).unsqueeze(0)
                total += _sum(_one_strand(self.network, self.network.hidden(read))[0, low - start : high - start])
        return Scored(nll, correct, total)

    def _window(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score each base of a window given the others."""
        nll, correct = np.full(len(ids), np.nan, np.float32), np.zeros(len(ids), bool)
        turn = np.arange(len(ids)) % self.passes
        step = max(1, self.tokens // max(len(ids), 1))
        for first in range(0, min(self.passes, len(ids)), step):
            rows = range(first, min(first + step, self.passes, len(ids)))
            table = np.stack([np.where((turn == row) & is_base(ids), MASK, ids) for row in rows])
            logits = self.network(torch.from_numpy(table.astype(np.int64)).to(self.device))
            for place, row in enumerate(rows):
                hidden = torch.from_numpy(np.flatnonzero(turn == row)).to(self.device)
                targets = torch.from_numpy(ids[turn == row].astype(np.int64)).to(self.device)
                nll[turn == row], correct[turn == row] = base_scores(logits[place, hidden], targets)
        return nll, correct

    def stream(self, pieces: Iterable[np.ndarray]) -> Iterator[Scored]:
        """Score one sequence, which is held in memory, one byte per letter.

        Args:
            pieces: token ids, (L,) uint8 each.
        """
        yield self._one(np.concatenate([np.zeros(0, np.uint8), *pieces]))

    def alternatives(self, groups: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Compute log-likelihoods, (k, 2), of REF and each ALT, nats, independent of the other alleles of the group.

        For an ALT that differs from REF in one base, the base is masked and the log-likelihoods of both bases are
        returned; for others, the pseudo-log-likelihoods of the windows.

        Args:
            groups: the window of REF, then those of k ALT alleles: (L,) uint8 ids each, of one length within a group.
        """
        return [self._alleles(group[0], np.stack(list(group[1:]))) for group in groups]

    def counted(self, ref: np.ndarray, alt: np.ndarray) -> int:
        """Return the number of letters that a difference of `alternatives` sums over: 1 where one base is masked.

        Args:
            ref: window of REF, (L,).
            alt: window of ALT, (L,).
        """
        return 1 if bool(self._single(ref, alt[None])[0]) else len(ref)

    @staticmethod
    def _single(ref: np.ndarray, alts: np.ndarray) -> np.ndarray:
        differ = alts != ref
        return (differ.sum(1) == 1) & (differ & is_base(alts) & is_base(ref)).any(1)

    def _alleles(self, ref: np.ndarray, alts: np.ndarray) -> np.ndarray:
        found, differ, single = np.zeros((len(alts), 2)), alts != ref, self._single(ref, alts)
        for place in np.unique(differ[single].argmax(1)):
            rows = np.flatnonzero(single & differ[:, place])
            hidden = ref.astype(np.int64)
            hidden[place] = MASK
            logits = self.network(torch.from_numpy(hidden).to(self.device).unsqueeze(0))[0, int(place)]
            targets = torch.from_numpy(np.append(ref[place], alts[rows, place]).astype(np.int64)).to(self.device)
            nll, _ = base_scores(logits.expand(len(targets), -1), targets)
            found[rows, 0], found[rows, 1] = -nll[0], -nll[1:]
        others = np.flatnonzero(~single)
        if len(others):
            sums = [-np.nansum(one.nll, dtype=np.float64) for one in self.whole([ref, *alts[others]])]
            found[others, 0], found[others, 1] = sums[0], sums[1:]
        return found


Scorer = CausalScorer | MaskedScorer


def middles(length: int, window: int) -> list[tuple[int, int, int, int]]:
    """Return windows that overlap by half, and the segment of each that is used: (start, end, first, last).

    Args:
        length: length of the sequence.
        window: length of a window.
    """
    if length <= window:
        return [(0, length, 0, length)] if length else []
    starts = starts_of(length, window, max(window // 2, 1)).tolist()
    borders = [0, *((a + window + b) // 2 for a, b in pairwise(starts)), length]
    return [(start, start + window, low, high) for start, low, high in zip(starts, borders, borders[1:])]


def joined(parts: Iterable[Scored]) -> Scored:
    """Join the scores of the pieces of one sequence.

    Args:
        parts: scores of the pieces in order, at least one.
    """
    found = list(parts)
    sums = [one.hidden for one in found if one.hidden is not None]
    hidden = np.sum(sums, axis=0) if sums else None
    return Scored(np.concatenate([one.nll for one in found]), np.concatenate([one.correct for one in found]), hidden)


def _sum(hidden: Tensor) -> np.ndarray:
    return hidden.double().sum(0).cpu().numpy()


def _one_strand(network: Any, hidden: Tensor) -> Tensor:
    """Return features, (B, L, D), averaged over both strands if the network has them."""
    halves = network.halves(hidden)
    return halves[0] if len(halves) == 1 else torch.stack(halves).mean(0)
