"""Adapters of peft on the projections of every layer: trained, merged, saved and loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from seqssm.errors import InputError
from seqssm.files.weights import load, save
from seqssm.nn.backbone import Backbone
from seqssm.nn.generation import generate
from seqssm.nn.language_model import LanguageModel
from seqssm.nn.mamba import Mamba

peft = pytest.importorskip("peft", reason="needs peft: pip install seqssm[adapters]")

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
PROJECTIONS = ["in_proj", "x_proj", "dt_proj", "out_proj", "fc1", "fc2"]
V, D = 11, 16
KINDS = {
    "M": ("mamba2", {"d_state": 4, "head_dim": 8}),
    "m": ("mamba", {"d_state": 4}),
    "3": ("mamba3", {"d_state": 4, "head_dim": 8}),
    "*": ("attention", {"n_heads": 2}),
    "-": ("mlp", {"hidden": 8}),
}
PER_LAYER = {"M": 2, "m": 4, "3": 2, "*": 2, "-": 2}  # projections


def make(pattern, **options):
    torch.manual_seed(1)
    given = {name: values | options for symbol, (name, values) in KINDS.items() if symbol in pattern}
    return LanguageModel(V, Backbone(D, pattern, **given))


def adapted(model, targets=PROJECTIONS):
    """Add adapters that have an effect from the start; by default they start at zero."""
    torch.manual_seed(2)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False))


@pytest.fixture
def ids():
    return torch.randint(0, V, (2, 9), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("pattern", ["M", "m", "3", "*", "-", "Mm3*-"])
def test_every_adapter_is_trained(pattern, ids):
    model = adapted(make(pattern))
    model(ids).square().sum().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * sum(PER_LAYER[symbol] for symbol in pattern)
    assert all("lora_" in name for name in trained)
    assert [name for name, one in trained.items() if one.grad is None or not one.grad.abs().max() > 0] == []


def test_adapters_of_several_routes():
    """A layer with two routes has separate projections for each."""
    torch.manual_seed(1)
    layer = adapted(Mamba(D, d_state=4, ordering="bidirectional"))
    layer(torch.randn(2, 9, D)).square().sum().backward()
    trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * (2 + 2 * 2)
    assert all(parameter.grad.abs().max() > 0 for parameter in trained)


def test_merged_saved_and_loaded(ids, tmp_path):
    plain = make("Mm3*-")
    before = plain(ids).detach()
    model = adapted(make("Mm3*-")).eval()
    expected = model(ids).detach()
    assert (expected - before).abs().max() > 0.1
    state = model.new_state(2)
    for place in range(9):
        logits, state = model.step(ids[:, place], state)
        torch.testing.assert_close(logits, expected[:, place], rtol=0, atol=1e-5)
    tokens = [one.ids.tolist() for one in generate(model, ids, max_new_tokens=5)]
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(make("Mm3*-"), tmp_path).eval()
    assert torch.equal(again(ids), expected)
    merged = model.merge_and_unload()
    assert type(merged) is LanguageModel
    torch.testing.assert_close(merged(ids), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    assert [one.ids.tolist() for one in generate(merged, ids, max_new_tokens=5)] == tokens


@pytest.mark.parametrize("pattern", ["MM", "mm"])
def test_public_weights_equal_the_merged_model(pattern, ids, tmp_path):
    model = adapted(make(pattern))
    with pytest.raises(InputError, match="merge adapters before saving"):
        save(model.base_model.model, tmp_path / "model")
    merged = model.merge_and_unload()
    save(merged, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model")(ids), merged(ids))


@pytest.mark.parametrize("pattern", ["M", "m"])
def test_convolutions_are_refused(pattern):
    with pytest.raises(ValueError, match="Conv1d with groups"):
        adapted(make(pattern), ["conv1d"])


def test_the_page_runs(tmp_path, monkeypatch):
    """The language models of docs/python.md, from weights to adapters."""
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    names = {}
    examples = re.findall(r"^```python\n(.*?)^```", text[text.index("## Language models") :], re.MULTILINE | re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        exec(compile(example, "python.md", "exec"), names)
    assert len(names["drawn"]) == 2
