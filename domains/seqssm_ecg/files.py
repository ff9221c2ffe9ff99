"""Recordings in files and folders: opens, lists and recognises them by the table `seqssm_ecg.formats.FILES`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from seqssm.domain import resolve
from seqssm.errors import InputError, no_such_file
from seqssm_ecg.formats import FILES, HEAD, FileFormat
from seqssm_ecg.leads import check_lead_map
from seqssm_ecg.recording import ArraySpec, Reading, Recording
from seqssm_ecg.wfdb_files import header_of, segments_of, write_wfdb

__all__ = [
    "Recording",
    "check_local",
    "file_format",
    "find_recordings",
    "header_of",
    "inputs",
    "located",
    "open_recording",
    "read_recording",
    "without_suffix",
    "write_wfdb",
]
WFDB = FILES[0]


def open_recording(
    path: Path,
    lead_map: Mapping[str, str] | None = None,
    array: ArraySpec | None = None,
    checksums: bool = True,
    wfdb_defaults: bool = False,
) -> Recording:
    """Open a recording: check headers and file sizes; samples are read on access where the format allows it.

    Args:
        path: a file of one of the formats `FILES`, a WFDB record name without suffix, or a recording within a file of
            several (``exams.hdf5/17``).
        lead_map: mapping from lead names in the file to standard names.
        array: sampling rate, leads and unit of arrays.
        checksums: whether samples that do not match the header's checksums are an error.
        wfdb_defaults: whether to assume WFDB's 200 per mV and 250 Hz for a missing gain and sampling rate.

    Raises:
        InputError: the recording cannot be read, or its header is invalid.
    """
    check_lead_map(lead_map)
    check_local(path)
    kind = file_format(path)
    if kind is None:
        if path.suffix.lower() == ".xml" and path.is_file():
            raise InputError(f"is XML, but not of a known format ({_names('.xml')})", file=path)
        if path.is_dir() and not header_of(path).is_file():
            raise InputError("is a folder, not a recording", file=path)
        kind = WFDB
    if kind.reader is None:
        article = "an" if kind.name[0] in "AEIOS" else "a"
        raise InputError(f"is {article} {kind.name} file, which is not supported: {kind.advice}", file=path)
    reading = Reading(lead_map or {}, array or ArraySpec(), checksums, wfdb_defaults)
    return resolve(kind.reader)(path, reading).checked()


def read_recording(
    path: Path,
    lead_map: Mapping[str, str] | None = None,
    array: ArraySpec | None = None,
    checksums: bool = True,
    wfdb_defaults: bool = False,
) -> Recording:
    """Open a recording and read all its samples.

    Args:
        path: argument of `open_recording`.
        lead_map: argument of `open_recording`.
        array: argument of `open_recording`.
        checksums: argument of `open_recording`.
        wfdb_defaults: argument of `open_recording`.

    Raises:
        InputError: the recording cannot be read, or its header is invalid.
    """
    recording = open_recording(path, lead_map, array, checksums, wfdb_defaults)
    recording.values  # noqa: B018 (reads now, so that errors are raised here)
    return recording


def check_local(path: Path) -> None:
    """Raise InputError for a URL (``s3://...``); only local files are read."""
    text = path.as_posix()
    if "://" in text or text.split("/")[0].casefold() in ("s3:", "gs:", "http:", "https:", "azureml:", "file:"):
        raise InputError("is a URL; download it first, only local files are read", file=path)


# -- formats ---------------------------------------------------------------------------------------------------------


def file_format(path: Path) -> FileFormat | None:
    """Return the format of a file by its suffix, or by its first bytes if these contradict the suffix or decide it.

    Args:
        path: a file, or a recording within a file of several. It does not have to exist if its suffix is unique.
    """
    suffix = path.suffix.lower()
    rows = [row for row in FILES if suffix in row.suffixes]
    if len(rows) == 1 and rows[0].recognised is None:
        return rows[0]
    for row in FILES:
        if row.entries is not None and any(
            parent.suffix.lower() in row.suffixes and parent.is_file() for parent in path.parents
        ):
            return row
    head = _head(path)
    by_content = [row for row in FILES if row.recognised is not None and row.recognised(head)]
    return next(iter([*by_content, *(rows if len(rows) == 1 else [])]), None)


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError:  # a record name, or reported when the recording is read
        return b""


def _names(suffix: str) -> str:
    return ", ".join(row.name for row in FILES if suffix in row.suffixes)


def located(path: Path) -> Path:
    """Return the path that stands for a recording: the header of a WFDB record, and any other file itself."""
    kind = file_format(path)
    return header_of(path) if kind is None or kind is WFDB else path


def without_suffix(path: Path) -> str:
    """Return a path without the suffix of its format: ``a/r.edf`` is ``a/r``; the UID ``1.2.840.3`` has none.

    Args:
        path: path of a recording, absolute or relative.
    """
    suffix = path.suffix.lower()
    known = any(suffix in row.suffixes for row in FILES)
    return path.with_suffix("").as_posix() if known else path.as_posix()


# -- folders ---------------------------------------------------------------------------------------------------------


def find_recordings(folder: Path, every_format: bool = False) -> list[Path]:
    """List the headers below a folder, sorted; segments of a record in the same folder are excluded.

    Args:
        folder: folder to search, including its subfolders.
        every_format: whether to list files of the other formats too. Formats that share a suffix, and files without
            one, are recognised by their first bytes; a `.csv` file, which may hold anything, is read only if named
            explicitly.
    """
    suffixes = {suffix for row in FILES for suffix in row.listed} if every_format else set(WFDB.listed)
    found = sorted(
        path
        for path in folder.rglob("*")
        if _suffix(path) in suffixes and not path.name.startswith(".") and _is_recording(path)
    )
    segments = segments_of(path for path in found if path.suffix.lower() == ".hea")
    return [path for path in found if path not in segments] if segments else found


def in_folders(path: Path) -> bool:
    """Whether a recording of this name is listed by `find_recordings` of every format."""
    return any(_suffix(path) in row.listed for row in FILES)


def _is_recording(path: Path) -> bool:
    """Return whether a file with a listed suffix is a recording, as far as its format can tell."""
    suffix = _suffix(path)
    if sum(suffix in row.suffixes for row in FILES) == 1:
        return True
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    kind = file_format(path)
    return kind is not None and suffix in kind.listed


def _suffix(path: Path) -> str:
    """Return the suffix in lower case; ``""`` for a number, the end of a UID (``1.2.840.3``)."""
    suffix = path.suffix.lower()
    return "" if suffix[1:].isdigit() else suffix


def inputs(paths: Iterable[Path]) -> Iterator[Path]:
    """List the recordings given on the command line: files, record names, folders.

    Raises:
        InputError: a path does not exist, or a folder has no recordings.
    """
    for path in paths:
        check_local(path)
        if path.is_dir():
            found = find_recordings(path, every_format=True)
            if not found:
                names = ", ".join(row.name for row in FILES if row.reader is not None)
                raise InputError(f"contains no recordings ({names})", file=path)
            for one in found:
                yield from _entries(one)
        elif path.is_file():
            if file_format(path) is None and not header_of(path).is_file() and path.suffix.lower() != ".xml":
                raise InputError("is not a recording or a folder of them", file=path)
            yield from _entries(path)
        elif header_of(path).is_file() or any(parent.is_file() for parent in path.parents):
            yield path
        else:
            raise no_such_file(path)


def _entries(path: Path) -> list[Path]:
    """Return the recordings of a file; the file itself if it is one recording, or cannot be read."""
    kind = file_format(path)
    if kind is None or kind.entries is None:
        return [path]
    try:
        names = resolve(kind.entries)(path)
    except InputError:  # reported when the recording is read
        return [path]
    return [path / name if name else path for name in names]
