"""The help pages of the package and of a domain, which must appear instantly."""

from __future__ import annotations

from seqssm.domain import Domain
from seqssm.errors import ExitCode
from seqssm.training.presets import presets
from seqssm.version import __version__

COMMANDS = {
    "predict": "predict from a checkpoint and your files",
    "report": "write one HTML page about a run: tests, calibration, data, configuration",
    "compare": "compare the tests of several runs, with paired differences",
    "export": "write a trained model as ONNX graph, PyTorch program or safetensors file",
    "compress": "make a trained model smaller: weights of 8, 4 or 1 bit, 8-bit activations",
    "distill": "train a sequence of small models from a trained one; predict --budget uses the first of them",
    "diagnose": "measure how far back a trained model looks",
    "data": "list and download public data sets",
    "demo": "run every domain in minutes on a CPU and write one HTML page",
    "info": "show versions, devices and default engines, or describe a checkpoint",
    "warmup": "compile the kernels ahead of their first use",
}
DOMAIN_COMMANDS = {
    "fit": "train a model",
    "validate": "evaluate a trained model on the validation data",
    "test": "evaluate a trained model and the baselines on the test data",
    "kfold": "compare folds, seeds and models in one table",
    "predict": "predict from a checkpoint and your files",
    "extend": "add classes to a trained single-label classifier",
}


def commands_of(one: Domain) -> dict[str, str]:
    """Return the commands that a domain shares with others, and their descriptions."""
    return {name: text for name, text in DOMAIN_COMMANDS.items() if name != "extend" or one.extends}


def package(domains: dict[str, Domain]) -> str:
    """``seqssm --help``."""
    lines = [f"seqssm {__version__}: selective state-space models for science", "", "usage: seqssm COMMAND ...", ""]
    titles = {one.name: one.missing() or one.title for one in domains.values()}
    lines += ["domains (each has fit, validate, test, kfold and predict):", *_rows(titles), ""]
    lines += ["commands:", *_rows(COMMANDS), ""]
    lines += ["examples:"]
    for domain in domains.values():
        if domain.missing() is not None:
            continue
        lines.append(f"  seqssm {domain.name} fit --config {domain.example_preset}")
    lines += ["  seqssm predict model.ckpt INPUT --output predictions.csv", ""]
    lines += ["exit codes:", *_rows({str(int(code)): code.meaning for code in ExitCode}), ""]
    lines += ["seqssm COMMAND --help prints the options of a command."]
    return "\n".join(lines)


def domain(one: Domain) -> str:
    """``seqssm <domain> --help``."""
    commands = {**commands_of(one), **{command.name: command.help for command in one.commands}}
    lines = [f"{one.title}", "", f"usage: seqssm {one.name} COMMAND ...", "", "commands:", *_rows(commands), ""]
    lines += ["presets (--config NAME):", *_wrap(list(presets(one))), ""]
    models = [*one.models, *(baseline.name for baseline in one.baselines)]
    if models:
        lines += ["models (kfold --models A,B):", *_wrap(models), ""]
    run = f"runs/{one.name}/{one.example_preset}"
    lines += [
        "examples:",
        f"  seqssm {one.name} fit --config {one.example_preset}",
        f"  seqssm {one.name} test {run}",
        f"  seqssm predict {run}/best.ckpt {one.example_input} --output predictions.csv",
        "",
        f"seqssm {one.name} COMMAND --help prints its options, seqssm {one.name} --help-all every option of fit.",
    ]
    return "\n".join(lines)


def _rows(entries: dict[str, str]) -> list[str]:
    width = max((len(name) for name in entries), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in entries.items()]


def _wrap(words: list[str], width: int = 100) -> list[str]:
    lines, line = [], " "
    for word in words:
        if len(line) + len(word) + 1 > width:
            lines.append(line)
            line = " "
        line += f" {word}"
    return [*lines, line] if line.strip() else lines
