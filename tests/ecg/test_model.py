"""The network: both directions on every engine; padding changes nothing; sizes are the published ones."""

from __future__ import annotations

import pytest
import torch
from seqssm_ecg import EcgMamba, ResidualCnn
from seqssm_ecg.attribution import by_lead, integrated_gradients
from seqssm_ecg.classifier import Classifier, pooled_logits
from seqssm_ecg.model import ConvStem

from seqssm.errors import InputError
from seqssm.nn.mamba import Mamba

ENGINES = ("numba", "torch", "reference")


def small(seed=0, **kwargs):
    torch.manual_seed(seed)
    sizes = {"leads": 3, "window": 200, "d_model": 8, "depth": 2, "d_state": 4}
    return EcgMamba(**{**sizes, **kwargs}).eval()


@pytest.mark.parametrize("engine", ENGINES)
def test_late_samples_reach_early_tokens(engine):
    """Guards against a known error: an engine that silently runs the forward direction only."""
    model = small(engine=engine, pool="head")
    x = torch.randn(1, 3, 200)
    changed = x.clone()
    changed[..., -1] += 5
    assert (model(x) - model(changed)).abs().max() > 1e-6  # the class token is first
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    assert gradient[..., -3:].abs().max() > 0
    model.zero_grad()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        if "routes" in name:  # the backward direction's own
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("engine", ENGINES)
def test_with_tied_directions_flipped_input_gives_flipped_output(engine):
    torch.manual_seed(1)
    mixer = Mamba(8, d_state=4, ordering="bidirectional", merge="mean", engine=engine)
    back, own = mixer.routes["1"], dict(mixer.named_parameters())
    with torch.no_grad():
        for name, parameter in back.named_parameters():
            parameter.copy_(own[name])
    x = torch.randn(2, 17, 8)
    torch.testing.assert_close(mixer(x.flip(1)), mixer(x).flip(1), rtol=1e-4, atol=1e-5)


def test_the_forward_variant_does_not_read_backwards():
    model = small(direction="forward", pool="tail", positions=False, causal=True)
    tokens = model.stem(torch.randn(1, 3, 200))
    changed = tokens.clone()
    changed[:, -1] += 1
    first, second = model._encode(tokens, None), model._encode(changed, None)
    assert torch.equal(first[:, :-1], second[:, :-1])
    for pool in ("head", "middle"):
        with pytest.raises(InputError, match="would not see"):
            small(direction="forward", pool=pool)


@pytest.mark.parametrize("pool", ["middle", "head", "tail", "mean"])
@pytest.mark.parametrize("stem", ["short", "ecg_mamba"])
def test_padding_changes_nothing(pool, stem):
    model = small(pool=pool, stem=stem)
    x = torch.randn(3, 3, 200)
    lengths = torch.tensor([200, 131, 90])
    noisy = x.clone()
    for row, length in zip(noisy, lengths):
        row[:, length:] = 7.0
    together = model(noisy, lengths)
    for row, length, found in zip(x, lengths, together):
        torch.testing.assert_close(found, model(row[None, :, :length])[0], rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing_in_the_cnn():
    torch.manual_seed(0)
    model = ResidualCnn(3, 8).eval()
    x, lengths = torch.randn(3, 3, 200), torch.tensor([200, 131, 90])
    for row, length, found in zip(x, lengths, model(x, lengths)):
        torch.testing.assert_close(found, model(row[None, :, :length])[0], rtol=1e-4, atol=1e-5)


def test_positions_are_stretched():
    model = small()
    table = model.positions
    assert torch.equal(model.position_table(table.shape[1]), table)
    longer = model.position_table(2 * table.shape[1] - 1)
    torch.testing.assert_close(longer[:, ::2], table)
    assert model(torch.randn(1, 3, 333)).shape == (1, 8)


@pytest.mark.parametrize(("samples", "tokens"), [(8192, 729), (5000, 463), (1000, 130), (250, 67)])
def test_tokens_of_the_published_stem(samples, tokens):
    stem = ConvStem(12, 8, "ecg_mamba")
    assert stem.tokens(samples) == tokens
    assert stem(torch.zeros(1, 12, samples)).shape == (1, tokens, 8)


@pytest.mark.parametrize("samples", [1000, 257, 40])
@pytest.mark.parametrize("causal", [False, True])
def test_tokens_of_the_short_stem(samples, causal):
    stem = ConvStem(12, 8, "short", causal)
    assert stem(torch.zeros(1, 12, samples)).shape[1] == stem.tokens(samples)


def test_an_input_without_a_token_is_an_error():
    with pytest.raises(InputError, match="too short for the stem"):
        small(window=2, causal=True, direction="forward", pool="mean")
    model = small(causal=True, direction="forward", pool="mean", positions=False)
    with pytest.raises(InputError, match="too short"):
        model(torch.zeros(1, 3, 3))


def test_the_published_size():
    with torch.device("meta"):
        model = EcgMamba(12, 8192, 384, 24, stem="ecg_mamba")
    block = sum(p.numel() for p in model.blocks[0].parameters())
    assert block == 1_043_328
    assert sum(p.numel() for p in model.blocks.parameters()) == 24 * block
    assert sum(p.numel() for p in model.stem.parameters()) == pytest.approx(0.76e6, rel=0.01)


def test_records_pool_their_windows():
    logits = torch.tensor([[0.0, 2.0], [2.0, -2.0], [1.0, 1.0]])
    owner = torch.tensor([0, 0, 1])
    largest = pooled_logits(logits, owner, 2, "max")
    assert largest.tolist() == [[2.0, 2.0], [1.0, 1.0]]
    mean = pooled_logits(logits, owner, 2, "mean").sigmoid()
    torch.testing.assert_close(mean[0], logits[:2].sigmoid().mean(0))
    assert pooled_logits(logits, torch.arange(3), 3, "mean") is logits


def test_attributions_add_up_to_the_change_of_the_logit():
    network = Classifier(small(), 4).eval()
    x = torch.randn(3, 200)
    found = integrated_gradients(network, x, 2, steps=128)
    with torch.no_grad():
        change = network(x[None])[0, 2] - network(torch.zeros(1, 3, 200))[0, 2]
    assert float(found.sum()) == pytest.approx(float(change), abs=0.02 + 0.02 * abs(float(change)))
    assert by_lead(found.numpy()).sum() == pytest.approx(1)


def test_attribution_of_a_linear_network_is_exact():
    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3, 20))

        def forward(self, x):
            return (x * self.weight).sum((1, 2))[:, None]

    network, x = Linear(), torch.randn(3, 20)
    torch.testing.assert_close(integrated_gradients(network, x, 0, steps=3), (x * network.weight).detach())
