"""The commands on a small trained model: tables, further files, resumption, damaged files, exit codes."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seqssm_dna import predict as prediction

import seqssm
from seqssm.cli.main import main
from seqssm.errors import InputError

from ..prediction.interrupting import interrupted_in_a_subprocess
from .predicting import causal, predict
from .test_damage import VCF, damaged
from .test_variants import CHR1, CHR2

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_command_and_its_files(runs, tmp_path, capsys):
    made, run = runs / "made", str(runs / "tiny")
    genome = str(made / "genome.fa")
    out = tmp_path / "o.csv"
    more = ["--track", str(tmp_path / "t.bedgraph"), "--embeddings", str(tmp_path / "e.parquet")]
    assert main(["predict", run, genome, "--output", str(out), "--figures", str(tmp_path / "figs"), *more]) == 0
    table = pd.read_csv(out, keep_default_na=False)
    pd.testing.assert_frame_equal(table, seqssm.load(run).predict(genome), check_dtype=False, rtol=1e-6)
    assert len(list((tmp_path / "figs").glob("*.png"))) == 4
    assert len(pd.read_parquet(tmp_path / "e.parquet")) == 4
    printed = capsys.readouterr()
    assert f"written: {tmp_path / 't.bedgraph'}" in printed.out
    vcf = [str(made / "calls.vcf"), "--reference", genome, "--window", "64"]
    assert (
        main(["predict", run, *vcf, "--output", str(tmp_path / "v.csv"), "--write-vcf", str(tmp_path / "v.vcf")]) == 0
    )
    assert pd.read_csv(tmp_path / "v.csv")["window_start"].dtype == np.int64
    scan = ["dna", "scan-variants", run, "--reference", genome, "--region", "chr4:11-20", "--window", "64"]
    assert main([*scan, "--output", str(tmp_path / "s.parquet"), "--figures", str(tmp_path / "figs")]) == 0
    assert len(pd.read_parquet(tmp_path / "s.parquet")) == 30
    assert main([*scan, "--output", str(tmp_path / "s.parquet")]) == 2
    design = ["dna", "generate", run, "--count", "2", "--length", "30", "--training", genome]
    assert main([*design, "--output", str(tmp_path / "d.fa")]) == 0
    assert (tmp_path / "d.fa").read_text().count(">") == 2
    baseline = ["dna", "baseline", genome, "--bed", str(made / "splits.bed"), "--order", "4"]
    assert main([*baseline, "--output", str(tmp_path / "b.json")]) == 0
    assert main(["dna", "baseline", str(made / "promoters.csv"), "--folds", "2"]) == 0
    assert "mcc" in capsys.readouterr().out


def test_an_interrupted_prediction_is_continued(runs, tmp_path, monkeypatch, capsys):
    genome, run = str(runs / "made" / "genome.fa"), str(runs / "tiny")
    words = ["predict", run, genome, "--batch-size", "1", "--output", str(tmp_path / "o.csv")]
    words += ["--track", str(tmp_path / "t.bedgraph"), "--embeddings", str(tmp_path / "e.npy")]
    whole = [*words[:-5], str(tmp_path / "w.csv"), "--track", str(tmp_path / "w.bedgraph")]
    assert main([*whole, "--embeddings", str(tmp_path / "w.npy")]) == 0
    original, calls = prediction.DnaPredictor.predict, []

    def once(self, records):
        calls.append(records[0].index)
        if calls.count(2) == 1 and records[0].index == 2:
            raise KeyboardInterrupt
        return original(self, records)

    monkeypatch.setattr(prediction.DnaPredictor, "predict", once)
    assert main(words) == 130
    assert not (tmp_path / "t.bedgraph").exists()
    assert main([*words, "--resume"]) == 0
    assert calls == [0, 1, 2, 2, 3]
    assert (tmp_path / "o.csv").read_bytes() == (tmp_path / "w.csv").read_bytes()
    lines = [(tmp_path / f"{name}.bedgraph").read_text().splitlines()[1:] for name in "tw"]
    assert lines[0] == lines[1]
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), np.load(tmp_path / "w.npy"))
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "RUN", "GENOME", "--output", "o.csv", "--horizon", "3"], "the domain forecasting"),
        (["predict", "RUN", "none.fa", "--output", "o.csv"], "no such file"),
        (["predict", "RUN", "GENOME", "--output", "o.csv", "--strands", "minus"], "--strands"),
        (["dna", "generate", "RUN", "--bin", "3"], "without labels"),
        (["dna", "generate", "RUN", "--temperature", "0"], "must be in (0, 1000]"),
        (["dna", "generate", "RUN", "--beams", "2"], "--count 10"),
        (["dna", "generate", "RUN", "--seed", "99999999999999999999"], "--seed 99999999999999999999: "),
        (["dna", "generate", "RUN", "--count", "0"], "--count 0: "),
        (["dna", "scan-variants", "RUN", "--region", "chr1"], "--reference is required"),
        (["dna", "scan-variants", "RUN", "--reference", "GENOME", "--region", "chr7:1-5"], "no contig 'chr7"),
        (["dna", "baseline", "GENOME", "--order", "99"], "--order 99"),
        (["dna", "baseline", "GENOME", "--label-column", "x"], "applies to labelled sequences only"),
        (
            ["dna", "baseline", "GENOME", "--bed", "BED", "--val-contigs", "chr1"],
            "--bed cannot be combined with --val-contigs",
        ),
        (
            ["predict", "RUN", "VCF", "--reference", "GENOME", "--output", "o.csv", "--write-vcf", "VCF"],
            "also an input",
        ),
        (["predict", "RUN", "GENOME", "--output", "o.csv", "--track", "GENOME", "--overwrite"], "also an input"),
        (["predict", "RUN", "GENOME", "--output", "o.csv", "--track", "BED"], "choose another --track or pass"),
        (
            [
                "predict",
                "RUN",
                "VCF",
                "--reference",
                "GENOME",
                "--output",
                "o.csv",
                "--summary",
                "GENOME",
                "--overwrite",
            ],
            "also",
        ),
        (["predict", "RUN", "GENOME", "--output", "o.csv", "--summary", "o.csv"], "name the same file"),
        (["predict", "RUN", "GENOME", "--output", "o.csv", "--track", "t", "--summary", "./t"], "name the same file"),
        (["predict", "RUN", "GENOME", "--output", "o.csv", "--track", "."], "--track is a folder"),
        (
            [
                "predict",
                "RUN",
                "VCF",
                "--reference",
                "GENOME",
                "--output",
                "o.csv",
                "--write-vcf",
                "v",
                "--vcf-field",
                "a b",
            ],
            "INFO field 'a b'",
        ),
    ],
)
def test_mistakes_are_one_line(runs, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    made = {"GENOME": "genome.fa", "BED": "splits.bed", "VCF": "calls.vcf"}
    names = {"RUN": str(runs / "tiny"), **{name: str(runs / "made" / file) for name, file in made.items()}}
    before = {path: path.read_bytes() for path in (runs / "made").iterdir()}
    assert main([names.get(word, word) for word in words]) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not Path("o.csv").exists()
    assert {path: path.read_bytes() for path in (runs / "made").iterdir()} == before


@pytest.mark.parametrize("kind", ["fa", "vcf"])
def test_damaged_files_are_rows_or_one_line(tmp_path, kind):
    (tmp_path / "genome.fa").write_text(f">chr1\n{CHR1}\n>chr2\n{CHR2}\n")
    content = VCF.encode() if kind == "vcf" else b">one x\nACGTNACGT\nAC\n>two\n\n>three\nNNRY\n"
    options = {"reference": str(tmp_path / "genome.fa"), "window": 16, "strands": "forward"} if kind == "vcf" else {}
    model, refused, messages = causal(n_layers=1, d_model=8), 0, []
    path = tmp_path / f"damaged.{kind}"
    for copy in damaged(content, 60, 8):
        path.write_bytes(copy)
        try:
            predict(model, path, **options)
        except InputError as error:
            refused += 1
            messages.append(str(error))
    assert 0 < refused < 60
    assert not any("\n" in one for one in messages)


@pytest.mark.parametrize("kind", ["fasta", "fastq", "gzip"])
def test_a_damaged_record_has_a_status_as_in_a_table(runs, tmp_path, capsys, kind):
    """One letter stopped the prediction of a file."""
    sequences = {"a": "ACGTACGT", "b": "ACGJACGT", "c": "ACGTACG!" * 3, "d": "acgu"}
    if kind == "fastq":
        path, text = tmp_path / "t.fq", "".join(f"@{k}\n{v}\n+\n{'I' * len(v)}\n" for k, v in sequences.items())
    else:
        path = tmp_path / ("t.fa.gz" if kind == "gzip" else "t.fa")
        text = "".join(f">{k}\n{v[:4]}\n{v[4:]}\n" for k, v in sequences.items())
    path.write_bytes(gzip.compress(text.encode()) if kind == "gzip" else text.encode())
    words = ["predict", str(runs / "tiny"), str(path), "--output", str(tmp_path / "o.csv")]
    assert main(words) == 3
    assert "4 records: 2 ok, 2 failed" in capsys.readouterr().err
    found = pd.read_csv(tmp_path / "o.csv").fillna({"reason": ""})
    assert found["status"].tolist() == ["ok", "failed", "failed", "ok"]
    where = "record 2 'b'" if kind == "fastq" else "line 5, record 2 'b'"
    assert found["reason"][1].startswith(f"{where}, position 4: 'J' is not a nucleotide")
    assert main([*words, "--overwrite", "--allow-failed"]) == 0
    made = seqssm.load(runs / "tiny").predict(sequences)
    assert made["status"].tolist() == ["ok", "failed", "failed", "ok"]
    text = text.replace("ACGT", "EEEE").replace("acgu", "eeee")
    path.write_bytes(gzip.compress(text.encode()) if kind == "gzip" else text.encode())
    assert main([*words, "--overwrite"]) == 2
    assert "is this protein?" in capsys.readouterr().err


def test_a_damaged_row_of_a_table_has_a_status(runs, tmp_path, capsys):
    table = tmp_path / "t.csv"
    table.write_text("id,sequence,split\na,ACGTACGT,x\nb,ACGJ,y\nc,,z\nd,NNNN,\ne,acgu,\n")
    words = ["predict", str(runs / "tiny"), str(table), "--output", str(tmp_path / "o.csv")]
    assert main(words) == 3
    assert "5 records: 2 ok, 3 failed" in capsys.readouterr().err
    found = pd.read_csv(tmp_path / "o.csv").fillna({"reason": ""})
    assert found["status"].tolist() == ["ok", "failed", "empty", "all_n", "ok"]
    assert found["reason"][1].startswith("line 3, column sequence: 'J' is not a nucleotide")
    assert "(position 4)" in found["reason"][1]
    assert main([*words, "--overwrite", "--allow-failed"]) == 0
    table.write_text("id,sequence\na,MKVLE\nb,EEFF\n")
    assert main([*words, "--overwrite"]) == 2
    assert "line 2, column sequence: 'L' is not a nucleotide" in capsys.readouterr().err
    frame = pd.DataFrame({"sequence": ["ACGT", "AC!T", None]})
    assert seqssm.load(runs / "tiny").predict(frame)["status"].tolist() == ["ok", "failed", "empty"]


def test_a_scan_that_is_printed_can_be_piped(runs, tmp_path, capsys):
    genome = str(runs / "made" / "genome.fa")
    scan = ["dna", "scan-variants", str(runs / "tiny"), "--reference", genome, "--region", "chr1:5-6"]
    assert main([*scan, "--window", "32", "--figures", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert len(pd.read_csv(io.StringIO(printed.out))) == 6
    assert "written: " in printed.err
    named = ["dna", "scan-variants", str(runs / "tiny"), "--reference", genome, "--region", "1:5-6", "--window", "32"]
    assert main(named) == 0
    assert "contig 1 read as chr1" in capsys.readouterr().err


@pytest.mark.long
def test_ctrl_c_ends_a_prediction_resumably(runs, tmp_path):
    rng = np.random.default_rng(0)
    records = (f">r{k}\n{''.join(rng.choice(list('ACGT'), 4000))}\n" for k in range(300))
    (tmp_path / "big.fa").write_text("".join(records))
    words = [str(runs / "tiny"), str(tmp_path / "big.fa"), "--accelerator", "cpu"]
    words += ["--track", str(tmp_path / "t.bedgraph"), "--embeddings", str(tmp_path / "e.npy")]
    printed = interrupted_in_a_subprocess(words, tmp_path / "o.csv")
    assert printed.startswith("seqssm: interrupted; continue with: seqssm predict ")
    assert printed.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".o.csv.parts", "big.fa"]


def test_a_class_has_no_effect_on_sequences_in_memory(runs):
    """As for files; Python reserves the name of the option."""
    model = seqssm.load(runs / "finetune")
    with pytest.raises(InputError, match="class_ has no effect on sequences"):
        model.predict({"a": "ACGT" * 10}, class_="promoter")
    with pytest.raises(InputError, match=r"dna has no option clas; did you mean class_\?"):
        model.predict({"a": "ACGT" * 10}, clas="promoter")
