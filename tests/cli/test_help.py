"""Help pages, dispatch, and errors of misspelt commands."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys

import pytest

from seqssm.cli.main import main
from seqssm.domain import domains


def test_help_pages_import_nothing_heavy(toy):
    """Keeps `seqssm --help` fast."""
    code = (
        "import sys\n"
        "from seqssm.cli.main import main\n"
        "for argv in (['--help'], ['toy', '--help'], ['data', '--help'], ['data', 'list'], ['predict', '--help'],\n"
        "             ['toy', 'fit', '--help'], ['toy', 'kfold', '--help'], ['toy', 'test', '--help']):\n"
        "    assert main(argv) == 0, argv\n"
        "heavy = {'torch', 'lightning', 'pandas', 'numba', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


NAMES = ("dna", "ecg", "forecasting", "pathology")
MODELS = [
    *(["predict", "NONE", "x"], ["report", "NONE"], ["compare", "NONE", "x"], ["export", "NONE"], ["info", "NONE"]),
    *(["compress", "NONE"], ["distill", "NONE"], ["diagnose", "NONE", "x"], ["ecg", "stream", "NONE", "x"]),
    *(["dna", "generate", "NONE"], ["dna", "scan-variants", "NONE"], ["pathology", "regime", "NONE"]),
    *(
        [name, command, "NONE"]
        for name in ("dna", "ecg", "forecasting", "pathology")
        for command in ("test", "validate")
    ),
    *([name, "predict", "NONE", "x"] for name in NAMES),
    *([name, "extend", "NONE", "--support", "x", "--output", "y.ckpt"] for name in ("dna", "ecg")),
]


def test_a_missing_model_is_named_at_once(tmp_path):
    """Before PyTorch is imported, by every command that takes a model or a run."""
    code = (
        "import sys\n"
        "from seqssm.cli.main import main\n"
        f"for argv in {MODELS}:\n"
        "    assert main(argv) == 2, argv\n"
        "    assert not {'torch', 'lightning', 'pandas', 'numba'} & set(sys.modules), argv\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = "no such run or checkpoint; expected the folder of a run or a file *.ckpt"
    assert done.stderr.splitlines() == [f"seqssm: NONE: {words}"] * len(MODELS)


OUTPUTS = [
    ([name, "run", *more, "--output", output], words)
    for name, more, good in (("compress", [], ".ckpt"), ("distill", [], ".ckpt"), ("diagnose", ["in.csv"], ".csv"),
                             ("predict", ["in.csv"], ".csv"), ("export", [], ".onnx"))
    for output, words in (("new/", "new/: is a folder; --output takes a file"),
                          (f"new{good}/", f"new{good}/: is a folder; --output takes a file"),
                          ("folder", "folder"),
                          (f"there{good}", f"there{good}: already exists; choose another --output or pass --overwrite"),
                          (f"in.csv/a{good}", "in.csv: part of the path is a file, not a folder"))
]  # fmt: skip
OUTPUTS += [
    (["dna", "extend", "run", "--support", "in.csv", *argv[2:]], words)
    for argv, words in OUTPUTS
    if argv[0] == "compress"
]
OUTPUTS += [
    (["dna", "test", "run", "--output", "in.csv"], "in.csv: is a file; --output takes a folder"),
    (["dna", "fit", "--config", "tiny", "--output", "in.csv"], "in.csv: is a file; --output takes a folder"),
    (["dna", "kfold", "--config", "tiny", "--output", "in.csv"], "in.csv: is a file; --output takes a folder"),
    (["dna", "test", "run", "--output", "in.csv/a"], "in.csv/a: part of the path is a file"),
    (["dna", "fit", "--config", "tiny", "--output", "in.csv/a"], "in.csv/a: part of the path is a file"),
    (["predict", "run", "in.csv", "--output", "o.csv", "--figures", "in.csv"], "in.csv: part of the path is a file"),
]


def test_an_output_that_cannot_be_written_is_named_at_once(tmp_path):
    """Before PyTorch is imported; a name with a slash at its end became a file."""
    for name in ("run", "folder"):
        (tmp_path / name).mkdir()
    for name in ("run/best.ckpt", "in.csv", "there.ckpt", "there.csv", "there.onnx"):
        (tmp_path / name).touch()
    code = (
        "import sys\n"
        "from seqssm.cli.main import main\n"
        f"for argv, _ in {OUTPUTS}:\n"
        "    assert main(argv) == 2, argv\n"
        "    assert not {'torch', 'lightning'} & set(sys.modules), argv\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line, (argv, words) in zip(done.stderr.splitlines(), OUTPUTS, strict=True):
        assert words in line, (argv, line)
    assert {path.name for path in tmp_path.iterdir()} == {
        "run",
        "folder",
        "in.csv",
        "there.ckpt",
        "there.csv",
        "there.onnx",
    }


def test_package_page_lists_domains_and_commands(toy, capsys):
    assert main([]) == 0
    page = capsys.readouterr().out
    for word in ("toy", toy.title, "predict", "demo", "info", "data", "warmup"):
        assert word in page


def test_domain_page_lists_commands_and_presets(toy, capsys):
    assert main(["toy", "--help"]) == 0
    page = capsys.readouterr().out
    for word in ("fit", "validate", "test", "kfold", "predict", "count", "tiny", "net", "wide"):
        assert word in page


def test_help_all_shows_the_options_of_model_data_and_trainer(toy, capsys):
    assert main(["toy", "--help-all"]) == 0
    page = capsys.readouterr().out
    for flag in ("--model.d_model", "--model.learning_rate", "--data.batch_size", "--trainer.max_epochs"):
        assert flag in page
    assert "default_root_dir" not in page


def test_own_command(toy, capsys):
    assert main(["toy", "count", "a", "b", "--times", "3"]) == 0
    assert capsys.readouterr().out == "6\n"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["prediktt"], "unknown command prediktt; did you mean predict?"),
        (["count", "a"], "count is a command of a domain: seqssm toy count"),
        (["extend"], "extend is a command of a domain: seqssm "),
        (["toi"], "or toy?"),
        (["toy", "fitt"], "unknown command fitt; did you mean fit?"),
        (["toy", "conut"], "did you mean count?"),
        (["toy", "count", "a", "--time", "3"], "unknown option --time; did you mean --times?"),
        (["toy", "count", "a", "--times", "three"], "--times"),
        (["toy", "count"], "required"),
        (["data", "lst"], "did you mean list?"),
        (["info", "--versions"], "unknown option --versions"),
        (["warmpu"], "did you mean warmup?"),
        (["demo", "--ouput", "x"], "did you mean --output?"),
    ],
)
def test_a_mistyped_command_is_one_line_with_the_nearest_name(toy, capsys, argv, words):
    assert main(argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert words in printed.err


def test_an_internal_error_goes_into_a_log_file(toy, capsys, monkeypatch):
    def wrong(options):
        raise ZeroDivisionError("a bug in the package")

    monkeypatch.setattr("seqssm_toy.demo.count", wrong)
    assert main(["toy", "count", "a"]) == 1
    line = capsys.readouterr().err.strip()
    assert "internal error (ZeroDivisionError: a bug in the package)" in line
    log = line.rsplit(" ", 1)[1]
    with open(log, encoding="utf-8") as file:
        assert "Traceback" in file.read()


def test_a_domain_that_cannot_be_loaded_leaves_the_others_alone(toy, capsys, monkeypatch):
    monkeypatch.delattr("seqssm_toy.TIN")
    monkeypatch.setattr("seqssm.domain._told", set())
    assert main(["toy", "count", "a"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "1\n"
    assert "domain tin skipped" in printed.err


def test_info_names_versions_devices_and_engines(toy, capsys):
    assert main(["info"]) == 0
    page = capsys.readouterr().out
    for word in ("torch", "numba", "cpu", "engines", "compiled kernels", "cache", "toy"):
        assert word in page


@pytest.mark.long
def test_warmup_names_what_it_compiles_and_where_it_is_cached(toy, capsys):
    assert main(["warmup", "--help"]) == 0
    assert "NUMBA_CACHE_DIR" in capsys.readouterr().out
    assert main(["warmup"]) == 0
    printed = capsys.readouterr()
    for words in ("selective_scan forward", "causal_conv1d backward", "total", "cache"):
        assert words in printed.out
    assert printed.err == ""


def test_the_domains_describe_the_same_option_in_the_same_words(capsys, monkeypatch):
    """Options of `fit`, `test`, `kfold` and `predict` that several domains have; paths and defaults in one form."""
    monkeypatch.setenv("COLUMNS", "1000")  # no wrapped words
    pages = {}
    names = [name for name in domains() if name != "toy"]
    for command in ("fit", "test", "kfold", "predict"):
        for name in names:
            with contextlib.suppress(SystemExit):
                main([name, command, "--help"])
            text = capsys.readouterr().out.split("options:\n", 1)[1].split(f"of {name}:\n")[0].split("\nexample:")[0]
            found = re.split(r"^  (?=-)", text.replace(f"runs/{name}/", "runs/DOMAIN/"), flags=re.MULTILINE)
            pages[command, name] = {line.split()[0]: " ".join(line.split()) for line in found if line.strip()}
        first = pages[command, names[0]]
        for name in names[1:]:
            for flag in (set(first) & set(pages[command, name])) - {"--models"}:
                assert pages[command, name][flag] == first[flag]
    for name in names:
        assert (
            pages["fit", name]["--timeout"] == pages["predict", name]["--timeout"] == pages["test", name]["--timeout"]
        )
    for domain in domains().values():
        for option in domain.predict_options:
            assert "by default" not in option.help, option.flag
