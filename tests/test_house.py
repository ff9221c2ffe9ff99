"""Rules of the repository as a whole: imports between packages, light imports, packaging, documents."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from seqssm.cli import help as pages
from seqssm.domain import domains
from seqssm.training.presets import presets

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOMAINS = sorted(folder.name for folder in (ROOT / "domains").iterdir() if folder.name.startswith("seqssm_"))
FLOORS = {"kernels/seqssm_kernels": 1, "seqssm": 2} | {f"domains/{name}": 3 for name in DOMAINS}


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def modules_after(code: str) -> set[str]:
    """Top-level packages loaded in a fresh process after `code`."""
    report = f"{code}\nimport sys\nprint('\\nLOADED', *{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


@pytest.mark.parametrize("package", FLOORS)
def test_packages_import_lower_floors_only(package):
    own = package.split("/")[-1]
    forbidden = {name.split("/")[-1] for name, floor in FLOORS.items() if floor >= FLOORS[package]} - {own}
    if FLOORS[package] == 1:
        forbidden |= {"lightning", "pytorch_lightning", "jsonargparse", "pandas"}
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(file.relative_to(ROOT)): found for file in files if (found := imported(file) & forbidden)}
    assert not wrong


def test_relative_imports_stay_within_their_package():
    for package in FLOORS:
        for file in (ROOT / package).rglob("*.py"):
            depth = len(file.relative_to(ROOT / package).parts)
            levels = [n.level for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom)]
            assert max(levels, default=0) <= depth, file


def test_code_folders_are_not_packages():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "domains" / "__init__.py").exists()


def test_kernels_have_light_imports():
    loaded = modules_after("import seqssm_kernels")
    assert "torch" in loaded
    assert not loaded & {"lightning", "pandas", "matplotlib", "jsonargparse", "torchmetrics", "seqssm"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_file_readers_have_light_imports(domain):
    loaded = modules_after(f"import {domain}.files")
    assert not loaded & {"lightning", "torchmetrics", "jsonargparse", "numba"}


def test_help_needs_no_torch():
    loaded = modules_after("from seqssm.cli.main import main\nassert main(['--help']) == 0")
    assert not loaded & {"torch", "lightning", "numpy", "pandas", "numba"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_help_of_a_domain_needs_no_torch(domain):
    name = domain.removeprefix("seqssm_")
    loaded = modules_after(f"from seqssm.cli.main import main\nassert main([{name!r}, '--help']) == 0")
    assert not loaded & {"torch", "lightning", "numpy", "pandas", "numba"}


def test_every_package_is_built_and_every_domain_is_found():
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(packages) == sorted(FLOORS)
    points = PROJECT["project"]["entry-points"]["seqssm.domains"]
    assert points == {name.removeprefix("seqssm_"): f"{name}:DOMAIN" for name in DOMAINS}
    extras = PROJECT["project"]["optional-dependencies"]
    for name in points:
        assert name in extras
        assert re.search(rf"\b{name}\b", extras["all"][0])


def test_every_lower_bound_has_its_reason():
    text = (ROOT / "pyproject.toml").read_text()
    lines = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL).group(1).splitlines()
    assert lines
    assert [line for line in lines if not re.search(r'",\s+# \S', line)] == []


def test_documents_name_only_targets_that_exist():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md", "docs/architecture.md"):
        named = set(re.findall(r"(?:`|^ *)make ([a-z-]+)", (ROOT / page).read_text(), re.MULTILINE))
        assert named <= targets, page
    assert {"setup", "demo", "test", "lint", "bench", "gpu-check", "real"} <= targets


def test_documents_link_to_files_that_exist():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("domains/*/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_page_repeats_itself():
    pages = [
        page for pattern in ("*.md", "[dek]*/*.md", "docs/*/*.md", "domains/*/*.md") for page in ROOT.glob(pattern)
    ]
    for page in (one for one in pages if one.name != "CHANGELOG.md"):
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        parts = re.findall(r"^#+ .*", text, re.MULTILINE) + [part for part in text.split("\n\n") if len(part) > 120]
        assert [part for part in parts if parts.count(part) > 1] == [], page


def blocks(language: str) -> list[str]:
    """The code blocks of the README in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_readmes_python_runs():
    examples = [block for block in blocks("python") if ".ckpt" not in block]
    assert len(examples) >= 2
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


def test_the_readmes_commands_name_existing_options():
    commands = [line.split("#")[0].split() for block in blocks("") for line in block.splitlines()]
    commands = [words for words in commands if words and words[0] == "seqssm"]
    assert len(commands) >= 6
    known = domains()
    for words in commands:
        if words[1] in known:
            domain = known[words[1]]
            assert words[2] in {*pages.DOMAIN_COMMANDS, *(command.name for command in domain.commands)}
            if "--config" in words:
                assert words[words.index("--config") + 1] in presets(domain)
            if "--models" in words:
                names = {*domain.models, *(baseline.name for baseline in domain.baselines)}
                assert set(words[words.index("--models") + 1].split(",")) <= names
        else:
            assert words[1] in pages.COMMANDS
        if words[1:3] == ["data", "get"]:
            assert words[3] in {data.name for domain in known.values() for data in domain.data_sets}
