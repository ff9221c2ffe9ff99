"""Labelled sequences from tables and from one FASTA file per class."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from seqssm_dna.genome import Genome
from seqssm_dna.intervals import read_bed
from seqssm_dna.labelled import LabelColumns, labelled_intervals, read_labelled
from seqssm_dna.labels import order_classes
from seqssm_dna.sequences import SequenceData
from seqssm_dna.splits import split_labelled

from seqssm.errors import InputError

from .conftest import csv, fasta, letters

ROWS = [(letters(40, k), ["b", "a", "c"][k % 3], ["train", "valid", "test"][k % 3 - 1]) for k in range(12)]


def frame():
    return pd.DataFrame(ROWS, columns=["sequence", "label", "split"])


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "gz", "xlsx", "parquet", "frame", "bom"])
def test_every_table_gives_the_same_set(write, tmp_path, kind):
    if kind == "frame":
        source = frame()
    elif kind in ("xlsx", "parquet"):
        source = tmp_path / f"set.{kind}"
        getattr(frame(), "to_excel" if kind == "xlsx" else "to_parquet")(source, index=False)
    else:
        mark = {"tsv": "\t", "semicolon": ";"}.get(kind, ",")
        text = ("\ufeff" if kind == "bom" else "") + csv(ROWS, mark=mark)
        source = write(text, "set.csv", "gzip" if kind == "gz" else "plain")
    found = read_labelled(source)
    assert found.classes == ["a", "b", "c"]
    assert found.truth.tolist() == [["a", "b", "c"].index(label) for _, label, _ in ROWS]
    assert [one.decode() for one in found.sequences] == [sequence for sequence, _, _ in ROWS]
    assert found.splits == [{"valid": "val"}.get(split, split) for _, _, split in ROWS]
    assert len(found.of_split("val")) == 4
    assert found.of_split("val").truth.tolist() == [found.classes.index(r[1]) for r in ROWS if r[2] == "valid"]
    assert not [note for note in found.notes if "warning" in note]


def test_one_fasta_file_per_class(write):
    a = write(fasta([("x", letters(30, 1)), ("x", letters(31, 2)), ("y", letters(30, 3))]), "a.fa", "bgzf")
    b = write(fasta([(" 64", letters(30, 4)), ("", letters(30, 5)), ("z", letters(33, 6))]), "b.fa", "xz")
    c = write(fasta([("w", letters(30, 7))]), "c.fa")
    found = read_labelled({"other": [b, c], "motif": a})
    assert found.classes == ["motif", "other"]
    assert found.truth.tolist() == [0] * 3 + [1] * 4
    assert found.ids == ["x", "x", "y", "64", "", "z", "w"]
    assert found.places[1] == "a.fa.gz, record 2 'x'"
    assert any("2 records share 1 names" in note for note in found.notes)
    for source, message in (
        ({"motif": a, "other": [b, a]}, "is given for two classes, motif and other"),
        ({"motif": a}, "has only one class"),
        ({"motif": a, "other": write(">a\n\n>b\nACGT\n", "e.fa")}, r"e\.fa: record 1 'a': the record is empty"),
        ({"motif": a, "other": write(">a\nMKLV\n", "p.fa")}, r"p\.fa: line 2, record 1 'a', position 3: 'L'"),
    ):
        with pytest.raises(InputError, match=message):
            read_labelled(source)
    with pytest.raises(InputError, match="requires target classification"):
        read_labelled({"motif": a, "other": b}, "regression")
    assert read_labelled({"other": [b, c]}, classes=["motif", "other"]).truth.tolist() == [1] * 4
    with pytest.raises(
        InputError, match="class 'others' is unknown to the model, which has motif, other; did you mean"
    ):
        read_labelled({"others": b}, classes=["motif", "other"])


def test_columns_are_found_or_named(write):
    text = csv([(letters(20, k), k % 2, k) for k in range(6)], "seq,y,family")
    found = read_labelled(write(text, "a.csv"), columns=LabelColumns(group="family"))
    assert found.classes == ["0", "1"]
    assert found.groups == [str(k) for k in range(6)]
    named = write(csv([(letters(20, k), k % 2) for k in range(6)], "region,kind"), "b.csv")
    assert len(read_labelled(named, columns=LabelColumns("region", "kind"))) == 6
    with pytest.raises(InputError, match=r"has no column sequence or seq or dna \(sequence\); it has region, kind"):
        read_labelled(named)
    with pytest.raises(InputError, match=r"has no column knd \(label\); did you mean kind"):
        read_labelled(named, columns=LabelColumns("region", "knd"))


BAD = {
    "ACGT,a\n,b\nACGT,b\n": "line 3, column sequence: the sequence is empty",
    "ACGT,a\nACLT,b\nACGG,b\n": "line 3, column sequence: 'L' is not a nucleotide but an amino acid",
    "ACGT,a\nACGT A,b\nACGG,b\n": "' ' is not a nucleotide",
    "ACGT,a\nAC5T,b\nACGG,b\n": "(position 3)",
    "ACGT,a\nACGC,\nACGG,b\n": "line 3, column label: the label is missing",
    "ACGT,a\nACGC,nan\nACGG,b\n": "line 3, column label: the label is missing",
}


@pytest.mark.parametrize("rows", BAD)
def test_bad_rows_are_refused_or_dropped(write, rows):
    path = write("sequence,label\n" + rows, "a.csv")
    with pytest.raises(InputError) as caught:
        read_labelled(path)
    assert BAD[rows] in str(caught.value)
    assert "invalid='drop'" in str(caught.value)
    found = read_labelled(path, invalid="drop")
    assert len(found) == 2
    assert any("1 rows dropped (line 3" in note for note in found.notes)
    with pytest.raises(InputError, match="is not a nucleotide"):
        read_labelled(write("sequence,label\nLLL,a\nEEE,b\n", "b.csv"), invalid="drop")


def test_misleading_data_are_reported(write):
    base = letters(30, 1)
    twisted = read_labelled(
        write(csv([(base, "a"), (base.lower(), "b"), (letters(30, 2), "a")], "sequence,label"), "a.csv")
    )
    notes = " ".join(twisted.notes)
    assert "1 duplicate sequences" in notes
    assert "1 sequences occur with different labels" in notes
    assert "fraction of lower-case letters differs between classes" in notes
    sizes = read_labelled(write(csv([(letters(20 + k % 2, k), k % 2) for k in range(8)], "sequence,label"), "b.csv"))
    assert any("length reveals the class" in note for note in sizes.notes)


def test_sequences_in_two_splits_are_counted(write):
    from seqssm_dna.letters import reverse_complement

    a, b, c = (letters(30, k) for k in range(3))
    turned = reverse_complement(b.encode()).decode()
    rows = [(a, 0, "train"), (b, 1, "train"), (a, 0, "test"), (turned, 1, "test"), (c, 0, "test"), (c, 0, "val")]
    notes = read_labelled(write(csv(rows), "a.csv")).notes
    assert "warning: 1 of 3 test sequences also occur in train" in notes
    assert "warning: 1 of 3 test sequences are reverse complements of training sequences" in notes
    assert not any("val sequences" in note for note in notes)


def test_groups_stay_in_one_split(write):
    rows = [(letters(20, k), k % 2, "train" if k < 4 else "test", k % 4) for k in range(6)]
    path = write(csv(rows, "sequence,label,split,gene"), "a.csv")
    read_labelled(path)
    with pytest.raises(InputError, match=r"line 6: group '0' is in train \(line 2\) and in test"):
        read_labelled(path, columns=LabelColumns(group="gene"))
    rows = [(one, label, split, "tP53" if split == "test" else "TP53") for one, label, split, _ in rows]
    path = write(csv(rows, "sequence,label,split,gene"), "b.csv")
    note = "warning: tP53 is probably the group TP53; random splits keep their records together"
    given = read_labelled(path, columns=LabelColumns(group="gene"))
    assert set(given.groups) == {"TP53", "tP53"}
    assert note in given.notes
    found = read_labelled(path, columns=LabelColumns(split="none", group="gene"))
    assert found.groups == ["TP53"] * 6
    assert note in found.notes


def test_splits_of_other_names(write):
    with pytest.raises(InputError, match=r"line 3, column split: split 'other': expected train, valid or test"):
        read_labelled(write(csv([("ACGT", 0, "train"), ("ACGG", 1, "other")]), "a.csv"))


def test_classes():
    assert order_classes(["10", "9", "-1"]) == ["-1", "9", "10"]
    assert order_classes(["b", "10", "9"]) == ["10", "9", "b"]


def test_too_few_or_too_many_classes(write):
    with pytest.raises(InputError, match=r"has only one class \(a\); at least two are required"):
        read_labelled(write("sequence,label\nACGT,a\nACGG,a\n", "a.csv"))
    rows = [(letters(20, k), k + 0.5) for k in range(8)]
    commas = [(letters(20, k), f'"-{k},523"') for k in range(12)]
    for path in (write(csv(rows, "sequence,label"), "b.csv"), write(csv(commas, "sequence,label"), "d.csv")):
        with pytest.raises(
            InputError, match=r"labels are numbers such as .*, not classes; numbers need --data.target value"
        ):
            read_labelled(path)
    many = [(letters(20, k), f"id{k}") for k in range(120)]
    notes = " ".join(read_labelled(write(csv(many, "sequence,label"), "c.csv")).notes)
    assert "120 classes; is the label column a number or an identifier?" in notes
    assert "120 classes with fewer than 3 rows" in notes


def test_regression(write):
    rows = [(letters(20, k), f"{k},5", k * k) for k in range(6)]
    found = read_labelled(write(csv(rows, "sequence;a;b", ";"), "a.csv"), "regression", LabelColumns(labels=("a", "b")))
    assert found.truth.tolist() == [[k + 0.5, k * k] for k in range(6)]
    assert found.classes == ["a", "b"]
    assert found.truth.dtype == np.float64
    one = read_labelled(
        write(csv([(s, k) for k, (s, _, _) in enumerate(ROWS)], "sequence,expression"), "b.csv"), "regression"
    )
    assert one.truth.tolist() == [[k] for k in range(12)]
    with pytest.raises(InputError, match="line 3, column label: 'high' is not a number"):
        read_labelled(write("sequence,label\nACGT,1\nACGG,high\n", "c.csv"), "regression")
    with pytest.raises(InputError, match=r"line 3, column label: 1e\+300 is above 1e\+100 in magnitude"):
        read_labelled(write("sequence,label\nACGT,1\nACGG,1e300\n", "e.csv"), "regression")
    with pytest.raises(InputError, match="the model was trained on x, y"):
        read_labelled(write("sequence,label\nACGT,1\nACGG,2\n", "d.csv"), "regression", classes=["x", "y"])


def test_several_labels(write):
    rows = [("ACGT", "x;y"), ("ACGG", "y"), ("ACGC", "none"), ("ACGA", "z | x")]
    found = read_labelled(write(csv(rows, "sequence,label"), "a.csv"), "multilabel")
    assert found.classes == ["x", "y", "z"]
    assert found.truth.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]]
    columns = write(csv([("ACGT", 1, 0), ("ACGG", 0, 0)], "sequence,x,y"), "b.csv")
    assert read_labelled(columns, "multilabel", LabelColumns(labels=("x", "y"))).truth.tolist() == [[1, 0], [0, 0]]
    with pytest.raises(InputError, match="line 3, column y: 2 is neither 0 nor 1"):
        read_labelled(
            write(csv([("ACGT", 1, 0), ("ACGG", 0, 2)], "sequence,x,y"), "c.csv"),
            "multilabel",
            LabelColumns(labels=("x", "y")),
        )
    with pytest.raises(InputError, match="no row has a label"):
        read_labelled(write(csv([("ACGT", "none"), ("ACGG", ";")], "sequence,label"), "d.csv"), "multilabel")


@pytest.mark.parametrize(
    "cell",
    [
        "x,y",
        "x, y",
        "['x', 'y']",
        "[x|y]",
        '["x", "y", null]',
        "['x' 'y']",
        "{'x': 1, 'y': 1, 'z': 0}",
        "{x: true, y: true}",
    ],
)
def test_several_labels_as_lists(write, cell):
    quoted = cell.replace('"', '""')
    found = read_labelled(write(f'sequence,label\nACGT,"{quoted}"\nACGG,y\nACGC,z\n', "a.csv"), "multilabel")
    assert (found.classes, found.truth.tolist()) == (["x", "y", "z"], [[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    assert ("labels separated by commas" in found.notes) == ("," in cell)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("{'x': None, 'y': 1}", "a value of the dict is missing: leave its name out if the label is absent"),
        ("{'x': 0, 'y': 'NA'}", "a value of the dict is missing"),
        ("{'x': nan, 'y': ''}", "the label is missing"),
        ("[None]", "the label is missing"),
    ],
)
def test_missing_values_of_dicts_are_not_0(write, cell, words):
    """They were read as absent labels in silence, as a list of nothing but missing labels was."""
    path = write(
        f"sequence,label\nACGT,\"{{'x': 1, 'y': 0}}\"\nACGG,\"{cell}\"\nACGC,\"{{'x': 0, 'y': 1}}\"\n", "a.csv"
    )
    with pytest.raises(InputError, match=f"line 3, column label: {words}"):
        read_labelled(path, "multilabel")
    found = read_labelled(path, "multilabel", invalid="drop")
    assert found.truth.tolist() == [[1, 0], [0, 1]]
    if "value" in words:
        with pytest.raises(InputError, match=r"is a list of labels; .*--data.target labels"):
            read_labelled(path)


@pytest.mark.parametrize("target", ["classification", "multilabel"])
@pytest.mark.parametrize(
    "cells", [("1,0", "0,1", "1,1"), ("[1, 0]", "[0, 1]", "[0, 0]"), ("[1 0]", "[0 1]", "[1. 0.]")]
)
def test_vectors_without_names_are_refused(write, target, cells):
    """They were a class per combination, or the classes 0 and 1."""
    path = write(csv([(letters(20, k), f'"{cell}"') for k, cell in enumerate(cells)], "sequence,label"), "a.csv")
    what = "is a list of labels" if target == "classification" and "[" in cells[0] else "is a vector of 2 numbers"
    with pytest.raises(InputError, match=rf"line 2, column label: '.*' {what}"):
        read_labelled(path, target)


@pytest.mark.parametrize("cell", ["['x', 'y']", '["x"]', "{'x': 1}", "('x', 'y')", "['x' 'y']"])
def test_lists_are_not_classes(write, cell):
    """Every combination was a class."""
    quoted = cell.replace('"', '""')
    path = write(f'sequence,label\nACGT,x\nACGG,"{quoted}"\nACGC,y\n', "a.csv")
    with pytest.raises(InputError, match=r"line 3, column label: .* is a list of labels; .*--data\.target labels"):
        read_labelled(path)
    with pytest.raises(InputError, match=r"line 3, column label: .* is nested"):
        read_labelled(write("sequence,label\nACGT,x\nACGG,\"[['x'], 'y']\"\n", "b.csv"), "multilabel")


def test_classes_in_brackets_that_are_no_lists_remain(write):
    found = read_labelled(write("sequence,label\nACGT,(A)\nACGG,[weak]\nACGC,(B and C)\n", "a.csv"))
    assert found.classes == ["(A)", "(B and C)", "[weak]"]


def test_classes_of_a_model_may_contain_commas(write):
    path = write('sequence,label\nACGT,"x, y"\nACGG,z\n', "a.csv")
    assert read_labelled(path, "multilabel", classes=["x, y", "z"]).truth.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", "a;b", "b"], "class a;b combines other classes: .*--data.target labels"),
        (["a", "a;b"], "class a;b combines other classes: .*--data.target labels"),
        (["a", "b", '"b,a"'], 'class "b,a" combines other classes: .*--data.target labels'),
        (["1", "1.0", "0"], "classes that are the same number: 1, 1.0"),
        (
            ["promoter"] * 5 + ["other"] * 5 + ["promotor"],
            r"1 class with .* \(first: promotor; did you mean promoter\?\)",
        ),
    ],
)
def test_classes_that_are_probably_a_mistake(write, labels, words):
    rows = [(letters(20, k), labels[k % len(labels)]) for k in range(11)]
    assert re.search(words, " ".join(read_labelled(write(csv(rows, "sequence,label"), "a.csv")).notes))


def test_a_column_called_split_of_another_meaning_has_a_way_out(write):
    rows = [(letters(20, k), "ab"[k % 2], "adult") for k in range(12)]
    path = write(csv(rows, "sequence,label,split"), "a.csv")
    with pytest.raises(InputError, match=r"split 'adult': .* split_column names another column, or none for a random"):
        read_labelled(path)
    assert read_labelled(path, columns=LabelColumns(split="none")).splits is None


@pytest.mark.parametrize("name", ["set", "partition"])
def test_a_column_that_may_be_the_split_is_named(write, name):
    rows = [(letters(20, k), "ab"[k % 2], "xy"[k % 3 == 0]) for k in range(12)]
    found = read_labelled(write(csv(rows, f"sequence,label,{name}"), "a.csv"))
    split_labelled(found, 0.1, 0.1, 0)
    assert any(note.startswith(f"column {name} ") and "is not used" in note for note in found.notes)


def test_flags_of_a_split_are_the_split_or_reported(write):
    """The column was ignored without a remark."""
    path = write(
        csv([(letters(20, k), "ab"[k % 2], int(k % 3 > 0)) for k in range(12)], "sequence,label,is_train"), "a.csv"
    )
    assert read_labelled(path).unread == "is_train"
    found = read_labelled(path, columns=LabelColumns(split="is_train"))
    assert found.splits == ["test", "train", "train"] * 4
    with pytest.raises(InputError, match="line 2, column is_train: split '2': expected train, valid or test"):
        read_labelled(write("sequence,label,is_train\nACGT,a,2\n", "b.csv"), columns=LabelColumns(split="is_train"))


def test_without_labels(write):
    found = read_labelled(write("id,sequence\nr1,ACGT\nr2,NNNN\n", "a.csv"), None)
    assert (found.truth, found.ids, found.classes) == (None, ["r1", "r2"], [])


def test_cells_truncated_by_excel(tmp_path):
    path = tmp_path / "a.xlsx"
    pd.DataFrame({"sequence": ["ACGT", "A" * 32767], "label": ["a", "b"]}).to_excel(path, index=False)
    with pytest.raises(
        InputError, match="row 3, column sequence: a sequence of 32767 letters, the limit of Excel cells"
    ):
        read_labelled(path)


def test_intervals_with_labels(write):
    genome = Genome(write(fasta([("chr1", letters(100, 1)), ("chr2", letters(80, 2))])))
    text = (
        "chrom\tstart\tend\tsplit\tlabel\tstrand\nchr1\t0\t20\ttrain\ton\t+\n"
        "2\t5\t25\ttest\toff\t-\nchr1\t50\t70\ttrain\ton\t-\n"
    )
    path = write(text, "a.bed")
    found = labelled_intervals(read_bed(path, genome), genome, path)
    assert found.classes == ["off", "on"]
    assert found.truth.tolist() == [1, 0, 1]
    assert found.splits == ["train", "test", "train"]
    assert found.ids == ["chr1:0-20", "2:5-25", "chr1:50-70"]
    assert found.sequences[1] == genome.fetch("chr2", 5, 25, "-")
    plain = write("chr1\t0\t20\tx\n", "b.bed")
    with pytest.raises(InputError, match=r"b\.bed: line 1: no label"):
        labelled_intervals(read_bed(plain, genome), genome, plain)
    with pytest.raises(InputError, match="has only one class"):
        labelled_intervals(read_bed(path, genome)[::2], genome, path)


@pytest.mark.parametrize(
    ("target", "value", "message"),
    [
        ("value", lambda k: 2.5 if k < 8 else k, r"every training record has the same label \(2\.5\): nothing"),
        ("class", lambda k: "a" if k < 8 else "b", r"every training record is of class a: nothing to learn"),
    ],
)
def test_training_targets_that_do_not_differ_are_refused(write, target, value, message):
    split = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    path = write(csv([(letters(20, k), value(k), split[k]) for k in range(12)]), "a.csv")
    data = SequenceData(train=path, target=target)
    with pytest.raises(InputError, match=message):
        data.setup("fit")


def test_a_label_of_every_training_record_is_reported(write, capsys):
    split = ["train"] * 8 + ["val"] * 2 + ["test"] * 2
    rows = [(letters(20, k), "always;even" if k % 2 else "always", split[k]) for k in range(12)]
    SequenceData(train=write(csv(rows), "a.csv"), target="labels").setup("fit")
    assert "every training record has the label always" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["classification", "multilabel"])
def test_cells_of_missing_labels_alone_are_missing(write, target):
    """They were the class ``n/a; n/a``, and the label ``n/a``."""
    rows = [(letters(20, k), "n/a; n/a" if k == 4 else "ab"[k % 2]) for k in range(12)]
    path = write(csv(rows, "sequence,label"), "a.csv")
    with pytest.raises(InputError, match=r"line 6, column label: the label is missing"):
        read_labelled(path, target)
    assert read_labelled(path, target, invalid="drop").classes == ["a", "b"]
