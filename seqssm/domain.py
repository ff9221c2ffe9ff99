"""What a science package tells the command line and `predict` about itself. Light: no torch, no lightning.

A domain registers one `Domain` object under the entry-point group ``seqssm.domains``. Everything heavy is named by
a ``"module:attribute"`` string and imported when it is needed (`resolve`).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from seqssm.errors import InputError

_told: set[str] = set()  # domains that cannot be loaded, already said


@dataclass(frozen=True)
class Option:
    """An option of a verb or of a domain's `predict`.

    Attributes:
        flag: ``"--horizon"``.
        help: one line, with the unit.
        type: ``str``, ``int``, ``float`` or ``bool`` (a switch).
        default: what holds when it is not given.
        choices: the only values taken, or None.
        many: takes one or more values.
    """

    flag: str
    help: str
    type: type = str
    default: Any = None
    choices: tuple[str, ...] | None = None
    many: bool = False

    @property
    def name(self) -> str:
        return self.flag.lstrip("-").replace("-", "_")


@dataclass(frozen=True)
class Verb:
    """A domain's own command, ``seqssm <domain> <name>``.

    Attributes:
        run: ``"module:function"``; called with the parsed options as a dict, returns the exit code.
        inputs: name of the positional arguments in the help, or None for none.
    """

    name: str
    help: str
    run: str
    example: str
    options: tuple[Option, ...] = ()
    inputs: str | None = None


@dataclass(frozen=True)
class DataSet:
    """A public data set: where it lies in ``$SEQSSM_DATA/<domain>/`` and where it comes from.

    Attributes:
        name: ``"etth1"``, as in ``seqssm data get etth1``.
        path: its place under the domain's folder; ``.gz`` beside it is taken too.
        url: its address, or None when the owner gives it out by hand only.
        size: bytes of the file at `url`, None when not known.
        sha256: of the plain (uncompressed) file; None = never computed from a file at hand, shown as unverified.
        member: path inside the archive at `url`, when it is one.
    """

    name: str
    title: str
    path: str
    url: str | None
    licence: str
    found: str
    size: int | None = None
    sha256: str | None = None
    member: str | None = None


@dataclass(frozen=True)
class Baseline:
    """A cheap model that is shown beside ours, by one name everywhere.

    Attributes:
        name: its row in the table of `test`, and what ``kfold --models`` takes.
        run: ``"module:function"``; called with the data module (``setup("fit")`` and ``setup("test")`` done), returns
            the figures of the test data by the names of `test`. It raises `seqssm.errors.NotApplicableError` where the
            data do not suit it: `test` then leaves it out, `kfold` reports it.
        in_test: whether `test` shows it.
    """

    name: str
    run: str
    in_test: bool = True


@dataclass(frozen=True)
class Renamed:
    """An option that had another name, or other values, in earlier versions.

    Attributes:
        old, new: ``"model.padding"``, ``"model.pad_to_stride"``; sections are ``model``, ``data`` and ``summary`` (what
            a checkpoint says about its data).
        values: old value -> new value; values that are not listed stay.
    """

    old: str
    new: str
    values: Mapping[Any, Any] | None = None


@dataclass(frozen=True)
class Added:
    """An option that earlier versions did not have: a checkpoint without it behaves as with this value.

    Attributes:
        name: ``"model.positions"``.
        value: what the code did before the option existed.
    """

    name: str
    value: Any


@dataclass(frozen=True)
class Moved:
    """A class that had another path, ``module:Class``, in earlier versions."""

    old: str
    new: str


@dataclass(frozen=True)
class Domain:
    """One science.

    Attributes:
        name: ``"forecasting"``; also the folder under ``$SEQSSM_DATA``.
        title: one line for ``seqssm --help``.
        task: default Task class, ``"seqssm_forecasting.task:ForecastingTask"``.
        data: default LightningDataModule class.
        predictor: `seqssm.prediction.predictor.Predictor` subclass.
        package: import name of the package whose ``configs/*.yaml`` are the presets.
        example_preset, example_input: used in the help's examples.
        models: the trained models that ``kfold --models A,B`` takes -> command-line overrides for `fit`.
        baselines: the models beside them; ``kfold --models`` takes their names too.
        metrics: ``"module:NAME"`` of the table of the science's scores (`seqssm.metrics.metric.Metric`).
        migrations: what earlier versions named otherwise or did not have.
        data_argument: the option of the data module that takes the user's own file in ``seqssm.fit(data=...)``.
        own_preset: the preset for the user's own files; `example_preset` when not given.
        folds: whether the data module takes ``fold`` (a number) and ``folds`` (how many, or a folder of split files
            ``*_0.csv, *_1.csv, ...``), so that ``kfold --folds`` makes sense.
        predict_options: what ``seqssm predict`` takes for this domain beyond the common ones.
        summary: schema of what a checkpoint says about its data (`DataModule.summary`): name -> kind, a mapping for a
            nested one. Kinds: str, int, float, bool, strings, numbers, list, mapping, tensor; ``"int?"`` may be None.
            Names that are not listed are not checked.
        demo: ``"module:function"``, called with (folder: Path) and returning a list of `seqssm.tools.page.Section`.
    """

    name: str
    title: str
    task: str
    data: str
    predictor: str
    package: str
    example_preset: str
    example_input: str
    demo: str
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    baselines: tuple[Baseline, ...] = ()
    metrics: str | None = None
    migrations: tuple[Renamed | Added | Moved, ...] = ()
    data_argument: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    own_preset: str | None = None
    verbs: tuple[Verb, ...] = ()
    predict_options: tuple[Option, ...] = ()
    data_sets: tuple[DataSet, ...] = ()
    folds: bool = False


def resolve(target: str) -> Any:
    """The object named ``"module:attribute"``, imported now."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def domains() -> dict[str, Domain]:
    """The installed domains by name, found through the entry-point group ``seqssm.domains``.

    A domain whose import raises anything is left out and reported in one line on stderr, once per process.
    """
    found: dict[str, Domain] = {}
    for point in sorted(entry_points(group="seqssm.domains"), key=lambda point: point.name):
        try:
            domain = point.load()
            if not isinstance(domain, Domain):
                raise TypeError(f"{point.value} is a {type(domain).__name__}, not a seqssm.domain.Domain")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also a SystemExit: the other domains must work whatever this one does
            if point.name not in _told:
                _told.add(point.name)
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                print(f"seqssm: the domain {point.name} is left out, it cannot be loaded: {reason}", file=sys.stderr)
            continue
        found[domain.name] = domain
    return found


def find_domain(name: str, file: Any = None) -> Domain:
    """The installed domain `name`.

    Raises:
        InputError: it is not installed; `file` is the checkpoint that asks for it.
    """
    known = domains()
    if name not in known:
        raise InputError(
            f"is of the domain {name!r}, which is not installed (installed: {', '.join(known)})", file=file
        )
    return known[name]
