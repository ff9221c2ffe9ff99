"""Generation of continuations of prompts by a language model: greedy, sampling or beam search."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqssm.nn.beam import beam_search
from seqssm.nn.language_model import LanguageModel
from seqssm.nn.prompts import Generated, Prompts, alphabet, evaluation, read_prompts
from seqssm.nn.sizes import require_positive
from seqssm.nn.state import State

DRAWS = 64  # random numbers per sequence that are drawn in one call


def generate(
    model: LanguageModel,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    stop_tokens: Sequence[int] = (),
    allowed: Sequence[int] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seeds: int | Sequence[int] = 0,
    beams: int = 1,
    length_penalty: float = 0.0,
    piece_size: int = 2048,
) -> list[Generated]:
    """Generate one continuation per prompt.

    A continuation depends only on its prompt and seed, not on the other prompts of the batch (up to rounding of the
    logits). Finished sequences are removed from the batch.

    Args:
        model: language model with forward layers only.
        prompts: token ids, as lists or tensors of any lengths, or one tensor (B, L).
        max_new_tokens: maximum length of a continuation.
        stop_tokens: ids that end a sequence; they are included as its last token.
        allowed: ids that may be generated, including stop tokens; None for the whole vocabulary.
        temperature: sampling temperature: tokens are drawn from softmax(logits / temperature); 0 for greedy decoding.
        top_k: number of most likely tokens to draw from.
        top_p: minimum total probability of the most likely tokens to draw from; applied after `top_k`.
        seeds: random seeds, one per prompt, or a single one for all.
        beams: width of the `beam_search` if above 1; its best continuation is returned.
        length_penalty: length penalty of the beam search.
        piece_size: number of prompt positions processed at a time, which bounds the memory for long prompts.

    Returns:
        One `Generated` per prompt.

    Raises:
        ValueError: a layer that cannot continue from a state, no prompts or an empty one, ids outside the vocabulary, a
            stop token that is not allowed, numbers out of range, sampling options with greedy or beam search, or NaN
            logits.
    """
    _require(max_new_tokens, temperature, top_k, top_p, beams, length_penalty)
    if beams > 1:
        found = beam_search(
            model,
            prompts,
            beams=beams,
            max_new_tokens=max_new_tokens,
            stop_tokens=stop_tokens,
            allowed=allowed,
            length_penalty=length_penalty,
            piece_size=piece_size,
        )
        return [continuations[0] for continuations in found]
    if not isinstance(seeds, int) and len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts")
    own = [seeds] * len(prompts) if isinstance(seeds, int) else list(seeds)
    letters = alphabet(model, allowed, stop_tokens)
    draws = None if temperature == 0 else _Draws(own, letters.tokens.device)
    ids: list[list[int]] = [[] for _ in own]
    log_probs: list[list[float]] = [[] for _ in own]
    stopped = [False] * len(own)
    with evaluation(model):
        logits, state = read_prompts(model, prompts, piece_size)
        rows = list(range(len(own)))  # index of the prompt of each row of the batch
        for number in range(max_new_tokens):
            values = letters.log_probs(logits)
            if draws is None:
                column = values.argmax(-1)
            else:
                column = _drawn(values, draws.next(rows), temperature, top_k, top_p)
            token, ends = letters.tokens[column], letters.stops[column].tolist()
            own_values = values.gather(1, column.unsqueeze(1)).squeeze(1).tolist()
            for row, one, value, end in zip(rows, token.tolist(), own_values, ends, strict=True):
                ids[row].append(one)
                log_probs[row].append(value)
                stopped[row] = end
            going = [place for place, end in enumerate(ends) if not end]
            if not going or number == max_new_tokens - 1:
                break
            rows, token, state = _kept(going, rows, token, state)
            logits, state = model.step(token, state)
    return [
        Generated(torch.tensor(one, dtype=torch.long), torch.tensor(values, dtype=torch.float32), end)
        for one, values, end in zip(ids, log_probs, stopped, strict=True)
    ]


def _kept(going: list[int], rows: list[int], token: Tensor, state: State) -> tuple[list[int], Tensor, State]:
    """Remove finished sequences from the batch."""
    if len(going) == len(rows):
        return rows, token, state
    index = torch.tensor(going, device=token.device)
    return [rows[place] for place in going], token[index], state.reorder(index)


class _Draws:
    """Uniform random numbers from one generator per sequence.

    Args:
        seeds: random seed of each sequence.
        device: device of the numbers, which are drawn on the CPU for reproducibility across devices.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.device, self.used = device, DRAWS
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.numbers = torch.empty(len(seeds), 0, dtype=torch.float64)

    def next(self, rows: list[int]) -> Tensor:
        """Return the next number (b,) of each of the sequences `rows`; an omitted one must not reappear."""
        if self.used == DRAWS:
            self.numbers = torch.zeros(len(self.generators), DRAWS, dtype=torch.float64)
            for row in rows:
                self.numbers[row] = torch.rand(DRAWS, dtype=torch.float64, generator=self.generators[row])
            self.used = 0
        self.used += 1
        return self.numbers[rows, self.used - 1].to(self.device)


def _drawn(values: Tensor, draw: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Sample columns (b,) from log-probabilities (b, A) by inverting their cumulative sum at draws (b,) in [0, 1)."""
    scaled = (values - values.amax(-1, keepdim=True)).double() / temperature
    chances = torch.softmax(scaled, dim=-1)
    columns = None
    if top_k is not None and top_k < chances.shape[-1]:
        chances, columns = chances.topk(top_k)
        chances = chances / chances.sum(-1, keepdim=True)
    if top_p is not None:
        if columns is None:
            chances, columns = chances.sort(stable=True, dim=-1, descending=True)
        chances = chances.masked_fill(chances.cumsum(-1) - chances >= top_p, 0)
    reached = chances.cumsum(-1)
    total = reached[:, -1:].contiguous()
    # first entry above the draw; rounding may pass the last entry with nonzero probability, hence a second search
    place = torch.searchsorted(reached, draw.unsqueeze(1) * total, right=True)
    place = torch.minimum(place, torch.searchsorted(reached, total))
    return (place if columns is None else columns.gather(1, place)).squeeze(1)


def _require(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None, beams: int, length_penalty: float
) -> None:
    require_positive(max_new_tokens=max_new_tokens, beams=beams, top_k=1 if top_k is None else top_k)
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 or a positive number, not {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
    if (top_k is not None or top_p is not None) and temperature == 0:
        raise ValueError("top_k and top_p require a temperature above 0")
    if temperature > 0 and beams > 1:
        raise ValueError("beam search does not sample: give temperature or beams, not both")
    if length_penalty != 0 and beams == 1:
        raise ValueError("length_penalty requires beams above 1")
