"""The commands and Python of the domain's README: parsed by the real parsers, and run if simulated data allow it."""

from __future__ import annotations

import gzip
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import seqssm_dna
from seqssm_dna import simulate

from seqssm.cli.main import main
from seqssm.domain import domains
from seqssm.training import kfold, presets, run

from .conftest import fasta, letters

TEXT = Path(seqssm_dna.__file__).with_name("README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^seqssm .*$", TEXT, re.MULTILINE)
pytestmark = pytest.mark.usefixtures("one_thread")


def words(command: str) -> list[str]:
    return shlex.split(command, comments=True)[1:]


def of_verb(*verbs: str) -> list[str]:
    return [one for one in COMMANDS if set(verbs) & set(words(one)[:2])]


@pytest.fixture
def folder(runs, tmp_path, monkeypatch):
    """The working folder of a reader of the README: files and runs under the names that it uses."""
    made = runs / "made"
    names = {
        "genome.fa": "genome.fa",
        "splits.bed": "splits.bed",
        "repeats.bed": "regions.bed",
        "calls.vcf": "calls.vcf",
    }
    for source, name in {**names, "promoters.csv": "promoters.csv", "training.csv": "training.csv"}.items():
        shutil.copy(made / source, tmp_path / name)
    with gzip.open(tmp_path / "my.fa.gz", "wb") as file:
        file.write((made / "genome.fa").read_bytes())
    shutil.copy(made / "promoters.csv", tmp_path / "my.csv")
    found = simulate.promoters(20, 3)
    for name, label in (("promoters.fa", "promoter"), ("others.fa", "other")):
        own = found[found["label"] == label]["sequence"]
        (tmp_path / name).write_text(fasta([(f"{label}{k}", one) for k, one in enumerate(own)]))
    (tmp_path / "sequences.fa").write_text(fasta([(f"s{k}", letters(80, k)) for k in range(4)]))
    rows = [f"chr1\t{k * 100}\t{k * 100 + 60}\t{'ab'[k % 2]}\n" for k in range(40)]
    (tmp_path / "labelled.bed").write_text("chrom\tstart\tend\tlabel\n" + "".join(rows))
    for name, source in (("tiny", "tiny"), ("pretrain", "tiny"), ("yeast_generation", "yeast_generation"),
                         ("finetune", "finetune"), ("ecoli_promoters", "finetune")):  # fmt: skip
        shutil.copytree(runs / source, tmp_path / "runs" / "dna" / name)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_commands_are_found():
    assert {words(one)[1] if words(one)[0] == "dna" else words(one)[0] for one in COMMANDS} == {
        "fit", "test", "kfold", "predict", "scan-variants", "generate", "baseline",
    }  # fmt: skip


@pytest.mark.parametrize("command", of_verb("fit"))
def test_fits_are_built(folder, monkeypatch, command):
    built = []
    keeper = SimpleNamespace(best=None, best_epoch=0, monitor="")
    monkeypatch.setattr(run, "_run_fit", lambda cli, *_: built.append(cli.model.build_network) or keeper)
    for name in ("pretrain", "finetune", "yeast_generation"):
        shutil.rmtree(folder / "runs" / "dna" / name)
    assert main(words(command)) == 0
    assert len(built) == 1


@pytest.mark.parametrize("command", of_verb("kfold"))
def test_studies_are_planned(monkeypatch, command):
    studies = []
    monkeypatch.setattr(kfold, "kfold", lambda domain, study: studies.append((domain, study)))
    assert main(words(command)) == 0
    ((domain, study),) = studies
    known = presets.presets(domains()["dna"])
    contents = [presets.read_preset(known[name], domain) for name in study.configs]
    assert len(kfold.plan(domain, study, contents)) == 5 * 3 * len(study.models or ["preset"])


def test_other_commands_run(folder, capsys):
    for command in of_verb("test", "predict", "scan-variants", "generate", "baseline"):
        code = main(words(command))
        assert code == 0, (command, capsys.readouterr().err)
    for name in ("scores.csv", "genome.bedgraph", "regions.parquet", "scored.vcf.gz", "scan.csv", "designs.fa"):
        assert (folder / name).stat().st_size
    assert list((folder / "figures").glob("*.png"))


def test_the_python_runs(folder, capsys):
    (example,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert "promoter" in capsys.readouterr().out
