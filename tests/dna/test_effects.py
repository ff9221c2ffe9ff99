"""Variants by language models and classifiers: against direct computation; statuses; copies of the VCF file; scans."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_dna import figures, supervised
from seqssm_dna.classifier import GenomeClassifier
from seqssm_dna.letters import reverse_complement
from seqssm_dna.scan import scan
from seqssm_dna.stem import StemEncoder
from seqssm_dna.tokens import encode
from seqssm_dna.variants import Variants

from seqssm.cli.main import main
from seqssm.errors import InputError, Status

from .conftest import fasta, letters
from .predicting import causal, encoder, predict, predictor
from .test_predict import direct
from .test_variants import HEAD

pytestmark = pytest.mark.usefixtures("one_thread")
CHR1 = letters(400, 11)
A, B = CHR1[199], CHR1[249]
OTHER = {"A": "C", "C": "G", "G": "T", "T": "A"}
LINES = [
    f"chr1\t200\ts1\t{A}\t{OTHER[A]},{OTHER[OTHER[A]]}\t.\t.\tDP=3",
    f"1\t250\tins\t{B}\t{B}ACG\t.\t.\t.",
    f"chr1\t300\tdel\t{CHR1[299:303]}\t{CHR1[299]}\t.\t.\t.",
    f"chr1\t3\tedge\t{CHR1[2]}\t{OTHER[CHR1[2]]}\t.\t.\t.",
    f"chr1\t350\twrong\t{OTHER[CHR1[349]]}\t{CHR1[349]}\t.\t.\t.",
    "chr9\t5\tnowhere\tA\tC\t.\t.\t.",
    "chr1\t5000\tfar\tA\tC\t.\t.\t.",
    f"chr1\t60\tsym\t{CHR1[59]}\t<DEL>\t.\t.\tEND=80",
    f"chr1\t61\tnone\t{CHR1[60]}\t.\t.\t.\t.",
    f"chr1\t100\tlong\t{CHR1[99:199]}\t{CHR1[99]}\t.\t.\t.",
]
STATUS = ["ok"] * 5 + ["ref_mismatch", "unknown_contig", "beyond_end", "symbolic_allele", "no_alternate", "too_long"]


@pytest.fixture
def files(write):
    return write(fasta([("chr1", CHR1)]), "g.fa"), write(HEAD + "".join(f"{line}\n" for line in LINES), "calls.vcf")


def classifier(outputs=2, target="class", **options):
    torch.manual_seed(1)
    model = GenomeClassifier(StemEncoder(d_model=16, n_layers=1), outputs, target, **options)
    with torch.no_grad():
        model.head[-1].weight.mul_(5)
    return model.eval()


LABELS = {"classes": ["other", "promoter"], "target": "class", "context": 60, "objective": "labels"}


@pytest.mark.parametrize("strands", ["forward", "both", "checkpoint"])
def test_log_likelihoods_of_both_alleles(files, strands):
    genome, vcf = files
    model = causal(mixer="mamba2", attn_period=2, attn_offset=1, attn_window=16)
    found = predict(model, vcf, reference=str(genome), window=64, strands=strands, chunk_size=20)
    assert found["status"].tolist() == STATUS
    assert found["id"].tolist()[:4] == ["s1", "s1", "ins", "del"]
    variants = Variants(vcf, predictor(model).reader.genome(genome), 64)
    for row, allele in zip(found.itertuples(), variants):
        assert (row.chrom, row.pos, row.ref, row.alt) == (allele.chrom, allele.pos, allele.ref, allele.alt)
        if row.status != "ok":
            assert np.isnan(row.llr)
            assert row.reason
            continue
        window = variants.windows(allele)
        assert (row.window_start, row.window_end) == (window.start, window.end)
        assert len(window.ref) == len(window.alt) == 64
        sums = []
        for turn in (bytes, reverse_complement):
            sums.append([-np.nansum(direct(model, turn(one).decode())[0]) for one in (window.ref, window.alt)])
        used = sums[:1] if strands == "forward" else sums
        np.testing.assert_allclose([row.ref_ll, row.alt_ll], np.mean(used, axis=0), rtol=1e-5)
        np.testing.assert_allclose(row.llr, np.mean([b - a for a, b in used]), atol=2e-4)
        np.testing.assert_allclose(row.llr_forward, sums[0][1] - sums[0][0], atol=2e-4)
        np.testing.assert_allclose(row.llr_mean, row.llr / 64)
        if strands == "forward":
            assert row.llr_rc is None or np.isnan(row.llr_rc)
        else:
            np.testing.assert_allclose(row.llr_rc, sums[1][1] - sums[1][0], atol=2e-4)


def test_batches_and_pieces_change_nothing(files):
    genome, vcf = files
    one = predict(causal(), vcf, reference=str(genome), window=64, batch_size=1, chunk_size=7)
    many = predict(causal(), vcf, reference=str(genome), window=64, batch_size=99)
    pd.testing.assert_frame_equal(one, many, atol=2e-4, rtol=1e-4)


def test_a_masked_model_compares_the_bases_at_the_variant(files):
    genome, vcf = files
    model = encoder()
    found = predict(model, vcf, reference=str(genome), window=64, strands="forward")
    assert found["status"].tolist() == STATUS
    row = found.iloc[0]
    start, end = int(row.window_start), int(row.window_end)
    ids = encode(CHR1[start:end]).astype(np.int64)
    ids[199 - start] = 3
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)[None])[0, 199 - start]
    wanted = float(logits["ACGT".index(OTHER[A]) + 7] - logits["ACGT".index(A) + 7])
    assert row.llr == pytest.approx(wanted, abs=1e-4)
    assert row.llr_mean == row.llr  # one base is masked
    indels = found[found["status"].eq("ok") & (found["ref"].str.len() != found["alt"].str.len())]
    assert len(indels) > 0
    np.testing.assert_allclose(indels["llr_mean"], indels["llr"] / (indels["window_end"] - indels["window_start"]))


def test_alleles_of_a_masked_model_do_not_depend_on_each_other(write):
    """Two bases, both at once, and an insertion at one position, on one line and on separate lines."""
    genome = write(fasta([("chr1", CHR1)]), "g.fa")
    ref, behind = CHR1[199:201], CHR1[201]
    alts = [OTHER[ref[0]] + ref[1], ref[0] + OTHER[ref[1]], OTHER[ref[0]] + OTHER[ref[1]], f"{ref}{OTHER[behind]}"]
    rows = [f"chr1\t200\t.\t{ref}\t{alt}\t.\t.\t.\n" for alt in (",".join(alts), *alts)]
    whole, *apart = (write(HEAD + row, f"{k}.vcf") for k, row in enumerate(rows))
    model = encoder()
    together = predict(model, whole, reference=str(genome), window=64)
    alone = pd.concat([predict(model, one, reference=str(genome), window=64) for one in apart], ignore_index=True)
    assert together["status"].eq("ok").all()
    columns = ["ref_ll", "alt_ll", "llr", "llr_forward", "llr_rc"]
    pd.testing.assert_frame_equal(together[columns], alone[columns], rtol=1e-5)


def test_a_copy_of_the_file_with_the_scores(files, tmp_path):
    genome, vcf = files
    target = tmp_path / "out.vcf"
    found = predict(causal(), vcf, reference=str(genome), window=64, write_vcf=str(target), batch_size=3)
    lines, before = target.read_text().splitlines(), vcf.read_text().splitlines()
    assert len(lines) == len(before) + 1
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    values = rows[0][7].split(";")[1].removeprefix("SEQSSM_LLR=").split(",")
    np.testing.assert_allclose([float(one) for one in values], found["llr"][:2], rtol=1e-5)
    assert rows[5][7].endswith("SEQSSM_LLR=.")
    assert [row[:5] for row in rows] == [line.split("\t")[:5] for line in before if not line.startswith("#")]
    named = tmp_path / "n.vcf"
    predict(causal(), vcf, reference=str(genome), write_vcf=str(named), vcf_field="MINE")
    assert "##INFO=<ID=MINE,Number=A" in named.read_text()


def test_a_summary(files, tmp_path):
    genome, vcf = files
    predict(causal(), vcf, reference=str(genome), window=64, report=str(tmp_path / "s.json"))
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["rows"]["ok"] == 5
    assert content["contig_aliases"] == {"1": "chr1"}


# -- classifiers -------------------------------------------------------------------------------------------------------


def test_rows_of_a_classifier(write):
    model = classifier()
    records = [("a", letters(60, 1)), ("b", letters(30, 2)), ("n", "NNN"), ("long", letters(200, 3))]
    found = predict(model, write(fasta(records)), summary=LABELS)
    assert found.columns.tolist()[8:] == ["p_other", "p_promoter", "prediction", "status", "reason"]
    assert found["status"].tolist() == ["ok", "ok", "all_n", "ok"]
    np.testing.assert_allclose(found[["p_other", "p_promoter"]].dropna().sum(axis=1), 1, rtol=1e-6)

    def own(sequence):
        with torch.no_grad():
            return model.predict(torch.from_numpy(encode(sequence).astype(np.int64))[None])[0].numpy()

    for row, (_, sequence) in zip(found.itertuples(), records[:2]):
        np.testing.assert_allclose([row.p_other, row.p_promoter], own(sequence), atol=1e-6)
        assert row.prediction == ["other", "promoter"][int(own(sequence).argmax())]
    starts = [0, 30, 60, 90, 120, 140]
    mean = np.mean([own(records[3][1][start : start + 60]) for start in starts], axis=0)
    np.testing.assert_allclose(found[["p_other", "p_promoter"]].iloc[3], mean, atol=1e-6)
    rows = predict(model, write(fasta(records)), summary=LABELS, per_window=True, batch_size=1)
    assert rows.loc[rows["id"] == "long", "start"].tolist() == starts
    assert rows["status"].tolist() == ["ok", "ok", "all_n", *["ok"] * 6]
    dotted = write(fasta([("long", letters(100, 3) + "N" * 50 + letters(50, 4))]), "n.fa")
    windows = predict(model, dotted, summary=LABELS, per_window=True)
    assert windows["start"].tolist() == starts
    assert windows["n_fraction"].tolist() == pytest.approx([0, 0, 20 / 60, 50 / 60, 30 / 60, 10 / 60])
    assert predict(model, dotted, summary=LABELS)["n_fraction"][0] == 0.25
    stepped = predict(model, write(fasta(records)), summary=LABELS, per_window=True, window=100, step=100)
    assert stepped.loc[stepped["id"] == "long", "start"].tolist() == [0, 100]


def test_sequences_are_trimmed_and_cut_as_in_training(write):
    model, own = classifier(), letters(40, 5)
    records = [("padded", f"NNN{own}NN"), ("longer", own + letters(60, 6)), ("n", "NNNN")]
    path = write(fasta(records))
    summary = {**LABELS, "trim_n": True, "max_length": 40, "context": 40}
    found, bare = (
        predict(model, path, summary=summary),
        predict(model, write(fasta([("a", own)]), "a.fa"), summary=summary),
    )
    assert found[["start", "end", "length"]].to_numpy().tolist() == [[3, 43, 40], [0, 40, 40], [0, 4, 4]]
    assert found["status"].tolist() == ["ok", "ok", "all_n"]
    np.testing.assert_allclose(found["p_promoter"][:2], bare["p_promoter"][0], rtol=1e-6)
    windows = predict(model, path, summary=summary, per_window=True)
    assert windows["start"].tolist() == [3, 0, 20, 40, 60, 0]
    bed = write("padded\t1\t45\tx\t0\t-\n", "a.bed")
    turned = predict(model, bed, reference=str(path), summary=summary)
    assert turned[["start", "end"]].to_numpy().tolist() == [[3, 43]]
    mirrored = predict(model, data={"a": reverse_complement(own.encode()).decode()}, summary=summary)
    assert turned["p_promoter"][0] == pytest.approx(mirrored["p_promoter"][0], rel=1e-6)
    vcf = write(HEAD + f"padded\t10\t.\t{records[0][1][9]}\t{OTHER[records[0][1][9]]}\t.\t.\t.\n", "p.vcf")
    change = predict(model, vcf, reference=str(path), summary=summary, window=45)
    assert change["p_promoter_ref"][0] == pytest.approx(bare["p_promoter"][0], rel=1e-6)
    assert change[["window_start", "window_end"]].to_numpy().tolist() == [[3, 43]]


def test_batches_of_a_classifier_change_nothing(write, monkeypatch):
    path = write(fasta([(f"r{k}", letters(20 + 11 * k % 90, k)) for k in range(20)]))
    whole = predict(classifier(), path, summary=LABELS, batch_size=20)
    monkeypatch.setattr(supervised, "AT_ONCE", 0)
    one = predict(classifier(), path, summary=LABELS, batch_size=1)
    pd.testing.assert_frame_equal(whole, one, rtol=1e-4)


def test_several_labels_numbers_and_strands(write):
    path = write(fasta([("a", letters(50, 1))]))
    many = predict(classifier(3, "labels"), path, summary={**LABELS, "classes": ["x", "y", "z"], "target": "labels"})
    row = many.iloc[0]
    assert [row[f"positive_{name}"] for name in "xyz"] == [int(row[f"p_{name}"] >= 0.5) for name in "xyz"]
    value = {**LABELS, "classes": ["expression"], "target": "value"}
    model = classifier(1, "value")
    with torch.no_grad():
        model.center.fill_(100)
        model.scale.fill_(3)
    found = predict(model, path, summary=value)
    assert found.columns[8] == "prediction"
    turned = write(fasta([("a", reverse_complement(letters(50, 1).encode()).decode())]), "t.fa")
    other = predict(model, turned, summary=value)
    both = predict(model, path, summary=value, strands="both")
    mean = (found["prediction"][0] + other["prediction"][0]) / 2
    assert both["prediction"][0] == pytest.approx(mean, rel=1e-5)
    model.average_strands = True
    assert predict(model, path, summary=value)["prediction"][0] == pytest.approx(mean, rel=1e-5)
    assert predict(model, path, summary=value, strands="forward")["prediction"][0] == found["prediction"][0]


def test_embeddings_of_a_classifier(write, tmp_path):
    path = write(fasta([("a", letters(50, 1)), ("n", "NN"), ("b", letters(150, 2))]))
    predict(classifier(), path, summary=LABELS, embeddings=str(tmp_path / "e.npy"))
    found = np.load(tmp_path / "e.npy")
    ids = torch.from_numpy(encode(letters(50, 1)).astype(np.int64))[None]
    with torch.no_grad():
        np.testing.assert_allclose(found[0], classifier().embed(ids)[0].numpy(), atol=1e-5)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[2]).all()


def test_variants_by_a_classifier(files, tmp_path):
    genome, vcf = files
    target = tmp_path / "o.vcf"
    found = predict(
        classifier(), vcf, reference=str(genome), summary=LABELS, write_vcf=str(target), **{"class": "other"}
    )
    assert found["status"].tolist() == STATUS
    good = found[found["status"] == "ok"]
    np.testing.assert_allclose(good["p_promoter_change"], good["p_promoter_alt"] - good["p_promoter_ref"], atol=1e-12)
    np.testing.assert_allclose(good["p_promoter_change"], -good["p_other_change"], atol=1e-5)
    assert (good["window_end"] - good["window_start"]).eq(60).all()
    assert f"SEQSSM_CHANGE={good['p_other_change'].iloc[0]:.6g}" in target.read_text()  # was named a likelihood ratio
    with pytest.raises(InputError, match="the model has other, promoter"):
        predict(classifier(), vcf, reference=str(genome), summary=LABELS, **{"class": "x"})
    with pytest.raises(InputError, match="--class has no effect on sequences"):
        predict(classifier(), genome, summary=LABELS, **{"class": "other"})
    for option in ("mask_passes", "chunk_size"):
        with pytest.raises(InputError, match=f"--{option.replace('_', '-')} has an effect on"):
            predict(classifier(), genome, summary=LABELS, **{option: 4})


# -- scans -------------------------------------------------------------------------------------------------------------


def test_a_scan_equals_a_vcf_file_of_all_changes(write, tmp_path):
    genome = write(fasta([("chr1", CHR1)]), "g.fa")
    model = causal()
    frame, picture = scan(predictor(model, reference=str(genome), window=64), "chr1:101-110")
    lines = [f"chr1\t{row.pos}\t.\t{row.ref}\t{row.alt}\t.\t.\t.\n" for row in frame.itertuples()]
    found = predict(model, write(HEAD + "".join(lines), "all.vcf"), reference=str(genome), window=64)
    assert len(frame) == 30
    np.testing.assert_allclose(frame["llr"], found["llr"], atol=2e-4)
    assert frame["ref"].tolist()[::3] == list(CHR1[100:110])
    assert np.isnan(picture["values"]).sum() == 10
    path = figures.heat_map(tmp_path / "h.png", **picture)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_a_scan_by_a_classifier_keeps_the_region(write):
    genome = write(fasta([("p", CHR1[:50] + "N" + CHR1[51:60])]), "g.fa")
    own = predictor(classifier(), LABELS, reference=str(genome))
    frame, picture = scan(own, "p")
    assert len(frame) == 3 * 59 + 4
    assert (frame["status"] == Status.INVALID_ALLELE).sum() == 4
    assert np.isnan(picture["values"][50]).all()
    ids = encode(CHR1[:50] + "N" + CHR1[51:60]).astype(np.int64)
    ids[0] = "ACGT".index(frame["alt"][0]) + 7
    with torch.no_grad():
        wanted = classifier().predict(torch.from_numpy(ids)[None])[0, 1]
    assert frame["p_promoter_alt"][0] == pytest.approx(float(wanted), abs=1e-6)
    turned, _ = scan(own, "p", "-")
    ids = encode(reverse_complement((frame["alt"][0] + CHR1[1:50] + "N" + CHR1[51:60]).encode())).astype(np.int64)
    with torch.no_grad():
        wanted = classifier().predict(torch.from_numpy(ids)[None])[0, 1]
    assert turned["p_promoter_alt"][0] == pytest.approx(float(wanted), abs=1e-6)


def test_regions_that_cannot_be_scanned(write):
    genome = write(fasta([("chr1", CHR1), ("n", "NNNN")]), "g.fa")
    own = predictor(causal(), reference=str(genome))
    for region, message in (
        ("chr2:1-5", "no contig"),
        ("chr1:0-5", "expected 1 <="),
        ("chr1:390-401", "expected 1 <="),
        ("n", "no A, C, G or T"),
        ("chr1:a-b", "no contig"),
    ):
        with pytest.raises(InputError, match=message):
            scan(own, region)
    with pytest.raises(InputError, match="--strand applies to classifiers"):
        scan(own, "chr1:1-5", "-")
    with pytest.raises(InputError, match="longest training sequence 60"):
        scan(predictor(classifier(), LABELS, reference=str(genome)), "chr1")


def test_commands_with_one_model_name_what_else_was_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert main(["dna", "scan-variants", "run", "genome.fa"]) == 2
    assert "expected one model, found 2: run, genome.fa; usage: seqssm dna scan-variants MODEL --reference FASTA" in (
        capsys.readouterr().err
    )
    assert main(["dna", "generate", "run", "other", "--count", "2"]) == 2
    assert "expected one model, found 2: run, other; usage: seqssm dna generate MODEL" in capsys.readouterr().err
