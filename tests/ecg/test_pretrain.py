"""Pretraining without labels: masks, alignment of tokens and samples, resuming, and the classifier that follows."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_ecg.model import STEMS, ConvStem, EcgMamba, ResidualCnn
from seqssm_ecg.pretrain import EcgPretraining, Reconstructor
from seqssm_ecg.unlabelled import EcgRecordings

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError

TINY = ["--model.d_model", "16", "--model.depth", "1", "--model.d_state", "4", "--data.window_s", "4"]
TINY += ["--trainer.accelerator", "cpu", "--model.threads", "1"]


def task(**options):
    return EcgPretraining(
        lead_set=12,
        window_s=4,
        sampling_rate_hz=100,
        d_model=16,
        depth=1,
        d_state=4,
        stem="deep",
        pool="mean",
        **options,
    )


def test_masks_hide_blocks_of_time_and_whole_leads():
    torch.manual_seed(0)
    one = task(mask_fraction=0.3, mask_s=0.2, mask_leads=0.5)
    hidden = one.masks(200, 12, 400, None)
    leads = hidden.all(2)
    assert not leads.all(1).any()
    assert 0.4 < float(leads.float().mean()) < 0.55
    visible = hidden[~leads]
    assert visible.view(-1, 20, 20).all(2).sum(1).eq(6).all()  # six of twenty blocks
    assert torch.equal(visible.view(-1, 20, 20).all(2), visible.view(-1, 20, 20).any(2))
    assert torch.equal(one.masks(2, 12, 400, [5, 6])[0], one.masks(1, 12, 400, [5])[0])
    assert not torch.equal(*one.masks(2, 12, 400, [5, 6]))


def test_hidden_samples_are_never_an_input_and_padding_is_never_a_target():
    one, seen = task(), []
    one.model = lambda x: seen.append(x) or torch.zeros_like(x)
    x = torch.randn(3, 12, 400) + 5
    sums = one.sums(x, torch.tensor([400, 250, 400]), [1, 2, 3])
    hidden = one.masks(3, 12, 400, [1, 2, 3])
    assert not seen[0][hidden & (torch.arange(400) < torch.tensor([400, 250, 400])[:, None]).unsqueeze(1)].any()
    assert seen[0][~hidden].all()
    hidden[1, :, 250:] = False
    assert sums[:, 2].tolist() == hidden.sum((1, 2)).tolist()
    torch.testing.assert_close(sums[:, 0], (x**2 * hidden).sum((1, 2)))
    deviation = x[1, :, :250] - x[1, :, :250].mean(1, keepdim=True)
    torch.testing.assert_close(sums[1, 1], (deviation**2 * hidden[1, :, :250]).sum())


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("causal", [False, True])
def test_a_token_stands_for_the_samples_in_the_centre_of_its_view(stem, causal):
    layers = ConvStem(1, 2, stem, causal).eval()
    for layer in layers.layers[::2]:
        torch.nn.init.ones_(layer.weight)
    x = torch.ones(1, 1, 3000, requires_grad=True)
    number = layers.tokens(3000) // 2
    layers(x)[0, number].sum().backward()
    seen = x.grad[0, 0].nonzero()
    assert float(seen.min() + seen.max()) / 2 == layers.centre + number * layers.stride
    if causal:
        assert int(seen.max()) == number * layers.stride + layers.stride - 1


@pytest.mark.parametrize("network", ["mamba", "token", "causal", "cnn"])
def test_reconstructions_have_the_shape_and_place_of_the_input(network):
    torch.manual_seed(0)
    small = {"leads": 3, "d_model": 8}
    if network == "cnn":
        backbone = ResidualCnn(**small)
    else:
        own = {"pool": "middle"} if network == "token" else {"pool": "mean", "causal": network == "causal"}
        direction = "forward" if network == "causal" else "bidirectional"
        backbone = EcgMamba(**small, window=200, depth=1, d_state=4, stem="deep", direction=direction, **own)
    model = Reconstructor(backbone, 3).eval()
    torch.nn.init.zeros_(model.decoder.weight)
    stride = backbone.token_stride
    with torch.no_grad():
        model.decoder.bias.copy_(torch.arange(3 * stride))
    for n in (200, 203):
        found = model(torch.randn(2, 3, n))
        assert found.shape == (2, 3, n)
        place = (torch.arange(n) - backbone.first_sample) % stride
        covered = found[0, 2].nonzero().flatten()
        assert len(covered) >= n - stride
        torch.testing.assert_close(found[0, 2, covered], (place + 2.0 * stride)[covered])


@pytest.fixture(scope="module")
def pretrained(made, tmp_path_factory):
    """Two epochs in one go, and the same in two parts."""
    folder = tmp_path_factory.mktemp("pretrain")
    base = ["ecg", "fit", "--config", "pretrain", "--data.folder", str(made), *TINY, "--model.schedule", "constant"]
    assert main([*base, "--output", str(folder / "whole"), "--trainer.max_epochs", "2"]) == 0
    assert main([*base, "--output", str(folder / "part"), "--trainer.max_epochs", "1"]) == 0
    assert main(["ecg", "fit", "--resume", str(folder / "part"), "--trainer.max_epochs", "2"]) == 0
    return folder


def test_a_resumed_pretraining_is_the_same_to_the_bit(pretrained):
    whole, part = (torch.load(pretrained / run / "last.ckpt", weights_only=True) for run in ("whole", "part"))
    assert whole["state_dict"].keys() == part["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, part["state_dict"][name]), name
    logs = [pd.read_csv(pretrained / run / "log.csv") for run in ("whole", "part")]
    assert logs[0]["val_loss"].tolist() == logs[1]["val_loss"].tolist()
    assert logs[0]["val_explained_variance"].iloc[1] > logs[0]["val_explained_variance"].iloc[0]


def test_a_classifier_starts_from_the_pretrained_backbone(pretrained, made, tmp_path, capsys):
    best = pretrained / "whole" / "best.ckpt"
    argv = ["ecg", "fit", "--config", "ecg_small", "--data.manifest", str(made / "manifest.csv"), *TINY]
    argv += ["--model.init_from", str(best), "--model.freeze", "backbone", "--trainer.max_epochs", "1"]
    argv += ["--data.folds", "3", "--data.fold", "1"]
    assert main([*argv, "--trainer.limit_train_batches", "1", "--output", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "unused: 2 (decoder.weight, decoder.bias)" in printed
    assert "new: 4 (thresholds, temperature, head.weight, head.bias)" in printed
    assert re.search(r"\d+ of \d+ test records were seen, without labels, by the model of --model.init_from", printed)
    old, new = (torch.load(p, weights_only=True)["state_dict"] for p in (best, tmp_path / "run" / "best.ckpt"))
    names = [name for name in old if "backbone.blocks" in name]
    assert names
    assert all(torch.equal(old[name], new[name]) for name in names)


def test_a_pretrained_network_embeds_and_is_tested_but_does_not_predict(pretrained, made, tmp_path, capsys):
    model = seqssm.load(pretrained / "whole", accelerator="cpu")
    features = model.embed(made / "M00000.hea")
    assert np.isfinite(features.filter(regex="^e[0-9]+$").to_numpy(float)).all()
    with pytest.raises(InputError, match="has no classes"):
        model.predict(made / "M00000.hea")
    assert main(["predict", str(pretrained / "whole"), str(made), "--output", str(tmp_path / "p.csv")]) == 2
    assert "--model.init_from" in capsys.readouterr().err
    assert main(["export", str(pretrained / "whole"), "--format", "torch", "--output", str(tmp_path / "m.pt2")]) == 2
    assert "no classes to export" in capsys.readouterr().err
    assert main(["ecg", "test", str(pretrained / "whole")]) == 0
    assert "explained_variance" in capsys.readouterr().out


def test_recordings_come_from_folders_and_from_tables_without_labels(made, tmp_path, capsys):
    data = EcgRecordings(folder=str(made), window_s=2)
    data.setup("fit")
    assert sum(len(part) for part in data.split.values()) == 60
    assert data.train_set[0]["y"].shape == (1, 0)
    assert "classes" not in capsys.readouterr().out
    frame = pd.DataFrame({"path": [str(made / f"M{n:05d}.hea") for n in range(10)], "AF": ["?"] * 10})
    frame["split"] = ["train"] * 7 + ["val"] * 3
    frame.to_csv(tmp_path / "paths.csv", index=False)
    data = EcgRecordings(manifest=str(tmp_path / "paths.csv"), window_s=2)
    data.setup("fit")
    assert [len(data.split[name]) for name in ("train", "val", "test")] == [7, 3, 0]
    with pytest.raises(InputError, match="specify --data"):
        EcgRecordings().setup("fit")
