"""The case files beside the public data: every one of them gives what its README says. Needs SEQSSM_DATA.

They are rebuilt in the tests of each domain, too; this module requires that no file is left out.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from seqssm_ecg.data import EcgData
from seqssm_ecg.files import open_recording, read_recording
from seqssm_ecg.quality import assess
from seqssm_ecg.recording import ArraySpec
from seqssm_forecasting import files
from seqssm_forecasting.data import ForecastingData
from seqssm_forecasting.reading import Reading
from seqssm_forecasting.tidy import Policies, Tidy, tidy
from seqssm_pathology import manifest as m
from seqssm_pathology import splits
from seqssm_pathology.answers import Columns
from seqssm_pathology.data import BagData
from seqssm_pathology.files import read_bag
from seqssm_pathology.grids import side_of

from seqssm.errors import InputError

FOLDERS = [Path(one).parent / "cases" for one in os.environ.get("SEQSSM_DATA", "").split(os.pathsep) if one]
CASES = next((folder for folder in FOLDERS if folder.is_dir()), Path("no cases"))
FORECASTING, ECG, PATHOLOGY = (CASES / name for name in ("forecasting", "ecg", "pathology"))

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="SEQSSM_DATA has no folder of cases beside it")


# -- forecasting -------------------------------------------------------------------------------------------------------

FILL = {"gaps": "fill", "missing": "mask"}
READ = {  # (options, policies, rows, step, a value: row, column, number)
    "de_thousands_auto.csv": ({}, {}, 700, "D", (-1, 0, 1333)),
    "german_thousands.csv": ({}, {}, 240, "h", (-1, 0, 1139)),
    "thousands.csv": ({}, {}, 240, "h", (0, 0, 1000)),
    "half_year.csv": ({}, {}, 240, "6MS", (0, 0, 49.685)),
    "quarter_start_gap.csv": ({}, FILL, 240, "QS-JAN", (0, 0, 50.695)),
    "month_gap.csv": ({}, FILL, 240, "MS", (0, 0, 49.952)),
    "longname.csv": ({}, {}, 400, "h", (0, 0, 0)),
    "badmath.csv": ({}, {}, 240, "h", (0, 0, 51.461)),
    "cut_inside_fold.csv": ({"timezone": "Europe/Berlin"}, {}, None, "h", (0, 1, 1)),
    "fold_one_missing.csv": ({"timezone": "Europe/Berlin"}, FILL, None, "h", (0, 1, 1)),
    "sao_paulo_daily.csv": ({"timezone": "America/Sao_Paulo"}, {}, 200, "D", (-1, 0, 199)),
    "gappy_offset.csv": (
        {"timezone": "Europe/Berlin", "future": ("promo",)}, {**FILL, "future_missing": "forward"}, None, "h", (0, 1, 1)
    ),
    "trading_hours.csv": ({"calendar": "observed"}, {}, 560, None, (-1, 0, 42.55)),
    "int_index.csv": ({}, {}, 240, None, (0, 0, 50.18)),
    "epoch_s.csv": ({}, {}, 240, "h", (0, 0, 48.869)),
    "q_dash_year.csv": ({}, {}, 240, "QS-JAN", (0, 0, 50.126)),
    "iso_week.csv": ({}, {}, 240, "7D", (0, 0, 49.256)),
    "mid_month.csv": ({}, {}, 240, "MS@15", (0, 0, 49.075)),
    "units_row.csv": ({}, {}, 240, "h", (0, 0, 51.461)),
    "comment_top.csv": ({}, {}, 240, "h", (0, 0, 51.461)),
    "total_row.csv": ({}, {}, 240, "h", (-1, 0, 40.996)),
    "blank_trailing_commas.csv": ({}, {}, 240, "h", (-1, 0, 40.996)),
    "excel_na.csv": ({}, {"missing": "mask"}, 240, "h", (0, 0, 51.461)),
    "pandas_index.csv": ({}, {}, 240, "h", (0, 0, 51.461)),
}  # fmt: skip
TRAINED = ("no_val_B.csv", "ragged_discontinued.csv", "ragged_new.csv", "tiny30.csv")


def regular(name: str, reading: dict | None = None, policies: dict | None = None) -> Tidy:
    options = Reading(**(reading or {}))
    return tidy(
        files.read_series(FORECASTING / name, options),
        Policies(**(policies or {})),
        None,
        options.calendar == "observed",
    )


def test_no_forecasting_file_is_left_out():
    assert {path.name for path in FORECASTING.iterdir()} == {*READ, *TRAINED}


@pytest.mark.parametrize("name", READ)
def test_forecasting_files_are_read(name):
    reading, policies, rows, step, (row, column, value) = READ[name]
    found = regular(name, reading, policies)
    assert rows is None or len(found.series) == rows
    assert step is None or found.freq == step
    assert found.series.values[row, column] == value


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("quarter_start_gap.csv", "--data.gaps fill"),
        ("month_gap.csv", r"line \d+, .*2000|--data.gaps fill"),
        ("excel_na.csv", r"line \d+, column s\d: no value"),
        ("tiny30.csv", "30 rows are too few: with --data.lookback"),
    ],
)
def test_forecasting_files_that_need_a_policy_name_it(name, words):
    with pytest.raises(InputError, match=words):
        ForecastingData(file=str(FORECASTING / name)).setup() if name == "tiny30.csv" else regular(name)


def test_the_season_of_half_years_and_series_that_start_late_or_end_early(capsys):
    data = ForecastingData(file=str(FORECASTING / "half_year.csv"), lookback=8, horizon=2)
    data.setup()
    assert data.summary()["season"] == 2
    for name, left in (("ragged_discontinued.csv", []), ("ragged_new.csv", ["E_new"]), ("no_val_B.csv", [])):
        data = ForecastingData(file=str(FORECASTING / name), lookback=14, horizon=7, missing="mask")
        data.setup("fit")
        assert list(data.summary()["left_out"]) == left, name
        assert len(data.train_set)
    data = ForecastingData(file=str(FORECASTING / "tiny30.csv"), lookback=6, horizon=2)
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 1


# -- ECG ---------------------------------------------------------------------------------------------------------------

MANIFESTS = {  # a part of the error, or of what is reported
    "m_split1.csv": (r"line \d+.*split", None),
    "m_fold1.csv": (r"line \d+.*fold", None),
    "m_split.csv": (r"patient p\d.*line", None),
    "m_foldp.csv": (r"patient p\d.*line", None),
    "m_labels.csv": (None, r"426783006 \d+"),
    "m_typo.csv": (None, r"fsat 1 \(did you mean fast\?\)"),
    "m_pairs.csv": (None, "16 train, 2 validation, 2 test records"),
    "m_semi.csv": (None, "48 train, 6 validation, 6 test records"),
}
RECORDS = ("resp0", "gain0", "nofs", "mf", "r16m", "mat32", "bom_comment", "n_D1")


def test_no_ecg_file_is_left_out():
    assert {path.name for path in ECG.iterdir() if path.is_file()} == set(MANIFESTS)
    assert {path.stem for path in (ECG / "records").iterdir()} == set(RECORDS)
    assert {path.name for path in (ECG / "arrays").iterdir()} == {"i16.npy", "noise.npy"}


@pytest.mark.parametrize("name", MANIFESTS)
def test_ecg_manifests(name, capsys, one_thread):
    refused, reported = MANIFESTS[name]
    data = EcgData(manifest=str(ECG / name), window_s=4)
    if refused:
        with pytest.raises(InputError, match=refused):
            data.setup("fit")
        return
    data.setup("fit")
    printed = "".join(capsys.readouterr())
    assert re.search(reported, printed), printed


@pytest.mark.parametrize("name", RECORDS)
def test_ecg_records(name):
    path = ECG / "records" / f"{name}.hea"
    if name in ("gain0", "nofs"):
        with pytest.raises(InputError, match=r"wfdb.defaults"):
            open_recording(path)
        assert open_recording(path, wfdb_defaults=True).rate_hz == (250 if name == "nofs" else 500)
        return
    found = read_recording(path)
    assert len(found.leads) == (2 if name == "r16m" else 12)
    assert found.samples == 5000
    assert all(np.ptp(row) > 0.1 for row in found.values.values())
    whole = np.stack(list(found.values.values()))
    np.testing.assert_array_equal(np.concatenate(list(open_recording(path).blocks(600)), axis=1), whole)


@pytest.mark.parametrize(("name", "words"), [("i16.npy", "microvolts read as mV"), ("noise.npy", "noise")])
def test_ecg_arrays_that_are_implausible(name, words):
    leads = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
    found = open_recording(ECG / "arrays" / name, array=ArraySpec(500.0, leads))
    assert words in str(assess(found, leads).implausible)


# -- pathology ---------------------------------------------------------------------------------------------------------


def test_no_pathology_file_is_left_out():
    answers = {"multilabel.csv", "regress.csv", "slidelabel.csv", "x.xlsx", *(f"surv_{name}.csv" for name in SURVIVAL)}
    assert {path.name for path in (PATHOLOGY / "man").iterdir()} == answers
    assert {path.name for path in PATHOLOGY.iterdir()} == {
        "clamheat", "clamheat2", "dmg", "ext", "h5_files", "m.csv", "man", "spl_valid"
    }  # fmt: skip
    assert {path.name for path in (PATHOLOGY / "ext").iterdir()} == {"h5_files", "m.csv", "m_z.csv", "surv.csv"}


SURVIVAL = {
    "cbio": Columns(time="OS_MONTHS", event="OS_STATUS"),
    "vital": Columns(event="vital_status"),
    "TRUEFALSE": Columns(event="event"),
    "comma": Columns(),
}


@pytest.mark.parametrize("name", SURVIVAL)
def test_survival_answers(name):
    found = m.read_manifest(PATHOLOGY / "man" / f"surv_{name}.csv", "survival", SURVIVAL[name])
    cases = [found.cases[case] for case in ("P000", "P001")]
    assert [case.time for case in cases] == pytest.approx([13.7, 20.49])
    assert [case.censored for case in cases] == [1, 0]
    assert len(found.cases) == 60


def test_other_answers(capsys):
    man = PATHOLOGY / "man"
    found = m.read_manifest(man / "slidelabel.csv", "classification")
    assert found.level == "slide"
    assert "the slides of a case stay in one split" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"--data\.target regression"):
        m.read_manifest(man / "regress.csv", "classification")
    m.read_manifest(man / "multilabel.csv", "classification")
    assert "--data.target labels --data.label_columns" in capsys.readouterr().err
    assert len(m.read_manifest(man / "regress.csv", "regression").cases) == 60
    with pytest.raises(
        InputError, match=r"is not a readable Excel workbook .*; save the table again as .xlsx or as CSV"
    ):
        m.read_manifest(man / "x.xlsx", "classification")


def test_a_column_valid_is_the_validation_split():
    known = m.read_manifest(PATHOLOGY / "m.csv", "classification")
    found = splits.read_split(PATHOLOGY / "spl_valid" / "splits_0.csv", known)
    assert [len(found[split]) for split in splits.SPLITS] == [40, 10, 10]


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("clamheat/level1_attrs.h5", 1024),
        ("clamheat/two_pieces.h5", 256),
        ("clamheat/one_piece.h5", 256),
        ("clamheat2/side_by_side.h5", 256),
    ],
)
def test_patch_sides(name, side):
    bag = read_bag(PATHOLOGY / name)
    assert side_of(bag.coords, bag.patch) == (side, True)


def test_a_damaged_bag_is_found_at_setup(capsys):
    data = BagData(manifest=str(PATHOLOGY / "dmg" / "m.csv"), features=str(PATHOLOGY / "dmg"))
    with pytest.raises(InputError, match=r"\.h5: .*corrupt"):
        data.setup("fit")


@pytest.mark.parametrize("name", ["m.csv", "m_z.csv"])
def test_external_cohorts(name, capsys):
    trained = BagData(manifest=str(PATHOLOGY / "m.csv"), features=str(PATHOLOGY))
    trained.setup("fit")
    data = BagData(manifest=str(PATHOLOGY / "ext" / name), features=str(PATHOLOGY / "ext"))
    data.use_summary(trained.summary(), external=True)
    if name == "m_z.csv":
        with pytest.raises(InputError, match="classes unknown to the model: z"):
            data.setup("test")
        return
    data.setup("test")
    assert len(data.test_set) == 30
