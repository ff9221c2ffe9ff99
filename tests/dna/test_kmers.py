"""The Markov model against a dictionary of strings, and the linear baselines."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from seqssm_dna.kmers import MarkovModel, runs
from seqssm_dna.letters import reverse_complement
from seqssm_dna.linear import KmerLinear, kmer_counts, one_hot
from seqssm_dna.metrics import bits_per_base, next_base_accuracy
from seqssm_dna.tokens import encode

from seqssm.errors import InputError

from .conftest import letters

TRAIN = [letters(300, 1, "AACGT"), letters(80, 2, "ACGTN"), "AC", "", "N", letters(200, 3, "ATTTG")]
TEST = [letters(150, 4, "AACGTN"), "ACG", letters(90, 5, "ATG"), "NNN", ""]


class Reference:
    """The model by its formula, on strings."""

    def __init__(self, sequences, order, weight, both):
        self.weight, self.order = weight, order
        self.counts = defaultdict(Counter)
        for sequence in sequences:
            strands = (sequence, reverse_complement(sequence.encode()).decode()) if both else (sequence,)
            for run in (run for strand in strands for run in strand.split("N")):
                for place, base in enumerate(run):
                    for k in range(min(order, place) + 1):
                        self.counts[run[place - k : place]][base] += 1

    def probability(self, base, context):
        seen = self.counts[context]
        weight = max(len(seen), 1) if self.weight == "witten_bell" else self.weight
        prior = 0.25 if not context else self.probability(base, context[1:])
        return (seen[base] + weight * prior) / (sum(seen.values()) + weight)

    def nll(self, sequence):
        values = []
        for place, base in enumerate(sequence):
            context = sequence[max(0, place - self.order) : place].rsplit("N", 1)[-1]
            values.append(np.nan if base == "N" else -np.log(self.probability(base, context)))
        return np.array(values)


@pytest.mark.parametrize("order", [0, 1, 3, 5])
@pytest.mark.parametrize("weight", [16.0, 0.5, "witten_bell"])
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_against_the_formula(monkeypatch, order, weight, both, chunk):
    monkeypatch.setattr("seqssm_dna.kmers.CHUNK", chunk)
    model = MarkovModel(order, weight, both).fit(encode(one) for one in TRAIN)
    reference = Reference(TRAIN, order, weight, both)
    found = model.scores(encode(one) for one in TEST)
    for row, sequence in enumerate(TEST):
        wanted = reference.nll(sequence)
        np.testing.assert_allclose(model.nll(encode(sequence)), wanted, rtol=1e-5, atol=1e-6)
        assert found.nll[row] == pytest.approx(np.nansum(wanted), rel=1e-5, abs=1e-6)
        assert found.scored[row] == len(sequence) - sequence.count("N")
    for table in model.tables:
        np.testing.assert_allclose(table.reshape(-1, 4).sum(1), 1, rtol=1e-6)


def test_accuracy_counts_the_likeliest_base():
    model = MarkovModel(2, both_strands=False).fit([encode("ACGT" * 50)])
    found = model.scores([encode("ACGTACGTNACGT"), encode("GGG")])
    assert next_base_accuracy(found.rows(np.array([0]))) > 0.8
    assert found.scored.tolist() == [12, 3]
    assert found.correct[1] < 3


def test_a_known_source_is_learned():
    """A chain of order 1 with entropy H: the model comes near H and cannot beat it."""
    random = np.random.default_rng(0)
    chain = random.dirichlet(np.full(4, 0.5), 4)

    def draw(length):
        states = [0]
        for _ in range(length - 1):
            states.append(int(random.choice(4, p=chain[states[-1]])))
        return np.array(states, dtype=np.uint8) + 7

    train, held, test = draw(20_000), draw(5000), draw(5000)
    model = MarkovModel(6, both_strands=False).fit([train])
    bits = model.select([held])
    assert len(bits) == 7
    assert model.order == int(np.argmin(bits))
    assert bits[0] > bits[1] + 0.05
    assert bits[model.order] == pytest.approx(bits[1], abs=0.002)
    own = -np.log2([chain[a, b] for a, b in zip(test[:-1] - 7, test[1:] - 7)]).mean()
    assert bits_per_base(model.scores([test])) == pytest.approx(own, abs=0.01)


def test_both_strands_make_the_model_symmetric():
    model = MarkovModel(0).fit([encode("AAAACCG")])
    a, c, g, t = model.tables[0]
    assert a == t
    assert c == g


def test_options_that_cannot_be_used():
    for order, weight in ((-1, 16.0), (13, 16.0), (3, 0.0), (3, float("nan")), (3, "kneser")):
        with pytest.raises(InputError):
            MarkovModel(order, weight)
    with pytest.raises(InputError, match="contain no A, C, G or T"):
        MarkovModel(3).fit([encode("NNN")])
    with pytest.raises(InputError, match="validation sequences"):
        MarkovModel(3).fit([encode("ACGT")]).select([encode("N")])


def test_runs():
    assert list(runs(encode("NNACGNTN"))) == [(2, 5), (6, 7)]
    assert list(runs(encode("ACGT"))) == [(0, 4)]
    assert list(runs(encode(""))) == []


def test_counts_of_kmers():
    sequences = ["ACGTNACG", "AC", "", letters(50, 1)]
    found = kmer_counts([encode(one) for one in sequences], (1, 2, 3))
    assert found.shape == (4, 4 + 16 + 64)
    for row, sequence in enumerate(sequences):
        column = 0
        for k in (1, 2, 3):
            for number in range(4**k):
                word = "".join("ACGT"[number // 4**place % 4] for place in reversed(range(k)))
                wanted = sum(sequence[start : start + k] == word for start in range(len(sequence) - k + 1))
                assert found[row, column] == wanted, word
                column += 1
    both = kmer_counts([encode("AAC")], (1,), both=True)
    assert both.tolist() == [[2, 1, 1, 2]]


def test_positions():
    assert one_hot([encode("ACGTN")], 5).reshape(5, 4).tolist() == [*np.eye(4).tolist(), [0] * 4]


def motif_set(count, seed):
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, count)
    made = []
    for row, label in enumerate(truth):
        sequence = letters(60, 1000 * seed + row)
        place = int(random.integers(0, 50))
        made.append(encode(sequence[:place] + "TATAATGC" + sequence[place + 8 :] if label else sequence))
    return made, truth


@pytest.mark.parametrize("scale", ["unit", "counts"])
def test_logistic_finds_a_motif(scale):
    (train, truth), (test, wanted) = motif_set(300, 1), motif_set(200, 2)
    model = KmerLinear(positions=False, scale=scale).fit(train, truth)
    found = model.predict(test)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found.argmax(1) == wanted).mean() > 0.9


def test_several_labels_and_numbers():
    train, truth = motif_set(200, 1)
    labels = np.stack([truth, np.zeros_like(truth), np.ones_like(truth)], 1)
    found = KmerLinear("multilabel").fit(train, labels).predict(train)
    assert found.shape == (200, 3)
    assert ((found[:, 0] > 0.5) == truth).mean() > 0.9
    assert (found[:, 1:] == [0, 1]).all()
    model = KmerLinear("regression").fit(train, np.stack([truth * 2.0, -truth], 1))
    assert model.scale == "counts"
    numbers = model.predict(train)
    assert numbers.shape == (200, 2)
    assert np.corrcoef(numbers[:, 0], truth)[0, 1] > 0.9
    single = KmerLinear().fit(train, np.ones(200, dtype=np.int64))
    assert single.predict(train[:2]).tolist() == [[0, 1], [0, 1]]
    absent = KmerLinear().fit(train, truth, classes=3).predict(train[:5])
    assert absent.shape == (5, 3)
    assert (absent[:, 2] == 0).all()


def test_lengths_that_differ():
    train, truth = motif_set(60, 1)
    shorter = [ids[: 40 + row % 3] for row, ids in enumerate(train)]
    assert KmerLinear().fit(shorter, truth).length is None
    with pytest.raises(InputError, match="require sequences of equal length"):
        KmerLinear(sizes=()).fit(shorter, truth)
    model = KmerLinear(sizes=()).fit(train, truth)
    with pytest.raises(InputError, match="a sequence of 40 letters; all training sequences have 60"):
        model.predict(shorter)
    with pytest.raises(InputError, match="no features"):
        KmerLinear(sizes=(), positions=False)


def test_without_scikit_learn(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(InputError, match=r"pip install 'seqssm\[dna\]'"):
        KmerLinear().fit(*motif_set(10, 1))
