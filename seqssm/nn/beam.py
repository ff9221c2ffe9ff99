"""Beam search for the most likely continuations of prompts under a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seqssm.nn.language_model import LanguageModel
from seqssm.nn.prompts import Generated, Prompts, alphabet, evaluation, read_prompts
from seqssm.nn.sizes import require_positive

NEVER = float("-inf")


@dataclass
class _Finished:
    """Best finished continuations of a prompt.

    Args:
        size: number of continuations to keep.
        found: (score, continuation) pairs, best first.
    """

    size: int
    found: list[tuple[float, Generated]] = field(default_factory=list)

    def beats(self, score: float) -> bool:
        """Return whether a continuation with this score would be dropped."""
        return len(self.found) == self.size and self.found[-1][0] >= score

    def add(self, score: float, ids: Tensor, log_probs: Tensor, stopped: bool) -> None:
        """Keep a continuation if it is among the best."""
        if score > NEVER and not self.beats(score):
            self.found.append((score, Generated(ids.cpu(), log_probs.float().cpu(), stopped)))
            self.found.sort(key=lambda pair: -pair[0])
            del self.found[self.size :]


def beam_search(
    model: LanguageModel,
    prompts: Prompts,
    *,
    beams: int,
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    allowed: Sequence[int] | None = None,
    length_penalty: float = 0.0,
    piece_size: int = 2048,
) -> list[list[Generated]]:
    """Find the best continuations of each prompt by beam search.

    Each step extends the running continuations of a prompt by all allowed tokens. Those that end with a stop token are
    finished; the best `beams` others continue. A prompt is done when no running continuation can enter its best `beams`
    finished ones. With as many beams as there are prefixes the search is exhaustive.

    Args:
        model: language model with forward layers only.
        prompts: token ids, as lists or tensors of any lengths, or one tensor (B, L).
        beams: width of the search, and maximum number of continuations per prompt.
        max_new_tokens: maximum length of a continuation.
        stop_tokens: ids that end a sequence; they are included as its last token.
        allowed: ids that may be generated, including stop tokens; None for the whole vocabulary.
        length_penalty: exponent p of the score log-probability / length^p: 0 for the most likely continuation, 1 for
            the highest mean over tokens.
        piece_size: positions of the prompts that are computed at a time.

    Returns:
        Continuations per prompt, best first.

    Raises:
        ValueError: as `seqssm.nn.generation.generate`.
    """
    require_positive(beams=beams, max_new_tokens=max_new_tokens)
    if not 0 <= length_penalty < float("inf"):
        raise ValueError(f"length_penalty must be 0 or a positive number, not {length_penalty}")
    letters = alphabet(model, allowed, stop_tokens)
    finished = [_Finished(beams) for _ in prompts]
    with evaluation(model):
        logits, state = read_prompts(model, prompts, piece_size)
        going = torch.arange(len(finished))  # indices of the prompts that are not done
        scores = torch.zeros(
            len(finished), 1, dtype=torch.float64, device=logits.device
        )  # scores of running continuations, (P, K)
        ids = torch.empty(len(finished), 1, 0, dtype=torch.long, device=logits.device)  # (P, K, length)
        log_probs = torch.empty(len(finished), 1, 0, device=logits.device)
        for length in range(1, max_new_tokens + 1):
            values = letters.log_probs(logits).view(*scores.shape, -1)
            totals = scores.unsqueeze(-1) + values.double()
            _finish(finished, going, totals, values, ids, log_probs, letters.tokens, letters.stops, length_penalty)
            totals = totals.masked_fill(letters.stops, NEVER).flatten(1)
            scores, index = totals.topk(min(beams, totals.shape[1]))
            beam, column = index // len(letters.tokens), index % len(letters.tokens)
            token = letters.tokens[column]
            ids = torch.cat([_taken(ids, beam), token.unsqueeze(-1)], -1)
            own = values.flatten(1).gather(1, index).to(log_probs.dtype)
            log_probs = torch.cat([_taken(log_probs, beam), own.unsqueeze(-1)], -1)
            if length == max_new_tokens:
                break
            bounds = (
                scores[:, 0] / max_new_tokens**length_penalty
            ).tolist()  # upper bounds, because the sums never increase
            kept = [
                place
                for place, bound in enumerate(bounds)
                if bound > NEVER and not finished[int(going[place])].beats(bound)
            ]
            if not kept:
                return _results(finished)
            rows = torch.tensor(kept, device=logits.device)
            source = (rows.unsqueeze(1) * values.shape[1] + beam[rows]).flatten()
            going, scores, ids, log_probs = going[kept], scores[rows], ids[rows], log_probs[rows]
            logits, state = model.step(token[rows].flatten(), state.reorder(source))
    for place, prompt in enumerate(going.tolist()):
        for beam_number, score in enumerate(scores[place].tolist()):
            score /= max_new_tokens**length_penalty
            finished[prompt].add(score, ids[place, beam_number], log_probs[place, beam_number], stopped=False)
    return _results(finished)


def _taken(values: Tensor, beam: Tensor) -> Tensor:
    """Select the rows `beam` (P, K') of (P, K, length)."""
    return values.gather(1, beam.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _finish(
    finished: list[_Finished],
    going: Tensor,
    totals: Tensor,
    values: Tensor,
    ids: Tensor,
    log_probs: Tensor,
    tokens: Tensor,
    stops: Tensor,
    length_penalty: float,
) -> None:
    """Keep continuations that end with a stop token at this step and are among the best of their prompt."""
    columns = stops.nonzero().flatten()
    if not len(columns):
        return
    length = ids.shape[-1] + 1
    for place, prompt in enumerate(going.tolist()):
        own = totals[place][:, columns].flatten()
        best, index = own.topk(min(finished[prompt].size, len(own)))
        for score, entry in zip((best / length**length_penalty).tolist(), index.tolist(), strict=True):
            if finished[prompt].beats(score):
                break
            beam, column = entry // len(columns), columns[entry % len(columns)]
            new_ids = torch.cat([ids[place, beam], tokens[column].unsqueeze(0)])
            new_values = torch.cat([log_probs[place, beam], values[place, beam, column].unsqueeze(0)])
            finished[prompt].add(score, new_ids, new_values, stopped=True)


def _results(finished: list[_Finished]) -> list[list[Generated]]:
    return [[continuation for _, continuation in one.found] for one in finished]
