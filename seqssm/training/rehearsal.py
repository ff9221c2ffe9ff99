"""Rehearsal of a fit: whether it can begin and has records to test, checked without training a batch."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING

from seqssm.errors import InputError
from seqssm.files.notes import quiet
from seqssm.training.callbacks import OnFitStart
from seqssm.training.supervision import supervised

if TYPE_CHECKING:
    from seqssm.training.data import DataModule
    from seqssm.training.lightning_cli import TrainingCLI

NO_TEST = "the data set has no test part"
NEEDED = ("max_epochs", "max_steps", "limit_train_batches", "limit_test_batches")


class _BegunError(Exception):
    """Raised where the first epoch would begin."""


def require_trainable(cli: TrainingCLI, data: DataModule, trained: bool = True) -> None:
    """Read the data and set up the model, as a fit and the test after it would; what they print is left out.

    Args:
        cli: model and trainer of the fit, which are not to be used afterwards; the trainer has one process.
        data: data module of the fit, or one with equal options that has read them already.
        trained: whether there is a fit, otherwise only the data are read.

    Raises:
        InputError: as the fit or the test would.
    """
    for name in NEEDED if trained else NEEDED[-1:]:
        if getattr(cli.trainer, name) == 0:
            raise InputError(f"--trainer.{name} 0: every run is {'tested' if 'test' in name else 'trained'}")
    printed = (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()))
    with contextlib.ExitStack() as stack:
        for one in (*printed, quiet(), warnings.catch_warnings()):
            stack.enter_context(one)
        if trained:
            cli.trainer.loggers, cli.trainer.callbacks = [], [OnFitStart(_stop)]  # type: ignore[attr-defined]
            with supervised(cli.trainer), contextlib.suppress(_BegunError):
                cli.trainer.fit(cli.model, datamodule=data, weights_only=True)
        else:
            data.prepare_data()
            data.setup("fit")
        data.setup("test")
        batches, limit = len(data.test_dataloader()), cli.trainer.limit_test_batches
        if not batches:
            raise InputError(NO_TEST)
        if isinstance(limit, float) and batches * limit < 1:
            raise InputError(f"--trainer.limit_test_batches {limit}: less than one of {batches} test batches")


def _stop() -> None:
    raise _BegunError
