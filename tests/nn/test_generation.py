"""Generation against loops over whole prefixes, and beam search against enumeration of all sequences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from seqssm.nn.backbone import Backbone
from seqssm.nn.beam import beam_search
from seqssm.nn.chunks import prefill
from seqssm.nn.generation import generate
from seqssm.nn.language_model import LanguageModel

V, D = 7, 8
KINDS = {
    "M": ("mamba2", {"d_state": 4, "head_dim": 4, "dt_min": 0.1, "dt_max": 1.0}),
    "m": ("mamba", {"d_state": 4, "dt_min": 0.1, "dt_max": 1.0}),
    "3": ("mamba3", {"d_state": 4, "head_dim": 4, "dt_min": 0.1, "dt_max": 1.0}),
    "*": ("attention", {"n_heads": 2, "window": 5}),
    "-": ("mlp", {"hidden": 8}),
}
PATTERNS = ("MM", "mm", "M*m3-*")
PROMPTS = [[1, 2, 3, 4, 5, 6, 0, 3], [2], [5, 5, 1], [6, 0, 4, 2, 2]]


def make(pattern="M*m3-*", seed=3, **options):
    """A model whose next token depends on its whole prefix."""
    torch.manual_seed(seed)
    given = {name: values for symbol, (name, values) in KINDS.items() if symbol in pattern}
    model = LanguageModel(V, Backbone(D, pattern, rescale=False, **given, **options), tie=False).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.embedding.weight.normal_()
        model.lm_head.weight.normal_(std=0.6)
    return model


@pytest.fixture(autouse=True)
def _small(one_thread):
    """Use one thread for the small networks."""


def next_log_probs(model, ids, allowed=None):
    """Token -> log-probability, for each allowed token after the whole prefix."""
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids]))[0, -1].tolist()
    allowed = range(V) if allowed is None else allowed
    total = math.log(sum(math.exp(logits[one]) for one in allowed))
    return {one: logits[one] - total for one in allowed}


def slow(model, prompt, length, choose, stops=(), allowed=None):
    """Generate token by token, each from the whole prefix."""
    ids, values = [], []
    while len(ids) < length and not (ids and ids[-1] in stops):
        chances = next_log_probs(model, [*prompt, *ids], allowed)
        ids.append(choose(chances, len(ids)))
        values.append(chances[ids[-1]])
    return ids, values


def greedy(chances, number):
    return max(chances, key=chances.get)


def require(found, expected):
    ids, values = expected
    assert found.ids.tolist() == ids
    assert found.ids.dtype == torch.long
    assert found.log_probs.tolist() == pytest.approx(values, abs=1e-5)
    assert found.log_prob == pytest.approx(sum(values), abs=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("piece_size", [3, 2048])
def test_greedy_equals_the_slow_loop(pattern, piece_size):
    model = make(pattern)
    expected = [slow(model, prompt, 9, greedy) for prompt in PROMPTS]
    assert len({tuple(ids) for ids, _ in expected}) > 1
    for found, own in zip(generate(model, PROMPTS, max_new_tokens=9, piece_size=piece_size), expected, strict=True):
        require(found, own)
        assert not found.stopped


def chosen_by_sorting(temperature, top_k, top_p, seed, length):
    """A sampler from the definition: cumulative probabilities, sorted unless none is cut, and the drawn number."""
    draws = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).tolist()

    def choose(chances, number):
        weights = {one: math.exp(value / temperature) for one, value in chances.items()}
        order = sorted(weights)
        if top_k is not None or top_p is not None:
            order = sorted(weights, key=lambda one: -weights[one])[: top_k or V]
            total = sum(weights[one] for one in order)
            kept, before = [], 0.0
            for one in order:
                if before / total < (top_p or 2):
                    kept.append(one)
                before += weights[one]
            order = kept
        left = draws[number] * sum(weights[one] for one in order)
        for one in order:
            left -= weights[one]
            if left < 0:
                return one
        return order[-1]

    return choose


SAMPLED = [(1.0, None, None), (0.5, None, None), (3.0, 3, None), (2.0, None, 0.7), (1.5, 4, 0.8), (1.0, 50, 1.0)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SAMPLED)
def test_sampling_equals_the_slow_loop(temperature, top_k, top_p):
    model, seeds = make(), [4, 8, 15, 2**62]
    found = generate(model, PROMPTS, max_new_tokens=12, temperature=temperature, top_k=top_k, top_p=top_p, seeds=seeds)
    for one, prompt, seed in zip(found, PROMPTS, seeds, strict=True):
        choose = chosen_by_sorting(temperature, top_k, top_p, seed, 12)
        require(one, slow(model, prompt, 12, choose))


def test_samples_have_the_probabilities_of_the_model():
    model, count = make(), 3000
    found = generate(model, [PROMPTS[0]] * count, max_new_tokens=1, temperature=2.0, seeds=range(count))
    seen = torch.bincount(torch.cat([one.ids for one in found]), minlength=V) / count
    values = torch.tensor(list(next_log_probs(model, PROMPTS[0]).values()))
    expected = torch.softmax(values / 2, -1)
    assert expected.min() > 0.005
    assert (seen - expected).abs().max() < 5 * (0.25 / count) ** 0.5


def test_narrow_temperatures_and_cuts_are_greedy():
    model = make()
    expected = [one.ids.tolist() for one in generate(model, PROMPTS, max_new_tokens=8)]
    for options in ({"temperature": 1e-9}, {"temperature": 1e-300}, {"top_k": 1}, {"top_p": 1e-9}):
        found = generate(model, PROMPTS, max_new_tokens=8, **{"temperature": 1.0, **options})
        assert [one.ids.tolist() for one in found] == expected


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5}, {"temperature": 1.5, "top_k": 5, "top_p": 0.9}])
def test_a_sequence_does_not_depend_on_its_batch(options):
    model, seeds = make("M*"), [1, 2, 3, 4]
    stops = [2]
    together = generate(model, PROMPTS, max_new_tokens=70, stop_tokens=stops, seeds=seeds, **options)
    for place in range(4):
        alone = generate(model, [PROMPTS[place]], max_new_tokens=70, stop_tokens=stops, seeds=seeds[place], **options)
        assert alone[0].ids.tolist() == together[place].ids.tolist()
        torch.testing.assert_close(alone[0].log_probs, together[place].log_probs, rtol=0, atol=1e-5)
    other = generate(
        model, PROMPTS[::-1] + PROMPTS, max_new_tokens=70, stop_tokens=stops, seeds=seeds[::-1] + seeds, **options
    )
    expected = [one.ids.tolist() for one in together]
    assert [one.ids.tolist() for one in other] == expected[::-1] + expected
    if options:  # longer generation continues shorter generation, and other seeds give other tokens
        fewer = generate(model, PROMPTS, max_new_tokens=5, stop_tokens=stops, seeds=seeds, **options)
        assert [one.ids.tolist() for one in fewer] == [ids[:5] for ids in expected]
        same = generate(model, [PROMPTS[0]] * 2, max_new_tokens=20, seeds=9, **options)
        assert same[0].ids.tolist() == same[1].ids.tolist()
        others = generate(model, [PROMPTS[0]] * 2, max_new_tokens=20, seeds=[9, 10], **options)
        assert others[0].ids.tolist() != others[1].ids.tolist()


def test_stop_tokens_end_a_sequence_and_drop_it_from_the_batch():
    model, stops, sizes = make(), [2, 5], []
    expected = [slow(model, prompt, 30, chosen_by_sorting(2.0, None, None, 1, 30), stops) for prompt in PROMPTS]
    step = model.step

    def counted(ids, state):
        sizes.append(len(ids))
        return step(ids, state)

    model.step = counted
    found = generate(model, PROMPTS, max_new_tokens=30, stop_tokens=stops, temperature=2.0, seeds=1)
    for one, own in zip(found, expected, strict=True):
        require(one, own)
        assert one.stopped
    lengths = [len(own[0]) for own in expected]
    assert len(set(lengths)) > 1
    assert sizes == [sum(length > number for length in lengths) for number in range(1, max(lengths))]


def test_an_ending_at_the_last_token():
    model = make()
    ids = generate(model, PROMPTS[:1], max_new_tokens=6)[0].ids.tolist()
    first = ids.index(ids[5])
    for length, stopped in ((first + 1, True), (first, False) if first else (1, True)):
        found = generate(model, PROMPTS[:1], max_new_tokens=length, stop_tokens=[ids[5]])[0]
        assert (found.ids.tolist(), found.stopped) == (ids[:length], stopped)


def test_only_allowed_tokens():
    model, allowed, stops = make(), [6, 1, 4, 4], [4]
    found = generate(model, PROMPTS, max_new_tokens=9, allowed=allowed, stop_tokens=stops)
    for one, prompt in zip(found, PROMPTS, strict=True):
        require(one, slow(model, prompt, 9, greedy, stops, [1, 4, 6]))
    found = generate(model, PROMPTS, max_new_tokens=9, allowed=allowed, temperature=3.0, top_p=0.9, seeds=[1, 2, 3, 4])
    for one, prompt, seed in zip(found, PROMPTS, [1, 2, 3, 4], strict=True):
        choose = chosen_by_sorting(3.0, None, 0.9, seed, 9)
        require(one, slow(model, prompt, 9, choose, (), [1, 4, 6]))
    assert set(torch.cat([one.ids for one in found]).tolist()) == {1, 4, 6}


# Beam search


def every_sequence(model, prompt, length, stops, allowed, penalty):
    """All continuations that end with a stop token or at `length`, best first: (score, ids, stopped)."""
    found = []
    for size in range(1, length + 1):
        for ids in itertools.product(allowed, repeat=size):
            stopped = ids[-1] in stops
            if any(one in stops for one in ids[:-1]) or not (stopped or size == length):
                continue
            values = [next_log_probs(model, [*prompt, *ids[:n]], allowed)[ids[n]] for n in range(size)]
            found.append((sum(values) / size**penalty, list(ids), stopped, values))
    return sorted(found, key=lambda one: -one[0])


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_wide_beams_are_exhaustive(penalty):
    model, allowed, stops = make("M*"), [0, 2, 3, 6], [3]
    prompts = PROMPTS[:2]
    found = beam_search(
        model,
        prompts,
        beams=27,
        max_new_tokens=3,
        stop_tokens=stops,
        allowed=allowed,
        length_penalty=penalty,
    )
    for own, prompt in zip(found, prompts, strict=True):
        expected = every_sequence(model, prompt, 3, stops, allowed, penalty)
        assert len(own) == 27
        for one, (_, ids, stopped, values) in zip(own, expected, strict=False):
            require(one, (ids, values))
            assert one.stopped == stopped


def slow_beams(model, prompt, beams, length, stops, allowed, penalty):
    """The search on lists, which recomputes every prefix and never ends early."""
    running, finished = [(0.0, [])], []
    for _ in range(length):
        extended = []
        for score, ids in running:
            for one, value in next_log_probs(model, [*prompt, *ids], allowed).items():
                (finished if one in stops else extended).append((score + value, [*ids, one]))
        running = sorted(extended, key=lambda pair: -pair[0])[:beams]
    ranked = [(score / len(ids) ** penalty, ids) for score, ids in finished + running]
    return [ids for _, ids in sorted(ranked, key=lambda pair: -pair[0])[:beams]]


@pytest.mark.parametrize("penalty", [pytest.param(0.0, marks=pytest.mark.long), 0.7])
@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.long), 3])
def test_narrow_beams_equal_the_slow_search(beams, penalty):
    model, stops = make(), [2]
    expected = [slow_beams(model, prompt, beams, 8, stops, range(V), penalty) for prompt in PROMPTS]
    options = {"max_new_tokens": 8, "stop_tokens": stops, "length_penalty": penalty, "piece_size": 3}
    found = beam_search(model, PROMPTS, beams=beams, **options)
    assert [[one.ids.tolist() for one in own] for own in found] == expected
    for place, prompt in enumerate(PROMPTS):  # alone as in the batch
        alone = beam_search(model, [prompt], beams=beams, **options)[0]
        assert [one.ids.tolist() for one in alone] == expected[place]
        values = slow(model, prompt, 8, lambda _, number, ids=expected[place][0]: ids[number], stops)[1]
        require(found[place][0], (expected[place][0], values))
    if beams > 1:
        best = generate(model, PROMPTS, beams=beams, **options)
        assert [one.ids.tolist() for one in best] == [own[0] for own in expected]


def test_one_beam_without_stops_is_greedy():
    model = make()
    found = beam_search(model, PROMPTS, beams=1, max_new_tokens=9)
    for own, expected in zip(found, generate(model, PROMPTS, max_new_tokens=9), strict=True):
        assert own[0].ids.tolist() == expected.ids.tolist()


def test_a_search_ends_when_nothing_can_enter():
    model, steps = make("M"), []
    with torch.no_grad():
        model.embedding.weight.zero_()
        model.lm_head.weight.zero_()  # equal probabilities: the shortest continuation is the most likely
    step = model.step
    model.step = lambda ids, state: steps.append(len(ids)) or step(ids, state)
    found = beam_search(model, [[1]], beams=2, max_new_tokens=50, stop_tokens=[0, 1])
    assert sorted(one.ids.tolist() for one in found[0]) == [[0], [1]]
    assert steps == []
    assert len(beam_search(model, [[1]], beams=9, max_new_tokens=2, allowed=[0, 1], stop_tokens=[0, 1])[0]) == 2


# Properties of both


def test_the_model_is_unchanged():
    model = make(dropout=0.5)
    model.train()
    model.backbone.layers[0].eval()
    before = [module.training for module in model.modules()]
    one, other = (generate(model, PROMPTS, max_new_tokens=6)[0].ids.tolist() for _ in range(2))
    assert one == other
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    generate(model, PROMPTS, max_new_tokens=6, temperature=1.0)
    assert torch.equal(torch.rand(3), expected)  # the global random state is unchanged


def test_prompts_may_be_tensors():
    model = make()
    expected = [one.ids.tolist() for one in generate(model, [[1, 2], [3, 4]], max_new_tokens=4)]
    rows = torch.tensor([[1, 2], [3, 4]])
    for prompts in (rows, rows.int(), list(rows), ((1, 2), (3, 4))):
        assert [one.ids.tolist() for one in generate(model, prompts, max_new_tokens=4)] == expected


@pytest.mark.parametrize("pattern", PATTERNS)
def test_prefill_in_pieces(pattern):
    model = make(pattern)
    ids, mask = torch.tensor([[0, 0, 0, 0, 1, 2], [3, 4, 5, 6, 0, 1]]), torch.ones(2, 6, dtype=torch.bool)
    mask[0, :4] = False
    with torch.no_grad():
        expected, state = model.prefill(ids, mask=mask)
        following = model.step(torch.tensor([1, 2]), state)[0]
        for piece_size in (1, 2, 4, 5):
            logits, own = prefill(model, ids, piece_size, mask=mask)
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
            torch.testing.assert_close(model.step(torch.tensor([1, 2]), own)[0], following, rtol=0, atol=1e-10)
    for wrong in ({"piece_size": 0}, {"piece_size": 2, "ids": ids[:, :0]}):
        with pytest.raises(ValueError, match="must be at least 1"):
            prefill(model, **{"ids": ids, **wrong})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": [[1], []]}, "prompt 1 has shape .* at least one token"),
        ({"prompts": [[[1]]]}, "prompt 0 has shape"),
        ({"prompts": [[1.0]]}, "prompt 0 contains torch.float32"),
        ({"prompts": [[1, 7]]}, "prompt 0: 7 is not in the vocabulary of 7 tokens"),
        ({"prompts": [[1], [-1]]}, "prompt 1: -1 is not in the vocabulary"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"temperature": 1.0, "top_k": 0}, "top_k must be"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must be"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p must be"),
        ({"top_k": 3}, "require a temperature above 0"),
        ({"beams": 0}, "beams must be at least 1"),
        ({"beams": 2, "temperature": 1.0}, "give temperature or beams, not both"),
        ({"beams": 2, "length_penalty": -1.0}, "length_penalty must be"),
        ({"length_penalty": 1.0}, "length_penalty requires beams above 1"),
        ({"temperature": 1.0, "seeds": [1, 2]}, "2 seeds for 1 prompts"),
        ({"allowed": []}, "allowed is empty"),
        ({"allowed": [1, 7]}, "allowed: 7 is not in the vocabulary"),
        ({"stop_tokens": [9]}, "stop_tokens: 9 is not in the vocabulary"),
        ({"stop_tokens": [2], "allowed": [1]}, "stop_tokens: 2 is never generated"),
        ({"piece_size": 0}, "piece_size must be at least 1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        generate(make("M"), **{"prompts": [[1]], "max_new_tokens": 2, **options})


def test_models_that_cannot_generate():
    model = LanguageModel(V, Backbone(D, "m*", mamba={"ordering": "bidirectional"}, attention={"n_heads": 2}))
    with pytest.raises(ValueError, match="generation requires forward routes"):
        generate(model, [[1]], max_new_tokens=2)
    model = make("M")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    for options in ({}, {"beams": 2}, {"temperature": 1.0}):
        with pytest.raises(ValueError, match="NaN logits"):
            generate(model, [[1]], max_new_tokens=2, **options)
