"""Designed sequences: only A, C, G, T, of the given length, by seed; labels; edit distances; simulated data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from seqssm_dna import simulate
from seqssm_dna.distances import Nearest
from seqssm_dna.files import open_genome, read_bed, read_labelled
from seqssm_dna.generate import compared, design, header, prefix_tokens, read_training
from seqssm_dna.letters import reverse_complement
from seqssm_dna.tokens import BOS, Vocabulary, encode
from seqssm_dna.variants import Variants

from seqssm.errors import InputError

from .conftest import fasta, letters
from .predicting import SUMMARY, causal
from .test_predict import direct

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = tuple(f"expression={k}" for k in range(5))
BINNED = {
    **SUMMARY, "properties": ["expression"], "bins": 5, "edges": [[1.0, 2.0, 3.0, 4.0]],
    "vocabulary": Vocabulary(NAMES).to_dict(),
}  # fmt: skip


def test_sequences_by_seed_of_bases_only():
    model = causal()
    with torch.no_grad():
        model.lm_head.weight[[1, 11]] += 5 * model.lm_head.weight.abs().max()  # the model would prefer [SEP] and N
    many = design(model, [BOS], 50, 8, seed=3)
    assert [one.seed for one in many] == list(range(3, 11))
    assert all(len(one.letters) == 50 and not set(one.letters) - set("ACGT") for one in many)
    assert len({one.letters for one in many}) > 4
    alone = design(model, [BOS], 50, 1, seed=5, batch_size=1)
    assert alone[0].letters == many[2].letters
    small = design(model, [BOS], 50, 8, seed=3, batch_size=3)
    assert [one.letters for one in small] == [one.letters for one in many]


def test_log_likelihoods_and_prompts():
    model = causal()
    one = design(model, [BOS], 30, 1, "acgu", top_k=2, top_p=0.9, temperature=0.5)[0]
    assert one.letters.startswith("ACGT")
    ids = torch.tensor([[BOS, *encode(one.letters).tolist()]])
    with torch.no_grad():
        four = model(ids)[0, :-1, 7:11].log_softmax(-1)
    own = four[torch.arange(30), ids[0, 1:] - 7]
    assert one.log_likelihood == pytest.approx(float(own[4:].sum()), abs=1e-3)
    best = design(model, [BOS], 12, 3, beams=16)
    assert [one.log_likelihood for one in best] == sorted((one.log_likelihood for one in best), reverse=True)
    assert len({one.letters for one in best}) == 3
    assert best[0].seed is None
    for prompt, length, message in (
        ("AN", 9, "A, C, G and T only"),
        ("ACGT", 4, "must exceed"),
        ("A!", 9, "not a nucl"),
    ):
        with pytest.raises(InputError, match=message):
            design(model, [BOS], length, 1, prompt)


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ({"bin": 4}, 4),
        ({"expression": "highest"}, 4),
        ({"expression": "middle"}, 2),
        ({"expression": "lowest"}, 0),
        ({"expression": "3"}, 3),
        ({"expression": "2.5"}, 2),
        ({"expression": "-1e3"}, 0),
        ({"label": ["expression=1"]}, 1),
        ({"label": ["expression=high"]}, 3),
        ({"label": ["expression=99.5"]}, 4),
    ],
)
def test_labels_in_the_users_terms(given, number):
    tokens, wanted = prefix_tokens(BINNED, given)
    assert tokens == [BOS, 12 + number]
    assert wanted == {"expression": str(number)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs a label for expression"),
        ({"bin": 5}, "the model has expression=0, expression=1"),
        ({"expression": "much"}, "a value in the data's unit or one of lowest"),
        ({"label": ["much"]}, "expected PROPERTY=VALUE"),
        ({"label": ["expresion=1"]}, "did you mean expression"),
        ({"class": "a"}, "--class a: the model has no property class but expression; use --label expression=a"),
        ({"bin": 4, "expression": "lowest"}, "--expression lowest: --bin 4 chooses expression too"),
        ({"label": ["expression=1"], "bin": 4}, "--bin 4: --label expression=1 chooses expression too"),
        ({"label": ["expression=1", "expression=2"]}, "--label expression=1 chooses expression too"),
    ],
)
def test_labels_that_do_not_fit(given, message):
    with pytest.raises(InputError, match=message):
        prefix_tokens(BINNED, given)
    with pytest.raises(InputError, match="without labels"):
        prefix_tokens(SUMMARY, {"bin": 1})
    classes = {**SUMMARY, "properties": ["class"], "vocabulary": Vocabulary(("class=a", "class=b")).to_dict()}
    assert prefix_tokens(classes, {"class": "b"}) == ([BOS, 13], {"class": "b"})
    two = {**BINNED, "properties": ["complex", "defined"], "edges": [[1.0]] * 2, "bins": 2}
    with pytest.raises(InputError, match="several properties"):
        prefix_tokens(two, {"bin": 1})


def plain(a: str, b: str) -> int:
    """Edit distance by the textbook."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(before[j - 1] + (x != y), before[j] + 1, row[-1] + 1))
    return row[-1]


def test_edit_distances(write):
    known = [letters(length, seed) for seed, length in enumerate([40, 35, 50, 38, 41])]
    nearest = Nearest([encode(one) for one in known], both=False)
    for seed in range(20):
        query = simulate.mutated(known[seed % 5], 0.2, np.random.default_rng(seed))
        query = query[: seed % 7] + query[seed % 11 :]
        distances = [plain(query, one) for one in known]
        found, place = nearest.of(encode(query))
        assert found == min(distances) == distances[place]
    contig = letters(500, 9)
    inside = Nearest([encode(contig)])
    assert inside.of(encode(contig[200:240])) == (0, 0)
    assert inside.of(encode(reverse_complement((contig[300:320] + contig[321:341]).encode()))) == (1, 0)
    designs = design(causal(), [BOS], 40, 2)
    copies = write(fasta([("x", letters(40)), ("copy", designs[1].letters.lower())]))
    table = write(f"id,sequence\nt,{designs[0].letters[:-2]}\n", "t.csv")
    found = compared(designs, *read_training([str(copies), str(table)]))
    assert [(one.distance, one.nearest) for one in found] == [(2, "t"), (0, "copy")]
    text = header(7, found[1], {"expression": "4"})
    assert text.startswith("design7 expression=4 log_likelihood=-")
    assert text.endswith(" length=40 seed=1 training_distance=0 nearest=copy")


def test_simulated_data_can_be_read_and_match_their_truth(tmp_path):
    made = simulate.folder(tmp_path, seed=2, length=6000, labelled=20, alleles=10)
    genome = open_genome(tmp_path / "genome.fa")
    assert genome.names == list(made.contigs)
    assert [one.split for one in read_bed(tmp_path / "splits.bed", genome)] == ["train", "train", "val", "test"]
    assert all(one.name.startswith(("family", "(")) for one in read_bed(tmp_path / "repeats.bed", genome))
    labelled = read_labelled(tmp_path / "promoters.csv")
    assert labelled.classes == ["other", "promoter"]
    variants = Variants(tmp_path / "calls.vcf", genome, 64)
    alleles = list(variants)
    assert all(one.status == "ok" for one in alleles)
    truth = simulate.variants(made, "chr4", 10, 2)["true_llr"]
    for allele, llr in zip(alleles, truth):
        window = variants.windows(allele)
        left = window.ref[: window.offset].decode()[-60:]
        both = [
            made.chain.log_likelihood(left + one[window.offset : window.offset + 12].decode())
            for one in (window.ref, window.alt)
        ]
        if len(allele.ref) == len(allele.alt):
            assert both[1] - both[0] == pytest.approx(llr, abs=1e-9)
    assert simulate.folder(tmp_path / "b", seed=2, length=6000).contigs == made.contigs
    bits = -made.chain.log_likelihood(made.chain.sample(40_000, np.random.default_rng(0))) / 40_000 / np.log(2)
    assert bits == pytest.approx(made.chain.bits, abs=0.02)
    assert made.chain.bits < 1.9


def test_promoters_differ_by_their_boxes():
    found = simulate.promoters(40, 1)
    assert found["sequence"].str.len().eq(80).all()
    spacing = found["box10"] - found["box35"] - 6
    assert spacing[found["label"] == "promoter"].between(16, 18).all()
    assert direct(causal(), found["sequence"][0])[0].shape == (80,)
