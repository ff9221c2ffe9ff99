"""Assemble the sources of the documentation: pages of `docs/`, READMEs, notebooks, and the reference.

    python docs/assemble.py docs/_build/source [--execute]

READMEs stay where readers of the repository expect them; here they become pages, with links between them rewritten.
Notebooks become tutorials; with ``--execute`` they are run first, and their outputs and figures are shown.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
SCIENCES = ("forecasting", "ecg", "dna", "pathology")
PAGES = {
    "README.md": "readme.md",
    "kernels/README.md": "kernels.md",
    "examples/README.md": "how-to/add-a-domain.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    **{f"domains/seqssm_{name}/README.md": f"domains/{name}.md" for name in SCIENCES},
    **{f"notebooks/{name}.ipynb": f"tutorials/{name}.md" for name in SCIENCES},
}
"""File of the repository -> page; the pages of `docs/` keep their names."""
REFERENCE = {
    "seqssm": "Training, prediction and layers",
    "seqssm.orders": "Scan orders",
    "seqssm_kernels": "Kernels",
    **{f"seqssm_{name}": f"The domain {name}" for name in SCIENCES},
}
"""Package -> title of its page; a page documents the names in ``__all__``."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Assemble the sources of the documentation.")
    parser.add_argument("target", type=Path, help="folder, which is replaced")
    parser.add_argument("--execute", action="store_true", help="run the notebooks and show their outputs")
    options = parser.parse_args()
    target: Path = options.target
    shutil.rmtree(target, ignore_errors=True)
    known = pages()
    for source, page in known.items():
        path = target / page
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".ipynb":
            text = tutorial(source, path, options.execute)
        else:
            text = source.read_text(encoding="utf-8")
        path.write_text(relinked(text, source, page, known), encoding="utf-8")
    shutil.copy(ROOT / "docs" / "conf.py", target)
    for folder in (IMAGES, ROOT / "docs" / "static"):
        shutil.copytree(folder, target / folder.name)
    (target / "reference").mkdir(exist_ok=True)
    for package, title in REFERENCE.items():
        (target / "reference" / f"{package}.md").write_text(reference(package, title), encoding="utf-8")


def pages() -> dict[Path, str]:
    """Every source file and its page."""
    found = {ROOT / file: page for file, page in PAGES.items()}
    docs = ROOT / "docs"
    for file in sorted(docs.rglob("*.md")):
        if "_build" not in file.parts:
            found[file] = file.relative_to(docs).as_posix()
    return found


def relinked(text: str, source: Path, page: str, known: dict[Path, str]) -> str:
    """Turn links between files into links between pages; links to other files become plain text."""

    def link(match: re.Match[str]) -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = (source.parent / target).resolve()
        path = path / "README.md" if path.is_dir() else path
        other = known.get(path)
        if other is None and path.is_relative_to(ROOT / "docs"):  # a page that is made from another file
            name = path.relative_to(ROOT / "docs").as_posix()
            other = name if name in known.values() else None
        if other is not None:
            return f"[{words}]({os.path.relpath(other, os.path.dirname(page) or '.')}{anchor})"
        return f"{words} (`{path.relative_to(ROOT)}`)"

    def image(match: re.Match[str]) -> str:
        path = (source.parent / match[2]).resolve()
        if not path.is_relative_to(ROOT / "docs"):  # a figure of a notebook, written beside its page
            return match[0]
        name = path.relative_to(ROOT / "docs").as_posix()
        return f"![{match[1]}]({os.path.relpath(name, os.path.dirname(page) or '.')})"

    text = re.sub(r"!\[([^\]\n]+)\]\(([^):]+)\)", image, text)
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part if part.startswith("```") else re.sub(r"(?<!!)\[([^\]\n]+)\]\(([^)#\s]+)(#[^)]*)?\)", link, part)
        for part in parts
    )


def tutorial(notebook: Path, page: Path, execute: bool) -> str:
    """Return a notebook as Markdown; figures of its outputs are written beside the page."""
    content = json.loads(notebook.read_text(encoding="utf-8"))
    if execute:
        content = executed(notebook)
    parts = []
    for number, cell in enumerate(content["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += outputs(cell.get("outputs", []), page, f"{notebook.stem}-{number}")
    name = notebook.relative_to(ROOT)
    how = "The outputs are those of its simulated data." if execute else "`make notebooks` runs all of them."
    parts.insert(1, f"This page is `{name}` of the repository. {how}")
    return "\n\n".join(parts) + "\n"


def executed(notebook: Path) -> dict:
    """Run a notebook on simulated data in an empty folder."""
    import nbformat
    from nbclient import NotebookClient

    content = nbformat.read(notebook, as_version=4)
    before = os.environ.pop("SEQSSM_DATA", None)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(content, timeout=600, resources={"metadata": {"path": folder}}).execute()
    if before is not None:
        os.environ["SEQSSM_DATA"] = before
    return content


def outputs(found: list[dict], page: Path, stem: str) -> list[str]:
    """Format the outputs of a cell: text as it is, figures as files."""
    parts = []
    for place, one in enumerate(found):
        data = one.get("data", {})
        if "image/png" in data:
            file = page.parent / f"{stem}-{place}.png"
            file.write_bytes(base64.b64decode(data["image/png"]))
            parts.append(f"![Figure of the cell above]({file.name})")
            continue
        text = "".join(one.get("text", data.get("text/plain", "")))
        if text.strip() and one.get("name") != "stderr":
            text = re.sub(r"\x1b\[[0-9;]*m", "", text)
            parts.append(f"```text\n{text.rstrip()}\n```")
    return parts


def reference(package: str, title: str) -> str:
    """The page of a package: every name in ``__all__``, at the module that defines it."""
    module = importlib.import_module(package)
    lines = [f"# `{package}`: {title}", ""]
    constants = []
    for name in sorted(module.__all__, key=str.lower):
        one = getattr(module, name)
        kind = "class" if isinstance(one, type) else "function" if callable(one) else None
        home = getattr(one, "__module__", None)
        if kind is None or not isinstance(home, str) or getattr(one, "__name__", None) != name:
            constants.append(name)
            continue
        options = "   :members:\n" if kind == "class" else ""
        lines += ["```{eval-rst}", f".. auto{kind}:: {home}.{name}", f"{options}```", ""]
    if constants:
        lines += ["Constants and types: " + ", ".join(f"`{name}`" for name in constants) + ".", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
