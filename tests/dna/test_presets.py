"""Presets of DNA: the published sizes, and options that exist."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from seqssm_dna.model import GenomeLM
from seqssm_dna.task import CausalPretraining

import seqssm
from seqssm.domain import domains, resolve
from seqssm.training import presets
from seqssm.training.networks import without_foreign


def test_presets_build_the_published_sizes():
    domain = domains()["dna"]
    known = presets.presets(domain)
    assert {"tiny", "pretrain", "masked", "finetune", "pfalciparum_pretrain", "human_chr20_pretrain"} <= set(known)
    sizes = {"hybridna_300m": 302e6, "hybridna_3b": 3.2e9, "hybridna_7b": 6.4e9}
    for name, wanted in sizes.items():
        content = presets.read_preset(known[name], domain)
        task = CausalPretraining(**content["model"]["init_args"], context=content["data"]["init_args"]["context"])
        with torch.device("meta"):
            model = task.build_model()
        count = sum(parameter.numel() for parameter in model.parameters())
        assert abs(count / wanted - 1) < 0.05, (name, count)
        assert [place // 2 for place, one in enumerate(model.backbone.pattern) if one == "*"][:2] == [4, 12]
        assert model.attn_window == 131_072
        assert content["data"]["init_args"]["context_warmup"] == {0: 8192, 96: 32768, 98: 131072}


def test_every_preset_names_options_that_exist():
    domain = domains()["dna"]
    for source in presets.presets(domain).values():
        content = presets.read_preset(source, domain)
        for section in ("model", "data"):
            module, _, name = content[section]["class_path"].rpartition(".")
            resolve(f"{module}:{name}")(**content[section]["init_args"])


def test_measured_networks_are_those_of_the_preset_and_the_flags():
    study = json.loads(Path(__file__).parents[2].joinpath("results", "dna_pfalciparum.json").read_text())
    domain = domains()["dna"]
    content = presets.read_preset(presets.presets(domain)[study["preset"]], domain)["model"]["init_args"]
    for row in study["rows"]:
        names, values = row["flags"][::2], row["flags"][1::2]
        given = {name.removeprefix("--model."): value for name, value in zip(names, values, strict=True)}
        given = {name: int(value) if value.isdigit() else value for name, value in given.items()}
        own, _ = without_foreign(CausalPretraining, {**content, **given})
        with torch.device("meta"):
            model = CausalPretraining(**own, context=512).build_model()
        assert sum(parameter.numel() for parameter in model.parameters()) == row["parameters"], row["model"]
    assert (content["conv_layers"], content["n_layers"]) == (6, 2)


def test_the_classes_of_a_preset_hold_for_what_changes_it(tmp_path):
    """A mapping from Python or a second config without classes had those of the domain: another task and other data."""
    own = tmp_path / "own.yaml"
    own.write_text("model: {d_model: 16}\ndata: {train: a.csv}\n", encoding="utf-8")
    domain = domains()["dna"]
    contents = presets.read_presets([presets.find_preset(domain, "splice"), presets.find_preset(domain, own)], domain)
    extra = presets.normalised({"model": {"network": "hybrid"}, "data": {"train": "b.csv"}}, domain, before=contents)
    for section in ("model", "data"):
        assert contents[1][section]["class_path"] == contents[0][section]["class_path"] == extra[section]["class_path"]
    assert presets.normalised({"model": {}}, domain)["model"]["class_path"].endswith("CausalPretraining")


def test_another_network_over_a_preset_from_python(tmp_path):
    rows = "".join(
        f"{'ACGT' * 5}{'ACGT'[k % 4]}{'ACGT'[k // 4 % 4]}{'ACGT'[k // 16]},{'ab'[k % 2]}\n" for k in range(40)
    )
    (tmp_path / "a.csv").write_text(f"sequence,label\n{rows}", encoding="utf-8")
    model = {"network": "hybrid", "d_model": 8, "n_layers": 1}
    trained = seqssm.fit(
        "dna",
        preset="splice",
        data={"train": str(tmp_path / "a.csv")},
        model=model,
        trainer={"max_epochs": 1},
        output=tmp_path / "run",
    )
    assert isinstance(trained.network.network, GenomeLM)
