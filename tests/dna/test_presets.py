"""Presets of DNA: the published sizes, and options that exist."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from seqssm_dna.task import CausalPretraining

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
