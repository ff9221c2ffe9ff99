"""Real genomes, labelled sets and edge cases: counts of the data's README, and scores of the baselines."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seqssm_dna.genome import Genome
from seqssm_dna.genomes import open_genome
from seqssm_dna.intervals import of_split, read_bed, require_apart
from seqssm_dna.kmers import MarkovModel
from seqssm_dna.labelled import LabelColumns, read_labelled
from seqssm_dna.letters import Findings
from seqssm_dna.linear import KmerLinear
from seqssm_dna.metrics import Classified, Regressed, accuracy, auroc, bits_per_base, mcc, next_base_accuracy, pearson
from seqssm_dna.records import read_records, stream_pieces
from seqssm_dna.scan import scan
from seqssm_dna.tokens import encode
from seqssm_dna.variants import Variants
from seqssm_dna.vcf import write_scores

from seqssm.errors import InputError
from seqssm.files.datasets import search
from tests.dna.predicting import causal, predict, predict_with, predictor

pytestmark = pytest.mark.skipif(
    search("dna", "edge_cases/genes.fasta") is None, reason="SEQSSM_DATA names no folder with dna/edge_cases in it"
)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def real(path):
    found = search("dna", path)
    if found is None:
        pytest.skip(f"dna/{path} is not in SEQSSM_DATA")
    return found


COUNTS = {  # records, letters, ambiguous letters
    "genomes/ecoli_536.fa.gz": (1, 4_938_920, {}),
    "genomes/vcholerae_iupac.fa.gz": (2, 4_033_464, {"Y": 10, "K": 8, "R": 7, "W": 5, "S": 3, "M": 2, "N": 2}),
    "genomes/saureus_nctc8325.fa.gz": (1, 2_821_361, {"N": 1}),
    "genomes/pfalciparum_mal1_mal3.fa.gz": (3, 2_650_569, {}),
    "genomes/pfalciparum_mal13.fa.gz": (1, 2_895_605, {"N": 400}),
    "genomes/human_chr20_grch37_50M_51M.fa.gz": (1, 1_000_000, {}),
    "promoters/ecoli_promoter.fa": (839, 839 * 81, {}),
    "promoters/ecoli_non_promoter.fa": (3000, 3000 * 81, {}),
    "promoters/arabidopsis_tata_non_promoter.fa.gz": (2879, 2879 * 251, {}),
    "ctcf_chr20/ctcf_peaks_chr20_hg19.fa": (1112, 111_200, {}),
}


@pytest.mark.parametrize("path", COUNTS)
def test_every_file_is_read_whole_and_in_chunks(path):
    path, wanted = real(path), COUNTS[path]
    whole, pieces = Findings(), Findings()
    sums = [hashlib.sha256(), hashlib.sha256()]
    for record in read_records(path, whole):
        sums[0].update(record.sequence)
    for piece in stream_pieces(path, pieces):
        sums[1].update(piece.sequence)
    assert sums[0].digest() == sums[1].digest()
    for found in (whole, pieces):
        assert (found.records, found.bases, found.ambiguous) == wanted
    genome = Genome(path)
    random = np.random.default_rng(0)
    record = next(iter(read_records(path)))
    for start in random.integers(0, len(record.sequence), 20):
        end = int(min(start + random.integers(1, 5000), len(record.sequence)))
        assert genome.fetch(0, int(start), end) == record.sequence[int(start) : end]


def test_edge_cases_contain_the_same_sequences():
    plain = [one.sequence for one in read_records(real("edge_cases/genes.fasta"))]
    assert len(plain) == 20
    assert sum(map(len, plain)) == 69_469
    for name in ("genes.fasta.lower", "genes.fasta.gz", "issue_141.fasta"):
        path = real(f"edge_cases/{name}")
        assert [one.sequence.upper() for one in read_records(path)] == plain
        genome = Genome(path)
        assert [genome.fetch(record).upper() for record in range(20)] == plain
        assert not genome.held
    blank = Genome(real("edge_cases/issue_83.fasta"))
    assert blank.names == ["MT", "GL000207.1"]
    assert sum(blank.lengths) == 179


def test_edge_cases_of_bed():
    chromosome = Genome(real("edge_cases/chr17.hg19.part.fa"))
    assert chromosome.lengths == [40_000]
    (gene,) = read_bed(real("edge_cases/gene.bed12"), chromosome)
    (spliced,) = read_records(real("edge_cases/gene.bed12.fasta"))
    assert gene.sequence(chromosome).upper() == spliced.sequence.upper()
    assert len(spliced.sequence) == 1073
    genes = Genome(real("edge_cases/genes.fasta"))
    assert [len(one) for one in read_bed(real("edge_cases/regions.bed"), genes)] == [999, 5423]
    with pytest.raises(InputError, match=r"malformed\.bed: line 1: 2 columns"):
        read_bed(real("edge_cases/malformed.bed"), genes)


def test_real_variants(tmp_path):
    genome = Genome(real("genomes/saureus_nctc8325.fa.gz"))
    path = real("genomes/saureus_rn4220.vcf.gz")
    variants = Variants(path, genome, 8192)
    rows = list(variants)
    assert len(rows) == 109
    assert variants.counts["ok"] == 106
    assert [len(one.ref) for one in rows if one.status == "too_long"] == [46_035, 43_606, 37_110]
    assert genome.contigs.aliases == {"NC_007795": "gi|88193823|ref|NC_007795.1|"}
    for one in rows:
        if one.status == "ok":
            windows = variants.windows(one)
            assert len(windows.ref) == len(windows.alt) == 8192
            there = genome.fetch(one.contig, windows.start, windows.end).upper()
            left, right = windows.offset, windows.offset + len(one.ref)
            assert windows.ref.upper() == there[:left] + one.ref.upper().encode() + there[right:]
    scores = [[0.5] if one.status == "ok" else [None] for one in rows]
    assert write_scores(path, tmp_path / "out.vcf.gz", scores) == 109
    assert [one.status for one in Variants(tmp_path / "out.vcf.gz", genome, 8192)] == [one.status for one in rows]


SETS = {  # the data's README: bits of the best order, that order, bits and order of the validation data
    "pfalciparum": (("pfalciparum_mal1_mal3", "pfalciparum_mal13"), 1.615, 7, 1.606, 9),
    "human_chr20": (("human_chr20_grch37_3M_9M", "human_chr20_grch37_50M_51M"), 1.722, 10, 1.859, 9),
    "ecoli_536": (("ecoli_536",), 1.936, 7, None, None),
}


@pytest.mark.parametrize("name", SETS)
def test_bits_per_base_of_the_markov_model(name, capsys):
    files, bits, order, held_bits, held_order = SETS[name]
    begin = time.process_time()
    genome = open_genome([real(f"genomes/{file}.fa.gz") for file in files])
    intervals = read_bed(real(f"genomes/splits/{name}.bed"), genome)
    require_apart(intervals, name)
    train, held, test = (
        [encode(one.sequence(genome)) for one in of_split(intervals, split)] for split in ("train", "val", "test")
    )
    model = MarkovModel(11).fit(train)
    by_order = [bits_per_base(model.scores(test, k)) for k in range(12)]
    assert min(by_order) == pytest.approx(bits, abs=6e-4)
    assert int(np.argmin(by_order)) == order
    held_by_order = model.select(held)
    found = model.scores(test)
    if held_bits is not None:
        assert min(held_by_order) == pytest.approx(held_bits, abs=6e-4)
        assert model.order == held_order
    assert bits_per_base(found) < bits + 0.01
    with capsys.disabled():
        print(
            f"\n{name}: best order {order} {min(by_order):.4f} bits per base; order {model.order} chosen on validation "
            f"data {bits_per_base(found):.4f}, next-base accuracy {next_base_accuracy(found):.4f}; "
            f"{time.process_time() - begin:.1f} CPU-seconds"
        )


def coded(found):
    return [encode(one) for one in found.sequences]


def test_splice_junctions():
    found = read_labelled(real("splice/splice_junctions.csv"))
    notes = " ".join(found.notes)
    for wanted in (
        "185 duplicate sequences",
        "82 of 1186 test sequences also occur",
        "1 sequences occur with different",
    ):
        assert wanted in notes
    train, test = found.of_split("train"), found.of_split("test")
    assert np.bincount(train.truth).tolist() == [464, 485, 1051]
    figures = []
    for sizes in ((), (3, 4, 5)):
        model = KmerLinear(sizes=sizes).fit(coded(train), train.truth)
        figures.append(Classified(test.truth, model.predict(coded(test))))
    assert accuracy(figures[0]) == pytest.approx(0.957, abs=1e-3)
    assert mcc(figures[0]) == pytest.approx(0.931, abs=1e-3)
    assert accuracy(figures[1]) > 0.959


def test_labelled_sets():
    promoters = {"promoter": real("promoters/ecoli_promoter.fa"), "other": real("promoters/ecoli_non_promoter.fa")}
    assert np.bincount(read_labelled(promoters).truth).tolist() == [3000, 839]
    ctcf = read_labelled(
        {
            "peak": real("ctcf_chr20/ctcf_peaks_chr20_hg19.fa"),
            "background": real("ctcf_chr20/background_gc_matched_chr20_hg19.fa"),
        }
    )
    assert any("fraction of lower-case letters differs between classes" in note for note in ctcf.notes)
    place = np.array([int(one.split(":")[1].split("-")[0]) for one in ctcf.ids])
    train, test = ctcf.rows(place < 45_000_000), ctcf.rows(place >= 45_000_000)
    assert (len(train), len(test)) == (756 + 758, 356 + 354)
    model = KmerLinear().fit(coded(train), train.truth)
    assert auroc(Classified(test.truth, model.predict(coded(test)))) > 0.64
    yeast = read_labelled(
        real("yeast_expression/native_complex.csv.gz"), "regression", LabelColumns(label="expression", group="gene")
    )
    assert len(yeast) == 3733
    assert len(set(yeast.groups)) == 199
    random = read_labelled(real("yeast_expression/random_complex.csv.gz"), "regression")
    fold = np.arange(len(random)) % 5 == 0
    a, b = random.rows(~fold), random.rows(fold)
    model = KmerLinear("regression").fit(coded(a), a.truth)
    assert pearson(Regressed(b.truth, model.predict(coded(b)))) > 0.75


# -- prediction with small untrained networks --------------------------------------------------------------------------


LANGUAGE = ["length", "n_fraction", "mean_nll", "bits_per_base", "next_base_accuracy", "n_scored", "status"]


def test_edge_cases_are_predicted_identically_in_every_layout(one_thread):
    model = causal()
    plain = predict(model, real("edge_cases/genes.fasta"))
    assert plain["status"].tolist() == ["ok"] * 20
    assert plain["n_scored"].sum() == 69_469
    for name in ("genes.fasta.lower", "genes.fasta.gz", "issue_141.fasta"):
        pd.testing.assert_frame_equal(predict(model, real(f"edge_cases/{name}"))[LANGUAGE], plain[LANGUAGE])
    masked = predict(model, real("edge_cases/genes.fasta.lower"), summary={"lower": "mask"})
    assert set(masked["status"]) == {"all_n"}
    assert predict(model, real("edge_cases/issue_83.fasta"))["length"].tolist() == [119, 60]
    for suffix in ("", ".gz"):
        genes = str(real(f"edge_cases/genes.fasta{suffix}"))
        intervals = predict(model, real("edge_cases/regions.bed"), reference=genes)
        assert intervals["length"].tolist() == [999, 5423]
    with pytest.raises(InputError, match=r"malformed\.bed: line 1: 2 columns"):
        predict(model, real("edge_cases/malformed.bed"), reference=genes)


def test_a_spliced_gene_is_predicted_and_drawn_on_its_strand(tmp_path, one_thread):
    chromosome, track = str(real("edge_cases/chr17.hg19.part.fa")), tmp_path / "gene.bedgraph"
    gene = predict(causal(), real("edge_cases/gene.bed12"), reference=chromosome, track=str(track), figures=tmp_path)
    spliced = predict(causal(), real("edge_cases/gene.bed12.fasta"))
    pd.testing.assert_frame_equal(gene[LANGUAGE], spliced[LANGUAGE])
    assert gene[["start", "end", "strand"]].to_numpy().tolist() == [[6010, 31_420, "-"]]
    (interval,) = read_bed(real("edge_cases/gene.bed12"))
    bases = [line.split("\t")[1:3] for line in track.read_text().splitlines()[1:]]
    covered = np.concatenate([np.arange(int(start), int(end)) for start, end in bases])
    np.testing.assert_array_equal(covered, np.concatenate([np.arange(*block) for block in interval.blocks]))
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_real_names_are_resolved(one_thread):
    own = predictor(causal())
    records = list(own.records([real("promoters/arabidopsis_tata_non_promoter.fa.gz")]))
    assert [one.index for one in records] == list(range(2879))
    assert len({one.id for one in records}) == 919
    reference = str(real("genomes/saureus_nctc8325.fa.gz"))
    own = predictor(causal(d_model=8, n_layers=1), reference=reference, window=64)
    found = predict_with(own, real("genomes/saureus_rn4220.vcf.gz"))
    assert found["status"].value_counts().to_dict() == {"ok": 102, "too_long": 7}
    assert own.reader.genome(Path(reference)).contigs.aliases == {"NC_007795": "gi|88193823|ref|NC_007795.1|"}
    slices = predictor(causal(), reference=str(real("genomes/human_chr20_grch37_50M_51M.fa.gz")), window=32)
    frame, _ = scan(slices, "20:50000001-51000000:500001-500002")
    assert frame["pos"].tolist() == [500_001] * 3 + [500_002] * 3


def test_lower_case_genomes_and_ambiguity_codes(tmp_path, capsys, one_thread):
    bed = tmp_path / "a.bed"
    bed.write_text("MAL13\t0\t5000\n")
    malaria = str(real("genomes/pfalciparum_mal13.fa.gz"))
    assert predict(causal(), bed, reference=malaria)["n_scored"].tolist() == [5000]
    assert predict(causal(), bed, reference=malaria, summary={"lower": "mask"})["status"].tolist() == ["all_n"]
    capsys.readouterr()
    genome = Genome(real("genomes/vcholerae_iupac.fa.gz"))
    letters = genome.fetch(0)
    place = next(k for k, letter in enumerate(letters) if letter not in b"ACGT")
    bed.write_text(f"{genome.names[0]}\t{place - 9}\t{place + 1}\n")
    found = predict(causal(), bed, reference=str(genome.path))
    assert found[["n_scored", "n_fraction"]].to_numpy().tolist() == [[9, 0.1]]
    message = capsys.readouterr().err
    assert "ambiguity codes read as N: Y 10" in message
    assert "held in memory" in message
