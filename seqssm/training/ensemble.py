"""Ensembles: the trained models of a study in one file, which is used like a checkpoint.

The file holds tensors and plain Python only. Beside an empty ``"state_dict"``, its ``"seqssm"`` entry has the
``format, version, domain`` of a checkpoint and ``"ensemble"``: ``output`` (how the members' outputs are combined) and
``sources``, the identity of the member files; ``"members"`` are the checkpoints of the members without their
optimiser states. An entry ``output`` other than ``mean`` is reserved for models that are sums of their members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seqssm.errors import InputError
from seqssm.files.disk import atomic
from seqssm.training import checkpoint
from seqssm.training.run_folder import BEST, ENSEMBLE, PLAN, RunFolder
from seqssm.version import __version__

MEAN = "mean"


@dataclass
class Member:
    """A trained model of an ensemble.

    Attributes:
        name: path of its run in the study (``smamba/seed-1``).
        content: its checkpoint, as read.
    """

    name: str
    content: dict[str, Any]


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
            raise InputError(f"belongs to the domain {entry['domain']}, not {first['domain']}", file=path)
    content = {
        "seqssm": {
            "format": checkpoint.FORMAT,
            "version": __version__,
            "domain": first["domain"],
            "ensemble": {"output": MEAN, "sources": _sources(paths)},
        },
        "state_dict": {},
        "members": [
            {"name": member.name, **{key: member.content[key] for key in ("seqssm", "state_dict")}} for member in own
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
    inside = study if (study / PLAN).is_file() else study.parent
    if not (inside / PLAN).is_file() or (study / BEST).is_file():
        return []
    runs = sorted(path.parent for path in study.glob(f"**/*seed-*/{BEST}"))
    return [run for run in runs if "test" in RunFolder(run).read_json()]


def find(path: str | Path) -> Path:
    """Return the checkpoint file of `path`: a file, a run folder, or the folder of a study.

    The ensemble of a study is written to its folder when it is first used, and again when its runs have changed.

    Raises:
        InputError: there is none.
    """
    folder = Path(path)
    found = members_of(folder) if folder.is_dir() else []
    if not found:
        return checkpoint.find_checkpoint(path)
    output = folder / ENSEMBLE
    if output.is_file():
        try:
            kept = checkpoint.load_plain(output)["seqssm"]["ensemble"]["sources"]
        except (InputError, KeyError, TypeError):
            kept = None
        if kept == _sources([one / BEST for one in found]):
            return output
    combine(found, output, [one.relative_to(folder).as_posix() for one in found])
    print(f"written: {output} ({len(found)} models)")
    return output


def read(path: str | Path) -> list[Member]:
    """Read a checkpoint, which is a single member without a name, or an ensemble.

    Raises:
        InputError: the file is not usable.
    """
    content = checkpoint.load_plain(Path(path))
    if not is_ensemble(content):
        return [Member("", checkpoint.checked(content, Path(path)))]
    entry = content["seqssm"]["ensemble"]
    if not isinstance(entry, dict) or entry.get("output") != MEAN:
        version = content["seqssm"].get("version")
        raise InputError(
            f"is an ensemble whose outputs are combined in a way unknown to seqssm {__version__}: use seqssm {version} "
            "or newer",
            file=path,
        )
    members = content.get("members")
    if not isinstance(members, list) or not all(isinstance(one, dict) for one in members) or not members:
        raise InputError("is damaged: its members are not complete", file=path)
    return [Member(str(one.get("name")), checkpoint.checked(one, Path(path))) for one in members]
