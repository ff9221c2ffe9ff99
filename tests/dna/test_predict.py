"""Sequences to rows by language models: against direct computation, for any pieces, batches, strands and files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from seqssm_dna import profile, sources
from seqssm_dna.letters import reverse_complement
from seqssm_dna.scoring import CausalScorer, MaskedScorer, joined
from seqssm_dna.tokens import BOS, MASK, encode, is_base

from seqssm.compress.states import in_pieces, state_layer
from seqssm.errors import InputError
from seqssm.nn import quantized
from seqssm.nn.projections import carried_scans

from .conftest import COMPRESSIONS, fasta, letters
from .predicting import causal, encoder, predict, predictor

pytestmark = pytest.mark.usefixtures("one_thread")
LANGUAGE = ["mean_nll", "perplexity", "bits_per_base", "next_base_accuracy", "n_scored"]
MIXED = [("one", letters(90, 1)), ("two", letters(33, 2, "ACGTNacgtn")), ("", letters(1, 3)), ("one", letters(64, 4))]


@torch.no_grad()
def direct(model, sequence: str):
    """(nll by base, NaN at N; most probable base is right) in one pass, float64 where possible."""
    ids = torch.tensor(encode(sequence).astype(int))
    logits = model(torch.cat([torch.tensor([BOS]), ids[:-1]])[None])[0].double()
    nll = -logits.log_softmax(-1)[torch.arange(len(ids)), ids]
    known = torch.from_numpy(is_base(ids.numpy()))
    return nll.masked_fill(~known, torch.nan).numpy(), (logits[:, 7:11].argmax(1) + 7 == ids).numpy() & known.numpy()


def test_rows_equal_direct_computation(write):
    model = causal()
    found = predict(model, write(fasta(MIXED)), batch_size=3)
    assert found.columns.tolist() == [
        "index", "id", "record", "start", "end", "strand", "length", "n_fraction", *LANGUAGE, "status", "reason",
    ]  # fmt: skip
    assert found["id"].tolist() == ["one", "two", "", "one"]
    assert found["status"].eq("ok").all()
    for row, (_, sequence) in zip(found.itertuples(), MIXED):
        nll, right = direct(model, sequence)
        count = int(np.isfinite(nll).sum())
        assert (row.n_scored, row.length, row.start, row.end) == (count, len(sequence), 0, len(sequence))
        assert row.mean_nll == pytest.approx(np.nanmean(nll), rel=1e-5)
        assert row.bits_per_base == pytest.approx(np.nanmean(nll) / np.log(2), rel=1e-5)
        assert row.perplexity == pytest.approx(np.exp(np.nanmean(nll)), rel=1e-5)
        assert row.next_base_accuracy == pytest.approx(right.sum() / count)
        assert row.n_fraction == pytest.approx(1 - count / len(sequence))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mixer": "mamba2"},
        {"conv_layers": 4},
        {"mixer": "mamba2", "attn_period": 2, "attn_offset": 1, "attn_window": 24, "mlp_ratio": 2},
    ],
    ids=["mamba", "mamba2", "convolutions", "hybrid"],
)
def test_any_pieces_give_the_result_of_one_pass(options):
    model = causal(**options)
    ids = encode(letters(300, 5, "ACGTN"))
    nll, right = direct(model, letters(300, 5, "ACGTN"))
    for piece in (1, 7, 64, 299, 300, 1000):
        scorer = CausalScorer(model, piece=piece, features=True)
        parts = [ids[:100], ids[100:101], ids[101:101], ids[101:]]
        with torch.no_grad():
            found, whole = joined(scorer.stream(parts)), scorer.whole([ids])[0]
        for one in (found, whole):
            np.testing.assert_allclose(one.nll, nll, atol=1e-5, rtol=1e-5)
            assert (one.correct == right).all()
        np.testing.assert_allclose(found.hidden, whole.hidden, atol=1e-3)


def test_the_network_never_reads_more_than_a_piece(write, monkeypatch):
    monkeypatch.setattr(sources, "LONG", 500)
    model, seen = causal(), []
    hidden = model.hidden
    monkeypatch.setattr(
        model, "hidden", lambda ids, *given, **more: (seen.append(ids.numel()), hidden(ids, *given, **more))[1]
    )
    sequence = letters(20_000, 6)
    path = write(fasta([("long", sequence)]))
    found = predict(model, path, chunk_size=1000)
    assert max(seen) <= 1000
    assert len(seen) == 20
    assert found["mean_nll"][0] == pytest.approx(np.nanmean(direct(model, sequence)[0]), rel=1e-5)


def test_batches_change_nothing(write):
    path = write(fasta([(f"r{k}", letters(1 + 13 * k % 120, k)) for k in range(30)]))
    model = causal()
    one, many = predict(model, path, batch_size=1), predict(model, path, batch_size=30)
    pd.testing.assert_frame_equal(one, many, rtol=1e-5)


def test_statuses_keep_their_rows(write):
    path = write(">a\nACGT\n>empty\n\n>nothing\nNNNN\n>codes\nRYK-\n>b\nacgtn\n")
    found = predict(causal(), path)
    assert found["status"].tolist() == ["ok", "empty", "all_n", "all_n", "ok"]
    assert found["n_scored"].tolist()[::4] == [4, 4]
    assert found["n_fraction"].tolist()[2:] == [1, 1, 0.2]
    assert found["length"].tolist() == [4, 0, 4, 4, 5]
    assert found["reason"].str.len().gt(0).tolist() == [False, True, True, True, False]


def test_long_records_of_n_only_have_a_status(write, monkeypatch):
    monkeypatch.setattr(sources, "LONG", 50)
    found = predict(causal(), write(fasta([("n", "N" * 200), ("a", letters(200))])), per_window=True, window=100)
    assert found["status"].tolist() == ["all_n", "ok", "ok"]


def test_attention_over_everything_refuses_longer_records(write):
    model = causal(mixer="attention", attn_window=None)
    path = write(fasta([("short", letters(64)), ("long", letters(65))]))
    found = predict(model, path, summary={"context": 64, "has_attention": True})
    assert found["status"].tolist() == ["ok", "too_long"]
    assert "65 letters" in found["reason"][1]


@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
def test_long_records_with_states_in_8_bits(mixer, write):
    """Records in pieces and variants that share a prefix carry 8-bit states; records in one piece carry none."""
    model, path = causal(mixer=mixer), write(fasta([("a", letters(700, 1)), ("b", letters(90, 2))]))
    whole = predict(model, path, chunk_size=1000)
    mixers = carried_scans(model)
    largest = {name: torch.zeros(one.state_size) for name, one in mixers.items()}

    def see(name: str, state: torch.Tensor) -> None:
        found = state.abs().reshape(-1, *largest[name].shape).amax(0)
        largest[name] = torch.maximum(largest[name], found)

    with torch.no_grad(), in_pieces(mixers, see):
        CausalScorer(model).whole([encode(letters(400, 3))])
    for name, found in largest.items():
        quantized.replace(model, f"{name}.scan_state", state_layer(found, True))
    pd.testing.assert_frame_equal(predict(model, path, chunk_size=1000), whole)
    pieces = predict(model, path, chunk_size=50)
    assert (pieces["mean_nll"] != whole["mean_nll"]).all()
    assert pieces["mean_nll"].to_numpy() == pytest.approx(whole["mean_nll"].to_numpy(), rel=2e-3)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_files_of_every_compression_and_layout(write, compression, monkeypatch):
    model, records = causal(), [("a x", letters(700, 1)), ("b", letters(20, 2))]
    whole = predict(model, write(fasta(records)))
    monkeypatch.setattr(sources, "LONG", 100)
    for number, (width, end) in enumerate([(60, "\n"), (None, "\n"), (33, "\r\n")]):
        path = write(fasta(records, width, end), f"c{number}.fa", compression)
        pd.testing.assert_frame_equal(predict(model, path, chunk_size=50), whole, rtol=1e-5)
    lower = write(fasta([(name, text.lower()) for name, text in records]), "d.fa", compression)
    pd.testing.assert_frame_equal(predict(model, lower), whole, rtol=1e-5)
    masked = predict(model, lower, summary={"lower": "mask"})
    assert masked["status"].tolist() == ["all_n", "all_n"]


def test_other_formats_and_data_in_memory(write):
    model, one, two = causal(), letters(30, 1), letters(31, 2)
    wanted = predict(model, write(fasta([("a", one), ("b", two)])))[LANGUAGE]
    fastq = write(f"@a\n{one}\n+\n{'I' * 30}\n@b\n{two}\n+\n{'I' * 31}\n", "reads.fastq")
    table = write(f"id,sequence\na,{one}\nb,{two}\n", "t.csv")
    frame = pd.DataFrame({"name": ["a", "b"], "sequence": [one, two]})
    for found in (
        predict(model, fastq),
        predict(model, table),
        predict(model, data=frame),
        predict(model, data={"a": one, "b": two}),
    ):
        pd.testing.assert_frame_equal(found[LANGUAGE], wanted)
        assert found["id"].tolist() == ["a", "b"]
    for data in (3, {"a": 7}, {"a": "ACGU!"}, pd.DataFrame({"x": [1]})):
        with pytest.raises(InputError):
            predict(model, data=data)


def test_both_strands_are_averaged_on_demand(write):
    model, sequence = causal(), letters(80, 7, "ACGTN")
    turned = reverse_complement(sequence.encode()).decode()
    path = write(fasta([("a", sequence), ("b", turned)]))
    forward, both = predict(model, path), predict(model, path, strands="both", chunk_size=30)
    assert both["mean_nll"][0] == pytest.approx(both["mean_nll"][1], rel=1e-5)
    assert both["mean_nll"][0] == pytest.approx(forward["mean_nll"].mean(), rel=1e-5)
    assert both["n_scored"].tolist() == forward["n_scored"].tolist()


def test_intervals_strands_and_blocks(write):
    model, contig = causal(), letters(500, 8)
    genome = write(fasta([("chr1", contig)]))
    bed = write(
        "chr1\t10\t60\tx\t0\t+\n1\t10\t60\t.\t0\t-\n"
        "chr1\t100\t200\tg\t0\t-\t100\t200\t0\t2\t10,20,\t0,80,\n", "a.bed"
    )  # fmt: skip
    found = predict(model, bed, reference=str(genome))
    spliced = contig[100:110] + contig[180:200]
    wanted = [contig[10:60], *(reverse_complement(one.encode()).decode() for one in (contig[10:60], spliced))]
    for row, sequence in zip(found.itertuples(), wanted):
        assert row.mean_nll == pytest.approx(np.nanmean(direct(model, sequence)[0]), rel=1e-5)
        assert row.length == len(sequence)
    assert found["id"].tolist() == ["x", "1:10-60(-)", "g"]
    assert found["strand"].tolist() == ["+", "-", "-"]
    assert found[["start", "end"]].to_numpy().tolist() == [[10, 60], [10, 60], [100, 200]]


@pytest.mark.parametrize("long", [False, True])
def test_the_track_is_minus_log2_p_of_every_base(write, tmp_path, monkeypatch, long):
    if long:
        monkeypatch.setattr(sources, "LONG", 40)
        monkeypatch.setattr(profile, "LONG", 40)
        monkeypatch.setattr(profile, "SPAN", 33)
    model, contig = causal(), letters(300, 9, "ACGTN")
    genome = write(fasta([("chr1", contig), ("two", "NNNN"), ("chr3", "ACGTT")]))
    predict(model, genome, track=str(tmp_path / "t.bedgraph"), chunk_size=70)
    nll, _ = direct(model, contig)
    rows = [line.split("\t") for line in (tmp_path / "t.bedgraph").read_text().splitlines()[1:]]
    values = np.full(300, np.nan)
    for name, start, end, value in rows:
        if name == "chr1":
            values[int(start) : int(end)] = float(value)
    np.testing.assert_allclose(values, nll / np.log(2), atol=1e-4)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert {row[0] for row in rows} == {"chr1", "chr3"}
    bed = write("chr1\t50\t150\tm\t0\t-\n", "m.bed")
    predict(model, bed, reference=str(genome), track=str(tmp_path / "m.bedgraph"), chunk_size=30)
    turned = reverse_complement(contig[50:150].encode()).decode()
    nll = direct(model, turned)[0][::-1]
    for line in (tmp_path / "m.bedgraph").read_text().splitlines()[1:]:
        name, start, end, value = line.split("\t")
        assert name == "chr1"
        np.testing.assert_allclose(nll[int(start) - 50 : int(end) - 50] / np.log(2), float(value), atol=1e-4)


def test_windows_of_a_language_model_add_up(write):
    model = causal()
    path = write(fasta([("a", letters(250, 1, "ACGTN")), ("b", letters(20, 2))]))
    whole, rows = predict(model, path), predict(model, path, per_window=True, window=100, chunk_size=33)
    assert rows[["id", "start", "end"]].to_numpy().tolist() == [
        ["a", 0, 100], ["a", 100, 200], ["a", 200, 250], ["b", 0, 20],
    ]  # fmt: skip
    sums = (rows["mean_nll"] * rows["n_scored"]).groupby(rows["index"]).sum() / rows.groupby("index")["n_scored"].sum()
    np.testing.assert_allclose(sums, whole["mean_nll"], rtol=1e-5)


def test_embeddings(write, tmp_path):
    model = causal()
    path = write(fasta([("a", letters(150, 1)), ("none", ""), ("b", letters(20, 2))]))
    predict(model, path, embeddings=str(tmp_path / "e.npy"), batch_size=1)
    predict(model, path, embeddings=str(tmp_path / "e.parquet"), chunk_size=40)
    array, frame = np.load(tmp_path / "e.npy"), pd.read_parquet(tmp_path / "e.parquet")
    assert array.shape == (3, 16)
    assert array.dtype == np.float32
    assert np.isnan(array[1]).all()
    assert frame["embedding"][1] is None
    assert frame["id"].tolist() == pd.read_csv(tmp_path / "e.ids.csv")["id"].tolist() == ["a", "none", "b"]
    ids = torch.tensor([[BOS, *encode(letters(150, 1))[:-1].tolist()]])
    with torch.no_grad():
        np.testing.assert_allclose(array[0], model.hidden(ids)[0].mean(0).numpy(), atol=1e-5)
    np.testing.assert_allclose(np.stack(frame["embedding"][[0, 2]]), array[[0, 2]], atol=1e-5)
    own = predictor(model)
    records = [own.prepare(one) for one in own.records([path]) if one.id != "none"]
    with torch.no_grad():
        np.testing.assert_allclose(np.stack(own.embed(records)), array[[0, 2]], atol=1e-5)


def test_masked_models_hide_every_base_in_turn(write):
    model, sequence = encoder(), letters(40, 3, "ACGTN")
    ids = encode(sequence)
    with torch.no_grad():
        for passes in (40, 8):
            found = MaskedScorer(model, 100, passes).whole([ids])[0]
            for place in range(40):
                hidden = ids.astype(np.int64)
                if passes == 40:
                    hidden[place] = MASK
                else:
                    hidden[(np.arange(40) % 8 == place % 8) & is_base(ids)] = MASK
                logits = model(torch.from_numpy(hidden)[None])[0, place].log_softmax(-1)
                wanted = float(-logits[int(ids[place])]) if is_base(ids)[place] else np.nan
                np.testing.assert_allclose(found.nll[place], wanted, rtol=1e-4)
    path = write(fasta([("a", letters(300, 4)), ("b", sequence)]))
    rows = predict(model, path, window=64)
    assert rows["n_scored"].tolist() == [300, int(is_base(ids).sum())]
    assert rows["status"].eq("ok").all()


def test_shared_strands_give_the_same_for_both(write):
    model, sequence = encoder(strands="shared"), letters(60, 5)
    turned = reverse_complement(sequence.encode()).decode()
    rows = predict(model, write(fasta([("a", sequence), ("b", turned)])), mask_passes=60)
    assert rows["mean_nll"][0] == pytest.approx(rows["mean_nll"][1], rel=1e-5)


def test_several_files_and_repeated_names(write, capsys):
    one, two = write(fasta(MIXED), "one.fa"), write(fasta(MIXED[:1]), "two.fa")
    found = predict(causal(), one, two)
    assert found["file"].tolist() == ["one.fa"] * 4 + ["two.fa"]
    assert found["index"].tolist() == list(range(5))
    assert "share" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"track": "x.bedgraph", "per_window": True}, "--per-window requires --window"),
        ({"step": 5}, "--step has an effect on classifiers only"),
        ({"mask_passes": 2}, "--mask-passes has an effect on masked language models only"),
        ({"mask_passes": 8}, "--mask-passes has an effect on masked language models only"),  # the default
        ({"window": 50}, "--window requires --per-window"),
        ({"embeddings": "x.csv"}, r"must end in .parquet or .npy"),
        ({"class": "a"}, "it is a language model"),
        ({"label": ["a=1"]}, "trained without labels"),
        ({"write_vcf": "x.vcf"}, "requires a single VCF file"),
        ({"reference": "x.fa"}, "--reference applies to VCF and BED"),
    ],
)
def test_options_that_do_not_fit(write, options, message):
    with pytest.raises(InputError, match=message):
        predict(causal(), write(fasta(MIXED)), **options)


def test_inputs_that_do_not_fit(write, tmp_path):
    genome, bed = write(fasta(MIXED)), write("one\t1\t5\n", "a.bed")
    vcf = write("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n", "a.vcf")
    for inputs, options, message in (
        ([bed], {}, "requires --reference"),
        ([vcf], {}, "requires --reference"),
        ([genome, bed], {}, "several kinds"),
        ([vcf], {"reference": str(genome), "track": "t"}, "not variants"),
        ([tmp_path / "none.fa"], {}, "no such file"),
        ([write("MKVLAAGE\n", "p.fa")], {}, "header line"),
        ([write(">p\nMKVLEAGE\n", "q.fa")], {}, "is this protein"),
        ([write(b"\x00\x01\x02\x03" * 50, "b.fa")], {}, "binary"),
        ([write("", "e.fa")], {}, "empty"),
        ([write(fasta(MIXED), "cut.fa", "gzip")], {"cut": True}, "truncated|damaged|corrupt"),
    ):
        if options.pop("cut", False):
            inputs[0].write_bytes(inputs[0].read_bytes()[:-20])
        with pytest.raises(InputError, match=message) as error:
            predict(causal(), *inputs, **options)
        assert "\n" not in str(error.value)
