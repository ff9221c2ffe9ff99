"""The LightningCLI behind fit, validate and test: subclass mode for model and data, one-line errors, trainer."""

from __future__ import annotations

import inspect
import logging
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from seqssm.bounds import COUNT, SEED, Bounds
from seqssm.domain import resolve
from seqssm.errors import InputError
from seqssm.training.arguments import SECTIONS, Arguments
from seqssm.training.callbacks import LAST_EPOCH
from seqssm.training.checkpoint import AtomicCheckpointIO, class_name, public
from seqssm.training.data import DataModule
from seqssm.training.effects import require_effects
from seqssm.training.lists import option_types
from seqssm.training.networks import complete, linked, parameters
from seqssm.training.sizes import MOST_PROCESSES
from seqssm.training.task import Task

# Lightning messages about deliberate choices of this package, irrelevant to users
QUIET = (
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*LightningCLI's args parameter.*",
    r".*`srun` command is available.*",
    r".*Total length of `list` across ranks is zero.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*It is recommended to use `self\.log\(.*sync_dist=True.*",  # logged values are already reduced over processes
    r"Grad strides do not match bucket view strides.*",  # costs a copy of a small weight
    r".*No device id is provided via `init_process_group`.*",
    r"Be aware that when using `ckpt_path`.*",  # a test of last.ckpt needs no callbacks of the training
)

_STEPS = Bounds(0, 10**9)
_UNLIMITED = Bounds(-1, 10**9)  # -1 stands for no limit
_PART = Bounds(0, 10**9)  # a fraction, or a number of batches
TRAINER_LIMITS: dict[str, Bounds] = {
    "devices": Bounds(-1, MOST_PROCESSES, meaning="the largest number"),
    "num_nodes": Bounds(1, MOST_PROCESSES, meaning="the largest number"),
    "max_epochs": _UNLIMITED,
    "min_epochs": _STEPS,
    "max_steps": _UNLIMITED,
    "min_steps": _STEPS,
    "limit_train_batches": _PART,
    "limit_val_batches": _PART,
    "limit_test_batches": _PART,
    "limit_predict_batches": _PART,
    "overfit_batches": _PART,
    "val_check_interval": Bounds(0, 10**9, above=True),
    "check_val_every_n_epoch": Bounds(1, 10**9),
    "num_sanity_val_steps": _UNLIMITED,
    "log_every_n_steps": _STEPS,
    "accumulate_grad_batches": Bounds(1, 10**9),
    "gradient_clip_val": Bounds(0, 1e9),
    "fast_dev_run": _STEPS,
    "reload_dataloaders_every_n_epochs": _STEPS,
}
"""Bounds of the trainer's numeric options, of which Lightning accepts values that fail later or train nothing."""


def quiet() -> None:
    """Silence these messages and Lightning's announcements of devices, seeds and limits."""
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in (
        "lightning.fabric.utilities.seed",
        "lightning.pytorch.accelerators.cuda",
        "lightning.pytorch.trainer.connectors.signal_connector",
        "lightning.fabric.utilities.distributed",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)


class EarlyStopping:
    """How `best.ckpt` is selected, and when training stops.

    Args:
        monitor: validation metric that selects the best epoch; by default the task's choice. ``last_epoch`` keeps the
            last one: with a fixed schedule and few validation records, their noise would select the epoch.
        mode: direction of improvement; by default that of the metric.
        patience: number of validations without improvement after which training stops; null for never.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        patience: int | None = None,
    ) -> None:
        COUNT.require("--early_stopping.patience", patience)
        if monitor == LAST_EPOCH and not (mode is patience is None):
            raise InputError("--early_stopping.monitor last_epoch needs --early_stopping.patience null and no mode")
        self.monitor, self.mode, self.patience = monitor, mode, patience


class OneLineParser(LightningArgumentParser):
    """Raises a one-line `InputError` instead of printing jsonargparse's long message."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise InputError(one_line(message))


def one_line(message: str) -> str:
    """Extract the essential part of a jsonargparse error: key, expected type, given value."""
    message = re.sub(r"\x1b\[[0-9;]*m", "", message)
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    text = " ".join(lines)
    outer = re.search(r'[Pp]arser key "([^"]+)"', text)
    key = outer.group(1).replace(".init_args", "") if outer else ""
    if not key:
        return text[:300]
    if "surrogates not allowed" in text:
        return f"--{key}: a value is not valid UTF-8: rename the file, or use a UTF-8 locale"
    inner = re.search(r"--([\w.]+: expected .*?)(?= Expected an? |$)", text)  # from a nested parser of ours
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
    value = given.group(1).strip() if given else ""
    remedy = f"; write [{value.strip('[]')}]" if value and set(types) - {"null"} == {"list"} else ""
    return f"--{name}: expected {' or '.join(types)}" + (f", not {value}{remedy}" if given else "")


def own_error(error: BaseException | None) -> InputError | None:
    """Extract the `InputError` raised by a constructor from the jsonargparse error that wraps it."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def type_name(text: str) -> str:
    """Format a type printed by jsonargparse in terms of config files."""
    literal = re.fullmatch(r"typing\.Literal\[(.*)\]", text)
    if literal:
        return "one of " + literal.group(1).replace("'", "")
    plain = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    return "null" if plain == "NoneType" else plain


class TrainingCLI(LightningCLI):
    """Parses flags and configs into `model`, `datamodule` and a `trainer` that writes to `folder`.

    Args:
        arguments: configs and flags.
        folder: the run folder, or a function that returns it for the data module.
        task: an existing task; the section ``model`` is then not parsed.
        data: an existing data module; the section ``data`` is then not parsed.
        foreign: treatment of flags of networks that are not chosen: ``"refuse"`` or ``"drop"``.
    """

    def __init__(
        self,
        arguments: Arguments,
        folder: Path | Callable[[DataModule], Path],
        task: Task | None = None,
        data: DataModule | None = None,
        foreign: Literal["refuse", "drop"] = "refuse",
    ) -> None:
        self.folder, self.arguments, self.given = folder, arguments, {"model": task, "data": data}
        self.foreign = foreign
        for section, value in self.given.items():
            if value is not None:
                arguments.configs = [{k: v for k, v in one.items() if k != section} for one in arguments.configs]
        arguments.drop_foreign(flags_too=foreign == "drop")
        super().__init__(
            model_class=Task,
            datamodule_class=DataModule,
            save_config_callback=None,
            seed_everything_default=1,
            trainer_defaults={
                "max_epochs": 10,
                "logger": False,  # the epoch log writes log.csv and TensorBoard's events
                "enable_model_summary": False,
                "use_distributed_sampler": False,  # the data module's loaders distribute the records
                "num_sanity_val_steps": 0,
                "enable_progress_bar": sys.stderr.isatty(),
            },
            parser_class=OneLineParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments.words(),
            run=False,
            auto_configure_optimizers=False,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if all(value is None for value in self.given.values()):
            super().add_core_arguments_to_parser(parser)
            return
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})
        for section, cls in (("model", Task), ("data", DataModule)):
            if self.given[section] is None:
                parser.add_lightning_class_args(cls, section, subclass_mode=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(EarlyStopping, "early_stopping")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.arguments.require_known(self.known())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "args given twice": they are always passed explicitly
            super().parse_arguments(parser, args)
        self._require_no_nulls()
        seed = self.config.get("seed_everything")
        SEED.require("--seed_everything", seed)
        if self.given["model"] is None:
            self._finish_model()

    def _require_no_nulls(self) -> None:
        """Raise InputError for null in an option that needs a value, which jsonargparse accepts in configs.

        Options of networks are null where the chosen one has none of that name.
        """
        kinds = {"trainer": {name: one.annotation for name, one in parameters(Trainer).items()}}
        values = {"trainer": self.config.trainer}
        if self.given["data"] is None:
            cls = resolve(":".join(self.config.data.class_path.rsplit(".", 1)))
            kinds["data"], values["data"] = option_types(cls), self.config.data.init_args
        for section, own in values.items():
            for name, kind in kinds[section].items():
                if name in own and own[name] is None and type(None) not in get_args(kind) and kind is not Any:
                    wanted = get_args(kind) if get_origin(kind) is Union else (kind,)
                    types = " or ".join(type_name(str(one)) for one in wanted)
                    raise InputError(f"config: {section}.{name}: expected {types}, not null")

    def _finish_model(self) -> None:
        """Complete the config for `config.yaml`: arguments shared with the data, and the network's defaults."""
        model = self.config.model
        cls = resolve(":".join(model.class_path.rsplit(".", 1)))
        data = self.given["data"].hparams if self.given["data"] is not None else self.config.data.init_args
        for name, value in linked(cls, model.init_args, data).items():
            model.init_args[name] = value
        given = {name: model.init_args[name] for name in (*cls.own_arguments, *cls.network_arguments)}
        values = complete(cls, given)
        for name in cls.network_arguments:
            model.init_args[name] = values.get(name)

    def known(self) -> list[str]:
        """Return all flags of the chosen classes; there are none for sections with an existing object."""
        names = ["--seed_everything", "--model", "--data", "--model.class_path", "--data.class_path", "--trainer"]
        names += [f"--early_stopping.{name}" for name in ("monitor", "mode", "patience")]
        names += [f"--trainer.{name}" for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
        for section in SECTIONS:
            if self.given[section] is None:
                target = self.arguments.class_of(section)
                names += [f"--{section}.{name}" for name in class_options(target)]
        return names

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self._get(self.config_init, "trainer").get("logger") is True:
            raise InputError(
                "--trainer.logger true would add folders of Lightning; log.csv and TensorBoard events are always "
                "written. Give the class of a logger instead"
            )
        require_trainer(self._get(self.config_init, "trainer"))
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(AtomicCheckpointIO())
        callbacks = self._get(self.config_init, "trainer").get("callbacks") or []
        if not any(isinstance(callback, Checkpoint) for callback in callbacks):
            kwargs["enable_checkpointing"] = False  # no additional checkpoints/ folder
        data: Any = self.given["data"] or self._get(self.config_init, "data")
        folder = self.folder(data) if callable(self.folder) else self.folder
        return super().instantiate_trainer(plugins=plugins, default_root_dir=str(folder), **kwargs)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except RuntimeError as error:
            if "SLURM" not in str(error):
                raise
            raise InputError(one_line(str(error))) from error  # ntasks and devices in the batch script disagree
        except (MisconfigurationException, ValueError, TypeError, ModuleNotFoundError) as error:
            ours = own_error(error)
            # Lightning writes `devices` or `Trainer(devices=0)`
            text = re.sub(r"^`(?:Trainer.)?(devices|num_nodes)[^`]*`", r"--trainer.\1", one_line(str(error)))
            raise ours if ours is not None else InputError(text) from error

        self.model = self.given["model"] or self.model
        self.datamodule = self.given["data"] or self.datamodule
        values = {f"data.{name}": value for name, value in self.datamodule.hparams.items()}
        values |= {f"model.{name}": value for name, value in {**self.model.hparams, **self.model.arguments}.items()}
        require_effects(self.arguments.domain.effects, self.arguments.given(), values, self.foreign == "refuse")

    def config_text(self) -> str:
        """Return the complete configuration as YAML, including all defaults."""
        for section, one in (("model", self.model), ("data", self.datamodule)):
            for name, value in one.kept_paths.items() if self.given[section] is None else ():
                self.config[section].init_args[name] = value
        text = self.parser.dump(self.config, skip_none=False)
        for section, value in self.given.items():
            if value is not None:
                path = class_name(type(value)).replace(":", ".")
                text += yaml.safe_dump({section: {"class_path": path, "init_args": public(value.hparams)}})
        return text


def require_trainer(options: Mapping[str, Any]) -> None:
    """Raise InputError, naming the option, for a number of the trainer that is out of bounds.

    Args:
        options: arguments of the trainer.
    """
    for name, bounds in TRAINER_LIMITS.items():
        asked = options.get(name)
        if isinstance(asked, str) and re.fullmatch(r"-?\d+", asked):  # devices
            asked = int(asked)
        bounds.require(f"--trainer.{name}", asked)


def class_options(target: str) -> list[str]:
    """Return the argument names of the class ``module.Class`` or ``module:Class`` and its bases.

    Raises:
        InputError: no such class.
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
        raise InputError(f"class_path {target.replace(':', '.')}: neither a training task nor a data module")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "x", fail_untyped=False)
    return sorted(
        {option.removeprefix("--x.").split(".")[0] for option in parser._option_string_actions if "--x." in option}
    )


def _short_name(name: str) -> list[str]:
    """Return the options of a class given by its bare name, which LightningCLI accepts once its module is imported."""
    queue: list[type] = [Task, DataModule]
    while queue:
        cls = queue.pop()
        if cls.__name__ == name:
            return class_options(f"{cls.__module__}:{name}")
        queue += cls.__subclasses__()
    raise InputError(f"no such class: {name}; give its full path, package.module.{name}")
