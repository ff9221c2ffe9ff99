"""Invalid values of every numeric option of every command are rejected at once, in one line that names the option."""

from __future__ import annotations

import inspect
import math
import re
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from seqssm.bounds import Bounds
from seqssm.cli import main as console
from seqssm.cli import predict as prediction
from seqssm.cli.main import main
from seqssm.domain import Option, domains, resolve
from seqssm.errors import InputError
from seqssm.training import networks, presets
from seqssm.training.kfold import Study, kfold
from seqssm.training.lightning_cli import TRAINER_LIMITS, require_trainer
from seqssm.training.task import Task

SCIENCES = ("dna", "ecg", "forecasting", "pathology")
SECONDS = 2.0
NEVER = ("abc", "nan", "inf", "-inf", "1e30", "-1e30", "9" * 400)
BASE = ("batch_size", "num_workers", "seed")  # checked by `DataModule` itself


def is_numeric(annotation: Any) -> bool:
    """Whether a parameter takes numbers (but not booleans only), as its annotation says."""
    return bool(re.search(r"\b(int|float)\b", str(annotation)))


def require_line(error: str, argv: Any, flag: str) -> None:
    assert len(error.splitlines()) == 1, (argv, error)
    assert flag in error, (argv, error)
    assert "Traceback" not in error, (argv, error)


def refused(capsys: pytest.CaptureFixture, argv: list[str], flag: str) -> None:
    """Run a whole command line and require exit code 2, one line, and no delay."""
    capsys.readouterr()
    began = time.process_time()
    code = main(argv)
    assert time.process_time() - began < SECONDS, argv
    message = capsys.readouterr().err.strip()
    assert code == 2, (argv, code, message)
    require_line(message, argv, flag)


def refused_by(parse: Any, argv: Any, flag: str) -> None:
    """The parser of a command, which `main` calls before anything else."""
    with pytest.raises(InputError) as error:
        parse(argv)
    require_line(str(error.value), argv, flag)


def outside(bounds: Bounds, integers: bool) -> Iterator[str]:
    """Values just outside of bounds, and far outside."""
    yield from (text for text in NEVER if _is_outside(bounds, text))
    step = 1.0 if integers else 1e-3
    for edge, open_end, sign in ((bounds.least, bounds.above, -1), (bounds.most, bounds.below, 1)):
        if math.isfinite(edge):
            value = edge if open_end else edge + sign * step * max(1.0, abs(edge) if not integers else 1.0)
            yield f"{value:.0f}" if integers else repr(value)


def _is_outside(bounds: Bounds, text: str) -> bool:
    try:
        return bounds.problem(float(text)) is not None
    except ValueError:
        return True


def numeric(options: tuple[Option, ...]) -> list[Option]:
    return [option for option in options if option.type in (int, float)]


@pytest.mark.parametrize("name", SCIENCES)
def test_every_number_has_bounds(name):
    """Fails for a new option without bounds; the largest allowed bound is that of a 32-bit count."""
    domain = domains()[name]
    options = [*domain.predict_options, *(option for one in domain.commands for option in one.options)]
    unbounded = [o.flag for o in numeric((*options, *prediction.COMMON)) if math.isinf(o.bounds.most)]
    assert unbounded == []
    for cls in classes(name):
        own = cls.own_arguments if issubclass(cls, Task) else networks.parameters(cls)
        numbers = [argument for argument, parameter in own.items() if is_numeric(parameter.annotation)]
        limits = {**(Task.limits if issubclass(cls, Task) else {}), **cls.limits}
        assert [n for n in numbers if n not in limits and n not in BASE and n not in KINDS] == [], cls


KINDS = {
    "learning_rate", "weight_decay", "warmup_steps", "threads",  # of `Task`
    "band_hz", "quantiles", "edges", "context_warmup", "split",  # lists and mappings with checks of their own
    "folds", "lead_set", "d_in", "num_classes", "tokens",  # choices, and sizes that are those of the data
}  # fmt: skip


@cache
def classes(name: str) -> list[Any]:
    """The tasks and data modules of the domain's defaults and presets."""
    domain = domains()[name]
    found = [domain.task, domain.data]
    for path in dict.fromkeys(source.path for source in presets.presets(domain).values()):
        paths = re.findall(r"class_path: *([\w.]+)", path.read_text(encoding="utf-8"))
        found += [":".join(one.rsplit(".", 1)) for one in paths if one.startswith("seqssm")]
    return [resolve(one) for one in dict.fromkeys(found)]


@pytest.fixture(scope="module")
def checkpoints(finished_run, tmp_path_factory):
    """One checkpoint per domain, of which only the domain's name is read before the options."""
    folder = tmp_path_factory.mktemp("checkpoints")
    content = torch.load(finished_run / "best.ckpt", weights_only=True)
    for name in SCIENCES:
        content["seqssm"]["domain"] = name
        torch.save(content, folder / f"{name}.ckpt")
    return folder


@pytest.mark.parametrize("name", SCIENCES)
def test_options_of_commands(toy, capsys, checkpoints, name):
    """`predict` and the domain's own commands, with one whole command line for each."""
    domain = domains()[name]
    model = str(checkpoints / f"{name}.ckpt")
    parsers = [(prediction.build_parser("predict", domain).parse, (*prediction.COMMON, *domain.predict_options))]
    parsers += [(partial(console.run_command, domain, one), one.options) for one in domain.commands]
    begins = [["predict", model], *([one.name] for one in domain.commands)]
    for (parse, options), begin in zip(parsers, begins):
        for option in options:
            refused_by(parse, ["x", "y", f"{option.flag}x", "1"], option.flag)  # misspelt
            if option.type in (int, float):
                for value in outside(option.bounds, option.type is int):
                    refused_by(parse, ["x", "y", option.flag, value], option.flag)
                    refused_by(parse, ["x", "y", f"{option.flag}={value}"], option.flag)
            elif option.choices:
                refused_by(parse, ["x", "y", option.flag, "absurd"], option.flag)
        last = next((option for option in options if option.type in (int, float)), None)
        if last is not None:
            refused(capsys, [name, *begin, "x", last.flag, "1e30"], last.flag)


@pytest.mark.parametrize(("command", "value"), [("fit", "-1"), ("test", "nan"), ("validate", "abc")])
def test_timeouts(toy, run, capsys, command, value):
    words = ["--config", "tiny", "--output", "new"] if command == "fit" else [str(run)]
    refused(capsys, ["toy", command, *words, "--timeout", value], "--timeout")


@pytest.mark.parametrize("name", SCIENCES)
def test_options_of_kfold(toy, capsys, name):
    preset = domains()[name].example_preset
    for flag, values in (
        ("--folds", ("-1", "0", "1", "1e30", "nan", "10001", "9" * 400, "")),
        ("--seeds", ("-1", "1,-2", "1.5", "nan", "9" * 30, "", "1,,2")),
        ("--models", ("", "abc", ",", "a,,b")),
        ("--windows", ("-1", "0", "nan", "1e30", "10001", "9" * 400, "")),
    ):
        for value in values:
            study = Study([preset], output="study", **{flag.strip("-"): value})
            refused_by(partial(kfold, domains()[name]), study, flag)
        refused(capsys, [name, "kfold", "--config", preset, "--output", "study", flag, values[0]], flag)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("demo", ["--outputs", "x"]),
        ("demo", ["--output"]),
        ("demo", ["extra"]),
        ("demo", ["--output", ""]),
        ("warmup", ["--threads", "-1"]),
        ("warmup", ["extra"]),
        ("info", ["--verbose"]),
        ("info", ["extra"]),
        ("data", ["lst"]),
        ("data", ["get"]),
        ("data", ["get", "eth1"]),
        ("data", ["get", ""]),
        ("data", ["get", "numbers", "--accept-unverifed"]),
        ("data", ["list", "--size", "-1"]),
        ("data", ["list", "nmbers"]),
    ],
)
def test_commands_without_numbers(toy, capsys, command, words):
    refused(capsys, [command, *words], "")


def absurd(annotation: Any, bounds: Bounds | None) -> list[Any]:
    """Values that an argument of a class must reject, in the types that flags and Python callers pass."""
    whole = "float" not in str(annotation)
    values: list[Any] = [10**30, -(10**30)] if whole else [math.nan, math.inf, -math.inf, 1e30, -1e30]
    if bounds is None:
        return values
    edges = [text for text in outside(bounds, whole) if text not in NEVER]
    return [*filter(bounds.problem, values), *(int(text) if whole else float(text) for text in edges)]


def require_refused(make: Any, name: str, value: Any) -> None:
    began = time.process_time()
    with pytest.raises(InputError) as error:
        make(**{name: value})
    assert time.process_time() - began < SECONDS, (name, value)
    assert re.search(rf"--\w+(\.|: .*\b){name}\b", str(error.value)), (name, value, str(error.value))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", SCIENCES)
def test_arguments_of_data(name):
    for data in [one for one in classes(name) if not issubclass(one, Task)]:
        for argument, parameter in networks.parameters(data).items():
            if is_numeric(parameter.annotation) and argument not in KINDS:
                bounds = {"num_workers": Bounds(0), **data.limits}.get(argument)
                for value in absurd(parameter.annotation, bounds):
                    require_refused(data, argument, value)


ZERO = {
    *("attn_period", "attn_offset", "conv_layers", "drop_path", "dropout", "mlp_ratio", "n_layers", "positions"),
    "shuffles",
}
"""Arguments of networks that may be 0."""


@pytest.mark.parametrize("name", SCIENCES)
def test_arguments_of_tasks_and_networks(name):
    for task in [one for one in classes(name) if issubclass(one, Task)]:
        for argument, parameter in task.own_arguments.items():
            if is_numeric(parameter.annotation) and argument not in KINDS - {"learning_rate", "weight_decay"}:
                for value in absurd(parameter.annotation, {**Task.limits, **task.limits}.get(argument)):
                    require_refused(task, argument, value)
        for network in task.networks:
            for argument, parameter in networks.parameters(task.networks[network]).items():
                if argument in task.network_arguments and is_numeric(parameter.annotation):
                    values = absurd(parameter.annotation, None) + ([] if argument in ZERO else [0]) + [-1]
                    for value in values:
                        require_refused(partial(task, network=network), argument, value)


@pytest.mark.parametrize("name", TRAINER_LIMITS)
def test_arguments_of_the_trainer(name):
    bounds = TRAINER_LIMITS[name]
    for value in (bounds.least - 1, bounds.most + 1, math.nan, str(int(bounds.least - 1))):
        with pytest.raises(InputError, match=f"--trainer.{name} "):
            require_trainer({name: value})
    require_trainer({name: bounds.most})
    require_trainer({name: None})


def test_trainer_limits_name_numbers_of_the_trainer():
    from lightning.pytorch import Trainer

    known = inspect.signature(Trainer.__init__).parameters
    assert [name for name in TRAINER_LIMITS if name not in known] == []


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [
        *((name, "--data.batch_size", "-1") for name in SCIENCES),
        *((name, "--model.learning_rate", ".nan") for name in SCIENCES),
        ("toy", "--early_stopping.patience", "-1"),
        ("toy", "--early_stopping.patience", "abc"),
        ("toy", "--seed_everything", "1e30"),
        ("toy", "--trainer.max_epochs", "-7"),
        ("toy", "--trainer.devices", "0"),
        ("toy", "--trainer.accumulate_grad_batches", "abc"),
    ],
)
def test_values_reach_their_checks(toy, capsys, name, flag, value):
    """Whole command lines."""
    words = [name, "fit", "--config", domains()[name].example_preset, "--output", "run", flag, value]
    refused(capsys, [*words, "--trainer.accelerator", "cpu"], flag)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("bounds", "value", "words"),
    [
        (Bounds(0, 1), 1.5, "must be in [0, 1]"),
        (Bounds(0, 1, above=True, below=True), 1.0, "must be in (0, 1)"),
        (Bounds(1), 0, "must be at least 1"),
        (Bounds(0, above=True), 0.0, "must be above 0"),
        (Bounds(most=5), 6, "must be at most 5"),
        (Bounds(0, 8, meaning="the largest"), 9, "at most 8, the largest"),
        (Bounds(0, 8, meaning="the largest"), -1, "must be at least 0"),
        (Bounds(), math.nan, "must be a finite number"),
        (Bounds(0, 2**32 - 1), 2**32, "must be in [0, 4294967295]"),
        (Bounds(1e-6, 1e9), 0.0, "must be in [1e-06, 1000000000]"),
        (Bounds(0, 1), 0, None),
        (Bounds(0, 1), 1, None),
    ],
)
def test_messages_of_bounds(bounds, value, words):
    assert bounds.problem(value) == words
