"""The declaration of a domain for the command line and `predict`. Imports neither torch nor lightning.

A domain registers one `Domain` object under the entry-point group ``seqssm.domains``. Everything heavy is named by
a ``"module:attribute"`` string and imported when it is needed (`resolve`).
"""

from __future__ import annotations

import keyword
import sys
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from seqssm.bounds import NONE, Bounds
from seqssm.errors import InputError, nearest

_told: set[str] = set()  # domains that cannot be loaded and were reported


@dataclass(frozen=True)
class Option:
    """An option of a command or of a domain's `predict`.

    Attributes:
        flag: ``"--horizon"``.
        help: one line, with the unit.
        type: ``str``, ``int``, ``float`` or ``bool`` (a switch).
        default: value when the option is not given.
        choices: allowed values, or None for any.
        many: whether the option takes one or more values, separated by spaces or commas.
        pairs: whether each of several values is NAME=VALUE, for which Python also takes a dict, of tuples for bounds.
        bounds: of a number.
        writes: whether it names a file that `predict` writes beside its table; it replaces an existing one only with
            ``--overwrite``.
        needs: flags without which it has no effect and is refused: ``("--write-vcf",)``, or with the only value that
            gives it an effect, ``("--format challenge",)``.
        models: the only kind of model on which it has an effect, ``"masked language models"``; one of
            `seqssm.prediction.predictor.Predictor.kinds`.
        metavar: name of the value in the help; by default that of the type.
        formerly: flags that it had in earlier versions, which are accepted with a note.
    """

    flag: str
    help: str
    type: type = str
    default: Any = None
    choices: tuple[str, ...] | None = None
    many: bool = False
    pairs: bool = False
    bounds: Bounds = NONE
    writes: bool = False
    needs: tuple[str, ...] = ()
    models: str = ""
    metavar: str | None = None
    formerly: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return plain_name(self.flag)

    def is_given(self, value: Any) -> bool:
        """Whether `value` differs from what the option has if it is not given, so that other options depend on it."""
        return value not in (None, False) and value != self.default

    def of_python(self, value: Any) -> Any:
        """Return a value from Python as the command line gives it.

        Args:
            value: None, or one of the option's type; a number or path is accepted for text, a scalar of NumPy or
                PyTorch for a number, a dict for `pairs`. A list, tuple, array or series if the option takes several.

        Raises:
            InputError: it has another type.
        """
        if value is None:
            return None
        if not self.many:
            return self._plain(value)
        if self.pairs and isinstance(value, Mapping):
            bounds = {name: one if isinstance(one, list | tuple) else [one] for name, one in value.items()}
            value = [
                f"{name}={':'.join('' if part is None else str(part) for part in parts)}"
                for name, parts in bounds.items()
            ]
        if isinstance(value, Mapping | Set):  # neither its keys nor any order is meant
            raise InputError(f"{self.name}: expected a list, not {type(value).__name__}")
        value = value.item() if getattr(value, "ndim", None) == 0 else value
        return [self._plain(one) for one in self.listed(value)]

    def _plain(self, value: Any) -> Any:
        """Return one value as a plain object of the option's type."""
        one = value.item() if getattr(value, "ndim", None) == 0 else value
        kinds = {int: (Integral, "a whole number"), float: (Real, "a number"), bool: (bool, "True or False")}
        text = "a file" if self.metavar == "PATH" or self.type is Path else "text"
        kind, expected = kinds.get(self.type, (str | PathLike | Real, text))
        if isinstance(one, bool) == (kind is bool) and isinstance(one, kind):
            return self.type(fspath(one) if isinstance(one, PathLike) else one)
        if self.type is Path and hasattr(one, "columns"):  # a data frame instead of a table
            return one
        shown = repr(one)
        shown = shown if len(shown) < 60 and "\n" not in shown else f"({type(one).__name__})"
        raise InputError(f"{self.name} {shown}: expected {expected}")

    def listed(self, given: Any) -> list[Any]:
        """Return the values of a list option from words of one or several values: ``80,90``, or ``80`` and ``90``.

        A word may quote a value that contains a comma, as in CSV; an existing path is one value.

        Args:
            given: a word or value, or several.

        Raises:
            InputError: a value is empty, or of the wrong type.
        """
        found: list[Any] = []
        for word in given if isinstance(given, Iterable) and not isinstance(given, str) else [given]:
            if not isinstance(word, str):
                found.append(word)
                continue
            whole = self.type is Path and Path(word).exists()
            found += [self._one(part, word) for part in ([word] if whole else split_list(word))]
        return found

    def _one(self, text: str, word: str) -> Any:
        expected = {int: "whole numbers", float: "numbers"}.get(self.type, "values")
        try:
            if not text:
                raise ValueError
            return self.type(text)
        except ValueError:
            raise InputError(f"{self.flag} {word or repr(word)}: expected {expected}, as in A,B or A B") from None


def plain_name(flag: str) -> str:
    """Return the name of a flag in Python: ``--batch-size`` is ``batch_size``."""
    return flag.lstrip("-").replace("-", "_")


def python_name(name: str) -> str:
    """Return the name of an option as an argument in Python, where reserved words end in ``_``: ``class_``."""
    return f"{name}_" if keyword.iskeyword(name) else name


def split_list(word: str) -> list[str]:
    """Split a word at its commas, except in double quotes; one comma at the end is ignored."""
    parts, start, quotes = [], 0, word.count('"')
    for place, letter in enumerate(word):
        if letter == '"':
            quotes -= 1
        elif letter == "," and quotes % 2 == 0:
            parts.append(word[start:place].strip())
            start = place + 1
    parts.append(word[start:].strip())
    parts = [part[1:-1].replace('""', '"') if _is_quoted(part) else part for part in parts]
    return parts[:-1] if len(parts) > 1 and not parts[-1] else parts


def _is_quoted(part: str) -> bool:
    return len(part) > 1 and part[0] == part[-1] == '"'


FIGURES = ("--figures",)
"""What the options of figures need."""
OVERWRITE = Option("--overwrite", "replace the output", bool)
ACCELERATOR = Option("--accelerator", "device type to run on", str, "auto", ("auto", "cpu", "gpu", "cuda", "mps"))


@dataclass(frozen=True)
class Command:
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
    """A public data set: its path in ``$SEQSSM_DATA/<domain>/`` and its origin.

    Attributes:
        name: ``"etth1"``, as in ``seqssm data get etth1``.
        path: path relative to the domain's folder; the same path with ``.gz`` appended is accepted too.
        url: download address, or None if the owner distributes it on request only.
        size: size of the file at `url` in bytes, None if unknown.
        sha256: hash of the uncompressed file; None if it was never computed, which is shown as unverified.
        member: path inside the archive at `url`, if `url` is an archive.
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
    """A cheap model to compare with, under one name everywhere.

    Attributes:
        name: row in the table of `test`, and name for ``kfold --models``.
        run: ``"module:function"``; called with the data module (after ``setup("fit")`` and ``setup("test")``), returns
            the scores on the test data, named as in `test`. Raises `seqssm.errors.NotApplicableError` if it cannot be
            fitted to the data: `test` then omits it, `kfold` reports it.
        in_test: whether `test` includes it.
    """

    name: str
    run: str
    in_test: bool = True


@dataclass(frozen=True)
class Renamed:
    """An option that had another name, or other values, in earlier versions.

    Attributes:
        old, new: ``"model.padding"``, ``"model.pad_to_stride"``; sections are ``model``, ``data`` and ``summary`` (the
            description of the data in a checkpoint).
        values: old value -> new value; values that are not listed are kept.
    """

    old: str
    new: str
    values: Mapping[Any, Any] | None = None


@dataclass(frozen=True)
class Added:
    """An option that earlier versions did not have. A checkpoint without it behaves as if it had this value.

    Attributes:
        name: ``"model.positions"``.
        value: value equivalent to the behaviour before the option existed.
        of: name of the class that has it; by default all classes of its section.
    """

    name: str
    value: Any
    of: str = ""


@dataclass(frozen=True)
class Moved:
    """A class that had another path, ``module:Class``, in earlier versions."""

    old: str
    new: str


@dataclass(frozen=True)
class Effect:
    """An option of model or data that has an effect only beside others; given without it, the option is refused.

    Attributes:
        name: ``"model.conv_kernel"``.
        needs: options of which one must be on (``"model.conv_layers"``) or have one of some values
            (``"model.mixer mamba2|mamba3"``).
        without: options that replace it.
    """

    name: str
    needs: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class OfDataSet:
    """An option of the data whose value in a preset belongs to the preset's data set; own records are read without it.

    Attributes:
        name: ``"split"``.
        values: the values concerned; all if empty.
        beside: options of own records beside which the value stays, because they can name a copy of the set.
    """

    name: str
    values: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Domain:
    """A domain (science): its task, data, commands, baselines, presets and public data sets.

    Attributes:
        name: ``"forecasting"``; also the folder under ``$SEQSSM_DATA``.
        title: one line for ``seqssm --help``.
        task: default Task class, ``"seqssm_forecasting.task:ForecastingTask"``.
        data: default LightningDataModule class.
        predictor: the `seqssm.prediction.predictor.Predictor` subclass.
        package: import name of the package whose ``configs/*.yaml`` are the presets.
        example_preset, example_input: names used in the examples of the help pages.
        models: trained models for ``kfold --models A,B``, mapped to the overrides that `fit` needs for them.
        baselines: models to compare with; ``kfold --models`` accepts their names too.
        metrics: ``"module:NAME"`` of the table of the science's scores (`seqssm.metrics.metric.Metric`).
        test_records: ``"module:function"``, called with (run folder: Path, checkpoint entry: dict); returns the
            `seqssm.metrics.records.TestRecords` that `test` wrote, or None. For calibration and paired differences.
        export: ``"module:function"``, called with (task, summary: dict, streaming: bool); returns the
            `seqssm.tools.export.Graph` of a trained model. Without it, only weights are exported.
        kfold_tables: ``"module:function"`` of further tables of ``kfold``; called with (folder of the study, rows of
            its `folds.csv`), returns (title, frame) pairs.
        migrations: options and classes that earlier versions named differently or did not have.
        effects: options of model and data that have an effect only beside others.
        of_data_set: options whose values in a preset belong to its data set, beside ``dataset`` itself.
        data_argument: option of the data module for the user's own file in ``seqssm.fit(data=...)``.
        own_preset: preset for the user's own files; `example_preset` by default.
        folds: whether the data module takes ``fold`` (an index) and ``folds`` (their number, or a folder of split files
            ``*_0.csv, *_1.csv, ...``), as ``kfold --folds`` requires.
        windows: whether the data module takes ``windows`` (their number) and ``window`` (an index) of a rolling-origin
            cross-validation, as ``kfold --windows`` requires.
        extends: whether the domain has single-label classifiers, to which ``seqssm <domain> extend`` adds classes.
        predict_options: options of ``seqssm predict`` specific to this domain.
        summary: schema of the description of the data in a checkpoint (`DataModule.summary`): name -> kind, or a
            mapping for a nested entry. Kinds: str, int, float, bool, strings, numbers, list, mapping, tensor; a kind
            with a question mark (``"int?"``) may be None. Names that are not listed are not checked.
        demo: ``"module:function"``, called with (folder: Path) and returning a list of `seqssm.tools.page.Section`.
        requires: import names of the packages without which nothing of the domain works, beyond seqssm's own.
        install: command that installs them; by default ``pip install 'seqssm[<name>]'``.
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
    test_records: str | None = None
    export: str | None = None
    kfold_tables: str | None = None
    migrations: tuple[Renamed | Added | Moved, ...] = ()
    effects: tuple[Effect, ...] = ()
    of_data_set: tuple[OfDataSet, ...] = ()
    data_argument: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    own_preset: str | None = None
    commands: tuple[Command, ...] = ()
    predict_options: tuple[Option, ...] = ()
    data_sets: tuple[DataSet, ...] = ()
    folds: bool = False
    windows: bool = False
    extends: bool = False
    requires: tuple[str, ...] = ()
    install: str | None = None

    def missing(self) -> str | None:
        """Describe missing packages and how to install them; None if nothing is missing."""
        names = [name for name in self.requires if not _is_installed(name)]
        if not names:
            return None
        verb = "is" if len(names) == 1 else "are"
        how = self.install or f"pip install 'seqssm[{self.name}]'"
        return f"the domain {self.name} needs {' and '.join(names)}, which {verb} not installed: {how}"

    def require(self, file: Any = None) -> None:
        """Raise InputError, naming `file` if given, if a required package is missing."""
        problem = self.missing()
        if problem is not None:
            raise InputError(problem, file=file)


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def resolve(target: str) -> Any:
    """Import and return the object named ``"module:attribute"``."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def domains() -> dict[str, Domain]:
    """Find the installed domains by name through the entry-point group ``seqssm.domains``.

    A domain whose import fails is skipped and reported in one line on stderr, once per process.
    """
    found: dict[str, Domain] = {}
    for point in sorted(entry_points(group="seqssm.domains"), key=lambda point: point.name):
        try:
            domain = point.load()
            if not isinstance(domain, Domain):
                raise TypeError(f"{point.value} is a {type(domain).__name__}, not a seqssm.domain.Domain")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit included: a broken domain must not affect the others
            if point.name not in _told:
                _told.add(point.name)
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                print(f"seqssm: domain {point.name} skipped, it cannot be loaded: {reason}", file=sys.stderr)
            continue
        found[domain.name] = domain
    return found


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def find_domain(name: str, file: Any = None) -> Domain:
    """Return the installed domain `name`.

    Raises:
        InputError: the domain, or a package that it needs, is not installed; `file` is the checkpoint that needs it.
    """
    known = domains()
    if name not in known and file is None:
        raise InputError(
            f"no domain {name!r} is installed{nearest(str(name), known) or f'; there are {_listed(known)}'}"
        )
    if name not in known:
        raise InputError(
            f"belongs to the domain {name!r}, which is not installed (installed: {_listed(known)})", file=file
        )
    known[name].require(file)
    return known[name]
