"""Atomic file writes (temporary name, fsync, rename), and OS errors translated into user messages."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from seqssm.errors import InputError

# OS errors caused by the user's environment, with their message; any other OSError is a bug
TROUBLE = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "the file exceeds the maximum size of the file system",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "part of the path is a file, not a folder",
    errno.EEXIST: "part of the path is a file, not a folder",  # from mkdir
    errno.EISDIR: "is a folder, not a file",
    errno.ENAMETOOLONG: "the name is too long",
}


class Begun:
    """Whether a command has begun its work, so that it can be continued if it is interrupted.

    Args:
        file: file that the command writes first; an earlier command may have left one.
        resume: whether this command continues the earlier one.
    """

    def __init__(self, file: Path, resume: bool) -> None:
        self.file = file
        self.before = None if resume else self._state()

    def _state(self) -> tuple[int, int] | None:
        try:
            found = self.file.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def __bool__(self) -> bool:
        now = self._state()
        return now is not None and now != self.before


@contextmanager
def atomic(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a file that is renamed to `path` once it is complete and on disk.

    Raises:
        InputError: the disk is full or the folder is not writable; an earlier file at `path` is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, mode, **text) as file:  # type: ignore[call-overload]
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove temporary files that `atomic` left in `folder` when its process was killed.

    Only the holder of the folder's lock may call this. Files of processes that still run on this machine are kept.

    Args:
        folder: folder to clean, without its subfolders.
        name: final name of the files; all names by default.
    """
    with suppress(OSError):
        for path in folder.glob(".*.tmp"):
            match = re.fullmatch(r"\.(.+)\.(\d+)\.tmp", path.name)
            if match and name in (None, match[1]) and not _runs(int(match[2])):
                path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Return whether another process with this id runs on this machine."""
    if process == os.getpid():
        return False  # this process has not written anything yet; process ids repeat in containers
    if os.name == "nt":
        return True  # os.kill would terminate the process
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def require_writable(folder: Path) -> None:
    """Check that files can be written to a folder, or that the folder can be created; leaves no files.

    Raises:
        InputError: the path is a file, or not writable.
    """
    with writing(folder):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        with tempfile.TemporaryFile(dir=there):
            pass


def require_named(output: str | Path | None) -> None:
    """Raise InputError if `output` is an empty name."""
    if output is not None and not str(output):
        raise InputError("--output: the name is empty")


def require_new(name: str | Path | None, overwrite: bool, inputs: Iterable[Any] = (), flag: str = "--output") -> None:
    """Check that the output of a command does not exist, is not an input, and can be written.

    Args:
        name: name of the file; None if the output is printed.
        overwrite: whether to allow an existing file.
        inputs: values of the command's other options; those that name files, and the checkpoints in folders that they
            name, are inputs.
        flag: option that names the file, for messages.

    Raises:
        InputError: the file exists, is a folder or an input, or cannot be written.
    """
    if name is None:
        return
    require_no_folder(name, flag)
    path = Path(name)
    require_no_input(path, inputs, flag)
    if path.exists() and not overwrite:
        raise InputError(f"already exists; choose another {flag} or pass --overwrite", file=path)
    require_writable(path.absolute().parent)


def require_no_folder(name: str | Path, flag: str = "--output") -> None:
    """Raise InputError if the name of an output is that of a folder, or ends in a slash.

    Args:
        name: name of the file as the user has typed it.
        flag: option that names the file, for messages.
    """
    if Path(name).is_dir() or str(name).endswith(("/", os.sep)):
        raise InputError(f"is a folder; {flag} takes a file", file=name)


def require_suffix(path: str | Path, suffixes: Sequence[str], flag: str = "--output") -> None:
    """Require a file name with one of the suffixes.

    Args:
        path: the file to write.
        suffixes: ``.csv``, ...
        flag: the option that names it.

    Raises:
        InputError: it has another suffix.
    """
    require_no_folder(path, flag)
    if Path(path).suffix.lower() not in suffixes:
        raise InputError(f"{flag} must end in {' or '.join(suffixes)}", file=path)


def require_output(options: Mapping[str, Any]) -> None:
    """Check that the file ``--output`` of a command may be written, and is none of the files of its other options.

    Args:
        options: values of the command's options, with ``output`` and ``overwrite``.
    """
    require_new(options["output"], options["overwrite"], [value for name, value in options.items() if name != "output"])


def require_no_input(path: Path, inputs: Iterable[Any], flag: str = "--output") -> None:
    """Check that an output is not one of the inputs.

    Args:
        path: the output.
        inputs: as for `require_new`.
        flag: option that names the output, for messages.

    Raises:
        InputError: the output is an input, possibly by another name of the same file.
    """
    if path.is_file() and any(path.samefile(one) for one in input_files(inputs)):
        raise InputError(f"is also an input; choose a different {flag}", file=path)


def input_files(values: Iterable[Any]) -> Iterator[Path]:
    """Yield the files that values of options name, and the checkpoints in folders (runs) that they name.

    Args:
        values: values of any type; lists are searched, and so is what follows the first ``=`` (``NAME=FILE``).
    """
    for path in _paths(values):
        with suppress(OSError, ValueError):  # text that cannot be a path
            if path.is_file():
                yield path
            elif path.is_dir():
                yield from path.glob("*.ckpt")


def _paths(values: Iterable[Any]) -> Iterator[Path]:
    """Yield what values of options may name: texts and paths, in lists and mappings, and what follows ``=``."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _paths(value)
        elif isinstance(value, Mapping):
            yield from _paths(value.values())
        elif isinstance(value, str | Path):
            yield from (Path(name) for name in dict.fromkeys((str(value), str(value).partition("=")[2])) if name)


def require_no_pipes(values: Iterable[Any]) -> None:
    """Check that no input is a pipe: inputs are read several times, and a pipe only gives its content once.

    Args:
        values: values of options, of any type, as for `input_files`.

    Raises:
        InputError: a value names a pipe, a terminal or another device.
    """
    for path in _paths(values):
        try:
            kind = path.stat().st_mode
        except (OSError, ValueError):  # text that is no path, or no such file
            continue
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
            raise InputError("is a pipe or a device; inputs are read several times: save it to a file", file=path)


def encodable(text: object) -> str:
    """Make text encodable: bytes of a file name that are not UTF-8 become ``\\udce9``.

    Args:
        text: a name, or anything else that is shown.
    """
    shown = str(text)
    return shown if shown.isascii() else shown.encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate OS errors, including those wrapped by a library, into an `InputError` that names `path`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        trouble = refusal(error)
        if trouble is None and isinstance(error, FileNotFoundError):
            trouble = "cannot create a folder here"
        if trouble is None:
            raise
        raise InputError(f"{trouble}; any files completed earlier are kept", file=path) from error


def refusal(error: BaseException | None) -> str | None:
    """Return the message for `error` if it or one of its causes is an environment error; else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in TROUBLE:
            return TROUBLE[error.errno]
        error = error.__cause__ or error.__context__
    return None


def loader_was_killed(error: BaseException | None) -> bool:
    """Return whether a worker process of PyTorch's DataLoader was killed.

    The signal handler may raise at any point of the main process; a queue may detect the loss first.
    """
    while error is not None:
        named = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
        if named or isinstance(error, ConnectionError):
            return True
        error = error.__cause__ or error.__context__
    return False
