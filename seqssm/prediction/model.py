"""A trained model in memory: predict, embed and test on files or in-memory data."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sized
from numbers import Integral, Number
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from seqssm.domain import Domain, find_domain, plain_name, python_name, resolve
from seqssm.errors import InputError, nearest, other_domain, require_type
from seqssm.files import notes
from seqssm.files.disk import require_writable
from seqssm.files.frames import as_pandas, is_frame
from seqssm.given import Values, given_names, require_models, require_needs
from seqssm.nn.stages import attach
from seqssm.prediction.predictor import Predictor, Record

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from seqssm.metrics.report import Report
    from seqssm.training.data import DataModule


class Model:
    """A trained model, ready to predict.

    Args:
        path: a checkpoint or a run folder; an ensemble or the folder of a `kfold` study.
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        budget: of a set of students (``seqssm distill``), the fraction of the teacher's operations that prediction may
            take: the first students within it are used. None for all of them.

    Attributes:
        domain: its domain.
        run: run folder; None for a checkpoint outside one.
        data: the data module it was trained on, after `seqssm.fit`; otherwise None.
        network: the `nn.Module`, in eval mode, on its device; of an ensemble, an `nn.ModuleList` of the members'.
        summary: description of the training data in the checkpoint, or in that of the first member.
        members: names of the members of an ensemble; empty for a single model.
        students: names of the students that are added; `network` is the last one.

    Raises:
        InputError: the checkpoint is not usable, the device is unavailable, the precision is unknown, or the budget
            does not apply.
    """

    def __init__(
        self,
        path: str | Path,
        accelerator: str = "auto",
        precision: str = "32-true",
        budget: float | None = None,
    ) -> None:
        from seqssm.prediction.loop import PRECISIONS
        from seqssm.training import checkpoint, ensemble
        from seqssm.training.processes import choose_device

        if not isinstance(path, str | Path):
            raise InputError(f"path: expected a checkpoint or the folder of a run, not {type(path).__name__}")
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision}: expected one of {', '.join(PRECISIONS)}")
        ensemble.warn_of_missing(path)
        self.path, self.folder = ensemble.find(path), Path.cwd()
        found = ensemble.read_ensemble(self.path)
        members = found.within(budget, self.path)
        self.domain: Domain = find_domain(members[0].content["seqssm"]["domain"], file=self.path)
        self.entry: dict[str, Any] = members[0].content["seqssm"]
        self.summaries = [checkpoint.Summary(one.content["seqssm"]["data"], self.path) for one in members]
        self.summary, self.members = self.summaries[0], [one.name for one in members if len(members) > 1]
        self.precision = precision
        device = choose_device(accelerator, 0)
        tasks = [checkpoint.build_task(one.content, self.path) for one in members]
        self.engines: list[str | None] = list(dict.fromkeys(task.hparams.get("engine") for task in tasks))
        networks = [task.model.to(device) for task in tasks]
        self.students: list[str] = []
        self.stages: list[nn.Module] = []
        if found.output == ensemble.SUM:
            self._add(found.heads, members, networks)
        self.network: nn.Module = nn.ModuleList(networks) if self.members else networks[-1]
        self.run: Path | None = self.path.parent if (self.path.parent / "config.yaml").is_file() else None
        self.data: DataModule | None = None
        self.keep: Any = None  # keeps a temporary run folder alive

    def _add(self, heads: tuple[str, ...], members: list[Any], networks: list[nn.Module]) -> None:
        """Add the outputs of the first students to those of the last one."""
        self.students, self.members = [one.name for one in members], []
        self.summaries = self.summaries[-1:]
        self.summary = self.summaries[0]
        self.stages = networks[:-1]
        try:
            attach(networks[-1], self.stages, heads)
        except ValueError as error:
            raise InputError(f"is corrupt: {error}", file=self.path) from None

    def require_single(self, what: str) -> None:
        """Raise InputError for an ensemble, a set of students or one of its later students.

        Args:
            what: what needs a single network, for the message.
        """
        if self.students:
            raise InputError(f"a set of students has no {what}; its first student is a complete model", file=self.path)
        if self.members:
            raise InputError(f"an ensemble has no {what}; use one of its members", file=self.path)
        self._require_whole()

    def _require_whole(self) -> None:
        from seqssm.training.checkpoint import require_whole

        if not self.students:
            require_whole(self.entry, self.path)

    def predictor(self, options: dict[str, Any], figures: str | Path | None = None) -> Predictor:
        """Create the domain's predictor with `options`; the others have their defaults.

        Args:
            options: values by name; a name that Python reserves may end in ``_``: ``class_``.
            figures: folder of figures, without which their options have no effect.

        Raises:
            InputError: an unknown option or an invalid value.
        """
        from seqssm.training.processes import require_engine

        self._require_whole()
        for engine in self.engines:
            require_engine(engine, next(self.network.parameters()).device)
        known = {option.name: option for option in self.domain.predict_options}
        today = {plain_name(old): name for name, option in known.items() for old in option.formerly}
        today |= {python_name(name): name for name in known}
        named = {today.get(name, name) for name in given_names(options)}
        options = {today.get(name, name): value for name, value in options.items()}
        for name, value in list(options.items()):
            if name not in known:
                near = nearest(name, [python_name(one) for one in known])
                raise InputError(f"{self.domain.name} has no option {name}{near}")
            value = known[name].of_python(value)
            options[name] = value = as_pandas(value) if is_frame(value) else value
            choices = known[name].choices
            if choices and value is not None and value not in choices:
                raise InputError(f"{name} {value}: expected one of {', '.join(choices)}")
            known[name].bounds.require(name, value)
        defaults = {name: option.default for name, option in known.items()}
        make, given = resolve(self.domain.predictor), Values({**defaults, **options}, named)
        require_needs(known.values(), Values({**given, "figures": figures}, named))
        if not self.members:
            made = make(self.network, self.summary, given)
            require_models(known.values(), given, made.kinds)
            return made
        from seqssm.prediction.ensemble import EnsemblePredictor

        assert isinstance(self.network, nn.ModuleList)
        own = [make(one, summary, dict(given)) for one, summary in zip(self.network, self.summaries)]
        require_models(known.values(), given, own[0].kinds)
        return EnsemblePredictor(own, self.members)

    def test(self, data: Any = None, **options: Any) -> Report:
        """Test the model as ``seqssm <domain> test`` does.

        Args:
            data: other data: the user's file, or options of the data module as a mapping. By default the test split of
                the training data set.
            **options: further options of the data module.

        Returns:
            The scores (`metrics`) and tables, as printed.
        """
        from seqssm.training import checkpoint, lists, origin, run

        given: dict[str, Any] = dict(options)
        if isinstance(data, str | Path):
            given[checkpoint.file_option(self.entry, self.path)] = str(data)
        elif data is not None and not isinstance(data, Mapping):
            raise InputError(
                f"test: expected a file or a dict of options, not {type(data).__name__}; write a data frame to a file "
                "(.csv, .parquet)"
            )
        elif data is not None:
            given |= dict(data)
        given = lists.plain_options("test", given)
        with self._where_loaded() as (here, path):
            if self.entry["data_class"]:
                own = checkpoint.resolve_class(self.entry["data_class"], self.domain.name, path)
                given = origin.located(given, getattr(own, "paths", ()), here)
            flags = [f"--data.{name}={run.flag_value(value)}" for name, value in given.items()]
            return run.evaluate(self.domain, "test", path, flags, data=None if given else self.data)

    @contextlib.contextmanager
    def _where_loaded(self) -> Iterator[tuple[Path, Path]]:
        """Work in the folder in which the model was loaded, to which the paths of its data are relative.

        Yields:
            (the folder left, the checkpoint).
        """
        here = Path.cwd()
        if here == self.folder:
            yield here, self.path
            return
        with contextlib.chdir(self.folder):
            yield here, self.folder / self.path

    @notes.once()
    def embed(self, inputs: Any, *, batch_size: int = 32, num_workers: int = 0, **options: Any) -> pd.DataFrame:
        """Compute the features in front of the head, one row per record.

        Args:
            inputs: argument of `predict`.
            batch_size: records per batch.
            num_workers: processes that read the records.
            **options: the domain's own, as for `predict`.

        Returns:
            Columns ``index, id, e0, e1, ..., status, reason``; features are empty for a record that cannot be read.
        """
        self.require_single("embeddings")
        predictor = self.predictor(options)
        if why := predictor.no_embedding():
            raise InputError(why)
        wrapped = _Embedding(predictor)
        return self._table(wrapped, self._records(predictor, inputs), batch_size, num_workers, None)

    @notes.once()
    def predict(
        self,
        inputs: Any,
        *,
        batch_size: int = 32,
        num_workers: int = 0,
        figures: str | Path | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """Return the table that ``seqssm predict`` writes, as a frame.

        Args:
            inputs: one or more files, as on the command line; or in-memory data in the form of the domain
                (forecasting: a DataFrame; ECG: arrays; see the domain's README).
            batch_size: records per batch.
            num_workers: processes that read the records.
            figures: folder for a figure per record.
            **options: the domain's own, as ``seqssm predict MODEL.ckpt --help`` lists them: ``horizon=96``.

        Returns:
            Columns ``index, id``, the domain's own, ``status`` ("ok" or "failed"), ``reason``. Every record has a row.
        """
        require_type("figures", figures, (str, Path), "a folder")
        predictor = self.predictor(options, figures)
        folder = None if figures is None else Path(figures)
        if folder is not None:
            require_writable(folder)
        return self._table(predictor, self._records(predictor, inputs), batch_size, num_workers, folder)

    def _records(self, predictor: Predictor, inputs: Any) -> Iterator[Record]:
        if inputs is None or isinstance(inputs, Number | bytes):
            raise InputError(f"expected files, or data in memory, not {inputs!r:.60} ({type(inputs).__name__})")
        inputs = list(inputs) if isinstance(inputs, Iterator) else inputs
        if isinstance(inputs, Sized) and not len(inputs):
            raise InputError(f"no inputs: the {type(inputs).__name__} is empty")
        if isinstance(inputs, str | Path):
            return predictor.records([Path(inputs)])
        if isinstance(inputs, list | tuple) and all(isinstance(one, str | Path) for one in inputs):
            return predictor.records([Path(one) for one in inputs])
        return predictor.records_of(inputs)

    def _table(
        self, predictor: Any, records: Iterator[Record], batch_size: int, num_workers: int, figures: Path | None
    ) -> pd.DataFrame:
        import pyarrow as pa

        from seqssm.prediction.loop import batched, outcomes
        from seqssm.prediction.table import common_schema, conform, tabulate

        for name, value, minimum in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            require_type(name, value, Integral, "a whole number")
            if value is None or value < minimum:
                raise InputError(f"{name} {value}: must be at least {minimum}")
        with tempfile.TemporaryDirectory(prefix="seqssm-") as work:
            predictor.work = Path(work)
            tables = [
                tabulate(outcome.records, outcome.rows, predictor.columns)
                for outcome in outcomes(predictor, batched(records, batch_size), num_workers, self.precision, figures)
            ] or [tabulate([], [], predictor.columns)]
            predictor.finish(iter(tables))
            predictor.work = None
        tables = [_with_columns(table, predictor.columns) for table in tables]
        schema = common_schema(table.schema for table in tables)
        return pa.concat_tables([conform(table, schema) for table in tables]).to_pandas()


def _with_columns(table: pa.Table, columns: list[str]) -> pa.Table:
    """Add empty columns that were not known when the first batches, of failed records only, were tabulated."""
    import pyarrow as pa

    for name in columns:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table)))
    return table.select(["index", "id", *columns, "status", "reason"])


class _Embedding:
    """A predictor whose rows are the features in front of the head."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        predictor.embeds = True
        self.columns: list[str] = []
        self.model, self.device, self.prepare = predictor.model, predictor.device, predictor.prepare
        self.work: Path | None = None

    def predict(self, records: list[Record]) -> list[list[dict[str, Any]]]:
        features = self.predictor.embed(records)
        if len(features) and not self.columns:
            self.columns += [f"e{k}" for k in range(len(features[0]))]
        return [[dict(zip(self.columns, map(float, row)))] for row in features]

    def failed(self, record: Record) -> list[dict[str, Any]]:
        return [{}]

    def finish(self, tables: Iterator[pa.Table]) -> list[Path]:
        """Do nothing: only the rows are needed."""
        return []


def load(path: str | Path, accelerator: str = "auto", precision: str = "32-true", budget: float | None = None) -> Model:
    """Load a checkpoint: ``seqssm.load("best.ckpt").predict("series.csv")``. See `Model`.

    The folder of a `kfold` study is loaded as one model, which predicts the mean over its trained models.
    """
    return Model(path, accelerator, precision, budget)


def load_single(path: str | Path, what: str, accelerator: str = "auto", domain: str | None = None) -> Model:
    """Load a checkpoint or the folder of a run, for a command that needs one network.

    Args:
        path: checkpoint or run folder.
        what: what needs a single network, for messages.
        accelerator: argument of `Model`.
        domain: name of the domain to which the command belongs; None for any.

    Raises:
        InputError: a study, an ensemble or a set of students; a model of another domain.
    """
    from seqssm.training import checkpoint

    model = Model(checkpoint.find_checkpoint(path), accelerator)
    if domain not in (None, model.domain.name):
        raise other_domain(model.domain.name, str(domain), model.path)
    model.require_single(what)
    return model
