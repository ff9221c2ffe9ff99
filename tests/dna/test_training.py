"""Tasks and data modules of DNA on simulated sequences: learning, contents of checkpoints, rejected options."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from seqssm_dna.data import GenomeData, places_of
from seqssm_dna.intervals import Interval
from seqssm_dna.sequences import SequenceData
from seqssm_dna.task import GenomeTask
from seqssm_dna.tokens import Vocabulary, encode, reverse_complement_ids

from seqssm.cli.main import main
from seqssm.domain import domains
from seqssm.errors import InputError
from seqssm.training.checkpoint import build_task, read_checkpoint
from seqssm.training.hints import next_lines
from tests.dna.conftest import fasta, letters

SMALL = ("--model.d_model", "16", "--model.n_layers", "1", "--model.d_state", "4", "--model.threads", "1")
NETWORK = {"pretrain": ("--model.mixer", "mamba", "--model.attn_period", "0", "--model.mlp_ratio", "0")}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, one_thread):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # removes variables that a command sets
    monkeypatch.setattr("seqssm_dna.baselines.ORDER", 4)  # tables of 4^12 contexts are for genomes


@pytest.fixture
def genome(write):
    """Two contigs; every fifth letter of a run is determined by the one before."""
    return write(fasta([("one", letters(6000, 1)), ("two", "acgtn" * 20 + letters(3900, 2))]), "genome.fa")


@pytest.fixture
def table(write):
    """60 promoters with a motif, 60 others, with a number that counts the motif."""
    rows = ["sequence,label,strength,a,b"]
    for number in range(120):
        motif = number % 2
        own = letters(20, 10 + number) + ("TATAAT" if motif else "GCGCGC") + letters(14 + number % 3, 500 + number)
        rows.append(f"{own},{'promoter' if motif else 'other'},{motif + number / 1000:.4f},{motif},{1 - motif}")
    return write("\n".join(rows) + "\n", "promoters.csv")


def fit(tmp_path, preset, *flags, name="run", code=0):
    folder = tmp_path / name
    few = ("--trainer.limit_train_batches", "2")
    assert main(["dna", "fit", "--config", preset, "--output", str(folder), "--overwrite", *few, *flags]) == code
    return folder


def tiny(genome, *flags):
    data = ("--data.fasta", str(genome), "--data.context", "64", "--trainer.max_epochs", "1")
    return (*SMALL, *data, *flags)


def labelled(table, *flags):
    return (*SMALL, "--data.train", str(table), "--trainer.max_epochs", "1", *flags)


def entry(run):
    return read_checkpoint(run)["seqssm"]


def metrics_of(run):
    return json.loads((run / "metrics.json").read_text())["test"]


# -- pretraining -------------------------------------------------------------------------------------------------------


def test_kfold_without_test_records_is_refused_before_it_is_trained(tmp_path, genome, capsys):
    command = ["dna", "kfold", "--config", "tiny", *tiny(genome, "--data.test_fraction", "0")]
    assert main([*command, "--output", str(tmp_path / "study")]) == 2
    assert capsys.readouterr().err.strip() == "seqssm: the data set has no test part"
    assert not (tmp_path / "study").exists()


def test_causal_pretraining_on_the_users_fasta(tmp_path, genome, capsys):
    run = fit(tmp_path, "tiny", *tiny(genome, "--data.context_warmup", "{0: 32}"))
    printed = capsys.readouterr().out
    assert "split by blocks" in printed
    kept = entry(run)["data"]
    assert kept["objective"] == "causal"
    assert kept["context"] == 64
    assert kept["attn_window"] is None
    assert Vocabulary.from_dict(kept["vocabulary"]) == Vocabulary()
    assert main(["dna", "test", str(run)]) == 0
    found = metrics_of(run)
    rows = {row["model"]: row for row in found["tables"][0]["rows"]}
    assert set(rows) == {"hybrid", "markov"}
    assert 1.9 < found["metrics"]["bits_per_base"] < np.log2(12)
    assert found["metrics"]["n_scored"] == rows["markov"]["n_scored"]


def test_the_default_window_of_attention_is_the_context():
    from seqssm_dna.task import CausalPretraining

    for given, wanted in ({}, 64), ({"attn_window": None}, None), ({"attn_window": 9}, 9):
        task = CausalPretraining(d_model=8, n_layers=1, mixer="attention", context=64, **given)
        task.configure_model()
        kept = task.describe()
        assert kept["has_attention"]
        assert kept["attn_window"] == task.model.attn_window == wanted


def test_masked_pretraining_is_scored_identically_every_time(tmp_path, genome):
    run = fit(tmp_path, "masked", *tiny(genome, "--data.batch_size", "8"))
    assert entry(run)["data"]["objective"] == "masked"
    assert entry(run)["hparams"]["strands"] == "shared"
    found = []
    for size in ("8", "1"):
        assert main(["dna", "test", str(run), "--data.batch_size", size]) == 0
        found.append(metrics_of(run)["metrics"])
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert 100 < found[0]["n_scored"] < 0.2 * 2000


def test_n_is_never_hidden_nor_a_target():
    from seqssm_dna.task import CausalPretraining, MaskedPretraining

    task = MaskedPretraining(d_model=8, n_layers=1, d_state=4, mask_fraction=0.9)
    ids = torch.tensor([[7, 8, 9, 10, 11, 11, 4, 0] * 50])
    chosen, inputs = task.hide(ids, torch.Generator().manual_seed(1))
    assert not chosen[ids > 10].any()
    assert not chosen[ids < 7].any()
    assert torch.equal(inputs[~chosen], ids[~chosen])
    share = [(inputs[chosen] == 3).double().mean(), (inputs[chosen] == ids[chosen]).double().mean()]
    assert 0.7 < share[0] < 0.9
    assert 0.05 < share[1] < 0.25

    causal = CausalPretraining(d_model=8, n_layers=1, mixer="mamba", d_state=4, context=8)
    causal.configure_model()
    causal.model.eval()
    _, sums = causal.scored({"ids": ids, "index": torch.tensor([0])})
    assert int(sums["scored"]) == 4 * 50


@torch.no_grad()
def test_long_segments_are_scored_as_in_one_pass(monkeypatch):
    from seqssm_dna import task as module

    causal = module.CausalPretraining(d_model=16, n_layers=2, mixer="mamba", d_state=4, context=32)
    causal.configure_model()
    causal.model.eval()
    ids = torch.randint(7, 11, (2, 500), generator=torch.Generator().manual_seed(0))
    whole = causal.scored({"ids": ids})[1]
    monkeypatch.setattr(module, "TOKENS", 64 * 2)
    pieces = causal.scored({"ids": ids})[1]
    for name in whole:
        torch.testing.assert_close(whole[name], pieces[name], atol=1e-3, rtol=1e-5)


# -- windows -----------------------------------------------------------------------------------------------------------


def test_windows_stay_in_their_interval(genome):
    data = GenomeData(fasta=str(genome), context=100, seed=3)
    data.setup("fit")
    for low, high in {(row[3], row[4]) for row in data.train_set.places.tolist()}:
        for split in ("val", "test"):
            others = [one for one in data.parts[split] if one.end > low and one.start < high]
            assert all(one.contig == 1 or one.start >= high for one in others) or not others
    seen = []
    contigs = data.contigs
    original = contigs.fetch
    contigs.fetch = lambda contig, start, end: seen.append((contig, start, end)) or original(contig, start, end)
    np.random.seed(0)
    for _ in range(5):
        data.train_set.__getitems__(range(len(data.train_set)))
    ranges = {(one.contig, one.start, one.end) for one in data.parts["train"]}
    for contig, start, end in seen:
        assert end - start == 100
        assert any(contig == own and low <= start and end <= high for own, low, high in ranges)
    assert len({start for _, start, _ in seen}) > len(data.train_set)  # windows move


def test_short_contigs_are_one_window_each():
    places = places_of([Interval(0, "a", 0, 50), Interval(1, "b", 0, 250), Interval(2, "c", 0, 5)], 100)
    assert places[:, :3].tolist() == [[0, 0, 50], [1, 0, 100], [1, 100, 200], [1, 150, 250]]
    every = places_of([Interval(1, "b", 0, 250)], 100, partial=True)
    assert every[:, 1:3].tolist() == [[0, 100], [100, 200], [200, 250]]


def test_batches_depend_on_seed_epoch_and_step_alone(genome):
    def batches(seed, workers=0):
        data = GenomeData(fasta=str(genome), context=64, batch_size=8, seed=seed, num_workers=workers)
        data.setup("fit")
        np.random.seed(99)
        return [batch["ids"] for batch in data.train_dataloader()]

    first, again, other = batches(1), batches(1), batches(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], other[0])


def test_both_strands_are_read_in_training_only(genome):
    data = GenomeData(fasta=str(genome), context=64, batch_size=4, seed=0)
    data.setup("fit")
    whole = {split: [ids.tobytes() for ids in data.sequences(split)] for split in ("train", "val")}
    np.random.seed(1)
    forward = backward = 0
    for row in data.train_set.__getitems__(range(40))["ids"].numpy().astype(np.uint8):
        forward += any(row.tobytes() in own for own in whole["train"])
        backward += any(reverse_complement_ids(row).tobytes() in own for own in whole["train"])
    assert min(forward, backward) > 8
    for row, mask in zip(*(data.val_set.__getitems__(range(len(data.val_set)))[name] for name in ("ids", "mask"))):
        assert any(row[mask].numpy().astype(np.uint8).tobytes() in own for own in whole["val"])


def test_lower_case_is_weighted_or_masked_on_request(write):
    path = write(fasta([("one", "ACGT" * 100 + "acgt" * 100)]), "case.fa")
    plain = GenomeData(fasta=str(path), context=200, val_fraction=0, test_fraction=0)
    plain.setup("fit")
    batch = plain.train_set.__getitems__([0, 1, 2, 3])
    assert "weight" not in batch
    assert (batch["ids"] < 11).all()
    weighed = GenomeData(fasta=str(path), context=200, val_fraction=0, test_fraction=0, lowercase_weight=0.1)
    weighed.setup("fit")
    weight = weighed.train_set.__getitems__([0, 1, 2, 3])["weight"]
    assert set(weight.unique().tolist()) == {1.0, np.float32(0.1)}
    masked = GenomeData(fasta=str(path), context=200, val_fraction=0, test_fraction=0, lower="mask", max_n=0.5)
    masked.setup("fit")
    assert len(masked.train_set) == 2  # the others are N


def test_splits_by_contig_and_by_bed(genome, write):
    by_contig = GenomeData(fasta=str(genome), context=64, val_contigs=["two"])
    by_contig.setup("fit")
    assert [one.chrom for one in by_contig.parts["val"]] == ["two"]
    assert [one.chrom for one in by_contig.parts["train"]] == ["one"]
    bed = write("one\t0\t4000\ttrain\none\t4000\t6000\tvalid\n", "splits.bed")
    by_bed = GenomeData(fasta=str(genome), context=64, bed=str(bed))
    by_bed.setup("fit")
    assert [len(by_bed.parts[split][0]) for split in ("train", "val")] == [4000, 2000]
    printed = [next_lines(domains()["dna"], GenomeTask(), data, "run", "run/best.ckpt") for data in (by_contig, by_bed)]
    assert all("seqssm predict run/best.ckpt" in lines for lines in printed)
    assert not any("dna test" in lines for lines in printed), "no test records"
    with pytest.raises(InputError, match="divide the context"):
        GenomeData(fasta=str(genome), context=64, context_warmup={0: 48})
    with pytest.raises(InputError, match="no training window of 9000 letters"):
        GenomeData(fasta=str(genome), context=9000, val_contigs=["one"], test_contigs=["two"]).setup("fit")


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["cnn", "gru", "encoder", "hybrid"])
def test_every_network_learns_labels(tmp_path, table, network):
    flags = list(labelled(table, "--model.network", network))
    if network in ("cnn", "gru"):
        place = flags.index("--model.d_state")
        del flags[place : place + 2]
    if network in ("gru", "encoder", "hybrid"):
        flags += ["--data.reverse_complement", "true"]
    run = fit(tmp_path, "ecoli_promoters", *flags)
    kept = entry(run)["data"]
    assert (kept["objective"], kept["target"], kept["classes"]) == ("labels", "class", ["other", "promoter"])
    assert main(["dna", "test", str(run)]) == 0
    rows = metrics_of(run)["tables"][0]["rows"]
    assert [row["model"] for row in rows] == [network, "kmers"]


def test_several_labels_and_numbers(tmp_path, table):
    several = labelled(table, "--data.target", "labels", "--data.label_columns", "[a, b]")
    run = fit(tmp_path, "ecoli_promoters", *several, name="several")
    assert entry(run)["data"]["classes"] == ["a", "b"]
    number = labelled(table, "--data.target", "value", "--data.label_column", "strength", "--data.unit", "log2")
    run = fit(tmp_path, "ecoli_promoters", *number, "--early_stopping.monitor", "val_loss", name="value")
    kept = entry(run)
    assert (kept["data"]["unit"], kept["data"]["target"]) == ("log2", "value")
    content = read_checkpoint(run)
    model = build_task(content, run).model
    values = [float(line.split(",")[2]) for line in table.read_text().splitlines()[1:]]
    assert abs(float(model.center) - np.mean(values)) < 0.1
    assert 0.3 < float(model.scale) < 0.6
    assert main(["dna", "test", str(run)]) == 0
    assert set(metrics_of(run)["metrics"]) == {"pearson", "spearman", "r2", "rmse"}


def test_a_pretrained_network_is_loaded_frozen_or_with_adapters(tmp_path, genome, table, capsys):
    shape = ("--model.mixer", "mamba", "--model.conv_layers", "2")
    base = fit(tmp_path, "tiny", *tiny(genome, *shape), name="base")
    network = ("--model.network", "hybrid", *shape, "--model.echo", "same", "--model.init_from", str(base))
    frozen = fit(tmp_path, "ecoli_promoters", *labelled(table, *network, "--model.freeze", "backbone"), name="frozen")
    printed = capsys.readouterr().out
    assert "unused: 1 (network.lm_head.weight)" in printed
    assert "set by the fit: 2 (center, scale)" in printed
    before, after = (read_checkpoint(run)["state_dict"] for run in (base, frozen))
    shared = [name for name in before if f"model.network.{name.removeprefix('model.')}" in after]
    assert len(shared) == len(before) - 1  # all but the head
    for name in shared:
        assert torch.equal(before[name], after[f"model.network.{name.removeprefix('model.')}"])
    pytest.importorskip("peft", reason="peft is not installed: pip install 'seqssm[adapters]'")
    adapted = fit(tmp_path, "ecoli_promoters", *labelled(table, *network, "--model.lora", "2"), name="lora")
    weights = read_checkpoint(adapted)["state_dict"]
    trained = [name for name in weights if "lora_B" in name and weights[name].abs().max() > 0]
    assert len(trained) == 4
    for name in shared:
        value = before[name]
        own = f"model.network.{name.removeprefix('model.')}"
        kept = weights.get(own, weights.get(own.replace(".weight", ".base_layer.weight")))
        kept = weights.get(own.replace(".bias", ".base_layer.bias")) if kept is None else kept
        assert torch.equal(value, kept)
    task = build_task(read_checkpoint(adapted), adapted)
    assert sum("lora_" in name for name, _ in task.named_parameters()) == 8
    from seqssm.training.adapters import merged

    plain = merged({name.removeprefix("model."): value for name, value in weights.items()})
    again = build_task(read_checkpoint(frozen), frozen).model
    again.load_state_dict(plain)
    ids = torch.randint(7, 11, (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(ids), task.model(ids), atol=1e-5, rtol=1e-5)


def test_labelled_intervals_are_trained_on(genome, write):
    rows = [(number * 40, "-+"[number % 2], "ab"[number % 2]) for number in range(60)]
    lines = [f"one\t{start}\t{start + 30}\t{strand}\t{label}\n" for start, strand, label in rows]
    bed = str(write("chrom\tstart\tend\tstrand\tlabel\n" + "".join(lines), "labelled.bed"))
    with pytest.raises(InputError, match=r"needs --data\.reference FILE"):
        SequenceData(train=bed).setup("fit")
    with pytest.raises(InputError, match="intervals of a BED file have classes"):
        SequenceData(train=bed, reference=str(genome), target="value").setup("fit")
    data = SequenceData(train=bed, reference=str(genome))
    data.setup("fit")
    assert data.classes == ["a", "b"]
    assert data.predict_words() == [bed, "--reference", str(genome)]
    sequence = encode(letters(6000, 1))
    for (start, strand, _), ids in zip(rows, data.ids):
        own = sequence[start : start + 30]
        assert (ids == (own if strand == "+" else reverse_complement_ids(own))).all()
    turned = data.truth("train")[0]
    assert data.classes[turned] == rows[data.rows["train"][0]][2]


def test_equal_sequences_stay_together_and_shared_ones_are_reported(tmp_path, table, write, capsys):
    lines = table.read_text().splitlines()
    double = write("\n".join([lines[0], *lines[1:], *lines[1:]]) + "\n", "double.csv")
    data = SequenceData(train=str(double), test_fraction=0.3)
    data.setup("fit")
    parts = [{ids.tobytes() for ids in data.sequences(split)} for split in ("train", "val", "test")]
    assert all(parts)
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert "equal sequences stay together" in capsys.readouterr().out
    held = SequenceData(train=str(table), test=str(write("\n".join(lines[:9]) + "\n", "test.csv")))
    held.setup("fit")
    assert "test sequences also occur in train" in capsys.readouterr().out


def test_folds_are_disjoint_stratified_and_cover_everything(table):
    tested = []
    for fold in range(4):
        data = SequenceData(train=str(table), fold=fold, folds=4, seed=fold)
        data.setup("fit")
        assert abs(data.truth("test").mean() - 0.5) < 0.06
        tested += data.rows["test"].tolist()
    assert sorted(tested) == list(range(120))


def test_groups_stay_together(table, write):
    lines = table.read_text().splitlines()
    grouped = "\n".join([lines[0] + ",gene", *(f"{line},g{number // 6}" for number, line in enumerate(lines[1:]))])
    data = SequenceData(train=str(write(grouped + "\n", "grouped.csv")), group_column="gene", test_fraction=0.3)
    data.setup("fit")
    genes = [{data.labelled.groups[row] for row in data.rows[split]} for split in ("train", "val", "test")]
    assert not genes[0] & genes[1]
    assert not genes[0] & genes[2]


def test_wrong_combinations_are_one_line(tmp_path, genome, table, capsys):
    cases = [
        ("tiny", tiny(genome, "--model.strands", "shared"), "strands shared: a causal model would read the bases"),
        (
            "ecoli_promoters",
            labelled(table, "--model.echo", "same"),
            "--model.echo same: only for the causal network hybrid; stem sees",
        ),
        ("yeast_generation", labelled(table, "--data.target", "labels"), "labels"),
        ("tiny", (*SMALL, "--trainer.max_epochs", "1"), "give --data.fasta FILE"),
        ("finetune", ("--trainer.max_epochs", "1"), "give --data.train FILE"),
    ]
    for preset, flags, message in cases:
        code = main(["dna", "fit", "--config", preset, "--output", str(tmp_path / "bad"), "--overwrite", *flags])
        printed = capsys.readouterr().err
        assert code == 2, preset
        assert message in printed
        assert "Traceback" not in printed


# -- generation --------------------------------------------------------------------------------------------------------


def test_conditioned_generation_keeps_its_edges(tmp_path, genome, table):
    flags = labelled(table, "--data.label_column", "strength", "--model.bins", "3", "--model.mixer", "mamba")
    run = fit(tmp_path, "yeast_generation", *flags, name="bins")
    kept = entry(run)["data"]
    assert kept["objective"] == "generation"
    assert (kept["properties"], kept["bins"]) == (["strength"], 3)
    assert kept["vocabulary"]["tokens"][12:] == ["strength=0", "strength=1", "strength=2"]
    data = SequenceData(train=str(table), target="value", label_column="strength")
    data.setup("fit")
    np.testing.assert_allclose(kept["edges"][0], np.quantile(data.truth("train")[:, 0], [1 / 3, 2 / 3]), rtol=1e-6)
    task = build_task(read_checkpoint(run), run)
    assert task.prefixes(torch.tensor([[-1.0], [5.0]])).tolist() == [[12], [14]]
    classes = labelled(table, "--data.target", "class", "--model.mixer", "mamba")
    base = fit(tmp_path, "tiny", *tiny(genome, "--model.mixer", "mamba"), name="base")
    run = fit(tmp_path, "yeast_generation", *classes, "--model.init_from", str(base), name="classes")
    assert entry(run)["data"]["vocabulary"]["tokens"][12:] == ["class=other", "class=promoter"]


def test_new_tokens_start_as_the_mean_of_the_known_ones():
    from seqssm_dna.resizing import resized

    weights = {"embedding.weight": torch.arange(24.0).reshape(12, 2), "backbone.norm_f.weight": torch.ones(2)}
    found = resized(weights, 14)
    assert found["embedding.weight"].shape == (14, 2)
    assert torch.equal(found["embedding.weight"][12], weights["embedding.weight"].mean(0))
    assert torch.equal(found["embedding.weight"][13], weights["embedding.weight"].mean(0))
    assert found["backbone.norm_f.weight"].shape == (2,)


def test_prefix_tokens_are_never_targets():
    from seqssm_dna.conditioned import ConditionedGeneration

    task = ConditionedGeneration(
        target="value", bins=2, properties=["x"], classes=[], edges=[[0.0]], context=8, d_model=8, n_layers=1,
        mixer="mamba", d_state=4,
    )  # fmt: skip
    task.configure_model()
    task.model.train()
    asked = []
    forward = task.model.forward
    task.model.forward = lambda inputs, mask=None: asked.append((inputs, mask)) or forward(inputs, mask=mask)
    ids = torch.tensor([[7, 8, 9, 10], [7, 11, 4, 4]])
    batch = {"ids": ids, "mask": ids != 4, "y": torch.tensor([[-1.0], [1.0]]), "index": torch.arange(2)}
    loss, _ = task.step(batch)
    inputs, mask = asked[0]
    assert inputs.tolist() == [[2, 12, 7, 8, 9, 10], [2, 13, 7, 11, 4, 4]]
    logits = forward(inputs, mask=mask)
    log = logits.log_softmax(-1)
    wanted = [log[0, 1, 7], log[0, 2, 8], log[0, 3, 9], log[0, 4, 10], log[0, 5, 1], log[1, 1, 7], log[1, 3, 1]]
    torch.testing.assert_close(loss, -torch.stack(wanted).mean())
