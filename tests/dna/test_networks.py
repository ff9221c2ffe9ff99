"""Genome networks: one pass = pieces = steps, padding, exact symmetry in the strands, echo embedding, sizes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from seqssm_dna.classifier import GenomeClassifier, echoed
from seqssm_dna.model import GenomeEncoder, GenomeLM, layer_pattern
from seqssm_dna.rivals import CausalCnn, GruEncoder, GruLM, SmallCnn
from seqssm_dna.stem import StemEncoder
from seqssm_dna.strands import complement_table, reverse_complement
from seqssm_dna.tokens import BOS, PAD, SEP

from seqssm.errors import InputError
from seqssm.nn.chunks import in_pieces

CAUSAL = {
    "hybrid": lambda: GenomeLM(32, 3, attn_period=2, attn_offset=1, attn_window=9, mlp_ratio=2, d_state=16),
    "mamba": lambda: GenomeLM(16, 2, "mamba", d_state=8),
    "convolved": lambda: GenomeLM(16, 2, "mamba", d_state=8, conv_layers=3, conv_kernel=3),
    "mamba3": lambda: GenomeLM(16, 2, "mamba3", d_state=16, head_dim=8),
    "attention": lambda: GenomeLM(16, 2, "attention"),
    "gru": lambda: GruLM(16, 2),
    "cnn": lambda: CausalCnn(16, 3),
}
ENCODERS = {
    "encoder": lambda: GenomeEncoder(16, 2, d_state=8),
    "attending": lambda: GenomeEncoder(16, 2, "mamba2", attn_period=2, attn_offset=1, mlp_ratio=2, d_state=8),
    "shared": lambda: GenomeEncoder(16, 2, d_state=8, strands="shared"),
    "stem": lambda: StemEncoder(16, 1, 9, positions=8, d_state=8),
    "stem_alone": lambda: StemEncoder(16, 0, 9),
    "cnn": lambda: SmallCnn(16),
    "gru": lambda: GruEncoder(16),
}
LENGTHS = [31, 9, 17]


@pytest.fixture(autouse=True)
def _seeded(one_thread):
    torch.manual_seed(0)


@pytest.fixture
def ids():
    return torch.randint(7, 11, (3, 31), generator=torch.Generator().manual_seed(1))


def padded(ids):
    mask = torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]
    return ids.masked_fill(~mask, PAD), mask


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_a_causal_model_continues_exactly(name, ids):
    model = CAUSAL[name]().eval()
    whole = model(ids)
    for size in (1, 7, 30):
        torch.testing.assert_close(in_pieces(model, ids, size), whole, atol=1e-5, rtol=0)
    state, rows = model.new_state(len(ids)), []
    for place in range(ids.shape[1]):
        logits, state = model.step(ids[:, place], state)
        rows.append(logits)
    torch.testing.assert_close(torch.stack(rows, 1), whole, atol=1e-5, rtol=0)
    changed = ids.clone()
    changed[:, 20] = 7 + (changed[:, 20] - 6) % 4
    torch.testing.assert_close(model(changed)[:, :20], whole[:, :20], atol=1e-6, rtol=0)
    assert (model(changed)[:, 20:] - whole[:, 20:]).abs().max() > 1e-4


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_prompts_with_padding_on_either_side(name, ids):
    model = CAUSAL[name]().eval()
    _, mask = padded(ids)
    alone = [model.prefill(ids[row : row + 1, :count]) for row, count in enumerate(LENGTHS)]
    for flipped in (False, True):
        right = ids.masked_fill(~mask, PAD)
        given = (
            (torch.stack([row.roll(31 - n) for row, n in zip(right, LENGTHS)]), mask.flip(1))
            if flipped
            else (right, mask)
        )
        logits, state = model.prefill(given[0], mask=given[1])
        after, _ = model.step(torch.full((3,), 8), state)
        for row, (own, before) in enumerate(alone):
            torch.testing.assert_close(logits[row : row + 1], own, atol=1e-5, rtol=0)
            following, _ = model.step(torch.tensor([8]), before)
            torch.testing.assert_close(after[row : row + 1], following, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@torch.no_grad()
def test_shared_strands_are_exactly_equivariant(dtype, error, ids):
    model = GenomeEncoder(24, 3, d_state=8, strands="shared").to(dtype).eval()
    plain = GenomeEncoder(24, 3, d_state=8).to(dtype).eval()
    given, mask = padded(ids)
    turned = reverse_complement(given, mask)
    real = mask.unsqueeze(-1)
    for row, count in enumerate(LENGTHS):
        own = reverse_complement(ids[row : row + 1, :count])
        assert torch.equal(turned[row : row + 1, :count], own)
    assert torch.equal(turned[~mask], given[~mask])

    def mirror(x):  # positions of the real part and channels in reverse
        return torch.stack([torch.cat([row[:n].flip(0), row[n:]]) for row, n in zip(x, LENGTHS)])

    hidden, other = model.hidden(given, mask=mask), model.hidden(turned, mask=mask)
    assert ((other - mirror(hidden).flip(-1)) * real).abs().max() <= error
    logits, turned_logits = model(given, mask=mask), model(turned, mask=mask)
    assert ((turned_logits - mirror(logits)[..., complement_table(12)]) * real).abs().max() <= error
    assert (
        (plain(turned, mask=mask) - mirror(plain(given, mask=mask))[..., complement_table(12)]) * real
    ).abs().max() > 1e-3
    for pool in ("mean", "max"):
        classifier = GenomeClassifier(model, 3, pool=pool).to(dtype).eval()
        torch.testing.assert_close(classifier(given, mask), classifier(turned, mask), atol=10 * error, rtol=0)


def test_a_causal_model_refuses_shared_strands():
    with pytest.raises(ValueError, match="strands shared: a causal model would read the bases that it predicts"):
        GenomeLM(16, 2, strands="shared")


@pytest.mark.parametrize("echo", ["none", "same", "reverse_complement"])
@pytest.mark.parametrize("pool", ["mean", "max", "last"])
@torch.no_grad()
def test_padding_changes_no_label(echo, pool, ids):
    model = GenomeClassifier(CAUSAL["hybrid"](), 2, pool=pool, echo=echo, echo_separator=True).eval()
    given, mask = padded(ids)
    alone = torch.cat([model(ids[row : row + 1, :count]) for row, count in enumerate(LENGTHS)])
    torch.testing.assert_close(model(given, mask), alone, atol=1e-5, rtol=0)
    left = torch.stack([row.roll(31 - n) for row, n in zip(given, LENGTHS)])
    torch.testing.assert_close(model(left, mask.flip(1)), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_padding_changes_no_label_of_encoders(name, ids):
    model = GenomeClassifier(ENCODERS[name](), 2).eval()
    given, mask = padded(ids)
    alone = torch.cat([model(ids[row : row + 1, :count]) for row, count in enumerate(LENGTHS)])
    torch.testing.assert_close(model(given, mask), alone, atol=1e-5, rtol=0)


def test_padding_is_never_between_the_copies(ids):
    given, mask = padded(ids)
    table = complement_table(12)
    for echo in ("same", "reverse_complement"):
        for separator in (False, True):
            tokens, real, first = echoed(given, mask.sum(1), echo, separator, table)
            assert tokens.shape[1] == 1 + 2 * 31 + separator
            for row, count in enumerate(LENGTHS):
                own = ids[row, :count]
                copy = own if echo == "same" else reverse_complement(own.unsqueeze(0))[0]
                wanted = [BOS, *copy.tolist(), *([SEP] if separator else []), *own.tolist()]
                assert tokens[row, : len(wanted)].tolist() == wanted
                assert real[row].sum() == len(wanted)
                assert (tokens[row, len(wanted) :] == PAD).all()
                assert tokens[row, first[row] :][:count].tolist() == own.tolist()


@torch.no_grad()
def test_only_an_echo_knows_the_last_base_at_the_first_position(ids):
    other = ids.clone()
    other[:, -1] = 7 + (other[:, -1] - 6) % 4
    network = CAUSAL["hybrid"]().eval()
    table = complement_table(12)
    counts = torch.full((3,), 31)
    for echo, knows in (("none", False), ("same", True), ("reverse_complement", True)):
        tokens, _, first = echoed(ids, counts, echo, False, table)
        changed, _, _ = echoed(other, counts, echo, False, table)
        difference = (network.hidden(tokens) - network.hidden(changed))[:, int(first[0])].abs().max()
        assert (difference > 1e-6) == knows


def test_an_echo_needs_a_causal_network():
    with pytest.raises(ValueError, match="echo same: requires a causal network"):
        GenomeClassifier(ENCODERS["stem"](), 2, echo="same")


@torch.no_grad()
def test_both_strands_are_averaged_on_request(ids):
    model = GenomeClassifier(ENCODERS["stem"](), 2, average_strands=True).eval()
    turned = reverse_complement(ids)
    torch.testing.assert_close(model.predict(ids), model.predict(turned), atol=1e-6, rtol=0)
    apart = (model.predict(ids, average_strands=False) + model.predict(turned, average_strands=False)) / 2
    torch.testing.assert_close(model.predict(ids), apart, atol=1e-6, rtol=0)
    assert (model(ids) - model(turned)).abs().max() > 1e-3


@torch.no_grad()
def test_numbers_are_in_the_users_units(ids):
    model = GenomeClassifier(ENCODERS["cnn"](), 1, target="value").eval()
    before = model.predict(ids)
    model.center.fill_(5)
    model.scale.fill_(3)
    torch.testing.assert_close(model.predict(ids), 3 * before + 5)


def test_the_pattern_is_hybridnas():
    pattern = layer_pattern(32, "mamba2", 8, 4, True)
    assert [place for place, symbol in enumerate(pattern[::2]) if symbol == "*"] == [4, 12, 20, 28]
    assert set(pattern[1::2]) == {"-"}
    with pytest.raises(ValueError, match="expected 0 <= offset < period"):
        layer_pattern(4, "mamba", 4, 4, False)


@torch.no_grad()
def test_convolutions_before_the_mixers():
    """Packed sequences with their states are separate ones; weights of a model without storage; sizes."""
    model = GenomeLM(16, 2, "mamba", d_state=8, conv_layers=3, conv_kernel=3).eval()
    ids = torch.randint(7, 11, (1, 40), generator=torch.Generator().manual_seed(1))
    ends = torch.tensor([0, 5, 5, 29, 40], dtype=torch.int32)
    packed, state = model(ids, model.new_state(4), cu_seqlens=ends, return_state=True)
    again = model(ids, state, cu_seqlens=ends)
    for start, end in pairwise(ends.tolist()):
        if start < end:
            own = torch.cat([ids[:, start:end]] * 2, dim=1)
            alone = model(own)[0]
            both = torch.cat([packed[0, start:end], again[0, start:end]])
            torch.testing.assert_close(both, alone, atol=1e-5, rtol=0)
    assert {name: value.shape[1] for name, value in state["convs"].items()} == {"0": 2, "1": 4, "2": 8}
    with torch.device("meta"):
        empty = GenomeLM(16, 2, "mamba", d_state=8, conv_layers=3, conv_kernel=3)
    empty.to_empty(device="cpu").reset_parameters()
    assert all(torch.isfinite(weight).all() for weight in empty.parameters())
    assert empty.convs.convs[2].weight.std() > 0.01
    with pytest.raises(InputError, match=r"--model.conv_layers 17: must be in \[0, 16\]"):
        GenomeLM(16, 2, conv_layers=17)
    with pytest.raises(InputError, match=r"--model.conv_kernel 0: must be at least 1"):
        GenomeLM(16, 2, conv_layers=1, conv_kernel=0)


@torch.no_grad()
def test_long_contexts_at_single_base_resolution():
    model = GenomeLM(8, 1, "mamba", d_state=4).eval()
    ids = torch.randint(7, 11, (1, 131_072 + 2), generator=torch.Generator().manual_seed(3))
    logits = in_pieces(model, ids, 16_384)
    assert logits.shape == (1, 131_074, 12)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("options", [{"binary": True}, {"lora": 2}])
def test_a_seed_gives_the_same_initial_weights_and_draws_on_every_device(options):
    from seqssm_dna.task import CausalPretraining

    found = []
    for device in ("cpu", "cuda:0"):  # Lightning makes the device of the run the default
        task = CausalPretraining(d_model=8, n_layers=1, mixer="mamba", d_state=4, context=8, **options)
        torch.manual_seed(0)
        with torch.device(device):
            task.configure_model()
        found.append([*task.model.parameters(), torch.rand(1)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
