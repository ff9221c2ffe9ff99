"""The layout of the code: imports between inner floors, no cycles, sizes of files and functions, docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOOR_2 = (
    ("errors", "version", "environment", "bounds", "domain", "given"),
    ("orders",),
    ("nn",),
    ("files",),
    ("metrics",),
    ("plot",),
    ("training",),
    ("prediction",),
    ("compress", "incremental"),
    ("tools",),
    ("api",),
    ("cli",),
)
"""The inner floors of `seqssm`, from the ground up: each imports earlier ones only."""
LIGHT = (
    "errors",
    "version",
    "environment",
    "bounds",
    "domain",
    "given",
)  # modules of one floor, which import each other in this order
LONGEST_FILE, LONGEST_BODY = 450, 60
LONG_BODIES: dict[str, str] = {}
"""Functions outside the kernels with a longer body -> the reason."""


@cache
def sources() -> dict[str, tuple[Path, ast.Module]]:
    """Every module of the packages by name: its file and its syntax tree."""
    found = {}
    for base in (ROOT / "kernels", ROOT, ROOT / "domains"):
        for package in sorted(base.glob("seqssm*")):
            for file in sorted(package.rglob("*.py")):
                parts = file.relative_to(base).with_suffix("").parts
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                found[name] = (file, ast.parse(file.read_text(encoding="utf-8")))
    return found


@cache
def imports() -> networkx.DiGraph:
    """module -> modules that it imports anywhere, also lazily or for types only; parent packages do not count."""
    graph = networkx.DiGraph()
    for name, (_, tree) in sources().items():
        for node in ast.walk(tree):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [target if target in sources() else node.module for target in inside]
            graph.add_edges_from((name, target) for target in targets if target in sources() and target != name)
    return graph


def rank(module: str) -> int | None:
    """The inner floor of a module of `seqssm`; None for the package itself and for other packages."""
    parts = module.split(".")
    if parts[0] != "seqssm" or len(parts) == 1 or parts[1] == "__main__":
        return None
    return next(number for number, floor in enumerate(FLOOR_2) if parts[1] in floor)


def test_inner_floors_import_earlier_ones_only():
    wrong = []
    for source, target in imports().edges:
        above, below = rank(source), rank(target)
        if above is not None and (below is None or below > above):
            wrong.append((source, target))
    assert not [pair for pair in wrong if pair[1].startswith("seqssm.")]


def test_there_are_no_import_cycles():
    circles = [sorted(found) for found in networkx.strongly_connected_components(imports()) if len(found) > 1]
    assert circles == []


def test_an_import_cycle_would_be_detected():
    graph = networkx.DiGraph([("a", "b"), ("b", "c"), ("c", "a")])
    assert any(len(found) > 1 for found in networkx.strongly_connected_components(graph))
    assert len(imports().edges) > 300


def test_files_have_a_maximum_length():
    long = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, (file, _) in sources().items()}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FILE} == {}


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def length(function: ast.FunctionDef) -> int:
    """Lines of the body, without signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_functions_fit_on_a_screen():
    long = {
        f"{name}:{function.name}": length(function)
        for name, (_, tree) in sources().items()
        if not name.startswith("seqssm_kernels")
        for function in functions(tree)
        if length(function) > LONGEST_BODY
    }
    assert set(long) == set(LONG_BODIES)


def documented(tree: ast.Module) -> Iterator[tuple[str, str, ast.FunctionDef]]:
    """(name, docstring, the function with the arguments) of everything public that has an Args section."""
    for node in ast.walk(tree):
        function = node
        if isinstance(node, ast.ClassDef):
            inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
            if not inits:
                continue
            function = inits[0]
        if isinstance(function, ast.FunctionDef) and not node.name.startswith("_"):
            text = ast.get_docstring(node)
            if text and re.search(r"^ *Args:$", text, re.MULTILINE):
                yield node.name, text, function


def entries(docstring: str) -> list[str]:
    """The names before the colons of an Args section."""
    lines = docstring.splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip() == "Args:")
    outer = len(lines[start]) - len(lines[start].lstrip())
    names: list[str] = []
    inner: int | None = None
    for line in lines[start + 1 :]:
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        if indent <= outer:
            break
        inner = indent if inner is None else inner
        found = re.match(r" *([^:(]+?)(?: \([^)]*\))?:", line)
        if indent == inner and found:
            names.append(found[1].strip("`* "))
    return names


@pytest.mark.parametrize(
    "package", ["seqssm_kernels", "seqssm", "seqssm_dna", "seqssm_ecg", "seqssm_forecasting", "seqssm_pathology"]
)
def test_every_public_argument_has_one_args_entry(package):
    wrong = []
    for name, (_, tree) in sources().items():
        if name.split(".")[0] != package:
            continue
        for owner, text, function in documented(tree):
            if any("triton" in ast.unparse(decorator) for decorator in function.decorator_list):
                continue  # arguments of a kernel are pointers and strides
            arguments = function.args
            wanted = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            wanted = [argument for argument in wanted if argument not in ("self", "cls") and argument[0] != "_"]
            given = entries(text)
            missing = [argument for argument in wanted if given.count(argument) != 1]
            if missing:
                wrong.append(f"{name}:{owner}: {', '.join(missing)}")
    assert wrong == []
