"""Workflows, hooks, Dockerfiles and scripts name targets, files, extras and versions that exist."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()) - {"force"}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
EXTRAS = set(PROJECT["optional-dependencies"])


def steps(workflow: Path) -> list[dict]:
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    return [step for job in content["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_commands_of_a_workflow_exist(workflow):
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    jobs = content["jobs"]
    assert all(need in jobs for job in jobs.values() for need in [job.get("needs")] if need)
    for step in steps(workflow):
        assert ("run" in step) != ("uses" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w./-]+@(v\d+|release/v\d+)", step["uses"])
            continue
        for line in step["run"].splitlines():
            program, *words = line.split()
            if program == "make":
                assert words[0] in TARGETS
            elif "/" in program and not program.startswith(".venv/"):
                assert os.access(ROOT / program, os.X_OK), program
            else:
                assert program in ("python", ".venv/bin/python")


def test_the_workflow_runs_the_supported_versions_of_python():
    content = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    versions = content["jobs"]["test"]["strategy"]["matrix"]["python"]
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert versions == classified
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_ci_runs_every_test_once():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r"^for target in test test-long; do$", ci, re.MULTILINE)
    assert re.search(r"^make lint ", ci, re.MULTILINE)
    runs = {target: re.search(rf"^{target}: .*\n\t\$\(call run_tests,(.*)\)$", MAKEFILE, re.MULTILINE)[1]
            for target in ("test", "test-long")}  # fmt: skip
    assert runs == {"test": "not long", "test-long": "long"}


def test_the_help_of_make_lists_the_targets():
    printed = subprocess.run(["make", "-s", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make ([\w-]+)", printed, re.MULTILINE)) == TARGETS - {"help"}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_copies_what_the_build_needs(file):
    text = file.read_text(encoding="utf-8")
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()}
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "seqssm", "kernels", "domains"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in copied} <= set(ignored)
    assert set(re.search(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)[1].split(",")) <= EXTRAS


def test_the_package_check_installs_every_extra_of_users():
    script = ROOT / "scripts" / "check_packages.sh"
    listed = set(re.search(r"extras=\((none .*)\)$", script.read_text(encoding="utf-8"), re.MULTILINE)[1].split())
    assert listed - {"none"} == EXTRAS - {"dev"}
    subprocess.run(["bash", "-n", script], check=True)
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)


def test_hooks_use_the_lowest_supported_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    revision = {repo["repo"].rsplit("/", 1)[1]: repo["rev"] for repo in hooks}["ruff-pre-commit"]
    (bound,) = (one for one in PROJECT["optional-dependencies"]["dev"] if one.startswith("ruff"))
    assert revision.startswith("v" + bound.removeprefix("ruff>="))
