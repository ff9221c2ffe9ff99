"""CLAM, DSMIL and DTFD-MIL against their equations; their losses; maps of evidence for the class shown."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_pathology.evidence import integrated_gradients
from seqssm_pathology.heads import ClassHead, SurvivalHead
from seqssm_pathology.model import NETWORKS
from seqssm_pathology.peers import ClamMB, ClamSB, DsMil, DtfdMil, smooth_svm
from torch.nn import functional as F

import seqssm
from seqssm.cli.main import main

LENGTHS = [5, 1, 8]


@pytest.fixture
def bags():
    torch.manual_seed(1)
    return torch.randn(14, 7), torch.tensor([0, 5, 6, 14], dtype=torch.int32), LENGTHS


def cross_entropy(labels):
    return lambda logits, owner: F.cross_entropy(logits, labels if owner is None else labels[owner])


def test_the_smooth_svm_equals_its_formula_and_a_hinge_in_the_limit():
    torch.manual_seed(0)
    s, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    total = 0.0
    for row, own in zip(s, y):
        total += sum(torch.exp(row[j] - row[own] + float(j != own)) for j in range(3)).log()
    torch.testing.assert_close(smooth_svm(s, y), total / 6)
    hinge = torch.stack([max(row[j] - row[own] + float(j != own) for j in range(3)) for row, own in zip(s, y)]).mean()
    torch.testing.assert_close(smooth_svm(s, y, temperature=1e-4), hinge, atol=1e-3, rtol=0)


@pytest.mark.parametrize("cls", [ClamSB, ClamMB])
def test_clam_attends_per_class_and_classifies_each_class_by_its_own_vector(cls, bags):
    torch.manual_seed(0)
    model = cls(7, 3, d_model=6, pool_width=4, dropout=0.0).eval()
    out = model(*bags)
    h = model.project(bags[0])[6:]
    inner = torch.tanh(model.pool.V(h)) * torch.sigmoid(model.pool.U(h))
    a = model.pool.w(inner).softmax(0)  # (n, branches)
    if cls is ClamSB:
        assert out.attention.shape == (14,)
        torch.testing.assert_close(out.logits[2], model.head((a * h).sum(0)))
        return
    assert out.attention.shape == (14, 3)
    torch.testing.assert_close(out.attention[6:], a)
    own = [head((a[:, c : c + 1] * h).sum(0)) for c, head in enumerate(model.head.heads)]
    torch.testing.assert_close(out.logits[2], torch.cat(own))


@pytest.mark.parametrize(("kind", "exclusive"), [("svm", True), ("cross_entropy", True), ("svm", False)])
def test_clams_instance_loss_by_hand(kind, exclusive, bags):
    torch.manual_seed(0)
    options = {"instance_loss": kind, "exclusive": exclusive, "instances": 2, "bag_weight": 0.6}
    model = ClamMB(7, 3, d_model=6, pool_width=4, dropout=0.0, **options)
    labels = torch.tensor([2, 0, 1])
    out = model(*bags)
    loss = F.cross_entropy if kind == "cross_entropy" else smooth_svm
    h, of_bags = model.project(bags[0]), []
    for start, n, y in zip((0, 5, 6), LENGTHS, labels.tolist()):
        own, scores, parts = h[start : start + n], out.scores[start : start + n], []
        for c in range(3) if exclusive else [y]:
            rank = scores[:, c].argsort(descending=True)
            top, bottom = rank[: min(2, (n + 1) // 2)], rank[n - min(2, n // 2) :]
            chosen, pseudo = (
                (torch.cat([top, bottom]), [1] * len(top) + [0] * len(bottom)) if c == y else (top, [0] * len(top))
            )
            parts.append(loss(model.instance_head(own[chosen])[:, 2 * c : 2 * c + 2], torch.tensor(pseudo)))
        of_bags.append(torch.stack(parts).mean())
    expected = 0.6 * F.cross_entropy(out.logits, labels) + 0.4 * torch.stack(of_bags).mean()
    found = model.loss(out, cross_entropy(labels), labels)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert model.instance_head.weight.grad.abs().max() > 0
    without = model.loss(model(*bags), cross_entropy(labels), None)  # survival: the loss of the bags alone
    torch.testing.assert_close(without, F.cross_entropy(out.logits, labels))
    model.eval()
    torch.testing.assert_close(model.loss(model(*bags), cross_entropy(labels), labels), without)


def test_dsmil_by_hand(bags):
    torch.manual_seed(0)
    model = DsMil(7, 2, d_model=6, pool_width=4, dropout=0.0)
    out = model(*bags)
    h = model.project(bags[0])[6:]
    instance = model.instance_head(h)
    q, v, vectors = model.q(h), model.v(h), []
    for c in range(2):
        a = (q @ q[instance[:, c].argmax()] / 2).softmax(0)
        torch.testing.assert_close(out.attention[6:, c], a)
        vectors.append(a @ v)
    second = model.head(torch.cat(vectors))
    torch.testing.assert_close(out.logits[2], (instance.amax(0) + second) / 2)
    labels = torch.tensor([1, 0, 1])
    both = [F.cross_entropy(out.inner[name], labels) for name in ("highest", "of_bags")]
    torch.testing.assert_close(model.loss(out, cross_entropy(labels), labels), sum(both) / 2)


def test_dtfd_divides_distils_and_pools_twice(bags):
    torch.manual_seed(0)
    model = DtfdMil(7, 2, d_model=6, pool_width=4, pseudo_bags=3, dropout=0.0).eval()
    out = model(*bags)
    h = model.project(bags[0])[6:]
    zero = torch.zeros(8, dtype=torch.long)
    parts = [model.first_pool(h[k::3], zero[: len(h[k::3])], 1) for k in range(3)]
    vectors = torch.cat([pooled for pooled, _, _ in parts])
    pooled, _, second = model.pool(vectors, zero[:3], 1)
    torch.testing.assert_close(out.logits[2:], model.head(pooled))
    for k, (_, _, first) in enumerate(parts):
        torch.testing.assert_close(out.attention[6:][k::3], first * second[k])
    torch.testing.assert_close(out.attention[6:] @ h, pooled[0])  # the attention weights give the bag
    assert torch.equal(out.scores[6:].argsort(), out.attention[6:].argsort())
    model.train()
    torch.manual_seed(3)
    out = model(*bags)
    assert out.inner["bag"].tolist() == [0, 0, 0, 1, 2, 2, 2]
    labels = torch.tensor([1, 0, 1])
    expected = F.cross_entropy(out.logits, labels) + F.cross_entropy(out.inner["first"], labels[out.inner["bag"]])
    torch.testing.assert_close(model.loss(out, cross_entropy(labels), labels), expected)
    assert (model(*bags).logits - out.logits).abs().max() > 1e-6  # divided again


@pytest.mark.parametrize("name", list(NETWORKS))
def test_evidence_sums_to_the_difference_from_the_mean_patient(name):
    torch.manual_seed(0)
    sizes = {"pool_width": 4} if name not in ("mean", "max", "transmil") else {}
    model = NETWORKS[name](5, 3, d_model=8, **sizes).eval()
    x, order = torch.randn(9, 5), torch.randperm(9)
    head = ClassHead("label", classes=("a", "b", "c"))
    found = integrated_gradients(model, x, order, lambda z: head.evidence(z, "b"), steps=128)
    cu = torch.tensor([0, 9], dtype=torch.int32)
    ends = [head.evidence(model(one, cu, [9], order).logits, "b") for one in (x, torch.zeros_like(x))]
    assert found.shape == (9,)
    assert found.sum().item() == pytest.approx((ends[0] - ends[1]).item(), abs=0.02)
    p = model(x, cu, [9], order).logits.softmax(1)[0, 1]
    assert ends[0].item() == pytest.approx(torch.log(p / (1 - p)).item(), abs=1e-4)
    survival = SurvivalHead("t", edges=(0.0, 1, 2, 3))
    curve = torch.cumprod(1 - torch.sigmoid(model(x, cu, [9], order).logits), 1)
    assert survival.evidence(model(x, cu, [9], order).logits, "risk").item() == pytest.approx(
        -curve.sum().item(), abs=1e-5
    )


def test_maps_show_evidence_for_the_class_shown(clam, cohort, tmp_path):
    model = seqssm.load(clam, accelerator="cpu")
    file = cohort[0] / "h5_files" / "made_001.h5"
    tables = {}
    for output in (None, "lesion", "normal"):
        frame = model.predict(file, figures=tmp_path / str(output), map_output=output)
        tables[output] = pd.read_csv(tmp_path / str(output) / "000_made_001_attention.csv")
    predicted = tables[frame["prediction"][0]]
    pd.testing.assert_frame_equal(tables[None], predicted)  # the predicted class is the default
    both = tables["lesion"], tables["normal"]
    for name, table in zip(("lesion", "normal"), both):
        np.testing.assert_allclose(table["attention"], table[f"attention_{name}"])
        assert table["attention"].sum() == pytest.approx(1, abs=1e-5)
    assert (both[0]["attention"] - both[1]["attention"]).abs().max() > 0
    with pytest.raises(seqssm.InputError, match=r"--map-output lesoin: the model has .* did you mean lesion"):
        model.predict(file, figures=tmp_path / "f", map_output="lesoin")


def test_gradient_maps_of_selected_cases(run, cohort, tmp_path):
    words = [
        "predict",
        str(run),
        str(cohort[0]),
        "--output",
        str(tmp_path / "out.csv"),
        "--figures",
        str(tmp_path / "f"),
    ]
    assert main([*words, "--map", "gradient", "--map-output", "lesion", "--figures-cases", "made_003,made_005"]) == 0
    files = sorted(file.name for file in (tmp_path / "f").iterdir())
    assert {name.split("_made")[0] for name in files} == {"003", "005"}
    table = pd.read_csv(tmp_path / "f" / "003_made_003_attention.csv")
    top = pd.read_csv(tmp_path / "f" / "003_made_003_top.csv")
    assert top["evidence"].tolist() == table["evidence"].nlargest(20).tolist()
    assert table["evidence"].min() < 0 < table["evidence"].max()


@pytest.mark.parametrize("network", ["clam_sb", "clam_mb", "dsmil", "dtfd"])
def test_peers_learn_survival_too(network, fit, cohort, tmp_path):
    words = ["--data.manifest", str(cohort[0] / "manifest.csv"), "--data.features", str(cohort[0])]
    assert fit(tmp_path / "run", *words, "--model.network", network, preset="survival", epochs=1) == 0
    model = seqssm.load(tmp_path / "run", accelerator="cpu")
    frame = model.predict(cohort[0] / "h5_files" / "made_001.h5", figures=tmp_path / "f")
    assert frame["status"][0] == "ok"
    assert np.isfinite(pd.read_csv(tmp_path / "f" / "000_made_001_attention.csv")["score"]).all()
    assert len(model.embed(cohort[0])) == 24
