"""The sources of the documentation: pages are in the contents, links have targets, every public name is documented."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The assembled sources."""
    target = tmp_path_factory.mktemp("docs") / "source"
    subprocess.run([sys.executable, ROOT / "docs" / "assemble.py", target], check=True)
    return target


def test_every_page_is_in_the_contents(source):
    index = (source / "index.md").read_text(encoding="utf-8")
    entries = [line for block in re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL) for line in block.splitlines()]
    names = {line for line in entries if line and not line.startswith(":")}
    pages = {page.relative_to(source).with_suffix("").as_posix() for page in source.rglob("*.md")} - {"index"}
    assert pages == {
        page for page in pages if page in names or (page.startswith("reference/") and "reference/*" in names)
    }
    assert names - {"reference/*"} <= pages


def test_links_between_pages_have_targets(source):
    count = 0
    for page in source.rglob("*.md"):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"(?<!!)\[[^\]\n]+\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not re.match(r"[a-z]+:", target):
                count += 1
                assert (page.parent / target).is_file(), f"{page.relative_to(source)}: {target}"
    assert count > 30


def test_the_reference_has_every_public_name(source):
    for page in (source / "reference").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for name in importlib.import_module(page.stem).__all__:
            assert re.search(rf"\b{name}\b", text), f"{page.stem}.{name}"


def test_tutorials_show_the_cells_of_the_notebooks(source):
    for notebook in ROOT.glob("notebooks/*.ipynb"):
        text = (source / "tutorials" / f"{notebook.stem}.md").read_text(encoding="utf-8")
        assert text.count("```python") >= 4
        assert f"`notebooks/{notebook.name}`" in text


def test_images_of_pages_are_there(source):
    found = [
        page.parent / target
        for page in source.rglob("*.md")
        if page.parent.name != "tutorials"
        for target in re.findall(r"!\[[^\]\n]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert len(found) >= 4
    assert all(path.is_file() for path in found)


def test_figures_of_an_executed_notebook_are_beside_its_page(monkeypatch, tmp_path):
    """`make docs DOCS=--execute`; the run of the notebook itself is replaced."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import assemble

    notebook = ROOT / "notebooks" / "ecg.ipynb"
    outputs = [{"data": {"image/png": "iVBORw0KGgo="}}, {"name": "stdout", "text": ["\x1b[1mAUROC\x1b[0m 0.9\n"]}]
    cells = [{"cell_type": "markdown", "source": ["# Title"]}]
    cells += [{"cell_type": "code", "source": ["1"], "outputs": outputs}]
    monkeypatch.setattr(assemble, "executed", lambda _: {"cells": cells})
    known = assemble.pages()
    text = assemble.tutorial(notebook, tmp_path / "ecg.md", execute=True)
    text = assemble.relinked(text, notebook, known[notebook], known)
    (figure,) = re.findall(r"!\[[^\]\n]+\]\(([^)]+)\)", text)
    assert (tmp_path / figure).read_bytes() == b"\x89PNG\r\n\x1a\n"
    assert "```text\nAUROC 0.9\n```" in text
