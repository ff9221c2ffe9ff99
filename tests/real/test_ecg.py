"""Real records: PTB-XL's subset, challenge records, the folder of difficult headers. Needs SEQSSM_DATA."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from seqssm_ecg.data import EcgData
from seqssm_ecg.files import find_recordings, read_recording
from seqssm_ecg.headers import read_header
from seqssm_ecg.labels import EQUIVALENT, SINUS, ptbxl_classes, ptbxl_statements, read_weights
from seqssm_ecg.leads import LEADS
from seqssm_ecg.limits import PTBXL_TASKS
from seqssm_ecg.preprocess import Preprocess
from seqssm_ecg.quality import assess
from seqssm_ecg.recording import ArraySpec
from seqssm_ecg.sources import read_manifest

from seqssm.cli.main import main
from seqssm.errors import InputError
from seqssm.files.datasets import search

pytestmark = [
    pytest.mark.skipif(search("ecg", "cinc2021") is None, reason="SEQSSM_DATA names no folder with ecg/ in it"),
    pytest.mark.usefixtures("one_thread"),
]


def folder(name: str) -> Path:
    found = search("ecg", name)
    if found is None:
        pytest.skip(f"ecg/{name} is not in SEQSSM_DATA")
    return found


def edge(name: str) -> Path:
    return find_recordings(folder("edge_cases") / name)[0]


def challenge(name: str) -> Path:
    return next(path for path in find_recordings(folder("cinc2021")) if path.stem == name)


def test_every_challenge_record_is_read_with_its_labels():
    paths = find_recordings(folder("cinc2021"))
    assert len(paths) == 50
    classes = read_weights(folder("cinc_tables") / "2021" / "weights.csv")
    positives = np.zeros(26)
    for path in paths:
        one = read_recording(path)
        assert one.rate_hz == 500
        assert one.samples == 5000
        assert len(one.values) == 12
        dx = next(line for line in path.read_text().splitlines() if line.replace(" ", "").startswith("#Dx:"))
        assert one.codes == dx.split(":")[1].strip().split(",")
        positives += classes.vector(one.codes)
    found = dict(zip(classes.names, positives.astype(int)))
    expected = {"STach": 23, "PAC|SVPB": 20, "NSR": 15, "TAb": 10, "NSIVCB": 9, "SB": 7, "TInv": 5, "PVC|VPB": 5}
    expected |= {"LQT": 2, "CRBBB|RBBB": 2, "SA": 1, "PRWP": 1, "IRBBB": 1}
    assert {name: count for name, count in found.items() if count} == expected


def test_both_tables_of_the_challenges():
    old = read_weights(folder("cinc_tables") / "2020" / "weights.csv")
    new = read_weights(folder("cinc_tables") / "2021" / "weights.csv")
    assert (old.year, len(old.names)) == (2020, 24)
    assert (new.year, len(new.names)) == (2021, 26)
    for classes in (old, new):
        assert np.array_equal(classes.weights, classes.weights.T)
        assert (np.diag(classes.weights) == 1).all()
        assert {SINUS} in [set(group) for group in classes.codes]
    for year, classes in ((2020, old), (2021, new)):
        for pair in EQUIVALENT[year]:
            assert set(pair) in [set(group) for group in classes.codes]


@pytest.mark.parametrize(("task", "count"), list(zip(PTBXL_TASKS, (5, 23, 44, 19, 12, 71))))
def test_the_tasks_of_ptbxl_have_their_sizes(task, count):
    statements = ptbxl_statements(folder("ptbxl") / "scp_statements.csv")
    assert len(ptbxl_classes(statements, task).names) == count


def test_the_ptbxl_subset_matches_its_documentation():
    data = EcgData(folder=str(folder("ptbxl")))
    data.setup("fit")
    assert [len(data.split[name]) for name in ("train", "val", "test")] == [1442, 183, 194]
    assert data.counts.tolist() == [776, 206, 411, 367, 160]
    assert data.test_set.y.sum(0).tolist() == [87, 34, 66, 56, 19]
    groups = [{data.labelled[place].group for place in part} for part in data.split.values()]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("dx_space", ["428750005", "111975006"]),
        ("dx_commas", ["426177001", "164934002"]),
        ("dx_unknown_codes", ["426177001", "999999999", "abc"]),
        ("dx_missing", None),
        ("dx_empty", []),
    ],
)
def test_edge_cases_of_labels(name, codes):
    assert read_header(edge(name)).codes == codes


def test_edge_case_unknown_codes_are_reported():
    classes = read_weights(folder("cinc_tables") / "2021" / "weights.csv")
    vector = classes.vector(read_header(edge("dx_unknown_codes")).codes)
    assert [name for name, one in zip(classes.names, vector) if one] == ["SB"]
    assert classes.other == {"999999999": 1, "abc": 1}


def test_edge_case_age_and_sex():
    header = read_header(edge("age_nan_sex_unknown"))
    assert (header.age, header.sex) == (None, None)


def same(first: Path, second: Path, factor: float = 1.0, atol: float = 1e-6) -> None:
    one, two = read_recording(first).values, read_recording(second).values
    assert set(one) == set(two)
    for lead, row in two.items():
        np.testing.assert_allclose(one[lead], row * factor, atol=atol)


def test_edge_cases_that_equal_their_originals():
    same(edge("classic_challenge_header"), challenge("JS20003"))
    assert set(read_header(edge("classic_challenge_header")).codes) == set(read_header(challenge("JS20003")).codes)
    same(edge("early_georgia_header"), challenge("E07503"), 1000 / 4880)
    same(edge("shuffled_leads"), challenge("HR06007"))
    same(edge("per_lead_gain_baseline"), challenge("HR06008"), atol=0.0021)
    same(edge("ptbxl_uppercase_leads"), folder("ptbxl") / "records100" / "00000" / "00009_lr.hea")
    process = Preprocess(500.0, normalise="none")
    first, _ = process(read_recording(edge("shuffled_leads")))
    second, _ = process(read_recording(challenge("HR06007")))
    np.testing.assert_array_equal(first, second)


def test_edge_cases_of_rates_and_leads():
    table, _ = Preprocess(500.0)(read_recording(edge("ptb_1000hz_lowercase")))
    assert table.shape == (12, 5000)
    one = read_recording(edge("ptb_15lead"))
    assert len(one.values) == 12
    assert one.codes is None
    assert one.samples / one.rate_hz == pytest.approx(38.4)
    six = read_recording(edge("six_lead"))
    assert len(six.values) == 6
    assert Preprocess(500.0, 6)(six)[1] == []
    table, notes = Preprocess(500.0, 12)(six)
    assert not table[6:].any()
    assert "V1 V2 V3 V4 V5 V6" in notes[0]


def test_edge_cases_of_signals():
    table, notes = Preprocess(100.0)(read_recording(edge("nan_flat_leads")))
    assert np.isfinite(table).all()
    printed = "; ".join(notes)
    for part in ("V3", "gaps interpolated: V5"):
        assert part in printed
    assert assess(read_recording(edge("nan_flat_leads")), LEADS).notes == ["flat: aVL V6"]
    table, notes = Preprocess(100.0)(read_recording(edge("all_flat")))
    assert np.isfinite(table).all()
    assert "all leads flat" in assess(read_recording(edge("all_flat")), LEADS).implausible


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("truncated_dat", "X0004.dat: is truncated: 71003 bytes instead of 120000"),
        ("fs_zero", "X0005.hea: line 1: sampling rate is 0"),
        ("missing_signal_file", "X0006.hea: signal file X0006.dat is missing"),
    ],
)
def test_edge_cases_that_are_refused(name, message):
    with pytest.raises(InputError) as error:
        read_recording(edge(name))
    assert message in str(error.value)


def test_recordings_equal_those_of_wfdb():
    import wfdb

    for path in [challenge("E07500"), challenge("HR06005"), edge("ptb_15lead"), edge("per_lead_gain_baseline")]:
        theirs = wfdb.rdrecord(str(path.with_suffix("")))
        ours = read_recording(path).values
        for number, name in enumerate(theirs.sig_name):
            lead = next((one for one in ours if one.casefold() == name.casefold()), None)
            if lead is not None:
                np.testing.assert_allclose(ours[lead], theirs.p_signal[:, number], atol=1e-6)


def test_fit_predict_and_score_on_the_challenge_records(tmp_path, capsys):
    before = dict(os.environ)
    argv = ["ecg", "fit", "--config", "cinc2021_small", "--data.folder", str(folder("cinc2021"))]
    argv += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--output", str(tmp_path / "run")]
    assert main([*argv, "--model.d_model", "16", "--model.threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "E07510 (= E07509)" in printed
    argv = ["predict", str(tmp_path / "run"), str(folder("cinc2021")), "--output", str(tmp_path / "p.csv")]
    assert main([*argv, "--format", "challenge", "--accelerator", "cpu"]) == 0
    assert len(pd.read_csv(tmp_path / "p.csv")) == 50
    for year in ("2020", "2021"):
        argv = ["ecg", "score", str(folder("cinc2021")), str(tmp_path / "p_challenge"), "--draws", "5"]
        assert main([*argv, "--year", year]) == 0
        printed = capsys.readouterr().out
        assert "challenge" in printed
        assert "By source" in printed
    os.environ.clear()
    os.environ.update(before)


def test_the_whole_edge_case_folder_is_one_prediction(tmp_path):
    argv = ["ecg", "fit", "--config", "cinc2021_small", "--trainer.max_epochs", "1", "--output", str(tmp_path / "run")]
    argv += ["--trainer.accelerator", "cpu", "--model.d_model", "16", "--model.threads", "1"]
    assert main(argv) == 0
    argv = ["predict", str(tmp_path / "run"), str(folder("edge_cases")), "--output", str(tmp_path / "p.csv")]
    assert main([*argv, "--accelerator", "cpu"]) == 3
    table = pd.read_csv(tmp_path / "p.csv").set_index("id")
    assert len(table) == 19
    failed = table.index[table["status"] == "failed"].tolist()
    assert failed == ["all_flat/X0008", "fs_zero/X0005", "missing_signal_file/X0006", "truncated_dat/X0004"]
    assert np.isfinite(table.loc[table["status"] == "ok", "p_NSR"]).all()


# -- inputs that failed in earlier versions ----------------------------------------------------------------------------


def case(name: str) -> Path:
    for place in os.environ.get("SEQSSM_DATA", "").split(os.pathsep):
        found = Path(place).parent / "cases" / "ecg" / name
        if place and found.exists():
            return found
    pytest.skip("there is no folder cases/ecg beside SEQSSM_DATA")


def data_of(name: str) -> EcgData:
    data = EcgData(manifest=str(case(name)), window_s=4)
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("m_split1.csv", "no split, but 59 other rows have one"),
        ("m_fold1.csv", "no fold, but 59 other rows have one"),
        ("m_split.csv", "the patient p1 is in both train (line 2) and val (line 3)"),
        ("m_foldp.csv", "the patient p1 is in"),
    ],
)
def test_cases_of_splits(name, message):
    with pytest.raises(InputError) as error:
        data_of(name)
    assert message in str(error.value)
    assert "line " in str(error.value)


def test_cases_of_labels(capsys):
    manifest = read_manifest(case("m_labels.csv"), ArraySpec())
    assert manifest.names == ["426783006", "59118001", "atrial fibrillation", "sinus rhythm"]
    assert manifest.records[0].codes == ["59118001", "426783006"]
    data_of("m_typo.csv")
    printed = capsys.readouterr().out
    assert "fsat 1 (did you mean fast?)" in printed
    assert len(data_of("m_pairs.csv").labelled) == 20
    assert len(data_of("m_semi.csv").labelled) == 60


@pytest.mark.parametrize(
    ("name", "leads", "note"),
    [
        ("resp0", 12, "unused signals: RESP"),
        ("mf", 12, "unused signals: RESP"),
        ("r16m", 2, None),
        ("mat32", 12, None),
        ("bom_comment", 12, None),
        ("n_D1", 12, None),
    ],
)
def test_cases_of_records(name, leads, note):
    found = read_recording(case("records") / f"{name}.hea")
    assert (found.rate_hz, found.samples, len(found.leads)) == (500, 5000, leads)
    assert found.notes == ([note] if note else [])


@pytest.mark.parametrize(("name", "rate_hz"), [("gain0", 500), ("nofs", 250)])
def test_cases_of_wfdbs_defaults(name, rate_hz):
    path = case("records") / f"{name}.hea"
    with pytest.raises(InputError, match="--wfdb-defaults"):
        read_recording(path)
    found = read_recording(path, wfdb_defaults=True)
    assert found.rate_hz == rate_hz
    assert "WFDB's default" in found.notes[0]


@pytest.mark.parametrize(("name", "message"), [("i16", "microvolts"), ("noise", "noise: I II")])
def test_cases_of_arrays(name, message):
    found = assess(read_recording(case("arrays") / f"{name}.npy", array=ArraySpec(500.0)), LEADS)
    assert message in found.implausible


def test_no_real_record_is_implausible():
    noted, gains = 0, {"cinc2021": 0, "ptbxl": 0}
    for path in [*find_recordings(folder("cinc2021")), *find_recordings(folder("ptbxl"))]:
        found = assess(read_recording(path), LEADS)
        assert found.implausible is None, path
        own = [note for note in found.notes if "with other gains" not in note]
        noted += bool(own)
        gains["ptbxl" if "ptbxl" in path.parts else "cinc2021"] += len(own) < len(found.notes)
    assert noted <= 8  # flat chest leads of Ningbo, single leads with hum
    assert gains["cinc2021"] == 0
    assert gains["ptbxl"] > 1500  # this copy was normalised lead by lead


@pytest.mark.long
def test_intervals_agree_with_the_diagnoses_of_cardiologists():
    """On PTB-XL, records of a diagnosis that is defined by an interval differ from the others in that interval."""
    from seqssm_ecg.measure import measure
    from sklearn.metrics import roc_auc_score

    root = folder("ptbxl")
    table = pd.read_csv(root / "ptbxl_database.csv")
    codes = [set(ast.literal_eval(text)) for text in table["scp_codes"]]
    wanted = ("1AVB", "CLBBB", "CRBBB", "STACH", "SBRAD", "AFIB")
    chosen = [k for k, own in enumerate(codes) if own & set(wanted)][::3]
    chosen += [k for k, own in enumerate(codes) if not own & set(wanted)][:60]
    rows = []
    for k in chosen:
        found = read_recording(root / f"{table['filename_lr'][k]}.hea")
        rows.append(measure(found.values, found.rate_hz).values)
    values = pd.DataFrame(rows).astype(float)
    print(f"\n{len(chosen)} records")
    for name, column, least in (
        ("1AVB", "pr_ms", 0.8),
        ("CLBBB", "qrs_ms", 0.9),
        ("CRBBB", "qrs_ms", 0.7),
        ("STACH", "heart_rate_bpm", 0.85),
        ("SBRAD", "heart_rate_bpm", 0.9),
    ):
        has = np.array([name in codes[k] for k in chosen])
        known = values[column].notna().to_numpy()
        sign = -1 if name == "SBRAD" else 1
        area = roc_auc_score(has[known], sign * values[column][known])
        middle = [values[column][known & which].median() for which in (has, ~has)]
        print(f"{name}: {column} {middle[0]:.0f}, without {middle[1]:.0f}, AUROC {area:.3f}, {has.sum()} records")
        assert area > least, name
    fibrillation = np.array(["AFIB" in codes[k] for k in chosen])
    absent = values["pr_ms"].isna().to_numpy()
    print(f"no P wave: {absent[fibrillation].mean():.2f} of AFIB, {absent[~fibrillation].mean():.2f} of the others")
    assert absent[fibrillation].mean() > 0.75
    assert absent[~fibrillation].mean() < 0.1
