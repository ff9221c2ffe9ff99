"""Ensembles: the trained models of a study in one file, which is used like a checkpoint.

The file holds tensors and plain Python only. In addition to an empty ``"state_dict"``, its ``"seqssm"`` entry has
the ``format, version, domain`` of a checkpoint and ``"ensemble"``: ``output`` (how the members' outputs are combined)
and ``sources``, the identity of the member files; ``"members"`` are the checkpoints of the members without their
optimiser states.

``output`` is ``mean``, or ``sum`` for a sequence of students (``seqssm distill``): the outputs of the heads named in
``heads`` are added, and the first k members are a model of their own. ``flops`` holds the operations of each member as
a fraction of those of the ``teacher``, whose path is kept as information.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seqssm.errors import InputError, other_domain
from seqssm.files.datasets import cache_folder
from seqssm.files.disk import atomic, require_writable
from seqssm.training import checkpoint
from seqssm.training.cells import PLACE, tabled
from seqssm.training.run_folder import BEST, CONFIG, ENSEMBLE, PLAN, RunFolder
from seqssm.version import __version__

MEAN, SUM = "mean", "sum"
MOST = 5  # runs named in a warning


@dataclass
class Member:
    """A trained model of an ensemble.

    Attributes:
        name: path of its run in the study (``smamba/seed-1``).
        content: its checkpoint, as read.
    """

    name: str
    content: dict[str, Any]


@dataclass
class Ensemble:
    """The content of a checkpoint file.

    Attributes:
        members: the models; one for an ordinary checkpoint.
        output: how their outputs are combined, ``"mean"`` or ``"sum"``.
        heads: modules whose outputs are added.
        flops: operations of each member of a sum, as a fraction of the teacher's.
    """

    members: list[Member]
    output: str = MEAN
    heads: tuple[str, ...] = ()
    flops: tuple[float, ...] = ()

    def within(self, budget: float | None, path: Path) -> list[Member]:
        """Return the first members of a sum whose operations are within `budget`, a fraction of the teacher's.

        Args:
            budget: the fraction; None for all members.
            path: the file, for messages.

        Raises:
            InputError: the checkpoint is not a sum, or its first member has more operations.
        """
        if budget is None:
            return self.members
        if self.output != SUM:
            raise InputError("has no budget: only the students of seqssm distill can stop early", file=path)
        totals = [sum(self.flops[: k + 1]) for k in range(len(self.flops))]
        count = sum(total <= budget * (1 + 1e-9) for total in totals)
        if not count:
            raise InputError(
                f"--budget {budget:g}: the first student alone has {totals[0]:.3g} of the teacher's operations",
                file=path,
            )
        return self.members[:count]


def is_ensemble(content: Any) -> bool:
    """Whether the content of a checkpoint file is an ensemble."""
    entry = content.get("seqssm") if isinstance(content, dict) else None
    return isinstance(entry, dict) and "ensemble" in entry


def combine(members: Sequence[str | Path], output: str | Path, names: Sequence[str] | None = None) -> Path:
    """Write trained models of one domain as one ensemble.

    Args:
        members: checkpoints or run folders.
        output: the file to write.
        names: names of the members; by default their run folders.

    Returns:
        The file.

    Raises:
        InputError: fewer than two members, or members of different domains or with different outputs.
    """
    paths = [checkpoint.find_checkpoint(path) for path in members]
    if len(paths) < 2:
        raise InputError(f"an ensemble needs at least two trained models, found {len(paths)}", file=output)
    own = [Member(name, checkpoint.read_checkpoint(path)) for name, path in zip(names or map(str, members), paths)]
    first = own[0].content["seqssm"]
    for member, path in zip(own, paths):
        entry = member.content["seqssm"]
        if entry["domain"] != first["domain"]:
            raise other_domain(entry["domain"], first["domain"], path)
    return _write(own, output, first["domain"], {"output": MEAN, "sources": _sources(paths)})


def combine_sum(
    members: Sequence[Path], output: str | Path, heads: Sequence[str], flops: Sequence[float], teacher: str
) -> Path:
    """Write students as one model whose output is their sum.

    Args:
        members: checkpoints, in the order in which they were trained.
        output: the file to write.
        heads: names of the modules whose outputs are added.
        flops: operations of each member, as a fraction of the teacher's.
        teacher: path of the teacher, as information.

    Returns:
        The file.
    """
    own = [Member(f"student-{k}", checkpoint.read_checkpoint(path)) for k, path in enumerate(members, 1)]
    entry = {"output": SUM, "sources": _sources(members), "heads": list(heads), "flops": list(flops)}
    return _write(own, output, own[0].content["seqssm"]["domain"], {**entry, "teacher": teacher})


def _write(members: Sequence[Member], output: str | Path, domain: str, entry: dict[str, Any]) -> Path:
    content = {
        "seqssm": {
            "format": checkpoint.FORMAT,
            "version": __version__,
            "domain": domain,
            "ensemble": entry,
        },
        "state_dict": {},
        "members": [
            {"name": member.name, **{key: member.content[key] for key in ("seqssm", "state_dict")}}
            for member in members
        ],
    }
    with atomic(Path(output)) as file:
        torch.save(content, file)
    return Path(output)


def _sources(paths: Sequence[Path]) -> list[list[Any]]:
    """Return size and modification time of the members' files, by which a changed study is recognised."""
    return [[str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def members_of(study: Path) -> list[Path]:
    """List the finished runs of a `kfold` study, or of one of its models."""
    inside = study if (study / PLAN).is_file() else study.resolve().parent
    if not (inside / PLAN).is_file() or (study / BEST).is_file():
        return []
    runs = sorted(path.parent for path in study.glob(f"**/*seed-*/{BEST}"))
    return [run for run in runs if "test" in RunFolder(run).read_json()]


def warn_of_missing(path: str | Path) -> None:
    """Print a warning if some runs of a study are not finished, or are gone, and therefore not in its ensemble.

    Args:
        path: a checkpoint, the folder of a run, of a study, or of one of its models.
    """
    folder = Path(path)
    found = members_of(folder) if folder.is_dir() else []
    if not found:
        return
    study = folder if (folder / PLAN).is_file() else folder.parent if folder.name else folder.resolve().parent
    begun = [one for one in folder.glob("**/*seed-*") if PLACE.fullmatch(one.name) and (one / CONFIG).is_file()]
    lacking = [one for one in begun if one not in found]
    models = {one.parent for one in found}  # others may be statistics, which no ensemble has
    lacking += [one for one in tabled(study) if one.parent in models and not one.exists()]
    if lacking:
        some = ", ".join(one.relative_to(folder).as_posix() for one in sorted(lacking)[:MOST])
        more = ", ..." if len(lacking) > MOST else ""
        total = len(found) + len(lacking)
        print(
            f"warning: {len(lacking)} of {total} runs of {folder} are unfinished or missing, and not in the ensemble: "
            f"{some}{more}",
            file=sys.stderr,
        )


def find(path: str | Path) -> Path:
    """Return the checkpoint file of `path`: a file, a run folder, or the folder of a study.

    The ensemble of a study is written to its folder when it is first used, and again when its runs have changed; to the
    user's cache if the folder cannot be written.

    Raises:
        InputError: there is no checkpoint.
    """
    folder = Path(path)
    found = members_of(folder) if folder.is_dir() else []
    if not found:
        return checkpoint.find_checkpoint(path)
    key = hashlib.sha256(str(folder.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    cached = cache_folder() / "ensembles" / f"{key}.ckpt"
    for output in (folder / ENSEMBLE, cached):
        if output.is_file() and _kept_sources(output) == _sources([one / BEST for one in found]):
            return output
    output, where = folder / ENSEMBLE, ""
    try:
        require_writable(folder)
    except InputError:
        output, where = cached, f"; {folder} cannot be written"
    combine(found, output, [one.relative_to(folder).as_posix() for one in found])
    print(f"written: {output} ({len(found)} models{where})")
    return output


def _kept_sources(path: Path) -> Any:
    """Return the identity of the member files from which an ensemble was made; None if the file is unusable."""
    try:
        return checkpoint.load_plain(path)["seqssm"]["ensemble"]["sources"]
    except (InputError, KeyError, TypeError):
        return None


def read_tested(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """Read the checkpoint that a test runs.

    Args:
        path: a checkpoint, or a set of students.

    Returns:
        (the checkpoint, of a set that of the last student; those of the students before it; a checkpoint in the folder
        of its training, which is `path` for a set whose students' runs are gone).

    Raises:
        InputError: the file is not usable, or is an ensemble of another kind.
    """
    content = checkpoint.load_plain(path)
    if not is_ensemble(content) or content["seqssm"]["ensemble"].get("output") != SUM:
        return checkpoint.checked(content, path), [], path
    members = read_ensemble(path).members
    last = path.with_suffix("") / members[-1].name / BEST
    return members[-1].content, [one.content for one in members[:-1]], last if last.is_file() else path


def read(path: str | Path) -> list[Member]:
    """Read the members of a file; see `read_ensemble`."""
    return read_ensemble(path).members


def read_ensemble(path: str | Path) -> Ensemble:
    """Read a checkpoint, which is a single member without a name, or an ensemble.

    Raises:
        InputError: the file is not usable.
    """
    content = checkpoint.load_plain(Path(path))
    if not is_ensemble(content):
        return Ensemble([Member("", checkpoint.checked(content, Path(path)))])
    entry = content["seqssm"]["ensemble"]
    output = entry.get("output") if isinstance(entry, dict) else None
    if not isinstance(output, str) or output not in (MEAN, SUM):
        version = content["seqssm"].get("version")
        raise InputError(
            f"is an ensemble whose outputs are combined in a way unknown to seqssm {__version__}: use seqssm {version} "
            "or newer",
            file=path,
        )
    members = content.get("members")
    if not isinstance(members, list) or not all(isinstance(one, dict) for one in members) or not members:
        raise InputError("is corrupt: its members are incomplete", file=path)
    own = [Member(str(one.get("name")), checkpoint.checked(one, Path(path))) for one in members]
    if output == MEAN:
        return Ensemble(own)
    heads: Any = entry.get("heads")
    flops: Any = entry.get("flops")
    good = checkpoint.KINDS["strings"](heads) and checkpoint.KINDS["numbers"](flops) and len(flops) == len(own)
    if not good:
        raise InputError("is corrupt: the heads or the operations of its members are incomplete", file=path)
    return Ensemble(own, SUM, tuple(heads), tuple(float(one) for one in flops))
