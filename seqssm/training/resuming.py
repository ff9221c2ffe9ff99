"""Whether a run can be continued from its last checkpoint with the options that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqssm.domain import Domain
from seqssm.errors import InputError, other_domain
from seqssm.training import checkpoint, origin
from seqssm.training.callbacks import STATE, is_stopped
from seqssm.training.run_folder import ABOUT, BEST, LAST, STAGE, RunFolder
from seqssm.training.unchanged import is_recorded

if TYPE_CHECKING:
    from seqssm.training.lightning_cli import TrainingCLI

KEPT_ON_RESUME = ("root", "num_workers")  # data options that do not change a batch


def require_domain(domain: Domain, folder: RunFolder) -> None:
    """Reject a run of another domain, whose config would have unknown options.

    Args:
        domain: domain of the command.
        folder: the run folder.

    Raises:
        InputError: the run belongs to another domain.
    """
    for name in (LAST, BEST):
        if (folder.path / name).is_file():
            try:
                found = checkpoint.read_checkpoint(folder.path / name)["seqssm"]["domain"]
            except InputError:
                return  # a damaged checkpoint is reported with a remedy, see `require_continuable`
            if found != domain.name:
                raise other_domain(found, domain.name, folder.path, f"fit --resume {folder.path}")
            return


def require_no_stages(folder: RunFolder) -> None:
    """Reject the continuation of a student without those before it: it would become another model.

    Args:
        folder: the run folder.

    Raises:
        InputError: the run is that of a student with earlier ones.
    """
    about = folder.read_json(ABOUT)
    if about.get(STAGE):
        command = about.get("command") or "seqssm distill ..."
        raise InputError(
            f"is student {about[STAGE]} of a set, which is trained together with the students before it: continue "
            f"the set with {command} --resume",
            file=folder.path,
        )


def require_continuable(cli: TrainingCLI, path: Path) -> None:
    """Check that a run can be continued, and report if nothing is left to train.

    Args:
        cli: model, data and trainer with the options of the run and the user's.
        path: the run's `last.ckpt`.

    Raises:
        InputError: the file is unreadable, has different options, or has more epochs or steps than requested; or the
            run's `best.ckpt` is unreadable or missing, which no later epoch may replace.
    """
    try:
        content = checkpoint.read_checkpoint(path)
    except InputError as error:
        best = " (predict and test can still use best.ckpt)" if (path.parent / BEST).is_file() else ""
        raise InputError(
            f"{error.message}; the run cannot be continued: fit again with --overwrite{best}", file=path
        ) from None
    checkpoint.require_trainable(content, path)
    require_same(cli, content["seqssm"], path, given=False, free=_moved(cli, path.parent))
    _require_best(path.parent / BEST, content["callbacks"].get(STATE, {}))
    epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    state, wanted = content["callbacks"].get(STATE, {}), cli.config_init["early_stopping"]
    monitor = wanted.monitor or cli.model.monitor
    if state.get("monitor", monitor) != monitor:  # its best value cannot be compared
        raise InputError(f"--early_stopping.monitor {monitor}: the run has {state['monitor']}", file=path)
    stopped = is_stopped(state, wanted.patience)
    left = not stopped
    for name, done in (("epochs", epochs), ("steps", content["global_step"])):
        wanted = getattr(cli.trainer, f"max_{name}")
        if wanted is not None and 0 <= wanted < done:
            raise InputError(f"--trainer.max_{name} {wanted}: the run already has {done} {name}", file=path)
        left = left and wanted != done
    if not left and cli.trainer.global_rank == 0:
        why = "; early stopping ended it: a larger --early_stopping.patience continues it" if stopped else ""
        print(f"nothing left to train: epochs done: {epochs}, steps done: {content['global_step']}{why}")


def _moved(cli: TrainingCLI, run: Path) -> list[str]:
    """Options that may name other files than the checkpoint: those that exist, in a run that recorded its records.

    `seqssm.training.unchanged.require_unchanged` compares the records once they are read.
    """
    if not is_recorded(RunFolder(run)):
        return []
    data = cli.datamodule
    return [name for name in data.paths if origin.all_exist(data.hparams.get(name))]


def _require_best(path: Path, state: Mapping[str, Any]) -> None:
    """Check that `best.ckpt` can be read, and exists if a validation has written it."""
    remedy = "the best weights are lost: fit again with --overwrite (predict and test can still use last.ckpt)"
    if path.is_file():
        try:
            checkpoint.read_checkpoint(path)
        except InputError as error:
            raise InputError(f"{error.message}; {remedy}", file=path) from None
    elif state.get("best") is not None:
        raise InputError(f"is missing; {remedy}", file=path)


def require_same(cli: TrainingCLI, entry: dict[str, Any], path: Path, given: bool, free: Sequence[str] = ()) -> None:
    """Reject options that differ from the checkpoint's, because they would be ignored.

    Args:
        cli: model and data with the options of the run and the user's.
        entry: the ``"seqssm"`` entry of the checkpoint.
        path: the checkpoint.
        given: whether the data may have other options, as in a test.
        free: options of the data that may differ.

    Raises:
        InputError: names the option.
    """
    if entry["domain"] != cli.model.domain:
        raise other_domain(entry["domain"], cli.model.domain, path)
    if checkpoint.class_name(type(cli.model)) != entry["task"]:
        raise InputError(f"--model: the checkpoint is from {entry['task']}, not {type(cli.model).__name__}", file=path)
    pairs = [("model", checkpoint.stored(cli.model), entry["hparams"])]
    if not given:
        pairs.append(("data", checkpoint.stored(cli.datamodule), entry["data_hparams"]))
    for section, wanted, kept in pairs:
        for name in wanted:
            inferred = wanted[name] is None and name in cli.model.inferred_args
            may = name in (*KEPT_ON_RESUME, *free) if section == "data" else inferred
            if not may and wanted[name] != kept.get(name):
                differ = f"the checkpoint has {kept.get(name)}, not {wanted[name]}"
                raise InputError(f"--{section}.{name}: {differ}; drop the option, or fit again", file=path)
