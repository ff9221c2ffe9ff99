"""The LightningCLI behind fit, validate and test: subclass mode for model and data, one-line errors, our trainer."""

from __future__ import annotations

import inspect
import logging
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from seqssm.domain import resolve
from seqssm.errors import InputError, nearest
from seqssm.training.checkpoint import AtomicCheckpointIO
from seqssm.training.data import DataModule
from seqssm.training.task import Task

# Lightning's remarks that say nothing to our user: each one is about something that this package does on purpose
QUIET = (
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*LightningCLI's args parameter.*",
    r".*`srun` command is available.*",
    r".*Total length of `list` across ranks is zero.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*It is recommended to use `self\.log\(.*sync_dist=True.*",  # what is logged is alike in all processes already
    r".*No device id is provided via `init_process_group`.*",
)


def quiet() -> None:
    """Silences those remarks, and Lightning's announcements of devices, seeds and limits."""
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in (
        "lightning.fabric.utilities.seed",
        "lightning.pytorch.accelerators.cuda",
        "lightning.fabric.utilities.distributed",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)


class EarlyStopping:
    """What `best.ckpt` is chosen by, and when training stops.

    Args:
        monitor: validation metric; the task's own choice when not given.
        mode: whether smaller or larger is better.
        patience: validations without a better value after which training stops; null never stops.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        patience: int | None = None,
    ) -> None:
        if patience is not None and patience < 1:
            raise InputError(f"--early_stopping.patience {patience}: at least 1 is needed, or null")
        self.monitor, self.mode, self.patience = monitor, mode, patience


class OneLineParser(LightningArgumentParser):
    """Raises `InputError` with one line where jsonargparse prints a page."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise InputError(one_line(message))


def one_line(message: str) -> str:
    """The heart of a jsonargparse error: which key, what was expected, what was given."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    text = " ".join(lines)
    outer = re.search(r'[Pp]arser key "([^"]+)"', text)
    key = outer.group(1).replace(".init_args", "") if outer else ""
    if not key:
        return text[:300]
    inner = re.search(r"--([\w.]+: expected .*?)(?= Expected an? |$)", text)  # ours, of a parser inside
    if inner is not None:
        own = inner.group(1)
        return (f"config: {own}" if key == "config" else f"--{key}.{own.removeprefix(key + '.')}")[:300]
    problem = [place for place, line in enumerate(lines) if line.startswith("Problem with")]
    if problem:
        return f"--{key}: {' '.join(lines[problem[-1] : problem[-1] + 2])}"[:300]
    nested = re.search(r'Parser key "(?:init_args\.)?([\w.]+)":', text[outer.end() :]) if outer else None
    name = f"{key}.{nested.group(1)}" if nested else key
    wanted = dict.fromkeys(part for line in lines for part in re.findall(r"Expected an? (.*?)(?:\. Got value|$)", line))
    given = re.search(r"(?:Got value|Given value): (.*)$", text)
    if not wanted:
        return f"--{name}: {text[outer.end() :].strip(': ')}"[:300] if outer else text[:300]
    types = sorted((type_name(part) for part in wanted), key=lambda part: part == "null")
    return f"--{name}: expected {' or '.join(types)}" + (f", not {given.group(1).strip()}" if given else "")


def own_error(error: BaseException | None) -> InputError | None:
    """The `InputError` that a class raised when it was built, from inside what jsonargparse made of it."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def type_name(text: str) -> str:
    """A type as jsonargparse prints it, in the words of a config file."""
    literal = re.fullmatch(r"typing\.Literal\[(.*)\]", text)
    if literal:
        return "one of " + literal.group(1).replace("'", "")
    plain = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    return "null" if plain == "NoneType" else plain


class TrainingCLI(LightningCLI):
    """Parses flags and configs into `model`, `datamodule` and a `trainer` whose files go to `folder`.

    Args:
        args: flags, configs included as ``--config <YAML text>``.
        folder: the run's folder, or a function that gives it for the data module.
        callbacks: ours, in the order in which they are to run.
        default_model, default_data: the classes whose options are checked when no other class is named.
    """

    def __init__(
        self, args: list[str], folder: Path | Callable[[DataModule], Path], default_model: str, default_data: str
    ) -> None:
        self.folder = folder
        self.defaults = {"model": default_model, "data": default_data}
        super().__init__(
            model_class=Task,
            datamodule_class=DataModule,
            save_config_callback=None,
            seed_everything_default=1,
            trainer_defaults={
                "max_epochs": 10,
                "logger": False,  # the epoch log writes log.csv and TensorBoard's events
                "enable_model_summary": False,
                "use_distributed_sampler": False,  # the data module's loaders split the records themselves
                "num_sanity_val_steps": 0,
                "enable_progress_bar": sys.stderr.isatty(),
            },
            parser_class=OneLineParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=args,
            run=False,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(EarlyStopping, "early_stopping")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self._check_names(args)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "args given twice": we always pass them ourselves
            super().parse_arguments(parser, args)
        seed = self.config.get("seed_everything")
        if seed is not None and not 0 <= seed < 2**32:
            raise InputError(f"--seed_everything {seed}: a number from 0 to {2**32 - 1} is needed")
        self._share()

    def _share(self) -> None:
        """Gives the task the data's value of what both must agree on (`Task.from_data`), where it was not given.

        Done in the config, so that `config.yaml` and checkpoints hold the value.
        """
        model, data = self.config.model, self.config.data
        cls = resolve(":".join(model.class_path.rsplit(".", 1)))
        for name in cls.from_data:
            given, known = model.init_args.get(name), data.init_args.get(name)
            if given is None:
                model.init_args[name] = known
            elif known is not None and given != known:
                raise InputError(f"--data.{name} {known} and --model.{name} {given} must be the same")

    def _check_names(self, args: list[str]) -> None:
        """Refuses names that no class takes, with the nearest one that it does; jsonargparse would print a page."""
        import yaml

        flags: list[tuple[str, str]] = []
        position = 0
        while position < len(args):
            word = args[position]
            if word == "--config":
                config = yaml.safe_load(args[position + 1])
                for section in ("model", "data"):
                    part = config.get(section) or {}
                    self.defaults[section] = part.get("class_path", self.defaults[section])
                    flags += [(f"--{section}.{name}", "config: ") for name in part.get("init_args") or {}]
                for section in ("trainer", "early_stopping"):
                    flags += [(f"--{section}.{name}", "config: ") for name in config.get(section) or {}]
                position += 2
                continue
            if word.startswith("--"):
                if "=" not in word and (position + 1 == len(args) or args[position + 1].startswith("--")):
                    raise InputError(f"{word} needs a value")
                flags.append((word.split("=")[0], ""))
                for section in ("model", "data"):
                    if word.split("=")[0] in (f"--{section}", f"--{section}.class_path"):
                        self.defaults[section] = word.split("=")[1] if "=" in word else args[position + 1]
            position += 1
        known = self.known()
        for flag, where in flags:
            plain = flag.replace(".init_args", "").removesuffix("+")
            open_ended = plain.count(".") > 1 and ".".join(plain.split(".")[:2]) in known
            if plain not in known and not open_ended:
                name = plain if not where else plain.removeprefix("--")
                choice = known if not where else [k.removeprefix("--") for k in known]
                raise InputError(f"{where}unknown option {name}{nearest(name, choice)}")

    def known(self) -> list[str]:
        """Every flag that the chosen classes take."""
        names = ["--seed_everything", "--model", "--data", "--model.class_path", "--data.class_path", "--trainer"]
        names += [f"--early_stopping.{name}" for name in ("monitor", "mode", "patience")]
        names += [f"--trainer.{name}" for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
        for section, target in self.defaults.items():
            names += [f"--{section}.{name}" for name in class_options(target)]
        return names

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self._get(self.config_init, "trainer").get("logger") is True:
            raise InputError(
                "--trainer.logger true would add folders of Lightning's own; log.csv and TensorBoard's events are "
                "written anyway, and a logger named by its class is taken"
            )
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        callbacks = self._get(self.config_init, "trainer").get("callbacks") or []
        if not any(isinstance(callback, Checkpoint) for callback in callbacks):
            kwargs["enable_checkpointing"] = False  # no checkpoints/ beside ours
        folder = self.folder(self._get(self.config_init, "data")) if callable(self.folder) else self.folder
        return super().instantiate_trainer(plugins=plugins, default_root_dir=str(folder), **kwargs)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ValueError, TypeError, ModuleNotFoundError) as error:
            ours = own_error(error)
            raise ours if ours is not None else InputError(one_line(str(error))) from error

    def config_text(self) -> str:
        """The whole configuration as YAML, with every default filled in."""
        return self.parser.dump(self.config, skip_none=False)


def class_options(target: str) -> list[str]:
    """The argument names of the class ``module.Class`` or ``module:Class``, those of its bases included.

    Raises:
        InputError: there is no such class.
    """
    if ":" not in target:
        module, _, name = target.rpartition(".")
        if not module:
            return _short_name(name)
        target = f"{module}:{name}"
    try:
        cls = resolve(target)
    except (ImportError, AttributeError, ValueError):
        raise InputError(f"no such class: {target.replace(':', '.')}") from None
    if not (isinstance(cls, type) and issubclass(cls, Task | DataModule)):
        raise InputError(f"class_path {target.replace(':', '.')}: not a training task nor a data module")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "x", fail_untyped=False)
    return sorted(
        {option.removeprefix("--x.").split(".")[0] for option in parser._option_string_actions if "--x." in option}
    )


def _short_name(name: str) -> list[str]:
    """Options of a class given by its bare name, as LightningCLI takes it once its module is imported."""
    queue: list[type] = [Task, DataModule]
    while queue:
        cls = queue.pop()
        if cls.__name__ == name:
            return class_options(f"{cls.__module__}:{name}")
        queue += cls.__subclasses__()
    raise InputError(f"no such class: {name}; give its full path, package.module.{name}")
